"""What a run learned, as ordinary modules."""

from __future__ import annotations

import copy

from torch import nn

from plures.errors import PluresError
from plures.models import Leaves
from plures.run.run import Run


def experts_of(run: Run) -> list[nn.Module]:
    """The different models that the clients of a run predict with: one global, one per cluster, or one per client.

    They serve as experts of a mixture or as the base of another run. What was frozen in the run is frozen in them.

    Args:
        run: a run, with a predictor that is one model.

    Returns:
        Modules in the order of the first client that uses each.
    """
    if run.bound.method.predictor.composed:
        raise PluresError("the clients of this run predict with more than one model each, so it has no experts to give")
    found: dict[bytes, Leaves] = {}
    for client in range(len(run.federation)):
        leaves = {path: t[0].clone() for path, t in run.predictors([client]).items()}
        found.setdefault(b"".join(t.cpu().numpy().tobytes() for t in leaves.values()), leaves)
    return [_module(run, leaves) for leaves in found.values()]


def _module(run: Run, leaves: Leaves) -> nn.Module:
    module = copy.deepcopy(run.bound.network.module)
    module.load_state_dict(leaves)
    for path, parameter in module.named_parameters():
        parameter.requires_grad_(path not in run.bound.network.frozen)
    return module
