"""A method's entry in the catalogue."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from typing import Any, SupportsIndex

from plures.errors import PluresError, PluresWarning
from plures.given import Given
from plures.method import Codec, Combine, Method, Reducer, Selector, role
from plures.signature import arguments, kinds, shown

FAMILIES = (
    *("baseline", "regularised", "Bayesian", "continual", "variance reduction", "server optimizer", "interpolation"),
    *("meta-learning", "split model", "clustered", "selection and mixing", "generation", "representation"),
    *("after training", "data quality", "edge", "compression", "fairness"),
)
"""Families of methods in listing order; others come after them."""
REFERENCES = ("local", "fedavg", "fedavg_ft")
"""The methods against which harm and significance are measured."""
BASELINES = ("constant", "local", "fedavg", "intercept", "fedavg_ft")
"""The methods of every comparison, in listing order."""

POOLED = "pooled"
"""The centralised baseline, which needs all data in one place and is no method of a federation."""


@dataclass(frozen=True)
class Entry:
    """A method in the catalogue; calling it with parameters returns the :class:`~plures.method.Method`.

    Attributes:
        name: name on the command line.
        title: name in tables.
        family: family of methods it belongs to.
        citation: authors, year, venue and the algorithm or equation number.
        build: the function that makes the method, a stage of the wire, or a robust combination.
        space: values of its main hyper-parameter worth trying; empty if it has none.
        origin: ``package.module:function`` from which it can be loaded, if not by its name.
        fixed: parameters fixed beforehand (:meth:`fixing`).
        parts: the methods it is composed of.
        instead: parameters that replace another one: ``{"steps": "epochs"}``; at most one of the two may be given.
        rounds: rounds that it needs where more change nothing; it has no learning rate then. ``None`` for all others.
        after: the method whose training it leaves as it is; a comparison gives it that method's learning rate.
        together: whether it trains on all clients' examples in one place, which no federation can.
    """

    name: str
    title: str
    family: str
    citation: str
    build: Callable[..., Method | Codec | Reducer]
    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    origin: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Entry, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    rounds: int | None = None
    after: str = ""
    together: bool = False

    def __call__(self, *args: Any, **parameters: Any) -> Method:
        given = arguments(f"method {self.name!r}", self.build, *args, **parameters)
        self._either({**self.fixed, **given.arguments})
        made = self.build(*given.args, **given.kwargs)
        if isinstance(made, Codec):
            made = Method(wire=(made,))
        if isinstance(made, Reducer):
            made = Method(combine=Combine(reduce=made))
        if not isinstance(made, Method):
            raise PluresError(f"method {self.name!r}: its function returns {shown(made)}; let it return a Method")
        object.__setattr__(made, "made", Given(self, *given.args, **given.kwargs))
        return made

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle an entry by what it is made of: a name in a module, fixed parameters, or the methods it combines.

        Its code is then the module's in every process, and not a copy.
        """
        build = self.build.func if isinstance(self.build, partial) else self.build
        module, name = getattr(build, "__module__", ""), getattr(build, "__name__", "")
        known = getattr(sys.modules.get(module), name, None)
        if known is self:
            return pkgutil.resolve_name, (f"{module}:{name}",)
        parts = self.parts or ((known,) if isinstance(known, Entry) and known.build is build else ())
        if parts and replace(combined(parts, self.fixed, self.origin), build=self.build) == self:
            return combined, (parts, dict(self.fixed), self.origin)
        return super().__reduce_ex__(protocol)

    @property
    def place(self) -> tuple[int, str, int, str]:
        """Sort key in the catalogue: by family, in each its baselines first, then by name."""
        family = FAMILIES.index(self.family) if self.family in FAMILIES else len(FAMILIES)
        baseline = BASELINES.index(self.name) if self.name in BASELINES else len(BASELINES)
        return family, self.family, baseline, self.name

    @property
    def defaults(self) -> dict[str, Any]:
        """Parameters and their default values."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}

    def fixing(self, *args: Any, **parameters: Any) -> Entry:
        """The method with some parameters fixed, which are added to its name and not tuned."""
        given = arguments(f"method {self.name!r}", self.build, *args, **parameters).arguments
        if not given:
            return self
        self._either(given)
        settled = {*given, *(self.instead[name] for name in given if name in self.instead)}
        return replace(
            self,
            name=titled(self.name, given),
            title=titled(self.title, given),
            build=partial(self.build, **given),
            space={name: values for name, values in self.space.items() if name not in settled},
            origin=self.origin or self.name,
            fixed={**self.fixed, **given},
        )

    def _either(self, given: Mapping[str, Any]) -> None:
        """Refuse both of two parameters that replace each other."""
        for name, other in self.instead.items():
            require(
                given.get(name) is None or given.get(other) is None,
                f"{self.name}: {other}={given.get(other)}, {name}={given.get(name)}: give one of the two",
            )

    def same(self, other: Entry) -> bool:
        """Whether both are the same method with the same parameters."""
        if self.parts and len(self.parts) == len(other.parts):
            return all(one.same(two) for one, two in zip(self.parts, other.parts, strict=True))
        one, two = self.build, other.build
        if isinstance(one, partial) and isinstance(two, partial):
            return (one.func, one.args, one.keywords) == (two.func, two.args, two.keywords)
        return one is two

    def given(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters that have a value: those given, and defaults."""
        known = {**self.defaults, **parameters}
        return {name: value for name, value in known.items() if value is not inspect.Parameter.empty}

    @property
    def kinds(self) -> Mapping[str, Any]:
        """Parameters and their types."""
        return kinds(self.build)

    @property
    def summary(self) -> str:
        """First paragraph of the method's docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n\n")[0].replace("\n", " ")

    def __add__(self, other: Entry) -> Entry:
        """Both methods in one (:meth:`plures.method.Method.__add__`), with the parameters of both.

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
            return one + two

        types = {**self.kinds, **other.kinds}
        named = [
            inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=v, annotation=types[k])
            for k, v in parameters.items()
        ]
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


def combined(parts: Sequence[Entry], fixed: Mapping[str, Any], origin: str = "") -> Entry:
    """Methods in one, with some of its parameters fixed; ``origin`` is the name that it was found by."""
    made = reduce(add, parts).fixing(**fixed)
    return replace(made, origin=origin) if origin else made


def titled(name: str, parameters: Mapping[str, Any]) -> str:
    """A method's name with its parameters."""
    return " ".join([name, *(f"{key}={plain(value)}" for key, value in parameters.items())])


def plain(value: Any) -> str:
    """A parameter as shown in a name: named objects by their name, anything else without its memory address."""
    name = getattr(value, "__name__", None) or (value.name if isinstance(value, Selector) else None)
    return str(name) if name else re.sub(" at 0x[0-9a-fA-F]+", "", str(value))


def entry(
    title: str,
    family: str,
    citation: str,
    space: Mapping[str, tuple[Any, ...]] | None = None,
    instead: Mapping[str, str] | None = None,
    rounds: int | None = None,
    after: str = "",
    together: bool = False,
) -> Callable[[Callable[..., Method]], Entry]:
    """Describe a method where it is defined."""

    def describe(build: Callable[..., Method]) -> Entry:
        return Entry(
            build.__name__,
            title,
            family,
            citation,
            build,
            space or {},
            instead=instead or {},
            rounds=rounds,
            after=after,
            together=together,
        )

    return describe


def part(chosen: str | Selector) -> Selector:
    """Selector for a role's name; a selector is returned as it is."""
    return role(chosen) if isinstance(chosen, str) else chosen


def require(condition: bool, message: str) -> None:
    """Refuse an impossible parameter."""
    if not condition:
        raise PluresError(message)


def remark(condition: bool, message: str) -> None:
    """Warn about a valid parameter that reduces the method to another."""
    if condition:
        warnings.warn(message, PluresWarning, stacklevel=3)
