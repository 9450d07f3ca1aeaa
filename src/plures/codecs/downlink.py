"""Compressed downloads: what the server sends out, with what it left out kept for the next round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from plures.codecs.feedback import Feedback
from plures.errors import PluresError


@dataclass(frozen=True)
class Downlink(Feedback):
    """The change of the shared model that a round made is encoded before it goes out to the clients.

    The server sends ``Q(m + d)`` and remembers ``m <- m + d - sent``, where ``d`` is the change of the model that all
    clients have, so that nothing is lost for good (DoubleSqueeze, Tang et al. 2019, Algorithm 1). What clients have is
    what everybody has: it is what they train from, predict with, and what is published. A client that missed rounds
    gets what was sent in them, or the model as it is if that is shorter; newcomers get the model. If the stages send no
    less than the model, it goes out as it is.

    It needs that everybody has the same model: clusters, hierarchies and models of single clients are refused. Running
    statistics, and shared numbers that are no leaves of the network, go out as they are.

    By name it stands behind the stages that it is for, and before those of the uploads:
    ``fedavg+topk(0.1)+downlink+topk(0.01)+feedback``.

    Attributes:
        stages: what encodes ``m + d``; without any, those that it is joined to.
    """

    down: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if guarded := next((type(stage).__name__ for stage in self.stages if stage.bounds), None):
            raise PluresError(f"Downlink: {guarded} is for what clients send: write downlink before it")
