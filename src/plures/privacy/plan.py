"""A private run as one object: who is drawn, what is bounded, where noise comes in, neighbours and accountant."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from plures.codecs import SecureSum
from plures.errors import PluresError
from plures.method import Assign, Bound, Combine, Leaves, Method, Relax, Shared, Start, State, Visit
from plures.method.wire import Wire
from plures.privacy.accountant import beside, calibrated, epsilon, gaussian, insist
from plures.privacy.adaptive import LEAF, SLOT, Geometric
from plures.privacy.correlated import roots, sensitivity, tree_sensitivity
from plures.privacy.distributed import worth
from plures.privacy.draws import Draws
from plures.privacy.local import counted_answers
from plures.privacy.stage import Private


@dataclass(frozen=True)
class Spent:
    """What a run has spent so far.

    Attributes:
        epsilon: of (epsilon, delta); infinite without noise, 0 if nothing has left the clients.
        delta: of (epsilon, delta).
        rounds: rounds that were run, whichever of them was chosen in the end.
        unit: whose presence is hidden: ``client``, with all its examples, or ``example``.
        neighbours: what may differ.
        accountant: what computed it.
        clip: bound on the norm of an upload; the first one, if it follows a quantile.
        noise: standard deviation of the noise on the sum, in units of the bound.
        draws: who is drawn, in words.
        trust: who is trusted with single uploads: the ``server``, or ``nobody``; ``sum``: the server sees sums alone.
        besides: what else it stands for, in words: answers by randomised response, a tree of noise.
    """

    epsilon: float
    delta: float
    rounds: int
    unit: str
    neighbours: str
    accountant: str
    clip: float
    noise: float
    draws: str
    trust: str
    besides: str = ""

    @property
    def plan(self) -> str:
        """What epsilon stands for, in words."""
        trusts = {"server": "the server is trusted", "sum": "the server is trusted with sums alone"}
        trust = trusts.get(self.trust, "nobody is trusted")
        count = "1 round" if self.rounds == 1 else f"{self.rounds} rounds"
        besides = f"{self.besides}, " if self.besides else ""
        return (
            f"Differential privacy of each {self.unit} at delta {self.delta:g}: clip {self.clip:g}, "
            f"noise {self.noise:g}, {besides}{self.draws}, {count}, {trust}, neighbours {self.neighbours}, "
            f"accountant {self.accountant}"
        )

    def __str__(self) -> str:
        return f"epsilon {self.epsilon:.3g}. {self.plan}"


@dataclass(frozen=True)
class Plan:
    """The privacy of a run. It is made by the run, from the method's stage and from who is drawn.

    Attributes:
        stage: clipping and noise, as they were asked for.
        draws: who is drawn.
        sum: the stage that adds up what has discrete noise (``trust="sum"``).
        size: how many numbers travel; 0 before that is known.
        choices: epsilon of the choices of a model that a client tells in a visit.
    """

    stage: Private
    draws: Draws
    sum: SecureSum | None = None
    size: int = 0
    choices: float = 0.0

    def __post_init__(self) -> None:
        stage, draws = self.stage, self.draws
        if stage.trust == "sum" and stage.accountant != "rdp":
            raise PluresError(
                "dp: what discrete noise under a secure sum spends is known by its Rényi divergences: say "
                "accountant='rdp'"
            )
        if stage.trust != "server" or stage.correlated:
            if stage.correlated and draws.kind == "poisson":
                raise PluresError(
                    "dp: correlated noise needs cohorts whose clients take part a known number of times: take "
                    "participation 'full', 'uniform' or Fixed cohorts, or leave out correlated"
                )
            return
        if draws.kind == "sample" and (stage.neighbours, stage.accountant) != ("replace_one", "rdp"):
            raise PluresError(
                f"dp: cohorts of a fixed size, {draws}, are not what accounting with neighbours="
                f"{stage.neighbours!r}, accountant={stage.accountant!r} stands for, which needs a coin for each: "
                "take participation='poisson'; or say neighbours='replace_one', accountant='rdp', which costs several "
                "times the epsilon"
            )
        if draws.kind == "poisson":
            insist(draws.rate, draws.at_most, stage.neighbours, stage.accountant)

    @property
    def amplified(self) -> bool:
        """Whether it counts on nobody but the server knowing who is drawn."""
        return self.stage.trust == "server" and not self.stage.correlated and self.draws.kind != "schedule"

    def epsilon(self, rounds: int, noise: float | None = None) -> float:
        """Epsilon of so many rounds.

        Args:
            rounds: that were run.
            noise: instead of the stage's.
        """
        stage, draws = self.stage, self.draws
        noise = stage.noise if noise is None else noise
        if not rounds:
            return 0.0
        if noise == 0:
            return math.inf
        if not self.amplified:
            patterns = draws.patterns(rounds)
            first = roots(rounds) if stage.correlated else None
            tree = stage.correlated and stage.matrix == "tree"
            most = tree_sensitivity(patterns, rounds) if tree else sensitivity(patterns, rounds, first)
            if not most:
                return 0.0
            if stage.trust == "sum":
                return gaussian(self._summed(noise) / most, stage.delta, "rdp")
            if stage.trust == "nobody":
                return self._told(noise, most, max(map(len, patterns)))
            twice = 2 if stage.neighbours == "replace_one" else 1
            return gaussian(noise / (twice * most), stage.delta, stage.accountant)
        sized = draws.kind == "sample" or draws.at_most is not None
        fixed = (draws.clients, draws.size) if sized else None
        return epsilon(
            noise,
            rounds,
            stage.delta,
            rate=draws.rate,
            at_most=draws.at_most,
            fixed=fixed,
            neighbours=stage.neighbours,
            accountant=stage.accountant,
        )

    def _told(self, noise: float, most: float, visits: int) -> float:
        """Epsilon of what a client itself tells in so many visits, any two uploads being neighbours."""
        stage, answers = self.stage, [(self.choices, visits)] if self.choices else []
        if stage.mechanism == "gaussian":
            return beside(noise / (2 * most), tuple(answers), stage.delta, stage.accountant)
        count = counted_answers(1 / noise, self.size or sys.maxsize)
        return beside(None, ((1 / noise / count, count * visits), *answers), stage.delta, stage.accountant)

    def _summed(self, noise: float) -> float:
        """What discrete noise under a secure sum is worth, in units of the bound."""
        if self.sum is None or not self.size:
            raise PluresError("dp: with trust='sum', epsilon depends on the size of the model: give noise")
        replaced = self.stage.neighbours == "replace_one"
        return worth(self.sum, self.stage.clip, noise, self.draws.clients, self.size, replaced=replaced)

    def sized(self, bound: Bound) -> Plan:
        """The same, with the number of numbers that travel, and what choices of models cost."""
        travelling = [leaf for block in bound.blocks for leaf in bound.travelling(block) if leaf not in bound.buffers]
        told = [channel.epsilon for channel in bound.channels if channel.epsilon is not None]
        size = sum(bound.initial[slot][path].numel() for slot, path in travelling)
        return replace(self, size=size, choices=sum(told))

    def noise_for(self, wanted: float, rounds: int) -> float:
        """The noise with which so many rounds spend a given epsilon."""
        return calibrated(wanted, lambda noise: self.epsilon(rounds, noise))

    def spent(self, rounds: int, epsilon: float | None = None) -> Spent:
        """What so many rounds have spent.

        Args:
            rounds: that were run.
            epsilon: what they spend, if that is known already.
        """
        stage = self.stage
        return Spent(
            self.epsilon(rounds) if epsilon is None else epsilon,
            stage.delta,
            rounds,
            "client",
            "any two uploads" if stage.trust == "nobody" else stage.neighbours,
            stage.accountant,
            stage.clip,
            stage.noise,
            str(self.draws),
            stage.trust,
            self._besides(),
        )

    def _besides(self) -> str:
        """What else epsilon stands for, in words."""
        said = ["noise of a binary tree over rounds"] if self.stage.matrix == "tree" else []
        if self.stage.mechanism == "duchi":
            said.append(f"noisy bits of epsilon {1 / self.stage.noise:.3g} a visit (Duchi)")
        return ", ".join([*said, *([f"choices told at epsilon {self.choices:g}"] if self.choices else [])])

    def check(self, bound: Bound) -> None:
        """Refuse a method whose release is not the noisy sum that is accounted for.

        Raises:
            PluresError: the message names the block and what does not fit.
        """
        for block in bound.blocks:
            if not bound.travelling(block):
                continue
            rule = bound.combine(block)
            reasons = {
                "its reducer has no known sensitivity": rule.reduce is not None,
                "its clients compute their weights, which have no bound": callable(rule.weights),
                "its clients count by their examples, which have no bound": rule.weights == "examples",
                "its sum is divided by who came, which has no bound": rule.denominator is None
                and self.stage.trust != "nobody",
                "its server moves by the share of clients that came, which tells who did": self.draws.kind == "poisson"
                and isinstance(rule.server, Relax)
                and rule.server.rate == "participation",
                "its clients do not all receive the same, so who gets what tells of their data": not block.share.common
                and not (block.share.epsilon is not None and self.stage.trust == "nobody"),
            }
            for reason, true in reasons.items():
                if true:
                    raise PluresError(f"dp: block {block.name!r}: {reason}; take another method, or leave out dp")


def settled(method: Method, draws: Callable[[], Draws], *, travels: bool = True) -> tuple[Method, Plan | None]:
    """A method whose stage of privacy knows who is drawn: clients count alike, and sums have a fixed denominator.

    Args:
        method: the method.
        draws: how cohorts are drawn; asked only if the method has such a stage.
        travels: whether the method sends anything; otherwise there is nothing to protect.

    Returns:
        The method, and its plan; ``None`` without such a stage.

    Raises:
        PluresError: if stage, method and cohorts do not fit.
    """
    stages = [stage for stage in method.wire if isinstance(stage, Private)]
    inner = [one for stage in method.wire for one in getattr(stage, "stages", ()) if isinstance(one, Private)]
    if inner:
        raise PluresError(
            "dp: error feedback would add to a later upload what was clipped from this one: put dp after it"
        )
    if not stages or not travels:
        return method, None
    if len(stages) > 1:
        raise PluresError("dp: a method has one stage of privacy; leave one of them out")
    who = draws()
    added = _added(method.wire, stages[0]) if stages[0].trust == "sum" else None
    plan = Plan(stages[0], who, added)
    for slot, rule in method.rules.items():
        if rule.denominator not in (None, who.expected):
            raise PluresError(
                f"dp: combine of {slot!r} divides by {rule.denominator:g}, and the plan by the expected cohort, "
                f"{who.expected:g}: leave the denominator out"
            )
    stage = stages[0].settled(who.expected)
    stage = stages[0].settled(who.expected)
    told = stage.trust == "nobody" and any(share.epsilon is not None for share in method.layout.values())
    divisor = None if told else who.expected  # of several models, each is the mean of those who told it
    rules = {slot: _counting_alike(rule, divisor) for slot, rule in method.rules.items()}
    wire = tuple(stage if isinstance(one, Private) else one for one in method.wire)
    if added is not None:
        wire = (*wire[:-1], added)
    if stage.clip == math.inf:
        wire = tuple(one for one in wire if not isinstance(one, Private))
    method = replace(method, wire=wire, combine=rules)
    return (_following(method, stage, who.expected) if stage.quantile is not None else method), plan


def _added(wire: Wire, stage: Private) -> SecureSum:
    """The stage that adds up uploads, with the noise of which every client adds its part."""
    last = wire[-1]
    if not isinstance(last, SecureSum) or wire[-2:-1] != (stage,):
        raise PluresError(
            "dp: trust='sum' hides clients in a secure sum: put it right before one, +dp(trust=sum)+secure_sum"
        )
    noise = stage.noise * stage.clip
    needed = max(stage.clip, 8 * noise / 2)  # eight deviations of a mean of two, the fewest
    if needed > last.bound:
        raise PluresError(
            f"dp: clip={stage.clip:g} with noise={stage.noise:g} needs secure_sum(bound={needed:.3g}) or more: larger "
            "sums would wrap around"
        )
    return replace(last, noise=noise)


def _counting_alike(rule: Combine, expected: float | None) -> Combine:
    """A rule by which clients count alike, if it is one that may be changed; the plan refuses the others."""
    if callable(rule.weights) or rule.reduce is not None:
        return rule
    return replace(rule, weights="uniform", denominator=expected)


def _following(method: Method, stage: Private, expected: float) -> Method:
    """The method with a bound that everybody receives, votes on, and that the server moves."""
    if SLOT in method.slots or SLOT in method.layout:
        raise PluresError(f"dp: the slot {SLOT!r} holds the bound: give the method's own another name")
    assert stage.quantile is not None
    first = stage.clip

    def start(start: Start) -> Leaves:
        like = next(t for t in start.model.values() if t.is_floating_point())
        return {LEAF: torch.tensor(first, dtype=like.dtype, device=like.device)}

    rule = Combine("uniform", Geometric(stage.quantile, stage.quantile_lr), denominator=expected)
    assert not isinstance(method.combine, Combine)
    return replace(
        method,
        layout={**method.layout, SLOT: Shared()},
        slots={**method.slots, SLOT: start},
        schedule=(*method.schedule, Assign((SLOT,), _as_received)),
        combine={**method.combine, SLOT: rule},
    )


def _as_received(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    """The bound as it is: what is sent of it is the client's vote."""
    return {SLOT: dict(getattr(x, SLOT))}
