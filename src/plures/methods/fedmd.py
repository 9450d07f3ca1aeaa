"""FedMD: clients with networks of their own learn from each other by their scores of public examples."""

from dataclasses import replace

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Combine,
    Frozen,
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
from plures.method.representation import blank
from plures.methods.entry import entry, remark, require


def public(start: Start) -> Leaves:
    """Inputs of the public examples."""
    inputs = start.setting.public[0]
    require(
        len(inputs) > 0,
        "fedmd compares scores of examples that everybody may see, but this federation has none: let clients give some "
        "with federation.donate(share=0.1)",
    )
    return {"inputs": inputs}


def unknown(start: Start) -> Leaves:
    """No consensus yet: ``mean`` ``(examples, outputs)``, and ``known``, 1 after the first round."""
    count = len(start.setting.public[0])
    return {"mean": blank(start, count, *start.setting.task.shape), "known": blank(start)}


def send(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    """The client's scores of all public examples."""
    batch = replace(visit.examples["train"], inputs=x.public["inputs"])
    return {"scores": {"mean": batch.outputs(x.model), "known": torch.ones_like(x.scores["known"])}}


@entry("FedMD", "edge", "Li, Wang 2019, NeurIPS workshop, Algorithm 1", {"digest": (1, 5, 20)})
def fedmd(digest: int = 5, public_batch: int | None = None, digest_lr: float | None = None, visits: int = 5) -> Method:
    """Every client has a network of its own, also of another kind than the others' (:func:`plures.models.one_of`).

    In a round a client first takes ``digest`` steps towards the consensus, the mean absolute difference between its
    scores of the public examples and those that the server sent (the authors' code), then trains on its own data, and
    sends its scores. The server averages them. In the first round there is no consensus. The authors first train each
    network on labels of the public examples, which here are not read.

    The federation must have public rows; see :meth:`~plures.federation.Federation.donate`.

    Args:
        digest: steps towards the consensus in each round; 0 is local training.
        public_batch: public examples drawn with replacement in each of these steps; ``None`` for all of them.
        digest_lr: learning rate of these steps; default: the run's.
        visits: visits an unseen client makes to train its network.
    """
    require(digest >= 0, f"fedmd: digest={digest} must not be negative")
    require(public_batch is None or public_batch > 0, f"fedmd: public_batch={public_batch} must be positive")
    remark(digest == 0, "fedmd without a step towards the consensus is local training")

    def apart(x: State, received: State, batch: Batch) -> Tensor:
        inputs, goal = x.public["inputs"], received.scores["mean"]
        if public_batch is not None and public_batch < len(inputs):
            rows = (batch.uniform(public_batch) * len(inputs)).long()
            inputs, goal = inputs[rows], goal[rows]
        shown = replace(batch, inputs=inputs, seen=[])
        return received.scores["known"] * (shown.outputs(x.model, keep={}) - goal).abs().mean()

    towards = Phase(objective=apart, steps=digest, lr=digest_lr, random=public_batch is not None, stream="public")
    return Method(
        layout={"model": Personal(), "public": Frozen(), "scores": Shared()},
        slots={"public": public, "scores": unknown},
        schedule=(
            *((towards,) if digest else ()),
            Phase(),
            Assign(("scores",), send, reads=("train",), blind=True),
        ),
        combine={"scores": Combine("uniform")},
        predict=Predict("model", visits=visits),
    )
