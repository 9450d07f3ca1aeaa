"""Two runs are equal bit for bit."""

from __future__ import annotations

import torch

from plures import Run
from plures.run.checkpoint import snapshot


def assert_equal(one: Run, two: Run) -> None:
    """All state that changes in a run, bit for bit."""
    left, right = snapshot(one), snapshot(two)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
