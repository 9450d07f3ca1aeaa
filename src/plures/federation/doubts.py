"""Warnings about what is valid in a finished federation but probably unintended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.cells import alike, listed
from plures.federation.federation import Federation
from plures.federation.inputs import parts
from plures.federation.mapped import Mapped

MIN_TRAIN_EXAMPLES = 3
EXCESS = 10.0
"""Copies are reported if there are this many times as many as independent columns would give by chance."""

SEEN = 1000
"""Rows of inputs on disk by which the probability of equal rows is estimated."""


def doubts(federation: Federation, copies: bool = True) -> list[str]:
    """Clients with too few examples to learn, names that look alike, and test rows that are also training rows."""
    train = federation.splits["train"]
    lacking = train.sizes < MIN_TRAIN_EXAMPLES
    found = [_of(_those(federation, lacking), f"fewer than {MIN_TRAIN_EXAMPLES} training examples")]
    if federation.task.classes:
        labels, first = federation.targets[train.rows], train.offsets[:-1].clamp(max=max(len(train.rows) - 1, 0))
        other = labels != labels[first].repeat_interleave(train.sizes) if len(labels) else labels.bool()
        mixed = torch.bincount(train.owners[other], minlength=len(federation)) > 0
        found.append(_of(_those(federation, ~mixed & ~lacking), "only one class to train on"))
    found += [
        f"clients {one!r} and {other!r} differ only by case or blanks" for one, other in alike(federation.clients)
    ]
    found.append(_copies(federation) if copies else "")
    return [text for text in found if text]


def _those(federation: Federation, which: Tensor) -> list[str]:
    return [federation.clients[place] for place in which.nonzero().flatten().tolist()]


def _of(names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    return f"{len(names)} client{'s have' if len(names) > 1 else ' has'} {what} ({listed(names, 5)})"


def _copies(federation: Federation) -> str:
    """How many validation and test rows are copies of training rows, at the same client and at others."""
    train, *rest = (federation.splits[split] for split in ("train", "validation", "test"))
    if not len(train.rows) or not sum(len(split.rows) for split in rest):
        return ""
    codes = _codes(federation)
    clients = np.arange(len(federation))
    learned, learner = codes[train.rows.numpy()], clients.repeat(train.sizes.numpy())
    asked = np.concatenate([codes[split.rows.numpy()] for split in rest])
    asker = np.concatenate([clients.repeat(split.sizes.numpy()) for split in rest])
    anywhere = np.isin(asked, learned)
    pair = np.isin(asked * len(clients) + asker, learned * len(clients) + learner)
    if not anywhere.any() or anywhere.sum() < EXCESS * len(asked) * min(len(learned) * _chance(federation), 1.0):
        return ""
    places = [
        f"{count} at {where}"
        for count, where in ((pair.sum(), "their client"), ((anywhere & ~pair).sum(), "others"))
        if count
    ]
    return (
        f"{int(anywhere.sum())} of {len(asked)} validation and test rows are copies of training rows "
        f"({', '.join(places)}); give equal rows the same value of groups=, remove them, or set copies='allow'"
    )


def _codes(federation: Federation) -> NDArray[np.int64]:
    """A number for each different row of inputs and target, ``(examples,)``."""
    given = [part.identity() if isinstance(part, Mapped) else part for part in parts(federation.inputs)]
    each = map(_bytes, (*given, federation.targets))
    digests = b"".join(_digest(row) for row in zip(*each, strict=True))
    return np.unique(np.frombuffer(digests, np.int64), return_inverse=True)[1].reshape(-1)


def _digest(row: Sequence[memoryview]) -> bytes:
    content = blake2b(row[0], digest_size=8)
    for part in row[1:]:
        content.update(part)
    return content.digest()


def _bytes(values: Tensor) -> Iterator[memoryview]:
    """The bytes of each row, of whatever type."""
    flat = values.reshape(len(values), -1).clone(memory_format=torch.contiguous_format)  # x[:, None] has stride 0
    width = flat[:1].nbytes
    view = flat.reshape(-1).view(torch.uint8).numpy().data
    return (view[row * width : (row + 1) * width] for row in range(len(values)))


def _chance(federation: Federation) -> float:
    """Probability that two rows are equal if their columns were independent; an upper bound for wide inputs."""
    rows = len(federation.inputs)
    chance = 1.0
    some = torch.linspace(0, rows - 1, min(rows, SEEN)).long()
    given = [part[some] if isinstance(part, Mapped) else part for part in parts(federation.inputs)]
    for values in (column for part in (federation.targets, *given) for column in part.reshape(len(part), -1).T):
        if chance * rows * rows * EXCESS < 1:
            break
        chance *= _agreement(values)
    return chance


def _agreement(values: Tensor) -> float:
    """Probability that two draws of a column are equal."""
    counts = torch.unique(values, return_counts=True)[1].double()
    return float((counts / counts.sum()).square().sum())
