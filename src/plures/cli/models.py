"""Commands for finished runs: models for new clients, predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.table import Column, Table

from plures.cli.common import (
    AllowCode,
    BatchSize,
    Data,
    Device,
    Model,
    ModelOptions,
    Momentum,
    OptimizerName,
    app,
    consent,
    console,
    model_settings,
    say,
    settings,
    typed,
)
from plures.cli.options import DataOptions, spread
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, primary, score
from plures.evaluate.code import Code
from plures.evaluate.own import find_loader
from plures.evaluate.spec import find_method
from plures.federation import Federation, from_folder
from plures.federation.build.folder import check_inputs, input_arrays
from plures.federation.inputs import Inputs as SeveralInputs
from plures.federation.inputs import as_inputs, joined
from plures.files import NO_ARCHIVE, check_file, check_folder, write_text
from plures.run import Execution, Run, onboard
from plures.run.onboard import rescaled
from plures.serving.device import COUNTED, memory, sizes
from plures.serving.export import FORMATS, export
from plures.serving.personal import PersonalModel, opened
from plures.serving.step import STEPS
from plures.tables import from_table, is_table, schema_of
from plures.tables.source import read_rows
from plures.tables.table import Cells, texts
from plures.tasks import Task
from plures.texts import csv_text

Folder = Annotated[Path, typer.Argument(help="Folder of a personal model, or of a finished run.")]
Client = Annotated[str | None, typer.Option(help="Whose model; needed for a run.")]
Inputs = Annotated[
    Path | None,
    typer.Option(help=".npz with raw examples x, or x.NAME for each of several inputs; or .csv or .parquet with rows."),
]

SHOWN_METHODS = ("fedavg", "fedavg_ft", "ditto", "fedper", "fedrep", "fedbabu", "lora")
"""Default methods of `plures device`, chosen for their different memory needs."""
COLUMNS = {
    "state": "state",
    "received": "received",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "other work": "work",
    "examples": "examples",
    "total": "total",
    "measured": "alive",
}
"""Lines of the table of :func:`device_command`, and their fields."""
EXPORTED = ("kB", "memory", "ms", "largest", "mean", "other")
"""Columns of the table of :func:`export_command`; 80 characters are enough for it."""


@app.command("onboard")
def onboard_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[
        str | None, typer.Option(help="The new clients' data; default: the clients held out by --unseen.")
    ] = None,
    client: Annotated[list[str] | None, typer.Option(help="Only this client; repeatable.")] = None,
    visits: Annotated[int | None, typer.Option(help="Local visits; default: the method's.")] = None,
    device: Device = "auto",
    allow_code: AllowCode = None,
) -> None:
    """Give a model to clients that did not take part, and store it in the run's folder."""
    kept = RunFolder(folder, consent(allow_code))
    typed(data)
    spec = kept.spec()
    if data is None and not spec.unseen:
        raise PluresError(f"{folder} held no client out: name the new clients' data with --data")
    run = kept.run(device)
    newcomers = kept.data().subset(spec.unseen) if data is None else read_newcomers(data, spec, run)
    newcomers = newcomers.subset(client) if client else newcomers
    guest = onboard(run, newcomers, visits)
    kept.add(guest)
    metric = primary(run.federation)
    table = Table("client", "training examples", f"test {metric.title}")
    sizes = newcomers.splits["train"].sizes.tolist()
    for name, size, value in zip(newcomers.clients, sizes, score(guest, "test").values[metric.name], strict=True):
        table.add_row(name, str(size), "-" if np.isnan(value) else f"{value:.4f}")
    console.print(table)


def read_newcomers(data: str, spec: RunSpec, run: Run) -> Federation:
    """New clients from a data set, a folder or a table, read and scaled as the run's data were."""
    declared = schema_of(run.federation)
    if declared is not None and is_table(data):
        return from_table(data, schema=declared, task=run.federation.task, copies="allow")
    same_kind = Path(data).is_dir() == Path(spec.data).is_dir()
    options = dict(spec.data_options) if same_kind else {}
    if not Path(data).is_dir():
        return find_loader(data, Code.typed(data))[0](**(options if data == spec.data else {}))
    names = {file.stem for file in Path(data).glob("*.npz")}
    options["metadata"] = {name: row for name, row in options.get("metadata", {}).items() if name in names}
    task = run.federation.task
    options = {name: value for name, value in options.items() if name != "standardize_targets"}
    options |= {"standardize": False, "task": task, "name": Path(data).name}
    return rescaled(run, from_folder(Path(data), **options))


@app.command("predict")
def predict_command(
    folder: Folder,
    rows: Annotated[
        Path | None, typer.Argument(help="New rows: a file, as with --inputs, or a folder with one file per client.")
    ] = None,
    client: Client = None,
    inputs: Inputs = None,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: the terminal.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Print the model card instead.")] = False,
    allow_code: AllowCode = None,
) -> None:
    """Predict new rows with one client's personal model, or each row with its own client's; the data are not needed.

    Without rows, a run predicts the client's test examples. Rows' client and key are repeated beside their predictions.
    """
    if out is not None:
        check_file(out)
    if rows is not None and inputs is not None:
        raise PluresError(f"{rows} and --inputs {inputs}: give one of the two")
    inputs = inputs or rows
    kept = RunFolder(folder, consent(allow_code))
    if card:
        say(opened(folder, client, kept.code).card.text())
        return
    if kept.finished and (client is not None or inputs is not None):
        federation, found = kept.fitted(), None if inputs is None else rows_in(inputs)
        outputs, decided = kept.predict(client, found)
    else:
        model = opened(folder, client, kept.code)
        federation, found = model.federation, given(model, inputs)
        outputs, decided = model.predict(found)
    text = predictions(outputs, decided, federation.task, naming(federation, found))
    if out is None:
        say(text.removesuffix("\n"))
    else:
        write_text(out, text)


@app.command("serve")
def serve_command(
    folder: Folder,
    client: Client = None,
    host: Annotated[str, typer.Option(help="Address to listen on; no authentication, no TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    limit: Annotated[int, typer.Option(help="Most examples in a request.")] = 1000,
    allow_code: AllowCode = None,
) -> None:
    """Serve predictions of one personal model over HTTP: GET /health, GET /card, POST /predict."""
    from plures.serving.serve import serve  # needs the extra

    model = opened(folder, client, consent(allow_code))
    who = f"the model of {model.card.client}, version {model.card.version}"
    serve(model, host, port, limit, lambda address: say(f"serving {who}, on {address}"))


@app.command("export")
def export_command(
    folder: Folder,
    client: Client = None,
    to: Annotated[list[str] | None, typer.Option(help=f"Format: {', '.join(FORMATS)}; repeatable.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Also ONNX with 8-bit integers.")] = False,
    train: Annotated[
        str | None,
        typer.Option(help="With --to executorch: also a training step of this part of the network, such as head."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a training step.")] = 8,
    inputs: Inputs = None,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("exported"),
    allow_code: AllowCode = None,
) -> None:
    """Export a personal model to other formats; report size, speed and deviation from the original.

    Compared on --inputs, or on the client's test examples of a run, whose validation examples then set the ranges of
    static int8.
    """
    check_folder(out)
    code = consent(allow_code)
    model, ranges = opened(folder, client, code), None
    if inputs is None and RunFolder(folder).finished:
        shown, ranges = (raw(RunFolder(folder, code), model.card.client, split) for split in ("test", "validation"))
    else:
        shown = given(model, inputs, scaled=False)
    formats = tuple(to or ["onnx"])
    found = export(
        model, out, shown, to=formats, int8=int8, train=train, batch=batch_size, calibration=ranges, code=code
    )
    table = Table("format, file", *(Column(name, justify="right") for name in EXPORTED))
    for one in found:
        changed = "-" if one.changed is None else f"{100 * one.changed:.1f} %"
        numbers = (
            f"{one.size / 1000:.1f}",
            "-" if one.memory is None else f"{one.memory / 1000:.1f}",
            f"{one.milliseconds:.3f}",
            f"{one.largest:.2g}",
            f"{one.mean:.2g}",
            changed,
        )
        table.add_row(one.format if one.file is None else f"{one.format}\n{one.file.name}", *numbers)
    console.print(table)
    console.print(
        "kB: the file (1000 bytes); memory: kB that a call needs beyond it, as ExecuTorch plans it, and as PyTorch's "
        "storages were counted; ms: median time of one example on one thread; largest and mean difference of outputs, "
        f"and other decisions, on {len(shown)} examples"
        + ("" if train is None else f"; of a training step, time of a step and differences of values after {STEPS}")
    )


@app.command("device")
@spread
def device_command(
    data: Data,
    *,
    loading: DataOptions,
    method: Annotated[list[str] | None, typer.Option(help="Method; repeatable. Default: a representative few.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="Parameter of the method, NAME=VALUE.")] = None,
    optimizer: OptimizerName = "sgd",
    momentum: Momentum = 0.0,
    model: Model = None,
    model_options: ModelOptions = None,
    batch_size: BatchSize = 32,
) -> None:
    """Estimate the memory that a device needs to train with each method; for a single method, phase by phase.

    Methods of which clients hold parts of the network that differ in size have a row for each size.
    """
    code = typed(data, model, *(method or SHOWN_METHODS))
    if batch_size < 0:
        raise PluresError(f"--batch-size {batch_size}: give at least 1, or 0 for all examples of a client")
    specs = [
        RunSpec(
            data=data,
            data_options=loading.settings(data),
            model=model,
            model_options=model_settings(model_options, model),
            method=name,
            parameters=settings(setting, "--set", f"method {name!r}", find_method(name, code).kinds),
            batch_size=batch_size or None,
            optimizer=optimizer,
            momentum=momentum,
        )
        for name in method or SHOWN_METHODS
    ]
    federation = specs[0].federation(code)
    size = batch_size or int(federation.splits["train"].sizes.max())
    found_rows: list[list[str]] = []
    for spec in specs:
        run = spec.run(federation, Execution("loop", 1, False, "float32"), code)
        parts: list[tuple[float | None, str | None]] = [*sizes(run).items()] or [(None, None)]
        for rate, client in parts:
            found, title = memory(run, size, client), spec.title()
            if rate is not None and run.held is not None:
                title = f"{title}, {run.held.title(rate)}"
            for need in (found.peak,) if len(specs) > 1 else found.needs:
                counted = [getattr(need, name) for name in COLUMNS.values()]
                found_rows.append([title, need.what, *(f"{n / 1000:.1f}" for n in (*counted, found.kept, found.up))])
    titles, *lines = zip(*found_rows, strict=True)
    table = Table("", *(Column(title, justify="right") for title in titles))
    names = ("at its peak" if len(specs) > 1 else "part", *COLUMNS, "kept", "sent")
    for name, cells in zip(names, lines, strict=True):
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"kB (1000 bytes), batches of {size}. {COUNTED}", markup=False, highlight=False)


def raw(folder: RunFolder, client: str, split: Literal["validation", "test"]) -> torch.Tensor | SeveralInputs:
    """A client's examples in a run's data, before scaling."""
    federation = folder.data()
    found = federation.inputs[federation.splits[split][federation.index(client)]]
    return federation.unscaled(found)


def given(model: PersonalModel, file: Path | None, *, scaled: bool = True) -> Any:
    """Examples in a file, as a personal model takes them: raw numbers, or rows of a table.

    Args:
        model: the model.
        file: the file.
        scaled: rows as a table; otherwise as raw numbers.
    """
    if file is None:
        raise PluresError("a personal model comes without examples: give some with --inputs")
    rows = rows_in(file)
    return rows if scaled or isinstance(rows, torch.Tensor | SeveralInputs) else model.encode(rows, scaled=False)


def rows_in(file: Path) -> torch.Tensor | SeveralInputs | Mapping[str, Cells]:
    """Raw rows of a file: numbers of an .npz, a table of anything else."""
    return read_examples(file) if file.suffix == ".npz" else read_rows(file)


def read_examples(file: Path) -> torch.Tensor | SeveralInputs:
    """Raw examples of an .npz file: ``x``, or ``x.NAME`` for each of several inputs."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: _native(values) for key, values in input_arrays(archive).items()}
        if not arrays:
            raise KeyError("x")
    except NO_ARCHIVE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not such a file"
        raise PluresError(
            f"{file}: {reason}; give an .npz file with an array x of raw examples, or x.NAME for each of several inputs"
        ) from error
    check_inputs(file, arrays)
    found = joined("x", arrays)
    assert found is not None
    return as_inputs(found)


def _native(values: np.ndarray[Any, Any]) -> torch.Tensor:
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{values.dtype} is not a numeric type")
    known = np.float64 if values.dtype == np.longdouble else values.dtype.newbyteorder("=")
    return torch.from_numpy(values.astype(known, copy=False))


def naming(federation: Federation, rows: Any) -> dict[str, list[str]]:
    """The columns that say what each row of a table is: its client and its key, if the schema declares them."""
    declared = schema_of(federation)
    if declared is None or not isinstance(rows, Mapping):
        return {}
    said = (declared.client, declared.key)
    return {name: texts(rows[name]) for name in said if name is not None and name in rows}


def predictions(
    outputs: torch.Tensor, decided: torch.Tensor | None, task: Task, named: Mapping[str, list[str]] | None = None
) -> str:
    """CSV: the decision and the probability of each class or label, or the predicted numbers.

    With a label at every position there is a line for each, which begins with the example and the position, from 0.

    Args:
        outputs: of the model, ``(n, outputs)``, or one more dimension for each of the positions.
        decided: its decisions, if the task has any.
        task: what it predicts.
        named: columns that say what the rows are; they come first.
    """
    expected = task.expected(outputs)
    if decided is not None and expected.dim() > 2:
        places = torch.cartesian_prod(*map(torch.arange, decided.shape)).tolist()
        axes = ["position"] if decided.dim() == 2 else [f"position {axis}" for axis in range(1, decided.dim())]
        lines = (
            [
                *(cells[place[0]] for cells in (named or {}).values()),
                *map(str, place),
                task.names[label],
                *map(_short, row),
            ]
            for place, label, row in zip(
                places, decided.flatten().tolist(), expected.flatten(0, -2).tolist(), strict=True
            )
        )
        return csv_text([[*(named or {}), "example", *axes, task.decision, *task.names], *lines])
    values = [[_short(value) for value in row] for row in expected.tolist()]
    header = [*task.names] if decided is None else [task.decision, *task.names]
    says = [[]] * len(values) if decided is None else [[task.says(one)] for one in decided]
    first = {name: cells for name, cells in (named or {}).items() if name not in header}
    known = zip(*first.values(), strict=True) if first else [()] * len(values)
    rows = ([*names, *said, *row] for names, said, row in zip(known, says, values, strict=True))
    return csv_text([[*first, *header], *rows])


def _short(value: float) -> str:
    return f"{value:.6g}"
