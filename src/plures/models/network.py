"""A module seen as a pure function of its leaves, with the structural role of every leaf."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from plures.errors import PluresError, suggestion
from plures.models.layers import KEY, KeyedDropout, with_keyed_dropout
from plures.signature import checked, shown

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


@checked
def with_roles(module: nn.Module, **roles: str | tuple[str, ...]) -> nn.Module:
    """Mark parts of a module: ``with_roles(net, head="classifier")``; a value is one or more submodule names.

    Everything outside the head is the ``body`` unless a body is given.
    """
    names = dict(module.named_modules())
    marked = {role: (parts,) if isinstance(parts, str) else tuple(parts) for role, parts in roles.items()}
    for role, parts in marked.items():
        for part in parts:
            if part not in names:
                near = suggestion(part, filter(None, names), "parts are")
                raise PluresError(f"role {role!r}: the model has no part {part!r}; {near}")
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
        self._dropouts = {n: m for n, m in self.module.named_modules() if isinstance(m, KeyedDropout)}
        self._keys = [f"{name}.{KEY}" if name else KEY for name in self._dropouts]
        buffers = {name: b.detach().clone() for name, b in self.module.named_buffers() if name not in self._keys}
        self._buffers = {name: self._place(name) for name in buffers}
        self.live: Leaves = {**dict(self.module.named_parameters()), **buffers}
        """A working copy that calls need not substitute: the module's own parameters, and buffers."""
        if len(self.live) == len(buffers):
            raise PluresError(f"{type(module).__name__} has no parameter, so there is nothing to train")
        self._initial = {name: t.detach().clone() for name, t in self.live.items()}
        self.info = {name: self._inform(name, name in buffers) for name in self._initial}
        self.dtype = next(t.dtype for t in self.live.values() if t.is_floating_point())
        """Floating-point type of the first leaf that has one."""
        self.unmappable = self._sparse()
        """Why clients cannot be stacked through this module, or ``None``; complete after :meth:`probe`."""
        self._draws: str | None = None
        self._plain = not self._buffers and not self._dropouts

    def _place(self, path: str) -> tuple[nn.Module, str]:
        owner, _, name = path.rpartition(".")
        return self.module.get_submodule(owner), name

    def _inform(self, path: str, buffer: bool) -> LeafInfo:
        roles: Mapping[str, tuple[str, ...]] = getattr(self.module, "roles", {})
        inside = {
            role for role, parts in roles.items() if any(path.startswith(f"{part}.") or path == part for part in parts)
        }
        if "head" in roles and "body" not in roles and "head" not in inside:
            inside.add("body")
        return LeafInfo(path, type(self._place(path)[0]), frozenset(inside), buffer)

    def _sparse(self) -> str | None:
        named = self.module.named_modules()
        sparse = [name for name, m in named if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
        return f"{sparse[0] or 'the model'} has sparse gradients" if sparse else None

    def probe(self, inputs: Tensor) -> None:
        """Find out, from one forward pass, whether the module draws random numbers other than by dropout layers.

        Such a module (attention, recurrent layers and functional calls with dropout, ``AlphaDropout``, ...) is
        seeded before each step, and cannot be mapped.

        Args:
            inputs: ``(batch, *features)``, a few examples.
        """
        generators = [torch.default_generator]
        if inputs.is_cuda:
            generators.append(torch.cuda.default_generators[inputs.device.index or 0])
        before = [g.get_state() for g in generators]
        with torch.no_grad():
            self(self.leaves(), inputs, train=True, key=torch.zeros((), dtype=torch.int64, device=inputs.device))
        if any(not torch.equal(old, g.get_state()) for old, g in zip(before, generators, strict=True)):
            self._draws = "the model draws random numbers other than by dropout layers"
            self.unmappable = self.unmappable or self._draws
            self._plain = False
        for old, generator in zip(before, generators, strict=True):
            generator.set_state(old)

    @property
    def random(self) -> bool:
        """Whether training draws random numbers (dropout)."""
        return bool(self._dropouts) or self._draws is not None

    @cached_property
    def batch_coupled(self) -> bool:
        """Whether an example's output depends on the others in its batch (batch normalisation)."""
        return any(
            isinstance(m, nn.modules.batchnorm._BatchNorm)
            or (isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats)
            for m in self.module.modules()
        )

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
        if leaves is self.live and self._plain:
            return self.module(inputs), {}
        fresh = {name: leaves[name].detach().clone() for name in self._buffers} if train else {}
        if train and key is not None and self._draws is not None:
            with seeded(int(key)):
                return self._evaluate(leaves, inputs, fresh, key), fresh
        return self._evaluate(leaves, inputs, fresh, key), fresh

    def tapped(
        self, leaves: Leaves, inputs: Tensor, *, train: bool, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Leaves]:
        """Outputs, representations ``(batch, d)`` (what the head gets), and the buffers after the pass."""
        caught: list[Tensor] = []
        name = self.one("head")
        head = self.module.get_submodule(name)
        hook = head.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        try:
            outputs, buffers = self(leaves, inputs, train=train, key=key)
        finally:
            hook.remove()
        if not caught:
            raise PluresError(f"the model never calls its head {name!r}: mark the part that gives the outputs")
        return outputs, caught[-1], buffers

    def part(self, role: str, leaves: Leaves, inputs: Tensor) -> Tensor:
        """Outputs of the one submodule with a role.

        Args:
            role: such as ``head``.
            leaves: values of at least the part's leaves, by their paths in the whole model.
            inputs: what the part reads.
        """
        name = self.one(role)
        values = {path.removeprefix(f"{name}."): t for path, t in leaves.items() if path.startswith(f"{name}.")}
        return functional_call(self.module.get_submodule(name), values, (inputs,))  # type: ignore[no-any-return]

    def one(self, role: str) -> str:
        """Name of the only submodule with a role."""
        parts: tuple[str, ...] = getattr(self.module, "roles", {}).get(role, ())
        if len(parts) != 1:
            found = ", ".join(parts) or "none"
            raise PluresError(
                f"the model needs exactly one part marked {role!r} (found: {found}): mark it with "
                f"plures.with_roles(model, {role}='name of the submodule')"
            )
        return parts[0]

    def zero(self, device: torch.device) -> Tensor:
        """A scalar zero of the model's type."""
        return torch.zeros((), dtype=self.dtype, device=device)

    def _evaluate(self, leaves: Leaves, inputs: Tensor, fresh: Leaves, key: Tensor | None) -> Tensor:
        for dropout in self._dropouts.values():
            dropout.calls = 0
        if leaves is not self.live:
            values = {**leaves, **fresh}
            if key is not None:
                values.update(dict.fromkeys(self._keys, key))
            return functional_call(self.module, values, (inputs,))  # type: ignore[no-any-return]
        for name, (owner, local) in self._buffers.items():
            setattr(owner, local, fresh.get(name, leaves[name]))
        if key is not None:
            for dropout in self._dropouts.values():
                dropout.dropout_key = key
        return self.module(inputs)  # type: ignore[no-any-return]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's generators start from a seed, and are afterwards as they were, on every CUDA device that is in use."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if used else ()
    with torch.random.fork_rng(list(devices), device_type="cuda"):
        torch.manual_seed(seed)
        yield


ModelFactory = Callable[[], nn.Module]


def made(factory: ModelFactory) -> nn.Module:
    """What a factory makes, if it is a module."""
    try:
        module = factory()
    except TypeError as error:
        raise PluresError(
            f"the model's factory failed ({error}): give a function without parameters that returns a new module, "
            "such as lambda: nn.Linear(13, 2)"
        ) from error
    if not isinstance(module, nn.Module):
        raise PluresError(f"the model's factory returns {shown(module)}: let it return a torch.nn.Module")
    return module


def build(model: nn.Module | ModelFactory, seed: int) -> nn.Module:
    """A module whose initial values are a function of ``seed``.

    Args:
        model: a factory, called with the seed set; or a module, taken as it is for seed 0 and with its layers'
            ``reset_parameters`` called on a copy for other seeds.
    """
    with seeded(seed):
        if not isinstance(model, nn.Module):
            return made(model)
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
