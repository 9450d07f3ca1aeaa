"""What leaves a client: every kind of thing that a method sends has a name and a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from plures.method.method import Bound

UPDATE, BUFFERS, WEIGHTS, VIEWS, GRADIENTS = "update", "buffers", "weights", "views", "gradients"
LOSS, OBJECTIVE, CHOICES = "loss", "objective", "choices"
NUMBER = 8
"""Bytes of a number that stands in the header of a message."""


@dataclass(frozen=True)
class Channel:
    """One thing that leaves a client.

    Attributes:
        name: what stages of the wire and messages call it.
        when: with which answer: to the question who it is (``join``), for gradients before the first round, after a
            round's local work (``train``), or with measurements (``score``, asked for with any of them).
        what: what it holds, in words.
        size: bytes that one client sends in one message; ``None`` for what the members of a federation agree on.
        tensors: whether tensors carry it. Their bytes are the ledger's; numbers stand in the header of the message.
    """

    name: str
    when: Literal["join", "gradients", "train", "score"]
    what: str
    size: int | None
    tensors: bool = False


FACTS = (
    Channel("examples", "join", "number of training examples", NUMBER),
    Channel("labels", "join", "training examples of each class, if the members agree to tell them", None),
    Channel("metadata", "join", "further facts, if the members agree to tell them", None),
)
MEASURED = (
    Channel(
        "scores", "score", "metrics of held-out examples, and how many these are, as far as the site tells them", None
    ),
    Channel("seconds", "score", "how long the site worked, if it tells it", NUMBER),
)
TRAINING = (
    Channel(LOSS, "train", "mean task loss of the visit", NUMBER),
    Channel(OBJECTIVE, "train", "mean of what the visit minimised", NUMBER),
)


def channels(bound: Bound) -> tuple[Channel, ...]:
    """All that leaves a client of a method, in the order in which it does."""
    found = list(FACTS)
    if bound.probes:
        size = sum(bound.initial["model"][path].nbytes for path in bound.probed())
        found.append(Channel(GRADIENTS, "gradients", "gradient of the loss at the initial model", size, True))
    through = " after the wire" if bound.line.stages else ""
    carried = (
        (UPDATE, sum(t.nbytes for t in bound.line.payload.values()), f"parameters after local work{through}"),
        (BUFFERS, sum(map(bound.nbytes, bound.buffers)), "running statistics and whole numbers"),
        (WEIGHTS, _weights(bound), "weight of the upload, made of the client's state"),
        (VIEWS, sum(map(bound.nbytes, bound.told())), "personal leaves that decide which models a client sees"),
    )
    found += [Channel(name, "train", what, size, True) for name, size, what in carried if size]
    if alone := sum(block.share.alone for block in bound.blocks):
        found.append(Channel(CHOICES, "train", "which of the models the client chose", NUMBER * alone))
    return (*found, *TRAINING, *MEASURED)


def _weights(bound: Bound) -> int:
    """Bytes of the weights that a client computes itself."""
    size = 0
    for block in bound.blocks:
        if bound.travelling(block) and callable(bound.combine(block).weights):
            given = bound.weighed(block, bound.initial)
            size += given.nbytes if isinstance(given, Tensor) else sum(t.nbytes for t in given.values())
    return size
