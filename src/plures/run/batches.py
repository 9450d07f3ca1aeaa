"""Which examples every step of a visit sees, for all clients of a chunk at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.federation import Split
from plures.run.randomness import Keys, fold, orders


@dataclass(frozen=True)
class Batches:
    """The batches of one phase.

    Attributes:
        rows: ``(steps, batches per step, clients, batch)`` int64 rows of the federation; padding repeats a row.
        counts: ``(steps, batches per step, clients)`` number of real examples.
        active: number of clients that take part in each step; they are the first ones of the chunk.
        steps: ``(clients,)`` steps of each client, not increasing.
        keys: ``(steps, clients)`` int64 randomness for dropout, at most 32 bits.
    """

    rows: Tensor
    counts: NDArray[np.int64]
    active: list[int]
    steps: NDArray[np.int64]
    keys: Tensor


def plan(
    split: Split,
    clients: list[int],
    keys: Keys,
    batch_size: int | None,
    epochs: float | None,
    steps: int | None,
    per_step: int = 1,
    *,
    join_single: bool = False,
    same_width: bool = False,
) -> Batches:
    """Draw the batches of a phase: passes over each client's examples, each in a new random order.

    The last batch of a pass may be smaller. A number of ``steps`` cycles through as many passes as it needs.

    Args:
        split: the examples.
        clients: the chunk, by decreasing number of examples.
        keys: ``(clients,)`` randomness of this phase.
        batch_size: examples in a batch; ``None`` for all.
        epochs: passes, possibly a fraction, if ``steps`` is ``None``.
        steps: steps of every client.
        per_step: batches that each step consumes.
        join_single: let a single last example join the batch before it, for batch normalisation.
        same_width: pad batches to a width that is the same for every chunk, for compiled steps.
    """
    sizes = split.sizes.numpy()[clients]
    largest = int(split.sizes.max())
    batch = largest if batch_size is None else min(batch_size, largest)
    per_epoch = -(-sizes // batch)
    if join_single:
        per_epoch -= (sizes % batch == 1) & (per_epoch > 1) & (batch > 1)
    if steps is not None:
        count = np.full_like(sizes, steps)
    else:
        count = np.ceil((1.0 if epochs is None else epochs) * per_epoch / per_step - 1e-9).astype(np.int64)
    longest = int(count.max(initial=0))
    needed = np.maximum(-(-count * per_step // per_epoch), 1)
    number = np.minimum(np.arange(longest * per_step), (count * per_step - 1).clip(0)[:, None])
    epoch, place = number // per_epoch[:, None], number % per_epoch[:, None]
    counts = np.where(place == per_epoch[:, None] - 1, sizes[:, None] - place * batch, batch)
    width = batch + join_single if same_width else int(counts.max(initial=0))
    order = orders(keys, sizes, needed)
    first = np.cumsum(sizes * needed) - sizes * needed
    start = first[:, None] + epoch * sizes[:, None] + place * batch
    within = np.where(np.arange(width) < counts[..., None], np.arange(width), 0)
    rows = split.offsets.numpy()[clients][:, None, None] + order[start[..., None] + within]
    shaped = rows.reshape(len(clients), longest, per_step, width).transpose(1, 2, 0, 3)
    device = split.rows.device
    drawn = fold(keys[None, :], 0xD0, np.arange(longest, dtype=np.uint64)[:, None]) >> np.uint64(32)
    return Batches(
        split.rows[torch.from_numpy(np.ascontiguousarray(shaped)).to(device)],
        np.ascontiguousarray(counts.reshape(len(clients), longest, per_step).transpose(1, 2, 0)),
        (count[None, :] > np.arange(longest)[:, None]).sum(1).tolist(),
        count,
        torch.from_numpy(drawn.astype(np.int64)).to(device),
    )


def passes(split: Split, clients: list[int], batch_size: int) -> Batches:
    """All examples of each client once, in their stored order: for evaluation and measurements."""
    sizes = split.sizes.numpy()[clients]
    batch = max(1, min(batch_size, int(sizes.max(initial=0))))
    count = -(-sizes // batch)
    longest = int(count.max(initial=0))
    start = np.arange(longest)[None, :] * batch
    counts = np.clip(sizes[:, None] - start, 0, batch)
    within = np.minimum(start[..., None] + np.arange(batch), np.maximum(sizes - 1, 0)[:, None, None])
    rows = np.minimum(split.offsets.numpy()[clients][:, None, None] + within, max(len(split.rows) - 1, 0))
    index = split.rows[torch.from_numpy(rows.transpose(1, 0, 2)[:, None].copy()).to(split.rows.device)]
    keys = torch.zeros(longest, len(clients), dtype=torch.int64, device=split.rows.device)
    return Batches(index, counts.T[:, None].copy(), [len(clients)] * longest, count, keys)
