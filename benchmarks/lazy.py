"""Pictures in a file that is larger than memory: what reading them as they are needed costs in memory and time.

Synthetic pictures of 3 x 64 x 64 bytes are written to a file, block by block. FedAvg trains a small convolutional
network on all of them, in a process whose data segment the system limits to 2 GB (``RLIMIT_DATA``: all that it
allocates). For a size that fits into memory, the same rounds from the file and from tensors, in turn in one process,
must give the same model, bit for bit.

Peak memory is that of all resident pages (``VmHWM``), and of those that the process has written itself (``RssAnon``,
read a hundred times a second); the others are code. What the system keeps of the file at hand is in neither. Needs
Linux.

    python -m benchmarks.lazy --out benchmarks/results/lazy
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from plures import Execution, Federation, Run, Training, from_arrays
from plures.evaluate import score
from plures.federation import Mapped
from plures.method import SGD
from plures.methods import METHODS

SHAPE = (3, 64, 64)
WIDE = 3 * 64 * 64
CLIENTS, CLASSES, BATCH = 20, 4, 64
BLOCK = 4096
"""Pictures that are written at once."""
GB = 1e9
SPARE = 5 * GB
"""Space that is left on the disk."""


@dataclass(frozen=True)
class Measured:
    """What training on one file cost.

    Attributes:
        where: ``file`` or ``memory``.
        gigabytes: size of the pictures.
        pictures: their number.
        trained: the number of those that a round trains on.
        limit: gigabytes that the process could allocate; ``None`` for no limit.
        build: seconds of ``from_arrays``, which reads all of them once.
        rounds: seconds of each round, one pass over the training rows of all clients.
        score: seconds of scoring the test rows.
        accuracy: on the test rows.
        before: gigabytes of own pages when Python and PyTorch were loaded.
        own: gigabytes of own pages at most.
        resident: gigabytes of all resident pages at most.
    """

    where: str
    gigabytes: float
    pictures: int
    trained: int
    limit: float | None
    build: float
    rounds: list[float]
    score: float
    accuracy: float
    before: float
    own: float
    resident: float


@dataclass(frozen=True)
class Pair:
    """Rounds from a file and from memory, in turn in one process.

    Attributes:
        gigabytes: size of the pictures.
        memory: seconds of each round from tensors in memory.
        file: seconds of each round from the file.
        same: whether both models have the same bits afterwards.
    """

    gigabytes: float
    memory: list[float]
    file: list[float]
    same: bool


def written(file: Path, pictures: int) -> float:
    """Write noise whose brightness in one quarter tells the class; seconds."""
    begun = time.perf_counter()
    rng = np.random.default_rng(0)
    with file.open("wb") as out:
        for first in range(0, pictures, BLOCK):
            count = min(BLOCK, pictures - first)
            block = np.frombuffer(rng.bytes(count * WIDE), dtype=np.uint8).reshape(count, *SHAPE) // 2
            for row, label in enumerate(labels(first, count).tolist()):
                block[row, :, 32 * (label // 2) :, 32 * (label % 2) :][:, :32, :32] += 40
            out.write(block.data)
    return time.perf_counter() - begun


def labels(first: int, count: int) -> np.ndarray:
    """Classes of pictures, unrelated to their order and their clients."""
    return (np.arange(first, first + count) * 2654435761 >> 7) % CLASSES


def federation(file: Path, held: bool) -> Federation:
    """The pictures of a file, those of a client all over it; in memory or not."""
    pictures = file.stat().st_size // WIDE
    inputs = np.memmap(file, np.uint8, "r", shape=(pictures, *SHAPE))
    return from_arrays(
        np.array(inputs) if held else inputs, labels(0, pictures), np.arange(pictures) % CLIENTS, name="pictures"
    )


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 7 * 7, CLASSES)
    )


def started(data: Federation, rounds: int) -> Run:
    training = Training(rounds=rounds, batch_size=BATCH, optimizer=SGD(1e-4))
    return Run(data, network, METHODS["fedavg"](), training, execution=Execution("loop", 1, False))


def status(name: str) -> float:
    """A figure of this process in gigabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / GB
    raise SystemExit(f"this system does not tell {name}; the benchmark needs Linux")


@contextmanager
def watched() -> Iterator[list[float]]:
    """The largest size of the process's own pages so far, as the only entry of a list."""
    found, ended = [status("RssAnon")], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            found[0] = max(found[0], status("RssAnon"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def alone(file: Path, held: bool, rounds: int, limit: float | None) -> Measured:
    """Build, train and score in this process."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * GB), int(limit * GB)))
    before = status("RssAnon")
    with watched() as own:
        begun = time.perf_counter()
        data = federation(file, held)
        build = time.perf_counter() - begun
        assert isinstance(data.inputs, Mapped) != held
        run = started(data, rounds)
        seconds = [run.step().seconds for _ in range(rounds)]
        begun = time.perf_counter()
        accuracy = float(np.mean(score(run, "test").values["accuracy"]))
        scored = time.perf_counter() - begun
    size = file.stat().st_size
    where = "memory" if held else "file"
    return Measured(
        where,
        size / GB,
        size // WIDE,
        len(data.splits["train"].rows),
        limit,
        build,
        seconds,
        scored,
        accuracy,
        before,
        own[0],
        status("VmHWM"),
    )


def in_turn(file: Path, rounds: int) -> Pair:
    """The same rounds from tensors in memory and from the file, one of each in turn; the first of each is not timed."""
    runs = [started(federation(file, held), rounds + 1) for held in (True, False)]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for own, run in zip(seconds, runs, strict=True):
            own.append(run.step().seconds)
    one, two = (run.predictors([0]) for run in runs)
    same = all(torch.equal(leaf, two[name]) for name, leaf in one.items())
    return Pair(file.stat().st_size / GB, seconds[0][1:], seconds[1][1:], same)


def asked(file: Path, what: str, rounds: int, limit: float | None = None) -> dict[str, object]:
    """The result of another process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.lazy", "--one", what, "--file", str(file)]
    command += ["--rounds", str(rounds), *([] if limit is None else ["--limit", str(limit)])]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    result: dict[str, object] = json.loads(told.splitlines()[-1])
    print(result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=20.0, help="size of the large file")
    parser.add_argument(
        "--fits", type=float, default=0.5, help="size that fits into memory, four times as real numbers"
    )
    parser.add_argument("--limit", type=float, help="gigabytes that a process may allocate")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="where the files are written, and removed again; default: the system's own"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=["file", "memory", "pair"])
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.one == "pair":
        print(json.dumps(asdict(in_turn(given.file, given.rounds))))
        return
    if given.one is not None:
        print(json.dumps(asdict(alone(given.file, given.one == "memory", given.rounds, given.limit))))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        room = (shutil.disk_usage(folder).free - SPARE) / GB - given.fits
        large = min(given.gigabytes, room)
        if large < given.gigabytes:
            warnings.warn(f"the disk has room for {large:.3g} GB, not {given.gigabytes:.3g}", stacklevel=1)
        if large <= 0:
            raise SystemExit(f"{folder}: the disk has no room; give another as --folder")
        small = Path(folder) / "small"
        written(small, int(given.fits * GB) // WIDE)
        pair = Pair(**asked(small, "pair", 5))  # type: ignore[arg-type]
        alones = [asked(small, what, given.rounds) for what in ("memory", "file")]
        big = Path(folder) / "large"
        print(f"written in {written(big, int(large * GB) // WIDE):.0f} s", flush=True)
        alones.append(asked(big, "file", given.rounds, given.limit or 2.0))
    found = [Measured(**one) for one in alones]  # type: ignore[arg-type]
    text = table(found, pair, given.gigabytes)
    print(text)
    if given.out is not None:
        content = {"alone": [asdict(one) for one in found], "pair": asdict(pair), "asked": given.gigabytes}
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(text)


def table(found: list[Measured], pair: Pair, wanted: float) -> str:
    """The figures as a page."""
    ratios = [file / memory for file, memory in zip(pair.file, pair.memory, strict=True)]
    large = found[-1]
    less = f" The disk had no room for the {wanted:.3g} GB asked for." if large.gigabytes < 0.99 * wanted else ""
    columns = (
        "pictures in | GB | pictures | allocation limit, GB | own pages before, GB | own pages, peak GB "
        "| all resident, peak GB | build, s | round, s | training pictures/s | score, s | accuracy"
    )
    lines = [
        "# Pictures that are read from a file as they are needed",
        "",
        f"Noise of 3 x 64 x 64 bytes whose brightness tells one of {CLASSES} classes, {CLIENTS} clients, FedAvg, a "
        f"small convolutional network, batches of {BATCH}; a round is one pass over all training rows, in an order "
        f"drawn from all over the file. {os.cpu_count()} processors, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {platform.system()} {platform.machine()}.{less}",
        "",
        f"| {columns} |",
        f"|---{'|---:' * columns.count('|')}|",
    ]
    for one in found:
        second = statistics.median(one.rounds)
        limit = "none" if one.limit is None else f"{one.limit:.3g}"
        memory = f"{limit} | {one.before:.2f} | {one.own:.2f} | {one.resident:.2f}"
        times = f"{one.build:.3g} | {second:.3g} | {one.trained / second:,.0f} | {one.score:.3g}"
        lines.append(
            f"| {one.where} | {one.gigabytes:.3g} | {one.pictures:,} | {memory} | {times} | {one.accuracy:.3f} |"
        )
    lines += [
        "",
        "Own pages are those that the process has written; all resident pages are also code. What the system keeps of "
        "the file at hand, and drops when memory is short, is in neither. Under an allocation limit, a larger "
        "allocation fails.",
        "",
        f"{pair.gigabytes:.3g} GB, rounds in turn in one process: a round from the file takes "
        f"{statistics.median(ratios):.2f} times one from tensors in memory (from {min(ratios):.2f} to "
        f"{max(ratios):.2f} in {len(ratios)} pairs), and the models have {'the same' if pair.same else 'DIFFERENT'} "
        "bits.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
