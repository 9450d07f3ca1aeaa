"""Clusters of clients against what is known about the clients."""

from __future__ import annotations

import numpy as np
import pytest
from comparisons import comparison

from plures.evaluate.coincidence import adjusted_mutual_information, proxies
from plures.evaluate.record import BySubgroup, Details
from plures.evaluate.results import MethodResult, SeedResult, SubgroupCard
from plures.report import html_report


@pytest.mark.parametrize("seed", range(8))
def test_adjusted_mutual_information_is_that_of_scikit_learn(seed: int) -> None:
    oracle = pytest.importorskip("sklearn.metrics").adjusted_mutual_info_score
    draw = np.random.default_rng(seed)
    one, noise = draw.integers(0, 3, 40), draw.random(40) < 0.1 * seed
    other = np.where(noise, draw.integers(0, 4, 40), one)
    assert adjusted_mutual_information(one.tolist(), other.tolist()) == pytest.approx(oracle(one, other), abs=1e-12)


def test_partitions_with_one_group_or_only_single_clients_say_nothing() -> None:
    assert np.isnan(adjusted_mutual_information([0, 0, 0, 0], ["a", "a", "b", "b"]))
    assert np.isnan(adjusted_mutual_information([0, 0, 1, 1], ["a", "b", "c", "d"]))


def test_a_column_that_the_clusters_follow_is_found() -> None:
    clusters = [0, 0, 0, 1, 1, 1]
    columns = {"sex": ["f", "f", "f", "m", "m", "m"], "city": ["A", "B"] * 3, "name": list("abcdef")}
    assert proxies(clusters, columns) == {"sex": 1.0}


def test_the_report_says_that_clusters_are_a_proxy() -> None:
    plain = comparison(details=True, clients=12, seeds=1, rounds=5, missing=False)
    method = next(m for m in plain.methods if m.name == "ifca")
    details = method.seeds[0].details
    assert details is not None
    (clusters, *_) = details.clusters.values()
    other = {"ward": ["a", "b", "c"] * 4}
    pages = [
        html_report(plain.model_copy(update={"federation": plain.federation.model_copy(update={"metadata": told})}))
        for told in (other, {**other, "sex": [f"group {c}" for c in clusters]})
    ]
    sentence = "IFCA: its clusters are a proxy for sex (adjusted mutual information 1.00)"
    assert ["clusters are a proxy" in page for page in pages] == [False, True]
    assert sentence in pages[1]


def test_the_report_says_that_clusters_are_a_proxy_for_a_mix() -> None:
    plain = comparison(details=True, clients=12, seeds=1, rounds=5, missing=False)
    details = plain.method("ifca").seeds[0].details
    assert details is not None
    mix = [90 if cluster else 10 for cluster in details.clusters["model"]]
    sizes = [mix, [100 - women for women in mix]]
    nothing = [[50] * 12, [50] * 12]
    pages = []
    for train in (sizes, nothing):
        card = SubgroupCard(names=["f", "m"], sizes={"train": train, "test": nothing})
        methods = [
            method.model_copy(update={"seeds": [s.model_copy(update={"details": d}) for s, d in told(method, details)]})
            for method in plain.methods
        ]
        federation = plain.federation.model_copy(update={"subgroups": {"sex": card}})
        pages.append(html_report(plain.model_copy(update={"federation": federation, "methods": methods})))
    sentence = "a client&#x27;s mix of sex (explained 1.00). Who knows"
    assert [sentence in page for page in pages] == [True, False]


def told(method: MethodResult, clustered: Details) -> list[tuple[SeedResult, Details]]:
    """The runs of a made-up method, with details by subgroups."""
    one = {"accuracy": [0.8, 0.9], "ece": [0.1, 0.1]}
    by = BySubgroup(metrics=one, pooled=one, clients=[[0.8] * 12, [0.9] * 12])
    given = clustered if method.name == "ifca" else Details()
    return [(seed, given.model_copy(update={"subgroups": {"sex": by}})) for seed in method.seeds]
