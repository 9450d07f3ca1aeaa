"""Gradient inversion: examples computed from what a client sends, or from what a round makes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from plures.errors import PluresError
from plures.federation.inputs import Inputs
from plures.federation.mapped import Mapped
from plures.method import Phase
from plures.method.channel import UPDATE
from plures.models import Leaves
from plures.run import Run
from plures.run.states import states
from plures.run.uploads import decoded
from plures.tasks import Classification

Seen = Literal["server", "everybody"]
TINY = 1e-12


class Inverted(BaseModel):
    """The best that an attacker computed of one client.

    Attributes:
        attack: ``ratio``: one division (:func:`ratio`); ``matching``: inputs whose gradient has the same direction
            (:func:`matched`); ``dlg``: inputs and labels whose gradient is the same (:func:`leaked`).
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
    psnr: float | None = None


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
    aim, losses = _Aim(run, client, change, examples, seed), run.federation.task.losses
    x, norm = aim.x, aim.norm
    optimiser = torch.optim.Adam([x], lr=0.1)
    for _ in range(steps):
        found = aim.gradients(lambda outputs: losses(outputs, aim.targets).mean())
        inner = sum((g * aim.wanted[path]).sum() for path, g in found.items())
        length = sum(g.square().sum() for g in found.values()) + TINY
        objective = 1 - inner / (torch.as_tensor(length).sqrt() * norm) + 1e-4 * variation(x)
        (slope,) = torch.autograd.grad(torch.as_tensor(objective), x)
        x.grad = slope.sign()
        optimiser.step()
    return x.detach()


def leaked(run: Run, client: int, change: Leaves, examples: int, steps: int = 100, seed: int = 0) -> Tensor:
    """Inputs and labels whose gradient is the change's: squared distance, by L-BFGS (DLG, Zhu et al. 2019).

    The change is divided by the learning rate times the number of steps, which the server knows. Labels of classes are
    found with the inputs; other targets are those of the client.

    Args:
        run: the run before the round.
        client: position of the client.
        change: of the model's parameters, by path.
        examples: how many inputs to look for.
        steps: of the optimiser.
        seed: of the first inputs and labels.

    Returns:
        ``(examples, *features)``.
    """
    aim, task, path = _Aim(run, client, change, examples, seed), run.federation.task, travelled(run, client)
    found, loss = [aim.x], lambda outputs: task.losses(outputs, aim.targets).mean()
    if isinstance(task, Classification):
        labels = torch.randn((len(aim.x), task.outputs), generator=aim.random).to(aim.x.dtype).requires_grad_()
        found.append(labels)

        def loss(outputs: Tensor) -> Tensor:
            return -(labels.softmax(1) * outputs.log_softmax(1)).sum(1).mean()

    optimiser = torch.optim.LBFGS(found, max_iter=steps, history_size=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        made = aim.gradients(loss)
        objective = torch.stack([(g - aim.wanted[k] / path).square().sum() for k, g in made.items()]).sum()
        for one, slope in zip(found, torch.autograd.grad(objective, found), strict=True):
            one.grad = slope
        return objective

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return aim.x.detach()


class _Aim:
    """What both attacks start from: the model before the round, and the gradient that inputs should have."""

    def __init__(self, run: Run, client: int, change: Leaves, examples: int, seed: int) -> None:
        federation, dtype = run.federation, torch.float64
        held = {path: t[0].detach() for path, t in states(run, [client])["model"].items()}
        self.network = run.bound.network
        self.held = {path: t.to(dtype) if t.is_floating_point() else t for path, t in held.items()}
        self.wanted = {k: -t.to(dtype) for k, t in change.items() if k in held and held[k].is_floating_point()}
        self.values = {path: self.held[path].clone().requires_grad_() for path in self.wanted}
        rows = federation.splits["train"][client][:examples]
        targets = federation.targets[rows]
        self.targets = targets.to(dtype) if targets.is_floating_point() else targets
        self.random = torch.Generator().manual_seed(seed)
        x = torch.randn((len(rows), *federation.features), generator=self.random)
        self.x = x.to(dtype).requires_grad_()
        self.norm = math.sqrt(sum(float(t.square().sum()) for t in self.wanted.values())) + TINY

    def gradients(self, loss: Callable[[Tensor], Tensor]) -> Leaves:
        """The gradient of the model's loss of the inputs, by path, to be differentiated again."""
        outputs = self.network({**self.held, **self.values}, self.x, train=False)[0]
        found = torch.autograd.grad(loss(outputs), list(self.values.values()), create_graph=True)
        return dict(zip(self.values, found, strict=True))


def travelled(run: Run, client: int) -> float:
    """How far a client goes in a visit: the learning rate times the steps of the first phase that trains."""
    work = run.training
    phase = next((item for item in run.method.schedule if isinstance(item, Phase) and item.targets), Phase())
    lr = work.optimizer.lr if phase.lr is None else phase.lr
    if isinstance(phase.steps, int) or (phase.epochs is None and work.steps is not None):
        return lr * max(1, phase.steps if isinstance(phase.steps, int) else work.steps or 1)
    size = int(run.federation.splits["train"].sizes[client])
    epochs = (work.epochs or 1) if phase.epochs is None else phase.epochs
    return lr * max(1, math.ceil(epochs * math.ceil(size / (work.batch_size or max(1, size)))))


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
        examples: how many inputs :func:`matched` and :func:`leaked` look for.
        steps: of the optimiser of the first; the second makes half as many.
        seed: of their first inputs.

    Returns:
        For the server and for everybody, all attacks that apply: ``ratio`` needs a linear layer with a bias that reads
        the inputs.

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
        tries["dlg"] = leaked(run, place, change, examples, max(1, steps // 2), seed)
        for attack, made in tries.items():
            own, others = nearest(run, place, made.flatten(1))
            found.append(Inverted(attack=attack, seen=seen, error=own, control=others, psnr=peak(run, place, made)))
    return found


def views(run: Run, place: int, cohort: list[int]) -> dict[Seen, Leaves]:
    """The change of the model that a client's upload stands for, and that which the round makes of all of them.

    Only leaves that travel are seen; empty where none of the model does.
    """
    server = run.choose(cohort)
    going = [leaf for block in run.bound.blocks for leaf in run.bound.travelling(block)]
    seen = {leaf.path for leaf in going if leaf.slot == "model"}
    if not seen:
        return {}
    before = {path: t[0] for path, t in states(run, [place], server)["model"].items()}
    there: dict[Seen, Leaves] = {}
    if not run.bound.line.summed:
        for answer, _ in run.clients.work(run, [place], server).answers:
            held = states(run, [place], server)
            old = {str(leaf): held[leaf.slot][leaf.path] for leaf in going}
            new = decoded(run.bound, {UPDATE: answer.sent[UPDATE]}, old)
            there["server"] = model_part({k: (new[k] - old[k])[0] for k in new})
    ahead = copy.deepcopy(run)
    ahead.step()
    after = {path: t[0] for path, t in states(ahead, [place])["model"].items()}
    there["everybody"] = {path: after[path] - t for path, t in before.items() if path in seen}
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


def peak(run: Run, place: int, made: Tensor) -> float | None:
    """Peak signal-to-noise ratio of the best of reconstructed pictures, in dB; ``None`` for other inputs."""
    if len(run.federation.features) != 3 or not len(made):
        return None
    assert isinstance(run.federation.inputs, Tensor), "looked at before"
    own = run.federation.inputs[run.federation.splits["train"][place]].flatten(1).double()
    error = float(torch.cdist(made.flatten(1).double(), own).square().min() / own.shape[1])
    span = float(run.federation.inputs.max() - run.federation.inputs.min())
    return 10 * math.log10(max(span, TINY) ** 2 / max(error, TINY))
