"""Programs that are forked from a process that has loaded their modules, instead of loading them each for themselves.

A federation on one machine is ten or more processes. Loading torch, Flower and plures takes each of them seconds of
processor time. A fork server loads them once, has no thread, and forks a child for each program.

A child is not its owner's child but the server's, so the server tells the owner its id, and its exit code when it has
ended. Everything else is as of a program that was started in the usual way: it leads its own session, if wanted, has
its own environment, log and umask, and none of the server's files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

POSSIBLE = hasattr(os, "fork") and Path("/proc/self/fd").exists()
"""Whether this system has forks, and shows which processes belong to which program."""


@dataclass(frozen=True)
class Wanted:
    """A program that a fork server is asked for.

    Attributes:
        words: its name and arguments, in the server's own terms.
        environment: all environment variables.
        session: whether it leads its own session.
        secret: hexadecimal digits of a secret that it is given.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    session: bool
    secret: str = ""


class Child:
    """A forked program. Its methods are those of :class:`subprocess.Popen`.

    Args:
        pid: its process's id.
        ended: where its exit code arrives.
    """

    def __init__(self, pid: int, ended: Connection[Any, Any]) -> None:
        self.pid, self.ended = pid, ended
        self.returncode: int | None = None
        self.reading = threading.Lock()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit code: minus a signal's number if a signal ended it.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        while self.returncode is None:
            if self.ended.poll(timeout):
                self.read()
            elif timeout is not None:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code; ``None`` if it has not ended."""
        if self.returncode is None and self.ended.poll():
            self.read()
        return self.returncode

    def read(self) -> None:
        """Take the exit code that has arrived. A server that was killed tells none, and its programs are killed too."""
        with self.reading:
            if self.returncode is None:
                try:
                    self.returncode = int(self.ended.recv_bytes())
                except EOFError:
                    self.returncode = -signal.SIGKILL

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class Forks:
    """A fork server, as its owner sees it.

    Args:
        line: connection to the server. It ends when the connection is closed.
    """

    def __init__(self, line: Connection[Any, Any]) -> None:
        self.line, self.asking = line, threading.Lock()

    def fork(self, wanted: Wanted, out: int) -> Child:
        """Fork a program.

        Args:
            wanted: the program.
            out: descriptor of the file to which its output is written.

        Raises:
            EOFError: the server has ended.
        """
        told, tells = Pipe(duplex=False)
        with self.asking, tells:
            try:
                self.line.send_bytes(json.dumps(asdict(wanted)).encode())
                send_handle(self.line, out, os.getpid())
                send_handle(self.line, tells.fileno(), os.getpid())
                return Child(int(self.line.recv_bytes()), told)
            except OSError as error:
                raise EOFError("the fork server has ended") from error
            except BaseException:  # its answer would be taken for that to the next question
                self.line.close()
                raise

    def begin(self, words: Sequence[str], session: bool, secret: str) -> Child:
        """Fork a program with this process's environment, which writes where this process does."""
        return self.fork(Wanted(tuple(words), dict(os.environ), session, secret), 1)


def serve(line: Connection[Any, Any], run: Callable[[Wanted], int]) -> None:
    """Fork programs as asked, until the owner has closed the connection or has ended; then ask them to end.

    Args:
        line: connection to the owner.
        run: runs a program in this process, a forked one, and returns its exit code.
    """
    running: dict[int, Connection[Any, Any]] = {}

    def reap(*_: object) -> None:
        """Tell the exit codes of children that have ended."""
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                with running.pop(child) as owner:
                    tell(owner, os.waitstatus_to_exitcode(status))

    signal.signal(signal.SIGCHLD, reap)
    while True:
        try:
            wanted = Wanted(**json.loads(line.recv_bytes()))
            out, tells = recv_handle(line), Connection(recv_handle(line), readable=False)
        except (EOFError, OSError):
            break
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # no child ends before it is known
        begun, begins = os.pipe()
        child = os.fork()
        if child == 0:
            for other in (line, tells, *running.values()):
                other.close()
            os.close(begun)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            become(wanted, out)
            os.close(begins)
            os._exit(run(wanted))
        os.close(begins)
        os.close(out)
        os.read(begun, 1)  # its end: the child leads its session, or has ended
        os.close(begun)
        running[child] = tells
        tell(line, child)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for child in list(running):
        os.kill(child, signal.SIGTERM)


def become(wanted: Wanted, out: int) -> None:
    """Make this process, a forked one, the program's: its session, input, output and environment."""
    if wanted.session:
        os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, place in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(file, place)
    for file in {nothing, out} - {0, 1, 2}:
        os.close(file)
    os.environ.clear()
    os.environ.update(wanted.environment)


def tell(line: Connection[Any, Any], number: int) -> None:
    """Send a number to an owner, unless it has ended."""
    try:
        line.send_bytes(str(number).encode())
    except OSError:
        return


def beside(run: Callable[[Wanted], int]) -> Forks:
    """Fork a fork server from this process, which must not have any thread yet: for programs that it will start.

    The server ends with this process.
    """
    here, there = Pipe()
    if os.fork() == 0:
        here.close()
        try:
            serve(there, run)
        finally:
            os._exit(0)
    there.close()
    return Forks(here)
