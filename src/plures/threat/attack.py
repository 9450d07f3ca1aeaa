"""What an attack on uploads is: a function of what the attackers know of a round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.brief import brief


@brief
@dataclass(frozen=True)
class Round:
    """What attackers know of a round.

    Changes are whole uploads as vectors: values after local work minus values received, of all parameters that travel.

    Attributes:
        own: ``(m, d)`` the changes that they would send if they were honest.
        seen: ``(k, d)`` the honest changes that they know: those of honest clients, or their own.
        clients: size of the cohort, attackers included.
        weight: ``(m,)`` the weights of their uploads.
        total: weight of all uploads together.
        key: random key of the round.
    """

    own: Tensor
    seen: Tensor
    clients: int
    weight: Tensor
    total: float
    key: int

    def normal(self) -> Tensor:
        """Standard normal numbers of the shape of ``own``."""
        random = torch.Generator().manual_seed(self.key)
        return torch.randn(self.own.shape, generator=random, dtype=self.own.dtype).to(self.own.device)


class Attack:
    """What attackers send instead of their changes."""

    def forge(self, known: Round) -> Tensor:
        """The changes that they send, ``(m, d)``.

        Args:
            known: what they know.
        """
        raise NotImplementedError
