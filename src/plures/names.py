"""Names: which are valid, which name a value stands for, and how names are sorted."""

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
"""Most characters of a name."""
FORBIDDEN = "line breaks, control characters or characters that change the direction of text"


def fault(name: str) -> str | None:
    """What is wrong with a name (of a client, a federation, a class, a column); ``None`` if nothing is.

    Quotes, slashes, spaces inside the name, letters of any script and emoji are fine. Characters that a terminal, a log
    or a table would interpret instead of showing are not: line breaks, control characters, direction overrides.
    """
    if not name or name != name.strip():
        return "a name must not be empty or begin or end with a space"
    if visible(name) != name:
        return f"a name may not contain {FORBIDDEN}"
    if len(name) > LONGEST:
        return f"a name has at most {LONGEST} characters, not {len(name)}"
    return None


def checked_name(name: str, what: str) -> str:
    """Return a name if it is valid.

    Args:
        name: the name as given.
        what: what it names, for the message: ``client``, ``--name``.

    Raises:
        PluresError: it is not valid.
    """
    if wrong := fault(name):
        raise PluresError(f"{what} {shortened(name)!r}: {wrong}; choose another")
    return name


def check_words(words: Iterable[str], what: str) -> None:
    """Refuse words in data (classes, columns) that a terminal or a log would interpret; any length and spaces are fine.

    Args:
        words: the words.
        what: what they name, for the message.
    """
    for word in words:
        if visible(word) != word:
            raise PluresError(f"{what} {shortened(word)!r}: a name may not contain {FORBIDDEN}; rename it")


def shortened(name: str) -> str:
    """The beginning of a name, for a message."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."


def name_of(value: object) -> str:
    """The name that a value stands for: text is its own name, a whole number its digits (3, 3.0 and "3" are the same).

    Raises:
        PluresError: for a missing value, empty text, and anything else that cannot be a name.
    """
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int) or value == "":
        raise PluresError(f"{value!r} cannot name a client: give text or a whole number")
    return str(value)


def natural(name: str) -> tuple[str, str]:
    """Sort key of a name: a run of digits counts as a number, so that "2" comes before "10"."""
    return DIGITS.sub(_number, name), name


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in natural order: "ward 2" before "ward 10", otherwise alphabetical."""
    return tuple(sorted(set(names), key=natural))


def name_key(name: str) -> int:
    """A 64-bit key of a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


class Names(tuple[str, ...]):
    """Checked names of clients: valid, distinct, and in natural order.

    There may be a million of them, so lookup tables are built once, on first use.
    """

    @classmethod
    def checked(cls, names: tuple[str, ...], whose: str) -> Names:
        """Check names, unless they were checked before.

        Args:
            names: the names as given.
            whose: their owner, for the beginning of the message.

        Raises:
            PluresError: if a name is not valid or occurs twice, or if they are not in natural order.
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
        """Check names that are already in the order of `in_order`."""
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
        """The `name_key` of each name, ``(names,)``."""
        return np.array([name_key(name) for name in self], dtype=np.uint64)

    def some(self, places: Iterable[int]) -> Names:
        """The names at some positions, given in increasing order."""
        return Names(self[place] for place in places)


def by_name(values: Mapping[Any, V]) -> dict[str, V]:
    """A mapping from clients, keyed by their names; numbers are accepted as names.

    Raises:
        PluresError: if two keys name the same client.
    """
    named: dict[str, V] = {}
    for key, value in values.items():
        if (name := name_of(key)) in named:
            raise PluresError(f"client {name!r} occurs twice among the keys; give it once")
        named[name] = value
    return named


def named(client: NDArray[Any]) -> NDArray[np.str_]:
    """The name of each row's client, ``(n,)``."""
    if client.dtype.kind in "iuUSM":
        return client.astype(str)
    found, code = np.unique(client, return_inverse=True) if client.dtype.kind == "f" else (client, slice(None))
    return np.array([name_of(value) for value in found.tolist()], dtype=np.str_)[code]


def coded(client: NDArray[Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The distinct names in a column in natural order, and each row's index into them."""
    if client.dtype.kind == "O":
        client = named(client)
    values, code = np.unique(client, return_inverse=True)
    found = named(values).tolist()
    names = in_order(found)
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[name] for name in found], dtype=np.int64)[code.reshape(-1)]


def _number(run: re.Match[str]) -> str:
    """Digits as text that sorts by value: first where digits sort, then by length, then by the digits."""
    digits = run[0].lstrip("0")
    return f"0{chr(len(digits))}{digits}"
