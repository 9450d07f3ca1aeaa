"""Floating-point operations of matrix products and convolutions, as PyTorch's formulas count them."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counted:
    """What a mode does with each operation.

    It is not in the class of the mode itself, because PyTorch loads its compiler for that, which takes a second.
    """

    total: int

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, formula = kwargs or {}, flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:  # type: ignore[attr-defined]
                parts = func.decompose(*args, **given)
            return func(*args, **given) if parts is NotImplemented else parts
        out = func(*args, **given)
        self.total += formula(*args, **given, out_val=out)
        return out


class Operations(_Counted, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is on, like PyTorch's ``FlopCounterMode``, but not module by module, which takes twice as long.

    Attributes:
        total: multiplications and additions so far.

    Examples:
        >>> import torch
        >>> with Operations() as counted:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> counted.total
        48
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
