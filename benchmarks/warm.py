"""How long a round of four real nodes takes when tasks are forked from a warm process, and when each starts anew.

Both variants take turns on this machine in the same run, so their ratio says more than their seconds.

    python -m benchmarks.warm --out benchmarks/results/warm
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import main
from plures.deploy import project
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.fleet.programs import STARTER
from plures.deploy.journal import Journal
from plures.deploy.member import SITE

MANNERS = {"a new interpreter for each task": False, "forked from a warm process": True}
LIMIT = 1800.0


@dataclass(frozen=True)
class Row:
    """Measurements of one variant.

    Attributes:
        manner: how tasks start.
        rounds: seconds of each round except the first, in which nodes fetch the app.
        whole: seconds from the start of the run to its end, including joining, scoring and publishing.
        memory: peak private memory, in bytes, of the process that starts a node's tasks.
        idle: processor seconds per second that all processes of an idle node take.
    """

    manner: str
    rounds: list[float]
    whole: float
    memory: int
    idle: float


def measured(manner: str, rounds: int, folder: Path) -> Row:
    """A run over four nodes with TLS."""
    home = folder / "federation"
    project.write(home, project.heart(method="ditto+threshold", rounds=rounds))
    sites = {client: folder / "sites" / client / SITE for client in project.heart().clients}
    rows = {client: home / project.ROWS / f"{client}.csv" for client in sites}
    with Fleet(folder / "fleet", sites, warm=MANNERS[manner]) as fleet:
        fleet.join(home / project.PLAN, rows)
        time.sleep(10)  # until what is loaded is loaded
        family = next(iter(fleet.nodes.values())).members()
        before = sum(map(spent, family))
        time.sleep(10)
        idle = (sum(map(spent, family)) - before) / 10
        memory = max(own(pid) for node in fleet.nodes.values() for pid in node.members(STARTER))
        begin = time.monotonic()
        status = fleet.wait(fleet.conduct(home, home / project.PLAN, folder / "out"), LIMIT)
        whole = time.monotonic() - begin
        if status != "finished:completed":
            raise SystemExit(f"{manner}: {status}\n{fleet.superlink.tail(30)}")
    took = [event["seconds"] for event in Journal(folder / "out").events("round")]
    return Row(manner, took[1:], whole, memory, idle)


def own(pid: int) -> int:
    """Bytes of memory that a process does not share with others."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def spent(pid: int) -> float:
    """Processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def markdown(rows: list[Row], command: str) -> str:
    head = (
        "| how a Flower task starts | a round, median s | quickest to slowest, s | the whole run, s | memory of what "
        "starts a node's tasks, MB | an idle node, % of a core |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    median = {row.manner: statistics.median(row.rounds) for row in rows}
    lines = [
        f"| {row.manner} | {median[row.manner]:.1f} | {min(row.rounds):.1f} to {max(row.rounds):.1f} | "
        f"{row.whole:.0f} | {row.memory / 1e6:.0f} | {100 * row.idle:.1f} |"
        for row in rows
    ]
    cold, warm = (median[manner] for manner in MANNERS)
    return "\n".join(
        [
            f"Made by `{command}` on {os.cpu_count()} cores ({platform.machine()}, "
            f"{os.getloadavg()[2]:.0f} processes at work in the last quarter of an hour): four SuperNodes with TLS and "
            "registered keys on one machine, ditto+threshold on the heart data.",
            "",
            head,
            *lines,
            "",
            f"**A round takes {cold / warm:.1f} times as long when each task starts anew.** The first round, in which "
            "nodes fetch the app, is left out; the whole run has it, joining, scoring and publishing.",
            "",
        ]
    )


if __name__ == "__main__":
    main("warm", __doc__, MANNERS, measured, markdown, 6)
