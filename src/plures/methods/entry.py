"""What the catalogue says about a method."""

from __future__ import annotations

import collections.abc
import inspect
import re
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

from plures.errors import PluresError, PluresWarning
from plures.method import Method, Selector, compose, role


@dataclass(frozen=True)
class Entry:
    """A method in the catalogue: called with its parameters, it gives the :class:`~plures.method.Method`.

    Attributes:
        name: name on the command line.
        title: name in tables.
        family: group of the field it belongs to.
        citation: authors, year, venue and the algorithm or equation number.
        build: the function that makes the method.
        space: values of its main strength worth trying; empty when it has none.
        origin: what finds it again, where that is not its name: ``package.module:function``.
        fixed: parameters that were given beforehand (:meth:`fixing`).
        parts: the methods that it is composed of.
    """

    name: str
    title: str
    family: str
    citation: str
    build: Callable[..., Method]
    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    origin: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Entry, ...] = ()

    def __call__(self, *args: Any, **parameters: Any) -> Method:
        given = arguments(f"method {self.name!r}", self.build, *args, **parameters)
        return self.build(*given.args, **given.kwargs)

    @property
    def defaults(self) -> dict[str, Any]:
        """Parameters and their default values."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}

    def fixing(self, *args: Any, **parameters: Any) -> Entry:
        """The method with some parameters given beforehand, named by them; they are not tuned."""
        given = arguments(f"method {self.name!r}", self.build, *args, **parameters).arguments
        if not given:
            return self
        return replace(
            self,
            name=titled(self.name, given),
            title=titled(self.title, given),
            build=partial(self.build, **given),
            space={name: values for name, values in self.space.items() if name not in given},
            origin=self.origin or self.name,
            fixed={**self.fixed, **given},
        )

    def same(self, other: Entry) -> bool:
        """Whether both stand for one method with the same parameters."""
        if self.parts and len(self.parts) == len(other.parts):
            return all(one.same(two) for one, two in zip(self.parts, other.parts, strict=True))
        one, two = self.build, other.build
        if isinstance(one, partial) and isinstance(two, partial):
            return (one.func, one.args, one.keywords) == (two.func, two.args, two.keywords)
        return one is two

    @property
    def summary(self) -> str:
        """First paragraph of the method's docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n\n")[0].replace("\n", " ")

    def __add__(self, other: Entry) -> Entry:
        """Both methods in one (:func:`plures.method.compose`), with the parameters of both.

        A parameter that both have keeps each method's default.
        """
        both = self.defaults.keys() & other.defaults.keys()
        parameters = {**self.defaults, **other.defaults} | dict.fromkeys(both, "as in each")

        def build(**given: Any) -> Method:
            for name in both & given.keys():
                raise PluresError(
                    f"{name!r} is a parameter of {self.name} and of {other.name}: set it in Python, "
                    f"{self.name}({name}=...) + {other.name}({name}=...)"
                )
            one, two = (e(**{k: v for k, v in given.items() if k in e.defaults}) for e in (self, other))
            return compose(one, two)

        named = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=v) for k, v in parameters.items()]
        build.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        build.__doc__ = f"{self.summary}\n\nTogether with: {other.summary}"
        return Entry(
            f"{self.name}+{other.name}",
            f"{self.title} + {other.title}",
            self.family if self.family == other.family else f"{self.family} + {other.family}",
            f"{self.citation}; {other.citation}",
            build,
            {name: values for name, values in {**self.space, **other.space}.items() if name not in both},
            parts=(self, other),
        )


def titled(name: str, parameters: Mapping[str, Any]) -> str:
    """A method's name with its parameters."""
    return " ".join([name, *(f"{key}={plain(value)}" for key, value in parameters.items())])


def plain(value: Any) -> str:
    """A parameter as a name has it: what has a name by that, anything else without its place in memory."""
    name = getattr(value, "__name__", None) or (value.name if isinstance(value, Selector) else None)
    return str(name) if name else re.sub(" at 0x[0-9a-fA-F]+", "", str(value))


def entry(
    title: str, family: str, citation: str, space: Mapping[str, tuple[Any, ...]] | None = None
) -> Callable[[Callable[..., Method]], Entry]:
    """Describe a method where it is defined."""

    def describe(build: Callable[..., Method]) -> Entry:
        return Entry(build.__name__, title, family, citation, build, space or {})

    return describe


def arguments(what: str, build: Callable[..., Any], /, *args: Any, **parameters: Any) -> inspect.BoundArguments:
    """Arguments of a function, refused if a name or a type is not what its signature says.

    Where a tuple is wanted, a list or a single value becomes one, for the command line knows no tuples.

    Args:
        what: what error messages call the function.
        build: the function; a parameter without annotation takes anything.
        args: given by position.
        parameters: given by name.
    """
    try:
        signature = inspect.signature(build, eval_str=True)
    except (NameError, AttributeError, TypeError):  # an annotation that exists only for the type checker
        signature = inspect.signature(build)
    try:
        bound = signature.bind(*args, **parameters)
    except TypeError as error:
        optional = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
        known = ", ".join(f"{name}={value!r}" for name, value in optional.items()) or "none"
        raise PluresError(f"{what}: {error}; its parameters are {known}") from None
    for name, value in bound.arguments.items():
        p = signature.parameters[name]
        if p.annotation is p.empty or value is p.default or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        readings = (value, tuple(value) if isinstance(value, list) else (value,))
        fitting = [reading for reading in readings if fits(reading, p.annotation)]
        if not fitting:
            raise PluresError(f"{what}: {name}={value!r}; give {wanted(p.annotation)}")
        bound.arguments[name] = fitting[0]
    return bound


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; NaN is no number, and a method itself checks the texts it knows."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) for one in inner)
    if origin is tuple and inner[-1] is not ...:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin in (tuple, collections.abc.Sequence):
        return isinstance(value, origin) and not isinstance(value, str) and all(fits(one, inner[0]) for one in value)
    if kind in (int, float):
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool) and bool(value == value)
    known = origin or kind
    return value is None if kind is None else not isinstance(known, type) or isinstance(value, known)


def wanted(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "None"}
    if kind in words:
        return words[kind]
    if origin in (Union, types.UnionType):
        return " or ".join(map(wanted, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (tuple, collections.abc.Sequence):
        several = [wanted(one) for one in inner if one is not ...]
        return f"a list [{', '.join(several)}{', ...' if len(several) == 1 else ''}]"
    name = "function" if origin is collections.abc.Callable else getattr(kind, "__name__", str(kind))
    return f"a {name} (in Python only)"


def part(chosen: str | Selector) -> Selector:
    """Leaves chosen by the name of a role or by a selector."""
    return role(chosen) if isinstance(chosen, str) else chosen


def require(condition: bool, message: str) -> None:
    """Refuse an impossible parameter."""
    if not condition:
        raise PluresError(message)


def remark(condition: bool, message: str) -> None:
    """Warn about a legal parameter that makes the method amount to another."""
    if condition:
        warnings.warn(message, PluresWarning, stacklevel=3)
