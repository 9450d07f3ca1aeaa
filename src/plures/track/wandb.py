"""Tracker for Weights & Biases: offline by default."""

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
"""Exit codes that Weights & Biases shows as the status of a run."""


class WandB(Tracker):
    """Writes runs for Weights & Biases to files; ``wandb sync FOLDER/wandb/offline-run-*`` uploads them.

    The group is the data's name. A resumed run is a separate run with the rounds from the checkpoint on; the setting
    ``resumed_at`` says where. The library's own error reports are switched off for the process, unless
    ``WANDB_ERROR_REPORTING`` is set; the machine's name, loads and packages are not written.

    Args:
        folder: folder of the files.
        project: name of the project.
        clients: number of clients written individually.
        mode: ``online`` sends numbers, names of clients and settings to the server that the library is configured for.

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
