"""Networks cut to fit the devices of a fleet: who gets which, and what buffered aggregation makes of their changes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import plures
from cutting import one_hidden, small
from plures import RunSpec
from plures.errors import PluresError
from plures.evaluate import RunFolder, finish, fit
from plures.hardware import FleetTable
from plures.methods import depthfl, fedavg, fjord, heterofl
from plures.models import mlp
from plures.run import Buffered, Clocked, Full, Uniform, onboard
from points import two_points
from problems import begun, close, run
from shifted import ragged

plain = partial(heterofl, scaler=False, masked=False)
FAST = {"gflops": 1.0, "up_mbit": 1e6, "down_mbit": 1e6}


@pytest.mark.oracle("SF8")
def test_a_stale_change_of_a_part_counts_where_it_is_held():
    """a (whole, 20 operations) sends after 1 second; b (the first unit, 10 operations) after 1.5, one step old.

    a: w1 - .1 (6, -2), w2 - .1 (2, 4); then b, from the start and in its unit alone, 2 ** -0.5 (-.1 12, -.1 4).
    """
    devices = FleetTable({"a": {**FAST, "gflops": 20e-9}, "b": {**FAST, "gflops": 10e-9 / 1.5}})
    rule = Buffered(Full(), devices, size=1)
    done = begun(plain(), 2, federation=two_points(), model=one_hidden, steps=1, participation=rule)
    assert [record.cohort for record in done.rounds()] == [("a",), ("b",)]
    old = 2**-0.5
    found = {leaf: t[0] for kept in done.server.values() for leaf, t in kept.values.items()}
    assert found["model/0.weight"].flatten().tolist() == close([0.4 - 1.2 * old, 2.2])
    assert found["model/2.weight"].flatten().tolist() == close([2.8 - 0.4 * old, -1.4])


def table(**own):
    """Clients that need a second for 1000 operations, and for 1000 bytes received or sent."""
    row = {"gflops": 1e-6, "up_mbit": 8e-3, "down_mbit": 8e-3}
    return FleetTable({str(i): {**row, **own.get(f"c{i}", {})} for i in range(7)})


@pytest.mark.oracle("SF9")
def test_seconds_choose_the_largest_part_that_is_done_in_time():
    """A visit takes 2 * 632 / 1000 + 336 n / speed seconds with the whole network, 2 * 280 / 1000 + 132 n / speed with
    half of it."""
    federation = ragged()
    rows = federation.splits["train"].sizes.numpy()
    whole, half = (0.002 * 8 * p + ops * rows / 1000 for p, ops in ((79, 336), (35, 132)))
    limit = float(np.median(whole)) + 1e-6
    clock = Clocked(Full(), table())
    given = {"federation": federation, "model": small, "steps": 1, "participation": clock}
    done = begun(plain(rates=(0.5, 0.25, 1.0), budget="seconds", limit=limit), 1, **given)
    wanted = np.where(whole <= limit, 1.0, np.where(half <= limit, 0.5, 0.25))
    assert {0.5, 1.0} <= {*wanted.tolist()}
    assert done.held.rates.tolist() == wanted.tolist()
    for method, seconds in ((fedavg(), whole), (plain(rates=(0.5,)), half)):
        load, fleet = begun(method, 1, **given).load(), clock.fleet(done.setting)
        assert load.down / fleet.down + load.flops / fleet.speed + load.up / fleet.up == pytest.approx(seconds)


def test_a_column_may_say_the_seconds_and_who_is_never_in_time_gets_the_smallest():
    federation = replace(ragged(), metadata={"patience": (1e6, 1e-9, 1e6, 1e6, 1e6, 1e6, 1e6)})
    method = plain(rates=(1.0, 0.25), column="patience", budget="seconds")
    rule = Buffered(Uniform(0.5), table(c2={"up_mbit": 1e-12}), size=1)
    done = begun(method, 1, federation=federation, model=small, participation=rule)
    assert done.held.rates.tolist() == [1.0, 0.25, 0.25, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("method", [heterofl, fjord, depthfl])
def test_every_method_with_parts_may_choose_by_seconds(method):
    federation, model = ragged(), partial(mlp, (5,), 3, hidden=(8, 8))
    slow = {f"c{i}": {"gflops": 1e-9} for i in (1, 4)}
    given = {"federation": federation, "model": model, "participation": Clocked(Full(), table(**slow))}
    done = begun(method(rates=(1.0, 0.5), budget="seconds", limit=1000.0), 1, **given)
    assert done.held.rates.tolist() == [1.0, 0.5, 1.0, 1.0, 0.5, 1.0, 1.0]


def test_without_devices_there_are_no_seconds():
    with pytest.raises(PluresError, match="needs to know how fast devices are"):
        begun(plain(budget="seconds", limit=1.0), 1, federation=ragged(), model=small)
    with pytest.raises(PluresError, match=r"budget='seconds' needs one of column=.*limit="):
        plain(budget="seconds")


def test_newcomers_have_a_network_by_their_own_device():
    seen, later = ragged().hold_out(["4"])
    rule = Clocked(Full(), table(c4={"gflops": 1e-9}))
    method = heterofl(rates=(1.0, 0.5), budget="seconds", limit=1000.0)
    done = run(method, 1, federation=seen, model=small, participation=rule)
    guest = onboard(done, later)
    assert guest.held.rates.tolist() == [0.5]
    assert not bool(guest.predictors([0])["4.weight"][0, :, 2:].any())


def test_a_comparison_with_networks_by_seconds_is_made(tmp_path):
    made = plures.compare(
        "heart",
        methods=["heterofl(budget=seconds,limit=0.005,scaler=false)"],
        rounds=2,
        seeds=1,
        tune_rounds=0,
        fleet="hospitals",
        deadline=0.01,
        out=tmp_path / "out",
    )
    assert made.methods[-1].name == "heterofl budget=seconds limit=0.005 scaler=False"


def test_a_kept_run_predicts_with_each_client_s_own_part(tmp_path):
    spec = RunSpec(
        data="heart",
        method="heterofl",
        parameters={"budget": "seconds", "limit": 0.005},
        rounds=1,
        fleet="hospitals",
    )
    trained = spec.run(spec.federation())
    assert trained.held.rates.tolist() == [0.5, 1.0, 0.5, 1.0]
    kept = RunFolder(tmp_path / "run")
    kept.write(trained, spec, finish(fit(trained, "heterofl"), 0), spec.question(trained))
    for number, client in enumerate(trained.setting.clients):
        rows = trained.federation.splits["test"][number]
        inputs = trained.federation.inputs[rows].unsqueeze(0)
        wanted = trained.engine.forward(trained.deployed([number]), inputs, {})[0]
        torch.testing.assert_close(kept.predict(client)[0], wanted, rtol=1e-5, atol=1e-6)
