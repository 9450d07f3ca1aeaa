"""The base of all trackers: open a run, write values for a round, close it."""

from __future__ import annotations

from collections.abc import Mapping

from plures.errors import PluresError
from plures.evaluate.callback import About, Callback, Value
from plures.evaluate.results import Point, SeedResult
from plures.run.coordinator import RoundRecord
from plures.track import names

Settings = Mapping[str, Value]


class Tracker(Callback):
    """Writes a run's numbers to a tracking tool. One tracker may write many runs in sequence.

    Subclasses define how a run is opened, written and closed; the names are those of
    :mod:`plures.track.names`.

    Args:
        clients: number of clients written individually, the first ones of the federation; 0 for none.
    """

    def __init__(self, clients: int = names.CLIENTS) -> None:
        if clients < 0:
            raise PluresError(f"clients={clients}: give the number of clients to write individually, 0 for none")
        self.most = clients
        self.single: list[str] = []

    def open(self, about: About, settings: Settings) -> None:
        """Begin a run, or resume one (``about.done`` rounds are already written).

        Args:
            about: description of the run.
            settings: its settings, by plain names.
        """
        raise NotImplementedError

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write values for a round."""
        raise NotImplementedError

    def close(self, status: str) -> None:
        """End the run: ``finished``, ``stopped`` (Ctrl-C) or ``failed``."""
        raise NotImplementedError

    def on_start(self, about: About) -> None:
        self.metric = about.metric
        self.single = names.plain(about.clients[: self.most])
        self.open(about, names.settings(about))

    def on_round(self, record: RoundRecord) -> None:
        self.write(names.of_round(record), record.round)

    def on_point(self, point: Point) -> None:
        self.write(names.of_point(point, self.metric, self.single), point.round)

    def on_end(self, result: SeedResult | None) -> None:
        if result is not None:
            self.write(names.of_result(result, self.metric), result.chosen_round)
        self.close("finished")

    def on_stop(self, reason: BaseException) -> None:
        self.close("stopped" if isinstance(reason, KeyboardInterrupt) else "failed")
