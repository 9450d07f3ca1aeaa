"""Pages of the documentation that are generated from the code: one for each method, their catalogue, the command line.

python -m tools.pages FOLDER           writes them, to look at; the site makes them while it is built
"""

from __future__ import annotations

import inspect
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.coverage import lines
from tools.drawing import KINDS, drawing, parts, telling
from tools.evidence import BASELINES, Experiment, Oracle, experiments, oracles, title_in, users
from tools.markdown import address, plain, table
from tools.reference import reference
from tools.typeset import displayed
from tools.usage import use

from plures.method import Bound
from plures.methods import METHODS
from plures.methods.entry import Entry
from plures.report.catalogue import Line, bind, catalogue, sample
from plures.report.columns import MISSING
from plures.run.cost import traffic


def pages() -> dict[str, str]:
    """Every page that is generated from the code, by its path in the documentation."""
    told, tests, tried = oracles(), users(), experiments()
    federation, rows = sample(), list(catalogue())
    found = {"methods/index.md": index(rows), **reference()}
    for line in rows:
        entry = METHODS[line.name]
        proven = proof(told[line.name], tests[line.name])
        found[f"methods/{line.name}.md"] = "\n\n".join(
            [
                f"# {entry.title}",
                head(entry, line),
                description(entry),
                layout(entry, bind(entry, federation)),
                costs(line),
                parameters(entry),
                unseen(entry, line),
                proven,
                benefit(entry, tried),
                use(entry),
            ]
        )
    return {path: text + "\n" for path, text in found.items()}


def navigation() -> list[dict[str, str | list[dict[str, str]]]]:
    """The methods by family, for the site's navigation."""
    grouped = groupby(METHODS.values(), key=lambda entry: entry.family)
    return [{family: [{e.title: f"methods/{e.name}.md"} for e in members]} for family, members in grouped]


def head(entry: Entry, line: Line) -> str:
    """Name, family and citation."""
    own, whole = lines(entry.name)
    also = f" ({whole} with its file)" if whole > own else ""
    return (
        f"`{entry.name}` · {entry.family} · {own} lines of code{also} in "
        f"`src/plures/methods/{entry.name}.py`\n\n"
        f"**Citation.** {entry.citation}"
    )


def sections(entry: Entry) -> tuple[str, dict[str, str]]:
    """Sections of a method's docstring: the text, and the description of each parameter."""
    text, _, listed = (inspect.getdoc(entry.build) or "").partition("\nArgs:\n")
    found: dict[str, str] = {}
    for item in re.split(r"\n(?=    \w+: )", "\n" + listed.rstrip()):
        name, sign, meaning = item.strip().partition(": ")
        if sign:
            found[name] = plain(" ".join(meaning.split()))
    return plain(text.strip()), found


def description(entry: Entry) -> str:
    """The method in words and equations, from its docstring."""
    text, _ = sections(entry)
    return "## What it does\n\n" + "\n\n".join(displayed(paragraph) for paragraph in text.split("\n\n"))


def layout(entry: Entry, bound: Bound) -> str:
    """The layout as a drawing and as a table."""
    found, told = parts(bound), telling(bound)
    rows: list[tuple[object, ...]] = [
        (f"`{one.name}`", f'<span class="key {one.kind}"></span> {one.told}', *sizes(one.size, one.up, one.down))
        for one in found
    ]
    if told:
        rows.append(("sent for views", "facts that the server's views need", "", *sizes(told, 0)))
    up, down = traffic(bound)
    if bound.line.stages:
        rows.append(
            ("through the wire", "the parameters after its stages, and everything else unchanged", "", *sizes(up, 0))
        )
    rows.append(("**total**", "", "", *(f"**{size}**" for size in sizes(up, down))))
    return "\n\n".join(
        [
            "## Layout and what travels",
            f'<figure class="layout">{drawing(entry.title, bound)}</figure>',
            table(("block", "with whom it is shared", "size, bytes", "up, bytes", "down, bytes"), rows),
            "Bytes of a round of one client, for the small network of the catalogue "
            f"({weights(bound)} bytes, four clients), as the run's ledger counts them.",
        ]
    )


def sizes(*values: int) -> tuple[str, ...]:
    """Bytes with separated thousands."""
    return tuple(f"{value:,}" for value in values)


def weights(bound: Bound) -> str:
    """Bytes of the model."""
    return f"{sum(leaf.nbytes for leaf in bound.initial['model'].values()):,}"


def costs(line: Line) -> str:
    """Costs relative to the model and to FedAvg."""
    secure = {"yes": "yes: the server needs one sum of all uploads", "no": "no: one sum of all uploads is not enough"}
    return table(
        ("cost", "of a client in a round"),
        [
            ("up, in sizes of the model", line.up),
            ("down, in sizes of the model", line.down),
            ("work of a visit, FedAvg = 1", line.work),
            ("secure aggregation possible", secure[line.secure]),
        ],
    )


def parameters(entry: Entry) -> str:
    """Parameters, their defaults, and the values that a comparison tries."""
    _, meanings = sections(entry)
    if not entry.defaults:
        return "## Parameters\n\nNone apart from those of the run."
    signature = inspect.signature(entry.build)
    rows = [
        (
            f"`{name}`",
            f"`{kind(signature.parameters[name].annotation)}`",
            f"`{default!r}`",
            ", ".join(f"`{value!r}`" for value in entry.space.get(name, ())) or MISSING,
            meanings.get(name, ""),
        )
        for name, default in entry.defaults.items()
    ]
    return "\n\n".join(
        [
            "## Parameters",
            table(("parameter", "type", "default", "search space", "meaning"), rows),
            "The search space is what `plures compare` tries on validation data, besides the learning rate."
            if entry.space
            else "A comparison tunes only the learning rate.",
        ]
    )


def kind(annotation: Any) -> str:
    """A parameter's type as it is written."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation).replace("plures.", "")


def unseen(entry: Entry, line: Line) -> str:
    """How a client that never took part gets a model."""
    return (
        "## Unseen clients\n\n"
        f"A client that never took part gets: **{line.unseen}**. `plures onboard` does it for a finished run; see "
        "[Cold start](../guides/cold-start.md)."
    )


def proof(told: list[Oracle], tests: list[str]) -> str:
    """Oracles with their numbers, and the tests that show them."""
    rows = [(one.name, one.what, ", ".join(map(address, one.tests))) for one in told]
    others = [test for test in tests if not any(test in one.tests for one in told)]
    parts = ["## What is proven"]
    if rows:
        parts.append(table(("oracle", "what must be reproduced", "test that proves it"), rows))
    else:
        parts.append("No oracle of `tests/oracles.toml` belongs to this method alone; its tests are listed below.")
    if others:
        listed = "\n".join(f"    - {address(test)}" for test in others)
        parts.append(f'??? note "{len(others)} further test{"s" * (len(others) > 1)} that call it"\n\n{listed}')
    parts.append("All oracles and tests: [Coverage](../coverage.md).")
    return "\n\n".join(parts)


def benefit(entry: Entry, tried: list[Experiment]) -> str:
    """Experiments that include the method, what they were designed to show, and their results."""
    took = [(one, row) for one in tried for row in title_in(entry, one)]
    parts = ["## When it helps"]
    if took:
        rows = [
            (
                f"[{one.name}](../results/families.md#{one.anchor})",
                f"{one.why} The family is {'expected' if one.helps else 'not expected'} to help.",
                f"{row}: {one.rows[row][0]}".replace("**", ""),
                best_baseline(one),
            )
            for one, row in took
        ]
        parts.append(table(("experiment", "the data", one_of(took), "best baseline"), rows))
        parts.append("Means over clients on test data; follow the link for all columns and the budget.")
    else:
        parts.append("It is in none of the experiments of [Where each family helps](../results/families.md).")
        relatives = [
            f"[{other.title}]({other.name}.md)"
            for other in METHODS.values()
            if other.family == entry.family and other is not entry and any(title_in(other, one) for one in tried)
        ]
        if relatives:
            parts.append(f"Of its family, {', '.join(relatives)} {'was' if len(relatives) == 1 else 'were'}.")
    parts.append("For your own data: [Choose a method](../guides/choose.md).")
    return "\n\n".join(parts)


def one_of(took: list[tuple[Experiment, str]]) -> str:
    """Heading of the scores: what the experiments measure, if they all measure the same."""
    headings = {one.columns[0] for one, _ in took}
    return headings.pop() if len(headings) == 1 else "score"


def best_baseline(one: Experiment) -> str:
    """Name and score of the best baseline in the experiment's table, if it has any."""
    scores = {row: float(number[0]) for row in BASELINES if row in one.rows and (number := numbers(one.rows[row][0]))}
    if not scores:
        return MISSING
    rising = one.columns[0].startswith("mean") and "calib. err. %" in one.columns
    rising = rising or one.columns[0].startswith(("accuracy", "0 labels"))
    name = (max if rising else min)(scores, key=lambda row: scores[row])
    return f"{name}: {one.rows[name][0].replace('**', '')}"


def numbers(cell: str) -> list[str]:
    """Numbers in a cell."""
    return re.findall(r"-?\d+(?:\.\d+)?", cell)


def index(rows: list[Line]) -> str:
    """The catalogue."""
    legend = " ".join(f'<span class="key {name}"></span> {told}.' for name, told in KINDS.values())
    parts = [
        "# Methods",
        f"{len(rows)} methods, each one short file, each proven by closed forms, rounds computed by hand, and "
        "settings in which it must equal another method ([Coverage](../coverage.md)). Where each family helps and "
        "where it does not: [experiments](../results/families.md). What suits your data: "
        "[Choose a method](../guides/choose.md).",
        f'<p class="legend">Colours of the drawings: {legend}</p>',
        "Up and down: what a client sends and receives in a round, in sizes of the model; work: operations of a "
        "visit, relative to FedAvg's; all measured on a small network.",
    ]
    for family, members in groupby(rows, key=lambda line: line.family):
        cells = [(f"[{m.title}]({m.name}.md)", plain(METHODS[m.name].summary), m.up, m.down, m.work) for m in members]
        parts += [
            f"## {family[0].upper()}{family[1:]}",
            table(("method", "in a sentence", "up", "down", "work"), cells),
        ]
    return "\n\n".join(parts)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tools.pages FOLDER")
    for path, text in pages().items():
        file = Path(sys.argv[1]) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
