"""Callbacks: observers notified of a run's start, rounds, points and end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from plures.errors import PluresWarning
from plures.evaluate.results import Point, SeedResult
from plures.evaluate.scores import primary
from plures.metrics import Metric
from plures.run.coordinator import Coordinator, RoundRecord

Value = str | int | float | bool


@dataclass(frozen=True)
class About:
    """Description of a run, given to callbacks at its start.

    Attributes:
        name: the method with its parameters.
        stage: ``run``, ``tuning``, ``seed 0``, ...
        federation: name of the data.
        clients: names of the clients, in their order.
        metric: the metric by which rounds are chosen.
        rounds: rounds of the whole run.
        done: rounds finished earlier, if the run resumes from a checkpoint.
        settings: all settings, by dotted names; numbers, texts and booleans.
    """

    name: str
    stage: str
    federation: str
    clients: tuple[str, ...]
    metric: Metric
    rounds: int
    done: int = 0
    settings: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def of(
        cls, run: Coordinator[Any], name: str, stage: str = "run", settings: Mapping[str, Any] | None = None
    ) -> About:
        """The description of a run.

        Args:
            run: the run, in the state from which it continues.
            name: its name.
            stage: what it is done for.
            settings: its settings; default: those that the run itself knows.
        """
        known = {"method": name, "seed": run.seed, "participation": run.participation, **vars(run.training)}
        return cls(
            name=name,
            stage=stage,
            federation=run.federation.name,
            clients=tuple(run.federation.clients),
            metric=primary(run.federation),
            rounds=run.training.rounds,
            done=run.round,
            settings=flat(known if settings is None else settings),
        )

    @property
    def title(self) -> str:
        """Name and stage; unique among the runs of a comparison."""
        return self.name if self.stage == "run" else f"{self.name}, {self.stage}"


@runtime_checkable
class Callback(Protocol):
    """An observer of a run. Derive from it and override the methods that you need.

    One object may watch several runs, one after the other: each begins with ``on_start`` and ends with ``on_end`` or
    ``on_stop``. A callback cannot affect the run: an error in it is reported as a
    :class:`~plures.errors.PluresWarning` with its name, it is not called again in this run, and the run continues. To
    stop a run, raise :class:`KeyboardInterrupt` in ``on_round`` or ``on_point``: as with Ctrl-C, the round counts, the
    checkpoint is written, and the same command resumes from there.
    """

    def on_start(self, about: About) -> None:
        """Before the first round, or before the next one of a resumed run."""
        return

    def on_round(self, record: RoundRecord) -> None:
        """After each round, when its result is applied."""
        return

    def on_point(self, point: Point) -> None:
        """After validation data are read: after ``on_round`` of the same round, or a round later with real sites."""
        return

    def on_end(self, result: SeedResult | None) -> None:
        """When the run is finished: test scores at the round that validation chose; ``None`` for a trial of tuning."""
        return

    def on_stop(self, reason: BaseException) -> None:
        """When the run ends early: Ctrl-C, or an error."""
        return


class Callbacks(Callback):
    """Several callbacks as one. The errors of one reach neither the run nor the others.

    Args:
        callbacks: the callbacks, notified in this order.

    Attributes:
        asked: whether one of them asked to stop the run after this round.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks, self.asked = list(callbacks), False

    def on_start(self, about: About) -> None:
        self._tell("on_start", about)

    def on_round(self, record: RoundRecord) -> None:
        try:
            self._tell("on_round", record)
        except KeyboardInterrupt:
            self.asked = True

    def on_point(self, point: Point) -> None:
        try:
            self._tell("on_point", point)
        except KeyboardInterrupt:
            self.asked = True

    def on_end(self, result: SeedResult | None) -> None:
        self._tell("on_end", result)

    def on_stop(self, reason: BaseException) -> None:
        self._tell("on_stop", reason)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """A context that reports the error, if one ends it."""
        try:
            yield
        except BaseException as reason:
            self.on_stop(reason)
            raise

    def _tell(self, event: str, content: object) -> None:
        """Notify all callbacks, and only then raise what one of them raised to stop the run."""
        stop = None
        for callback in list(self.callbacks):
            try:
                getattr(callback, event)(content)
            except KeyboardInterrupt as asked:
                stop = asked
            except Exception as error:
                self.callbacks.remove(callback)
                warnings.warn(
                    f"callback {type(callback).__name__}: {event} failed ({type(error).__name__}: {error}); the run "
                    "continues without it",
                    PluresWarning,
                    stacklevel=4,
                )
        if stop is not None:
            raise stop


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Settings by dotted names: mappings are flattened, and values other than numbers and booleans become text.

    Values that are ``None`` or empty are left out.
    """
    found: dict[str, Value] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            found |= {name: ", ".join(map(str, value))} if value else {}
        elif value is not None:
            found[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
