"""Which learning rates follow the run's schedule: those of the rounds of training, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plures.method import SGD, Assign, Method, Personal, Phase, Predict, Shared
from plures.methods import (
    apfl,
    ditto,
    fedavg,
    fedavg_ft,
    fedbabu,
    fedbn,
    fedhome,
    fedsimclr,
    local,
    pfedme,
    reptile,
    temperature,
    wise_ft,
)
from plures.run import Constant, Cosine, Exponential, Milestones, Run, Training, onboard
from problems import EXACT, quadratic, scalar
from trajectories import WIDE, normed, ragged

SCHEDULES = (Constant(), Cosine(), Exponential(0.5), Milestones((1,), 0.01))


def trained(method, schedule, rounds=4, **options):
    done = Run(
        options.get("federation") or quadratic(),
        options.get("model") or scalar(),
        method,
        Training(rounds, None, steps=2, optimizer=SGD(0.1), schedule=schedule),
        execution=EXACT,
    )
    for _ in done.rounds():
        pass
    return done


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fine_tuning_has_the_rate_of_the_run_at_any_round(schedule):
    """From the shared w, two steps of curvature a towards b leave (1 - .1 a)^2 (w - b), in every round."""
    done = Run(
        quadratic(),
        scalar(),
        fedavg_ft(steps=2),
        Training(3, None, steps=2, optimizer=SGD(0.1), schedule=schedule),
        execution=EXACT,
    )
    for _ in done.rounds():
        w = done.server["model"].values["model/weight"].item()
        expected = [b + (1 - 0.1 * a) ** 2 * (w - b) for a, b in ((1, -1.0), (2, 0.5), (4, 3.0))]
        torch.testing.assert_close(done.predictors([0, 1, 2])["weight"].flatten(), torch.tensor(expected).double())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_newcomer_trains_with_the_rate_of_the_run(schedule):
    """Five visits of two steps of .1 with curvature 2 from 0 towards 9: 9 (1 - .8^10) = 8.0336."""
    guest = onboard(trained(local(), schedule), quadratic((2.0,), (9.0,), (5,), names=("zz",)))
    assert guest.predictors([0])["weight"].item() == pytest.approx(9 * (1 - 0.8**10), abs=1e-12)


@pytest.mark.parametrize("lr", [None, 0.2])
def test_a_phase_that_names_its_rate_has_that_rate_before_predicting(lr):
    done = trained(fedavg_ft(steps=1, lr=lr), Exponential(0.5))
    w = done.server["model"].values["model/weight"].item()
    assert done.predictors([1])["weight"].item() == pytest.approx(0.5 + (1 - (lr or 0.1) * 2) * (w - 0.5), abs=1e-12)


def test_rounds_of_training_follow_the_schedule():
    """One client with curvature 1 and optimum 1: what is left of the way is the product of 1 - .1 (1/2)^r, twice each;
    a phase's own rate is multiplied as well."""
    alone = quadratic((1.0,), (1.0,), (4,), names=("a",))
    for method, rate in ((fedavg(), 0.1), (Method(schedule=(Phase(lr=0.3),)), 0.3)):
        done = trained(method, Exponential(0.5), 3, federation=alone)
        left = torch.prod(torch.tensor([1 - rate / 2**r for r in range(3)], dtype=torch.float64)) ** 2
        assert done.predictors([0])["weight"].item() == pytest.approx(1 - left.item(), abs=1e-12)


def test_an_assignment_knows_the_rate_before_the_first_phase_and_after_it():
    """Before any phase the run's rate times the schedule's factor; after one, that phase's, scheduled in the same way.
    Before predicting neither is scheduled."""

    def note(x, received, visit):
        return {"noted": {"rate": torch.stack([x.noted["rate"][1], visit.lr])}}

    see = Assign(("noted",), note)
    blank = {"noted": lambda start: {"rate": torch.zeros(2, dtype=torch.float64)}}
    layout = {"model": Shared(), "noted": Personal()}
    method = Method(layout=layout, slots=blank, schedule=(see, Phase(lr=0.3), see))
    noted = trained(method, Exponential(0.5), 3).states([0])["noted"]["rate"]
    torch.testing.assert_close(noted[0], torch.tensor([0.1, 0.3]).double() / 4)
    later = replace(method, schedule=(Phase(),), predict=Predict(adapt=(see, Phase(lr=0.3), see), outputs=outputs))
    noted = trained(later, Exponential(0.5), 3).deployed([0])["noted"]["rate"]
    torch.testing.assert_close(noted[0], torch.tensor([0.1, 0.3]).double())


def outputs(x, batch):
    return batch.outputs(x.model)


ADAPTING = {
    "fedavg_ft": fedavg_ft(),
    "wise_ft": wise_ft(),
    "fedbabu": fedbabu(),
    "reptile": reptile(after=1),
    "fedhome": fedhome(),
    "fedsimclr": fedsimclr(head_epochs=1),
    "fedavg_ft + temperature": fedavg_ft() + temperature(),
}
VISITING = {"local": local(), "ditto": ditto(), "apfl": apfl(adaptive_lr=0.1), "pfedme": pfedme(), "fedbn": fedbn()}


@pytest.mark.parametrize("name", [*ADAPTING, *VISITING])
def test_what_belongs_to_no_round_is_the_same_under_every_schedule(name):
    """The same trained state predicts, and serves newcomers, in the same way, whatever schedule the training had."""
    data, method = ragged(), {**ADAPTING, **VISITING}[name]
    done = Run(data, normed, method, Training(2, 8, optimizer=SGD(0.1), schedule=Cosine()), execution=WIDE)
    for _ in done.rounds():
        pass
    plain = done.on(done.federation, done.setting)
    plain.engine.training = plain.training = replace(done.training, schedule=Constant())
    two = replace(ragged((9, 12), seed=1), clients=("x", "y"))
    for one, other, count in ((done, plain, 7), (onboard(done, two), onboard(plain, two), 2)):
        left, right = (run.deployed(list(range(count))) for run in (one, other))
        for slot, leaves in left.items():
            for path, value in leaves.items():
                assert torch.equal(value, right[slot][path]), (slot, path)
    start = done.states(list(range(7)))["model"]
    if name in ADAPTING:
        moved = done.deployed(list(range(7)))
        assert any(not torch.equal(t, start.get(p, t)) for leaves in moved.values() for p, t in leaves.items())
