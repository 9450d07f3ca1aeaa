"""Names as they are typed: joined by ``+``, each with options or without, ``ditto(lam=0.1)+topk(0.2)``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from plures.errors import PluresError
from plures.signature import Kinds, read


def pieces(text: str) -> list[str]:
    """What is joined by ``+``."""
    return re.split(r"\+(?![^(]*\))", text)


def called(piece: str, kind: str = "method") -> tuple[str, list[str] | None]:
    """The name of a piece, and its options as they are typed: ``0.1`` by position or ``keep=0.1``; ``None`` for none.

    Args:
        piece: what was typed.
        kind: what is named, for messages.

    Raises:
        PluresError: if it has a parenthesis and is not ``name(options)``.
    """
    if "(" not in piece and ")" not in piece:
        return piece, None
    found = re.fullmatch(r"([^()]+)\((.*)\)", piece, re.DOTALL)
    if found is None:
        raise PluresError(f"{kind} {piece!r}: write name(option=value, ...)")
    inner = found[2].strip()
    return found[1], [one.strip() for one in re.split(r",(?![^\[]*\])", inner)] if inner else []


def options_of(what: str, options: Sequence[str], kinds: Kinds) -> dict[str, Any]:
    """Options that were typed behind a name, by name and as their types.

    Args:
        what: to what they belong, for messages.
        options: as they are typed, those by position first.
        kinds: names and types of what may be given.
    """
    found = dict[str, Any]()
    for place, text in enumerate(options):
        name, sign, value = text.partition("=")
        if not sign:
            if place >= len(kinds) or any("=" in before for before in options[:place]):
                raise PluresError(f"{what}: {text!r} belongs to no option; write name=value")
            name, value = list(kinds)[place], text
        name = name.strip()
        if name in found:
            raise PluresError(f"{what}: {name} is given twice; give it once")
        found[name] = read(f"{what}:", name, value.strip(), kinds.get(name, Any))
    return found
