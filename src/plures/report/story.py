"""A use case at the head of its report: the question, what to do, and what the comparisons say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from plures.evaluate.results import MetricCard
from plures.evaluate.scores import Floats
from plures.report.columns import Number, known
from plures.report.markup import capital


@dataclass(frozen=True)
class Course:
    """Scores of methods on a stream of experiences, for a chart.

    Attributes:
        name: its anchor.
        metric: the metric of the scores.
        experiences: names of the experiences in the order of learning.
        methods: per title of a method, its mean over clients with each seed, ``(seeds, learned, scored)``.
    """

    name: str
    metric: MetricCard
    experiences: tuple[str, ...]
    methods: Mapping[str, Floats]

    def document(self) -> dict[str, Any]:
        """The chart's data, as plain JSON values."""
        every = [value for runs in self.methods.values() for value in runs.flatten().tolist()]
        return {
            "name": self.name,
            "metric": {
                "title": self.metric.title,
                "higher": self.metric.higher,
                "percent": self.metric.percent,
                "decimals": Number.among(self.metric, every).decimals,
            },
            "experiences": self.experiences,
            "methods": [
                {"title": title, "runs": [[[known(x) for x in row] for row in run] for run in runs.tolist()]}
                for title, runs in self.methods.items()
            ],
        }


@dataclass(frozen=True)
class Block:
    """Sentences under a heading, and a chart if they are about a course."""

    title: str
    lines: tuple[str, ...]
    course: Course | None = None


@dataclass(frozen=True)
class Story:
    """What a report says before its comparisons.

    Attributes:
        question: what somebody asked.
        advice: what to do, a clause that begins in lower case.
        blocks: what was found.
        names: what the comparisons are called, in order.
    """

    question: str
    advice: str
    blocks: Sequence[Block]
    names: Sequence[str]


def told(story: Story, title: str) -> str:
    """The head of the page."""
    return (
        '<header><p class="kicker">A use case of personalized federated learning</p>'
        f'<h1 class="name">{escape(title)}</h1><p class="lead">{escape(story.question)}</p>'
        f'<p class="headline"><b>What to do.</b> {escape(capital(story.advice))}</p></header>'
        '<section id="answer" aria-labelledby="answer-title"><h2 id="answer-title">What was found</h2>'
        f"{''.join(map(_block, story.blocks))}</section>"
    )


def _block(block: Block) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in block.lines)
    title = escape(capital(block.title))
    head = f"<h3>{title}</h3>" if block.course is None else _chart(block.course, title)
    return f"{head}<ul>{lines}</ul>"


def _chart(course: Course, title: str) -> str:
    """A heading and the place of the chart below it; ``title`` is HTML."""
    unit = ", %," if course.metric.percent else ""
    better = "higher" if course.metric.higher else "lower"
    name = f"course-{escape(course.name)}"
    save = "".join(
        f'<button type="button" data-save="{kind.lower()}" aria-label="Download {title} as {kind}">{kind}</button>'
        for kind in ("SVG", "CSV")
    )
    walk = "Left and right arrow keys go from point to point, up and down from line to line."
    return (
        f'<section id="{name}" class="chart course" aria-labelledby="{name}-title"><h3 id="{name}-title">{title}</h3>'
        f'<p class="lead">{escape(capital(course.metric.title))}{unit} ({better} is better) on test data of each '
        "experience, while all are learned one after the other: mean over clients, and a band from the lowest to the "
        "highest seed. A ring marks the experience just after it was learned; what is lost on the way from there is "
        "forgotten.</p>"
        f'<div class="controls"><div class="key"></div><div class="save">{save}</div></div>'
        f'<div class="plot" tabindex="0" role="group" aria-label="Scores along the course. {walk}"></div></section>'
    )
