"""The command line."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

import plures
from plures.cli import client as client
from plures.cli import deploy as deploy
from plures.cli import diagnose as diagnose
from plures.cli import models as models
from plures.cli import research as research
from plures.cli import study as study
from plures.cli.common import app
from plures.errors import PluresError, PluresWarning

__all__ = ["app", "main"]


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is chosen and measured.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(plures.__version__)
        raise typer.Exit
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )


def main() -> None:
    """Entry point: one clear line for bad input."""
    errors = Console(stderr=True)
    warnings.simplefilter("once", PluresWarning)
    warnings.showwarning = lambda message, *_: errors.print(f"note: {message}", style="yellow", markup=False)
    try:
        app()
    except PluresError as error:
        errors.print(f"error: {error}", style="red", markup=False)
        sys.exit(2)
