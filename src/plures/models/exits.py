"""Networks with early exits: a head after some of the blocks, so that the first blocks alone are a network, too."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation.inputs import Inputs
from plures.models import nested
from plures.models.alternatives import HERE
from plures.models.network import NORMS, with_roles
from plures.models.units import SLACK, Along, Width, Widths

EXITS = "exits"
"""The role of early exits, and the name of their part."""


class Exit(nn.Linear):
    """A linear layer on features ``(batch, d)``, or on the mean of ``(batch, d, ...)`` over all further axes."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(2).mean(2) if input.dim() > 2 else input)


class Staged(nn.Module):
    """Layers one after the other, with exits after some of them; gives the outputs of the last exit that it holds.

    A number ``here`` for each exit, and for the head, is 1 where it is held. With all of them 1 the outputs are those
    of the layers and the head, bit for bit, and exits get no gradient. Where the last ones are 0, what belongs to them
    gets none.

    Args:
        module: an ``nn.Sequential`` that ends with its head; copied, with the same names.
        steps: names of all layers before the head, in order.
        head: name of the head.
        ends: for each exit, the number of layers before it, increasing.
        exits: as many.
        rates: for each exit, the least rate of a client that holds it, increasing; then that for the head.
    """

    def __init__(
        self,
        module: nn.Sequential,
        steps: Sequence[str],
        head: str,
        ends: Sequence[int],
        exits: Sequence[nn.Module],
        rates: Sequence[float],
    ) -> None:
        super().__init__()
        for name, part in module.named_children():
            self.add_module(name, copy.deepcopy(part))
        self.steps, self.ends, self.rates = tuple(steps), tuple(ends), tuple(rates)
        self.last: str | None = head
        self.exits = nn.ModuleList(exits)
        like = next(module.parameters())
        ones = [nn.Parameter(torch.ones_like(like[..., :1].sum()), requires_grad=False) for _ in rates]
        self.here = nn.ParameterList(ones)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor | None = None
        for number, made in enumerate(self._each(x)):
            found = made if found is None else torch.where(self.here[number] > 0, made, found)
        assert found is not None
        return found

    def _each(self, x: Tensor) -> Iterator[Tensor]:
        """What each exit gives, and then the head."""
        begin = 0
        for end, leave in zip(self.ends, self.exits, strict=True):
            for name in self.steps[begin:end]:
                x = self.get_submodule(name)(x)
            yield leave(x)
            begin = end
        if self.last is not None:
            for name in self.steps[begin:]:
                x = self.get_submodule(name)(x)
            yield self.get_submodule(self.last)(x)

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """For each exit, and for the head, names of the parts that it adds to those before it."""
        found, begin = [], 0
        for number, end in enumerate((*self.ends, len(self.steps))):
            head = f"{EXITS}.{number}" if number < len(self.ends) else self.last
            found.append((*self.steps[begin:end], *([] if head is None else [head])))
            begin = end
        return tuple(found)

    def gates(self) -> dict[str, str]:
        """For each stage, by its number, the path of its number ``here``."""
        return {str(number): f"{HERE}.{number}" for number in range(len(self.here))}

    def keep(self, names: Collection[str]) -> None:
        """Leave the other stages out, which are the last ones."""
        stages = len(names)
        if stages == len(self.here):
            return
        for parts in self.stages()[stages:]:
            for name in parts:
                owner, _, local = name.rpartition(".")
                if not name.startswith(f"{EXITS}."):
                    delattr(self.get_submodule(owner), local)
        self.steps = self.steps[: self.ends[stages - 1]]
        self.ends, self.rates, self.last = self.ends[:stages], self.rates[:stages], None
        self.exits, self.here = self.exits[:stages], nn.ParameterList(list(self.here)[:stages])
        names = dict(self.named_modules())
        roles: dict[str, tuple[str, ...]] = getattr(self, "roles", {})
        with_roles(self, **{role: tuple(part for part in parts if part in names) for role, parts in roles.items()})


def with_exits(module: nn.Module, rates: Sequence[float], example: Tensor | Inputs) -> nn.Module:
    """A copy of a network with an exit for each smaller rate, after that share of its blocks, rounded up.

    A block is a layer with parameters, such as a convolution or a residual block, and what follows up to the next one:
    normalisation, activations, pooling. An exit is a linear layer on the mean of each channel. Both the exits and the
    head have the role ``head``, the exits also the role ``exits``.

    Args:
        module: an ``nn.Sequential`` whose last part is its head and has this role; the part before may be one of the
            same kind, with the role ``body``.
        rates: shares of the blocks, in (0, 1]. Where all of them keep all blocks, the copy has no exit.
        example: inputs ``(any, *features)``, whose shape and type count.

    Examples:
        >>> network = with_exits(plures.models.mlp((13,), 2, hidden=(64, 32)), (1.0, 0.5), torch.zeros(0, 13))
        >>> network.exits[0]
        Exit(in_features=64, out_features=2, bias=True)
    """
    steps, head = _steps(module)
    assert isinstance(module, nn.Sequential)
    blocks = _blocks(module, steps)
    depths: dict[int, float] = {}
    for rate in sorted(rates):
        depths.setdefault(math.ceil(rate * len(blocks) - SLACK), rate)
    before = [depth for depth in depths if depth < len(blocks)]
    if not before:
        if min(rates) < 1:
            raise PluresError(
                f"the network has {len(blocks)} block{'s' * (len(blocks) > 1)} of layers, so a share of "
                f"{min(rates):g} is all of it: give a smaller share, or a network with more layers"
            )
        return copy.deepcopy(module)
    ends = [blocks[depth - 1] for depth in before]
    exits = _exits(module, steps, head, ends, example)
    made = Staged(module, steps, head, ends, exits, [*(depths[depth] for depth in before), depths[len(blocks)]])
    roles: dict[str, tuple[str, ...]] = getattr(module, "roles", {})
    marked: dict[str, str | tuple[str, ...]] = {
        **roles,
        "body": roles.get("body", steps),
        "head": (*(f"{EXITS}.{number}" for number in range(len(exits))), head),
        EXITS: EXITS,
    }
    return with_roles(made, **marked)


def _steps(module: nn.Module) -> tuple[tuple[str, ...], str]:
    """Names of all layers before the head, in order, and of the head."""
    roles: dict[str, tuple[str, ...]] = getattr(module, "roles", {})
    names = [name for name, _ in module.named_children()]
    if not _plain(module) or len(names) < 2 or roles.get("head") != (names[-1],):
        raise PluresError(
            "early exits need a network that is an nn.Sequential whose last part is marked as its head, such as mlp, "
            "har_cnn or resnet: give one, or plures.with_roles(nn.Sequential(...), head='name of the last layer')"
        )
    steps: list[str] = []
    for name in names[:-1]:
        part = module.get_submodule(name)
        inside = _plain(part) and roles.get("body") == (name,)
        steps += [f"{name}.{local}" for local, _ in part.named_children()] if inside else [name]
    return tuple(steps), names[-1]


def _plain(module: nn.Module) -> bool:
    """Whether a module calls its parts one after the other and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _blocks(module: nn.Module, steps: Sequence[str]) -> list[int]:
    """Where blocks end, as numbers of layers before."""
    parts = [module.get_submodule(name) for name in steps]
    begins = [n for n, part in enumerate(parts) if list(part.parameters()) and not isinstance(part, NORMS)]
    if not begins:
        raise PluresError("the network has no layer with parameters before its head, so there is nothing to leave out")
    return [*begins[1:], len(steps)]


def _exits(
    module: nn.Module, steps: Sequence[str], head: str, ends: Sequence[int], example: Tensor | Inputs
) -> list[nn.Module]:
    """New exits, by the features that they get for an example."""
    module = copy.deepcopy(module).eval()
    like = next(module.parameters())

    def blank(t: Tensor) -> Tensor:
        kind = like.dtype if t.is_floating_point() else t.dtype
        return torch.zeros(2, *t.shape[1:], dtype=kind, device=like.device)

    x = nested.mapped(blank, example)
    widths: list[int] = []
    with torch.no_grad():
        for number, name in enumerate(steps, start=1):
            x = module.get_submodule(name)(x)
            if number in ends:
                widths.append(x.shape[1])
        x = module.get_submodule(head)(x)
    if x.dim() != 2:
        raise PluresError(f"early exits need outputs (batch, outputs), but the network's are {tuple(x.shape)}")
    return [Exit(width, x.shape[1]).to(like) for width in widths]


def stages_of(module: nn.Module) -> Widths:
    """What clients hold of the stages of a network with exits: each one wholly or not at all."""
    if not isinstance(module, Staged):
        return Widths((), {}, frozenset())
    named = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    widths: list[Width] = []
    leaves: dict[str, tuple[Along, ...]] = {}
    for number, parts in enumerate(module.stages()[1:], start=1):
        place = len(widths)
        widths.append(Width(parts[-1], 1, least=module.rates[number]))
        own = [path for path in named if any(path.startswith(f"{part}.") for part in parts)]
        leaves |= {path: (Along(None, place, 1),) for path in (*own, f"{HERE}.{number}")}
    return Widths(tuple(widths), leaves, frozenset())
