"""Agreement of decisions and truth, from counts of each pair of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plures.given import Given
from plures.metrics.balance import counts, decided
from plures.metrics.metric import Metric, Predictions, mean

# --- two classes: the second one is the positive -----------------------------------------------------------------


Choose = Callable[[Tensor, Tensor], Tensor]
"""``(positive, claimed) -> (clients, examples)``: examples, by whether they are positive and are decided for."""


def hit(positive: Tensor, claimed: Tensor) -> Tensor:
    """Those of the second class that are decided for it."""
    return positive & claimed


def passed(positive: Tensor, claimed: Tensor) -> Tensor:
    """Those of the first class that are decided for it."""
    return ~positive & ~claimed


def true(positive: Tensor, claimed: Tensor) -> Tensor:
    """Those of the second class."""
    return positive


def false(positive: Tensor, claimed: Tensor) -> Tensor:
    """Those of the first class."""
    return ~positive


def said(positive: Tensor, claimed: Tensor) -> Tensor:
    """Those decided for the second class."""
    return claimed


def shared(part: Choose, among: Choose, weight: Tensor, targets: Tensor, decisions: Tensor) -> Tensor:
    """The weight of the examples in ``part`` over that of the examples in ``among``."""
    positive, claimed = targets == 1, decisions == 1
    claimed = torch.where(decisions < 0, ~positive, claimed)  # outputs that are not finite are wrong
    chosen, all_ = (of(positive, claimed) for of in (part, among))
    return torch.where(chosen, weight.double(), 0.0).sum(1) / torch.where(all_, weight.double(), 0.0).sum(1)


def share(name: str, part: Choose, among: Choose, undefined: str) -> Metric:
    """A metric that is the weight of the examples in ``part`` over that of the examples in ``among``."""
    value = Given(shared, part, among)
    return Metric(name, name, decided, value, higher=True, unit="%", range=(0, 1), undefined=undefined)


sensitivity = share(
    "sensitivity",
    hit,
    true,
    "where no example is of the second class",
)
"""Share of the examples of the second class that are found; also called recall and true positive rate."""

specificity = share(
    "specificity",
    passed,
    false,
    "where all examples are of the second class",
)
"""Share of the examples of the first class that are decided for it; also called true negative rate."""

precision = share(
    "precision",
    hit,
    said,
    "where nothing is decided for the second class",
)
"""Share of the decisions for the second class that are right; also called positive predictive value."""


def harmonic(weight: Tensor, targets: Tensor, decisions: Tensor) -> Tensor:
    """Harmonic mean of precision and sensitivity; NaN where the second class neither occurs nor is decided for."""
    hits, claimed, true = (_column(part, 1) for part in counts(weight, targets, decisions))
    return 2 * hits / (claimed + true)


def _column(of_classes: Tensor, number: int) -> Tensor:
    """Counts of one class, ``(clients,)``; 0 where no client has it."""
    return of_classes[:, number] if of_classes.shape[1] > number else of_classes.new_zeros(len(of_classes))


positive_f1 = Metric(
    "positive_f1",
    "F1 of the second class",
    decided,
    harmonic,
    higher=True,
    range=(0, 1),
    undefined="where the second class neither occurs nor is decided for",
)
"""Same as scikit-learn's ``f1_score(average="binary")``, NaN where that is 0 by convention."""

# --- any number of classes ---------------------------------------------------------------------------------------


def confusion(weight: Tensor, targets: Tensor, decisions: Tensor) -> Tensor:
    """Weight of the examples of each class (rows) that are decided for each class (columns).

    Where outputs are not finite, an example counts as decided for the class that is farthest from its own.

    Args:
        weight: ``(clients, examples)``.
        targets: ``(clients, examples)`` classes.
        decisions: ``(clients, examples)`` classes, -1 where outputs are not finite.

    Returns:
        ``(clients, classes, classes)``.
    """
    classes = 2 if not targets.numel() else max(2, 1 + int(torch.stack([targets, decisions]).amax()))
    farthest = torch.where(2 * targets < classes, classes - 1, 0)
    pairs = targets * classes + torch.where(decisions < 0, farthest, decisions)
    sums = weight.new_zeros(len(weight), classes * classes, dtype=torch.float64)
    return sums.scatter_add_(1, pairs, weight.double()).view(-1, classes, classes)


def weighted_f1_of(weight: Tensor, targets: Tensor, decisions: Tensor) -> Tensor:
    """Mean of the classes' F1, each counting by its number of examples."""
    hits, claimed, true = counts(weight, targets, decisions)
    each = torch.where(true > 0, 2 * hits / (claimed + true).clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return (true * each).sum(1) / true.sum(1)


def correlation(weight: Tensor, targets: Tensor, decisions: Tensor) -> Tensor:
    """Matthews correlation coefficient for any number of classes (Gorodkin 2004, equation 8)."""
    table = confusion(weight, targets, decisions)
    true, claimed, total = table.sum(2), table.sum(1), table.sum((1, 2))
    right = table.diagonal(dim1=1, dim2=2).sum(1)
    covariance = right * total - (true * claimed).sum(1)
    spread = (total.square() - true.square().sum(1)) * (total.square() - claimed.square().sum(1))
    return covariance / spread.sqrt()


def agreement(weight: Tensor, targets: Tensor, decisions: Tensor, power: int = 0) -> Tensor:
    """Agreement beyond chance (Cohen 1960; with a power, disagreements count by it, Cohen 1968).

    Args:
        weight: ``(clients, examples)``.
        targets: ``(clients, examples)`` classes.
        decisions: shaped as ``targets``.
        power: 0 counts all disagreements alike; 2 counts them by the square of the distance of the two classes.
    """
    table = confusion(weight, targets, decisions)
    places = torch.arange(table.shape[1], dtype=torch.float64, device=table.device)
    apart = (places.unsqueeze(1) - places).abs()
    cost = (apart > 0).double() if power == 0 else apart.pow(power)
    chance = table.sum(2).unsqueeze(2) * table.sum(1).unsqueeze(1) / table.sum((1, 2)).view(-1, 1, 1)
    return 1 - (cost * table).sum((1, 2)) / (cost * chance).sum((1, 2))


def right(predictions: Predictions) -> Tensor:
    """Whether the decision is right."""
    return torch.eq(*decided(predictions))


ALL_ALIKE = "where all examples are of one class, or all decisions are for one class"

micro_f1 = Metric(
    "micro_f1",
    "micro F1",
    right,
    mean,
    higher=True,
    range=(0, 1),
)
"""F1 of the counts of all classes together, which equals accuracy where every example has one class."""

weighted_f1 = Metric("weighted_f1", "weighted F1", decided, weighted_f1_of, higher=True, range=(0, 1))
"""Same as scikit-learn's ``f1_score(average="weighted")``."""

mcc = Metric("mcc", "Matthews correlation", decided, correlation, higher=True, range=(-1, 1), undefined=ALL_ALIKE)
"""Matthews correlation coefficient; NaN where scikit-learn's ``matthews_corrcoef`` is 0 by convention."""

kappa = Metric(
    "kappa",
    "Cohen's kappa",
    decided,
    agreement,
    higher=True,
    range=(-1, 1),
    undefined="where all examples and all decisions are of one class",
)
"""Same as scikit-learn's ``cohen_kappa_score``."""

quadratic_kappa = Metric(
    "quadratic_kappa",
    "quadratic kappa",
    decided,
    Given(agreement, power=2),
    higher=True,
    range=(-1, 1),
    undefined="where all examples and all decisions are of one class",
)
"""Cohen's kappa for ordered classes, ``cohen_kappa_score(weights="quadratic")`` of scikit-learn."""
