"""DP-SGD inside clients: steps by hand, noise by statistics, what it costs, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.method import SGD
from plures.methods import mrmtl
from plures.privacy import epsilon, gaussian
from plures.run import Execution, Fixed, Run, Training
from problems import begun, close, personal, quadratic, run, weight
from trajectories import LOOP, assert_same, everything_of, normed, ragged
from trajectories import run as finished

OPEN = "fedavg+dp_sgd(clip=1e9,noise=0,rate=1)"


def moved(method: str, execution=LOOP, **options):
    given = {"rounds": 2, "steps": 3, "batch_size": None, "execution": execution} | options
    return finished(find_method(method)(), given.pop("execution"), **given)


def test_without_clip_and_noise_a_step_is_one_of_gradient_descent():
    plain, private = moved("fedavg"), moved(OPEN)
    for path, value in plain.server["model"].values.items():
        torch.testing.assert_close(private.server["model"].values[path], value, atol=1e-12, rtol=0)


def test_the_gradient_of_each_example_is_clipped():
    """One client: gradients a (w - b) = 4 (0 - 3) = -12 of every example, clipped to 1: w = 0.1 after a step."""
    federation = quadratic((4.0,), (3.0,), (10,))
    done = run(find_method("fedavg+dp_sgd(clip=1,noise=0,rate=1)")(), 1, federation=federation, steps=1)
    assert weight(done) == close(0.1)
    mixed = begun(find_method("fedavg+dp_sgd(clip=1,noise=0,rate=1)")(), 1, steps=1)
    mixed.step()
    assert weight(mixed) == close(0.1 * (-1 * 10 + 1 * 20 + 1 * 30) / 60)


def test_personal_models_are_pulled_without_clip_or_noise():
    """MR-MTL with lam = 0.5: without clip and noise its steps; clipped to 0.1, two steps of 0.01 and the pull."""
    plain = run(mrmtl(lam=0.5), 3)
    open_ = run(find_method("dp_sgd(clip=1e9,noise=0,rate=1,lam=0.5)")(), 3)
    assert weight(open_) == close(weight(plain))
    assert personal(open_, "personal") == close(personal(plain, "personal"))
    made = run(find_method("dp_sgd(clip=0.1,noise=0,rate=1,lam=0.5)")(), 1)
    assert personal(made, "personal") == close([s * 0.01 * (1 + 1 - 0.1 * 0.5) for s in (-1, 1, 1)])


def test_examples_take_part_by_coins_and_the_denominator_is_fixed():
    """A step of the quadratic moves by lr * clip * came / (rate n): its mean is lr * clip, its spread the coins'."""
    federation = quadratic((4.0,), (3.0,), (40,))
    steps = []
    made = begun(find_method("fedavg+dp_sgd(clip=0.001,noise=0,rate=0.25)")(), 300, federation=federation, steps=1)
    before = 0.0
    for _ in made.rounds():
        steps.append((weight(made) - before) / (0.1 * 0.001) * 10)
        before = weight(made)
    came = torch.tensor(steps, dtype=torch.float64)
    torch.testing.assert_close(came, came.round(), atol=1e-4, rtol=0)
    assert float(came.mean()) == pytest.approx(10, abs=4 * math.sqrt(7.5 / 300))
    assert float(came.var()) == pytest.approx(7.5, rel=0.4)


def test_noise_has_the_stated_spread_and_stacks_agree():
    """Weights of a linear layer with inputs of 0: gradients of the weights are 0, so what moves is noise."""
    federation = ragged((8, 8, 8), features=(99,), classes=10)
    federation.inputs.zero_()
    model = lambda: torch.nn.Linear(99, 10)  # noqa: E731
    noisy = find_method("local+dp_sgd(clip=0.5,noise=2,rate=0.5)")()
    training = Training(1, None, steps=1, optimizer=SGD(1.0))
    wide = Execution("vmap", 8, False, "float64")
    done = [Run(federation, model, noisy, training, execution=how) for how in (LOOP, wide)]
    for each in done:
        each.step()
    one, two = (each.predictors([0, 1, 2])["weight"] for each in done)
    torch.testing.assert_close(one, two, atol=1e-10, rtol=0)
    start = done[0].bound.initial["model"]["weight"]
    noise = (one - start).flatten(1)
    assert float(noise.std()) == pytest.approx(2 * 0.5 / (0.5 * 8), rel=0.05)
    assert float(torch.corrcoef(noise)[0, 1].abs()) < 4.5 / math.sqrt(990)


def test_clients_of_different_sizes_give_in_a_stack_what_each_gives_alone():
    wide = Execution("vmap", 128, False, "float64")
    one, two = (moved("fedper+dp_sgd(clip=0.5,noise=1,rate=0.5)", how) for how in (LOOP, wide))
    assert_same(everything_of(one), everything_of(two))


def test_what_it_costs_goes_by_the_steps_of_the_client_that_was_drawn_most_often():
    done = moved("fedavg+dp_sgd(noise=4,rate=1)")
    spent = done.spent()
    assert spent.unit == "example"
    assert spent.epsilon == pytest.approx(gaussian(4 / math.sqrt(6), 1e-5))
    rule = Fixed([["c0", "c1"], ["c0"], ["c2"]])
    some = moved("fedavg+dp_sgd(noise=4,rate=0.2,accountant=rdp)", rounds=3, participation=rule)
    assert some.spent().epsilon == pytest.approx(epsilon(4, 6, 1e-5, rate=0.2, accountant="rdp"))


def test_what_would_read_examples_without_noise_is_refused():
    with pytest.raises(PluresError, match="give batch_size=None"):
        moved(OPEN, batch_size=8)
    with pytest.raises(PluresError, match="reads examples without noise"):
        moved("fedavg_ft+dp_sgd")
    with pytest.raises(PluresError, match="both change the schedule"):
        find_method("fedrep+dp_sgd")()
    with pytest.raises(PluresError, match=r"channel 'choices' .* tells of examples without noise"):
        moved("ifca+dp_sgd", rounds=1)
    with pytest.raises(PluresError, match="running statistics mix examples"):
        moved(OPEN, model=normed)
    with pytest.raises(PluresError, match="dp_sgd beside dp"):
        moved("fedavg+dp_sgd+dp")
    with pytest.raises(PluresError, match="rate=0"):
        find_method("fedavg+dp_sgd(rate=0)")()
