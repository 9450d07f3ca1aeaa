"""What leaves a client: every kind of thing that a method sends has a name and a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        tensors: whether tensors carry it: then its bytes are counted as traffic. All else stands in the header of
            a message, as text, and headers are outside the count; a federation's log counts whole messages, too.
    """

    name: str
    when: Literal["join", "gradients", "train", "score"]
    what: str
    size: int | None
    tensors: bool = False

    def __str__(self) -> str:
        size = "by agreement" if self.size is None else f"{self.size} bytes"
        return f"{self.name} ({self.when}, {size}, {'tensors' if self.tensors else 'in the header'}): {self.what}"


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
