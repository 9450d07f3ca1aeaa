"""Each field of every message, both ways, has a type, a range and a size; a violation harms no other client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answers import each, header, reply, tensors, told
from benchmarks.aftermath import CLIENTS, lost, prepared
from sites import Loopback, elsewhere, far

import plures.remote.bounds as server
import plures.remote.clients as conversation
import plures.remote.site as local
from newcomers import clients
from plures.deploy.app import opened
from plures.deploy.conduct import CHECKPOINT, RESULT, Conductor, limited
from plures.deploy.journal import LOG, METRICS, Journal
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.evaluate.scores import Scores
from plures.files import describe
from plures.method import SGD
from plures.methods import fedavg
from plures.metrics.errors import rmse
from plures.remote.bounds import OUTWEIGHS
from plures.remote.clients import over_sites
from plures.remote.message import (
    MAX_COUNT,
    MAX_NUMBER,
    ClientFacts,
    Opening,
    Order,
    Place,
    Pledge,
    Reply,
    Scored,
    clean,
    digest,
    head,
    pack,
    unpack,
)
from plures.remote.sites import Sites, agreed
from plures.report.catalogue import model
from plures.run import Training

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
BAD = "switzerland"
PLACE = 102
INK = "\x1b[2J\n\u202e\u2028\x00"
"""Characters that clear a terminal, start a line, reverse text direction, separate lines, and end a C string."""


# --- what is declared -----------------------------------------------------------------------------------------------


def unbounded(schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Parts of a JSON schema that may be of any size."""
    kind = schema.get("type")
    if "enum" in schema or "const" in schema:
        return
    if kind in ("integer", "number") and not {"minimum", "maximum"} <= schema.keys():
        yield where
    if kind == "string" and "maxLength" not in schema:
        yield where
    if kind == "array":
        if "maxItems" not in schema:
            yield where
        for item in [schema.get("items", {}), *schema.get("prefixItems", [])]:
            yield from unbounded(item, f"{where}[]")
    if kind == "object" and "properties" not in schema:
        if "maxProperties" not in schema:
            yield where
        yield from unbounded({"type": "string", **schema.get("propertyNames", {})}, f"{where} key")
        yield from unbounded(schema["additionalProperties"], f"{where} value")
    for name, inner in schema.get("properties", {}).items():
        yield from unbounded(inner, f"{where}.{name}")
    for other in schema.get("anyOf", []):
        yield from unbounded(other, where)
    for name, inner in schema.get("$defs", {}).items():
        yield from unbounded(inner, name)


@pytest.mark.parametrize("kind", [Order, Reply, ClientFacts, Scored, Pledge, Opening, Place])
def test_every_field_of_every_message_is_bounded(kind: Any) -> None:
    assert list(unbounded(kind.model_json_schema())) == []
    assert kind.model_config["strict"]
    assert kind.model_config["extra"] == "forbid"
    assert kind.model_config["allow_inf_nan"] is False


def test_a_field_without_bounds_would_be_found() -> None:
    assert list(unbounded({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}})) == [
        ".a",
        ".a[]",
    ]


# --- JSON and tensors, both ways ------------------------------------------------------------------------------------


def outer(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """The same message, except for the description of its tensors."""

    def spoil(message: bytes) -> bytes:
        whole, length = told(message), int.from_bytes(message[:8], "little")
        change(whole)
        return header(json.dumps(whole).encode(), message[8 + length :])

    return spoil


def inner(text: str) -> Callable[[bytes], bytes]:
    """The same message with another text as its JSON part."""
    return outer(lambda whole: whole["__metadata__"].update(plures=text))


def first(**changes: Any) -> Callable[[bytes], bytes]:
    """The same message, except for what its description says about the first tensor."""
    return outer(lambda whole: next(v for k, v in whole.items() if k != "__metadata__").update(changes))


def doubled(message: bytes) -> bytes:
    length = int.from_bytes(message[:8], "little")
    text = message[8 : 8 + length].rstrip().decode()
    name = next(k for k in told(message) if k != "__metadata__")
    again = text[:-1] + f", {json.dumps(name)}: {json.dumps(told(message)[name])}}}"
    return header(again.encode(), message[8 + length :])


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "a field that stands twice": inner('{"protocol": 3, "protocol": 3}'),
    "a tensor that stands twice": doubled,
    "NaN": inner('{"protocol": 3, "round": NaN}'),
    "infinity": inner('{"protocol": 3, "round": -Infinity}'),
    "an exponent beyond all numbers": reply(round=1e300),
    "a number of 5000 digits": inner(f'{{"protocol": 3, "round": {"9" * 5000}}}'),
    "a number of 200 digits": reply(round=10**200),
    "a round that is a float": reply(round=1.0),
    "a round that is a boolean": reply(round=True),
    "a round below 0": reply(round=-1),
    "a protocol of 5000 digits": inner(f'{{"protocol": {"3" * 4000}}}'),
    "deep lists": inner('{"protocol": 3, "round": ' + "[" * 5000 + "]" * 5000 + "}"),
    "deep objects": inner('{"protocol": 3, "x": ' + '{"a":' * 5000 + "1" + "}" * 5001),
    "a list": inner("[3]"),
    "a text": inner('"3"'),
    "no text": inner(""),
    "half a sign": reply(client="\ud800"),
    "an unknown field": reply(extra=1),
    "metadata of two kinds": outer(lambda whole: whole["__metadata__"].update(plures=3)),
    "a negative size": first(shape=[-1, 4]),
    "a size that is a float": first(shape=[2.5]),
    "a size beyond all memory": first(shape=[2**40, 2**40]),
    "a thousand dimensions": first(shape=[1] * 1000),
    "an odd type": first(dtype="Q7"),
    "a type of a megabyte": first(dtype="F" * 10**6),
    "offsets that overlap": first(data_offsets=[0, 0]),
    "offsets the wrong way": first(data_offsets=[8, 4]),
    "offsets beyond the end": first(data_offsets=[0, 2**60]),
    "a name of a megabyte": outer(lambda whole: whole.update({"x" * 10**6: whole.pop(list(whole)[-1])})),
    "a tensor without a type": outer(lambda whole: whole[list(whole)[-1]].pop("dtype")),
}


def fit(text: str) -> bool:
    """Whether a text is fit for a log and a terminal."""
    return text.isprintable() and len(text) <= 700


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_one_clear_error(case: str) -> None:
    leaves = {"a": torch.ones(4, 4), "b": torch.ones(3)}
    for kind, whole in ((Reply, Reply(client="a")), (Order, Order(request="train"))):
        with pytest.raises(PluresError, match=r"a message is (damaged|malformed)") as error:
            unpack(DAMAGED[case](pack(whole, leaves)), kind)
        assert fit(str(error.value))


@pytest.mark.parametrize("odd", [{"accepted": 3}, {"keep": 3}, {"evaluate": ("train",)}, {"nonce": "f" * 31}])
def test_an_order_that_contradicts_itself_is_malformed(odd: dict[str, Any]) -> None:
    fields = {"nonce": "0" * 32, "evaluate": (), "round": 2, "accepted": 2, "keep": 1}
    assert unpack(pack(Order.model_construct(request="train", **fields)), Order)[0].round == 2
    with pytest.raises(PluresError, match="a message is malformed"):
        unpack(pack(Order.model_construct(request="train", **(fields | odd))), Order)


# --- a server and one bad site --------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an accuracy of a billion": (
        reply(scores={"validation": {"examples": 3, "metrics": {"accuracy": 1e9}}}),
        "bad scores: 'accuracy' on validation examples is 1e+09, not between 0 and 1",
    ),
    "an accuracy below nothing": (
        reply(scores={"validation": {"examples": 3, "metrics": {"accuracy": -1e-9}}}),
        "bad scores: 'accuracy' on validation examples is -1e-09, not between 0 and 1",
    ),
    "an infinite accuracy": (
        reply(scores={"validation": {"examples": 3, "metrics": {"accuracy": float("inf")}}}),
        "a message is damaged: it contains Infinity, which is not JSON",
    ),
    "a metric that nobody knows": (
        reply(scores={"validation": {"examples": 3, "metrics": {INK: 0.5}}}),
        "bad scores: '\ufffd[2J\ufffd\ufffd\ufffd\ufffd' is not a metric of this task",
    ),
    "scores of what it was trained on": (
        reply(scores={"train": {"examples": 3, "metrics": {}}}),
        "a message is malformed: ('scores', 'train', '[key]'): Input should be 'validation' or 'test'",
    ),
    "a loss that is no number": (
        reply(loss=float("nan")),
        "a message is damaged: it contains NaN, which is not JSON",
    ),
    "an infinite objective": (
        reply(objective=float("-inf")),
        "a message is damaged: it contains -Infinity, which is not JSON",
    ),
    "a loss beyond use": (
        reply(loss=1e300),
        "a message is malformed: ('loss',): Input should be less than or equal to 1000000000000000",
    ),
    "seconds below 0": (
        reply(seconds=-1.0),
        "a message is malformed: ('seconds',): Input should be greater than or equal to 0",
    ),
    "a reason that clears the terminal": (
        reply(status="failed", reason=f"{INK}hello"),
        "failed: \ufffd[2J\ufffd\ufffd\ufffd\ufffdhello",
    ),
    "a name of 15 MB": (
        lambda m: outer(lambda whole: whole.update({"x" * 15_000_000: whole.pop(list(whole)[-1])}))(m),
        "the answer has 15011149 bytes, and 82045 at most are needed",
    ),
    "another name": (
        outer(lambda whole: whole.update({f"{INK}evil": whole.pop(list(whole)[-1])})),
        "bad upload: leaf '\ufffd[2J\ufffd\ufffd\ufffd\ufffdevil' is not expected",
    ),
    "40 MB of numbers": (
        tensors(lambda found: found | {"x": torch.zeros(10**7)}),
        "the answer has 40011264 bytes, and 82045 at most are needed",
    ),
    "finite numbers times 1e30": (
        each(lambda t: t * 1e30),
        "bad upload: it is 1e+31 away from what was sent (L2 norm), and [rules] max_norm allows 1000",
    ),
    "the name of another": (
        reply(client=f"va{INK}"),
        "the answer comes from client 'va\ufffd[2J\ufffd\ufffd\ufffd\ufffd'",
    ),
}


def numbers(text: str) -> str:
    """A sentence without the numbers that depend on the model."""
    return "".join("#" if sign.isdigit() or sign in ".e+" else sign for sign in text)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """A run in which every round but the first and the last had one such answer; returns who was left out, by round."""
    home = tmp_path_factory.mktemp("bounds")
    file = prepared(home, {"min_clients": 3}, rounds=len(ANSWERS) + 2, batch_size=256)
    carrier = Loopback([opened(home / client / "site.toml") for client in CLIENTS])
    cases = list(ANSWERS.values())

    def spoil(address: int, answer: bytes) -> bytes:
        order = unpack(next(body for where, body in reversed(carrier.log) if where == address), Order)[0]
        if address != PLACE or order.request != "train" or not 0 <= order.round - 1 < len(cases):
            return answer
        return cases[order.round - 1][0](answer)

    carrier.spoil = spoil
    Conductor(Plan.load(file), carrier, home / "out", wait=lambda seconds: None).run()
    return file, [event["left_out"] for event in Journal(home / "out").rounds()]


@pytest.mark.parametrize("case", ANSWERS)
def test_a_bad_answer_is_named(attacked: tuple[Path, list[dict[str, str]]], case: str) -> None:
    left = attacked[1][1 + list(ANSWERS).index(case)]
    assert list(left) == [BAD]
    assert numbers(left[BAD]).replace("#", "") == numbers(ANSWERS[case][1]).replace("#", "")
    assert fit(left[BAD])


def test_the_others_reach_what_they_would_have(attacked: tuple[Path, list[dict[str, str]]]) -> None:
    file, left = attacked
    assert left[0] == left[-1] == {}
    assert lost(file, file.parent / "out") == []


def strictly(text: str) -> Any:
    """Strict JSON, as the standard defines it."""

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refused)


def sound(folder: Path) -> None:
    """The log, the metrics and the result of a run are valid and of a sensible size."""
    for line in (folder / LOG).read_text().splitlines():
        assert strictly(line)["event"]
        assert len(line) < 20_000
    if (folder / RESULT).exists():
        strictly((folder / RESULT).read_text())
    for line in (folder / METRICS).read_text().splitlines():
        assert line.startswith("#") or float(line.rpartition(" ")[2]) is not None
        assert line.isprintable()


def test_what_is_kept_of_it_is_valid(attacked: tuple[Path, list[dict[str, str]]]) -> None:
    sound(attacked[0].parent / "out")


def test_an_answer_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation, _ = clients()
    training = Training(rounds=1, batch_size=8, steps=2, optimizer=SGD(0.05))
    remote, carrier = far(federation, model, fedavg(), training, tmp_path)
    read: list[int] = []
    true = server.head
    monkeypatch.setattr(server, "head", lambda message, *rest: read.append(len(message)) or true(message, *rest))
    carrier.spoil = lambda address, answer: answer + bytes(10**6) if address == 101 else answer
    record = remote.step()
    assert record.left_out["b"].startswith("the answer has 100")
    assert max(read) < 10**6
    assert len(read) == 4


# --- greetings ------------------------------------------------------------------------------------------------------

GREETINGS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "as many examples as there are atoms": (reply(facts={"examples": 10**30}), "malformed: ('facts', 'examples')"),
    "one more than can be": (reply(facts={"examples": MAX_COUNT + 1}), "malformed: ('facts', 'examples')"),
    "no example": (reply(facts={"examples": 0}), "malformed: ('facts', 'examples')"),
    "half an example": (reply(facts={"examples": 1.5}), "malformed: ('facts', 'examples')"),
    "a whole number as a float": (reply(facts={"examples": 5.0}), "malformed: ('facts', 'examples')"),
    "a boolean": (reply(facts={"examples": True}), "malformed: ('facts', 'examples')"),
    "a text": (reply(facts={"examples": "5"}), "malformed: ('facts', 'examples')"),
    "labels that are floats": (reply(facts={"examples": 5, "labels": [2.0, 3.0]}), "malformed: ('facts', 'labels', 0)"),
    "labels below 0": (reply(facts={"examples": 5, "labels": [8, -3]}), "malformed: ('facts', 'labels', 1)"),
    "labels of another sum": (
        reply(facts={"examples": 5, "labels": [3, 3]}),
        "client 'switzerland' tells 5 examples and 6 labels: its site must check its data",
    ),
    "labels of a class too many": (
        reply(facts={"examples": 5, "labels": [2, 3, 0]}),
        "client 'switzerland' tells 3 label counts for 2 classes: its site must check its data",
    ),
    "no labels where all tell them": (
        reply(facts={"examples": 5}),
        "client 'switzerland' does not tell 'labels', which the members agreed to tell",
    ),
    "a million labels": (reply(facts={"examples": 5, "labels": [0] * 10**6}), "the answer has "),
    "metadata without end": (reply(facts={"examples": 5, "metadata": {"a": 1e300}}), "malformed: ('facts', 'metadata'"),
    "metadata that is a list": (
        reply(facts={"examples": 5, "metadata": {"a": [1]}}),
        "malformed: ('facts', 'metadata'",
    ),
    "a metadata text of a megabyte": (reply(facts={"examples": 5, "metadata": {"a": "x" * 10**6}}), "the answer has "),
    "a thousand columns": (
        reply(facts={"examples": 5, "metadata": {f"column {i}": 1.0 for i in range(1001)}}),
        "malformed: ('facts', 'metadata')",
    ),
    "tensors": (lambda m: pack(unpack(m, Reply)[0], {"x": torch.ones(3)}), "bad upload: leaf 'x' is not expected"),
}


@pytest.mark.parametrize("case", GREETINGS)
def test_a_greeting_out_of_range_is_named_and_nobody_crashes(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = prepared(tmp_path, {"join_deadline": 0.01})
    file.write_text(file.read_text().replace("[run]", 'tells = ["examples", "labels"]\n[run]', 1))
    for client in CLIENTS:
        own = tmp_path / client / "site.toml"
        told_of = re.sub("(?m)^tell = .*\n", "", own.read_text())
        own.write_text(f'{told_of}tell = ["examples", "labels"]\n')
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    carrier.spoil = lambda address, answer: GREETINGS[case][0](answer) if address == PLACE else answer
    with pytest.raises(PluresError, match="clients switzerland did not join"):
        Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None).run()
    assert GREETINGS[case][1] in caplog.text


def test_what_was_not_agreed_on_is_dropped(tmp_path: Path) -> None:
    file = prepared(tmp_path, rounds=2)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    carrier.spoil = lambda address, answer: (
        reply(facts={"examples": 9, "labels": [4, 5], "metadata": {"spy": "x" * 200, "age": 3.0}})(answer)
        if address == PLACE and unpack(answer, Reply)[0].facts
        else answer
    )
    job = Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None)
    job.join()
    assert job.sites.facts[BAD] == ClientFacts(examples=9)
    assert job.begin().setting.metadata == {}
    for _, message in carrier.log:
        assert b"spy" not in message


def test_facts_that_were_agreed_on_must_come() -> None:
    task = elsewhere(clients()[0]).task
    with pytest.raises(PluresError, match="client 'a' does not tell 'age', which the members agreed to tell"):
        agreed("a", ClientFacts(examples=5, metadata={"age": None}), task, ("examples", "age"))
    found = agreed("a", ClientFacts(examples=5, metadata={"age": 3, "spy": 1}), task, ("examples", "age"))
    assert found == ClientFacts(examples=5, metadata={"age": 3})


def test_the_largest_facts_are_worked_with(tmp_path: Path) -> None:
    """The largest number of examples and the largest values that may be reported pass through a whole run."""
    federation, _ = clients()
    training = Training(rounds=2, batch_size=8, steps=2, optimizer=SGD(0.05))
    _, carrier = far(federation, model, fedavg(), training, tmp_path, tells=("examples",))
    known = Sites(carrier, federation.clients, tells=("examples",), task=federation.task)
    carrier.spoil = lambda address, answer: reply(facts={"examples": MAX_COUNT})(answer)
    known.meet()
    carrier.spoil = lambda address, answer: answer
    again = over_sites(elsewhere(federation), model, fedavg(), known, training)
    assert len(again.step().cohort) == 5
    assert again.setting.facts["examples"].sum() == 5 * MAX_COUNT
    assert all(bool(t.isfinite().all()) for kept in again.server.values() for t in kept.values.values())
    assert torch.finfo(torch.float32).max > (MAX_NUMBER**2) * 1e5


# --- how much one client's report can change --------------------------------------------------------------------------


def test_a_weight_that_a_client_computes_is_bounded(tmp_path: Path) -> None:
    file = prepared(tmp_path, method="qffl", rounds=3)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    spoils = {1: each(lambda t: t * 1e12, "weights:"), 2: each(lambda t: torch.full_like(t, 1e8), "weights:")}
    used: list[dict[int, float]] = []

    def spoil(address: int, answer: bytes) -> bytes:
        order = unpack(next(body for where, body in reversed(carrier.log) if where == address), Order)[0]
        bad = address == PLACE and order.request == "train" and order.round in spoils
        return spoils[order.round](answer) if bad else answer

    carrier.spoil = spoil
    job = Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None)
    true = server.balance

    def seen(run: Any, valid: Any) -> None:
        true(run, valid)
        name = next(name for name in server.expected(run) if name.startswith("weights:"))
        used.append({client: float(tensors[name]) for client, (_, tensors) in valid.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation, "balance", seen)
        job.run()
    left = [event["left_out"] for event in Journal(tmp_path / "out").rounds()]
    assert left == [{}, {BAD: "bad upload: 'weights:0:' holds a weight above 1e+09"}, {}]
    others = sum(weight for client, weight in used[2].items() if client != 2)
    assert used[2][2] == pytest.approx(OUTWEIGHS * others)


def test_no_single_value_without_a_limit_chooses_the_round() -> None:
    def scores(*values: float) -> Scores:
        return Scores(tuple("abcd"), np.ones(4, dtype=np.int64), {"rmse": np.array(values)})

    assert limited(scores(1, 2, 3, 1e12), rmse).values["rmse"].tolist() == [1, 2, 3, 25]
    assert limited(scores(1, 2, 3, 4), rmse).values["rmse"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "\u202eabc", "\u2028", "\ud800", "\x00", "\x9b2J", "\u200b"])
def test_texts_are_cleaned(text: str) -> None:
    assert clean(text).isprintable()
    assert len(clean(text * 10_000)) == 500


def test_what_is_printable_stays() -> None:
    assert clean("Zürich, Łódź and 東京: 5 % (œ)") == "Zürich, Łódź and 東京: 5 % (œ)"


# --- fuzz -----------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**53 + 1, 2**63, 10**30, 0.5, -1e300, 1e308, float("nan"), float("inf")),
    *("", "x", INK, "x" * 10**4, "\ud800", [], [1], ["train"], [[]] * 9, {}, {"x": 1}, {"validation": {}}, {INK: INK}),
]


def mutant(message: bytes, random: np.random.Generator) -> bytes:
    """A message with a field, a tensor's description, some bytes or its length changed at random."""
    whole, length = told(message), int.from_bytes(message[:8], "little")
    rest, kind = message[8 + length :], random.integers(7)
    names = [name for name in whole if name != "__metadata__"]
    value = VALUES[random.integers(len(VALUES))]
    if kind <= 1:
        fields = json.loads(whole["__metadata__"]["plures"])
        place = fields
        while True:
            key = list(place)[random.integers(len(place))] if isinstance(place, dict) and place else "new"
            if not isinstance(place.get(key), dict) or not place[key] or random.random() < 0.4:
                break
            place = place[key]
        place[key] = value
        whole["__metadata__"]["plures"] = json.dumps(fields)
    elif kind == 2 and names:
        whole[names[random.integers(len(names))]][("dtype", "shape", "data_offsets")[random.integers(3)]] = value
    elif kind == 3 and names:
        name = names[random.integers(len(names))]
        whole[str(value)[:5000] if random.random() < 0.7 else name[::-1]] = whole.pop(name)
    elif kind == 4 and rest:
        flat = bytearray(rest)
        for _ in range(random.integers(1, 40)):
            flat[random.integers(len(flat))] = random.integers(256)
        rest = bytes(flat)
    elif kind == 5:
        body = bytearray(message)
        for _ in range(random.integers(1, 9)):
            body[random.integers(len(body))] = random.integers(256)
        return bytes(body)
    else:
        return message[: random.integers(len(message) + 1)] + bytes(random.integers(9))
    return header(json.dumps(whole).encode("utf-8", "surrogatepass"), rest)


@pytest.mark.parametrize("seed", range(3))
def test_a_site_that_answers_at_random_harms_nobody(tmp_path: Path, seed: int) -> None:
    """Every answer of one site, except greetings, is spoiled; the server is stopped in the middle and resumes."""
    method = ("ditto+threshold", "ifca", "qffl")[seed]
    file = prepared(tmp_path, {"min_clients": 3, "patience": 2}, method=method, rounds=20, batch_size=512)
    carrier = Loopback([opened(tmp_path / client / "site.toml") for client in CLIENTS])
    random = np.random.default_rng(seed)
    stop = True

    def spoil(address: int, answer: bytes) -> bytes:
        nonlocal stop
        order = unpack(next(body for where, body in reversed(carrier.log) if where == address), Order)[0]
        if order.round == 10 and stop:
            stop = False
            raise KeyboardInterrupt
        return mutant(answer, random) if address == PLACE and order.request != "join" else answer

    carrier.spoil = spoil
    with pytest.raises(KeyboardInterrupt):
        Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None).run()
    assert describe(tmp_path / "out" / CHECKPOINT)["round"] == 10
    Conductor(Plan.load(file), carrier, tmp_path / "out", wait=lambda seconds: None).run()
    rounds = Journal(tmp_path / "out").rounds()
    assert [event["round"] for event in rounds] == list(range(1, 21))
    for event in rounds:
        assert set(event["left_out"]) <= {BAD}
        assert all(fit(reason) for reason in event["left_out"].values())
    assert sum(len(event["left_out"]) for event in rounds) > 10
    sound(tmp_path / "out")
    result = strictly((tmp_path / "out" / RESULT).read_text())["result"]
    assert all(0 <= point["validation"] <= 1 for point in result["curve"])
    final = result["test"]["metrics"]["accuracy"]
    assert np.mean([final[i] for i in (0, 1, 3)]) > 0.6


def test_whatever_a_server_orders_a_site_answers(tmp_path: Path) -> None:
    """It always answers, in bounded time and size; its files stay readable, and the honest order is carried out."""
    federation, _ = clients()
    training = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))
    remote, carrier = far(federation, model, fedavg(), training, tmp_path)
    order, leaves = remote.clients.order(remote, 1, "train", remote.server)
    site, random, done = carrier.sites[101], np.random.default_rng(0), 0
    for _ in range(300):
        message = mutant(pack(order, leaves), random)
        said, names = head(site.answer(message), Reply)
        assert said.order == digest(message)
        assert said.client == "b"
        assert fit(said.reason)
        assert (said.status == "done") == bool(names) or said.facts is not None
        done += said.status == "done"
    assert done < 100
    said = head(site.answer(pack(order, leaves)), Reply)[0]
    assert said.status == "done" or "it has answered another order of round 1" in said.reason


def test_an_order_longer_than_the_run_needs_is_refused_and_its_leaves_stay_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, _ = clients()
    training = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))
    remote, carrier = far(federation, model, fedavg(), training, tmp_path)
    order, leaves = remote.clients.order(remote, 1, "train", remote.server)
    read: list[int] = []
    true = local.body
    monkeypatch.setattr(local, "body", lambda message: read.append(len(message)) or true(message))
    said, names = head(carrier.sites[101].answer(pack(order, leaves | {"x": torch.zeros(10**6)})), Reply)
    assert re.fullmatch(r"the order has 4\d{6} bytes, and \d{6} at most are needed", said.reason)
    assert said.status == "refused"
    assert names == set()
    assert read == []
    assert head(carrier.sites[101].answer(pack(order, leaves)), Reply)[0].status == "done"


def test_a_site_does_not_send_what_the_rules_refuse_and_may_be_asked_again(tmp_path: Path) -> None:
    """Otherwise it would have answered the round, and a corrected order for that round would get no other answer."""
    federation, _ = clients()
    training = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))
    remote, carrier = far(federation, model, fedavg(), training, tmp_path)
    site = carrier.sites[101]
    order, leaves = remote.clients.order(remote, 1, "train", remote.server)
    site.max_norm = 1e-3
    said, names = head(site.answer(pack(order, leaves)), Reply)
    assert re.fullmatch(r"its update has L2 norm 0\.\d+, and \[rules\] max_norm allows 0\.001", said.reason)
    assert (said.status, names) == ("failed", set())
    site.max_norm = 1000.0
    assert (
        head(site.answer(pack(order, {k: t + 0.1 if t.is_floating_point() else t for k, t in leaves.items()})), Reply)[
            0
        ].status
        == "done"
    )
