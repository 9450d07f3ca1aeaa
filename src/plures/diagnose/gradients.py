"""The clients' gradients at the initial model, as inner products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad

from plures.diagnose.chance import Floats, Ints
from plures.diagnose.sample import Sample
from plures.federation.inputs import Inputs
from plures.federation.seeding import generator
from plures.models import ModelFactory, Network, build, default_model, nested

ROWS = 128
"""Most rows over which a client's gradient is averaged."""
WIDEST = 32768
"""Gradients with more entries are sketched to this many."""
PROBE = "linear probe"
MOST_LABELS = 20
"""Most labels for which gradients are compared within labels."""
Slope = Callable[[Ints], Floats]


@dataclass(frozen=True)
class Gradients:
    """Mean gradients of the clients at the initial model.

    Attributes:
        model: name of the model.
        whole: ``(clients, d)``.
        matched: ``(clients, d)`` less what the client's own label frequencies explain: each label's mean gradient over
            all clients, weighted by how often the client has the label; None with more than 20 labels.
    """

    model: str
    whole: Floats
    matched: Floats | None


def gradients(sample: Sample, model: nn.Module | ModelFactory | None, seed: int = 0) -> Gradients:
    """The clients' gradients at the initial model, in evaluation mode, so rows do not interact.

    Long gradients are sketched: entries are added up in random places with random signs, which preserves inner products
    up to ``1 / sqrt(32768)`` of the lengths (Charikar, Chen, Farach-Colton 2002). Federations of tokens or of several
    inputs have no default network; then, without a model given, the gradients are those of a linear model of the
    sampled components at zero.
    """
    strata = np.unique(sample.strata, return_inverse=True)[1].reshape(-1)
    labels = int(strata.max()) + 1
    strata = strata if labels <= MOST_LABELS else np.zeros_like(strata)
    slope, width, name = _linear(sample) if model is None and not _plain(sample) else _network(sample, model, seed)
    count = np.zeros((sample.clients, int(strata.max()) + 1))
    whole, by_label = np.zeros((sample.clients, width)), np.zeros((count.shape[1], width))
    for client in range(sample.clients):
        places = np.flatnonzero(sample.owner == client)[:ROWS]
        for label in np.unique(strata[places]):
            some = places[strata[places] == label]
            steep = slope(some) * len(some)
            count[client, label] = len(some)
            whole[client] += steep
            by_label[label] += steep
    own = count.sum(1, keepdims=True)
    expected = (count / own) @ (by_label / count.sum(0)[:, None])
    return Gradients(name, whole / own, whole / own - expected if labels <= MOST_LABELS else None)


def _plain(sample: Sample) -> bool:
    """Whether the inputs are one tensor of real numbers, for which there is a default network."""
    return isinstance(sample.federation.inputs, Tensor) and sample.real == (True,)


def _linear(sample: Sample) -> tuple[Slope, int, str]:
    """Mean gradient of some rows for a linear model at zero."""
    mean = sample.target.mean(0) if sample.classification else np.zeros(sample.target.shape[1])
    design = np.hstack([np.ones((len(sample.points), 1)), sample.points])

    def slope(places: Ints) -> Floats:
        return np.asarray(((mean - sample.target[places]).T @ design[places] / len(places)).reshape(-1))

    return slope, len(mean) * design.shape[1], PROBE


def _network(sample: Sample, model: nn.Module | ModelFactory | None, seed: int) -> tuple[Slope, int, str]:
    """Mean gradient of some rows for a network at its initial values, sketched."""
    federation = sample.federation
    module = build(default_model(federation) if model is None else model, seed)
    network = Network(module)
    leaves = network.leaves()
    parameters = {k: t for k, t in leaves.items() if not network.info[k].buffer}
    buffers = {k: t for k, t in leaves.items() if network.info[k].buffer}
    place, sign, width = _sketch(sum(t.numel() for t in parameters.values()), seed)
    targets = federation.targets.cpu()

    def loss(values: dict[str, Tensor], inputs: Tensor | Inputs, target: Tensor) -> Tensor:
        outputs, _ = network({**values, **buffers}, inputs, train=False)
        return federation.task.mean_loss(outputs, target if sample.classification else target.to(outputs))

    derivative = grad(loss)

    def read(some: Tensor) -> Tensor:
        return some.cpu().to(network.dtype) if some.is_floating_point() else some.cpu()

    def slope(places: Ints) -> Floats:
        rows = torch.from_numpy(sample.rows[places])
        inputs = federation.inputs[rows.to(federation.inputs.device)]
        steep = derivative(parameters, nested.mapped(read, inputs), targets[rows])
        flat = torch.cat([steep[k].flatten() for k in parameters]).double()
        return np.asarray(torch.zeros(width, dtype=torch.float64).index_add_(0, place, flat * sign).numpy())

    return slope, width, type(module).__name__


def _sketch(entries: int, seed: int) -> tuple[Tensor, Tensor, int]:
    """Where each entry goes, and its sign; short gradients stay as they are."""
    if entries <= WIDEST:
        return torch.arange(entries), torch.ones(entries, dtype=torch.float64), entries
    rng = generator(seed, "sketch")
    place = torch.from_numpy(rng.integers(0, WIDEST, entries))
    return place, torch.from_numpy(rng.integers(0, 2, entries) * 2.0 - 1), WIDEST
