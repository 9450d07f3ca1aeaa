"""The fork server of a fleet: a process that has loaded what the fleet's programs need, and forks them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import BinaryIO

from plures.deploy.fleet.forks import Forks, Wanted
from plures.deploy.fleet.process import Process, Started, spawned
from plures.deploy.fleet.programs import FORKS, command
from plures.errors import PluresError

PYTHON = command(FORKS)[:-1]
"""How a command begins, before a program's manners and name."""


class ForkServer:
    """Starts the programs of a fleet, all with the same manners. Its process starts with the first of them.

    Args:
        manners: the manners.
        environment: all environment variables while modules are loaded.
        log: file to which its output is appended.
    """

    def __init__(self, manners: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.process = Process(log.stem, command(FORKS, *manners), environment, log, self.open)
        self.forks: Forks | None = None
        self.changing = threading.Lock()

    def open(self, words: Sequence[str], environment: Mapping[str, str], out: BinaryIO) -> Started:
        """Start the server's own process."""
        here, there = Pipe()
        self.forks = Forks(here)
        with there:
            return spawned(words, environment, out, there.fileno())

    def launch(self, words: Sequence[str], environment: Mapping[str, str], out: BinaryIO) -> Started:
        """Fork a program, as the leader of its own session. Any other command is started in the usual way.

        Args:
            words: its command, as :func:`~plures.deploy.fleet.programs.command` has it.
            environment: all environment variables.
            out: file that its output is written to.

        Raises:
            PluresError: the server has ended.
        """
        if list(words[: len(PYTHON)]) != PYTHON:
            return spawned(words, environment, out)
        with self.changing:
            if not self.process.alive:
                self.process.start()
            assert self.forks is not None
            try:
                return self.forks.fork(Wanted(tuple(words[len(PYTHON) :]), environment, session=True), out.fileno())
            except EOFError:
                where = f"the end of {self.process.log}:\n{self.process.tail()}"
                raise PluresError(f"the process that forks all others has ended; {where}") from None
