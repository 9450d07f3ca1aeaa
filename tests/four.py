"""Four small clients, and runs of any method on them that take a moment."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from plures.federation import Federation, from_arrays
from plures.method import SGD
from plures.methods import METHODS
from plures.report.catalogue import model
from plures.run import Execution, Run, Training, Uniform


def clients() -> tuple[Federation, Federation]:
    """Three clients with metadata and public rows, and one that comes later."""
    generator = np.random.default_rng(3)
    owner = np.repeat(list("abcd"), [13, 15, 14, 12])
    x = generator.normal(size=(len(owner), 8))
    facts = {
        name: {"group": "one" if i % 2 else "two", "completeness": 1 - 0.1 * i, "reliability": 1 - 0.1 * i}
        for i, name in enumerate("abcd")
    }
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)
    whole = from_arrays(x, y, owner, metadata=facts, seed=0, dtype=torch.float64, name="four")
    return whole.donate(0.1).hold_out(["d"])


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 2))


QUICK: dict[str, dict[str, object]] = {
    "fedavg_ft": {"steps": 1},
    "fedbabu": {"epochs": 1},
    "fedhome": {"refine_steps": 1, "per_class": 4},
    "fedsimclr": {"projection": 2, "head_epochs": 1},
    "hypcluster": {"epochs": None},
    "reptile": {"after": 1, "epochs": 1},
    "wise_ft": {"steps": 1},
}
"""Parameters of methods that would take more steps than a test needs."""


def begun(name: str, federation: Federation, device: str, backend: str = "vmap", **parameters) -> Run:
    training = Training(rounds=2, batch_size=4, steps=1, optimizer=SGD(0.05))
    execution = Execution(backend, 3, False, "float64", device)
    module, method = linear if name == "mocha" else model, METHODS[name](**QUICK.get(name, {}) | parameters)
    return Run(federation, module, method, training, participation=Uniform(0.67), execution=execution, seed=1)
