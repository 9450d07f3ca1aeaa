"""A small run to track, and readers of what trackers wrote: ``name -> [(round, value), ...]``."""

from __future__ import annotations

import json
import math
import struct
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from torch import nn

import plures
from plures.evaluate.callback import About, Callback
from plures.federation import Federation, from_arrays
from plures.method import SGD
from plures.methods import ditto
from plures.run import Execution, Run, Training

FAST = Execution("vmap", 8, False, "float32")
NAMES = ("north", "süd", "ward 3/b", "ward 3:b")
ROUNDS = 5


def people(names: tuple[str, ...] = NAMES) -> Federation:
    generator = np.random.default_rng(0)
    client = np.repeat(np.arange(len(names)), 40)
    x = generator.normal(size=(len(client), 4)).astype(np.float32)
    y = ((x[:, 0] + (-1.0) ** client * x[:, 1]) > 0).astype(np.int64)
    return from_arrays(x, y, [names[c] for c in client], name="people", seed=0)


def net() -> nn.Module:
    return plures.with_roles(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), head="2")


def fresh(data: Federation | None = None) -> Run:
    training = Training(rounds=ROUNDS, batch_size=8, optimizer=SGD(0.3))
    return Run(people() if data is None else data, net, ditto(0.1), training, execution=FAST)


class Heard(Callback):
    """Records all calls, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def on_start(self, about: About) -> None:
        self.events.append(("start", about))

    def on_round(self, record) -> None:
        self.events.append(("round", record))

    def on_point(self, point) -> None:
        self.events.append(("point", point))

    def on_end(self, result) -> None:
        self.events.append(("end", result))

    def on_stop(self, reason) -> None:
        self.events.append(("stop", reason))

    @property
    def order(self) -> list[str]:
        return [event for event, _ in self.events]

    def told(self, event: str) -> list:
        return [told for name, told in self.events if name == event]


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The one run in a folder, as TensorBoard itself reads it for its pages."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    (run,) = {file.parent for file in folder.rglob("events.out.*")}
    events = EventAccumulator(str(run), {"tensors": 0})
    events.Reload()
    return {
        name: [(event.step, tensor_util.make_ndarray(event.tensor_proto).item()) for event in events.Tensors(name)]
        for name in events.Tags()["tensors"]
        if not name.startswith("_hparams_/")
    }


def tensorboard_settings(folder: Path) -> tuple[dict[str, object], bool]:
    """The settings of the one run in a folder, and whether it is marked as finished."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import plugin_data_pb2

    found: dict[str, object] = {}
    ended = False
    for file in folder.rglob("events.out.*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == "_hparams_/session_start_info":
                    data = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    for name, one in data.session_start_info.hparams.items():
                        found[name] = getattr(one, one.WhichOneof("kind"))
                ended |= value.tag == "_hparams_/session_end_info"
    return found, ended


def mlflow(file: Path):
    """The one run of a database: its entity, and its metrics."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{file}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    metrics = {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return run, metrics


def wandb(file: Path):
    """A run in Weights & Biases' offline format: its record, metrics, exit code, once its writer has written all."""
    end = time.monotonic() + 60
    while (found := wandb_so_far(file))[2] is None and time.monotonic() < end:
        time.sleep(0.1)
    return found


def wandb_so_far(file: Path):
    """The format is that of a LevelDB log: records in blocks of 32 KiB, long ones in parts."""
    from wandb.proto import wandb_internal_pb2

    data, place, part = file.read_bytes(), 7, b""
    run, code, metrics = None, None, defaultdict(list)
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (2, 3):  # the first or a middle part of a record
            continue
        record, part = wandb_internal_pb2.Record.FromString(part), b""
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
            case "exit":
                code = record.exit.exit_code
            case "history":
                row = {(item.nested_key or [item.key])[0]: json.loads(item.value_json) for item in record.history.item}
                step = row.pop("round")
                for name, value in row.items():
                    if not name.startswith("_"):  # its own clocks
                        metrics[name].append((step, math.nan if value == "NaN" else value))
    return run, dict(metrics), code
