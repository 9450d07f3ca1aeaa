"""FjORD: ordered dropout of units, so that each client's part of the network works at all smaller widths."""

import torch
from torch import Tensor

from plures.method import RATE, Batch, Method, Phase, Shared, Sized, Sizes, State, detach, narrow
from plures.method.representation import distillation
from plures.methods.entry import entry, require
from plures.models.footprint import Budget


@entry(
    "FjORD",
    "edge",
    "Horvath, Laskaridis, Almeida, Leontiadis, Venieris, Lane 2021, NeurIPS, Algorithm 1",
    {"alpha": (0.0, 0.5)},
)
def fjord(
    rates: tuple[float, ...] = (1.0, 0.5),
    column: str | None = None,
    budget: Budget | None = None,
    limit: float | None = None,
    batch: int = 32,
    alpha: float = 0.0,
    temperature: float = 1.0,
) -> Method:
    """One network of which each client holds the first units, and trains at a width drawn anew in each step.

    A step draws one of the ``rates`` up to the client's own, each with the same probability, and leaves the last units
    of each hidden layer out (ordered dropout), so that the first units learn to do without the rest. The server takes
    the mean of each parameter over the clients that hold it, weighted by their examples. Every client predicts at its
    own rate, and may do so at a lower one.

    With self-distillation a step minimises ``(1 - alpha) CE(p) + alpha t^2 KL(p_max || p)``, where ``p_max`` is what
    the client's whole part says, which gets no gradient. With batch normalisation, running statistics are those of the
    whole part; the authors keep some for each width.

    Args:
        rates: the widths, as shares of the units; the clients hold them in turn, in their order, or as follows.
        column: metadata column with each client's rate; or, with ``budget``, with what its device has of that.
        budget: ``parameters``, ``bytes`` (that travel), ``flops`` (of a training step, for each example), ``memory``
            (bytes of a step of plain SGD) or ``seconds`` (of a visit, on simulated devices): each client gets the
            largest of the rates that fits its device, and the smallest if none is done in those seconds.
        limit: what every device has, in place of ``column``.
        batch: examples of a step, for ``budget="memory"``.
        alpha: weight of self-distillation, from 0 to 1.
        temperature: t of self-distillation.
    """
    require(
        0 <= alpha <= 1 and temperature > 0, f"fjord: alpha={alpha} must be in [0, 1], temperature={temperature} > 0"
    )
    sizes = Sizes(rates, column, budget, limit, batch)
    levels = tuple(reversed(sizes.levels))

    def loss(x: State, received: State, batch: Batch) -> Tensor:
        widths = batch.problem.network.widths
        assert widths is not None
        own = x.size[RATE]
        table = torch.tensor([widths.at(rate) for rate in levels], device=own.device)
        allowed = (torch.tensor(levels, dtype=own.dtype, device=own.device) <= own + 1e-6).sum().clamp(min=1)
        drawn = (batch.uniform(1)[0] * allowed).long().clamp(max=allowed - 1)
        chosen = torch.arange(len(levels), device=own.device) == drawn
        few = narrow(x.model, widths, {number: (column * chosen).sum() for number, column in enumerate(table.T)})
        outputs = batch.outputs(few, keep={})
        if not alpha:
            batch.see(x.model)
            return batch.problem.loss(outputs, batch.targets, batch.weight)
        teacher = batch.outputs(detach(x.model), keep=x.model)
        lesson = batch.mean(distillation(teacher, outputs, temperature))
        return (1 - alpha) * batch.problem.loss(outputs, batch.targets, batch.weight) + alpha * lesson

    return Method(
        layout={"model": Shared(), "size": Sized()}, schedule=(Phase(objective=loss, random=True),), sizes=sizes
    )
