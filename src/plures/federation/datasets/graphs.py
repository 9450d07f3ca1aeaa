"""Graphs cut into clients: classification of a node from its sampled two-hop neighbourhood."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from plures.errors import PluresError
from plures.federation.build import Examples, Options, assemble
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read
from plures.federation.federation import Federation
from plures.federation.seeding import generator
from plures.federation.splits import SplitRule
from plures.names import by_name, named

Nodes = NDArray[np.int64]

CORA = (
    "theory",
    "reinforcement learning",
    "genetic algorithms",
    "neural networks",
    "probabilistic methods",
    "case based",
    "rule learning",
)
CITESEER = (
    "artificial intelligence",
    "machine learning",
    "information retrieval",
    "databases",
    "agents",
    "human-computer interaction",
)
LANGUAGES = {
    "DE": "German",
    "ENGB": "English",
    "ES": "Spanish",
    "FR": "French",
    "PTBR": "Portuguese",
    "RU": "Russian",
    "ZHTW": "Chinese",
}


def from_graph(
    edges: ArrayLike,
    indptr: ArrayLike,
    indices: ArrayLike,
    targets: ArrayLike,
    client: ArrayLike,
    *,
    neighbours: int = 5,
    width: int | None = None,
    examples: int | None = None,
    facts: Mapping[str, Mapping[str, object]] | None = None,
    **options: Unpack[Options],
) -> Federation:
    """A federation of nodes from one graph with binary features; GraphSAGE's sampling (Hamilton, Ying, Leskovec 2017).

    An input is int32 ``(1 + K + K * K, F)``: row 0 is the node, rows 1 to K its sampled neighbours, row
    ``1 + K + j * K + k`` the k-th sampled neighbour of neighbour j. A row lists the numbers of a node's active
    features plus 1, padded with 0; a row of only -1 is no node. Every node draws its K neighbours once, without
    replacement and inside its client's own subgraph; a node with at most K has them all. Neighbours come from all
    splits (their features, never their labels): the transductive setting.

    Args:
        edges: ``(m, 2)`` undirected, each pair once.
        indptr: ``(nodes + 1,)`` node v has the active features ``indices[indptr[v]:indptr[v + 1]]``.
        indices: feature numbers from 0.
        targets: ``(nodes,)`` classes; a node below 0 is a neighbour, but not an example.
        client: ``(nodes,)`` names or numbers; edges between clients are dropped, and ``source`` counts them.
        neighbours: K.
        width: F; features of a node beyond F are cut off in the order listed. The largest number of any node if not
            given.
        examples: at most this many nodes of a client, at random, are examples.
        facts: client -> metadata to add to the number of its nodes and edges.
        options: see `from_arrays`.
    """
    seed = options.get("seed", 0)
    links, owner, labels = (np.asarray(values) for values in (edges, client, targets))
    links, owner = links.astype(np.int64).reshape(-1, 2), named(owner)
    nodes = len(owner)
    if len(labels) != nodes or len(np.asarray(indptr)) != nodes + 1:
        raise PluresError(
            f"graph: {len(labels)} targets and features of {len(np.asarray(indptr)) - 1} nodes for {nodes} nodes; "
            "they must match"
        )
    if links.size and not (links.min() >= 0 and links.max() < nodes):
        raise PluresError(f"graph: an edge names a node outside 0..{nodes - 1}; correct the edges")
    for option, value in (("neighbours", neighbours), ("width", width), ("examples", examples)):
        if value is not None and value < 1:
            raise PluresError(f"graph: {option}={value}; give at least 1")
    inside = links[owner[links[:, 0]] == owner[links[:, 1]]]
    table = np.full((nodes, neighbours), -1, dtype=np.int64)
    used, metadata = [], {}
    known = by_name(facts or {})
    for name in np.unique(owner).tolist():
        own = np.flatnonzero(owner == name)
        local = np.searchsorted(own, inside[owner[inside[:, 0]] == name])
        drawn = sample_neighbours(local, len(own), neighbours, generator(seed, "neighbours", name))
        table[own] = np.where(drawn >= 0, own[drawn], -1)
        labelled = own[labels[own] >= 0]
        if examples is not None and len(labelled) > examples:
            labelled = generator(seed, "examples", name).choice(labelled, examples, replace=False)
        used.append(np.sort(labelled))
        metadata[name] = {"nodes": len(own), "edges": len(local), **known.get(name, {})}
    rows = np.sort(np.concatenate(used))
    note = f"{len(links) - len(inside)} of {len(links)} edges run between clients and are dropped"
    source = options.get("source", "")
    options["source"] = f"{source}; {note}" if source else note
    options["metadata"] = metadata
    options["dtype"] = torch.int32
    inputs = _neighbourhoods(_padded(np.asarray(indptr), np.asarray(indices), width), table, rows)
    keys = np.array([blake2b(row.tobytes(), digest_size=16).digest() for row in inputs])
    made = Examples(inputs, labels[rows].astype(np.int64), owner[rows], keys=keys)
    return assemble(made, options, "from_graph", ("neighbours", "width", "examples", "facts"))


def sample_neighbours(edges: Nodes, nodes: int, neighbours: int, rng: np.random.Generator) -> Nodes:
    """``(nodes, neighbours)`` neighbours of each node, drawn without replacement, ascending; -1 where there are fewer.

    Args:
        edges: ``(m, 2)`` undirected, each pair once.
        nodes: number of nodes.
        neighbours: most neighbours to draw for each node.
        rng: generator of the draws.
    """
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.lexsort((rng.random(len(both)), both[:, 0]))]
    degree = np.bincount(both[:, 0], minlength=nodes)
    rank = np.arange(len(both)) - np.repeat(degree.cumsum() - degree, degree)
    kept = rank < neighbours
    chosen = both[kept]
    chosen = chosen[np.lexsort((chosen[:, 1], chosen[:, 0]))]
    table = np.full((nodes, neighbours), -1, dtype=np.int64)
    table[chosen[:, 0], rank[kept]] = chosen[:, 1]
    return table


def communities(edges: ArrayLike, nodes: int, parts: int, *, seed: int = 0) -> Nodes:
    """``(nodes,)`` part of each node: greedy growth of one part after the other (Karypis, Kumar 1998).

    A part starts at the free node with the most free neighbours (ties at random) and takes the free node with the
    largest share of its neighbours in the part, until it is full; where its component ends it starts again. Sizes
    differ by one node at most.

    Args:
        edges: ``(m, 2)`` undirected, each pair once.
        nodes: number of nodes.
        parts: number of parts.
        seed: of the ties.
    """
    if not 1 <= parts <= nodes:
        raise PluresError(f"graph: {parts} parts of {nodes} nodes; give 1 to {nodes}")
    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    degree = np.bincount(both[:, 0], minlength=nodes)
    offsets = np.concatenate([[0], degree.cumsum()])
    tie = 0.5 * generator(seed, "communities").random(nodes)
    owner = np.full(nodes, -1, dtype=np.int64)
    free_neighbours = degree.copy()
    for part in range(parts):
        inside = np.zeros(nodes)
        for _ in range(nodes // parts + int(part < nodes % parts)):
            share = np.where(owner < 0, inside / np.maximum(degree, 1), -1)
            node = int(share.argmax())
            if share[node] <= 0:
                node = int(np.where(owner < 0, free_neighbours + tie, -1).argmax())
            owner[node] = part
            around = both[offsets[node] : offsets[node + 1], 1]
            np.add.at(inside, around, 1)
            np.add.at(free_neighbours, around, -1)
    return owner


@dataset(
    task="classification: topic of a paper, 7, from its two-hop citation neighbourhood",
    clients="communities of the graph (default 10)",
    examples=2708,
    megabytes=0.09,
    licence="MIT",
    source="https://github.com/kimiyoung/planetoid",
    citation="Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016",
    files=("planetoid/cora.npz",),
    how_to_get="save edges (m, 2), y and the features as x_indptr and x_indices as one .npz",
)
def cora(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    clients: int = 10,
    neighbours: int = 5,
    width: int | None = None,
) -> Federation:
    """Cora (Yang, Cohen, Salakhutdinov 2016): 2708 papers, 7 topics, 1433 words, the citation graph cut in communities.

    The paper's own splits (20 train papers of a class) would leave clients without any; papers are split like those
    of any other client. Inputs: see `from_graph`; vocabulary 1433.

    Args:
        seed: of communities, neighbours and splits.
        split: their shares.
        clients: how many communities; see `communities`.
        neighbours: K of `from_graph`.
        width: F of `from_graph` (the largest is 30).
    """
    return _planetoid("cora", CORA, seed, split, clients, neighbours, width)


@dataset(
    task="classification: topic of a paper, 6, from its two-hop citation neighbourhood",
    clients="communities of the graph (default 10)",
    examples=3312,
    megabytes=0.17,
    licence="MIT",
    source="https://github.com/kimiyoung/planetoid",
    citation="Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016",
    files=("planetoid/citeseer.npz",),
    how_to_get="save edges (m, 2), y and the features as x_indptr and x_indices as one .npz",
)
def citeseer(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    clients: int = 10,
    neighbours: int = 5,
    width: int | None = None,
) -> Federation:
    """CiteSeer (Yang, Cohen, Salakhutdinov 2016): 3312 papers, 6 topics, 3703 words, cut in communities.

    15 more papers have neither words nor topic: they are neighbours, not examples. Options are those of `cora`; the
    largest F is 54.
    """
    return _planetoid("citeseer", CITESEER, seed, split, clients, neighbours, width)


@dataset(
    task="classification: explicit language or not, from a streamer's two-hop neighbourhood",
    clients="7 languages (or parts of their graphs)",
    examples=36890,
    megabytes=2.2,
    licence="GPL-3.0 repository; published by SNAP for research",
    source="https://github.com/benedekrozemberczki/MUSAE",
    citation="Rozemberczki, Allen, Sarkar: Multi-Scale Attributed Node Embedding, Journal of Complex Networks 2021",
    files=("twitch/twitch.npz",),
    how_to_get="save C_edges (m, 2), C_y, C_x_indptr and C_x_indices of each language C as one .npz",
)
def twitch(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    languages: tuple[str, ...] = tuple(LANGUAGES),
    parts: int = 1,
    neighbours: int = 5,
    width: int | None = 32,
    examples: int | None = 1000,
) -> Federation:
    """Twitch (Rozemberczki, Allen, Sarkar 2021): 36890 streamers in 7 language graphs; is their language explicit?

    Inputs: see `from_graph`; vocabulary 3170. With all nodes (``examples=None``) they take 146 MB.

    Args:
        seed: of parts, examples, neighbours and splits.
        split: their shares.
        languages: graphs to take, among DE, ENGB, ES, FR, PTBR, RU, ZHTW.
        parts: clients of one language; its graph is cut by `communities`.
        neighbours: K of `from_graph`.
        width: F of `from_graph`; 5 % of the streamers have more than 32 features, the most 288.
        examples: at most this many streamers of a client.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise PluresError(f"twitch: no language {language!r}; languages are {', '.join(LANGUAGES)}")
    raw = read(data_folder() / "twitch" / "twitch.npz")
    edges, lengths, indices, targets, client = [], [], [], [], []
    first = 0
    for language in languages:
        labels = raw[f"{language}_y"]
        pairs = raw[f"{language}_edges"].astype(np.int64)
        owner = np.full(len(labels), language)
        if parts > 1:
            numbers = communities(pairs, len(labels), parts, seed=seed).astype(str)
            owner = np.char.add(f"{language} ", np.char.zfill(numbers, len(str(parts - 1))))
        edges.append(pairs + first)
        lengths.append(np.diff(raw[f"{language}_x_indptr"]))
        indices.append(raw[f"{language}_x_indices"])
        targets.append(labels)
        client.append(owner)
        first += len(labels)
    names = np.concatenate(client)
    return from_graph(
        np.concatenate(edges),
        np.concatenate([[0], np.concatenate(lengths).cumsum()]),
        np.concatenate(indices),
        np.concatenate(targets),
        names,
        neighbours=neighbours,
        width=width,
        examples=examples,
        facts={name: {"language": LANGUAGES[name.split()[0]]} for name in np.unique(names).tolist()},
        name="twitch",
        copies="allow",
        classes=("clean", "explicit"),
        split=split,
        seed=seed,
        source="Twitch social networks (MUSAE), GPL-3.0 repository, SNAP for research",
    )


def _planetoid(
    name: Literal["cora", "citeseer"],
    classes: tuple[str, ...],
    seed: int,
    split: SplitRule | None,
    clients: int,
    neighbours: int,
    width: int | None,
) -> Federation:
    raw = read(data_folder() / "planetoid" / f"{name}.npz")
    parts = communities(raw["edges"], len(raw["y"]), clients, seed=seed).astype(str)
    return from_graph(
        raw["edges"],
        raw["x_indptr"],
        raw["x_indices"],
        raw["y"],
        np.char.add("community ", np.char.zfill(parts, len(str(clients - 1)))),
        neighbours=neighbours,
        width=width,
        name=name,
        copies="allow",
        classes=classes,
        split=split,
        seed=seed,
        source="Planetoid, MIT",
    )


def _padded(indptr: NDArray[Any], indices: NDArray[Any], width: int | None) -> NDArray[np.int32]:
    """``(nodes + 1, F)``: active features plus 1, then zeros; the last row, all -1, is the absent node."""
    lengths = np.diff(indptr)
    place = np.arange(len(indices)) - np.repeat(indptr[:-1], lengths)
    node = np.repeat(np.arange(len(lengths)), lengths)
    columns = max(int(lengths.max(initial=0)), 1) if width is None else width
    rows = np.zeros((len(lengths) + 1, columns), dtype=np.int32)
    kept = place < columns
    rows[node[kept], place[kept]] = indices[kept].astype(np.int32) + 1
    rows[-1] = -1
    return rows


def _neighbourhoods(features: NDArray[np.int32], table: Nodes, nodes: Nodes) -> NDArray[np.int32]:
    """Inputs of some nodes, see `from_graph`."""
    absent = np.full((1, table.shape[1]), -1)
    near = table[nodes]
    far = np.concatenate([table, absent])[near].reshape(len(nodes), -1)
    inputs: NDArray[np.int32] = features[np.concatenate([nodes[:, None], near, far], axis=1)]
    return inputs
