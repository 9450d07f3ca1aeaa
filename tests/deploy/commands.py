"""`plures deploy` in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from plures.cli import app


def call(*words: object) -> str:
    """What the command prints; what it raises is raised."""
    done = CliRunner().invoke(app, ["deploy", *map(str, words)])
    if done.exception:
        raise done.exception
    return done.output
