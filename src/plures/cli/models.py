"""Commands for finished runs: models for new clients, predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from plures.cli.common import Device, app, console
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, primary, score
from plures.federation import Federation, from_folder, load
from plures.run import Run, onboard
from plures.run.checkpoint import write_text
from plures.run.onboard import rescaled


@app.command("onboard")
def onboard_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[
        str | None, typer.Option(help="The new clients' data; default: the clients held out by --unseen.")
    ] = None,
    client: Annotated[list[str] | None, typer.Option(help="Only this client; repeatable.")] = None,
    visits: Annotated[int | None, typer.Option(help="Local visits; default: the method's.")] = None,
    device: Device = "auto",
) -> None:
    """Give clients that never took part their model, and keep it in the run's folder."""
    kept = RunFolder(folder)
    spec = kept.spec()
    if data is None and not spec.unseen:
        raise PluresError(f"{folder} held no client out: name the new clients' data with --data")
    run = kept.run(device)
    newcomers = spec.federation().subset(spec.unseen) if data is None else read_newcomers(data, spec, run)
    newcomers = newcomers.subset(client) if client else newcomers
    guest = onboard(run, newcomers, visits)
    kept.add(guest)
    metric = primary(newcomers.task)
    table = Table("client", "training examples", f"test {metric.title}")
    sizes = newcomers.splits["train"].sizes.tolist()
    for name, size, value in zip(newcomers.clients, sizes, score(guest, "test").values[metric.name], strict=True):
        table.add_row(name, str(size), "-" if np.isnan(value) else f"{value:.4f}")
    console.print(table)


def read_newcomers(data: str, spec: RunSpec, run: Run) -> Federation:
    """New clients from a data set or a folder, read and scaled as the run's data were."""
    same_kind = Path(data).is_dir() == Path(spec.data).is_dir()
    options = dict(spec.data_options) if same_kind else {}
    if not Path(data).is_dir():
        return load(data, **(options if data == spec.data else {}))
    if options.get("standardize_targets") and run.federation.task.kind == "regression":
        raise PluresError(
            f"{data}: the run's targets were standardised, and their scale is not kept: put the new clients into "
            f"{spec.data} and hold them out with --unseen"
        )
    names = {file.stem for file in Path(data).glob("*.npz")}
    options["metadata"] = {name: row for name, row in options.get("metadata", {}).items() if name in names}
    task = run.federation.task
    options |= {"standardize": False, "task": task.kind, "classes": task.classes or None, "name": Path(data).name}
    return rescaled(run, from_folder(Path(data), **options))


@app.command("predict")
def predict_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    client: Annotated[str, typer.Option(help="Whose personal model.")],
    inputs: Annotated[
        Path | None, typer.Option(help=".npz with raw examples x; default: the client's test examples.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: the terminal.")] = None,
) -> None:
    """Predict with one client's personal model."""
    kept = RunFolder(folder)
    x = None if inputs is None else torch.from_numpy(read_inputs(inputs))
    outputs, decided = kept.predict(client, x)
    lines = predictions(outputs, decided, kept.spec().federation().task.classes)
    if out is None:
        typer.echo("\n".join(lines))
    else:
        write_text(out, "\n".join(lines) + "\n")


def read_inputs(file: Path) -> np.ndarray[Any, Any]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return np.asarray(archive["x"])
    except (OSError, ValueError, KeyError) as error:
        raise PluresError(f"{file}: {error}; give an .npz file with an array x of raw examples") from error


def predictions(outputs: torch.Tensor, decided: torch.Tensor | None, classes: tuple[str, ...]) -> list[str]:
    """CSV lines: the class and each class's probability, or the predicted numbers."""
    if decided is None:
        return [
            ",".join(f"y{i}" for i in range(outputs.shape[1])),
            *(",".join(f"{v:.6g}" for v in row) for row in outputs.tolist()),
        ]
    chances = outputs.softmax(-1)
    lines = [",".join(["class", *classes])]
    for row, best in zip(chances.tolist(), decided.tolist(), strict=True):
        lines.append(",".join([classes[best], *(f"{p:.6g}" for p in row)]))
    return lines
