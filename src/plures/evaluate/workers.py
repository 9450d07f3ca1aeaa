"""The runs of a comparison in several processes of this machine, side by side."""

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
from plures.run.pool import Workers, end, launch

J = TypeVar("J")
A = TypeVar("A")
J_contra = TypeVar("J_contra", contravariant=True)
A_co = TypeVar("A_co", covariant=True)

Tell = Callable[[str, str, Point | None, int, int, bool], None]
"""Where a job stands: method, stage, point, rounds of the run, rounds done just now, whether the run has ended."""


class JobRunner(Protocol[J_contra, A_co]):
    """Does jobs, one at a time. A copy of it does the same in another process."""

    tell: Tell
    callbacks: Sequence[Callback]

    def do(self, job: J_contra) -> A_co: ...

    def travelling(self) -> JobRunner[J_contra, A_co]:
        """A copy that knows nothing of who listens in this process."""
        ...


class ForwardingCallback(Callback):
    """Sends what happens in a run to the first process, and ends the run after its round when that one asks or is gone.

    Args:
        connection: the way to the first process.
        send: sends there.
        heard: whether anybody there wants to know what happens.
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
    """Jobs in several processes, which end with the last job, with the first error, or after Ctrl-C.

    After Ctrl-C each process finishes its round and writes its checkpoint; a second Ctrl-C ends them at once.

    Args:
        runner: does the jobs; a copy of it travels to each process.
        count: processes.
    """

    def __init__(self, runner: JobRunner[J, A], count: int) -> None:
        self.runner, self.count = runner, count
        self._events: dict[Connection, list[tuple[str, Any]]] = {}

    def __call__(self, jobs: deque[J], finished: Callable[[J, A], None]) -> None:
        """Do all jobs.

        Args:
            jobs: what is to be done, in this order.
            finished: called for each job and its result; may add jobs.
        """
        workers: Workers = {}
        tidy = Finalize(self, end, (workers,), exitpriority=0)
        try:
            self._start(workers, len(jobs))
            self._work(workers, jobs, finished)
        finally:
            tidy()

    def _start(self, workers: Workers, jobs: int) -> None:
        dumps = needed("cloudpickle", "processes=...", "pool").dumps
        threads, heard = max(1, torch.get_num_threads() // self.count), bool(self.runner.callbacks)
        try:
            what = dumps((self.runner.travelling(), threads, heard))
        except (TypeError, pickle.PicklingError) as error:
            raise PluresError(
                f"processes={self.count}: the comparison cannot be sent to other processes ({error}): name data, "
                "network and methods, or take processes=1"
            ) from error
        launch(workers, min(self.count, jobs), serve, what)

    def _work(self, workers: Workers, jobs: deque[J], finished: Callable[[J, A], None]) -> None:
        free, busy = deque(workers), dict[Connection, J]()
        try:
            while jobs or busy:
                while free and jobs:
                    connection, job = free.popleft(), jobs.popleft()
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
        """What a process says before its job is done."""
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
        """Tell the callbacks of a run that has ended, for they hear of one run after the other."""
        callbacks = Callbacks(self.runner.callbacks)
        for name, content in self._events[connection]:
            getattr(callbacks, name)(content)
        self._events[connection] = []
        if callbacks.asked:
            raise KeyboardInterrupt

    def _stop(self, busy: dict[Connection, J]) -> None:
        """Let each process finish its round."""
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
        """A context in which a connection that has broken off means that its process has died."""
        try:
            yield
        except (EOFError, OSError) as error:
            by_sentinel = {process.sentinel: process for process in workers.values()}
            for sentinel in wait(list(by_sentinel), 5.0):  # what it had open is closed before it has ended
                by_sentinel[sentinel].join(5.0)  # type: ignore[index]
            raise PluresError(
                f"a process of the comparison ended (exit codes {end(workers)}); the same command resumes: take fewer "
                "processes if memory ran out, and let a script start its work under: if __name__ == '__main__'"
            ) from error


def serve(connection: Connection) -> None:
    """What a process does: the jobs that it is sent, until the other side is gone.

    Ctrl-C reaches it through the first process alone, after which it ends its run as one process would.
    """
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    dumps = needed("cloudpickle", "processes=...", "pool").dumps

    def send(kind: str, content: Any) -> None:
        with suppress(BrokenPipeError):  # the other side is gone, and the run ends with this round
            connection.send_bytes(dumps((kind, content)))

    warnings.simplefilter("always", PluresWarning)
    shown = warnings.showwarning

    def note(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, PluresWarning):
            send("note", str(message))
        else:
            shown(message, category, *rest, **more)

    warnings.showwarning = note
    runner, threads, heard = pickle.loads(connection.recv_bytes())
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
            send("failed", PluresError(str(error)))  # a class of the user's own may not travel
        except Exception:
            send("failed", RuntimeError(traceback.format_exc()))
