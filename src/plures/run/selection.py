"""Which of the clients that could take part are asked, by what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.errors import PluresError
from plures.method import Setting
from plures.run.participation import Sample
from plures.run.randomness import fold, name_key
from plures.run.turn import Memory, Numbers, Occasion, Turn
from plures.signature import checked

SELECTIONS = "a selection, such as PowerOfChoice(20) or Oort()"
"""The expected type, as messages describe it."""


@runtime_checkable
class Selection(Protocol):
    """Chooses the clients of a round.

    Attributes:
        utility: whether it wants to know how useful each client's examples were (:meth:`learned`).
    """

    @property
    def utility(self) -> bool: ...

    def start(self, setting: Setting) -> Memory:
        """What it remembers before the first round."""

    def chosen(
        self, memory: Memory, known: Occasion, rule: Sample, among: list[int], number: int, seconds: Numbers, draw: int
    ) -> list[int]:
        """Positions of the clients that are asked, in any order.

        Args:
            memory: what it remembers.
            known: what it may know.
            rule: how clients are drawn where nothing is known about them.
            among: positions of the clients that could take part, in increasing order.
            number: of clients to choose, at most as many as there are.
            seconds: ``(clients,)`` simulated time of a visit of each client of the federation; zeros without a clock.
            draw: number of this draw: that of the round, unless the round asks again.
        """

    def learned(self, memory: Memory, turn: Turn, useful: Tensor | None) -> Memory:
        """What it remembers after a round."""


def drawn(rule: Sample, known: Occasion, among: list[int], number: int, draw: int) -> list[int]:
    """Some of the clients, as a rule draws them; those of the rule itself, if it may draw from all."""
    generator = np.random.default_rng(int(fold(known.seed, name_key("cohort"), draw)))
    whole = len(among) == len(known.setting)
    setting = known.setting if whole else known.setting.take(among)
    return sorted(among[i] for i in rule.draw(setting, number, generator))


@checked
@dataclass(frozen=True)
class PowerOfChoice:
    """Power-of-choice (Cho, Wang, Joshi 2020, section 3, ``pow-d``).

    ``candidates`` clients are drawn by the participation rule; they measure the loss of the model on their training
    examples, and those with the highest losses take part. The paper draws candidates by their share of the examples
    (``participation="size"``). With as many candidates as a round needs, this is the rule alone.

    Attributes:
        candidates: number of clients that measure, the paper's ``d``.

    Examples:
        >>> plures.run.PowerOfChoice(4).candidates
        4
    """

    candidates: int

    utility = False

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise PluresError(f"power_of_choice: candidates={self.candidates}: give at least 1")

    def start(self, setting: Setting) -> Memory:
        return {}

    def chosen(
        self, memory: Memory, known: Occasion, rule: Sample, among: list[int], number: int, seconds: Numbers, draw: int
    ) -> list[int]:
        candidates = drawn(rule, known, among, min(max(self.candidates, number), len(among)), draw)
        if len(candidates) <= number:
            return candidates
        losses = torch.nan_to_num(known.losses(candidates).double().cpu(), nan=torch.inf)
        order = losses.argsort(descending=True, stable=True)[:number]
        return [candidates[i] for i in order.tolist()]

    def learned(self, memory: Memory, turn: Turn, useful: Tensor | None) -> Memory:
        return memory


@checked
@dataclass(frozen=True)
class Oort:
    """Guided selection of participants (Lai, Zhu, Madhyastha, Chowdhury 2021, OSDI, equation 1 and algorithm 1).

    A client that took part has the utility ``|B| sqrt(mean loss^2)``, over its examples ``B``, times ``(T/t)^alpha`` if
    its visit takes longer (``t``) than the preferred duration ``T``. It grows with the time since it last took part, by
    ``sqrt(0.1 ln R / L)``, where ``R`` is the number of this round and ``L`` that in which it last took part. Of a
    round, ``1 - epsilon`` are drawn among those whose utility is at least ``cutoff`` times that of the last of the best
    ones, with chances in proportion to it; the others among clients that never took part, the fast ones more often.

    What the paper leaves open: the uncertainty is added to a utility in units of losses times examples, as printed.
    Utilities above the 95th percentile are cut to it. ``T`` begins as the ``pace`` quantile of the visits' durations,
    and rises by as much of them whenever the utility of the last ``window`` rounds is below that of those before. The
    loss is that of the model which the client received.

    Attributes:
        exploration: share of a round, ``epsilon``, that explores at first.
        decay: factor of that share from one round to the next.
        least: the share does not fall below this.
        penalty: ``alpha``.
        window: rounds between changes of the preferred duration.
        pace: quantile of the durations that the preferred one starts with, and the step by which it rises.
        cutoff: share of the utility of the last of the best that others must have.
        times: a client is no longer chosen by its utility after it has taken part so many times.

    Examples:
        >>> plures.run.Oort(penalty=0.5).penalty
        0.5
    """

    exploration: float = 0.9
    decay: float = 0.98
    least: float = 0.2
    penalty: float = 2.0
    window: int = 20
    pace: float = 0.1
    cutoff: float = 0.95
    times: int = 10

    utility = True

    def __post_init__(self) -> None:
        for name in ("exploration", "decay", "least", "pace", "cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise PluresError(f"oort: {name}={getattr(self, name)}: give a number from 0 to 1")
        if self.penalty < 0 or self.window < 1 or self.times < 1:
            raise PluresError("oort: give a penalty of 0 or more, and a window and times of at least 1")

    def start(self, setting: Setting) -> Memory:
        clients = len(setting)
        return {
            "useful": torch.full((clients,), torch.nan, dtype=torch.float64),
            "last": torch.zeros(clients, dtype=torch.int64),
            "times": torch.zeros(clients, dtype=torch.int64),
            "gained": torch.zeros(0, dtype=torch.float64),
            "quantile": torch.tensor(self.pace, dtype=torch.float64),
        }

    def utilities(self, memory: Mapping[str, Tensor], round: int, seconds: Numbers, preferred: float) -> Numbers:
        """Utility of every client, ``(clients,)``; NaN for those that never took part.

        Args:
            memory: what is remembered.
            round: number of rounds finished.
            seconds: ``(clients,)`` duration of a visit.
            preferred: the preferred duration.
        """
        useful = memory["useful"].numpy()
        known = useful[~np.isnan(useful)]
        top = np.quantile(known, 0.95) if len(known) else np.inf
        last = np.maximum(memory["last"].numpy(), 1)
        value = np.minimum(useful, top) + np.sqrt(0.1 * np.log(round + 1) / last)
        slow = seconds > preferred
        return np.asarray(np.where(slow, value * (preferred / np.where(slow, seconds, 1.0)) ** self.penalty, value))

    def preferred(self, memory: Mapping[str, Tensor], seconds: Numbers) -> float:
        """The preferred duration of a round."""
        return float(np.quantile(seconds, min(1.0, float(memory["quantile"]))))

    def chosen(
        self, memory: Memory, known: Occasion, rule: Sample, among: list[int], number: int, seconds: Numbers, draw: int
    ) -> list[int]:
        generator = np.random.default_rng(int(fold(known.seed, name_key("oort"), draw)))
        able = np.array(among, dtype=np.int64)
        number = min(number, len(able))
        value = self.utilities(memory, known.round, seconds, self.preferred(memory, seconds))[able]
        seen = ~np.isnan(value)
        usable = seen & (memory["times"].numpy()[able] < self.times)
        share = max(self.least, self.exploration * self.decay**known.round)
        fresh = min(int((~seen).sum()), round(share * number))
        best = min(int(usable.sum()), number - fresh)
        picked: list[int] = []
        if best:
            ranked = np.sort(value[usable])[::-1]
            good = np.flatnonzero(usable & (value >= self.cutoff * ranked[best - 1]))
            picked += _weighted(generator, good, value[good], best)
        unseen = np.flatnonzero(~seen)
        if fresh:
            picked += _weighted(generator, unseen, 1 / np.maximum(seconds[able[unseen]], 1e-9), fresh)
        left = np.setdiff1d(np.arange(len(able)), picked)
        if len(picked) < number:
            picked += generator.permutation(left)[: number - len(picked)].tolist()
        return [int(able[i]) for i in picked]

    def learned(self, memory: Memory, turn: Turn, useful: Tensor | None) -> Memory:
        assert useful is not None
        new = {name: t.clone() for name, t in memory.items()}
        new["useful"][turn.clients] = torch.nan_to_num(useful.double().cpu(), nan=0.0, posinf=0.0)
        new["last"][turn.clients] = len(memory["gained"]) + 1
        new["times"][turn.clients] += 1
        gained = torch.cat([memory["gained"], new["useful"][turn.clients].sum().reshape(1)])
        new["gained"] = gained
        if len(gained) % self.window == 0 and len(gained) >= 2 * self.window:
            before, lately = gained[-2 * self.window : -self.window].sum(), gained[-self.window :].sum()
            if before > lately:
                new["quantile"] = new["quantile"] + self.pace
        return new


def _weighted(generator: np.random.Generator, items: NDArray[np.int64], weights: Numbers, number: int) -> list[int]:
    """Different items, one drawn after the other with chances in proportion to their weights."""
    weights = np.maximum(weights, 0.0)
    weights = weights / weights.max() if weights.max() > 0 else np.ones(len(weights))
    weights = np.maximum(weights, 1e-12)
    found: list[int] = generator.choice(
        items, min(number, len(items)), replace=False, p=weights / weights.sum()
    ).tolist()
    return found


SELECTED: Mapping[str, Callable[..., Selection]] = {"power_of_choice": PowerOfChoice, "oort": Oort}
"""Selections by name."""
