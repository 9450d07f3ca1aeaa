"""Small trainable parts added to the layers of a model: low-rank adaptation and bottleneck adapters.

Both start at zero: at first the model's outputs are unchanged, bit for bit. Their random values come from
PyTorch's generator, so inside a factory (``lambda: with_lora(resnet((3, 32, 32), 10))``) they follow the run's seed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.network import with_roles

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers that can be adapted; with linear ones, those that hold their weight transposed (:func:`transposed`)."""
Layer = nn.Linear | nn.Conv1d | nn.Conv2d
Targets = Sequence[type[nn.Module] | str]
Roles = Mapping[str, tuple[str, ...]]
Parts = dict[nn.Module, nn.Module]


class Zero(nn.Module):
    """A layer that is initialised, and reset, to zero."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ZeroLinear(Zero, nn.Linear):
    pass


class ZeroConv1d(Zero, nn.Conv1d):
    pass


class ZeroConv2d(Zero, nn.Conv2d):
    pass


class Bottleneck(nn.Module):
    """An adapter (Houlsby et al. 2019, Figure 2) without its skip connection: ``up(relu(down(x)))``, zero at the start.

    Args:
        features: size of the channel axis of its input and output.
        width: width of the bottleneck.
        dims: dimensions after the channel axis: 0 (channels are last), 1 or 2.
    """

    def __init__(self, features: int, width: int, dims: int = 0) -> None:
        super().__init__()
        self.down: nn.Module
        self.up: nn.Module
        if dims == 0:
            self.down, self.up = nn.Linear(features, width), ZeroLinear(width, features)
        elif dims == 1:
            self.down, self.up = nn.Conv1d(features, width, 1), ZeroConv1d(width, features, 1)
        else:
            self.down, self.up = nn.Conv2d(features, width, 1), ZeroConv2d(width, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x)))  # type: ignore[no-any-return]


def transposed(layer: nn.Module) -> bool:
    """Whether a layer is ``Conv1D`` of transformers, as in GPT-2: linear, with a weight ``(inputs, outputs)``."""
    known = sys.modules.get("transformers.pytorch_utils")  # imported, if the model has such a layer
    return known is not None and isinstance(layer, known.Conv1D)


class Adapted(nn.Module):
    """A layer followed by an adapter: ``h + adapter(h)``."""

    def __init__(self, base: Layer, width: int) -> None:
        super().__init__()
        dims, outputs = base.weight.dim() - 2, base.weight.shape[1 if transposed(base) else 0]
        self.base, self.adapter = base, Bottleneck(outputs, width, dims).to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.base(x)
        return h + self.adapter(h)  # type: ignore[no-any-return]


class Lora(nn.Module):
    """``W x + (alpha / rank) B A x`` (Hu et al. 2022, equation 3); B starts as zero, A like any layer.

    For a convolution, A has the same geometry and ``rank`` filters, B a pointwise one; each group has its own.

    Args:
        base: the layer with W.
        rank: rank of ``B A``.
        alpha: see the formula.
    """

    def __init__(self, base: Layer, rank: int, alpha: float) -> None:
        super().__init__()
        a: nn.Module
        b: nn.Module
        self.transposed = transposed(base)
        if isinstance(base, nn.Linear) or self.transposed:
            inputs, outputs = base.weight.shape if self.transposed else base.weight.shape[::-1]
            a, b = nn.Linear(inputs, rank, bias=False), ZeroLinear(rank, outputs, bias=False)
        else:
            kind, zero = (nn.Conv1d, ZeroConv1d) if isinstance(base, nn.Conv1d) else (nn.Conv2d, ZeroConv2d)
            same = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
            geometry: dict[str, Any] = {name: getattr(base, name) for name in same}
            a = kind(base.in_channels, rank * base.groups, bias=False, **geometry)
            b = zero(rank * base.groups, base.out_channels, 1, groups=base.groups, bias=False)
        self.base, self.rank, self.scale = base, rank, alpha / rank
        self.lora_a, self.lora_b = a.to(base.weight), b.to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.lora_b(self.lora_a(x))  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """``W + (alpha / rank) B A``, for modules that read a layer's weights directly (``nn.MultiheadAttention``)."""
        w = self.base.weight
        if self.transposed:
            return w + self.scale * (self.lora_b.weight @ self.lora_a.weight).T
        a = self.lora_a.weight.reshape(-1, self.rank, w[0].numel())
        b = self.lora_b.weight.reshape(len(a), -1, self.rank)
        return w + self.scale * (b @ a).reshape(w.shape)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.base.bias


def with_lora(
    module: nn.Module, rank: int = 4, alpha: float | None = None, targets: Targets = LAYERS, head: bool = False
) -> nn.Module:
    """A copy of a module with low-rank adaptation (Hu et al. 2022) of its linear layers and convolutions.

    Roles are preserved; ``lora`` marks all factors, ``lora_a`` and ``lora_b`` those of one kind. To train the factors
    alone, a layout freezes the rest. Linear layers include ``Conv1D`` of transformers (GPT-2). In
    ``nn.MultiheadAttention`` only the output projection is a separate layer.

    Args:
        module: any network.
        rank: rank of the updates.
        alpha: updates are scaled by ``alpha / rank``; ``rank`` if not given.
        targets: types of layers, or names of parts whose layers are adapted (``module.roles["attention"]``).
        head: adapt the part marked as head too, when choosing by type.
    """
    alpha = float(rank) if alpha is None else alpha
    if rank < 1 or not alpha > 0:
        raise PluresError(f"with_lora: rank={rank}, alpha={alpha}: give a rank of 1 or more and a positive alpha")
    clone = copy.deepcopy(module)
    chosen = _chosen(clone, targets, head, skip=())
    a, b = (tuple(_inside(name, part) for name in chosen) for part in ("lora_a", "lora_b"))
    wrapped: Parts = {layer: Lora(layer, rank, alpha) for layer in chosen.values()}
    return with_roles(_replaced(clone, wrapped), **{**_roles(module), "lora": (*a, *b), "lora_a": a, "lora_b": b})


def with_adapters(module: nn.Module, width: int, targets: Targets = LAYERS, head: bool = False) -> nn.Module:
    """A copy of a module with a bottleneck adapter (Houlsby et al. 2019) after its linear layers and convolutions.

    Roles are preserved, and ``adapter`` marks the adapters. Layers of ``nn.MultiheadAttention`` and
    ``nn.TransformerEncoderLayer`` are left out, because these read the weights without calling the layers.

    Args:
        module: any network.
        width: width of the bottlenecks.
        targets: types of layers, or names of parts whose layers get an adapter.
        head: also adapt the part marked as head, when choosing by type.
    """
    if width < 1:
        raise PluresError(f"with_adapters: width={width}: give 1 or more")
    clone, roles = copy.deepcopy(module), _roles(module)
    chosen = _chosen(clone, targets, head, skip=(nn.MultiheadAttention, nn.TransformerEncoderLayer))
    wrapped: Parts = {layer: Adapted(layer, width) for layer in chosen.values()}
    own = (*roles.get("adapter", ()), *(_inside(name, "adapter") for name in chosen))
    return with_roles(_replaced(clone, wrapped), **{**roles, "adapter": own})


def merged(module: nn.Module) -> nn.Module:
    """A copy of a module with every ``W + (alpha / rank) B A`` folded into a plain layer, for inference."""
    clone = copy.deepcopy(module)
    plain: Parts = {}
    for part in clone.modules():
        if isinstance(part, Lora):
            weight = part.weight.detach()
            part.base.weight = nn.Parameter(weight, requires_grad=part.base.weight.requires_grad)
            plain[part] = part.base
    kept = {role: names for role, names in _roles(module).items() if role not in ("lora", "lora_a", "lora_b")}
    return with_roles(_replaced(clone, plain), **kept)


def _roles(module: nn.Module) -> Roles:
    return getattr(module, "roles", {})


def _inside(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(not part or name == part or name.startswith(f"{part}.") for part in parts)


def _is(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return isinstance(layer, kinds) or (nn.Linear in kinds and transposed(layer))


def _chosen(module: nn.Module, targets: Targets, head: bool, skip: tuple[type[nn.Module], ...]) -> dict[str, Layer]:
    """The layers to adapt, each once, by name."""
    names = dict(module.named_modules())
    if any(isinstance(part, Lora | Adapted) for part in names.values()):
        raise PluresError("the model has LoRA or adapters already: start from the model without them")
    parts = [target for target in targets if isinstance(target, str)]
    for part in parts:
        if part not in names:
            raise PluresError(f"targets: the model has no part {part!r}; parts are {', '.join(filter(None, names))}")
    kinds = tuple(target for target in targets if not isinstance(target, str))
    left = [name for name, part in names.items() if isinstance(part, skip)]
    outside = () if head else _roles(module).get("head", ())
    chosen = {
        name: layer
        for name, layer in names.items()
        if (isinstance(layer, LAYERS) or transposed(layer))
        and not _within(name, left)
        and (_within(name, parts) or (_is(layer, kinds) and not _within(name, outside)))
    }
    if not chosen:
        raise PluresError(
            "no layer to adapt: targets choose no nn.Linear, nn.Conv1d or nn.Conv2d outside the head"
            + (f" and outside {', '.join(kind.__name__ for kind in skip)}" if skip else "")
            + "; use a network that has such layers (mlp, resnet, char_transformer, sage) or built-in adapters "
            "(gcn with adapter=8), or adapt the head too with head=True"
        )
    return chosen


def _replaced(module: nn.Module, new: Parts) -> nn.Module:
    """The module with new parts in place of old ones, wherever these occur."""
    for name, part in list(module.named_modules(remove_duplicate=False)):
        if part in new and name:
            module.set_submodule(name, new[part])
    return new.get(module, module)
