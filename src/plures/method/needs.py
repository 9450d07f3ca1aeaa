"""What a method needs from a task; checked at the start, so that an unsuitable task is refused before training."""

from __future__ import annotations

from plures.errors import PluresError
from plures.method.method import Start


class UnsuitableTaskError(PluresError):
    """The method cannot learn this task, whatever the model and the data."""


def classes(start: Start, method: str) -> int:
    """Number of classes; every example has exactly one."""
    task = start.setting.task
    if not task.classes:
        raise UnsuitableTaskError(f"{method} needs classes, but the task is {task.kind}: use another method")
    if task.outputs != len(task.classes):
        raise UnsuitableTaskError(
            f'{method} needs an output for each class, but {task.kind} has one for both: give task="classification"'
        )
    return len(task.classes)


def mixing(start: Start, method: str) -> None:
    """Require predictions that can be averaged."""
    task = start.setting.task
    if not task.mixes:
        raise UnsuitableTaskError(
            f"{method} averages predictions, which {task.kind} does not define: use another method"
        )


def averaging(start: Start, method: str) -> None:
    """Require targets that can be averaged."""
    task = start.setting.task
    if not task.averages:
        raise UnsuitableTaskError(
            f"{method} averages the targets of other examples, which {task.kind} does not define: use another method"
        )


def curvature(start: Start, method: str) -> None:
    """Require a loss whose curvature is known."""
    task = start.setting.task
    if not task.curved:
        raise UnsuitableTaskError(
            f"{method} needs the curvature of the loss, which this {task.kind} does not define: use its default loss "
            "or another method"
        )
