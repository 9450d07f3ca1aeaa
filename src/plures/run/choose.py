"""Choose chunk size, backend, compilation and precision by timing a few steps on copies of the leaves."""

from __future__ import annotations

import functools
import getpass
import logging
import math
import os
import re
import shutil
import stat
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from plures.brief import brief
from plures.federation import Federation, Mapped
from plures.federation.inputs import parts
from plures.method import Bound, Phase
from plures.run.cost import stored_bytes
from plures.run.engine import Engine, Stack
from plures.run.execution import Execution
from plures.run.facts import code_digest, digest, facts
from plures.run.kernels import for_the_process
from plures.run.machine import Machine
from plures.run.memory import fitting
from plures.run.steps import read_by
from plures.run.training import Training

log = logging.getLogger("plures")

MEASURED_STEPS = 12
REPEATS, ENOUGH = (3, 10), 0.1
"""Smallest and largest number of visits to time, as far as the budget allows; and the number of seconds after which the
smallest number is enough."""
HOPELESS = 1.2
"""Larger stacks are not measured once the largest one so far takes this many times as long per client as the best."""
LOOP_MEMORY = 1 << 27
"""Bytes of states that a chunk of clients trained one after the other may take."""
TAKEN_OUT = r'[\\/:*?"<>|]'
"""Characters that PyTorch replaces in a user's name to name that user's folder of compiled steps."""
SHORT = 0.5
"""Seconds. A run that takes less, one client after the other, is not measured further: that would take as long."""
GLANCE = 4
"""Number of steps of one client from which the length of a run is estimated."""
SHARE, LEAST = 0.05, 2.0
"""Budget for measuring: this share of the run or this many seconds, whichever is more."""
SIZES = (8, 32, 1, 128)
"""Stack sizes to measure first, the most promising first; times of sizes in between are interpolated."""
REFINED, NEAR = 3, 1.1
"""Largest number of sizes to measure after those, as far as the budget allows: those whose interpolated time is at most
this many times the shortest one."""
COMPILED, COMPILED_CONVOLUTIONS = 0.5, 0.9
"""Expected time of a compiled step as a fraction of an uncompiled one, without and with convolutions, until a step of
the network has been measured.

Compilation speeds up everything but convolutions, and these may take most of the time on a CPU: compiled steps of a
2-D network took 0.8 of the time, those of a 1-D network all of it. Where the budget for measuring covers a compilation,
the first figure is used for convolutions, too, so that one step is compiled and measured.
"""
COMPILED_TAPE = 0.95
"""The same fraction of a step that is captured on a CPU, which compiled steps mostly did not reach; so a compilation is
tried only if the budget for measuring still covers it."""
COMPILED_ON_GPU, COMPILATION_ON_GPU = 0.75, 20.0
"""The same fraction for a captured step on a GPU, and the expected seconds of a compilation there, until measured."""
SPARED, HOPED = 0.8, 0.8
"""Share of a step's fixed cost (the same for any number of clients) that compilation is expected to save; and the
expected time of a compiled step of another size, as a fraction of what the measured compiled steps predict.
"""
COMPILATIONS = 2
"""Largest number of chunk sizes whose steps are compiled in order to measure them."""


def choose(
    bound: Bound,
    federation: Federation,
    training: Training,
    wanted: Execution,
    seed: int,
    cohort: int,
    machine: Machine | None = None,
) -> Execution:
    """Settle every option that is ``auto``. The run itself is not touched: the measured steps train copies.

    If a few steps show that all rounds take less than :data:`SHORT`, clients are trained one after the other.

    Args:
        bound: the method, resolved against its network.
        federation: the data, on the device.
        training: local work.
        wanted: the user's options, some of which may be ``auto``.
        seed: the run's seed.
        cohort: number of clients in a round.
        machine: measurements of earlier runs, which are not repeated; this run's are added.
    """
    wanted = replace(wanted, threads=1) if wanted.threads == "auto" and not wanted.settled else wanted
    choice = Choice(bound, federation, training, wanted, seed, cohort, machine or Machine())
    if (simple := choice.unmeasured()) is not None:
        return simple
    choice.wanted = possible(bound, federation, training, wanted, seed)
    if choice.wanted.settled:
        return choice.wanted
    if not choice.timed:
        choice.compare()
    best = choice.best()
    others = "; ".join(f"{named(e)}: {lasting(t)}" for e, t in choice.timed.items() if e != best)
    log.info(
        "auto takes %s in %s: %s a round%s (measured in %s)",
        named(best),
        best.precision,
        lasting(choice.timed[best]),
        f", in place of {others}" if others else "",
        lasting(choice.spent),
    )
    return best


@dataclass(frozen=True)
class Pace:
    """The measured speed of a visit of some clients.

    Attributes:
        fixed: seconds of a visit apart from its steps.
        step: seconds of one step of all these clients.
        first: extra seconds that the first visit took, for instance to compile.
        spent: seconds that the measurement took, without them.
    """

    fixed: float
    step: float
    first: float = 0.0
    spent: float = 0.0


@brief
@dataclass
class Choice:
    """The measurements for one kind of work, and the execution that they suggest.

    Attributes:
        wanted: the user's options; those that are possible, once that is known.
        spent: seconds spent on measuring, with compilations.
    """

    bound: Bound
    federation: Federation
    training: Training
    wanted: Execution
    seed: int
    cohort: int
    machine: Machine
    spent: float = 0.0

    def __post_init__(self) -> None:
        self._engine: Engine | None = None
        self.phases = [item for item in self.bound.method.schedule if isinstance(item, Phase)]

    @cached_property
    def steps(self) -> list[NDArray[np.int64]]:
        """Number of steps of each client of a typical cohort in each phase."""
        return [steps_of(phase, self.federation, self.training, self.cohort) for phase in self.phases]

    @cached_property
    def timed(self) -> dict[Execution, float]:
        """Seconds of a round by execution."""
        return self.machine.timings.setdefault(self._kind, {})

    @cached_property
    def paces(self) -> dict[bool | str, dict[int, list[Pace]]]:
        """Pace of each phase in uncompiled stacks, by whether steps are captured and by number of clients."""
        return self.machine.paces.setdefault(self._kind, {})

    @cached_property
    def _kind(self) -> str:
        return kind_of_work(self.bound, self.federation, self.training, self.wanted, self.steps)

    @cached_property
    def _network(self) -> str:
        return digest(repr((facts(self.bound.network.module, tensors=False), self.wanted)).encode())

    def unmeasured(self) -> Execution | None:
        """One client after the other, if the options allow it and the run, on a CPU, is too short to be measured."""
        wanted, training = self.wanted, self.training
        free = wanted.backend != "vmap" and wanted.compile is not True and wanted.convolutions == "auto"
        if wanted.settled or not free or wanted.torch_device.type != "cpu":
            return None
        wanted = replace(wanted, precision="float32" if wanted.precision == "auto" else wanted.precision)
        simple = one_by_one(wanted, loop_chunk(self.bound, self.cohort) if wanted.chunk == "auto" else wanted.chunk)
        engine = Engine(self.bound, self.federation, training, simple, self.seed, self.machine)
        clients = largest(self.federation, 1)

        def seconds(count: int) -> float:
            """How long ``count`` steps of every phase take."""
            x, received = copies(self.bound, 1)
            begun = time.perf_counter()
            short = tuple(replace(phase, steps=count, epochs=None) for phase in self.phases)
            engine.visit(x, received, clients, 0, short)
            return time.perf_counter() - begun

        if seconds(1) > SHORT / GLANCE:
            return None
        most = self.rounds * max((int(steps.sum()) for steps in self.steps), default=0)
        return simple if most * seconds(GLANCE) / GLANCE < SHORT else None

    @property
    def on_cuda(self) -> bool:
        return self.wanted.torch_device.type == "cuda"

    @property
    def recording(self) -> bool:
        """Whether stacks on a CPU are captured where they are not compiled."""
        wanted = self.wanted
        return wanted.backend != "loop" and wanted.capture is not False and wanted.compile is not True

    @property
    def compiled(self) -> float:
        """Expected time of a compiled step as a fraction of an uncompiled one, until one has been measured."""
        if self.on_cuda:
            return COMPILED_ON_GPU
        unlikely = self.bound.network.convolves and self.machine.compilation > self.allowed
        return COMPILED_CONVOLUTIONS if unlikely else COMPILED

    @property
    def rounds(self) -> int:
        """Number of rounds that the choice is for."""
        return self.training.rounds if self.machine.rounds is None else self.machine.rounds

    @property
    def allowed(self) -> float:
        """Seconds that may still be spent on measuring."""
        length = min(self.timed.values(), default=0.0) * self.rounds
        return max(LEAST, SHARE * length) - self.spent

    def compare(self) -> None:
        """Measure the loop backend and stacks of several sizes, as far as the budget allows."""
        wanted = self.wanted.capture
        base = replace(self.wanted, compile=False, capture=wanted is True if self.on_cuda else self.recording)
        if self.on_cuda and base.backend != "loop":
            for candidate in self.on_gpu(base):
                self.attempt(candidate)
        else:
            if base.backend != "vmap":
                together = loop_chunk(self.bound, self.cohort) if base.chunk == "auto" else base.chunk
                self.attempt(one_by_one(base, together))
            if base.backend != "loop":
                self.stacks(replace(base, backend="vmap"))
        if not any(math.isfinite(seconds) for seconds in self.timed.values()):
            self.attempt(one_by_one(base, 1))

    def on_gpu(self, base: Execution) -> list[Execution]:
        """Candidates on a CUDA device: stacks as large as memory allows, with and without captured steps."""
        base = replace(base, backend="vmap", capture=False)
        short = tuple(replace(phase, steps=1, epochs=None) for phase in self.phases)

        def visit(count: int) -> None:
            clients = largest(self.federation, count)
            engine = Engine(self.bound, self.federation, self.training, replace(base, chunk=count), self.seed)
            engine.visit(*copies(self.bound, len(clients)), clients, 0, short)

        if base.chunk == "auto":
            rows = self.cohort + (0 if base.clients_on_disk else len(self.federation))
            held = rows * stored_bytes(self.bound)
            base = replace(base, chunk=fitting(visit, self.federation.inputs.device, self.cohort, held))
        captured = (True, False) if self.wanted.capture == "auto" else (self.wanted.capture,)
        return [replace(base, capture=capture) for capture in captured]

    def stacks(self, base: Execution) -> None:
        """Measure stacks of several sizes, and record the best chunk size."""
        found: dict[int, list[Pace]] = {}
        sizes = SIZES if base.chunk == "auto" else (base.chunk, max(1, base.chunk // 4))
        for size in dict.fromkeys(min(size, self.cohort) for size in sizes):
            each = {n: sum(pace.step for pace in paces) / n for n, paces in found.items()}
            expected = max(each.values(), default=0.0) * size
            worse = bool(each) and size > max(each) and each[max(each)] > HOPELESS * min(each.values())
            if worse or ((self.timed or each) and expected >= self.allowed):
                continue
            paces = self.paced(replace(base, chunk=size))
            if paces is None:
                break
            found[size] = paces
        if found:
            self.paces[base.capture is True] = found
            seconds = self.refined(base, found)
            best = min(seconds, key=seconds.__getitem__)
            self.timed[replace(base, chunk=best)] = seconds[best]

    def refined(self, base: Execution, found: dict[int, list[Pace]]) -> dict[int, float]:
        """Seconds of a round by chunk size, after measuring the most promising of those that were interpolated.

        Args:
            base: the execution, apart from the chunk size.
            found: paces of all phases by number of clients; what is measured is added.
        """
        chunks = even(self.cohort) if base.chunk == "auto" else [base.chunk]
        for _ in range(REFINED):
            seconds = {chunk: self.round(found, chunk) for chunk in chunks}
            near = NEAR * min(seconds.values())
            ahead = sorted((t, chunk) for chunk, t in seconds.items() if t <= near and chunk not in found)
            longest = max(sum(pace.spent for pace in paces) for paces in found.values())
            if not ahead or longest > self.allowed:
                return seconds
            paces = self.paced(replace(base, chunk=ahead[0][1]))
            if paces is None:
                return seconds
            found[ahead[0][1]] = paces
        return {chunk: self.round(found, chunk) for chunk in chunks}

    def paced(self, candidate: Execution) -> list[Pace] | None:
        """The paces of all phases; ``None`` if the candidate does not run."""
        try:
            found = [
                pace(self.bound, self.federation, self.training, candidate, self.seed, phase, self.machine, share)
                for phase in self.phases
                for share in [self.allowed / (4 * len(self.phases))]
            ]
        except RuntimeError as error:
            if candidate.backend == "loop":
                raise
            log.warning("%s did not run: %s", named(candidate), first_line(error))
            return None
        self.spent += sum(each.spent + each.first for each in found)
        return found

    def attempt(self, candidate: Execution) -> None:
        """Measure one candidate."""
        assert isinstance(candidate.chunk, int)
        paces = self.paced(candidate)
        if paces is None:
            self.timed[candidate] = math.inf
        elif candidate.backend == "loop":
            each = zip(paces, self.steps, strict=True)
            self.timed[candidate] = sum(len(n) * p.fixed + float(n.sum()) * p.step for p, n in each)
        else:
            found = {candidate.chunk: paces}
            if not candidate.compile:
                self.paces.setdefault(candidate.capture is True, found)
            self.timed[candidate] = self.round(found, candidate.chunk, candidate.compile is True)
            if candidate.compile and (known := self.paces.get(candidate.capture if self.on_cuda else self.recording)):
                plain = self.round(known, candidate.chunk, compiled=True)
                self.machine.gains[self._network] = self.timed[candidate] / plain

    def round(self, found: dict[int, list[Pace]], chunk: int, compiled: bool = False) -> float:
        """Seconds of a round with stacks of a given size.

        Args:
            found: paces of all phases by number of clients.
            chunk: number of clients in a stack.
            compiled: whether clients that have finished continue, masked, until the last one has finished.
        """
        total, known = 0.0, sorted(found)
        for number, steps in enumerate(self.steps):
            paces = [found[n][number] for n in known]
            clients = np.arange(1, chunk + 1)
            step = np.interp(clients, known, [pace.step for pace in paces])
            fixed = np.interp(clients, known, [pace.fixed for pace in paces])
            for first in range(0, len(steps), chunk):
                own = steps[first : first + chunk]
                total += float(fixed[len(own) - 1])
                if compiled:
                    total += float(own[0] * step[len(own) - 1])
                else:
                    total += float(((own - np.append(own[1:], 0)) * step[: len(own)]).sum())
        return total

    # --- compilation --------------------------------------------------------------------------------------------

    def best(self) -> Execution:
        """The execution with the shortest time for all rounds, including compilations that are still needed.

        A compiled candidate that promises to be faster than all measured ones is measured before the choice is made.
        """
        while True:
            totals = {execution: self.total(execution, seconds) for execution, seconds in self.timed.items()}
            best = min(totals, key=totals.__getitem__)
            hoped = self.hoped()
            tries = {e: self.total(e, seconds) for e, seconds in hoped.items()}
            promising = min(tries, key=tries.__getitem__, default=None)
            forced = self.wanted.compile is True and not any(e.compile for e in self.timed)
            if promising is None or not (forced or tries[promising] < totals[best]):
                break
            self.attempt(promising)
        if self.wanted.compile is True:
            totals = {e: t for e, t in totals.items() if e.compile or e.backend == "loop"}
        return min(totals, key=totals.__getitem__)

    def total(self, execution: Execution, seconds: float) -> float:
        """Seconds of all rounds, including compilations that are still needed."""
        expected = self.machine.compilation
        if self.on_cuda and not self.machine.compilations:
            expected = COMPILATION_ON_GPU
        return self.rounds * seconds + (self.missing(execution) * expected if execution.compile else 0)

    def missing(self, execution: Execution) -> int:
        """Number of steps that an execution still has to compile."""
        assert isinstance(execution.chunk, int)
        sizes = {min(execution.chunk, self.cohort), self.cohort % execution.chunk} - {0}
        if self._engine is None:
            self._engine = Engine(self.bound, self.federation, self.training, execution, self.seed, self.machine)
        return self._engine.uncompiled(self.phases, sizes)

    def hoped(self) -> dict[Execution, float]:
        """Compiled executions that could be measured, with the expected seconds of a round."""
        kept = self.wanted.capture is True and not self.on_cuda
        if self.wanted.compile is False or self.bound.network.batch_coupled or kept:
            return {}
        found: dict[Execution, float] = {}
        for execution in [e for e in self.timed if e.backend == "vmap" and not e.compile]:
            if execution.capture not in self.paces:
                continue
            paces = self.paces[execution.capture]
            base = replace(execution, compile=True, capture=execution.capture and self.on_cuda)
            done = {e.chunk: t for e, t in self.timed.items() if e.compile and e.capture == base.capture}
            if len(done) >= COMPILATIONS or math.inf in done.values():
                continue
            free = self.wanted.chunk == "auto" and self.wanted.torch_device.type == "cpu"
            chunks = even(self.cohort) if free else [execution.chunk]
            masked = {chunk: self.round(paces, chunk, compiled=True) for chunk in chunks if isinstance(chunk, int)}
            expected = self.compiled
            if base.capture != execution.capture:
                expected = max(expected, COMPILED_TAPE if self.machine.compilation <= self.allowed else 1.0)
            gain = self.machine.gains.get(self._network, expected)
            if done.keys() & masked.keys():
                masked = {chunk: self.round(bare(paces), chunk, compiled=True) for chunk in masked}
                gain = HOPED * min(seconds / masked[chunk] for chunk, seconds in done.items() if chunk in masked)
            found |= {replace(base, chunk=c): gain * t for c, t in masked.items() if c not in done}
        return found


def bare(found: dict[int, list[Pace]]) -> dict[int, list[Pace]]:
    """Paces without most of a step's fixed cost, which compilation saves.

    So smaller stacks are better with compiled steps: there are more steps, but each uses less memory.

    Args:
        found: paces of all phases by number of clients. The fixed cost is where the line through the two smallest
            numbers of clients reaches zero clients.
    """
    if len(found) < 2:
        return found
    few, some = sorted(found)[:2]
    spared = [
        SPARED * max(0.0, (some * small.step - few * large.step) / (some - few))
        for small, large in zip(found[few], found[some], strict=True)
    ]
    return {
        clients: [
            replace(pace, step=max(0.1 * pace.step, pace.step - less)) for pace, less in zip(paces, spared, strict=True)
        ]
        for clients, paces in found.items()
    }


def unthreaded(bound: Bound, federation: Federation) -> str | None:
    """Why clients cannot be trained in several threads, or ``None`` if they can."""
    if for_the_process(bound.network.module):
        return "kernels of recurrent and attention layers are selected for the whole process"
    if any(isinstance(part, Mapped) for part in parts(federation.inputs)) and not hasattr(os, "preadv"):
        return "on this system, examples on disk are read in one thread"
    return None


def even(cohort: int) -> list[int]:
    """Chunk sizes of at most 128 that divide a cohort into chunks of equal size, or nearly so."""
    return sorted({-(-cohort // parts) for parts in range(-(-cohort // 128), cohort + 1)})


def possible(bound: Bound, federation: Federation, training: Training, wanted: Execution, seed: int) -> Execution:
    """The wanted options as far as this device and model allow them; logs which ones were dropped, and why."""
    if wanted.precision == "auto":
        wanted = replace(wanted, precision="float32")
    if wanted.threads not in (1, "auto") and (alone := unthreaded(bound, federation)) is not None:
        log.warning("clients are trained in one thread: %s", alone)
        wanted = replace(wanted, threads=1)
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
    """What ``torch.compile`` needs and this machine lacks, such as a C++ compiler; ``None`` if nothing is missing."""
    if sys.platform == "win32":
        return None
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler} (Debian: apt install g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's header files are not installed (Debian: apt install python3-dev)"
    if not own_cache():
        return "others may write where PyTorch keeps compiled steps: set TORCHINDUCTOR_CACHE_DIR to your own folder"
    return None


def own_cache() -> bool:
    """Whether only this user may write to the folder from which ``torch.compile`` loads code.

    By default it has a predictable name in a folder shared by all users, where another user may have created it first.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return True
    folder = Path(tempfile.gettempdir()) / f"torchinductor_{re.sub(TAKEN_OUT, '_', getpass.getuser())}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & stat.S_IWOTH


def unstackable(bound: Bound, federation: Federation, training: Training, wanted: Execution, seed: int) -> str | None:
    """Why this model and method cannot run on stacked clients, or ``None`` if they can; tries a step of two clients."""
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


def named(execution: Execution) -> str:
    """An execution in words."""
    beside = [f"in {execution.threads} threads"] if execution.threads not in (1, "auto") else []
    if execution.backend == "loop":
        return ", ".join(["one client after the other", *beside])
    done = {"compiled": execution.compile, "captured": execution.capture}
    return ", ".join(
        [f"stacks of {execution.chunk} clients", *(what for what, wanted in done.items() if wanted is True), *beside]
    )


def lasting(seconds: float) -> str:
    """A duration as text for a message."""
    if math.isinf(seconds):
        return "did not run"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


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


def steps_of(phase: Phase, federation: Federation, training: Training, cohort: int) -> NDArray[np.int64]:
    """Number of steps of each client of a typical cohort in one phase, in non-increasing order."""
    sizes = federation.splits["train"].sizes.sort(descending=True).values.numpy()
    sizes = sizes[np.linspace(0, len(sizes) - 1, cohort).round().astype(np.int64)]
    own = phase.epochs is not None or phase.steps is not None
    steps = phase.steps if own else training.steps
    if callable(steps):
        steps = steps(0.5)
    if steps is not None:
        return np.full_like(sizes, steps)
    epochs = phase.epochs if phase.epochs is not None else training.passes
    batches = -(-sizes // (training.batch_size or int(sizes.max(initial=1))))
    return np.ceil(epochs * batches / phase.batches).astype(np.int64)


def kind_of_work(
    bound: Bound, federation: Federation, training: Training, wanted: Execution, steps: Sequence[NDArray[np.int64]]
) -> str:
    """What the time of a round depends on, as one string; values of hyper-parameters and data are left out.

    Args:
        steps: number of steps of each client of a cohort in each phase.
    """
    phases = [item for item in bound.method.schedule if isinstance(item, Phase)]
    shapes = [[(*leaf, tuple(bound.initial[leaf.slot][leaf.path].shape)) for leaf in read_by(bound, p)] for p in phases]
    about = (
        facts(bound.network.module, tensors=False),
        shapes,
        [
            (bound.trained(phase), phase.batches, named_code(phase.objective), named_code(phase.before))
            for phase in phases
        ],
        [each.tolist() for each in steps],
        [type(phase.optimizer or training.optimizer).__name__ for phase in phases],
        [getattr(phase.optimizer or training.optimizer, "slots", 0) for phase in phases],
        (training.batch_size, training.clip is None, federation.features, federation.task.kind),
        (wanted, torch.get_num_threads()),
    )
    return digest(repr(about).encode())


def named_code(function: Callable[..., object] | None) -> tuple[str, str] | None:
    """A function's name and a digest of its code; what it closes over is ignored."""
    while isinstance(function, functools.partial):
        function = function.func
    if function is None:
        return None
    code = getattr(function, "__code__", None)
    return getattr(function, "__qualname__", type(function).__qualname__), code_digest(code) if code else ""


def one_by_one(base: Execution, chunk: int) -> Execution:
    """The loop backend, without options that only apply to stacks."""
    return replace(base, backend="loop", chunk=chunk, compile=False, capture=False, convolutions="auto")


def loop_chunk(bound: Bound, cohort: int) -> int:
    """Chunk size for the loop backend: large enough to share the planning, small enough to use little memory."""
    size = sum(t.nbytes for leaves in bound.initial.values() for t in leaves.values())
    return max(1, min(cohort, 32, LOOP_MEMORY // size))


def pace(
    bound: Bound,
    federation: Federation,
    training: Training,
    execution: Execution,
    seed: int,
    phase: Phase,
    machine: Machine,
    allowed: float,
) -> Pace:
    """Measure visits with few and with more steps, on copies of the initial leaves.

    Args:
        execution: backend, chunk, compilation and precision.
        phase: the phase to measure.
        machine: keeps compiled steps.
        allowed: budget in seconds, without compilation; two visits are always made.

    Returns:
        The pace of the clients with the most data: of a whole chunk, or of one client with the loop backend.
    """
    chunk = execution.chunk
    assert isinstance(chunk, int)
    clients = largest(federation, chunk if execution.backend == "vmap" else min(chunk, 4))
    engine = Engine(bound, federation, training, execution, seed, machine)
    begun, length = time.perf_counter(), 1
    measured = (replace(phase, steps=lambda _: length, epochs=None),)  # one phase, so its steps are recorded once

    def visit(steps: int) -> float:
        nonlocal length
        length = steps
        x, received = copies(bound, len(clients))
        started = time.perf_counter()
        engine.visit(x, received, clients, 0, measured)
        if federation.inputs.device.type == "cuda":
            torch.cuda.synchronize(federation.inputs.device)
        return time.perf_counter() - started

    compiling = visit(1) if execution.compile is True else 0.0
    if execution.capture is True:  # the second visit records
        visit(1)
        visit(MEASURED_STEPS)
    one = visit(1)
    if one < allowed / 8:  # the first visit may include one-time work
        one = min(one, visit(1))
    if execution.compile is True:
        machine.compilations.append(max(0.0, compiling - one))
        begun += compiling
    more = 1 + max(2, min(MEASURED_STEPS, int(allowed / (4 * one))))
    if execution.capture is True:  # steps of other widths may have to be recorded
        visit(more)
    few, many = one, visit(more)
    for repeat in range(1, REPEATS[1]):
        elapsed = time.perf_counter() - begun
        if elapsed + one + many > allowed or (repeat >= REPEATS[0] and elapsed > ENOUGH):
            break
        few, many = min(few, visit(1)), min(many, visit(more))
    each = 1 if execution.backend == "vmap" else len(clients)
    step = max(many - few, 0.1 * many) / (more - 1)
    return Pace(max(0.0, few - step) / each, step / each, max(0.0, compiling - one), time.perf_counter() - begun)
