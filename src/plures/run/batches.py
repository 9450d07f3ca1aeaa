"""Which examples each step of a visit uses, for all clients of a chunk at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.brief import brief
from plures.federation import Split
from plures.run.randomness import Keys, fold, orders


@brief
@dataclass(frozen=True)
class Batches:
    """The batches of one phase.

    Attributes:
        rows: ``(steps, batches per step, clients, batch)`` int64 rows of the federation; padding repeats a row.
        counts: ``(steps, batches per step, clients)`` number of real examples.
        steps: ``(clients,)`` number of steps of each client, in non-increasing order.
        seeds: ``(clients,)`` randomness of the phase.
    """

    rows: Tensor
    counts: NDArray[np.int64]
    steps: NDArray[np.int64]
    seeds: Keys

    @cached_property
    def active(self) -> list[int]:
        """Number of clients that take part in each step; they come first in the chunk."""
        active: list[int] = (self.steps[None, :] > np.arange(len(self.rows))[:, None]).sum(1).tolist()
        return active

    @cached_property
    def keys(self) -> Tensor:
        """``(steps, clients)`` int64 randomness for dropout, at most 32 bits."""
        drawn = fold(self.seeds[None, :], 0xD0, np.arange(len(self.rows), dtype=np.uint64)[:, None]) >> np.uint64(32)
        return torch.from_numpy(drawn.astype(np.int64)).to(self.rows.device)

    @cached_property
    def examples(self) -> Tensor:
        """``(steps, batches per step, clients, batch)`` int64 randomness for the augmentation of each example."""
        steps, batches, _, width = self.rows.shape
        step, batch, place = np.ogrid[:steps, :batches, :width]
        drawn = fold(self.seeds[:, None], 0xA6, step[..., None, :], batch[..., None, :], place[..., None, :])
        return torch.from_numpy(drawn.view(np.int64)).to(self.rows.device)

    def kinds(self) -> Iterator[tuple[Batches, int]]:
        """One step of every size that occurs, and how many steps of this size there are."""
        _, places, numbers = np.unique(self.counts, axis=0, return_index=True, return_counts=True)
        for place, number in zip(places, numbers, strict=True):
            own = slice(place, place + 1)
            ended = (self.steps - place).clip(0, 1)
            yield Batches(self.rows[own], self.counts[own], ended, self.seeds), int(number)


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
    efforts: NDArray[np.float64] | None = None,
) -> Batches:
    """Draw the batches of a phase: passes over each client's examples, each in a new random order.

    The last batch of a pass may be smaller. If ``steps`` is given, as many passes follow each other as it needs.

    Args:
        split: the examples.
        clients: the chunk, by decreasing number of examples.
        keys: ``(clients,)`` randomness of this phase.
        batch_size: examples in a batch; ``None`` for all.
        epochs: passes, possibly a fraction, if ``steps`` is ``None``.
        steps: number of steps of every client.
        per_step: batches that each step consumes.
        join_single: add a single leftover example to the batch before it, for batch normalisation.
        same_width: pad batches to a width that is the same for every chunk, for compiled steps.
        efforts: ``(clients,)`` the share of its steps that each client does (:func:`part`); default: all.
    """
    offsets = split.offsets.numpy()
    begins = offsets[clients]
    sizes = offsets[1:][clients] - begins
    batch = batch_size or int(split.sizes.max())
    per_epoch, count = counted(sizes, batch, epochs, steps, per_step, join_single=join_single)
    count = count if efforts is None else part(count, efforts)
    longest = int(count.max())
    needed = np.maximum(-(-count * per_step // per_epoch), 1)
    number = np.minimum(np.arange(longest * per_step), (count * per_step - 1).clip(0)[:, None])
    epoch, place = np.divmod(number, per_epoch[:, None])
    start = place * batch
    counts = np.where(place == per_epoch[:, None] - 1, sizes[:, None] - start, batch)
    width = int(counts.max(initial=0))
    if same_width:
        width = min(batch, int(split.sizes.max())) + join_single
    drawn = sizes * needed
    start += epoch * sizes[:, None] + (np.cumsum(drawn) - drawn)[:, None]
    flat = np.repeat(begins, drawn) + orders(keys, sizes, needed).astype(np.int64)
    rows = flat[start[..., None] + np.minimum(np.arange(width), counts[..., None] - 1)]
    shaped = rows.reshape(len(clients), longest, per_step, width).transpose(1, 2, 0, 3)
    counts = counts.reshape(len(clients), longest, per_step).transpose(1, 2, 0)
    index = torch.from_numpy(np.ascontiguousarray(shaped)).to(split.rows.device)
    return Batches(split.rows[index], np.ascontiguousarray(counts), count, keys)


def counted(
    sizes: NDArray[np.int64],
    batch: int,
    epochs: float | None,
    steps: int | None,
    per_step: int = 1,
    *,
    join_single: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Batches of a pass over each client's examples, and the steps of its visit, ``(clients,)`` each.

    Args:
        sizes: ``(clients,)`` number of examples.
        batch: examples in a batch.
        epochs: passes, if ``steps`` is ``None``.
        steps: number of steps of every client.
        per_step: batches that each step consumes.
        join_single: add a single leftover example to the batch before it.
    """
    per_epoch = -(-sizes // batch)
    if join_single and batch > 1:
        per_epoch -= (sizes % batch == 1) & (per_epoch > 1)
    if steps is not None:
        return per_epoch, np.full_like(sizes, steps)
    return per_epoch, np.ceil((1.0 if epochs is None else epochs) * per_epoch / per_step - 1e-9).astype(np.int64)


def widths(sizes: NDArray[np.int64], batch: int | None, *, join_single: bool = False) -> list[int]:
    """The different sizes of the batches in a pass over each client's examples, the most frequent first.

    Args:
        sizes: ``(clients,)`` number of examples.
        batch: examples in a batch; ``None`` for all.
        join_single: add a single leftover example to the batch before it.

    Example:
        >>> widths(np.array([20, 25, 5]), 10)
        [10, 5]
    """
    some = sizes[sizes > 0]
    batch = batch or int(some.max(initial=0))
    per_epoch, _ = counted(some, batch, None, None, join_single=join_single)
    found, number = np.unique(some - (per_epoch - 1) * batch, return_counts=True)
    often = Counter(dict(zip(found.tolist(), number.tolist(), strict=True)))
    often[batch] += int((per_epoch - 1).sum())
    return [width for width, _ in often.most_common()]


def part(count: NDArray[np.int64], efforts: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first steps of each visit: that share of them, rounded down, and at least one of some."""
    return np.minimum(count, np.maximum(1, np.floor(count * efforts + 1e-9).astype(np.int64)))


def tiles(
    sizes: NDArray[np.int64], most: Callable[[int], int], least: int
) -> Iterator[tuple[NDArray[np.int64], int, int]]:
    """Divide clients' examples into batches of several clients with little padding.

    A batch is as wide as what is left of the client with the least left, within limits. Clients without examples, next
    to others, are in none.

    Args:
        sizes: ``(clients,)`` number of examples.
        most: largest width of a batch by its number of clients.
        least: smallest width.

    Yields:
        For each batch: positions of its clients, the first of their examples in it, and its width.
    """
    start, longest = 0, int(sizes.max(initial=0))
    while start < max(1, longest):
        places = np.flatnonzero(sizes > start) if longest else np.arange(len(sizes))
        left = int(sizes[places].min()) - start
        width = max(1, min(max(left, least), most(len(places)), longest - start))
        yield places, start, width
        start += width


def passes(split: Split, clients: list[int], batch_size: int) -> Batches:
    """All examples of each client once, in their stored order, for evaluation and measurements.

    Clients without examples get one batch of padding.
    """
    sizes = split.sizes.numpy()[clients]
    batch = max(1, min(batch_size, int(sizes.max(initial=0))))
    count = -(-sizes // batch)
    longest = max(1, int(count.max(initial=0)))
    start = np.arange(longest)[None, :] * batch
    counts = np.clip(sizes[:, None] - start, 0, batch)
    within = np.minimum(start[..., None] + np.arange(batch), np.maximum(sizes - 1, 0)[:, None, None])
    rows = np.minimum(split.offsets.numpy()[clients][:, None, None] + within, max(len(split.rows) - 1, 0))
    owned = split.rows if len(split.rows) else split.rows.new_zeros(1)
    index = owned[torch.from_numpy(rows.transpose(1, 0, 2)[:, None].copy()).to(split.rows.device)]
    return Batches(index, counts.T[:, None].copy(), count, np.zeros(len(clients), dtype=np.uint64))
