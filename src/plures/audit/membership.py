"""Membership inference by a threshold: a model's loss is smaller for the examples that it was trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel

from plures.evaluate import predictions
from plures.evaluate.record import Measured
from plures.federation import SplitName
from plures.run import Run, onboard

Floats = NDArray[np.float64]
FEW = 0.01
"""The false positive rate at which true positives are told."""
OTHERS: tuple[SplitName, ...] = ("validation", "test")
"""Splits of examples that no model was trained on."""


class Membership(BaseModel):
    """How well an attacker tells training examples from others, by a score that is higher for members.

    Attributes:
        members: number of training examples.
        others: number of other examples.
        auc: the chance that a member has the higher score of a random pair, ties half; 0.5 is guessing.
        advantage: largest difference of true and false positive rate over all thresholds; 0 is guessing.
        found: true positive rate at a false positive rate of at most 1 %.
    """

    members: int
    others: int
    auc: Measured
    advantage: Measured
    found: Measured


def guessing(members: Floats, others: Floats) -> Membership:
    """How well scores tell members from others.

    Args:
        members: scores of training examples, ``(n,)``: the negative losses, for example (Yeom et al. 2018).
        others: scores of other examples, ``(m,)``.

    Examples:
        >>> found = guessing(-np.array([0.1, 0.2, 0.3, 0.9]), -np.array([0.25, 0.8, 1.0, 2.0]))
        >>> found.auc, found.advantage
        (0.8125, 0.5)
    """
    if not len(members) or not len(others):
        return Membership(members=len(members), others=len(others), auc=np.nan, advantage=np.nan, found=np.nan)
    thresholds = np.unique(np.concatenate([members, others]))
    right, wrong = (1 - np.searchsorted(np.sort(some), thresholds) / len(some) for some in (members, others))
    below = np.searchsorted(np.sort(others), members, "left") + np.searchsorted(np.sort(others), members, "right")
    few = right[wrong <= FEW]
    return Membership(
        members=len(members),
        others=len(others),
        auc=float(below.mean() / (2 * len(others))),
        advantage=max(0.0, float((right - wrong).max())),
        found=float(few.max()) if len(few) else 0.0,
    )


def membership(run: Run, client: str) -> dict[str, Membership]:
    """What the losses of two models tell about one client's training examples.

    Args:
        run: the run, whose current state predicts.
        client: the client's name.

    Returns:
        ``personal``: the model that the client deploys. ``shared``: the model that somebody without data gets, which is
        what all have in common.
    """
    name = "somebody else"
    while name in run.federation.clients:
        name += "'"
    stranger = replace(run.federation.subset([client]), clients=(name,))
    shared = onboard(run, stranger, 0)
    return {
        "personal": guessing(*(losses(run, client, splits) for splits in (("train",), OTHERS))),
        "shared": guessing(*(losses(shared, name, splits) for splits in (("train",), OTHERS))),
    }


def losses(run: Run, client: str, splits: tuple[SplitName, ...]) -> Floats:
    """The negative losses of a client's examples of some splits, ``(n,)``."""
    own = [split for split in splits if len(run.federation.splits[split][run.federation.index(client)])]
    found = [predictions(run, client, split).losses for split in own]
    return -torch.cat(found).double().cpu().numpy() if found else np.zeros(0)
