"""Survival: Cox's partial likelihood over a batch, censoring, ties, padding, weights, and the C-index."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import plures
from plures import PluresError
from plures.federation import Federation, from_arrays
from plures.methods import METHODS
from plures.metrics import SURVIVAL
from plures.metrics.survival import baseline, cox, curve_errors
from plures.run import Execution, Run, Training
from plures.run.predict import said
from plures.tasks import Survival

C_INDEX, LOSS = SURVIVAL
HAZARDS = torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.float64)
SEEN = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
TERMS = [math.log(1 + math.exp(-1) + math.exp(-2)), math.log(1 + math.exp(-1)), 0.0]


def patients(task: object = "survival", **options: object) -> Federation:
    """Three hospitals of different sizes; the first column drives the hazard, a third of the times are censored."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(75, 2)).astype(np.float32)
    times = np.ceil(10 * draw.exponential(np.exp(-x[:, 0])))
    targets = np.stack([times, draw.uniform(size=75) < 2 / 3], 1)
    return from_arrays(x, targets, np.repeat(["a", "b", "c"], [20, 25, 30]), task=task, seed=0, **options)


# --- the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.oracle("EV7")
def test_v7_terms_of_three_events() -> None:
    """Everybody is at risk at the first event, the last two at the second, the last one at the third."""
    task = Survival()
    assert pytest.approx([0.4076059644, 0.3132616875, 0]) == TERMS
    assert task.terms(HAZARDS, SEEN).tolist() == pytest.approx(TERMS)
    assert float(task.mean_loss(HAZARDS, SEEN)) == pytest.approx(0.2402892193)


@pytest.mark.oracle("EV7")
def test_v7_clients_are_strata() -> None:
    """Patients 1 and 3 at one client and 2 at another: only the first client compares anybody."""
    task, apart = Survival(), [[0, 2], [1]]
    assert sum(float(task.terms(HAZARDS[i], SEEN[i]).sum()) for i in apart) == pytest.approx(0.1269280110)


def test_tied_events_share_the_set_at_risk_and_the_censored_are_in_it() -> None:
    """Hazards 1, 2, 3, 4 at times 5, 5, 5 (censored), 7: sums at risk are 10, 10 and 4."""
    found = cox(torch.tensor([1.0, 2, 3, 4]).log(), torch.tensor([5.0, 5, 5, 7]), torch.tensor([1.0, 1, 0, 1]))
    assert found.tolist() == pytest.approx([math.log(10), math.log(5), 0, 0], abs=1e-6)


def test_weights_count_as_copies_and_padding_as_nothing() -> None:
    """A patient of weight 2 is two patients; one of weight 0 is neither at risk nor in the mean."""
    task = Survival()
    outputs, targets = torch.tensor([[0.3], [-0.2], [5.0]]), torch.tensor([[2.0, 1.0], [4.0, 1.0], [9.0, 1.0]])
    copies = task.mean_loss(outputs[[0, 1, 1]], targets[[0, 1, 1]])
    assert float(task.mean_loss(outputs, targets, torch.tensor([1.0, 2.0, 0.0]))) == pytest.approx(float(copies))


def test_the_gradient_of_the_first_event_by_hand() -> None:
    """Only the first patient has an event: its share of the hazards at risk minus 1, and the others' shares."""
    outputs = HAZARDS.clone().requires_grad_()
    targets = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    (slope,) = torch.autograd.grad(3 * Survival().mean_loss(outputs, targets), outputs)
    shares = HAZARDS.softmax(0).flatten()
    assert slope.flatten().tolist() == pytest.approx([float(shares[0]) - 1, float(shares[1]), float(shares[2])])


@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2, 75)], ids=["alike", "weighted"])
def test_loop_and_stack_agree_on_clients_of_different_sizes(weights: object) -> None:
    """Batches of a stack are padded, and padding is not at risk."""
    data = patients(dtype=torch.float64, **({} if weights is None else {"weights": weights}))
    training = Training(rounds=2, batch_size=16, optimizer=plures.SGD(0.1))
    found = []
    for execution in (Execution("loop", 1, False, "float64"), Execution("vmap", 3, False, "float64")):
        done = Run(data, lambda: nn.Linear(2, 1), METHODS["fedavg"](), training, execution=execution)
        for _ in done.rounds():
            pass
        found.append(done.predictors([0, 1, 2])["weight"])
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    assert float(found[0].flatten()[0]) > 0.05


# --- metrics ------------------------------------------------------------------------------------------------------


def measured(times: list[float], events: list[float], hazards: list[float], weight: list[float] | None = None):
    targets = torch.tensor([times, events], dtype=torch.float64).T
    counted = torch.ones(len(times)) if weight is None else torch.tensor(weight)
    return said(Survival(), torch.tensor(hazards, dtype=torch.float64).unsqueeze(1), targets, counted)


V6 = [2.0, 4, 4, 6, 8], [1.0, 1, 0, 0, 1]


@pytest.mark.oracle("EV8")
def test_v6_harrells_c_index() -> None:
    """The first patient is above the four later ones; the second below two of three: 5 of 7 pairs."""
    assert C_INDEX.of(measured(*V6, [0.9, 0.5, 0.6, 0.6, 0.1])) == pytest.approx(5 / 7)
    assert C_INDEX.of(measured(*V6, [0.9, 0.6, 0.6, 0.6, 0.1])) == pytest.approx(6 / 7)
    assert C_INDEX.of(measured(*V6, [0.0] * 5)) == 0.5
    assert C_INDEX.of(measured(*V6, [math.nan] * 5)) == 0.0


def test_a_weight_of_2_is_two_patients() -> None:
    once = measured(*V6, [0.9, 0.5, 0.6, 0.6, 0.1], [1.0, 1, 2, 1, 0])
    twice = measured([2.0, 4, 4, 4, 6], [1.0, 1, 0, 0, 0], [0.9, 0.5, 0.6, 0.6, 0.6])
    assert C_INDEX.of(once) == pytest.approx(C_INDEX.of(twice)) == pytest.approx(4 / 7)
    assert LOSS.of(once) == pytest.approx(LOSS.of(twice))


def test_random_ties_give_the_c_index_of_lifelines() -> None:
    """Values computed by lifelines 0.30 for tied times and risks."""
    draw = np.random.default_rng(1)
    times, events, risk = draw.integers(1, 12, 60), draw.integers(0, 2, 60), draw.integers(0, 6, 60)
    found = C_INDEX.of(measured(times.tolist(), events.tolist(), risk.tolist()))
    assert found == pytest.approx(LIFELINES, abs=1e-12)


LIFELINES = 0.5555004955401388


def test_without_comparable_pairs_there_is_no_c_index() -> None:
    assert math.isnan(C_INDEX.of(measured([1.0, 2.0], [0.0, 0.0], [1.0, 2.0])))
    assert math.isnan(C_INDEX.of(measured([2.0, 2.0], [1.0, 1.0], [1.0, 2.0])))


def test_the_loss_is_measured_among_all_examples_of_a_client() -> None:
    """Whatever the batches of the evaluation are, unlike the mean of batches."""
    data = patients(dtype=torch.float64)
    done = Run(data, lambda: nn.Linear(2, 1), METHODS["local"](), Training(rounds=1, batch_size=4))
    done.step()
    scores = plures.score(done, "train").values
    for place in range(3):
        rows = data.splits["train"][place]
        outputs, _ = done.predict(data.clients[place], data.inputs[rows])
        expected = float(Survival().mean_loss(outputs.double(), data.targets[rows].double()))
        assert scores["loss"][place] == pytest.approx(expected, rel=1e-5)


# --- what is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.arange(75.0), "survival needs two numbers for each row, the time and whether the event was observed"),
        (
            np.stack([np.arange(75.0), np.arange(75.0)], 1),
            "an event that is neither 0 nor 1; targets are time and event",
        ),
        (np.stack([np.arange(75.0) - 1, np.arange(75) % 2], 1), "client 'a', row 0: a time below 0"),
    ],
)
def test_targets_that_are_no_times_and_events_are_refused(targets: np.ndarray, message: str) -> None:
    with pytest.raises(PluresError, match=message):
        from_arrays(np.zeros((75, 1)), targets, np.repeat(["a", "b", "c"], 25), task="survival", copies="allow")


def test_times_are_not_standardised() -> None:
    with pytest.raises(PluresError, match="standardize_targets: log hazards have no scale"):
        patients(standardize_targets=True)


def test_splits_are_stratified_by_events() -> None:
    data = patients()
    share = float(data.targets[:, 1].mean())
    for split in data.splits.values():
        assert float(data.targets[split.rows, 1].mean()) == pytest.approx(share, abs=0.1)


# --- the integrated Brier score -----------------------------------------------------------------------------------


def brute(train: np.ndarray, hazards: np.ndarray, test: np.ndarray, risk: np.ndarray) -> np.ndarray:
    """Graf's score of every example by its definition: a mean over times, with estimates by products over rows."""
    (times, events), end = train.T, train[:, 0].max()

    def survives(t: float, h: float) -> float:
        found = 1.0
        for s in np.unique(times[(events == 1) & (times <= t)]):
            here, risky = (times == s) & (events == 1), times >= s
            share, mean = np.exp(hazards[here]).sum() / np.exp(hazards[risky]).sum(), np.exp(hazards[here]).mean()
            found *= (1 - share) ** (1 / mean)
        return float(found ** np.exp(h))

    def uncensored(t: float, before: bool) -> float:
        found = 1.0
        for s in np.unique(times[(events == 0) & ((times < t) | ((times == t) & (not before)))]):
            found *= 1 - ((times == s) & (events == 0)).sum() / ((times > s) | ((times == s) & (events == 0))).sum()
        return found

    steps = 2 * int(end)  # all times are whole numbers
    grid = (np.arange(steps) + 0.5) * end / steps
    errors = np.zeros(len(test))
    for t in grid:
        for i, (own, event) in enumerate(test):
            curve = survives(t, risk[i])
            if own > t:
                errors[i] += (1 - curve) ** 2 / uncensored(t, False)
            elif event:
                errors[i] += curve**2 / uncensored(own, True)
    return errors / steps


@pytest.mark.oracle("EV10")
def test_v12_a_constant_predicts_the_curve_of_kaplan_and_meier() -> None:
    """Times 2, 4, 4, 6, 8, with 4 and 6 censored: .8, .6, .6, 0; without a loss of mass for any common hazard."""
    rows = torch.tensor([[2.0, 1], [4, 1], [4, 0], [6, 0], [8, 1]], dtype=torch.float64)
    for hazard in (0.0, 1.3):
        found = baseline(torch.full((5,), hazard, dtype=torch.float64), rows, torch.ones(5, dtype=torch.float64))
        assert found.times.tolist() == [0, 2, 4, 6, 8]
        assert (found.survival * math.exp(hazard)).exp().tolist() == pytest.approx([1, 0.8, 0.6, 0.6, 0])
        assert found.uncensored.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 3, 1 / 3])
    curve = (found.survival * math.exp(1.3)).exp()[:-1]
    assert float((curve * found.times.diff()).sum()) == pytest.approx(6)  # the restricted mean to 8


@pytest.mark.oracle("EV10")
def test_the_integrated_score_of_three_examples_by_hand() -> None:
    """Trained on events at 1 and 3 (of two), so S is 1, 1/2, 0 from 0, 1, 3, and nobody is censored.

    An event at 2 costs 0 until 1, 1/4 until 2, 1/4 until 3: 1/2 of 3. One at 1 costs 1/4 from 1 to 3. Who is censored
    at 2 costs 1/4 until then, and nothing after.
    """
    train = torch.tensor([[1.0, 1], [3, 1]], dtype=torch.float64)
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    test = torch.tensor([[2.0, 1], [1, 1], [2, 0], [5, 0]], dtype=torch.float64)
    found = curve_errors(baseline(zero, train, one), torch.zeros(4, dtype=torch.float64), test)
    assert found.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 12, 1 / 6])


@pytest.mark.oracle("EV10")
def test_the_integrated_score_is_that_of_the_definition() -> None:
    """Ties of events, of censored times, and of both; weights for censoring; times beyond the follow-up."""
    draw = np.random.default_rng(5)
    train = np.stack([draw.integers(1, 9, 14), draw.random(14) < 0.6], 1).astype(float)
    test = np.stack([draw.integers(1, 12, 8), draw.random(8) < 0.6], 1).astype(float)
    hazards, risk = draw.normal(size=14), draw.normal(size=8)
    fitted = baseline(torch.tensor(hazards), torch.tensor(train), torch.ones(14, dtype=torch.float64))
    found = curve_errors(fitted, torch.tensor(risk), torch.tensor(test))
    assert found.tolist() == pytest.approx(brute(train, hazards, test, risk).tolist(), abs=1e-10)


def test_a_row_of_weight_two_is_two_rows_in_the_baseline() -> None:
    draw = np.random.default_rng(1)
    rows = torch.tensor(np.stack([draw.integers(1, 9, 10), draw.random(10) < 0.6], 1).astype(float))
    hazards, weight = torch.tensor(draw.normal(size=10)), torch.ones(10, dtype=torch.float64)
    weight[3] = 2
    twice = [*range(10), 3]
    one, other = baseline(hazards, rows, weight), baseline(hazards[twice], rows[twice], torch.ones(11).double())
    assert torch.allclose(one.survival.exp(), other.survival.exp())
    assert torch.allclose(one.uncensored, other.uncensored)


def test_a_federation_is_scored_by_curves_that_its_train_rows_give() -> None:
    """For every client; the constant's curve is that of Kaplan and Meier, and its C-index one half."""
    data = patients().judged_by("integrated_brier", "c_index")
    execution = Execution("vmap", 2, False, "float64")
    run = Run(data, lambda: nn.Linear(2, 1), METHODS["constant"](), Training(rounds=1), execution=execution)
    run.step()
    found = plures.score(run, "test").values
    for place in range(3):
        train, test = (data.targets[data.splits[split][place]].double() for split in ("train", "test"))
        flat = baseline(torch.zeros(len(train)).double(), train, torch.ones(len(train)).double())
        own = curve_errors(flat, torch.zeros(len(test)).double(), test)
        assert found["integrated_brier"][place] == pytest.approx(float(own.mean()), abs=1e-6)
    assert found["c_index"].tolist() == [0.5] * 3
    other = Run(data, lambda: nn.Linear(2, 1), METHODS["fedavg"](), Training(rounds=3), execution=execution)
    fitted = plures.fit(other, "fedavg")
    assert fitted.chosen.validation == min(point.validation for point in fitted.curve)


def test_no_other_task_has_it() -> None:
    with pytest.raises(PluresError, match="no metric 'integrated_brier' for classification"):
        plures.load("heart").judged_by("integrated_brier")
    none = torch.zeros(0, dtype=torch.float64)
    empty = baseline(none, none.view(0, 2), none)
    assert math.isnan(float(curve_errors(empty, torch.zeros(1).double(), torch.tensor([[2.0, 1]]).double())[0]))
