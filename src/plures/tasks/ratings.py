"""Ratings of items by the client, who is one user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plures.metrics import RATINGS, Catalogue, Metric, liked_items
from plures.tasks.regression import Regression


@dataclass(frozen=True)
class Ratings(Regression):
    """A user's ratings of items; the loss is the squared error. Metrics also say how well a user's items are ranked.

    ``ndcg_N`` and ``hit_N`` rank the items that the user rated in the split, not all items that there are. Ratings stay
    as they are: gains are the ratings themselves.

    Attributes:
        liked: the rating from which an item counts as liked, for ``hit_N``.

    Examples:
        >>> Ratings(1).losses(torch.tensor([[3.5]]), torch.tensor([[4.0]])).tolist()
        [0.25]
    """

    kind: ClassVar[str] = "ratings"
    called: ClassVar[str] = "ratings"
    scalable: ClassVar[bool] = False
    measures: ClassVar[tuple[Metric, ...]] = RATINGS

    liked: float = 4.0

    @property
    def further(self) -> Catalogue:
        return liked_items(self.liked)

    def faults(self, targets: Tensor) -> tuple[Tensor, str]:
        bad, _ = super().faults(targets)
        return bad | (targets < 0).any(1), "a rating below 0 or not finite; do not standardise ratings"
