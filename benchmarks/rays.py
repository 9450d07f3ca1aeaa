"""Rounds on a Ray cluster of two nodes on one machine: what they cost, with how many workers, and after a node's death.

Rounds in this process and on the cluster take turns in the same run, so their ratio says more than their seconds.

    python -m benchmarks.rays --out benchmarks/results/rays
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.nodes import Node, cluster
from plures import Execution, Run, Training, compare, from_arrays, with_roles
from plures.federation import Federation
from plures.methods import fedper

CHUNK, CLIENTS, WORKERS, ROUNDS = 4, 16, (1, 2, 4), 9
SECONDS = 1.5
"""Seconds that a round in this process should take, by the number of its steps."""
TABLE: dict[str, Any] = {"rounds": 3, "seeds": 1, "tune_rounds": 0, "learning_rates": (0.1,)}


def data() -> Federation:
    """Clients with 64 inputs and ten classes."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(CLIENTS * 200, 64)).astype(np.float32)
    y = (x[:, :10] + generator.normal(size=(len(x), 10))).argmax(1)
    return from_arrays(x, y, [f"client {i:02}" for i in np.arange(CLIENTS).repeat(200)], name="made")


def net() -> nn.Module:
    layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return with_roles(layers, head="4")


def begun(federation: Federation, steps: int, rounds: int, **machine: Any) -> Run:
    """A run whose chunks are the same wherever they are trained."""
    execution = Execution("vmap", CHUNK, False, "float32", capture=False, **machine)
    training = Training(rounds=rounds, batch_size=32, steps=steps)
    return Run(federation, net, fedper(), training, execution=execution)


def rounds(address: str) -> dict[str, Any]:
    """Seconds of rounds in this process, in a pool of one process, and on the cluster with some workers, in turns."""
    federation = data()
    trial = begun(federation, 10, 2)
    trial.step()
    steps = max(10, round(10 * SECONDS / trial.step().seconds))
    runs = {"in this process": begun(federation, steps, ROUNDS + 2)}
    runs |= {f"Ray, {n}": begun(federation, steps, ROUNDS + 2, ray=address, processes=n) for n in WORKERS}
    took: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            seconds = run.step().seconds
            if turn:  # the first starts the workers
                took[name].append(seconds)
    one, *others = runs.values()
    same = all(
        torch.equal(value, other.server[block].values[leaf])
        for other in others
        for block, kept in one.server.items()
        for leaf, value in kept.values.items()
    )
    return {"steps": steps, "seconds": took, "same bits": same}


def tables(address: str, second: Node) -> dict[str, Any]:
    """The same comparison in one process, on two nodes, and with a node that is killed while it trains."""
    killed = threading.Event()

    def listen(stage: Any) -> None:
        if stage.what.startswith("seed") and not killed.is_set():
            killed.set()
            threading.Timer(0.2, second.kill).start()

    found, took = [], []
    for ray, listener in ((None, None), (address, None), (address, listen)):
        begin = time.perf_counter()
        execution = Execution("vmap", CHUNK, False, "float32", capture=False, ray=ray)
        asked = TABLE | {"model": net, "batch_size": 32}
        found.append(compare(data(), ["ditto", "fedper"], execution=execution, listener=listener, **asked))
        took.append(time.perf_counter() - begin)
    values = [[[seed.test for seed in method.seeds] for method in one.methods] for one in found]
    return {
        "seconds": took,
        "same": [values[1] == values[0], values[2] == values[0]],
        "node ended": second.process.poll() is not None,
        "means": {method.name: found[0].row(method.name).mean for method in found[0].methods},
    }


def markdown(found: dict[str, Any]) -> str:
    took = {name: statistics.median(seconds) for name, seconds in found["rounds"]["seconds"].items()}
    alone = took["in this process"]
    lines = [
        f"| {name} | {seconds:.2f} | {min(own):.2f} to {max(own):.2f} | {CLIENTS / seconds:.1f} | "
        f"{seconds / alone:.2f} |"
        for (name, seconds), own in zip(took.items(), found["rounds"]["seconds"].values(), strict=True)
    ]
    ratios = [
        there / here
        for here, there in zip(*(found["rounds"]["seconds"][k] for k in ("in this process", "Ray, 1")), strict=True)
    ]
    one, two, after = found["tables"]["seconds"]
    equal = ["the same to the last digit" if same else "NOT the same" for same in found["tables"]["same"]]
    return "\n".join(
        [
            f"Made by `python -m benchmarks.rays` on {os.cpu_count()} cores ({platform.machine()}, "
            f"{os.getloadavg()[2]:.0f} processes at work in the last quarter of an hour), Ray on two nodes of this "
            f"machine: {CLIENTS} clients, chunks of {CHUNK}, {found['rounds']['steps']} steps, FedPer. Rounds take "
            "turns.",
            "",
            "| workers | a round, median s | quickest to slowest, s | clients a second | of a round in this process |",
            "| --- | ---: | ---: | ---: | ---: |",
            *lines,
            "",
            f"**With one worker a round takes {statistics.median(ratios):.2f} times as long as in this process** (the "
            f"median of the ratios of neighbouring rounds). The values of the server are "
            f"{'the same bits' if found['rounds']['same bits'] else 'NOT the same bits'} in all of them. Four workers "
            f"cannot gain over two on a machine with two cores.",
            "",
            "The same comparison (with Ditto and FedPer): the test scores of every client and method "
            "against those of one process.",
            "",
            "| where | s | scores |",
            "| --- | ---: | --- |",
            f"| one process | {one:.0f} | |",
            f"| two Ray nodes | {two:.0f} | {equal[0]} |",
            f"| two Ray nodes, one killed in a round | {after:.0f} | {equal[1]} |",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), 2) as (address, nodes):
        found = {"rounds": rounds(address)}
        print(json.dumps(found), flush=True)
        found["tables"] = tables(address, nodes[1])
        import ray

        ray.shutdown()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(found))


if __name__ == "__main__":
    main()
