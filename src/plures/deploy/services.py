"""Services of systemd as they are to be installed: for the user, the folder and the plures that wrote them."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from pathlib import Path

from plures.deploy.quoting import unit_command, unit_value
from plures.deploy.templates import filled
from plures.errors import PluresError

USER = "plures"
"""Whose the services are where root writes them."""
USER_ID = 10001
"""The same in containers."""
COORDINATOR = ("superlink.service", "proxy.service", "run@.service", "logrotate.conf", "guard.nft")


def owner() -> str:
    """The user for whom services are written: the present one, if that is not root."""
    if os.name == "posix" and os.geteuid() == 0:
        return USER
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in a container
        return USER


def as_owner(folder: Path) -> None:
    """Refuse to be root in the folder of another user, whose services could not read what root makes there.

    Args:
        folder: there, or to be made.

    Raises:
        PluresError: root is at work in another user's folder.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return
    place = next(there for there in (folder.resolve(), *folder.resolve().parents) if there.exists())
    if number := place.stat().st_uid:
        user = shlex.quote(account(number))
        raise PluresError(
            f"{place} belongs to {user}, whose services cannot read what root makes there: say `sudo -u {user} plures` "
            "and so on"
        )


def account(number: int) -> str:
    """A user's name; the number, as sudo takes it, if it has none."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"#{number}"


def advice(folder: Path) -> list[str]:
    """What is to be said when services were written for another user than the present one."""
    if os.name != "posix" or os.geteuid() != 0:
        return []
    return [
        f"root wrote this for the user {USER!r}, for services never run as root: `chown -R {USER}: "
        f"{shlex.quote(str(folder))}`, and be {USER!r} for all that follows (`sudo -iu {USER}`)"
    ]


def service(name: str, folder: Path, *, app: str, title: str, port: int, **told: object) -> str:
    """A file of ``templates/systemd``, filled in.

    Args:
        name: of the file.
        folder: that the service works in, and the only one that it may write to.
        app: what its services are called by.
        title: the federation's name.
        port: of loopback, which its user alone may reach.
        told: more names of the file and their values.
    """
    home = str(folder.resolve())
    values = {
        "app": app,
        "name": unit_value(title),
        "user": owner(),
        "home": unit_value(home),
        "root": unit_command([home]),
        "glob": "".join(f"\\{sign}" if sign in '\\"*?[' else sign for sign in home),
        "plures": unit_command([str(Path(sys.executable).with_name("plures"))]),
        "port": port,
        "confined": filled("systemd/confined", root=unit_command([home])),
    }
    return filled(f"systemd/{name}", **values, **told)
