"""Methods as they are typed: names joined by ``+``, each with options or without, ``ditto(lam=0.1)+topk(0.2)``."""

from __future__ import annotations

import re

from plures.errors import PluresError


def pieces(text: str) -> list[str]:
    """What is joined by ``+``."""
    return re.split(r"\+(?![^(]*\))", text)


def called(piece: str) -> tuple[str, list[str] | None]:
    """The name of a piece, and its options as they are typed: ``0.1`` by position or ``keep=0.1``; ``None`` for none.

    Raises:
        PluresError: if it has a parenthesis and is not ``name(options)``.
    """
    if "(" not in piece and ")" not in piece:
        return piece, None
    found = re.fullmatch(r"([^()]+)\((.*)\)", piece, re.DOTALL)
    if found is None:
        raise PluresError(f"method {piece!r}: write name(option=value, ...)")
    inner = found[2].strip()
    return found[1], [one.strip() for one in re.split(r",(?![^\[]*\])", inner)] if inner else []
