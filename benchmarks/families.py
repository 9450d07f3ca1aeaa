"""For every family of methods, real data on which it should help according to theory, and data on which it should not.

python -m benchmarks.families --out benchmarks/results/families [--only clusters ...]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from plures import PluresError, Run, Training, compare, load
from plures.evaluate import ComparisonProgress, cold_start_curve, fit, follow
from plures.federation import Federation, Stream, degrade, seasons
from plures.federation.datasets.domains import rotated_mnist
from plures.federation.partition import How
from plures.federation.stream import rotated
from plures.method import SGD, Method
from plures.methods import (
    Entry,
    community,
    energy,
    ewc,
    fedavg,
    fedavg_ft,
    fedem,
    fedprox,
    gradient_clusters,
    hierfavg,
    ifca,
    metadata_clusters,
    pfedhn,
    quality,
)
from plures.models import ModelFactory, default_model, mlp
from plures.report import headline, markdown_table

Table = Callable[[Path], str]
Model = Callable[[Federation], ModelFactory]
console = Console()


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        family: family of the methods.
        name: name of its folder.
        expected: what theory predicts.
        why: the reason, in a sentence.
        table: runs the experiment in a folder and returns its table.
    """

    family: str
    name: str
    expected: Literal["helps", "does not help"]
    why: str
    table: Table


def compared(data: Callable[[], Federation], methods: Sequence[Any], **options: Any) -> Table:
    """A comparison with the baselines."""

    def table(folder: Path) -> str:
        budget = {"rounds": 20, "seeds": 2, "tune_rounds": 5, "learning_rates": (0.03, 0.1, 0.3), **options}
        result = compare(data(), methods, out=folder, listener=listen, **budget)
        told = ", ".join(f"{key} {value}" for key, value in budget.items() if not callable(value))
        return f"{markdown_table(result)}\n\n{headline(result)}\n\nBudget: {told}."

    return table


def listen(stage: ComparisonProgress) -> None:
    """Print a comparison's progress, once per run."""
    if stage.point is not None and stage.point.round == stage.rounds:
        console.print(f"  {stage.done}/{stage.total} {stage.method} {stage.what}: {stage.point.validation:.3f}")


def streamed(
    data: Callable[[], Stream], methods: Mapping[str, Method], rounds: int, lr: float, model: Model = default_model
) -> Table:
    """Experiences of a stream: how well the current one is learned, and how much of earlier ones is retained."""

    def table(folder: Path) -> str:
        stream = data()
        training = Training(rounds=rounds, batch_size=32, optimizer=SGD(lr))
        told = [
            f"| method | {stream[0].task.metrics[0].title}, all experiences | just after learning | forgetting |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, method in methods.items():
            result = follow(stream, model(stream[0]), method, training)
            means = (result.final, result.adaptation, result.forgetting)
            told.append(f"| {name} | {' | '.join(f'{mean.mean():.3f}' for mean in means)} |")
        return (
            "\n".join(told)
            + f"\n\nBudget: {len(stream)} experiences, {rounds} rounds each, learning rate {lr}, 1 seed."
        )

    return table


def cold(data: Callable[[], Federation], unseen: Callable[[Federation], Sequence[str]],
         methods: Mapping[str, Method], rounds: int, lr: float) -> Table:  # fmt: skip
    """Clients that never took part, with 0, 1, 5 and 20 labelled examples."""

    def table(folder: Path) -> str:
        federation = data()
        seen, held = federation.hold_out(unseen(federation))
        training = Training(rounds=rounds, optimizer=SGD(lr))
        told = ["| method | 0 labels | 1 | 5 | 20 |", "| --- | ---: | ---: | ---: | ---: |"]
        for name, method in methods.items():
            run = Run(seen, perceptron(seen), method, training)
            fit(run, name, every=rounds)
            summaries = cold_start_curve(run, held).summaries().values()
            told.append(f"| {name} | {' | '.join(f'{100 * summary.mean:.1f}' for summary in summaries)} |")
        return "\n".join(told) + f"\n\n{len(held)} held-out clients of {len(federation)}; {rounds} rounds, 1 seed."

    return table


def fashion(how: How, examples: int = 4000, **options: Any) -> Callable[[], Federation]:
    """Fashion-MNIST among 20 clients."""
    return partial(load, "fashion_mnist", partition=how, clients=20, examples=examples, **options)


def configured(entry: Entry, **parameters: Any) -> Entry:
    """A method of the catalogue with other defaults, which are not tuned."""
    space = {name: values for name, values in entry.space.items() if name not in parameters}
    return replace(entry, build=partial(entry.build, **parameters), space=space)


def noisy(noise: Mapping[int, float]) -> Federation:
    """UCI HAR with sensor noise for some of the people, in units of the channels' variances."""
    people = load("har")
    return degrade(people, noise={client: noise.get(number % 3, 0.0) for number, client in enumerate(people.clients)})


def perceptron(federation: Federation) -> ModelFactory:
    """One hidden layer of 200 units."""
    return partial(mlp, federation.features, federation.task.outputs)


def every(nth: int) -> Callable[[Federation], Sequence[str]]:
    """Every n-th client."""
    return lambda federation: federation.clients[::nth]


def edges(by_angle: bool) -> Federation:
    """Rotated MNIST whose clients have an edge server: one per angle, or one assigned in turn."""
    turned = rotated_mnist(clients=20, examples=150)
    groups = [str(a) for a in turned.metadata["rotation"]] if by_angle else [str(i // 5) for i in range(20)]
    return replace(turned, metadata={**turned.metadata, "group": tuple(groups)})


MLP = {"model": "mlp"}
SAME = "Clients are identically distributed: nothing is gained by a model of one's own."
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "Regularised and multi-task", "school", "helps",
        "139 schools of about 70 train pupils, each a little different: too few for a model alone; shrinking towards "
        "the common model borrows strength.",
        compared(partial(load, "school"), ("hierarchical_bayes", "mrmtl", "ditto"), model="logistic", rounds=80,
                 learning_rates=(0.01, 0.03, 0.1), tune_rounds=20),
    ),
    Experiment(
        "Regularised and multi-task", "same-regularised", "does not help", SAME,
        compared(fashion("iid"), ("hierarchical_bayes", "mrmtl", "ditto"), model="logistic"),
    ),
    Experiment(
        "Regularised and multi-task", "seasons", "helps",
        "Beijing's air by season: what is learned in one season is forgotten in the next, unless the Fisher "
        "information holds it.",
        streamed(lambda: seasons(load("beijing_air", every=12)),
                 {"FedAvg": fedavg(), "FedProx": fedprox(0.1), "EWC": ewc()}, 10, 0.003),
    ),
    Experiment(
        "Regularised and multi-task", "turned-digits", "helps",
        "Digits that are turned by 90, then by 180 degrees: the network has room for all, and should not forget.",
        streamed(lambda: rotated(load("mnist", partition="iid", clients=10, examples=2000), (0, 90, 180)),
                 {"FedAvg": fedavg(), "FedProx": fedprox(0.1), "EWC, lam=10": ewc(10.0), "EWC, lam=100": ewc(100.0)},
                 10, 0.1, perceptron),
    ),
    Experiment(
        "Split and modular models", "four-classes", "helps",
        "Four of ten classes and 60 train pictures for each client: the representation is common, the decision is not.",
        compared(fashion("pathological", 2000, classes_per_client=4), ("fedper", "fedrod", "personal_moe"), **MLP),
    ),
    Experiment(
        "Split and modular models", "languages", "helps",
        "Streamers of seven languages, each graph cut in two: neighbourhoods mean the same everywhere, words do not; "
        "adapters are shared by language.",
        compared(partial(load, "twitch", parts=2, examples=500), ("fedper", configured(community, column="language")),
                 model="gcn", model_options={"hidden": 32, "adapter": 8}, learning_rates=(0.1, 0.3)),
    ),
    Experiment(
        "Split and modular models", "same-modular", "does not help", SAME,
        compared(fashion("iid"), ("fedper", "fedrod", "personal_moe"), **MLP),
    ),
    Experiment(
        "Clusters", "rotations", "helps",
        "Four angles, four distributions: the average model serves none, a cluster has four times a client's data.",
        compared(partial(rotated_mnist, clients=20, examples=150),
                 (configured(ifca, clusters=4), configured(gradient_clusters, clusters=4),
                  configured(metadata_clusters, column="rotation"), configured(fedem, components=4)),
                 learning_rates=(0.1, 0.3), **MLP),
    ),
    Experiment(
        "Clusters", "landmine", "helps",
        "29 fields of two kinds, foliated and bare. Mines are rare (6 %), so look at the harmed clients and not only "
        "at accuracy.",
        compared(partial(load, "landmine"), (configured(ifca, clusters=2),
                 configured(metadata_clusters, column="terrain"), "hypcluster"), **MLP),
    ),
    Experiment(
        "Clusters", "same-clusters", "does not help", SAME,
        compared(fashion("iid"), ("ifca", "gradient_clusters"), **MLP),
    ),
    Experiment(
        "Selection and mixing", "dirichlet", "helps",
        "Each class is dealt to the clients by a Dirichlet law of 0.5, 60 train pictures each: some are alike.",
        compared(fashion("dirichlet_per_class", 2000, alpha=0.5), ("fedamp", "fedala", "fedfomo", "knnper"), **MLP),
    ),
    Experiment(
        "Selection and mixing", "same-mixing", "does not help", SAME,
        compared(fashion("iid"), ("fedamp", "fedala", "knnper"), **MLP),
    ),
    Experiment(
        "Generation and cold start", "angles-cold", "helps",
        "The angle is known before any label: a model generated from it, or that of its community, fits at once.",
        cold(partial(rotated_mnist, clients=20, examples=150), every(5),
             {"FedAvg": fedavg(), "metadata clusters": metadata_clusters("rotation"),
              "pFedHN, from the angle": pfedhn(columns=("rotation",)), "FedAvg + fine-tuning": fedavg_ft()}, 30, 0.1),
    ),
    Experiment(
        "Generation and cold start", "drawers-cold", "helps",
        "Drawers of eight alphabets: the alphabet says which characters occur.",
        cold(partial(load, "omniglot_small"), every(10),
             {"FedAvg": fedavg(), "metadata clusters": metadata_clusters("alphabet"),
              "pFedHN, from the alphabet": pfedhn(columns=("alphabet",)),
              "FedAvg + fine-tuning": fedavg_ft()}, 20, 0.1),
    ),
    Experiment(
        "Generation and cold start", "nothing-known-cold", "does not help",
        "What is known of a client, a group dealt in turn, has nothing to do with its angle.",
        cold(partial(edges, False), every(5),
             {"FedAvg": fedavg(), "metadata clusters": metadata_clusters("group"),
              "pFedHN, from the group": pfedhn(columns=("group",)), "FedAvg + fine-tuning": fedavg_ft()}, 30, 0.1),
    ),
    Experiment(
        "Representation", "dirichlet-representation", "helps",
        "Each class is dealt to the clients by a Dirichlet law of 0.5, 60 train pictures each: features drift.",
        compared(fashion("dirichlet_per_class", 2000, alpha=0.5), ("moon", "fedproto", "self_distillation"), **MLP),
    ),
    Experiment(
        "Representation", "heart-representation", "does not help",
        "Thirteen clinical columns: there is little to represent.",
        compared(partial(load, "heart"), ("moon", "fedproto", "self_distillation"), **MLP),
    ),
    Experiment(
        "After training", "heart-threshold", "helps",
        "Four hospitals where 36 to 93 % of the patients are ill: one threshold cannot fit them all.",
        compared(partial(load, "heart"), ("threshold", "prior_shift", "temperature", "eefed"), **MLP),
    ),
    Experiment(
        "After training", "same-after", "does not help", SAME,
        compared(fashion("iid"), ("wise_ft", "temperature", "eefed"), **MLP),
    ),
    Experiment(
        "Data that differ in quality", "noisy-sensors", "helps",
        "A third of the people wear sensors with four times the variance in noise; the others should not follow them.",
        compared(partial(noisy, {1: 4.0}), (configured(quality, column="reliability"), "debias"), rounds=15),
    ),
    Experiment(
        "Data that differ in quality", "equal-sensors", "does not help",
        "Everybody's sensors are equally noisy: the weights are those of FedAvg.",
        compared(partial(noisy, {0: 1.0, 1: 1.0, 2: 1.0}), (configured(quality, column="reliability"), "debias"),
                 rounds=15),
    ),
    Experiment(
        "Edge and hierarchy", "edges-alike", "helps",
        "Edges whose clients are alike (one angle each): the cloud average costs more than it brings.",
        compared(partial(edges, True), (configured(hierfavg, period=5), configured(energy, gamma=1.0), "digital_twin"),
                 participation="uniform", fraction=0.5, **MLP),
    ),
    Experiment(
        "Edge and hierarchy", "edges-mixed", "does not help",
        "Edges that hold every angle: an edge is FedAvg on fewer clients.",
        compared(partial(edges, False), (configured(hierfavg, period=5), configured(energy, gamma=1.0), "digital_twin"),
                 participation="uniform", fraction=0.5, **MLP),
    ),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="names of experiments")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    parts = options.out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    for experiment in EXPERIMENTS:
        if options.only and experiment.name not in options.only:
            continue
        console.print(f"{experiment.family}: {experiment.name}")
        begun = time.perf_counter()
        try:
            table = experiment.table(Path("runs") / "families" / experiment.name)
        except PluresError as error:
            console.print(f"  skipped: {error}", style="yellow")
            continue
        console.print(f"  {time.perf_counter() - begun:.0f} s")
        (parts / f"{experiment.name}.md").write_text(table + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(document(parts), encoding="utf-8")


def document(parts: Path) -> str:
    """A document with all finished tables."""
    told = ["Made by `python -m benchmarks.families`; every experiment says its budget."]
    for experiment in EXPERIMENTS:
        file = parts / f"{experiment.name}.md"
        if file.exists():
            told.append(f"## {experiment.family}: {experiment.name} ({experiment.expected})\n\n{experiment.why}")
            told.append(file.read_text(encoding="utf-8").strip())
    return "\n\n".join(told) + "\n"


if __name__ == "__main__":
    main()
