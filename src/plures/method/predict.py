"""Part 6, predict: how a state becomes the client's predictor; also how an unseen client gets one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, wraps

from torch import Tensor

from plures.errors import PluresError
from plures.federation import SplitName
from plures.method.schedule import Assign, Schedule, Visit
from plures.method.state import Batch, State
from plures.models import Leaves
from plures.signature import checked


@checked
@dataclass(frozen=True)
class Calibration:
    """What a client fits to the outputs of its finished predictor: a temperature, class priors, a threshold.

    It works on top of any predictor, so it combines with every method.

    Attributes:
        slot: the slot that holds the fitted values; its initial leaves have no effect.
        fit: ``(x, outputs, batch) -> leaves`` of the slot, from the outputs ``(examples, outputs)`` for the client's
            examples, their targets and weights (the batch has no inputs); padding has weight 0, and a client may have
            no examples.
        revise: ``(x, outputs) -> outputs``; ``None`` where only the decision uses what was fitted.
        split: the examples.
    """

    slot: str
    fit: Callable[[State, Tensor, Batch], Leaves]
    revise: Callable[[State, Tensor], Tensor] | None = None
    split: SplitName = "validation"

    def __post_init__(self) -> None:
        if self.split == "test":
            raise PluresError(f"calibration {self.slot!r} cannot read test examples")


@checked
@dataclass(frozen=True)
class Predict:
    """How a client predicts.

    Attributes:
        model: the slot it predicts with, or a function of its state that composes the leaves.
        adapt: local work on a copy of the state before predicting (fine-tuning, calibration); the shared value never
            sees it. Its assignments may read validation data, never test data.
        visits: how many visits without upload an unseen client makes to obtain its personal leaves; 0 when it only
            needs what is shared.
        outputs: ``(x, batch) -> (batch, outputs)`` where the prediction is not one model's output: mixtures of outputs,
            neighbours, temperatures. Class scores are logarithms of probabilities, up to a constant.
        decide: ``(x, outputs) -> (batch,)`` the predicted class, if not the one with the highest score.
        reads: splits of the client's own examples that ``outputs`` finds in ``batch.own``.
        calibrate: calibrations fitted to the resulting outputs and applied to them, in order.
    """

    model: str | Callable[[State], Leaves] = "model"
    adapt: Schedule = ()
    visits: int = 0
    outputs: Callable[[State, Batch], Tensor] | None = None
    decide: Callable[[State, Tensor], Tensor] | None = None
    reads: tuple[SplitName, ...] = ()
    calibrate: tuple[Calibration, ...] = ()

    def __post_init__(self) -> None:
        if self.visits < 0:
            raise PluresError(f"visits={self.visits}: an unseen client cannot make a negative number of visits")
        if "test" in self.reads:
            raise PluresError("a predictor cannot read test examples")
        if len({stage.slot for stage in self.calibrate}) < len(self.calibrate):
            raise PluresError(f"calibrations {[stage.slot for stage in self.calibrate]}: each needs its own slot")

    @property
    def composed(self) -> bool:
        """Whether the predictor is more than one model's leaves."""
        return self.outputs is not None or self.decide is not None or bool(self.calibrate)

    @cached_property
    def preparation(self) -> Schedule:
        """The work before predicting: adaptation, then calibration."""
        return self.adapt + tuple(self._fitting(number) for number in range(len(self.calibrate)))

    def leaves(self, x: State) -> Leaves:
        """The personal model of one client."""
        return getattr(x, self.model) if isinstance(self.model, str) else self.model(x)

    def predicted(self, x: State, batch: Batch) -> Tensor:
        """Outputs of the client's predictor, ``(batch, outputs)``."""
        outputs = batch.outputs(self.leaves(x)) if self.outputs is None else self.outputs(x, batch)
        for stage in self.calibrate:
            outputs = outputs if stage.revise is None else stage.revise(x, outputs)
        return outputs

    def _fitting(self, number: int) -> Assign:
        """The assignment that fits one calibration to the predictor so far."""
        stage, before = self.calibrate[number], replace(self, calibrate=self.calibrate[:number])

        def told(x: State, received: State, batch: Batch) -> Tensor:
            return before.predicted(x, batch)

        @wraps(stage.fit)
        def fit(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
            batch = visit.examples[stage.split]
            outputs = before.predicted(x, replace(batch, own=visit.examples)) if self.reads else batch.input
            return {stage.slot: stage.fit(x, outputs, replace(batch, inputs=outputs.flatten(1)[:, :0]))}

        splits = tuple(dict.fromkeys((stage.split, *self.reads)))
        return Assign((stage.slot,), fit, reads=splits, through=None if self.reads else told)
