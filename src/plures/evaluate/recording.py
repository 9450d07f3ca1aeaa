"""A run whose rounds another run repeats, because its method trains in the same way and only predicts in another."""

from __future__ import annotations

from plures.evaluate.callback import Callback
from plures.evaluate.results import Point
from plures.evaluate.spec import RunSpec
from plures.run import Run
from plures.run.checkpoint import Snapshot, restore, snapshot
from plures.run.coordinator import RoundRecord

MOST = 1 << 28
"""Bytes of states that a recording may take; a longer one is given up, and the methods train themselves."""


class Recording(Callback):
    """The rounds of a run, and its state wherever validation data were read.

    Args:
        run: the run, before its first round. The recording must be among the callbacks of its fit.
        spec: its settings.
    """

    def __init__(self, run: Run, spec: RunSpec) -> None:
        self.run, self.spec = run, spec
        self._records: list[RoundRecord] = []
        self._states: dict[int, Snapshot] = {}
        self._bytes = 0

    def on_round(self, record: RoundRecord) -> None:
        self._records.append(record)

    def on_point(self, point: Point) -> None:
        state = snapshot(self.run)
        self._bytes += sum(tensor.nbytes for tensor in state.values())
        if self._bytes > MOST:
            self._states.clear()
        else:
            self._states[point.round] = state

    def serves(self, spec: RunSpec) -> bool:
        """Whether a run with these settings trains in the same way, given that its method does."""
        own = ("method", "parameters")
        return self.whole and spec.model_dump(exclude={*own}) == self.spec.model_dump(exclude={*own})

    @property
    def whole(self) -> bool:
        """Whether every round is there from the first one, as it is not after resuming, and no state was too large."""
        known = [record.round for record in self._records]
        return self._bytes <= MOST and known == list(range(1, len(known) + 1)) and bool(self._states)

    def step(self, run: Run) -> RoundRecord:
        """Bring another run one round further, to the state of this one if it is kept.

        Between two readings nobody asks for a run's state, so only its number of rounds changes there. Where this run
        ended early, the other one trains on.
        """
        if run.round >= len(self._records):
            return run.step()
        record = self._records[run.round]
        if record.round in self._states:
            restore(run, self._states[record.round])
        else:
            run.round = record.round
        return record
