"""A case's answer in sentences, computed from its comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plures.cases.case import Case, Part
from plures.cases.course import Learned, drawn, kept
from plures.evaluate import Code, Comparison, MethodResult
from plures.evaluate.results import MetricCard
from plures.evaluate.spec import find_method
from plures.evaluate.summary import differences, interval, mean_known, paired_test
from plures.report import headline
from plures.report.columns import Number, probability
from plures.report.story import Block, Story

PERSONAL = ("intercept", "fedavg_ft")
"""Baselines that give every client a model of its own."""


def answer(case: Case, comparisons: Sequence[Comparison], courses: Sequence[Sequence[Learned]] = ()) -> str:
    """The question, what each comparison and each course says, and what to do."""
    found = [
        "\n".join([f"{block.title}:", *(f"- {line}" for line in block.lines)])
        for block in blocks(case, comparisons, courses)
    ]
    return "\n\n".join([case.question, *found, f"What to do: {case.advice}"])


def story(case: Case, comparisons: Sequence[Comparison], courses: Sequence[Sequence[Learned]] = ()) -> Story:
    """The same for the head of a report."""
    found = blocks(case, comparisons, courses)
    return Story(case.question, case.advice, found, [part.title for part in case.parts])


def blocks(case: Case, comparisons: Sequence[Comparison], courses: Sequence[Sequence[Learned]] = ()) -> list[Block]:
    """What each comparison, all together and each course say."""
    found = []
    for part, comparison in zip(case.parts, comparisons, strict=True):
        lines = [*published(part, comparison), personalization(part, comparison), headline(comparison)]
        lines += [best_by(comparison, name) for name in part.told]
        lines += part.notes(comparison) if part.notes else []
        found.append(Block(part.title, tuple(line for line in lines if line)))
    if case.together is not None:
        found.append(Block("All together", tuple(case.together(comparisons))))
    for course, learned in zip(case.courses, courses, strict=bool(courses)):
        found.append(Block(course.title, tuple(kept(learned)), drawn(course.name, learned)))
    return found


def personalization(part: Part, comparison: Comparison) -> str:
    """Whether models of one's own helped, by the personal and the single model that validation data prefer.

    It helped if the mean gain is larger than its 95 % confidence interval over seeds and at least what the part says
    is worth something; one seed cannot tell. Empty without validation data.
    """
    known = {method.name: method for method in comparison.methods}
    shared = [known[name] for name in known if name == "fedavg" or of(name, part.shared)]
    personal = [known[name] for name in known if name in PERSONAL or of(name, part.personal)]
    metric = comparison.metric
    one, own = (preferred(methods, metric) for methods in (shared, personal))
    if one is None or own is None:
        return ""
    sign = 1 if metric.higher else -1
    gains = [sign * (mean(own, seed, metric) - mean(one, seed, metric)) for seed in range(len(own.seeds))]
    gain, width = interval(gains)
    of_clients = sign * differences(own.per_client(metric.name), one.per_client(metric.name))
    number = Number.among(metric, [mean(m, seed, metric) for m in (one, own) for seed in range(len(m.seeds))])
    real = gain > 0 and not gain <= width
    helped = "does not help" if not real else "helps" if gain >= part.worth else "does next to nothing"
    begin = f"Personalization {helped} here" if len(gains) > 1 else "One seed cannot tell whether personalization helps"
    least = f"; at least {enough(part.worth, metric)} would matter" if part.worth else ""
    test = probability(paired_test(own.per_client(metric.name), one.per_client(metric.name)))
    points = " points" if metric.percent else ""
    spread = "with one seed" if np.isnan(width) else f"\N{PLUS-MINUS SIGN} {number(width)} over seeds"
    return (
        f"{begin} by {metric.title}: of the models that validation data prefer, {own.title} has "
        f"{number(whole(own, metric))}{number.unit()} and {one.title}, one model for all, "
        f"{number(whole(one, metric))}{number.unit()} (gain "
        f"{number(gain)}{points} {spread}{least}; {int((of_clients > 0).sum())} of {len(of_clients)} clients gain, "
        f"{int((of_clients < 0).sum())} lose, {test} over clients)."
    )


def enough(worth: float, metric: MetricCard) -> str:
    """The least gain that matters, as text."""
    size = 100 * worth if metric.percent else worth
    return f"{size:g}" if not metric.percent else f"{size:g} point" if size == 1 else f"{size:g} points"


def of(name: str, methods: Sequence[str]) -> bool:
    """Whether a method of a comparison is one of those that were asked for."""
    return any(find_method(asked, Code.typed(asked)).name == name for asked in methods)


def preferred(methods: Sequence[MethodResult], metric: MetricCard) -> MethodResult | None:
    """The method with the best validation score; ``None`` if none has one."""
    scores = [float(np.mean([seed.validation.summary(metric).mean for seed in method.seeds])) for method in methods]
    sign = 1 if metric.higher else -1
    found = [(sign * score, method) for score, method in zip(scores, methods, strict=True) if not np.isnan(score)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def mean(method: MethodResult, seed: int, metric: MetricCard) -> float:
    """Mean over clients of a test metric with one seed."""
    return method.seeds[seed].test.summary(metric).mean


def whole(method: MethodResult, metric: MetricCard) -> float:
    """Mean over clients and seeds of a test metric."""
    return mean_known(method.per_client(metric.name))


def best_by(comparison: Comparison, name: str) -> str:
    """The best method by another metric, with the baselines beside, each with its 95 % interval over seeds."""
    metric = next(card for card in comparison.others if card.name == name)
    sign = 1 if metric.higher else -1
    values = {method.name: whole(method, metric) for method in comparison.methods}
    number = Number.among(metric, list(values.values()))
    known = {place: value for place, value in values.items() if not np.isnan(value)}
    if not known:
        return f"{metric.title}: undefined for every method."

    def told(place: str) -> str:
        method = comparison.method(place)
        _, width = interval([mean(method, seed, metric) for seed in range(len(method.seeds))])
        return number.between(values[place], width)

    best = max(known, key=lambda place: sign * known[place])
    beside = [f"{comparison.method(n).title} {told(n)}" for n in COMPARED]
    unit = ", %" if metric.percent else ""
    title = comparison.method(best).title
    return f"By {metric.title}{unit}, {title} has the best mean, {told(best)} ({', '.join(beside)})."


COMPARED = ("constant", "local", "fedavg", "intercept")


def published(part: Part, comparison: Comparison) -> list[str]:
    """Published values, of every client or the mean over clients, beside those of the comparison."""
    metric = comparison.metric
    lines = []
    told = [*part.published.values(), *((middle,) for middle, _ in part.published_means.values())]
    number = Number.among(metric, [value for values in told for value in values])
    for name, values in part.published.items():
        method = comparison.method(name)
        runs = [seed.test.values(metric.name) for seed in method.seeds]
        here = ", ".join(
            f"{number(m)} \N{PLUS-MINUS SIGN} {number(s)}"
            for m, s in zip(np.mean(runs, axis=0), np.std(runs, axis=0), strict=True)
        )
        lines.append(
            f"{method.title}, {metric.title} of each client: published {', '.join(map(number, values))}; here {here} "
            f"(population standard deviation over {len(runs)} seeds)."
        )
    for name, (middle, spread) in part.published_means.items():
        method = comparison.method(name)
        means = [mean(method, seed, metric) for seed in range(len(method.seeds))]
        here = f"{number(float(np.mean(means)))} \N{PLUS-MINUS SIGN} {number(float(np.std(means)))}"
        lines.append(
            f"{method.title}, mean {metric.title} over clients: published {number(middle)} \N{PLUS-MINUS SIGN} "
            f"{number(spread)}; here {here} (population standard deviation over {len(means)} seeds)."
        )
    return lines
