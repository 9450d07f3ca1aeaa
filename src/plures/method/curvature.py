"""Curvature of the likelihood: Fisher information, and how uncertain weights make outputs uncertain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation.inputs import Inputs
from plures.method.state import Batch
from plures.models import Leaves, nested

NUMBERS = 1 << 22
"""Number of gradient entries held at once for a client, counting every example and output."""


def fisher(leaves: Leaves, batch: Batch) -> Leaves:
    """Diagonal of the Fisher information of one example, averaged over a batch.

    Targets follow the model's prediction, not the batch: for classes ``sum_c p_c (d log p_c)^2``, for
    the squared error ``2 sum_o (d f_o)^2`` (:meth:`plures.tasks.Task.curvature`). Costs one gradient per example
    and output.

    Args:
        leaves: the model.
        batch: the examples; padding does not count.

    Returns:
        One entry for every entry of a parameter; buffers and frozen parameters are left out.

    Raises:
        PluresError: if the curvature of the loss is not known (:attr:`plures.tasks.Task.curved`).
    """
    if not batch.problem.task.curved:
        raise PluresError(f"{batch.problem.task.kind}: the curvature of this loss is not known, but needed here")
    total: Leaves = {}
    mask = batch.mask
    names = [k for k in leaves if k not in batch.problem.network.fixed]
    task = batch.problem.task
    for part, outputs, slopes in jacobians(leaves, batch, names, of=lambda outputs: task.curvature(outputs)[0]):
        weight = mask[part].unsqueeze(1) * task.curvature(outputs)[1] / mask.sum()
        for k, slope in slopes.items():
            found = torch.tensordot(weight, slope.square(), 2)
            total[k] = total[k] + found if k in total else found
    return total


def output_covariance(leaves: Leaves, variance: Leaves, batch: Batch) -> Tensor:
    """Covariance of the outputs, ``(batch, outputs, outputs)``, by linearising the model in its weights.

    It is exact for models that are linear in their weights. Costs one gradient per example and output.

    Args:
        leaves: mean of the weights.
        variance: of the entries of some parameters, assumed independent; the others have no variance.
        batch: the examples.
    """
    parts = []
    for _, _, slopes in jacobians(leaves, batch, tuple(variance)):
        flat = [(slope.flatten(2), variance[k].flatten()) for k, slope in slopes.items()]
        parts.append(torch.stack([slope * spread @ slope.mT for slope, spread in flat]).sum(0))
    return torch.cat(parts)


def jacobians(
    leaves: Leaves, batch: Batch, names: Collection[str], *, of: Callable[[Tensor], Tensor] = lambda outputs: outputs
) -> Iterator[tuple[slice, Tensor, Leaves]]:
    """Outputs ``(part, outputs)`` and their gradients ``(part, outputs, ...)``, some examples of a batch at a time.

    Args:
        leaves: the model, in evaluation mode.
        batch: the examples.
        names: the parameters.
        of: a function of the outputs ``(outputs,)`` to differentiate instead.
    """
    network = batch.problem.network
    free = {k: leaves[k] for k in names}

    def one(parameters: Leaves, example: Tensor | Inputs) -> tuple[Tensor, Tensor]:
        alone = nested.mapped(lambda t: t.unsqueeze(0), example)
        outputs, _ = network({**leaves, **parameters}, alone, train=False)
        return of(outputs[0]), outputs[0]

    slopes = torch.func.vmap(torch.func.jacrev(one, has_aux=True), (None, 0))
    size = max(1, NUMBERS // (batch.problem.task.outputs * sum(t.numel() for t in free.values())))
    for begin in range(0, len(batch.targets), size):
        part = slice(begin, begin + size)
        found, outputs = slopes(free, batch.inputs[part])
        yield part, outputs, found
