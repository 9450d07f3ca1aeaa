"""Trackers: callbacks that write a run to TensorBoard, MLflow or Weights & Biases, under the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plures.errors import PluresError, suggestion
from plures.track.mlflow import MLflow
from plures.track.tensorboard import TensorBoard
from plures.track.tracker import Tracker
from plures.track.wandb import WandB

TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {
    "tensorboard": lambda folder: TensorBoard(folder / "tensorboard"),
    "mlflow": lambda folder: MLflow(folder / "mlflow" / "mlflow.db"),
    "wandb": WandB,
}
"""Trackers by command-line name, each created for a folder of results; nothing leaves the machine."""


def trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """Trackers by name.

    Args:
        names: keys of :data:`TRACKERS`; each counts once.
        folder: the folder of results in which they write.
    """
    for name in names:
        if name not in TRACKERS:
            raise PluresError(f"--track {name}: there is no such tracker; {suggestion(name, TRACKERS, 'choose among')}")
    return [TRACKERS[name](folder) for name in dict.fromkeys(names)]


__all__ = ["TRACKERS", "MLflow", "TensorBoard", "Tracker", "WandB", "trackers"]
