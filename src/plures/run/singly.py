"""Scoring clients with much data one after the other: their own rows, without padding, in parts that fit into a cache.

Stacked clients spare the cost of a call, but their inputs are gathered and padded for all of them at once, which reads
and writes memory three times. A processor's cache holds the inputs of a few hundred rows, and rows that follow each
other are not even copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plures.federation import SplitName
from plures.federation.inputs import Inputs
from plures.run.steps import Stack, gather

if TYPE_CHECKING:
    from plures.run.engine import Engine

MUCH = 1 << 16
"""Bytes of a client's inputs, on average, above which a call of its own costs less than stacking it."""
CACHED = 1 << 20
"""Bytes of the inputs that one call copies."""
LEAST, MOST = 64, 512
"""Rows of one call: at least those, if the client has as many, for products to be fast; at most those, for memory."""


def worthwhile(engine: Engine, clients: Sequence[int], split: SplitName) -> bool:
    """Whether these clients are scored one after the other.

    It takes a predictor that is a network, and a task and metrics for which examples count singly. A GPU runs stacks.

    Args:
        engine: the run's engine.
        clients: their positions.
        split: the examples.
    """
    federation, predictor = engine.federation, engine.bound.method.predictor
    if federation.inputs.device.type != "cpu" or predictor.composed or predictor.decide or federation.task.joint:
        return False
    if any(metric.from_train for metric in federation.metrics):
        return False
    rows = int(federation.splits[split].sizes[list(clients)].sum())
    return rows > 0 and (engine.channels_last or rows * federation.inputs[:1].nbytes >= MUCH * len(clients))


def singly(
    engine: Engine, clients: Sequence[int], split: SplitName, deployed: Stack
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Outputs, targets and weights ``(1, n, ...)`` of all examples of some clients, client after client.

    Args:
        engine: the run's engine.
        clients: their positions.
        split: the examples.
        deployed: what they predict with, ``(clients, ...)``.

    Yields:
        The next examples in stored order, at most ``MOST`` for each client.
    """
    federation, network = engine.federation, engine.bound.network
    (model,) = deployed.values()
    given, loaded = federation.weights, -1
    size = MOST if engine.channels_last else max(LEAST, min(MOST, CACHED // max(1, federation.inputs[:1].nbytes)))
    parts = [
        (place, part)
        for place, client in enumerate(clients)
        for part in federation.splits[split][client].split(size)  # type: ignore[no-untyped-call]
        if len(part)
    ]
    same = all(t.stride(0) == 0 for t in model.values())
    for start in range(0, len(parts), len(clients)):
        some = [(place, part, taken(federation.inputs, part)) for place, part in parts[start : start + len(clients)]]
        outputs = []
        with engine.evaluating():
            for place, _, inputs in some:
                if place != loaded and not (same and loaded >= 0):
                    for path, values in model.items():
                        network.live[path].copy_(values[place])
                    loaded = place
                outputs.append(network(network.live, inputs, train=False)[0])
        rows = torch.cat([part for _, part, _ in some])
        weight = rows.new_ones(len(rows), dtype=engine.dtype) if given is None else given[rows]
        yield torch.cat(outputs)[None], gather(federation.targets, rows)[None], weight[None]


def taken(values: Tensor | Inputs, rows: Tensor) -> Tensor | Inputs:
    """``values[rows]``, which is a view where the rows follow each other in memory."""
    if isinstance(values, Inputs):
        return Inputs({name: taken(part, rows) for name, part in values.parts.items()})  # type: ignore[misc]
    index = rows.numpy()
    if type(values) is Tensor and index[-1] - index[0] == len(index) - 1 and (index[1:] > index[:-1]).all():
        return values.narrow(0, int(index[0]), len(index))
    return gather(values, rows)
