"""New keys and certificates of the coordinator; old ones are moved aside, never overwritten."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plures.deploy import agreement
from plures.deploy.keys import Keyring, authority_digest, hosts, read, with_pub
from plures.deploy.operate.members import resting
from plures.deploy.operate.place import Place
from plures.deploy.signing import public
from plures.errors import PluresError

WARN = 30
"""Days before a certificate expires in which it is reported."""
RETIRED = "retired"


def coordinator(place: Place) -> list[str]:
    """Create a new key for signing orders.

    Returns:
        What was done and is to be done, in sentences.

    Raises:
        PluresError: there is none yet, or a run is under way.
    """
    keys = ring(place)
    if not keys.coordinator.exists():
        raise PluresError(f"{keys.coordinator} is missing: `plures deploy keys --host NAME` makes the first one")
    resting(place)
    with aside(keys, keys.coordinator, with_pub(keys.coordinator)):
        keys.make_coordinator()
    found = public(with_pub(keys.coordinator))
    agreement.enter(place.file, top={"coordinator": found})
    return [
        f"the coordinator has a new key, {found}",
        f"send {place.file} to every member: each takes part again once it has joined again with it",
    ]


def server(place: Place) -> list[str]:
    """Issue a new server certificate, for the same names, by the same authority; members need not change anything.

    Raises:
        PluresError: there is none yet, or the authority's key is not there.
    """
    keys = ring(place)
    names = hosts(keys.server)
    _ = keys.read_authority()
    with aside(keys, keys.server, keys.server_key):
        keys.make_server(names)
    return [f"the server has a new certificate for {', '.join(names)}, until {ends(keys.server):%Y-%m-%d}", RESTART]


RESTART = "restart the SuperLink and the reverse proxy; resume an interrupted run with `plures deploy run`"


def authority(place: Place) -> list[str]:
    """Create a new authority and a server certificate signed by it; every member must get both files again.

    Raises:
        PluresError: there is none yet, or a run is under way.
    """
    keys = ring(place)
    names = hosts(keys.server)
    resting(place)
    with aside(keys, keys.server, keys.server_key, keys.authority, keys.authority_key):
        keys.make_server(names)
    agreement.enter(place.file, top={"authority": authority_digest(keys.authority)})
    return [
        f"there is a new authority, until {ends(keys.authority):%Y-%m-%d}",
        RESTART,
        f"send {place.file} and {keys.authority} to every member: no node can connect until it has joined again",
    ]


def ring(place: Place) -> Keyring:
    return Keyring(place.file.parent / "keys")


@contextmanager
def aside(keys: Keyring, *files: Path) -> Iterator[None]:
    """Move files into a timestamped folder beside them; restore them if the new ones cannot be made."""
    folder = keys.folder / RETIRED / datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder.mkdir(mode=0o700, parents=True, exist_ok=False)
    there = [file for file in files if file.exists()]
    try:
        for file in there:
            file.rename(folder / file.name)
        yield
    except BaseException:
        for file in there:
            with suppress(FileNotFoundError):
                (folder / file.name).replace(file)
        folder.rmdir()
        raise


def ends(file: Path) -> datetime.datetime:
    """When a certificate expires."""
    return read(file).not_valid_after_utc


def ending(file: Path, remedy: str, now: datetime.datetime | None = None) -> list[str]:
    """Warnings about a certificate: none unless it expires soon or has expired.

    Args:
        file: the certificate.
        remedy: what to do.
        now: the current time.
    """
    if not file.exists():
        return []
    end, now = ends(file), now or datetime.datetime.now(datetime.UTC)
    days = (end - now).days
    if days >= WARN:
        return []
    what = f"expired on {end:%Y-%m-%d}" if end <= now else f"expires on {end:%Y-%m-%d}, in {days} days"
    return [f"{file} {what}: {remedy}"]
