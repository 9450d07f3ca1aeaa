"""Compressed downloads over sites: every leaf and byte of the simulation, and what a server that lies is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import simulated, written
from sites import Loopback, conductor, far

from newcomers import clients, linear
from plures.deploy.app import opened
from plures.deploy.journal import LOG
from plures.evaluate import score
from plures.evaluate.spec import find_method
from plures.method import SGD
from plures.remote.clients import ONE_CLIENT
from plures.remote.message import Order, Reply, pack, unpack
from plures.remote.state import Versions
from plures.report.catalogue import model
from plures.run import Fixed, Full, Participation, Run, Training, Uniform
from plures.tables.heart import heart_tables

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
LARGEST = "fedavg+topk(0.1)+downlink"


def both(
    folder: Path, method: str = LARGEST, rounds: int = 6, who: Participation | None = None, network: Any = model
) -> tuple[Any, Any, Any]:
    """The run in one process, and the same over sites."""
    federation, _ = clients()
    training = Training(rounds=rounds, batch_size=8, steps=2, optimizer=SGD(0.05))
    built = find_method(method)
    here = Run(federation, network, built(), training, participation=who, seed=1, execution=ONE_CLIENT)
    return here, *far(federation, network, built(), training, folder, seed=1, participation=who)


def assert_same(here: Run, there: Any) -> None:
    for block, kept in here.server.items():
        for leaf, value in kept.values.items():
            torch.testing.assert_close(there.server[block].values[leaf], value, atol=2e-6, rtol=1e-4)


@pytest.mark.oracle("CO7")
@pytest.mark.parametrize("who", [None, Uniform(0.5)], ids=["everybody", "half"])
@pytest.mark.parametrize(
    "method",
    [
        LARGEST,
        "ditto+topk(0.1)+downlink+topk(0.05)+feedback",
        "scaffold+randomk(keep=0.2,unbiased=false)+downlink",
        "fedrep+quantize(levels=7)+downlink",
        "fedavg+lowrank(rank=1)+downlink",
    ],
)
def test_every_leaf_and_every_byte_is_that_of_the_simulation(method, who, tmp_path):
    here, there, _ = both(tmp_path, method, 8, who)
    shorter = False
    for _ in range(8):
        sent = there.clients.sent
        one, two = here.step(), there.step()
        assert not two.left_out
        assert two.cohort == one.cohort
        assert (two.bytes_down, two.bytes_up) == (one.bytes_down, one.bytes_up)
        assert there.clients.sent - sent == one.bytes_down
        shorter |= one.bytes_down < len(one.cohort) * sum(t.nbytes for t in here.bound.down.forms[0].values())
        assert_same(here, there)
    assert shorter
    assert not there.clients.ask(there, "score", "validation")
    expected = score(here, "validation").values["loss"]
    found = [there.clients.scores["validation"][place].metrics["loss"] for place in range(len(expected))]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_site_has_the_bits_of_the_server(tmp_path):
    """What a site holds after changes alone is what the server holds, in every bit."""
    _, there, _ = both(tmp_path, who=Full())
    for round in range(6):
        had = {k: t.clone() for kept in there.server.values() for k, t in kept.values.items()}
        there.step()
        for client in there.setting.clients:
            stored = Versions(tmp_path / client, there.clients.run_id).load(round + 1)
            assert all(torch.equal(stored[f"base:{k}"], had[k][0]) for k in there.bound.down.forms[0])


def test_who_was_away_gets_the_changes_it_missed_and_then_the_model(tmp_path):
    """The tenth of the entries with their marks is a seventh of the model: after seven rounds the model is shorter."""
    who = Fixed([["a", "b"], *[["b"]] * 2, ["a", "b"], *[["b"]] * 7, ["a", "b"]])
    _, there, carrier = both(tmp_path, rounds=12, who=who)
    for _ in range(12):
        there.step()
    orders = [unpack(message, Order) for address, message in carrier.log if address == 100]
    orders = [(order, tensors) for order, tensors in orders if order.request == "train"]
    encoded = [
        sorted({int(name.split(":")[1]) for name in tensors if name.startswith("downlink")}) for _, tensors in orders
    ]
    assert [order.round for order, _ in orders] == [0, 3, 11]
    assert encoded == [[], [1, 2, 3], []]


def test_a_site_that_lost_its_disk_gets_the_model(tmp_path):
    here, there, carrier = both(tmp_path)
    for _ in range(2):
        here.step()
        there.step()
    for file in (tmp_path / "a").glob("state-*"):
        file.unlink()
    lost = there.step()
    assert "is not on its disk" in lost.left_out["a"]
    there.step()
    last = [unpack(message, Order)[1] for address, message in carrier.log if address == 100][-1]
    assert not [name for name in last if name.startswith("downlink")]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda t: {k.replace(":3:", ":2:"): v for k, v in t.items()},
            "other changes of the model than those that it lacks",
        ),
        (lambda t: {k: v.double() if "values" in k else v for k, v in t.items()}, "as torch.float64"),
        (lambda t: {k: v * float("nan") if "values" in k else v for k, v in t.items()}, "a NaN or an infinite value"),
        (lambda t: {k: ~v if "bits" in k else v for k, v in t.items()}, "cannot be decoded"),
        (lambda t: {k: v for k, v in t.items() if "bits" not in k}, "other changes of the model"),
    ],
)
def test_a_change_that_is_not_the_one_it_lacks_is_refused(spoil, told, tmp_path):
    _, there, carrier = both(tmp_path)
    for _ in range(3):
        there.step()
    order, tensors = there.clients.order(there, 0, "train", there.server)
    assert {name.split(":")[1] for name in tensors if name.startswith("downlink")} == {"3"}
    reply, _ = unpack(carrier.sites[100].answer(pack(order, spoil(tensors))), Reply)
    assert reply.status == "refused"
    assert told in reply.reason
    assert unpack(carrier.sites[100].answer(pack(order, tensors)), Reply)[0].status == "done"


def test_under_a_secure_sum(tmp_path):
    here, there, _ = both(tmp_path, "fedavg+topk(0.1)+downlink+secure_sum", 4, network=linear)
    for _ in range(4):
        one, two = here.step(), there.step()
        assert (two.bytes_down, two.bytes_up) == (one.bytes_down, one.bytes_up)
        assert_same(here, there)


@pytest.mark.parametrize("dies", [False, True])
def test_a_federation_is_the_simulation_also_after_its_server_died(dies, tmp_path):
    """The checkpoint holds what was sent out; the chosen round is published from the changes up to it."""
    file = written(tmp_path, method="ditto+topk(0.2)+downlink", rounds=6)
    carrier = Loopback([opened(file.parent / name / "site.toml") for name in heart_tables()])
    asked = 0

    def stops(address: int, answer: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if dies and asked == 18:
            raise KeyboardInterrupt
        return answer

    carrier.spoil = stops
    if dies:
        with pytest.raises(KeyboardInterrupt):
            conductor(file, carrier).run()
    result = conductor(file, carrier).run()
    expected, _ = simulated(file)
    events = [json.loads(line)["event"] for line in (tmp_path / "out" / LOG).read_text().splitlines()]
    assert ("resumed" in events) == dies
    assert result.chosen_round == expected.chosen_round
    assert [p.bytes for p in result.curve] == [p.bytes for p in expected.curve]
    for metric, values in expected.test.metrics.items():
        assert result.test.metrics[metric] == pytest.approx(values, rel=1e-4, abs=1e-6)
