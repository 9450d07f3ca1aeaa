"""Options by name: an unused one is refused, and one of another type is converted to the declared type or refused."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import torch

from plures.brief import described
from plures.errors import PluresError, closest, suggestion
from plures.federation.splits import SplitRule

TRUTH = {"true": True, "false": False, "1": True, "0": False}


class _OtherTypeError(Exception):
    """A value is not of the declared type."""


def checked(
    given: Mapping[str, object], declared: Mapping[str, Any], where: str, also: Iterable[str] = ()
) -> dict[str, Any]:
    """Options of their declared types.

    A text is read as the declared boolean or number, as on the command line; a list becomes a tuple.

    Args:
        given: the options.
        declared: name -> type, as `typing.get_type_hints` returns them.
        where: who reads them, for messages.
        also: other names that `where` takes, for suggestions.

    Raises:
        PluresError: names the option, with a suggestion for one that is not declared.
    """
    for name in given:
        if name not in declared:
            near = suggestion(name, [*declared, *also], "its options are")
            raise PluresError(f"{where} has no option {name!r}; {near}")
    return {name: _read(name, value, declared[name], where) for name, value in given.items()}


def _read(name: str, value: object, hint: Any, where: str) -> Any:
    try:
        return _as(value, hint)
    except _OtherTypeError:
        if get_origin(hint) is Literal or any(get_origin(part) is Literal for part in get_args(hint)):
            near = closest(value, _literals(hint)) if isinstance(value, str) else None
            meant = f"did you mean {near!r}?" if near else f"use {_words(hint)}"
            raise PluresError(f"{where}: {name}={described(value)} is unknown; {meant}") from None
        raise PluresError(f"{where}: {name}={described(value)}; give {_words(hint)}") from None


def _as(value: Any, hint: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first(value, inner)
    if origin is Literal:
        return _require(value, isinstance(value, str) and value in inner)
    if origin in (tuple, Sequence):
        return _entries(value, inner[0])
    if origin is Mapping:
        return _require(value, hasattr(value, "items"))
    if isinstance(value, np.generic):
        value = value.item()
    if hint in READERS:
        return READERS[hint](value)
    return _require(value, not isinstance(hint, type) or isinstance(value, hint))


def _require(value: Any, right: bool) -> Any:
    if not right:
        raise _OtherTypeError
    return value


def _first(value: Any, hints: Sequence[Any]) -> Any:
    for hint in sorted(hints, key=lambda hint: hint is not type(None)):
        try:
            return _as(value, hint)
        except _OtherTypeError:
            continue
    raise _OtherTypeError


def _entries(value: Any, hint: Any) -> Any:
    """Entries of a list; if texts are declared, a single text is split at its commas."""
    if isinstance(value, str) and hint is object:
        return value
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, Collection | np.ndarray) or isinstance(value, Mapping):
        raise _OtherTypeError
    return tuple(_as(entry, hint) for entry in value)


def _truth(value: Any) -> Any:
    return _require(TRUTH.get(str(value).lower()), str(value).lower() in TRUTH and isinstance(value, bool | int | str))


def _whole(value: Any) -> int:
    number = _number(value)
    _require(number, number.is_integer())
    return value if isinstance(value, int) else int(number)


def _number(value: Any) -> float:
    _require(value, isinstance(value, int | float | str) and not isinstance(value, bool))
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise _OtherTypeError from None


def _split(value: Any) -> Any:
    if isinstance(value, Mapping):
        return SplitRule(**checked(value, {"validation": float, "test": float, "by": str}, "a split rule"))
    return _require(value, isinstance(value, SplitRule))


def _dtype(value: Any) -> Any:
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        value = np.dtype(value).name
    found = number_type(value) if isinstance(value, str) else value
    return _require(found, isinstance(found, torch.dtype))


def number_type(name: str) -> torch.dtype | None:
    """A PyTorch dtype by its name; ``None`` if the name is anything else in PyTorch."""
    found = getattr(torch, name.removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else None


READERS: Mapping[Any, Any] = {
    bool: _truth,
    int: _whole,
    float: _number,
    SplitRule: _split,
    torch.dtype: _dtype,
    object: lambda value: value,
    Any: lambda value: value,
}
WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    SplitRule: "a SplitRule",
    torch.dtype: "a torch.dtype",
    Mapping: "a mapping",
    tuple: "a list",
    Sequence: "a list",
}


def _literals(hint: Any) -> list[str]:
    """The texts that a type allows."""
    parts = [hint, *get_args(hint)]
    return [text for part in parts if get_origin(part) is Literal for text in get_args(part)]


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in inner if part is not type(None)))
    return WORDS.get(origin or hint, getattr(hint, "__name__", str(hint)))
