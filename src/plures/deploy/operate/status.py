"""Status of a federation: its sites, its run, and notes for its operator."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from plures.deploy.fleet.control import Node, Submitted
from plures.deploy.journal import METRICS, PREFIX, read_log
from plures.deploy.operate.place import Place, finished, works
from plures.deploy.operate.renew import ending, ring
from plures.deploy.plan import Plan
from plures.deploy.watch import ANSWERED, WAITING
from plures.errors import PluresError
from plures.version import __version__

RECENT = 5
"""Number of recent rounds from which the remaining time is estimated."""
ENDS = ("joined", "round", "failed round", "finished", "stopped")
"""Events that end all waiting."""
NOBODY: Mapping[str, int] = {}
CUT = (
    "the SuperLink lists the run as running, but no process works on it: either it is just starting, or it was cut off "
    "and `plures deploy run` resumes it"
)


@dataclass(frozen=True)
class SiteStatus:
    """One member.

    Attributes:
        client: its name.
        node: ``online``, ``offline``, ``registered`` (has never connected), ``not registered``, or ``unknown`` (the
            SuperLink is down).
        seen: when the SuperLink or the run last saw it, in seconds since 1970.
        counted: the last round in which its work counted.
        left_out: when its work last did not count, and why: ``round``, ``reason``.
        waited: whether the run is waiting for it now.
    """

    client: str
    node: str = "unknown"
    seen: float | None = None
    counted: int | None = None
    left_out: Mapping[str, Any] | None = None
    waited: bool = False


@dataclass(frozen=True)
class RunStatus:
    """One run, from its log.

    Attributes:
        out: its folder.
        state: ``none``, ``joining``, ``running``, ``stopped`` (it can be resumed) or ``finished``.
        round: rounds finished.
        rounds: rounds planned.
        waiting: members that the run is waiting for.
        since: when the waiting began, in seconds since 1970.
        until: when it ends at the latest.
        what: the request that the run is waiting for: ``join``, ``train``, ``score`` or ``publish``.
        reason: why it stopped or its last round did not count; while it waits for all to join, why sites are refused.
        chosen: for a finished run, the round that validation chose.
        eta: estimated seconds for the remaining rounds, from recent rounds.
        failed: rounds that did not count.
        bytes_down: bytes of tensors that went to sites.
        bytes_up: bytes of tensors that came from sites.
        validation: mean over clients of the primary metric, last measured.
        epsilon: what the rounds up to ``epsilon_round`` have spent of differential privacy; ``None`` without, and
            without noise.
        epsilon_round: see ``epsilon``.
        epsilon_plan: what all planned rounds spend.
        delta: of both.
    """

    out: str
    state: str = "none"
    round: int = 0
    rounds: int = 0
    waiting: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    what: str = ""
    reason: str = ""
    chosen: int | None = None
    eta: float | None = None
    failed: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    validation: float | None = None
    epsilon: float | None = None
    epsilon_round: int = 0
    epsilon_plan: float | None = None
    delta: float | None = None


@dataclass(frozen=True)
class Status:
    """Status of a federation, from its coordinator.

    Attributes:
        federation: its name.
        version: version of plures here.
        superlink: ``up``, or why it does not answer.
        flower: status of the newest submitted run, in Flower's terms; empty if there is none.
        sites: the members.
        run: the run.
        notes: problems that need the operator's attention.
        time: time of this status, in seconds since 1970.
    """

    federation: str
    superlink: str
    flower: str
    sites: tuple[SiteStatus, ...]
    run: RunStatus
    notes: tuple[str, ...] = ()
    version: str = __version__
    time: float = field(default_factory=time.time)


def look(place: Place, out: Path | None = None) -> Status:
    """Status of a federation; from the files alone if the SuperLink does not answer.

    Args:
        place: the coordinator's folder.
        out: the run's folder; default: that of the run that was submitted last.
    """
    plan = place.plan
    superlink, nodes, runs = "up", None, list[Submitted]()
    try:
        nodes, runs = place.control.nodes(), place.control.runs()
    except PluresError as error:
        superlink = str(error)
    out = out or (place.out(runs[0]) if runs else place.newest())
    submitted = next((run.status for run in runs if place.out(run) == out.resolve()), "")
    events = read_log(out)
    run = run_status(events, out, plan, {node.name: node.id for node in nodes or () if node.status == "online"})
    notes = [*strangers(plan, nodes), *certificates(place), *versions(run, events)]
    if submitted and not submitted.startswith("finished") and run.state in ("none", "stopped"):
        notes.append(CUT)
    return Status(plan.name, superlink, submitted, sites(plan, nodes, events, run), run, tuple(notes))


def run_status(events: list[dict[str, Any]], out: Path, plan: Plan, addresses: Mapping[str, int] = NOBODY) -> RunStatus:
    """Status of a run from its log.

    Args:
        events: the log.
        out: the run's folder.
        plan: what was agreed.
        addresses: client -> its node, if known; until a node has identified itself, the log has no name for it.
    """
    last: dict[str, dict[str, Any]] = {}
    waiting: list[str] = []
    spoke: set[str | int] = set()
    seconds: list[float] = []
    for event in events:
        what = event["event"]
        last[what] = event
        if what == WAITING:
            waiting = list(event["clients"])
            spoke = set()
        elif what == ANSWERED:
            spoke.add(event["client"] if "client" in event else event["node"])
        elif what in ENDS:
            waiting = []
        if what == "round":
            seconds.append(event["seconds"])
    waiting = [client for client in waiting if client not in spoke and addresses.get(client) not in spoke]
    state, alive = "none", works(out)
    if finished(out):
        state = "finished"
    elif events:
        asked = last.get(WAITING, {}).get("request") == "join" and bool(waiting)
        state = ("joining" if asked else "running") if alive else "stopped"
    rounds, done = plan.spec.rounds, int(last.get("round", {"round": 0})["round"])
    asked_at = last.get(WAITING, {})
    waits = bool(waiting) and alive
    newest = events[-1] if events else {}
    reason = newest.get("reason", "") or ("; ".join(asked_at.get("refused", ())) if waits else "")
    if state == "stopped" and newest.get("event") != "stopped":
        reason = "its process ended without logging a reason"
    numbers = metrics(out)
    return RunStatus(
        out=str(out),
        state=state,
        round=done,
        rounds=rounds,
        waiting=tuple(waiting) if waits else (),
        since=asked_at["time"] if waits else None,
        until=asked_at["time"] + asked_at["seconds"] if waits else None,
        what=asked_at.get("request", "train") if waits else "",
        reason=reason,
        chosen=last["finished"]["chosen_round"] if "finished" in last else None,
        eta=(rounds - done) * median(seconds[-RECENT:]) if seconds and state != "finished" else None,
        failed=int(numbers.get("failed_rounds_total", 0)),
        bytes_down=int(numbers.get("bytes_down_total", 0)),
        bytes_up=int(numbers.get("bytes_up_total", 0)),
        validation=numbers.get("validation"),
        epsilon=numbers.get("epsilon"),
        epsilon_round=int(numbers.get("epsilon_round", 0)),
        epsilon_plan=numbers.get("epsilon_plan", last.get("private", {}).get("epsilon")),
        delta=numbers.get("delta", last.get("private", {}).get("delta")),
    )


def sites(
    plan: Plan, nodes: Iterable[Node] | None, events: Iterable[Mapping[str, Any]], run: RunStatus
) -> tuple[SiteStatus, ...]:
    """Status of every member, from the SuperLink and the log."""
    heard: dict[str, float] = {}
    counted: dict[str, int] = {}
    left: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event["event"] == ANSWERED and "client" in event:
            heard[event["client"]] = event["time"]
        elif event["event"] == "round":
            counted |= dict.fromkeys(event["clients"], event["round"])
            left |= {c: {"round": event["round"], "reason": why} for c, why in event["left_out"].items()}
    known = {node.name: node for node in nodes or () if node.status != "unregistered"}

    def one(client: str) -> SiteStatus:
        node = known.get(client)
        status = "unknown" if nodes is None else "not registered" if node is None else node.status
        signs = [heard.get(client), None if node is None else node.seen]
        seen = max((sign for sign in signs if sign is not None), default=None)
        return SiteStatus(client, status, seen, counted.get(client), left.get(client), client in run.waiting)

    return tuple(map(one, plan.clients))


def strangers(plan: Plan, nodes: Iterable[Node] | None) -> list[str]:
    """Registered nodes that belong to no member."""
    names = sorted({node.name for node in nodes or () if node.status != "unregistered"} - set(plan.clients))
    return [f"node {name!r} is registered but is not a member: `plures deploy remove` removes it" for name in names]


def certificates(place: Place) -> list[str]:
    """Warnings about certificates that expire soon."""
    keys = ring(place)
    return [
        *ending(keys.server, "`plures deploy rotate --server` makes the next one"),
        *ending(keys.authority, "`plures deploy rotate --authority` makes the next one, which every member must get"),
    ]


def versions(run: RunStatus, events: Iterable[Mapping[str, Any]]) -> list[str]:
    """A warning if an unfinished run was started with another version of plures, so that it cannot be resumed."""
    old = began(events)
    if run.state != "stopped" or old in (None, __version__):
        return []
    return [
        f"{run.out} was started with plures {old}, and this is {__version__}, which cannot resume it: finish it with "
        "that version, or start again in another folder"
    ]


def began(events: Iterable[Mapping[str, Any]]) -> str | None:
    """The version of plures that started a run, according to its log."""
    return next((e["version"] for e in reversed([*events]) if e["event"] == "joined" and "version" in e), None)


def metrics(out: Path) -> dict[str, float]:
    """The run's Prometheus metrics, without those of individual clients."""
    found = {}
    try:
        lines = (out / METRICS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith(f"{PREFIX}_") and "{" not in name:
            found[name.removeprefix(f"{PREFIX}_")] = float(value)
    return {name: value for name, value in found.items() if math.isfinite(value)}
