"""Rounds in simulated time: every round waits for the slowest client that counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.errors import PluresError
from plures.hardware import DAY, FLEETS, Fleet, FleetRule
from plures.method import Bound, Setting
from plures.run.participation import PARTICIPATIONS, DropOut, Full, Participation, Poisson, Sample
from plures.run.randomness import name_key, unit
from plures.run.selection import SELECTIONS, Selection, drawn
from plures.run.turn import OUTCOMES, Load, Memory, Numbers, Occasion, Turn
from plures.signature import checked

ATTEMPTS = 10_000
"""Most times that a round asks, before its fleet is found to be unable to finish it."""
AGAIN = 1 << 32
"""Distance between the numbers of the draws of a round that asks again."""
Places = NDArray[np.int64]
"""Positions of clients."""
SELECTION = "selection:"
"""Prefix of what a selection remembers."""


@checked
@dataclass(frozen=True)
class Clocked:
    """Rounds that wait for clients whose devices are known, or are chosen by what is known about clients.

    At the start of a round the server asks clients that are available and have the memory for the work. A visit takes
    the time to receive, compute and send. The round ends when the clients that it needs have sent, at the deadline, or
    when nobody that was asked is left. What a client did in vain costs energy, too. If nobody's work counts, the server
    asks again, and the time and the energy are this round's. If nobody is available it waits.

    Attributes:
        rule: who is drawn, and how many: a round needs as many as the rule draws without a clock.
        devices: the clients' devices; ``None`` for a simulation without a clock, in which only ``select`` matters.
        select: how clients are chosen; default: the rule draws them.
        deadline: seconds after which a round does not wait any longer; ``None`` for no deadline.
        late: what becomes of clients that are too slow for the deadline: ``drop`` leaves them out, with ``partial``
            each does as many of its steps as it has time for (Li et al. 2020, FedProx; ``fednova`` weights such work).
        over_select: how many times as many clients are asked as the round needs, so that it need not wait for the last
            (Bonawitz et al. 2019, section 9: 1.3).

    Examples:
        >>> rule = plures.run.Clocked(plures.Full(), plures.hardware.Hospitals(), deadline=60.0)
        >>> heart = plures.load("heart")
        >>> fedavg, training = plures.METHODS["fedavg"](), plures.Training(rounds=2)
        >>> run = plures.Run(heart, plures.default_model(heart), fedavg, training, participation=rule)
        >>> [record.hours < 1 / 60 for record in run.rounds()]
        [True, True]
    """

    rule: Annotated[Participation, PARTICIPATIONS]
    devices: Annotated[FleetRule | None, FLEETS] = None
    select: Annotated[Selection | None, SELECTIONS] = None
    deadline: float | None = None
    late: Literal["drop", "partial"] = "drop"
    over_select: float = 1.0

    stale = False

    def __post_init__(self) -> None:
        if self.devices is None and self.select is None:
            raise PluresError("a clock needs devices: name a fleet, such as plures.hardware.Phones()")
        if self.devices is None and (self.deadline is not None or self.over_select != 1 or self.late != "drop"):
            raise PluresError("deadline, late and over_select need devices: name a fleet, such as fleet='phones'")
        if self.deadline is not None and not self.deadline > 0:
            raise PluresError(f"deadline={self.deadline}: give a number of seconds above 0")
        if self.late == "partial" and self.deadline is None:
            raise PluresError("late='partial' is used with a deadline alone: give one, or leave it out")
        if not 1 <= self.over_select < np.inf:
            raise PluresError(f"over_select={self.over_select}: give a number from 1, such as 1.3")
        if isinstance(self.rule, DropOut | Poisson):
            raise PluresError(
                f"{type(self.rule).__name__} says who comes by chance, and here the devices do, or what is known about "
                "the clients: use participation='full', 'uniform' or 'size', without drop_out"
            )
        drawing = isinstance(self.rule, Sample)
        if self.select is not None and not drawing:
            raise PluresError(
                f"a selection chooses a part of the clients, and {type(self.rule).__name__} says itself who takes "
                "part: use participation='uniform' or 'size' with a fraction"
            )
        if self.over_select > 1 and not drawing:
            raise PluresError(
                f"over_select={self.over_select:g} asks more clients than a round needs, and "
                f"{type(self.rule).__name__} says itself who is asked: use participation='uniform' or 'size'"
            )

    @property
    def utility(self) -> bool:
        return self.select is not None and self.select.utility

    def alone(self) -> Participation:
        """The rule for a method that sends nothing: nobody waits for a server, and every client trains by itself."""
        return Full() if self.devices is None else Clocked(Full(), Alone(self.devices))

    def cohort(self, setting: Setting, seed: int, round: int) -> list[int]:
        return self.rule.cohort(setting, seed, round)

    def fleet(self, setting: Setting) -> Fleet | None:
        """The clients' devices."""
        return None if self.devices is None else self.devices.fleet(setting.clients, setting.metadata)

    def start(self, setting: Setting) -> Memory:
        return ledger(len(setting)) | chosen_memory(self.select, setting)

    def check(self, bound: Bound, known: Occasion) -> None:
        refuse(bound, "a round in which clients are left out, or chosen, on the way")
        fleet = self.fleet(known.setting)
        if fleet is None:
            return
        seconds, fits = able(fleet, known)
        least = seconds if self.late == "drop" else _shortest(fleet, known.load())
        longest = np.where(fleet.stays >= DAY, np.inf, fleet.stays)
        limit = np.inf if self.deadline is None else self.deadline
        if not (fits & (least <= np.minimum(limit, longest))).any():
            first = int(np.argmin(np.where(fits, least, np.inf)))
            stays = "" if (least[first] <= longest[first]) else f" and {longest[first]:.4g} of being available"
            raise PluresError(
                f"no client can be done in a round: {fleet.clients[first]!r} is the first, after {least[first]:.4g} "
                f"seconds of work, with {limit:g} until the deadline{stays}: allow more, or take a smaller network"
            )

    def turn(self, memory: Memory, known: Occasion) -> tuple[Turn, Memory]:
        fleet = self.fleet(known.setting)
        needs = self.rule.cohort(known.setting, known.seed, known.round)
        if fleet is None:
            assert self.select is not None
            everybody, still = list(range(len(known.setting))), np.zeros(len(known.setting))
            clients = self._asked(memory, known, everybody, len(needs), still, needs, known.round)
            return Turn(sorted(clients)), memory
        seconds, fits = able(fleet, known)
        book, left = Ledger(memory), dict[str, str]()
        before, spent = book.now, float(memory["joules"].sum())
        for attempt in range(ATTEMPTS):
            number = known.round + attempt * AGAIN
            needs = self.rule.cohort(known.setting, known.seed, known.round)
            could = fits.copy()
            if not isinstance(self.rule, Sample):
                could &= np.isin(np.arange(len(fleet)), needs)
            if not could.any():
                names = ", ".join(repr(known.setting.clients[i]) for i in needs[:3])
                raise PluresError(
                    f"round {known.round + 1}: no device of its clients ({names}) has the memory to train"
                )
            book.now += float(fleet.waits(book.now)[could].min())
            here = np.flatnonzero(could & (fleet.waits(book.now) == 0)).tolist()
            asked = self._asked(memory, known, here, len(needs), seconds, needs, number)
            clients, efforts, reasons = self._round(fleet, seconds, known, asked, len(needs), number, book)
            left |= reasons
            if clients:
                mine = {known.setting.clients[i] for i in clients}
                left = {name: reason for name, reason in left.items() if name not in mine}
                joules = float(book.memory["joules"].sum()) - spent
                return Turn(clients, left, efforts, hours=(book.now - before) / 3600, joules=joules), book.closed()
        raise PluresError(
            f"round {known.round + 1}: the server asked {ATTEMPTS:,} times, and no client was done: give a longer "
            "deadline, or devices that fail less and stay longer"
        )

    def learned(self, memory: Memory, turn: Turn, useful: Tensor | None) -> Memory:
        return memory if self.select is None else own_learned(self.select, memory, turn, useful)

    def _asked(
        self,
        memory: Memory,
        known: Occasion,
        here: list[int],
        wanted: int,
        seconds: Numbers,
        need: list[int],
        number: int,
    ) -> list[int]:
        """Whom the server asks, of those that are there."""
        if not isinstance(self.rule, Sample):
            return sorted({*here} & {*need})
        count = min(len(here), int(np.ceil(wanted * self.over_select - 1e-9)))
        if self.select is None:
            return drawn(self.rule, known, here, count, number)
        return sorted(self.select.chosen(own_memory(memory), known, self.rule, here, count, seconds, number))

    def _round(
        self,
        fleet: Fleet,
        seconds: Numbers,
        known: Occasion,
        asked: list[int],
        wanted: int,
        number: int,
        book: Ledger,
    ) -> tuple[list[int], dict[int, float], dict[str, str]]:
        """Who counts, which share of its work each did, and why the others do not; the book is changed."""
        load = known.load()
        who = np.array(asked, dtype=np.int64)
        efforts = np.ones(len(who))
        full = seconds[who]
        if self.deadline is not None and self.late == "partial":
            efforts, full = _partly(fleet, load, who, self.deadline)
        lasts, gone = visits(fleet, known, who, full, book.now, number)
        limit = np.inf if self.deadline is None else self.deadline
        late = (lasts > limit) & (gone > limit)
        done = ~late & (lasts <= gone)
        order = np.lexsort((who, lasts))
        first = [place for place in order.tolist() if done[place]][:wanted]
        ends = max((float(min(lasts[i], gone[i], limit)) for i in range(len(who))), default=0.0)
        if len(first) == wanted:
            ends = float(lasts[first[-1]])
        counts = np.zeros(len(who), dtype=bool)
        counts[first] = True
        outcome = np.where(counts, 0, np.where(done, 3, np.where(late, 1, 2)))
        outcome = np.where((outcome == 2) & (gone > ends), 3, np.where((outcome == 1) & (ends < limit), 3, outcome))
        worked = np.minimum(np.minimum(lasts, gone), ends)
        book.note(fleet, load, who, efforts, worked, outcome)
        book.now += ends
        reasons = {
            known.setting.clients[client]: _reason(OUTCOMES[kind], self.deadline, full[place])
            for place, (client, kind) in enumerate(zip(asked, outcome.tolist(), strict=True))
            if kind
        }
        clients = sorted(int(who[i]) for i in first)
        shares = {int(who[i]): float(efforts[i]) for i in first if efforts[i] < 1}
        return clients, shares, reasons


@dataclass(frozen=True)
class Alone:
    """The devices of another fleet without its hours and failures: clients that train by themselves.

    Attributes:
        devices: the fleet.
    """

    devices: FleetRule

    def fleet(self, clients: Sequence[str], metadata: Mapping[str, Sequence[object]]) -> Fleet:
        found = self.devices.fleet(clients, metadata)
        return replace(found, stays=np.full(len(found), DAY), failure=np.zeros(len(found)))


def refuse(bound: Bound, what: str) -> None:
    """Refuse methods for which it must be known beforehand who takes part."""
    if bound.line.summed:
        raise PluresError(f"{what}, has no place in a secure sum, whose members are agreed on before it: leave one out")


def ledger(clients: int) -> dict[str, Tensor]:
    """What a clock remembers: the time, what became of each client, and what its device spent."""
    numbers = {name: torch.zeros(clients, dtype=torch.float64) for name in ("seconds", "joules")}
    counts = {"outcomes": torch.zeros(len(OUTCOMES), clients, dtype=torch.int64)}
    return {"now": torch.zeros((), dtype=torch.float64), **numbers, **counts}


def chosen_memory(select: Selection | None, setting: Setting) -> dict[str, Tensor]:
    """What a selection remembers at the start, by the names under which a rule keeps it."""
    found = {} if select is None else select.start(setting)
    return {f"{SELECTION}{name}": t for name, t in found.items()}


def own_memory(memory: Memory) -> dict[str, Tensor]:
    """What a selection remembers."""
    return {name.removeprefix(SELECTION): t for name, t in memory.items() if name.startswith(SELECTION)}


def own_learned(select: Selection, memory: Memory, turn: Turn, useful: Tensor | None) -> Memory:
    """What a rule remembers after a round, with what its selection has learned."""
    found = select.learned(own_memory(memory), turn, useful)
    return {**memory, **{f"{SELECTION}{name}": t for name, t in found.items()}}


class Ledger:
    """The time, and what devices did so far, while a round is computed."""

    def __init__(self, memory: Memory) -> None:
        self.memory = {name: t.clone() for name, t in memory.items()}
        self.now = float(memory["now"])

    def note(self, fleet: Fleet, load: Load, who: Places, efforts: Numbers, worked: Numbers, outcome: Places) -> None:
        """Add visits: what became of each, and the seconds that it took."""
        joules = energy(fleet, load, who, efforts, worked)
        self.memory["seconds"][who] += torch.from_numpy(worked)
        self.memory["joules"][who] += torch.from_numpy(joules)
        self.memory["outcomes"][torch.from_numpy(outcome), torch.from_numpy(who)] += 1

    def closed(self) -> dict[str, Tensor]:
        return {**self.memory, "now": torch.tensor(self.now, dtype=torch.float64)}


def able(fleet: Fleet, known: Occasion) -> tuple[Numbers, NDArray[np.bool_]]:
    """Seconds of every client's whole visit, and which devices have the memory for it.

    Raises:
        PluresError: if none has.
    """
    load = known.load()
    blind = (load.steps > 0) & (load.flops == 0)
    if blind.any():
        raise PluresError(
            "fleet: the operations of this network cannot be counted (no matrix product or convolution is seen), so "
            "there is no time to compute"
        )
    fits = load.memory <= fleet.memory
    if not fits.any():
        best = int(np.argmax(fleet.memory - load.memory))
        raise PluresError(
            f"fleet: no device has the memory to train: {fleet.clients[best]!r} has {fleet.memory[best]:,.0f} bytes, "
            f"and needs {load.memory[best]:,.0f}: take a smaller network or smaller batches"
        )
    return load.down / fleet.down + load.flops / fleet.speed + load.up / fleet.up, fits


def visits(
    fleet: Fleet, known: Occasion, who: Places, full: Numbers, now: float, number: int
) -> tuple[Numbers, Numbers]:
    """For each client that begins a visit: seconds until it is done, and until its device fails or goes away."""
    keys = np.array([name_key(known.setting.clients[i]) for i in who.tolist()], dtype=np.uint64)
    fails = unit(known.seed, name_key("device fails"), number, keys) < fleet.failure[who]
    when = unit(known.seed, name_key("device fails at"), number, keys) * full
    return full, np.minimum(fleet.leaves(now)[who], np.where(fails, when, np.inf))


def energy(fleet: Fleet, load: Load, who: Places, efforts: Numbers, worked: Numbers) -> Numbers:
    """Joules of visits that stopped after some seconds: of receiving, then of computing, then of sending."""
    spent, left = np.zeros(len(who)), worked.copy()
    parts = (
        (load.down[who] / fleet.down[who], load.down[who] * fleet.receive_energy[who]),
        (efforts * load.flops[who] / fleet.speed[who], efforts * load.flops[who] * fleet.compute_energy[who]),
        (load.up[who] / fleet.up[who], load.up[who] * fleet.send_energy[who]),
    )
    for seconds, joules in parts:
        share = np.where(seconds > 0, np.minimum(left / np.where(seconds > 0, seconds, 1.0), 1.0), 1.0)
        share = np.where(np.abs(share - 1) < 1e-12, 1.0, np.maximum(share, 0.0))
        spent += share * joules
        left = np.maximum(left - seconds, 0.0)
    return np.asarray(spent)


def _shortest(fleet: Fleet, load: Load) -> Numbers:
    """Seconds of the shortest visit of each client that does some work: one step."""
    one = load.flops / np.maximum(load.steps, 1) / fleet.speed
    return np.asarray(load.down / fleet.down + one + load.up / fleet.up)


def _partly(fleet: Fleet, load: Load, who: Places, deadline: float) -> tuple[Numbers, Numbers]:
    """The share of its steps that each client has time for, and the seconds of that visit."""
    network = load.down[who] / fleet.down[who] + load.up[who] / fleet.up[who]
    compute, steps = load.flops[who] / fleet.speed[who], np.maximum(load.steps[who], 1)
    time = np.maximum(deadline - network, 0.0)
    possible = np.floor(np.where(compute > 0, time / np.where(compute > 0, compute, 1.0), 1.0) * steps + 1e-9)
    efforts = np.clip(possible, 1, steps) / steps
    return np.asarray(efforts), np.asarray(network + efforts * compute)


def _reason(outcome: str, deadline: float | None, seconds: float) -> str:
    """Why a client does not count."""
    if outcome == "late":
        return f"it takes {seconds:.4g} seconds, and the deadline is after {deadline:g}"
    return {"dropped": "its device failed or went away", "surplus": "enough others were done before it"}[outcome]
