"""Buffered asynchronous aggregation: nobody waits for a round, and the server steps when enough clients have sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.errors import PluresError
from plures.hardware import FLEETS, Fleet, FleetRule
from plures.method import Bound, Setting, Shared, View
from plures.run.clock import (
    ATTEMPTS,
    Clocked,
    Ledger,
    able,
    chosen_memory,
    ledger,
    own_learned,
    own_memory,
    refuse,
    visits,
)
from plures.run.participation import PARTICIPATIONS, Full, Participation, Sample, Uniform
from plures.run.selection import SELECTIONS, Selection, drawn
from plures.run.turn import Load, Memory, Numbers, Occasion, Turn
from plures.signature import checked


@checked
@dataclass(frozen=True)
class Buffered:
    """FedBuff (Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba 2022, AISTATS, algorithm 1).

    As many clients as the rule draws are at work at any time. When one has sent, another begins, with the model of that
    moment. The server keeps the changes that arrive, and with the ``size``-th it takes a step: that is a round. The
    change of a client that began ``s`` rounds earlier counts ``(1 + s) ** -staleness`` times, and is added to the
    model as it is now: with uniform weights the step is the mean of the scaled changes, as in the paper.

    A client whose change waits for the step is not asked again before it, so no round has two changes of one client.
    With room for all clients, and all of them at work, this is a synchronous round, bit for bit.

    Attributes:
        rule: who is drawn, and how many clients work at the same time: as many as it draws for a round.
        devices: the clients' devices.
        size: number of changes in a step, the paper's ``K``.
        staleness: exponent of the staleness weight; 0.5 in the paper.
        select: how clients are chosen; default: the rule draws them.

    Examples:
        >>> rule = plures.run.Buffered(plures.Full(), plures.hardware.Hospitals(), size=2)
        >>> heart = plures.load("heart")
        >>> fedavg, training = plures.METHODS["fedavg"](), plures.Training(rounds=3)
        >>> run = plures.Run(heart, plures.default_model(heart), fedavg, training, participation=rule)
        >>> [len(record.cohort) for record in run.rounds()]
        [2, 2, 2]
    """

    rule: Annotated[Participation, PARTICIPATIONS]
    devices: Annotated[FleetRule, FLEETS]
    size: int
    staleness: float = 0.5
    select: Annotated[Selection | None, SELECTIONS] = None

    stale = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PluresError(f"buffer={self.size}: give at least 1 change")
        if not self.staleness >= 0:
            raise PluresError(f"staleness={self.staleness:g}: give an exponent from 0")
        if not isinstance(self.rule, Full | Sample):
            raise PluresError(
                f"buffered aggregation draws one client after the other, and {type(self.rule).__name__} draws whole "
                "cohorts: use participation='full', 'uniform' or 'size'"
            )

    @property
    def utility(self) -> bool:
        return self.select is not None and self.select.utility

    def alone(self) -> Participation:
        """The rule for a method that sends nothing, which has nothing to wait for."""
        return Clocked(Full(), self.devices).alone()

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        everybody = list(range(len(setting)))
        return everybody[: self.size] if isinstance(self.rule, Full) else self.rule.cohort(setting, seed, round)

    def fleet(self, setting: Setting) -> Fleet:
        """The clients' devices."""
        return self.devices.fleet(setting.clients, setting.metadata)

    def start(self, setting: Setting) -> Memory:
        nothing = torch.zeros(len(setting), dtype=torch.float64)
        begun = {"began": torch.full((len(setting),), -1), "asked": torch.tensor(0)}
        times = {"since": nothing, "done": nothing.clone(), "gone": nothing.clone()}
        return ledger(len(setting)) | begun | times | chosen_memory(self.select, setting)

    def check(self, bound: Bound, known: Occasion) -> None:
        refuse(bound, "a round of clients that begin at different times")
        if bound.down.stages:
            raise PluresError(
                "buffered aggregation and compressed downloads: what is sent builds on what clients received in the "
                "round before, and these begin at different times; leave one out"
            )
        for block in bound.blocks:
            named = f"buffered aggregation adds changes that began from earlier models, and {block.name!r} is"
            if isinstance(block.share, View):
                raise PluresError(f"{named} what clients see of the others' models in this round: leave the buffer out")
            if not block.share.served or not bound.travelling(block):
                continue
            if type(block.share) is not Shared:
                raise PluresError(
                    f"{named} {type(block.share).__name__}, which needs all uploads of one model: leave the buffer out"
                )
            if bound.travelling(block) and callable(bound.combine(block).weights):
                raise PluresError(f"{named} combined with weights of this round's cohort: leave the buffer out")
        _, fits = able(self.fleet(known.setting), known)
        if self.size > int(fits.sum()):
            raise PluresError(
                f"buffer={self.size}: only {int(fits.sum())} clients can send a change: take a smaller buffer"
            )

    def turn(self, memory: Memory, known: Occasion) -> tuple[Turn, Memory]:
        fleet = self.fleet(known.setting)
        seconds, fits = able(fleet, known)
        work = _Work(memory, fleet, known.load())
        before, spent = work.now, float(memory["joules"].sum())
        wide = len(self.rule.cohort(known.setting, known.seed, known.round))
        left: dict[str, str] = {}
        buffer: list[int] = []
        for _ in range(ATTEMPTS * self.size):
            while len(buffer) < self.size:
                idle = fits & (work.began < 0)
                idle[buffer] = False
                here = np.flatnonzero(idle & (fleet.waits(work.now) == 0))
                free = min(wide - int((work.began >= 0).sum()), len(here))
                if free <= 0:
                    break
                chosen = self._asked(memory, known, here.tolist(), free, seconds, work.asked)
                work.begin(np.array(chosen, dtype=np.int64), seconds, known)
            client = work.next(idle, wide)
            if client is None:
                continue
            if work.arrived(client):
                buffer.append(client)
            else:
                left[known.setting.clients[client]] = "its device failed or went away"
            if len(buffer) == self.size:
                break
        else:
            raise PluresError(
                f"round {known.round + 1}: no {self.size} clients were done in {ATTEMPTS * self.size:,} visits: take "
                "devices that fail less and stay longer, or a smaller buffer"
            )
        clients = sorted(buffer)
        begun = {client: int(work.versions[client]) for client in clients}
        stale = {client: version for client, version in begun.items() if version < known.round}
        turn = Turn(
            clients,
            {name: why for name, why in left.items() if known.setting.index(name) not in begun},
            versions=stale,
            scales={client: (1 + known.round - version) ** -self.staleness for client, version in stale.items()},
            needed=frozenset(int(version) for version in work.began if version >= 0),
            hours=(work.now - before) / 3600,
            joules=float(work.memory["joules"].sum()) - spent,
        )
        return turn, work.closed()

    def learned(self, memory: Memory, turn: Turn, useful: Tensor | None) -> Memory:
        return memory if self.select is None else own_learned(self.select, memory, turn, useful)

    def _asked(
        self, memory: Memory, known: Occasion, here: list[int], number: int, seconds: Numbers, draw: int
    ) -> list[int]:
        rule = self.rule if isinstance(self.rule, Sample) else Uniform(1.0)
        if self.select is None:
            return drawn(rule, known, here, number, draw)
        return sorted(self.select.chosen(own_memory(memory), known, rule, here, number, seconds, draw))


class _Work(Ledger):
    """Clients at work, while a round is computed.

    Args:
        memory: what is remembered.
        fleet: the devices.
        load: what a visit costs.

    Attributes:
        began: ``(clients,)`` number of rounds that were finished when a client began, -1 for those not at work.
        versions: the same of clients that have sent.
        asked: number of draws so far.
    """

    def __init__(self, memory: Memory, fleet: Fleet, load: Load) -> None:
        super().__init__(memory)
        self.fleet, self.load = fleet, load
        self.began = self.memory["began"].numpy()
        self.since, self.done, self.gone = (self.memory[name].numpy() for name in ("since", "done", "gone"))
        self.versions = self.began.copy()
        self.asked = int(memory["asked"])

    def begin(self, who: NDArray[np.int64], seconds: Numbers, known: Occasion) -> None:
        """Let some clients begin now."""
        full, gone = visits(self.fleet, known, who, seconds[who], self.now, self.asked)
        self.began[who], self.since[who] = known.round, self.now
        self.done[who], self.gone[who] = self.now + full, self.now + gone
        self.asked += 1

    def next(self, idle: NDArray[np.bool_], wide: int) -> int | None:
        """Go on to what comes next: the client that is done, or has failed; ``None`` if another became available."""
        busy = np.flatnonzero(self.began >= 0)
        ends = np.minimum(self.done, self.gone)[busy]
        first = float(ends.min()) if len(busy) else np.inf
        waits = self.fleet.waits(self.now)[idle] if len(busy) < wide else np.zeros(0)
        waits = waits[waits > 0]
        opens = self.now + float(waits.min()) if len(waits) else np.inf
        if opens < first:
            self.now = opens
            return None
        self.now = first
        return int(busy[int(np.argmin(ends))])

    def arrived(self, client: int) -> bool:
        """End a client's visit; whether its change arrived."""
        came = bool(self.done[client] <= self.gone[client])
        who = np.array([client])
        worked = np.array([self.now - self.since[client]])
        self.note(self.fleet, self.load, who, np.ones(1), worked, np.array([0 if came else 2]))
        self.versions[client], self.began[client] = self.began[client], -1
        return came

    def closed(self) -> dict[str, Tensor]:
        return {**super().closed(), "asked": torch.tensor(self.asked)}
