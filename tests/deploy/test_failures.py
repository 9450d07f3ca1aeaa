"""Real processes, real kills: nothing that counted is lost, and every round is applied once or not at all."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from benchmarks.aftermath import CLIENTS, kept
from benchmarks.cable import cabled, possible
from benchmarks.failures import (
    AWAY,
    CUT,
    FEW,
    FULL,
    GONE,
    HALTED,
    KILLED,
    LEFT,
    PULLED,
    SERVER_FULL,
    SERVER_KILLED,
    SILENT,
    TASK,
)
from benchmarks.stage import Failure, Outcome, Stage, soon

from plures.deploy.conduct import RESULT
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.fleet.process import lives
from plures.files import read

DISKS = os.geteuid() == 0
"""Whether small disks, which fill up soon, can be made."""
ABSENT = (
    r"no answer within \d+ seconds",
    "not connected",
    "Flower: Error: Node Unavailable .*",
    r"Flower: ClientApp stopped responding\.",
    "failed: busy with an earlier round",
)
"""What the log says about a site that is away, or not back yet."""


@pytest.fixture(scope="module")
def sites(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """All that can happen to sites, in one run: some are struck while others are still away."""
    home, out = fleet.folder / "sites", tmp_path_factory.mktemp("struck")
    rules = {"min_clients": 1, "deadline": soon(), "patience": 20}
    small = [home / "switzerland" / "state"] if DISKS else []
    with ExitStack() as stack:
        cables = {"va": stack.enter_context(cabled(fleet, "va"))} if possible() else {}
        stage = stack.enter_context(Stage(fleet, home, out, rules, {"rounds": 60}, small, cables))
        stage.after(1)
        stage.strike((AWAY, "hungarian"), (KILLED, "va"))
        stage.mend(KILLED)
        stage.missed(KILLED)
        stage.strike((TASK, "cleveland"))
        stage.mend(TASK)
        stage.missed(TASK)
        stage.strike((HALTED, "switzerland"))
        stage.missed(HALTED)
        stage.mend(HALTED)
        stage.recovered(TASK)
        stage.strike((CUT, "cleveland"))
        stage.missed(CUT)
        stage.mend(CUT)
        stage.recovered(HALTED, CUT, KILLED)
        silent = [(SILENT, "switzerland"), *((PULLED, client) for client in cables)]
        stage.strike(*silent)
        for failure, _ in silent:
            stage.missed(failure)
            stage.mend(failure)
        stage.recovered(*(failure for failure, _ in silent))
        stage.strike((GONE, "cleveland"), *[(FULL, "switzerland")] * DISKS)
        stage.mend(GONE)
        stage.missed(GONE)
        if DISKS:
            stage.missed(FULL)
            assert all(read(file) for file in kept(stage.file, "switzerland").glob("state-*"))
            assert not list(kept(stage.file, "switzerland").glob(".*"))
            stage.mend(FULL)
            stage.recovered(FULL)
        stage.recovered(GONE)
        stage.strike((LEFT, "va"))
        stage.missed(AWAY, 10)
        stage.mend(AWAY)
        stage.recovered(AWAY)
        stage.missed(LEFT)
        stage.stop()
        yield {outcome.failure: outcome for outcome in stage.outcomes()}


@pytest.mark.parametrize("failure", [KILLED, TASK, HALTED, CUT, SILENT, PULLED, AWAY], ids=lambda f: f.title)
def test_a_site_that_is_away_misses_rounds_and_nothing_else(sites: dict[str, Outcome], failure: Failure) -> None:
    if failure.title not in sites:
        pytest.skip("only root can make a network of its own")
    outcome = sites[failure.title]
    print(outcome)
    assert outcome.lost == []
    assert len(outcome.missed) >= (10 if failure is AWAY else 1)
    assert outcome.reasons
    assert all(any(re.fullmatch(known, reason) for known in ABSENT) for reason in outcome.reasons), outcome.reasons
    assert outcome.back is not None


@pytest.mark.skipif(not DISKS, reason="only root can make a disk that is soon full")
def test_a_site_whose_disk_is_full_sends_nothing_until_there_is_room(sites: dict[str, Outcome]) -> None:
    outcome = sites[FULL.title]
    print(outcome)
    assert outcome.lost == []
    assert outcome.reasons == ["failed: its disk is full"]
    assert outcome.back is not None


def test_a_site_that_lost_its_state_starts_afresh_in_the_next_round(sites: dict[str, Outcome]) -> None:
    outcome = sites[GONE.title]
    print(outcome)
    assert outcome.lost == []
    ((round_,), (reason,)) = outcome.missed, outcome.reasons
    assert re.fullmatch(r"lost: version \d+ of its personal state is not on its disk; it starts afresh", reason)
    assert int(re.findall(r"\d+", reason)[0]) < round_


def test_a_site_that_leaves_keeps_nothing_and_refuses(sites: dict[str, Outcome], fleet: Fleet) -> None:
    outcome = sites[LEFT.title]
    print(outcome)
    assert outcome.lost == []
    assert outcome.reasons == ["refused: it has left the federation"]
    assert [file.name for file in (fleet.folder / "sites" / "va" / "state" / "heart").rglob("*")] == ["left"]


def told(fleet: Fleet) -> str:
    """The error of the last failed run."""
    lines = [line for line in fleet.superlink.output().splitlines() if line.startswith("plures.errors.PluresError: ")]
    return lines[-1].removeprefix("plures.errors.PluresError: ")


def test_whatever_happens_to_the_server_the_end_is_that_of_a_run_without_failures(fleet: Fleet, tmp_path: Path) -> None:
    home, out = fleet.folder / "sites", tmp_path / "out"
    rules = {"min_clients": 4, "deadline": 2 * soon(), "patience": 2}
    small = [out] if DISKS else []
    with Stage(fleet, home, out, rules, {"rounds": 4, "method": "scaffold"}, small) as stage:
        stage.after(1)
        stage.strike((FEW, "va"))
        assert stage.ended() == "finished:failed"
        assert re.fullmatch(
            rf"round \d failed 2 times in a row; the last time, round \d: [01234] of 4 clients did their work, at "
            rf"least 4 must \(.*\); {out} keeps the run's state: the same command resumes it",
            told(fleet),
        )
        stage.mend(FEW)
        stage.recovered(FEW)
        if DISKS:
            stage.strike((SERVER_FULL, "va"))
            assert stage.ended() == "finished:failed"
            assert re.fullmatch(
                rf"cannot write {out}/\S+: .*No space left on device.*; what was saved before is untouched", told(fleet)
            )
            stage.mend(SERVER_FULL)
            stage.recovered(SERVER_FULL)
        stage.strike((SERVER_KILLED, "va"))
        stage.mend(SERVER_KILLED)
        stage.insist()
        stage.recovered(SERVER_KILLED)
        outcomes = stage.outcomes()
        told_end = json.loads((out / RESULT).read_text())
        cohorts = [event["clients"] for event in stage.rounds()]
        resumed = [event["round"] for event in stage.journal.events("resumed")]
    print(*outcomes, sep="\n")
    assert [outcome.lost for outcome in outcomes] == [[]] * len(outcomes)
    assert cohorts == [list(CLIENTS)] * 4
    assert told_end["unpublished"] == {}
    assert len(resumed) >= len(outcomes)
    assert resumed == sorted(resumed)


def test_a_server_that_is_told_to_end_does_so_while_it_waits_for_answers(fleet: Fleet, tmp_path: Path) -> None:
    home, out = fleet.folder / "sites", tmp_path / "out"
    with Stage(fleet, home, out, {"min_clients": 4, "deadline": 60, "patience": 5}, {"rounds": 2}) as stage:
        stage.after(1)
        stage.hold("va")
        (server,), begin = fleet.superlink.members("flwr-serverapp"), time.monotonic()
        os.kill(server, signal.SIGTERM)
        stage.wait(lambda: not lives(server), "the end of the ServerApp")
        assert time.monotonic() - begin < 10
        (stopped,) = stage.journal.events("stopped")
        assert stopped["reason"] == "ended from outside"
        assert stage.ended() == "finished:failed"
        stage.release("va")
        stage.submit()
        stage.insist()
        assert [event["round"] for event in stage.rounds()] == [1, 2]
        assert [event["round"] for event in stage.journal.events("resumed")] == [1]
