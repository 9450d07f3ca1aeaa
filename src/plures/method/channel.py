"""What leaves a client: every kind of data that a method sends has a name and a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

UPDATE, BUFFERS, WEIGHTS, VIEWS, GRADIENTS = "update", "buffers", "weights", "views", "gradients"
LOSS, OBJECTIVE, CHOICES = "loss", "objective", "choices"
NUMBER = 8
"""Bytes of a number in a message header."""


@dataclass(frozen=True)
class Channel:
    """One kind of data that leaves a client.

    Attributes:
        name: its name, for stages of the wire and in messages.
        when: the answer that carries it: on joining (``join``), before the first round (``gradients``), after a
            round's local work (``train``), or with measurements (``score``, which any request may ask for).
        what: a description of its content.
        size: bytes that one client sends in one message; ``None`` if it depends on what the members agree to share.
        tensors: whether it is sent as tensors, whose bytes count as traffic. Everything else is text in a message
            header, which is not counted; a federation's log also counts whole messages.
        epsilon: of all of it in one message, if it is randomised before it leaves; ``None`` otherwise.
    """

    name: str
    when: Literal["join", "gradients", "train", "score"]
    what: str
    size: int | None
    tensors: bool = False
    epsilon: float | None = None

    def __str__(self) -> str:
        size = "by agreement" if self.size is None else f"{self.size} bytes"
        noisy = "" if self.epsilon is None else f", randomised at epsilon {self.epsilon:g}"
        return (
            f"{self.name} ({self.when}, {size}, {'tensors' if self.tensors else 'in the header'}): {self.what}{noisy}"
        )


FACTS = (
    Channel("examples", "join", "number of training examples", NUMBER),
    Channel("labels", "join", "training examples of each class, if the members agree to share them", None),
    Channel("metadata", "join", "further facts, if the members agree to share them", None),
)
MEASURED = (
    Channel("scores", "score", "metrics on held-out examples and their number, as far as the site shares them", None),
    Channel("seconds", "score", "how long the site worked, if it shares that", NUMBER),
)
TRAINING = (
    Channel(LOSS, "train", "mean task loss of the visit", NUMBER),
    Channel(OBJECTIVE, "train", "mean of what the visit minimised", NUMBER),
)


def masked(members: int) -> tuple[Channel, ...]:
    """What leaves a member for the masks of a secure sum, where it is at a site of its own."""
    return (
        Channel("keys", "train", "public keys of a round's masks, with the client's signature", 64 + 193),
        Channel("shares", "train", "shares of its masks' secrets, sealed for the other members", 224 * (members - 1)),
        Channel(
            "revealed", "train", "shares of masks' secrets of all members, for none of them both kinds", 66 * members
        ),
    )
