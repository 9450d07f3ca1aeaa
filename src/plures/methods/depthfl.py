"""DepthFL: each client holds the first blocks of one network, with an early exit after them."""

import torch
from torch import Tensor, nn

from plures.method import Batch, Method, Phase, Setting, Sizes, State
from plures.method.needs import UnsuitableTaskError
from plures.method.representation import distillation
from plures.methods.entry import entry, remark, require
from plures.models import with_exits
from plures.models.alternatives import HERE
from plures.models.footprint import Budget


@entry(
    "DepthFL",
    "edge",
    "Kim, Yu, Kim, Moon 2023, ICLR, Algorithm 1",
    {"consistency": (0.0, 0.1, 1.0)},
)
def depthfl(
    rates: tuple[float, ...] = (1.0, 0.5),
    column: str | None = None,
    budget: Budget | None = None,
    limit: float | None = None,
    batch: int = 32,
    consistency: float = 1.0,
) -> Method:
    """One network of which each client holds the first blocks of layers, with an exit after each smaller depth.

    A client that holds the exits 1 to d trains all of them. It minimises
    ``sum_i CE(p_i) + consistency / (d - 1) sum_i sum_(j != i) KL(p_j || p_i)``, where ``p_j`` gets no gradient: the
    exits teach each other. The server takes the mean of each parameter over the clients that hold it, weighted by
    their examples. Every client predicts with its own last exit, and so does its published model, which is the smaller
    network. Where all hold the whole network, there is no exit and it is FedAvg.

    The network must be a sequence of layers with a marked head; an exit is a linear layer on the mean of each channel
    (the authors' exits have convolutions of their own). Exits teach each other where every example has one class.

    Args:
        rates: shares of the blocks that the clients hold, in turn, in their order; or those to choose from. The largest
            is 1, and an exit comes after every smaller one, rounded up to whole blocks.
        column: metadata column with each client's share, of which it gets the largest of the rates up to it; or, with
            ``budget``, with what its device has of that.
        budget: ``parameters``, ``bytes`` (that travel), ``flops`` (of a training step, for each example), ``memory``
            (bytes of a step of plain SGD) or ``seconds`` (of a visit, on simulated devices): each client gets the
            largest of the rates that fits its device, and the smallest if none is done in those seconds.
        limit: what every device has, in place of ``column``.
        batch: examples of a step, for ``budget="memory"``.
        consistency: weight of what exits teach each other.
    """
    require(consistency >= 0, f"depthfl: consistency={consistency} must not be negative")
    require(max(rates, default=0) == 1, f"depthfl: rates={rates}: the largest is 1, the whole network")
    remark(set(rates) == {1.0}, "depthfl with rate 1 for everybody is FedAvg: each client holds everything")

    def loss(x: State, received: State, batch: Batch) -> Tensor:
        heads = batch.heads(x.model)
        here = torch.stack([x.model[f"{HERE}.{number}"] for number in range(len(heads))])
        each = torch.stack([batch.problem.loss(made, batch.targets, batch.weight) for made in heads])
        total, task = (here * each).sum(), batch.problem.task
        if not consistency or len(task.classes) != task.outputs:
            return total
        others = (here.sum() - 1).clamp(min=1)
        for i, pupil in enumerate(heads):
            for j, teacher in enumerate(heads):
                if i != j:
                    lesson = batch.mean(distillation(teacher.detach(), pupil, 1.0))
                    total = total + consistency / others * here[i] * here[j] * lesson
        return total

    def exits(module: nn.Module, setting: Setting) -> nn.Module:
        if len(setting.task.shape) != 1:
            raise UnsuitableTaskError(
                f"depthfl: {setting.task.kind} needs several outputs at each of many places, which exits do not give: "
                "use heterofl"
            )
        return with_exits(module, rates, setting.example)

    return Method(
        schedule=(Phase() if set(rates) == {1.0} else Phase(objective=loss),),
        adds={"exits": exits},
        sizes=Sizes(rates, column, budget, limit, batch, by="depth"),
    )
