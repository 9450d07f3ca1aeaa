"""The command that answers a use case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from plures.audit import audits
from plures.cases import CASES, Case, Part, answer, attend, conduct, story
from plures.cases.catalogue import find_case
from plures.cli.common import Quiet, app, console, say
from plures.cli.progress import progress
from plures.evaluate import Comparison, ComparisonProgress
from plures.files import write_text
from plures.report import console_table, html_report
from plures.run import Execution


@app.command("case")
def case_command(
    name: Annotated[str | None, typer.Argument(help="Name of the case; without one, all are listed.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results, from which it resumes; default: runs/case-NAME.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One round of two steps and one seed, only to see whether it works.")
    ] = False,
    processes: Annotated[
        int, typer.Option(help="Processes that share the runs, each with its share of the cores; needs plures[pool].")
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Answer the question of a use case: comparisons on real data, tables, an HTML report and an answer in words."""
    if name is None:
        for case in CASES.values():
            say(f"{case.name}: {case.title}. {case.question}")
        return
    case = find_case(name)
    if quick:
        case = replace(case, question=f"This was only a quick try: its numbers mean nothing. {case.question}")
    folder = out or Path("runs") / f"case-{name}"
    with progress(f"case {name}", len(case.parts) + len(case.courses), quiet=quiet) as update:

        def listen(place: int, part: Part, stage: ComparisonProgress) -> None:
            done = place + stage.done / max(stage.total, 1)
            text = f"{part.name}: {stage.method}, {stage.what}"
            update(done, text, line=stage.ended, skipped=stage.point is None)

        found = conduct(case, folder, quick=quick, execution=Execution(processes=processes), listener=listen)
        learned = []
        for place, course in enumerate(case.courses, len(found)):
            update(place, f"{course.name}: {len(course.methods)} methods")
            learned.append(attend(course, folder, quick=quick))
    text = answer(case, found, learned)
    shown = told_apart(case, found)
    kept = [audits(folder / part.name, one) for part, one in zip(case.parts, found, strict=True)]
    write_text(folder / "report.html", html_report(shown, case.title, story(case, found, learned), kept))
    write_text(folder / "answer.txt", text + "\n")
    for comparison in shown:
        console.print(console_table(comparison))
    say(f"\n{text}\n")
    say(f"report: {folder / 'report.html'}   answer: {folder / 'answer.txt'}   results: {folder}/*/results.json")


def told_apart(case: Case, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons; in a case of several parts they are called by data and part, for parts may share data."""
    if len(case.parts) == 1:
        return list(comparisons)
    return [
        found.model_copy(
            update={"federation": found.federation.model_copy(update={"name": f"{found.federation.name}, {part.name}"})}
        )
        for part, found in zip(case.parts, comparisons, strict=True)
    ]
