"""Neighbourhoods by hand, communities that fill up, edges that are dropped and counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.federation import SPLITS, communities, from_graph
from plures.federation.datasets.graphs import sample_neighbours

#  0 - 1 - 2     3 - 4    and 2 - 3 between the clients; 5 is alone and has no feature
EDGES = [(0, 1), (1, 2), (2, 3), (3, 4)]
INDPTR = [0, 2, 3, 4, 5, 8, 8]
INDICES = [0, 7, 1, 2, 3, 4, 5, 6]
CLIENT = ["a", "a", "a", "b", "b", "b"]


def tiny(**options: object):
    return from_graph(EDGES, INDPTR, INDICES, [0, 1, 0, 1, 0, 1], CLIENT, classes=("no", "yes"), **options)


@pytest.mark.filterwarnings("ignore:.*fewer than 3 training examples:plures.errors.PluresWarning")
def test_neighbourhoods_by_hand():
    f = tiny(neighbours=2, source="by hand")
    assert f.inputs.dtype == torch.int32
    assert f.features == (1 + 2 + 4, 3)
    absent, zero, one, two = [-1, -1, -1], [1, 8, 0], [2, 0, 0], [3, 0, 0]
    three, four = [4, 0, 0], [5, 6, 7]
    expected = [
        [zero, one, absent, zero, two, absent, absent],
        [one, zero, two, one, absent, one, absent],
        [two, one, absent, zero, two, absent, absent],
        [three, four, absent, three, absent, absent, absent],
        [four, three, absent, four, absent, absent, absent],
        [[0, 0, 0], absent, absent, absent, absent, absent, absent],
    ]
    assert f.inputs.tolist() == expected
    assert f.source == "by hand; 1 of 4 edges run between clients and are dropped"
    assert f.metadata == {"nodes": (3, 3), "edges": (2, 1)}


def test_width_cuts_and_unlabelled_nodes_are_neighbours_only():
    f = from_graph(EDGES, INDPTR, INDICES, [0, -1, 1, 1, 0, 0], ["a"] * 6, neighbours=1, width=1)
    assert len(f.inputs) == 5
    assert f.inputs[0].tolist() == [[1], [2], f.inputs[0, 2].tolist()]
    wide = from_graph(EDGES, INDPTR, INDICES, [0, 1, 0, 1, 0, 1], ["a"] * 6, neighbours=1, width=4)
    assert wide.inputs[4, 0].tolist() == [5, 6, 7, 0]


def test_sampling_without_replacement():
    star = np.array([(0, i) for i in range(1, 9)])
    table = sample_neighbours(star, 10, 3, np.random.default_rng(0))
    assert len(set(table[0].tolist())) == 3
    assert (np.diff(table[0]) > 0).all()
    assert table[1:9].tolist() == [[0, -1, -1]] * 8
    assert table[9].tolist() == [-1] * 3
    drawn = [sample_neighbours(star, 10, 3, np.random.default_rng(seed))[0] for seed in range(2000)]
    shares = np.bincount(np.concatenate(drawn), minlength=9)[1:] / 2000
    np.testing.assert_allclose(shares, 3 / 8, atol=0.045)  # four standard errors
    whole = sample_neighbours(star, 10, 8, np.random.default_rng(0))
    assert whole[0].tolist() == list(range(1, 9))


def test_a_client_is_drawn_alike_beside_any_others():
    rng = np.random.default_rng(3)
    pairs = np.array([(i, j) for i in range(30) for j in range(i) if rng.random() < 0.5])
    both = np.concatenate([pairs, pairs + 30])
    pointers = np.arange(61)

    def graph(edges: np.ndarray, nodes: int, seed: int = 0):
        labels, owner = np.arange(nodes) % 2, np.repeat(["a", "b"], 30)[:nodes]
        return from_graph(edges, pointers[: nodes + 1], np.arange(nodes), labels, owner, neighbours=3, seed=seed)

    alone, together = graph(pairs, 30), graph(both, 60)
    assert torch.equal(alone.inputs, together.inputs[:30])
    for split in SPLITS:
        assert torch.equal(alone.splits[split][0], together.splits[split][0])
    assert not torch.equal(graph(pairs, 30, seed=1).inputs, alone.inputs)


def test_communities_find_cliques_and_are_balanced():
    cliques = [(a + 5 * c, b + 5 * c) for c in range(4) for a in range(5) for b in range(a)]
    chain = [(4, 5), (9, 10), (14, 15)]
    owner = communities(cliques + chain, 20, 4)
    assert sorted(map(tuple, owner.reshape(4, 5).tolist())) == [(i,) * 5 for i in range(4)]
    path = [(i, i + 1) for i in range(22)]
    sizes = np.bincount(communities(path, 23, 4))
    assert sorted(sizes.tolist()) == [5, 6, 6, 6]
    assert communities([], 4, 2).tolist().count(0) == 2
    with pytest.raises(PluresError, match="5 parts of 4 nodes"):
        communities([], 4, 5)


def test_bad_graphs_are_named():
    with pytest.raises(PluresError, match="neighbours=0"):
        tiny(neighbours=0)
    with pytest.raises(PluresError, match=r"outside 0\.\.5"):
        from_graph([(0, 6)], INDPTR, INDICES, [0] * 6, CLIENT)
    with pytest.raises(PluresError, match="7 targets and features of 6 nodes for 6 nodes"):
        from_graph(EDGES, INDPTR, INDICES, [0] * 7, CLIENT)
