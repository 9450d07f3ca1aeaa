"""Chunk size, backend, compilation and precision, chosen by measuring first steps on copies."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch

from plures.federation import Federation
from plures.method import Bound, Phase
from plures.run.engine import Engine
from plures.run.execution import Execution, Precision
from plures.run.training import Training

log = logging.getLogger("plures")

MEASURED_STEPS = 4
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
    reason = bound.network.unmappable
    if reason is not None and wanted.backend != "loop":
        log.warning("clients are trained one at a time: %s", reason)
        wanted = replace(wanted, backend="loop")
    if wanted.precision == "auto":
        wanted = replace(wanted, precision="float32") if wanted.torch_device.type == "cpu" else wanted
    if wanted.settled:
        return wanted
    phases = [item for item in bound.method.schedule if isinstance(item, Phase)]
    timed: dict[Execution, float] = {}
    for candidate in candidates(wanted, cohort):
        try:
            timed[candidate] = sum(measure(bound, federation, training, candidate, seed, phase) for phase in phases)
        except RuntimeError as error:
            if candidate.backend == "loop":
                raise
            log.warning("clients cannot be stacked through this model, so they are trained one at a time: %s", error)
    best = min(timed, key=timed.__getitem__)
    left = timed[best] * training.rounds * cohort * steps_per_visit(federation, training)
    if wanted.compile == "auto" and best.backend == "vmap" and left > COMPILE_AFTER and not bound.network.batch_coupled:
        compiled = replace(best, compile=True)
        timed[compiled] = sum(measure(bound, federation, training, compiled, seed, phase) for phase in phases)
        best = min(timed, key=timed.__getitem__)
    others = ", ".join(
        f"{e.backend}/{e.chunk}{'/compiled' if e.compile else ''} {1e3 * t:.3g}" for e, t in timed.items()
    )
    log.info(
        "%s backend, %s clients at once, %s, %s: %.3g ms for a client's step (%s)",
        best.backend,
        best.chunk,
        "compiled" if best.compile else "not compiled",
        best.precision,
        1e3 * timed[best],
        others,
    )
    return best


def steps_per_visit(federation: Federation, training: Training) -> float:
    """Mean number of steps of a visit."""
    if training.steps is not None:
        return float(training.steps)
    sizes = federation.splits["train"].sizes
    return training.epochs * float((sizes / (training.batch_size or int(sizes.max()))).ceil().mean())


def candidates(wanted: Execution, cohort: int) -> list[Execution]:
    """What is compared before compilation."""
    mixed: tuple[Precision, ...] = ("float32", "bfloat16")
    precisions = mixed if wanted.precision == "auto" else (wanted.precision,)
    found = []
    for precision in precisions:
        base = replace(wanted, precision=precision, compile=wanted.compile is True)
        if wanted.backend in ("auto", "loop") and wanted.chunk in ("auto", 1):
            found.append(replace(base, backend="loop", chunk=1, compile=False))
        if wanted.backend in ("auto", "vmap"):
            sizes = sorted({min(size, cohort) for size in (8, 32, 128)}) if wanted.chunk == "auto" else [wanted.chunk]
            found += [replace(base, backend="vmap", chunk=size) for size in sizes]
    if wanted.backend == "loop" and wanted.chunk not in ("auto", 1):
        found.append(replace(wanted, compile=False))
    return found


def measure(
    bound: Bound, federation: Federation, training: Training, execution: Execution, seed: int, phase: Phase
) -> float:
    """Seconds that one step of one client takes, on copies of the initial leaves; the best of two tries."""
    chunk = execution.chunk
    assert isinstance(chunk, int)
    sizes = federation.splits["train"].sizes
    clients = sizes.argsort(descending=True, stable=True)[:chunk].tolist()
    engine = Engine(bound, federation, replace(training, rounds=max(training.rounds, 1)), execution, seed)
    short = replace(phase, steps=MEASURED_STEPS, epochs=None)
    received = {
        slot: {p: t.expand(len(clients), *t.shape) for p, t in ls.items()} for slot, ls in bound.initial.items()
    }
    best = float("inf")
    for _ in range(3):
        x = {slot: {p: t.clone() for p, t in ls.items()} for slot, ls in received.items()}
        begun = time.perf_counter()
        engine.visit(x, received, clients, 0, (short,))
        if federation.inputs.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return best / MEASURED_STEPS / len(clients)
