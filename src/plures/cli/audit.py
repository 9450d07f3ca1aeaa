"""The command that audits a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from plures.audit import Audit, audited
from plures.cli.common import AllowCode, Device, Quiet, app, consent, console, say
from plures.cli.progress import progress
from plures.errors import PluresError, suggestion
from plures.evaluate import RunFolder
from plures.federation import Federation
from plures.files import write_text
from plures.run import Run

AUDIT = "audit.json"
CAPTION = (
    "AUC, TPR: membership from the losses of the personal model, and true positives at 1 % false ones; shared: AUC of "
    "the model that all have in common; nearest: distance of the best reconstruction to an example of the client, as a "
    "share of its length; others': to one of other clients"
)


@app.command("audit")
def audit_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    client: Annotated[list[str] | None, typer.Option(help="Only this client; repeatable.")] = None,
    shadows: Annotated[
        int, typer.Option(help="Shadow models for membership inference; each is another run, as is the attacked one.")
    ] = 0,
    canaries: Annotated[
        int, typer.Option(help="Planted clients and others, for a run with differential privacy.")
    ] = 1000,
    device: Device = "auto",
    allow_code: AllowCode = None,
    quiet: Quiet = False,
) -> None:
    """Attack a finished run: who was in the training data, what its messages bare, what epsilon at least is."""
    kept = RunFolder(folder, consent(allow_code))
    spec, result = kept.spec(), kept.result()
    run = kept.run(device)
    for name in client or ():
        if name not in run.federation.clients:
            raise PluresError(
                f"--client: no client {name!r}; {suggestion(name, run.federation.clients, 'clients are')}"
            )
    if shadows and shadows < 2:
        raise PluresError(f"--shadows {shadows}: give 0, or at least 2")
    code, execution = kept.reading, kept.execution(device)

    def begun(federation: Federation) -> Run:
        return spec.run(federation, execution, code)

    def make(federation: Federation) -> Run:
        shadow = begun(federation)
        while shadow.round < result.chosen_round:
            shadow.step()
        return shadow

    done = 0
    with progress(f"audit {spec.title()}", 4 if shadows else 3, quiet=quiet) as update:

        def tell(what: str) -> None:
            nonlocal done
            update(done, what)
            done += 1

        found = audited(
            run,
            begun(run.federation),
            spec.title(),
            clients=client or (),
            make=make,
            shadows=shadows,
            planted=canaries,
            progress=tell,
        )
    write_text(folder / AUDIT, found.model_dump_json(indent=1) + "\n")
    console.print(table(found))
    for line in found.summary():
        say(line)
    say(f"kept in {folder / AUDIT}")


def table(found: Audit) -> Table:
    """What was found out about each client."""
    inverted = bool(found.inversion)
    made = Table("client", "AUC", "TPR", "shared", caption=CAPTION if inverted else None)
    if found.shadows:
        made.add_column("shadows")
    if inverted:
        made.add_column("nearest")
        made.add_column("others'")
    for client, own in found.membership.items():
        cells = [rate(own["personal"].auc), rate(own["personal"].found), rate(own["shared"].auc)]
        if found.shadows:
            cells.append(rate(found.shadowed[client].auc))
        if inverted:
            best = min(found.inversion.get(client, ()), key=lambda one: one.error, default=None)
            cells += ["-", "-"] if best is None else [f"{best.error:.3f}", f"{best.control:.3f}"]
        made.add_row(client, *cells)
    return made


def rate(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"
