"""Four small clients, and short runs of any method on them."""

from __future__ import annotations

from benchmarks.gpu import QUICK

import newcomers
from plures.federation import Federation
from plures.method import SGD
from plures.methods import METHODS
from plures.report.catalogue import model
from plures.run import Execution, Run, Training, Uniform


def clients() -> tuple[Federation, Federation]:
    """Three clients with metadata and public rows, and one newcomer."""
    return newcomers.clients((13, 15, 14, 12), later=("d",), name="four")


def begun(name: str, federation: Federation, device: str, backend: str = "vmap", **parameters) -> Run:
    training = Training(rounds=2, batch_size=4, steps=1, optimizer=SGD(0.05))
    execution = Execution(backend, 3, False, "float64", device)
    module, method = newcomers.linear if name == "mocha" else model, METHODS[name](**QUICK.get(name, {}) | parameters)
    return Run(federation, module, method, training, participation=Uniform(0.67), execution=execution, seed=1)
