"""Advice names no method that refuses the task."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F

from plures.diagnose import diagnose
from plures.diagnose.suited import unsuitable
from plures.federation import Federation, from_arrays
from plures.tasks import Classification, MultiLabel, Regression, Task

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")

BY_CLASSES = {"fedrod", "prior_shift", "threshold"}


def own(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def federation(task: Task) -> Federation:
    generator = np.random.default_rng(0)
    x, place = generator.normal(size=(90, 4)), np.arange(90)
    labels = np.stack([place % 2, place % 3 == 0], 1).astype(int)
    match task:
        case MultiLabel():
            targets = labels
        case Regression():
            targets = x[:, :2]
        case _:
            targets = place % 3 if len(task.classes) == 3 else place % 2
    return from_arrays(x, targets, np.repeat(["a", "b", "c"], 30), task=task)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Classification(("no", "yes")), set()),
        (Classification(("a", "b", "c")), {"threshold"}),
        (Classification(("no", "yes"), loss=own), {"hierarchical_bayes"}),
        (MultiLabel(("cough", "fever")), BY_CLASSES),
        (Regression(2), BY_CLASSES),
    ],
)
def test_methods_that_refuse_a_task(task: Task, expected: set[str]):
    assert unsuitable(federation(task), None, 0) == expected


def test_advice_does_not_name_them():
    advice = diagnose(federation(MultiLabel(("cough", "fever")))).advice
    families = {family.family: family.methods for family in advice.ranking}
    assert families["partial"] == ["fedper", "fedrep", "fedbabu"]
    assert "calibration" not in families
