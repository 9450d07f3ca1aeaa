"""FLamby's Fed-TCGA-BRCA, survival with breast cancer in six regions, beside the published C-indices.

python -m benchmarks.tcga --out benchmarks/results/tcga

The protocol is FLamby's: its test patients, a linear Cox model, the loss of batches of eight, five rounds of a hundred
updates, seeds 42 to 46, the last round, and the standard deviation over seeds. Nothing is tuned or chosen here. It
takes about four minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from plures import SGD, Run, Training, load, score
from plures.evaluate import pooled
from plures.federation import Federation, Split, SplitRule
from plures.method import Adam, Method
from plures.method.optimizer import Optimizer
from plures.methods import fedavg, fedopt, fedprox, local, scaffold
from plures.models import logistic

SEEDS = range(42, 47)


@dataclass(frozen=True)
class Row:
    """A row of FLamby's table.

    Attributes:
        title: its name.
        method: the method with its published settings.
        optimizer: the local optimizer.
        published: the pooled C-index, or "-".
        rounds: rounds.
        steps: updates of a round; ``None`` for one epoch.
        standardize: whether all columns are standardised; FLamby gives age in years.
        trained: the region whose patients alone are trained on, ``all`` for one model of all of them together; ``None``
            for the federation.
    """

    title: str
    method: Callable[[], Method]
    optimizer: Optimizer
    published: str
    rounds: int = 5
    steps: int | None = 100
    standardize: bool = False
    trained: str | None = None


adaptive = partial(fedopt, tau=1e-8)
ROWS = (
    Row("FedAdam", partial(adaptive, "adam", 0.1, (0.9, 0.999)), SGD(0.01), ".842±.015"),
    Row("FedYogi", partial(adaptive, "yogi", 0.1, (0.9, 0.999)), SGD(0.01), ".842±.015"),
    Row("FedAdagrad", partial(adaptive, "adagrad", 1.0, (0.9, 0.999)), SGD(0.01), ".834±.007"),
    Row("FedAvg", fedavg, SGD(0.1), ".735±.157"),
    Row("FedProx", partial(fedprox, 0.1), SGD(0.1), ".717±.145"),
    Row("Scaffold", scaffold, SGD(0.01), ".699±.031"),
    Row("FedAvg, all columns standardised", fedavg, SGD(0.1), "-", standardize=True),
    Row("FedProx, all columns standardised", partial(fedprox, 0.1), SGD(0.1), "-", standardize=True),
    Row("Pooled data", local, Adam(0.1), ".704±.102", 30, None, trained="all"),
    *(
        Row(f"{region} alone", local, Adam(0.1), published, 30, None, trained=region)
        for region, published in zip(
            ("Northeast", "South", "West", "Midwest", "Europe", "Canada"),
            (".695", ".728", ".604", ".565", ".725", ".710"),
            strict=True,
        )
    ),
)


def together(federation: Federation, trained: str) -> Federation:
    """One client with the test patients of all regions, and the train patients of one or ``all``."""
    train = federation.splits["train"]
    rows = train.rows if trained == "all" else train[federation.clients.index(trained)]
    splits = {"train": rows, "validation": rows[:0], "test": federation.splits["test"].rows}
    return replace(federation, clients=("all",), splits={name: Split.of([own]) for name, own in splits.items()})


def indices(row: Row) -> Iterator[tuple[float, float]]:
    """The pooled C-index and the mean over regions for each seed."""
    regions = load("tcga_brca", split=SplitRule(validation=0), standardize=row.standardize)
    federation = regions if row.trained is None else together(regions, row.trained)
    training = Training(row.rounds, batch_size=8, steps=row.steps, optimizer=row.optimizer)
    for seed in SEEDS:
        run = Run(federation, partial(logistic, federation.features, 1), row.method(), training, seed=seed)
        for _ in run.rounds():
            pass
        yield pooled(run, "test")["c_index"], float(np.nanmean(score(run, "test").values["c_index"]))


def cell(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}±{np.std(values):.3f}".replace("0.", ".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    told = ["| row | published, pooled | here, pooled | here, mean over regions |", "| --- | ---: | ---: | ---: |"]
    for row in ROWS:
        whole, macro = zip(*indices(row), strict=True)
        mean = cell(macro) if row.trained is None else "-"
        told.append(f"| {row.title} | {row.published} | {cell(whole)} | {mean} |")
        Console().print(told[-1])
    page = [
        "Made by `python -m benchmarks.tcga`.",
        "C-index on FLamby's test patients; FLamby's settings; means and standard deviations over seeds 42 to 46. "
        "*Pooled* compares patients of all regions with each other. FLamby's cyclic training is not in plures.",
        "FLamby gives age in years beside columns of 0 and 1, so a rate of 0.1 is unstable. That is most of what "
        "separates FedAvg and FedProx from the adaptive rows, as their rows with standardised columns show.",
        "\n".join(told),
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
