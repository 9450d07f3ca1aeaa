"""One client of a finished comparison or run, as a page in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from plures.errors import PluresError, suggestion
from plures.evaluate import RunFolder, primary
from plures.evaluate.code import NOTHING, Code
from plures.evaluate.compare import RESULTS, card
from plures.evaluate.record import Details, Mistake
from plures.evaluate.results import POOLED, REFERENCES, Comparison, FederationCard, MethodResult, MetricCard, SeedResult
from plures.federation import Federation
from plures.federation.inputs import shape_text
from plures.files import understood
from plures.methods import METHODS
from plures.report.columns import MISSING, Number, known

BLOCKS = " ▁▂▃▄▅▆▇█"
BAR = 24
PEERS = 5
ROUNDED = 1e-6
"""Rounding error that scaling in single precision leaves of a zero, relative to a column's size."""
FEATURES = 12
"""Number of columns of an example shown in a terminal: those farthest from the client's mean."""


def client_page(
    folder: Path,
    client: str,
    federation: Federation | None = None,
    method: str | None = None,
    code: Code = NOTHING,
) -> Group:
    """Everything about one client.

    Args:
        folder: of a comparison (``results.json``) or of a single run (``run.json``).
        client: its name.
        federation: the data, for the columns of its worst examples; ``None`` leaves them out.
        method: whose model is examined; default: the one that serves this client best.
        code: user code that a run's data may name.
    """
    with understood(folder, "run it again, into another folder"):
        return _page(read(folder, code), folder, client, federation, method)


def _page(
    comparison: Comparison, folder: Path, client: str, federation: Federation | None, method: str | None
) -> Group:
    people = comparison.methods[0].seeds[0].test.clients
    if client not in people:
        raise PluresError(f"no client {client!r} in {folder}; {suggestion(client, people, 'clients are')}")
    place = people.index(client)
    chosen = comparison.method(method) if method is not None else _best(comparison, place)
    parts: list[RenderableType] = [
        Text(f"{client}, a client of {comparison.federation.name}", style="bold"),
        data(comparison.federation, client),
        scores(comparison, place),
    ]
    details = chosen.seeds[0].details
    if details is None:
        parts.append(Text(f"{folder} was made by an older plures: personal parts, errors and peers are not stored"))
        return Group(*spaced(parts))
    parts += [
        personal(chosen, details, place, len(people)),
        errors(comparison.federation, chosen, place, federation),
        peers(comparison, chosen, details, place),
    ]
    return Group(*spaced(parts))


def read(folder: Path, code: Code = NOTHING) -> Comparison:
    """The comparison in a folder; a single run becomes a comparison of one method."""
    if (folder / RESULTS).exists():
        return Comparison.from_json(folder / RESULTS)
    run = RunFolder(folder, code)
    if not run.finished:
        raise PluresError(f"{folder} holds neither a finished comparison nor a finished run: check the path")
    return single(run.result(), run)


def single(result: SeedResult, folder: RunFolder) -> Comparison:
    """A run as a comparison of one method."""
    spec = folder.spec()
    federation = spec.federation(folder.reading)
    seen, _ = federation.hold_out(spec.unseen) if spec.unseen else (federation, None)
    entry = METHODS.get(spec.method)
    method = MethodResult(
        name=spec.method,
        title=entry.title if entry else spec.method,
        family=entry.family if entry else "",
        citation=entry.citation if entry else "",
        lr=spec.lr,
        parameters=spec.parameters,
        trials=[],
        bytes_up=0,
        bytes_down=0,
        stored=0,
        flops=0,
        seeds=[result],
    )
    return Comparison(
        federation=card(seen),
        metric=MetricCard.of(primary(seen)),
        methods=[method],
        settings=spec.model_dump(),
        environment={},
        metrics=[MetricCard.of(metric, named=metric in seen.beside) for metric in seen.metrics],
    )


def data(card: FederationCard, client: str) -> RenderableType:
    """Its data."""
    place = card.clients.index(client)
    facts = Table.grid(padding=(0, 2))
    for split, sizes in card.sizes.items():
        facts.add_row(f"{split} examples", f"{sizes[place]:,}", Text(_rank(sizes, place), style="dim"))
    for key, values in card.metadata.items():
        facts.add_row(Text(key), Text(values[place]))
    parts: list[RenderableType] = [_title("Its data"), facts]
    if card.labels and sum(card.labels[place]):
        own = np.array(card.labels[place]) / sum(card.labels[place])
        all_ = np.array(card.labels).sum(0) / max(1, np.array(card.labels).sum())
        table = _table("label", "count", "share", "all clients", "")
        for name, count, share, everyone in zip(card.classes, card.labels[place], own, all_, strict=True):
            bar = Text("█" * round(BAR * share), style="blue")
            table.add_row(Text(name), f"{count:,}", f"{100 * share:.0f} %", f"{100 * everyone:.0f} %", bar)
        parts.append(table)
    return Group(*parts)


def scores(comparison: Comparison, place: int) -> RenderableType:
    """Its score, gain, rank and learning curve under every method."""
    metric = comparison.metric
    sign = 1 if metric.higher else -1
    whole = {m.name for m in comparison.methods}.issuperset(REFERENCES)
    order = [comparison.method(row.name) for row in comparison.rows()] if whole else comparison.methods
    number = Number.of(comparison, comparison.rows() if whole else [])
    values = {m.name: m.per_client(metric.name) for m in order}
    table = _table(
        "method",
        f"{metric.title}{number.unit()}",
        "95 % CI",
        "vs local",
        "vs FedAvg",
        "rank",
        "validation, over rounds",
    )
    for method in order:
        own = float(values[method.name][place])
        gains = []
        for name in ("local", "fedavg"):
            if name == method.name or name not in values or math.isnan(own - float(values[name][place])):
                gains.append(Text(MISSING))
                continue
            gain = sign * (own - float(values[name][place]))
            gains.append(
                Text(f"{'+' if gain > 0 else ''}{number(gain)}", style="red" if gain < 0 else "green" if gain else "")
            )
        finite = np.sort(sign * values[method.name][~np.isnan(values[method.name])])[::-1]
        rank = MISSING if math.isnan(own) else f"{1 + int((finite > sign * own).sum())} of {len(finite)}"
        low, high = (float(side[place]) for side in method.inside())
        table.add_row(
            Text(method.title),
            number(own),
            number.span(low, high),
            *gains,
            rank,
            Text(_spark(method, place, sign), style="blue"),
        )
    notes = ["95 % CI: over the client's test examples, drawn with replacement"]
    if all(math.isnan(own[place]) for own in values.values()):
        when = f" ({metric.undefined})" if metric.undefined else ""
        notes.append(f"The {metric.title} is not defined for this client{when}; means leave it out.")
    return Group(_title("With each method, on test data"), table, *(Text(note, style="dim") for note in notes))


def personal(method: MethodResult, details: Details, place: int, clients: int) -> RenderableType:
    """The personal parts of its model, and their distance from the mean of all clients."""
    heading = _title(f"What is personal with {method.title}, and how far from the mean (first seed)")
    if details.personal is None:
        return Group(heading, Text("nothing: all clients predict with the same numbers"))
    table = _table("layer", "numbers", "length", "distance", "cosine", "how far, rank")
    for layer in details.personal.layers:
        far = 1 + sum(other > layer.distance[place] for other in layer.distance)
        table.add_row(
            Text(layer.name),
            f"{layer.size:,}",
            f"{layer.norm[place]:.3g}",
            f"{layer.distance[place]:.3g}",
            f"{layer.cosine[place]:.3f}",
            f"{far} of {clients}",
        )
    same = f"{details.personal.same:,} further numbers are the same for everyone" if details.personal.same else ""
    text = "distance from, and cosine to, the mean of all clients' models; rank 1 is the farthest. "
    return Group(heading, table, Text(text + same, style="dim"))


def errors(card: FederationCard, method: MethodResult, place: int, federation: Federation | None) -> RenderableType:
    """Its confusion matrix over seeds and its worst examples."""
    parts: list[RenderableType] = [_title(f"Its errors with {method.title}, on test data")]
    found = [seed.details for seed in method.seeds if seed.details is not None]
    counts = [np.array(d.confusion[place]) for d in found if d.confusion]
    total = sum(counts[1:], counts[0]) if counts else np.zeros((0, 0), dtype=np.int64)
    if total.sum():
        table = _table("true \\ decided, all seeds", *card.classes)
        for name, row in zip(card.classes, total.tolist(), strict=True):
            own = card.classes.index(name)
            table.add_row(
                Text(name),
                *(Text(str(n), style="green" if k == own else "red" if n else "dim") for k, n in enumerate(row)),
            )
        parts.append(table)
    mistakes = found[0].mistakes[place] if found and found[0].mistakes else []
    if not mistakes:
        return Group(*parts, Text("it has no test examples"))
    table = _table("worst examples, row", "true", "predicted", "confidence", "loss")
    lines = []
    for mistake in mistakes:
        sure = MISSING if mistake.confidence is None else f"{100 * mistake.confidence:.0f} %"
        table.add_row(str(mistake.row), Text(mistake.truth), Text(mistake.predicted), sure, f"{mistake.loss:.3g}")
        if federation is not None:
            lines.append(Text(f" row {mistake.row}: {features(federation, place, mistake)}", style="dim"))
    return Group(*parts, table, *lines)


def features(federation: Federation, place: int, mistake: Mistake) -> str:
    """An example's raw columns, those most unusual for the client first."""
    inputs = federation.inputs
    if not isinstance(inputs, Tensor) or inputs.dim() != 2:
        return f"{shape_text(federation.features)} numbers"
    rows = inputs[federation.splits["train"][place]].double()
    own = inputs[mistake.row].double()
    unusual = ((own - rows.mean(0)).abs() / rows.std(0).clamp(min=1e-6)).nan_to_num(0.0)
    raw = own
    if isinstance(federation.scaling, tuple):
        mean, scale = (t.double() for t in federation.scaling)
        raw = own * scale + mean
        raw = torch.where(raw.abs() < ROUNDED * (mean.abs() + scale), torch.zeros_like(raw), raw)
    names = federation.columns or tuple(f"x{i}" for i in range(len(raw)))
    order = unusual.argsort(descending=True, stable=True)[:FEATURES].tolist()
    return ", ".join(f"{names[i]} {float(raw[i]):.4g}" for i in order)


def peers(comparison: Comparison, method: MethodResult, details: Details, place: int) -> RenderableType:
    """The most similar clients."""
    people, card = comparison.methods[0].seeds[0].test.clients, comparison.federation
    grid = Table.grid(padding=(0, 2))
    if details.personal is not None:
        grid.add_row(
            f"by personal parts with {method.title}",
            Text(", ".join(people[i] for i in details.personal.peers[place])),
        )
    if card.labels:
        near = label_peers(card.labels, card.clients.index(people[place]))
        grid.add_row("by mix of labels", Text(", ".join(card.clients[i] for i in near)))
    return Group(_title("Its peers, the nearest first"), grid)


def label_peers(labels: Sequence[Sequence[int]], place: int) -> list[int]:
    """Clients with the most similar mix of labels, by total variation."""
    shares = np.array(labels, dtype=np.float64)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1)
    far = np.abs(shares - shares[place]).sum(1) / 2
    far[place] = np.inf
    order: list[int] = far.argsort(kind="stable")[: min(PEERS, len(labels) - 1)].tolist()
    return order


def spaced(parts: Sequence[RenderableType]) -> list[RenderableType]:
    """Parts with an empty line between them."""
    return [piece for part in parts for piece in (part, Text())][:-1]


def _best(comparison: Comparison, place: int) -> MethodResult:
    """The method that serves a client best; the first one if nothing was measured."""
    sign = 1 if comparison.metric.higher else -1

    def worth(method: MethodResult) -> float:
        value = known(float(method.per_client(comparison.metric.name)[place]))
        return -math.inf if value is None else sign * value

    return max([m for m in comparison.methods if m.name != POOLED] or comparison.methods, key=worth)


def _spark(method: MethodResult, place: int, sign: int) -> str:
    """The client's validation curve in characters, higher is better; the first seed."""
    values = [p.clients[place] if p.clients else None for p in method.seeds[0].curve]
    found = [sign * value for value in values if value is not None]
    if not found:
        return MISSING
    low, high = min(found), max(found)
    top = len(BLOCKS) - 1
    return "".join(
        " " if value is None else BLOCKS[1 + round((top - 1) * (sign * value - low) / ((high - low) or 1))]
        for value in values
    )


def _rank(values: Sequence[int], place: int) -> str:
    return f"{1 + sum(other > values[place] for other in values)} of {len(values)}"


def _title(words: str) -> Text:
    return Text(words, style="bold cyan")


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for place, heading in enumerate(headings):
        words = place == 0 or heading in ("", "true", "predicted", "validation, over rounds")
        table.add_column(Text(heading), justify="left" if words else "right")
    return table
