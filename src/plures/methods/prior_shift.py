"""Correction of each client's class priors."""

from typing import Literal

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Calibration,
    Known,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Shared,
    Start,
    State,
    Visit,
)
from plures.method.needs import classes
from plures.methods.entry import entry, require


def shifted_threshold(threshold: float, prior: float, own: float) -> float:
    """The threshold on uncorrected probabilities equivalent to a threshold on those corrected to the client's prior.

    ``t / (t + r (1 - t))`` with ``r = own (1 - prior) / ((1 - own) prior)``: the higher the own prior, the lower.

    Args:
        threshold: the threshold on corrected probabilities, in (0, 1).
        prior: probability of the positive class in training, in (0, 1).
        own: the client's own probability of it, in (0, 1).
    """
    require(all(0 < p < 1 for p in (threshold, prior, own)), "shifted_threshold: give numbers strictly between 0 and 1")
    ratio = own * (1 - prior) / ((1 - own) * prior)
    return threshold / (threshold + ratio * (1 - threshold))


@entry("Prior-shift correction", "after training", "Saerens, Latinne, Decaestecker 2002, Neural Computation 14(1)")
def prior_shift(estimate: Literal["labels", "em"] = "labels", smoothing: float = 1.0, iterations: int = 100) -> Method:
    """Each client's class probabilities are multiplied by its own class prior over that of the shared training.

    The shared prior is the mean, weighted as the models are, of the clients' label shares, and over the rounds so far:
    each client sends one number per class in a round, which reveals its label shares to the server unless aggregation
    is secure. The client's prior is the share of its training labels, or the estimate by expectation-maximisation from
    the predictions for its validation inputs without their labels (section 2.2), which needs calibrated probabilities:
    ``temperature() + prior_shift("em")``. The ratio of priors is smoothed by ``smoothing`` examples of the shared
    prior; a class that nobody has is left unchanged. Priors count examples, whatever their weights.

    Args:
        estimate: ``labels`` or ``em``.
        smoothing: number of examples of the shared prior.
        iterations: of expectation-maximisation.
    """
    require(smoothing >= 0 and iterations >= 1, f"prior_shift: smoothing={smoothing}, iterations={iterations}")

    def tell(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        labels, before = x.labels["labels"], received.prior["prior"]
        return {"prior": {"prior": before + (labels / labels.sum() - before) / (visit.round + 1)}}

    def ratio(counts: Tensor, prior: Tensor) -> Tensor:
        size, seen = counts.sum() + smoothing, prior > 0
        raw = (counts / torch.where(seen, prior, 1.0) + smoothing) / size.clamp(min=1e-12)
        return torch.where(seen & (size > 0), raw, 1.0)

    def fit(x: State, outputs: Tensor, batch: Batch) -> Leaves:
        prior, own = x.prior["prior"], torch.ones_like(x.prior["prior"])
        if estimate == "labels":
            return {"ratio": ratio(x.labels["labels"], prior)}
        for _ in range(iterations):
            own = ratio(batch.real @ (outputs + own.log()).softmax(-1), prior)
        return {"ratio": own}

    def start(start: Start) -> Leaves:
        count = classes(start, "prior_shift")
        return {"prior": torch.full((count,), 1 / count, dtype=start.network.dtype)}

    def unchanged(start: Start) -> Leaves:
        return {"ratio": torch.ones(start.setting.task.outputs, dtype=start.network.dtype)}

    def revise(x: State, outputs: Tensor) -> Tensor:
        return outputs + x.shift["ratio"].log()

    return Method(
        layout={"model": Shared(), "prior": Shared(), "labels": Known("labels"), "shift": Personal()},
        slots={"prior": start, "shift": unchanged},
        schedule=(Assign(("prior",), tell), Phase()),
        predict=Predict(calibrate=(Calibration("shift", fit, revise),)),
    )
