"""MOCHA, federated multi-task learning of linear models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plures.method import (
    Batch,
    BlockState,
    Leaves,
    Look,
    Method,
    Mixed,
    Phase,
    Predict,
    Setting,
    State,
    View,
    dot,
    squared_distance,
    task_loss,
)
from plures.methods.entry import entry, require


@dataclass(frozen=True)
class Linear(Mixed):
    """Linear models of all clients, kept by the server; other models are refused when a run starts."""

    def start(self, initial: Leaves, fresh: Callable[[int], Leaves], setting: Setting) -> BlockState:
        layers = {name.rpartition(".")[0] for name in initial}
        require(
            len(layers) == 1,
            f"mocha is defined for linear models, but this one has weights in {len(layers)} layers: use a linear "
            "model (logistic), or fedu or mrmtl, which pull deep models together",
        )
        return super().start(initial, fresh, setting)


def covariance(models: Tensor) -> Tensor:
    """Relationship between clients, ``(W^T W)^(1/2) / tr`` (Zhang, Yeung 2010, UAI): positive semidefinite, trace 1.

    Args:
        models: ``(clients, d)``, the columns of the paper's ``W``.

    Returns:
        ``(clients, clients)``; equal and unrelated if all models are zero.
    """
    values, vectors = torch.linalg.eigh(models @ models.T)
    roots = values.clamp(min=0.0).sqrt()
    even = torch.full_like(roots, 1 / len(roots))
    sigma: Tensor = (vectors * torch.where(roots.sum() > 0, roots / roots.sum(), even)) @ vectors.T
    return sigma


def largest(relationship: Tensor) -> float:
    """Largest row sum of absolute values of a fixed relationship, at least its largest eigenvalue."""
    symmetric = relationship.dim() == 2 and torch.equal(relationship, relationship.T)
    require(symmetric, "mocha: relationship must be a symmetric matrix")
    lowest, bound = float(torch.linalg.eigvalsh(relationship.double()).min()), float(relationship.abs().sum(1).max())
    require(lowest >= -1e-9 * bound, f"mocha: relationship has the negative eigenvalue {lowest:.3g}")
    return bound


@entry("MOCHA", "regularised", "Smith, Chiang, Sanjabi, Talwalkar 2017, NeurIPS", {"lam1": (0.1, 0.3, 1.0, 3.0)})
def mocha(
    lam1: float = 1.0,
    lam2: float = 1e-4,
    relationship: Literal["learned", "mean"] | Tensor = "learned",
    shrink: float = 0.1,
    visits: int = 5,
) -> Method:
    """A linear model for every client, and the relationship between all of them, learned together.

    ``min_(W, Omega) sum_i f_i(w_i) + lam1 tr(W Omega W^T) + lam2 ||W||_F^2``, without factors 1/2. Before each round
    the server sets ``Omega`` from the models it has: the inverse of ``(1 - shrink) Sigma + shrink I/n`` for the
    covariance ``Sigma = (W^T W)^(1/2) / tr`` of ``n`` clients, scaled to a largest row sum
    ``b = max_i sum_j |Omega_ij|`` of 1, so that ``lam1`` means the same for any number of clients (the paper has no
    such scale). With ``Omega`` fixed, client ``i`` minimises, in place of the paper's dual sub-problem,

    ``f_i(w) + lam2 ||w||^2 + lam1 b ||w - z_i||^2``  with  ``z_i = w_i - sum_j Omega_ij w_j / b``,

    from the models ``w_j`` of the last round. These bound the objective from above, since ``b I - Omega`` is positive
    semidefinite, and touch it at the last models: every round lowers it, with any number of local steps and any
    cohort, and a fixed point is its exact optimum. A dropped client keeps its model and is not in the cohort.
    The client sends its model and receives ``z_i``.

    Args:
        lam1: strength of the coupling; plain gradient steps need ``2 lam1 b lr`` below 2.
        lam2: strength of the ridge penalty.
        relationship: ``learned``; ``mean``, ``I - 11^T/n`` (mean-regularised multi-task learning with
            ``lam = 2 lam1``); or a fixed ``Omega``, ``(clients, clients)``, symmetric and positive semidefinite.
        shrink: weight of the identity in the learned covariance, which keeps it invertible.
        visits: visits an unseen client makes, starting from the mean of the models, pulled to the mean of the ``z_i``.
    """
    fixed = relationship if isinstance(relationship, Tensor) else None
    require(lam1 >= 0 and lam2 >= 0, f"mocha: lam1={lam1}, lam2={lam2} must not be negative")
    require(0 < shrink <= 1, f"mocha: shrink={shrink} must lie in (0, 1]")
    bound = largest(fixed) if fixed is not None else 1.0 if relationship == "learned" else 2.0

    def omega(models: Tensor) -> Tensor:
        eye = torch.eye(len(models), dtype=torch.float64, device=models.device)
        if fixed is not None:
            require(fixed.shape == eye.shape, f"mocha: relationship is not {len(eye)} by {len(eye)}")
            return fixed.to(eye)
        if relationship == "mean":
            return eye - 1 / len(eye)
        precision: Tensor = torch.linalg.inv((1 - shrink) * covariance(models) + shrink * eye / len(eye))
        return precision / precision.abs().sum(1).max()

    def towards(look: Look) -> Tensor:
        relation = omega(look.models).cpu()
        step = torch.eye(len(relation), dtype=torch.float64) - relation / max(bound, 1e-300)
        return torch.where((look.clients < 0)[:, None], step.mean(0), step[look.clients])

    def coupled(x: State, received: State, batch: Batch) -> Tensor:
        pull = lam1 * bound * squared_distance(x.model, received.towards)
        return task_loss(x.model, batch) + pull + lam2 * dot(x.model, x.model)

    return Method(
        layout={"model": Linear(), "towards": View("model", towards)},
        schedule=(Phase(objective=coupled),),
        predict=Predict("model", visits=visits),
    )
