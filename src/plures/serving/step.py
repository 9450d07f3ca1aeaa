"""A training step for a device: ExecuTorch programs that personalise a part of a model where its data are."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plures.brief import brief
from plures.errors import PluresError, suggestion
from plures.federation.inputs import Inputs, parts
from plures.files import first_line
from plures.models import Leaves, Network
from plures.models.cut import first_part
from plures.models.network import FEATURES
from plures.run.features import FEW
from plures.serving.formats import Program, Raw, Read, as_program, mobile, quiet, refusal
from plures.serving.personal import PersonalModel
from plures.tasks import Task

STEPS, FAR = 10, 0.01
"""Steps of gradient descent by which a program is compared with PyTorch; the first moves the values by this share."""
WRONG = 1e-3
"""A larger difference after the steps is no rounding."""
HEAD = "train a part behind it, such as the head"


class Features(nn.Module):
    """Raw inputs to what the part that is not trained makes of them."""

    def __init__(self, read: Read, network: Network, names: tuple[str, ...]) -> None:
        super().__init__()
        self.read, self.first = read, nn.ModuleList(network.module.get_submodule(name) for name in names)

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.read(*inputs)
        for part in self.first:
            found = part(found)
        return found


class Step(nn.Module):
    """The task's mean loss on a batch, and the outputs, as a function of the leaves that are trained.

    Its arguments are the inputs (or features), the targets on the scale of the training, and a weight for each
    example, 0 for padding.
    """

    def __init__(self, task: Task, network: Network, trained: tuple[str, ...], read: Read | None) -> None:
        super().__init__()
        self.network, self.task, self.read = network, task, read
        self.places = {path: f"leaf{number}" for number, path in enumerate(network.live)}
        for path, value in network.live.items():
            own = value.detach().clone()
            if path in trained:
                self.register_parameter(self.places[path], nn.Parameter(own))
            else:
                self.register_buffer(self.places[path], own)

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, targets, weight = given
        leaves = {path: getattr(self, place) for path, place in self.places.items()}
        read = Inputs({FEATURES: inputs[0]}) if self.read is None else self.read(*inputs)
        outputs, _ = self.network(leaves, read, train=False)
        return self.task.mean_loss(outputs, targets, weight), outputs.detach()


@brief
@dataclass(frozen=True, eq=False)
class Personalising:
    """Programs that personalise a model on a device, and what they are compared with.

    Attributes:
        first: raw inputs to features, in PyTorch; ``None`` if the step reads raw inputs.
        features: the same as a program, for one example.
        step: inputs or features, targets and weights of a batch to loss and outputs, in PyTorch.
        program: the same as a program, with gradients and trained leaves.
        inputs: what the step reads of the examples that it is compared on, ``(n, ...)`` each.
        targets: their targets.
        batch: examples in a batch.
        rate: of the steps by which they are compared.
    """

    first: Features | None
    features: Program | None
    step: Step
    program: Program
    inputs: tuple[Tensor, ...]
    targets: Tensor
    batch: int
    rate: float

    def expected(self) -> Leaves:
        """The trained leaves after :data:`STEPS` steps in PyTorch."""
        module = copy.deepcopy(self.step)
        optimizer = torch.optim.SGD(module.parameters(), self.rate)
        for batch in _batches(self.inputs, self.targets, self.batch):
            optimizer.zero_grad()
            module(*batch)[0].backward()
            optimizer.step()
        return {name: p.detach().clone() for name, p in module.named_parameters()}

    def found(self, file: Path) -> Leaves:
        """The trained leaves after the same steps of the program in a file, by ExecuTorch's own optimizer."""
        training, module = _loaded(file)
        optimizer = None
        with quiet():
            for batch in _batches(self.inputs, self.targets, self.batch):
                module.forward_backward("forward", batch)
                optimizer = optimizer or training.get_sgd_optimizer(
                    module.named_parameters(), self.rate, 0, 0, 0, False
                )
                optimizer.step(module.named_gradients())
            return {name: value.clone() for name, value in module.named_parameters().items()}

    def once(self, file: Path) -> Callable[[], object]:
        """A step of the program in a file, to be timed."""
        module, batch = _loaded(file)[1], _batches(self.inputs, self.targets, self.batch)[0]
        return lambda: module.forward_backward("forward", batch)

    def differences(self) -> Tensor:
        """By how much every trained value differs after the steps, between the program and PyTorch.

        Raises:
            PluresError: if the program cannot make the steps, or makes others.
        """
        wanted = self.expected()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "step.pte"
            file.write_bytes(self.program.content)
            try:
                found = self.found(file)
            except RuntimeError as error:
                raise PluresError(f"ExecuTorch cannot make this training step: {first_line(error)}; {HEAD}") from error
        far = torch.cat([(found[name] - value).abs().flatten() for name, value in wanted.items()])
        if not float(far.max()) <= WRONG:
            raise PluresError(
                f"ExecuTorch trains this part otherwise than PyTorch: after {STEPS} steps a value differs by "
                f"{float(far.max()):.2g}. Its gradient of max pooling is wrong (seen in version 1.5.1); {HEAD}"
            )
        return far


def _loaded(file: Path) -> tuple[Any, Any]:
    """ExecuTorch's library of training, and a program in it."""
    training = mobile("executorch.extension.training", "a training step on a device")
    with quiet():
        return training, training._load_for_executorch_for_training(str(file))


def _batches(inputs: tuple[Tensor, ...], targets: Tensor, batch: int) -> list[tuple[Tensor, ...]]:
    """The arguments of :data:`STEPS` steps: the examples in turn, and again from the first."""
    made = []
    for step in range(STEPS):
        rows = (torch.arange(batch) + step * batch) % len(targets)
        made.append((*(t[rows] for t in inputs), targets[rows], torch.ones(batch)))
    return made


def to_step(model: PersonalModel, part: str, raw: Raw, batch: int) -> Personalising:
    """Programs that train a part of a model on a device.

    Whatever lies before the part is a program of its own, so that a device computes the features of an example once.
    Where there is no such first part, as with LoRA in all layers, the step reads raw inputs. Running statistics stay as
    they are, and nothing is dropped out.

    Args:
        model: the model.
        part: a role of its network, such as ``head`` or ``lora``; ``all`` for every parameter.
        raw: raw inputs ``(n, *features)`` to compare on.
        batch: examples in a batch; a smaller batch is filled up with examples of weight 0.

    Raises:
        PluresError: if the predictor is composed of several models, or the network has no such part.
    """
    if model.predictor.composed:
        raise PluresError(
            f"{refusal(model)} with a training step: it is composed of more than the leaves of one model; use a method "
            "that predicts with one, such as ditto or fedper"
        )
    if batch < 1:
        raise PluresError(f"batch={batch}: a training step has at least 1 example")
    trained = _chosen(model.network, part)
    mobile("executorch.exir", "the export to ExecuTorch")
    network, inputs, read = _frozen(model, trained), tuple(parts(raw)), Read(model)
    with torch.no_grad():
        scaled = read(*inputs)
    names = first_part(network, scaled[:FEW]) if isinstance(scaled, Tensor) else ()
    first = Features(read, network, names).eval() if names else None
    features = None if first is None else _program(model, first, tuple(t[:1] for t in inputs))
    if first is not None:
        with torch.no_grad():
            inputs, network = (first(*inputs),), network.beyond(names)
    step = Step(model.federation.task, network, trained, None if names else read)
    targets = _targets(step, inputs)
    example = _batches(inputs, targets, batch)[0]
    program = _program(model, step, example, gradients=True)
    return Personalising(first, features, step, program, inputs, targets, batch, _rate(step, example))


def _rate(step: Step, example: tuple[Tensor, ...]) -> float:
    """The rate by which a first step moves the values by :data:`FAR` of their norm."""
    values = list(step.parameters())
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(step(*example)[0], values)]).norm()
    return FAR * float(torch.cat([p.detach().flatten() for p in values]).norm() / slope) if slope else 1.0


def _program(
    model: PersonalModel, module: nn.Module, example: tuple[Tensor, ...], *, gradients: bool = False
) -> Program:
    """A module as a program for arguments of the shapes of an example."""
    from torch.export.experimental import _export_forward_backward  # it loads the compiler, which takes a second

    try:
        with quiet():
            graph = torch.export.export(module, example, strict=False)
            graph = _export_forward_backward(graph) if gradients else graph.run_decompositions()
    except Exception as error:
        raise PluresError(f"{refusal(model)} with a training step: {first_line(error)}") from error
    return as_program(graph, refusal(model))


def _chosen(network: Network, part: str) -> tuple[str, ...]:
    """Paths of the parameters with a role."""
    roles = sorted({role for leaf in network.info.values() for role in leaf.roles})
    if part != "all" and part not in roles:
        raise PluresError(f"the network has no part {part!r}; {suggestion(part, [*roles, 'all'], 'parts are')}")
    return tuple(
        path for path, leaf in network.info.items() if not leaf.buffer and (part == "all" or part in leaf.roles)
    )


def _frozen(model: PersonalModel, trained: tuple[str, ...]) -> Network:
    """The model's network with its own values, of which all but some parameters are frozen."""
    (leaves,) = model.leaves.values()
    module = copy.deepcopy(model.network.module)
    held: Mapping[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for path, value in leaves.items():
            held[path].copy_(value)
    for path, value in module.named_parameters():
        value.requires_grad_(path in trained)
    return Network(module)


def _targets(step: Step, inputs: tuple[Tensor, ...]) -> Tensor:
    """Targets to compare with: what is decided of the example before, so that there is something to learn."""
    count = len(inputs[0])
    blank = step.task.blank(count)
    with torch.no_grad():
        _, outputs = step(*inputs, blank, torch.ones(count))
    decided = step.task.decide(outputs) if step.task.probable else outputs
    return decided.roll(1, 0).to(blank.dtype) if decided.shape == blank.shape else blank
