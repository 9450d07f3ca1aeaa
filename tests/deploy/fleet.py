"""Shared by the tests of deployment: a small app, a fence against network access, and what a run has written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plures.deploy.fleet.loopback import Fleet
from plures.deploy.fleet.process import Process, until

ECHO = Path(__file__).parent / "echo"
LATE = 300.0
"""Seconds to wait for what must happen at any time: on a busy machine, a process takes minutes to start."""

FENCE = """\
import os, sys

HERE = {None, "", b"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}

def fence(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in HERE:
        with open(os.environ["FENCE"], "a") as file:
            file.write(f"{sys.argv[0]} {event} {host}\\n")
        raise OSError(f"the tests do not let {host} be reached")

sys.addaudithook(fence)
"""
"""A ``sitecustomize`` that records every attempt to reach anything but this machine, and stops it."""


def fenced(folder: Path) -> dict[str, str]:
    """Variables that put :data:`FENCE` around a Python process and its children; ``folder/tried`` has the attempts."""
    (folder / "fence").mkdir(parents=True, exist_ok=True)
    (folder / "fence" / "sitecustomize.py").write_text(FENCE)
    found = [str(folder / "fence"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(found), "FENCE": str(folder / "tried")}


def tried(folder: Path) -> list[str]:
    """The recorded attempts to reach the outside."""
    file = folder / "tried"
    return file.read_text().splitlines() if file.exists() else []


def echo(fleet: Fleet, out: Path, *others: Process, **config: Any) -> list[dict[str, Any]]:
    """Run the echo app to its end, in which every node must answer; returns the rounds that its server has recorded.

    Args:
        fleet: a fleet.
        out: file that the rounds are written to.
        others: nodes besides the fleet's, with what is in front of them.
        config: of the app.
    """
    run = fleet.submit(ECHO, {"out": str(out), "nodes": len(fleet.sites), **config})
    everyone = (fleet.superlink, *fleet.nodes.values(), *others)
    assert fleet.wait(run, LATE) == "finished:completed", tails(*everyone)
    rounds = written(out)
    for one in rounds:
        answered = [reply.get("site", reply["node"]) for reply in one["replies"]]
        assert one["missing"] == 0, f"round {one['round']}: only {answered} answered\n{tails(*everyone)}"
    return rounds


def tails(*processes: Process) -> str:
    """The last output of some processes."""
    return "\n".join(f"--- {process.name} ---\n{process.tail(30)}" for process in processes)


def written(out: Path) -> list[dict[str, Any]]:
    """The rounds that the echo app has recorded so far."""
    return list(json.loads(out.read_text())["rounds"]) if out.exists() else []


def wait(fleet: Fleet, done: Callable[[], bool], what: str, seconds: float = LATE) -> float:
    """Wait until a condition holds while the SuperLink is alive; returns the seconds that it took."""
    return until(done, seconds, lambda: f"{what}: not within {seconds} s\n{fleet.superlink.tail()}", poll=0.1)
