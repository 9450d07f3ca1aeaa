"""The cohort engine: the one local-training loop, for a stack of clients at once.

Objectives are written for one client. The ``vmap`` backend maps them over the stack with ``torch.func``; the
``loop`` backend runs one client at a time through ordinary autograd. Both see the same batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from plures.federation import Federation, SplitName
from plures.method import Assign, Batch, Bound, Phase, Problem, Schedule, State, Visit
from plures.models import Leaves
from plures.run import batches
from plures.run.execution import Execution
from plures.run.randomness import Keys, fold, name_key
from plures.run.training import Training

Stack = dict[str, Leaves]
"""The states of a chunk of clients: slot -> path -> ``(clients, ...)``."""

Rows = slice | Tensor
EVALUATION_BATCH = 512


class Engine:
    """Runs schedules, measurements and forward passes for chunks of clients.

    Args:
        bound: the method, resolved against its network.
        federation: the data, on the device.
        training: local work.
        execution: backend and compilation, already chosen (no ``auto``).
        seed: root of all randomness.
    """

    def __init__(
        self, bound: Bound, federation: Federation, training: Training, execution: Execution, seed: int
    ) -> None:
        self.bound, self.federation, self.training, self.execution = bound, federation, training, execution
        self.problem = Problem(bound.network, federation.task)
        self._client_keys = fold(seed, np.array([name_key(c) for c in federation.clients], dtype=np.uint64))
        self._compiled: dict[int, tuple[Phase, Callable[..., Any]]] = {}

    def visit(self, x: Stack, received: Stack, clients: list[int], round: int, schedule: Schedule) -> Tensor:
        """Do the local work of a chunk: change the leaves of ``x`` that the schedule writes.

        Args:
            x: working states; leaves that the schedule writes must be owned by the caller.
            received: states at the start of the visit; not changed.
            clients: the chunk, by decreasing number of training examples.
            round: number of the round, for batches and learning rate.
            schedule: phases and assignments.

        Returns:
            ``(clients,)`` mean training loss of each client over the steps of the last phase.
        """
        steps = torch.zeros(len(clients), dtype=torch.int64, device=self.federation.inputs.device)
        rate = self.training.optimizer.lr
        loss = torch.zeros(len(clients), device=steps.device)
        with self._kernels():
            for item in schedule:
                if isinstance(item, Phase):
                    steps, rate, loss = self._train(item, x, received, clients, round)
                else:
                    self._assign(item, x, received, clients, steps, rate)
        return loss

    def rate(self, phase: Phase, round: int) -> float:
        """Learning rate of a phase in a round."""
        base = phase.lr if phase.lr is not None else (phase.optimizer or self.training.optimizer).lr
        return base * self.training.schedule(round, self.training.rounds)

    # --- gradient steps -----------------------------------------------------------------------------------------

    def draw(self, phase: Phase, clients: list[int], round: int) -> batches.Batches:
        """The batches of a phase: a function of seed, client, round and the phase's stream alone."""
        keys: Keys = fold(self._client_keys[clients], round, name_key(phase.stream))
        own = phase.epochs is not None or phase.steps is not None
        return batches.plan(
            self.federation.splits["train"],
            clients,
            keys,
            self.training.batch_size,
            phase.epochs if own else self.training.epochs,
            phase.steps if own else self.training.steps,
            phase.batches,
        )

    def _train(
        self, phase: Phase, x: Stack, received: Stack, clients: list[int], round: int
    ) -> tuple[Tensor, float, Tensor]:
        plan, rate = self.draw(phase, clients, round), self.rate(phase, round)
        run = self._train_loop if self.execution.backend == "loop" else self._train_mapped
        losses = run(phase, x, received, plan, rate)
        steps = torch.from_numpy(plan.steps).to(losses.device)
        return steps, rate, losses / steps.clamp(min=1)

    def _needed(self, phase: Phase, stack: Stack) -> Stack:
        """The slots that a phase can read: all, unless it minimises the plain task loss of one slot."""
        plain = phase.objective is None and phase.before is None
        return {phase.slot: stack[phase.slot]} if plain else stack

    def _train_mapped(self, phase: Phase, x: Stack, received: Stack, plan: batches.Batches, rate: float) -> Tensor:
        optimizer = phase.optimizer or self.training.optimizer
        leaves = self.bound.trained(phase)
        memory = [[torch.zeros_like(x[s][p]) for s, p in leaves] for _ in range(optimizer.slots)]
        losses = torch.zeros(len(plan.steps), device=plan.rows.device, dtype=self._float())
        visible, anchor = self._needed(phase, x), self._needed(phase, received)
        advance = self._stepper(phase)
        previous: Rows | None = None
        part: list[Any] = []
        for step, active in enumerate(plan.active):
            for rows, counts in self._groups(plan.counts[step, :, :active], len(plan.steps)):
                if rows != previous if isinstance(rows, slice) and isinstance(previous, slice) else True:
                    part = [take(visible, rows), take(anchor, rows), [[m[rows] for m in slot] for slot in memory]]
                    previous = rows
                index = plan.rows[step][:, rows]
                if self.bound.network.batch_coupled:
                    index = index[:, :, : int(counts.max())]
                full = bool((counts == index.shape[2]).all()) and not self.execution.compile
                amount = None if full else torch.from_numpy(np.ascontiguousarray(counts)).to(index.device)
                running = None if not self.execution.compile else torch.from_numpy(step < plan.steps).to(index.device)
                losses[rows] += advance(*part, index, amount, plan.keys[step][rows], running, rate, step + 1)
                if isinstance(rows, Tensor):
                    put(visible, rows, part[0], self.bound.selected(phase))
                    for slot, changed in zip(memory, part[2], strict=True):
                        for whole, some in zip(slot, changed, strict=True):
                            whole[rows] = some
        return losses

    def _groups(self, counts: np.ndarray[Any, Any], clients: int) -> Iterator[tuple[Rows, np.ndarray[Any, Any]]]:
        """Clients that step together: all active ones, or those with equal batches where examples interact."""
        if self.execution.compile:
            padded = np.ones((len(counts), clients), dtype=counts.dtype)
            padded[:, : counts.shape[1]] = counts
            yield slice(0, clients), padded
        elif not self.bound.network.batch_coupled or (counts == counts[:, :1]).all():
            yield slice(0, counts.shape[1]), counts
        else:
            for size in np.unique(counts, axis=1).T:
                rows = np.flatnonzero((counts == size[:, None]).all(0))
                yield torch.from_numpy(rows), counts[:, rows]

    def _stepper(self, phase: Phase) -> Callable[..., Tensor]:
        """``(x, received, memory, rows, counts, keys, running, lr, step) -> losses``: one step, changing x in place."""
        optimizer = phase.optimizer or self.training.optimizer
        leaves = self.bound.trained(phase)
        gradients = torch.func.vmap(self._gradients(phase))
        inputs, targets = self.federation.inputs, self.federation.targets

        def advance(
            x: Stack, received: Stack, memory: list[list[Tensor]], rows: Tensor, counts: Tensor | None,
            keys: Tensor, running: Tensor | None, lr: Tensor | float, step: Tensor | int,
        ) -> Tensor:  # fmt: skip
            trained, rest = split(x, leaves)
            data = []
            for number, index in enumerate(rows):
                one = {"inputs": inputs[index], "targets": targets[index]}
                if counts is not None:
                    places = torch.arange(rows.shape[2], device=rows.device)
                    one["weight"] = (places < counts[number].unsqueeze(1)).to(self._float())
                data.append(one)
            losses: Tensor
            grads, (losses, buffers) = gradients(trained, rest, received, data, keys)
            values = [x[s][p] for s, p in leaves]
            before = None if running is None else [v.clone() for v in values]
            flat = self._clipped([grads[s][p] for s, p in leaves], stacked=True)
            optimizer.step(values, flat, memory, lr, step)
            if running is not None and before is not None:
                for value, old in zip(values, before, strict=True):
                    value.copy_(torch.where(_like(running, value), value, old))
                losses = torch.where(running, losses, 0.0)
            for slot, changed in buffers.items():
                for path, value in changed.items():
                    kept = value if running is None else torch.where(_like(running, value), value, x[slot][path])
                    x[slot][path].copy_(kept)
            return losses.detach()

        if not self.execution.compile:
            return advance
        if id(phase) not in self._compiled:
            self._compiled[id(phase)] = (phase, torch.compile(advance, dynamic=False))
        compiled = self._compiled[id(phase)][1]

        def warm(*args: Any) -> Tensor:
            *tensors, lr, step = args
            scalars = (torch.tensor(lr, dtype=self._float()), torch.tensor(step, dtype=self._float()))
            result: Tensor = compiled(*tensors, *(s.to(tensors[3].device) for s in scalars))
            return result

        return warm

    def _gradients(self, phase: Phase) -> Callable[..., Any]:
        """``(trained, rest, received, data, key) -> (grads, (loss, buffers))`` for one client, to be mapped."""

        def gradients(trained: Stack, rest: Stack, received: Stack, data: list[dict[str, Tensor]], key: Tensor) -> Any:
            anchor = State(received)
            extra = {}
            if phase.before is not None:
                extra = dict(phase.before(State(merge(trained, rest)), anchor, self._batch(phase, data, key)))

            def loss(trained: Stack) -> tuple[Tensor, tuple[Tensor, Stack]]:
                x = State(merge(trained, rest) | extra)
                batch = self._batch(phase, data, key)
                value = phase.minimised(x, anchor, batch)
                return value, (value, self._buffers(phase, x, batch))

            grads, (value, buffers) = torch.func.grad(loss, has_aux=True)(trained)
            return grads, (value, buffers | {slot: dict(extra[slot]) for slot in phase.keeps})

        return gradients

    def _train_loop(self, phase: Phase, x: Stack, received: Stack, plan: batches.Batches, rate: float) -> Tensor:
        return torch.stack([self._train_one(phase, x, received, plan, rate, i) for i in range(len(plan.steps))])

    def _train_one(
        self, phase: Phase, x: Stack, received: Stack, plan: batches.Batches, rate: float, client: int
    ) -> Tensor:
        optimizer = phase.optimizer or self.training.optimizer
        work: Stack = {slot: {p: t[client] for p, t in ls.items()} for slot, ls in self._needed(phase, x).items()}
        anchor = State(
            {slot: {p: t[client] for p, t in ls.items()} for slot, ls in self._needed(phase, received).items()}
        )
        leaves, live = self.bound.trained(phase), self.bound.network.live
        borrowed = work.get(phase.slot, {}).keys() == live.keys()
        if borrowed:
            own = work[phase.slot]
            for path, value in own.items():
                live[path].requires_grad_(False).copy_(value)
            work[phase.slot] = live
        values = [work[s][p].requires_grad_(True) for s, p in leaves]
        memory = [[torch.zeros_like(v) for v in values] for _ in range(optimizer.slots)]
        state, total = State(work), torch.zeros((), dtype=self._float(), device=plan.rows.device)
        steps, counts = int(plan.steps[client]), plan.counts[:, :, client].tolist()
        index = plan.rows[:, :, client]
        for step in range(steps):
            sized = [rows[:count] for rows, count in zip(index[step], counts[step], strict=True)]
            data = [{"inputs": self.federation.inputs[r], "targets": self.federation.targets[r]} for r in sized]
            batch = self._batch(phase, data, plan.keys[step, client])
            if phase.before is not None:
                with torch.no_grad():
                    extra = dict(phase.before(state, anchor, batch))
                state = State(work | extra)
                batch = self._batch(phase, data, plan.keys[step, client])
            loss = phase.minimised(state, anchor, batch)
            grads = torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                optimizer.step(values, self._clipped(list(grads), stacked=False), memory, rate, step + 1)
                changed = self._buffers(phase, state, batch)
                if phase.before is not None:
                    changed |= {slot: dict(extra[slot]) for slot in phase.keeps}
                for slot, new in changed.items():
                    for path, value in new.items():
                        work[slot][path].copy_(value)
                total += loss.detach()
        for value in values:
            value.requires_grad_(False)
        if borrowed:
            for path, value in own.items():
                value.copy_(live[path])
        return total

    def _batch(self, phase: Phase, data: list[dict[str, Tensor]], key: Tensor) -> Any:
        made = tuple(
            Batch(
                d["inputs"], d["targets"], d.get("weight"), self.problem, key=key if self.bound.network.random else None
            )
            for d in data
        )
        return made if phase.batches > 1 else made[0]

    def _buffers(self, phase: Phase, x: State, batch: Batch | tuple[Batch, ...]) -> Stack:
        """Running statistics left by the forward passes, for the leaves that the phase trains."""
        selected = set(self.bound.selected(phase))
        changed: Stack = {}
        for one in batch if isinstance(batch, tuple) else (batch,):
            for leaves, buffers in one.seen:
                slot = x.slot_of(leaves)
                if slot is not None:
                    kept = {path: value.detach() for path, value in buffers.items() if (slot, path) in selected}
                    changed.setdefault(slot, {}).update(kept)
        return changed

    def _clipped(self, grads: list[Tensor], *, stacked: bool) -> list[Tensor]:
        """Gradients of each client scaled to at most ``clip`` in norm, as ``torch.nn.utils.clip_grad_norm_`` does."""
        limit = self.training.clip
        if limit is None:
            return grads
        first = 1 if stacked else 0
        norm = (
            torch.stack([g.flatten(first).square().sum(-1) if g.dim() > first else g.square() for g in grads])
            .sum(0)
            .sqrt()
        )
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        return [g * (_like(scale, g) if stacked else scale) for g in grads]

    # --- assignments, measurements, forward passes --------------------------------------------------------------

    def _assign(self, item: Assign, x: Stack, received: Stack, clients: list[int], steps: Tensor, rate: float) -> None:
        measured: Leaves = {}
        if item.measure is not None:
            measured = self.measure(item.measure, x, received, clients, "train")
        lr = torch.tensor(rate, dtype=self._float(), device=steps.device)

        def update(x: Stack, received: Stack, steps: Tensor, measured: Leaves) -> Any:
            return dict(item.update(State(x), State(received), Visit(steps, lr, measured)))

        new = self.mapped(update)(x, received, steps.to(self._float()), measured)
        for slot in item.writes:
            for path, value in new[slot].items():
                x[slot][path].copy_(value)

    def measure(
        self,
        fn: Callable[[State, State, Batch], Leaves],
        x: Stack,
        received: Stack,
        clients: list[int],
        split: SplitName,
    ) -> Leaves:
        """Mean of ``fn`` over each client's examples, ``(clients, ...)``, without training anything."""

        def one(x: Stack, received: Stack, inputs: Tensor, targets: Tensor, weight: Tensor) -> Leaves:
            return fn(State(x), State(received), Batch(inputs, targets, weight, self.problem, train=False))

        total: Leaves = {}
        sizes = self.federation.splits[split].sizes.to(self.federation.inputs.device)[clients].to(self._float())
        for inputs, targets, weight in self.walk(clients, split):
            count = weight.sum(1)
            padded = torch.where(count.unsqueeze(1) > 0, weight, 1.0)
            for name, value in self.mapped(one)(x, received, inputs, targets, padded).items():
                share = _like(count / sizes.clamp(min=1), value) * value.detach()
                total[name] = total[name] + share if name in total else share
        return total

    def walk(self, clients: list[int], split: SplitName) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A client's examples in stored order: inputs, targets ``(clients, batch, ...)`` and weights 1 or 0."""
        plan = batches.passes(self.federation.splits[split], clients, EVALUATION_BATCH)
        for rows, counts in zip(plan.rows[:, 0], plan.counts[:, 0], strict=True):
            places = torch.arange(rows.shape[1], device=rows.device)
            weight = (places < torch.from_numpy(counts).to(rows.device).unsqueeze(1)).to(self._float())
            yield self.federation.inputs[rows], self.federation.targets[rows], weight

    def forward(self, model: Leaves, inputs: Tensor) -> Tensor:
        """Outputs ``(clients, batch, outputs)`` of every client's own model in evaluation mode.

        Args:
            model: ``(clients, ...)`` each; leaves that all clients share may be expanded views.
            inputs: ``(clients, batch, *features)``.
        """

        def one(leaves: Leaves, inputs: Tensor) -> Tensor:
            return self.bound.network(leaves, inputs, train=False)[0]

        with self._kernels(), torch.no_grad():
            if all(t.stride(0) == 0 for t in model.values()) or len(inputs) == 1:
                flat = one({k: t[0] for k, t in model.items()}, inputs.flatten(0, 1))
                return flat.reshape(*inputs.shape[:2], *flat.shape[1:])
            return self.mapped(one)(model, inputs)  # type: ignore[no-any-return]

    def mapped(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Map a function of one client over the leading axis of its arguments, with the chosen backend."""
        if self.execution.backend == "vmap":
            return torch.func.vmap(fn)

        def one_by_one(*args: Any) -> Any:
            count = len(torch.utils._pytree.tree_leaves(args)[0])
            rows = [fn(*torch.utils._pytree.tree_map(lambda t: t[i], args)) for i in range(count)]  # noqa: B023
            return torch.utils._pytree.tree_map(lambda *each: torch.stack(each), *rows)

        return one_by_one

    def _float(self) -> torch.dtype:
        return next(t.dtype for t in self.bound.network.live.values() if t.is_floating_point())

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[None]:
        """Kernels that can be mapped and differentiated twice, where a module needs it."""
        modules = list(self.bound.network.module.modules())
        with contextlib.ExitStack() as stack:
            if self.execution.precision == "bfloat16":
                stack.enter_context(torch.autocast(self.federation.inputs.device.type, torch.bfloat16))
            if any(isinstance(m, nn.MultiheadAttention) for m in modules):
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(m, nn.RNNBase) for m in modules) and self.execution.backend == "vmap":
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield


def take(stack: Stack, rows: Rows) -> Stack:
    """Some clients of a stack: a view for a slice, a copy for an index."""
    return {slot: {path: t[rows] for path, t in leaves.items()} for slot, leaves in stack.items()}


def put(stack: Stack, rows: Tensor, part: Stack, leaves: list[tuple[str, str]]) -> None:
    """Write some leaves of a part back into its stack."""
    for slot, path in leaves:
        stack[slot][path][rows] = part[slot][path]


def split(stack: Stack, leaves: list[tuple[str, str]]) -> tuple[Stack, Stack]:
    """``(chosen leaves, all others)``."""
    chosen: Stack = {}
    for slot, path in leaves:
        chosen.setdefault(slot, {})[path] = stack[slot][path]
    rest = {slot: {p: t for p, t in ls.items() if p not in chosen.get(slot, {})} for slot, ls in stack.items()}
    return chosen, rest


def merge(trained: Stack, rest: Stack) -> Stack:
    """One state of trained and other leaves."""
    return {slot: {**ls, **trained.get(slot, {})} for slot, ls in rest.items()}


def _like(per_client: Tensor, value: Tensor) -> Tensor:
    """``(clients,)`` shaped to broadcast against ``(clients, ...)``."""
    return per_client.view(-1, *(1,) * (value.dim() - 1))
