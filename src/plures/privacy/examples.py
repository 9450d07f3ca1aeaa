"""Differential privacy of single examples: DP-SGD inside a client, for silos such as hospitals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plures.entropy import normal, uniform
from plures.errors import PluresError
from plures.method import (
    Assign,
    Batch,
    Bound,
    Combine,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Shared,
    State,
    Visit,
    detach,
    dot,
    parameters,
    squared_distance,
)
from plures.method.channel import CHOICES, GRADIENTS, WEIGHTS
from plures.privacy.accountant import Accountant
from plures.privacy.accountant import epsilon as steps_spend
from plures.privacy.plan import Spent
from plures.privacy.stage import Private

SLOT = "private"
"""The slot that holds the noisy gradient of a step."""


@dataclass(frozen=True)
class PerExample:
    """The gradient of a step of DP-SGD (Abadi et al. 2016, Algorithm 1), as what a phase computes before its step.

    Every example takes part by a coin of its own; the gradient of each is shortened to ``clip``, over all leaves
    together; their sum gets Gaussian noise of ``noise * clip`` in every entry, and is divided by the expected number.

    Attributes:
        clip: bound on the norm of one example's gradient.
        noise: standard deviation of the noise on the sum, in units of the bound.
        rate: probability that an example takes part in a step.
        delta: of (epsilon, delta); well below 1 / examples of a client.
        accountant: ``pld`` or ``rdp``.
        slot: what is trained.
    """

    clip: float
    noise: float
    rate: float
    delta: float = 1e-5
    accountant: Accountant = "pld"
    slot: str = "model"

    def __post_init__(self) -> None:
        if not self.clip > 0 or (self.clip == math.inf and self.noise):
            raise PluresError(f"dp_sgd: clip={self.clip}; give a positive number, infinite only without noise")
        if not 0 <= self.noise < math.inf:
            raise PluresError(f"dp_sgd: noise={self.noise}; give 0 or more")
        if not 0 < self.rate <= 1:
            raise PluresError(f"dp_sgd: rate={self.rate}; give a number in (0, 1]")
        if not 0 < self.delta < 1:
            raise PluresError(f"dp_sgd: delta={self.delta}; give a number between 0 and 1, well below 1 / examples")

    def __call__(self, x: State, received: State, batch: Batch) -> dict[str, Leaves]:
        network, model = batch.problem.network, detach(getattr(x, self.slot))
        if any(leaf.buffer for leaf in network.info.values()):
            raise PluresError("dp_sgd: running statistics mix examples: take a network without BatchNorm")
        free = parameters(model)

        def loss(leaves: Leaves, one: Tensor, target: Tensor) -> Tensor:
            outputs, _ = network({**model, **leaves}, one[None], train=batch.train, key=batch.key)
            return batch.problem.loss(outputs, target[None], None)

        each: Leaves = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(free, batch.input, batch.targets)
        size = len(batch.targets)
        norm = torch.stack([g.reshape(size, -1).square().sum(1) for g in each.values()]).sum(0).sqrt()
        within = torch.ones_like(norm) if self.clip == math.inf else (self.clip / norm.clamp(min=1e-12)).clamp(max=1.0)
        takes = within * batch.real * self._comes(batch, size)
        expected = self.rate * batch.real.sum()
        made = {}
        for number, (name, g) in enumerate(each.items()):
            total = (takes @ g.reshape(size, -1)).reshape(g.shape[1:])
            if self.noise:
                total = total + self.noise * self.clip * self._normal(batch, number, total)
            made[name] = total / expected
        return {SLOT: made}

    def _comes(self, batch: Batch, size: int) -> Tensor:
        """Which examples take part, ``(batch,)``, by secret coins, in a simulation by those of its keys."""
        entropy = batch.problem.entropy
        if entropy is not None:
            return (uniform(entropy, size) < self.rate).to(batch.targets.device)
        return batch.uniform(size) < self.rate

    def _normal(self, batch: Batch, number: int, like: Tensor) -> Tensor:
        """Standard normal numbers of a leaf, drawn in the same way."""
        entropy = batch.problem.entropy
        if entropy is not None:
            return normal(entropy, *like.shape).to(like)
        one, two = (batch.uniform(*like.shape, salt=2 * number + side) for side in (1, 2))
        return (-2 * (1 - one).log()).sqrt() * (2 * math.pi * two).cos()


def follow(x: State, received: State, batch: Batch) -> Tensor:
    """A function whose gradient is the noisy one."""
    return dot({k: x.model[k] for k in getattr(x, SLOT)}, getattr(x, SLOT))


@dataclass(frozen=True)
class Tethered:
    """The same for a personal model that is pulled towards what was received. The pull reads no example.

    Attributes:
        lam: the pull, with the factor 1/2.
    """

    lam: float

    def __call__(self, x: State, received: State, batch: Batch) -> Tensor:
        own = dot({k: x.personal[k] for k in getattr(x, SLOT)}, getattr(x, SLOT))
        return own + self.lam / 2 * squared_distance(x.personal, received.model)


def _send(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    return {"model": x.personal}


@dataclass(frozen=True)
class ExamplesPlan:
    """The privacy of examples in a run. It is made by the run.

    Attributes:
        stage: the steps.
        steps: in a visit.
        visits: ``visits(rounds)``: visits of the client that was drawn most often.
    """

    stage: PerExample
    steps: int
    visits: Callable[[int], int]

    def spent(self, rounds: int, epsilon: float | None = None) -> Spent:
        """What so many rounds have spent of the privacy of an example of the client that was drawn most often.

        Args:
            rounds: that were run.
            epsilon: what they spend, if that is known already.
        """
        stage, count = self.stage, self.steps * self.visits(rounds)
        if epsilon is None:
            epsilon = steps_spend(stage.noise, count, stage.delta, rate=stage.rate, accountant=stage.accountant)
        return Spent(
            epsilon,
            stage.delta,
            rounds,
            "example",
            "add_or_remove",
            stage.accountant,
            stage.clip,
            stage.noise,
            f"each with probability {stage.rate:g} in each of {count} steps of its client",
            "nobody",
        )


def examples_plan(
    bound: Bound, batch_size: int | None, steps: int | None, visits: Callable[[int], int]
) -> ExamplesPlan | None:
    """The plan of a method whose steps are private for single examples; ``None`` for others.

    Raises:
        PluresError: if something else in the method reads examples, or batches are not drawn by coins.
    """
    method = bound.method
    phases = [item for item in method.schedule if isinstance(item, Phase)]
    found = [phase.before for phase in phases if isinstance(phase.before, PerExample)]
    if not found:
        return None
    others = [item for item in method.schedule if isinstance(item, Assign) and (item.measure or item.reads)]
    if len(found) != len(phases) or len(found) > 1 or others or method.between or method.predictor.preparation:
        raise PluresError(
            "dp_sgd: the method reads examples without noise, in another phase, before predicting, or to measure: take "
            "a method whose only work is one phase, such as fedavg, fedper or local"
        )
    for channel in bound.channels:
        if channel.name in (CHOICES, GRADIENTS, WEIGHTS):
            raise PluresError(
                f"dp_sgd: channel {channel.name!r} ({channel.what}) tells of examples without noise: take a method "
                "without it"
            )
    if batch_size is not None or steps is None:
        raise PluresError(
            "dp_sgd: a step draws its examples by coins among all of the client's: give batch_size=None "
            "(--batch-size 0, in files batch_size = 0) and steps"
        )
    return ExamplesPlan(found[0], steps, visits)


def trusts_nobody(method: Method) -> bool:
    """Whether what leaves the clients is meant to be private against the server, too."""
    stages = [*method.wire, *(one for stage in method.wire for one in getattr(stage, "stages", ()))]
    return any(isinstance(one, Private) and one.trust != "server" for one in stages) or any(
        isinstance(item, Phase) and isinstance(item.before, PerExample) for item in method.schedule
    )


def dp_sgd(
    clip: float = 1.0,
    noise: float = 1.0,
    rate: float = 0.1,
    delta: float = 1e-5,
    accountant: Accountant = "pld",
    lam: float | None = None,
) -> Method:
    """DP-SGD inside every client: what leaves it, and its own model, hide each of its examples from everybody.

    It takes the place of plain training, so it composes with methods that only say who shares what: ``fedper+dp_sgd``.
    Nobody is trusted, and the number of a client's examples is taken to be known. Each step needs the gradients of all
    of a client's examples, of which it draws some. In a simulation the noise follows from the seed.

    Args:
        clip: bound on the norm of one example's gradient.
        noise: standard deviation of the noise on the sum of a step, in units of the bound.
        rate: probability that an example takes part in a step.
        delta: of (epsilon, delta).
        accountant: ``pld`` or ``rdp``.
        lam: MR-MTL: train personal models, with this pull towards their mean (Liu, Hu, Wu, Smith 2022); ``None`` trains
            one model.
    """
    if lam is not None:
        if not lam >= 0:
            raise PluresError(f"dp_sgd: lam={lam}; give 0 or more")
        own = PerExample(clip, noise, rate, delta, accountant, "personal")
        work = Phase(train="personal", objective=Tethered(lam), before=own, random=True)
        return Method(
            layout={"model": Shared(), "personal": Personal(unseen="model")},
            schedule=(work, Assign(("model",), _send)),
            combine=Combine("uniform"),
            predict=Predict("personal", visits=1),
        )
    step = PerExample(clip, noise, rate, delta, accountant)
    return Method(schedule=(Phase(objective=follow, before=step, random=True),))
