"""Tracker for TensorBoard: event files in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plures.evaluate.callback import About
from plures.extras import needed
from plures.files import inside
from plures.track import names
from plures.track.tracker import Settings, Tracker


class TensorBoard(Tracker):
    """Writes event files; view them with ``tensorboard --logdir FOLDER``.

    A run is ``FOLDER/<data>/<run>``. Values are stored in double precision. A resumed run continues in its folder, and
    anything an interrupted one wrote after the checkpoint is replaced; so is an earlier run of the same name.

    Args:
        folder: folder of all runs.
        clients: number of clients written individually.

    Raises:
        PluresError: if the extra ``tensorboard`` is not installed.
    """

    def __init__(self, folder: Path | str, clients: int = names.CLIENTS) -> None:
        super().__init__(clients)
        self.folder = Path(folder)
        self.library = needed("torch.utils.tensorboard", "tracking with tensorboard", "tensorboard")
        self.summary = needed("torch.utils.tensorboard.summary", "tracking with tensorboard", "tensorboard")
        self.writer: Any = None
        self.ended: Any = None

    def open(self, about: About, settings: Settings) -> None:
        folder = inside(self.folder, *map(names.plain_key, (about.federation, about.title)))
        self.writer = self.library.SummaryWriter(str(folder), purge_step=about.done + 1)
        measured = {f"validation/{about.metric.name}": 0.0, f"test/{about.metric.name}": 0.0}
        experiment, begun, self.ended = self.summary.hparams(dict(settings), measured)
        for part in (experiment, begun):
            self.writer.file_writer.add_summary(part)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, new_style=True, double_precision=True)
        self.writer.flush()

    def close(self, status: str) -> None:
        if status == "finished":
            self.writer.file_writer.add_summary(self.ended)
        self.writer.close()
