"""Is the advice of `plures diagnose` any good? Its rates on made-up federations, and against what comparisons find.

python -m benchmarks.advice [--only heart iid ...] [--rates 20] [--out docs/diagnosis.md]

Writes two tables into the document, between their markers. Finished comparisons in runs/advice are not run again.

The criteria were fixed before the comparisons were run, except *plain right*: until the results were seen, it required
fine-tuned FedAvg. But the diagnosis also calls FedAvg without fine-tuning plain, so that did not test what it says.

* One method represents each family, tuned and run at the budget below. The best method is the one with the best mean
  over clients of the test metric. A method is *as good as the best* if the 95 % interval (Student's t) of the clients'
  differences to the best, each averaged over seeds, contains zero.
* *Hit*: the method of the first family of the ranking is as good as the best.
* *Plain right*: the diagnosis says that nothing promises more than FedAvg, fine-tuned or not, and one of the two is as
  good as the best; or it says otherwise, and neither is.
* For comparison: the hits of a family drawn at random, and of always fine-tuning.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tests.diagnose.worlds import CLIENTS, FIRES, WORLDS

from benchmarks.families import fashion, listen, noisy
from plures import PluresError, compare, load
from plures.diagnose import FAMILIES, Diagnosis, diagnose, fires
from plures.diagnose.result import LEVEL
from plures.errors import PluresWarning
from plures.evaluate import Comparison
from plures.evaluate.summary import interval
from plures.federation import Federation, brightness, from_arrays
from plures.federation.datasets.domains import rotated_mnist
from plures.federation.seeding import generator
from plures.files import write_text

console = Console()
COMPETITORS: Mapping[str, str] = {
    "finetune": "fedavg_ft",
    "global": "fedavg",
    "partial": "fedrep",
    "norm": "lgfedavg",
    "regularised": "ditto",
    "clustered": "ifca",
    "mixing": "fedala",
    "calibration": "prior_shift",
    "quality": "debias",
    "local": "local",
}
"""Family to the method that stands for it; calibration needs classes, and weights need a report on quality."""
BUDGET: Mapping[str, Any] = {
    "rounds": 20,
    "seeds": 2,
    "tune_rounds": 4,
    "learning_rates": (0.03, 0.1, 0.3),
    "model": "mlp",
}


@dataclass(frozen=True)
class Case:
    """A federation for which the advice is checked.

    Attributes:
        name: name of its folder and of its line.
        what: a description in words.
        data: makes the federation.
        options: options of the comparison, besides the budget.
    """

    name: str
    what: str
    data: Callable[[], Federation]
    options: Mapping[str, Any] = field(default_factory=dict)


def concepts(groups: int, seed: int = 0, clients: int = 12, rows: int = 150) -> Federation:
    """Gaussian inputs whose five classes are cut along other directions in each group of clients."""
    inputs, targets, owner = [], [], []
    for client in range(clients):
        rng, own = generator(seed, "concepts", client), generator(seed, "directions", client % groups)
        x = rng.standard_normal((rows, 10))
        inputs.append(x)
        targets.append((x @ own.standard_normal((10, 5)) + 0.5 * rng.standard_normal((rows, 5))).argmax(1))
        owner += [f"c{client:02}"] * rows
    made = from_arrays(np.concatenate(inputs).astype(np.float32), np.concatenate(targets), np.array(owner))
    group = tuple(f"group {client % groups}" for client in range(clients))
    return replace(made, name=f"{groups} concepts", metadata={"group": group})


def lit() -> Federation:
    """Fashion-MNIST dealt at random, each client's pictures brighter or darker."""
    return brightness(fashion("iid", 3000)(), (0.3, 1.0, 3.0), offsets=(1.0, 0.0, -1.0))


def spread(clients: int, rows: int) -> Federation:
    """UCI HAR with little data."""
    people = load("har")
    few = people.subset(people.clients[:clients])
    return replace(few, splits={**few.splits, "train": type(few.splits["train"]).of(
        [own[:rows] for own in few.splits["train"]]
    )})  # fmt: skip


CASES: tuple[Case, ...] = (
    Case("heart", "4 hospitals", partial(load, "heart")),
    Case("har", "15 people, 60 windows each", partial(spread, 15, 60)),
    Case("noisy-har", "30 people, a third with noisy sensors", partial(noisy, {1: 4.0})),
    Case("iid", "Fashion-MNIST dealt at random", fashion("iid", 2000)),
    Case("dirichlet-0.1", "Fashion-MNIST, Dirichlet 0.1 for each client", fashion("dirichlet", 3000, alpha=0.1)),
    Case("dirichlet-1", "Fashion-MNIST, Dirichlet 1 for each client", fashion("dirichlet", 3000, alpha=1.0)),
    Case("two-classes", "Fashion-MNIST, two classes for each client",
         fashion("pathological", 3000, classes_per_client=2)),
    Case("quantity", "Fashion-MNIST, sizes by Dirichlet 0.5", fashion("quantity", 3000, alpha=0.5)),
    Case("brightness", "Fashion-MNIST, three kinds of lighting", lit),
    Case("rotations", "MNIST turned by four angles", partial(rotated_mnist, clients=20, examples=150)),
    Case("three-concepts", "three groups that label differently", partial(concepts, 3)),
    Case("own-concepts", "twelve clients that all label differently", partial(concepts, 12)),
    Case("landmine", "29 mine fields of two kinds", partial(load, "landmine")),
    Case("air", "12 stations in Beijing, regression", partial(load, "beijing_air", every=48),
         {"learning_rates": (0.003, 0.01, 0.03)}),
    Case("parkinsons", "42 patients, regression", partial(load, "parkinsons"),
         {"learning_rates": (0.003, 0.01, 0.03)}),
    Case("school", "139 schools, regression", partial(load, "school"),
         {"learning_rates": (0.003, 0.01, 0.03)}),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the advice said and what the comparison found.

    Attributes:
        case: the case.
        found: the diagnosis.
        compared: the comparison.
        families: the families that took part.
    """

    case: Case
    found: Diagnosis
    compared: Comparison
    families: tuple[str, ...]

    @property
    def first(self) -> str:
        """The first family of the ranking that took part."""
        return next(f.family for f in self.found.advice.ranking if f.family in self.families)

    @property
    def best(self) -> str:
        """The family of the best method."""
        sign = 1 if self.compared.metric.higher else -1
        return max(self.families, key=lambda family: sign * self.compared.row(COMPETITORS[family]).mean)

    def as_good(self, family: str) -> bool:
        """Whether a family's method is the best, or its clients' differences to the best may be chance."""
        if family == self.best:
            return True
        metric = self.compared.metric.name
        of, best = (self.compared.method(COMPETITORS[f]).per_client(metric) for f in (family, self.best))
        difference = (of - best)[np.isfinite(of - best)]
        mean, width = interval(difference.tolist())
        return bool(abs(mean) <= width)

    @property
    def hit(self) -> bool:
        return self.as_good(self.first)

    @property
    def plain_right(self) -> bool:
        plain = self.as_good("finetune") or self.as_good("global")
        return self.found.advice.nothing_beats_fedavg == plain

    @property
    def luck(self) -> float:
        """Share of the families that would have been a hit."""
        return float(np.mean([self.as_good(family) for family in self.families]))


def check(case: Case, folder: Path) -> Outcome:
    """Diagnose, then compare."""
    federation = case.data()
    found = diagnose(federation)
    write_text(folder / "diagnosis" / f"{case.name}.json", found.to_json())
    missing = {
        "calibration": not federation.task.classes,
        "quality": federation.task.kind == "regression" or "reliability" not in federation.metadata,
    }
    families = tuple(family for family in COMPETITORS if not missing.get(family))
    methods = [COMPETITORS[family] for family in families]
    compared = compare(federation, methods, out=folder / case.name, listener=listen, **{**BUDGET, **case.options})
    return Outcome(case, found, compared, families)


def table(outcomes: Sequence[Outcome]) -> str:
    """The lines, then how often."""
    told = [
        "| federation | differs in | first advice | best method | advised method | fine-tuned | hit | says plain | "
        "right |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in outcomes:
        kinds = [kind for kind, there in fires(one.found).items() if there and kind != "missing"]

        def score(family: str, one: Outcome = one) -> str:
            value = one.compared.row(COMPETITORS[family]).mean
            shown = f"{100 * value:.1f} %" if one.compared.metric.percent else f"{value:.3f}"
            return f"{one.compared.method(COMPETITORS[family]).title} {shown}"

        told.append(
            f"| {one.case.what} | {', '.join(kinds) or '-'} | {FAMILIES[one.first].title} | {score(one.best)} | "
            f"{score(one.first)} | {score('finetune')} | {yes(one.hit)} | "
            f"{yes(one.found.advice.nothing_beats_fedavg)} | {yes(one.plain_right)} |"
        )
    count = len(outcomes)
    hits, right = sum(o.hit for o in outcomes), sum(o.plain_right for o in outcomes)
    tuned, luck = sum(o.as_good("finetune") for o in outcomes), float(np.mean([o.luck for o in outcomes]))
    told += [
        "",
        f"**Hits: {hits} of {count}.** Always fine-tuning would have {tuned} of {count}, a family drawn at random "
        f"{luck * count:.1f} of {count}. Whether anything beats FedAvg, fine-tuned or not, "
        f"was said rightly in {right} of {count}.",
        "",
        "Budget: " + ", ".join(f"{key} {value}" for key, value in BUDGET.items()) + "; smaller learning rates for "
        "regression.",
    ]
    return "\n".join(told)


def yes(value: bool) -> str:
    return "yes" if value else "no"


def rates(seeds: int) -> str:
    """How often each measure fires where exactly one difference exists."""
    kinds = ("labels", "features", "concept", "clusters", "quantity", "quality")
    told = [f"| what differs ({seeds} seeds) | {' | '.join(kinds)} |", "| --- |" + " ---: |" * len(kinds)]
    for name, make in WORLDS.items():
        fired = Counter[str]()
        for seed in range(seeds):
            fired.update(kind for kind, there in fires(diagnose(make(seed), seed=seed)).items() if there)
        cells = [f"**{fired[k]}**" if k in FIRES[name] else str(fired[k]) for k in kinds]
        told.append(f"| {name} | {' | '.join(cells)} |")
        console.print(f"  {name}: {dict(fired)}")
    told += [
        "",
        f"{CLIENTS} clients; bold: should fire in all seeds, all others in none. Each test has the level {LEVEL:g}.",
    ]
    return "\n".join(told)


def put(document: Path, marker: str, text: str) -> None:
    """Replace the text between two markers of a document."""
    begin, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    whole = document.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise PluresError(f"{document} has no markers {begin} and {end}: put them where the table belongs")
    before, rest = whole.split(begin, 1)
    write_text(document, f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/diagnosis.md"))
    parser.add_argument("--runs", type=Path, default=Path("runs/advice"))
    parser.add_argument("--only", nargs="+", default=[], help=f"cases: {', '.join(c.name for c in CASES)}")
    parser.add_argument("--rates", type=int, default=0, help="seeds of the made-up federations; 0 leaves that table")
    parser.add_argument("--no-cases", action="store_true", help="make the table of rates only")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    warnings.simplefilter("ignore", PluresWarning)
    if options.rates:
        put(options.out, "rates", rates(options.rates))
    outcomes = []
    for case in () if options.no_cases else CASES:
        if options.only and case.name not in options.only:
            continue
        console.print(case.name)
        try:
            outcomes.append(check(case, options.runs))
        except PluresError as error:
            console.print(f"  skipped: {error}", style="yellow")
            continue
        put(options.out, "advice", table(outcomes))


if __name__ == "__main__":
    main()
