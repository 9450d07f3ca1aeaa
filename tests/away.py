"""A fake device: its tensors hold real values, and refuse to mix with CPU tensors wherever CUDA would.

PyTorch's device for shapes without values, ``meta``, is given values: a tensor on it is a wrapper around an ordinary
tensor, and every operation is done with the ordinary ones after a check of where its operands lie. So a program that
forgets to move something to the device fails here, on any machine, in the line in which it would fail on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch

from plures import devices
from plures.models.modes import Mode

AWAY = "meta"
"""Name of the device, for ``.to(AWAY)`` and ``device=AWAY``."""

aten = torch.ops.aten
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
"""Operations that move indices from the CPU themselves."""
FILLING = (aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_)
"""Operations whose last operand is a value: a scalar tensor may lie anywhere."""


class Away(Tensor):
    """A tensor on the fake device.

    Attributes:
        held: its values, an ordinary tensor.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Away:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=AWAY,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation, on the device if its operands or its ``device=`` say so."""
    operands: list[Tensor] = []

    def held(value: Any) -> Any:
        """The values held by tensors of the device; anything else unchanged. Records which tensors take part."""
        if type(value) is Away:
            operands.append(value)
            return value.held
        if isinstance(value, Tensor):
            operands.append(value)
            assert value.device.type != AWAY, f"{func}: a tensor without values"
        return [held(part) for part in value] if isinstance(value, list | tuple) else value

    bare, options = [held(value) for value in args], {key: held(value) for key, value in kwargs.items()}
    wrappers = {id(value.held): value for value in operands if type(value) is Away}
    there = bool(wrappers)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == AWAY
        options["device"] = "cpu"
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of the device, but found one of the CPU")
    if wrappers and len(operands) > len(wrappers):
        check(func, args, operands)
    made = func(*bare, **options)
    if wrappers and torch.Tag.inplace_view in func.tags:
        with no_dispatch():
            func(*args, **kwargs)

    def brought(value: Any) -> Any:
        """A result on the device; a tensor that was changed in place stays the same object."""
        if isinstance(value, Tensor):
            return wrappers[id(value)] if id(value) in wrappers else Away(value)
        return type(value)(map(brought, value)) if isinstance(value, list | tuple) else value

    return brought(made) if there else made


def check(func: Any, args: Any, operands: list[Tensor]) -> None:
    """Refuse operands of both devices, with the exceptions that CUDA makes."""
    plain = [value for value in operands if not isinstance(value, Away)]
    packet = func.overloadpacket
    if not plain or packet in (aten.copy_, aten.copy):
        return
    strict: list[Tensor] = plain
    if packet in INDEXING:
        if isinstance(args[0], Away):
            strict = [value for value in args[2:3] if isinstance(value, Tensor) and not isinstance(value, Away)]
        strict = [value for value in strict if value.dim() > 0]
        if not isinstance(args[0], Away) and any(isinstance(index, Away) for index in args[1]):
            strict = plain
    elif packet in FILLING:
        strict = operands[:-1] if operands[-1].dim() == 0 else operands
        strict = strict if len({type(value) for value in strict}) > 1 else []
    elif packet is aten.where or (torch.Tag.pointwise in func.tags and len(operands) == 2):
        strict = [value for value in plain if value.dim() > 0]
        if func._schema.is_mutable and not isinstance(args[0], Away):
            strict = plain
    if strict:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found some on the CPU: "
            f"{[(tuple(value.shape), value.device.type) for value in operands]}"
        )


def listed(index: Any) -> Any:
    """A list of places as a tensor, on the CPU; PyTorch would make one without values."""
    if not isinstance(index, list | np.ndarray):
        return index
    return torch.tensor(index) if len(index) else torch.empty(0, dtype=torch.int64)


class Operations(Mode):
    """Operations that make tensors on the device, or bring them there."""

    def done(self, func: Any, args: Any, kwargs: Any) -> Any:
        return computed(func, args, kwargs)


class Functions(TorchFunctionMode):
    """Functions that PyTorch answers before any operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], Away):
            return args[0].cpu().tolist()
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor and args[0].device.type == AWAY:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | kwargs).to(AWAY)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(map(listed, index)), *args[2:]
        return func(*args, **kwargs)


@contextmanager
def pretended() -> Iterator[str]:
    """Make the device available, next to the CPU; yields its name."""
    autocast = torch.autocast

    def known(device: str, *args: Any, **options: Any) -> torch.autocast:
        return autocast("cpu" if device == AWAY else device, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "here", lambda: ["cpu", f"{AWAY}:0"])
        patch.setattr(torch, "autocast", known)
        with Operations(), Functions():
            yield AWAY
