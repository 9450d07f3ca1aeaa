"""Commands in processes of their own that are forked from one that has loaded plures: for tests of how they end."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

LOADED = ["plures.cli", "plures.evaluate.workers", "plures.study.view"]


def warm() -> ForkServerContext:
    """Processes that are forked from one that has loaded plures, which starts with the signals of a test."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    multiprocessing.forkserver.ensure_running()
    return context


def main(words: list[str], out: Path) -> None:
    """The command line, as ``plures`` runs it, with its output in a file."""
    from plures import cli

    with out.open("wb") as file:
        os.dup2(file.fileno(), 1)
    sys.argv = ["plures", *words]
    cli.main()


class Begun:
    """A command that runs.

    Args:
        words: the command.
        out: file of its output.
    """

    def __init__(self, words: list[str], out: Path) -> None:
        self.out = out
        self.process = warm().Process(target=main, args=(words, out))
        self.process.start()

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, as of ``subprocess``; ``None`` if it has not ended in time."""
        self.process.join(seconds)
        return self.process.exitcode

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.join()


Begins = Callable[..., Begun]
"""``begins(*words)``: a command that runs in a process of its own."""
