"""Killed and halted processes, cut wires and full disks: what a federation loses, and how long it takes to recover.

Every failure happens to real Flower processes on this machine, with TLS and node authentication, in the middle of a
round. What is left on every disk afterwards is compared with a simulation (:mod:`benchmarks.aftermath`).

    python -m benchmarks.failures --out benchmarks/results/failures
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks.aftermath import CLIENTS, kept, prepared
from benchmarks.cable import cabled, possible
from benchmarks.stage import Failure, Outcome, Stage
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.plan import Plan
from plures.remote.state import leave

SECOND = "hungarian"
"""The second one where two are needed."""


def kill_node(stage: Stage, client: str) -> None:
    """The fleet's supervisor starts it again, and again whenever the SuperLink refuses it."""
    stage.fleet.nodes[client].kill()
    stage.fleet.nodes[client].start()


def kill_task(stage: Stage, client: str) -> None:
    tasks = stage.fleet.nodes[client].members("flwr-clientapp")
    assert tasks, f"{client} has no task"
    for task in tasks:
        with suppress(ProcessLookupError):
            os.kill(task, signal.SIGKILL)


def delete_state(stage: Stage, client: str) -> None:
    for file in kept(stage.file, client).glob("state-*"):
        file.unlink()


def leave_federation(stage: Stage, client: str) -> None:
    leave(stage.home / client / "state" / Plan.load(stage.file).name)


def halt_two(stage: Stage, client: str) -> None:
    for other in (client, SECOND):
        stage.fleet.nodes[other].pause()


def resume_two(stage: Stage, client: str) -> None:
    for other in (client, SECOND):
        stage.fleet.nodes[other].resume()
    stage.submit()


def start_server(stage: Stage, client: str) -> None:
    stage.fleet.start_superlink()
    stage.submit()


def free_server(stage: Stage, client: str) -> None:
    free(stage.out)
    stage.submit()


KILLED = Failure(
    "node killed",
    "SIGKILL of the SuperNode and all its children; a supervisor starts it again at once, and the SuperLink "
    "refuses it until its heartbeats are missed",
    kill_node,
)
TASK = Failure("task killed", "SIGKILL of the ClientApp's process alone", kill_task)
AWAY = Failure(
    "ten rounds away",
    "SIGKILL of the SuperNode, which is started again after ten rounds",
    lambda s, c: s.fleet.nodes[c].kill(),
    lambda s, c: s.fleet.nodes[c].start(),
)
HALTED = Failure(
    "too slow",
    "SIGSTOP of the SuperNode and its children until the deadline is over, then SIGCONT: its answer is late",
    lambda s, c: s.fleet.nodes[c].pause(),
    lambda s, c: s.fleet.nodes[c].resume(),
)
CUT = Failure(
    "connection refused",
    "all connections of the node are broken, and new ones refused, for a round",
    lambda s, c: s.fleet.relays[c].cut(),
    lambda s, c: s.fleet.relays[c].heal(),
)
SILENT = Failure(
    "connection silent",
    "nothing passes on the node's connections, which stay open, for a round",
    lambda s, c: s.fleet.relays[c].cut(silent=True),
    lambda s, c: s.fleet.relays[c].heal(),
)
PULLED = Failure(
    "cable pulled",
    "the network interface of the node's own network namespace is down for a round",
    lambda s, c: s.cables[c].pull(),
    lambda s, c: s.cables[c].plug(),
)
FULL = Failure(
    "disk full",
    "the disk with the site's state is full (ENOSPC) for a round",
    lambda s, c: fill(s.home / c / "state"),
    lambda s, c: free(s.home / c / "state"),
)
GONE = Failure("state deleted", "the site's personal state is deleted by hand", delete_state, afresh=True)
LEFT = Failure(
    "site leaves", "`plures deploy leave`: the site deletes its state and refuses all orders", leave_federation
)
FEW = Failure(
    "too few sites",
    "SIGSTOP of two nodes, so that rounds fail until the run stops; then SIGCONT and the same command",
    halt_two,
    resume_two,
    server=True,
)
SERVER_FULL = Failure(
    "server's disk full",
    "the disk with the run's folder is full (ENOSPC), so that the run stops; then there is room, and the same command",
    lambda s, c: fill(s.out),
    free_server,
    server=True,
)
SERVER_KILLED = Failure(
    "server killed",
    "SIGKILL of SuperLink and ServerApp; then both are started again",
    lambda s, c: s.fleet.superlink.kill(),
    start_server,
    server=True,
)
FAILURES = (KILLED, TASK, AWAY, HALTED, CUT, SILENT, PULLED, FULL, GONE, LEFT, FEW, SERVER_FULL, SERVER_KILLED)
AT_ONCE = (KILLED, TASK, GONE)
"""Failures that are over as soon as they have happened."""


# --- disks ------------------------------------------------------------------------------------------------------


def fill(disk: Path) -> None:
    """Write to a disk until there is no room."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def free(disk: Path) -> None:
    (disk / "ballast").unlink()


# --- one after the other ----------------------------------------------------------------------------------------


def alone(fleet: Fleet, home: Path, out: Path, failure: Failure, deadline: float) -> Outcome:
    """Run once with one failure."""
    client = "va"
    rules = {"min_clients": 3 if failure.server else 1, "deadline": deadline, "patience": 2}
    run = {"rounds": 4 if failure.server else 100}
    small = [home / client / "state"] if failure is FULL else [out] if failure is SERVER_FULL else []
    with ExitStack() as stack:
        cables = {client: stack.enter_context(cabled(fleet, client))} if failure is PULLED else {}
        stage = stack.enter_context(Stage(fleet, home, out, rules, run, small, cables, 20 * deadline))
        stage.after(1)
        stage.strike((failure, client))
        if failure in (FEW, SERVER_FULL):
            assert stage.ended() == "finished:failed"
        elif not failure.server and failure not in AT_ONCE:
            stage.missed(failure, 10 if failure is AWAY else 1)
        stage.mend(failure)
        if failure is not LEFT:
            stage.recovered(failure)
        stage.insist() if failure.server else stage.stop()
        return stage.outcomes()[0]


def table(outcomes: Sequence[Outcome]) -> str:
    """The table as Markdown."""
    lines = [
        "| failure | what was done | rounds missed | counts again after s | lost |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for o in outcomes:
        missed = "-" if o.to == "server" else str(len(o.missed))
        back = "-" if o.back is None else f"{o.back:.0f}"
        lines.append(f"| {o.failure} | {o.done} | {missed} | {back} | {', '.join(o.lost) or 'nothing'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    titled = {failure.title: failure for failure in FAILURES}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline", type=float, default=40.0, help="seconds that a round waits")
    parser.add_argument("--quick", action="store_true", help="with less waiting in Flower's programs")
    parser.add_argument("--failures", nargs="+", default=list(titled), choices=list(titled))
    options = parser.parse_args()
    begun, root, networks = time.monotonic(), os.geteuid() == 0, possible()
    chosen = [titled[title] for title in options.failures]
    chosen = [f for f in chosen if (root or f not in (FULL, SERVER_FULL)) and (networks or f is not PULLED)]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "sites"
        prepared(home)
        sites = {client: home / client / "site.toml" for client in CLIENTS}
        with Fleet(Path(folder) / "fleet", sites, relayed=True, quick=options.quick) as fleet:
            for number, failure in enumerate(chosen):
                outcomes.append(alone(fleet, home, Path(folder) / f"out{number}", failure, options.deadline))
                print(outcomes[-1], flush=True)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    programs = "Flower's programs with less waiting" if options.quick else "Flower's programs as they are"
    flags = f"{' --quick' if options.quick else ''} --deadline {options.deadline:g}"
    command = f"python -m benchmarks.failures{flags}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    options.out.with_suffix(".md").write_text(
        f"Made by `{command}` in {(time.monotonic() - begun) / 60:.0f} minutes on {machine}; "
        f"{programs}, TLS, four nodes, rounds that wait for {options.deadline:g} s.\n\n{table(outcomes)}\n"
        "Each failure happens in the middle of a round. *Counts again after*: from its end (the restart, the mended "
        "wire, the freed disk) until a round had counted with the site, or for the server until any round had counted. "
        "*Lost*: leaves of the server's state, of acknowledged personal states and of published models that differ "
        "from a simulation in one process with the cohorts of the run's log.\n"
    )


if __name__ == "__main__":
    main()
