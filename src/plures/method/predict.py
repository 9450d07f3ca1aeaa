"""Part 6, predict: how a state becomes the client's predictor; also how an unseen client gets one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plures.errors import PluresError
from plures.method.schedule import Schedule
from plures.method.state import State
from plures.models import Leaves


@dataclass(frozen=True)
class Predict:
    """How a client predicts.

    Attributes:
        model: the slot it predicts with, or a function of its state that composes the leaves.
        adapt: local work on a copy of the state before predicting (fine-tuning); the shared value never sees it.
        visits: how many visits without upload an unseen client makes to obtain its personal leaves; 0 when it only
            needs what is shared.
    """

    model: str | Callable[[State], Leaves] = "model"
    adapt: Schedule = ()
    visits: int = 0

    def __post_init__(self) -> None:
        if self.visits < 0:
            raise PluresError(f"visits={self.visits}: an unseen client cannot make a negative number of visits")

    def leaves(self, x: State) -> Leaves:
        """The personal model of one client."""
        return getattr(x, self.model) if isinstance(self.model, str) else self.model(x)
