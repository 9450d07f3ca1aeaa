"""Populations of 10^3 to 10^6 clients with five rows each on one machine: what the number of clients costs.

Each size has its own process. It builds the federation from arrays, starts a run of logistic regression with a
personal model for every client on disk, trains rounds of 1,000 sampled clients, writes checkpoints, and scores a sample
of clients and then all of them. Every time is that of one call; a round is the median of ten.

    python -m benchmarks.population --out benchmarks/results/population
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from plures import Execution, Run, Training, from_arrays
from plures.evaluate import score
from plures.evaluate.sample import sampled
from plures.method import SGD
from plures.methods import METHODS
from plures.models import logistic
from plures.run import Uniform
from plures.run.checkpoint import resume, save
from plures.run.fingerprint import of_run

T = TypeVar("T")
SIZES = (1_000, 10_000, 100_000, 1_000_000)
ROWS, COLUMNS, CLASSES = 5, 20, 2
COHORT, SAMPLE, ROUNDS = 1_000, 10_000, 10
WHOLE = 100_000
"""Largest population in which all clients are scored."""


@dataclass(frozen=True)
class Measured:
    """Seconds and megabytes of one population.

    Attributes:
        clients: number of clients.
        build: ``from_arrays``, including names, checks, warnings and splits.
        start: until the run is ready; backend and chunk are given, so nothing is measured first.
        round: a round of 1,000 clients, the median of ten.
        first: a checkpoint after ten rounds.
        checkpoint: one after twenty.
        resume: restoring that state in a fresh run.
        sample: scoring the validation data of 10,000 clients drawn at random. Nearly all of them have not taken part
            yet, so each first makes the visits of a newcomer.
        whole: the same for all clients; ``None`` if it was not measured.
        memory: peak of the process before that, including the arrays that it was given.
    """

    clients: int
    build: float
    start: float
    round: float
    first: float
    checkpoint: float
    resume: float
    sample: float
    whole: float | None
    memory: float


def timed(work: Callable[[], T]) -> tuple[T, float]:
    begun = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begun


def peak() -> float:
    """Peak memory of the process in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def measure(clients: int, folder: Path) -> Measured:
    """All figures of one population."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((clients * ROWS, COLUMNS), dtype=np.float32)
    targets = (inputs @ rng.standard_normal(COLUMNS, dtype=np.float32) > 0).astype(np.int64)
    owner = np.arange(clients).repeat(ROWS)
    data, build = timed(lambda: from_arrays(inputs, targets, owner, name="population"))
    model = logistic((COLUMNS,), CLASSES)
    rule = Uniform(min(1.0, COHORT / clients))
    execution = Execution(backend="vmap", chunk=COHORT, compile=False, clients_on_disk=folder)

    def begin() -> Run:
        training = Training(rounds=2 * ROUNDS, batch_size=None, optimizer=SGD(0.1))
        return Run(data, model, METHODS["ditto"](), training, participation=rule, execution=execution)

    run, start = timed(begin)
    file, asked = folder / "checkpoint", of_run(run, "population")
    for _ in range(ROUNDS):
        run.step()
    _, first = timed(lambda: save(run, "population", file, question=asked))
    seconds = statistics.median(run.step().seconds for _ in range(ROUNDS))
    _, checkpoint = timed(lambda: save(run, "population", file, question=asked))
    again = begin()
    _, resumed = timed(lambda: resume(again, "population", file, question=asked))
    some = sampled(data, min(SAMPLE, clients))
    _, sample = timed(lambda: score(run, "validation", clients=some))
    held = peak()
    _, whole = timed(lambda: score(run, "validation")) if clients <= WHOLE else (None, None)
    return Measured(clients, build, start, seconds, first, checkpoint, resumed, sample, whole, held)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true")
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(measure(given.clients[0], Path(folder)))))
        return
    found = []
    for clients in given.clients:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.population", "--one", "--clients", str(clients)]
        told = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        found.append(Measured(**json.loads(told.splitlines()[-1])))
        print(found[-1], flush=True)
    if given.out is not None:
        given.out.with_suffix(".json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
        given.out.with_suffix(".md").write_text(written(found))


def written(found: list[Measured]) -> str:
    """The curve as a table."""
    lines = [
        "# Populations on one machine",
        "",
        f"{ROWS} rows of {COLUMNS} numbers for each client, logistic regression, Ditto with personal models on disk, "
        f" rounds of {COHORT:,} clients. Seconds, and megabytes at most; {os.cpu_count()} processors, torch "
        f"{torch.__version__}, {platform.system()} {platform.machine()}. A checkpoint is written after ten and after "
        f"twenty rounds. The sample is {SAMPLE:,} clients.",
        "",
        "| clients | build | start | round | first checkpoint | second | resume | score sample | all | peak MB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        cells = [one.build, one.start, one.round, one.first, one.checkpoint, one.resume, one.sample, one.whole]
        told = " | ".join("-" if cell is None else f"{cell:.3g}" for cell in cells)
        lines.append(f"| {one.clients:,} | {told} | {one.memory:,.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
