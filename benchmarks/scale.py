"""A model of what a federation costs, checked against the measured curve from 10^3 to 10^6 clients, and taken to 10^8.

Bytes are counted from messages that are really made. Seconds and memory come from ``results/population.json``
(``benchmarks.population``): the model is fitted to its populations of 10^4 and 10^5 and must foretell 10^6.

    python -m benchmarks.scale --out benchmarks/results/scale
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from plures.remote.message import ClientFacts, Order, pack
from plures.report.markup import scaled
from plures.secure.member import SECRET, SHARE

RESULTS = Path(__file__).parent / "results"
CLASSES, NAME = 10, "client-00000001"
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8)
COHORT, MODEL, MINUTES = 10_000, 1_000_000, 2.0
"""Clients of a round, parameters that travel, and minutes of a round, of the large federation."""
NONCE, TAG = 12, 16
"""Bytes of AES-GCM beside what it seals."""


@dataclass(frozen=True)
class Foretold:
    """One figure of a population of 10^6 clients, from those of 10^4 and 10^5.

    Attributes:
        what: the figure.
        each: what a client adds.
        model: the foretold value.
        measured: the measured one.
    """

    what: str
    each: float
    model: float
    measured: float


@dataclass(frozen=True)
class Costs:
    """What the model needs.

    Attributes:
        plain: bytes that a member adds to every order, by its facts.
        counted: the same, if members report how many examples of each class they have.
        names: bytes in memory of a client's name and of what the server counts of it.
        draw: seconds to draw a cohort from 10^6 clients.
        foretold: the check.
    """

    plain: float
    counted: float
    names: int
    draw: float
    foretold: list[Foretold]


def header(members: int, labels: list[int] | None) -> int:
    """Bytes of an order to one of so many members."""
    facts = [ClientFacts(examples=1234, labels=labels)] * members
    return len(pack(Order(client=NAME, request="train", population=facts)))


def measured() -> Costs:
    plain, counted = ((header(1000, labels) - header(10, labels)) / 990 for labels in (None, [123] * CLASSES))
    draws = []
    for seed in range(5):
        begun = time.process_time()
        np.random.default_rng(seed).permutation(10**6)[:1000].tolist()
        draws.append(time.process_time() - begun)
    draw = statistics.median(draws)
    curve = {one["clients"]: one for one in json.loads((RESULTS / "population.json").read_text())}
    foretold = []
    for what, name in (("build, s", "build"), ("memory, MB", "memory")):
        few, many, most = (curve[clients][name] for clients in (10**4, 10**5, 10**6))
        each = (many - few) / (10**5 - 10**4)
        foretold.append(Foretold(what, each, many + each * (10**6 - 10**5), most))
    took = {clients: clients * (1 - (1 - 1000 / clients) ** 20) for clients in curve}
    own = curve[10**5]["checkpoint"] / took[10**5]
    foretold.append(Foretold("checkpoint after 20 rounds, s", own, own * took[10**6], curve[10**6]["checkpoint"]))
    rest = curve[10**5]["round"] - draw / 10
    foretold.append(Foretold("round of 1,000 clients, s", draw / 10**6, rest + draw, curve[10**6]["round"]))
    return Costs(plain, counted, sys.getsizeof(NAME) + 8 + 8 * (2 + CLASSES), draw, foretold)


def written(costs: Costs) -> str:
    """The tables."""
    lines = [
        "# What a federation costs",
        "",
        "## The model against the measured curve",
        "",
        "Foretold for 1,000,000 clients from the figures of 10,000 and 100,000 (`results/population.md`): time and "
        "memory to build grow with the number of clients, a checkpoint with the number of those that took part in "
        "twenty rounds of 1,000, and a round costs what it costs with 100,000 clients, and a draw from all (processor "
        "time, measured here).",
        "",
        "| | a client adds | foretold | measured | measured / foretold |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for one in costs.foretold:
        lines.append(
            f"| {one.what} | {one.each:.2g} | {one.model:.3g} | {one.measured:.3g} | {one.measured / one.model:.2f} |"
        )
    size, seconds = 4 * MODEL, 60 * MINUTES
    lines += [
        "",
        f"## {COHORT:,} clients a round, {MODEL:,} parameters of 4 bytes, {MINUTES:g} minutes",
        "",
        f"A member adds {costs.plain:.0f} bytes to every order, {costs.counted:.0f} if members report counts of "
        f"{CLASSES} classes; the server holds {costs.names} bytes of it. A model is {size / 1e6:g} MB, so a round "
        f"moves {2 * COHORT * size / 1e9:g} GB, {2 * COHORT * size * 8 / seconds / 1e9:.1f} Gbit/s.",
        "",
        "| clients | members' facts in one order | in all orders of a round | names and counts at the server |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for clients in SIZES:
        facts, every = clients * costs.plain, min(COHORT, clients)
        told = " | ".join(scaled(n, "B") for n in (facts, every * facts, clients * costs.names))
        lines.append(f"| {clients:,} | {told} |")
    lines += [
        "",
        f"The facts are as long as the model from {size / costs.plain:,.0f} clients on.",
        "",
        "## Aggregators between clients and server",
        "",
        "Each takes the sum of its clients' uploads, and sends one upload of the same size.",
        "",
        "| clients of an aggregator | aggregators | uploads at the server, GB | uploads at an aggregator, GB |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for fan in (1, 10, 100, 1000):
        lines.append(
            f"| {fan if fan > 1 else 'none'} | {COHORT // fan if fan > 1 else 0:,} | {COHORT // fan * size / 1e9:g} | "
            f"{fan * size / 1e9 if fan > 1 else 0:g} |"
        )
    lines += [
        "",
        "## A secure sum",
        "",
        "Bytes of keys and sealed shares that one member sends and receives in a round, and all members together.",
        "",
        "| members | one | all |",
        "| ---: | ---: | ---: |",
    ]
    for members in (10, 100, 1000, 10_000):
        one = 2 * SECRET * (members + 1) + 2 * (members - 1) * (NONCE + TAG + 2 * SHARE)
        lines.append(f"| {members:,} | {scaled(one, 'B')} | {scaled(members * one, 'B')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    costs = measured()
    text = written(costs)
    print(text)
    if given.out is not None:
        given.out.with_suffix(".json").write_text(json.dumps(asdict(costs), indent=1) + "\n")
        given.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
