"""Captured steps: one step of a stack of clients, recorded once on the device and replayed without Python.

A step of a small model is a hundred small operations, and starting them from Python takes longer than their work. On a
GPU, a CUDA graph holds them all and is started as one; on a CPU, a tape (:mod:`plures.run.tape`) repeats them. A
recorded step always reads and writes the same memory, so everything it needs is kept in buffers: leaves, the
optimizer's memory, the batches of all steps, the next step's number and the rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.run.batches import Batches
from plures.run.tape import Tapes

Tensors = list[Tensor]

WIDTHS = 3
"""Number of sizes of batches for which unpadded steps are recorded, the most frequent ones; others are padded."""
AHEAD = 1 << 20
"""Bytes of batches for which there is room from the first visit on, however short it is: a longer one is then fed at
once, and not in pieces."""
MIXED = 30
"""Number of visits from which steps without padding are recorded beside padded ones, which have a third more
operations. It takes about a quarter of a second more for twenty clients."""
WORTH = 4
"""Number of steps from which recording pays off in a run of one visit."""


class Part(NamedTuple):
    """Clients that step together: views of the stack, or copies of some of its rows.

    Attributes:
        trained: leaves that the steps train.
        rest: all other leaves that the phase reads.
        received: leaves at the start of the visit.
        memory: the optimizer's state.
    """

    trained: Tensors
    rest: Tensors
    received: Tensors
    memory: list[Tensors]


Step = Callable[[Part, Tensors, Tensors, Tensors, Tensor | float, Tensor], Tensor]
"""``(part, rows, counts, keys, rate, number) -> losses`` of one step of a part; see ``Stacked._step``."""


class Recorder(Protocol):
    """Records work on a device.

    Attributes:
        share: once this share of a stack's clients are left, a recorded step of that size takes over.
    """

    share: float

    def __call__(self, work: Callable[[], None]) -> Callable[[int], None]:
        """A function that repeats the work on the same memory, as often as it is told.

        While it is being recorded, the work may run any number of times.

        Raises:
            RuntimeError: if the work cannot be recorded, for instance because it waits for a value from the device.
        """


class CudaGraphs:
    """Records CUDA graphs; the memory of their intermediate values is shared, so only one may run at a time."""

    share = 0.5

    def __init__(self, still: Sequence[Tensor] = ()) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[int], None]:
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()

        def replay(times: int) -> None:
            for _ in range(times):
                graph.replay()

        return replay


RECORDERS: Mapping[str, Callable[[Sequence[Tensor]], Recorder]] = {"cpu": Tapes, "cuda": CudaGraphs}
"""The recorder for each type of device; it is told which tensors never change."""


class Kind(NamedTuple):
    """What distinguishes one recorded step from another.

    Attributes:
        clients: number of clients in the step.
        widths: examples of each of the step's batches.
        padded: whether some of them may be padding.
        rate: learning rate, if only one has been used so far; ``None`` if the step reads it from a buffer, which costs
            more.
    """

    clients: int
    widths: tuple[int, ...]
    padded: bool
    rate: float | None


class Recordings:
    """Recorded steps, and the memory that they read and write. Runs whose steps compute the same may share them.

    Nothing is left in them by a visit, which loads all that its steps read.

    Args:
        recorder: records steps.
        clients: the largest stack.
        dtype: type of the losses.
        smaller: whether to record steps of smaller stacks too.
        several: whether several learning rates are expected, so that steps read theirs from the first on.
        held: tensors that the steps read besides that memory, such as the examples.
    """

    def __init__(
        self,
        recorder: Recorder,
        clients: int,
        dtype: torch.dtype,
        *,
        smaller: bool,
        several: bool = False,
        held: Sequence[Tensor] = (),
    ) -> None:
        self._recorder, self._dtype, self._several, self.held = recorder, dtype, several, list(held)
        self.sizes = sizes(clients, recorder.share) if smaller else [clients]
        self._replays: dict[Kind, Callable[[int], None]] = {}
        self._buffers: Buffers | None = None
        self._rates = set[float]()

    def __deepcopy__(self, memo: dict[int, Any]) -> Recordings:
        """Steps are bound to their memory, so a copy begins without any."""
        made = copy.copy(self)
        made._recorder, made.held = copy.deepcopy((self._recorder, self.held), memo)
        made._replays, made._buffers, made._rates = {}, None, set()
        return made

    def reads(self, examples: Sequence[Tensor]) -> bool:
        """Whether the steps read these very tensors."""
        return [id(one) for one in self.held] == [id(one) for one in examples]

    @property
    def nbytes(self) -> int:
        """Size of the memory, in bytes."""
        return 0 if self._buffers is None else self._buffers.nbytes

    def replay(self, kind: Kind, times: int) -> None:
        """Repeat a step that is recorded."""
        self._replays[kind](times)

    def prepared(
        self, step: Step, part: Part, plan: Batches, kinds: list[Kind], keys: Tensor | None, rate: float
    ) -> tuple[Buffers, list[Kind]]:
        """Buffers loaded with the start of a visit, and the steps to replay; those not recorded yet are recorded."""
        buffers = self._buffers
        if buffers is None or not buffers.fit(part, plan):
            self._replays.clear()
            buffers = self._buffers = Buffers(part, plan, keys, self.sizes[0], self._dtype)
        self._rates.add(rate)
        fixed = rate if len(self._rates) == 1 and not self._several else None
        self._replays = {kind: replay for kind, replay in self._replays.items() if kind.rate == fixed}
        kinds = [kind._replace(rate=fixed) for kind in kinds]
        new = [kind for kind in dict.fromkeys(kinds) if kind not in self._replays]
        for kind in sorted(new, key=lambda kind: -kind.clients):
            buffers.load(part, plan, keys, rate)  # recording a step moves on to the next, of which there may be none
            self._replays[kind] = self._recorder(work_of(step, buffers, kind))
        buffers.load(part, plan, keys, rate)
        return buffers, kinds


class Captured:
    """The steps of one phase of a run for stacks of clients, each recorded when it is first needed.

    Clients are sorted by decreasing number of steps. A client's values are read after its last step; what the stack
    computes for it later, while others still train, is never read, so nothing is masked. When enough of them are
    done, a step of a smaller stack takes over.

    Args:
        recordings: the recorded steps, possibly of earlier runs that compute the same.
        written: positions, in a part's ``rest``, of the leaves that steps change.
        dtype: type of the losses.
        widths: sizes of the batches of all clients, the most frequent first.
        visits: number of visits of a client to expect.
    """

    def __init__(
        self, recordings: Recordings, written: list[int], dtype: torch.dtype, *, widths: Sequence[int], visits: int
    ) -> None:
        self._recordings, self._written, self._dtype = recordings, written, dtype
        self._exact = set(widths[:WIDTHS])
        self._rates = set[float]()
        self._visits = visits

    def kinds(self, plan: Batches, rate: float) -> list[Kind]:
        """What to replay for each step of a plan; unpadded if all clients have batches of the same size.

        In a run of few visits, all steps of a plan are padded if one is: fewer have to be recorded.

        Whether a step is padded depends on the plan alone, not on what the run has trained before: padded steps round
        differently, and a run that is resumed must take the same steps as one that goes on.
        """
        self._rates.add(rate)
        fixed = rate if len(self._rates) == 1 else None
        stacks = [min(size for size in self._recordings.sizes if size >= active) for active in plan.active]
        widths = [even(counts[:, :active]) for counts, active in zip(plan.counts, plan.active, strict=True)]
        exact = [width if width is not None and self._exact.issuperset(width) else None for width in widths]
        if self._visits < MIXED and None in exact:
            exact = [None] * len(exact)
        full = (plan.rows.shape[3],) * plan.rows.shape[1]
        return [Kind(size, width or full, width is None, fixed) for size, width in zip(stacks, exact, strict=True)]

    def worth(self, plan: Batches) -> bool:
        """Whether recording a plan's steps pays off; like :meth:`kinds`, whatever was done before."""
        return len(plan.rows) >= WORTH or self._visits > 1

    def __call__(
        self, step: Step, part: Part, plan: Batches, kinds: list[Kind], keys: Tensor | None, rate: float
    ) -> Tensor:
        """Train a part in place; see ``Steps.__call__``.

        Args:
            step: one step of a part.
            part: all clients of the stack.
            plan: their batches.
            kinds: the recorded step to replay for each step; see :meth:`kinds`.
            keys: ``(steps, clients)`` dropout keys; ``None`` when nothing is random.
            rate: learning rate.

        Raises:
            RuntimeError: if a step cannot be recorded. In that case nothing has been changed.
        """
        buffers, kinds = self._recordings.prepared(step, part, plan, kinds, keys, rate)
        losses = plan.rows.new_zeros(2, len(plan.steps), dtype=self._dtype)
        for first, last in alike(kinds, plan.active, buffers.steps):
            if first and first % buffers.steps == 0:
                buffers.load_steps(plan, keys, first)
            self._recordings.replay(kinds[first], last - first)
            active, rest = plan.active[first], plan.active[last] if last < len(plan.active) else 0
            if rest < active:
                buffers.unload(part, losses, slice(rest, active), self._written)
        return losses


def work_of(step: Step, buffers: Buffers, kind: Kind) -> Callable[[], None]:
    """One step on buffers, which at its end advances them to the next step."""
    part, first = buffers.first(kind.clients), slice(0, kind.clients)

    def work() -> None:
        each = list(enumerate(kind.widths))
        index = [buffers.rows[:, n, first, :width].index_select(0, buffers.next)[0] for n, width in each]
        padded = [buffers.counts[:, n, first].index_select(0, buffers.next)[0] for n, _ in each * kind.padded]
        keys = [] if buffers.keys is None else [buffers.keys.index_select(0, buffers.next)[0, first]]
        rate = buffers.rate if kind.rate is None else kind.rate
        buffers.losses[:, first].add_(step(part, index, padded, keys, rate, buffers.number))
        buffers.next.add_(1)
        buffers.number.add_(1)

    return work


class Buffers:
    """Memory that recorded steps read and write.

    Leaves that all clients share, and that no step changes, take one row.

    Args:
        part: leaves of the shapes that will be loaded.
        plan: batches of the widths that will be loaded.
        keys: ``(steps, clients)`` dropout keys, or ``None``.
        clients: largest number of clients.
        dtype: type of the losses.

    Attributes:
        steps: number of steps whose batches fit: those of the first plan, or more, if they are small.
        rows, counts, keys: the batches of these steps.
        next: index of the next of these steps, ``(1,)``.
        number: number of that step, from 1.
        rate: learning rate.
        losses: ``(2, clients)`` sums over the steps so far.
    """

    def __init__(self, part: Part, plan: Batches, keys: Tensor | None, clients: int, dtype: torch.dtype) -> None:
        steps, batches, _, width = plan.rows.shape
        self.steps = steps = max(steps, AHEAD // max(1, 16 * batches * clients * width))
        device = plan.rows.device

        def like(leaf: Tensor, *, shared: bool) -> Tensor:
            if shared and leaf.stride(0) == 0:
                return torch.empty_like(leaf[:1]).expand(clients, *leaf.shape[1:])
            return leaf.new_empty(clients, *leaf.shape[1:])

        trained, *memory = ([like(leaf, shared=False) for leaf in leaves] for leaves in (part.trained, *part.memory))
        rest, received = ([like(leaf, shared=True) for leaf in leaves] for leaves in (part.rest, part.received))
        self.part = Part(trained, rest, received, memory)
        self.rows = torch.zeros(steps, batches, clients, width, dtype=torch.int64, device=device)
        self.counts = torch.ones(steps, batches, clients, dtype=torch.int64, device=device)
        self.keys = None if keys is None else torch.zeros(steps, clients, dtype=torch.int64, device=device)
        self.next = torch.zeros(1, dtype=torch.int64, device=device)
        self.number, self.rate = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self.losses = torch.zeros(2, clients, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Size of this memory, in bytes."""
        each = [*self.part[0], *self.part[1], *self.part[2], *(kept for some in self.part.memory for kept in some)]
        return sum(leaf[:1].nbytes if leaf.stride(0) == 0 else leaf.nbytes for leaf in [*each, self.rows, self.counts])

    def first(self, clients: int) -> Part:
        """Views of the first clients' leaves."""
        trained, rest, received = ([leaf[:clients] for leaf in leaves] for leaves in self.part[:3])
        return Part(trained, rest, received, [[kept[:clients] for kept in some] for some in self.part.memory])

    def fit(self, part: Part, plan: Batches) -> bool:
        """Whether a part and its batches fit; they do not, for instance, if a leaf that clients shared no longer is."""
        held = [*self.part.rest, *self.part.received]
        alike = all(
            mine.stride(0) != 0 or leaf.stride(0) == 0 or len(leaf) == 1
            for mine, leaf in zip(held, [*part.rest, *part.received], strict=True)
        )
        return alike and plan.rows.shape[1::2] == self.rows.shape[1::2]

    def load(self, part: Part, plan: Batches, keys: Tensor | None, rate: float) -> None:
        """Load the start of a visit. Rows without a client get the first client's values."""
        count = len(plan.steps)
        into, values = Tensors(), Tensors()
        for mine, leaves in zip(self.part[:3], part[:3], strict=True):
            for held, leaf in zip(mine, leaves, strict=True):
                if held.stride(0) == 0:
                    into.append(held[:1])
                    values.append(leaf[:1])
                    continue
                into.append(held[:count])
                values.append(leaf)
                if count < len(held):
                    held[count:].copy_(leaf[:1])
        copied(into, values)
        for some in self.part.memory:
            for kept in some:
                kept.zero_()
        self.rate.fill_(rate)
        self.losses.zero_()
        self.load_steps(plan, keys, 0)

    def load_steps(self, plan: Batches, keys: Tensor | None, start: int) -> None:
        """Load the batches of as many steps from ``start`` on as fit."""
        count, steps = len(plan.steps), slice(start, start + self.steps)
        amounts = torch.from_numpy(plan.counts[steps]).to(self.counts.device)
        whole = [(self.rows, plan.rows[steps]), (self.counts, amounts)]
        for held, values in whole:
            held[: len(values), :, :count].copy_(values)
            if count < held.shape[2]:
                held[: len(values), :, count:].copy_(values[:, :, :1])
        if self.keys is not None and keys is not None:
            some = keys[steps]
            self.keys[: len(some), :count].copy_(some)
            if count < self.keys.shape[1]:
                self.keys[: len(some), count:].copy_(some[:, :1])
        self.next.zero_()
        self.number.fill_(start + 1)

    def unload(self, part: Part, losses: Tensor, clients: slice, written: list[int]) -> None:
        """Copy some clients' results back into ``part`` and ``losses``."""
        mine = [*self.part.trained, *(self.part.rest[n] for n in written)]
        theirs = [*part.trained, *(part.rest[n] for n in written)]
        copied([leaf[clients] for leaf in theirs], [leaf[clients] for leaf in mine])
        losses[:, clients] = self.losses[:, clients]


def alike(kinds: list[Kind], active: list[int], most: int) -> Iterator[tuple[int, int]]:
    """First steps, and those after the last ones, of sequences of the same recorded step with the same clients.

    Args:
        kinds: the recorded step of each step.
        active: number of clients of each step.
        most: a multiple of this many steps is always the first of a sequence.
    """
    first = 0
    for step in range(1, len(kinds) + 1):
        if step == len(kinds) or step % most == 0 or (kinds[step], active[step]) != (kinds[first], active[first]):
            yield first, step
            first = step


def sizes(clients: int, share: float) -> list[int]:
    """Sizes of stacks, each the given share of the one before, down to a single client."""
    found = [clients]
    while found[-1] > 1:
        found.append(min(found[-1] - 1, math.ceil(share * found[-1])))
    return found


def copied(into: Tensors, values: Tensors) -> None:
    """Copy values into tensors, with as few kernels as possible."""
    if into:
        torch._foreach_copy_(into, values)


def even(counts: NDArray[np.int64]) -> tuple[int, ...] | None:
    """The number of examples in each batch, if it is the same for all clients, from ``(batches, clients)`` counts."""
    return tuple(counts[:, 0].tolist()) if (counts == counts[:, :1]).all() else None
