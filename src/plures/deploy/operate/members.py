"""Add and remove members, and replace their keys."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from plures.deploy import agreement
from plures.deploy.agreement import TABLE, key_of
from plures.deploy.conduct import CHECKPOINT
from plures.deploy.fleet.control import Node
from plures.deploy.journal import Journal
from plures.deploy.member import digest_of, spoken
from plures.deploy.operate.place import Place, finished, works
from plures.deploy.plan import Plan, naming
from plures.deploy.signing import public
from plures.errors import PluresError, suggestion
from plures.evaluate import Code
from plures.files import write_text
from plures.tables.declared import toml


def add(place: Place, client: str, key: Path, said: Callable[[str], str]) -> list[str]:
    """Add a member's key to the agreed file, and register its node; steps already done are skipped.

    Args:
        place: the coordinator's folder.
        client: the member.
        key: the received public key.
        said: asks for the fingerprint that the member reads out; called with that of the received key.

    Returns:
        What was done, in sentences.

    Raises:
        PluresError: if the member does not belong to the federation or has another key, if the key belongs to someone
            else or does not have the fingerprint that the member read out, or if the agreed run cannot be built.
    """
    plan, found = place.plan, public(key)
    old = plan.keys.get(client)
    if client not in plan.clients:
        raise PluresError(f"client {client!r} is not among the clients in {place.file}: add it there first")
    if old not in (None, found):
        raise PluresError(f"client {client!r} has the key {old}: `plures deploy rotate` replaces it")
    if old is None and (owner := owners(plan).get(found)):
        raise PluresError(f"{key} is the key of {owner}: every member must make its own pair")
    if ":" not in plan.spec.method:  # consent to user code is given when the run is started
        with naming(place.file):
            plan.rehearse(Code())
    done = []
    if old is None:
        if (other := said(found).strip()) != found:
            raise PluresError(f"{key} is {found}, not {other}: ask {client} for the file again, over another channel")
        agreement.enter(place.file, keys={client: found})
        done.append(f"entered {client} into {place.file}")
    try:
        if not registered(place, client):
            place.control.register(key, client)
        done.append(f"{client} is registered at the SuperLink")
    except PluresError as error:
        done.append(f"not registered: {error}; then run this command again")
    if missing := [other for other in plan.clients if other not in place.plan.keys]:
        return [*done, f"still without a key: {', '.join(missing)}"]
    if plan.coordinator is None or plan.authority is None:
        return [*done, "the coordinator has no keys yet: `plures deploy keys --host NAME` makes them"]
    what = f"every member has a key. For every member: {place.file} and ca.crt; to be read aloud:"
    return [*done, what, spoken(digest_of(place.file))]


def owners(plan: Plan) -> dict[str, str]:
    """Fingerprint -> owner of the key."""
    coordinator = {plan.coordinator: "the coordinator"} if plan.coordinator else {}
    return {key: client for client, key in plan.keys.items()} | coordinator


def remove(place: Place, client: str) -> list[str]:
    """Remove a member: its node at once, its name and key once no run is unfinished.

    A run's members are part of its identity, so an unfinished run keeps the member but never reaches it again.

    Args:
        place: the coordinator's folder.
        client: the name of a member, or of a node that belongs to no member.

    Returns:
        What was done, in sentences.

    Raises:
        PluresError: if there is no such member and no such node, if it is the only member, or if a run is unfinished
            and the SuperLink does not answer.
    """
    plan, open_runs = place.plan, unfinished(place)
    nodes, unknown = list[Node](), ""
    try:
        nodes = registered(place, client)
    except PluresError as error:
        if open_runs:
            raise
        unknown = f"{error}; then, if a node of {client} is registered there, run this command again"
    if client not in plan.clients and not nodes:
        known = suggestion(client, plan.clients, "the members are")
        raise PluresError("; ".join(filter(None, (f"there is no member {client!r}", known, unknown))))
    if plan.clients == (client,):
        raise PluresError(f"{client!r} is the only member: a federation needs one")
    if client in plan.clients and not open_runs and plan.rules.min_clients == len(plan.clients):
        raise PluresError(
            f"without {client!r} there would be fewer members than min_clients = {plan.rules.min_clients} under "
            f"[rules] of {place.file}: lower it first"
        )
    for node in nodes:
        place.control.unregister(node.id)
    done = [unknown or (f"{client} is no longer admitted" if nodes else f"no node of {client} was registered")]
    if client not in plan.clients:
        return done
    if open_runs:
        for out in open_runs:
            Journal(out).event("removed", client=client)
        where = ", ".join(map(str, open_runs))
        return [
            *done,
            f"{where} is unfinished and continues without {client}; after its end, run this command again to remove "
            f"{client} from {place.file.name}",
        ]
    if client in plan.keys:
        agreement.enter(place.file, keys={client: None})
    rename(place.file, [member for member in plan.clients if member != client])
    return [
        *done,
        f"{client} was removed from {place.file}, which changes the agreement: if a run has begun under it, give the "
        "federation a new name there; then send the file to the other members, who join again with it",
    ]


def rotate(place: Place, client: str, key: Path, fingerprint: str) -> list[str]:
    """Replace a member's key.

    Args:
        place: the coordinator's folder.
        client: the member.
        key: its new public key.
        fingerprint: the new key's fingerprint, as the member read it out.

    Returns:
        What was done, in sentences.

    Raises:
        PluresError: if the key does not have that fingerprint or already belongs to someone, or if a run is under way.
    """
    plan, found = place.plan, public(key)
    if client not in plan.keys:
        known = suggestion(client, tuple(plan.keys), "those with a key are") if plan.keys else "nobody has one"
        raise PluresError(f"there is no key of {client!r} to replace; {known}; `plures deploy add` enters a first one")
    if fingerprint.strip() != found:
        raise PluresError(f"{key} is {found}, not {fingerprint}: ask {client} for the file again, over another channel")
    if owner := owners(plan).get(found):
        raise PluresError(f"{key} is the key of {owner}: {client} makes a new pair with `plures deploy keys`")
    resting(place)
    old = registered(place, client)
    new = place.control.register(key, client)
    try:
        agreement.enter(place.file, keys={client: found})
    except PluresError:
        place.control.unregister(new)
        raise
    for node in old:
        place.control.unregister(node.id)
    return [
        f"{client} has a new key, and the old one is no longer accepted",
        f"send {place.file} to {client}, who names the new key in site.toml, joins again with both, and starts its "
        "node",
    ]


def registered(place: Place, client: str) -> list[Node]:
    """The nodes registered under a member's name."""
    return [node for node in place.control.nodes() if node.name == client and node.status != "unregistered"]


def unfinished(place: Place) -> list[Path]:
    """Folders of runs that are under way, or can be resumed."""
    results = place.file.parent / "results"
    outs = {results, *results.glob("*")}
    with suppress(PluresError):  # the SuperLink is down, and so are its runs
        outs |= {place.out(run) for run in place.control.runs()}
    return sorted(out for out in outs if not finished(out) and ((out / CHECKPOINT).exists() or works(out)))


def resting(place: Place) -> None:
    """Refuse to change keys during a run, because it read them when it started.

    Raises:
        PluresError: if a run is under way.
    """
    if working := [out for out in unfinished(place) if works(out)]:
        raise PluresError(
            f"a run is under way in {working[0]}: run `plures deploy stop`, repeat this command, then resume with "
            "`plures deploy run`"
        )


def rename(file: Path, clients: list[str]) -> None:
    """Replace the clients in ``federation.toml``; everything else is preserved.

    Raises:
        PluresError: if the file is written in such a way that ``clients`` cannot be changed alone.
    """
    wanted = tomllib.loads(file.read_text(encoding="utf-8-sig")) | {"clients": clients}
    lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    after = ""
    end = next((place for place, line in enumerate(lines) if TABLE.match(line)), len(lines))
    for begin in range(end):
        entry = agreement.ENTRY.match(lines[begin])
        if entry and key_of(entry[2]) == "clients":
            last = next((n for n in range(begin + 1, end + 1) if agreement.readable("\n".join(lines[begin:n]))), end)
            after = "\n".join([*lines[:begin], f"clients = {toml(tuple(clients))}", *lines[last:], ""])
            break
    if agreement.readable(after) != wanted:
        raise PluresError(f"{file}: clients cannot be changed alone; edit it by hand: clients = {toml(tuple(clients))}")
    write_text(file, after)
