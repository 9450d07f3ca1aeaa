"""What clients tell by randomised responses: bits of an upload (Duchi) and choices of a model."""

from __future__ import annotations

import math
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch

from newcomers import clients
from plures import RunSpec, load
from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.method import SGD, Sending
from plures.method.response import Response
from plures.methods import ifca
from plures.privacy import Private, gaussian
from plures.privacy.accountant import beside
from plures.privacy.local import counted_answers
from plures.report.catalogue import model
from plures.run import Execution, Fixed, Run, Training

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
BITS = Private(clip=0.5, noise=1.0, mechanism="duchi", trust="nobody")
MOST = (math.e + 1) / (math.e - 1)
LOOP = Execution("loop", 1, False, "float32", "cpu")


def told(stage: Private, change: list[float], count: int = 20_000) -> torch.Tensor:
    """What the server makes of so many clients that all have this change."""
    rows = {"model/w": torch.tensor(change, dtype=torch.float64).repeat(count, 1)}
    payload, _ = stage.encode(rows, {}, Sending(torch.arange(count) * 7919 + 3, {}))
    assert {k: t.shape for k, t in payload.items()} == {"bits": (count, 1), "seed": (count,)}
    return stage.decode(payload, {k: t[:1] for k, t in rows.items()})["model/w"]


@pytest.mark.oracle("LD2")
def test_bits_of_an_upload_are_unbiased_with_the_variance_by_hand():
    """Three numbers within 0.5: one is told, as 3 * 0.5 * C with the right sign on average; the rest is 0."""
    change = [0.2, -0.4, 0.0]
    found = told(BITS, change)
    assert found.abs().max().item() == pytest.approx(3 * 0.5 * MOST)
    assert bool(((found != 0).sum(1) == 1).all())
    variance = torch.tensor([3 * (0.5 * MOST) ** 2 - x**2 for x in change])
    error = (variance / len(found)).sqrt()
    assert bool(((found.mean(0) - torch.tensor(change)).abs() < 4 * error).all())
    assert found.var(0).tolist() == pytest.approx(variance.tolist(), rel=0.05)


@pytest.mark.oracle("LD2")
@pytest.mark.parametrize(("noise", "answers"), [(1.0, 1), (0.2, 2), (0.125, 3)])
def test_epsilon_is_the_ratio_of_likelihoods(noise, answers):
    """Of two opposite uploads beyond the bound, with all that is told the same: the most that a visit can tell."""
    epsilon = 1 / noise
    assert counted_answers(epsilon, 3) == answers
    stage = replace(BITS, noise=noise)
    one, other = (told(stage, [x] * 3) for x in (9.0, -9.0))
    assert bool(((one != 0).sum(1) == answers).all())
    all_high = ((one >= 0).all(1).double().mean(), (other >= 0).all(1).double().mean())
    keep = math.exp(epsilon / answers) / (1 + math.exp(epsilon / answers))
    assert all_high[0].item() == pytest.approx(keep**answers, abs=0.01)
    assert math.log(keep**answers / (1 - keep) ** answers) == pytest.approx(epsilon)
    assert all_high[1].item() == pytest.approx((1 - keep) ** answers, abs=0.01)


def test_a_number_that_is_none_tells_nothing():
    found = told(BITS, [math.nan, math.inf, 0.0])
    assert abs(found[:, 0].mean().item()) < 0.1
    assert found[:, 1].mean().item() == pytest.approx(0.5, abs=0.1)


def spends(method: str, rounds: int, **given: object) -> float:
    federation, _ = clients()
    run = Run(federation, model, find_method(method)(), Training(rounds, 8, steps=1), execution=LOOP, **given)
    assert run.origin.plan is not None
    return run.origin.plan.spent(rounds).epsilon


@pytest.mark.oracle("LD2")
def test_visits_add_up_and_delta_makes_them_a_little_less():
    """Kairouz, Oh, Viswanath 2015, Theorem 3.3: of k responses, delta of epsilon' by hand."""
    bits = "fedrep+fedbn+dp(trust=nobody,mechanism=duchi,clip=0.1,noise=1,delta=0.001"
    assert spends(f"{bits},accountant=rdp)", 3) == pytest.approx(3.0)
    assert spends(f"{bits},accountant=rdp)", 4, participation=Fixed([["a", "b"], ["b", "c"]])) == pytest.approx(4.0)
    found = beside(None, ((0.1, 400),), 1e-5)
    odds = [comb(400, wrong) / (1 + math.exp(0.1)) ** 400 for wrong in range(401)]
    ends = (np.exp(0.1 * (400 - wrong)) - np.exp(found + 0.1 * wrong) for wrong in range(401))
    assert sum(o * max(0.0, e) for o, e in zip(odds, ends, strict=True)) == pytest.approx(1e-5, rel=0.02)
    assert spends(f"{bits})", 3) <= 3.0


@pytest.mark.oracle("LD3")
def test_what_is_told_beside_uploads_adds_to_them():
    both = "ifca(clusters=2,epsilon=0.5)+fedbn+dp(trust=nobody,noise=4,clip=1,delta=0.001"
    uploads = gaussian(4 / (2 * math.sqrt(3)), 1e-3, "rdp")
    assert spends(f"{both},accountant=rdp)", 3) == pytest.approx(uploads + 3 * 0.5)
    assert gaussian(4 / (2 * math.sqrt(3)), 1e-3) < spends(f"{both})", 3) < gaussian(4 / (2 * math.sqrt(3)), 1e-3) + 1.5


@pytest.mark.oracle("LD3")
def test_a_choice_is_the_true_one_as_often_as_it_should_be():
    """800 choices of the same models by the same data, in rounds whose rate is zero."""
    federation, _ = clients()
    training = Training(200, 8, steps=1, optimizer=SGD(1e-30))
    runs = [Run(federation, model, ifca(3, epsilon=e), training, execution=LOOP, seed=2) for e in (None, 1.0)]
    for run in runs:
        run.step()
    best = runs[0].membership["model"]
    way, told = Response(1.0, 3), []
    for round in range(200):
        runs[1].round = round
        told.append(runs[1].choose(list(range(len(federation))))["model"].extra["membership"])
    seen = torch.stack(told)
    same = (seen == best).double().mean().item()
    assert same == pytest.approx(way.keep, abs=4 * math.sqrt(way.keep * (1 - way.keep) / seen.numel()))
    runs[1].round = 1
    assert not torch.equal(runs[1].membership["model"], best)
    for place in range(len(federation)):  # it trains what it told, and predicts with its best model
        for path, value in runs[1].predictors([place]).items():
            row = runs[1].server["model"].values[f"model/{path}"][best[place]]
            torch.testing.assert_close(value[0], row)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fedavg+dp(mechanism=duchi)", "say trust='nobody', and a noise above 0"),
        ("fedavg+dp(mechanism=duchi,trust=nobody,noise=0)", "noise above 0, which is 1 / epsilon of a visit"),
        ("fedavg+dp(matrix=tree)", "is not used without correlated noise: add correlated=true"),
        ("ifca(epsilon=0)", "epsilon=0"),
        ("ifca+fedbn+dp(trust=nobody)", r"let choices be told by randomised response.*ifca\(epsilon=1\)"),
        ("ifca(epsilon=1)+fedbn+dp", "a client's choice of a model tells of its data"),
    ],
)
def test_what_does_not_fit_is_refused(method, said):
    federation, _ = clients()
    with pytest.raises(PluresError, match=said):
        Run(federation, model, find_method(method)(), Training(2, 8, steps=1), execution=LOOP)


def test_calibrated_noise_is_refused_where_choices_are_told_too():
    spec = RunSpec(data="heart", method="ifca", parameters={"epsilon": 1.0}, rounds=2, dp="epsilon=4,trust=nobody")
    with pytest.raises(PluresError, match="ifca spends epsilon on choices of models, too"):
        spec.run(load("heart"))


def test_a_calibrated_mechanism_spends_what_is_asked():
    spec = RunSpec(data="heart", method="fedavg", rounds=3, dp="epsilon=6,trust=nobody,mechanism=duchi,clip=0.05")
    run = spec.run(load("heart"), LOOP)
    run.step()
    assert 5.9 < run.origin.plan.spent(3).epsilon <= 6.0
    assert "noisy bits of epsilon 2 a visit (Duchi)" in str(run.origin.plan.spent(3))
    assert run.spent().epsilon == pytest.approx(2.0, rel=2e-3)
    assert isinstance(run.bound.line.payload["bits"], torch.Tensor)
