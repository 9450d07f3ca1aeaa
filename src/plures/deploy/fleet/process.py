"""Child processes: environment, log and signals, with no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from plures.errors import PluresError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Keeps Flower from sending telemetry, looking for updates and installing packages while it runs."""
MARK = "PLURES_PROCESS"
POLL = 0.05
GRACE = 5.0


def quiet_environment(home: Path | None = None, threads: int = 1) -> dict[str, str]:
    """The environment of every process of Flower that plures starts.

    Args:
        home: folder for Flower's own files; default: Flower's default.
        threads: number of threads of numerical libraries.

    Returns:
        This process's variables with :data:`QUIET`, and with the folder of this Python's programs first in ``PATH``,
        because Flower finds its own programs by name.
    """
    programs = str(Path(sys.executable).parent)
    own = QUIET | {"PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]), "PYTHONUNBUFFERED": "1"}
    if home is not None:
        own["FLWR_HOME"] = str(home)
    return {**os.environ, **own, "OMP_NUM_THREADS": str(threads)}


class Started(Protocol):
    """A process that was started, as :class:`subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...


Launch = Callable[[Sequence[str], Mapping[str, str], BinaryIO], Started]
"""``launch(words, environment, out)``: start a program as the leader of its own session, which writes to ``out``."""


def spawned(words: Sequence[str], environment: Mapping[str, str], out: BinaryIO, stdin: int | None = None) -> Started:
    """Start a program as the leader of its own session.

    Args:
        words: program and arguments.
        environment: all environment variables.
        out: file that its output is written to.
        stdin: descriptor that it reads; default: nothing.
    """
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=out,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        umask=0o077,
    )


class Process:
    """A program and its children, which are started, stopped, killed, paused and resumed together.

    It leads its own session, so that Ctrl-C in a terminal reaches only its owner. Children that leave the session
    (Flower's SuperLink detaches one) are found through ``/proc``: by their parents, or once those have ended by a mark
    in their environment or because they write to its log. On systems without ``/proc``, they end by themselves when
    they notice that their parent is gone.

    Its log, and all files that it and its children write, are readable only by this user.

    Args:
        name: name in messages.
        command: program and arguments.
        environment: all environment variables.
        log: file to which its output is appended.
        launch: starts it.

    Attributes:
        wanted: whether it was started and its owner has neither stopped nor killed it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        launch: Launch = spawned,
    ) -> None:
        self.name, self.command, self.log, self.launch = name, list(command), log, launch
        self.mark = str(log.resolve())
        self.environment = {**environment, MARK: self.mark}
        self.child: Started | None = None
        self.begin = 0
        self.wanted = False
        self.changing = threading.RLock()

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def start(self) -> None:
        """Start the program; its output is appended to its log. First kills processes that a killed owner left behind.

        Raises:
            PluresError: it is running already.
        """
        if self.alive:
            raise PluresError(f"{self.name} is running already")
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.changing, private(self.log) as out:
            self.wanted = True
            for pid in marked(self.mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.begin = out.tell()
            self.child = self.launch(self.command, self.environment, out)

    def stop(self, seconds: float = GRACE) -> None:
        """Ask it to end, and kill it after some seconds. None of its children is left."""
        with self.changing:
            self.wanted = False
            known = set(self.members())
            if self.child is not None and self.alive:
                self.resume()
                self.child.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self.child.wait(seconds)
            self.kill(known)

    def kill(self, family: Iterable[int] = ()) -> None:
        """Kill it and all its children at once (SIGKILL).

        Args:
            family: ids of children that may no longer be found, because their parents have ended and their environment
                says nothing (nginx overwrites its own).
        """
        with self.changing:
            self.wanted = False
            if self.child is None:
                return
            known = {*family, *self.members()}
            self.signal(signal.SIGKILL)
            self.child.wait()

            def left() -> set[int]:
                """Processes still alive, including children started while the others were killed."""
                nonlocal known
                known = {pid for pid in known | set(self.members()) if lives(pid)}
                return known

            def again() -> None:
                for pid in known:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

            until(lambda: not left(), GRACE, lambda: f"{self.name} was killed, but {known} still run", again)

    def revive(self) -> None:
        """Restart it if it has ended unintentionally."""
        with self.changing:
            if self.wanted and not self.alive:
                self.start()

    def pause(self) -> None:
        """Pause it and its children (SIGSTOP)."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume it and its children (SIGCONT)."""
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
        """Ids of its process and its children's, as far as they can be found.

        Args:
            command: only processes that run this program.
        """
        family = descendants(self.child.pid) if self.child is not None and self.alive else set()
        return [pid for pid in sorted(family | marked(self.mark)) if command is None or runs(pid, command)]

    def output(self) -> str:
        """Its output since it was last started."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as handle:
            handle.seek(self.begin)
            return handle.read().decode("utf-8", "replace")

    def tail(self, lines: int = 15) -> str:
        """The last lines of its output."""
        return "\n".join(self.output().splitlines()[-lines:])

    def require(self) -> None:
        """Check that it is running.

        Raises:
            PluresError: it has ended; the message contains the end of its log.
        """
        if not self.alive:
            code = None if self.child is None else self.child.returncode
            raise PluresError(f"{self.name} has ended (exit code {code}); the end of {self.log}:\n{self.tail()}")

    def wait_for(self, words: str, seconds: float) -> None:
        """Wait until its output since its start contains some words.

        Raises:
            PluresError: it ended before, or did not print them in time.
        """
        said = f"{self.name} did not say {words!r} within {seconds:g} s; the end of {self.log}:\n"
        until(lambda: words in self.output(), seconds, lambda: said + self.tail(), self.require)


def private(file: Path) -> BinaryIO:
    """Open a file for appending; a new file is readable only by this user."""
    return open(file, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def until(
    done: Callable[[], bool],
    seconds: float,
    message: str | Callable[[], str],
    between: Callable[[], None] | None = None,
    poll: float = POLL,
) -> float:
    """Wait until a condition holds.

    Args:
        done: whether it holds.
        seconds: longest time to wait.
        message: message of the error if it does not hold in time.
        between: called before each pause; an error that it raises ends the waiting.
        poll: seconds between two checks.

    Returns:
        Seconds that it took.

    Raises:
        PluresError: the condition did not hold in time.
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
    """Ids of the processes with a mark in their environment, or that write to the file of this name.

    The system shows the environment with which a program was started, not that of a fork.
    """
    wanted, found = f"{MARK}={mark}".encode(), set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if wanted in variables or os.readlink(entry / "fd" / "1") == mark:
                found.add(int(entry.name))
    return found


def descendants(ancestor: int) -> set[int]:
    """Ids of a process and all its descendants; empty on systems without ``/proc``."""
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
    """Whether a process exists and has not ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    return False


def runs(pid: int, command: str) -> bool:
    """Whether a process runs a program of this name. The system stores only its first 15 characters."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == command[:15]
    return False
