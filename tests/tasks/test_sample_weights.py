"""Weights of examples: the loss is the weighted mean in every method and backend, and metrics are weighted alike."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score, roc_auc_score
from torch import Tensor, nn

from catalogued import ALL, away, trained
from newcomers import clients
from plures import PluresError, from_table
from plures.evaluate import score
from plures.federation import SPLITS, Federation, Split, from_arrays
from plures.method import SGD
from plures.methods import METHODS, ditto, fedavg, knnper, local, temperature
from plures.methods.threshold import best_threshold, utilities
from plures.metrics import CLASSIFICATION, REGRESSION, Metric, alone
from plures.models import with_roles
from plures.run import Execution, Run, Training
from plures.run.checkpoint import restore, snapshot
from plures.run.choose import uncompilable
from plures.run.fingerprint import DATA, difference, of_run
from plures.run.predict import said
from plures.tables.schema import Schema
from plures.tasks import Classification, MultiLabel, Regression
from problems import scalar

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")

READS_EXAMPLES = {
    "fedhome": "combines codes of examples",
    "fedsimclr": "each example is a negative of all others",
    "knnper": "the nearest examples vote, however light",
}
"""Methods that do more with examples than averaging over them."""


def alone_at(x: Tensor, y: Tensor, task, weights: Tensor | None = None) -> Federation:
    """One client, whose splits are all the same rows."""
    split = Split.of([torch.arange(len(x))])
    return Federation("one", task, x, y, ("a",), dict.fromkeys(SPLITS, split), weights=weights)


def rows(count: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x, noise, w = (torch.rand(count, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    return x + 0.5, 2 * x + noise, 3 * w.flatten() + 0.1


def fitted(data: Federation, steps: int, backend: str = "vmap", model=None, lr: float = 0.3) -> Tensor:
    training = Training(rounds=1, batch_size=None, steps=steps, optimizer=SGD(lr))
    execution = Execution(backend, 1, False, "float64")
    run = Run(data, model or scalar(0.0), local(), training, execution=execution)
    run.step()
    return torch.cat([t.flatten() for t in run.predictors([0]).values()])


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_weighted_least_squares_in_closed_form(backend: str):
    x, y, w = rows()
    best = (w @ (x * y)) / (w @ x.square())
    assert torch.allclose(fitted(alone_at(x, y, Regression(1), w), 300, backend), best, rtol=0, atol=1e-12)
    assert not torch.allclose(fitted(alone_at(x, y, Regression(1)), 300, backend), best, rtol=0, atol=1e-3)


def test_a_step_with_weights_of_classes_and_of_examples_by_hand():
    """From zero, p = 1/2: the slope of the second output is ``sum w_i c_i (1/2 - y_i) x_i / sum w_i``."""
    x, _, w = rows()
    y = (torch.arange(12) % 3 == 0).long()
    task = Classification(("no", "yes"), class_weights={"yes": 3})

    def model() -> nn.Module:
        layer = nn.Linear(1, 2, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    c = torch.where(y == 1, 3.0, 1.0)
    slope = (w * c * (0.5 - y) * x.flatten()).sum() / w.sum()
    assert torch.allclose(fitted(alone_at(x, y, task, w), 1, model=model), 0.3 * torch.stack([slope, -slope]))


def test_weights_of_examples_and_positive_weights_multiply():
    task = MultiLabel(("a", "b"), positive_weights={"b": 3})
    outputs, targets = torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    mean = task.mean_loss(outputs, targets, torch.tensor([2.0, 1.0]))
    assert float(mean) == pytest.approx((2 * (1 + 3) / 2 + 1) / 3 * np.log(2))


def test_weight_2_is_the_row_twice():
    x, y, _ = rows()
    weights = torch.ones(12, dtype=torch.float64)
    weights[3] = 2
    twice = alone_at(torch.cat([x, x[3:4]]), torch.cat([y, y[3:4]]), Regression(1))
    found = fitted(alone_at(x, y, Regression(1), weights), 4)
    assert torch.allclose(found, fitted(twice, 4), rtol=0, atol=1e-15)


def test_weight_0_is_no_row_bit_for_bit():
    generator = np.random.default_rng(0)
    x, y, client = generator.normal(size=(60, 3)), np.arange(60) % 2, np.repeat(["a", "b"], 30)
    weights = 1.0 + np.arange(60) % 3
    weights[[4, 40]] = 0
    left, kept = from_arrays(x, y, client, weights=weights, standardize=True), np.flatnonzero(weights)
    bare = from_arrays(x[kept], y[kept], client[kept], weights=weights[kept], standardize=True)
    for name in ("inputs", "targets", "weights"):
        assert torch.equal(getattr(left, name), getattr(bare, name))
    assert all(torch.equal(left.splits[split].rows, bare.splits[split].rows) for split in SPLITS)


def test_weights_of_1_are_no_weights():
    x, y, _ = rows()
    assert alone_at(x, y, Regression(1), torch.ones(12)).weights is None


def weighted(lightest: float = 0.2) -> Federation:
    """Five clients with weights between a number and 1."""
    seen, _ = clients()
    drawn = torch.rand(len(seen.inputs), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return replace(seen, weights=lightest + (1 - lightest) * drawn)


def headed() -> nn.Module:
    return with_roles(nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2)), head="2")


@pytest.mark.parametrize("method", [fedavg, knnper, temperature])
def test_one_after_the_other_and_side_by_side_agree(method):
    """Also on padded batches; and only ratios matter."""

    def done(backend: str, factor: float = 1.0) -> Run:
        data = weighted()
        data = replace(data, weights=factor * data.weights)
        execution = Execution(backend, 1 if backend == "loop" else 5, False, "float64")
        run = Run(data, headed, method(), Training(rounds=2, batch_size=8), execution=execution, seed=2)
        for _ in run.rounds():
            pass
        return run

    loop, vmap, larger = done("loop"), done("vmap"), done("vmap", 1000.0)
    assert away(loop, vmap) < 1e-10
    assert away(vmap, larger) < 1e-9
    for one in (vmap, larger):
        for name, values in score(loop, "test").values.items():
            np.testing.assert_allclose(values, score(one, "test").values[name], atol=1e-9)


def begun(execution: Execution) -> Run:
    return Run(weighted(), headed, ditto(0.5), Training(rounds=4, batch_size=8), execution=execution, seed=2)


def test_a_resumed_run_continues_bit_for_bit():
    whole, stopped, resumed = (begun(Execution("vmap", 5, False, "float64")) for _ in range(3))
    for _ in range(4):
        whole.step()
    for _ in range(2):
        stopped.step()
    restore(resumed, snapshot(stopped))
    for _ in range(2):
        resumed.step()
    assert away(whole, resumed) == 0


@pytest.mark.usefixtures("traced")
@pytest.mark.skipif(uncompilable() is not None, reason=uncompilable() or "")
def test_compiled_steps_agree():
    plain, compiled = (begun(Execution("vmap", 5, compiling, "float64")) for compiling in (False, True))
    for run in (plain, compiled):
        run.step()
    assert compiled.execution.compile is True
    assert away(plain, compiled) < 1e-12


@pytest.mark.parametrize("name", [name for name in METHODS if name not in READS_EXAMPLES])
def test_what_has_hardly_any_weight_has_hardly_any_influence(name: str):
    """Every third example of the training split has weight 1e-12; its inputs change nothing that is learned."""
    seen, _ = clients()
    light = torch.zeros(len(seen.inputs), dtype=torch.bool)
    light[torch.cat([rows[1::3] for rows in seen.splits["train"]])] = True
    weights = torch.where(light, 1e-12, 1.0).double()
    changed = torch.where(light.unsqueeze(1), seen.inputs.flip(1) + 1, seen.inputs)
    one, other = (replace(seen, inputs=inputs, weights=weights) for inputs in (seen.inputs, changed))
    assert away(trained(name, one, batch_size=None), trained(name, other, batch_size=None)) < 1e-7


# --- metrics ----------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_scikit_learn_with_sample_weight():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    y, w = (torch.arange(40) % 2), torch.rand(40, generator=generator, dtype=torch.float64) + 0.1
    found = said(Classification(("a", "b")), outputs, y, w)
    values = {metric.name: metric.of(found) for metric in CLASSIFICATION}
    assert values["accuracy"] == pytest.approx(accuracy_score(y, outputs.argmax(1), sample_weight=w))
    assert values["auroc"] == pytest.approx(roc_auc_score(y, outputs[:, 1] - outputs[:, 0], sample_weight=w))
    numbers = said(Regression(1), outputs[:, :1], outputs[:, 1:], w)
    values = {metric.name: metric.of(numbers) for metric in REGRESSION}
    truth, guess = outputs[:, 1], outputs[:, 0]
    assert values["r2"] == pytest.approx(r2_score(truth, guess, sample_weight=w))
    assert values["mae"] == pytest.approx(mean_absolute_error(truth, guess, sample_weight=w))


def test_scores_of_a_run_are_weighted():
    data = weighted()
    run = Run(data, lambda: nn.Linear(8, 2), fedavg(), Training(rounds=1), execution=ALL)
    run.step()
    own = data.splits["test"][0]
    with torch.no_grad():
        model = run.predictors([0])
        right = ((data.inputs[own] @ model["weight"][0].T + model["bias"][0]).argmax(1) == data.targets[own]).double()
    assert float(score(run, "test").values["accuracy"][0]) == pytest.approx(
        np.average(right, weights=data.weights[own])
    )


def test_a_function_of_one_client_takes_weights_or_is_refused():
    data = weighted()

    def judged(weighted: bool) -> Run:
        value = alone(lambda right, sample_weight=None: np.average(right, weights=sample_weight), weighted=weighted)
        metric = Metric("hit", "hits", lambda p: (p.decisions == p.targets).double(), value, higher=True, range=(0, 1))
        return Run(data.judged_by(metric), lambda: nn.Linear(8, 2), fedavg(), Training(rounds=1), execution=ALL)

    with pytest.raises(PluresError, match=r"examples have weights, which the function of this metric does not get"):
        judged(False)
    values = score(judged(True), "test").values
    np.testing.assert_allclose(values["hit"], values["accuracy"])


def test_the_best_threshold_of_weighted_examples():
    """One positive of weight 5 outweighs three negatives with higher scores; small weights change nothing."""
    scores, positive = torch.tensor([0.0, 1.0, 2.0, 3.0, -9.0]), torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    weight = torch.tensor([5.0, 1.0, 1.0, 1.0, 0.0])
    for factor in (1.0, 1e-3):
        for name in ("accuracy", "f1", "precision"):
            utility = utilities(1.0, 1.0, 0.8)[name]
            assert float(best_threshold(scores, positive, factor * weight, utility, 0.5)) < 0
    assert float(best_threshold(scores, positive, weight, utility, 0.5, least=2)) == 0.5


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 39 + [-1.0], "client 'b', row 39: a weight that is negative or no number; correct it, or say 0"),
        ([np.nan] + [1.0] * 39, "client 'a', row 0: a weight that is negative or no number"),
        ([1.0] * 20 + [0.0] * 20, "client 'b': all weights are 0, so it has no example; correct them"),
        ([1.0] * 39, "weights: 39 values for 40 inputs; they must match"),
        (["heavy"] * 40, "weights of type <U5 are no numbers"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, message: str):
    x, y, client = np.arange(120.0).reshape(40, 3), np.arange(40) % 2, ["a"] * 20 + ["b"] * 20
    with pytest.raises(PluresError, match=message):
        from_arrays(x, y, client, weights=weights)


def test_a_column_of_a_table():
    table = {
        "ward": ["A"] * 20 + ["B"] * 20,
        "ill": [0, 1] * 20,
        "age": [k // 2 for k in range(40)],
        "count": [1.0, 2.5] * 20,
    }
    data = from_table(table, target="ill", client="ward", weight="count")
    assert data.columns == ("age",)
    assert data.weights.tolist() == table["count"]
    with pytest.raises(PluresError, match="no column 'cuont' in the table; did you mean 'count'"):
        from_table(table, target="ill", client="ward", weight="cuont")


def test_weights_are_part_of_what_a_result_is_of():
    data = weighted()
    heavier = replace(
        data, weights=torch.where(torch.arange(len(data.weights)) == data.splits["test"][2][0], 9.0, data.weights)
    )
    told = [
        of_run(Run(some, lambda: nn.Linear(8, 2), fedavg(), Training(rounds=1), execution=ALL), "fedavg")
        for some in (data, heavier, replace(data, weights=None))
    ]
    assert difference({DATA: told[0][DATA]}, {DATA: told[0][DATA]}) is None
    assert "client 'c'" in difference({DATA: told[0][DATA]}, {DATA: told[1][DATA]})
    assert "weights" in difference({DATA: told[0][DATA]}, {DATA: told[2][DATA]})


# --- tables of sites --------------------------------------------------------------------------------------------

DECLARED = {
    "target": "ill",
    "classes": ["no", "yes"],
    "weight": "count",
    "columns": [{"name": "age", "kind": "number"}],
}


def ward(weights: list[object]) -> dict[str, list[object]]:
    return {"ill": ["no", "yes"] * 6, "age": list(range(12)), "count": weights}


def test_a_sites_table_has_weights():
    schema = Schema.parse(DECLARED)
    data = schema.federation("wards", {"A": ward([1.0, 2.5] * 6), "B": ward([0.0, *[2.0] * 11])})
    assert (data.columns, len(data.inputs)) == (("age",), 23)
    assert data.weights.tolist() == [1.0, 2.5] * 6 + [2.0] * 11
    assert Schema.parse(tomllib.loads(schema.to_toml())["schema"]) == schema


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 11 + [-2.0], "A.*count.*1 value lies outside the range .at least 0."),
        ([0.0] * 12, "A.*count.*is 0 in all rows, so none counts"),
        ([1.0] * 11 + [None], "A.*count.*missing"),
    ],
)
def test_weights_of_a_site_that_cannot_be_are_refused(weights: list[object], message: str):
    with pytest.raises(PluresError, match=message):
        Schema.parse(DECLARED).federation("wards", {"A": ward(weights)})
