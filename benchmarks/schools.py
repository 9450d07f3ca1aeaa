"""Which sharing is best with differential privacy of a pupil: MR-MTL's figure of School, beside its numbers.

python -m benchmarks.schools --out benchmarks/results/schools

Liu, Hu, Wu and Smith (NeurIPS 2022, Figure 3c): 139 schools, all in every round, a linear model of the score scaled to
[0, 1] with inputs standardised in each school, 200 rounds of one pass at a learning rate of 0.01, gradients of pupils
shortened to 1, delta 1e-3, five repetitions with their own splits; the squared error after the last round, weighted by
test pupils. Nothing is tuned.

What differs: the authors draw shuffled batches of 32 and account for Poisson ones, at a rate and with a noise of each
school's own; here every pupil takes part in a step by a coin of 0.4, two steps a round, and all schools have the same
rate, noise and epsilon. Without privacy the same steps are made without clip and noise.

Finished runs are kept in the JSON file and not repeated; ``--minutes`` stops before the next run. All 75 take about
twenty minutes of a processor.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from plures.evaluate.scores import score
from plures.federation import SPLITS, Federation, Split
from plures.federation.datasets.folder import data_folder, read
from plures.method import SGD, Combine, Method
from plures.privacy import dp_sgd
from plures.privacy.accountant import calibrated
from plures.privacy.accountant import epsilon as spent
from plures.run import Execution, Run, Training
from plures.tasks import Regression

ROUNDS, STEPS, RATE, CLIP, DELTA, LR = 200, 2, 0.4, 1.0, 1e-3, 0.01
TEST = 0.3
HALF = 2
"""The authors minimise half the squared error, whose gradient is half as long."""
METHODS: dict[str, float | None] = {"FedAvg": None, "Local": 0.0, "MR-MTL 0.3": 0.3, "MR-MTL 1": 1.0, "MR-MTL 3": 3.0}
"""The pull towards the mean; ``None`` for one model."""
EPSILONS = (None, 6.0, 1.0)
PUBLISHED = {"FedAvg": 0.02564, "Local": 0.02628, "MR-MTL 1": 0.02394}
"""At epsilon 6, as the authors' repository prints them."""


def schools(seed: int) -> Federation:
    """Pupils of every school, 30 % of them for the test, with inputs standardised by the others of the school."""
    raw, random = read(data_folder() / "school" / "school.npz"), torch.Generator().manual_seed(seed)
    x, owner = torch.tensor(raw["x"]).double(), torch.tensor(raw["client"]).long()
    y = ((torch.tensor(raw["y"]).double() - 1) / 69).float()[:, None]
    train, test = [], []
    for client in range(int(owner.max()) + 1):
        rows = (owner == client).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=random)]
        held = math.ceil(TEST * len(rows))
        test.append(rows[:held])
        train.append(rows[held:])
        mean, std = x[train[-1]].mean(0), x[train[-1]].std(0, correction=0)
        x[rows] = (x[rows] - mean) / torch.where(std > 0, std, 1.0)
    none = Split.of([torch.zeros(0, dtype=torch.int64)] * len(train))
    splits = dict(zip(SPLITS, (Split.of(train), none, Split.of(test)), strict=True))
    names = tuple(f"school {client:03}" for client in range(len(train)))
    return Federation("schools", Regression(1), x.float(), y, names, splits)


def linear() -> nn.Module:
    """A linear model, all zeros at the start."""
    layer = nn.Linear(28, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def noise(epsilon: float | None) -> float:
    """The noise of a step that spends so much in all of them."""
    if epsilon is None:
        return 0.0
    return calibrated(epsilon, lambda level: spent(level, STEPS * ROUNDS, DELTA, rate=RATE))


def method(lam: float | None, level: float) -> Method:
    """FedAvg, local training or MR-MTL with steps of DP-SGD; a mean counts a school's pupils, as the authors' does."""
    clip = HALF * CLIP if level else math.inf
    pull = None if lam is None else HALF * lam
    return replace(dp_sgd(clip, level, RATE, DELTA, lam=pull), combine=Combine())


def learned(name: str, level: float, seed: int) -> float:
    """The squared error after the last round, weighted by test pupils."""
    work = Training(ROUNDS, None, steps=STEPS, optimizer=SGD(LR / HALF))
    run = Run(schools(seed), linear, method(METHODS[name], level), work, execution=Execution(), seed=seed)
    for _ in run.rounds():
        pass
    found = score(run, "test")
    return float(np.average(found.values["rmse"] ** 2, weights=found.sizes))


def cells(seeds: int) -> Iterator[tuple[str, str, float | None, int]]:
    """All runs, each with its key: method, epsilon, seed."""
    for seed in range(seeds):
        for epsilon in (6.0, None, 1.0):
            for name in METHODS:
                yield f"{name}, epsilon {epsilon}, seed {seed}", name, epsilon, seed


def page(known: dict[str, float]) -> str:
    """The table of what is done, beside what is published."""
    ran = sorted({int(key.rpartition(" ")[2]) for key in known})
    lines = ["| epsilon | " + " | ".join(METHODS) + " |", "|---|" + "---:|" * len(METHODS)]
    for epsilon in EPSILONS:
        parts = []
        for name in METHODS:
            got = [known[key] for seed in ran if (key := f"{name}, epsilon {epsilon}, seed {seed}") in known]
            spread = f" ± {np.std(got):.5f}" if len(got) > 1 else ""
            parts.append("-" if not got else f"{np.mean(got):.5f}{spread}")
        lines.append(f"| {'none' if epsilon is None else f'{epsilon:g}'} | {' | '.join(parts)} |")
        if epsilon == 6:
            told = (f"{PUBLISHED[name]:.5f}" if name in PUBLISHED else "-" for name in METHODS)
            lines.append(f"| 6, published | {' | '.join(told)} |")
    return (
        "\n\n".join(
            [
                "Made by `python -m benchmarks.schools --out benchmarks/results/schools`, which says what the protocol "
                "is and in what it differs from the published one.",
                f"139 schools, squared error of the scaled score on test pupils, mean and standard deviation over "
                f"{len(ran)} split(s), after {ROUNDS} rounds. Published: Liu, Hu, Wu, Smith (NeurIPS 2022), "
                "five splits.",
                "\n".join(lines),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop before a run after so many minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file, begun = options.out.with_suffix(".json"), time.perf_counter()
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    levels = {epsilon: noise(epsilon) for epsilon in EPSILONS}
    for key, name, epsilon, seed in cells(options.seeds):
        if key in known or time.perf_counter() - begun > 60 * options.minutes:
            continue
        known[key] = learned(name, levels[epsilon], seed)
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        Console().print(f"{key}: {known[key]:.5f}")
    options.out.with_suffix(".md").write_text(page(known), encoding="utf-8")


if __name__ == "__main__":
    main()
