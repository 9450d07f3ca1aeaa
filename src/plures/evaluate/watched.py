"""What is seen of every client, honest or not, where some attack or uploads may be left out."""

from __future__ import annotations

import torch

from plures.evaluate.record import Watched
from plures.method.combine import REDUCER
from plures.robust.robust import JUDGED
from plures.run import Run, Threatening


def watched(run: Run, threat: Threatening | None) -> Watched | None:
    """Who was left out, who is in which cluster, and how often a backdoor opens; ``None`` if there is nothing to see.

    Args:
        run: a run in its final state, under attack or not.
        threat: the hostile clients whose backdoor is tried.
    """
    left_out = shares(run)
    if threat is None:
        return Watched(left_out=left_out) if left_out else None
    names = run.federation.clients
    return Watched(
        left_out=left_out,
        clusters={block: dict(zip(names, rows.tolist(), strict=True)) for block, rows in run.membership.items()},
        personal=threat.success(run),
        shared=threat.success(run, shared=True),
    )


def shares(run: Run) -> dict[str, float]:
    """For each client that a combination judged, the share of these rounds in which its upload was left out.

    Empty if no combination leaves uploads out. If blocks are judged apart, the block counts in which it was left out
    most.
    """
    found = [memory[REDUCER + JUDGED].sum(0) for memory in run.memory.values() if REDUCER + JUDGED in memory]
    if not found:
        return {}
    times, left = torch.stack(found).double().unbind(1)
    most = torch.where(times > 0, left / times.clamp(min=1), 0.0).amax(0)
    seen = times.amax(0) > 0
    return {run.federation.clients[i]: float(most[i]) for i in seen.nonzero().flatten().tolist()}
