"""What a round reports about training: the task's loss, and the objective that was minimised (float64)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from plures.errors import PluresWarning
from plures.evaluate.results import Point
from plures.method import (
    SGD,
    Method,
    Personal,
    Phase,
    Shared,
    axpy,
    detach,
    gradient,
    interpolate,
    squared_distance,
    task_loss,
)
from plures.methods import apfl, dapper, ditto, fedavg, fedprox, local, perfedavg, pfedme, scaffold
from plures.run import Run, Training
from problems import CURVATURES, OPTIMA, quadratic, scalar
from trajectories import LOOP, WIDE, mlp, normed, ragged

RATE = 0.1
BOTH = pytest.mark.parametrize("execution", [LOOP, WIDE])
Told = list[tuple[float, float]]


def near(told: Told, expected: Told) -> None:
    """Losses and objectives agree to 1e-12."""
    torch.testing.assert_close(torch.tensor(told), torch.tensor(expected), atol=1e-12, rtol=0)


def told(method, execution=WIDE, rounds=3, model=mlp, federation=None, **training) -> Told:
    """Loss and objective of each round: by default of ragged clients with batches of 8."""
    work = {"batch_size": 8, "optimizer": SGD(RATE)} | ({} if "steps" in training else {"epochs": 1.5}) | training
    run = Run(federation or ragged(), model, method, Training(rounds=rounds, **work), execution=execution)
    return [(record.loss, record.objective) for record in run.rounds()]


def exact(method, execution, rounds=1, steps=1, start=0.0) -> Told:
    """The same of three quadratics with one weight and full batches."""
    return told(method, execution, rounds, scalar(start), quadratic(), batch_size=None, steps=steps)


def f(i: int, w: float) -> float:
    return CURVATURES[i] / 2 * (w - OPTIMA[i]) ** 2


def slope(i: int, w: float) -> float:
    return CURVATURES[i] * (w - OPTIMA[i])


def mean(pairs: Told) -> tuple[float, float]:
    losses, objectives = zip(*pairs, strict=True)
    return sum(losses) / len(losses), sum(objectives) / len(objectives)


# By hand --------------------------------------------------------------------------------------------------------


@BOTH
def test_a_proximal_term_is_in_the_objective_alone(execution):
    mu, found = 0.7, []
    for i in range(3):
        w = 0.0
        for _ in range(3):
            found.append((f(i, w), f(i, w) + mu / 2 * w * w))
            w -= RATE * (slope(i, w) + mu * w)
    near(exact(fedprox(mu), execution, steps=3), [mean(found)])
    assert mean(found)[1] > mean(found)[0] + 0.01


@BOTH
def test_the_linear_terms_of_control_variates_are_in_the_objective_alone(execution):
    own, common, w, expected = [0.0] * 3, 0.0, 0.0, []
    for _ in range(2):
        found, ends = [], []
        for i in range(3):
            x = w
            for _ in range(2):
                found.append((f(i, x), f(i, x) + (common - own[i]) * x))
                x -= RATE * (slope(i, x) - own[i] + common)
            ends.append(x)
        own = [own[i] - common + (w - x) / (2 * RATE) for i, x in enumerate(ends)]
        common, w = sum(own) / 3, sum(ends) / 3
        expected.append(mean(found))
    near(exact(scaffold("II"), execution, rounds=2, steps=2), expected)
    assert abs(expected[1][1] - expected[1][0]) > 0.05


@BOTH
@pytest.mark.parametrize("variant", ["FO", "exact"])
def test_a_meta_gradient_is_told_with_the_loss_before_the_adaptation(variant, execution):
    """The surrogate ``<w, meta-gradient>`` is negative here, the loss is what it is at ``w``."""
    alpha, w, found = 0.05, 0.5, []
    for i in range(3):
        meta = slope(i, w - alpha * slope(i, w)) * (1 - alpha * CURVATURES[i] if variant == "exact" else 1.0)
        found.append((f(i, w), w * meta))
    near(exact(perfedavg(alpha, variant), execution, start=w), [mean(found)])
    assert mean(found)[0] > 0 > mean(found)[1]


@BOTH
def test_a_moreau_envelope_is_told_with_the_loss_of_its_proximal_point(execution):
    lam, inner, found = 2.0, 0.05, []
    for i in range(3):
        w = theta = 0.0
        for _ in range(2):
            for _ in range(3):
                last, theta = theta, theta - inner * (slope(i, theta) + lam * (theta - w))
            found.append((f(i, last), lam / 2 * (w - theta) ** 2))
            w -= RATE * lam * (w - theta)
    near(exact(pfedme(lam, 3, inner), execution, steps=2), [mean(found)])


@BOTH
def test_two_models_side_by_side_are_told_with_the_loss_of_the_first(execution):
    alpha, found = 0.25, []
    for i in range(3):
        w = v = 0.0
        for _ in range(2):
            mixture = alpha * v + (1 - alpha) * w
            found.append((f(i, w), f(i, w) + f(i, mixture)))
            w, v = w - RATE * slope(i, w), v - RATE * alpha * slope(i, mixture)
    near(exact(apfl(alpha), execution, steps=2), [mean(found)])


# Objectives of a user's own ---------------------------------------------------------------------------------------


def one_by_one(x, received, batch):
    return 2 * batch.mean(batch.losses(x.model)) + 1


def around_the_batch(x, received, batch):
    outputs, _ = batch.problem.network(x.model, batch.inputs, train=True)
    return batch.problem.loss(outputs, batch.targets, batch.weight) + 1


def beside_a_teacher(x, received, batch):
    return batch.loss(x.model) + 1 + 0 * batch.outputs(received.model).sum()


def with_other_examples(x, received, batch):
    other = replace(batch, inputs=batch.inputs + 1, targets=1 - batch.targets.clamp(max=1))
    return batch.loss(x.model) + 1 + 0 * other.loss(x.model)


def twice_as_many(x, received, batch):
    views = replace(batch, inputs=torch.cat([batch.inputs, -batch.inputs]))
    return batch.loss(x.model) + 1 + 0 * views.outputs(x.model).sum()


def weighed(x, received, batch):
    some = replace(batch, weight=batch.mask * (1 + batch.inputs[:, 0].square()))
    return batch.loss(x.model) + 1 + 0 * some.loss(x.model)


def in_evaluation(x, received, batch):
    return batch.loss(x.model) + 1 + 0 * replace(batch, train=False).loss(axpy(x.model, 1.0, x.model))


OBJECTIVES = [
    one_by_one,
    around_the_batch,
    beside_a_teacher,
    with_other_examples,
    twice_as_many,
    weighed,
    in_evaluation,
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda fn: fn.__name__)
def test_the_loss_is_the_task_s_whatever_the_objective_is(objective):
    """Each has the gradient of the task loss, up to a factor that the learning rate undoes; ragged clients."""
    factor = 2.0 if objective is one_by_one else 1.0
    method = Method(schedule=(Phase(objective=objective, lr=RATE / factor),))
    expected = [(loss, factor * loss + 1) for loss, _ in told(fedavg(), LOOP)]
    for execution in (LOOP, WIDE):
        near(told(method, execution), expected)


def test_an_objective_that_sees_padding():
    """The objective is a sum, so only clients of the same size are stacked; the loss is a mean."""

    def summed(x, received, batch):
        return F.cross_entropy(batch.outputs(x.model), batch.targets, reduction="sum")

    still = Method(schedule=(Phase(objective=summed, lr=0.0),))
    expected = told(Method(schedule=(Phase(lr=0.0),)), LOOP, rounds=1)[0][0]
    with pytest.warns(PluresWarning, match="padding of batches changes the objective 'summed'"):
        ((stacked, objective),) = told(still, rounds=1)
    ((loop, same),) = told(still, LOOP, rounds=1)
    assert stacked == pytest.approx(expected, abs=1e-12) == loop
    assert objective == pytest.approx(same, abs=1e-12)
    assert objective > 4 * expected


@BOTH
def test_a_composition_is_told_with_the_loss_of_the_slot_unless_it_says_that_it_is_for_it(execution):
    def halfway(x, received, batch):
        return task_loss(interpolate(x.model, received.model, 0.5), batch)

    def kept(x, received, batch):
        return task_loss(interpolate(x.model, received.model, 0.5), batch, keep=x.model)

    slots, halves = [], []
    for i in range(3):
        w = 0.0
        for _ in range(2):
            slots.append((f(i, w), f(i, w / 2)))
            halves.append((f(i, w / 2), f(i, w / 2)))
            w -= RATE * slope(i, w / 2) / 2
    for objective, expected in ((halfway, slots), (kept, halves)):
        near(exact(Method(schedule=(Phase(objective=objective),)), execution, steps=2), [mean(expected)])


@BOTH
def test_a_phase_without_a_forward_pass_makes_one(execution):
    def pull(x, received, batch):
        return squared_distance(x.model, received.model) + 1

    near(
        exact(Method(schedule=(Phase(objective=pull),)), execution),
        [(mean([(f(i, 0.0), 0.0) for i in range(3)])[0], 1)],
    )


@BOTH
def test_numbers_beside_a_model_are_told_with_the_loss_of_the_model(execution):
    """The phase trains one factor of the weight 0.5, from 1."""

    def scaled(x, received, batch):
        return task_loss({k: t * x.factor["factor"] for k, t in x.model.items()}, batch)

    method = Method(
        layout={"model": Shared(), "factor": Personal()},
        slots={"factor": lambda start: {"factor": torch.ones((), dtype=torch.float64)}},
        schedule=(Phase("factor", objective=scaled),),
    )
    found = []
    for i in range(3):
        c = 1.0
        for _ in range(2):
            found.append((f(i, 0.5), f(i, 0.5 * c)))
            c -= RATE * 0.5 * slope(i, 0.5 * c)
    near(exact(method, execution, steps=2, start=0.5), [mean(found)])


def test_several_batches_are_told_with_the_mean_of_their_losses():
    def three(x, received, batches):
        first, second, _ = batches
        return (first.loss(x.model) + second.loss(x.model)) / 2

    method = Method(schedule=(Phase(objective=three, batches=3),))
    loop, stacked = told(method, LOOP), told(method)
    near(stacked, loop)
    near([(loss, loss) for loss, _ in loop], loop)


# Identities -----------------------------------------------------------------------------------------------------


@BOTH
def test_the_plain_task_loss_is_both_numbers(execution):
    """Bit for bit; Ditto's last phase is FedAvg's."""
    plain, alone, last = (told(method, execution) for method in (fedavg(), local(), ditto(0.5)))
    assert last == plain != alone
    assert all(loss == objective for loss, objective in plain + alone)


@BOTH
def test_the_global_model_beside_a_mixture_is_told_as_fedavg_s(execution):
    near([(loss, 0) for loss, _ in told(apfl(0.5), execution)], [(loss, 0) for loss, _ in told(fedavg(), execution)])


def test_public_examples_are_not_the_client_s():
    """DAPPER weighs a client's batch against examples that the server holds; with a rate of 0 nobody changes."""
    data = ragged().donate(0.2)
    (phase,) = dapper(0.5).schedule
    still = replace(dapper(0.5), schedule=(replace(phase, lr=0.0),))
    ((loss, objective),) = told(still, rounds=1, federation=data)
    ((plain, _),) = told(Method(schedule=(Phase(lr=0.0),)), rounds=1, federation=data)
    assert loss == pytest.approx(plain, abs=1e-12)
    assert abs(objective - loss) > 1e-4


def test_a_pass_for_statistics_alone_changes_no_loss():
    """pFedMe lets the global model's statistics follow a pass of their own, where the network has some."""
    lam, steps, inner = 2.0, 3, 0.05

    def before(x, received, batch):
        theta = detach(x.personal)
        for _ in range(steps):
            pull = axpy(gradient(theta, batch, keep=x.personal), lam, axpy(theta, -1.0, detach(x.model)))
            theta = axpy(theta, -inner, pull)
        return {"personal": theta}

    same = pfedme(lam, steps, inner)
    (phase,) = same.schedule
    blind = replace(same, schedule=(replace(phase, before=before),))
    for execution in (LOOP, WIDE):
        near(told(same, execution, rounds=2, model=normed), told(blind, execution, rounds=2, model=normed))


def test_a_result_without_the_objective_is_read():
    old = '{"round": 1, "train_loss": 0.5, "validation": 0.25, "bytes": 8, "seconds": 1.0}'
    assert Point.model_validate_json(old).objective is None
    new = Point(round=1, train_loss=0.5, objective=float("inf"), validation=0.25, bytes=8, seconds=1.0)
    assert Point.model_validate_json(new.model_dump_json()) == new
