"""Predictions whose metrics are known."""

from __future__ import annotations

import torch

from plures.metrics import Predictions
from plures.run.predict import said
from plures.tasks import Classification


def binary(true: list[int], scores: list[float], weight: list[float] | None = None) -> Predictions:
    """One client's predictions of which the second class has these probabilities."""
    chances = torch.tensor([[1 - p, p] for p in scores], dtype=torch.float64)
    counted = torch.ones(len(true)) if weight is None else torch.tensor(weight)
    return said(Classification(("no", "yes")), chances.log(), torch.tensor(true), counted)
