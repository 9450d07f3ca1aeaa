"""What cases say beyond a comparison: official scores of engines, alarms, and courses over a stream."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import plures
from plures.cases import Course, attend
from plures.cases.course import Learned, drawn, kept
from plures.cases.intrusion import alarms, known
from plures.cases.maintenance import official
from plures.cases.units import in_units, penalties, rates
from plures.evaluate import StreamScores, follow
from plures.federation import permuted
from plures.files import read_json
from plures.methods import ewc
from plures.methods.threshold import best_threshold, utilities
from plures.metrics import REGRESSION
from plures.models.reference import logistic
from plures.run import Training

TINY = {"rounds": 1, "seeds": 1, "tune_rounds": 0, "learning_rates": (0.1,), "every": 1}


def test_official_scores_are_over_all_engines_of_a_population():
    """Constants 2 and 5 against truths 2, 5 and 5, 8: errors 0, -3 and 0, -3."""
    x = np.zeros((12, 1), dtype=np.float32)
    y = np.array([2.0] * 4 + [2.0, 5.0] + [5.0] * 4 + [5.0, 8.0], dtype=np.float32)
    given = [0, 0, 0, 1, 2, 2] * 2
    federation = plures.from_arrays(
        x, y, ["a"] * 6 + ["b"] * 6, copies="allow", task="regression", metadata={"population": {"a": "P", "b": "P"}}
    )
    split = type(federation.splits["train"]).of
    rows = [[torch.tensor([6 * c + i for i in range(6) if given[i] == s]) for c in range(2)] for s in range(3)]
    federation = plures.Federation(
        **{
            **{
                name: getattr(federation, name) for name in ("name", "task", "inputs", "targets", "clients", "metadata")
            },
            "splits": dict(zip(plures.federation.SPLITS, map(split, rows), strict=True)),
        }
    )
    found = plures.compare(federation, [], model="logistic", metric=["rmse", "nasa_score"], **TINY)
    (line,) = official(found)
    late = 2 * np.expm1(3 / 13)
    assert line.startswith("RMSE / NASA score over all 4 test engines of P: Constant ")
    assert f"Constant {np.sqrt(18 / 4):.1f} / {late:.0f}," in line


def test_alarms_tell_what_thresholds_that_were_set_beforehand_do():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 200)
    x = (y + generator.normal(size=200) / 2).astype(np.float32)[:, None]
    data = plures.from_arrays(x, y, ["a"] * 100 + ["b"] * 100, classes=("normal", "attack"))
    found = plures.compare(
        data,
        ["threshold(utility=recall,alarms=0.01)"],
        model="logistic",
        metric=["recall_at_fpr_1", "sensitivity", "specificity"],
        **{**TINY, "rounds": 3},
    )
    lines = alarms(found)
    for line, method in zip(lines, (found.method("fedavg"), found.methods[-1]), strict=True):
        hits = np.mean(method.per_client("sensitivity"))
        false = 1 - np.asarray(method.per_client("specificity"))
        assert f"finds {100 * hits:.1f} % of a service's attacks with {100 * false.mean():.1f} % false alarms" in line
        assert f"most, {100 * false.max():.1f} %, at {found.federation.clients[int(false.argmax())]})" in line
        share = 0.001 * hits / (0.001 * hits + 0.999 * false.mean())
        assert f"one connection in 1000 were an attack, {100 * share:.1f} % of its alarms would be true" in line
    assert known(np.array([1.0, np.nan, 2.0])).tolist() == [1.0, 2.0]


def test_a_network_in_units_takes_the_steps_of_one_with_scaled_targets():
    """One step of gradient descent on squared errors in the unit equals one on the errors as shares of the unit."""
    unit, x, y = 125.0, torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    net = in_units((3,), 2, unit=unit).double()
    start = [p.detach().clone() for p in net.parameters()]
    steps = []
    for scale, rate, strength in ((1.0, rates(unit, 0.1)[0], penalties(unit, 0.5)[0]), (unit, 0.1, 0.5)):
        with torch.no_grad():
            for p, value in zip(net.parameters(), start, strict=True):
                p.copy_(value)
        penalty = sum((p.square().sum() for p in net.parameters()), torch.zeros(()))
        loss = ((net(x) - unit * y) / scale).square().sum() + strength * penalty
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        steps.append(torch.cat([(rate * gradient).flatten() for gradient in gradients]))
    torch.testing.assert_close(steps[0], steps[1])


def test_a_course_chooses_by_validation_and_reports_test(tmp_path: Path):
    lam = ({"lam": 1.0}, {"lam": 100.0})
    options = {"model": "logistic", "lr": 0.1, "rounds": 2}
    course = Course(
        "two", "Two orders", "heart", partial(permuted, experiences=2), {"fedavg": ({},), "ewc": lam}, options, 1
    )
    found = attend(course, tmp_path)
    stream = permuted(plures.load("heart"), experiences=2)
    model = partial(logistic, stream[0].features, 2)
    training = Training(rounds=2, optimizer=plures.SGD(0.1))

    def final(split: str, **parameters: float) -> float:
        scores = follow(stream, model, ewc(**parameters), training, split=split)
        return float(scores.final.mean())

    best = max(lam, key=lambda given: final("validation", **given))
    assert found[1].title == f"EWC + proximal lam={best['lam']}"
    assert found[0].scores[0].values.shape == (2, 2, 4)
    written = read_json(tmp_path / "two" / "results.json")
    np.testing.assert_allclose(written["values"][found[0].title][0], found[0].scores[0].values)


def test_what_was_kept_by_hand():
    """Errors after each of two experiences: 1, 4 then 3, 2 with one method, 1, 4 then 1, 2 with the other."""
    rmse = next(metric for metric in REGRESSION if metric.name == "rmse")

    def learned(title: str, *values: list[list[float]]) -> Learned:
        of = [StreamScores(rmse, ("dry", "wet"), ("a",), np.array(one)[:, :, None]) for one in values]
        return Learned(title, tuple(of))

    forgets = learned("Forgetful", [[1.0, 4.0], [3.0, 2.0]], [[1.0, 4.0], [3.2, 2.0]])
    keeps = learned("Careful", [[1.0, 4.0], [1.0, 2.0]], [[1.0, 4.0], [1.0, 2.0]])
    first, second, verdict = kept([forgets, keeps])
    assert "at the end 2.55 ± 0.64, mean over dry, wet (3.10, 2.00); 1.50 on each just after" in first
    assert "forgetting 2.10" in first
    assert "forgetting 0.00" in second
    chart = drawn("seasons", [forgets, keeps]).document()
    assert chart["experiences"] == ("dry", "wet")
    assert [(m["title"], m["runs"]) for m in chart["methods"]] == [
        ("Forgetful", [[[1.0, 4.0], [3.0, 2.0]], [[1.0, 4.0], [3.2, 2.0]]]),
        ("Careful", [[[1.0, 4.0], [1.0, 2.0]]] * 2),
    ]
    assert verdict.startswith("At the end, Careful is better than Forgetful: gain 1.05 ±")
    assert kept([keeps, forgets])[2].startswith("At the end, Forgetful is no better than Careful")
    once = [learned("Forgetful", [[1.0, 4.0], [3.0, 2.0]]), learned("Careful", [[1.0, 4.0], [1.0, 2.0]])]
    assert "at the end 2.50 with one seed, mean over dry, wet (3.00, 2.00)" in kept(once)[0]
    assert "forgetting 2.00 with one seed." in kept(once)[0]
    assert kept(once)[2] == "At the end, one seed cannot tell whether Careful is better than Forgetful: gain 1.00."


@pytest.mark.parametrize(("alarms", "expected"), [(0.0, 0.55), (0.34, 0.25)])
def test_the_threshold_of_the_highest_recall_at_stated_false_alarms(alarms: float, expected: float):
    """Attacks at .3, .6; normal at .1, .2, .5: without false alarms one of two is found, with one both are."""
    scores, attack = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.6]), torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0])
    rule = utilities(1.0, 1.0, 0.8, alarms)["recall"]
    assert float(best_threshold(scores, attack, torch.ones(5), rule, -1.0)) == pytest.approx(expected)
