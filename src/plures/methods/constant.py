"""The constant predictor: what a client knows of its targets without looking at any input."""

import torch
from torch import Tensor

from plures.method import Assign, Batch, Frozen, Leaves, Method, Personal, Predict, Start, State, Visit
from plures.methods.entry import entry


@entry("Constant", "baseline", "mandatory baseline", rounds=1)
def constant() -> Method:
    """Every client predicts the same for every input: the constant that fits its training targets best.

    That is its most frequent class, with the shares of all classes as probabilities, or its mean
    (:meth:`plures.Task.constant`). Nothing is trained and nothing is sent. A metric by which a method does no better
    than this says little about the method.
    """

    def fit(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        batch = visit.examples["train"]
        found = batch.problem.task.constant(batch.targets, batch.mask)
        return {"constant": {"outputs": found.to(x.constant["outputs"])}}

    def start(start: Start) -> Leaves:
        return {"outputs": torch.zeros(start.setting.task.shape, dtype=start.network.dtype)}

    def outputs(x: State, batch: Batch) -> Tensor:
        return x.constant["outputs"].expand(len(batch.targets), *x.constant["outputs"].shape)

    return Method(
        layout={"model": Frozen(), "constant": Personal()},
        slots={"constant": start},
        schedule=(Assign(("constant",), fit, reads=("train",), blind=True),),
        predict=Predict(visits=1, outputs=outputs),
    )
