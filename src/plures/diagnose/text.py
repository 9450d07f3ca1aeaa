"""A diagnosis as plain text, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from plures.diagnose.advise import fires
from plures.diagnose.result import Advice, Findings

WIDTH = 80
SHOWN = 4


def text(found: Findings, advice: Advice) -> str:
    """Summary, measurements, ranking with reasons, and limits."""
    looked = found.looked
    lines = [
        f"Diagnosis of {found.federation}: {looked.of_clients} clients, {looked.of_train_rows} train rows",
        *_wrapped(advice.summary),
        "",
        f"{'':2}{'what':18}{'found':>8}  {'chance':>7}  {'p':>6}  meaning",
    ]
    for there, name, value, chance, p, meaning in rows(found):
        head = f"{'*' if there else ' ':2}{name:18}{value:>8}  {chance:>7}  {p:>6}  "
        wrapped = textwrap.wrap(meaning, WIDTH - len(head)) or [""]
        lines += [head + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
    lines += ["", "Alone and together (validation error of a small probe model)", *_curve(found), ""]
    lines.append("Families, the most promising first")
    for place, family in enumerate(advice.ranking[:SHOWN], 1):
        lines += _wrapped(f"{place}. {family.title} [{family.points:+.1f}, {family.confidence} confidence]")
        if family.methods:
            lines += _wrapped("methods: " + ", ".join(family.methods), "   ")
        lines += [line for reason in family.why for line in _wrapped(reason.says, "   - ", "     ")]
    for family in advice.besides:
        lines += _wrapped(f"Besides: {family.title}" + (f" ({', '.join(family.methods)})" if family.methods else ""))
        lines += [line for reason in family.why for line in _wrapped(reason.says, "   - ", "     ")]
    lines += ["", "What this cannot know"]
    lines += [line for limit in advice.cannot_know for line in _wrapped(limit, "- ", "  ")]
    lines.append(
        f"({len(looked.clients)} clients and {looked.train_rows} train rows examined, "
        f"{looked.validation_rows} validation rows; {found.seconds:.0f} s)"
    )
    return "\n".join(lines)


def rows(found: Findings) -> Iterator[tuple[bool, str, str, str, str, str]]:
    """The lines of the table: whether it counts, name, value, chance, p-value, meaning."""
    there = fires(found)
    labels, features, concept, groups = found.labels, found.features, found.concept, found.clusters
    what = "label" if found.named else "target"
    yield (
        there["labels"],
        f"{what} skew",
        f"{labels.distance:.3f}",
        f"{labels.chance:.3f}",
        f"{labels.p:.3f}",
        f"distance of {what} frequencies to the pooled ones",
    )
    removed = "" if features.removed is None else f"; own scaling removes {features.removed:.0%}"
    columns = ", ".join(c.name for c in features.columns[:2])
    yield (
        there["features"],
        "feature shift",
        f"{features.share:.3f}",
        "0",
        f"{features.p:.3f}",
        f"share of variance of inputs between clients{removed}" + (f"; most in {columns}" if columns else ""),
    )
    yield (
        there["concept"],
        "targets|inputs",
        f"{concept.gain:+.1%}",
        "<= 0",
        f"{concept.p:.3f}",
        "held-out loss saved by a correction for each client",
    )
    sizes, within = " + ".join(map(str, groups.sizes)), " within labels" if groups.beyond_labels else ""
    yield (
        there["clusters"],
        "groups",
        f"{groups.silhouette:.2f}",
        f"{groups.chance:.2f}",
        "-" if groups.p is None else f"{groups.p:.3f}",
        "too few clients" if groups.p is None else f"silhouette of initial gradients{within} in {sizes} clients",
    )
    for match in groups.matches[:2]:
        rand = "" if match.rand is None else f"; agrees with the groups by {match.rand:.2f}"
        yield (
            match.p <= 0.01,
            f"  {match.column}"[:18],
            f"{match.explained:.0%}",
            "0",
            f"{match.p:.3f}",
            f"of the gradients' differences explained by this metadata{rand}",
        )
    quantity = found.quantity
    yield (
        there["quantity"],
        "size",
        f"{quantity.gini:.2f}",
        "",
        "",
        f"Gini; {quantity.least} to {quantity.most} train rows, median {quantity.median:g}",
    )
    yield from _poor(found)


def _poor(found: Findings) -> Iterator[tuple[bool, str, str, str, str, str]]:
    quality = found.quality
    if quality.missing is not None:
        yield (
            fires(found)["missing"],
            "missing values",
            f"{quality.missing_spread:.2f}",
            "",
            "-" if quality.missing_p is None else f"{quality.missing_p:.3f}",
            f"spread of shares over clients, {min(quality.missing):.0%} to {max(quality.missing):.0%} "
            f"(from {quality.missing_from})",
        )
    if quality.noise is not None:
        yield (
            quality.noise_spread >= 0.1 and (quality.noise_p or 0) <= 0.01,
            "noise",
            f"{quality.noise_spread:.2f}",
            "",
            "-" if quality.noise_p is None else f"{quality.noise_p:.3f}",
            "spread over clients of the share of variance that looks like noise",
        )
    if quality.reliability_spread is not None:
        yield (
            quality.reliability_spread >= 0.1,
            "reliability",
            f"{quality.reliability_spread:.2f}",
            "",
            "-",
            "spread over clients, as metadata report it",
        )


def _curve(found: Findings) -> Iterator[str]:
    learning = found.learning
    for point in learning.local:
        yield f"  alone, {point.rows:>5.0f} rows a client   {point.error:.3f}"
    yield f"  pooled, all rows            {learning.pooled:.3f}   saves {learning.pooling:+.0%} of alone"
    yield f"  pooled, then corrected      {learning.personal:.3f}   saves {learning.personalising:+.0%} of pooled"


def _wrapped(text: str, first: str = "", then: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=first if then is None else then, break_on_hyphens=False
    )
