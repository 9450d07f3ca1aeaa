"""Runs of a comparison in several parallel processes of this machine."""

from __future__ import annotations

import pickle
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any, Generic, Protocol, TypeVar

import torch

from plures.errors import PluresError, PluresWarning
from plures.evaluate.callback import About, Callback, Callbacks
from plures.evaluate.results import Point, SeedResult
from plures.extras import needed
from plures.run.coordinator import RoundRecord
from plures.run.interrupt import NUMBERS
from plures.run.packed import pack
from plures.run.processes import Workers, end, launch

J = TypeVar("J")
A = TypeVar("A")
J_contra = TypeVar("J_contra", contravariant=True)
A_co = TypeVar("A_co", covariant=True)

Tell = Callable[[str, str, Point | None, int, int, bool], None]
"""Reports a job's progress: method, stage, point, rounds of the run, rounds done just now, whether the run ended."""


class JobRunner(Protocol[J_contra, A_co]):
    """Runs jobs one at a time. Copies of it run jobs in other processes."""

    tell: Tell
    callbacks: Sequence[Callback]

    def do(self, job: J_contra) -> A_co: ...

    def travelling(self) -> JobRunner[J_contra, A_co]:
        """A copy without this process's listeners, to be sent to another process."""
        ...


class ForwardingCallback(Callback):
    """Sends a run's events to the main process, and ends the run after its round when that process asks or is gone.

    Args:
        connection: connection to the main process.
        send: sends a message there.
        heard: whether the main process has callbacks for the events.
    """

    def __init__(self, connection: Connection, send: Callable[[str, Any], None], heard: bool) -> None:
        self.connection, self.send, self.heard = connection, send, heard

    def on_start(self, about: About) -> None:
        self._tell("on_start", about)

    def on_round(self, record: RoundRecord) -> None:
        self._tell("on_round", record)
        if self.connection.poll():
            raise KeyboardInterrupt

    def on_point(self, point: Point) -> None:
        self._tell("on_point", point)

    def on_end(self, result: SeedResult | None) -> None:
        self._tell("on_end", result)

    def on_stop(self, reason: BaseException) -> None:
        known = isinstance(reason, KeyboardInterrupt)
        self._tell("on_stop", KeyboardInterrupt() if known else PluresError(str(reason)))

    def _tell(self, event: str, content: Any) -> None:
        if self.heard:
            self.send("event", (event, content))


class SideBySide(Generic[J, A]):
    """Runs jobs in several processes, which end after the last job, the first error, or Ctrl-C.

    After Ctrl-C, each process finishes its round and writes its checkpoint; a second Ctrl-C ends them at once.

    Args:
        runner: runs the jobs; a copy of it is sent to each process.
        count: number of processes.
        choose: ``(waiting, before) -> place`` of the waiting job that a process should do next, after those that it has
            done before.
    """

    def __init__(self, runner: JobRunner[J, A], count: int, choose: Callable[[Sequence[J], Sequence[J]], int]) -> None:
        self.runner, self.count, self.choose = runner, count, choose
        self._events: dict[Connection, list[tuple[str, Any]]] = {}

    def __call__(self, jobs: deque[J], finished: Callable[[J, A], None]) -> None:
        """Run all jobs.

        Args:
            jobs: the jobs.
            finished: called with each job and its result; may add jobs.

        Raises:
            PluresError: if the runner cannot be sent to other processes, a job fails, or a process dies.
        """
        workers: Workers = {}
        tidy = Finalize(self, end, (workers,), exitpriority=0)
        try:
            self._start(workers, len(jobs))
            self._work(workers, jobs, finished)
        finally:
            tidy()

    def _start(self, workers: Workers, jobs: int) -> None:
        threads, heard = max(1, torch.get_num_threads() // self.count), bool(self.runner.callbacks)
        runner = pack((self.runner.travelling(), threads, heard), f"processes={self.count}", "pool", "the comparison")
        launch(workers, min(self.count, jobs), serve, pickle.dumps(runner))

    def _work(self, workers: Workers, jobs: deque[J], finished: Callable[[J, A], None]) -> None:
        free, busy = deque(workers), dict[Connection, J]()
        before: dict[Connection, list[J]] = {connection: [] for connection in workers}
        try:
            while jobs or busy:
                while free and jobs:
                    connection = free.popleft()
                    place = self.choose(jobs, before[connection])
                    job = jobs[place]
                    del jobs[place]
                    before[connection].append(job)
                    self._events[connection] = []
                    with self._living(workers):
                        connection.send_bytes(pickle.dumps(job))
                    busy[connection] = job
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    with self._living(workers):
                        said = ready.recv_bytes()
                    kind, content = pickle.loads(said)
                    if kind == "done":
                        self._replay(ready)
                        finished(busy.pop(ready), content)
                        free.append(ready)
                    else:
                        self._hear(ready, kind, content)
        except KeyboardInterrupt:
            self._stop(busy)
            raise

    def _hear(self, connection: Connection, kind: str, content: Any) -> None:
        """Handle a message that a process sends before its job is done."""
        match kind:
            case "progress":
                self.runner.tell(*content)
            case "event":
                self._events[connection].append(content)
                if content[0] in ("on_end", "on_stop"):
                    self._replay(connection)
            case "note":
                warnings.warn(content, PluresWarning, stacklevel=2)
            case "stopped":
                raise KeyboardInterrupt
            case "failed":
                raise content

    def _replay(self, connection: Connection) -> None:
        """Pass the events of a finished run to the callbacks, which must see one run after the other."""
        callbacks = Callbacks(self.runner.callbacks)
        for name, content in self._events[connection]:
            getattr(callbacks, name)(content)
        self._events[connection] = []
        if callbacks.asked:
            raise KeyboardInterrupt

    def _stop(self, busy: dict[Connection, J]) -> None:
        """Ask each process to stop, and wait until it has finished its round."""
        for connection in busy:
            connection.send_bytes(b"")
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                try:
                    kind, content = pickle.loads(ready.recv_bytes())
                except (EOFError, OSError):
                    kind, content = "stopped", None
                if kind in ("stopped", "done", "failed"):
                    del busy[ready]
                elif kind == "event":
                    with suppress(KeyboardInterrupt):
                        self._hear(ready, kind, content)

    @contextmanager
    def _living(self, workers: Workers) -> Iterator[None]:
        """A context in which a broken connection means that its process has died.

        Raises:
            PluresError: if a connection is broken.
        """
        try:
            yield
        except (EOFError, OSError) as error:
            by_sentinel = {process.sentinel: process for process in workers.values()}
            for sentinel in wait(list(by_sentinel), 5.0):  # a process closes its connections before it has ended
                by_sentinel[sentinel].join(5.0)  # type: ignore[index]
            raise PluresError(
                f"a process of the comparison ended (exit codes {end(workers)}); the same command resumes: use fewer "
                "processes if memory ran out, and let a script start its work under: if __name__ == '__main__'"
            ) from error


def serve(connection: Connection) -> None:
    """Main function of a worker process: runs the jobs that it receives until the main process is gone.

    It ignores Ctrl-C itself; the main process passes it on, and the worker then ends its run as a single process would.
    """
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    dumps = needed("cloudpickle", "processes=...", "pool").dumps

    def send(kind: str, content: Any) -> None:
        with suppress(BrokenPipeError):  # the main process is gone, and the run ends with this round
            connection.send_bytes(dumps((kind, content)))

    warnings.simplefilter("always", PluresWarning)
    shown = warnings.showwarning

    def note(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, PluresWarning):
            send("note", str(message))
        else:
            shown(message, category, *rest, **more)

    warnings.showwarning = note
    runner, threads, heard = pickle.loads(connection.recv_bytes()).unpacked()
    torch.set_num_threads(threads)
    runner.callbacks = [ForwardingCallback(connection, send, heard)]
    runner.tell = lambda *content: send("progress", content)
    while True:
        try:
            job = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            send("done", runner.do(job))
        except KeyboardInterrupt:
            send("stopped", None)
            return
        except PluresError as error:
            send("failed", PluresError(str(error)))  # a user-defined exception class may not be picklable
        except Exception:
            send("failed", RuntimeError(traceback.format_exc()))
