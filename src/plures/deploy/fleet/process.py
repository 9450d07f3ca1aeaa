"""A program that runs beside this one: its environment, its log, its signals, and no trace of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from plures.errors import PluresError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""What keeps Flower from calling home, from looking for updates and from installing packages while it runs."""
MARK = "PLURES_PROCESS"
POLL = 0.05
GRACE = 5.0


def quiet_environment(home: Path | None = None, threads: int = 1) -> dict[str, str]:
    """The environment of every process of Flower that plures starts.

    Args:
        home: folder for what Flower itself keeps; default: where Flower keeps it.
        threads: threads of a numerical library.

    Returns:
        This process's variables with :data:`QUIET`, and the folder of this Python's programs first in ``PATH``: Flower
        finds its own programs by name.
    """
    programs = str(Path(sys.executable).parent)
    own = QUIET | {"PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]), "PYTHONUNBUFFERED": "1"}
    if home is not None:
        own["FLWR_HOME"] = str(home)
    return {**os.environ, **own, "OMP_NUM_THREADS": str(threads)}


class Process:
    """One program with its children: started, stopped, killed, halted and continued as one.

    It is the leader of a session of its own, so that Ctrl-C in a terminal reaches only its owner. Children that leave
    the session (Flower's SuperLink detaches one) are found where ``/proc`` tells of them: by their parents, and after
    those have gone by a mark in their environment. Elsewhere they end by themselves when they miss their parent.

    Args:
        name: what it is called in messages.
        command: program and arguments.
        environment: all variables.
        log: file that its output is appended to.

    What it and its children write, and its log, only this user may read.

    ``wanted`` says that it was started and neither stopped nor killed by its owner.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.command, self.log = name, list(command), log
        self.mark = str(log.resolve())
        self.environment = {**environment, MARK: self.mark}
        self.child: subprocess.Popen[bytes] | None = None
        self.begin = 0
        self.wanted = False
        self.changing = threading.RLock()

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def start(self) -> None:
        """Start it; its output goes to the end of its log. What an owner that was killed left of it is ended first."""
        if self.alive:
            raise PluresError(f"{self.name} runs already")
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.changing, private(self.log) as out:
            self.wanted = True
            for pid in marked(self.mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.begin = out.tell()
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                umask=0o077,
            )

    def stop(self, seconds: float = GRACE) -> None:
        """Ask it to end; after some seconds, kill it. Nothing of it is left."""
        with self.changing:
            self.wanted = False
            if self.child is not None and self.alive:
                self.resume()
                self.child.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self.child.wait(seconds)
            self.kill()

    def kill(self) -> None:
        """End it and all its children at once, without a word (SIGKILL)."""
        with self.changing:
            self.wanted = False
            if self.child is None:
                return
            known = set(self.members())
            self.signal(signal.SIGKILL)
            self.child.wait()

            def left() -> set[int]:
                """Also a child that was born while the others were killed."""
                nonlocal known
                known = {pid for pid in known | set(self.members()) if lives(pid)}
                return known

            def again() -> None:
                for pid in known:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

            until(lambda: not left(), GRACE, lambda: f"{self.name} was killed, but {known} go on", again)

    def revive(self) -> None:
        """Restart it if it has ended unintentionally."""
        with self.changing:
            if self.wanted and not self.alive:
                self.start()

    def pause(self) -> None:
        """Halt it and its children where they are (SIGSTOP)."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all its children."""
        if self.child is None:
            return
        members = self.members()
        if self.alive:
            os.killpg(self.child.pid, number)
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, number)

    def members(self, command: str | None = None) -> list[int]:
        """Process ids of it and its children, as far as the system tells.

        Args:
            command: only those that run this program.
        """
        family = descendants(self.child.pid) if self.child is not None and self.alive else set()
        return [pid for pid in sorted(family | marked(self.mark)) if command is None or runs(pid, command)]

    def output(self) -> str:
        """What it has said since it was started last."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as handle:
            handle.seek(self.begin)
            return handle.read().decode("utf-8", "replace")

    def tail(self, lines: int = 15) -> str:
        """The last lines of what it has said."""
        return "\n".join(self.output().splitlines()[-lines:])

    def require(self) -> None:
        """Raise a :class:`PluresError` with the end of its log if it has ended."""
        if not self.alive:
            code = None if self.child is None else self.child.returncode
            raise PluresError(f"{self.name} has ended (exit code {code}); the end of {self.log}:\n{self.tail()}")

    def wait_for(self, words: str, seconds: float) -> None:
        """Wait until it has said some words since its start.

        Raises:
            PluresError: it ended before, or did not say them in time.
        """
        said = f"{self.name} did not say {words!r} within {seconds:g} s; the end of {self.log}:\n"
        until(lambda: words in self.output(), seconds, lambda: said + self.tail(), self.require)


def private(file: Path) -> BinaryIO:
    """A file opened for adding, which nobody but this user may read if it is new."""
    return open(file, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def until(
    done: Callable[[], bool],
    seconds: float,
    message: str | Callable[[], str],
    between: Callable[[], None] | None = None,
    poll: float = POLL,
) -> float:
    """Wait until something holds.

    Args:
        done: whether it holds.
        seconds: how long to wait for it.
        message: what to say if it did not come to hold.
        between: is called before each pause; what it raises ends the waiting.
        poll: seconds between two looks.

    Returns:
        Seconds that it took.

    Raises:
        PluresError: it does not hold in time.
    """
    start = time.monotonic()
    while not done():
        if between is not None:
            between()
        if time.monotonic() - start > seconds:
            raise PluresError(message if isinstance(message, str) else message())
        time.sleep(poll)
    return time.monotonic() - start


def marked(mark: str) -> set[int]:
    """Ids of the processes whose environment has a mark, as far as this user may see it."""
    wanted, found = f"{MARK}={mark}".encode(), set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def descendants(ancestor: int) -> set[int]:
    """Ids of a process, of its children, of theirs, and so on; empty where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent, *_ = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.name))
    found: set[int] = set()
    ahead = [ancestor] if children else []
    while ahead:
        found.add(ahead[-1])
        ahead.extend(children.get(ahead.pop(), []))
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    return False


def runs(pid: int, command: str) -> bool:
    """Whether a process runs a program of this name (of which the system keeps 15 letters)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == command[:15]
    return False
