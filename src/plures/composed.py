"""Names as they are typed: joined by ``+``, each with options or without, ``ditto(lam=0.1)+topk(0.2)``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from plures.errors import PluresError, suggestion
from plures.signature import Kinds, arguments, kinds, read

T = TypeVar("T")


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


def made(kind: str, text: str, catalogue: Mapping[str, Callable[..., T]], **given: Any) -> T:
    """The object that a text names, such as the optimizer ``sgd(momentum=0.9)``.

    Args:
        kind: what is named, for messages.
        text: the name, with options or without.
        catalogue: the functions that make the objects, by name.
        given: options that are not typed behind the name.

    Raises:
        PluresError: if there is no such name, or an option is unknown, does not fit, or is given already.
    """
    name, options = called(text, kind)
    if name not in catalogue:
        raise PluresError(f"no {kind} {name!r}; {suggestion(name, catalogue)}")
    build, what = catalogue[name], f"{kind} {name!r}"
    known = {option: of for option, of in kinds(build).items() if option not in given}
    typed = options_of(what, options or (), known)
    for option in typed.keys() & given.keys():
        raise PluresError(f"{what}: {option}={typed[option]!r} is an option of its own; take it out of the parentheses")
    bound = arguments(what, build, **given, **typed)
    return build(*bound.args, **bound.kwargs)
