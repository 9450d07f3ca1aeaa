"""After training: interpolation, temperatures, priors, thresholds, and EEFed's two networks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plures.errors import PluresError
from plures.evaluate.scores import score
from plures.federation import Federation, Split
from plures.method import Calibration, Method, Predict
from plures.methods import ditto, fedavg, fedavg_ft, fedbn, fedper, local
from plures.methods.eefed import eefed
from plures.methods.prior_shift import prior_shift, shifted_threshold
from plures.methods.temperature import temperature
from plures.methods.threshold import best_threshold, threshold
from plures.methods.wise_ft import GRID, wise_ft
from plures.run import Execution, Fixed, Run, Uniform, onboard
from plures.run.checkpoint import restore, snapshot
from plures.run.cost import traffic
from plures.run.engine import Engine
from plures.tasks import Classification
from problems import CURVATURES, OPTIMA, predictions, predictors, quadratic, run, same, shared, weight
from shifted import mlp, ragged

TOGETHER = Execution("vmap", 16, False, "float64")
COHORTS = pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])


def trained(method: Method, rounds: int = 5, **options) -> Run:
    """Mini-batches on ragged clients of three classes."""
    given = {"steps": 4, "batch_size": 8, "federation": ragged(), "model": mlp, "execution": TOGETHER, **options}
    return run(method, rounds, **given)


def outputs(done: Run, inputs: torch.Tensor | None = None) -> torch.Tensor:
    """What every client predicts for the same inputs, ``(clients, examples, outputs)``."""
    clients = list(range(len(done.federation)))
    inputs = done.federation.inputs[:20] if inputs is None else inputs
    return done.engine.forward(done.deployed(clients), inputs.expand(len(clients), *inputs.shape))


def decisions(done: Run, inputs: torch.Tensor | None = None) -> torch.Tensor:
    """The class that every client decides for, ``(clients, examples)``."""
    return done.engine.decisions(done.deployed(list(range(len(done.federation)))), outputs(done, inputs))


def fitted(done: Run, slot: str, leaf: str) -> torch.Tensor:
    return done.deployed(list(range(len(done.federation))))[slot][leaf]


def unvalidated(data: Federation) -> Federation:
    """The same clients without validation examples."""
    nothing = Split.of([torch.zeros(0, dtype=torch.int64)] * len(data))
    return replace(data, splits={**data.splits, "validation": nothing})


def test_clients_train_before_they_predict_once_for_a_state_of_the_run(monkeypatch):
    """Predictors are kept until the run moves on or goes back, and only as long as they fit."""
    visits: list[int] = []

    def counted(engine: Engine, x, received, clients, *rest, **options):
        visits.append(len(clients))
        return visit(engine, x, received, clients, *rest, **options)

    visit = Engine.visit
    done = trained(fedavg_ft(epochs=2))
    before = snapshot(done)
    monkeypatch.setattr(Engine, "visit", counted)
    first = done.predictors([0, 1])
    again = done.predictors([0, 1])
    assert visits == [2]
    assert all(again[path] is leaf for path, leaf in first.items())
    again.clear()
    assert done.predictors([0, 1]).keys() == first.keys()
    done.step()
    visits.clear()
    moved = done.predictors([0, 1])
    assert visits == [2]
    assert not any(torch.equal(moved[path], leaf) for path, leaf in first.items())
    restore(done, before)
    back = done.predictors([0, 1])
    assert visits == [2, 2]
    assert all(torch.equal(back[path], leaf) for path, leaf in first.items())
    monkeypatch.setattr("plures.run.run.READY", 0)
    done.predictors([1, 0])
    done.predictors([1, 0])
    assert visits == [2, 2, 2, 2]


# Scores that are given: the model passes its only input on as the log-odds of the second class ---------------------


class Odds(nn.Module):
    """Outputs ``(0, s)`` for the input ``s``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.0], [1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


def scored(*clients: tuple[list[float], list[int]], validation: tuple[list[float], list[int]] | None = None):
    """Clients with log-odds and labels; all splits are alike unless the first client's validation is given."""
    parts = [*clients, *([validation] if validation else [])]
    sizes = [len(scores) for scores, _ in parts]
    rows = list(torch.arange(sum(sizes)).split(sizes))
    train, checked = rows[: len(clients)], [rows[-1], *rows[1 : len(clients)]] if validation else rows
    return Federation(
        "odds",
        Classification(("no", "yes")),
        torch.tensor([s for scores, _ in parts for s in scores], dtype=torch.float64)[:, None],
        torch.tensor([y for _, labels in parts for y in labels]),
        tuple("abcdefgh"[: len(clients)]),
        {"train": Split.of(train), "validation": Split.of(checked), "test": Split.of(train)},
    )


def untrained(method: Method, data: Federation, rounds: int = 1, **options) -> Run:
    """Rounds in which the scores do not change."""
    return run(method, rounds, federation=data, model=Odds, lr=0.0, **options)


def random_scores(seed: int = 0, clients: int = 5, size: int = 40) -> Federation:
    """Noisy, biased scores; one label in four is positive."""
    generator = np.random.default_rng(seed)
    parts = []
    for number in range(clients):
        y = (generator.random(size + number) < 0.25).astype(int)
        s = 1.5 * y + generator.normal(size=len(y)) + number - 2
        parts.append((np.round(s, 1).tolist(), y.tolist()))
    return scored(*parts)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# Interpolation ----------------------------------------------------------------------------------------------------


@COHORTS
@pytest.mark.parametrize(("alpha", "other"), [(0.0, fedavg), (1.0, fedavg_ft)])
def test_wise_ft_ends_at_fedavg_and_at_fine_tuning(alpha, other, cohort):
    left, right = (trained(method, participation=cohort) for method in (wise_ft(alpha=alpha), other()))
    assert same(predictors(left), predictors(right))


@COHORTS
def test_the_global_model_never_sees_the_interpolation(cohort):
    left, right = (trained(method, participation=cohort) for method in (wise_ft(), fedavg()))
    assert same(shared(left), shared(right))


def elsewhere(optima: tuple[float, ...]) -> Federation:
    """Q3 with validation examples whose optima are elsewhere."""
    train, other = quadratic(), quadratic(optima=optima)
    rows = train.splits["train"]
    moved = Split(rows.rows + len(train.inputs), rows.offsets)
    return replace(
        train,
        inputs=torch.cat([train.inputs, other.inputs]),
        targets=torch.cat([train.targets, other.targets]),
        splits={**train.splits, "validation": moved},
    )


@pytest.mark.parametrize("mix", ["parameters", "outputs"])
def test_wise_ft_takes_the_weight_with_the_lowest_validation_loss(mix):
    optima = (0.9, 0.0, 2.42)
    w = weight(run(fedavg(), 3))
    tuned = predictions(run(fedavg_ft(steps=3), 3))
    done = run(wise_ft(mix, steps=3), 3, federation=elsewhere(optima))
    best = [min(GRID, key=lambda k, t=t, b=b: (w + k * (t - w) - b) ** 2) for t, b in zip(tuned, optima, strict=True)]
    assert best[0] == 1.0
    assert best[1] == 1.0
    assert 0 < best[2] < 1
    by_hand = [w + k * (t - w) for k, t in zip(best, tuned, strict=True)]
    assert outputs(done, torch.ones(1, 1, dtype=torch.float64)).flatten().tolist() == pytest.approx(by_hand, abs=1e-12)


def test_wise_ft_keeps_the_global_model_where_tuning_only_harms():
    w = weight(run(fedavg(), 3))
    done = run(wise_ft(steps=3), 3, federation=elsewhere((w, w, w)))
    assert predictions(done) == [w, w, w]


def test_wise_ft_of_outputs_mixes_probabilities():
    done, ends = trained(wise_ft("outputs", 0.3)), [trained(wise_ft("outputs", a)) for a in (0.0, 1.0)]
    common, tuned = (outputs(end).softmax(-1) for end in ends)
    torch.testing.assert_close(outputs(done).softmax(-1), 0.3 * tuned + 0.7 * common, atol=1e-12, rtol=0)
    torch.testing.assert_close(common, outputs(trained(fedavg())).softmax(-1), atol=1e-12, rtol=0)
    assert not torch.allclose(outputs(done).softmax(-1), outputs(trained(wise_ft(alpha=0.3))).softmax(-1), atol=1e-6)


def test_wise_ft_without_validation_examples_is_fedavg():
    data = unvalidated(ragged())
    left, right = (trained(method, federation=data) for method in (wise_ft(), fedavg()))
    assert same(predictors(left), predictors(right))


# Temperatures -----------------------------------------------------------------------------------------------------


def likelihoods(done: Run) -> np.ndarray:
    return score(done, "validation").values["loss"]


def test_temperature_closed_form():
    """Right with frequency p at log-odds +s or -s: the best temperature is ``s / logit(p)``."""
    scores, labels = [3.0] * 10 + [-3.0] * 10, [1] * 8 + [0] * 2 + [0] * 8 + [1] * 2
    done = untrained(temperature(prior=0.0), scored((scores, labels), ([0.5, -0.5] * 5, [1, 0] * 4 + [0, 1])))
    expected = [3.0 / logit(0.8), 0.5 / logit(0.8)]
    assert fitted(done, "temperature", "temperature").tolist() == pytest.approx(expected, abs=1e-7)


def test_bias_closed_form():
    """Without scores, the best biases are the logarithms of the label shares."""
    done = untrained(temperature(bias=True, prior=0.0), scored(([0.0] * 10, [1] * 3 + [0] * 7)))
    b = fitted(done, "temperature", "bias")[0]
    assert float(b[1] - b[0]) == pytest.approx(logit(0.3), abs=1e-7)


@COHORTS
@pytest.mark.parametrize("bias", [False, True])
def test_temperature_reaches_the_optimum_and_never_loses_likelihood(bias, cohort):
    method, prior = temperature(bias, prior=0.5), 0.5
    done, plain = trained(method, participation=cohort), trained(fedavg(), participation=cohort)
    assert (likelihoods(done) < likelihoods(plain)).all()
    data, found = done.federation, done.deployed(list(range(7)))["temperature"]
    logits, inside = outputs(plain, data.inputs), 0
    for number in range(7):
        rows = data.splits["validation"][number]
        at = torch.cat([1 / found["temperature"][number, None], found["bias"][number]]).requires_grad_()
        start = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
        nll = F.cross_entropy(logits[number, rows] * at[0] + at[1:], data.targets[rows], reduction="sum")
        (slope,) = torch.autograd.grad(nll + prior / 2 * (at - start).square().sum(), at)
        if slope[0] > 0 and found["temperature"][number] > 900:
            continue  # the scores mislead, and are all but switched off
        assert slope[: 4 if bias else 1].abs().max() < 1e-7
        inside += 1
    assert inside >= 5


def test_a_temperature_never_changes_a_decision_and_a_bias_does():
    plain, warm, biased = (trained(method) for method in (fedavg(), temperature(), temperature(bias=True)))
    inputs = plain.federation.inputs
    assert torch.equal(decisions(warm, inputs), decisions(plain, inputs))
    assert not torch.equal(decisions(biased, inputs), decisions(plain, inputs))


def test_temperature_of_a_client_without_validation_examples_is_one():
    done = trained(temperature(bias=True), federation=unvalidated(ragged()))
    assert torch.equal(outputs(done), outputs(trained(fedavg())))


def test_a_perfectly_separated_client_gets_a_finite_temperature():
    done = untrained(temperature(), scored(([2.0, -2.0] * 4, [1, 0] * 4)))
    t = float(fitted(done, "temperature", "temperature"))
    assert 0.2 < t < 1


# Thresholds -------------------------------------------------------------------------------------------------------


def worth(name: str, decided: np.ndarray, truth: np.ndarray) -> float:
    """A utility, counted."""
    tp, fp = int((decided & truth).sum()), int((decided & ~truth).sum())
    fn, tn = int((~decided & truth).sum()), int((~decided & ~truth).sum())
    if name == "accuracy":
        return tp + tn
    if name == "f1":
        return 2 * tp / (2 * tp + fp + fn)
    if name == "cost":
        return -(5 * fn + 2 * fp)
    return tp / max(tp + fp, 1) if tp >= 0.8 * (tp + fn) else tp / (tp + fn) - 1


@pytest.mark.oracle("TH0")
@pytest.mark.parametrize("name", ["accuracy", "f1", "cost", "precision"])
def test_th0_no_threshold_is_better_on_the_calibration_data(name):
    data = random_scores()
    done = untrained(threshold(name, false_negative=5, false_positive=2, recall=0.8), data)
    common = math.log(2 / 5) if name == "cost" else 0.0
    gained = 0
    for number, t in enumerate(fitted(done, "threshold", "threshold").tolist()):
        rows = data.splits["validation"][number]
        s, y = data.inputs[rows, 0].numpy(), data.targets[rows].numpy().astype(bool)
        decided = decisions(done, data.inputs[rows])[number].numpy().astype(bool)
        assert (decided == (s > t)).all()
        cuts = [-math.inf, common, *s]
        assert worth(name, decided, y) == pytest.approx(max(worth(name, s > cut, y) for cut in cuts), abs=1e-12)
        assert worth(name, decided, y) >= worth(name, s > common, y)
        gained += worth(name, decided, y) > worth(name, s > common, y)
        middles = np.unique(s)[:-1] + np.diff(np.unique(s)) / 2
        assert t in (common, -math.inf, math.inf) or np.isclose(middles, t).any()
    assert gained >= 3


def test_a_threshold_moves_only_when_that_is_strictly_better():
    data = scored(([-1.0, -0.5, 0.2, 2.0], [0, 0, 1, 1]), ([-1.0, 0.4, 0.6, 1.0, 2.0], [0, 0, 1, 0, 1]))
    found = fitted(untrained(threshold(), data), "threshold", "threshold").tolist()
    assert found == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize(("labels", "least"), [([0, 0, 0], 1), ([1, 1, 1], 1), ([1, 0, 0], 2)])
def test_a_client_with_too_few_of_a_class_keeps_the_common_threshold(labels, least):
    data = scored(([-1.0, 1.0, 2.0], labels))
    assert fitted(untrained(threshold(least=least), data), "threshold", "threshold").tolist() == [0.0]
    assert fitted(untrained(threshold(), unvalidated(data)), "threshold", "threshold").tolist() == [0.0]


def test_a_threshold_for_a_utility_of_ones_own():
    def flagged(tp, fp, fn, tn):
        return -(tp + fp - 1).abs()

    data = scored(([-1.0, -0.5, 0.2, 2.0], [0, 1, 0, 1]))
    assert fitted(untrained(threshold(flagged), data), "threshold", "threshold").tolist() == pytest.approx([1.1])


@pytest.mark.oracle("TH2")
def test_th2_a_monotone_map_of_the_scores_changes_no_decision():
    data = random_scores(1)

    def accuracy(tp, fp, fn, tn):
        return tp + tn

    maps = (lambda s: s**3 + s, torch.exp, lambda s: 3 * s - 7)
    for number in range(len(data)):
        rows = data.splits["validation"][number]
        s, y, ones = data.inputs[rows, 0], data.targets[rows].to(torch.float64), torch.ones(len(rows))
        before = s > best_threshold(s, y, ones, accuracy, 0.0)
        for through in maps:
            common = float(through(torch.tensor(0.0, dtype=torch.float64)))
            assert torch.equal(through(s) > best_threshold(through(s), y, ones, accuracy, common), before)
    plain, warm = (untrained(method, data) for method in (threshold(), temperature() + threshold()))
    assert not torch.allclose(outputs(plain, data.inputs), outputs(warm, data.inputs))
    assert torch.equal(decisions(plain, data.inputs), decisions(warm, data.inputs))


def test_a_threshold_leaves_probabilities_alone_and_needs_no_byte():
    data = random_scores()
    plain, done = untrained(fedavg(), data), untrained(threshold(), data)
    assert torch.equal(outputs(plain, data.inputs), outputs(done, data.inputs))
    assert traffic(plain.bound) == traffic(done.bound)
    one, two = (score(which, "test").values for which in (plain, done))
    assert (two["accuracy"] >= one["accuracy"]).all()
    assert two["accuracy"].mean() > one["accuracy"].mean() + 0.05
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-12)


# Priors -----------------------------------------------------------------------------------------------------------

SHIFTS = [(0.5, 0.1, 0.5, 0.9), (0.3, 0.02, 0.5, 0.9545454545), (0.5, 0.1, 0.2, 0.6923076923)]


@pytest.mark.oracle("TH1")
@pytest.mark.parametrize(("prior", "own", "t", "expected"), SHIFTS)
def test_th1_a_prior_shift_moves_the_threshold(prior, own, t, expected):
    assert shifted_threshold(t, prior, own) == pytest.approx(expected, abs=1e-10)
    positive, others = round(100 * own), round(200 * prior) - round(100 * own)
    labels = [[1] * k + [0] * (100 - k) for k in (positive, others)]
    data = scored(*(([0.0] * 100, some) for some in labels))
    decide = threshold("cost", false_negative=1 - t, false_positive=t, least=1000)
    done = untrained(prior_shift(smoothing=0.0) + decide, data)
    near = torch.tensor([[logit(expected - 1e-6)], [logit(expected + 1e-6)]], dtype=torch.float64)
    assert decisions(done, near)[0].tolist() == [0, 1]


@pytest.mark.oracle("TH1")
def test_th1_equal_priors_change_nothing():
    assert all(shifted_threshold(t, p, p) == t for t in (0.1, 0.2, 0.5, 0.7) for p in (0.02, 0.3, 0.9))
    scores = [[0.1 * k - 1.3 + shift for k in range(32)] for shift in (0.0, 0.5, -0.5, 1.0)]
    data = scored(*((some, [1] * 8 + [0] * 24) for some in scores))
    done, plain = untrained(prior_shift(), data, 3), untrained(fedavg(), data, 3)
    torch.testing.assert_close(outputs(done, data.inputs), outputs(plain, data.inputs), atol=1e-12, rtol=0)
    other = scored(*((some, [1] * (4 + 2 * n) + [0] * (28 - 2 * n)) for n, some in enumerate(scores)))
    assert not torch.equal(decisions(untrained(prior_shift(), other), data.inputs), decisions(plain, data.inputs))


def test_the_shared_prior_is_the_mean_over_the_rounds():
    data = scored(*(([0.0] * 10, [1] * k + [0] * (10 - k)) for k in (1, 3, 8)))
    done = untrained(prior_shift(), data, 2, participation=Fixed([["a", "b"], ["b", "c"]]))
    assert done.states([0])["prior"]["prior"][0].tolist() == pytest.approx([1 - 0.375, 0.375])
    assert traffic(done.bound) == (32, 32)


def test_a_class_that_a_client_lacks_is_smoothed_and_one_that_nobody_has_is_left_alone():
    data = scored(([0.0] * 10, [0] * 10), ([0.0] * 10, [1] * 10))
    ratio = fitted(untrained(prior_shift(smoothing=2.0), data), "shift", "ratio")[0].tolist()
    assert ratio == pytest.approx([22 / 12, 2 / 12])
    lonely = scored(([0.0] * 10, [0] * 10))
    assert fitted(untrained(prior_shift(), lonely), "shift", "ratio").tolist() == [[1.0, 1.0]]


def test_expectation_maximisation_finds_the_prior_of_unlabelled_data():
    """Saerens et al. 2002: scores of 0.8 and 0.2 under prior 0.5; a share of 0.26 high scores means prior 0.1."""
    high, low = logit(0.8), logit(0.2)
    check = ([high] * 26 + [low] * 74, [1] * 100)
    data = scored(([high, low] * 5, [1, 0] * 5), ([high, low] * 5, [1, 0] * 5), validation=check)
    done = untrained(prior_shift("em", smoothing=0.0, iterations=500), data)
    ratio = fitted(done, "shift", "ratio")
    assert ratio[0].tolist() == pytest.approx([0.9 / 0.5, 0.1 / 0.5], abs=1e-8)
    assert ratio[1].tolist() == pytest.approx([1.0, 1.0], abs=1e-8)
    blind = untrained(prior_shift("em", smoothing=0.0), unvalidated(data))
    torch.testing.assert_close(outputs(blind), outputs(untrained(fedavg(), data)), atol=1e-12, rtol=0)


# Calibration on top of other methods --------------------------------------------------------------------------------


def two_classes() -> Federation:
    """The ragged clients, first class against the others."""
    data = ragged()
    return replace(data, targets=(data.targets == 0).long(), task=Classification(("rest", "first")))


def small() -> nn.Module:
    from plures.models import with_roles

    return with_roles(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), head="2")


BASES = [fedavg, fedper, fedavg_ft, ditto, lambda: wise_ft("outputs"), lambda: eefed()]


@pytest.mark.parametrize("base", BASES, ids=["fedavg", "fedper", "fedavg_ft", "ditto", "wise_ft", "eefed"])
def test_thresholds_and_temperatures_sit_on_every_predictor(base):
    data = two_classes()
    options = {"federation": data, "model": small}
    plain, done = trained(base(), 3, **options), trained(base() + threshold("f1"), 3, **options)
    swapped = trained(threshold("f1") + base(), 3, **options)
    raw = outputs(plain, data.inputs)
    torch.testing.assert_close(outputs(done, data.inputs), raw, atol=1e-12, rtol=0)
    assert torch.equal(fitted(done, "threshold", "threshold"), fitted(swapped, "threshold", "threshold"))
    for number, t in enumerate(fitted(done, "threshold", "threshold")):
        rows = data.splits["validation"][number]
        s, y = raw[number, rows, 1] - raw[number, rows, 0], data.targets[rows].numpy().astype(bool)
        if y.all() or not y.any():
            continue
        best = max(worth("f1", (s > cut).numpy(), y) for cut in [-math.inf, 0.0, *s.tolist()])
        assert worth("f1", (s > t).numpy(), y) == pytest.approx(best, abs=1e-12)
    warm = trained(base() + temperature(), 3, **options)
    assert (likelihoods(warm) <= likelihoods(plain) + 1e-12).all()


def test_calibrations_are_fitted_one_after_the_other():
    options = {"federation": two_classes(), "model": small}
    done, warm = trained(temperature() + threshold(), 3, **options), trained(temperature(), 3, **options)
    assert torch.equal(outputs(done), outputs(warm))
    assert [stage.slot for stage in (temperature() + threshold()).predictor.calibrate] == ["temperature", "threshold"]
    for path in ("temperature", "bias"):
        assert torch.equal(fitted(done, "temperature", path), fitted(warm, "temperature", path))


def test_backends_fit_the_same():
    options = {"federation": two_classes(), "model": small, "rounds": 3}
    method = fedbn() + temperature(bias=True) + threshold()
    with pytest.warns(match="norm_layers"):
        one = trained(method, **options)
    with pytest.warns(match="norm_layers"):
        two = trained(method, **options, execution=Execution("loop", 1, False, "float64"))
    torch.testing.assert_close(outputs(one), outputs(two), atol=1e-7, rtol=0)
    torch.testing.assert_close(
        fitted(one, "threshold", "threshold"), fitted(two, "threshold", "threshold"), atol=1e-7, rtol=0
    )


METHODS = [wise_ft, lambda: wise_ft("outputs"), temperature, threshold, prior_shift, lambda: prior_shift("em")]


@pytest.mark.parametrize("make", METHODS, ids=["wise_ft", "wise_ft outputs", "temperature", "threshold", "prior", "em"])
def test_an_unseen_client_predicts_as_if_it_had_been_a_client_that_never_came(make):
    data = two_classes()
    never = Fixed([[name for name in data.clients if name != "3"]])
    done = trained(make(), 3, federation=data, model=small, participation=never)
    guest = onboard(done, data.subset(["3"]))
    torch.testing.assert_close(outputs(guest, data.inputs)[0], outputs(done, data.inputs)[3], atol=1e-12, rtol=0)
    assert torch.equal(decisions(guest, data.inputs)[0], decisions(done, data.inputs)[3])
    plain = trained(fedavg(), 3, federation=data, model=small, participation=never)
    differs = not torch.equal(decisions(guest, data.inputs)[0], decisions(plain, data.inputs)[3])
    assert differs or not torch.allclose(outputs(guest, data.inputs)[0], outputs(plain, data.inputs)[3])


# EEFed ------------------------------------------------------------------------------------------------------------


@COHORTS
@pytest.mark.oracle("EE0")
def test_ee0_the_validation_loss_never_rises(cohort):
    losses = []
    for rounds in range(8):
        done = trained(eefed(), rounds, participation=cohort, lr=1.0)
        held = done.states(list(range(7)))["execution"]
        losses.append(score(done, "validation", {"model": held}).values["loss"])
        assert (likelihoods(done) <= losses[-1] + 1e-12).all()
    falls = np.diff(np.stack(losses), axis=0)
    assert (falls <= 1e-12).all()
    assert (falls < -1e-6).any()
    assert (falls == 0).any()
    global_only = np.stack([likelihoods(trained(fedavg(), r, participation=cohort, lr=1.0)) for r in range(8)])
    assert (np.diff(global_only, axis=0) > 0).any()


@COHORTS
@pytest.mark.oracle("EE1")
def test_ee1_always_accepting_is_fedavg_and_never_is_local_training(cohort):
    always, never = (trained(eefed(accept), participation=cohort) for accept in ("always", "never"))
    common, alone = trained(fedavg(), participation=cohort), trained(local(), participation=cohort)
    assert same(shared(always), shared(common))
    assert same(predictors(always), predictors(common))
    assert same(predictors(never), predictors(alone))
    better, common, alone = (trained(m, participation=cohort, lr=1.0) for m in (eefed(), fedavg(), local()))
    assert not same(predictors(better), predictors(common))
    assert not same(predictors(better), predictors(alone))


def test_eefed_by_hand():
    """One visit on Q3 from 0: training improves every client, and no step towards the aggregate does but for c."""
    done = run(eefed(grid=2), 1)
    own = [b * (1 - (1 - 0.1 * a) ** 2) for a, b in zip(CURVATURES, OPTIMA, strict=True)]
    w = -0.19 / 6 + 0.18 / 3 + 1.92 / 2
    assert weight(done) == pytest.approx(w, abs=1e-12)
    choices = [[x, (x + w) / 2, w] for x in own]
    best = [min(some, key=lambda v, b=b: (v - b) ** 2) for some, b in zip(choices, OPTIMA, strict=True)]
    assert best[1] == pytest.approx((own[1] + w) / 2)
    assert predictions(done) == pytest.approx(best, abs=1e-12)


def test_eefed_without_validation_examples_is_fedavg():
    data = unvalidated(ragged())
    left, right = (trained(method, federation=data) for method in (eefed(), fedavg()))
    assert same(predictors(left), predictors(right))


def test_an_unseen_client_of_eefed_keeps_what_is_better_for_it():
    done, newcomer = run(eefed(grid=2, visits=2), 3), quadratic((2.0,), (9.0,), (5,), names=("z",))
    w = v = weight(done)
    assert predictions(onboard(done, newcomer, visits=0)) == [w]
    for _ in range(4):
        v -= 0.1 * 2.0 * (v - 9.0)
    assert predictions(onboard(done, newcomer)) == pytest.approx([v], abs=1e-12)


# Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wise_ft("weights"), "mix='weights'"),
        (lambda: wise_ft(alpha=1.5), "alpha=1.5"),
        (lambda: temperature(prior=-1.0), "prior=-1.0"),
        (lambda: threshold("kappa"), "utility='kappa'"),
        (lambda: threshold(recall=0.0), "recall=0.0"),
        (lambda: threshold("cost", false_negative=0.0), "costs must be positive"),
        (lambda: prior_shift("guess"), "estimate='guess'"),
        (lambda: shifted_threshold(0.5, 0.0, 0.5), "strictly between"),
        (lambda: eefed("sometimes"), "accept='sometimes'"),
        (lambda: eefed(grid=0), "grid=0"),
        (lambda: temperature() + temperature(), "do not compose"),
        (lambda: Calibration("t", lambda x, o, b: {}, split="test"), "cannot read test examples"),
        (lambda: Predict(calibrate=(Calibration("t", lambda x, o, b: {}),) * 2), "its own slot"),
        (lambda: run(temperature(), 0), "temperature needs classes, but the task is regression"),
        (lambda: run(prior_shift(), 0), "prior_shift needs classes, but the task is regression"),
        (lambda: run(threshold(), 0), "decides between two classes"),
        (lambda: trained(threshold(), 0), "temperature\\(bias=True\\)"),
    ],
)
def test_bad_input_names_the_remedy(make, message):
    with pytest.raises(PluresError, match=message):
        make()
