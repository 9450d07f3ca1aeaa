"""Every method gives the same results over messages as in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sites import far
from torch import nn

from catalogued import WHOLE
from newcomers import clients, linear
from plures import from_arrays
from plures.evaluate import score
from plures.method import SGD
from plures.methods import METHODS, fedrep, gradient_clusters
from plures.models import with_roles
from plures.remote.clients import ONE_CLIENT
from plures.remote.state import Versions
from plures.report.catalogue import model
from plures.run import Execution, Exponential, Fixed, Run, Training, Uniform, onboard

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


@pytest.mark.parametrize("name", WHOLE)
def test_every_leaf_and_every_byte_is_that_of_the_simulation(name, tmp_path):
    federation, _ = clients()
    module = linear if name == "mocha" else model
    training = Training(rounds=4, batch_size=8, steps=2, optimizer=SGD(0.05), schedule=Exponential(0.7))
    who = Uniform(0.6)
    run = Run(
        federation,
        module,
        METHODS[name](),
        training,
        participation=who,
        seed=1,
        execution=Execution("loop", 1, False, "float32", "cpu"),
    )
    remote, _ = far(federation, module, METHODS[name](), training, tmp_path, seed=1, participation=who)
    for _ in range(training.rounds):
        far_away = remote.clients
        sent = far_away.sent, far_away.received
        here, there = run.step(), remote.step()
        assert there.cohort == here.cohort
        assert not there.left_out
        assert max(remote.moved.by.values()) < 100  # of 1000 that are allowed
        assert there.loss == pytest.approx(here.loss, rel=1e-5)
        assert there.objective == pytest.approx(here.objective, rel=1e-5, abs=1e-6)
        assert (there.bytes_down, there.bytes_up) == (here.bytes_down, here.bytes_up)
        assert (far_away.sent - sent[0], far_away.received - sent[1]) == (here.bytes_down, here.bytes_up)

    for block, kept in run.server.items():
        for kind in ("values", "extra"):
            for leaf, value in getattr(kept, kind).items():
                assert_same(getattr(remote.server[block], kind)[leaf], value, f"{block} {leaf}")
    for place, client in enumerate(federation.clients):
        version = int(run.last[place])
        stored = Versions(tmp_path / client, remote.clients.run_id).load(version) if version else None
        for leaf in run.stored_leaves():
            if stored is not None:
                assert_same(stored[f"own:{leaf}"], run.store.get(leaf, [place])[0], f"{client} {leaf}")

    assert not remote.clients.ask(remote, "score", "validation")
    assert not remote.clients.ask(remote, "publish", "validation", "test")
    for split in ("validation", "test"):
        expected = score(run, split)
        for place in range(len(federation)):
            scored = remote.clients.scores[split][place]
            assert scored.examples == expected.sizes[place]
            for metric, values in expected.values.items():
                assert scored.metrics[metric] == pytest.approx(values[place], rel=1e-4, abs=1e-6), (metric, place)


def test_clusters_of_a_body_under_personal_heads_are_those_of_the_simulation(tmp_path):
    """Gradients of heads stay with the clients, in simulation and over messages."""
    federation, _ = clients()
    training, method = Training(rounds=2, batch_size=8, steps=2, optimizer=SGD(0.05)), gradient_clusters(2) + fedrep()
    run = Run(federation, model, method, training, seed=1, execution=ONE_CLIENT)
    remote, _ = far(federation, model, method, training, tmp_path, seed=1)
    for _ in range(2):
        here, there = run.step(), remote.step()
        assert (there.bytes_down, there.bytes_up) == (here.bytes_down, here.bytes_up)
    for block, kept in run.server.items():
        for kind in ("values", "extra"):
            for leaf, value in getattr(kept, kind).items():
                assert_same(getattr(remote.server[block], kind)[leaf], value, f"{block} {leaf}")


def assert_same(value, expected, what):
    torch.testing.assert_close(value, expected, atol=2e-6, rtol=1e-4, msg=lambda m: f"{what}: {m}")


@pytest.mark.parametrize("name", ["ditto", "fedper", "ifca"])
def test_a_site_that_was_never_drawn_is_served_as_in_the_simulation(name, tmp_path):
    """It trains what it may keep, from what it receives, and predicts with the result; none of it is kept or sent."""
    federation, _ = clients()
    training, who = Training(rounds=2, batch_size=8, steps=2, optimizer=SGD(0.05)), Fixed([["a", "b", "c"]])
    run = Run(federation, model, METHODS[name](), training, participation=who, seed=1, execution=ONE_CLIENT)
    remote, _ = far(federation, model, METHODS[name](), training, tmp_path, seed=1, participation=who)
    for _ in range(2):
        run.step()
        remote.step()
    assert not remote.clients.ask(remote, "score", "validation")
    assert not remote.clients.ask(remote, "publish", "validation", "test")
    expected = score(run, "test").values["loss"]
    newcomers = score(onboard(run, federation.subset(["d", "e"])), "test").values["loss"]
    assert expected[3:].tolist() == pytest.approx(newcomers.tolist())
    for place in range(5):
        assert remote.clients.scores["test"][place].metrics["loss"] == pytest.approx(expected[place], rel=1e-4)
    assert Versions(tmp_path / "d", remote.clients.run_id).load(1) is None


@pytest.mark.parametrize(("name", "parameters"), [("fedproto", {}), ("digital_twin", {}), ("qffl", {"q": 5.0})])
def test_weights_of_very_unequal_clients_are_those_of_the_simulation(name, parameters, tmp_path):
    """Two clients, of 2,000 examples and of 10: nobody lies, so no weight is cut."""
    generator = np.random.default_rng(4)
    owner = np.repeat(["large", "small"], [2000, 10])
    x = generator.normal(size=(len(owner), 5)).astype(np.float32)
    y = np.where(owner == "large", x[:, 0] > 0, x[:, 0] < 0).astype(int)
    federation = from_arrays(x * np.where(owner == "large", 1, 4)[:, None], y, owner, seed=0)

    def module():
        return with_roles(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2)), head="1")

    training = Training(rounds=3, batch_size=64, steps=20, optimizer=SGD(0.1))
    run = Run(federation, module, METHODS[name](**parameters), training, seed=1, execution=ONE_CLIENT)
    remote, _ = far(federation, module, METHODS[name](**parameters), training, tmp_path, seed=1)
    for _ in range(3):
        run.step()
        assert not remote.step().left_out
    for block, kept in run.server.items():
        for leaf, value in kept.values.items():
            assert_same(remote.server[block].values[leaf], value, f"{block} {leaf}")
