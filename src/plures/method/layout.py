"""Part 1, layout: which leaves are shared with whom."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from plures.errors import PluresError, PluresWarning, suggestion
from plures.method.share import Share
from plures.models import LeafInfo
from plures.models.network import NORMS

Leaf = tuple[str, str]
"""A leaf's address in the state: (slot, path)."""


def named(leaf: Leaf) -> str:
    """A leaf's address as one string, ``slot/path``."""
    return "/".join(leaf)


@dataclass(frozen=True)
class Selector:
    """A structural choice of leaves of one slot.

    Attributes:
        name: what messages call it.
        chooses: whether a leaf belongs, from its structure; never from a substring of its name.
        slot: the slot in which it chooses.
        empty: what it means when nothing is chosen: ``error``, ``warn`` or ``fine``.
        hint: the remedy that the error or warning names.
    """

    name: str
    chooses: Callable[[LeafInfo], bool]
    slot: str = "model"
    empty: str = "error"
    hint: str = "check the selector against the model's leaves"

    @property
    def block(self) -> str:
        """What its block is called; selectors of one name may choose in several slots."""
        return self.name if self.slot == "model" else f"{self.slot} {self.name}"

    def __or__(self, other: Selector) -> Selector:
        if self.slot != other.slot:
            raise PluresError(f"selectors {self.name!r} and {other.name!r} choose in different slots: use two entries")
        return Selector(f"{self.name}|{other.name}", lambda leaf: self.chooses(leaf) or other.chooses(leaf), self.slot)

    def __and__(self, other: Selector) -> Selector:
        return Selector(f"{self.name}&{other.name}", lambda leaf: self.chooses(leaf) and other.chooses(leaf), self.slot)

    def __invert__(self) -> Selector:
        return Selector(f"not {self.name}", lambda leaf: not self.chooses(leaf), self.slot, self.empty)


@cache
def role(name: str) -> Selector:
    """Leaves inside the parts marked with this role (:func:`plures.models.with_roles`)."""
    return Selector(
        name,
        lambda leaf: name in leaf.roles,
        hint=f"mark the part: plures.with_roles(model, {name}='name of the submodule')",
    )


def paths(*exact: str) -> Selector:
    """Leaves with exactly these paths."""
    return Selector(f"paths{exact}", lambda leaf: leaf.path in exact)


head = role("head")
body = role("body")
norm_layers = Selector(
    "norm_layers",
    lambda leaf: issubclass(leaf.module, NORMS),
    empty="warn",
    hint="the model has no normalisation layer, so this method is what its remaining layout says (FedBN is FedAvg)",
)
norm_statistics = Selector(
    "norm_statistics",
    lambda leaf: leaf.buffer and issubclass(leaf.module, NORMS),
    empty="warn",
    hint="the model keeps no running statistics, so this entry does nothing",
)
everything = Selector("everything", lambda leaf: True, empty="fine")
nothing = Selector("nothing", lambda leaf: False, empty="fine")


LayoutKey = str | Selector
Layout = Mapping[LayoutKey, Share]


@dataclass(frozen=True)
class Block:
    """One layout entry: leaves that are shared, weighted and compared together, as one vector."""

    name: str
    share: Share
    leaves: tuple[Leaf, ...]

    @property
    def slot(self) -> str:
        """The slot in which its leaves lie."""
        return self.leaves[0][0]


def address(keys: Sequence[LayoutKey], info: Mapping[str, Mapping[str, LeafInfo]], where: str) -> list[list[Leaf]]:
    """Leaves that each key selects; a leaf goes to the first key that selects it.

    Args:
        keys: slot names or selectors.
        info: structure of every slot's leaves.
        where: what error messages call the place (``layout`` or ``phase``).
    """
    taken: set[Leaf] = set()
    chosen: list[list[Leaf]] = []
    for key in keys:
        if isinstance(key, str):
            if key not in info:
                raise PluresError(f"{where}: no slot {key!r}; {suggestion(key, info, 'slots are')}")
            found = [(key, path) for path in info[key]]
        else:
            if key.slot not in info:
                raise PluresError(
                    f"{where}: selector {key.name!r} chooses in slot {key.slot!r}; slots are {', '.join(info)}"
                )
            found = [(key.slot, path) for path, leaf in info[key.slot].items() if key.chooses(leaf)]
            if not found and key.empty != "fine":
                message = f"{where}: selector {key.name!r} matches no leaf of slot {key.slot!r}: {key.hint}"
                if key.empty == "error":
                    raise PluresError(message)
                warnings.warn(message, PluresWarning, stacklevel=2)
        fresh = [leaf for leaf in found if leaf not in taken]
        taken.update(fresh)
        chosen.append(fresh)
    return chosen


def blocks(layout: Layout, info: Mapping[str, Mapping[str, LeafInfo]]) -> tuple[Block, ...]:
    """Resolve a layout against the leaves of every slot. Every leaf must fall to exactly one entry."""
    found = address(list(layout), info, "layout")
    resolved = tuple(
        Block(key if isinstance(key, str) else key.block, share, tuple(leaves))
        for (key, share), leaves in zip(layout.items(), found, strict=True)
        if leaves
    )
    covered = {leaf for block in resolved for leaf in block.leaves}
    for slot, leaves in info.items():
        missing = [path for path in leaves if (slot, path) not in covered]
        if missing:
            raise PluresError(f"layout: no entry says with whom {slot}.{missing[0]} is shared; add one for {slot!r}")
    return resolved
