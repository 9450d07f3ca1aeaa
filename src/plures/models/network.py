"""A module seen as a pure function of its leaves, with the structural role of every leaf."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from plures.errors import PluresError
from plures.models.layers import KEY, KeyedDropout, with_keyed_dropout

Leaves = dict[str, Tensor]
"""Named tensors of one model: parameters and buffers by their path in the module."""

NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True)
class LeafInfo:
    """Where a leaf sits in its module.

    Attributes:
        path: dotted name, as in ``module.state_dict()``.
        module: type of the layer that owns it.
        roles: roles of the parts it lies in, such as ``head``.
        buffer: whether it is a buffer (running statistics) and not a parameter.
    """

    path: str
    module: type[nn.Module]
    roles: frozenset[str]
    buffer: bool


def with_roles(module: nn.Module, **roles: str | tuple[str, ...]) -> nn.Module:
    """Mark parts of a module: ``with_roles(net, head="classifier")``; a value is one or more submodule names.

    Everything outside the head is the ``body`` unless a body is given.
    """
    names = dict(module.named_modules())
    marked = {role: (parts,) if isinstance(parts, str) else tuple(parts) for role, parts in roles.items()}
    for role, parts in marked.items():
        for part in parts:
            if part not in names:
                raise PluresError(f"role {role!r}: the model has no part {part!r}; parts are {', '.join(names)}")
    module.roles = marked  # type: ignore[assignment]
    return module


class Network:
    """A pure function ``(leaves, inputs) -> outputs`` made of an ``nn.Module``.

    The module is copied, never changed. Dropout draws from a key, running statistics are returned as new
    leaves instead of being changed in place.

    Args:
        module: the reference module; its present values are the initial leaves.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = with_keyed_dropout(module)
        for tensor in self.module.parameters():
            tensor.requires_grad_(False)
        self._dropouts = [
            f"{n}.{KEY}" if n else KEY for n, m in self.module.named_modules() if isinstance(m, KeyedDropout)
        ]
        self.live: Leaves = dict(self.module.named_parameters())
        """The module's own parameters: a working copy that calls need not substitute."""
        buffers = {name: b for name, b in self.module.named_buffers() if name not in self._dropouts}
        if not self.live:
            raise PluresError(f"{type(module).__name__} has no parameter, so there is nothing to train")
        self._buffers = tuple(buffers)
        self._initial = {name: t.detach().clone() for name, t in {**self.live, **buffers}.items()}
        self.info = {name: self._inform(name, name in buffers) for name in self._initial}

    def _inform(self, path: str, buffer: bool) -> LeafInfo:
        roles: Mapping[str, tuple[str, ...]] = getattr(self.module, "roles", {})
        inside = {
            role for role, parts in roles.items() if any(path.startswith(f"{part}.") or path == part for part in parts)
        }
        if "head" in roles and "body" not in roles and "head" not in inside:
            inside.add("body")
        owner = self.module.get_submodule(path.rpartition(".")[0])
        return LeafInfo(path, type(owner), frozenset(inside), buffer)

    @property
    def random(self) -> bool:
        """Whether training draws random numbers (dropout)."""
        return bool(self._dropouts) or self.unmappable is not None

    @cached_property
    def batch_coupled(self) -> bool:
        """Whether an example's output depends on the others in its batch (batch normalisation)."""
        return any(
            isinstance(m, nn.modules.batchnorm._BatchNorm)
            or (isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats)
            for m in self.module.modules()
        )

    @cached_property
    def unmappable(self) -> str | None:
        """Why clients cannot be stacked through this module, or ``None``."""
        for name, m in self.module.named_modules():
            hidden = isinstance(m, nn.RNNBase | nn.MultiheadAttention) and m.dropout > 0
            if hidden:
                return f"{name} ({type(m).__name__}) draws its dropout internally"
            if isinstance(m, nn.Embedding) and m.sparse:
                return f"{name} (Embedding) has sparse gradients"
        return None

    def leaves(self) -> Leaves:
        """A fresh copy of the initial leaves."""
        return {name: t.clone() for name, t in self._initial.items()}

    def __call__(
        self, leaves: Leaves, inputs: Tensor, *, train: bool, key: Tensor | None = None
    ) -> tuple[Tensor, Leaves]:
        """Outputs for a batch, and the buffers after it (empty when evaluating or when there are none).

        Args:
            leaves: values of all parameters and buffers.
            inputs: ``(batch, *features)``.
            train: training mode (dropout on, batch statistics).
            key: int64 scalar that determines the dropout masks.
        """
        if self.module.training != train:
            self.module.train(train)
        if leaves is self.live and not (train and self.random):
            return self.module(inputs), {}
        values = dict(leaves)
        fresh: Leaves = {}
        if train and self._buffers:
            fresh = {name: leaves[name].clone() for name in self._buffers}
            values.update(fresh)
        if not train or key is None:
            return functional_call(self.module, values, (inputs,)), fresh
        values.update(dict.fromkeys(self._dropouts, key))
        if self.unmappable is None:
            return functional_call(self.module, values, (inputs,)), fresh
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(key))
            return functional_call(self.module, values, (inputs,)), fresh


ModelFactory = Callable[[], nn.Module]


def build(model: nn.Module | ModelFactory, seed: int) -> nn.Module:
    """A module whose initial values are a function of ``seed``.

    Args:
        model: a factory, called with the seed set; or a module, taken as it is for seed 0 and with its layers'
            ``reset_parameters`` called on a copy for other seeds.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(model, nn.Module):
            return model()
        clone = copy.deepcopy(model)
        if seed != 0:
            for layer in clone.modules():
                reset = getattr(layer, "reset_parameters", None)
                if callable(reset):
                    reset()
                elif any(True for _ in layer.parameters(recurse=False)):
                    raise PluresError(
                        f"{type(layer).__name__} has parameters but no reset_parameters(): give a factory "
                        "(a function that returns a new module) instead of a module"
                    )
        return clone
