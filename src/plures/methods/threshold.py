"""Personal decision thresholds."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from plures.method import Batch, Calibration, Leaves, Method, Personal, Predict, Shared, Start, State
from plures.method.needs import UnsuitableTaskError
from plures.methods.entry import entry, require

Utility = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(true positives, false positives, false negatives, true negatives) -> utility``, for each candidate."""


def best_threshold(
    scores: Tensor, positive: Tensor, weight: Tensor, utility: Utility, common: float, least: int = 1
) -> Tensor:
    """The threshold with the highest utility on some examples; a score above it means the positive class.

    Candidates are the common threshold, the midpoints between neighbouring distinct scores, and both infinities;
    ties go to the one nearest the common threshold.

    Args:
        scores: ``(n,)``.
        positive: ``(n,)`` 1 for the positive class, 0 for the other.
        weight: ``(n,)`` how much an example counts, 0 for padding.
        utility: of counts, or of sums of weights, ``(candidates,)``.
        common: everybody's threshold, also returned if a class has too few examples.
        least: minimum number of examples of each class.

    Returns:
        The threshold, a scalar.
    """
    scores = torch.where(weight > 0, scores, scores[weight.argmax()])
    order = scores.argsort()
    s, hits, others = scores[order], (positive * weight)[order], ((1 - positive) * weight)[order]
    lower, upper = s[:-1], s[1:]
    middle = lower + (upper - lower) / 2
    middle = torch.where(middle < upper, middle, lower)
    edges = s.new_tensor([common, -math.inf, math.inf])
    t = torch.cat([edges, torch.where(lower < upper, middle, edges[0])])

    def above(mass: Tensor) -> Tensor:
        """The mass above each candidate."""
        at_common = (mass * (s > common)).sum()
        ends = torch.stack([at_common, mass.sum(), mass.sum() * 0])
        return torch.cat([ends, torch.where(lower < upper, mass.sum() - mass.cumsum(0)[:-1], at_common)])

    tp, fp = above(hits), above(others)
    value = utility(tp, fp, hits.sum() - tp, others.sum() - fp)
    far = (t - common).abs().clamp(max=torch.finfo(t.dtype).max)
    best = t[torch.where(value >= value.max(), far, torch.inf).argmin()]
    enough = [(one * (weight > 0)).sum() >= least for one in (positive, 1 - positive)]
    return torch.where(enough[0] & enough[1], best, edges[0])


def utilities(false_negative: float, false_positive: float, recall: float, alarms: float = 0.05) -> dict[str, Utility]:
    """The named utilities, of counts or of sums of weights."""

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 0.0)

    return {
        "accuracy": lambda tp, fp, fn, tn: tp + tn,
        "f1": lambda tp, fp, fn, tn: share(2 * tp, 2 * tp + fp + fn),
        "cost": lambda tp, fp, fn, tn: -(false_negative * fn + false_positive * fp),
        "precision": lambda tp, fp, fn, tn: torch.where(
            tp >= (recall - 1e-6) * (tp + fn), share(tp, tp + fp), share(tp, tp + fn) - 1
        ),
        "specificity": lambda tp, fp, fn, tn: torch.where(
            tp >= (recall - 1e-6) * (tp + fn), share(tn, tn + fp), share(tp, tp + fn) - 1
        ),
        "recall": lambda tp, fp, fn, tn: torch.where(
            fp <= (alarms + 1e-6) * (fp + tn), share(tp, tp + fn), share(tn, tn + fp) - 1
        ),
    }


@entry("Personal threshold", "after training", "Elkan 2001, IJCAI; Lipton, Elkan, Narayanaswamy 2014, ECML, for F1")
def threshold(
    utility: Literal["accuracy", "f1", "cost", "precision", "specificity", "recall"] | Utility = "accuracy",
    false_negative: float = 1.0,
    false_positive: float = 1.0,
    recall: float = 0.8,
    alarms: float = 0.05,
    least: int = 1,
) -> Method:
    """Each client decides between two classes at its own threshold, the best on its validation examples.

    The score is the difference of the outputs, or the only output (log-odds); the second class is the positive one.
    Nothing is sent, and probabilities do not change. The common threshold is where the costs balance,
    ``log(false_positive / false_negative)``, and 0 for other utilities; a client keeps it if no other is strictly
    better, or if its validation examples hold fewer than ``least`` of a class.

    Args:
        utility: ``accuracy``; ``f1`` of the positive class; ``cost``, the negative sum of the costs of errors;
            ``precision`` or ``specificity`` with at least the given recall; ``recall`` with at most the given false
            alarms; or a function of (true positives, false positives, false negatives, true negatives).
        false_negative: cost of missing a positive.
        false_positive: cost of a false alarm.
        recall: minimum recall, also called sensitivity, for ``precision`` and ``specificity``.
        alarms: largest share of the negatives that may be called positive, for ``recall``.
        least: minimum number of examples of each class.
    """
    require(false_negative > 0 and false_positive > 0, "threshold: costs must be positive")
    require(0 < recall <= 1, f"threshold: recall={recall} must lie in (0, 1]")
    require(0 <= alarms < 1, f"threshold: alarms={alarms} must lie in [0, 1)")
    named = utilities(false_negative, false_positive, recall, alarms)
    rule = utility if callable(utility) else named[utility]
    common = math.log(false_positive / false_negative) if utility == "cost" else 0.0

    def odds(outputs: Tensor) -> Tensor:
        return outputs[..., 0] if outputs.shape[-1] == 1 else outputs[..., 1] - outputs[..., 0]

    def fit(x: State, outputs: Tensor, batch: Batch) -> Leaves:
        positive = batch.targets.to(outputs)
        return {"threshold": best_threshold(odds(outputs), positive, batch.mask, rule, common, least)}

    def decide(x: State, outputs: Tensor) -> Tensor:
        return (odds(outputs) > x.threshold["threshold"]).long()

    def start(start: Start) -> Leaves:
        task = start.setting.task
        if len(task.classes) != 2:
            raise UnsuitableTaskError(
                f"threshold decides between two classes, but this is {task.kind} with {task.outputs} {task.called}; "
                "for more classes use temperature(bias=True)"
            )
        return {"threshold": torch.tensor(common, dtype=start.network.dtype)}

    return Method(
        layout={"model": Shared(), "threshold": Personal()},
        slots={"threshold": start},
        predict=Predict(calibrate=(Calibration("threshold", fit),), decide=decide),
    )
