"""Graph networks that classify a node from its sampled two-hop neighbourhood.

An example is a table of integers ``(1 + K + K * K, F)``: row 0 is the node, rows 1 to K are its sampled neighbours, row
``1 + K + j * K + k`` is the k-th sampled neighbour of neighbour j. A row lists the numbers 1 to ``vocabulary`` of a
node's active binary features, padded with 0; a row of -1 means no node.
"""

from __future__ import annotations

from collections import OrderedDict
from math import isqrt

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.adapters import Bottleneck
from plures.models.bag import Bag
from plures.models.network import with_roles
from plures.models.parts import Features, check


class GcnLayer(nn.Module):
    """``h_v <- f(mean of W h_u over v and its neighbours)`` (Hamilton et al. 2017, equation 2), plus the adapter.

    The symmetric normalisation of Kipf, Welling 2017 needs the degrees of the whole graph, which a sample lacks.

    Args:
        linear: W.
        activation: f.
        adapter: added to the result; reads ``W h_v``.
    """

    def __init__(self, linear: nn.Module, activation: nn.Module, adapter: nn.Module | None) -> None:
        super().__init__()
        self.linear, self.activation, self.adapter = linear, activation, adapter

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """New vectors of nodes; see :func:`_near`."""
        rows = self.linear(x)
        own, near = rows[:, : present.shape[1]], _near(rows[:, 1:], present)
        h = self.activation((own + near) / (1 + _count(present)))
        return h if self.adapter is None else h + self.adapter(own)  # type: ignore[no-any-return]


class SageLayer(nn.Module):
    """``h_v <- relu(W [h_v, mean of h_u over its neighbours])`` (Hamilton et al. 2017, Algorithm 1, line 5).

    W is kept as two maps, of the node and of its neighbours. Without neighbours their mean is zero; line 7, the
    division by the norm, is left out.

    Args:
        own: map of the node.
        near: map of its neighbours, without bias.
        adapter: added to the result; reads the output of ``own``.
    """

    def __init__(self, own: nn.Module, near: nn.Module, adapter: nn.Module | None) -> None:
        super().__init__()
        self.own, self.near, self.adapter = own, near, adapter

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """New vectors of nodes; see :func:`_near`."""
        own, near = self.own(x[:, : present.shape[1]]), _near(self.near(x[:, 1:]), present)
        h = torch.relu(own + near / _count(present).clamp(min=1))
        return h if self.adapter is None else h + self.adapter(own)


class TwoHops(nn.Module):
    """The first layer at the node and its neighbours, then the second at the node: ``(batch, units)``."""

    def __init__(self, neighbours: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.neighbours, self.first, self.second = neighbours, first, second

    def forward(self, x: Tensor) -> Tensor:
        inner = 1 + self.neighbours
        present = (x >= 0).any(-1)[:, 1:].reshape(len(x), inner, self.neighbours)
        return self.second(self.first(x, present), present[:, :1])[:, 0]  # type: ignore[no-any-return]


def gcn(features: Features, outputs: int, vocabulary: int = 4096, hidden: int = 64, adapter: int = 0) -> nn.Module:
    """The two-layer graph convolutional network of Kipf, Welling 2017 (equation 9) on sampled neighbourhoods.

    The second layer's average is the end of the ``body``, its linear map the ``head``. With ``hidden=16``, 23,063
    parameters for Cora (vocabulary 1433, seven classes).

    Args:
        features: ``(1 + K + K * K, F)``, see this module.
        outputs: number of outputs.
        vocabulary: number of binary features.
        hidden: units of the hidden layer.
        adapter: width of the bottleneck adapter added in each layer (role ``adapter``), zero at the start; 0 is none.
    """
    neighbours = _neighbours("gcn", features, outputs, vocabulary, hidden, adapter)
    first = GcnLayer(Bag(vocabulary, hidden), nn.ReLU(), _adapter(hidden, adapter))
    second = GcnLayer(nn.Identity(), nn.Identity(), _adapter(hidden, adapter))
    return _network(TwoHops(neighbours, first, second), hidden, outputs, adapter)


def sage(features: Features, outputs: int, vocabulary: int = 4096, hidden: int = 64, adapter: int = 0) -> nn.Module:
    """GraphSAGE with two layers and mean aggregator (Hamilton, Ying, Leskovec 2017, Algorithm 1), then the head.

    Args:
        features: ``(1 + K + K * K, F)``, see this module.
        outputs: number of outputs.
        vocabulary: number of binary features.
        hidden: units of each layer.
        adapter: width of the bottleneck adapter added in each layer (role ``adapter``), zero at the start; 0 is none.
    """
    neighbours = _neighbours("sage", features, outputs, vocabulary, hidden, adapter)
    first = SageLayer(Bag(vocabulary, hidden), Bag(vocabulary, hidden, bias=False), _adapter(hidden, adapter))
    second = SageLayer(nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False), _adapter(hidden, adapter))
    return _network(TwoHops(neighbours, first, second), hidden, outputs, adapter)


def _near(rows: Tensor, present: Tensor) -> Tensor:
    """Sums ``(batch, n, units)`` over the neighbours of n nodes that are present.

    A layer reads ``1 + n * K`` rows: first the n nodes, and from the second row on K neighbours of each of them.

    Args:
        rows: ``(batch, n * K, units)``.
        present: ``(batch, n, K)``.
    """
    return (rows.reshape(*present.shape, -1) * present.unsqueeze(-1)).sum(-2)


def _count(present: Tensor) -> Tensor:
    return present.sum(-1, keepdim=True)


def _adapter(hidden: int, width: int) -> nn.Module | None:
    return Bottleneck(hidden, width) if width else None


def _network(body: TwoHops, hidden: int, outputs: int, adapter: int) -> nn.Module:
    layers = OrderedDict[str, nn.Module](body=body, head=nn.Linear(hidden, outputs))
    adapters = {"adapter": ("body.first.adapter", "body.second.adapter")} if adapter else {}
    return with_roles(nn.Sequential(layers), body="body", head="head", **adapters)


def _neighbours(network: str, features: Features, outputs: int, vocabulary: int, hidden: int, adapter: int) -> int:
    """K, from the ``1 + K + K * K`` rows of an example."""
    check(network, features, outputs, vocabulary=vocabulary, hidden=hidden)
    if adapter < 0:
        raise PluresError(f"{network}: adapter={adapter}: give the width of the adapters, or 0 for none")
    neighbours = (isqrt(4 * features[0] - 3) - 1) // 2
    if len(features) != 2 or neighbours < 1 or features[0] != 1 + neighbours + neighbours**2:
        raise PluresError(
            f"{network} reads neighbourhoods (1 + K + K * K, F) of K sampled neighbours, such as (31, F) for K=5; "
            f"examples have shape {features}"
        )
    return neighbours
