"""The coordinator's folder: the app, the agreement, the reverse proxy, services, and instructions."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plures.deploy.containers import containers
from plures.deploy.fleet.process import QUIET
from plures.deploy.plan import CONNECTION
from plures.deploy.proxy import DNS, PUBLIC, SUPERLINK, nginx
from plures.deploy.services import COORDINATOR, owner, service
from plures.deploy.templates import filled
from plures.errors import PluresError
from plures.files import filed, write_text
from plures.tables.declared import toml
from plures.tables.heart import heart_schema, heart_tables
from plures.tables.table import Table, write_table
from plures.texts import markdown

HOST = "coordinator.example.org"
CLIENTS = ("first", "second", "third")
PLAN = "federation.toml"
ROWS = "rows"
"""Folder with the rows of an example's members."""
EXAMPLES = ("heart",)
HEART = {"method": "ditto+threshold", "lr": 0.1, "rounds": 20}


@dataclass(frozen=True)
class Project:
    """Contents of a coordinator's folder, to be written.

    Attributes:
        name: name of the federation.
        clients: names of its members.
        host: name or address under which sites reach the coordinator.
        plan: the text of ``federation.toml``.
        tables: the rows of each member, if they are known.
    """

    name: str
    clients: tuple[str, ...]
    host: str
    plan: str
    tables: Mapping[str, Table]

    def files(self, folder: Path, app: str | None = None) -> dict[str, str]:
        """Path in the folder -> text.

        Args:
            folder: the coordinator's folder; Flower needs the certificate's absolute path.
            app: name of its services; default: the federation's name, adapted to what systemd allows.
        """
        app = app or slug(self.name, "federation")
        placeholders = {
            "name": markdown(self.name),
            "app": app,
            "host": shlex.quote(self.host),
            "port": SUPERLINK,
            "public": PUBLIC,
            "user": owner(),
        }
        authority = toml(str(folder.resolve() / "keys" / "ca.crt"))
        quiet = "\n".join(f"{name}={value}" for name, value in QUIET.items())
        common = {
            "README.md": filled("README.md", **placeholders),
            "pyproject.toml": filled("pyproject.toml", **placeholders),
            "carrier.py": filled("carrier.py"),
            PLAN: self.plan,
            "nginx.conf": nginx(),
            "flower.env": filled("flower.env", quiet=quiet),
            str(CONNECTION): filled("config.toml", authority=authority, **placeholders),
            ".gitignore": filled("gitignore"),
        }
        for file in COORDINATOR:
            common[f"systemd/{file}"] = service(file, folder, app=app, title=self.name, port=SUPERLINK)
        return common


def slug(name: str, otherwise: str) -> str:
    """Adapt a name for a service or a Flower app, which do not allow every character. Different names stay different.

    Args:
        name: the name.
        otherwise: used if no allowed character is left.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or otherwise
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def proxy_address(host: str) -> str:
    """The address of the coordinator's reverse proxy: ``host:port``."""
    with suppress(ValueError):
        return f"[{host}]:{PUBLIC}" if ipaddress.ip_address(host).version == 6 else f"{host}:{PUBLIC}"
    if not DNS.fullmatch(host):
        raise PluresError(f"--host {host!r}: give a DNS name in ASCII or an IP address, without a port")
    return f"{host}:{PUBLIC}"


def blank(name: str, clients: Sequence[str] = CLIENTS, host: str = HOST) -> Project:
    """A new federation, with columns, rows and method for the user to fill in."""
    values = {"name": toml(name), "clients": toml(tuple(clients)), "enough": max(1, len(clients) - 1)} | {
        "superlink": toml(proxy_address(host))
    }
    return Project(name, tuple(clients), host, filled(PLAN, **values), {})


def heart(host: str = HOST, **run: object) -> Project:
    """The four hospitals of the packaged heart data, ready to run.

    Args:
        host: name or address of the coordinator.
        run: fields of ``[run]`` that differ from :data:`HEART`.
    """
    tables = heart_tables()
    lines = [f"{key} = {json.dumps(value)}" for key, value in (HEART | run).items()]
    rules = ["min_clients = 3", "deadline = 120.0", "join_deadline = 300.0"]
    head = [
        'name = "heart"',
        f"clients = {json.dumps(list(tables))}",
        f"superlink = {toml(proxy_address(host))}",
        "",
        "[run]",
        *lines,
        "",
        "[rules]",
        *rules,
        "",
    ]
    plan = "\n".join([*head, heart_schema().to_toml()])
    return Project("heart", tuple(tables), host, plan, tables)


def write(folder: Path, project: Project, *, contained: bool = False) -> list[Path]:
    """Write a project, and return its files.

    Args:
        folder: the coordinator's folder.
        project: the project.
        contained: also write the files for containers, including those of members whose rows are known.

    Raises:
        PluresError: one of the files exists or cannot be written; then none is left behind.
    """
    texts = {folder / name: text for name, text in project.files(folder).items()}
    rows = {client: f"{ROWS}/{filed(client)}.csv" for client in project.tables}
    tables = {folder / rows[client]: table for client, table in project.tables.items()}
    if contained:
        texts |= {
            folder / name: text for name, text in containers(folder, slug(project.name, "federation"), rows).items()
        }
    for file in (*texts, *tables):
        if file.exists():
            raise PluresError(f"{file} exists and is never overwritten: choose another folder")
    try:
        for file, text in texts.items():
            write_text(file, text)
        for file, table in tables.items():
            write_table(file, table)
    except PluresError:
        for file in (*texts, *tables):
            with suppress(OSError):
                file.unlink()
        raise
    return sorted([*texts, *tables])
