"""The table of methods by tasks: what methods say when they are bound, and one round of every kind."""

from __future__ import annotations

import pytest
import torch
from tools import kinds

from plures import score
from plures.method import Setting
from plures.method.needs import UnsuitableTaskError
from plures.methods import METHODS
from plures.models import Network
from plures.tasks import KINDS

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


def refused(name: str, setting: Setting) -> str:
    """Why a method cannot be bound to a task, without the step that a run tries; empty if it can."""
    method = METHODS[name]()
    model = kinds.network(setting.task.shape, name == "mocha").double()
    try:
        method.bind(Network(method.prepare(lambda: model, setting)), setting)
    except UnsuitableTaskError as error:
        return str(error)
    return ""


def test_the_table_is_what_methods_say() -> None:
    settings = {kind: Setting.of(kinds.federation(kind)) for kind in KINDS}
    found = {(name, kind): refused(name, setting) for name in METHODS for kind, setting in settings.items()}
    assert kinds.page(found) == kinds.FILE.read_text(encoding="utf-8"), "run python -m tools.kinds"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_is_measured(kind: str) -> None:
    """One round changes the model, and every metric of every client is a number."""
    run = kinds.started("fedavg", kind)
    before = run.predictors([0])
    run.step()
    assert any(not torch.equal(t, before[path]) for path, t in run.predictors([0]).items())
    for values in score(run, "train").values.values():
        assert values.shape == (3,)
        assert (values == values).all()
