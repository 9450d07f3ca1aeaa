"""Three published protocols at a reduced budget, next to the published numbers.

python -m benchmarks.protocols --out benchmarks/results/protocols [--only ifca ...]

The numbers are not comparable digit by digit: the budget is smaller, and rounds are chosen on validation data (PFLlib
reports the best round on test data). The tables state both budgets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.families import listen
from plures import compare, load
from plures.evaluate import Comparison
from plures.federation import Federation, rotate
from plures.method import Method
from plures.methods import ifca
from plures.report import markdown_table


@dataclass(frozen=True)
class Protocol:
    """A published protocol and its reduced version here.

    Attributes:
        name: short name.
        source: paper or repository, and the location of its table.
        full: the published budget.
        here: the budget here, in words.
        data: makes the federation.
        methods: methods to run besides the baselines.
        published: method -> published accuracy in percent.
        options: options of :func:`plures.compare`.
    """

    name: str
    source: str
    full: str
    here: str
    data: Callable[[], Federation]
    methods: tuple[Any, ...]
    published: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict)

    def table(self, folder: Path) -> str:
        """Run it."""
        result = compare(self.data(), self.methods, out=folder / self.name, listener=listen, **self.options)
        return "\n\n".join([f"## {self.source}", f"Published: {self.full}. Here: {self.here}.", self.beside(result),
                            markdown_table(result)])  # fmt: skip

    def beside(self, result: Comparison) -> str:
        """Our sample-weighted accuracy next to the published one."""
        told = ["| method | published | here |", "| --- | ---: | ---: |"]
        for method in result.methods:
            row = result.row(method.name)
            told.append(f"| {method.title} | {self.published.get(method.name, '-')} | {100 * row.weighted:.1f} |")
        return "\n".join(told)


def rotated(examples: int, clients: int) -> Federation:
    """MNIST, with a quarter of the clients rotated by each of 0, 90, 180 and 270 degrees."""
    upright = load("mnist", partition="iid", clients=clients, examples=examples, standardize=False)
    return rotate(upright, (0, 90, 180, 270))


def ifca_of_four() -> Method:
    """IFCA with as many models as there are angles."""
    return ifca(4)


PFLLIB = "20 clients, all in each round, 2000 rounds, batch 10, 1 epoch, learning rate 0.005, best round on test data"
LESS = "5000 of the pictures, 15 rounds, learning rate 0.02, 1 seed, round chosen on validation data"
BUDGET = {"rounds": 15, "seeds": 1, "tune_rounds": 0, "learning_rates": (0.02,), "batch_size": 10}
PROTOCOLS = (
    Protocol(
        "pfllib-dirichlet",
        "PFLlib, Fashion-MNIST, Dirichlet 0.1 (docs/benchmark.html)",
        PFLLIB,
        LESS,
        partial(
            load, "fashion_mnist", partition="dirichlet_per_class", alpha=0.1, clients=20, examples=5000, min_size=40
        ),
        ("ditto", "fedper", "fedrep", "fedbabu", "apfl"),
        {"fedavg": 85.85, "ditto": 97.47, "fedper": 97.44, "fedrep": 97.56, "fedbabu": 97.46, "apfl": 97.25},
        {**BUDGET, "model": "fedavg_cnn"},
    ),
    Protocol(
        "pfllib-two-classes",
        "PFLlib, Fashion-MNIST, two classes for each client (docs/benchmark.html)",
        PFLLIB,
        LESS,
        partial(load, "fashion_mnist", partition="pathological", classes_per_client=2, clients=20, examples=5000),
        ("ditto", "fedper", "fedrep", "fedbabu", "apfl"),
        {"fedavg": 80.41, "ditto": 99.44, "fedper": 99.47, "fedrep": 99.56, "fedbabu": 99.41, "apfl": 99.41},
        {**BUDGET, "model": "fedavg_cnn"},
    ),
    Protocol(
        "ifca",
        "IFCA, rotated MNIST, four clusters (Ghosh et al. 2020, Table 1)",
        "1200 clients with 200 pictures, 784-200-10, 10 full-batch steps of 0.1, 300 rounds, 5 seeds",
        "60 clients with about 200 pictures, the same network and steps, 100 rounds, 1 seed",
        partial(rotated, 12000, 60),
        (ifca_of_four,),
        {"ifca_of_four": 95.25, "fedavg": 89.73, "local": 80.05},
        {**BUDGET, "rounds": 100, "learning_rates": (0.1,), "batch_size": None, "steps": 10, "model": "mlp"},
    ),
    Protocol(
        "fedbn",
        "FedBN, digits of several origins (Li et al. 2021, Table of the appendix)",
        "5 clients with 743 train pictures, 300 rounds of 1 epoch, learning rate 0.01, batch 32; the published "
        "column is the mean over its USPS, MNIST-M and MNIST clients",
        "3 clients (SVHN and SynthDigits are not at hand; MNIST is blended with patches of CIFAR-10), the network at a "
        "quarter of its width, 40 rounds, 1 seed",
        partial(load, "digits"),
        ("fedbn", "fedprox"),
        {"fedbn": 90.62, "fedavg": 89.43, "local": 89.10, "fedprox": 89.32},
        {**BUDGET, "rounds": 40, "learning_rates": (0.01,), "batch_size": 32, "model": "fedbn_cnn"}
        | {"model_options": {"width": 0.25}},
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    parts = options.out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    for protocol in PROTOCOLS:
        if not options.only or protocol.name in options.only:
            Console().print(protocol.name)
            table = protocol.table(Path("runs") / "protocols")
            (parts / f"{protocol.name}.md").write_text(table + "\n", encoding="utf-8")
    made = [parts / f"{protocol.name}.md" for protocol in PROTOCOLS]
    tables = [file.read_text("utf-8").strip() for file in made if file.exists()]
    told = ["Made by `python -m benchmarks.protocols`.", *tables]
    options.out.with_suffix(".md").write_text("\n\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
