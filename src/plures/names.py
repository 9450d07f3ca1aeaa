"""Names: which there may be, what stands for a client, and the order of clients. The one place that decides them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.texts import visible

V = TypeVar("V")
DIGITS = re.compile(r"[0-9]+")
LONGEST = 100
"""Characters of a name."""
NONE = "no line breaks, control characters or signs that turn the direction of a text"


def fault(name: str) -> str | None:
    """What is wrong with a name (of a client, a federation, a class, a column); ``None`` if nothing is.

    Quotes, slashes, spaces inside, signs of any script and emoji are fine. What a terminal, a log or a table would obey
    instead of showing is not: line breaks, control characters, signs that turn the direction of a text.
    """
    if not name or name != name.strip():
        return "a name has at least one sign, and no blanks around it"
    if visible(name) != name:
        return f"a name has {NONE}"
    if len(name) > LONGEST:
        return f"a name has at most {LONGEST} signs, not {len(name)}"
    return None


def checked_name(name: str, what: str) -> str:
    """A name that somebody gave, if it can be one.

    Args:
        name: as it was given.
        what: what it names, for the message: ``client``, ``--name``.

    Raises:
        PluresError: it cannot.
    """
    if wrong := fault(name):
        raise PluresError(f"{what} {shortened(name)!r}: {wrong}; choose another")
    return name


def check_words(words: Iterable[str], what: str) -> None:
    """Refuse words of data (classes, columns) that are obeyed instead of shown, of any length and with any blanks.

    Args:
        words: the words.
        what: what they name, for the message.
    """
    for word in words:
        if visible(word) != word:
            raise PluresError(f"{what} {shortened(word)!r}: a name has {NONE}; rename it")


def shortened(name: str) -> str:
    """The beginning of a name, for a message."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."


def name_of(value: object) -> str:
    """The name that a value stands for: a text itself, a whole number its digits (3, 3.0 and "3" are one client).

    Raises:
        PluresError: for a missing value, an empty text, and anything else that names nobody.
    """
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int) or value == "":
        raise PluresError(f"{value!r} names no client: give a text or a whole number")
    return str(value)


def natural(name: str) -> tuple[str, str]:
    """What names are sorted by: a run of digits counts as a number, so that "2" comes before "10"."""
    return DIGITS.sub(_number, name), name


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Different names in their natural order: "ward 2" before "ward 10", otherwise as texts are sorted."""
    return tuple(sorted(set(names), key=natural))


def name_key(name: str) -> int:
    """A 64-bit key of a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


class Names(tuple[str, ...]):
    """Names of clients that were checked: well formed, different, in natural order.

    There may be a million of them, so what is looked up by name is made once, when it is first asked for.
    """

    @classmethod
    def checked(cls, names: tuple[str, ...], whose: str) -> Names:
        """Check names, unless they were checked before.

        Args:
            names: as they were given.
            whose: what they belong to, as the beginning of the message.

        Raises:
            PluresError: if one is no name, or stands twice, or in another than the natural order.
        """
        if isinstance(names, cls):
            return names
        ordered = in_order(names)
        if names != ordered:
            few = ", ".join(ordered[:10]) + (", ..." if len(ordered) > 10 else "")
            raise PluresError(f"{whose}: client names must be different and in natural order, that is {few}")
        return cls.ordered(names)

    @classmethod
    def ordered(cls, names: tuple[str, ...]) -> Names:
        """Check names that `in_order` gave."""
        if not ("".join(names).isprintable() and all(n and len(n) <= LONGEST and n == n.strip() for n in names)):
            for name in names:
                checked_name(name, "client")
        return cls(names)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The position of each name."""
        return {name: place for place, name in enumerate(self)}

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """``(names,)`` the `name_key` of each."""
        return np.array([name_key(name) for name in self], dtype=np.uint64)

    def some(self, places: Iterable[int]) -> Names:
        """The names at some positions, which are in increasing order."""
        return Names(self[place] for place in places)


def by_name(values: Mapping[Any, V]) -> dict[str, V]:
    """A mapping from clients with their names as keys; numbers are accepted as such.

    Raises:
        PluresError: if two keys mean one client.
    """
    named: dict[str, V] = {}
    for key, value in values.items():
        if (name := name_of(key)) in named:
            raise PluresError(f"client {name!r} stands twice among the keys; give it once")
        named[name] = value
    return named


def named(client: NDArray[Any]) -> NDArray[np.str_]:
    """The name of each row's client, ``(n,)``."""
    if client.dtype.kind in "iuUSM":
        return client.astype(str)
    found, code = np.unique(client, return_inverse=True) if client.dtype.kind == "f" else (client, slice(None))
    return np.array([name_of(value) for value in found.tolist()], dtype=np.str_)[code]


def coded(client: NDArray[Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The different names in a column in their order, and the place of each row's name among them."""
    if client.dtype.kind == "O":
        client = named(client)
    values, code = np.unique(client, return_inverse=True)
    found = named(values).tolist()
    names = in_order(found)
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[name] for name in found], dtype=np.int64)[code.reshape(-1)]


def _number(run: re.Match[str]) -> str:
    """Digits as a text that sorts by their number: where digits sort, then by length, then by the digits."""
    digits = run[0].lstrip("0")
    return f"0{chr(len(digits))}{digits}"
