"""A module seen as a pure function of its leaves, with the structural role of every leaf."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import MappingKey, register_pytree_node

from plures.errors import PluresError, suggestion
from plures.federation.inputs import Inputs
from plures.models.alternatives import OneOf
from plures.models.layers import KEY, KeyedDropout, with_keyed_dropout
from plures.models.outputs import told
from plures.signature import checked, shown

if TYPE_CHECKING:
    from plures.models.units import Widths

Leaves = dict[str, Tensor]
"""Named tensors of one model: parameters and buffers by their path in the module."""


class Marked(Leaves):
    """Leaves that know which of them arithmetic must not change: frozen ones, and buffers, which forward passes update.

    Attributes:
        fixed: paths of these leaves.
    """

    fixed: frozenset[str]

    def __init__(self, leaves: Mapping[str, Tensor], fixed: frozenset[str]) -> None:
        super().__init__(leaves)
        self.fixed = fixed


register_pytree_node(
    Marked,
    lambda leaves: (list(leaves.values()), (list(leaves), leaves.fixed)),
    lambda values, known: Marked(dict(zip(known[0], values, strict=True)), known[1]),
    serialized_type_name="plures.models.Marked",
    flatten_with_keys_fn=lambda leaves: (
        [(MappingKey(path), t) for path, t in leaves.items()],
        (list(leaves), leaves.fixed),
    ),
)


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS: tuple[type[nn.Module], ...] = (
    *BATCH_NORMS,
    *INSTANCE_NORMS,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


FEATURES = "frozen features"
"""Name of an input that is what the first part of a network would give (:meth:`Network.beyond`); no argument has it."""

CONVOLUTIONS: Mapping[Callable[..., Tensor], int] = MappingProxyType({F.conv1d: 1, F.conv2d: 2, F.conv3d: 3})
"""Functions that convolve, and the number of their kernel's axes."""


class Calls(TorchFunctionMode):
    """Records the PyTorch functions that are called in its context.

    Attributes:
        made: the functions called so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: set[Callable[..., Any]] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.made.add(func)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class LeafInfo:
    """Position of a leaf in its module.

    Attributes:
        path: dotted name, as in ``module.state_dict()``.
        module: type of the layer that owns it.
        roles: roles of the parts it lies in, such as ``head``.
        buffer: whether it is a buffer (running statistics) and not a parameter.
        frozen: whether it never changes: a parameter that came with ``requires_grad=False``, or a buffer of a layer all
            of whose parameters did.
    """

    path: str
    module: type[nn.Module]
    roles: frozenset[str]
    buffer: bool
    frozen: bool = False


@checked
def with_roles(module: nn.Module, **roles: str | tuple[str, ...]) -> nn.Module:
    """Mark parts of a module: ``with_roles(net, head="classifier")``; a value is one or more submodule names.

    Everything outside the head is the ``body`` unless a body is given.

    Examples:
        >>> from torch import nn
        >>> network = plures.with_roles(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), head="2")
        >>> from plures.models import Network
        >>> [path for path, leaf in Network(network).info.items() if "head" in leaf.roles]
        ['2.weight', '2.bias']
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


@dataclass
class Cut:
    """Whether the first part of a network is skipped at the moment."""

    skips: bool = False

    @contextmanager
    def skipping(self) -> Iterator[None]:
        self.skips = True
        try:
            yield
        finally:
            self.skips = False


@dataclass
class Skipped:
    """The forward function of a module that can be skipped; then it gives what it gets.

    Attributes:
        forward: the module's own.
        cut: says when.
    """

    forward: Callable[..., Any]
    cut: Cut

    def __call__(self, *args: Any, **options: Any) -> Any:
        return args[0] if self.cut.skips else self.forward(*args, **options)


class Network:
    """A pure function ``(leaves, inputs) -> outputs`` made from an ``nn.Module``.

    The module is copied, never changed. Dropout draws from a key, running statistics are returned as new
    leaves instead of being changed in place.

    Parameters with ``requires_grad=False`` are frozen. A layer with buffers (batch normalisation) is frozen if all its
    parameters are or, without parameters, if all those of the smallest enclosing module that has some are. It then
    keeps its running statistics and also uses them in training.

    Args:
        module: the reference module; its current values are the initial leaves.

    Attributes:
        frozen: paths of the leaves that never change.
        fixed: paths of the leaves that no arithmetic changes: buffers and frozen leaves.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = with_keyed_dropout(module)
        held = {name for name, p in self.module.named_parameters() if not p.requires_grad}
        self._still = [layer for layer in self._stateful() if self._frozen_around(layer)]
        for tensor in self.module.parameters():
            tensor.requires_grad_(False)
        self._dropouts = {n: m for n, m in self.module.named_modules() if isinstance(m, KeyedDropout)}
        self._keys = [f"{name}.{KEY}" if name else KEY for name in self._dropouts]
        buffers = {name: b.detach().clone() for name, b in self.module.named_buffers() if name not in self._keys}
        self._buffers = {name: self._place(name) for name in buffers}
        self.frozen = frozenset(held | {n for n, (owner, _) in self._buffers.items() if owner in self._still})
        self.fixed = frozenset(buffers) | self.frozen
        self.live: Leaves = Marked({**dict(self.module.named_parameters()), **buffers}, self.fixed)
        """Leaves that a call uses in place, without substitution: the module's own parameters, and copied buffers."""
        self._ties = ties(self.module)
        if len(self.live) == len(buffers):
            raise PluresError(f"{type(module).__name__} has no parameter, so there is nothing to train")
        self._initial = {name: t.detach().clone() for name, t in self.live.items()}
        self.info = {name: self._inform(name, name in buffers) for name in self._initial}
        self.dtype = next(t.dtype for t in self.live.values() if t.is_floating_point())
        """Floating-point type of the first leaf that has one."""
        self.unmappable = self._sparse()
        """Why clients cannot be stacked through this module, or ``None``; complete after :meth:`probe`."""
        self.convolves: frozenset[int] = frozenset()
        """Numbers of axes of the convolutions that a forward pass makes; known after :meth:`probe`."""
        self.widths: Widths | None = None
        """Its hidden widths, where clients hold parts of the network that differ in size."""
        self._draws: str | None = None
        self._cut: Cut | None = None
        self._plain = not self._buffers and not self._dropouts

    def _stateful(self) -> list[nn.Module]:
        """Layers with their own buffers."""
        return [m for m in self.module.modules() if any(n != KEY for n, _ in m.named_buffers(recurse=False))]

    def _frozen_around(self, layer: nn.Module) -> bool:
        """Whether all parameters of a layer are frozen, or of the smallest enclosing module that has parameters."""
        (name,) = (name for name, m in self.module.named_modules() if m is layer)
        while not (around := list(self.module.get_submodule(name).parameters())) and name:
            name = name.rpartition(".")[0]
        return bool(around) and not any(p.requires_grad for p in around)

    def holding(self, paths: frozenset[str]) -> Network:
        """The same network, whose layers with all their own leaves among ``paths`` use their buffers in training."""
        held = copy.copy(self)
        names = {m: n for n, m in self.module.named_modules()}
        for layer in self._stateful():
            own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
            if layer not in held._still and all(f"{names[layer]}.{name}".lstrip(".") in paths for name, _ in own):
                held._still = [*held._still, layer]
        return held

    def _mode(self, train: bool) -> None:
        """Training mode or not; layers that are frozen with their buffers stay in evaluation mode."""
        if self.module.training != train:
            self.module.train(train)
            for layer in self._still:
                layer.training = False

    def still(self, layer: nn.Module) -> bool:
        """Whether a layer keeps its running statistics in training."""
        return layer in self._still

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
        return LeafInfo(path, type(self._place(path)[0]), frozenset(inside), buffer, path in self.frozen)

    def _sparse(self) -> str | None:
        named = self.module.named_modules()
        sparse = [name for name, m in named if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
        return f"{sparse[0] or 'the model'} has sparse gradients" if sparse else None

    def probe(self, inputs: Tensor | Inputs) -> None:
        """Find out, from one forward pass, whether the module convolves, and whether it draws random numbers.

        A module that draws random numbers other than by dropout layers (attention, recurrent layers and functional
        calls with dropout, ``AlphaDropout``, ...) is seeded before each step, and cannot be mapped.

        Args:
            inputs: ``(batch, *features)``, a few examples.
        """
        generators = [torch.default_generator]
        if inputs.device.type == "cuda":
            generators.append(torch.cuda.default_generators[inputs.device.index or 0])
        before = [g.get_state() for g in generators]
        with torch.no_grad(), Calls() as calls:
            self(self.leaves(), inputs, train=True, key=torch.zeros((), dtype=torch.int64, device=inputs.device))
        self.convolves = frozenset(axes for call, axes in CONVOLUTIONS.items() if call in calls.made)
        if any(not torch.equal(old, g.get_state()) for old, g in zip(before, generators, strict=True)):
            self._draws = "the model draws random numbers other than by dropout layers"
            self.unmappable = self.unmappable or self._draws
            self._plain = False
        for old, generator in zip(before, generators, strict=True):
            generator.set_state(old)

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers other than by dropout layers; known after :meth:`probe`."""
        return self._draws is not None

    def beyond(self, first: tuple[str, ...]) -> Network:
        """A copy that also takes what its first part gives, as the only input :data:`FEATURES`, and then skips it.

        Args:
            first: names of the modules of the first part.
        """
        made = copy.deepcopy(self)
        made._cut = Cut()
        for name in first:
            part = made.module.get_submodule(name)
            part.forward = Skipped(part.forward, made._cut)
        return made

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The module in evaluation mode, with its initial values."""
        self._mode(train=False)
        yield self.module

    @property
    def random(self) -> bool:
        """Whether training draws random numbers (dropout)."""
        return bool(self._dropouts) or self._draws is not None

    @cached_property
    def batch_coupled(self) -> bool:
        """Whether an example's output depends on the others in its batch (batch normalisation)."""
        return any(
            isinstance(m, BATCH_NORMS) or (isinstance(m, INSTANCE_NORMS) and m.track_running_stats)
            for m in self.module.modules()
            if m not in self._still
        )

    @property
    def statistics(self) -> bool:
        """Whether a forward pass in training leaves other buffers behind."""
        return any(owner not in self._still for owner, _ in self._buffers.values())

    def trainable(self) -> nn.Module:
        """A copy of the module with its initial values, whose parameters have gradients unless they are frozen."""
        made = copy.deepcopy(self.module)
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        with torch.no_grad():
            for name, t in (*made.named_parameters(), *made.named_buffers()):
                if name in self._initial:
                    t.copy_(self._initial[name])
        return made

    def leaves(self) -> Leaves:
        """A fresh copy of the initial leaves."""
        return {name: t.clone() for name, t in self._initial.items()}

    def __call__(
        self, leaves: Leaves, inputs: Tensor | Inputs, *, train: bool, key: Tensor | None = None
    ) -> tuple[Tensor, Leaves]:
        """Outputs for a batch, and the buffers after it (empty when evaluating or when there are none).

        Args:
            leaves: values of all parameters and buffers.
            inputs: ``(batch, *features)``; several become keyword arguments of the module.
            train: training mode (dropout on, batch statistics).
            key: int64 scalar that determines the dropout masks.
        """
        if isinstance(inputs, Inputs) and FEATURES in inputs.parts:
            assert self._cut is not None, "only a copy made by beyond() takes features"
            with self._cut.skipping():
                return self(leaves, inputs[FEATURES], train=train, key=key)
        self._mode(train)
        if leaves is self.live and self._plain:
            return told(call(self.module, inputs)), {}
        fresh = {name: leaves[name].detach().clone() for name in self._buffers}
        drawing = train and key is not None and self._draws is not None
        with seeded(int(key)) if drawing and key is not None else nullcontext():
            outputs = self._evaluate(leaves, inputs, fresh, key)
        return outputs, fresh if train else {}

    def tapped(
        self, leaves: Leaves, inputs: Tensor | Inputs, *, train: bool, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Leaves]:
        """Outputs, representations ``(batch, d)`` (what the head gets), and the buffers after the pass."""
        caught: dict[str, Tensor] = {}
        heads = self.module.heads() if isinstance(self.module, OneOf) else {"": self.one("head")}
        hooks = [
            self.module.get_submodule(name).register_forward_pre_hook(
                lambda module, args, own=own: caught.update({own: args[0]})
            )
            for own, name in heads.items()
        ]
        try:
            outputs, buffers = self(leaves, inputs, train=train, key=key)
        finally:
            for hook in hooks:
                hook.remove()
        for own, name in heads.items():
            if own not in caught:
                raise PluresError(f"the model never calls its head {name!r}: mark the part that gives the outputs")
        if not isinstance(self.module, OneOf) or len(heads) == 1:
            (code,) = caught.values()
            return outputs, code, buffers
        here = {name: leaves[path] for name, path in self.module.gates().items()}
        return outputs, self.module.chosen({name: t.flatten(1) for name, t in caught.items()}, here), buffers

    def heads(
        self, leaves: Leaves, inputs: Tensor | Inputs, *, train: bool, key: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...], Leaves]:
        """Outputs, what each part with the role ``head`` gives, in the order of the role, and the buffers after."""
        parts: tuple[str, ...] = getattr(self.module, "roles", {}).get("head", ())
        caught: dict[str, Tensor] = {}
        hooks = [
            self.module.get_submodule(name).register_forward_hook(
                lambda module, args, given, name=name: caught.update({name: given})
            )
            for name in parts
        ]
        try:
            outputs, buffers = self(leaves, inputs, train=train, key=key)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs, tuple(caught[name] for name in parts), buffers

    def part(self, role: str, leaves: Leaves, inputs: Tensor) -> Tensor:
        """Outputs of the one submodule with a role, in evaluation mode; see :meth:`through`."""
        return self.through(role, leaves, inputs, train=False)[0]

    def through(
        self, role: str, leaves: Leaves, inputs: Tensor, *, train: bool, key: Tensor | None = None
    ) -> tuple[Tensor, Leaves]:
        """Outputs of the one submodule with a role, and its buffers after the pass (none when evaluating).

        Args:
            role: such as ``head``.
            leaves: values of at least the part's leaves, by their paths in the whole model.
            inputs: what the part reads.
            train: training mode.
            key: int64 scalar that determines the dropout masks.
        """
        self._mode(train)
        name = self.one(role)
        inside = f"{name}." if name else ""
        own = {path for path in leaves if path.startswith(inside)}
        fresh = {path: leaves[path].detach().clone() for path in self._buffers if path in own}
        values = self._tied({**leaves, **fresh, **({} if key is None else dict.fromkeys(self._keys, key))})
        given = {path.removeprefix(inside): t for path, t in values.items() if path.startswith(inside)}
        with self._noted(self.module.get_submodule(name), fresh):
            outputs = functional_call(self.module.get_submodule(name), given, (inputs,), tie_weights=False)
        return outputs, fresh if train else {}

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

    def _evaluate(self, leaves: Leaves, inputs: Tensor | Inputs, fresh: Leaves, key: Tensor | None) -> Tensor:
        for dropout in self._dropouts.values():
            dropout.calls = 0
        if leaves is not self.live:
            values = {**leaves, **fresh}
            if key is not None:
                values.update(dict.fromkeys(self._keys, key))
            with self._noted(self.module, fresh):
                outputs = functional_call(self.module, self._tied(values), *arguments(inputs), tie_weights=False)
                return told(outputs)  # type: ignore[no-any-return]
        for name, (owner, local) in self._buffers.items():
            setattr(owner, local, fresh[name])
        if key is not None:
            for dropout in self._dropouts.values():
                dropout.dropout_key = key
        with self._noted(self.module, fresh):
            return told(call(self.module, inputs))  # type: ignore[no-any-return]

    def _tied(self, values: Leaves) -> Leaves:
        """Values by all names under which the module has a tensor; PyTorch would look for them in each call."""
        return values | {other: values[path] for other, path in self._ties.items() if path in values}

    @contextmanager
    def _noted(self, part: nn.Module, fresh: Leaves) -> Iterator[None]:
        """Record the buffers of a part after its pass, if it replaced their tensors (``self.mean = ...``)."""

        def note(module: nn.Module, args: object, outputs: object) -> None:
            for name in fresh:
                owner, local = self._buffers[name]
                fresh[name] = getattr(owner, local).detach()

        hook = part.register_forward_hook(note) if fresh else None
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()


def ties(module: nn.Module) -> dict[str, str]:
    """Tensors that several submodules share: further paths, each with the first one, which is that of the leaf."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for prefix, part in module.named_modules():
        own = [*part.named_parameters(prefix, False, False), *part.named_buffers(prefix, False, False)]
        found |= {path: first[id(t)] for path, t in own if first.setdefault(id(t), path) != path}
    return found


def arguments(inputs: Tensor | Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments by which a module gets its inputs."""
    return ((inputs,), {}) if isinstance(inputs, Tensor) else inputs.arguments


def call(module: nn.Module, inputs: Tensor | Inputs) -> Any:
    """What a module returns for inputs."""
    if isinstance(inputs, Tensor):
        return module(inputs)
    positional, named = inputs.arguments
    return module(*positional, **named)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's generators, also on every CUDA device in use, and restore their state afterwards."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if used else ()
    with torch.random.fork_rng(list(devices), device_type="cuda"):
        reseeded(seed)
        yield


def reseeded(seed: int) -> None:
    """``torch.manual_seed``, which would note the whole stack for each kind of device that the machine lacks."""
    if torch.cuda.is_initialized() or torch.accelerator.is_available():  # type: ignore[no-untyped-call]
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


ModelFactory = Callable[[], nn.Module]


def made(factory: ModelFactory) -> nn.Module:
    """The module that a factory makes; anything else is refused."""
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
    """The module that a run starts from.

    Args:
        model: a factory, called with the seed set, so that initial values are a function of the seed; or a module,
            whose values are given and start every run alike: a copy of it, whatever the seed.
        seed: of the factory's random numbers.
    """
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    with seeded(seed):
        return made(model)


def redrawn(module: nn.Module, seed: int) -> nn.Module:
    """A copy of a module with new random values, as its layers' ``reset_parameters`` draws them.

    Frozen parameters, and layers whose own parameters are all frozen, keep their values.

    Args:
        module: the module.
        seed: of the random numbers.
    """
    clone = copy.deepcopy(module)
    with seeded(seed):
        for layer in clone.modules():
            own = list(layer.parameters(recurse=False))
            held = {p: p.detach().clone() for p in own if not p.requires_grad}
            if own and len(held) == len(own):
                continue
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
                with torch.no_grad():
                    for parameter, value in held.items():
                        parameter.copy_(value)
            elif own:
                raise PluresError(
                    f"{type(layer).__name__} has parameters but no reset_parameters(), so a copy with other values "
                    "cannot be made: give the class that method, which draws its parameters"
                )
    return clone
