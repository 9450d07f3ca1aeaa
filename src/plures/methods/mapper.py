"""MAPPER, mixtures of the outputs of a local and a shared model."""

import torch
from torch import Tensor

from plures.method import Assign, Batch, Leaves, Method, Personal, Phase, Predict, Shared, Start, State, Visit, detach
from plures.method.needs import mixing
from plures.methods.entry import entry, require

GRID = 11


@entry("MAPPER", "interpolation", "Mansour, Mohri, Ro, Suresh 2020, arXiv:2002.10619", {"residual": (0.0, 0.5)})
def mapper(lam: float | None = None, residual: float = 0.0, visits: int = 5) -> Method:
    """Each client predicts with the mixture ``lam h_local + (1 - lam) h_shared`` of two models' outputs.

    For classes or labels, probabilities are mixed. The weight ``lam`` is each client's best on its validation data: for
    squared loss ``<y - h_shared, h_local - h_shared> / ||h_local - h_shared||^2`` clipped to [0, 1], for other losses
    the best of eleven values (the smallest on ties). A client without validation data takes the shared model. With
    :func:`~plures.methods.ifca.ifca` or :func:`~plures.methods.metadata_clusters.metadata_clusters` added, the shared
    model is the cluster's.

    The local model minimises the client's own loss. The shared one does too, or, with ``residual``, minimises
    ``f_i(residual h_local + (1 - residual) h_shared)`` with the local model fixed: the paper's alternation for one
    mixture weight. Training does not use the validated weight: a client that prefers its own model (all do in the
    first rounds) would then stop training the shared one.

    Args:
        lam: weight of the local model, the same for all clients; default: each client's on validation data.
        residual: its weight in the loss of the shared model, in [0, 1).
        visits: visits an unseen client makes to train its local model, starting from the shared one.
    """
    require(lam is None or 0 <= lam <= 1, f"mapper: lam={lam} must lie in [0, 1]")
    require(0 <= residual < 1, f"mapper: residual={residual} must lie in [0, 1)")

    def mixed(local: Tensor, shared: Tensor, weight: Tensor, batch: Batch) -> Tensor:
        return batch.problem.task.mix([local, shared], torch.stack([weight, 1 - weight]))

    def remainder(x: State, received: State, batch: Batch) -> Tensor:
        held, own = batch.outputs(detach(x.personal)), batch.outputs(x.model)
        mixture = mixed(held, own, torch.full_like(x.lam["lam"], residual), batch)
        return batch.problem.loss(mixture, batch.targets, batch.weight)

    def gain(x: State, received: State, batch: Batch) -> Leaves:
        local, shared = batch.outputs(x.personal), batch.outputs(x.model)
        if batch.problem.task.squared:
            step = local - shared
            return {"along": batch.mean((step * (batch.targets - shared)).sum(-1)), "square": batch.mean(step**2).sum()}
        grid = torch.linspace(0, 1, GRID, dtype=local.dtype, device=local.device)
        each = torch.stack(
            [batch.problem.losses(mixed(local, shared, w, batch), batch.targets, batch.weight) for w in grid], 1
        )
        return {"losses": batch.mean(each)}

    def choose(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        found = visit.measured
        if "losses" in found:
            return {"lam": {"lam": found["losses"].argmin().to(found["losses"]) / (GRID - 1)}}
        best = found["along"] / torch.where(found["square"] > 0, found["square"], 1.0)
        return {"lam": {"lam": best.clamp(0.0, 1.0)}}

    def start(start: Start) -> Leaves:
        mixing(start, "mapper")
        return {"lam": torch.tensor(lam or 0.0, dtype=start.network.dtype)}

    return Method(
        layout={"model": Shared(), "personal": Personal(unseen="model"), "lam": Personal()},
        slots={"lam": start},
        schedule=(Phase("personal"), Phase(objective=remainder) if residual else Phase()),
        predict=Predict(
            adapt=(Assign(("lam",), choose, gain, split="validation"),) if lam is None else (),
            outputs=lambda x, batch: mixed(batch.outputs(x.personal), batch.outputs(x.model), x.lam["lam"], batch),
            visits=visits,
        ),
    )
