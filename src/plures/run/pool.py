"""A pool of processes on this machine, each of which trains a chunk of the cohort at a time."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch

from plures.errors import PluresError
from plures.extras import needed
from plures.method import BlockState
from plures.run.coordinator import Coordinator, Values, Work
from plures.run.engine import Engine
from plures.run.interrupt import NUMBERS
from plures.run.local import Local
from plures.run.store import ClientStore
from plures.run.uploads import Answer

Visited = tuple[Answer, Values]
Workers = dict[Connection, BaseProcess]
"""The processes of a pool, by their connections."""
AHEAD = 2
"""Number of chunks per process that may be trained ahead of their turn and wait in memory."""


class GoneError(Exception):
    """A process of a pool has ended. Any other ``OSError`` in a round is reported unchanged."""


@contextmanager
def reaching() -> Iterator[None]:
    """A context for sending to a process or receiving from it; a broken connection raises :class:`GoneError`."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise GoneError from error


class Pool(Local):
    """Clients whose data is in this process and whose visits run in other processes: ``Execution(processes=2)``.

    Chunks, batches and the order of sums are those of a single process, whichever process finishes first. The clients'
    state stays in this process, which also does everything outside a round's visits; so checkpoints do not depend on
    the pool. The processes start with the first round and share the threads of this one. They end with the last round,
    with :func:`~plures.fit` or the run, or when one of them dies. The processes of a round that fails are not used
    again.
    """

    workers: Workers | None = None

    def close(self) -> None:
        end(self.workers or {})
        self.workers = None

    def work(self, run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]) -> Work:
        return Work(clients, self._visits(run, self.chunks(clients), server), server)

    def _visits(
        self, run: Coordinator[Any], chunks: list[list[int]], server: Mapping[str, BlockState]
    ) -> Iterator[Visited]:
        """The visits of some chunks, in their order."""
        workers, self.workers = self.workers, None
        try:
            if workers is None:
                workers = {}
                Finalize(self, end, (workers,), exitpriority=0)
                start(run, workers)
            yield from visits(workers, run, chunks, server)
        except BaseException as error:
            codes = end(workers or {})
            if isinstance(error, GoneError):
                raise PluresError(
                    f"round {run.round + 1}: a process of the pool ended (exit codes {codes}); use fewer processes if "
                    "memory ran out, and let a script start its work under: if __name__ == '__main__'"
                ) from error
            raise
        if run.round + 1 == run.training.rounds:
            end(workers)
        else:
            self.workers = workers


def start(run: Coordinator[Any], workers: Workers) -> None:
    """Start the processes of a pool, each with a coordinator of the same origin, and add them to ``workers``."""
    execution = replace(run.execution, processes=1, clients_on_disk=None)
    threads = max(1, torch.get_num_threads() // run.execution.processes)
    facts = run.origin, run.federation, run.setting, run.training, execution, threads
    what = packed(facts, run.execution.processes, "the run")
    launch(workers, run.execution.processes, serve, what)


def packed(what: object, processes: int, called: str) -> bytes:
    """Serialize what is sent to other processes: definitions in a script or notebook by value, the rest by name.

    Raises:
        PluresError: if cloudpickle is missing, or if a part cannot leave this process.
    """
    dumps = needed("cloudpickle", "processes=...", "pool").dumps
    try:
        return bytes(dumps(what))
    except Exception as error:  # a user's class may raise anything when it is pickled
        raise PluresError(
            f"processes={processes}: {called} cannot be sent to other processes ({type(error).__name__}: {error}): "
            "give data, network and methods by name, create what cannot be sent inside the function that uses it, or "
            "use processes=1"
        ) from error


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


def visits(
    workers: Workers, run: Coordinator[Any], chunks: list[list[int]], server: Mapping[str, BlockState]
) -> Iterator[Visited]:
    """The results of chunks of clients, in the order of the chunks, whichever process finishes first."""
    state = pickle.dumps((run.round, run.last, run.server, dict(server)))
    fresh, free = set(workers), deque(workers)
    busy: dict[Connection, int] = {}
    done: dict[int, Visited] = {}
    for turn in range(len(chunks)):
        while turn not in done:
            most = min(len(chunks), turn + AHEAD * len(workers))
            while free and (number := len(done) + len(busy) + turn) < most:
                connection = free.popleft()
                rows = {leaf: run.store.get(leaf, chunks[number]) for leaf in run.stored_leaves()}
                asked = pickle.dumps((state if connection in fresh else None, chunks[number], rows))
                with reaching():
                    connection.send_bytes(asked)
                fresh.discard(connection)
                busy[connection] = number
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                with reaching():
                    received = ready.recv_bytes()
                answer = pickle.loads(received)
                if isinstance(answer, Exception):
                    raise answer
                done[busy.pop(ready)] = answer
                free.append(ready)
        yield done.pop(turn)


def serve(connection: Connection) -> None:
    """Main function of a pool's process: trains the clients that it is sent, until the main process is gone.

    Only the process that started it ends it; on Ctrl-C, that process first finishes its round.
    """
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    origin, federation, setting, training, execution, threads = pickle.loads(connection.recv_bytes())
    torch.set_num_threads(threads)
    known = origin.bound.verdicts.values()
    origin.bound.verdicts = {tuple(map(id, parts)): (parts, found) for parts, found in known}
    clients = Local(Engine(origin.bound, federation, training, execution, origin.seed))
    run = Coordinator(origin, clients, federation, setting, training, execution)
    initial = {leaf: origin.bound.initial[leaf.slot][leaf.path] for leaf in run.stored_leaves()}
    server: Mapping[str, BlockState] = {}
    while True:
        try:
            state, chunk, rows = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        if state is not None:
            run.round, run.last, run.server, server = pickle.loads(state)
            run.store = ClientStore(initial, len(federation))
        run.commit(chunk, rows)
        try:
            answer: Visited | Exception = clients.visit(run, chunk, server)
        except PluresError as error:
            answer = PluresError(str(error))  # a subclass of the user's may not be picklable
        except Exception as error:
            answer = RuntimeError("".join(traceback.format_exception(error)))
        connection.send_bytes(pickle.dumps(answer))
