"""FedEM: every client is a mixture of shared components."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.method import Assign, Batch, Leaves, Method, Personal, Phase, Predict, Shared, Slot, Start, State, Visit
from plures.method.needs import mixing
from plures.methods.entry import entry, remark, require


@entry("FedEM", "clustered", "Marfoq, Neglia, Bellet, Kameni, Vidal 2021, NeurIPS, Algorithm 1", {"components": (2, 3)})
def fedem(components: int = 3, visits: int = 10) -> Method:
    """Each client's data are a mixture, with its own weights, of distributions that all clients share.

    E-step with the received components: ``q_im`` proportional to ``pi_m exp(-loss_m(x_i, y_i))``. M-step: ``pi_m`` is
    the mean of ``q_im`` over the client's examples, and component ``m`` minimises ``mean_i q_im loss_m(x_i, y_i)``. The
    server averages every component by examples. Predictions mix the components' probabilities, or predicted numbers, by
    ``pi``. Squared error counts as the likelihood of Gaussian noise with variance 1/2, so scale targets
    accordingly.

    Args:
        components: number of components, with different initial values; the first is the slot ``model``.
        visits: EM steps on its own training data by which an unseen client fits its weights; the components stay fixed.
    """
    require(components >= 1, f"fedem: components={components}; give at least 1")
    remark(components == 1, "fedem with components=1 is fedavg")
    names = ("model", *(f"component{m}" for m in range(1, components)))

    def responsibilities(received: State, batch: Batch) -> Tensor:
        losses = torch.stack([batch.losses(getattr(received, name)) for name in names], 1)
        return F.softmax(received.pi["pi"].log() - losses, 1).detach()

    def expected(x: State, received: State, batch: Batch) -> Leaves:
        return {"pi": batch.mean(responsibilities(received, batch))}

    def weighted(x: State, received: State, batch: Batch) -> Tensor:
        q = responsibilities(received, replace(batch, train=False))
        losses = [batch.mean(q[:, m] * batch.losses(getattr(x, name))) for m, name in enumerate(names)]
        return torch.stack(losses).sum()

    def keep(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"pi": visit.measured}

    def another(number: int) -> Slot:
        return lambda start: start.fresh(number)

    def even(start: Start) -> Leaves:
        mixing(start, "fedem")
        return {"pi": torch.full((components,), 1 / components, dtype=start.network.dtype)}

    def mixture(x: State, batch: Batch) -> Tensor:
        return batch.problem.task.mix([batch.outputs(getattr(x, name)) for name in names], x.pi["pi"])

    return Method(
        layout={**{name: Shared() for name in names}, "pi": Personal()},
        slots={**{name: another(m) for m, name in enumerate(names) if m}, "pi": even},
        schedule=(Assign(("pi",), keep, expected), Phase(names, objective=weighted)),
        predict=Predict(outputs=mixture, visits=visits),
    )
