"""What a lying coordinator can get out of a site: the answers to the agreed questions, each once, and no more."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hospitals import simulated, written
from sites import Loopback, conductor, far
from torch import nn

from plures import from_arrays
from plures.deploy.app import opened
from plures.deploy.journal import Journal
from plures.deploy.plan import Plan, SiteFile
from plures.errors import PluresError
from plures.evaluate.code import NOTHING
from plures.federation import Federation
from plures.method import SGD, Method
from plures.methods import fedavg, fedper, fedrep, gradient_clusters, ifca
from plures.models import with_roles
from plures.remote import ledger as ledgers
from plures.remote.allowed import TRAINING, Allowed
from plures.remote.clients import Remote
from plures.remote.ledger import LEDGER, TRIES
from plures.remote.message import HEADER, ClientFacts, Order, Reply, pack, unpack
from plures.remote.site import Site
from plures.remote.state import leave
from plures.run import Training
from plures.run.coordinator import Coordinator
from plures.tables.heart import heart_tables

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
ROUNDS = 3
TRAINED = Training(rounds=ROUNDS, batch_size=16, steps=2, optimizer=SGD(0.05))
SERVED = Allowed(send=("model",), tell=("examples",))
Tensors = dict[str, torch.Tensor]


def people(sizes: tuple[int, ...] = (100, 80)) -> Federation:
    generator = np.random.default_rng(4)
    owner = np.repeat(list("abcdef")[: len(sizes)], sizes)
    x = generator.normal(size=(len(owner), 5))
    return from_arrays(x, (x[:, 0] + generator.normal(size=len(owner)) > 0).astype(int), owner, seed=0)


def net() -> nn.Module:
    return with_roles(nn.Sequential(nn.Linear(5, 16), nn.Linear(16, 2)), head="1")


def federated(
    folder: Path, method: Method | None = None, allowed: Allowed = SERVED, data: Federation | None = None
) -> tuple[Coordinator[Remote], Site]:
    """A coordinator, and the site of its first client."""
    data = people() if data is None else data
    remote, carrier = far(data, net, method or fedavg(), TRAINED, folder, allowed=allowed, tells=("examples",))
    return remote, carrier.sites[100]


def asked(remote: Coordinator[Remote], request: Any = "train", **changes: Any) -> tuple[Order, Tensors]:
    """An order to the first client, with arbitrary values for some of its fields."""
    order, tensors = remote.clients.order(remote, 0, request, remote.server)
    return order.model_copy(update=changes), tensors


def said(site: Site, order: Order, tensors: Tensors | None = None) -> tuple[Reply, Tensors]:
    """What a site answers to an order."""
    nonce = Order(request="join").nonce
    return unpack(site.answer(pack(order.model_copy(update={"nonce": nonce}), tensors)), Reply)


def why(reply: Reply) -> str:
    return f"{reply.status}: {reply.reason}"


def trained(remote: Coordinator[Remote], site: Site, *rounds: int) -> list[Reply]:
    """Orders of some rounds, as they were agreed."""
    found, version = [], 0
    for round in rounds:
        found.append(said(site, *asked(remote, round=round, accepted=version, evaluate=("validation",)))[0])
        version = round + 1
    assert [reply.status for reply in found] == ["done"] * len(rounds)
    return found


def held(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != "lock")


class Forgetful:
    """A ledger that records nothing: a site without a ledger."""

    named: frozenset[int] = frozenset()

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def answer(self, *_: Any) -> None: ...

    def claim(self, *_: Any) -> None: ...

    def close(self, *_: Any) -> None: ...

    def measured(self, *_: Any) -> None: ...


# what a liar got ------------------------------------------------------------------------------------------------------


def recovered(answers: list[tuple[torch.Tensor, float]], share: float) -> torch.Tensor:
    """What the difference of a head's rows must be, given losses ``(features, loss)`` where all examples look alike."""
    h, loss = torch.stack([h for h, _ in answers]), torch.tensor([loss for _, loss in answers], dtype=torch.float64)
    best, found = float("inf"), torch.zeros(17, dtype=torch.float64)
    for start in range(8):
        x = torch.randn(17, generator=torch.Generator().manual_seed(start), dtype=torch.float64).mul(0.3)
        x.requires_grad_()
        search = torch.optim.LBFGS(
            [x], max_iter=400, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def miss(x: torch.Tensor = x) -> torch.Tensor:
            z = h @ x[:16] + x[16]
            return (share * F.softplus(-z) + (1 - share) * F.softplus(z) - loss).square().sum()

        def step(search: Any = search, miss: Any = miss) -> torch.Tensor:
            search.zero_grad()
            value = miss()
            value.backward()
            return value

        search.step(step)
        if float(miss().detach()) < best:
            best, found = float(miss().detach()), x.detach().clone()
    return found


def head_attacked(remote: Coordinator[Remote], site: Site) -> tuple[list[tuple[torch.Tensor, float]], torch.Tensor]:
    """131 scores of made-up bodies that show every example as the same features; and the head that never travels."""
    said(site, *asked(remote))
    (file,) = site.folder.glob("state-*")
    own = ledgers.read(file)[0]
    weight, bias = own["own:model/1.weight"].double(), own["own:model/1.bias"].double()
    generator, answers = torch.Generator().manual_seed(7), []
    for number in range(131):
        h = torch.randn(16, generator=generator) * 2
        for request, round in (("train", min(number + 1, ROUNDS - 1)), ("score", ROUNDS)):
            order, tensors = asked(remote, request, round=round, accepted=1, evaluate=("validation",))
            made = {k: torch.zeros_like(t) if "weight" in k else h.expand(t.shape).clone() for k, t in tensors.items()}
            reply, _ = said(site, order, made)
            if "validation" in reply.scores:
                answers.append((h.double(), reply.scores["validation"].metrics["loss"]))
                break
    return answers, torch.cat([weight[1] - weight[0], (bias[1] - bias[0]).reshape(1)])


@pytest.mark.parametrize("ledger", [False, True])
def test_a_head_that_never_travels_is_not_recovered_from_scores(ledger, tmp_path, monkeypatch):
    data = people()
    allowed = SERVED if ledger else replace(SERVED, digits=17)
    if not ledger:
        monkeypatch.setattr("plures.remote.site.Ledger", Forgetful)
    remote, site = federated(tmp_path, fedper(), allowed, data)
    answers, head = head_attacked(remote, site)
    share = float(data.targets[data.splits["validation"][0]].double().mean())
    error = float((recovered(answers, share) - head).norm() / head.norm())
    if ledger:
        assert len(answers) == ROUNDS
        assert error > 0.5
    else:
        assert len(answers) == 131
        assert error < 1e-4


def elders() -> Federation:
    """Two clients whose only fact is the age in years, 85 of them."""
    generator = np.random.default_rng(2)
    age = generator.integers(1, 86, size=1200).astype(np.float32)
    sick = (generator.random(1200) < age / 90).astype(int)
    return from_arrays(age[:, None], sick, np.repeat(["a", "b"], 600), seed=0)


def bump() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize("ledger", [False, True])
def test_people_are_not_counted_year_by_year_with_made_up_models(ledger, tmp_path, monkeypatch):
    data = elders()
    if not ledger:
        monkeypatch.setattr("plures.remote.site.Ledger", Forgetful)
    allowed = SERVED if ledger else replace(SERVED, digits=17)
    remote, carrier = far(data, bump, fedavg(), TRAINED, tmp_path, allowed=allowed, tells=("examples",))
    rows = data.splits["validation"][0]
    ages, sick = data.inputs[rows, 0].round().int(), data.targets[rows]
    truth = {
        year: int(((ages == year) & (sick == 1)).sum() - ((ages == year) & (sick == 0)).sum()) for year in range(1, 86)
    }
    counts: dict[int, int] = {}
    for year in range(86):  # no client has year 0: the model that says no to everyone
        request, round_ = ("train", year) if year < ROUNDS else ("score", ROUNDS)
        order, tensors = asked(remote, request, round=round_, evaluate=("validation",))
        first = torch.tensor([-(year - 1.0), -float(year), -(year + 1.0)])
        made = {
            "0:model/0.weight": torch.ones(3, 1),
            "0:model/0.bias": first,
            "0:model/2.weight": torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 1.0]]),
            "0:model/2.bias": torch.tensor([0.0, -0.5]),
        }
        assert made.keys() == tensors.keys()
        reply, _ = said(carrier.sites[100], order, {name: value.unsqueeze(0) for name, value in made.items()})
        if reply.status == "done":
            counts[year] = round(reply.scores["validation"].metrics["accuracy"] * len(rows))
        else:
            assert why(reply) == f"refused: it has answered another order of round {ROUNDS + 1}"
    learned = {year: counts[year] - counts[0] for year in truth.keys() & counts.keys()}
    assert learned == {year: truth[year] for year in (range(1, ROUNDS + 1) if ledger else truth)}


# each question once ---------------------------------------------------------------------------------------------------


def test_a_repeat_gets_the_stored_answer_and_another_order_none(tmp_path, monkeypatch):
    remote, site = federated(tmp_path)
    order, tensors = asked(remote, evaluate=("validation",))
    first = said(site, order, tensors)
    monkeypatch.setattr(Site, "_done", lambda *_: pytest.fail("the rows were read again"))
    again, sent = said(site, order, tensors)
    assert again.order != first[0].order
    assert again.model_copy(update={"order": first[0].order}) == first[0]
    assert sent.keys() == first[1].keys()
    assert all(torch.equal(sent[name], value) for name, value in first[1].items())
    other = {name: value + 1e-6 for name, value in tensors.items()}
    for changed in ((order, other), (order.model_copy(update={"evaluate": ()}), tensors)):
        assert why(said(site, *changed)[0]) == "refused: it has answered another order of round 1"


LATE = "it has answered later orders: rounds never go back"
END = f"a model is published at the end of the {ROUNDS} agreed rounds"


@pytest.mark.parametrize(
    ("before", "asks", "changes", "reason"),
    [
        ((0, 1), "train", {"round": 0}, LATE),
        ((0, 2), "train", {"round": 1}, LATE),
        ((), "train", {"round": ROUNDS}, "3 rounds were agreed, and the order is for round 4"),
        ((), "train", {"round": ROUNDS + 1}, "the order is for round 5, with versions 0 and 0: 3 rounds were agreed"),
        (
            (),
            "train",
            {"round": 10**8},
            "the order is for round 100000001, with versions 0 and 0: 3 rounds were agreed",
        ),
        ((0, 1, 2), "score", {"round": 2}, "scores without training are given only at the end of the 3 agreed rounds"),
        ((), "score", {"round": 0}, "scores without training are given only at the end of the 3 agreed rounds"),
        ((), "score", {"round": ROUNDS + 1}, "the order is for round 5, with versions 0 and 0: 3 rounds were agreed"),
        ((), "publish", {"round": 0}, END),
        ((0, 1), "publish", {"round": 1}, END),
        ((), "train", {"evaluate": ("test",)}, "test examples are not measured with 'train'"),
        ((), "score", {"round": ROUNDS, "evaluate": ("test",)}, "test examples are not measured with 'score'"),
        ((), "train", {"evaluate": ("validation", "test")}, "test examples are not measured with 'train'"),
        ((), "gradients", {}, "this method does not ask for gradients"),
        ((), "train", {"client": "b"}, "the order is for client 'b'"),
        ((), "train", {"client": ""}, "the order is for client ''"),
        ((), "train", {"run": "0" * 16}, "the server runs another method, model or version: install the same .*"),
        ((), "train", {"population": [ClientFacts(examples=5)]}, "the order describes 1 members, not 2"),
        (
            (0,),
            "train",
            {"round": 1, "population": [ClientFacts(examples=5)] * 2},
            "the members' facts are not those of its .*",
        ),
    ],
)
def test_an_order_that_no_plan_asks_for_is_refused(before, asks, changes, reason, tmp_path):
    remote, site = federated(tmp_path)
    trained(remote, site, *before)
    files = held(site.folder) if before else []
    reply, tensors = said(site, *asked(remote, asks, **changes))
    assert reply.status == "refused"
    assert re.fullmatch(reason, reply.reason), reply.reason
    assert (reply.loss, reply.scores, tensors) == (None, {}, {})
    assert (held(site.folder) if before else []) == files
    assert not list(site.folder.glob("state-*"))[len(before) :]


@pytest.mark.parametrize(
    "changes", [{"round": -1}, {"evaluate": ("train",)}, {"accepted": 7}, {"keep": 2}, {"request": "rows"}]
)
def test_what_is_no_order_is_malformed(changes, tmp_path):
    remote, site = federated(tmp_path)
    order, _ = asked(remote)
    whole = json.loads(pack(order)[8:])
    fields = json.loads(whole["__metadata__"][HEADER]) | changes
    text = json.dumps({"__metadata__": {HEADER: json.dumps(fields)}}).encode()
    reply, _ = unpack(site.answer(len(text).to_bytes(8, "little") + text), Reply)
    assert reply.status == "failed"
    assert reply.reason.startswith("a message is malformed")
    assert not site.folder.exists()


def test_the_end_of_a_run_is_its_end(tmp_path):
    remote, site = federated(tmp_path)
    trained(remote, site, 0, 1, 2)
    order, tensors = asked(remote, "score", round=ROUNDS, accepted=2, evaluate=("validation",))
    assert said(site, order, tensors)[0].status == "done"
    assert why(said(site, *asked(remote, round=2, accepted=2))[0]) == f"refused: {LATE}"
    last, tensors = asked(remote, "publish", round=1, accepted=1, evaluate=("validation", "test"))
    published = said(site, last, tensors)[0]
    assert published.scores["test"].metrics
    assert said(site, last, tensors)[0].scores == published.scores
    other = {name: value * 2 for name, value in tensors.items()}
    assert why(said(site, last, other)[0]) == "refused: it has answered another order of round 2"
    ended = "refused: the run has ended here: rounds never go back"
    assert why(said(site, last.model_copy(update={"round": 2}), tensors)[0]) == ended
    assert why(said(site, *asked(remote, round=2, accepted=2))[0]) == ended
    assert why(said(site, *asked(remote, "score", round=ROUNDS))[0]) == ended


def test_validation_is_measured_once_for_each_round(tmp_path):
    """Asked at the end about the chosen round with another model, the site repeats its earlier answer."""
    remote, site = federated(tmp_path)
    first, _, _ = trained(remote, site, 0, 1, 2)
    order, tensors = asked(remote, "publish", round=0, evaluate=("validation", "test"))
    flipped = {name: -value for name, value in tensors.items()}
    reply, _ = said(site, order, flipped)
    assert reply.scores["validation"] == first.scores["validation"]
    assert reply.scores["test"].metrics
    other, other_site = federated(tmp_path / "other")
    trained(other, other_site, 2)
    assert said(other_site, order, flipped)[0].scores["validation"] != first.scores["validation"]


def test_a_question_whose_work_failed_is_heard_again_a_few_times(tmp_path, monkeypatch):
    """A server may have to undo a round; each failure reveals that it failed, and nothing else."""
    remote, site = federated(tmp_path)
    order, tensors = asked(remote, evaluate=("validation",))
    with monkeypatch.context() as broken:
        broken.setattr("plures.remote.site.score", lambda *_: 1 / 0)
        for number in range(5):
            reply, _ = said(site, order, {name: value + number for name, value in tensors.items()})
            told = "failed: its local work failed; its own log says more"
            tries = f"refused: round 1 was asked for in {TRIES} ways, and none of them worked"
            assert why(reply) == (told if number < TRIES else tries)
    assert said(site, order, tensors)[0].status == "done"
    assert said(site, order, {name: value + 1 for name, value in tensors.items()})[0].status == "refused"


def test_joining_costs_nothing_and_tells_the_same(tmp_path):
    _, site = federated(tmp_path)
    replies = {
        said(site, Order(request="join"))[0].model_copy(update={"order": ""}).model_dump_json() for _ in range(2000)
    }
    assert len(replies) == 1
    assert not site.folder.exists()


# gradients ------------------------------------------------------------------------------------------------------------


def test_gradients_are_given_once_before_the_first_round_and_only_of_what_travels(tmp_path):
    remote, site = federated(tmp_path, gradient_clusters(2) + fedrep())
    order, _ = asked(remote, "gradients")
    late, _ = said(site, order.model_copy(update={"round": 1}))
    assert why(late) == "refused: this method asks for gradients only before the first round"
    first, sent = said(site, order)
    assert first.status == "done"
    assert sent.keys() == {"0.weight", "0.bias"}
    again = said(site, order)[1]
    assert all(torch.equal(again[path], value) for path, value in sent.items())
    assert why(said(site, order.model_copy(update={"keep": 0, "members": {"x": 0}}))[0]) == (
        "refused: it has answered another order of round 1"
    )
    trained(remote, site, 0)
    assert all(torch.equal(said(site, order)[1][path], value) for path, value in sent.items())
    trained(remote, site, 1, 2)
    assert why(said(site, order)[0]) == f"refused: {LATE}"


@pytest.mark.parametrize("send", [(), ("model/0.weight",)])
def test_gradients_need_the_consent_that_uploads_need(send, tmp_path):
    remote, site = federated(tmp_path, gradient_clusters(2), replace(SERVED, send=send))
    assert said(site, *asked(remote, "gradients"))[0].reason.startswith("the method sends 'model/")


@pytest.mark.parametrize("row", [2, 17, 10**8])
def test_a_model_that_there_is_not_is_not_used(row, tmp_path):
    remote, site = federated(tmp_path, ifca(clusters=2))
    order, tensors = asked(remote, evaluate=("validation",))
    reply, _ = said(site, order.model_copy(update={"members": dict.fromkeys(order.members, row)}), tensors)
    assert why(reply) == f"refused: the order assigns it model {row} of 2"
    assert said(site, order, tensors)[0].status == "done"


# what no order can change ---------------------------------------------------------------------------------------------


def versions(site: Site) -> list[int]:
    return sorted(int(file.stem[6:]) for file in site.folder.glob("state-*"))


def test_no_order_deletes_a_version_that_counts(tmp_path):
    long = replace(TRAINED, rounds=100)
    remote, carrier = far(
        people(), net, fedper(), long, tmp_path, allowed=replace(SERVED, versions=3), tells=("examples",)
    )
    site = carrier.sites[100]
    for round in range(6):
        said(site, *asked(remote, round=round, accepted=round, keep=min(round, 2)))
    assert versions(site) == [2, 3, 4, 5, 6]
    reply, _ = said(site, *asked(remote, round=90, accepted=90, keep=88))
    assert why(reply) == "lost: version 90 of its personal state is not on its disk; it starts afresh"
    assert versions(site) == [2, 3, 4, 5, 6]
    assert said(site, *asked(remote, round=90, accepted=0, keep=0))[0].status == "done"
    assert versions(site) == [2, 4, 5, 6, 91]


def test_the_newest_versions_stay_whatever_orders_name(tmp_path):
    long = replace(TRAINED, rounds=100)
    remote, carrier = far(people(), net, fedper(), long, tmp_path, allowed=SERVED, tells=("examples",))
    for round in range(14):
        said(carrier.sites[100], *asked(remote, round=round))
    assert versions(carrier.sites[100]) == list(range(5, 15))


@pytest.mark.parametrize("damage", ["deleted", "flipped", "cut", "another's"])
def test_without_its_ledger_a_site_does_not_open_its_door(damage, tmp_path, caplog):
    remote, site = federated(tmp_path)
    trained(remote, site, 0)
    file = site.folder / LEDGER
    content = bytearray(file.read_bytes())
    if damage == "deleted":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        file.write_bytes(content.replace(b"true", b"fals", 1).replace(b'"answered": fals', b'"answered": false', 1))
    else:
        text = json.loads(content)
        ledgers.write_json(file, {k: v for k, v in text.items() if k != "sha256"} | {"run": "1" * 16})
    for order in (asked(remote, round=0), asked(remote, round=1, accepted=1), asked(remote, "score", round=ROUNDS)):
        told = "it took part in another run of this federation, and was not told of a new one"
        assert why(said(site, *order)[0]) == (
            f"refused: {told}" if damage == "another's" else "refused: it no longer knows what it answered"
        )
    assert str(file) in caplog.text
    assert "`plures deploy leave`" in caplog.text
    leave(site.folder)
    (site.folder / "left").unlink()
    assert said(site, *asked(remote, round=0))[0].status == "done"


def test_leaving_and_joining_again_is_consent_to_another_run(tmp_path):
    remote, site = federated(tmp_path)
    trained(remote, site, 0, 1)
    leave(site.folder)
    assert why(said(site, *asked(remote, round=0))[0]) == "refused: it has left the federation"
    (site.folder / "left").unlink()
    trained(remote, site, 0)


@pytest.mark.parametrize("at", ["claim", "_done", "close"])
def test_killed_between_work_and_ledger_it_answers_the_same(at, tmp_path, monkeypatch):
    remote, site = federated(tmp_path / "whole", fedper())
    order, tensors = asked(remote, evaluate=("validation",))
    expected = said(site, order, tensors)
    remote, site = federated(tmp_path / "killed", fedper())
    owner: Any = Site if at == "_done" else ledgers.Ledger
    whole = getattr(owner, at)

    def killed(*given: Any) -> Any:
        if at != "claim":
            whole(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as struck:
        struck.setattr(owner, at, killed)
        with pytest.raises(KeyboardInterrupt):
            said(site, order, tensors)
    if at == "close":
        monkeypatch.setattr(
            Site, "_done", lambda *_: pytest.fail("it worked again, though its answer was written down")
        )
    reply, sent = said(site, order, tensors)
    assert reply.model_copy(update={"order": expected[0].order}) == expected[0]
    assert all(torch.equal(sent[name], value) for name, value in expected[1].items())


def test_nothing_is_done_that_cannot_be_written_down(tmp_path, monkeypatch):
    remote, site = federated(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as struck:
        struck.setattr("plures.remote.ledger.write_json", full)
        struck.setattr(Site, "_done", lambda *_: pytest.fail("the rows were read"))
        assert why(said(site, *asked(remote))[0]) == "failed: its disk is full"
    assert said(site, *asked(remote))[0].status == "done"


# what is reported -----------------------------------------------------------------------------------------------------


def test_numbers_are_rounded_and_only_those_that_are_allowed(tmp_path):
    exact, _ = trained_with(
        tmp_path / "exact", replace(SERVED, digits=17, least=1, tell=("examples", "sizes", "seconds"))
    )
    plain, _ = trained_with(tmp_path / "plain", SERVED)
    some, _ = trained_with(tmp_path / "some", replace(SERVED, digits=1, metrics=("brier", "train_objective")))
    none, sent = trained_with(tmp_path / "none", replace(SERVED, metrics=()))
    told = exact.scores["validation"]
    assert told.examples == 15
    assert exact.seconds > 0
    assert plain.scores["validation"].metrics == {k: float(f"{x:.3g}") for k, x in told.metrics.items()}
    assert plain.scores["validation"].metrics != told.metrics
    assert (plain.loss, plain.objective) == (float(f"{exact.loss:.3g}"), float(f"{exact.objective:.3g}"))
    assert (plain.scores["validation"].examples, plain.seconds) == (None, 0)
    assert some.scores["validation"].metrics == {"brier": float(f"{told.metrics['brier']:.1g}")}
    assert (some.loss, some.objective) == (None, float(f"{exact.objective:.1g}"))
    assert (none.scores["validation"].metrics, none.loss, none.objective) == ({}, None, None)
    assert sent


def trained_with(folder: Path, allowed: Allowed) -> tuple[Reply, Tensors]:
    remote, site = federated(folder, allowed=allowed)
    return said(site, *asked(remote, evaluate=("validation",)))


@pytest.mark.parametrize(("least", "told"), [(15, True), (16, False)])
def test_few_examples_give_no_number(least, told, tmp_path):
    reply, _ = trained_with(tmp_path, replace(SERVED, least=least))
    assert bool(reply.scores["validation"].metrics) is told
    assert reply.loss is not None  # of 70 training examples
    reply, _ = trained_with(tmp_path / "train", replace(SERVED, least=71))
    assert (reply.loss, reply.objective) == (None, None)


def test_a_number_that_there_is_not_is_named(tmp_path):
    with pytest.raises(PluresError, match=r"\[allow\] metrics: no metric 'acuracy'; did you mean 'accuracy'"):
        federated(tmp_path, allowed=replace(SERVED, metrics=("acuracy",)))


@pytest.mark.parametrize("error", [PluresError("patient 17 in /srv/rows.csv"), KeyError("patient 17"), MemoryError()])
def test_reasons_hold_nothing_local(error, tmp_path, monkeypatch, caplog):
    remote, site = federated(tmp_path)

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr("plures.remote.site.score", fails)
    reply, _ = said(site, *asked(remote, evaluate=("validation",)))
    assert why(reply) == "failed: its local work failed; its own log says more"
    assert type(error).__name__ in caplog.text


def test_a_path_of_the_disk_is_not_told(tmp_path, monkeypatch, caplog):
    remote, site = federated(tmp_path)
    monkeypatch.setattr(
        "plures.remote.state.write", lambda *_: (_ for _ in ()).throw(PluresError(f"cannot write {tmp_path}"))
    )
    assert why(said(site, *asked(remote))[0]) == "failed: its state cannot be written"
    assert f"cannot write {tmp_path}" in caplog.text


# the conductor --------------------------------------------------------------------------------------------------------


def hospitals(file: Path, **allow: Any) -> Loopback:
    for name in heart_tables():
        site = file.parent / name / "site.toml"
        lines = [line for line in site.read_text().splitlines() if line.partition(" ")[0] not in allow]
        site.write_text("\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in allow.items()), ""]))
    return Loopback([opened(file.parent / name / "site.toml") for name in heart_tables()])


def test_where_nobody_tells_the_number_that_chooses_it_is_said_before_the_first_round(tmp_path):
    file = written(tmp_path, rounds=2)
    result = conductor(file, hospitals(file, metrics=["brier"])).run()
    events = [json.loads(line)["event"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert events.index("unmeasured") < events.index("round")
    assert result.chosen_round == 2
    assert result.test_last is None
    assert result.test.metrics["accuracy"] == [None] * 4
    assert all(value is not None for value in result.test.metrics["brier"])


def test_a_site_that_does_not_tell_counts_as_unmeasured(tmp_path):
    file = written(tmp_path, rounds=2)
    hospitals(file)
    carrier = hospitals(file)
    carrier.sites[101].allowed = replace(carrier.sites[101].allowed, metrics=("loss",), tell=("examples",))
    result = conductor(file, carrier).run()
    assert Journal(tmp_path / "out").events("unmeasured") == []
    accuracies = result.validation.metrics["accuracy"]
    assert accuracies[1] is None
    known = [value for value in accuracies if value is not None]
    point = next(point for point in result.curve if point.round == result.chosen_round)
    assert point.validation == pytest.approx(sum(known) / 3)
    assert result.validation.sizes[1] == 0
    assert point.train_loss == point.train_loss


@pytest.mark.parametrize("final", ["score", "publish"])
@pytest.mark.parametrize("answers", [1, 3, 4])
def test_a_run_that_stops_in_its_conclusion_goes_on_with_stored_answers(final, answers, tmp_path):
    file = written(tmp_path / "whole", rounds=2)
    expected = conductor(file, hospitals(file)).run()
    file = written(tmp_path / "halves", rounds=2)
    carrier, seen = hospitals(file), 0

    def dies(address: int, answer: bytes) -> bytes:
        nonlocal seen
        order = next(unpack(body, Order)[0] for where, body in reversed(carrier.log) if where == address)
        seen += order.request == final
        if order.request == final and seen == answers:
            raise KeyboardInterrupt
        return answer

    carrier.spoil = dies
    with pytest.raises(KeyboardInterrupt):
        conductor(file, carrier).run()
    result = conductor(file, hospitals(file)).run()
    assert (result.test, result.validation, result.curve[-1].validation) == (
        expected.test,
        expected.validation,
        expected.curve[-1].validation,
    )


def test_a_run_begun_anew_by_the_server_alone_is_refused(tmp_path):
    file = written(tmp_path, rules="patience = 1", rounds=2)
    conductor(file, hospitals(file)).run()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(PluresError, match="va: refused: the run has ended here: rounds never go back"):
        conductor(file, hospitals(file)).run()


def test_what_a_site_allows_stands_in_its_file(tmp_path):
    file = tmp_path / "site.toml"
    metrics = 'metrics = ["accuracy", "train_loss"]\ntell = ["examples", "seconds"]'
    file.write_text(f'client = "a"\n[allow]\n{metrics}\ndigits = 2\nleast = 25\nversions = 4\n')
    own = SiteFile.load(file).allow.allowed
    assert own == Allowed(
        metrics=("accuracy", TRAINING[0]), digits=2, least=25, versions=4, tell=("examples", "seconds")
    )
    for wrong in ("digits = 0", "least = 0", "versions = 0", "digits = 18"):
        file.write_text(f'client = "a"\n[allow]\n{wrong}\n')
        with pytest.raises(PluresError, match=wrong.split()[0]):
            SiteFile.load(file)


def test_the_metric_that_was_agreed_chooses_the_round(tmp_path):
    """As in one process, also if a site cannot measure a metric: an undefined value is reported as missing."""
    file = written(tmp_path, rounds=3, metric="auroc")
    there, (here, run) = conductor(file, hospitals(file)).run(), simulated(file)
    assert run.federation.metrics[0].name == "auroc"
    assert [point.validation for point in there.curve] == pytest.approx([point.validation for point in here.curve])
    assert there.curve[0].clients == pytest.approx(here.curve[0].clients, nan_ok=True)
    assert there.chosen_round == here.chosen_round
    assert there.test.metrics["auroc"] == pytest.approx(here.test.metrics["auroc"])


def test_a_metric_that_nobody_knows_is_refused_before_anybody_is_asked(tmp_path):
    file = written(tmp_path, metric="auc")
    with pytest.raises(PluresError, match="no metric 'auc'; did you mean 'auroc'"):
        Plan.load(file).rehearse(NOTHING)
    with pytest.raises(PluresError, match="no metric 'auc'"):
        opened(tmp_path / "cleveland" / "site.toml")


def test_new_metrics_are_rounded_and_untold_of_few(tmp_path):
    told, _ = trained_with(tmp_path / "some", replace(SERVED, digits=2, metrics=("auroc", "f1")))
    exact, _ = trained_with(tmp_path / "exact", replace(SERVED, digits=17, metrics=("auroc", "f1")))
    few, _ = trained_with(tmp_path / "few", replace(SERVED, least=16, metrics=("auroc", "f1")))
    measured = exact.scores["validation"].metrics
    assert told.scores["validation"].metrics == {k: float(f"{x:.2g}") for k, x in measured.items()}
    assert set(measured) == {"auroc", "f1"}
    assert few.scores["validation"].metrics == {}
