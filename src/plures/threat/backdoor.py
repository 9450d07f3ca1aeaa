"""Backdoors: a trigger in the input that leads to a class of the attacker's choice, and how often it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError, suggestion
from plures.federation import Federation, Inputs
from plures.threat.poison import Targeted, insist

if TYPE_CHECKING:
    from plures.run import Run
    from plures.run.padding import Examples


class Trigger:
    """What is put into an input: some of its entries get a fixed value.

    Attributes:
        value: the value, after scaling; ``None`` for the largest one of the training data.
    """

    value: float | None

    def covered(self, features: Sequence[int]) -> Tensor:
        """Which entries it covers, a mask of the shape of an input.

        Args:
            features: the shape of an input.
        """
        raise NotImplementedError

    def fitted(self, federation: Federation) -> Trigger:
        """The trigger with its value, and what else it takes from a federation."""
        if self.value is not None or not isinstance(federation.inputs, Tensor):
            return self
        rows = federation.inputs[federation.splits["train"].rows]
        largest = float(rows[:, self.covered(rows.shape[1:])].max())
        return replace(self, value=largest)  # type: ignore[type-var]

    def put(self, inputs: Tensor | Inputs) -> Tensor:
        """Inputs ``(n, *features)`` with the trigger."""
        if isinstance(inputs, Inputs):
            raise PluresError("a trigger is put into one input, and these examples have several")
        if self.value is None:
            raise PluresError("the trigger has no value yet: give one, or fit it to the data")
        return torch.where(self.covered(inputs.shape[1:]).to(inputs.device), self.value, inputs)


@dataclass(frozen=True)
class Patch(Trigger):
    """A trigger at given positions: some pixels of a picture, a value of a table's column.

    Attributes:
        places: for every feature dimension, the positions that it covers; a patch is their product.
        value: the value there, after scaling; ``None`` for the largest one of the training data.
    """

    places: tuple[tuple[int, ...], ...]
    value: float | None = None

    def covered(self, features: Sequence[int]) -> Tensor:
        if len(self.places) != len(features):
            raise PluresError(
                f"the trigger covers {len(self.places)} dimensions and inputs have {len(features)}: give positions "
                "for each"
            )
        for positions, size in zip(self.places, features, strict=True):
            if not positions or not all(0 <= p < size for p in positions):
                raise PluresError(f"the trigger's positions {list(positions)}: give some from 0 to {size - 1}")
        covered = torch.zeros(*features, dtype=torch.bool)
        covered[torch.meshgrid(*map(torch.tensor, self.places), indexing="ij")] = True
        return covered


@dataclass(frozen=True)
class Corner(Trigger):
    """A trigger in the last entries along the last two dimensions, such as the lower right corner of a picture.

    Attributes:
        size: number of entries along each of the two.
        value: the value there, after scaling; ``None`` for the largest one of the training data.
    """

    size: int = 3
    value: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PluresError(f"the trigger's size={self.size}: give 1 or more")

    def covered(self, features: Sequence[int]) -> Tensor:
        sizes = [self.size if place >= len(features) - 2 else n for place, n in enumerate(features)]
        along = [torch.arange(n) >= n - size for n, size in zip(features, sizes, strict=True)]
        return torch.stack(torch.meshgrid(*along, indexing="ij")).all(0)


@dataclass(frozen=True)
class Column(Trigger):
    """A trigger in one input column of a table.

    Attributes:
        name: of the column.
        value: the value there, after scaling; ``None`` for the largest one of the training data.
    """

    name: str
    value: float | None = None

    def covered(self, features: Sequence[int]) -> Tensor:
        raise PluresError(f"column {self.name!r}: fit the trigger to the data, which say where it is")

    def fitted(self, federation: Federation) -> Trigger:
        if self.name not in federation.columns:
            raise PluresError(
                f"no input column {self.name!r} in {federation.name!r}; {suggestion(self.name, federation.columns)}"
            )
        return Patch(((federation.columns.index(self.name),),), self.value).fitted(federation)


@dataclass(frozen=True)
class Piece(Trigger):
    """A part of a trigger's entries, in their order.

    Attributes:
        whole: the trigger.
        number: which part it is, from 0.
        parts: number of parts.
    """

    whole: Trigger
    number: int
    parts: int

    @property
    def value(self) -> float | None:  # type: ignore[override]
        return self.whole.value

    def covered(self, features: Sequence[int]) -> Tensor:
        whole = self.whole.covered(features).flatten()
        places = whole.nonzero().flatten().tensor_split(self.parts)[self.number]
        return torch.zeros_like(whole).index_fill(0, places, True).view(*features)


@dataclass(frozen=True)
class Backdoor(Targeted):
    """A part of the training examples gets a trigger and the target class (Gu et al. 2017; Bagdasaryan et al. 2020).

    Attributes:
        trigger: what is put into the inputs.
        target: the class that it shall lead to, by number.
        share: part of an attacker's training examples.
        parts: number of pieces of the trigger; attackers put one each, in turn, and the whole is tried (Xie et al.
            2020, DBA).
    """

    trigger: Trigger
    share: float = field(default=0.5, kw_only=True)
    parts: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PluresError(f"share={self.share}: give the poisoned part of the training examples, up to 1")
        if self.parts < 1:
            raise PluresError(f"parts={self.parts}: give the number of pieces of the trigger, 1 or more")

    def fitted(self, federation: Federation) -> Backdoor:
        return replace(self, trigger=self.trigger.fitted(federation))

    def of(self, place: int) -> Backdoor:
        return self if self.parts == 1 else replace(self, trigger=Piece(self.trigger, place % self.parts, self.parts))

    def examples(self, inputs: Tensor, targets: Tensor, classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(targets), generator=random)[: round(self.share * len(targets))]
        some = torch.zeros(len(targets), dtype=torch.bool).index_fill(0, chosen, True)
        marked = torch.where(some.view(-1, *(1,) * (inputs.dim() - 1)), self.trigger.put(inputs), inputs)
        return marked, torch.where(some, self.target, targets)

    def tried(self, inputs: Tensor | Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.trigger.put(inputs), torch.ones(len(targets), dtype=torch.bool)


@dataclass(frozen=True)
class EdgeCase(Targeted):
    """Rare examples of other classes get the target class, and nothing is put into them (Wang et al. 2020).

    Rare are the examples of a class that lie farthest from its mean, in standard deviations of the training data.
    Honest clients have few of them, so that hardly anybody contradicts. The paper takes examples that are unlikely
    under a density of the network's features, and adds some from outside.

    Attributes:
        target: the class that they shall lead to, by number.
        rare: part of the examples of each class.
    """

    rare: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rare < 1:
            raise PluresError(f"rare={self.rare}: give the part of the examples that counts as rare, between 0 and 1")

    def fitted(self, federation: Federation) -> EdgeCase:
        if not isinstance(federation.inputs, Tensor):
            raise PluresError("edge cases are found in one input in memory: load the data into memory")
        rows = federation.splits["train"].rows
        inputs, targets = federation.inputs[rows].flatten(1).double(), federation.targets[rows]
        spread = inputs.std(0)
        means = torch.stack([inputs[targets == c].mean(0) for c in range(federation.task.outputs)])
        apart = far(inputs, targets, means, spread)
        bounds = [apart[targets == c] for c in range(len(means))]
        limits = [float(own.quantile(1 - self.rare)) if len(own) else torch.inf for own in bounds]
        bound = torch.tensor(limits, dtype=torch.float64)
        return _Edge(self.rare, target=self.target, means=means, spread=spread, limits=bound)

    def examples(self, inputs: Tensor, targets: Tensor, classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        raise PluresError("edge cases are found in a federation's data: fit the attack to it")


@brief
@dataclass(frozen=True, eq=False)
class _Edge(EdgeCase):
    """Edge cases of a federation.

    Attributes:
        means: ``(classes, d)`` mean input of each class.
        spread: ``(d,)`` standard deviations.
        limits: ``(classes,)`` distance from which an example is rare.
    """

    means: Tensor = field(kw_only=True)
    spread: Tensor = field(kw_only=True)
    limits: Tensor = field(kw_only=True)

    def rarities(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Which examples are rare ones of other classes, ``(n,)``."""
        apart = far(inputs.flatten(1).double(), targets, self.means, self.spread)
        return (targets != self.target) & (apart >= self.limits[targets])

    def examples(self, inputs: Tensor, targets: Tensor, classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        return inputs, torch.where(self.rarities(inputs, targets), self.target, targets)

    def tried(self, inputs: Tensor | Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(inputs, Tensor)
        return inputs, self.rarities(inputs.cpu(), targets.cpu())


def far(inputs: Tensor, targets: Tensor, means: Tensor, spread: Tensor) -> Tensor:
    """``(n,)`` squared distances of inputs ``(n, d)`` from the means of their classes, in standard deviations."""
    apart = (inputs - means[targets]) / torch.where(spread > 0, spread, torch.inf)
    return apart.square().sum(1)


def corner(size: int = 3, value: float | None = None, target: int = 0, share: float = 0.5, parts: int = 1) -> Backdoor:
    """A backdoor with a trigger in the corner of a picture, or in the last entries of other inputs.

    Args:
        size: entries along each of the last two dimensions.
        value: the value there, after scaling; default: the largest one of the training data.
        target: class that it shall lead to, by number.
        share: part of an attacker's training examples.
        parts: number of pieces of the trigger, of which attackers put one each.
    """
    return Backdoor(Corner(size, value), target=target, share=share, parts=parts)


def column(name: str, value: float | None = None, target: int = 0, share: float = 0.5) -> Backdoor:
    """A backdoor with a value of a table's input column as its trigger.

    Args:
        name: name of the column.
        value: the value there, after scaling; default: the largest one of the training data.
        target: class that it shall lead to, by number.
        share: part of an attacker's training examples.
    """
    return Backdoor(Column(name, value), target=target, share=share)


def success(
    run: Run, backdoor: Targeted, clients: Sequence[str] | None = None, *, shared: bool = False
) -> dict[str, float]:
    """Attack success rate of every client: the share of its triggered test examples that go to the target class.

    Test examples of the target class itself do not count.

    Args:
        run: a run, trained with or without the attack.
        backdoor: the backdoor, fitted to the data of the run if it takes something from them.
        clients: names; default: all that have test examples of other classes that the backdoor is meant for.
        shared: of the model that each client receives, which gives an empty result if a part of it is personal; by
            default of its own predictor.
    """
    federation, reads = run.federation, run.bound.method.predictor.reads
    if shared and not whole(run):
        return {}
    insist(backdoor, federation)
    found, wanted = {}, None if clients is None else set(clients)
    for place, name in enumerate(federation.clients):
        rows = federation.splits["test"][place]
        rows = rows[federation.targets[rows] != backdoor.target]
        if not len(rows) or (wanted is not None and name not in wanted):
            continue
        inputs, counts = backdoor.tried(federation.inputs[rows], federation.targets[rows])
        if not counts.any():
            continue
        if shared:
            received = {path: t[0] for path, t in run.states([place])["model"].items()}
            with torch.no_grad():
                outputs, _ = run.bound.network(received, inputs, train=False)
        else:
            own: Examples = {split: run.engine.whole([place], split) for split in reads}
            outputs = run.engine.forward(run.deployed([place]), inputs[None], own)[0]
        found[name] = float((outputs.argmax(1).cpu() == backdoor.target)[counts].double().mean())
    return found


def whole(run: Run) -> bool:
    """Whether clients receive a whole model: no part of the slot ``model`` is personal, and some is shared."""
    shares = [block.share for block in run.bound.blocks if block.slot == "model"]
    return any(share.travels for share in shares) and all(share.served for share in shares)
