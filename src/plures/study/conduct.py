"""One process working on a study: claims units, runs them, sends heartbeats."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from plures.content import by_content
from plures.errors import PluresError, PluresWarning
from plures.evaluate.callback import Callback
from plures.files import discard, full
from plures.study.cells import load_cell
from plures.study.plan import Plan, Unit
from plures.study.store import LostError, Store
from plures.study.work import Workspace
from plures.version import __version__

MAX_NAMED = 5
"""Most damaged results that a warning names."""
POLL_SECONDS = 0.2
"""Seconds between polls for work while others finish the rest."""


@by_content
@dataclass(frozen=True)
class Event:
    """An event of a process.

    Attributes:
        what: ``started``, ``going`` (after a round), ``done``, ``failed``, ``lost`` (another process took over the
            unit) or ``waiting`` (other processes finish the rest).
        unit: which unit; ``None`` while waiting.
        round: rounds done.
        rounds: of how many.
        validation: last validation value.
        message: why it failed.
    """

    what: Literal["started", "going", "done", "failed", "lost", "waiting"]
    unit: Unit | None = None
    round: int = 0
    rounds: int = 0
    validation: float = float("nan")
    message: str = ""


Watch = Callable[[Event], None]


class Heart:
    """Sends heartbeats from its own thread, over its own connection.

    Attributes:
        unit: the unit that the process holds.
        doing: its progress, for other processes' views.
        lost: the unit that another process took over, if any.
    """

    def __init__(self, store: Store, owner: str, lease: float) -> None:
        self.folder, self.owner, self.lease = store.folder, owner, lease
        self.unit: str | None = None
        self.doing = ""
        self.lost: str | None = None
        self._over, self._thread = threading.Event(), threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def hold(self, unit: str | None) -> None:
        """Set the unit that the process holds."""
        self.unit, self.doing = unit, ""

    def _beat(self) -> None:
        with suppress(PluresError), closing(Store(self.folder, checked=False)) as store:
            while not self._over.wait(min(1.0, self.lease / 4)):
                held = self.unit
                with suppress(PluresError):  # a full disk; the other thread's writes report it
                    if not store.beat(self.owner, held, self.lease, self.doing):
                        self.lost = held


def begin(plan: Plan, store: Store) -> None:
    """Register a study in its database, and reopen failed or damaged units; a warning names the damaged ones.

    Raises:
        PluresError: if another version of plures has results there, or if the data of a finished cell no longer match
            its results; other cells are checked when they are worked on.
    """
    source = plan.source
    store.insist(__version__)
    damaged = store.mend((*plan.measures, *plan.units))
    if damaged:
        more = f" and {len(damaged) - MAX_NAMED} more" if len(damaged) > MAX_NAMED else ""
        warnings.warn(
            f"{store.file} is damaged: {'; '.join(damaged[:MAX_NAMED])}{more} is recomputed",
            PluresWarning,
            stacklevel=2,
        )
    store.reopen((*plan.measures, *plan.units))
    store.describe(source.text, source.file, str(source.folder.resolve()), plan.search, __version__)
    for cell in plan.cells:
        units = [unit for unit in (*plan.measures, *plan.units) if unit.cell is cell]
        if store.cell(cell.key) is not None and not store.unfinished(units):
            store.check_cell(cell, load_cell(source, cell).fingerprint)


def conduct(
    plan: Plan,
    store: Store,
    units: Sequence[Unit],
    watch: Watch,
    callbacks: Sequence[Callback] = (),
    ray: str | None = None,
) -> None:
    """Run all unclaimed units, and wait for those that others run.

    Failures are recorded with their reasons, and the rest continues. Callbacks are called for every final run.
    Rounds are spread over a Ray cluster if there is one (``Execution(ray=...)``); default: the one that the study
    names.

    Raises:
        PluresError: if the disk is full, which ends the study until there is room.
        KeyboardInterrupt: after the round in which Ctrl-C was pressed; progress is kept.
    """
    lease = plan.source.document.execution.lease
    owner = store.enter()
    workspace = Workspace(plan, store, owner, callbacks, ray or plan.source.document.execution.ray)
    try:
        with Heart(store, owner, lease) as heart:
            while store.unfinished(units):
                unit = store.claim(units, owner, lease)
                if unit is None:
                    watch(Event("waiting"))
                    time.sleep(POLL_SECONDS)
                    continue
                heart.hold(unit.id)
                watch(_one(workspace, heart, unit, watch))
                heart.hold(None)
    finally:
        with suppress(PluresError):  # on a full disk; its claims are released when this process ends
            store.leave(owner)


def _one(workspace: Workspace, heart: Heart, unit: Unit, watch: Watch) -> Event:
    """Run one unit; returns how it ended."""
    watch(Event("started", unit))
    begun = time.perf_counter()

    def tell(round: int, rounds: int, validation: float) -> None:
        if heart.lost == unit.id and not workspace.store.holds(unit, workspace.owner):
            raise LostError(unit.name)
        heart.doing = f"{round}/{rounds}" if unit.kind == "seed" else f"trial {-(-round // rounds)}"
        watch(Event("going", unit, round, rounds, validation))

    try:
        result = workspace.do(unit, tell)
        workspace.store.finish(unit, workspace.owner, result, time.perf_counter() - begun)
    except LostError:
        return Event("lost", unit)
    except Exception as error:  # one method's fault must not end a study of many; it is reported at the end
        if full(error):
            reason = f"{error}: free some space and give the same command again"
            raise PluresError(f"{unit.name}: {error if isinstance(error, PluresError) else reason}") from error
        message = str(error) if isinstance(error, PluresError) else f"{type(error).__name__}: {error}"
        workspace.store.fail(unit, workspace.owner, message)
        return Event("failed", unit, message=message)
    discard(workspace.checkpoint(unit))
    return Event("done", unit)
