"""Start, resume, watch and end a run at the SuperLink."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from plures.deploy.fleet.process import until
from plures.deploy.journal import Journal, read_log
from plures.deploy.operate.place import Place, finished, works
from plures.deploy.operate.status import RunStatus, run_status
from plures.deploy.plan import naming
from plures.errors import PluresError
from plures.evaluate import Code

MAX_LOADING_SECONDS = 60.0
"""Most seconds from a run's submission until its process works, and from its end until the process is gone."""
POLL_SECONDS = 1.0
"""Seconds between checks of a run that is under way."""

Listen = Callable[[RunStatus], None]


def start(place: Place, out: Path, track: str = "", code: str = "") -> int:
    """Submit the run of a folder, which resumes from its state; if it is under way, nothing is submitted.

    Args:
        place: the coordinator's folder.
        out: the run's folder.
        track: names of trackers, separated by spaces.
        code: user functions that the plan may name as its method, each with its hash, separated by spaces.

    Returns:
        The run's id at the SuperLink.
    """
    control, plan = place.control, place.plan
    with naming(place.file):
        plan.rehearse(Code.of(code, by="coordinator").reading(place.file))
    for run in control.runs():
        if run.over or place.out(run) != out:
            continue
        if goes(place, run.id, out):
            return run.id
        control.stop(run.id)  # its process died with an earlier SuperLink
    if works(out):
        raise PluresError(f"a run works in {out} that this SuperLink does not know: end it, or choose another folder")
    config = {"plan": str(place.file), "out": str(out), "key": str(place.file.parent / "keys" / "coordinator")}
    config |= {key: words for key, words in {"track": track, "code": code}.items() if words}
    return control.start(place.folder, config)


def goes(place: Place, run: int, out: Path) -> bool:
    """Whether a run that the SuperLink lists as running has a process, or gets one soon."""
    end = time.monotonic() + MAX_LOADING_SECONDS
    while time.monotonic() < end and not place.control.status(run).startswith("finished"):
        if works(out):
            return True
        time.sleep(POLL_SECONDS)
    return False


def follow(place: Place, run: int, out: Path, listen: Listen) -> bool:
    """Watch a run to its end. Returns whether it finished; ``False`` if an operator stopped it.

    Raises:
        PluresError: it ended on its own before it was finished, or the SuperLink does not answer.
    """
    plan, control, status = place.plan, place.control, ""
    while not status.startswith("finished"):
        if status:
            time.sleep(POLL_SECONDS)
        status = control.status(run)
        listen(run_status(read_log(out), out, plan))
    if status == "finished:stopped":
        return False
    if not finished(out):
        events = read_log(out)
        if not events:  # missing keys end a run before its first event
            _ = plan.orders, plan.members
        why = run_status(events, out, plan).reason
        raise PluresError(f"the run stopped{why and f': {why}'}; the same command resumes from the last round")
    return True


def stop(place: Place, only: Path | None = None) -> list[Path]:
    """End all runs of the SuperLink, or the one of a folder; returns their folders, where they can be resumed."""
    control, outs = place.control, []
    for run in control.runs():
        out = place.out(run)
        if not run.over and only in (None, out):
            control.stop(run.id)
            until(lambda out=out: not works(out), MAX_LOADING_SECONDS, f"the process that works in {out} does not end")  # type: ignore[misc]
            Journal(out).event("stopped", reason="by the operator")
            outs.append(out)
    return outs
