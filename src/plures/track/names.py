"""The values written for a run, under the same names in every tracker.

=============================  ====================================================================================
``train/loss``                 mean task loss of the cohort in training, each round
``train/objective``            mean of what the cohort minimised: that loss plus a method's other terms
``bytes/up``, ``bytes/down``   bytes sent in the round, over all clients
``seconds/round``              wall time of the round
``cohort/size``                clients that took part
``cohort/left_out``            clients that were asked but did not count
``validation/<metric>``        mean over clients of the primary metric, at each validation
``validation/worst``           the same for the client served worst
``client/<name>/<metric>``     the same for single clients, the first ones only
``bytes/total``                bytes so far
``seconds/total``              seconds of training so far
``test/<metric>``              mean over clients, every metric, at the round that validation chose
``test/worst``                 primary metric of the client served worst
``test_last/<metric>``         primary metric after the last round; not for sites, which report on test data once
``unseen/<metric>``            primary metric of clients held out of training
``chosen/round``               the round that validation chose
=============================  ====================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from plures.evaluate.callback import About, Value
from plures.evaluate.results import ClientScores, Point, SeedResult
from plures.metrics import Metric
from plures.run.coordinator import RoundRecord

CLIENTS = 50
"""Default number of clients written individually."""
LONGEST = 100
"""Most characters of a client's name."""


def of_round(record: RoundRecord) -> dict[str, float]:
    """The values of a round."""
    return {
        "train/loss": record.loss,
        "train/objective": record.objective,
        "bytes/up": record.bytes_up,
        "bytes/down": record.bytes_down,
        "seconds/round": record.seconds,
        "cohort/size": len(record.cohort),
        "cohort/left_out": len(record.left_out),
    }


def of_point(point: Point, metric: Metric, clients: Sequence[str]) -> dict[str, float]:
    """The values of a validation; clients without validation data are omitted.

    Args:
        point: the point of the curve.
        metric: the primary metric.
        clients: names of the first clients, from :func:`plain`.
    """
    found = {"bytes/total": float(point.bytes), "seconds/total": point.seconds}
    if point.validation == point.validation:
        found[f"validation/{metric.name}"] = point.validation
    measured = [value for value in point.clients if value is not None]
    if measured:
        found["validation/worst"] = worst(measured, metric)
    single = zip(clients, point.clients, strict=False)
    return found | {f"client/{name}/{metric.name}": value for name, value in single if value is not None}


def of_result(result: SeedResult, metric: Metric) -> dict[str, float]:
    """The final values, at the round that validation chose, except ``test_last``."""
    found = {"chosen/round": float(result.chosen_round)}
    found |= {f"test/{name}": mean for name in result.test.metrics for mean in _mean(result.test, name)}
    measured = [value for value in result.test.metrics[metric.name] if value is not None]
    if measured:
        found["test/worst"] = worst(measured, metric)
    if result.test_last is not None:
        found |= {f"test_last/{metric.name}": mean for mean in _mean(result.test_last, metric.name)}
    if result.unseen is not None:
        found |= {f"unseen/{metric.name}": mean for mean in _mean(result.unseen, metric.name)}
    return found


def settings(about: About) -> dict[str, Value]:
    """The settings and data of a run; never a metric's value."""
    known: dict[str, Value] = {
        "data": about.federation,
        "clients": len(about.clients),
        "stage": about.stage,
        "rounds": about.rounds,
    }
    return known | {plain_key(name): value for name, value in about.settings.items()}


def plain(names: Iterable[str]) -> list[str]:
    """Names in letters, digits, ``_``, ``-`` and ``.``; names that would collide get a number."""
    found: list[str] = []
    for name in names:
        short = plain_key(name)[:LONGEST]
        short = short if short.strip(".") else "_" * max(1, len(short))
        number, one = 2, short
        while one in found:
            number, one = number + 1, f"{short}_{number}"
        found.append(one)
    return found


def plain_key(name: str) -> str:
    """A name with ``_`` for every character that some tracker refuses."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def worst(values: Sequence[float], metric: Metric) -> float:
    """The worst of some values."""
    return min(values) if metric.higher else max(values)


def _mean(scores: ClientScores, name: str) -> list[float]:
    """The mean over the clients that have examples; empty if none has any."""
    values = [value for value in scores.metrics[name] if value is not None]
    return [sum(values) / len(values)] if values else []
