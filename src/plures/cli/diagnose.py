"""The command that examines data before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from plures.cli.common import (
    Data,
    Model,
    ModelOptions,
    Quiet,
    app,
    console,
    model_settings,
    typed,
)
from plures.cli.options import DataOptions, spread
from plures.cli.progress import progress
from plures.diagnose import Diagnosis, diagnose, diagnosis_page
from plures.errors import PluresError
from plures.evaluate import RunSpec
from plures.files import check_file, write_json, write_text

WRITERS: dict[str, Callable[[Path, Diagnosis], None]] = {
    ".json": lambda file, found: write_json(file, found.model_dump(mode="json")),
    ".html": lambda file, found: write_text(file, diagnosis_page(found)),
}


@app.command("diagnose")
@spread
def diagnose_command(
    data: Data,
    *,
    loading: DataOptions,
    model: Model = None,
    model_options: ModelOptions = None,
    seed: Annotated[int, typer.Option(help="Seed of samples, permutations and initial values.")] = 0,
    clients: Annotated[int, typer.Option(help="Most clients to examine closely.")] = 150,
    rows: Annotated[int, typer.Option(help="Most train rows to use, over all clients.")] = 6000,
    rows_each: Annotated[int, typer.Option(help="Most train rows to use per client.")] = 400,
    out: Annotated[list[Path] | None, typer.Option(help="File for the diagnosis, .json or .html; repeatable.")] = None,
    quiet: Quiet = False,
) -> None:
    """How do the clients differ, and which methods should help? Trains no method, reads no test data."""
    files = out or []
    for file in files:
        if file.suffix not in WRITERS:
            raise PluresError(f"--out {file}: give a file that ends with {' or '.join(WRITERS)}")
        check_file(file)
    for name, number, least in (
        ("clients", clients, 1),
        ("rows", rows, 1),
        ("rows-each", rows_each, 1),
        ("seed", seed, 0),
    ):
        if number < least:
            raise PluresError(f"--{name} {number}: give at least {least}")
    code = typed(data, model)
    spec = RunSpec(
        data=data,
        data_options=loading.settings(data),
        model=model,
        model_options=model_settings(model_options, model),
    )
    federation = spec.federation(code)
    with progress(f"diagnosing {federation.name}", 1, quiet=quiet) as update:
        found = diagnose(
            federation,
            model=None if model is None else spec.network(federation, code),
            seed=seed,
            clients=clients,
            rows=rows,
            rows_each=rows_each,
            progress=lambda done, total, what: update(done / total, what, line=False),
        )
    console.print(str(found), markup=False, highlight=False, soft_wrap=True)
    for file in files:
        WRITERS[file.suffix](file, found)
        console.print(f"written: {file}", markup=False, highlight=False, soft_wrap=True)
