"""A network for several inputs of real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plures.models.network import with_roles


class SideBySide(nn.Module):
    """A network that reads the numbers of several inputs as one vector.

    Args:
        inner: reads ``(batch, numbers)``.
        names: names of the inputs, in order; none if they have positions alone.
    """

    def __init__(self, inner: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.inner, self.names = inner, tuple(names)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        several = (*inputs, *(named[name] for name in self.names))
        return self.inner(torch.cat([one.flatten(1) for one in several], 1))  # type: ignore[no-any-return]


def side_by_side(inner: nn.Module, names: Sequence[str]) -> nn.Module:
    """The network, with the roles of the inner one."""
    roles: dict[str, tuple[str, ...]] = getattr(inner, "roles", {})
    inside = {role: tuple(f"inner.{part}" if part else "inner" for part in parts) for role, parts in roles.items()}
    return with_roles(SideBySide(inner, [name for name in names if not name.isdecimal()]), **inside)
