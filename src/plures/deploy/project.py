"""A folder with all that a federation needs: the app, what is agreed on, the door, services, and a folder per site."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plures.deploy.fleet.process import QUIET
from plures.deploy.proxy import PUBLIC, SUPERLINK, nginx
from plures.deploy.services import COORDINATOR, service
from plures.deploy.templates import filled
from plures.errors import PluresError
from plures.files import write_text
from plures.tables.declared import toml
from plures.tables.heart import heart_metadata, heart_schema, heart_tables
from plures.tables.table import Table, write_table

HOST = "coordinator.example.org"
CLIENTS = ("first", "second", "third")
PLAN = "federation.toml"
SITES = "sites"
EXAMPLES = ("heart",)
HEART = {"method": "ditto+threshold", "lr": 0.1, "rounds": 20}


@dataclass(frozen=True)
class Project:
    """What is to be written.

    Attributes:
        name: of the federation.
        clients: names of its members.
        host: name or address under which sites reach the coordinator.
        plan: the text of ``federation.toml``.
        tables: the rows of each member, if they are known.
        metadata: facts of each member, if they are known.
    """

    name: str
    clients: tuple[str, ...]
    host: str
    plan: str
    tables: Mapping[str, Table]
    metadata: Mapping[str, Mapping[str, object]]

    @property
    def app(self) -> str:
        """The federation's name as that of a folder and of a Flower app."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "federation"

    def files(self, folder: Path) -> dict[str, str]:
        """Path in the folder -> text.

        Args:
            folder: where it is written to; Flower wants the certificate's whole path.
        """
        told = {"name": self.name, "app": self.app, "host": self.host, "port": SUPERLINK, "public": PUBLIC}
        quiet = "\n".join(f"{name}={value}" for name, value in QUIET.items())
        common = {
            "README.md": filled("README.md", **told),
            "pyproject.toml": filled("pyproject.toml", **told),
            "carrier.py": filled("carrier.py"),
            PLAN: self.plan,
            "nginx.conf": nginx(),
            "flower.env": filled("flower.env", quiet=quiet),
            "flower/config.toml": filled("config.toml", folder=folder.resolve(), **told),
            ".gitignore": filled("gitignore"),
        }
        for file in COORDINATOR:
            common[f"systemd/{file}"] = service(file, folder, app=self.app, title=self.name, port=SUPERLINK)
        for client in self.clients:
            common |= {f"{SITES}/{client}/{name}": text for name, text in self.site(client, told).items()}
        return common

    def site(self, client: str, told: Mapping[str, object]) -> dict[str, str]:
        """File in a site's folder -> text."""
        known = client in self.tables
        facts = ", ".join(f"{key} = {json.dumps(value)}" for key, value in self.metadata.get(client, {}).items())
        values = {
            "client": json.dumps(client),
            "source": 'data = "data.csv"' if known else 'loader = "load_data.py:load"\n# data = "data.csv"',
            "metadata": f"metadata = {{ {facts} }}" if facts else '# metadata = { country = "Norway" }',
        }
        own = {
            "site.toml": filled("site/site.toml", **values),
            "README.md": filled("site/README.md", client=client, **told),
            "node.service": filled("site/node.service", client=client, **told),
        }
        return own | ({PLAN: self.plan} if known else {"load_data.py": filled("site/load_data.py")})


def blank(name: str, clients: Sequence[str] = CLIENTS, host: str = HOST) -> Project:
    """A federation whose columns, rows and method are to be filled in."""
    values = {"name": toml(name), "clients": toml(tuple(clients)), "enough": max(1, len(clients) - 1)}
    return Project(name, tuple(clients), host, filled(PLAN, **values), {}, {})


def heart(host: str = HOST, **run: object) -> Project:
    """The four hospitals of the packaged heart data, ready to run.

    Args:
        host: name or address of the coordinator.
        run: fields of ``[run]`` that differ from :data:`HEART`.
    """
    tables = heart_tables()
    lines = [f"{key} = {json.dumps(value)}" for key, value in (HEART | run).items()]
    rules = ["min_clients = 3", "deadline = 120.0", "join_deadline = 300.0"]
    head = ['name = "heart"', f"clients = {json.dumps(list(tables))}", "", "[run]", *lines, "", "[rules]", *rules, ""]
    plan = "\n".join([*head, heart_schema().to_toml()])
    return Project("heart", tuple(tables), host, plan, tables, heart_metadata())


def write(folder: Path, project: Project) -> list[Path]:
    """Write a project; returns its files.

    Raises:
        PluresError: one of the files exists; nothing was written then. Or it cannot be written.
    """
    texts = {folder / name: text for name, text in project.files(folder).items()}
    tables = {folder / SITES / client / "data.csv": table for client, table in project.tables.items()}
    for file in (*texts, *tables):
        if file.exists():
            raise PluresError(f"{file} exists and is never overwritten: choose another folder")
    for file, text in texts.items():
        write_text(file, text)
    for file, table in tables.items():
        write_table(file, table)
    return sorted([*texts, *tables])
