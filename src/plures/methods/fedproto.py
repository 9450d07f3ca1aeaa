"""FedProto: prototypes are shared, models stay local."""

from typing import Literal

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Combine,
    Known,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Shared,
    Start,
    State,
    Visit,
)
from plures.method.needs import classes
from plures.method.representation import blank, members, width
from plures.methods.entry import entry, remark, require


def unknown(start: Start) -> Leaves:
    """No prototype yet: ``mean`` ``(classes, d)``, and ``known`` ``(classes,)``, 1 where there is one."""
    count = classes(start, "fedproto")
    return {"mean": blank(start, count, width(start.network, start.setting)), "known": blank(start, count)}


def by_class(x: State, received: State, batch: Batch) -> Leaves:
    """Share of each class among the examples, and the sum of its representations divided by their number."""
    codes = batch.features(x.model).flatten(1)
    weight = torch.ones_like(codes[:, 0]) if batch.weight is None else batch.weight
    member = members(batch.targets, len(x.prototypes["known"]), codes) * (weight / weight.sum()).unsqueeze(1)
    return {"share": member.sum(0), "sum": member.T @ codes}


def send(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    """The mean representation of each class; a class without examples has weight 0."""
    share = visit.measured["share"]
    mean = visit.measured["sum"] / torch.where(share > 0, share, 1.0).unsqueeze(1)
    return {"prototypes": {"mean": mean, "known": torch.ones_like(share)}}


def nearest(x: State, batch: Batch) -> Tensor:
    """Negative squared distances to the prototypes, up to a constant, as scores."""
    codes, goal = batch.features(x.model).flatten(1), x.prototypes["mean"]
    scores = 2 * codes @ goal.T - goal.square().sum(1)
    return torch.where(x.prototypes["known"] > 0, scores, scores.amin(1, keepdim=True) - 1)


def counts(x: State) -> Leaves:
    """Weights of a client's prototypes: its numbers of examples."""
    return {"mean": x.about["labels"], "known": x.about["labels"]}


@entry(
    "FedProto",
    "representation",
    "Tan, Long, Liu, Zhou, Lu, Jiang, Zhang 2022, AAAI, Algorithm 1",
    {"lam": (0.1, 1.0, 10.0)},
)
def fedproto(lam: float = 1.0, by: Literal["head", "prototype"] = "head", visits: int = 5) -> Method:
    """Every client has its own model; only the mean representation of each class is shared.

    Local objective: ``f_i(x) + lam * mean |h - C_y|^2 / d`` over the examples whose class has a global
    prototype ``C_y``, where ``h``, of size ``d``, is the head's input (the authors' code: a mean over entries). After
    its work the client sends the mean ``h`` of each of its classes; the server averages those of each class, weighted
    by the clients' numbers of examples of it. A class that nobody in the cohort has keeps its prototype.

    Args:
        lam: pull towards the prototypes; 0 is local training.
        by: predict with the ``head``, or by the nearest global ``prototype`` (scores are negative squared distances, up
            to a constant; a class without a prototype is never chosen).
        visits: visits an unseen client makes to train its model.
    """
    require(lam >= 0, f"fedproto: lam={lam} must not be negative")
    remark(lam == 0 and by == "head", "fedproto with lam=0 is local training")

    def near(x: State, received: State, batch: Batch) -> Tensor:
        outputs, codes = batch.represented(x.model)
        goal, known = (received.prototypes[name][batch.targets] for name in ("mean", "known"))
        far = known * (codes.flatten(1) - goal).square().mean(1)
        return batch.problem.loss(outputs, batch.targets, batch.weight) + lam * batch.mean(far)

    return Method(
        layout={"model": Personal(), "prototypes": Shared(), "about": Known("labels")},
        slots={"prototypes": unknown},
        schedule=(Phase(objective=near), Assign(("prototypes",), send, by_class)),
        combine={"prototypes": Combine(counts)},
        predict=Predict("model", visits=visits, outputs=nearest if by == "prototype" else None),
    )
