"""What holds for every method of the catalogue, under partial participation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from newcomers import clients, linear
from plures.evaluate import score
from plures.federation import Federation
from plures.method import SGD
from plures.methods import METHODS
from plures.report.catalogue import model
from plures.run import Execution, Run, Training, Uniform, onboard
from plures.run.checkpoint import restore, snapshot

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")

STACKED, ALONE = Execution("vmap", 2, False, "float64"), Execution("loop", 3, False, "float64")


def begun(name: str, federation: Federation, execution: Execution) -> Run:
    module = linear if name == "mocha" else model
    training = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))
    return Run(federation, module, METHODS[name](), training, participation=Uniform(0.6), execution=execution, seed=1)


def deployed(run: Run) -> dict[str, torch.Tensor]:
    stack = run.deployed(list(range(len(run.federation))))
    return {f"{slot}/{path}": t for slot, leaves in stack.items() for path, t in leaves.items()}


@pytest.mark.parametrize("name", METHODS)
def test_execution_resume_and_newcomers(name):
    seen, later = clients()
    run = begun(name, seen, STACKED)
    start = deployed(run)
    run.step()
    middle = {key: t.clone() for key, t in snapshot(run).items()}
    run.step()
    run.step()
    one = deployed(run)
    assert any(not torch.equal(start[k], t) for k, t in one.items()), "nothing was learned"

    resumed = begun(name, seen, STACKED)
    restore(resumed, middle)
    resumed.step()
    resumed.step()
    kept, again = snapshot(run), snapshot(resumed)
    for key, value in kept.items():
        assert torch.equal(value, again[key]), f"resumed run differs in {key}"

    alone = begun(name, seen, ALONE)
    for _ in alone.rounds():
        pass
    other = deployed(alone)
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, atol=1e-7, rtol=1e-6, msg=lambda m, k=key: f"{k}: {m}")

    guest = onboard(run, later, visits=1)
    for who in (run, guest):
        values = score(who, "test").values
        assert np.isfinite([values["accuracy"], values["loss"]]).all()
    onboard(run, replace(later), visits=1)
    after = snapshot(run)
    assert all(torch.equal(value, after[key]) for key, value in kept.items()), "onboarding changed the run"
