"""Rehearse one step of a client's work on copies, so that errors are found before the first round."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import AGE, LATER, Assign, Bound, Known, Phase, Setting
from plures.method.schedule import named
from plures.metrics import Metric, Predictions
from plures.metrics.metric import Alone
from plures.models import nested
from plures.run.execution import Execution

if TYPE_CHECKING:
    from plures.federation import Federation
    from plures.run.engine import Engine
    from plures.run.training import Training

T = TypeVar("T")
REHEARSED_EXAMPLES = 8
"""Examples in the batch of the step."""
INSIDE = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))


def rehearse(
    bound: Bound, federation: Federation, training: Training, execution: Execution, seed: int, setting: Setting
) -> None:
    """Have one client do one step of each phase, each assignment and a prediction. The run itself is not touched.

    Raises:
        PluresError: if a part fails; names it, the client, and the line of the user's code.
    """
    from plures.run.choose import copies
    from plures.run.engine import Engine

    precision = "float32" if execution.precision == "auto" else execution.precision
    alone = Execution("loop", 1, False, precision, execution.device)
    short = replace(training, batch_size=min(training.batch_size or REHEARSED_EXAMPLES, REHEARSED_EXAMPLES))
    engine = Engine(bound, federation, short, alone, seed)
    client = typical(federation)
    x, received = copies(bound, 1)
    for slot, path in (leaf for block in bound.blocks if isinstance(block.share, Known) for leaf in block.leaves):
        if path not in (AGE, LATER):
            x[slot][path] = received[slot][path] = setting.fact(path)[[client]]
    where = f"client {federation.clients[client]!r}"
    for item in (*bound.method.schedule, *bound.method.predictor.preparation):
        step = replace(item, steps=1, epochs=None) if isinstance(item, Phase) else item
        attempted(f"{part(item)} on {where}", lambda step=step: engine.visit(x, received, [client], 0, (step,)))  # type: ignore[misc]
    attempted(f"predict on {where}", lambda: predicted(engine, x, client))


def typical(federation: Federation) -> int:
    """Position of the smallest client that fills a batch, or of the largest client if none does."""
    sizes = federation.splits["train"].sizes
    filling = sizes >= REHEARSED_EXAMPLES
    if bool(filling.any()):
        return int(torch.where(filling, sizes, sizes.max() + 1).argmin())
    return int(sizes.argmax())


def predicted(engine: Engine, x: Any, client: int) -> None:
    """Predict a few of a client's examples, and compute the metrics on them."""
    from plures.run.predict import said

    predict, federation = engine.bound.method.predictor, engine.federation
    state = engine.bound.state({slot: {path: t[0] for path, t in leaves.items()} for slot, leaves in x.items()})
    deployed = x if predict.composed else {"model": {p: t[None] for p, t in predict.leaves(state).items()}}
    rows = federation.splits["train"][client][:REHEARSED_EXAMPLES]
    inputs, targets = federation.inputs[rows], federation.targets[rows][None]
    own: dict[str, Any] = {split: engine.whole([client], split) for split in predict.reads}
    outputs = engine.forward(deployed, nested.mapped(lambda t: t[None], inputs), own)
    decisions = engine.decisions(deployed, outputs)
    weight = torch.ones(targets.shape[:2], dtype=outputs.dtype, device=outputs.device)
    weight = weight if federation.weights is None else federation.weights[rows][None]
    found = said(federation.task, outputs, targets, weight, decisions)
    if any(metric.from_train for metric in federation.metrics):
        train = outputs[0], targets[0], weight[0]
        found = replace(found, curves=federation.task.curve_errors(train, outputs[0], targets[0])[None])
    for metric in federation.metrics:
        attempted(f"metric {metric.name!r}", lambda metric=metric: measured(metric, found))  # type: ignore[misc]


def measured(metric: Metric, found: Predictions) -> None:
    """Compute a metric with and without padding; only once if it is one of plures, whose own tests do the rest.

    Args:
        metric: the metric.
        found: predictions of one client, ``(1, examples, ...)``.

    Raises:
        PluresError: if padding changes its value, or if it modifies the predictions, which other metrics read too.
    """
    if all(map(of_plures, (metric.each, metric.value))):
        metric.stacked(found)
        return
    padded = found.map(lambda t: torch.cat([t, t[:, :1]], 1))
    padded.weight[:, -1] = 0
    before = padded.map(torch.clone)
    alone, value = metric.stacked(found.map(torch.clone)), metric.stacked(padded)
    for one in fields(padded):
        was, now = (getattr(each, one.name) for each in (before, padded))
        if was is not None and not torch.equal(was.nan_to_num(), now.nan_to_num()):
            raise PluresError(f"metric {metric.name!r} writes into predictions.{one.name}: it must work on a copy")
    if not torch.allclose(alone, value, rtol=1e-6, atol=1e-9, equal_nan=True):
        raise PluresError(
            f"metric {metric.name!r} is {float(alone):.6g} for {found.weight.shape[1]} examples and {float(value):.6g} "
            "with a row of padding, whose weight is 0: it must use the weights"
        )


def of_plures(function: object) -> bool:
    """Whether a function, and every one that it is given, is a part of plures."""
    if isinstance(function, functools.partial):
        given = (*function.args, *function.keywords.values())
        return all(map(of_plures, [function.func, *filter(callable, given)]))
    if isinstance(function, Alone):
        return of_plures(function.function)
    own = str(getattr(function, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]
    return own and isinstance(function, FunctionType) and function.__closure__ is None


def check_loss(federation: Federation, outputs: Tensor) -> None:
    """Refuse a user-defined loss that does not return one number per example.

    Args:
        federation: task and targets.
        outputs: ``(n, *shape)`` of an untrained network.
    """
    task, targets = federation.task, federation.targets[: len(outputs)]
    known = len(targets) == len(outputs)
    if not known:
        targets = task.blank(len(outputs)).to(outputs.device)
    targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets
    with torch.enable_grad():
        outputs = outputs.detach().requires_grad_()
        each: Any = attempted(f"the loss of the {task.kind}", lambda: task.terms(outputs, targets))
    if not isinstance(each, Tensor) or tuple(each.shape) != (len(outputs),) or not each.is_floating_point():
        found = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
        raise PluresError(
            f"the loss of the {task.kind} gives {found} for {len(outputs)} examples: it must give one number for each, "
            f"({len(outputs)},); the mean is taken later"
        )
    if not each.requires_grad:
        raise PluresError(
            f"the loss of the {task.kind} has no gradient, so nothing could be learned: compute it from the outputs in "
            "PyTorch, without detach(), NumPy or decisions such as argmax"
        )
    if known and bool(outputs.isfinite().all()) and not bool(each.isfinite().all()):
        raise PluresError(
            f"the loss of the {task.kind} is {each.detach().tolist()} for the first examples of an untrained network: "
            "it must be finite"
        )


def part(item: Phase | Assign) -> str:
    """A part of a schedule in a message."""
    if isinstance(item, Assign):
        return f"assignment {named(item.update)}"
    return "training" if item.objective is None else f"objective {named(item.objective)}"


def attempted(what: str, work: Callable[[], T]) -> T:
    """Run user code; turn an error that it raises into one sentence."""
    try:
        return work()
    except PluresError:
        raise
    except Exception as error:
        raise PluresError(f"{what}: {failure(error)}") from error


def failure(error: Exception) -> str:
    """An error's message in one line, with the user's line that raised it."""
    text = " ".join(str(error).split("\n\n")[0].split())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*INSIDE, "<"))]
    line = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{line}"
