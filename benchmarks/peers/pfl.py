"""LR_MNIST in pfl; :mod:`benchmarks.rivals` runs it in an environment of its own.

    python pfl.py FOLDER

One process with one thread, which is fastest for a model of this size. A client's batches are those of
``pfl.data.dataset.Dataset``, which are the same in every visit.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, StringMetricName, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

FOLDER = Path(sys.argv[1])
ASKED = json.loads((FOLDER / "asked.json").read_text())


class Logistic(nn.Linear):
    """Multinomial logistic regression, with the methods that pfl requires of a model."""

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        right = (self(inputs).argmax(1) == targets).sum().item()
        return {"accuracy": Weighted(right, len(targets))}


def clients(split: str) -> list[PyTorchTensorDataset]:
    """The data of all clients."""
    arrays = [torch.from_numpy(np.load(FOLDER / f"{name}.npy")) for name in ("inputs", "targets", f"{split}_rows")]
    ends = np.load(FOLDER / f"{split}_ends.npy").tolist()
    inputs, targets, rows = arrays
    owned = [rows[first:last] for first, last in itertools.pairwise(ends)]
    return [PyTorchTensorDataset((inputs[own], targets[own])) for own in owned]


class Evaluated(TrainingProcessCallback[Any]):
    """Accuracy on the test data of all clients, at regular intervals."""

    def __init__(self, tests: list[PyTorchTensorDataset]) -> None:
        self.tests, self.curve = tests, dict[int, float]()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        number, name = central_iteration + 1, StringMetricName("accuracy")
        if number % ASKED["every"] == 0:
            first, *others = (model.evaluate(test)[name] for test in self.tests)
            self.curve[number] = float(sum(others, first).overall_value)
        return False, Metrics()


def main() -> None:
    torch.set_num_threads(1)
    data, tests = clients("train"), clients("test")
    order = iter(np.load(FOLDER / "cohorts.npy").reshape(-1).tolist())
    federation = FederatedDataset(lambda number: data[number], lambda: next(order))
    module = Logistic(ASKED["features"], ASKED["classes"])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(federation, None, postprocessors=[WeightByDatapoints()])
    evaluated = Evaluated(tests)
    begun = time.perf_counter()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=ASKED["rounds"],
            evaluation_frequency=ASKED["rounds"] + 1,
            train_cohort_size=ASKED["cohort"],
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(local_batch_size=ASKED["batch"], local_num_epochs=1, local_learning_rate=ASKED["rate"]),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[evaluated],
    )
    seconds = time.perf_counter() - begun
    (FOLDER / "pfl.json").write_text(json.dumps({"seconds": seconds, "accuracy": evaluated.curve}))


if __name__ == "__main__":
    main()
