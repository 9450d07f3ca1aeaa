"""A social graph cut into communities: what neighbours tell, and with whom a community should share its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from plures.cases.answer import mean, of, whole
from plures.cases.case import Case, Part
from plures.evaluate import Comparison, MethodResult
from plures.evaluate.results import MetricCard
from plures.evaluate.summary import differences, interval, paired_test
from plures.models import gcn
from plures.models.bag import Bag
from plures.models.network import with_roles
from plures.report.columns import Number, probability

VOCABULARY, HIDDEN = 3170, 16
GROUPED = ("metadata_clusters(column=language)", "community(column=language)", "ifca")
"""Methods that share a model, or a part of it, among some of the communities."""
BUDGET: dict[str, Any] = {
    "data_options": {"parts": 2, "examples": 500, "neighbours": 3},
    "metric": "auroc",
    "optimizer": "adam",
    "learning_rates": (0.003, 0.01, 0.03),
    "tune_rounds": 4,
    "rounds": 24,
    "every": 2,
    "patience": 8,
    "seeds": 3,
}


class Own(nn.Module):
    """The first row of a neighbourhood: the node's own features."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def with_neighbours(features: tuple[int, ...], outputs: int) -> nn.Module:
    """A graph convolutional network with adapters."""
    return gcn(features, outputs, vocabulary=VOCABULARY, hidden=HIDDEN, adapter=8)


def without_neighbours(features: tuple[int, ...], outputs: int) -> nn.Module:
    """A network of the same width on a streamer's own features."""
    network = nn.Sequential()
    network.add_module("body", nn.Sequential(Own(), Bag(VOCABULARY, HIDDEN), nn.ReLU()))
    network.add_module("head", nn.Linear(HIDDEN, outputs))
    return with_roles(network, body="body", head="head")


def value_of_the_graph(comparisons: Sequence[Comparison]) -> list[str]:
    """What the neighbours add to a model of all communities and to one of each."""
    graph, alone = comparisons
    lines = []
    for name in ("fedavg", "local"):
        with_, without = (found.method(name) for found in (graph, alone))
        number = Number.among(graph.metric, [whole(with_, graph.metric), whole(without, graph.metric)])
        lines.append(
            f"{with_.title}: {graph.metric.title} {number(whole(with_, graph.metric))} with the neighbours and "
            f"{number(whole(without, graph.metric))} without; {gain(with_, without, graph.metric)}."
        )
    return lines


def shared_by_some(comparison: Comparison) -> list[str]:
    """What sharing among some communities gains over one model for all and over one for each."""
    return [
        f"{method.title} against {other.title}: {gain(method, other, comparison.metric)}."
        for method in comparison.methods
        for other in (comparison.method("fedavg"), comparison.method("local"))
        if of(method.name, GROUPED)
    ]


def gain(one: MethodResult, other: MethodResult, metric: MetricCard) -> str:
    """The mean gain of a method over another, over seeds and over clients."""
    sign = 1 if metric.higher else -1
    gains = [sign * (mean(one, seed, metric) - mean(other, seed, metric)) for seed in range(len(one.seeds))]
    middle, width = interval(gains)
    of_clients = sign * differences(one.per_client(metric.name), other.per_client(metric.name))
    number = Number.among(metric, [mean(m, seed, metric) for m in (one, other) for seed in range(len(m.seeds))])
    test = probability(paired_test(one.per_client(metric.name), other.per_client(metric.name)))
    spread = "with one seed" if len(gains) == 1 else f"\N{PLUS-MINUS SIGN} {number(width)} over seeds"
    return (
        f"gain {number(middle)} {spread}; {int((of_clients > 0).sum())} of {len(of_clients)} communities gain, "
        f"{int((of_clients < 0).sum())} lose, {test} over communities"
    )


community = Case(
    name="community",
    title="Communities of streamers in seven languages",
    question=(
        "We want to know which streamers use explicit language, and each community keeps its own graph: do neighbours "
        "help, and should communities share a model with all, with their language, or with nobody?"
    ),
    parts=(
        Part(
            name="graph",
            title="14 communities, features of a streamer and of sampled neighbours, by AUROC",
            data="twitch",
            personal=(*GROUPED, "ditto", "apfl", "fedper"),
            options={"model": "plures.cases.community:with_neighbours", **BUDGET},
            told=("accuracy", "balanced_accuracy"),
            worth=0.01,
            notes=shared_by_some,
        ),
        Part(
            name="alone",
            title="The same streamers without their neighbours",
            data="twitch",
            personal=("metadata_clusters(column=language)", "ditto"),
            options={"model": "plures.cases.community:without_neighbours", **BUDGET},
            worth=0.01,
        ),
    ),
    together=value_of_the_graph,
    advice=(
        "train one model for all, whatever the language, and give each community an intercept if you must say yes or "
        "no and all errors count the same, because communities differ in how many use explicit language. Before you "
        "build on the graph, measure what neighbours add; here it is nothing, and without them you need not touch "
        "anybody's friendships. Do not divide by a fact only because it is at hand: compare with one model for all "
        "first. And expect little: an AUROC of 0.61 is no ground for acting on a single person."
    ),
)
