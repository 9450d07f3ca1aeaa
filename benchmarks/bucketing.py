"""Robust combinations with and without buckets under five attacks on MNIST, beside the published cells.

python -m benchmarks.bucketing --out benchmarks/results/bucketing

The protocol is that of Karimireddy, He and Jaggi (ICLR 2022): 20 honest clients and five attackers, all in every round;
a client sends one gradient of a batch of 32, with momentum 0 or 0.9 of its own; 600 rounds at a learning rate of 0.01.
Honest clients have 3,000 digits each, in equal runs of the pictures sorted by label (``non-iid``). The score is the
accuracy on the first 9,984 test pictures, the mean after the last five times 30 rounds. Radii are those of the authors'
runs, times the learning rate, because changes of a model are combined here and gradients there.

What differs: attackers hold 3,000 digits of all classes each; ``mimic`` copies the first honest client in every round;
Krum sums squared distances, where the authors' code squares them once more; RFA starts at the mean and not at zero;
batches are drawn without replacement. ``--model cnn`` is the paper's network, with masks of dropout drawn afresh;
``--model mlp``, with one layer of 32 units and no dropout, is for the whole table at a fraction of the time, and
``--rounds 300`` halves that; cells of other numbers of rounds are kept apart.

Finished cells are kept in the JSON file and not repeated, so the command may be stopped and started; ``--minutes``
stops it before the next cell, and ``--only`` takes cells whose key contains a text. A cell takes about half a minute of
a processor with the perceptron.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from plures.federation import SPLITS, Federation, Split
from plures.federation.datasets.folder import data_folder, read
from plures.method import (
    SGD,
    Batch,
    Combine,
    Leaves,
    Method,
    Personal,
    Phase,
    Reducer,
    Shared,
    State,
    detach,
    dot,
    gradient,
    zeros,
)
from plures.models.reference import mlp
from plures.robust import Bucketing, CentredClip, GeometricMedian, Krum, Median, Robust
from plures.run import Execution, Run, Training
from plures.tasks import Classification
from plures.threat import ALIE, InnerProduct, LabelFlip, SignFlip, Threat
from plures.threat.attack import Attack, Round

HONEST, ATTACKERS, OWN, LR = 20, 5, 3000, 0.01
ROUNDS, EPOCH, LAST = 600, 30, 5
TESTED = 9984
SETTINGS = ((1, 0.0), (2, 0.0), (1, 0.9), (2, 0.9))
"""Size of buckets, and momentum."""


@dataclass(frozen=True)
class Copy(Attack):
    """The change of the first honest client, in every round."""

    def forge(self, known: Round) -> Tensor:
        return known.seen[0].expand_as(known.own).clone()


THREATS: dict[str, dict[str, Any]] = {
    "bit flip": {"attack": SignFlip(), "knows": "own"},
    "label flip": {"poison": LabelFlip()},
    "mimic": {"attack": Copy()},
    "IPM": {"attack": InnerProduct(0.1)},
    "ALIE": {"attack": ALIE()},
}
RULES = ("Mean", "Krum", "Median", "RFA", "CClip")
Cells = dict[tuple[int, float], tuple[float, ...]]
PUBLISHED: dict[str, Cells] = {
    "bit flip": {
        (1, 0.0): (27.9, 37.1, 68.8, 75.2),
        (2, 0.0): (45.1, 46.9, 87.6, 91.7),
        (1, 0.9): (9.9, 42.9, 82.8, 97.7),
        (2, 0.9): (25.5, 63.8, 96.8, 97.7),
    },
    "label flip": {
        (1, 0.0): (1.0, 35.6, 90.3, 90.9),
        (2, 0.0): (20.2, 52.7, 91.6, 91.8),
        (1, 0.9): (1.0, 50.6, 95.8, 97.6),
        (2, 0.9): (43.3, 70.5, 97.4, 97.7),
    },
    "mimic": {
        (1, 0.0): (37.3, 64.3, 78.9, 91.5),
        (2, 0.0): (53.1, 78.6, 91.2, 92.6),
        (1, 0.9): (29.0, 57.2, 85.9, 97.8),
        (2, 0.9): (64.8, 76.5, 97.1, 97.8),
    },
    "IPM": {
        (1, 0.0): (36.9, 50.3, 14.6, 91.8),
        (2, 0.0): (54.1, 67.5, 90.6, 92.6),
        (1, 0.9): (10.0, 36.2, 13.5, 97.6),
        (2, 0.9): (46.8, 59.3, 95.9, 97.7),
    },
    "ALIE": {
        (1, 0.0): (78.9, 78.9, 79.7, 91.1),
        (2, 0.0): (72.5, 86.9, 91.2, 91.3),
        (1, 0.9): (11.4, 9.9, 11.4, 98.0),
        (2, 0.9): (10.1, 46.3, 91.7, 98.0),
    },
}
"""Non-IID cells of Krum, median, RFA and centred clipping, out of the authors' logs, three seeds."""
MIMICKED = {(1, 0.0): 92.73, (2, 0.0): 92.67}
"""The mean under mimic, of the same logs."""


def cnn() -> nn.Module:
    """The paper's network."""
    body = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))


@functools.cache
def digits(seed: int) -> tuple[Federation, Tensor, Tensor]:
    """Clients' digits, sorted by label and cut into runs; for attackers, of all classes; and the test pictures."""
    (x, y), (unseen, truth) = (
        ((torch.tensor(raw["x"]).float()[:, None] / 255 - 0.1307) / 0.3081, torch.tensor(raw["y"]).long())
        for raw in (read(data_folder() / "mnist" / f"{part}.npz") for part in ("train", "test"))
    )
    order = y.argsort(stable=True)
    random = torch.Generator().manual_seed(seed)
    rows = [*order.split(OWN), *(torch.randperm(len(y), generator=random)[:OWN] for _ in range(ATTACKERS))]
    none = torch.zeros(0, dtype=torch.int64)
    splits = {name: Split.of(rows if name == "train" else [none] * len(rows)) for name in SPLITS}
    names = tuple(f"client {i:02}" for i in range(HONEST + ATTACKERS))
    task = Classification(tuple("0123456789"))
    return Federation("digits", task, x, y, names, splits), unseen[:TESTED], truth[:TESTED]


def method(rule: str, size: int, beta: float) -> Method:
    """Clients that send one gradient, or a sum of them with momentum; and what the server makes of 25 of them."""
    robust: dict[str, Robust | None] = {
        "Mean": None,
        "Krum": Krum(ATTACKERS),
        "Median": Median(),
        "RFA": GeometricMedian(steps=8, nu=0.1 * LR),
        "CClip": CentredClip(tau=(100 if beta else 10) * LR),
    }
    reduce: Reducer | None = robust[rule] if size == 1 else Bucketing(size, then=robust[rule])
    combine = Combine("uniform", reduce=reduce)
    if not beta:
        return Method(schedule=(Phase(),), combine=combine)

    def sums(x: State, received: State, batch: Batch) -> dict[str, Leaves]:
        found = gradient(detach(x.model), batch)
        return {"momentum": {k: beta * x.momentum[k] + g for k, g in found.items()}}

    def along(x: State, received: State, batch: Batch) -> Tensor:
        return dot(x.model, x.momentum)

    return Method(
        layout={"model": Shared(), "momentum": Personal()},
        slots={"momentum": zeros},
        schedule=(Phase(objective=along, before=sums, keeps=("momentum",)),),
        combine=combine,
    )


def key_of(model: str, attack: str, rule: str, size: int, beta: float, rounds: int, seed: int) -> str:
    """What a finished cell is kept under."""
    return f"{model}, {attack}, {rule}, s={size}, m={beta}, {rounds} rounds, seed {seed}"


def cells(models: list[str], seeds: int) -> Iterator[tuple[str, str, str, int, float, int]]:
    """All cells: network, attack, rule, buckets, momentum, seed."""
    for seed in range(seeds):
        for model in models:
            for size, beta in SETTINGS:
                for attack in THREATS:
                    for rule in RULES:
                        yield model, attack, rule, size, beta, seed


def learned(model: str, attack: str, rule: str, size: int, beta: float, seed: int, rounds: int) -> list[float]:
    """Accuracy after every 30 rounds."""
    federation, unseen, truth = digits(seed)
    run = Run(
        federation,
        cnn if model == "cnn" else lambda: mlp((1, 28, 28), 10, (32,)),
        method(rule, size, beta),
        Training(rounds, 32, steps=1, optimizer=SGD(LR)),
        execution=Execution(),
        threat=Threat(federation.clients[HONEST:], **THREATS[attack]),
        seed=seed,
    )
    found = []
    for record in run.rounds():
        if record.round % EPOCH == 0:
            leaves = {path: t[0] for path, t in run.states([0])["model"].items()}
            with torch.inference_mode():
                parts = [run.bound.network(leaves, part, train=False)[0] for part in unseen.split(1000)]
            found.append(float((torch.cat(parts).argmax(1) == truth).double().mean()))
    return found


def never_clipped(known: dict[str, list[float]], made: list[str]) -> bool:
    """Whether centred clipping gave what the mean did, but for rounding, in every cell that has both."""
    pairs = [(known[key], known.get(key.replace(", CClip,", ", Mean,"))) for key in made if ", CClip," in key]
    return bool(pairs) and all(other is not None and np.allclose(one, other, rtol=0, atol=2e-3) for one, other in pairs)


def page(known: dict[str, list[float]], seeds: int, rounds: int) -> str:
    """Tables of what is done, beside what is published."""
    parts = [
        f"Made by `python -m benchmarks.bucketing --rounds {rounds} --out benchmarks/results/bucketing`, which says "
        "what the protocol is and in what it differs from the published one.",
        "MNIST, 20 honest clients with a run of the sorted digits each, five attackers. Accuracy in per cent, "
        f"{rounds} rounds, the mean after the last five times 30. Published: Karimireddy, He, Jaggi (ICLR 2022), "
        f"{ROUNDS} rounds, three seeds, out of the authors' logs; its cells are spread widely, so ranks count and not "
        "digits. "
        "Cells with a dash were not run, or not published.",
    ]
    for model, words in (("mlp", "784-32-10, no dropout"), ("cnn", "the paper's network")):
        made = [key for key in known if key.startswith(f"{model},") and f", {rounds} rounds," in key]
        if not made:
            continue
        ran = sorted({int(key.rpartition(" ")[2]) for key in made})
        parts.append(f"## {words}; seed{'s' if len(ran) > 1 else ''} {', '.join(map(str, ran))}")
        if never_clipped(known, made):
            parts.append(
                "Centred clipping is the mean here: the radius is that of the authors' network, and changes of this "
                "one are shorter."
            )
        for size, beta in SETTINGS:
            if not any(f", s={size}, m={beta}," in key for key in made):
                continue
            title = f"{'no buckets' if size == 1 else f'buckets of {size}'}, momentum {beta:g}"
            lines = [f"| {title} | {' | '.join(RULES)} |", "|---|" + "---:|" * len(RULES)]
            for attack in THREATS:
                cells = []
                for rule in RULES:
                    keys = [key_of(model, attack, rule, size, beta, rounds, seed) for seed in ran]
                    got = [100 * float(np.mean(known[key][-LAST:])) for key in keys if key in known]
                    cells.append("-" if not got else f"{np.mean(got):.1f}")
                lines.append(f"| {attack} | {' | '.join(cells)} |")
                mean = MIMICKED.get((size, beta)) if attack == "mimic" else None
                told = ["-" if mean is None else f"{mean:.1f}", *(f"{v:.1f}" for v in PUBLISHED[attack][size, beta])]
                lines.append(f"| {attack}, published (the paper's network) | {' | '.join(told)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=("mlp", "cnn"), action="append", help="default: mlp")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop before a cell after so many minutes")
    parser.add_argument("--only", default="", help="cells whose key contains this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file, begun = options.out.with_suffix(".json"), time.perf_counter()
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for model, attack, rule, size, beta, seed in cells(options.model or ["mlp"], options.seeds):
        key = key_of(model, attack, rule, size, beta, options.rounds, seed)
        if key in known or options.only not in key or time.perf_counter() - begun > 60 * options.minutes:
            continue
        known[key] = learned(model, attack, rule, size, beta, seed, options.rounds)
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        Console().print(f"{key}: {100 * np.mean(known[key][-LAST:]):.1f}")
    options.out.with_suffix(".md").write_text(page(known, options.seeds, options.rounds), encoding="utf-8")


if __name__ == "__main__":
    main()
