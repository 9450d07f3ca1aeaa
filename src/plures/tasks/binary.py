"""Two classes from a single output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.errors import PluresError
from plures.tasks.classification import Classification, focused, mixed_odds


@dataclass(frozen=True)
class Binary(Classification):
    """One of two classes; a network's single output is the log-odds of the second. The loss is the cross-entropy.

    The options are those of :class:`Classification`, which has an output for each class instead. PyTorch's
    ``pos_weight`` is the weight of the second class: ``class_weights={"ill": 3}``.

    Examples:
        >>> task = Binary(("healthy", "ill"), class_weights={"ill": 3})
        >>> outputs, targets = torch.zeros(2, 1), torch.tensor([0, 1])
        >>> [round(float(x), 3) for x in task.losses(outputs, targets)]
        [0.693, 2.079]
        >>> task.expected(outputs).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """

    kind: ClassVar[str] = "binary"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes and len(self.classes) != 2:
            raise PluresError(
                f"binary has two classes, but there are {len(self.classes)}: {', '.join(self.classes[:5])}; give "
                'task="classification"'
            )

    @property
    def outputs(self) -> int:
        return 1 if self.classes else 0

    def expected(self, outputs: Tensor) -> Tensor:
        return torch.cat([(-outputs).sigmoid(), outputs.sigmoid()], -1)

    def decide(self, outputs: Tensor) -> Tensor:
        return (outputs.squeeze(-1) > 0).long()

    def cross_entropy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        odds, true = outputs.squeeze(-1), targets.to(outputs)
        smooth = true * (1 - self.smoothing) + self.smoothing / 2
        plain = F.binary_cross_entropy_with_logits(odds, smooth, reduction="none")
        return focused(plain, torch.where(true > 0, odds, -odds).sigmoid(), self.focal)

    def curvature(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """``(w_1 (1 - p) + w_0 p) p (1 - p) (d f)^2``: the loss, expected over predicted classes."""
        chance = outputs.sigmoid()
        first, second = (1.0, 1.0) if self.class_weights is None else outputs.new_tensor(self.class_weights)
        return outputs, (second * (1 - chance) + first * chance) * chance * (1 - chance)

    def scores(self, expected: Tensor) -> Tensor:
        logs = expected.clamp(min=torch.finfo(expected.dtype).tiny).log()
        return logs[..., 1:] - logs[..., :1]

    def mix(self, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """The mixture of probabilities, not of their odds."""
        if not self._written_for("mix", "expected"):
            return super().mix(outputs, weights)
        return mixed_odds(outputs, weights)
