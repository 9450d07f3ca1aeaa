"""Part 1, layout: which leaves are shared with whom."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from plures.errors import PluresError, PluresWarning, suggestion
from plures.given import Given
from plures.method.leaf import Leaf, by_leaf
from plures.method.shares.share import Frozen, Share
from plures.models import LeafInfo
from plures.models.network import NORMS

Choose = Callable[[LeafInfo], bool]
"""Whether a leaf is chosen, by its structure."""


@dataclass(frozen=True)
class Selector:
    """A structural choice of leaves of one slot.

    Attributes:
        name: its name in messages.
        chooses: whether a leaf is chosen, by its structure; never by a substring of its name.
        slot: the slot in which it chooses.
        empty: what to do if nothing is chosen: ``error``, ``warn`` or ``fine``.
        hint: the remedy that the error or warning names.
    """

    name: str
    chooses: Choose
    slot: str = "model"
    empty: str = "error"
    hint: str = "check the selector against the model's leaves"

    @property
    def block(self) -> str:
        """Name of its block; selectors with the same name may choose in several slots."""
        return self.name if self.slot == "model" else f"{self.slot} {self.name}"

    def __or__(self, other: Selector) -> Selector:
        if self.slot != other.slot:
            raise PluresError(f"selectors {self.name!r} and {other.name!r} choose in different slots: use two entries")
        return Selector(f"{self.name}|{other.name}", Given(_either, self.chooses, other.chooses), self.slot)

    def __and__(self, other: Selector) -> Selector:
        return Selector(f"{self.name}&{other.name}", Given(_both, self.chooses, other.chooses), self.slot)

    def __invert__(self) -> Selector:
        return Selector(f"not {self.name}", Given(_not, self.chooses), self.slot, self.empty)


def _either(one: Choose, other: Choose, leaf: LeafInfo) -> bool:
    return one(leaf) or other(leaf)


def _both(one: Choose, other: Choose, leaf: LeafInfo) -> bool:
    return one(leaf) and other(leaf)


def _not(one: Choose, leaf: LeafInfo) -> bool:
    return not one(leaf)


def _of_role(name: str, leaf: LeafInfo) -> bool:
    return name in leaf.roles


def _at(exact: tuple[str, ...], leaf: LeafInfo) -> bool:
    return leaf.path in exact


def _normalises(leaf: LeafInfo) -> bool:
    return issubclass(leaf.module, NORMS)


def _counts(leaf: LeafInfo) -> bool:
    return leaf.buffer and _normalises(leaf)


def _followed(leaf: LeafInfo) -> bool:
    return leaf.buffer


def _always(chosen: bool, leaf: LeafInfo) -> bool:
    return chosen


@cache
def role(name: str) -> Selector:
    """Leaves inside the parts marked with this role (:func:`plures.models.with_roles`)."""
    return Selector(
        name,
        Given(_of_role, name),
        hint=f"mark the part: plures.with_roles(model, {name}='name of the submodule')",
    )


def paths(*exact: str) -> Selector:
    """Leaves with exactly these paths."""
    return Selector(f"paths{exact}", Given(_at, exact))


head = role("head")
body = role("body")
norm_layers = Selector(
    "norm_layers",
    _normalises,
    empty="warn",
    hint="the model has no normalisation layer, so only the rest of the layout applies (FedBN becomes FedAvg)",
)
norm_statistics = Selector(
    "norm_statistics",
    _counts,
    empty="warn",
    hint="the model keeps no running statistics, so this entry does nothing",
)
buffers = Selector("buffers", _followed, empty="fine")
"""Leaves that forward passes update: running statistics, and any other buffers of a module."""
everything = Selector("everything", Given(_always, True), empty="fine")
nothing = Selector("nothing", Given(_always, False), empty="fine")


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
        return self.leaves[0].slot


def matching(key: LayoutKey, info: Mapping[str, Mapping[str, LeafInfo]], where: str) -> list[Leaf]:
    """Leaves that a slot name or selector chooses, except frozen ones.

    Args:
        key: slot name or selector.
        info: structure of every slot's leaves.
        where: what error messages call the place (``layout`` or ``phase``).
    """
    if isinstance(key, str):
        if key not in info:
            raise PluresError(f"{where}: no slot {key!r}; {suggestion(key, info, 'slots are')}")
        return [Leaf(key, path) for path, leaf in info[key].items() if not leaf.frozen]
    if key.slot not in info:
        raise PluresError(
            f"{where}: selector {key.name!r} chooses in slot {key.slot!r}, which does not exist; "
            f"{suggestion(key.slot, info, 'slots are')}"
        )
    chosen = [(path, leaf) for path, leaf in info[key.slot].items() if key.chooses(leaf)]
    found = [Leaf(key.slot, path) for path, leaf in chosen if not leaf.frozen]
    if not found and key.empty != "fine":
        message = f"{where}: selector {key.name!r} matches no leaf of slot {key.slot!r}: {key.hint}"
        if chosen:
            message = f"{where}: all that {key.name!r} chooses is frozen (requires_grad=False), so it does nothing"
        elif key.empty == "error":
            raise PluresError(message)
        warnings.warn(message, PluresWarning, stacklevel=3)
    return found


def address(keys: Sequence[LayoutKey], info: Mapping[str, Mapping[str, LeafInfo]], where: str) -> list[list[Leaf]]:
    """Leaves that each key selects; a leaf goes to the first key that selects it, a frozen one to none.

    Args:
        keys: slot names or selectors.
        info: structure of every slot's leaves.
        where: what error messages call the place (``layout`` or ``phase``).
    """
    return _dealt([matching(key, info, where) for key in keys])


def _dealt(found: list[list[Leaf]]) -> list[list[Leaf]]:
    """Keep every leaf only in the first list that has it."""
    taken: set[Leaf] = set()
    dealt = []
    for leaves in found:
        dealt.append([leaf for leaf in leaves if leaf not in taken])
        taken.update(leaves)
    return dealt


def _partly_frozen(key: Selector, info: Mapping[str, Mapping[str, LeafInfo]]) -> bool:
    """Whether some of what a selector chooses is frozen."""
    return any(leaf.frozen and key.chooses(leaf) for leaf in info[key.slot].values())


def blocks(layout: Layout, info: Mapping[str, Mapping[str, LeafInfo]]) -> tuple[Block, ...]:
    """Resolve a layout against the leaves of every slot. Every leaf must belong to exactly one entry.

    A slot name stands for what other entries leave of the slot, which may be nothing; a selector must choose some
    leaves. Frozen leaves form a block of their own, whatever the layout says about them.
    """
    keys = {key: key if isinstance(key, str) else key.block for key in layout}
    every = [matching(key, info, "layout") for key in keys]
    found = _dealt(every)
    for key, all_leaves, left in zip(keys, every, found, strict=True):
        name = keys[key]
        meant = isinstance(key, Selector) and key.empty != "fine" and not _partly_frozen(key, info)
        if meant and all_leaves and not left:
            owners = [n for n, leaves in zip(keys.values(), found, strict=True) if set(leaves) & set(all_leaves)]
            raise PluresError(
                f"layout: nothing is left for the entry {name!r}: {', '.join(map(repr, owners))} before it "
                f"{'takes' if len(owners) == 1 else 'take'} all its leaves; put the more specific entry first, or "
                f"leave {name!r} out"
            )
    frozen = tuple(leaf for leaf, about in by_leaf(info).items() if about.frozen)
    resolved = [Block("frozen", Frozen(), frozen)] if frozen else []
    resolved += [
        Block(name, share, tuple(leaves))
        for name, share, leaves in zip(keys.values(), layout.values(), found, strict=True)
        if leaves
    ]
    covered = {leaf for block in resolved for leaf in block.leaves}
    for leaf in by_leaf(info):
        if leaf not in covered:
            raise PluresError(f"layout: no entry says with whom {leaf} is shared; add one for {leaf.slot!r}")
    return tuple(resolved)
