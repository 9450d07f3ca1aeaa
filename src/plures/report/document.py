"""The data of the page's charts, as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plures.evaluate.record import Details
from plures.evaluate.results import BASELINES, POOLED, Comparison, MethodResult, Point, Row
from plures.evaluate.scores import Floats
from plures.evaluate.summary import STUDENT_975
from plures.report.columns import Number, best, known

MOST_GROUPS = 12
LEAST_CLIENTS = 4
DIGITS = 4
SIMULATED = ("hours", "joules")
"""What a point of a learning curve has beside rounds, bytes and seconds, if devices are simulated."""
MOST_TRACES = 2_000_000
"""Most values of clients' learning curves in a page; above it, curves do not follow the client filter."""


def document(comparison: Comparison, rows: list[Row]) -> dict[str, Any]:
    """The data of one comparison's charts; methods in the order of the table."""
    metric, card = comparison.metric, comparison.federation
    winner = best(comparison, rows)
    test = comparison.methods[0].seeds[0].test
    grouped = groups(comparison)
    points = sum(len(p.clients) for m in comparison.methods for s in m.seeds for p in s.curve)
    return {
        "federation": card.name,
        "metric": {
            "title": metric.title,
            "higher": metric.higher,
            "percent": metric.percent,
            "undefined": metric.undefined,
            "decimals": Number.of(comparison, rows).decimals,
        },
        "others": {
            card.name: {
                "title": card.title,
                "percent": card.percent,
                "decimals": Number.among(card, [row.others[card.name] for row in rows]).decimals,
            }
            for card in comparison.others
        },
        "seeds": max(len(m.seeds) for m in comparison.methods),
        "student": list(STUDENT_975),
        "classes": card.classes,
        "groups": grouped,
        "described": next((name for name in grouped if name in card.metadata), ""),
        "clients": [
            {
                "name": name,
                "train": train_size(comparison, name),
                "test": size,
                "about": about(comparison, name),
                "labels": labels(comparison, name),
            }
            for name, size in zip(test.clients, test.sizes, strict=True)
        ],
        "methods": [
            _method(comparison, row, best=row is winner and known(row.mean) is not None, traced=points <= MOST_TRACES)
            for row in rows
        ],
    }


def groups(comparison: Comparison) -> dict[str, list[tuple[str, list[int]]]]:
    """Groups of clients by their metadata: ``column -> [(value, places of clients)]``.

    A text column makes groups if it has 2 to 12 distinct values; a numeric column with more makes three of about
    equal size, and so does the number of training examples.
    """
    card, people = comparison.federation, comparison.methods[0].seeds[0].test.clients
    place = card.places
    columns: dict[str, Sequence[str | float]] = {
        key: [values[place[name]] for name in people if name in place] for key, values in card.metadata.items()
    }
    if "train" in card.sizes and "training examples" not in columns:
        columns["training examples"] = [float(card.sizes["train"][place[name]]) for name in people if name in place]
    found = {}
    for key, values in columns.items():
        if len(values) != len(people):
            continue
        grouped = _words(values) if isinstance(values[0], str) else None
        grouped = grouped or _thirds(values)
        if grouped:
            found[key] = grouped
    return found


def _words(values: Sequence[str | float]) -> list[tuple[str, list[int]]] | None:
    different = sorted(set(map(str, values)))
    if not 2 <= len(different) <= MOST_GROUPS or len(different) == len(values) > LEAST_CLIENTS:
        return None
    return [(word, [i for i, value in enumerate(values) if value == word]) for word in different]


def _thirds(values: Sequence[str | float]) -> list[tuple[str, list[int]]] | None:
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return None
    if len(numbers) < LEAST_CLIENTS or not np.isfinite(numbers).all():
        return None
    edges = sorted({float(q) for q in np.quantile(numbers, (1 / 3, 2 / 3), method="lower")})
    parts = np.searchsorted(edges, numbers, side="left")
    found = []
    for part in range(len(edges) + 1):
        inside = np.flatnonzero(parts == part)
        if len(inside):
            low, high = numbers[inside].min(), numbers[inside].max()
            text = f"{low:,.6g}" if low == high else f"{low:,.6g} to {high:,.6g}"
            found.append((text, inside.tolist()))
    return found if len(found) > 1 else None


def _method(comparison: Comparison, row: Row, *, best: bool, traced: bool) -> dict[str, Any]:
    """The chart data of one method."""
    method, metric = comparison.method(row.name), comparison.metric.name
    return {
        "name": row.name,
        "title": row.title,
        "baseline": row.name in (*BASELINES, POOLED),
        "federated": row.name != POOLED,
        "best": best,
        "values": _plain(method.per_client(metric)),
        "inside": [_plain(side) for side in method.inside()],
        "lost": np.isinf(method.per_client(metric)).tolist(),
        "runs": [_plain(seed.test.values(metric)) for seed in method.seeds],
        "others": {card.name: _plain(method.per_client(card.name)) for card in comparison.others},
        "chosen": [seed.chosen_round for seed in method.seeds],
        "curve": curve(method, comparison.federation.trained),
        "traces": traces(method) if traced else None,
        "cost": {
            "bytes": known(row.megabytes * 1e6),
            "seconds": _seconds(method),
            "flops": method.flops,
        },
        "cold": cold(method, metric),
        **_details(comparison, method),
    }


def curve(method: MethodResult, clients: int = 0) -> list[dict[str, float | None]]:
    """The learning curve over seeds: mean, least and greatest validation score; bytes per client; seconds.

    Args:
        method: the method.
        clients: clients of the runs; default: those that were scored.
    """
    clients = clients or len(method.seeds[0].validation.clients)
    rounds, seeds = reached(method)
    found = [[point for point in points if point is not None] for points in zip(*seeds, strict=True)]
    return [
        {
            "round": place,
            "mean": known(float(np.mean([p.validation for p in points]))),
            "least": known(float(np.min([p.validation for p in points]))),
            "most": known(float(np.max([p.validation for p in points]))),
            "bytes": float(np.mean([p.bytes for p in points])) / clients,
            "seconds": float(np.mean([p.seconds for p in points])),
            **{
                name: float(np.mean([value for p in points if (value := getattr(p, name)) is not None]))
                for name in SIMULATED
                if all(getattr(p, name) is not None for p in points)
            },
        }
        for place, points in zip(rounds, found, strict=True)
    ]


def reached(method: MethodResult) -> tuple[list[int], list[list[Point | None]]]:
    """The rounds at which any seed was validated, and each seed's points there; a stopped seed keeps its last one."""
    rounds = sorted({point.round for seed in method.seeds for point in seed.curve})
    by_round = [{point.round: point for point in seed.curve} for seed in method.seeds]
    last = [max(seed, default=0) for seed in by_round]
    return rounds, [[seed.get(min(place, end)) for place in rounds] for seed, end in zip(by_round, last, strict=True)]


def traces(method: MethodResult) -> list[list[list[float | None]]] | None:
    """Per seed and point of :func:`curve`, every client's validation score; ``None`` if they are not known."""
    _, seeds = reached(method)
    if not any(point is not None and point.clients for points in seeds for point in points):
        return None
    return [
        [
            [] if point is None else [None if known(x) is None else float(f"{x:.{DIGITS}g}") for x in point.clients]
            for point in points
        ]
        for points in seeds
    ]


def cold(method: MethodResult, metric: str) -> dict[str, Any] | None:
    """Unseen clients' scores by budget of labels: ``seeds[seed][budget][client]``."""
    found = [seed.details.cold for seed in method.seeds if seed.details is not None and seed.details.cold]
    if not found or len(found[0]) < 2:
        return None
    budgets = list(found[0])
    return {
        "budgets": budgets,
        "seeds": [[list(map(known, seed[b].metrics[metric])) for b in budgets] for seed in found],
    }


def _details(comparison: Comparison, method: MethodResult) -> dict[str, Any]:
    """A finished run's results for its clients: sums over seeds; the first seed for what cannot be summed."""
    found = [seed.details for seed in method.seeds if seed.details is not None]
    if not found:
        return dict.fromkeys(("calibration", "confusion", "mistakes", "personal", "clusters"))
    first = found[0]
    calibrated = [d.calibration for d in found if d.calibration is not None]
    confused = [np.array(d.confusion) for d in found if d.confusion]
    return {
        "calibration": {
            part: np.round(sum(np.array(getattr(c, part)) for c in calibrated), DIGITS).tolist()
            for part in ("examples", "confidence", "correct")
        }
        if calibrated
        else None,
        "confusion": sum(confused[1:], confused[0]).tolist() if confused else None,
        "mistakes": [[_finite(mistake.model_dump()) for mistake in own] for own in first.mistakes] or None,
        "personal": None if first.personal is None else _finite(first.personal.model_dump()),
        "clusters": _clusters(comparison, first, method.seeds[0].chosen_round),
    }


def _clusters(comparison: Comparison, details: Details, rounds: int) -> dict[str, Any] | None:
    """The block with the most clusters: membership of clients, and who moved when."""
    counts = {block: len(set(rows)) for block, rows in details.clusters.items()}
    if not counts or max(counts.values()) < 2:
        return None
    block = max(counts, key=lambda name: counts[name])
    people = comparison.methods[0].seeds[0].test.clients
    place = {name: i for i, name in enumerate(people)}
    moves = [(move.round, place[move.client], move.cluster) for move in details.moves if move.block == block]
    return {"block": block, "rounds": max(1, rounds), "now": details.clusters[block], "moves": moves}


def _seconds(method: MethodResult) -> float | None:
    """Mean training time until the chosen round."""
    found = [p.seconds for seed in method.seeds for p in seed.curve if p.round == seed.chosen_round]
    return float(np.mean(found)) if found else None


def _finite(value: Any) -> Any:
    """The same value with ``None`` for non-finite numbers, rounded to the digits that the page shows."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return known(float(f"{value:.3g}")) if isinstance(value, float) else value


def _plain(values: Floats) -> list[float | None]:
    return [known(float(v)) for v in values]


def train_size(comparison: Comparison, client: str) -> int | None:
    """Training examples of a client."""
    card = comparison.federation
    return card.sizes["train"][card.places[client]] if client in card.places and "train" in card.sizes else None


def labels(comparison: Comparison, client: str) -> list[int]:
    """A client's training examples by class; empty if not known."""
    card = comparison.federation
    return card.labels[card.places[client]] if client in card.places and card.labels else []


def about(comparison: Comparison, client: str) -> list[str]:
    """A client's metadata."""
    card = comparison.federation
    if client not in card.clients:
        return []
    place = card.places[client]
    return [f"{key} {values[place]}" for key, values in card.metadata.items()]
