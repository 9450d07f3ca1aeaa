"""Speed of one federated round, and of evaluating all personal models, against two plain PyTorch loops.

The tight loop does the same work with one model, no data loader, batches gathered by index from a flat tensor,
``torch.autograd.grad`` and an in-place update. The conventional loop is the usual code of the field: every client has
a deep copy of the model, lists of tensor pairs read by a ``DataLoader``, and an optimizer of ``torch.optim``, and is
tested on its training and test data each round. In the comparison with that loop, training and evaluation are added.

All are timed in turn in the same process. Each setting has its own process, whose peak memory is read after a first
round of the tight loop and after a first round of plures. ``auto`` chooses for a run of 500 rounds.

    python -m benchmarks.speed --out benchmarks/results/speed
    python -m benchmarks.speed --out benchmarks/results/speed --models logistic --clients 20 --batches 10

The second command measures some lines; those that the files have of other settings stay as they are.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from plures import Execution, Federation, Run, Training
from plures.evaluate import score
from plures.federation import SPLITS, Split
from plures.method import SGD
from plures.methods import fedavg, local
from plures.models import fedavg_cnn, logistic, mlp
from plures.run import Machine
from plures.tasks import Classification

TESTED, RATE = 4_000, 0.01
ROUNDS = 500
"""Number of rounds of the run that ``auto`` chooses for."""
EXAMPLES = {"logistic": 18_742, "mlp": 18_742, "cnn": 4_000}
"""Training examples of all clients together; fewer for the slow network."""
MODELS = {"logistic": logistic, "mlp": partial(mlp, hidden=(100,)), "cnn": fedavg_cnn}


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    model: str
    clients: int
    batch: int
    sizes: str


@dataclass
class Measured:
    """Seconds (medians) and megabytes of one setting.

    Attributes:
        reference: a round of the tight loop.
        one: a round of plures with one client at a time.
        stacked: a round with stacked clients and recorded steps, with the best chunk size that was tried.
        compiled: the same compiled.
        chunk: clients stacked at once.
        compiled_chunk: clients stacked at once when compiled.
        compilation: seconds of the first compiled round.
        evaluation_reference: accuracy of all personal models with the tight loop.
        evaluation: the same with plures.
        conventional: training and evaluation of a round in the conventional loop.
        auto: a round of plures with what ``auto`` chose.
        auto_both: training and evaluation of a round with that choice.
        taken: what ``auto`` chose.
        choosing: seconds that the choice took, including compilations.
        memory_reference: peak of the process after a round of the tight loop.
        memory: peak of the process after the stacked rounds.
    """

    setting: Setting
    reference: float
    one: float
    stacked: float
    compiled: float
    chunk: int
    compiled_chunk: int
    compilation: float
    evaluation_reference: float
    evaluation: float
    conventional: float
    auto: float
    auto_both: float
    taken: str
    choosing: float
    memory_reference: float
    memory: float


def federation(setting: Setting) -> Federation:
    """MNIST-shaped random data, in equal shares or in shares drawn from a Dirichlet distribution."""
    generator = np.random.default_rng(0)
    weights = np.ones(setting.clients) if setting.sizes == "equal" else generator.dirichlet(np.ones(setting.clients))
    tests = np.full(setting.clients, TESTED // setting.clients)
    trains = np.maximum((weights / weights.sum() * EXAMPLES[setting.model]).astype(int), 2)
    owned = torch.arange(int((trains + tests).sum())).split((trains + tests).tolist())
    split = {
        "train": Split.of([rows[:n] for rows, n in zip(owned, trains, strict=True)]),
        "test": Split.of([rows[n:] for rows, n in zip(owned, trains, strict=True)]),
    }
    total = int((trains + tests).sum())
    return Federation(
        name="random",
        task=Classification(tuple("0123456789")),
        inputs=torch.from_numpy(generator.normal(size=(total, 1, 28, 28)).astype(np.float32)),
        targets=torch.from_numpy(generator.integers(0, 10, total)),
        clients=tuple(f"{i:04d}" for i in range(setting.clients)),
        splits={name: split.get(name, split["test"]) for name in SPLITS},
    )


def tight_round(model: nn.Module, data: Federation, batch: int) -> list[Tensor]:
    """FedAvg, one epoch on every client, as directly as PyTorch allows."""
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    mean = [torch.zeros_like(p) for p in start]
    sizes = data.splits["train"].sizes.tolist()
    for rows, size in zip(data.splits["train"], sizes, strict=True):
        with torch.no_grad():
            torch._foreach_copy_(parameters, start)
        for index in rows[torch.randperm(size)].split(batch):
            loss = F.cross_entropy(model(data.inputs[index]), data.targets[index])
            grads = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, grads, alpha=-RATE)
        with torch.no_grad():
            torch._foreach_add_(mean, parameters, alpha=size / sum(sizes))
    with torch.no_grad():
        torch._foreach_copy_(parameters, start)
    return mean


def tight_evaluation(model: nn.Module, models: list[list[Tensor]], data: Federation) -> list[float]:
    """Accuracy of every client's own model on its own test examples, all of them in one batch."""
    parameters = list(model.parameters())
    found = []
    with torch.no_grad():
        for own, rows in zip(models, data.splits["test"], strict=True):
            torch._foreach_copy_(parameters, own)
            outputs = model(data.inputs[rows])
            found.append((outputs.argmax(1) == data.targets[rows]).float().mean().item())
    return found


Pairs = list[tuple[Tensor, Tensor]]


class Conventional:
    """FedAvg as the usual code of the field runs it.

    Args:
        model: initial values.
        data: the clients.
        batch: examples in a batch, in training and in tests.
    """

    def __init__(self, model: nn.Module, data: Federation, batch: int) -> None:
        self.model, self.batch = copy.deepcopy(model), batch
        self.models = [copy.deepcopy(model) for _ in data.clients]
        self.train, self.test = (
            [[(data.inputs[i], data.targets[i]) for i in rows.tolist()] for rows in data.splits[name]]
            for name in ("train", "test")
        )

    def round(self) -> None:
        """Send, train, test and combine."""
        for model, train, test in zip(self.models, self.train, self.test, strict=True):
            self.copied(self.model, model)
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            model.train()
            for inputs, targets in DataLoader(train, self.batch, shuffle=True):  # type: ignore[arg-type]
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            for pairs in (train, test):
                self.tested(model, pairs)
        total = sum(map(len, self.train))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
            for model, train in zip(self.models, self.train, strict=True):
                for mean, own in zip(self.model.parameters(), model.parameters(), strict=True):
                    mean.add_(own, alpha=len(train) / total)

    @staticmethod
    def copied(source: nn.Module, model: nn.Module) -> None:
        with torch.no_grad():
            for new, old in zip(model.parameters(), source.parameters(), strict=True):
                new.copy_(old)

    def tested(self, model: nn.Module, pairs: Pairs) -> tuple[float, float]:
        """Accuracy and loss of a model on some examples."""
        model.eval()
        correct, loss = 0, 0.0
        with torch.no_grad():
            for inputs, targets in DataLoader(pairs, self.batch):  # type: ignore[arg-type]
                outputs = model(inputs)
                loss += F.cross_entropy(outputs, targets).item() * len(targets)
                correct += int((outputs.argmax(1) == targets).sum().item())
        return correct / len(pairs), loss / len(pairs)


def prepared(
    setting: Setting,
    data: Federation,
    execution: Execution,
    *,
    personal: bool = False,
    rounds: int = 10**6,
    machine: Machine | None = None,
) -> Run:
    return Run(
        data,
        lambda: MODELS[setting.model](data.features, 10),
        local() if personal else fedavg(),
        Training(rounds=rounds, batch_size=setting.batch, optimizer=SGD(RATE)),
        execution=execution,
        machine=machine,
    )


def chosen(setting: Setting, data: Federation) -> tuple[Run, float]:
    """A run with what ``auto`` chooses, and the seconds that the choice took."""
    machine, made = Machine(), []
    whole = seconds(lambda: made.append(prepared(setting, data, Execution(), rounds=ROUNDS, machine=machine)))
    again = seconds(lambda: prepared(setting, data, made[0].execution, rounds=ROUNDS, machine=machine))
    return made[0], max(0.0, whole - again)


def both(run: Run) -> None:
    """A round, and accuracy and loss of all clients on their training and test data."""
    told = [metric for metric in run.federation.metrics if metric.name in ("accuracy", "loss")]
    run.step()
    score(run, "train", metrics=told)
    score(run, "test", metrics=told)


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def paired(repeats: int, **works: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each function, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(setting: Setting, repeats: int) -> Measured:
    """All figures of one setting."""
    data = federation(setting)
    torch.manual_seed(0)
    model = MODELS[setting.model](data.features, 10)
    tight_round(model, data, setting.batch)
    memory_reference = peak()
    chunks = sorted({min(size, setting.clients) for size in ((5, 10) if setting.model == "cnn" else (5, 10, 20, 50))})
    stacks = {size: prepared(setting, data, Execution("vmap", size, False, "float32", capture=True)) for size in chunks}
    tried = {size: min(seconds(run.step) for _ in range(2)) for size, run in stacks.items()}
    chunk = min(tried, key=tried.__getitem__)
    memory = peak()
    works: dict[str, Callable[[], object]] = {
        "reference": lambda: tight_round(model, data, setting.batch),
        "one": prepared(setting, data, Execution("loop", min(32, setting.clients), False, "float32")).step,
        "stacked": stacks[chunk].step,
    }
    compiled, compilation = {}, 0.0
    for size in [size for size in chunks if setting.clients % size == 0 and size > 5]:
        run = prepared(setting, data, Execution("vmap", size, True, "float32"))
        compilation = max(compilation, seconds(run.step))
        compiled[size] = (seconds(run.step), run)
    compiled_chunk = min(compiled, key=lambda size: compiled[size][0])
    works["compiled"] = compiled[compiled_chunk][1].step
    auto, choosing = chosen(setting, data)
    works["auto"] = auto.step
    for work in works.values():
        work()
    times = paired(repeats, **works)
    usual = Conventional(model, data, setting.batch)
    both(auto)
    together = paired(max(2, repeats - 2), conventional=usual.round, auto=lambda: both(auto))
    backend: Literal["loop", "vmap"] = "loop" if setting.model == "cnn" else "vmap"
    own = prepared(setting, data, Execution(backend, setting.clients, False, "float32"), personal=True)
    own.step()
    deployed = own.deployed(list(range(len(data))))
    models = [[deployed["model"][name][i] for name, _ in model.named_parameters()] for i in range(len(data))]
    accuracy = [metric for metric in data.metrics if metric.name == "accuracy"]
    ours = score(own, "test", metrics=accuracy).values["accuracy"].tolist()
    theirs = tight_evaluation(model, models, data)
    assert np.allclose(ours, theirs, atol=1e-3), "the two evaluations disagree"
    evaluated = paired(
        max(repeats, 7),
        reference=lambda: tight_evaluation(model, models, data),
        plures=lambda: score(own, "test", deployed, metrics=accuracy),
    )
    return Measured(
        setting,
        times["reference"],
        times["one"],
        times["stacked"],
        times["compiled"],
        chunk,
        compiled_chunk,
        compilation,
        evaluated["reference"],
        evaluated["plures"],
        together["conventional"],
        times["auto"],
        together["auto"],
        said(auto.execution),
        choosing,
        memory_reference,
        memory,
    )


def said(execution: Execution) -> str:
    how = " compiled" if execution.compile else " recorded" if execution.capture is True else ""
    beside = f" {execution.threads} threads" if execution.threads != 1 else ""
    return f"{execution.backend} {execution.chunk}{how}{beside}"


def settings(models: list[str], clients: list[int], batches: list[int], sizes: list[str]) -> Iterator[Setting]:
    for model in models:
        for count in clients:
            for batch in batches:
                for kind in sizes:
                    yield Setting(model, count, batch, kind)


def kept(path: Path) -> dict[Setting, Measured]:
    """The lines of an earlier file, without those that measured other things."""
    rows = json.loads(path.read_text()) if path.is_file() else []
    known = {field.name for field in fields(Measured)}
    whole = [row for row in rows if row.keys() == known]
    return {Setting(**row["setting"]): Measured(**row | {"setting": Setting(**row["setting"])}) for row in whole}


def table(rows: list[Measured]) -> str:
    """The table as Markdown: ratios above 1 mean that plures is faster."""

    def ratio(reference: float, ours: float, chunk: int | None = None) -> str:
        return f"{reference / ours:.2f}x" + ("" if chunk is None else f" ({chunk})")

    lines = [
        "| model | clients | batch | sizes | tight loop s | one at a time | recorded (chunk) | compiled (chunk) "
        "| auto | what it took | chosen in s | auto, of the best | conventional, with evaluation s "
        "| auto, with evaluation "
        "| compilation s | evaluation: reference ms | evaluation | peak MB: reference | peak MB: plures |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for m in rows:
        s = m.setting
        best = min(m.one, m.stacked, m.compiled)
        lines.append(
            f"| {s.model} | {s.clients} | {s.batch} | {s.sizes} | {m.reference:.3f} | {ratio(m.reference, m.one)} "
            f"| {ratio(m.reference, m.stacked, m.chunk)} | {ratio(m.reference, m.compiled, m.compiled_chunk)} "
            f"| {ratio(m.reference, m.auto)} | {m.taken} | {m.choosing:.1f} | {best / m.auto:.2f}x "
            f"| {m.conventional:.2f} | {ratio(m.conventional, m.auto_both)} "
            f"| {m.compilation:.0f} | {1e3 * m.evaluation_reference:.1f} "
            f"| {ratio(m.evaluation_reference, m.evaluation)} | {m.memory_reference:.0f} | {m.memory:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--clients", nargs="+", type=int, default=[20, 200])
    parser.add_argument("--batches", nargs="+", type=int, default=[10, 32])
    parser.add_argument("--sizes", nargs="+", default=["equal", "ragged"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(Setting(**json.loads(options.one)), options.repeats))))
        return
    rows = kept(options.out.with_suffix(".json"))
    for setting in settings(options.models, options.clients, options.batches, options.sizes):
        repeats = 3 if setting.model == "cnn" else options.repeats
        command = [sys.executable, "-m", "benchmarks.speed", "--out", str(options.out), "--repeats", str(repeats)]
        done = subprocess.run(
            [*command, "--one", json.dumps(asdict(setting))], check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        rows[setting] = Measured(**found | {"setting": setting})
        print(table([rows[setting]]).splitlines()[-1], flush=True)
        write(options.out, list(rows.values()))


def write(out: Path, rows: list[Measured]) -> None:
    """The lines as data and as a table, in the order of the settings."""
    places = {name: place for place, name in enumerate(MODELS)}
    rows = sorted(rows, key=lambda m: (places[m.setting.model], m.setting.clients, m.setting.batch, m.setting.sizes))
    machine = (
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    head = (
        f"Made by `python -m benchmarks.speed` on {machine}; one epoch of plain SGD, training examples: {EXAMPLES}. "
        f"What `auto` takes is for {ROUNDS} rounds.\n"
    )
    out.with_suffix(".md").write_text(head + "\n" + table(rows))


if __name__ == "__main__":
    main()
