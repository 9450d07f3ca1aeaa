"""Gradient inversion: examples computed from what a client sends, or from what a round makes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from plures.errors import PluresError
from plures.federation.inputs import Inputs
from plures.federation.mapped import Mapped
from plures.method.channel import UPDATE
from plures.models import Leaves
from plures.run import Run
from plures.run.states import states
from plures.run.uploads import decoded

Seen = Literal["server", "everybody"]
TINY = 1e-12


class Inverted(BaseModel):
    """The best that an attacker computed of one client.

    Attributes:
        attack: ``ratio``: one division (:func:`ratio`); ``matching``: optimised inputs (:func:`matched`).
        seen: by whom: the ``server``, which reads the upload; or ``everybody``, who reads the model after the round.
        error: distance of the nearest reconstruction to the nearest of the client's training examples, as a share of
            that example's length: 0 is the example itself.
        control: the same for the nearest example of other clients, which the attacker cannot have seen. An ``error``
            that is no smaller tells nothing of this client.
    """

    attack: str
    seen: Seen
    error: float
    control: float


def ratio(weight: Tensor, bias: Tensor) -> Tensor:
    """Inputs of a linear layer from the changes of its weights and biases: ``dW_i / db_i`` for each unit.

    The gradient of a unit's weights is the input times that of its bias. So one step on one example bares it, and on
    several each quotient is a mixture of examples (Phong et al. 2018).

    Args:
        weight: ``(units, d)``.
        bias: ``(units,)``.

    Returns:
        ``(units, d)``, without the units whose bias did not move.

    Examples:
        >>> x = torch.tensor([0.5, -1.0, 2.0])
        >>> ratio(torch.outer(torch.tensor([0.25, -0.5]), x), torch.tensor([0.25, -0.5])).tolist()
        [[0.5, -1.0, 2.0], [0.5, -1.0, 2.0]]
    """
    moves = bias.abs() > TINY
    return weight[moves] / bias[moves].unsqueeze(1)


def matched(run: Run, client: int, change: Leaves, examples: int, steps: int = 200, seed: int = 0) -> Tensor:
    """Inputs whose gradient points where a change does: cosine distance and total variation (Geiping et al. 2020).

    The change is taken for one step along the gradient, as attackers do that do not know how long a client worked.
    Inputs are found by Adam with the sign of their gradient; labels are those of the client, which attackers often find
    first.

    Args:
        run: the run before the round.
        client: position of the client.
        change: of the model's parameters, by path.
        examples: how many inputs to look for.
        steps: of the optimiser.
        seed: of the first inputs.

    Returns:
        ``(examples, *features)``.
    """
    network, federation = run.bound.network, run.federation
    held = {path: t[0].detach() for path, t in states(run, [client])["model"].items()}
    rows = federation.splits["train"][client][:examples]
    targets = federation.targets[rows]
    wanted = {path: -t for path, t in change.items() if path in held and held[path].is_floating_point()}
    values = {path: held[path].clone().requires_grad_() for path in wanted}
    random = torch.Generator().manual_seed(seed)
    x = torch.randn((len(rows), *federation.features), generator=random).to(run.execution.dtype).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.1)
    norm = math.sqrt(sum(float(t.square().sum()) for t in wanted.values())) + TINY
    for _ in range(steps):
        outputs = network({**held, **values}, x, train=False)[0]
        loss = federation.task.losses(outputs, targets).mean()
        found = torch.autograd.grad(loss, list(values.values()), create_graph=True)
        inner = sum((g * wanted[path]).sum() for path, g in zip(values, found, strict=True))
        length = sum(g.square().sum() for g in found) + TINY
        objective = 1 - inner / (torch.as_tensor(length).sqrt() * norm) + 1e-4 * variation(x)
        (slope,) = torch.autograd.grad(torch.as_tensor(objective), x)
        x.grad = slope.sign()
        optimiser.step()
    return x.detach()


def variation(x: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels, or of neighbouring values of a series; 0 for rows of a table."""
    if x.dim() < 3:
        return x.new_zeros(())
    sides = [x.diff(dim=d).abs().mean() for d in range(2, x.dim())]
    return torch.stack(sides).sum()


def inversion(run: Run, client: str, *, examples: int = 1, steps: int = 200, seed: int = 0) -> list[Inverted]:
    """What can be computed of a client's training examples from the run's next round.

    The round is made on a copy: the run stays as it is. Before its first round a run tells most: gradients are long.

    Args:
        run: the run, before a round in which the client takes part.
        client: the client's name.
        examples: how many inputs :func:`matched` looks for.
        steps: of its optimiser.
        seed: of its first inputs.

    Returns:
        For the server and for everybody, both attacks where they apply: ``ratio`` needs a linear layer with a bias that
        reads the inputs.

    Raises:
        PluresError: if the client does not take part in the round, or inputs are not one tensor in memory.
    """
    place, cohort = run.federation.index(client), run.cohort(run.round)
    if isinstance(run.federation.inputs, Inputs | Mapped) or not run.federation.inputs.is_floating_point():
        raise PluresError("gradient inversion looks for inputs that are one tensor of real numbers in memory")
    if place not in cohort:
        raise PluresError(f"client {client!r} does not take part in round {run.round + 1}: choose another one")
    found = []
    for seen, change in views(run, place, cohort).items():
        layer = first_layer(run, change)
        tries: dict[str, Tensor] = {}
        if layer is not None:
            tries["ratio"] = ratio(*layer)
        tries["matching"] = matched(run, place, change, examples, steps, seed)
        for attack, made in tries.items():
            own, others = nearest(run, place, made.flatten(1))
            found.append(Inverted(attack=attack, seen=seen, error=own, control=others))
    return found


def views(run: Run, place: int, cohort: list[int]) -> dict[Seen, Leaves]:
    """The change of the model that a client's upload stands for, and that which the round makes of all of them."""
    server = run.choose(cohort)
    before = {path: t[0] for path, t in states(run, [place], server)["model"].items()}
    there: dict[Seen, Leaves] = {}
    if not run.bound.line.summed:
        for answer, _ in run.clients.work(run, [place], server).answers:
            held = states(run, [place], server)
            going = [leaf for block in run.bound.blocks for leaf in run.bound.travelling(block)]
            old = {str(leaf): held[leaf.slot][leaf.path] for leaf in going}
            new = decoded(run.bound, {UPDATE: answer.sent[UPDATE]}, old)
            there["server"] = model_part({k: (new[k] - old[k])[0] for k in new})
    ahead = copy.deepcopy(run)
    ahead.step()
    after = {path: t[0] for path, t in states(ahead, [place])["model"].items()}
    there["everybody"] = {path: after[path] - t for path, t in before.items()}
    return there


def model_part(change: Mapping[str, Tensor]) -> Leaves:
    """The leaves of the slot ``model``, by path."""
    return {k.removeprefix("model/"): t for k, t in change.items() if k.startswith("model/")}


def first_layer(run: Run, change: Leaves) -> tuple[Tensor, Tensor] | None:
    """Changes of weights and biases of a linear layer that reads the inputs as they are; ``None`` if there is none."""
    inputs = math.prod(run.federation.features)
    for path, weight in change.items():
        name, _, kind = path.rpartition(".")
        bias = change.get(f"{name}.bias" if name else "bias")
        if kind == "weight" and weight.dim() == 2 and weight.shape[1] == inputs and bias is not None:
            return weight.double(), bias.double()
    return None


def nearest(run: Run, place: int, made: Tensor) -> tuple[float, float]:
    """Smallest relative distance of inputs ``(n, d)`` to the client's training examples, and to those of others."""
    if not len(made):
        return math.inf, math.inf
    assert isinstance(run.federation.inputs, Tensor), "looked at before"
    inputs, train = run.federation.inputs.flatten(1).double(), run.federation.splits["train"]
    own = train[place]
    others = torch.cat([rows for client, rows in enumerate(train) if client != place])
    distances = []
    for rows in (own, others[torch.linspace(0, len(others) - 1, min(len(others), len(own))).long()]):
        x = inputs[rows]
        relative = torch.cdist(made.double(), x) / x.norm(dim=1).clamp(min=TINY)
        distances.append(float(relative.min()) if len(rows) else math.inf)
    return distances[0], distances[1]
