"""What a site allows, and what of an agreed plan is beyond it, which it can say before it reads a row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from plures.codecs import Clip
from plures.errors import PluresError, suggestion
from plures.files import read_json, salvaged, write_json
from plures.method import Bound, Leaf, Method, Phase
from plures.method.channel import (
    BUFFERS,
    CHOICES,
    FACTS,
    GRADIENTS,
    LOSS,
    MEASURED,
    OBJECTIVE,
    UPDATE,
    VIEWS,
    WEIGHTS,
)
from plures.metrics import Metric
from plures.privacy import ExamplesPlan, PerExample, Plan, Private, trusts_nobody
from plures.run.origin import Origin

TRAINING = ("train_loss", "train_objective")
"""Numbers that a visit reports about training: mean task loss, and mean of the minimised objective."""
SCORES, SECONDS = (channel.name for channel in MEASURED)
CHANNELS = (
    *(channel.name for channel in FACTS),
    *(UPDATE, BUFFERS, WEIGHTS, VIEWS, GRADIENTS, CHOICES, LOSS, OBJECTIVE, SCORES, SECONDS),
)
"""Everything that can leave a site."""
WITHHELD = (LOSS, OBJECTIVE, SCORES, SECONDS)
"""Channels that a site leaves empty if it does not agree to them. A plan that needs one of the others is refused."""
TRUST = "server", "sum", "nobody"
"""Who may see what has no noise yet, fewer and fewer."""
FILE = "ceiling.json"
"""Where a site keeps the epsilon that it computed, which takes seconds: every order is worked on by a new process."""


@dataclass(frozen=True)
class Allowed:
    """What a site allows; anything else is refused.

    Attributes:
        send: slots, or single leaves ``slot/path``, that may leave the site.
        tell: facts that it reports about itself: ``examples`` (number of training examples), ``labels`` (number per
            class), columns of its metadata, ``sizes`` (number of examples behind a metric) and ``seconds`` (time that
            it worked).
        threads: processor threads that it may use.
        max_epochs: most passes over its data in one phase of a visit; ``None`` for any.
        max_steps: most gradient steps in a visit; ``None`` for any.
        metrics: numbers that it reports about its examples: metrics of the task, :data:`TRAINING`; ``None`` for all, or
            for none if the method trusts nobody (local differential privacy, DP-SGD), because they get no noise.
        digits: significant digits of these numbers.
        least: fewest examples for which such a number is reported.
        versions: how many of the newest versions of its personal state it keeps, whatever an order says.
        epsilon: most that all rounds of the plan may spend of differential privacy; ``None`` for any plan, also one
            without.
        delta: of that epsilon; ``None`` for the plan's own.
        unit: what must be hidden at least: each ``example`` of the site, or the whole ``client``, which hides its
            examples, too.
        trust: who may see what has no noise yet: the ``server``; the server, but ``sum`` alone; or ``nobody``.
        clip: largest bound on the norm of an upload, or of an example's gradient; ``None`` for any, also none.
        channels: what may leave at all, of :data:`CHANNELS`; ``None`` for all.
    """

    send: tuple[str, ...] = ("model",)
    tell: tuple[str, ...] = ("examples",)
    threads: int = 1
    max_epochs: float | None = None
    max_steps: int | None = None
    metrics: tuple[str, ...] | None = None
    digits: int = 3
    least: int = 10
    versions: int = 10
    epsilon: float | None = None
    delta: float | None = None
    unit: Literal["example", "client"] = "example"
    trust: Literal["server", "sum", "nobody"] = "server"
    clip: float | None = None
    channels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("clip", self.clip)):
            if value is not None and not 0 < value < math.inf:
                raise PluresError(f"[allow] {name} = {value:g}: give a positive number")
        if self.delta is not None and not 0 < self.delta < 1:
            raise PluresError(f"[allow] delta = {self.delta:g}: give a number between 0 and 1")
        given = {"delta": self.delta is not None, "unit": self.unit == "client", "trust": self.trust != "server"}
        if self.epsilon is None and any(given.values()):
            name = next(name for name, true in given.items() if true)
            raise PluresError(f"[allow] {name} is not used without epsilon: give the most that a plan may spend")
        for name in self.channels or ():
            if name not in CHANNELS:
                raise PluresError(f"[allow] channels: no {name!r}; {suggestion(name, CHANNELS, 'they are')}")

    @property
    def ceilings(self) -> bool:
        """Whether anything of a plan must be compared with it that needs no rows."""
        return any(value is not None for value in (self.epsilon, self.clip, self.channels))

    def sends(self, leaf: Leaf) -> bool:
        """Whether a leaf may leave the site."""
        return leaf.slot in self.send or str(leaf) in self.send

    def agrees(self, channel: str) -> bool:
        """Whether anything may leave on a channel."""
        return self.channels is None or channel in self.channels

    def measures(self, metrics: Sequence[Metric], examples: int) -> tuple[str, ...]:
        """Names of the metrics and training numbers that may be reported for so many examples.

        Raises:
            PluresError: if ``metrics`` names one that does not exist.
        """
        known, enough = (*(metric.name for metric in metrics), *TRAINING), examples >= self.least
        if odd := [name for name in self.metrics or () if name not in known]:
            raise PluresError(f"[allow] metrics: no metric {odd[0]!r}; {suggestion(odd[0], known, 'metrics are')}")
        carried = dict(zip(TRAINING, (LOSS, OBJECTIVE), strict=True))
        agreed = [name for name in known if self.agrees(carried.get(name, SCORES))]
        return tuple(name for name in agreed if self.metrics is None or name in self.metrics) if enough else ()

    def towards(self, method: Method) -> Allowed:
        """The same; if a method trusts nobody, only numbers that ``metrics`` names are reported."""
        return replace(self, metrics=()) if self.metrics is None and trusts_nobody(method) else self

    def rounded(self, value: float) -> float:
        """A number rounded for reporting."""
        return float(f"{value:.{self.digits - 1}e}")


def beyond(origin: Origin, rounds: int, tells: Sequence[str], allowed: Allowed, cache: Path | None = None) -> list[str]:
    """One sentence for each of a site's ceilings that a plan exceeds; no rows are needed for that.

    Args:
        origin: the run that was agreed, with its plan of privacy.
        rounds: all its rounds.
        tells: facts that the members report.
        allowed: what the site allows.
        cache: file that keeps the epsilon.
    """
    return [
        *_channels(origin.bound, tells, allowed),
        *_bounds(origin, allowed),
        *_spent(origin, rounds, allowed, cache),
    ]


def _channels(bound: Bound, tells: Sequence[str], allowed: Allowed) -> Iterator[str]:
    told = {"labels": "labels" in tells, "metadata": any(name not in ("examples", "labels") for name in tells)}
    for channel in bound.channels:
        needed = channel.name not in WITHHELD and told.get(channel.name, True)
        if needed and not allowed.agrees(channel.name):
            yield (
                f"the plan sends {channel.name!r} ({channel.what}), and [allow] channels in the site's site.toml does "
                "not name it"
            )


def _bounds(origin: Origin, allowed: Allowed) -> Iterator[str]:
    if allowed.clip is None:
        return
    ceiling = f"[allow] clip in the site's site.toml allows {allowed.clip:g}"
    wire = origin.method.wire
    stages = [*wire, *(one for stage in wire for one in getattr(stage, "stages", ()))]
    found = [one.norm for one in stages if isinstance(one, Clip)]
    found += [_longest(one, origin) for one in stages if isinstance(one, Private)]
    steps = [item.before for item in origin.method.schedule if isinstance(item, Phase)]
    found += [one.clip for one in steps if isinstance(one, PerExample)]
    if not found:
        yield f"the plan bounds no client's upload, and {ceiling}"
    elif min(found) > allowed.clip:
        what = "a quantile of the clients' norms, however large" if min(found) == math.inf else f"{min(found):g}"
        yield f"the plan bounds a client's upload by {what}, and {ceiling}"


def _longest(stage: Private, origin: Origin) -> float:
    """The longest upload that a stage of privacy lets through."""
    if stage.quantile is not None:
        return math.inf
    size = origin.plan.size if stage.mechanism == "duchi" and isinstance(origin.plan, Plan) else 1
    return stage.clip * math.sqrt(size)


def _spent(origin: Origin, rounds: int, allowed: Allowed, cache: Path | None) -> Iterator[str]:
    if allowed.epsilon is None:
        return
    ceiling, plan = f"[allow] epsilon in the site's site.toml allows {allowed.epsilon:g}", origin.plan
    if plan is None:
        yield f"the plan has no differential privacy, and {ceiling}"
        return
    unit = "client" if isinstance(plan, Plan) else "example"
    trust = plan.stage.trust if isinstance(plan, Plan) else "nobody"
    if allowed.unit == "client" and unit == "example":
        yield "the plan hides single examples, and [allow] unit in the site's site.toml asks for 'client'"
    if TRUST.index(trust) < TRUST.index(allowed.trust):
        what = "sums of uploads" if trust == "sum" else "single uploads"
        asks = f"[allow] trust in the site's site.toml asks for {allowed.trust!r}"
        yield f"the plan trusts the server with {what}, and {asks}"
    spent = spends(plan, rounds, allowed.delta, cache)
    if spent > allowed.epsilon:
        delta = plan.stage.delta if allowed.delta is None else allowed.delta
        yield f"the plan spends epsilon {spent:.3g} at delta {delta:g} in {rounds} rounds, and {ceiling}"


def spends(plan: Plan | ExamplesPlan, rounds: int, delta: float | None = None, cache: Path | None = None) -> float:
    """Epsilon of all rounds of a plan.

    Args:
        plan: the plan.
        rounds: all its rounds.
        delta: instead of the plan's own.
        cache: file that keeps what took long to compute.
    """
    if isinstance(plan, Plan):
        plan = plan if delta is None else replace(plan, stage=replace(plan.stage, delta=delta))
        if not plan.amplified:
            return plan.epsilon(rounds)
        about = repr(plan.stage), str(plan.draws), rounds
    else:
        plan = plan if delta is None else replace(plan, stage=replace(plan.stage, delta=delta))
        about = repr(plan.stage), "steps", plan.steps * plan.visits(rounds)
    asked = hashlib.sha256(repr(about).encode()).hexdigest()
    known = salvaged(lambda: read_json(cache), "epsilon is computed again") if cache and cache.exists() else None
    if known is not None and isinstance(kept := known.get(asked), float):
        return kept
    found = plan.spent(rounds).epsilon
    if cache is not None and math.isfinite(found):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, {**(known or {}), asked: found})
    return found
