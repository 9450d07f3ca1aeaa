"""FLTrust: uploads count as far as they go where a trusted client goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Arrived
from plures.robust.robust import COUNTS, Robust, whole


@dataclass(frozen=True)
class FLTrust(Robust):
    """Changes as long as the trusted client's, weighted by their cosine with it (Cao et al. 2021, Algorithm 2).

    The trusted client holds the paper's root data: a small clean set, such as the coordinator's own. It is a client of
    the federation, must take part in every round, and does not count itself. A cosine below zero counts zero; if all
    do, the model stays as it is. Sizes of clients do not count.

    Attributes:
        root: name of the trusted client.
        joint: cosines and lengths are those of whole uploads; otherwise of each block.
    """

    title: ClassVar[str] = "fltrust"
    single: ClassVar[bool] = True
    chooses: ClassVar[bool] = True

    root: str = ""
    joint: bool = True

    def __post_init__(self) -> None:
        if not self.root:
            raise PluresError(f"{self.title}: name the client that is trusted: root=...")

    def stands(self, uploads: int) -> int:
        return uploads - 1

    def combined(self, uploads: Tensor, arrived: Arrived) -> tuple[Tensor, dict[str, Tensor]]:
        names = [arrived.cohort.setting.clients[i] for i in arrived.clients.tolist()]
        if self.root not in names:
            raise PluresError(
                f"{self.title}: the trusted client {self.root!r} did not take part in round "
                f"{arrived.cohort.round + 1}; it must, in every round"
            )
        if len(names) == 1:
            return uploads[0], {COUNTS: torch.ones(1)}
        changes = whole(uploads, arrived, self.joint)
        length, root = changes.norm(dim=1), names.index(self.root)
        cosine = changes @ changes[root] / (length * length[root])
        trust = cosine.nan_to_num(0.0).clamp(min=0.0)
        counts = (trust > 0).index_fill(0, torch.tensor(root, device=trust.device), True)
        trust[root] = 0.0
        if not trust.sum() > 0:
            return arrived.old, {COUNTS: counts}
        scale = torch.where(trust > 0, trust / trust.sum() * length[root] / length, 0.0)
        return arrived.old + scale @ (uploads - arrived.old), {COUNTS: counts}
