"""A fork server: what it forks is like a program that was started in the usual way, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path

import pytest
from fleet import LATE

from plures.deploy.fleet import forks
from plures.deploy.fleet.forks import POSSIBLE, Child, Forks, Wanted
from plures.deploy.fleet.forkserver import ForkServer
from plures.deploy.fleet.process import Process, lives, marked, spawned, until
from plures.errors import PluresError

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="this system has no forks")

SERVER = """
import json, os, signal, sys, time
from multiprocessing.connection import Connection
sys.path.insert(0, sys.argv[1])
from forks import beside, serve

def run(wanted):
    print("begun", flush=True)
    name, *rest = wanted.words
    if name == "exit":
        return int(rest[0])
    if name == "tell":
        open_ = sorted(os.listdir("/proc/self/fd"), key=int)
        where = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in open_ if os.path.exists(f"/proc/self/fd/{fd}")}
        told = {"environment": dict(os.environ), "leads": os.getsid(0) == os.getpid(), "files": where}
        print(json.dumps(told | {"secret": wanted.secret, "group": os.getpgrp()}), flush=True)
        return 0
    if name == "starts":
        forks = beside(run)  # ends when this name does
        child = forks.begin(["sleep"], False, "")
        print(child.pid, flush=True)
    time.sleep(600)

os.umask(0o077)
serve(Connection(os.dup(0)), run)
"""


@dataclass
class Running:
    """A fork server that loads nothing, also not the rest of plures, and the file to which what it forks writes."""

    server: subprocess.Popen[bytes]
    forks: Forks
    log: Path

    def fork(self, *words: str, **wanted: object) -> Child:
        with self.log.open("ab") as out:
            asked = Wanted(words, wanted.pop("environment", {"A": "b"}), bool(wanted.pop("session", True)), **wanted)
            return self.forks.fork(asked, out.fileno())

    def lines(self, least: int) -> list[str]:
        """The lines that were written, once there are some."""
        until(lambda: len(self.log.read_text().splitlines()) >= least, LATE, self.log.read_text)
        return self.log.read_text().splitlines()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    words, (here, there) = [sys.executable, "-c", SERVER], Pipe()
    with here, there, subprocess.Popen([*words, str(Path(forks.__file__).parent)], stdin=there.fileno()) as server:
        there.close()
        yield Running(server, Forks(here), tmp_path / "log")
        here.close()
        server.wait(LATE)
        until(lambda: not marked(str(tmp_path / "log")), LATE, "a test leaves programs behind")


def test_an_exit_code_is_that_of_the_program(running: Running) -> None:
    children = [running.fork("exit", str(number)) for number in (0, 1, 7)]
    assert [child.wait(LATE) for child in children] == [0, 1, 7]
    assert [child.poll() for child in children] == [0, 1, 7]
    sleeps = running.fork("sleep")
    assert sleeps.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        sleeps.wait(0.01)
    threads = [threading.Thread(target=sleeps.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    sleeps.terminate()
    assert sleeps.wait(LATE) == -signal.SIGTERM
    for thread in threads:
        thread.join(LATE)
        assert not thread.is_alive()
    assert not lives(sleeps.pid)
    sleeps.terminate()  # the id may be another process's now


def test_a_program_has_its_own_environment_session_files_and_input(running: Running) -> None:
    running.fork("sleep")
    assert running.fork("tell", environment={"NAME": "ü\udcff"}, secret="0a").wait(LATE) == 0
    led = json.loads(running.lines(3)[-1])
    assert (led["environment"], led["leads"], led["secret"]) == ({"NAME": "ü\udcff"}, True, "0a")
    files = {place: file for place, file in led["files"].items() if not file.endswith("/fd")}
    assert files.pop("0") == os.devnull
    assert {files.pop("1"), files.pop("2")} == {str(running.log)}
    sockets = [file for file in files.values() if not file.startswith("/dev/")]
    assert len(sockets) <= 1, "but the pipe of its own start, it has no file of the server's"
    assert running.fork("tell", session=False).wait(LATE) == 0
    assert json.loads(running.lines(5)[-1])["leads"] is False


def test_what_it_has_forked_ends_with_its_owner(running: Running) -> None:
    child = running.fork("starts")
    inner = int(next(line for line in running.lines(3) if line.isdigit()))
    assert {child.pid, inner} <= marked(str(running.log))
    running.forks.line.close()
    assert running.server.wait(LATE) == 0
    until(lambda: not any(map(lives, (child.pid, inner))), LATE, "what was forked goes on")
    with pytest.raises(EOFError, match="the fork server has ended"):
        running.fork("exit", "0")


def test_a_program_that_is_killed_takes_its_own_fork_server_along(running: Running) -> None:
    child = running.fork("starts")
    inner = int(next(line for line in running.lines(3) if line.isdigit()))
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(LATE) == -signal.SIGKILL
    until(lambda: not marked(str(running.log)) and not lives(inner), LATE, "what was forked goes on")


def test_a_killed_server_is_noticed(running: Running) -> None:
    child = running.fork("sleep")
    running.server.kill()
    assert child.wait(LATE) == -signal.SIGKILL
    os.kill(child.pid, signal.SIGKILL)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = ForkServer([], {**os.environ, "PYTHONPATH": str(tmp_path)}, tmp_path / "logs" / "forks.log")
    (tmp_path / "torch.py").write_text("raise SystemExit('no torch here')")
    one = Process("one", server.process.command, dict(os.environ), tmp_path / "logs" / "one.log", server.launch)
    other = server.launch([sys.executable, "-c", "raise SystemExit(9)"], dict(os.environ), (tmp_path / "x").open("wb"))
    assert other.wait(LATE) == 9, "a command that is no program of Flower's needs no server"
    with pytest.raises(PluresError, match=r"the process that forks all others has ended; .*forks\.log:\nno torch here"):
        one.start()
    assert not one.alive


def test_what_a_killed_owner_left_is_found_by_its_log(running: Running, tmp_path: Path) -> None:
    child = running.fork("sleep")
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    again = Process("one", words, dict(os.environ), running.log, spawned)
    again.start()
    try:
        assert child.wait(LATE) == -signal.SIGKILL
    finally:
        again.kill()
