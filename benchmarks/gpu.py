"""One federated round on a GPU: plures against loops over the clients, and every method against the CPU.

Every figure is the median of rounds on the same card in the same process, after a first round that is not timed:

- *plain*: one model, one client after the other, batches gathered by index from data on the GPU, ``autograd.grad``, an
  in-place update. Nothing that a round does not need.
- *conventional*: the usual loop of research code in this field: a deep-copied model, an optimizer and a ``DataLoader``
  over a list of tensor pairs for every client, and a test of every client on its training and test data.
- *auto*: plures with its defaults. *stacked*: all clients in one stack. *captured*: the same, its steps replayed as
  CUDA graphs. *auto, TF32*: with ``precision="tf32"``.

The limit is the time that the card itself needs for the arithmetic and memory traffic that no program can avoid, at
rates that are measured here. Without a GPU it measures nothing and says so.

    python -m benchmarks.gpu --out benchmarks/results/gpu
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import RATE, tight_round
from plures import Execution, Federation, Run, Training
from plures.evaluate import score
from plures.federation import SPLITS, Split, from_arrays
from plures.method import SGD
from plures.methods import METHODS, fedavg
from plures.models import fedavg_cnn, logistic, mlp
from plures.report.catalogue import model as small_network
from plures.run.checkpoint import snapshot
from plures.run.kernels import factors
from plures.tasks import Classification

MODELS = {"logistic": logistic, "mlp": mlp, "cnn": fedavg_cnn}
BATCH, TESTED = 10, 10
"""Number of examples in a batch, and of test examples of a client."""
AIMS = {("logistic", 200): 100, ("mlp", 200): 60, ("mlp", 2000): 120, ("cnn", 200): 50, ("cnn", 20): 20}
"""Target speed of ``auto`` on one H100, as a multiple of the plain loop's."""
CHECKING = 60
"""Seconds that are reserved for comparing methods."""
TOLERANCE = 1e-6
"""Largest distance in double precision from the same run on the CPU, one client at a time, relative to a leaf's largest
value, or to 0.001 if that is smaller: gradients that are zero except for rounding have no scale of their own."""
QUICK: dict[str, dict[str, Any]] = {
    "fedavg_ft": {"steps": 1},
    "fedbabu": {"epochs": 1},
    "fedhome": {"refine_steps": 1, "per_class": 4},
    "fedsimclr": {"projection": 2, "head_epochs": 1},
    "hypcluster": {"epochs": None},
    "reptile": {"after": 1, "epochs": 1},
    "wise_ft": {"steps": 1},
}
"""Parameters that make methods take no more steps than a check, or a test, needs."""


@dataclass(frozen=True)
class Setting:
    """A network, a number of clients, and training examples of each; ``spread`` is how much their numbers differ."""

    model: str
    clients: int
    examples: int
    spread: float = 0.0

    @property
    def title(self) -> str:
        about = f"{self.examples}" if not self.spread else f"about {self.examples}, log-normal"
        return f"{self.model}, {self.clients} clients x {about}"


SETTINGS = (
    Setting("logistic", 200, 93),
    Setting("mlp", 200, 93),
    Setting("mlp", 2000, 20),
    Setting("cnn", 20, 937),
    Setting("cnn", 200, 93),
    Setting("mlp", 200, 93, 0.8),
    Setting("cnn", 2000, 20),
)


@dataclass
class Measured:
    """Results for one setting.

    Attributes:
        seconds: seconds of a round, by what ran.
        memory: peak gigabytes of tensors, by what ran.
        chosen: what ``auto`` chose.
        choosing: seconds until ``auto`` was ready to run.
        evaluation: seconds of scoring every client's model on its test data.
        limit: seconds that the card needs at least.
        failed: what did not run, and why.
    """

    setting: Setting
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    chosen: str = ""
    choosing: float = 0.0
    evaluation: float = 0.0
    limit: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)


def tell(**found: Any) -> None:
    """Print one JSON line without buffering."""
    print(json.dumps(found), flush=True)


def federation(setting: Setting) -> Federation:
    """MNIST-shaped random data."""
    generator = np.random.default_rng(0)
    factor = np.exp(setting.spread * generator.normal(size=setting.clients)) if setting.spread else 1.0
    trains = np.maximum(np.ones(setting.clients) * setting.examples * factor / np.mean(factor), 2).astype(int)
    ends = np.cumsum(trains + TESTED)
    owned = [torch.arange(end - n - TESTED, end) for n, end in zip(trains, ends, strict=True)]
    train = Split.of([rows[:n] for rows, n in zip(owned, trains, strict=True)])
    test = Split.of([rows[n:] for rows, n in zip(owned, trains, strict=True)])
    return Federation(
        name="random",
        task=Classification(tuple("0123456789")),
        inputs=torch.randn(int(ends[-1]), 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        targets=torch.from_numpy(generator.integers(0, 10, int(ends[-1]))),
        clients=tuple(f"{i:04d}" for i in range(setting.clients)),
        splits={name: train if name == "train" else test for name in SPLITS},
    )


class Conventional:
    """A list of client objects, as research code writes it."""

    def __init__(self, network: nn.Module, data: Federation, device: torch.device) -> None:
        self.device, self.server, self.data = device, copy.deepcopy(network).to(device), data
        self.models = [copy.deepcopy(self.server) for _ in data.clients]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=RATE) for model in self.models]
        self.sets = {split: [self._pairs(rows) for rows in data.splits[split]] for split in ("train", "test")}

    def _pairs(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(self.data.inputs[i], self.data.targets[i]) for i in rows.tolist()]

    def train(self) -> None:
        """A round of FedAvg."""
        total = sum(map(len, self.sets["train"]))
        mean = [torch.zeros_like(p) for p in self.server.parameters()]
        for model, optimizer, pairs in zip(self.models, self.optimizers, self.sets["train"], strict=True):
            for new, old in zip(model.parameters(), self.server.parameters(), strict=True):
                new.data = old.data.clone()
            model.train()
            for x, y in DataLoader(pairs, BATCH, shuffle=True):  # type: ignore[arg-type]
                loss = F.cross_entropy(model(x.to(self.device)), y.to(self.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for into, p in zip(mean, model.parameters(), strict=True):
                into += p.data * (len(pairs) / total)
        for p, new in zip(self.server.parameters(), mean, strict=True):
            p.data = new

    def evaluate(self) -> float:
        """Accuracy of every client on its training and test data."""
        right = 0
        for split in ("train", "test"):
            for model, pairs in zip(self.models, self.sets[split], strict=True):
                model.eval()
                with torch.no_grad():
                    for x, y in DataLoader(pairs, BATCH):  # type: ignore[arg-type]
                        right += int((model(x.to(self.device)).argmax(1) == y.to(self.device)).sum().item())
        return right / sum(len(pairs) for sets in self.sets.values() for pairs in sets)

    def round(self) -> None:
        self.train()
        self.evaluate()


class Clock:
    """The remaining time, and a timer for work on a device."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self.end, self.device = time.monotonic() + seconds, device

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def once(self, work: Callable[[], object]) -> float:
        self._wait()
        begun = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begun

    def rounds(self, work: Callable[[], object], budget: float, *, first: bool = True) -> float:
        """Median seconds of some rounds within a budget, at least one and at most nine."""
        if first:
            self.once(work)
        times = [self.once(work)]
        until = time.monotonic() + budget - times[0]
        while len(times) < 9 and time.monotonic() < until:
            times.append(self.once(work))
        return statistics.median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def prepared(setting: Setting, data: Federation, execution: Execution) -> Run:
    training = Training(rounds=50, batch_size=BATCH, optimizer=SGD(RATE))
    return Run(data, lambda: MODELS[setting.model](data.features, 10), fedavg(), training, execution=execution)


def measure(
    setting: Setting, device: torch.device, clock: Clock, rates: dict[str, float], enough: float, without: list[str]
) -> Measured:
    """All figures of one setting; failures are recorded. Slow loops get less time once less than ``enough`` is left."""
    slow = clock.left > enough
    found, here = Measured(setting), federation(setting)
    data = here.to(device)
    found.limit = limit(setting, data, rates)
    name, count = str(device), setting.clients
    works: dict[str, Callable[[], tuple[Callable[[], object], float, bool]]] = {}

    def plures(execution: Execution) -> tuple[Callable[[], object], float, bool]:
        begun = time.perf_counter()
        run = prepared(setting, data, execution)
        if execution.backend == "auto" and execution.precision != "tf32":
            e = run.execution
            found.choosing = time.perf_counter() - begun
            found.chosen = f"{e.backend}, stacks of {e.chunk}, " + ", ".join(
                [e.precision, *["compiled"] * bool(e.compile), *["captured"] * bool(e.capture)]
            )
            run.step()
            found.evaluation = clock.rounds(lambda: score(run, "test"), 0.3)
        return run.step, 1.0, True

    def plain() -> tuple[Callable[[], object], float, bool]:
        torch.manual_seed(0)
        network = MODELS[setting.model](data.features, 10).to(device)
        return lambda: tight_round(network, data, BATCH), 0.0, slow

    def conventional() -> tuple[Callable[[], object], float, bool]:
        torch.manual_seed(0)
        return Conventional(MODELS[setting.model](data.features, 10), here, device).round, 0.0, False

    works["plain"] = plain
    works["auto"] = lambda: plures(Execution(device=name, precision="float32"))
    works["captured"] = lambda: plures(Execution("vmap", count, False, "float32", name, capture=True))
    works["stacked"] = lambda: plures(Execution("vmap", count, False, "float32", name, capture=False))
    if setting.model == "cnn":
        works["auto, TF32"] = lambda: plures(Execution(device=name, precision="tf32"))
    if slow and not setting.spread:
        works["conventional"] = conventional
    for what, ready in works.items():
        if what in without:
            continue
        if clock.left < 3:
            found.failed[what] = "no time was left"
            continue
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            with factors(rounded=False):
                work, budget, first = ready()
                found.seconds[what] = clock.rounds(work, budget, first=first)
        except Exception as error:
            found.failed[what] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            tell(trace=traceback.format_exc()[-1500:])
            continue
        finally:
            ready = work = None  # type: ignore[assignment]
        if device.type == "cuda":
            found.memory[what] = torch.cuda.max_memory_allocated(device) / 2**30
        tell(setting=setting.title, what=what, seconds=found.seconds[what], memory=found.memory.get(what))
    return found


def limit(setting: Setting, data: Federation, rates: dict[str, float]) -> float:
    """Seconds that a round takes at least: its arithmetic, or five passes over all weights in each step.

    A step reads every weight for the outputs, writes its gradient, reads that again, and reads and writes the weight.
    """
    network = MODELS[setting.model](data.features, 10)
    examples = torch.randn(BATCH, *data.features)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(examples), torch.zeros(BATCH, dtype=torch.int64)).backward()
    steps = float((data.splits["train"].sizes.cpu() / BATCH).ceil().sum())
    weights = sum(p.nbytes for p in network.parameters())
    return steps * max(counter.get_total_flops() / rates["operations"], 5 * weights / rates["bytes"])


def card_rates(device: torch.device, clock: Clock) -> dict[str, float]:
    """Bytes per second of a large copy, reads and writes; operations per second of a large float32 product."""
    size = 2**29 if device.type == "cuda" else 2**22
    one, side = torch.randn(size // 4, device=device), 8192 if device.type == "cuda" else 512
    other, factor = torch.empty_like(one), torch.randn(side, side, device=device)
    with factors(rounded=False):
        copied, multiplied = clock.rounds(lambda: other.copy_(one), 0.2), clock.rounds(lambda: factor @ factor, 0.4)
    return {"bytes": 2 * size / copied, "operations": 2 * side**3 / multiplied}


# --- the same numbers as the CPU ----------------------------------------------------------------------------------


def five() -> Federation:
    """Five clients with metadata and public rows."""
    generator = np.random.default_rng(3)
    owner = np.repeat(list("abcde"), [26, 30, 28, 24, 33])
    x = generator.normal(size=(len(owner), 8))
    facts = {
        name: {"group": "one" if i % 2 else "two", "completeness": 1 - 0.1 * i, "reliability": 1 - 0.1 * i}
        for i, name in enumerate("abcde")
    }
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)
    return from_arrays(x, y, owner, metadata=facts, seed=0, dtype=torch.float64, name="five").donate(0.1)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 2))


def distances(device: torch.device, names: list[str], clock: Clock) -> Iterator[dict[str, Any]]:
    """For every method, how far two rounds on the device, captured, end from two on the CPU, one client at a time."""
    data = five()
    training = Training(rounds=2, batch_size=4, steps=4, optimizer=SGD(0.05))
    there = Execution("vmap", 5, False, "float64", str(device), capture=device.type == "cuda")
    for name in names:
        if clock.left < 3:
            yield {"method": name, "failed": "no time was left"}
            continue
        module, method = linear if name == "mocha" else small_network, METHODS[name](**QUICK.get(name, {}))
        reached, captured = [], True
        try:
            for execution in (Execution("loop", 5, False, "float64"), there):
                run = Run(data, module, method, training, execution=execution, seed=1)
                run.step()
                run.step()
                reached.append({k: t.cpu() for k, t in snapshot(run).items()})
                steps = run.engine._steps.values()
                captured = all(getattr(each, "captured", None) is not None for each in steps)
        except Exception as error:
            yield {"method": name, "failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
            continue
        wanted, got = reached
        pairs = [(got[k].double(), t.double()) for k, t in wanted.items() if t.numel()]
        far = [float((one - other).abs().max() / (other.abs().max().clamp(min=1e-3))) for one, other in pairs]
        yield {"method": name, "distance": max(far), "captured": captured}


# --- the report ---------------------------------------------------------------------------------------------------


def table(rows: list[Measured]) -> str:
    """Seconds, speed relative to the plain loop, and the share of the card's limit, as Markdown."""
    names = ["plain", "conventional", "auto", "stacked", "captured", "auto, TF32"]
    lines = ["| setting | " + " | ".join(f"{n} s" for n in names) + " | auto / plain | aim | of the limit | GB, auto |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for m in rows:
        cells = [f"{m.seconds[n]:.4f}" if n in m.seconds else "-" for n in names]
        auto, plain = m.seconds.get("auto"), m.seconds.get("plain")
        ratio = f"{plain / auto:.0f}x" if auto and plain else "-"
        aim = None if m.setting.spread else AIMS.get((m.setting.model, m.setting.clients))
        share = f"{100 * m.limit / auto:.0f} %" if auto else "-"
        memory = f"{m.memory['auto']:.2f}" if "auto" in m.memory else "-"
        cells += [ratio, "-" if aim is None else f"{aim}x", share, memory]
        lines.append(f"| {m.setting.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def report(about: dict[str, Any], rows: list[Measured], checks: list[dict[str, Any]]) -> str:
    bad = [c for c in checks if "failed" in c or c["distance"] > TOLERANCE]
    not_captured = [c["method"] for c in checks if not c.get("captured", True)]
    largest = max((c["distance"] for c in checks if "distance" in c), default=float("nan"))
    lines = [
        f"Made by `python -m benchmarks.gpu` in {about['seconds']:.0f} s on one {about['card']}, PyTorch "
        f"{about['torch']}; batches of {BATCH}, one epoch of plain SGD, MNIST-shaped data, float32 without TF32 unless "
        f"it says so. The card copies {about['rates']['bytes'] / 1e12:.2f} TB/s and multiplies "
        f"{about['rates']['operations'] / 1e12:.0f} TFLOP/s in float32, which the limit is computed from.",
        "",
        table(rows),
        "What `auto` took, and how long it measured:",
        "",
        *(
            f"- {m.setting.title}: {m.chosen}; {m.choosing:.1f} s; all personal models scored in {m.evaluation:.4f} s."
            + "".join(f" Not measured: {what} ({why})." for what, why in m.failed.items())
            for m in rows
        ),
        "",
        "All methods in float64, two rounds of captured steps against the CPU one client at a time: "
        f"{len(checks) - len(bad)} of {len(checks)} agree to {TOLERANCE:g}; the largest relative "
        f"distance is {largest:.1e}."
        + "".join(f" {c['method']}: {c.get('failed', c.get('distance'))}." for c in bad)
        + (f" Steps that could not be captured: {', '.join(not_captured)}." if not_captured else ""),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the table: OUT.md and OUT.json")
    parser.add_argument("--seconds", type=float, default=220.0, help="stop by then, with what there is")
    parser.add_argument("--device", default="cuda", help="cpu only tries the program out")
    parser.add_argument("--shrink", type=int, default=1, help="divide numbers of clients and examples")
    parser.add_argument("--settings", type=int, nargs="*", default=list(range(len(SETTINGS))))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--without", nargs="*", default=[], help="columns that are not measured")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU is here: nothing was measured, and no file was written")
        return
    warnings.simplefilter("ignore")
    begun, clock = time.monotonic(), Clock(options.seconds - CHECKING * bool(options.methods), device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rates = card_rates(device, clock)
    tell(card=card, torch=torch.__version__, **rates)
    rows, checks = [], list[dict[str, Any]]()
    for number in options.settings:
        setting = SETTINGS[number]
        setting = replace(
            setting,
            clients=max(2, setting.clients // options.shrink),
            examples=max(12, setting.examples // options.shrink),
        )
        if clock.left > 3:
            rows.append(measure(setting, device, clock, rates, options.seconds / 3, options.without))
            tell(**asdict(rows[-1]))
    for check in distances(device, options.methods, Clock(options.seconds - (time.monotonic() - begun), device)):
        checks.append(check)
        tell(**check)
    about = {"card": card, "torch": torch.__version__, "rates": rates, "seconds": time.monotonic() - begun}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        whole = about | {"rows": [asdict(row) for row in rows], "methods": checks}
        options.out.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(report(about, rows, checks))
    print(report(about, rows, checks))


if __name__ == "__main__":
    main()
