"""APPLE, adaptive personalized cross-silo learning."""

import math

import torch
from torch import Tensor

from plures.method import (
    LATER,
    Assign,
    Batch,
    Frozen,
    Known,
    Leaves,
    Look,
    Method,
    Mixed,
    Personal,
    Phase,
    Predict,
    Start,
    State,
    Visit,
    best_others,
    parameters,
    task_loss,
)
from plures.methods.entry import entry, require


@entry("APPLE", "selection and mixing", "Luo, Wu 2022, IJCAI, Algorithm 1", {"mu": (0.0, 0.01, 0.1)})
def apple(mu: float = 0.1, rate: float = 1.0, horizon: int = 40, models: int | None = None, visits: int = 5) -> Method:
    """Each client predicts with a learned mixture of all core models, and trains its own core model through it.

    ``min f_i(theta) + lambda(r) mu/2 ||p_i - p_0||^2`` over the client's core model ``w_i`` and directed weights
    ``p_i``, with ``theta = sum_j p_ij w_j``, ``p_0`` the shares of the training examples, and ``lambda(r)`` falling
    from 1 to 0 over the first rounds as a cosine. Core models are uploaded; weights stay with the client.

    For an unseen client, ``p_0`` holds the shares of training examples among itself and the clients whose core models
    it receives, times the mean sum of the weights that the clients have learned.

    Args:
        mu: strength of the pull of the weights towards ``p_0``.
        rate: learning rate of the weights divided by that of the core model, for SGD with or without momentum; with
            Adam, that ratio is the square root of ``rate``.
        horizon: number of rounds after which the pull is zero; the paper uses a fifth of all rounds.
        models: number of others' core models a client receives (those with the largest ``|p_ij|``); default: all.
        visits: visits an unseen client makes, starting from the mean of the core models.
    """
    require(min(mu, rate, models or 0) >= 0 < horizon, f"apple: negative {mu=}, {rate=}, {models=} or {horizon=} < 1")
    root = math.sqrt(rate)

    def size(look: Look) -> Tensor:
        return (look.states["prior"]["others"] + root * look.states["lean"]["others"]).abs()

    def theta(x: State) -> Leaves:
        own, others = _weights(x, root)
        return x.model | {k: own * x.model[k] + torch.tensordot(others, x.others[k], 1) for k in x.parameters}

    def through(x: State, received: State, batch: Batch) -> Tensor:
        far = x.lean["own"].square() + x.lean["others"].square().sum()
        return task_loss(theta(x), batch, keep=x.model) + x.pull["pull"] * mu / 2 * rate * far

    def fade(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"pull": {"pull": torch.cos(math.pi / 2 * (visit.round / horizon).clamp(max=1.0)).square()}}

    def settle(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        own, others = _weights(x, root)
        return {"pull": {"sum": torch.where(x.about[LATER] > 0, x.pull["sum"], own + others.sum())}}

    return Method(
        layout={
            "model": Mixed(),
            "about": Known("examples", LATER),
            "prior": Frozen(),
            "parameters": Frozen(),
            "lean": Personal(),
            "pull": Personal(unseen="mean"),
            **best_others("model", size, models, reads=("lean",)),
        },
        slots={
            "prior": _prior,
            "parameters": lambda start: dict.fromkeys(parameters(start.model), torch.zeros(())),
            "lean": _level,
            "pull": _pull,
        },
        schedule=(
            Assign(("pull",), fade),
            Phase(train=("model", "lean"), objective=through),
            Assign(("pull",), settle),
        ),
        predict=Predict(theta, visits=visits),
    )


def _weights(x: State, root: float) -> tuple[Tensor, Tensor]:
    """A client's weights for its own core model and for those it receives."""
    received = x.about["examples"] / x.prior["total"] + (x.whose["weights"] @ x.prior["others"]).sum()
    total = torch.where(x.about[LATER] > 0, received / x.pull["sum"], torch.ones_like(received))
    own = x.about["examples"] / x.prior["total"] / total + root * x.lean["own"]
    return own, x.whose["weights"] @ (x.prior["others"] / total + root * x.lean["others"])


def _prior(start: Start) -> Leaves:
    sizes = start.setting.fact("examples").to(start.network.dtype)
    return {"others": sizes / sizes.sum(), "total": sizes.sum()}


def _level(start: Start) -> Leaves:
    level = torch.zeros(len(start.setting), dtype=start.network.dtype)
    return {"own": level[0], "others": level}


def _pull(start: Start) -> Leaves:
    return {name: torch.tensor(value, dtype=start.network.dtype) for name, value in (("pull", 0.0), ("sum", 1.0))}
