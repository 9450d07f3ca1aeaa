"""The command that audits a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from plures.audit import Audit, audited, audits
from plures.audit.canary import FEWEST
from plures.audit.kept import AUDIT, runs
from plures.cli.common import AllowCode, Device, Quiet, app, consent, console, say, typed
from plures.cli.progress import progress
from plures.errors import PluresError, suggestion
from plures.evaluate import Comparison, RunFolder
from plures.evaluate.code import Code
from plures.evaluate.compare import RESULTS
from plures.evaluate.spec import find_method
from plures.federation import Federation
from plures.files import write_text
from plures.report import audit_page, html_report
from plures.run import Run

PAGE, REPORT = "audit.html", "report.html"

CAPTION = (
    "AUC, TPR: membership from the losses of the personal model, and true positives at 1 % false ones; shared: AUC of "
    "the model that all have in common; nearest: distance of the best reconstruction to an example of the client, as a "
    "share of its length; others': to one of other clients"
)


@app.command("audit")
def audit_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a comparison.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Of a comparison, only this method; repeatable; default: all of them.")
    ] = None,
    client: Annotated[list[str] | None, typer.Option(help="Only this client; repeatable.")] = None,
    shadows: Annotated[
        int, typer.Option(help="Shadow models for membership inference; each is another run, as is the attacked one.")
    ] = 0,
    canaries: Annotated[
        int | None,
        typer.Option(help="Planted clients and others, for a run with differential privacy; default: 1000."),
    ] = None,
    device: Device = "auto",
    allow_code: AllowCode = None,
    quiet: Quiet = False,
) -> None:
    """Attack finished runs: who was in the training data, what messages bare, what epsilon at least is."""
    if canaries is not None and (canaries < FEWEST or canaries % 4):
        raise PluresError(f"--canaries {canaries}: give a multiple of 4, and at least {FEWEST}")
    if shadows and shadows < 2:
        raise PluresError(f"--shadows {shadows}: give 0, or at least 2")
    whole, several = (folder, True) if (folder / RESULTS).exists() else (folder.absolute().parent.parent, False)
    if several:
        places = _chosen(folder, method or ())
    else:
        places = [folder]
        if method:
            raise PluresError("--method chooses among the methods of a comparison, and this is the folder of one run")
    attacks = [_Attack(place, consent(allow_code), device, client or (), shadows, canaries) for place in places]
    if canaries is not None and all(attack.fresh.spent() is None for attack in attacks):
        raise PluresError(
            "--canaries: they are planted to find out what epsilon at least is, and no run here has differential "
            "privacy: leave the option out"
        )
    for place, attack in zip(places, attacks, strict=True):
        found = attack.made(quiet)
        write_text(place / AUDIT, found.model_dump_json(indent=1) + "\n")
        write_text(place / PAGE, audit_page(found, f"the run in {place.name}"))
        if several:
            say(found.title)
        console.print(table(found))
        for line in found.summary():
            say(line)
        say(f"kept in {place / AUDIT}; as a page: {place / PAGE}")
    if (whole / REPORT).exists() and (whole / RESULTS).exists() and all(_within(whole, place) for place in places):
        result = Comparison.from_json(whole / RESULTS)
        write_text(whole / REPORT, html_report(result, audits=[audits(whole, result)]))
        say(f"the report shows it, too: {whole / REPORT}")


def _within(whole: Path, place: Path) -> bool:
    """Whether a folder is that of a run of a comparison."""
    return place.absolute().parent == (whole / "runs").absolute()


def _chosen(folder: Path, methods: Sequence[str]) -> list[Path]:
    """The folders of the first runs of some methods of a comparison; of all if none are named."""
    result = Comparison.from_json(folder / RESULTS)
    names = [one.name for one in result.methods]
    wanted = [one if one in names else find_method(one, typed(one)).name for one in methods] or names
    for name in wanted:
        if name not in names:
            raise PluresError(f"--method: no method {name!r} in {folder}; {suggestion(name, names, 'methods are')}")
    kept = {one.name: runs(folder, one) for one in result.methods if one.name in wanted}
    if lacking := [name for name, places in kept.items() if not places]:
        raise PluresError(f"{folder} does not hold the runs of {', '.join(lacking)}: compare again, with --out")
    return [places[0] for places in kept.values()]


class _Attack:
    """The audit of one run's folder, after all checks."""

    def __init__(
        self, folder: Path, code: Code, device: str, clients: Sequence[str], shadows: int, canaries: int | None
    ) -> None:
        kept = RunFolder(folder, code)
        self.spec, self.result, self.run = kept.spec(), kept.result(), kept.run(device)
        for name in clients:
            if name not in self.run.federation.clients:
                raise PluresError(
                    f"--client: no client {name!r}; {suggestion(name, self.run.federation.clients, 'clients are')}"
                )
        self.code, self.execution = kept.reading, kept.execution(device)
        self.clients, self.shadows, self.canaries = clients, shadows, canaries
        self.fresh = self.begun(self.run.given)

    def begun(self, federation: Federation) -> Run:
        """The run before its first round, on some data."""
        return self.spec.run(federation, self.execution, self.code)

    def bare(self) -> Run | None:
        """The same without stages on the wire; ``None`` if there are none, or they cannot be left out."""
        method = self.fresh.origin.method
        if not method.wire:
            return None
        return Run(
            self.fresh.given,
            self.spec.network(self.fresh.given, self.code),
            replace(method, wire=()),
            self.spec.training(),
            participation=self.spec.who(),
            seed=self.spec.seed,
            execution=self.execution,
            threat=self.spec.threat(),
        )

    def shadow(self, federation: Federation) -> Run:
        """A run on some data up to the chosen round."""
        run = self.begun(federation)
        while run.round < self.result.chosen_round:
            run.step()
        return run

    def made(self, quiet: bool) -> Audit:
        """Attack."""
        bare, done = self.bare(), 0
        steps = 3 + bool(self.shadows) + (bare is not None)
        with progress(f"audit {self.spec.title()}", steps, quiet=quiet) as update:

            def tell(what: str) -> None:
                nonlocal done
                update(done, what)
                done += 1

            return audited(
                self.run,
                self.fresh,
                self.spec.title(),
                bare=bare,
                clients=self.clients,
                make=self.shadow,
                shadows=self.shadows,
                planted=1000 if self.canaries is None else self.canaries,
                progress=tell,
            )


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
