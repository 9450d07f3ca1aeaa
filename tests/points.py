"""Two small federations of two clients."""

from __future__ import annotations

import torch

from plures.federation import SPLITS, Federation, Split
from plures.tasks import Classification, Regression


def two_points() -> Federation:
    """Client a: x = 1, y = 0; client b: x = 1, y = 1."""
    split = Split.of([torch.tensor([0]), torch.tensor([1])])
    points = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    return Federation("two", Regression(1), *points, ("a", "b"), dict.fromkeys(SPLITS, split))


def pictures(features: tuple[int, ...]) -> Federation:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, *features, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (60,), generator=generator)
    split = Split.of([torch.arange(0, 24), torch.arange(24, 60)])
    return Federation(
        "pictures", Classification(("a", "b", "c")), inputs, targets, ("p", "q"), dict.fromkeys(SPLITS, split)
    )
