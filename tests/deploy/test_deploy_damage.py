"""Files of a server and of sites damaged by a disk: the result is the same, or the loss is reported by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from benchmarks.aftermath import kept, lost, prepared
from sites import Loopback

from harm import Disk, harmed, stray
from plures.deploy.app import opened
from plures.deploy.conduct import CHECKPOINT, COPY, RESULT, Conductor
from plures.deploy.journal import LOG, Journal
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.files import read
from plures.remote.message import Order, Reply, unpack

TWO = ("cleveland", "va")
COMPARED = ("chosen_round", "validation", "test")


def conductor(home: Path) -> tuple[Conductor, Loopback]:
    carrier = Loopback([opened(home / client / "site.toml") for client in TWO])
    return Conductor(Plan.load(home / "federation.toml"), carrier, home / "out", wait=lambda seconds: None), carrier


def stopped(home: Path, rounds: int) -> None:
    """A run whose server was stopped after some rounds."""
    prepared(home, {"min_clients": 2}, TWO, method="ditto", batch_size=256, rounds=3)
    server, carrier = conductor(home)

    def stop(address: int, answer: bytes) -> bytes:
        if unpack(carrier.log[-1][1], Order)[0].round == rounds:
            raise KeyboardInterrupt
        return answer

    carrier.spoil = stop
    with pytest.raises(KeyboardInterrupt):
        server.run()


def finished(home: Path) -> dict[str, object]:
    """The result of a resumed run."""
    conductor(home)[0].run()
    told = json.loads((home / "out" / RESULT).read_text())["result"]
    return {key: told[key] for key in COMPARED}


def test_a_damaged_checkpoint_of_the_server_is_replaced_by_its_copy(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stopped(home, 2)
    shutil.copytree(home, tmp_path / "whole")
    expected = finished(tmp_path / "whole")
    server, out = conductor(home)[0], home / "out"
    content = (out / CHECKPOINT).read_bytes()
    assert (out / COPY).read_bytes() == content
    for what, harm in harmed(content, flips=40):
        (out / CHECKPOINT).write_bytes(harm)
        server.mend()
        tensors, about = read(out / CHECKPOINT)
        assert (out / CHECKPOINT).read_bytes() == content or about["curve"], what
        assert tensors["round"] == 2, what
    (out / CHECKPOINT).unlink()
    server.mend()
    assert (out / CHECKPOINT).read_bytes() == content
    (out / CHECKPOINT).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert finished(home) == expected
    assert lost(home / "federation.toml", out) == []
    told = [event["reason"] for event in Journal(out).events("mended")]
    assert str(out / CHECKPOINT) in told[-1]
    assert sorted(file.name for file in out.iterdir() if "checkpoint" in file.name) == []


def test_where_both_are_damaged_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    stopped(tmp_path, 1)
    for name in (CHECKPOINT, COPY):
        (tmp_path / "out" / name).write_bytes(b"")
    with pytest.raises(PluresError, match=r"copy.* damaged.*checkpoint\.safetensors is damaged too: .* another name"):
        conductor(tmp_path)[0].run()


@pytest.mark.parametrize("what", ["deleted", "cut to 1", "all zeroes", "bit of byte 0", "written twice"])
def test_a_damaged_state_is_lost_and_the_site_starts_afresh(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Like a deleted file: reported once, and from the next round on the site takes part again."""
    stopped(tmp_path, 2)
    (file,) = kept(tmp_path / "federation.toml", "va").glob("state-*2.safetensors")
    if what == "deleted":
        file.unlink()
    else:
        file.write_bytes(dict(harmed(file.read_bytes(), flips=1))[what])
    file = tmp_path / "federation.toml"
    file.write_text(file.read_text().replace("min_clients = 2", "min_clients = 1"))
    server, carrier = conductor(tmp_path)
    server.run()
    (left_out,) = (event["left_out"] for event in Journal(tmp_path / "out").events("round")[2:])
    assert left_out == {"va": "lost: version 2 of its personal state is not on its disk; it starts afresh"}
    statuses = [unpack(body, Reply)[0].status for address, body in carrier.answers if address == 101]
    assert "failed" not in statuses
    named = [r.getMessage() for r in caplog.records if "state-00000002.safetensors" in r.getMessage()]
    assert bool(named) == (what != "deleted")


def test_lines_of_the_log_that_are_damaged_stop_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.event("round", round=1)
    content = (tmp_path / LOG).read_bytes()
    for what, harm in harmed(content):
        (tmp_path / LOG).write_bytes(harm + b"\n5\n[]\n{}\n")
        journal.event("round", round=2)
        assert journal.events("round")[-1]["round"] == 2, what


def test_a_full_disk_of_the_server_is_one_sentence_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at any one of its files."""
    home = tmp_path / "home"
    run = {"method": "ditto", "batch_size": 256, "rounds": 2}
    prepared(tmp_path / "whole", {"min_clients": 2}, TWO, **run)
    expected = finished(tmp_path / "whole")
    prepared(home, {"min_clients": 2}, TWO, **run)
    disk, stops = Disk(home / "out", monkeypatch), 0
    disk.room = 0
    while stops < 30 and not (home / "out" / RESULT).exists():
        said = ""
        try:
            conductor(home)[0].run()
        except PluresError as error:
            said = str(error)
        if said:
            stops += 1
            assert f"{home / 'out'}/" in said
            assert "No space left on device" in said
            assert len(said.splitlines()) == 1
            assert stray(home / "out") == []
        disk.room = disk.taken + 5 + stops
    assert stops > 3
    told = json.loads((home / "out" / RESULT).read_text())["result"]
    assert {key: told[key] for key in COMPARED} == expected
    assert lost(home / "federation.toml", home / "out") == []
