"""What a tape holds: operations, and the tensors that they read, make and change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from plures.brief import brief

PASSED = frozenset({"alias", "detach", "lift_fresh"})
"""Operations that give their argument, as far as a repetition is concerned."""
SHAPED = frozenset({"_unsafe_view", "expand", "slice", "view"})
"""Operations that give their argument if its shape stays the same."""


@brief
@dataclass(eq=False)
class Value:
    """A tensor of a tape.

    Attributes:
        tensor: the tensor that was seen.
        base: the value whose memory a view uses; ``None`` if it has memory of its own.
        fixed: whether a repetition uses this very tensor.
        same: whether it has the same values in every repetition, whatever is loaded in between.
    """

    tensor: Tensor
    base: Value | None
    fixed: bool
    same: bool = False

    @property
    def memory(self) -> Value:
        return self.base or self


@dataclass(eq=False)
class Call:
    """One operation, with values in place of tensors. It stays as it is: what changes a tape makes other calls.

    Attributes:
        func: the operation.
        args, kwargs: its arguments.
        results: its results; ``None`` for what is no tensor, or one of the arguments.
        changed: values among the arguments that it changes.
    """

    func: Any
    args: list[Any]
    kwargs: dict[str, Any]
    results: list[Value | None]
    changed: list[Value]

    @cached_property
    def made(self) -> list[Value]:
        """The tensors that it makes."""
        return values_in(self.results)

    @cached_property
    def name(self) -> str:
        """Its name, such as ``add_``."""
        return str(self.func._schema.name).removeprefix("aten::")

    @cached_property
    def read(self) -> list[Value]:
        """The values among its arguments."""
        return values_in([self.args, self.kwargs])

    @cached_property
    def passes(self) -> bool:
        """Whether its result is its argument."""
        if len(self.read) != 1 or len(self.made) != 1:
            return False
        one, two = self.read[0].tensor, self.made[0].tensor
        alike = one.shape == two.shape and one.stride() == two.stride() and one.dtype == two.dtype
        return self.name in PASSED or (self.name in SHAPED and alike)


def values_in(arguments: Any) -> list[Value]:
    """The values among arguments, in order."""
    if isinstance(arguments, Value):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = arguments.values()
    elif not isinstance(arguments, list | tuple):
        return []
    found = list[Value]()
    for one in arguments:
        if isinstance(one, Value):
            found.append(one)
        elif isinstance(one, list | tuple | dict):
            found += values_in(one)
    return found


def memories(values: Iterable[Value]) -> set[Value]:
    return {one.memory for one in values}
