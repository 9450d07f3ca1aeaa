"""LR_MNIST in Flower's simulation; :mod:`benchmarks.rivals` runs it in an environment of its own.

    python flower.py FOLDER

The clients are those of Flower's tutorials, made cheaper where that is easy: data is mapped into memory, batches are
gathered by index instead of by a ``DataLoader``, and a client's test data is one batch.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

FOLDER = Path(sys.argv[1])
ASKED = json.loads((FOLDER / "asked.json").read_text())
client, server = ClientApp(), ServerApp()


def stored(name: str) -> Any:
    """An array of the split, mapped into memory."""
    return np.load(FOLDER / f"{name}.npy", mmap_mode="r")


def examples(split: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One client's inputs and targets."""
    first, last = stored(f"{split}_ends")[number : number + 2]
    rows = stored(f"{split}_rows")[first:last]
    return torch.from_numpy(stored("inputs")[rows]), torch.from_numpy(stored("targets")[rows])


def received(message: Message) -> nn.Module:
    model = nn.Linear(ASKED["features"], ASKED["classes"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch of SGD."""
    model = received(message)
    inputs, targets = examples("train", int(message.content["config"]["client"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=ASKED["rate"])
    for rows in torch.randperm(len(targets)).split(ASKED["batch"]):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(targets)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Accuracy on the test data of the client that this node represents."""
    model = received(message)
    inputs, targets = examples("test", int(context.node_config["partition-id"]))
    with torch.no_grad():
        right = (model(inputs).argmax(1) == targets).float().mean().item()
    metrics = MetricRecord({"accuracy": right, "num-examples": len(targets)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


class Given(FedAvg):
    """FedAvg with given cohorts, evaluated on all clients at regular intervals."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Any nodes will do, because the message says which client's data they train on."""
        cohort = stored("cohorts")[server_round - 1].tolist()
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": ConfigRecord({"client": number})}),
                message_type="train",
                dst_node_id=node,
            )
            for node, number in zip(sorted(grid.get_node_ids()), cohort, strict=False)
        ]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round % ASKED["every"]:
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds, timed once all nodes are connected and Ray's processes have answered once."""
    torch.manual_seed(0)
    model = nn.Linear(ASKED["features"], ASKED["classes"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    arrays = ArrayRecord(model.state_dict())
    while len(nodes := list(grid.get_node_ids())) < ASKED["clients"]:
        time.sleep(0.01)
    content = RecordDict({"arrays": arrays, "config": ConfigRecord()})
    asked = [Message(content=content, message_type="evaluate", dst_node_id=node) for node in nodes[:4]]
    list(grid.send_and_receive(asked))
    strategy = Given(fraction_evaluate=1.0, min_available_nodes=ASKED["clients"])
    begun = time.perf_counter()
    result = strategy.start(grid, arrays, num_rounds=ASKED["rounds"])
    seconds = time.perf_counter() - begun
    curve = {n: float(metrics["accuracy"]) for n, metrics in result.evaluate_metrics_clientapp.items()}
    (FOLDER / "flower.json").write_text(json.dumps({"seconds": seconds, "accuracy": curve}))


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.WARNING)
    run_simulation(
        server,
        client,
        ASKED["clients"],
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
