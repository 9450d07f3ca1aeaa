"""Tracker for MLflow: runs in a database."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plures.evaluate.callback import About
from plures.extras import needed
from plures.files import inside
from plures.track import names
from plures.track.tracker import Settings, Tracker
from plures.version import __version__

BATCH = 100
"""Most settings or values written at once, MLflow's limit for settings."""
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
TITLE, VERSION = "plures.run", "plures.version"
LOCAL = "sqlite:///"


class MLflow(Tracker):
    """Writes to an MLflow database; view it with ``mlflow ui --backend-store-uri URI``.

    The experiment is the data's name. A run that resumes from a checkpoint continues its MLflow run; the rounds since
    the checkpoint then appear twice, with the same values. MLflow's own telemetry is switched off for the process,
    unless ``MLFLOW_DISABLE_TELEMETRY`` is set.

    Args:
        where: a file, created if missing, for a database in SQLite; or the URI of a tracking server or database,
            possibly remote: then numbers, names of clients and settings go there.
        clients: number of clients written individually.

    Raises:
        PluresError: if the extra ``mlflow`` is not installed.
    """

    def __init__(self, where: Path | str, clients: int = names.CLIENTS) -> None:
        super().__init__(clients)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self.library = needed("mlflow", "tracking with mlflow", "mlflow")
        self.entities = needed("mlflow.entities", "tracking with mlflow", "mlflow")
        self.file = None if "://" in str(where) else Path(where).resolve()
        self.where = str(where) if self.file is None else f"{LOCAL}{self.file}"
        self.client: Any = None
        self.run = ""

    def open(self, about: About, settings: Settings) -> None:
        if self.client is None:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            self.client = self.library.MlflowClient(tracking_uri=self.where)
        experiment = self._experiment(about.federation)
        begun = self._begun(experiment, about.title) if about.done else None
        if begun is None:
            tags = {TITLE: about.title, VERSION: __version__}
            begun = self.client.create_run(experiment, run_name=about.title, tags=tags).info.run_id
            params = [self.entities.Param(name, str(value)) for name, value in settings.items()]
            for start in range(0, len(params), BATCH):
                self.client.log_batch(begun, params=params[start : start + BATCH])
        self.run = begun
        self.client.update_run(self.run, status="RUNNING")

    def _experiment(self, name: str) -> str:
        """The experiment of that name, created if missing; files of a local database are stored beside it."""
        known = self.client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        beside = None if self.file is None else inside(self.file.parent / "artifacts", name).as_uri()
        return str(self.client.create_experiment(name, artifact_location=beside))

    def _begun(self, experiment: str, title: str) -> str | None:
        """The latest unfinished run of that name."""
        order = ["attributes.start_time DESC"]
        for run in self.client.search_runs([experiment], order_by=order, max_results=1000):
            if run.data.tags.get(TITLE) == title and run.info.status != STATUS["finished"]:
                return str(run.info.run_id)
        return None

    def write(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self.entities.Metric(name, float(value), now, step) for name, value in values.items()]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.run, metrics=metrics[start : start + BATCH])

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run, STATUS[status])
