"""The command that shows everything about one client."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from plures.cli.common import AllowCode, app, consent, console
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec
from plures.evaluate.code import Code
from plures.evaluate.compare import RESULTS
from plures.federation import Federation
from plures.report.client import client_page


@app.command("client")
def client_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison or of a run.")],
    client: Annotated[str, typer.Argument(help="Name of the client.")],
    method: Annotated[
        str | None, typer.Option(help="Whose model is examined; default: the one that serves the client best.")
    ] = None,
    examples: Annotated[bool, typer.Option(help="Load the data to show the columns of its worst examples.")] = True,
    allow_code: AllowCode = None,
) -> None:
    """Show everything about one client: its data, scores, personal parts, errors and peers."""
    code = consent(allow_code)
    page = client_page(folder, client, data(folder, code) if examples else None, method, code)
    console.print(page, highlight=False)
    if (folder / "report.html").exists():
        console.print(f"in the report: {folder / 'report.html'}#client={quote(client)}", markup=False, highlight=False)


def data(folder: Path, code: Code) -> Federation | None:
    """The data of a comparison or run without unseen clients; ``None`` if they cannot be loaded by name."""
    runs = [folder] if not (folder / RESULTS).exists() else sorted((folder / "runs").glob("*"))
    for path in runs:
        try:
            spec: RunSpec = RunFolder(path, code).spec()
            federation = RunFolder(path, code).data()
        except PluresError as error:
            console.print(f"columns of examples are left out: {error}", style="yellow", markup=False)
            return None
        return federation.hold_out(spec.unseen)[0] if spec.unseen else federation
    return None
