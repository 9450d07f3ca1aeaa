"""Floating-point operations of matrix products and convolutions, as PyTorch's formulas count them."""

from __future__ import annotations

from typing import Any

from torch.utils.flop_counter import flop_registry

from plures.models.modes import Mode


class Operations(Mode):  # type: ignore[no-untyped-call]
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
        super().__init__()
        self.total = 0

    def done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=out)
        return out
