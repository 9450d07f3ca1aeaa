"""Few outputs of many examples are computed with outputs first, and are the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plures.run.kernels import FEW, Thin, few
from plures.run.predict import said
from plures.tasks import Classification

given = torch.Generator().manual_seed(0)
OUTPUTS = 5 * torch.randn(3, 40, 6, generator=given, dtype=torch.float64)
TARGETS = torch.randint(0, 6, (3, 40), generator=given)


@pytest.mark.parametrize("transposed", [True, False])
def test_what_is_said_of_examples_is_that_of_each_alone(transposed):
    """Losses, probabilities and decisions by their formulas, of stacked clients, whatever the layout in memory."""
    outputs = OUTPUTS.transpose(1, 2).contiguous().transpose(1, 2) if transposed else OUTPUTS
    found = said(Classification(tuple("abcdef")), outputs, TARGETS, torch.ones(3, 40))
    for client in range(3):
        for place in range(40):
            one = OUTPUTS[client, place]
            chances = one.exp() / one.exp().sum()
            torch.testing.assert_close(found.probabilities[client, place], chances, rtol=1e-13, atol=1e-15)
            torch.testing.assert_close(found.losses[client, place], -chances[TARGETS[client, place]].log())
            assert int(found.decisions[client, place]) == max(range(6), key=one.tolist().__getitem__)


def test_options_of_the_loss_are_kept():
    rows, targets = OUTPUTS.flatten(0, 1), TARGETS.flatten()
    for options in ({"label_smoothing": 0.1}, {"weight": torch.arange(1.0, 7.0, dtype=torch.float64)}, {}):
        plain = F.cross_entropy(rows, targets, reduction="none", **options)
        with Thin():
            torch.testing.assert_close(F.cross_entropy(rows, targets, reduction="none", **options), plain)
            mean = F.cross_entropy(rows, targets, **options)
        torch.testing.assert_close(mean, F.cross_entropy(rows, targets, **options), rtol=0, atol=0)


def test_many_outputs_and_other_devices_are_left_alone():
    assert isinstance(few("cpu", FEW + 1, FEW), Thin)
    assert not any(isinstance(few(*one), Thin) for one in (("cpu", FEW + 1), ("cuda", 2), ("cpu",)))
