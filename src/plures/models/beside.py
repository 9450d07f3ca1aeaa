"""A model with a part that its forward pass does not call."""

from __future__ import annotations

from torch import Tensor, nn

from plures.models.network import with_roles


class Beside(nn.Module):
    """``base`` with an additional part, for objectives that call the part themselves (``batch.part(role, ...)``)."""

    def __init__(self, base: nn.Module, part: nn.Module) -> None:
        super().__init__()
        self.base, self.part = base, part

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)  # type: ignore[no-any-return]


def beside(base: nn.Module, role: str, part: nn.Module) -> nn.Module:
    """A model with an additional part, marked with a role; the roles of ``base`` are preserved.

    Args:
        base: the model, whose outputs do not change.
        role: role of the part, such as ``decoder``.
        part: any module.
    """
    found: dict[str, tuple[str, ...]] = getattr(base, "roles", {})
    kept: dict[str, str | tuple[str, ...]] = {
        name: tuple(f"base.{part}" if part else "base" for part in parts) for name, parts in found.items()
    }
    return with_roles(Beside(base, part), **{**kept, role: "part"})
