"""HeteroFL: weak clients train a narrower part of the network."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Combine,
    Layout,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Shared,
    Sized,
    Sizes,
    Start,
    State,
    Visit,
    norm_statistics,
    scaled,
)
from plures.method.representation import members
from plures.methods.entry import entry, remark
from plures.models.footprint import Budget


def everything(start: Start) -> Leaves:
    """Every class is taken to be present; one number where examples do not have one class each."""
    task = start.setting.task
    count = len(task.classes) if len(task.classes) == task.outputs and len(task.shape) == 1 else 1
    return {"classes": torch.ones(count, dtype=start.network.dtype)}


def present(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    """Which classes the client has among its training examples."""
    known = x.present["classes"]
    if len(known) == 1:
        return {"present": {"classes": known}}
    batch = visit.examples["train"]
    found = members(batch.targets, len(known), known) * batch.real.unsqueeze(1)
    return {"present": {"classes": (found.sum(0) > 0).to(known.dtype)}}


def part(x: State) -> Leaves:
    """The client's part of the network, each hidden layer's outputs divided by its rate."""
    return scaled(x.model, x.size)


@entry("HeteroFL", "edge", "Diao, Ding, Tarokh 2021, ICLR, Algorithm 1", {"scaler": (True, False)})
def heterofl(
    rates: tuple[float, ...] = (1.0, 0.5),
    column: str | None = None,
    budget: Budget | None = None,
    limit: float | None = None,
    batch: int = 32,
    scaler: bool = True,
    masked: bool = True,
    statistics: Literal["own", "shared"] = "own",
    weights: Literal["uniform", "examples"] = "uniform",
) -> Method:
    """One network of which each client holds the first units of each hidden layer, as many as its device can.

    A client of rate ``r`` holds ``r`` times the units of each hidden layer, so about ``r**2`` of the parameters; inputs
    and outputs stay whole. It trains its part and sends it. The server takes the mean of each parameter over those
    that hold it; what nobody in the cohort holds stays as it is. Every client predicts with its own part.

    * Scaler: what each hidden linear or convolutional layer gives is divided by ``r``, so that parts of different sizes
      give values of one scale. The authors do so in training alone, because they predict with the whole network; here a
      client predicts with what it trained. Hidden layers then learn as with a rate divided by ``r**2``, 16 times as
      fast where ``r`` is 1/4. A normalisation after the layer undoes that, as in the authors' networks; without one,
      leave the scaler out or take a smaller learning rate, or weak clients diverge.
    * Masked cross-entropy: in a client's loss, scores of classes that it does not have are 0, so it learns nothing
      about them. It applies where every example has one class.
    * Static batch normalisation: no running statistics travel. The authors collect them from all clients after
      training; here (``own``) each client keeps those of its own examples. ``shared`` averages them in each round.

    Args:
        rates: shares of the units that the clients hold, in turn, in their order; or those to choose from.
        column: metadata column with each client's rate; or, with ``budget``, with what its device has of that.
        budget: ``parameters``, ``bytes`` (that travel), ``flops`` (of a training step, for each example), ``memory``
            (bytes of a step of plain SGD) or ``seconds`` (of a visit, on simulated devices): each client gets the
            largest of the rates that fits its device, and the smallest if none is done in those seconds.
        limit: what every device has, in place of ``column``.
        batch: examples of a step, for ``budget="memory"``.
        scaler: see above.
        masked: see above.
        statistics: of batch normalisation, see above.
        weights: of the clients in the mean.
    """
    remark(set(rates) == {1.0} and column is None, "heterofl with rate 1 for everybody: each client holds everything")

    def loss(x: State, received: State, batch: Batch) -> Tensor:
        outputs = batch.outputs(part(x) if scaler else x.model, keep=x.model)
        outputs = outputs * x.present["classes"] if masked else outputs
        return batch.problem.loss(outputs, batch.targets, batch.weight)

    own: Layout = {replace(norm_statistics, empty="fine"): Personal()} if statistics == "own" else {}
    seen: Layout = {**({"size": Sized()} if scaler else {}), **({"present": Personal()} if masked else {})}
    phase = Phase(objective=loss) if masked or scaler else Phase()
    return Method(
        layout={**own, "model": Shared(), **seen},
        slots={"present": everything} if masked else {},
        schedule=(Assign(("present",), present, reads=("train",), blind=True), phase) if masked else (phase,),
        combine={"model": Combine(weights)},
        predict=Predict(part if scaler else "model", visits=1 if statistics == "own" else 0),
        sizes=Sizes(rates, column, budget, limit, batch),
    )
