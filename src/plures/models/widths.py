"""Hidden widths of a network, and networks with fewer units of each.

Layers whose units are the same (a convolution, its normalisation, the inputs of the next layer, both sides of a sum)
have one width. A narrower network keeps the first units of each (Diao et al. 2021, section 3; Horvath et al. 2021,
section 3.1), so it is a part of the whole one: all other entries are zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation.inputs import Inputs
from plures.models import nested
from plures.models.alternatives import OneOf
from plures.models.exits import Staged
from plures.models.following import Follower
from plures.models.network import BATCH_NORMS, INSTANCE_NORMS, call
from plures.models.outputs import told
from plures.models.units import Along, Widths

CLOSE = 1e-6


def widths_of(module: nn.Module, example: Tensor | Inputs) -> Widths:
    """The hidden widths of a network: those of its outputs, and of its inputs, always stay whole.

    Args:
        module: in any mode; it is not changed.
        example: inputs ``(any, *features)``, whose shape and type count.

    Examples:
        >>> found = widths_of(plures.models.mlp((13,), 2, hidden=(64, 8)), torch.zeros(0, 13))
        >>> [(width.name, width.size, width.at(0.3)) for width in found.widths]
        [('body.1', 64, 20), ('body.3', 8, 3)]
    """
    module = copy.deepcopy(module).to("cpu", torch.float64).eval()

    def blank(t: Tensor) -> Tensor:
        return torch.zeros(2, *t.shape[1:], dtype=torch.float64 if t.is_floating_point() else t.dtype)

    inputs = nested.mapped(blank, example)
    named = [*module.named_parameters(), *module.named_buffers()]
    follower = Follower({id(t): path for path, t in reversed(named)})
    hooks = []
    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(partial(follower.enter, name)))
        hooks.append(part.register_forward_hook(follower.leave))
    with torch.no_grad(), follower:
        outputs = told(call(module, inputs))
    for hook in hooks:
        hook.remove()
    whole = {mark.width for t in nested.ends(outputs) if isinstance(t, Tensor) and (mark := follower.of(t))}
    for t in nested.ends(outputs):
        whole |= {follower.root(width) for width in follower.lost.get(id(t), ())}
    kept = {old: new for new, old in enumerate(n for n in follower.result() if n not in whole)}
    leaves: dict[str, tuple[Along, ...]] = {}
    for (path, axis), (width, each) in follower.axes.items():
        number = follower.root(width)
        if number in kept:
            leaves[path] = (*leaves.get(path, ()), Along(axis, kept[number], each))
    made = frozenset(path for path in follower.made if any(along.axis == 0 for along in leaves.get(path, ())))
    return Widths(tuple(follower.found[old] for old in kept), leaves, made)


def narrowed(module: nn.Module, widths: Widths, units: Sequence[int]) -> nn.Module:
    """A copy of a network with the first units of each width, in smaller tensors.

    Of stages, and of several networks, those remain of which a unit is kept.

    Args:
        module: the network.
        widths: its widths.
        units: how many units of each width to keep.

    Examples:
        >>> network = plures.models.mlp((13,), 2, hidden=(64, 8))
        >>> widths = widths_of(network, torch.zeros(0, 13))
        >>> narrowed(network, widths, widths.at(0.25))
        Sequential(
          (body): Sequential(
            (0): Flatten(start_dim=1, end_dim=-1)
            (1): Linear(in_features=13, out_features=16, bias=True)
            (2): ReLU()
            (3): Linear(in_features=16, out_features=2, bias=True)
            (4): ReLU()
          )
          (head): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    made = copy.deepcopy(module)
    if isinstance(made, Staged | OneOf):
        gates = made.gates().items()
        made.keep([name for name, path in gates if all(units[along.width] for along in widths.leaves.get(path, ()))])
    new: dict[int, Tensor] = {}
    for name, part in made.named_modules():
        for store in (part._parameters, part._buffers):
            for local, t in store.items():
                axes = widths.leaves.get(f"{name}.{local}".lstrip("."))
                if t is None or axes is None:
                    continue
                few: Tensor = t.detach()
                for along in axes:
                    few = part_of(few, along, units[along.width])
                few = few.clone()
                new[id(t)] = nn.Parameter(few, t.requires_grad) if isinstance(t, nn.Parameter) else few
    for part in made.modules():
        groups = part.num_channels if isinstance(part, nn.GroupNorm) else 0
        for store in (part._parameters, part._buffers):
            for local, t in store.items():
                if t is not None and id(t) in new:
                    store[local] = new[id(t)]  # type: ignore[assignment]
        _resized(part, groups)
    return made


def part_of(value: Tensor, along: Along, units: int) -> Tensor:
    """The first units of a leaf along an axis; a leaf that is held wholly, if it is, as it is."""
    return value if along.axis is None else value.narrow(along.axis, 0, units * along.each)


def _resized(part: nn.Module, channels: int) -> None:
    """Make the numbers that a layer keeps those of its tensors."""
    weight = part._parameters.get("weight")
    if weight is None:
        return
    if isinstance(part, nn.Linear):
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        part.groups = len(weight) if part.groups > 1 else 1
        part.out_channels, part.in_channels = len(weight), weight.shape[1] * part.groups
    elif isinstance(part, (*BATCH_NORMS, *INSTANCE_NORMS)):
        part.num_features = len(weight)
    elif isinstance(part, nn.GroupNorm) and channels:
        part.num_groups, part.num_channels = part.num_groups * len(weight) // channels, len(weight)


def check(module: nn.Module, widths: Widths, example: Tensor | Inputs) -> None:
    """Try whether a narrower network gives the outputs of the whole one in which all other entries are 0.

    Raises:
        PluresError: if it does not.
    """
    units = tuple(width.at(0.5) for width in widths.widths)
    rng = torch.Generator().manual_seed(0)
    whole = copy.deepcopy(module).to("cpu", torch.float64).eval()
    with torch.no_grad():
        for t in (*whole.parameters(), *whole.buffers()):
            if t.is_floating_point():
                t.copy_(torch.rand(t.shape, generator=rng, dtype=t.dtype) - 0.4 * (t.dim() > 1))

        def drawn(t: Tensor) -> Tensor:
            some = torch.zeros(3, *t.shape[1:], dtype=torch.float64 if t.is_floating_point() else t.dtype)
            return some.normal_(generator=rng) if t.is_floating_point() else some

        inputs = nested.mapped(drawn, example)
        few = narrowed(whole, widths, units)
        for path, axes in widths.leaves.items():
            owner, _, name = path.rpartition(".")
            t = getattr(whole.get_submodule(owner), name)
            for along in axes:
                assert along.axis is not None
                rest = t.shape[along.axis] - units[along.width] * along.each
                t.narrow(along.axis, units[along.width] * along.each, rest).zero_()
        try:
            same = torch.allclose(told(call(few, inputs)), told(call(whole, inputs)), rtol=CLOSE, atol=CLOSE)
        except (RuntimeError, ValueError, IndexError) as error:
            first = str(error).strip().partition("\n")[0]
            raise PluresError(
                f"the widths of the network cannot be cut: with half of its units it fails ({first}); let its forward "
                "function read sizes from its tensors"
            ) from error
    if not same:
        raise PluresError(
            "the widths of the network cannot be cut: with half of its units in smaller tensors it gives other outputs "
            "than with the other half set to 0; let its forward function treat all units alike"
        )
