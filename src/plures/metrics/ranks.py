"""Whether the true class is among the most probable."""

from __future__ import annotations

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.given import Given
from plures.metrics.metric import Metric, Predictions


def among(most: int, predictions: Predictions) -> Tensor:
    """Whether fewer than ``most`` classes are more probable than the true one; ties are broken by a class's position.

    Never where outputs are not finite.
    """
    chances = predictions.chances
    own = chances.gather(-1, predictions.targets.unsqueeze(-1))
    places = torch.arange(chances.shape[-1], device=chances.device)
    earlier = places < predictions.targets.unsqueeze(-1)
    ahead = (chances > own) | ((chances == own) & earlier)
    return torch.where(predictions.finite, ahead.sum(-1) < most, False)


def top(most: int) -> Metric:
    """Share of the examples whose class is among the ``most`` most probable."""
    if most < 1:
        raise PluresError(f"metric top_{most}: give a number of classes of at least 1, such as top_3")
    return Metric(f"top_{most}", f"top-{most} accuracy", Given(among, most), higher=True, unit="%", range=(0, 1))
