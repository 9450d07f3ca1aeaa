"""Methods that learn a stream of experiences one after the other, as a part of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plures.evaluate import Code, RunSpec, StreamScores, follow, interval
from plures.evaluate.results import MetricCard
from plures.federation import Federation, SplitName, Stream
from plures.files import write_json
from plures.method import Method
from plures.methods.entry import titled
from plures.report.columns import Number
from plures.report.story import Course as Chart

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Course:
    """Methods on one stream.

    Attributes:
        name: name of its folder.
        title: what it compares, as a heading.
        data: name of the data set.
        stream: makes the experiences of a federation.
        methods: per method, the settings of its parameters to choose from, by the mean score over experiences at the
            end, on validation data with seed 0; the first method is the one that the others are held against.
        options: fields of a run; ``rounds`` are those of each experience.
        seeds: number of runs of each method.
    """

    name: str
    title: str
    data: str
    stream: Callable[[Federation], Stream]
    methods: Mapping[str, tuple[Mapping[str, Any], ...]]
    options: Mapping[str, Any]
    seeds: int = 3


@dataclass(frozen=True)
class Learned:
    """What a method learned and forgot, on test data with each seed."""

    title: str
    scores: tuple[StreamScores, ...]

    def mean(self, of: str) -> tuple[float, float]:
        """Mean over clients of a property of the scores, and the half-width of its interval over seeds."""
        return interval([float(np.nanmean(getattr(one, of))) for one in self.scores])


def attend(course: Course, out: Path | None = None, *, quick: bool = False) -> list[Learned]:
    """Let every method of a course learn its stream.

    Args:
        course: the course.
        out: folder of the case; the scores are written to a folder of the course's name in it.
        quick: one round of two steps for each experience, one seed, and the first setting of each method.
    """
    spec = RunSpec(data=course.data, **{**course.options, **({"rounds": 1, "steps": 2} if quick else {})})
    code = Code.typed(spec.data, spec.model, spec.task)
    federation = spec.federation(code)
    stream, model, training = course.stream(federation), spec.network(federation, code), spec.training()

    def scores(method: Method, seed: int, split: SplitName = "test") -> StreamScores:
        return follow(stream, model, method, training, split=split, seed=seed)

    found = []
    for name, settings in course.methods.items():
        entry, chosen = spec.model_copy(update={"method": name}).entry(code), settings[0]
        if len(settings) > 1 and not quick:
            merits = []
            for setting in settings:
                tried = scores(entry(**setting), 0, "validation")
                merits.append(tried.metric.sign * float(np.nanmean(tried.final)))
            chosen = settings[int(np.nanargmax(merits))]
        make = partial(entry, **chosen)
        seeds = range(1 if quick else course.seeds)
        found.append(Learned(titled(entry.title, chosen), tuple(scores(make(), seed) for seed in seeds)))
    if out is not None:
        (out / course.name).mkdir(parents=True, exist_ok=True)
        write_json(
            out / course.name / "results.json",
            {
                "metric": found[0].scores[0].metric.name,
                "experiences": list(stream.names),
                "clients": list(stream.clients),
                "values": {one.title: [seed.values.tolist() for seed in one.scores] for one in found},
            },
        )
    return found


def drawn(name: str, learned: Sequence[Learned]) -> Chart:
    """The chart of a course: means over clients."""
    first = learned[0].scores[0]
    runs = {one.title: np.array([seed.matrix for seed in one.scores]) for one in learned}
    return Chart(name, MetricCard.of(first.metric), first.experiences, runs)


def kept(learned: Sequence[Learned]) -> list[str]:
    """How well each method does on all experiences at the end, and how much it forgot on the way."""
    first = learned[0].scores[0]
    number = Number.among(MetricCard.of(first.metric), first.matrix.flatten().tolist())
    names = ", ".join(first.experiences)
    lines = []
    for one in learned:
        (end, spread), (fresh, _), (lost, width) = (one.mean(of) for of in ("final", "adaptation", "forgetting"))
        once = len(one.scores) == 1
        at_end, gone = (
            f"{number(mean)}{' with one seed' if once else f' {PLUS_MINUS} {number(far)}'}"
            for mean, far in ((end, spread), (lost, width))
        )
        last = np.mean([seed.matrix[-1] for seed in one.scores], axis=0).tolist()
        lines.append(
            f"{one.title}: {first.metric.title} at the end {at_end}, mean over {names} "
            f"({', '.join(map(number, last))}); {number(fresh)} on each just after learning it; "
            f"forgetting {gone}."
        )
    base, *others = learned
    for one in others:
        sign = first.metric.sign
        pairs = zip(one.scores, base.scores, strict=True)
        gain, width = interval([sign * float(np.nanmean(a.final - b.final)) for a, b in pairs])
        helped = "better" if gain > width else "no better"
        gains = f"gain {number(gain)} {PLUS_MINUS} {number(width)} over seeds"
        lines.append(
            f"At the end, one seed cannot tell whether {one.title} is better than {base.title}: gain {number(gain)}."
            if len(one.scores) == 1
            else f"At the end, {one.title} is {helped} than {base.title}: {gains}."
        )
    return lines
