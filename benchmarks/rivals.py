"""FLUTE's LR_MNIST protocol in plures, in Flower's simulation and in pfl: same split, same cohorts, same machine.

1,000 clients of MNIST with two digits each and log-normal sizes (the split of FedProx: at least ten examples, of which
a tenth is for tests), logistic regression, 10 clients a round, one epoch of SGD with batches of 10 and rate 0.03, 100
rounds, and a test of all clients every 20. All frameworks start from zeros, train the same clients in each round, and
weight uploads by examples; only the order of a client's examples differs. So the accuracies must agree, and the
benchmark fails if they do not.

The frameworks run one after the other, each in its own process. pip installs Flower and pfl into environments of their
own (under ``runs/rivals``), with the PyTorch that is installed here. plures uses the defaults of ``Execution()``.
PyTorch has one thread everywhere, which is best for a model of this size; Flower has one Ray process per core.

    python -m benchmarks.rivals --out benchmarks/results/rivals

After the installation it takes about three minutes on two cores, nearly all of it for Flower. It needs MNIST in the
folder that ``PLURES_DATA`` names (``mnist/train.npz`` and ``test.npz``; see ``plures datasets``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from plures import Federation, Run, Training
from plures.evaluate import score
from plures.federation import SPLITS, Split
from plures.federation.datasets.folder import data_folder
from plures.method import SGD, Setting
from plures.methods import fedavg
from plures.models import logistic
from plures.run import Uniform
from plures.tasks import Classification
from plures.version import __version__

CLIENTS, CLASSES, LEAST = 1_000, 10, 5
"""Clients, digits, and examples of each of its digits that every client has."""
ASKED = {
    "clients": CLIENTS, "classes": CLASSES, "features": 784, "rounds": 100, "cohort": 10, "batch": 10, "rate": 0.03,
    "every": 20,
}  # fmt: skip
RIVALS: Mapping[str, tuple[str, ...]] = {
    "flower": ("flwr[simulation]==1.41.0",),
    "pfl": ("pfl[pytorch]==0.6.0",),
}
"""Packages to install for each rival, besides PyTorch."""
WORK = Path("runs", "rivals")
APART = 0.02
"""Largest difference of accuracies after the same round; each framework draws batches in its own order."""
PUBLISHED = "Published for this protocol on another CPU (README of FLUTE): FLUTE 200 s, Flower 1.0 1,814 s."


def dealt(targets: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of each client, as FedProx deals MNIST: client ``i`` has the digits ``i`` and ``i + 1`` modulo ten.

    Each client gets five examples of both, then a share of the rest that is log-normal with mu = 0 and sigma = 2.
    """
    generator = np.random.default_rng(0)
    of_digit = [generator.permutation(np.flatnonzero(targets == digit)) for digit in range(CLASSES)]
    taken = [0] * CLASSES
    rows: list[list[NDArray[np.int64]]] = [[] for _ in range(CLIENTS)]

    def take(client: int, digit: int, count: int) -> None:
        if taken[digit] + count <= len(of_digit[digit]):
            rows[client].append(of_digit[digit][taken[digit] : taken[digit] + count])
            taken[digit] += count

    pairs = [(client, side, (client + side) % CLASSES) for client in range(CLIENTS) for side in range(2)]
    for client, _, digit in pairs:
        take(client, digit, LEAST)
    shares = generator.lognormal(0, 2.0, (CLASSES, CLIENTS // CLASSES, 2))
    shares /= shares.sum((1, 2), keepdims=True)
    left = [len(all_of) - count for all_of, count in zip(of_digit, taken, strict=True)]
    for client, side, digit in pairs:
        take(client, digit, int(left[digit] * shares[digit, client // CLASSES, side]))
    return [generator.permutation(np.concatenate(own)) for own in rows]


def prepare(folder: Path) -> None:
    """Write inputs, targets, the rows of each client, and the cohorts of all rounds."""
    files = [data_folder() / "mnist" / f"{part}.npz" for part in ("train", "test")]
    if not all(file.is_file() for file in files):
        sys.exit(f"{files[0]} and {files[1].name} are needed: put MNIST there, or name its folder with PLURES_DATA")
    parts = [np.load(file) for file in files]
    inputs = np.concatenate([part["x"] for part in parts]).reshape(-1, ASKED["features"]).astype(np.float32)
    inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + 0.001)
    targets = np.concatenate([part["y"] for part in parts]).astype(np.int64)
    owned = dealt(targets)
    first = [int(0.9 * len(own)) for own in owned]
    split = {
        "train": [own[:n] for own, n in zip(owned, first, strict=True)],
        "test": [own[n:] for own, n in zip(owned, first, strict=True)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"inputs": inputs, "targets": targets}
    for name, rows in split.items():
        arrays[f"{name}_rows"] = np.concatenate(rows)
        arrays[f"{name}_ends"] = np.cumsum([0, *map(len, rows)])
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    setting, rule = Setting.of(federation(folder)), Uniform(ASKED["cohort"] / CLIENTS)
    cohorts = [rule.cohort(setting, 0, number) for number in range(ASKED["rounds"])]
    np.save(folder / "cohorts.npy", np.array(cohorts))
    (folder / "asked.json").write_text(json.dumps(ASKED))


def federation(folder: Path) -> Federation:
    """The clients for plures."""
    inputs, targets = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("inputs", "targets"))
    split = {}
    for name in ("train", "test"):
        rows, ends = (torch.from_numpy(np.load(folder / f"{name}_{part}.npy")) for part in ("rows", "ends"))
        split[name] = Split.of(list(rows.split(ends.diff().tolist())))
    return Federation(
        name="lr_mnist",
        task=Classification(tuple("0123456789")),
        inputs=inputs,
        targets=targets,
        clients=tuple(f"{number:04d}" for number in range(CLIENTS)),
        splits={name: split.get(name, split["test"]) for name in SPLITS},
    )


def plures(folder: Path) -> None:
    """The protocol in plures; choosing the execution counts as part of the rounds."""
    torch.set_num_threads(1)
    data = federation(folder)
    model = logistic(data.features, CLASSES)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    tests = data.splits["test"].sizes.numpy()
    accuracy = [metric for metric in data.metrics if metric.name == "accuracy"]
    training = Training(rounds=ASKED["rounds"], batch_size=ASKED["batch"], optimizer=SGD(ASKED["rate"]))
    begun = time.perf_counter()
    run = Run(data, model, fedavg(), training, participation=Uniform(ASKED["cohort"] / CLIENTS))
    chosen, curve = time.perf_counter() - begun, {}
    for record in run.rounds():
        if record.round % ASKED["every"] == 0:
            found = score(run, "test", metrics=accuracy).values["accuracy"]
            curve[record.round] = float(np.average(found, weights=tests))
    told = {"seconds": time.perf_counter() - begun, "accuracy": curve, "chosen": chosen}
    (folder / "plures.json").write_text(json.dumps(told))


def environment(name: str) -> Path:
    """The Python of a rival's environment, which is created if it does not exist yet."""
    folder = (WORK / f"venv-{name}").absolute()
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = " ".join([*RIVALS[name], f"torch=={torch.__version__.partition('+')[0]}"])
    if not done.is_file() or done.read_text() != wanted:
        print(f"installing {wanted}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        made = subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted.split()])
        if made.returncode:
            sys.exit(f"pip could not install {wanted}; what it said is above")
        done.write_text(wanted)
    return python


def timed(name: str, command: list[str | Path], folder: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Run one framework; adds the seconds of the whole command to its measurements."""
    begun = time.perf_counter()
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True)
    whole = time.perf_counter() - begun
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found | {"whole": whole}


def measure(folder: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """All frameworks in turn."""
    folder = folder.absolute()
    script = {name: Path(__file__).parent / "peers" / f"{name}.py" for name in RIVALS}
    commands: dict[str, list[str | Path]] = {
        "plures": [sys.executable, "-m", "benchmarks.rivals", "--plures", folder],
        **{name: [environment(name), "-P", script[name], folder] for name in RIVALS},
    }
    foreign = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    foreign |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            found[name].append(timed(name, command, folder, os.environ if name == "plures" else foreign))
            last = found[name][-1]
            told = f"{last['seconds']:.2f} s, whole command {last['whole']:.1f} s, {last['accuracy']}"
            print(f"{name}: {told}", flush=True)
    return found


def check(found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse to compare times of work that is not the same."""
    reference = found["plures"][0]["accuracy"]
    for name, runs in found.items():
        for run in runs:
            if run["accuracy"].keys() != reference.keys():
                sys.exit(f"{name} tested after rounds {[*run['accuracy']]}, not {[*reference]}")
            apart = max(abs(run["accuracy"][number] - value) for number, value in reference.items())
            if apart > APART:
                sys.exit(f"{name}: accuracies {run['accuracy']} are not those of plures, {reference}")


def table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """The table as Markdown."""
    versions = {"plures": __version__} | {name: wanted[0].partition("==")[2] for name, wanted in RIVALS.items()}
    middle = {
        name: [statistics.median(run[what] for run in runs) for what in ("seconds", "whole")]
        for name, runs in found.items()
    }
    tested = [*found["plures"][0]["accuracy"]]
    lines = [
        f"| framework | rounds and tests, s | of plures | whole command, s | of plures "
        f"| {' | '.join(f'accuracy, round {number}' for number in tested)} |",
        "|---|---:|---:|---:|---:|" + "---:|" * len(tested),
    ]
    for name, (seconds, whole) in middle.items():
        ratios = [value / own for value, own in zip((seconds, whole), middle["plures"], strict=True)]
        curve = " | ".join(f"{found[name][0]['accuracy'][number]:.3f}" for number in tested)
        lines.append(
            f"| {name} {versions[name]} | {seconds:.2f} | {ratios[0]:.1f}x | {whole:.1f} | {ratios[1]:.1f}x | {curve} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plures", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plures:
        plures(options.plures)
        return
    if options.out is None:
        parser.error("--out is needed")
    folder = WORK / "split"
    prepare(folder)
    found = measure(folder, options.repeats)
    check(found)
    about = (
        f"Made by `python -m benchmarks.rivals` on {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"PyTorch {torch.__version__}; medians of {options.repeats}, one after the other.\n\n"
        "LR_MNIST: 1,000 clients of two digits each, log-normal sizes, logistic regression, 10 clients a round, batch "
        "10, rate 0.03, 100 rounds, all clients tested every 20; same split, start and cohorts. *Rounds and tests* is "
        "the time of the training loop: for plures with the choice of the execution, for Flower after its nodes are "
        "registered and Ray's processes have answered once. *Whole command* is the process from start to end, imports "
        "and data included.\n"
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(f"{about}\n{table(found)}\n{PUBLISHED}\n")


if __name__ == "__main__":
    main()
