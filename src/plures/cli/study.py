"""The command that plans and runs a study."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer

from plures.cli.common import AllowCode, Quiet, RayAddress, Track, app, consent, console
from plures.devices import find
from plures.errors import PluresError
from plures.files import check_folder, inside, write_text
from plures.report import html_report
from plures.run.rays import address_of
from plures.study import Event, Plan, Store, Study, ahead, begin, conduct, plan_of, read_study, recover, resolved
from plures.study.view import lines, plan_table, watching
from plures.track import trackers

COMMAND = (sys.executable, "-P", "-m", "plures.cli", "study")
"""Command that starts further processes; nothing in the current folder can replace a library."""


@app.command("study")
def study_command(
    file: Annotated[Path, typer.Argument(help="The study: data sets, partitions, methods, seeds, budgets (TOML).")],
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the planned runs and how long they may take, then stop.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for results; default: runs/NAME.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that share the work.", min=1)] = 1,
    ray: RayAddress = None,
    mend: Annotated[
        bool, typer.Option("--recover", help="Keep what can be read of a damaged study.db, and rerun the rest.")
    ] = False,
    track: Track = None,
    allow_code: AllowCode = None,
    quiet: Quiet = False,
) -> None:
    """Plan a study and run it; starting it again resumes it, and several processes share the work."""
    code = consent(allow_code)
    source = read_study(file, code)
    folder = out or inside(Path("runs"), source.document.name)
    check_folder(folder)
    try:
        find(source.document.execution.device)
    except PluresError as error:
        raise source.error(("execution", "device"), str(error)) from error
    callbacks = trackers(track or (), folder)
    studied = plan_of(source, resolved(source.document.tuning.search))
    if source.document.execution.threads is not None:
        torch.set_num_threads(source.document.execution.threads)
    if mend:
        found = recover(folder)
        console.print(f"{found} results could be read; the damaged file is {folder / 'study.db.damaged'}")
    ray = address_of(ray or source.document.execution.ray)
    store = Store(folder)
    try:
        begin(studied, store)
        measure(studied, store, quiet, ray)
        known = ahead(studied, store)
        if plan or not quiet:
            console.print(plan_table(f"study {source.document.name}", known))
        if plan:
            return
        words = [str(file), "--out", str(folder), *(word for name in track or () for word in ("--track", name))]
        words += [] if ray is None else ["--ray", ray]
        words += [word for text in allow_code or () for word in ("--allow-code", text)]
        watched = nullcontext(unwatched) if quiet else watching(studied, store, console)
        with helpers(words, processes - 1), watched as watch:
            conduct(studied, store, studied.units, watch, callbacks, ray)
        failed = store.failures(studied.units)
    except KeyboardInterrupt:
        console.print("stopped; the same command resumes from the last finished round", style="yellow")
        raise typer.Exit(130) from None
    finally:
        store.close()
    if failed:
        reasons = "\n".join(f"{unit.name}: {message}" for unit, message in failed)
        raise PluresError(f"{len(failed)} units failed, the others are done:\n{reasons}")
    comparisons = Study(folder, code).comparisons()
    write_text(folder / "report.html", html_report(comparisons, f"Study {source.document.name}"))
    console.print(f"{known.runs} runs of {len(comparisons)} cells are in {folder / 'study.db'}")
    console.print(f"report: {folder / 'report.html'}", highlight=False)
    console.print(f"in Python: plures.study.Study({str(folder)!r}).frame()", markup=False, highlight=False)


def unwatched(event: Event) -> None:
    """Show nothing."""


def measure(plan: Plan, store: Store, quiet: bool = False, ray: str | None = None) -> None:
    """Time one round of every method on every untimed cell; refuse combinations that do not work."""
    open_units = store.unfinished(plan.measures)
    if open_units:
        what = f"measuring {len(open_units)} methods on cells"
        if quiet or console.is_terminal:
            with nullcontext() if quiet else console.status(what, spinner="line"):
                conduct(plan, store, plan.measures, unwatched, ray=ray)
        else:
            console.print(what, highlight=False)
            conduct(plan, store, plan.measures, lines(store, plan.measures, console), ray=ray)
    failed = store.failures(plan.measures)
    if failed:
        unit, message = failed[0]
        parts = plan.source.document.methods
        where = [place for place, part in enumerate(parts) if part is unit.candidate.part]
        path = ("methods", where[0]) if where else ("data", unit.cell.path[0])
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        if message.startswith(f"{plan.source.file}, line "):
            raise PluresError(message)
        raise plan.source.error(path, f"{unit.candidate.label} on {unit.cell.title}: {message}{more}")


@contextmanager
def helpers(arguments: list[str], count: int) -> Iterator[None]:
    """Run further processes of the same command beside the block, and wait for them at the end."""
    started = [subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    except BaseException:
        for process in started:
            process.terminate()
        raise
    finally:
        for process in started:
            process.wait()
