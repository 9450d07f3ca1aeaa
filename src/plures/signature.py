"""Checks of arguments against a signature: a wrong name or type is refused in one sentence."""

from __future__ import annotations

import collections.abc
import inspect
import json
import types
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from numpy.typing import ArrayLike

from plures.errors import PluresError, closest

Kinds = Mapping[str, Any]
"""Names and the types that they are annotated with."""
T = TypeVar("T", bound=Callable[..., Any])

LONG = 80
"""Longest value that a message shows in full, in characters."""
SEQUENCES = (tuple, collections.abc.Sequence)
ARRAY_LIKE = frozenset(get_args(ArrayLike)) or frozenset({ArrayLike})
"""The types that make up NumPy's ``ArrayLike``, or that name itself where NumPy defines it by a ``type`` statement.

No tuple is among them, yet NumPy reads one, so the function checks.
"""


def checked(what: T) -> T:
    """Decorate a function or dataclass so that arguments with a wrong name or type are refused.

    The text of an annotation ``Annotated[kind, "text"]`` describes the wanted type in messages.

    Args:
        what: a function, or a class whose ``__init__`` takes the arguments.
    """
    function: Any = what.__init__ if isinstance(what, type) else what  # type: ignore[misc]
    own = 1 if isinstance(what, type) else 0
    known = cache(lambda: signature_of(what))

    @wraps(function)
    def call(*args: Any, **parameters: Any) -> Any:
        name = type(args[0]).__name__ if own else what.__name__
        given = bound(name, known(), args[own:], parameters)
        return function(*args[:own], *given.args, **given.kwargs)

    if not isinstance(what, type):
        return call  # type: ignore[return-value]
    what.__init__ = call  # type: ignore[misc]
    return what


def signature_of(build: Callable[..., Any]) -> inspect.Signature:
    """A function's signature. Types given as strings are resolved where they exist at run time."""
    try:
        return inspect.signature(build, eval_str=True)
    except (NameError, AttributeError, TypeError):
        return inspect.signature(build)
    except ValueError:
        raise PluresError(f"{shown(build)} does not say what its parameters are: wrap it in a function") from None


def kinds(build: Callable[..., Any]) -> Kinds:
    """The parameters of a function by name, including those of ``**options: Unpack[Options]``."""
    found: dict[str, Any] = {}
    for name, p in signature_of(build).parameters.items():
        if p.kind is p.VAR_KEYWORD:
            found |= options(p.annotation)
        elif p.kind is not p.VAR_POSITIONAL:
            found[name] = Any if p.annotation is p.empty else p.annotation
    return found


def options(annotation: Any) -> Kinds:
    """Names and types that ``**options`` accepts; empty if its annotation does not list them."""
    inner = get_args(annotation)
    return get_type_hints(inner[0]) if inner and hasattr(inner[0], "__required_keys__") else {}


def arguments(what: str, build: Callable[..., Any], /, *args: Any, **parameters: Any) -> inspect.BoundArguments:
    """Bind arguments to a function's signature, and convert them to its types.

    Where a tuple is wanted, a list or a single value becomes one, because the command line has no tuples. Where a path
    is wanted, text becomes one. Numbers of NumPy become Python's.

    Args:
        what: name of the function in error messages.
        build: the function; a parameter without annotation accepts anything.
        args: arguments given by position.
        parameters: arguments given by name.

    Raises:
        PluresError: if a name or a type does not fit the signature.
    """
    return bound(what, signature_of(build), args, parameters)


def bound(
    what: str, signature: inspect.Signature, args: Sequence[Any], parameters: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Like :func:`arguments`, for a signature."""
    _names(what, signature, parameters)
    try:
        given = signature.bind(*args, **parameters)
    except TypeError as error:
        raise PluresError(f"{what}: {error}; its parameters are {defaults(signature)}") from None
    for name, value in given.arguments.items():
        p = signature.parameters[name]
        if p.kind is p.VAR_KEYWORD:
            more = options(p.annotation)
            given.arguments[name] = {k: fitted(what, k, v, more.get(k, Any)) for k, v in value.items()}
        elif p.annotation is not p.empty and value is not p.default and p.kind is not p.VAR_POSITIONAL:
            given.arguments[name] = fitted(what, name, value, p.annotation)
    return given


def _names(what: str, signature: inspect.Signature, parameters: Mapping[str, Any]) -> None:
    """Refuse names that a signature does not know."""
    known: list[str] = []
    for p in signature.parameters.values():
        if p.kind is p.VAR_KEYWORD:
            more = options(p.annotation)
            if not more:
                return
            known += more
        elif p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL):
            known.append(p.name)
    for name in parameters:
        if name not in known:
            near = closest(name, known)
            meant = f"did you mean {near!r}?" if near else f"its parameters are {defaults(signature)}"
            raise PluresError(f"{what}: no parameter {name!r}; {meant}")


def defaults(signature: inspect.Signature) -> str:
    """The parameters of a signature with their defaults, as text."""
    named = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    parts = [p.name if p.default is p.empty else f"{p.name}={shown(p.default)}" for p in named]
    more = [name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD for name in options(p.annotation)]
    return ", ".join(parts + more) or "none"


def fitted(what: str, name: str, value: Any, kind: Any) -> Any:
    """Convert a value to a type.

    Raises:
        PluresError: if it does not fit; the message is ``what: name=value; give ...``.
    """
    for reading in readings(value):
        if fits(reading, kind):
            return reading
    raise PluresError(f"{what}: {name}={shown(value)}; give {wanted(kind)}")


def readings(value: Any) -> Iterator[Any]:
    """The values that a value may stand for, the closest first. An iterator is consumed only if nothing closer fits."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        plain = [one.item() if isinstance(one, np.generic) else one for one in value]
        yield value if all(one is two for one, two in zip(plain, value, strict=True)) else type(value)(plain)
        yield tuple(plain)
        return
    yield value
    if isinstance(value, Iterator | range | KeysView | ValuesView):
        yield tuple(value)
    elif getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        yield tuple(value.tolist())
    else:
        yield (value,)
    if isinstance(value, str):
        yield Path(value)
    if isinstance(value, torch.device):
        yield str(value)


def read(option: str, name: str, text: str, kind: Any) -> Any:
    """Parse a text from the command line as a wanted type.

    Args:
        option: the option, for messages.
        name: name of the value.
        text: the text that the user typed.
        kind: the type; if any type is accepted, numbers, lists, booleans and ``null`` are parsed as such.

    Raises:
        PluresError: if the text does not fit the type.
    """
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    candidates = [*_json(text), *((None,) if text in ("None", "null") else ()), *_word(words, text), text]
    for candidate in candidates:
        if any(fits(reading, kind) for reading in readings(candidate)):
            return candidate
    raise PluresError(f"{option} {name}={text}: give {wanted(kind, ' (in Python only)')}")


def _json(text: str) -> tuple[Any, ...]:
    try:
        return (json.loads(text),)
    except json.JSONDecodeError:
        return ()


def _word(words: Mapping[str, bool], text: str) -> tuple[bool, ...]:
    return (words[text.lower()],) if text.lower() in words else ()


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type. NaN does not count as a number; unresolved types accept anything."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or kind is object or isinstance(kind, str):
        return True
    if isinstance(kind, TypeVar):
        return kind.__bound__ is None or fits(value, kind.__bound__)
    if origin is Annotated:
        return fits(value, inner[0])
    if origin in (Union, types.UnionType):
        return set(inner) >= ARRAY_LIKE or any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple and inner[-1] is not ...:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin in SEQUENCES:
        return isinstance(value, origin) and not isinstance(value, str) and all(fits(one, inner[0]) for one in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if kind in (int, float):
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool) and bool(value == value)
    return value is None if kind in (None, type(None)) else _instance(value, origin or kind)


def _instance(value: Any, kind: Any) -> bool:
    """Whether a value is an instance of a type. A protocol accepts any instance, but no class, with its attributes."""
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        runtime = getattr(kind, "_is_runtime_protocol", False)
        return not isinstance(value, type) and (not runtime or isinstance(value, kind))
    return isinstance(value, kind)


def wanted(kind: Any, note: str = "") -> str:
    """A type as text, with a note after types whose values can only be given in Python."""
    origin, inner = get_origin(kind), get_args(kind)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "None"}
    if kind in words:
        return words[kind]
    if origin is Annotated:
        return str(inner[1])
    if origin in (Union, types.UnionType):
        return either(dict.fromkeys(wanted(one, note) for one in inner))
    if origin is Literal:
        return either(map(repr, inner))
    if origin in SEQUENCES:
        several = [wanted(one, note) for one in inner if one is not ...]
        return f"a list [{', '.join(several)}{', ...' if len(several) == 1 else ''}]"
    if origin is collections.abc.Mapping:
        return f"a mapping {{{wanted(inner[0], note)}: {wanted(inner[1], note)}, ...}}"
    name = "function" if origin is collections.abc.Callable else getattr(kind, "__name__", str(kind))
    return f"a{'n' if name[0] in 'AEIOU' else ''} {name}{note}"


def either(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def shown(value: Any) -> str:
    """A value for a message: its ``repr``, or its type if that is long."""
    if inspect.isroutine(value):
        return f"the function {value.__name__!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    if len(text) <= LONG and "\n" not in text:
        return text
    article = "an" if type(value).__name__[0] in "AEIOUaeiou" else "a"
    return f"{article} {type(value).__name__}"
