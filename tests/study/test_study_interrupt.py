"""Signals: the first lets a round finish, a second does not, and SIGTERM waits only briefly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from study_worker import SMALL

from plures.deploy.fleet.process import descendants, lives, until
from plures.run.interrupt import Interrupt, ending, rest


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal; its handler must be the same afterwards as before."""
    before = signal.getsignal(request.param)
    yield request.param
    assert signal.getsignal(request.param) is before


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_the_first_signal_is_noted_and_the_second_ends(number: signal.Signals) -> None:
    with Interrupt() as interrupt:
        send(number)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            send(number)


def test_sigterm_is_not_waited_for_long() -> None:
    begin = time.monotonic()
    with Interrupt(grace=0.3):
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(60)
    assert time.monotonic() - begin < 60
    with Interrupt(grace=0.2) as interrupt:
        send(signal.SIGTERM)
    time.sleep(0.4)  # what has ended in time is left alone
    assert interrupt.asked


def test_a_server_notes_its_end_and_leaves_the_signal_to_who_handled_it_before(number: signal.Signals) -> None:
    told: list[object] = []

    def before(heard: int, frame: FrameType | None) -> None:
        told.append(heard)
        raise SystemExit(3)

    def noted() -> None:
        with ending():
            try:
                send(number)
            except KeyboardInterrupt:
                told.append("noted")
                raise

    def impatient() -> None:
        with ending():
            try:
                send(number)
            finally:
                send(number)
                told.append("never")

    original = signal.signal(number, before)
    try:
        with pytest.raises(SystemExit, match="3"):
            noted()
        with pytest.raises(SystemExit, match="3"):
            impatient()
        assert told == ["noted", number, number]
    finally:
        signal.signal(number, original)


def test_a_wait_hears_of_a_signal_that_a_thread_got() -> None:
    """As Flower's thread that watches a task's parent raises it."""
    begin = time.monotonic()
    threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
    with pytest.raises(KeyboardInterrupt):
        rest(30)
    assert time.monotonic() - begin < 30


def test_a_study_of_several_processes_ends_on_sigterm_and_goes_on(tmp_path: Path) -> None:
    file, out = tmp_path / "study.toml", tmp_path / "out"
    file.write_text(SMALL.replace("rounds = 6", "rounds = 200000"))
    words = [sys.executable, "-m", "plures.cli", "study", str(file), "--out", str(out), "--processes", "2"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until(lambda: len(descendants(process.pid)) > 1 and any(out.rglob("study.db-wal")), 60, "no helper")
        time.sleep(3)
        family, begin = descendants(process.pid), time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(12) == 130
        assert time.monotonic() - begin < 11
        assert [pid for pid in family if lives(pid)] == []
    finally:
        process.kill()
        process.wait()
