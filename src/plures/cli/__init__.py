"""The command line."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from typing import Annotated

import typer
from rich.logging import RichHandler

from plures.cli import audit as audit
from plures.cli import case as case
from plures.cli import client as client
from plures.cli import deploy as deploy
from plures.cli import diagnose as diagnose
from plures.cli import models as models
from plures.cli import operate as operate
from plures.cli import research as research
from plures.cli import study as study
from plures.cli.common import Terminal, app
from plures.errors import PluresError, PluresWarning
from plures.version import __version__

__all__ = ["app", "main"]


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is measured and chosen.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Terminal(stderr=True), show_time=False, show_path=False)],
    )


def main() -> None:
    """Entry point. Bad input gives one clear line; SIGTERM ends the command as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    errors = Terminal(stderr=True)
    warnings.simplefilter("once", PluresWarning)
    warnings.showwarning = lambda message, *_: errors.print(f"note: {message}", style="yellow")
    try:
        app()
    except PluresError as error:
        said = str(error)
    except OSError as error:
        said = f"{error.filename or 'a file'}: {error.strerror or error}; check the path and its permissions"
    except KeyboardInterrupt:
        errors.print("stopped", style="yellow")
        sys.exit(130)
    else:
        return
    logging.getLogger("plures").info("where it happened", exc_info=sys.exc_info())
    errors.print(f"error: {said}", style="red", highlight=False, soft_wrap=True)
    sys.exit(2)
