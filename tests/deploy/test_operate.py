"""An operator sees who a run is waiting for, also from files alone, and starts and ends runs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import call
from hospitals import written
from sites import Loopback
from superlink import SuperLink
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.deploy.app import opened
from plures.deploy.conduct import CHECKPOINT, RESULT, Conductor
from plures.deploy.fleet.control import Control, Node, Submitted
from plures.deploy.journal import LOG, Journal
from plures.deploy.operate import run as running
from plures.deploy.operate.place import Place, works
from plures.deploy.operate.status import Status, look, run_status
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.remote.state import PUBLISHED, Versions, alone
from plures.serving.personal import PersonalModel
from plures.tables.heart import heart_tables
from versions import become

HOSPITALS = sorted(heart_tables())


@dataclass(frozen=True)
class Known(Place):
    """A folder whose SuperLink is controlled by the test."""

    nodes: list[Node] | None = None
    runs: list[Submitted] = field(default_factory=list)

    @property
    def control(self) -> Any:
        told = self

        class Fake(Control):
            def nodes(self) -> list[Node]:
                if told.nodes is None:
                    raise PluresError("SuperLink 127.0.0.1:1 does not answer")
                return told.nodes

            def runs(self, most: int = 100) -> list[Submitted]:
                return told.runs

        return Fake("127.0.0.1:1", None)


class Slow(Loopback):
    """A transport whose answers come one by one; the status is read after each."""

    def __init__(self, file: Path) -> None:
        super().__init__([opened(file.parent / name / "site.toml") for name in HOSPITALS])
        self.arrived = lambda address: None
        self.looks: list[Status] = []
        self.place = Place(file.parent)

    def exchange(self, messages, deadline):
        found = {}
        for address, message in messages.items():
            found |= super().exchange({address: message}, deadline)
            self.arrived(address)
            self.looks.append(look(self.place, self.place.folder / "results"))
        return found


def conductor(file: Path, carrier: Loopback) -> Conductor:
    job = Conductor(Plan.load(file), carrier, file.parent / "results", wait=lambda seconds: None)
    if isinstance(carrier, Slow):
        carrier.arrived = job.watched.arrived
    return job


def test_status_names_who_has_not_answered_yet_while_the_round_waits(tmp_path):
    file = written(tmp_path, rounds=2)
    carrier = Slow(file)
    conductor(file, carrier).run()
    first = [seen for seen in carrier.looks if seen.run.round == 0 and seen.run.what == "train"]
    assert [seen.run.waiting for seen in first] == [
        ("hungarian", "switzerland", "va"),
        ("switzerland", "va"),
        ("va",),
    ]
    assert {seen.run.state for seen in first} == {"running"}
    assert all(seen.run.until - seen.run.since == pytest.approx(600, abs=1) for seen in first)
    waited = [[site.client for site in seen.sites if site.waited] for seen in first]
    assert waited == [list(seen.run.waiting) for seen in first]
    joining = carrier.looks[0]
    assert (joining.run.state, joining.run.what, joining.run.waiting) == ("joining", "join", tuple(HOSPITALS))
    last = look(carrier.place)
    assert (last.run.state, last.run.round, last.run.rounds, last.run.waiting) == ("finished", 2, 2, ())
    assert [site.counted for site in last.sites] == [2] * 4
    assert last.run.validation is not None
    assert last.run.bytes_up > 1000


def test_a_resumed_run_that_waits_for_a_site_says_for_which_since_when_and_until_when(tmp_path):
    file = written(tmp_path, rules="deadline = 7.0\nmin_clients = 3", rounds=3)
    carrier = Slow(file)
    job = conductor(file, carrier)

    def dies(address: int, answer: bytes) -> bytes:
        if len(carrier.log) > 10:
            raise KeyboardInterrupt
        return answer

    carrier.spoil = dies
    with pytest.raises(KeyboardInterrupt):
        job.run()
    stopped = look(carrier.place).run
    assert (stopped.state, stopped.round, stopped.waiting) == ("stopped", 1, ())
    assert stopped.reason == "ended from outside"
    carrier = Slow(file)
    carrier.down = {102}
    seen: list[Status] = []
    again = conductor(file, carrier)

    def waits(seconds: float) -> None:
        seen.append(look(carrier.place))
        carrier.down = set()

    again.wait = waits
    again.run()
    assert [(one.run.state, one.run.waiting, one.run.round) for one in seen[:1]] == [("joining", ("switzerland",), 1)]
    assert seen[0].run.until - seen[0].run.since == pytest.approx(7, abs=1)
    assert time.time() - 30 < seen[0].run.since < time.time()
    assert "joining, round 1 of 3 done; join: waiting for switzerland for" in shown(seen[0])


def shown(status: Status) -> str:
    from plures.cli.operate import line

    return line(status.run, status.time)


def test_status_tells_sites_that_are_refused_while_it_waits(tmp_path):
    file = written(tmp_path, rules="join_deadline = 0.3\ndeadline = 0.3")
    toml = tmp_path / "va" / "data.csv"
    toml.write_text(toml.read_text().replace("M", "q"))
    from plures.deploy.app import Closed

    carrier = Slow(file)
    carrier.sites[103] = Closed("va")  # type: ignore[assignment]
    looks: list[Status] = []
    job = conductor(file, carrier)

    def waits(seconds: float) -> None:
        looks.append(look(carrier.place))
        time.sleep(0.1)

    job.wait = waits
    with pytest.raises(PluresError, match="clients va did not join"):
        job.run()
    assert looks[0].run.waiting == ("va",)
    assert "did not pass their check" in looks[0].run.reason
    assert "clients va did not join within 0.3 seconds" in look(carrier.place).run.reason


def test_a_run_whose_process_was_killed_is_stopped_whatever_its_log_ends_with(tmp_path):
    written(tmp_path)
    journal = Journal(tmp_path / "results")
    journal.event("waiting", clients=["va"], round=2, seconds=600)
    status = look(Place(tmp_path))
    assert (status.run.state, status.run.waiting) == ("stopped", ())
    assert status.run.reason == "its process ended without logging a reason"
    assert "config.toml cannot be read" in status.superlink
    (tmp_path / "results" / "lock").touch()
    assert not works(tmp_path / "results")


def test_sites_are_told_by_name_with_what_the_superlink_knows(tmp_path):
    written(tmp_path)
    now = time.time()
    journal = Journal(tmp_path / "results")
    left = {"va": "no answer within 600 seconds"}
    journal.event("waiting", clients=HOSPITALS, round=1, seconds=600)
    journal.event("answered", client="va")
    journal.event("round", round=1, clients=HOSPITALS, left_out={}, loss=1.0, objective=1.0, seconds=4.0)
    journal.event("round", round=2, clients=HOSPITALS[:3], left_out=left, loss=1.0, objective=1.0, seconds=2.0)
    nodes = [
        Node(1, "cleveland", "online", now - 5),
        Node(2, "hungarian", "offline", now - 5000),
        Node(3, "switzerland", "registered"),
        Node(4, "va", "unregistered", now - 9999),
        Node(5, "stranger", "online", now),
    ]
    runs = [Submitted(9, "running", {"out": "results"}), Submitted(8, "finished:failed", {"out": "elsewhere"})]
    status = look(Known(tmp_path, nodes, runs))
    found = {site.client: site for site in status.sites}
    assert [found[name].node for name in HOSPITALS] == ["online", "offline", "registered", "not registered"]
    assert found["cleveland"].seen == now - 5
    assert found["switzerland"].seen is None
    assert found["va"].seen == pytest.approx(now, abs=5)
    assert [found[name].counted for name in HOSPITALS] == [2, 2, 2, 1]
    assert found["va"].left_out == {"round": 2, "reason": "no answer within 600 seconds"}
    assert (status.superlink, status.flower) == ("up", "running")
    assert status.run.eta == 2 * 3.0
    assert status.notes == (
        "node 'stranger' is registered but is not a member: `plures deploy remove` removes it",
        "the SuperLink lists the run as running, but no process works on it: either it is just starting, or it was "
        "cut off and `plures deploy run` resumes it",
    )
    down = look(Known(tmp_path, None))
    assert {site.node for site in down.sites} == {"unknown"}
    assert down.superlink == "SuperLink 127.0.0.1:1 does not answer"
    assert [site.counted for site in down.sites] == [2, 2, 2, 1]


def test_the_command_works_without_a_superlink_for_people_and_for_programs(tmp_path):
    folder = tmp_path / "hearts"
    call("init", folder, "--example", "heart")
    text = call("status", folder)
    assert "heart, plures" in text
    assert "no run yet, 20 rounds are planned" in text
    assert "ca.crt is not a certificate" in text
    status = json.loads(call("status", folder, "--json"))
    assert status["run"]["state"] == "none"
    assert [site["client"] for site in status["sites"]] == HOSPITALS
    with pytest.raises(PluresError, match=r"federation\.toml cannot be read"):
        call("status", tmp_path / "nothing")


def test_a_rotated_log_loses_nothing_that_status_or_a_resumed_run_needs(tmp_path):
    """As logrotate does: the file is renamed between two events, and older ones are shifted."""
    journal = Journal(tmp_path)
    for number in range(1, 13):
        journal.event("round", round=number, clients=["va"], left_out={}, seconds=1.0)
        for age in range(number, 0, -1):
            old = tmp_path / (LOG if age == 1 else f"{LOG}.{age - 1}")
            if old.exists():
                old.rename(tmp_path / f"{LOG}.{age}")
    assert not (tmp_path / LOG).exists()
    journal.event("stopped", reason="x")
    (tmp_path / f"{LOG}.swp").write_text('{"event": "round"}')
    assert [event["round"] for event in journal.events("round")] == list(range(1, 13))
    assert journal.events()[-1]["event"] == "stopped"
    assert run_status(journal.events(), tmp_path, Plan.load(written(tmp_path / "plan"))).round == 12


def test_lines_that_are_no_events_are_passed_over(tmp_path):
    (tmp_path / LOG).write_text('3\n{"time": 1\n["event"]\n{"no": 1}\n{"event": "joined"}\n')
    assert Journal(tmp_path).events() == [{"event": "joined"}]


def test_a_finished_run_is_not_started_again(tmp_path):
    written(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / RESULT).write_text("{}")
    assert "holds a finished run" in call("run", tmp_path)


def test_a_site_tells_what_it_answered_and_what_it_has(tmp_path):
    file = written(tmp_path, rounds=2)
    site = tmp_path / "va" / "site.toml"
    assert "it has received no order yet\nno model is published yet" in call("status", site)
    conductor(file, Loopback([opened(file.parent / name / "site.toml") for name in HOSPITALS])).run()
    told = json.loads(call("status", site, "--json"))
    assert (told["client"], told["federation"], told["version"]) == ("va", "heart", plures.__version__)
    folder = tmp_path / "va" / "state" / "heart" / "ditto+threshold"
    assert told["versions"] == Versions(folder, "").present() != []
    assert told["published"]["version"] == PersonalModel.load(folder / PUBLISHED).card.version
    assert told["notes"] == []
    assert told["answered"][-1] == {"request": "publish", "round": told["published"]["round"], "done": True}
    assert "publish after" in call("status", site)
    damaged = folder / PUBLISHED / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert json.loads(call("status", site, "--json"))["published"] is None
    assert f"note: {damaged}" in call("status", site)
    call("leave", site, "--yes")
    assert "it has left: it refuses every order" in call("status", site)


def test_texts_of_others_do_not_command_the_terminal(tmp_path):
    written(tmp_path)
    journal = Journal(tmp_path / "results")
    left = {"va": "\x1b[2J[red]gone[/red]\nSuperLink: up"}
    journal.event("round", round=1, clients=HOSPITALS[:3], left_out=left, loss=1.0, objective=1.0, seconds=4.0)
    journal.event("stopped", reason="\x1b]0;owned\x07")
    text = call("status", tmp_path)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]" in text


def test_who_is_waited_for_while_all_are_asked_who_they_are(tmp_path):
    """A hanging node blocks the first question; the SuperLink knows which members' nodes have answered."""
    file = written(tmp_path)
    nodes = [Node(100 + number, client, "online", 1.0) for number, client in enumerate(HOSPITALS)]
    carrier = Slow(file)
    carrier.place = Known(tmp_path, nodes)
    carrier.spoil = lambda address, answer: "gone" if address == 103 else answer
    job = conductor(file, carrier)
    job.wait = lambda seconds: next(iter(()))
    with pytest.raises(StopIteration):
        job.run()
    assert [one.run.waiting for one in carrier.looks] == [
        ("hungarian", "switzerland", "va"),
        ("switzerland", "va"),
        ("va",),
        (),
    ]
    assert look(carrier.place).run.state == "stopped"


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    made = SuperLink()
    monkeypatch.setattr(Place, "control", made)
    monkeypatch.setattr(running, "MAX_LOADING_SECONDS", 0.2)
    monkeypatch.setattr(running, "POLL_SECONDS", 0.01)
    return made


def test_a_run_that_is_under_way_is_not_submitted_again(tmp_path, superlink):
    written(tmp_path)
    out = tmp_path / "results"
    with alone(out, "busy"):
        superlink.submitted = [Submitted(7, "running", {"out": "results"})]
        assert "run 7 continues" in call("run", tmp_path, "--out", out, "--detach")
        assert superlink.said == []
        superlink.submitted = []
        with pytest.raises(PluresError, match="that this SuperLink does not know: end it, or choose another folder"):
            call("run", tmp_path, "--out", out, "--detach")


def test_a_run_whose_process_died_with_a_machine_is_ended_and_submitted_anew(tmp_path, superlink):
    """After a reboot the SuperLink's database lists the run as running, but no process works on it."""
    written(tmp_path)
    out = tmp_path / "results"
    superlink.submitted = [
        Submitted(7, "running", {"out": str(out)}),
        Submitted(6, "running", {"out": "results/other"}),
    ]
    assert "continues at the SuperLink" in call("run", tmp_path, "--out", out, "--detach")
    assert superlink.said == [("stop", 7), ("start", str(out))]


def test_what_is_watched_says_how_it_ended(tmp_path, superlink):
    written(tmp_path)
    out = tmp_path / "results"

    class Ends(SuperLink):
        def status(self, run: int) -> str:
            return self.ending

    def ended(ending: str):
        Place.control = made = Ends()
        made.ending = ending
        return CliRunner().invoke(app, ["deploy", "run", str(tmp_path), "--out", str(out)])

    stopped = ended("finished:stopped")
    assert (stopped.exit_code, "the same command resumes" in stopped.output) == (3, True)
    Journal(out).event("stopped", reason="round 2 failed 10 times in a row")
    failed = ended("finished:failed")
    assert str(failed.exception) == (
        "the run stopped: round 2 failed 10 times in a row; the same command resumes from the last round"
    )
    (out / "log.jsonl").unlink()
    assert "process ended" not in str(ended("finished:failed").exception)


def test_stop_ends_all_runs_or_one(tmp_path, superlink):
    written(tmp_path)
    superlink.submitted = [
        Submitted(3, "running", {"out": "results/c"}),
        Submitted(2, "finished:failed", {"out": "results/b"}),
        Submitted(1, "running", {"out": "results/a"}),
    ]
    call("stop", tmp_path, "--out", tmp_path / "results" / "a")
    assert superlink.said == [("stop", 1)]
    assert Journal(tmp_path / "results" / "a").events("stopped")[0]["reason"] == "by the operator"
    call("stop", tmp_path)
    assert superlink.said == [("stop", 1), ("stop", 3)]
    assert call("stop", tmp_path) == "no run is under way\n"


def test_a_member_of_another_version_is_named_with_what_to_do(tmp_path, monkeypatch):
    file = written(tmp_path, rules="min_clients = 3\npatience = 1", rounds=2, method="fedavg")
    with monkeypatch.context() as patch:
        become("99.0", patch)
        other = opened(tmp_path / "va" / "site.toml")
    sites = [opened(tmp_path / name / "site.toml") for name in HOSPITALS[:3]]
    conductor(file, Loopback([*sites, other])).run()
    va = look(Place(tmp_path)).sites[3]
    assert (va.client, va.counted) == ("va", None)
    assert va.left_out is not None
    assert (
        "the server runs another method, model or version: install the same files and packages" in va.left_out["reason"]
    )


def test_an_unfinished_run_is_not_gone_on_with_by_another_version(tmp_path, monkeypatch):
    file = written(tmp_path, rounds=3, method="fedavg")
    carrier = Loopback([opened(file.parent / name / "site.toml") for name in HOSPITALS])

    def dies(address: int, answer: bytes) -> bytes:
        if len(carrier.log) > 10:
            raise KeyboardInterrupt
        return answer

    carrier.spoil = dies
    with pytest.raises(KeyboardInterrupt):
        conductor(file, carrier).run()
    before = (tmp_path / "results" / CHECKPOINT).read_bytes()
    become("99.0", monkeypatch)
    sites = [opened(file.parent / name / "site.toml") for name in HOSPITALS]
    with pytest.raises(PluresError, match="checkpoint"):
        conductor(file, Loopback(sites)).run()
    assert (tmp_path / "results" / CHECKPOINT).read_bytes() == before
