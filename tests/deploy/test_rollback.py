"""A round that broke the model is undone; the culprit is named and left out; the others reach the same result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from answers import each
from benchmarks.aftermath import CLIENTS, lost, prepared
from sites import Loopback, conductor

from plures.deploy.app import opened
from plures.deploy.conduct import BEFORE, CHECKPOINT, COPY, RESULT, Conductor
from plures.deploy.journal import BROKEN, LOG, METRICS, Journal
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.remote.message import Order, Reply, pack, unpack
from plures.run.coordinator import Moved

FREE = {"max_norm": 1e60, "min_clients": 2}
"""Rules that do not limit uploads: what still protects the run."""
WILD = each(lambda t: t * 1e30, "update:")
HURT = "switzerland"


class Attacked(Loopback):
    """Hospitals, one of which multiplies its upload in one round."""

    round: int | None = 1
    wild = staticmethod(WILD)

    def exchange(self, messages, deadline):
        found = super().exchange(messages, deadline)
        for address, message in messages.items():
            order = unpack(message, Order)[0]
            if order.client == HURT and order.request == "train" and order.round == self.round:
                found[address] = self.wild(found[address])
        return found


def attacked(home: Path) -> Attacked:
    return Attacked([opened(home / client / "site.toml") for client in CLIENTS])


def left_out(number: int) -> str:
    return f"left out: its update of round {number} broke the model"


@pytest.mark.parametrize("round", [0, 1, 2])
def test_who_broke_the_model_is_left_out_and_the_round_is_repeated(tmp_path: Path, round: int) -> None:
    file = prepared(tmp_path, FREE, rounds=4)
    carrier = attacked(tmp_path)
    carrier.round = round
    job = conductor(file, carrier)
    job.run()
    journal = Journal(tmp_path / "out")
    (broken,) = journal.events(BROKEN)
    assert (broken["round"], broken["client"]) == (round + 1, HURT)
    assert f"round {round + 1} broke the model: most sites cannot work on what it left" in broken["reason"]
    rounds = journal.rounds()
    assert [event["round"] for event in rounds] == [1, 2, 3, 4]
    others = [client for client in CLIENTS if client != HURT]
    assert [event["clients"] for event in rounds] == [list(CLIENTS)] * round + [others] * (4 - round)
    assert all(event["left_out"] == {HURT: left_out(round + 1)} for event in rounds[round:])
    assert lost(file, tmp_path / "out") == []
    told = json.loads((tmp_path / "out" / RESULT).read_text())
    assert told["unpublished"] == {HURT: left_out(round + 1)}
    assert told["progress"]["excluded"] == {HURT: left_out(round + 1)}
    assert told["result"]["curve"][-1]["validation"] > 0.6
    assert not any((tmp_path / "out" / name).exists() for name in (CHECKPOINT, COPY, BEFORE))
    asked = [unpack(message, Order)[0] for address, message in carrier.log if address == 102]
    assert max(order.round for order in asked) == round + 1


def test_the_repeated_orders_are_those_of_the_round_but_for_their_nonce(tmp_path: Path) -> None:
    file = prepared(tmp_path, FREE, rounds=4)
    carrier = attacked(tmp_path)
    conductor(file, carrier).run()
    sent = [unpack(message, Order) for address, message in carrier.log if address == 100]
    first, again = [(order, tensors) for order, tensors in sent if order.request == "train" and order.round == 1]
    assert first[0].nonce != again[0].nonce
    assert first[0].model_copy(update={"nonce": again[0].nonce}) == again[0]
    assert first[1].keys() == again[1].keys()
    assert all(torch.equal(value, again[1][name]) for name, value in first[1].items())


def test_a_server_that_was_restarted_still_knows_who_broke_the_model(tmp_path: Path) -> None:
    file = prepared(tmp_path, FREE, rounds=4)
    carrier = attacked(tmp_path)

    def stop(address: int, answer: bytes) -> bytes:
        if unpack(carrier.log[-1][1], Order)[0].round == 2:
            raise KeyboardInterrupt
        return answer

    carrier.spoil = stop
    with pytest.raises(KeyboardInterrupt):
        conductor(file, carrier).run()
    again = attacked(tmp_path)
    again.round = None
    conductor(file, again).run()
    journal = Journal(tmp_path / "out")
    assert [event["round"] for event in journal.events("resumed")] == [2]
    assert [(event["round"], event["client"]) for event in journal.events(BROKEN)] == [(2, HURT)]
    assert [len(event["clients"]) for event in journal.rounds()] == [4, 3, 3, 3]
    assert lost(file, tmp_path / "out") == []


def test_a_state_that_is_not_finite_never_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of finite numbers is finite; a server's step need not be. Here it is replaced by one that overflows."""
    file = prepared(tmp_path, {"max_norm": 1e60}, method="fedavg", rounds=3)
    carrier = attacked(tmp_path)
    combined = Moved.insist

    def overflows(self, round, server, memory):
        for kept in server.values():
            for value in kept.values.values():
                value[value.abs() > 1e20] = float("inf")
        return combined(self, round, server, memory)

    monkeypatch.setattr(Moved, "insist", overflows)
    conductor(file, carrier).run()
    journal = Journal(tmp_path / "out")
    (broken,) = journal.events(BROKEN)
    assert re.fullmatch(
        "round 2 broke the model: its combined uploads are not finite in 'model/.*'; the longest update was "
        "that of client 'switzerland'",
        broken["reason"],
    )
    assert [event["round"] for event in journal.events("round")] == [1, 2, 3]
    assert [len(event["clients"]) for event in journal.rounds()] == [4, 3, 3]
    assert lost(file, tmp_path / "out") == []


def test_nobody_is_accused_whose_update_was_like_the_others(tmp_path: Path) -> None:
    """Most sites fail for their own reasons: a disk, a file. The run waits, and continues when they are back."""
    file = prepared(tmp_path, {"min_clients": 2, "patience": 2}, rounds=3)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    down = True

    def fails(address: int, answer: bytes) -> bytes:
        order = unpack(next(body for where, body in reversed(carrier.log) if where == address), Order)[0]
        return each(lambda t: t * float("nan"))(answer) if down and order.round == 1 and address > 100 else answer

    carrier.spoil = fails
    with pytest.raises(PluresError, match="round 2 failed 2 times in a row"):
        conductor(file, carrier).run()
    assert Journal(tmp_path / "out").events(BROKEN) == []
    down = False
    conductor(file, carrier).run()
    assert lost(file, tmp_path / "out") == []


def test_one_site_alone_cannot_have_another_left_out(tmp_path: Path) -> None:
    file = prepared(tmp_path, {"min_clients": 1}, rounds=3)
    carrier = attacked(tmp_path)
    carrier.wild = staticmethod(each(lambda t: t * 20, "update:"))  # stands out, and breaks nothing

    def fails(address: int, answer: bytes) -> bytes:
        order = unpack(next(body for where, body in reversed(carrier.log) if where == address), Order)[0]
        return each(lambda t: t * float("nan"))(answer) if address == 100 and order.round == 2 else answer

    carrier.spoil = fails
    conductor(file, carrier).run()
    assert Journal(tmp_path / "out").events(BROKEN) == []
    assert [len(event["clients"]) for event in Journal(tmp_path / "out").rounds()] == [4, 4, 3]


def test_an_upload_beyond_the_agreed_norm_is_named_with_norm_limit_and_option(tmp_path: Path) -> None:
    file = prepared(tmp_path, rounds=3)
    conductor(file, attacked(tmp_path)).run()
    told = [event["left_out"] for event in Journal(tmp_path / "out").events("round")]
    assert told[0] == told[2] == {}
    assert re.fullmatch(
        r"bad upload: it is [0-9.]+e\+3[01] away from what was sent \(L2 norm\), and \[rules\] max_norm allows 1000",
        told[1][HURT],
    )
    assert lost(file, tmp_path / "out") == []
    text = (tmp_path / "out" / LOG).read_text() + (tmp_path / "out" / METRICS).read_text()
    assert "NaN" not in text


@pytest.mark.parametrize("norm", ["0", "-1", "inf", "nan", "'much'"])
def test_the_limit_is_a_positive_number(tmp_path: Path, norm: str) -> None:
    with pytest.raises(PluresError, match="max_norm"):
        Plan.load(prepared(tmp_path, {"max_norm": norm}))


@pytest.mark.parametrize("round", [0, 1])
def test_who_broke_the_model_of_its_cluster_is_left_out_by_those_of_the_cluster(tmp_path: Path, round: int) -> None:
    """The other clusters continue unaffected; they are not asked again."""
    file = prepared(tmp_path, FREE, rounds=4, method="gradient_clusters")
    carrier = attacked(tmp_path)
    carrier.round = round
    conductor(file, carrier).run()
    journal = Journal(tmp_path / "out")
    assert [(event["round"], event["client"]) for event in journal.events(BROKEN)] == [(round + 1, HURT)]
    assert [len(event["clients"]) for event in journal.rounds()] == [4] * round + [3] * (4 - round)
    if round:  # otherwise the clusters are found again without the excluded client, which the simulation asks
        assert lost(file, tmp_path / "out") == []


TWO = CLIENTS[:2]


class Two(Loopback):
    """Two hospitals, the first of which spoils its answers: ``spoils`` is by the round of the order."""

    spoils: Mapping[int, Callable[[bytes, bytes], bytes]] = MappingProxyType({})

    def exchange(self, messages, deadline):
        found = super().exchange(messages, deadline)
        for address, message in messages.items():
            order = unpack(message, Order)[0]
            if order.client == TWO[0] and order.request == "train" and order.round in self.spoils:
                found[address] = self.spoils[order.round](found[address], message)
        return found


def idle(answer: bytes, order: bytes) -> bytes:
    """An upload equal to what was received: its update is zero, so every other one stands out."""
    reply, tensors = unpack(answer, Reply)
    sent = {label.partition(":")[2]: t[0] for label, t in unpack(order, Order)[1].items()}
    return pack(reply, {label: sent[label.partition(":")[2]] for label in tensors})


def unwell(answer: bytes, order: bytes) -> bytes:
    reply, _ = unpack(answer, Reply)
    return pack(reply.model_copy(update={"status": "failed", "reason": "its local work gave a NaN", "scores": {}}))


def two(home: Path, spoils: Mapping[int, Callable[[bytes, bytes], bytes]], **rules: float) -> tuple[Path, Two]:
    file = prepared(home, rules, clients=TWO, rounds=4)
    carrier = Two([opened(home / client / "site.toml") for client in TWO])
    carrier.spoils = spoils
    return file, carrier


def test_one_of_two_cannot_have_the_other_left_out(tmp_path: Path) -> None:
    """It sends a zero update, next to which the other's stands out, and then says that it cannot work."""
    file, carrier = two(tmp_path, {0: idle, 1: unwell, 2: idle, 3: unwell})
    conductor(file, carrier).run()
    journal = Journal(tmp_path / "out")
    assert journal.events(BROKEN) == []
    assert [event["clients"] for event in journal.rounds()] == [list(TWO), [TWO[1]], list(TWO), [TWO[1]]]


def test_one_who_is_asked_alone_cannot_have_another_left_out(tmp_path: Path) -> None:
    """The others of the round are away, so the only client that answers is the majority."""
    file = prepared(tmp_path, {"patience": 1}, rounds=4)
    carrier = attacked(tmp_path)
    carrier.wild = staticmethod(each(lambda t: t * 3, "update:"))  # stands out, and breaks nothing

    def fails(address: int, answer: bytes) -> bytes:
        order = unpack(next(body for where, body in reversed(carrier.log) if where == address), Order)[0]
        if order.round != 2 or order.request != "train":
            return answer
        return each(lambda t: t * float("nan"))(answer) if address == 100 else "it is away"

    carrier.spoil = fails
    with pytest.raises(PluresError, match="round 3 failed 1 times in a row"):
        conductor(file, carrier).run()
    assert Journal(tmp_path / "out").events(BROKEN) == []


def test_one_of_two_that_breaks_the_model_is_left_out_also_after_a_restart(tmp_path: Path) -> None:
    file, carrier = two(tmp_path, {1: lambda answer, _: WILD(answer)}, max_norm=1e60)
    one_round = Conductor.round

    def once(self, fitted, remote):
        if remote.round == 2:
            raise KeyboardInterrupt
        one_round(self, fitted, remote)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conductor, "round", once)
        with pytest.raises(KeyboardInterrupt):
            conductor(file, carrier).run()
    conductor(file, carrier).run()
    journal = Journal(tmp_path / "out")
    assert [(event["round"], event["client"]) for event in journal.events(BROKEN)] == [(2, TWO[0])]
    assert [event["clients"] for event in journal.rounds()] == [list(TWO), [TWO[1]], [TWO[1]], [TWO[1]]]
    assert lost(file, tmp_path / "out") == []
