"""Processes on this machine that do tasks for this one."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

import torch

from plures.errors import PluresError
from plures.run.interrupt import NUMBERS
from plures.run.packed import Packed, pack
from plures.run.tasks import Done, Given, GoneError, Place, Task, do

Workers = dict[Connection, BaseProcess]
"""The processes of a pool, by their connections."""


class Processes:
    """Processes of this machine; they start with the first task, and share the threads of this one.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.workers: Workers = {}
        self._kept: dict[Connection, tuple[str, ...]] = {}
        self._free: deque[Connection] = deque()
        self._busy: dict[Connection, int] = {}
        Finalize(self, end, (self.workers,), exitpriority=0)

    def __deepcopy__(self, memo: dict[int, object]) -> Processes:
        return Processes(self.count)

    @property
    def free(self) -> int:
        return len(self._free) if self.workers else self.count

    def pack(self, what: object, called: str, *, apart: bool = True) -> Packed:
        return pack(what, f"processes={self.count}", "pool", called, apart=apart)

    def begin(self, number: int, task: Task, given: Given, item: Packed) -> None:
        if not self.workers:
            threads = max(1, torch.get_num_threads() // self.count)
            launch(self.workers, self.count, serve, pickle.dumps(threads))
            self._free.extend(self.workers)
        connection = self._free.popleft()
        kept = self._kept.get(connection, ())
        fresh = {key: one for key, one in given.items() if key not in kept}
        asked = pickle.dumps((task, tuple(given), fresh, item))
        with reaching():
            connection.send_bytes(asked)
        self._kept[connection], self._busy[connection] = tuple(given), number

    def done(self) -> list[tuple[int, Done]]:
        found = []
        for ready in wait(list(self._busy)):
            assert isinstance(ready, Connection)
            with reaching():
                received = ready.recv_bytes()
            found.append((self._busy.pop(ready), pickle.loads(received)))
            self._free.append(ready)
        return found

    def end(self) -> list[int | None]:
        codes = end(self.workers)
        for kept in (self.workers, self._kept, self._free, self._busy):
            kept.clear()
        return codes


@contextmanager
def reaching() -> Iterator[None]:
    """A context for sending to a process or receiving from it; a broken connection raises :class:`GoneError`."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise GoneError from error


def launch(workers: Workers, count: int, serve: Callable[[Connection], None], what: bytes) -> None:
    """Start processes that ignore signals, add them to ``workers``, and send all of them the same message."""
    if multiprocessing.current_process().daemon:
        raise PluresError(
            f"processes={count}: this process was itself started by a pool, and may not start others: use processes=1 "
            "here, or start it with concurrent.futures.ProcessPoolExecutor"
        )
    context = multiprocessing.get_context("spawn")
    for _ in range(count):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there,), daemon=True)
        with deaf(), without_standard_input():
            process.start()
        there.close()
        workers[here] = process
    for connection in workers:
        with reaching():
            connection.send_bytes(what)


@contextmanager
def deaf() -> Iterator[None]:
    """A context in which started processes ignore Ctrl-C and SIGTERM; this process handles those signals afterwards."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # if it were started below, it would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def without_standard_input() -> Iterator[None]:
    """A context in which started processes do not look for the file of a program read from standard input."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or Path(file).exists():
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = file


def end(workers: Workers) -> list[int | None]:
    """Kill the processes of a pool; returns the exit codes of those that had already ended."""
    codes = [process.exitcode for process in workers.values()]
    for connection, process in workers.items():
        process.kill()
        process.join()
        connection.close()
    return [code for code in codes if code is not None]


def serve(connection: Connection) -> None:
    """Main function of a process: does the tasks that it is sent, until the main process is gone.

    Only the process that started it ends it; on Ctrl-C, that process first finishes its round.
    """
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(pickle.loads(connection.recv_bytes()))
    place = Place()
    while True:
        try:
            task, keys, fresh, item = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        place.take(fresh, keys)
        connection.send_bytes(pickle.dumps(do(task, place, keys, item.unpacked())))
