"""The address of a leaf in a state: its slot, and its path in the slot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Leaf(NamedTuple):
    """A leaf's address in a state. Written ``slot/path``: in messages, in published models, and by the server.

    Examples:
        >>> str(Leaf("model", "fc.weight"))
        'model/fc.weight'
        >>> Leaf.parse("model/fc.weight")
        Leaf(slot='model', path='fc.weight')
    """

    slot: str
    path: str

    def __str__(self) -> str:
        return f"{self.slot}/{self.path}"

    @classmethod
    def parse(cls, text: str) -> Leaf:
        """The leaf that is written ``slot/path``."""
        slot, _, path = text.partition("/")
        return cls(slot, path)


def by_leaf(state: Mapping[str, Mapping[str, T]]) -> dict[Leaf, T]:
    """The leaves of all slots, by address."""
    return {Leaf(slot, path): value for slot, leaves in state.items() for path, value in leaves.items()}


def by_slot(leaves: Mapping[Leaf, T]) -> dict[str, dict[str, T]]:
    """The inverse of :func:`by_leaf`."""
    found: dict[str, dict[str, T]] = {}
    for leaf, value in leaves.items():
        found.setdefault(leaf.slot, {})[leaf.path] = value
    return found


def short_names(leaves: Collection[Leaf]) -> dict[Leaf, str]:
    """Names of leaves in results: their paths, if all are in the slot ``model``, and else ``slot:path``."""
    alone = {leaf.slot for leaf in leaves} == {"model"}
    return {leaf: leaf.path if alone else f"{leaf.slot}:{leaf.path}" for leaf in leaves}


def of_short_name(name: str) -> Leaf:
    """The leaf with a name of :func:`short_names`."""
    slot, colon, path = name.partition(":")
    return Leaf(slot, path) if colon else Leaf("model", name)
