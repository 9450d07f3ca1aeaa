"""The case of communities: what its two networks read, and what its answer counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plures
from plures.cases import CASES
from plures.cases.community import shared_by_some, value_of_the_graph, with_neighbours, without_neighbours
from plures.cli.case import told_apart
from plures.evaluate import Comparison
from plures.run import Execution

SHAPE = (13, 4)


def test_one_network_reads_the_neighbours_and_the_other_does_not():
    x = torch.from_numpy(np.random.default_rng(0).integers(1, 3171, (6, *SHAPE)))
    changed = x.clone()
    changed[:, 1:] = x[:, 1:].flip(0)
    for build, reads in ((with_neighbours, True), (without_neighbours, False)):
        network = build(SHAPE, 2)
        assert network(x).shape == (6, 2)
        assert torch.equal(network(x), network(changed)) is not reads


@pytest.fixture(scope="module")
def compared() -> Comparison:
    """Two clients in two languages, with the method of languages, and two seeds."""
    x = np.random.default_rng(0).normal(size=(80, 1)).astype(np.float32)
    data = plures.from_arrays(
        x,
        (x[:, 0] > 0).astype(int),
        ["a"] * 40 + ["b"] * 40,
        classes=("no", "yes"),
        metadata={"language": {"a": "German", "b": "French"}},
    )
    return plures.compare(
        data,
        ["metadata_clusters(column=language)"],
        model="logistic",
        metric="auroc",
        rounds=1,
        seeds=2,
        tune_rounds=0,
        learning_rates=(0.5,),
        execution=Execution("loop", 1, False),
    )


def having(found: Comparison, **values: tuple[tuple[float, float], tuple[float, float]]) -> Comparison:
    """A comparison with these values of both clients for each of two seeds, by method."""
    methods = []
    for name, each in values.items():
        method = next(method for method in found.methods if method.name.startswith(name))
        seeds = [
            seed.model_copy(update={"test": seed.test.model_copy(update={"metrics": {"auroc": list(own)}})})
            for seed, own in zip(method.seeds, each, strict=True)
        ]
        methods.append(method.model_copy(update={"seeds": seeds}))
    return found.model_copy(update={"methods": methods})


def test_what_neighbours_add_is_told_over_seeds_and_communities(compared: Comparison):
    """Means over clients gain .25 and .05: .15, and t(.975, 1) = 12.7062 times a standard error of .1."""
    graph = having(compared, fedavg=((0.9, 0.6), (0.7, 0.6)), local=((0.5, 0.5), (0.5, 0.5)))
    alone = having(compared, fedavg=((0.4, 0.6), (0.5, 0.7)), local=((0.6, 0.5), (0.5, 0.6)))
    graph_line, local_line = value_of_the_graph([graph, alone])
    assert graph_line == (
        "FedAvg: AUROC 0.700 with the neighbours and 0.550 without; gain 0.150 \N{PLUS-MINUS SIGN} 1.271 over seeds; "
        "1 of 2 communities gain, 1 lose, p = 1.00 over communities."
    )
    assert local_line.startswith("Local only: AUROC 0.500 with the neighbours and 0.550 without; gain -0.050 ")
    assert "0 of 2 communities gain, 2 lose" in local_line


def test_sharing_among_some_is_set_against_sharing_with_all_and_with_nobody(compared: Comparison):
    found = having(
        compared,
        metadata_clusters=((0.6, 0.6), (0.6, 0.6)),
        fedavg=((0.7, 0.7), (0.7, 0.7)),
        local=((0.5, 0.5), (0.5, 0.5)),
        fedavg_ft=((0.9, 0.9), (0.9, 0.9)),
    )
    against_all, against_local = shared_by_some(found)
    assert against_all.startswith("Metadata clusters column=language against FedAvg: gain -0.100 ")
    assert "0 of 2 communities gain, 2 lose" in against_all
    assert against_local.startswith("Metadata clusters column=language against Local only: gain 0.100 ")
    assert "2 of 2 communities gain, 0 lose" in against_local


def test_parts_with_the_same_data_have_names_of_their_own_in_the_report(compared: Comparison):
    shown = told_apart(CASES["community"], [compared, compared])
    assert [found.federation.name for found in shown] == ["data, graph", "data, alone"]
    assert [found.federation.name for found in told_apart(CASES["landmine"], [compared])] == ["data"]
    assert compared.federation.name == "data"
