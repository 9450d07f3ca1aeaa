"""The one local-training loop: the gradient steps of a phase, one client at a time or for a stack of clients.

Objectives are written for one client. :class:`OneByOne` runs them through ordinary autograd, :class:`Stacked` maps
them over the clients with ``torch.func``. Both see the same batches and give the same result.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.federation import Federation
from plures.method import Batch, Bound, Phase, Problem, State
from plures.models import Leaves
from plures.run.batches import Batches
from plures.run.training import Training

Stack = dict[str, Leaves]
"""The states of a chunk of clients: slot -> path -> ``(clients, ...)``."""

Rows = slice | Tensor
Example = tuple[Tensor, Tensor, Tensor | None]
"""Inputs, targets and weights of a batch."""

BLOCK = 1 << 20
"""Bytes of inputs that one client's steps gather at once."""


class Steps:
    """The gradient steps of one phase, resolved once for a run.

    Args:
        phase: what is trained, and how.
        bound: the method, resolved against its network.
        federation: the data, on the device.
        training: local work.
    """

    def __init__(self, phase: Phase, bound: Bound, federation: Federation, training: Training) -> None:
        self.phase, self.network, self.federation = phase, bound.network, federation
        self.problem = Problem(bound.network, federation.task)
        self.optimizer, self.clip = phase.optimizer or training.optimizer, training.clip
        self.trained = bound.trained(phase)
        kept = [(slot, path) for slot in phase.keeps for path in bound.initial[slot]]
        self.followed = [leaf for leaf in [*bound.selected(phase), *kept] if leaf not in set(self.trained)]
        """Leaves that follow the forward passes, or what is computed before each step."""
        plain = phase.objective is None and phase.before is None
        read = {phase.slot, *(slot for slot, _ in self.trained)}
        self.slots = [slot for slot in bound.initial if slot in read or not plain]
        """Slots that the phase can read: all, unless it minimises the plain task loss of one slot."""
        self.paths = {slot: list(bound.initial[slot]) for slot in self.slots}
        self.dtype = bound.network.dtype

    def __call__(self, x: Stack, received: Stack, plan: Batches, rate: float) -> Tensor:
        """Train the leaves of ``x`` in place.

        Args:
            x: working states, ``(clients, ...)``.
            received: states at the start of the visit; not changed.
            plan: the batches.
            rate: learning rate.

        Returns:
            ``(clients,)`` sum over its steps of each client's training loss.
        """
        raise NotImplementedError

    def _batch(self, data: list[Example], key: Tensor | None) -> Any:
        made = [Batch(*one, self.problem, True, key) for one in data]
        if self.phase.batches == 1:
            return made[0]
        for number, batch in enumerate(made):
            batch.key = None if key is None else (key + number * 0x9E3779B1) & 0xFFFFFFFF
        return tuple(made)

    def _before(self, work: Stack, anchor: State, data: list[Example], key: Tensor | None) -> tuple[Stack, Stack]:
        """What the phase computes before a step, and the leaves of it that are kept."""
        if self.phase.before is None:
            return {}, {}
        x, batch = State(work), self._batch(data, key)
        extra = {slot: dict(leaves) for slot, leaves in self.phase.before(x, anchor, batch).items()}
        return extra, merge({slot: extra[slot] for slot in self.phase.keeps}, self._statistics(x, batch))

    def _statistics(self, x: State, batch: Batch | tuple[Batch, ...]) -> Stack:
        """Running statistics left by the forward passes, for the leaves that the phase may change."""
        changed: Stack = {}
        if self.followed:
            for one in batch if isinstance(batch, tuple) else (batch,):
                for leaves, buffers in one.seen:
                    slot = x.slot_of(leaves)
                    found = {path: value for path, value in buffers.items() if (slot, path) in self.followed}
                    if slot is not None and found:
                        changed.setdefault(slot, {}).update(found)
        return changed


class OneByOne(Steps):
    """One client after the other, through ordinary autograd; it costs no more than a plain training loop."""

    def __call__(self, x: Stack, received: Stack, plan: Batches, rate: float) -> Tensor:
        return torch.stack([self._client(x, received, plan, rate, client) for client in range(len(plan.steps))])

    def _client(self, x: Stack, received: Stack, plan: Batches, rate: float, client: int) -> Tensor:
        own = {slot: {path: t[client] for path, t in x[slot].items()} for slot in self.slots}
        anchor = State({slot: {path: t[client] for path, t in received[slot].items()} for slot in self.slots})
        work = own | self._borrow(own)
        values = [work[slot][path].requires_grad_(True) for slot, path in self.trained]
        memory = [[torch.zeros_like(value) for value in values] for _ in range(self.optimizer.slots)]
        phase, losses, state = self.phase, [], State(work)
        for step, (data, key) in enumerate(self._data(plan, client), start=1):
            changed: Stack = {}
            if phase.before is not None:
                with torch.no_grad():
                    extra, changed = self._before(work, anchor, data, key)
                state = State(work | extra)
            batch = self._batch(data, key)
            loss = phase.minimised(state, anchor, batch)
            grads = torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True) if values else ()
            with torch.no_grad():
                if values:
                    self.optimizer.step(values, clipped(grads, self.clip), memory, rate, step)
                if self.followed:
                    write(work, merge(changed, self._statistics(state, batch)))
            losses.append(loss.detach())
        for value in values:
            value.requires_grad_(False)
        for slot, path in [*self.trained, *self.followed]:
            if work[slot] is not own[slot]:
                own[slot][path].copy_(work[slot][path])
        return torch.stack(losses).sum().to(self.dtype) if losses else plan.rows.new_zeros((), dtype=self.dtype)

    def _borrow(self, own: Stack) -> Stack:
        """The phase's slot as the module's own parameters, which spares every call the substitution."""
        live, slot = self.network.live, self.phase.slot
        if own[slot].keys() != live.keys():
            return {}
        for path, value in own[slot].items():
            live[path].requires_grad_(False).copy_(value)
        return {slot: live}

    def _data(self, plan: Batches, client: int) -> Iterator[tuple[list[Example], Tensor | None]]:
        """Examples and dropout key of each step, gathered some steps at a time."""
        steps, each = int(plan.steps[client]), self.phase.batches
        counts: list[int] = plan.counts[:steps, :, client].reshape(-1).tolist()
        rows = plan.rows[:steps, :, client, : max(counts, default=0)].flatten(0, 1)
        inputs, targets, width = self.federation.inputs, self.federation.targets, rows.shape[1]
        block = each * max(1, BLOCK // max(1, each * width * inputs[:1].nbytes))
        keys = plan.keys[:, client].unbind() if self.network.random else [None] * steps
        for first in range(0, len(rows), block):
            some = rows[first : first + block]
            made: list[Example] = [
                (x, y, None) if count == width else (x[:count], y[:count], None)
                for x, y, count in zip(gather(inputs, some), gather(targets, some), counts[first:], strict=False)
            ]
            for number in range(0, len(made), each):
                yield made[number : number + each], keys[(first + number) // each]


class Part(NamedTuple):
    """Clients that step together: views of the stack, or copies of some of its rows.

    Attributes:
        trained: leaves that the steps train.
        rest: all other leaves.
        received: states at the start of the visit.
        memory: the optimizer's state.
    """

    trained: Stack
    rest: Stack
    received: Stack
    memory: list[list[Tensor]]


class Stacked(Steps):
    """A stack of clients at once: objectives mapped by ``torch.func.vmap`` over ``grad``.

    Args:
        compiled: compile the step; it then always runs on all clients of the chunk, idle ones masked.
    """

    def __init__(
        self, phase: Phase, bound: Bound, federation: Federation, training: Training, *, compiled: bool
    ) -> None:
        super().__init__(phase, bound, federation, training)
        self.compiled = compiled
        self._gradients = torch.func.vmap(self._gradient)
        self._advance: Callable[..., Tensor] = self._step
        if compiled:
            self._advance = torch.compile(own_code(self._step), dynamic=False)

    def __call__(self, x: Stack, received: Stack, plan: Batches, rate: float) -> Tensor:
        clients, device = len(plan.steps), plan.rows.device
        memory = [[torch.zeros_like(x[s][p]) for s, p in self.trained] for _ in range(self.optimizer.slots)]
        losses = torch.zeros(clients, device=device, dtype=self.dtype)
        amounts = torch.from_numpy(plan.counts).to(device)
        part, previous = self._part(x, received, memory, slice(0, clients)), clients
        for step, active in enumerate(plan.active):
            if self.compiled:
                running = torch.from_numpy(step < plan.steps).to(device)
                lr, number = (torch.tensor(scalar, dtype=self.dtype, device=device) for scalar in (rate, step + 1))
                counts = list(amounts[step])
                losses += self._advance(*part, list(plan.rows[step]), counts, plan.keys[step], running, lr, number)
                continue
            for rows, sizes in self._groups(plan.counts[step, :, :active]):
                if isinstance(rows, Tensor) or previous != active:
                    part = self._part(x, received, memory, rows)
                    previous = active if isinstance(rows, slice) else -1
                widths = sizes.max(1).tolist()
                index = [plan.rows[step, number, rows, :width] for number, width in enumerate(widths)]
                padded = None if (sizes == sizes[:, :1]).all() else list(amounts[step][:, rows])
                losses[rows] += self._advance(*part, index, padded, plan.keys[step, rows], None, rate, step + 1)
                if isinstance(rows, Tensor):
                    self._return(part, x, memory, rows)
        return losses

    def _groups(self, counts: NDArray[np.int64]) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
        """Clients that step together: all active ones, or those with equal batches where examples interact."""
        if not self.network.batch_coupled or (counts == counts[:, :1]).all():
            yield slice(0, counts.shape[1]), counts
            return
        for size in np.unique(counts, axis=1).T:
            rows = np.flatnonzero((counts == size[:, None]).all(0))
            yield torch.from_numpy(rows), counts[:, rows]

    def _part(self, x: Stack, received: Stack, memory: list[list[Tensor]], rows: Rows) -> Part:
        trained: Stack = {}
        for slot, path in self.trained:
            trained.setdefault(slot, {})[path] = x[slot][path][rows]
        rest = {
            slot: {path: t[rows] for path, t in x[slot].items() if path not in trained.get(slot, {})}
            for slot in self.slots
        }
        anchor = {slot: {path: t[rows] for path, t in received[slot].items()} for slot in self.slots}
        return Part(trained, rest, anchor, [[kept[rows] for kept in some] for some in memory])

    def _return(self, part: Part, x: Stack, memory: list[list[Tensor]], rows: Tensor) -> None:
        """Write a part that is a copy back into the stack."""
        for slot, path in self.trained:
            x[slot][path][rows] = part.trained[slot][path]
        for slot, path in self.followed:
            x[slot][path][rows] = part.rest[slot][path]
        for whole, some in zip(memory, part.memory, strict=True):
            for all_rows, changed in zip(whole, some, strict=True):
                all_rows[rows] = changed

    def _step(
        self, trained: Stack, rest: Stack, received: Stack, memory: list[list[Tensor]],
        rows: list[Tensor], counts: list[Tensor] | None, keys: Tensor, running: Tensor | None,
        lr: Tensor | float, step: Tensor | int,
    ) -> Tensor:  # fmt: skip
        """One step of all clients of a part, changing its leaves in place.

        Args:
            trained, rest, received, memory: the part.
            rows: ``(clients, batch)`` for each batch of the step.
            counts: ``(clients,)`` real examples for each batch; ``None`` when nothing is padded.
            keys: ``(clients,)`` dropout keys.
            running: ``(clients,)`` who takes the step; ``None`` for all.
            lr: learning rate.
            step: number of the step, from 1.

        Returns:
            ``(clients,)`` losses.
        """
        weights = [None] * len(rows) if counts is None else [
            (torch.arange(index.shape[1], device=index.device) < count.unsqueeze(1)).to(self.dtype)
            for index, count in zip(rows, counts, strict=True)
        ]  # fmt: skip
        inputs, targets = self.federation.inputs, self.federation.targets
        data = [
            {"inputs": gather(inputs, index), "targets": gather(targets, index)} | ({} if w is None else {"weight": w})
            for index, w in zip(rows, weights, strict=True)
        ]
        losses: Tensor
        grads, losses, changed = self._gradients(trained, rest, received, data, keys)
        values = [trained[slot][path] for slot, path in self.trained]
        before = None if running is None else [value.clone() for value in values]
        if values:
            flat = clipped([grads[slot][path] for slot, path in self.trained], self.clip, stacked=True)
            self.optimizer.step(values, flat, memory, lr, step)
        if running is not None and before is not None:
            for value, old in zip(values, before, strict=True):
                value.copy_(torch.where(per_client(running, value), value, old))
            changed = {
                slot: {path: torch.where(per_client(running, v), v, rest[slot][path]) for path, v in leaves.items()}
                for slot, leaves in changed.items()
            }
            losses = torch.where(running, losses, 0.0)
        write(rest, changed)
        return losses

    def _gradient(
        self, trained: Stack, rest: Stack, received: Stack, data: list[dict[str, Tensor]], key: Tensor
    ) -> Any:
        """``(gradients, loss, followed leaves)`` of one client, to be mapped."""
        examples = [(one["inputs"], one["targets"], one.get("weight")) for one in data]
        drawn = key if self.network.random else None
        anchor = State(received)
        extra, kept = self._before(self._joined(trained, rest), anchor, examples, drawn)

        def loss(trained: Stack) -> tuple[Tensor, tuple[Tensor, Stack]]:
            x, batch = State(self._joined(trained, rest) | extra), self._batch(examples, drawn)
            value = self.phase.minimised(x, anchor, batch)
            return value, (value.detach(), self._statistics(x, batch))

        grads: Stack = {}
        if self.trained:
            grads, (value, statistics) = torch.func.grad(loss, has_aux=True)(trained)
        else:
            _, (value, statistics) = loss(trained)
        return grads, value, merge(kept, statistics)

    def _joined(self, trained: Stack, rest: Stack) -> Stack:
        """One state of trained and other leaves, in the order of the slots."""
        joined = merge(trained, rest)
        return {slot: {path: joined[slot][path] for path in paths} for slot, paths in self.paths.items()}


def merge(a: Stack, b: Stack) -> Stack:
    """The leaves of both, of ``b`` where both have one."""
    return {slot: {**a.get(slot, {}), **b.get(slot, {})} for slot in {**a, **b}}


def write(stack: Stack, changed: Stack) -> None:
    """Copy values into the leaves of a stack."""
    for slot, leaves in changed.items():
        for path, value in leaves.items():
            stack[slot][path].copy_(value)


def gather(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]`` for rows of any shape, by the fastest kernel."""
    return values.index_select(0, rows.reshape(-1)).view(*rows.shape, *values.shape[1:])


def clipped(grads: Sequence[Tensor], limit: float | None, *, stacked: bool = False) -> list[Tensor]:
    """Gradients of each client scaled to at most ``limit`` in norm, as ``torch.nn.utils.clip_grad_norm_`` does."""
    if limit is None:
        return list(grads)
    first = int(stacked)
    squares = [g.flatten(first).square().sum(-1) if g.dim() > first else g.square() for g in grads]
    scale = (limit / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    return [g * (per_client(scale, g) if stacked else scale) for g in grads]


def per_client(values: Tensor, like: Tensor) -> Tensor:
    """``(clients,)`` shaped to broadcast against ``(clients, ...)``."""
    return values.view(-1, *(1,) * (like.dim() - 1))


def own_code(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A copy of a bound method with a code object of its own.

    ``torch.compile`` counts recompilations by code object and silently stops compiling after a few: without a copy, all
    runs of a process would share one count.
    """
    fn: types.FunctionType = method.__func__  # type: ignore[attr-defined]
    copy = types.FunctionType(fn.__code__.replace(), fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    return types.MethodType(copy, method.__self__)  # type: ignore[attr-defined]
