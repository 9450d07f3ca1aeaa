"""What a use case is: data, not code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from plures.cases.course import Course
from plures.evaluate import Comparison


@dataclass(frozen=True)
class Part:
    """One comparison of a case.

    Attributes:
        name: name of its folder.
        title: what it compares, as a heading.
        data: name of the data set.
        personal: methods that give every client a model of its own, besides the baselines.
        shared: further methods with one model for all.
        options: all other arguments of :func:`~plures.evaluate.compare`.
        told: names of the metrics that the answer tells besides the one by which methods are compared.
        published: per method, what a paper reports for each client in the metric by which methods are compared.
        published_means: per method, the mean over clients in that metric that a paper reports, and the standard
            deviation over runs.
        notes: further sentences from the results.
        worth: the least gain in the metric by which methods are compared that matters to those who ask.
        start: makes the network whose values all methods and seeds start from; if True, a rough one for a quick try.
    """

    name: str
    title: str
    data: str
    personal: tuple[str, ...]
    shared: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    published_means: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: Callable[[Comparison], list[str]] | None = None
    worth: float = 0.0
    start: Callable[[bool], nn.Module] | None = None


@dataclass(frozen=True)
class Case:
    """A use case.

    Attributes:
        name: what ``plures case`` takes.
        title: who asks.
        question: what they ask.
        parts: the comparisons that answer it, in order.
        advice: what a practitioner should do.
        together: sentences from the results of all parts.
        courses: what is learned from a stream of experiences, after the comparisons.
    """

    name: str
    title: str
    question: str
    parts: tuple[Part, ...]
    advice: str
    together: Callable[[Sequence[Comparison]], list[str]] | None = None
    courses: tuple[Course, ...] = ()
