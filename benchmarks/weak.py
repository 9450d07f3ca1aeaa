"""What clients gain whose devices hold a quarter of the network, and what the others lose: thirty people of UCI HAR.

python -m benchmarks.weak [--seeds 3] [--rounds 8] [--out FILE]

Every second person's device holds a quarter of the units of each hidden layer. They may all take the network that fits
everybody, the weak may be left out and train alone, or all may hold parts of one network.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

import plures
from plures.evaluate import score
from plures.files import write_text
from plures.methods import METHODS
from plures.models import ModelFactory, mlp
from plures.models.widths import narrowed, widths_of

RATE, HIDDEN = 0.25, (128, 64)
ROWS = (
    "the network that fits all: FedAvg",
    "weak clients left out: FedAvg of the others, and local training",
    "parts of one network: HeteroFL",
    "parts of one network: FjORD",
    "devices for all: FedAvg of the whole network",
)


def trained(
    federation: plures.Federation, method: plures.Method, model: ModelFactory, rounds: int, seed: int
) -> np.ndarray:
    """Test accuracy of each client after the last round."""
    training = plures.Training(rounds=rounds, epochs=1, batch_size=32, optimizer=plures.SGD(0.05))
    run = plures.Run(federation, model, method, training, seed=seed)
    for _ in run.rounds():
        pass
    return score(run, "test").values["accuracy"]


def measured(federation: plures.Federation, rounds: int, seed: int) -> list[tuple[float, float]]:
    """For each row, mean accuracy of the clients with whole and with weak devices."""
    weak = np.arange(len(federation)) % 2 == 1
    places = [np.flatnonzero(~weak).tolist(), np.flatnonzero(weak).tolist()]
    strong_only, weak_only = (federation.take(some) for some in places)
    whole = partial(mlp, federation.features, federation.task.outputs, HIDDEN)

    def few() -> nn.Module:
        made = whole()
        widths = widths_of(made, federation.inputs[:0])
        return narrowed(made, widths, widths.at(RATE))

    def both(method: plures.Method, model: ModelFactory) -> tuple[float, float]:
        found = trained(federation, method, model, rounds, seed)
        return float(found[~weak].mean()), float(found[weak].mean())

    rates = {"rates": (1.0, RATE)}
    strong = trained(strong_only, METHODS["fedavg"](), whole, rounds, seed)
    alone = trained(weak_only, METHODS["local"](), few, rounds, seed)
    return [
        both(METHODS["fedavg"](), few),
        (float(strong.mean()), float(alone.mean())),
        both(METHODS["heterofl"](**rates, weights="examples"), whole),
        both(METHODS["fjord"](**rates), whole),
        both(METHODS["fedavg"](), whole),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/weak.md"))
    given = parser.parse_args()
    federation = plures.load("har")
    found = np.array([measured(federation, given.rounds, seed) for seed in range(given.seeds)])
    lines = [
        "# Weak devices",
        "",
        f"Written by `python -m benchmarks.weak --seeds {given.seeds} --rounds {given.rounds}`:",
        f"{len(federation)} people of UCI HAR, a perceptron with hidden layers of {HIDDEN[0]} and {HIDDEN[1]} units;",
        f"every second device holds {RATE:g} of them. Test accuracy after the last round in %, mean and standard",
        "deviation over seeds; nothing is tuned.",
        "",
        "| | whole devices | weak devices |",
        "| --- | ---: | ---: |",
    ]
    for name, row in zip(ROWS, found.transpose(1, 2, 0), strict=True):
        cells = (f"{100 * values.mean():.1f} ± {100 * values.std():.1f}" for values in row)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_text(given.out, "\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
