"""Survival: the time until an event, which is not observed for all examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.metrics import SURVIVAL, TIMES, Catalogue, Metric
from plures.metrics.survival import baseline, cox, curve_errors
from plures.tasks.reading import refuse
from plures.tasks.task import Array, Task, Where


@dataclass(frozen=True)
class Survival(Task):
    """The log hazard of an event, by Cox's proportional hazards (Cox 1972); one output.

    A target is a time and whether the event was observed (1) or the time is censored (0). The loss is the negative log
    partial likelihood of a batch with Breslow's ties, its mean over all examples of the batch, as in FLamby's
    TCGA-BRCA. It compares the examples of one client's batch, so it depends on the batch size, and every client has a
    baseline hazard of its own: a stratified Cox model. A batch without an event teaches nothing.

    Examples:
        >>> task, targets = Survival(), torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
        >>> outputs = torch.tensor([[1.0], [0.0], [-1.0]])
        >>> [round(float(x), 4) for x in task.terms(outputs, targets)]
        [0.4076, 0.3133, 0.0]
    """

    kind: ClassVar[str] = "survival"
    called: ClassVar[str] = "log hazards"
    scalable: ClassVar[bool] = False
    joint: ClassVar[bool] = True
    measures: ClassVar[tuple[Metric, ...]] = SURVIVAL

    @property
    def further(self) -> Catalogue:
        return TIMES

    @property
    def outputs(self) -> int:
        return 1

    @property
    def names(self) -> tuple[str, ...]:
        return ("hazard",)

    @property
    def target(self) -> tuple[int, ...]:
        return (2,)

    def read(self, values: Array, where: Where) -> tuple[Self, Tensor]:
        if values.ndim != 2 or values.shape[1] != 2 or values.dtype.kind not in "fiub":
            raise PluresError(
                f"survival needs two numbers for each row, the time and whether the event was observed (1) or not (0), "
                f"but targets are {values.dtype} of shape {values.shape}"
            )
        targets = torch.from_numpy(values.astype(np.float32))
        refuse(*self.faults(targets), where)
        return self, targets

    def of_columns(self, columns: Sequence[str]) -> Self:
        if len(columns) != 2:
            raise PluresError(f"survival needs two target columns, time and event, in this order; got {len(columns)}")
        return self

    def faults(self, targets: Tensor) -> tuple[Tensor, str]:
        times, events = targets.unbind(-1)
        bad = ~times.isfinite() | (times < 0) | ((events != 0) & (events != 1))
        return bad, "a time below 0 or an event that is neither 0 nor 1; targets are time and event, in this order"

    def expected(self, outputs: Tensor) -> Tensor:
        """The hazard relative to that of an output of 0."""
        return outputs.exp()

    def scores(self, expected: Tensor) -> Tensor:
        return expected.clamp(min=torch.finfo(expected.dtype).tiny).log()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.terms(outputs, targets)

    def terms(self, outputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        times, events = targets.unbind(-1)
        return cox(outputs.squeeze(-1), times, events, weight)

    def curve_errors(self, train: tuple[Tensor, Tensor, Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
        hazards, times, weight = (t.double() for t in train)
        found = baseline(hazards.squeeze(-1), times, weight)
        return curve_errors(found, outputs.squeeze(-1).double(), targets.double())

    def strata(self, targets: Tensor) -> Array:
        """Whether the event was observed."""
        return targets[:, 1].numpy().astype(np.int64)

    def says(self, value: Tensor) -> str:
        if value.numel() == 1:
            return super().says(value)
        time, event = value.tolist()
        return f"{time:.4g} ({'event' if event else 'censored'})"
