"""Commands that compare and train methods, and list methods and data sets."""

from __future__ import annotations

import inspect
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from plures.audit import audits
from plures.cli.common import (
    Data,
    OneData,
    Out,
    Patience,
    Processes,
    Quiet,
    Rounds,
    TaskName,
    Track,
    app,
    console,
    settings,
    spaces,
    typed,
)
from plures.cli.config import Config, write_config
from plures.cli.options import DataOptions, MachineOptions, WorkOptions, spread
from plures.cli.progress import progress
from plures.errors import PluresError
from plures.evaluate import ComparisonProgress, RunFolder, RunSpec, compare, finish, fit, primary
from plures.evaluate.compare import DEFAULT
from plures.evaluate.compare import saved_execution as saved
from plures.evaluate.fit import patience_fact
from plures.evaluate.results import Point
from plures.evaluate.sample import among, sampling_width
from plures.evaluate.spec import find_method
from plures.evaluate.tuning import readings
from plures.federation import DATASETS, locate
from plures.files import check_file, check_folder, discard, write_json, write_text
from plures.report import catalogue, console_table, headline, html_report
from plures.report.catalogue import leaving
from plures.tables import keep_schema, schema_of, write_schema
from plures.track import trackers


@app.command("compare", cls=OneData)
@spread
def compare_command(
    data: Data,
    *,
    loading: DataOptions,
    method: Annotated[list[str] | None, typer.Option(help="Method besides the baselines; repeatable.")] = None,
    rounds: Rounds = 50,
    every: Annotated[
        int | None, typer.Option(help="Rounds between readings of validation data; default: about ten readings.")
    ] = None,
    pooled: Annotated[
        bool,
        typer.Option(
            "--pooled", help="Also train one model on all clients' examples in one place, which breaks privacy."
        ),
    ] = False,
    patience: Patience = None,
    seeds: Annotated[int, typer.Option(help="Final runs per method.")] = 3,
    lr: Annotated[list[float] | None, typer.Option(help="Learning rate to try; repeatable.")] = None,
    tune_rounds: Annotated[int, typer.Option(help="Rounds of a tuning run; 0 disables tuning.")] = 10,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD.NAME=VALUES",
            help="Values to try of a method's parameter, or of its learning rate, lr: ditto.lam=0.01,0.1; repeatable. "
            "Default: those of the catalogue.",
        ),
    ] = None,
    work: WorkOptions,
    out: Out = Path("runs/compare"),
    machine: MachineOptions,
    processes: Annotated[
        int, typer.Option(help="Processes that share the runs, each with its share of the cores; needs plures[pool].")
    ] = 1,
    track: Track = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Compare methods: tuned on validation data, several seeds, test data read once; table and HTML report."""
    methods = method or DEFAULT
    code = typed(data, *work.named, *methods)
    callbacks = trackers(track or (), out)
    with progress("comparing", 1, quiet=quiet) as update:
        first = True

        def listen(stage: ComparisonProgress) -> None:
            nonlocal first
            if first:  # the folder is this comparison's
                write_config(out / "compare.toml")
            first = False
            text = f"{stage.method}, {stage.what}{reached(stage)}"
            update(stage.done / max(stage.total, 1), text, line=stage.ended, skipped=stage.point is None)

        result = compare(
            data,
            methods,
            rounds=rounds,
            every=every,
            patience=patience,
            seeds=seeds,
            pooled=pooled,
            learning_rates=lr or None,
            tune_rounds=tune_rounds,
            space=spaces(space, methods, code),
            out=out,
            execution=machine.execution(processes),
            listener=listen,
            callbacks=callbacks,
            data_options=loading.settings(data),
            **work.settings(),
        )
    result = result.model_copy(
        update={"settings": result.settings | {"command": shlex.join(["plures", *sys.argv[1:]])}}
    )
    write_json(out / "results.json", result.model_dump(mode="json"))
    write_text(out / "report.html", html_report(result, audits=[audits(out, result)]))
    console.print(console_table(result))
    console.print(headline(result))
    console.print(f"report: {out / 'report.html'}   results: {out / 'results.json'}, {out / 'clients.csv'}")


def reached(stage: ComparisonProgress) -> str:
    """A run's progress as text."""
    if stage.point is None:
        return ", done before"
    best = "best at round" if stage.ended else "round"
    return f", {best} {stage.point.round}/{stage.rounds}, validation {stage.point.validation:.3f}"


def reading(point: Point) -> str:
    """A point of a run as text."""
    loss = "" if math.isnan(point.train_loss) else f"loss {point.train_loss:.3f}, "
    return f"round {point.round}, {loss}validation {point.validation:.3f}"


@app.command("run")
@spread
def run_command(
    data: Data,
    method: Annotated[str, typer.Argument(help="Name of a method (see `plures methods`) or package.module:function.")],
    *,
    loading: DataOptions,
    setting: Annotated[list[str] | None, typer.Option("--set", help="Parameter of the method, NAME=VALUE.")] = None,
    rounds: Rounds = 50,
    patience: Patience = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Root of all randomness of the run.")] = 0,
    work: WorkOptions,
    out: Out = Path("runs/run"),
    machine: MachineOptions,
    processes: Processes = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Run one method and store every client's model."""
    code = typed(data, method, *work.named)
    if rounds < 1:
        raise PluresError(f"--rounds {rounds}: give at least 1")
    spec = RunSpec(
        data=data,
        data_options=loading.settings(data),
        method=method,
        parameters=settings(setting, "--set", f"method {method!r}", find_method(method, code).kinds),
        lr=lr,
        rounds=rounds,
        seed=seed,
        **work.settings(),
    )
    folder, checkpoint = RunFolder(out), out / "checkpoint.safetensors"
    if folder.finished:
        raise PluresError(f"{out} holds a finished run; choose another folder with --out, or delete it")
    check_folder(out)
    callbacks = trackers(track or (), out)
    wanted = machine.execution(processes)
    if checkpoint.exists():
        wanted = saved(checkpoint, wanted)
    federation = spec.federation(code)
    keep_schema(federation, out)
    seen, held = federation.hold_out(spec.unseen) if spec.unseen else (federation, None)
    spec = spec.calibrated(seen)
    run, every = spec.run(seen, wanted, code), readings(rounds, 20)
    also = among(work.evaluate_clients) | patience_fact(patience)
    asked = spec.question(run, held, code, every=every, **also)
    with progress(spec.title(), rounds, quiet=quiet) as update:
        first = True

        def tell(point: Point) -> None:
            nonlocal first
            if first:
                update(point.round - 1, "begun", line=False, skipped=True)
            first = False
            update(point.round, reading(point), line=bool(point.clients))

        fitted = fit(
            run,
            spec.title(),
            every=every,
            patience=patience,
            checkpoint=checkpoint,
            progress=tell,
            callbacks=callbacks,
            settings=spec.model_dump(),
            question=asked,
            evaluate_clients=work.evaluate_clients,
        )
        result = finish(fitted, seed, held)
    folder.write(run, spec, result, asked, fitted.asked)
    discard(checkpoint)
    measure = primary(seen)
    own, lacking = result.test.summary(measure), result.test.undefined(measure.name)
    people = len(result.test.clients)
    why = f" {measure.undefined}".rstrip()
    where = f"at round {result.chosen_round} (chosen on validation data)"
    if lacking == people:
        score = f"test {measure.title} is undefined for every client{why}, {where}"
    else:
        score = f"test {measure.title} {own.mean:.4f} on average over {people} clients, worst {own.worst:.4f}, {where}"
    console.print(f"{spec.title()} on {seen.name}: {score}")
    hostile = [] if run.threat is None else run.threat.hostile(seen.clients)
    if hostile:
        console.print(
            f"under attack ({spec.attack}) of {', '.join(seen.clients[i] for i in hostile)}, who do not count"
        )
    if 0 < people < (honest := len(seen) - len(hostile)):
        width = sampling_width(result.test.values(measure.name), honest)
        console.print(
            f"{people} of {honest} clients were scored, a random sample: the mean over all lies within {width:.4f} "
            "of that (95 % confidence)"
        )
    if result.privacy is not None:
        console.print(str(result.privacy.spent), markup=False, highlight=False)
    if 0 < lacking < people:
        console.print(f"for {lacking} of {people} clients it is undefined{why}; the mean leaves them out")
    if result.never:
        console.print(
            f"{len(result.never)} of {people} clients had not been drawn by then; the method serves each as it serves "
            "a client that joins later"
        )
    if result.unseen is not None:
        mean = result.unseen.summary(measure).mean
        console.print(f"unseen clients: {'undefined' if math.isnan(mean) else f'{mean:.4f}'}")
    console.print(f"kept in {out}")


@app.command("describe")
@spread
def describe_command(
    data: Data,
    *,
    loading: DataOptions,
    task: TaskName = None,
    out: Annotated[Path | None, typer.Option(help="File for the schema of a table, such as schema.toml.")] = None,
) -> None:
    """Show the clients of some data and their splits; of a table, also what its columns are."""
    code = typed(data, task)
    if out is not None:
        check_file(out)
    spec = RunSpec(
        data=data,
        data_options=loading.settings(data),
        task=task,
    )
    federation = spec.federation(code)
    console.print(str(federation.describe()), highlight=False)
    declared = schema_of(federation)
    if declared is not None:
        table = Table("column", "kind", "inputs")
        for column in declared.columns:
            table.add_row(column.name, column.kind, ", ".join(column.inputs))
        for name, why in declared.ignored.items():
            table.add_row(name, "left out", why)
        console.print(table)
    if out is None:
        return
    if declared is None:
        raise PluresError(f"--out {out}: {data!r} is no table, so it has no schema; leave --out out")
    write_schema(declared, out)
    console.print(f"written: {out}")


@app.command("methods")
def methods_command(
    name: Annotated[str | None, typer.Argument(help="Show everything about this method.")] = None,
) -> None:
    """List the methods, or show everything about one."""
    if name is not None:
        entry = find_method(name, typed(name))
        defaults = ", ".join(f"{key}={value!r}" for key, value in entry.defaults.items()) or "none"
        tried = "; ".join(f"{key}: {values}" for key, values in entry.space.items()) or "nothing"
        console.print(f"{entry.title} ({entry.family})\n{entry.citation}\n", markup=False, highlight=False)
        console.print(inspect.getdoc(entry.build) or "", markup=False, highlight=False)
        console.print(
            f"\nparameters: {defaults}\ntuned beside the learning rate: {tried}", markup=False, highlight=False
        )
        console.print("\nleaves a client, by channel, from a small model:", markup=False, highlight=False)
        for channel in leaving(entry):
            console.print(f"  {channel}", markup=False, highlight=False)
        console.print(
            "the report counts tensors as traffic; values in a message's header are not counted",
            markup=False,
            highlight=False,
        )
        return
    family = ""
    for row in catalogue():
        if row.family != family:
            family = row.family
            console.print(f"\n{family}", style="bold", highlight=False)
        console.print(f"  {row.name}: {row.title}. {row.citation}", markup=False, highlight=False)
        console.print(
            f"    travels: {row.travels}; stays: {row.stays}; up {row.up}, down {row.down}, work {row.work}; "
            f"secure sum: {row.secure}; unseen client: {row.unseen}",
            style="dim",
            markup=False,
            highlight=False,
        )
    console.print(
        "\nup, down: what a client sends and receives in a round, in sizes of a small model; work: operations of a "
        "visit, relative to FedAvg's; secure sum: whether one weighted sum of all uploads is enough for the server"
    )


@app.command("datasets")
def datasets_command() -> None:
    """List the data sets by name, with their location or how to get them."""
    table = Table("name", "task", "clients", "examples", "MB", "licence", "where")
    for name, card in DATASETS.items():
        try:
            where = "in the package" if card.packaged else str(locate(name))
        except PluresError:
            where = card.how_to_get
        table.add_row(name, card.task, card.clients, f"{card.examples}", f"{card.megabytes:g}", card.licence, where)
    console.print(table)
