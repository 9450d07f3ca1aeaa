"""Functions of which some arguments are given, which are compared and pickled by what they consist of."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from plures.content import alike

T = TypeVar("T")


class Given(partial[T]):
    """A function with some of its arguments; equal to another one with the same function and equal arguments.

    Examples:
        >>> Given(max, 1) == Given(max, 1), Given(max, 1) == Given(max, 2), Given(max, 1)(3)
        (True, False, 3)
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Given):
            return NotImplemented
        return self.func == other.func and alike((self.args, self.keywords), (other.args, other.keywords))

    def __hash__(self) -> int:
        return hash((self.func, self.args, tuple(self.keywords)))
