"""systemd services, ready to install: for the user, the folder and the plures installation that wrote them."""

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
"""User of the services if root writes them."""
USER_ID = 10001
"""User id in containers."""
COORDINATOR = ("superlink.service", "proxy.service", "run@.service", "logrotate.conf", "guard.nft")


def owner() -> str:
    """The user that the services run as: the current one, unless that is root."""
    if os.name == "posix" and os.geteuid() == 0:
        return USER
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in a container
        return USER


def as_owner(folder: Path) -> None:
    """Refuse to work as root in another user's folder, whose services could not read root's files.

    Args:
        folder: an existing folder, or one to be made.

    Raises:
        PluresError: the current user is root and the folder belongs to another user.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return
    place = next(there for there in (folder.resolve(), *folder.resolve().parents) if there.exists())
    if number := place.stat().st_uid:
        user = shlex.quote(account(number))
        raise PluresError(
            f"{place} belongs to {user}, whose services cannot read files that root makes there: run the command as "
            f"`sudo -u {user} plures ...`"
        )


def account(number: int) -> str:
    """A user's name, or the number in sudo's notation if it has none."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"#{number}"


def advice(folder: Path) -> list[str]:
    """What to tell root, who has written services for another user."""
    if os.name != "posix" or os.geteuid() != 0:
        return []
    return [
        f"these services run as the user {USER!r}, never as root: `chown -R {USER}: "
        f"{shlex.quote(str(folder))}`, then continue as {USER!r} (`sudo -iu {USER}`)"
    ]


def service(name: str, folder: Path, *, app: str, title: str, port: int, **placeholders: object) -> str:
    """Fill in a file of ``templates/systemd``.

    Args:
        name: name of the file.
        folder: working folder of the service, and the only one that it may write to.
        app: name of the services.
        title: name of the federation.
        port: loopback port that only its user may reach.
        placeholders: further placeholders in the file and their values.
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
    return filled(f"systemd/{name}", **values, **placeholders)
