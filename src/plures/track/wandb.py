"""Weights & Biases: offline unless asked otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from plures.evaluate.callback import About
from plures.extras import needed
from plures.track import names
from plures.track.tracker import Settings, Tracker

CODES = {"finished": 0, "stopped": 255, "failed": 1}
"""Exit codes by which Weights & Biases tells how a run ended."""


class WandB(Tracker):
    """Writes runs for Weights & Biases to files; ``wandb sync FOLDER/wandb/offline-run-*`` sends them, if you want.

    The group is the data's name. A run that goes on from a checkpoint is a run of its own, with the rounds from there,
    and the setting ``resumed_at`` says where. The library's reports of its own errors are switched off for the process,
    unless ``WANDB_ERROR_REPORTING`` is set to something; the machine's name, loads and packages are not written.

    Args:
        folder: where the files are.
        project: name of the project.
        clients: how many clients are written one by one.
        mode: ``online`` sends numbers, names of clients and settings to the server that the library is set up for.

    Raises:
        PluresError: if the extra ``wandb`` is not installed.
    """

    def __init__(
        self,
        folder: Path | str,
        project: str = "plures",
        clients: int = names.CLIENTS,
        mode: Literal["offline", "online"] = "offline",
    ) -> None:
        super().__init__(clients)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.library = needed("wandb", "tracking with wandb", "wandb")
        self.folder, self.project, self.mode = Path(folder), project, mode
        self.run: Any = None

    def open(self, about: About, settings: Settings) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        quiet = self.library.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            host="",
        )
        self.run = self.library.init(
            dir=str(self.folder),
            project=self.project,
            name=about.title,
            group=about.federation,
            job_type=about.stage,
            config={**settings, **({"resumed_at": about.done} if about.done else {})},
            mode=self.mode,
            reinit="create_new",
            settings=quiet,
        )
        self.run.define_metric("round", hidden=True)
        self.run.define_metric("*", step_metric="round")

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({"round": step, **values})

    def close(self, status: str) -> None:
        self.run.finish(exit_code=CODES[status])
