"""Answers that are wrong in every way: each is dropped, named and counted, and the round continues without it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from answers import Spoil, each, header, reply, tensors, told
from benchmarks.aftermath import CLIENTS, lost, prepared
from sites import Loopback
from torch import Tensor

from plures.deploy.app import opened
from plures.deploy.conduct import RESULT, Conductor
from plures.deploy.journal import METRICS, Journal
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.remote.bounds import TooFewError
from plures.remote.message import ClientFacts, Order, Reply, digest, pack, unpack


def one(value: float) -> Callable[[Tensor], Tensor]:
    """A tensor with one entry replaced."""

    def change(t: Tensor) -> Tensor:
        flat = t.clone().flatten()
        flat[-1] = value
        return flat.view(t.shape)

    return change


def impossible(message: bytes) -> bytes:
    """A shape whose size no integer holds, of no bytes."""
    whole = {"__metadata__": told(message)["__metadata__"]}
    whole["x"] = {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}
    return header(json.dumps(whole).encode())


def noise(message: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(message))


SCORED = {"validation": {"examples": 3, "metrics": {"accuracy": float("nan"), "loss": 1.0}}}
ENDLESS = {"validation": {"examples": 10**30, "metrics": {"accuracy": 0.5}}}

ANY: dict[str, tuple[Spoil, str]] = {
    "nothing": (lambda m: b"", "a message is damaged: a message of 0 bytes has no readable header"),
    "cut in its header": (lambda m: m[:100], "a message is damaged: a message of 100 bytes has no readable header"),
    "cut in its tensors": (lambda m: m[:-100], "a message is damaged: .*"),
    "too long": (lambda m: m + bytes(8), "a message is damaged: .*"),
    "noise": (noise, "a message is damaged: a message of [0-9]+ bytes has no readable header"),
    "a header of 2^63 bytes": (lambda m: b"\xff" * 7 + b"\x7f" + m[8:], "a message is damaged: .* no readable header"),
    "a header beyond the limit": (lambda m: header(b" " * (2**24 + 1)), "the answer has 16777225 bytes, and .* needed"),
    "a header without end": (lambda m: header(b"[" * 10**4), "a message is damaged: maximum recursion depth.*"),
    "a header that is a list": (lambda m: header(b"[]"), "a message is damaged: it is not a JSON object"),
    "a header without ours": (lambda m: header(b"{}"), "a message is damaged: '__metadata__'"),
    "another protocol": (reply(protocol=1), "a message is damaged: a message of protocol 1, not 7: install .*"),
    "an unknown field": (reply(run_this="rm"), r"a message is malformed: \('run_this',\): Extra inputs .*"),
    "a wrong type": (reply(loss="low"), r"a message is malformed: \('loss',\): Input should be a valid number.*"),
    "an impossible shape": (
        impossible,
        r"a message is malformed: \('x', 'shape', 1\): .* less than or equal to 9007199254740992",
    ),
    "no message but words": (lambda m: "Flower: gone", "Flower: gone"),
    "another client's name": (reply(client="cleveland"), "the answer comes from client 'cleveland'"),
    "no client's name": (reply(client="nobody"), "the answer comes from client 'nobody'"),
    "an answer to no order": (reply(order=""), "the answer is to another order than the one just sent"),
    "an answer to another order": (reply(order="0" * 64), "the answer is to another order than the one just sent"),
    "another run": (reply(run="0123456789abcdef"), "its method, model or data columns are not those of this run: .*"),
    "a later round": (reply(round=10**30), r"a message is malformed: \('round',\): Input should be less .*"),
    "a refusal": (reply(status="refused", reason="no time"), "refused: no time"),
    "a failure": (reply(status="failed", reason="it rains"), "failed: it rains"),
    "a speech": (reply(status="failed", reason="x" * 501), r"a message is malformed: \('reason',\): .* 500 char.*"),
    "a missing leaf": (tensors(lambda f: dict(sorted(f.items())[1:])), "bad upload: leaf 'update:model/.*' is missing"),
    "no leaf": (tensors(lambda f: {}), "bad upload: leaf 'update:model/.*' is missing"),
    "a leaf too many": (tensors(lambda f: f | {"x": torch.ones(1)}), "bad upload: leaf 'x' is not expected"),
    "a personal leaf": (
        tensors(lambda f: f | {"own:personal/head.bias": torch.ones(2)}),
        "bad upload: leaf 'own:personal/head.bias' is not expected",
    ),
    "an unasked weight": (
        tensors(lambda f: f | {"weights:0:": torch.ones(())}),
        "bad upload: leaf 'weights:0:' is not expected",
    ),
    "a wrong shape": (
        each(lambda t: t.unsqueeze(0)),
        r"bad upload: 'update:model/.*' is torch.float32 \(1, .*, not .*",
    ),
    "a transposed leaf": (each(lambda t: t.t()), r"bad upload: .* is torch.float32 \(35, 64\), not .* \(64, 35\)"),
    "an empty leaf": (each(lambda t: t[:0]), r"bad upload: .* is torch.float32 \(0.*, not .*"),
    "doubles": (each(Tensor.double), "bad upload: .* is torch.float64 .*, not torch.float32 .*"),
    "integers": (each(Tensor.long), "bad upload: .* is torch.int64 .*, not torch.float32 .*"),
    "eighths": (each(lambda t: t.to(torch.float8_e4m3fn)), "bad upload: .* is torch.float8_e4m3fn .*, not .*"),
    "a NaN": (each(one(float("nan"))), "bad upload: 'update:model/.*' holds a NaN or an infinite value"),
    "an infinite value": (each(one(float("-inf"))), "bad upload: 'update:model/.*' holds a NaN or an infinite value"),
    "a score that is no number": (reply(scores=SCORED), "a message is damaged: it contains NaN, which is not JSON"),
    "too many scored examples": (
        reply(scores=ENDLESS),
        r"a message is malformed: \('scores', 'validation', 'examples'\): .*",
    ),
    "scored examples below 0": (
        reply(scores={"validation": {"examples": -1, "metrics": {}}}),
        r"a message is malformed: \('scores', 'validation', 'examples'\): .*",
    ),
}
CHOSEN: dict[str, tuple[Spoil, str]] = {
    "no choice": (reply(rows={}), r"bad upload: block 'model' chose model -1 of [0-9]"),
    "a choice out of range": (
        reply(rows={"model": 10**20}),
        r"a message is malformed: \('rows', 'model'\): Input should be less than or equal to 1000000000",
    ),
    "a choice of a model too many": (reply(rows={"model": 10**9}), "bad upload: .* chose model 1000000000 of [0-9]"),
    "a negative choice": (reply(rows={"model": -2}), r"a message is malformed: \('rows', 'model'\): .*"),
}
WEIGHED: dict[str, tuple[Spoil, str]] = {
    "a negative weight": (each(lambda t: -1 - t.abs(), "weights:"), "bad upload: 'weights:.*' holds a negative weight"),
    "a weight that is no number": (
        each(lambda t: t * float("nan"), "weights:"),
        "bad upload: 'weights:.*' holds a NaN.*",
    ),
    "an infinite weight": (each(lambda t: t + float("inf"), "weights:"), "bad upload: 'weights:.*' holds a NaN or .*"),
    "a weight of a wrong shape": (
        each(lambda t: t.unsqueeze(0), "weights:"),
        r"bad upload: 'weights:.* \(1,.*, not .*",
    ),
    "a weight of a wrong type": (
        each(Tensor.double, "weights:"),
        "bad upload: 'weights:.*' is torch.float64 .*, not .*",
    ),
    "a weight in eighths": (
        each(lambda t: t.to(torch.float8_e4m3fn), "weights:"),
        "bad upload: 'weights:.*' is torch.float8_e4m3fn .*, not .*",
    ),
    "no weight": (
        tensors(lambda f: {k: t for k, t in f.items() if not k.startswith("weights:")}),
        "bad upload: leaf 'weights:.*' is missing",
    ),
    "a weight for another leaf": (
        tensors(lambda f: {k.replace("weights:", "weights:x"): t for k, t in f.items()}),
        "bad upload: leaf 'weights:.*' is (missing|not expected)",
    ),
}
CASES: dict[str, dict[str, tuple[Spoil, str]]] = {
    "ditto+threshold": ANY,
    "ifca": CHOSEN,
    "qffl": WEIGHED,
    "fedproto": WEIGHED,
}


@dataclass(frozen=True)
class Conducted:
    """A run in which every round but the first and the last had one bad answer.

    Attributes:
        left_out: by round, the client that was left out, and why.
        differing: differences from a simulation with the clients that were not left out.
        counted: how often each client was left out, according to the metrics.
    """

    left_out: list[dict[str, str]]
    differing: list[str]
    counted: dict[str, int]


def spoiled(case: int) -> str:
    """The client whose answer is bad in a case."""
    return CLIENTS[case % len(CLIENTS)]


def conducted(home: Path, method: str) -> Conducted:
    cases = list(CASES[method].values())
    file = prepared(home, {"min_clients": 3}, method=method, rounds=len(cases) + 2, batch_size=256)
    carrier = Loopback([opened(home / client / "site.toml") for client in CLIENTS])
    asked = 0

    def spoil(address: int, answer: bytes) -> bytes | str:
        nonlocal asked
        order = unpack(next(body for where, body in reversed(carrier.log) if where == address), Order)[0]
        case = order.round - 1
        if order.request != "train" or not 0 <= case < len(cases) or CLIENTS[address - 100] != spoiled(case):
            return answer
        asked += 1
        return cases[case][0](answer)

    carrier.spoil = spoil
    Conductor(Plan.load(file), carrier, home / "out", wait=lambda seconds: None).run()
    assert asked == len(cases)
    left = [event["left_out"] for event in Journal(home / "out").events("round")]
    counted = re.findall(r'plures_left_out_total\{client="(\w+)"\} (\d+)', (home / "out" / METRICS).read_text())
    return Conducted(left, lost(file, home / "out"), {client: int(number) for client, number in counted})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conducted]:
    return {method: conducted(tmp_path_factory.mktemp("bad"), method) for method in CASES}


@pytest.mark.parametrize(("method", "case"), [(method, case) for method in CASES for case in CASES[method]])
def test_a_bad_answer_is_dropped_and_named(runs: dict[str, Conducted], method: str, case: str) -> None:
    number = list(CASES[method]).index(case)
    ((client, reason),) = runs[method].left_out[1 + number].items()
    assert client == spoiled(number)
    assert re.fullmatch(CASES[method][case][1], reason), reason


@pytest.mark.parametrize("method", CASES)
def test_rounds_with_a_bad_answer_are_those_of_the_others(runs: dict[str, Conducted], method: str) -> None:
    cases, found = len(CASES[method]), runs[method]
    assert found.differing == []
    assert found.left_out[0] == found.left_out[-1] == {}
    assert found.counted == {c: n for c in CLIENTS if (n := sum(spoiled(i) == c for i in range(cases)))}


def test_an_old_answer_does_not_count_again(tmp_path: Path) -> None:
    file = prepared(tmp_path, rounds=3)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    old: list[bytes] = []

    def replayed(address: int, answer: bytes) -> bytes:
        if address != 102 or unpack(answer, Reply)[0].facts is not None:
            return answer
        old.append(answer)
        return old[max(0, len(old) - 2)] if len(old) == 2 else answer

    carrier.spoil = replayed
    Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None).run()
    rounds = [event["left_out"] for event in Journal(tmp_path / "out").events("round")]
    assert rounds == [{}, {"switzerland": "the answer is to another order than the one just sent"}, {}]
    assert lost(file, tmp_path / "out") == []


@pytest.mark.parametrize("final", ["score", "publish"])
def test_a_bad_answer_at_the_end_costs_only_its_sender(tmp_path: Path, final: str) -> None:
    file = prepared(tmp_path, {"patience": 2}, rounds=2)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])

    def spoil(address: int, answer: bytes) -> bytes:
        asked = unpack(next(body for where, body in reversed(carrier.log) if where == address), Order)[0].request
        return header(b"[" * 10**6) if address == 101 and asked == final else answer

    carrier.spoil = spoil
    Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None).run()
    result = json.loads((tmp_path / "out" / RESULT).read_text())
    assert list(result["unpublished"]) == (["hungarian"] if final == "publish" else [])
    assert lost(file, tmp_path / "out") == []


SELF = ClientFacts(examples=10)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (Reply(client="nobody", facts=SELF), "client 'nobody' does not belong to this federation"),
        (Reply(client="hungarian"), "client 'hungarian' does not belong to this federation"),
        (Reply(client="hungarian", status="refused", reason="not today"), "client 'hungarian': not today"),
    ],
)
def test_who_is_not_taken_in_is_named(tmp_path: Path, said: Reply, reason: str) -> None:
    file = prepared(tmp_path, {"join_deadline": 0.01})
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])

    def spoil(address: int, answer: bytes) -> bytes:
        return pack(said.model_copy(update={"order": unpack(answer, Reply)[0].order})) if address == 101 else answer

    carrier.spoil = spoil
    with pytest.raises(PluresError, match=rf"clients hungarian did not join .*\({reason}\)"):
        Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None).run()


@pytest.mark.parametrize("spoil", [noise, lambda m: b"", lambda m: header(b"[" * 10**6), reply(facts={"examples": 0})])
def test_a_bad_greeting_is_not_taken_in(tmp_path: Path, spoil: Spoil) -> None:
    file = prepared(tmp_path, {"join_deadline": 0.01})
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    carrier.spoil = lambda address, answer: spoil(answer) if address == 101 else answer
    with pytest.raises(PluresError, match=r"clients hungarian did not join within 0\.01 seconds"):
        Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None).run()


def mutant(message: bytes, number: int) -> bytes:
    """A message with some bytes of its header, or of its tensors, replaced, removed and inserted at random."""
    random, body, length = np.random.default_rng(number), bytearray(message), int.from_bytes(message[:8], "little")
    for _ in range(random.choice([1, 2, 8])):
        place = 8 + int(random.integers(length if random.random() < 0.8 else len(body) - 16))
        some = bytes(random.choice(list(b'0123456789"{}[]:,-e \x00\xff'), size=random.integers(1, 6)).tolist())
        body[place : place + int(random.integers(6))] = some
    if random.random() < 0.5:
        body[:8] = max(1, length + len(body) - len(message)).to_bytes(8, "little")
    return bytes(body)


def test_whatever_arrives_is_taken_or_refused(tmp_path: Path) -> None:
    file = prepared(tmp_path, method="fedproto")
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    job = Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None)
    job.join()
    remote = job.begin()
    remote.clients.evaluate = ("validation",)
    remote.clients.exchange(remote, [0], "train", remote.server)
    good, refused = carrier.answers[-1][1], 0
    assert isinstance(good, bytes)
    answered = unpack(good, Reply)[0].order.encode()
    for number in range(400):
        bad = mutant(good, number)
        carrier.exchange = lambda messages, deadline, bad=bad: {
            address: bad.replace(answered, digest(message).encode()) for address, message in messages.items()
        }
        try:
            remote.clients.work(remote, [0], remote.server)
        except TooFewError:
            refused += 1
    assert refused > 300
