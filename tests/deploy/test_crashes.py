"""Killed at every point of a run, and other ways in which processes interfere with each other; without a network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from benchmarks.aftermath import CLIENTS, kept, lost, prepared
from sites import Loopback, conductor

from plures.deploy.app import PUBLISHED, opened
from plures.deploy.conduct import CHECKPOINT, RESULT
from plures.deploy.journal import LOG, METRICS, Journal
from plures.errors import PluresError
from plures.files import read
from plures.remote.message import Order, Reply, unpack
from plures.remote.site import Site
from plures.remote.state import LEFT, leave
from plures.serving.personal import MODEL

TWO = ("cleveland", "va")
TIMED = (LOG, METRICS, RESULT, "card.json", "card.md")
"""Files that contain times, which differ."""
COMPILED = "__pycache__"
"""Folder in which Python keeps the compiled loader of a site, if it may write there."""


@dataclass
class Reaper:
    """Kills its own process (SIGKILL) at one of the points that it passes.

    Attributes:
        home: every change of a file under it is such a point: just before a new one is put in place, then only half
            written; just before one is deleted; just before a line is added to the log.
        point: number of the point.
        passed: points so far.
    """

    home: Path
    point: int
    passed: int = 0

    def reached(self, half: str | None = None) -> None:
        """A point is reached, perhaps with a file half written."""
        self.passed += 1
        if self.passed == self.point:
            if half is not None:
                os.truncate(half, os.path.getsize(half) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook that sees every event of this process."""
        file = Path(str(arguments[0])) if arguments else Path()
        if self.home not in file.parents or file.parent.name in (PUBLISHED, COMPILED):
            return
        if event == "os.rename":
            self.reached(str(file))
        elif event == "os.remove" or (event == "open" and file.name == LOG):
            self.reached()


class Announced(Loopback):
    """Reports when a message is about to be given to a site, and when all answers have arrived."""

    tell: Callable[[], None] = staticmethod(lambda: None)

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        found: dict[int, bytes | str] = {}
        for address, message in messages.items():
            self.tell()
            found |= super().exchange({address: message}, deadline)
        self.tell()
        return found


def conduct(home: Path, sites: list[Site], reaper: Reaper | None = None) -> None:
    carrier = Announced(sites)
    if reaper is not None:
        sys.addaudithook(reaper.audit)
        carrier.tell = reaper.reached
    conductor(home / "federation.toml", carrier).run()


def killed(home: Path, sites: list[Site], point: int) -> bool:
    """Conduct a run in its own process; returns whether it reached the point that kills it."""
    child = os.fork()
    if child == 0:
        try:
            conduct(home, sites, Reaper(home, point))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def left(home: Path) -> dict[str, bytes]:
    """All files by path, except those with times or compiled code; of a published model, its leaves."""

    def content(file: Path) -> bytes:
        if file.name != MODEL:
            return file.read_bytes()
        return b"".join(name.encode() + t.numpy().tobytes() for name, t in sorted(read(file)[0].items()))

    files = [file for file in home.rglob("*") if file.is_file() and file.name not in TIMED]
    files = [file for file in files if file.parent.name != COMPILED]
    return {str(file.relative_to(home)): content(file) for file in files}


def test_killed_anywhere_it_goes_on_to_the_same_end(tmp_path: Path) -> None:
    home, fresh = tmp_path / "home", tmp_path / "fresh"
    file = prepared(home, {"min_clients": 2}, TWO, method="ditto", batch_size=256, rounds=2)
    shutil.copytree(home, fresh)
    sites = [opened(home / client / "site.toml") for client in TWO]
    conduct(home, sites)
    whole, told = left(home), json.loads((home / "out" / RESULT).read_text())["result"]
    assert lost(file, home / "out") == []
    for point in count(1):
        shutil.rmtree(home)
        shutil.copytree(fresh, home)
        if not killed(home, sites, point):
            break
        if not (home / "out" / RESULT).exists():
            conduct(home, sites)
        else:
            with pytest.raises(PluresError, match="holds a finished run"):
                conduct(home, sites)
        (home / "out" / CHECKPOINT).unlink(missing_ok=True)
        assert [event["round"] for event in Journal(home / "out").events("round")] == [1, 2], point
        again = json.loads((home / "out" / RESULT).read_text())["result"]
        assert all(again[key] == told[key] for key in ("chosen_round", "validation", "test")), point
        now = left(home)
        assert now.keys() == whole.keys(), point
        assert [name for name in whole if now[name] != whole[name]] == [], point
    assert point > 40


class Late(Loopback):
    """The order of one round reaches a site after the order of the next round, whose answer counts."""

    late: tuple[int, int]

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        address, round = self.late
        order = unpack(messages[address], Order)[0] if address in messages else Order(request="join")
        if order.request != "train" or order.round not in (round, round + 1):
            return super().exchange(messages, deadline)
        if order.round == round:
            self.withheld = messages[address]
            return super().exchange({a: m for a, m in messages.items() if a != address}, deadline)
        found = super().exchange(messages, deadline)
        late = unpack(self.sites[address].answer(self.withheld), Reply)[0]
        assert (late.status, late.reason) == ("refused", "it has answered later orders: rounds never go back")
        return found


def test_an_order_that_was_overtaken_takes_nothing_away(tmp_path: Path) -> None:
    file = prepared(tmp_path, rounds=4)
    carrier = Late([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    carrier.late = 103, 1
    conductor(tmp_path / "federation.toml", carrier).run()
    assert [event["left_out"] for event in Journal(tmp_path / "out").events("round")] == [
        {},
        {"va": "no answer within 600 seconds"},
        {},
        {},
    ]
    assert lost(file, tmp_path / "out") == []


def test_a_site_that_leaves_in_the_middle_of_its_work_leaves_nothing_behind(tmp_path: Path) -> None:
    file = prepared(tmp_path, rounds=3)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    site = carrier.sites[103]
    save = site._train

    def leaves(run: Any, *rest: Any) -> Any:
        if run.round == 1:
            leave(site.folder.parent, "enough")
        return save(run, *rest)

    site._train = leaves
    conductor(tmp_path / "federation.toml", carrier).run()
    told = [event["left_out"] for event in Journal(tmp_path / "out").events("round")]
    assert told == [{}, *[{"va": "refused: it has left the federation"}] * 2]
    assert [file.name for file in site.folder.parent.rglob("*")] == [LEFT]
    assert (site.folder.parent / LEFT).read_text() == "enough"
    assert lost(file, tmp_path / "out") == []
    sent = [unpack(body, Reply) for address, body in carrier.answers if address == 103]
    assert [(reply.status, bool(tensors)) for reply, tensors in sent if reply.facts is None][:2] == [
        ("done", True),
        ("refused", False),
    ]


def test_a_model_is_not_published_without_the_state_that_belongs_to_it(tmp_path: Path) -> None:
    prepared(tmp_path, rounds=2)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])

    def deleted(address: int, answer: bytes) -> bytes:
        if address == 103 and unpack(carrier.log[-1][1], Order)[0].request == "score":
            for file in kept(tmp_path / "federation.toml", "va").glob("state-*"):
                file.unlink()
        return answer

    carrier.spoil = deleted
    conductor(tmp_path / "federation.toml", carrier).run()
    told = json.loads((tmp_path / "out" / RESULT).read_text())
    version = told["result"]["chosen_round"]
    assert told["unpublished"] == {
        "va": f"lost: version {version} of its personal state is not on its disk; it starts afresh"
    }
    assert not (kept(tmp_path / "federation.toml", "va") / PUBLISHED).exists()
    requests = [unpack(message, Order)[0].request for address, message in carrier.log if address == 103]
    assert requests == ["join", "train", "train", "score", "publish"]


def test_two_runs_never_work_in_one_folder(tmp_path: Path) -> None:
    prepared(tmp_path)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    second = conductor(tmp_path / "federation.toml", Loopback(list(carrier.sites.values())))

    def interrupt(address: int, answer: bytes) -> bytes:
        with pytest.raises(PluresError, match=r"another run works in .*out: stop it, or choose another folder"):
            second.run()
        return answer

    carrier.spoil = interrupt
    conductor(tmp_path / "federation.toml", carrier).run()
    assert lost(tmp_path / "federation.toml", tmp_path / "out") == []


def test_a_line_of_the_log_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.event("round", round=1, reason="two\u2028lines")
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole + whole[: len(whole) - 9])
    journal.event("round", round=2)
    journal.event("resumed", round=2)
    assert [event["round"] for event in journal.events("round")] == [1, 2]
    assert journal.events("round")[0]["reason"] == "two\u2028lines"
