"""Deployment in containers: an image for coordinator and sites, and a compose file."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from plures.deploy.proxy import PUBLIC, SUPERLINK
from plures.deploy.services import USER_ID
from plures.deploy.templates import filled
from plures.files import filed
from plures.version import __version__

FOLDER, SITES = "containers", "sites"
SERVICE = "superlink"
"""Host name by which members in the same compose file reach the reverse proxy."""


def containers(folder: Path, app: str, rows: Mapping[str, str]) -> dict[str, str]:
    """File in the coordinator's folder -> text.

    Args:
        folder: the coordinator's folder.
        app: name of the compose project.
        rows: client -> file with its rows, for members whose sites run on this machine too.
    """
    home = folder.resolve()
    sites = keys = joins = ""
    for client, file in rows.items():
        name = filed(client)
        site = f"{SITES}/{name}"
        sites += filled(f"{FOLDER}/site.yaml", service=name, home=text(str(home / site)))
        words = {"service": name, "client": client, "site": site, "key": f"{site}/keys/nodes/{name}", "rows": file}
        quoted = {key: shlex.quote(value) for key, value in words.items()}
        keys += filled(f"{FOLDER}/keys.sh", **quoted)
        joins += filled(f"{FOLDER}/join.sh", **quoted)
    placeholders = {
        "app": app,
        "whom": " and four hospitals" if rows else "",
        "version": __version__,
        "user": user(),
        "home": text(str(home)),
        "port": SUPERLINK,
        "public": PUBLIC,
        "sites": sites,
    }
    found = {
        "Containerfile": filled(f"{FOLDER}/Containerfile", version=__version__),
        "compose.yaml": filled(f"{FOLDER}/compose.yaml", **placeholders),
        ".dockerignore": filled(f"{FOLDER}/ignore"),
        "wheels/README.md": filled(f"{FOLDER}/wheels.md"),
    }
    if rows:
        folders = shlex.join(f"{SITES}/{filed(client)}" for client in rows)
        found["up.sh"] = filled(f"{FOLDER}/up.sh", keys=keys, joins=joins, folders=folders, user=user())
    return {f"{FOLDER}/{name}": content for name, content in found.items()}


def user() -> str:
    """User and group id of the folders' owner; never root."""
    if os.name != "posix" or os.geteuid() == 0:
        return f"{USER_ID}:{USER_ID}"
    return f"{os.geteuid()}:{os.getegid()}"


def text(value: str) -> str:
    """Text in a compose file, where a dollar sign begins a variable."""
    return json.dumps(value.replace("$", "$$"), ensure_ascii=False)
