"""Chunk size, backend, compilation and precision, chosen by measuring first steps on copies."""

from __future__ import annotations

import getpass
import logging
import os
import re
import shutil
import stat
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from plures.federation import Federation
from plures.method import Bound, Phase
from plures.run.engine import Engine, Stack
from plures.run.execution import Execution
from plures.run.memory import fitting
from plures.run.training import Training

log = logging.getLogger("plures")

MEASURED_STEPS = 6
HOPELESS = 1.2
"""Larger stacks are not tried once a stack takes this many times as long as the best."""
LOOP_MEMORY = 1 << 27
"""Bytes of states that a chunk of clients trained one after the other may take."""
TAKEN_OUT = r'[\\/:*?"<>|]'
"""What PyTorch takes out of a user's name, to make the name of a folder of it."""
COMPILE_AFTER = 180.0
"""Seconds of training left from which a compilation is worth trying."""


def choose(
    bound: Bound, federation: Federation, training: Training, wanted: Execution, seed: int, cohort: int
) -> Execution:
    """Settle what is ``auto``. Nothing of the run is touched: the measured steps train copies.

    Args:
        bound: the method on its network.
        federation: the data, on the device.
        training: local work.
        wanted: what the user fixed, and what is ``auto``.
        seed: the run's seed.
        cohort: clients of a round.
    """
    wanted = possible(bound, federation, training, wanted, seed)
    if wanted.settled:
        return wanted
    phases = [item for item in bound.method.schedule if isinstance(item, Phase)]
    timed: dict[Execution, float] = {}

    def attempt(candidate: Execution) -> None:
        try:
            step = sum(measure(bound, federation, training, candidate, seed, phase) for phase in phases)
            timed[candidate] = step * client_steps(federation, training, candidate, cohort)
        except RuntimeError as error:
            if candidate.backend == "loop":
                raise
            log.warning("%s/%s%s did not run: %s", *_named(candidate), first_line(error))

    if wanted.torch_device.type == "cuda":
        tried = on_gpu(bound, federation, training, wanted, seed, cohort)
    else:
        tried = candidates(bound, wanted, cohort)
    for candidate in tried:
        stacks = [seconds for tried, seconds in timed.items() if tried.backend == "vmap"]
        if not stacks or stacks[-1] < HOPELESS * min(timed.values()):
            attempt(candidate)
    if not timed:
        attempt(replace(wanted, backend="loop", chunk=1, compile=False, convolutions="auto"))
    best = min(timed, key=timed.__getitem__)
    left = timed[best] * training.rounds
    if wanted.compile == "auto" and best.backend == "vmap" and left > COMPILE_AFTER and not bound.network.batch_coupled:
        attempt(replace(best, compile=True))
        best = min(timed, key=timed.__getitem__)
    others = ", ".join("{}/{}{} {:.3g}".format(*_named(e), 1e3 * t) for e, t in timed.items())
    log.info(
        "%s backend, chunks of %s clients, %s, %s: expecting %.3g ms for a round (%s)",
        best.backend,
        best.chunk,
        " and ".join(said(best)) or "not compiled",
        best.precision,
        1e3 * timed[best],
        others,
    )
    return best


def possible(bound: Bound, federation: Federation, training: Training, wanted: Execution, seed: int) -> Execution:
    """What is left of the wishes on this device and with this model; says what had to be given up, and why."""
    if wanted.precision == "auto":
        wanted = replace(wanted, precision="float32")
    if wanted.backend != "loop":
        reason = unstackable(bound, federation, training, wanted, seed)
        if reason is not None:
            log.warning("clients are trained one at a time: %s", reason)
            wanted = replace(wanted, backend="loop", capture=False, convolutions="auto")
    if wanted.compile is True and bound.network.batch_coupled:
        log.warning("the step is not compiled: batch normalisation cannot be padded to one shape for all clients")
        wanted = replace(wanted, compile=False)
    if wanted.compile is not False and (lacking := uncompilable()) is not None:
        log.log(logging.WARNING if wanted.compile is True else logging.INFO, "the step is not compiled: %s", lacking)
        wanted = replace(wanted, compile=False)
    return replace(wanted, compile=False) if wanted.backend == "loop" else wanted


def uncompilable() -> str | None:
    """What ``torch.compile`` lacks on this machine, or ``None``: a C++ compiler, and Python's header files."""
    if sys.platform == "win32":
        return None
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler} (Debian: apt install g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's header files are not installed (Debian: apt install python3-dev)"
    if not own_cache():
        return "others may write where PyTorch keeps compiled steps: set TORCHINDUCTOR_CACHE_DIR to a folder of yours"
    return None


def own_cache() -> bool:
    """Whether nobody else on this machine may put code where ``torch.compile`` looks for it.

    By default that is a folder of a known name in a folder of all users, where another one may have made it before.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return True
    folder = Path(tempfile.gettempdir()) / f"torchinductor_{re.sub(TAKEN_OUT, '_', getpass.getuser())}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & stat.S_IWOTH


def unstackable(bound: Bound, federation: Federation, training: Training, wanted: Execution, seed: int) -> str | None:
    """Why clients cannot be stacked through the model and the method, or ``None``, from one step of two clients."""
    trial = replace(wanted, backend="vmap", chunk=2, compile=False, capture=False)
    engine = Engine(bound, federation, training, trial, seed)
    if bound.network.unmappable is not None:
        return bound.network.unmappable
    schedule = bound.method.schedule + bound.method.predictor.preparation
    short = tuple(replace(item, steps=1, epochs=None) if isinstance(item, Phase) else item for item in schedule)
    clients = largest(federation, 2)
    try:
        engine.visit(*copies(bound, len(clients)), clients, 0, short)
    except RuntimeError as error:
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _named(execution: Execution) -> tuple[str, object, str]:
    return execution.backend, execution.chunk, "".join(f"/{what}" for what in said(execution))


def said(execution: Execution) -> list[str]:
    """What is done to a stack's steps."""
    done = {"compiled": execution.compile, "captured": execution.capture}
    return [what for what, wanted in done.items() if wanted is True]


def largest(federation: Federation, count: int) -> list[int]:
    """Positions of the clients with the most training examples, by decreasing number."""
    sizes = federation.splits["train"].sizes
    clients: list[int] = sizes.argsort(descending=True, stable=True)[:count].tolist()
    return clients


def copies(bound: Bound, clients: int) -> tuple[Stack, Stack]:
    """Working and received states of clients that hold the initial leaves."""
    received = {
        slot: {p: t.expand(clients, *t.shape) for p, t in leaves.items()} for slot, leaves in bound.initial.items()
    }
    return {slot: {p: t.clone() for p, t in leaves.items()} for slot, leaves in received.items()}, received


def client_steps(federation: Federation, training: Training, execution: Execution, cohort: int) -> float:
    """Steps of single clients that a round costs; a stack costs all its clients until the largest one is done."""
    sizes = federation.splits["train"].sizes.sort(descending=True).values
    if training.steps is not None:
        steps = torch.full_like(sizes, training.steps)
    else:
        steps = (training.passes * (sizes / (training.batch_size or int(sizes.max()))).ceil()).ceil()
    if execution.backend == "vmap":
        assert isinstance(execution.chunk, int)
        steps = torch.cat([chunk[:1].expand(len(chunk)) for chunk in torch.split(steps, execution.chunk)])
    return float(steps.sum()) * cohort / len(federation)


def loop_chunk(bound: Bound, cohort: int) -> int:
    """Clients of a chunk that train one after the other: as many as share the planning and fit into little memory."""
    size = sum(t.nbytes for leaves in bound.initial.values() for t in leaves.values())
    return max(1, min(cohort, 32, LOOP_MEMORY // size))


def candidates(bound: Bound, wanted: Execution, cohort: int) -> list[Execution]:
    """What is compared before compilation."""
    found = []
    base = replace(wanted, compile=wanted.compile is True, capture=wanted.capture is True)
    if wanted.backend in ("auto", "loop"):
        together = loop_chunk(bound, cohort) if wanted.chunk == "auto" else wanted.chunk
        alone = replace(base, backend="loop", chunk=together, compile=False, capture=False, convolutions="auto")
        found.append(alone)
    if wanted.backend in ("auto", "vmap"):
        sizes = sorted({min(size, cohort) for size in (8, 32, 128)}) if wanted.chunk == "auto" else [wanted.chunk]
        found += [replace(base, backend="vmap", chunk=size) for size in sizes]
    return found


def on_gpu(
    bound: Bound, federation: Federation, training: Training, wanted: Execution, seed: int, cohort: int
) -> list[Execution]:
    """What is compared on a CUDA device: stacks as large as memory allows, with their steps captured and not."""
    if wanted.backend == "loop":
        return candidates(bound, wanted, cohort)
    base = replace(wanted, backend="vmap", compile=wanted.compile is True, capture=False)
    short = tuple(replace(item, steps=1, epochs=None) for item in bound.method.schedule if isinstance(item, Phase))

    def visit(count: int) -> None:
        clients = largest(federation, count)
        engine = Engine(bound, federation, training, replace(base, chunk=count), seed)
        engine.visit(*copies(bound, len(clients)), clients, 0, short)

    if base.chunk == "auto":
        base = replace(base, chunk=fitting(visit, federation.inputs.device, cohort))
    captured = (True, False) if wanted.capture == "auto" else (wanted.capture,)
    return [replace(base, capture=capture) for capture in captured]


def measure(
    bound: Bound, federation: Federation, training: Training, execution: Execution, seed: int, phase: Phase
) -> float:
    """Seconds that one step of one client takes, on copies of the initial leaves; the best of three tries."""
    chunk = execution.chunk
    assert isinstance(chunk, int)
    clients = largest(federation, chunk if execution.backend == "vmap" else min(chunk, 4))
    engine = Engine(bound, federation, training, execution, seed)
    short = replace(phase, steps=MEASURED_STEPS, epochs=None)
    best = float("inf")
    for _ in range(3):
        x, received = copies(bound, len(clients))
        begun = time.perf_counter()
        engine.visit(x, received, clients, 0, (short,))
        if federation.inputs.is_cuda:
            torch.cuda.synchronize(federation.inputs.device)
        best = min(best, time.perf_counter() - begun)
    return best / MEASURED_STEPS / len(clients)
