"""Metrics that are measured when somebody asks for them by name, beside those that a task always has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from plures.given import Given
from plures.metrics import amounts, confusion, curves, items, ranges, ranks, survival
from plures.metrics.metric import Metric


@dataclass(frozen=True)
class Catalogue:
    """Metrics by name.

    Attributes:
        named: metrics as they are.
        numbered: makes a metric of a number, which ends its name: ``top_3`` is ``numbered["top"](3)``.

    Examples:
        >>> TWO_CLASSES.find("sensitivity_at_specificity_90").title
        'sensitivity at 90 % specificity'
        >>> SEVERAL_CLASSES.find("sensitivity") is None
        True
    """

    named: tuple[Metric, ...] = ()
    numbered: Mapping[str, Callable[[int], Metric]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All names, with ``N`` in the place of a number."""
        return [*(metric.name for metric in self.named), *(f"{name}_N" for name in self.numbered)]

    def find(self, name: str) -> Metric | None:
        """The metric of a name, ``None`` if there is none.

        Raises:
            PluresError: if the number at its end is out of range.
        """
        for metric in self.named:
            if metric.name == name:
                return metric
        parts = re.fullmatch(r"(\w+)_(\d{1,6})", name, re.ASCII)
        make = self.numbered.get(parts[1]) if parts else None
        return make(int(parts[2])) if parts and make else None

    def __or__(self, other: Catalogue) -> Catalogue:
        return Catalogue(self.named + other.named, {**self.numbered, **other.numbered})


SEVERAL_CLASSES = Catalogue(
    (confusion.micro_f1, confusion.weighted_f1, confusion.mcc, confusion.kappa, confusion.quadratic_kappa),
    {"top": ranks.top},
)
"""For any number of classes, of which every example has one."""

TWO_CLASSES = SEVERAL_CLASSES | Catalogue(
    (confusion.sensitivity, confusion.specificity, confusion.precision, confusion.positive_f1, curves.ks),
    {
        make.__name__: make
        for make in (
            curves.sensitivity_at_specificity,
            curves.specificity_at_sensitivity,
            curves.recall_at_fpr,
            curves.recall_at_precision,
            curves.gain,
            curves.lift,
        )
    },
)
"""For two classes, the second of which is the positive one."""

AMOUNTS = Catalogue((amounts.mape, amounts.nasa_score, amounts.mean_nasa_score), {"pinball": amounts.pinball})
"""For predicted numbers."""

TIMES = Catalogue((survival.integrated_brier,))
"""For times until an event."""

STEPS = Catalogue(numbered={"rmse_step": ranges.rmse_step, "mae_step": ranges.mae_step})
"""For forecasts of several steps."""


def liked_items(liked: float) -> Catalogue:
    """For ratings of items, which are liked from a rating on."""
    return Catalogue(numbered={"ndcg": items.ndcg, "hit": Given(items.hit, liked)})
