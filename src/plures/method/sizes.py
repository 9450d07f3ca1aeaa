"""How much of the network each client holds: a part of part 1, layout, for devices that cannot hold all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError
from plures.method.layout import Selector
from plures.method.setting import TRAVEL, WORK, Setting
from plures.method.shares.share import Share
from plures.method.tree import like
from plures.models import Leaves, Network
from plures.models.alternatives import OneOf
from plures.models.exits import Staged, stages_of
from plures.models.footprint import Budget, Footprint, footprint
from plures.models.oneof import networks_of
from plures.models.units import SLACK, Widths
from plures.models.widths import check, narrowed, part_of, widths_of

RATE = "rate"
"""The leaf of a slot of :class:`Sized` that holds a client's rate."""


@dataclass(frozen=True)
class Sized(Share):
    """What each client knows about the size of its own network; it never travels.

    A slot with this share has the leaf ``rate``, the share of units that the client holds, and the same number for
    every weight and bias that computes units that are cut, ``PATH.rate`` (:func:`scaled`).
    """

    served: ClassVar[bool] = False


@brief
@by_content
@dataclass(frozen=True, eq=False)
class Held:
    """Which entries of the network's leaves each client holds: the first ones along every axis that is cut.

    Attributes:
        widths: the hidden widths that are cut.
        rates: ``(clients,)`` double; of several networks, the position of the client's own.
        units: ``(clients, widths)`` int64, how many units of each width a client holds.
        left_out: whether combining leaves out clients that do not hold an entry; otherwise they send zeros.
        names: of several networks, of which each client holds one.
    """

    widths: Widths
    rates: Tensor
    units: Tensor
    left_out: bool = True
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        full = torch.tensor([width.size for width in self.widths.widths])
        few = (self.units < full).any(0).tolist() if len(self.units) else [False] * len(full)
        cut = {path: axes for path, axes in self.widths.leaves.items() if any(few[along.width] for along in axes)}
        object.__setattr__(self, "_cut", cut)

    _cut: Mapping[str, tuple[object, ...]] = field(init=False, repr=False, default_factory=dict)

    def title(self, rate: float) -> str:
        """How a part is called."""
        return f"network {self.names[int(rate)]}" if self.names else f"rate {rate:g}"

    @property
    def cut(self) -> frozenset[str]:
        """Paths of the leaves of which some client holds a part only."""
        return frozenset(self._cut)

    def mask(self, path: str, like: Tensor, clients: Sequence[int] | Tensor) -> Tensor:
        """Which entries of a leaf some clients hold, ``(clients, ...)`` of bool, which broadcasts against the leaf.

        Args:
            path: one of :attr:`cut`.
            like: the leaf, without an axis of clients.
            clients: their positions.
        """
        units = self.units[torch.as_tensor(clients, dtype=torch.int64)]
        mask = torch.ones(len(units), *(1,) * like.dim(), dtype=torch.bool)
        for along in self.widths.leaves[path]:
            if along.axis is None:
                mask = mask & (units[:, along.width] > 0).view(-1, *(1,) * like.dim())
                continue
            places = torch.arange(like.shape[along.axis])
            held = places < (units[:, along.width] * along.each).unsqueeze(1)
            mask = mask & held.view(len(units), *(-1 if n == along.axis else 1 for n in range(like.dim())))
        return mask.to(like.device)

    def masked(self, path: str, value: Tensor, clients: Sequence[int] | Tensor) -> Tensor:
        """Values of a leaf, ``(clients, ...)``, with 0 where a client holds nothing."""
        return value * self.mask(path, value[0], clients).to(value.dtype) if path in self._cut else value

    def part(self, path: str, value: Tensor, client: int) -> Tensor | None:
        """What a client holds of a leaf without an axis of clients, as a smaller tensor; ``None`` for nothing."""
        for along in self.widths.leaves.get(path, ()):
            units = int(self.units[client, along.width])
            if not units:
                return None
            value = part_of(value, along, units)
        return value

    def nbytes(self, path: str, like: Tensor, clients: Sequence[int]) -> int:
        """Bytes of what some clients hold of a leaf, all together."""
        size = like.element_size()
        if path not in self._cut:
            return like.numel() * size * len(clients)
        units = self.units[torch.as_tensor(clients, dtype=torch.int64)]
        count = torch.ones(len(units), dtype=torch.int64)
        for along in self.widths.leaves[path]:
            if along.axis is None:
                count = count * units[:, along.width]
        for axis, length in enumerate(like.shape):
            found = next((a for a in self.widths.leaves[path] if a.axis == axis), None)
            count = count * (length if found is None else units[:, found.width] * found.each)
        return int(count.sum()) * size

    def known(self, clients: Sequence[int] | Tensor, dtype: torch.dtype) -> Tensor:
        """Rates of some clients, ``(clients,)``: every leaf of :class:`Sized`."""
        return self.rates[torch.as_tensor(clients, dtype=torch.int64)].to(dtype)


@dataclass(frozen=True)
class Sizes:
    """Who holds how much of the network: the first units of each hidden layer, or the first blocks of layers.

    Attributes:
        rates: shares of the units of each hidden layer, or of the blocks, in (0, 1]. Without ``column`` and ``limit``,
            the clients get them in turn, in their order.
        column: metadata column with each client's rate; or, with a budget, with what its device has. Blocks can only be
            cut after an exit, so there a client gets the largest of ``rates`` up to its own.
        budget: what ``column`` or ``limit`` limits; each client gets the largest of the rates that fits. ``seconds``,
            of a visit on simulated devices, are a wish: who cannot be done in time with any rate gets the smallest.
        limit: what every device has, where there is no column.
        batch: examples of a training step, for the budget ``memory``.
        layers: the layers whose units may be left out; default: all hidden ones.
        left_out: see :class:`Held`.
        by: whether units (``width``) or blocks (``depth``) are left out; blocks of a network with early exits
            (:func:`~plures.models.with_exits`), in which each client has the exits up to its own; or all but one of
            several networks (``network``, :func:`sizes_of`), whose names are in ``column``.
    """

    rates: tuple[float, ...] = (1.0, 0.5, 0.25)
    column: str | None = None
    budget: Budget | None = None
    limit: float | None = None
    batch: int = 32
    layers: Selector | None = None
    left_out: bool = True
    by: Literal["width", "depth", "network"] = "width"

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < rate <= 1 for rate in self.rates):
            raise PluresError(f"rates={self.rates}: give shares of the network's units, above 0 and at most 1")
        if self.budget is not None and (self.column is None) == (self.limit is None):
            raise PluresError(
                f"budget={self.budget!r} needs one of column=..., a metadata column with what each device has, and "
                "limit=..., what all of them have"
            )
        if self.budget is None and self.limit is not None:
            raise PluresError(f"limit={self.limit}: say of what, such as budget='parameters'")
        if self.batch < 1:
            raise PluresError(f"batch={self.batch}: a batch has at least 1 example")

    def untimed(self) -> Sizes:
        """The same, where no device is known and who holds what does not matter."""
        return self if self.budget != "seconds" else replace(self, budget=None, column=None, limit=None)

    @property
    def levels(self) -> tuple[float, ...]:
        """The rates, each once, the largest first."""
        return tuple(sorted(set(self.rates), reverse=True))

    def widths(self, network: Network, setting: Setting) -> Widths:
        """The hidden widths, or the stages, that are cut.

        Raises:
            PluresError: if there is no width, or if it cannot be told which entries belong to which units.
        """
        module, layers = network.trainable(), self.layers
        if self.by == "network":
            assert isinstance(module, OneOf)
            return networks_of(module, setting.example)
        if self.by == "depth":
            if not isinstance(module, Staged) and any(isinstance(part, Staged) for part in module.modules()):
                raise PluresError(
                    "blocks cannot be left out of a network to which another part was added: leave one of the two out"
                )
            return stages_of(module)
        chosen = (lambda path: True) if layers is None else (lambda path: layers.chooses(network.info[path]))
        found = widths_of(module, setting.example).only(chosen)
        check(module, found, setting.example)
        return found

    def held(self, network: Network, widths: Widths, setting: Setting) -> Held:
        """What each client of a federation holds."""
        rates = self._rates(network, widths, setting)
        levels = {rate: torch.tensor(self._units(widths, rate)) for rate in set(rates)}
        units = torch.stack([levels[rate] for rate in rates])
        names = tuple(width.name for width in widths.widths) if self.by == "network" else ()
        return Held(widths, torch.tensor(rates, dtype=torch.float64), units, self.left_out, names)

    def _units(self, widths: Widths, rate: float) -> tuple[int, ...]:
        """The number of units of each width in a part."""
        if self.by != "network":
            return widths.at(rate)
        return tuple(int(number == rate) for number in range(len(widths.widths)))

    def _parts(self, widths: Widths) -> tuple[float, ...]:
        """The parts that clients may hold."""
        return self.levels if self.by != "network" else tuple(map(float, range(len(widths.widths))))

    def _rates(self, network: Network, widths: Widths, setting: Setting) -> list[float]:
        """Every client's rate."""
        if self.budget is not None:
            return self._fitting(network, widths, setting, self.budget)
        if self.column is None:
            turns = self._parts(widths) if self.by == "network" else self.rates
            return [turns[place % len(turns)] for place in range(len(setting))]
        if self.by == "network":
            return self._named(self.column, [width.name for width in widths.widths], setting)
        given = setting.column(self.column)
        if given.dim() > 1:
            raise PluresError(f"column {self.column!r} has words, not rates: give each client a number in (0, 1]")
        rates = [float(f"{rate:.6g}") for rate in given.tolist()]
        for client, rate in zip(setting.clients, rates, strict=True):
            if not 0 < rate <= 1:
                raise PluresError(
                    f"column {self.column!r} of client {client!r} is {rate:g}: give the share of the network's units "
                    "that it holds, above 0 and at most 1, or say by budget= what the column limits"
                )
        return rates if self.by == "width" else self._levels(rates, setting)

    @staticmethod
    def _named(column: str, names: Sequence[str], setting: Setting) -> list[float]:
        """For every client the position of the network that a column names."""
        groups, known = setting.groups(column)
        found = []
        for client, group in zip(setting.clients, groups.tolist(), strict=True):
            name = known[group] if group >= 0 else "nothing that was known before"
            if name not in names:
                raise PluresError(
                    f"column {column!r} of client {client!r} is {name}, but the networks are {', '.join(names)}: name "
                    "one of them"
                )
            found.append(float(names.index(name)))
        return found

    def _levels(self, rates: list[float], setting: Setting) -> list[float]:
        """For every client the largest of the rates up to its own."""
        found = []
        for client, rate in zip(setting.clients, rates, strict=True):
            level = next((level for level in self.levels if level <= rate + SLACK), None)
            if level is None:
                raise PluresError(
                    f"column {self.column!r} of client {client!r} is {rate:g}, but the smallest of rates={self.rates} "
                    f"is {self.levels[-1]:g}: add a smaller rate, or leave the client out"
                )
            found.append(level)
        return found

    def _fitting(self, network: Network, widths: Widths, setting: Setting, budget: Budget) -> list[float]:
        """For every client the largest part that its device can hold."""
        module, needs = network.trainable(), dict[float, list[float]]()
        for rate in self._parts(widths):
            few = footprint(narrowed(module, widths, self._units(widths, rate)), setting.example)
            if budget == "seconds":
                needs[rate] = _seconds(few, setting)
            else:
                needs[rate] = [few.of(budget, self.batch)] * len(setting)
        parts = self.levels if self.by != "network" else sorted(needs, key=lambda rate: -needs[rate][0])
        if self.column is None:
            limits = [float(self.limit or 0)] * len(setting)
        else:
            column = setting.column(self.column)
            if column.dim() > 1:
                raise PluresError(f"column {self.column!r} has words, but budget={budget!r} needs numbers")
            limits = column.tolist()
        found = []
        for place, (client, limit) in enumerate(zip(setting.clients, limits, strict=True)):
            fits = [rate for rate in parts if needs[rate][place] <= limit]
            if not fits and budget == "seconds":
                fits = [parts[-1]]
            if not fits:
                least = parts[-1]
                several = self.by == "network"
                what = f"network {widths.widths[int(least)].name}" if several else f"network of rate {least:g}"
                raise PluresError(
                    f"client {client!r} has {limit:g} {budget}, but the {what} needs {needs[least][place]}: add a "
                    f"smaller {'network' if several else 'rate'}, or leave the client out"
                )
            found.append(fits[0])
        return found


def _seconds(network: Footprint, setting: Setting) -> list[float]:
    """How long every client takes to receive a network, to train it, and to send it.

    Raises:
        PluresError: if nothing is known about devices.
    """
    if TRAVEL not in setting.facts:
        raise PluresError(
            "budget='seconds' needs to know how fast devices are, and there are none: name some, such as fleet='phones'"
        )
    travel, work = (setting.facts[name].double() for name in (TRAVEL, WORK))
    found: list[float] = (network.bytes * travel + network.flops * work).tolist()
    return found


def sizes_of(given: Sizes | None, module: nn.Module) -> Sizes | None:
    """How much of the network each client holds: what the method says, or the model, if it is several networks.

    Raises:
        PluresError: if both say something, or the networks are only a part of the model.
    """
    if not any(isinstance(part, OneOf) for part in module.modules()):
        return given
    if not isinstance(module, OneOf):
        raise PluresError(
            "the method adds a part beside the network, but each client has one of several networks: use another method"
        )
    if given is not None:
        raise PluresError(
            "the method cuts parts of one network, but the model is several networks, of which each client has one: "
            "give one of them, or another method"
        )
    if len(module.networks) == 1:
        return None
    return Sizes(column=module.column, budget=module.budget, limit=module.limit, batch=module.batch, by="network")


def narrow(leaves: Leaves, widths: Widths, units: Mapping[int, Tensor]) -> Leaves:
    """One client's leaves with 0 for all units of each width from some number on; gradients of these are 0.

    Args:
        leaves: by path.
        widths: the widths.
        units: for each width by its position, the number of units to keep, a scalar.
    """
    made = dict(leaves)
    for path, axes in widths.leaves.items():
        if path not in made:
            continue
        value = made[path]
        for along in axes:
            if along.axis is None:
                value = value * (units[along.width] > 0).to(value.dtype)
                continue
            places = torch.arange(value.shape[along.axis], device=value.device)
            held = (places < units[along.width] * along.each).to(value.dtype)
            value = value * held.view(*(-1 if n == along.axis else 1 for n in range(value.dim())))
        made[path] = value
    return like(made, leaves)


def scaled(leaves: Leaves, size: Leaves) -> Leaves:
    """One client's leaves by which each hidden layer that is cut gives its outputs divided by the client's rate.

    It is the Scaler of Diao et al. 2021, section 3: parts of a network of different sizes give values of one scale.

    Args:
        leaves: by path.
        size: a slot of :class:`Sized`.
    """
    rates = {path: size[of] for path in leaves if (of := rate_of(path)) in size}
    return like({path: t / rates[path].to(t.dtype) if path in rates else t for path, t in leaves.items()}, leaves)


def rate_of(path: str) -> str:
    """The leaf of a slot of :class:`Sized` that belongs to a leaf of the network."""
    return f"{path}.{RATE}"
