"""A small model that is fast to fit: a shared part and a part for each client, both linear in features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plures.brief import brief
from plures.diagnose.chance import Floats, Ints

STEPS = 60


@dataclass(frozen=True)
class Rows:
    """Rows on which a probe is fitted or evaluated.

    Attributes:
        owner: ``(n,)`` client of each row.
        target: ``(n, outputs)`` one-hot, or real.
        common: ``(n, p)`` features of the shared part.
        own: ``(n, q)`` features of each client's part.
        offset: ``(n, outputs)`` added to the outputs.
    """

    owner: Ints
    target: Floats
    common: Floats
    own: Floats
    offset: Floats

    def take(self, chosen: Ints) -> Rows:
        return Rows(self.owner[chosen], self.target[chosen], self.common[chosen], self.own[chosen], self.offset[chosen])


@brief
@dataclass(frozen=True)
class Probe:
    """Weights: ``common`` ``(p, outputs)`` and ``own`` ``(clients, q, outputs)``."""

    common: Tensor
    own: Tensor

    def outputs(self, rows: Rows) -> Floats:
        """``(n, outputs)``: logits or values."""
        shared = rows.offset + rows.common @ self.common.numpy()
        weights = self.own.numpy()
        found: Floats = shared.astype(np.float64)
        for client in range(len(weights)):
            mine = rows.owner == client
            found[mine] += rows.own[mine] @ weights[client]
        return found


def fit(rows: Rows, clients: int, ridge: tuple[float, float], classification: bool) -> Probe:
    """Minimise the summed loss plus ``(r_1 |common|^2 + r_2 |own|^2) / 2`` by L-BFGS, for all clients at once.

    The loss is cross-entropy, or half the squared error. The first entry of ``own`` is an intercept by convention, and
    has a hundredth of the ridge.

    Args:
        rows: train rows.
        clients: their number.
        ridge: of the shared part and of the clients' parts.
        classification: whether to use cross-entropy.
    """
    outputs, width = rows.target.shape[1], rows.own.shape[1]
    place, depth = _places(rows.owner, clients)
    own = torch.zeros(clients * depth, width, dtype=torch.float64)
    own[place] = torch.from_numpy(rows.own)
    own = own.view(clients, depth, width)
    common, offset = torch.from_numpy(rows.common), torch.from_numpy(rows.offset)
    target = torch.from_numpy(rows.target)
    weights = torch.full((width, 1), ridge[1], dtype=torch.float64)
    weights[:1] /= 100
    shared = torch.zeros(common.shape[1], outputs, dtype=torch.float64, requires_grad=True)
    single = torch.zeros(clients, width, outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [p for p in (shared, single) if p.numel()],
        max_iter=STEPS,
        tolerance_change=1e-7,
        history_size=8,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = offset + common @ shared + (own @ single).view(-1, outputs)[place]
        loss = -(F.log_softmax(found, 1) * target).sum() if classification else (found - target).square().sum() / 2
        loss = (loss + (ridge[0] * shared.square().sum() + (weights * single.square()).sum()) / 2) / len(target)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Probe(shared.detach(), single.detach())


def losses(outputs: Floats, target: Floats, classification: bool) -> Floats:
    """Loss of each row, ``(n,)``: cross-entropy, or half the squared error summed over outputs."""
    if not classification:
        return np.asarray(((outputs - target) ** 2).sum(1) / 2, dtype=np.float64)
    log = F.log_softmax(torch.from_numpy(outputs), 1).numpy()
    return np.asarray(-(log * target).sum(1), dtype=np.float64)


def _places(owner: Ints, clients: int) -> tuple[Tensor, int]:
    """Position of each row in a table padded to the largest client."""
    size = np.bincount(owner, minlength=clients)
    depth = int(size.max()) if len(owner) else 1
    order = np.argsort(owner, kind="stable")
    within = np.empty(len(owner), dtype=np.int64)
    within[order] = np.arange(len(owner)) - np.repeat(size.cumsum() - size, size)
    return torch.from_numpy(owner * depth + within), depth
