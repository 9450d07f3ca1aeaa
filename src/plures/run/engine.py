"""The cohort engine: visits, measurements and forward passes of a chunk of clients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.entropy import Entropy
from plures.errors import PluresError
from plures.federation import Federation, SplitName
from plures.federation.inputs import Inputs, lead
from plures.method import SGD, Assign, Batch, Bound, Phase, Problem, Schedule, State, Visit
from plures.method.optimizer import reach
from plures.models import Leaves, Network, nested
from plures.run import batches
from plures.run.allocator import keep_freed_memory
from plures.run.capture import RECORDERS, Recorder, Recordings
from plures.run.execution import Execution
from plures.run.kernels import few, kernels, thin
from plures.run.machine import Machine
from plures.run.padding import Example, Examples, PaddingTest, counts, counts_alike, full, mask, trimmed, unpadded
from plures.run.randomness import branch, fold, name_key, unit
from plures.run.steps import OneByOne, Stack, Stacked, Steps, gather, per_client
from plures.run.training import Training

__all__ = ["Engine", "Stack"]

EVALUATION_BATCH = 512
EVALUATION_BYTES = 1 << 28
"""Largest size of the inputs that all clients of a chunk are measured on at once."""
FULL = 0.75
"""Share of examples in a batch above which leaving the padding out costs more than it spares."""
LEAST = 64
"""Smallest number of a client's examples that are evaluated at once, unless it has less; more padding costs less than
more batches."""
QUERY = "query"
"""Name of the examples to predict, next to a client's own examples by split."""


class Engine:
    """Runs schedules, measurements and forward passes for chunks of clients.

    Args:
        bound: the method, resolved against its network.
        federation: the data, on the device.
        training: local work.
        execution: backend and compilation, already chosen (no ``auto``).
        seed: root of all randomness.
        machine: measurements of the machine, and compiled steps.
        entropy: secret random bytes of the only client, at a site, which trains by itself in a plain loop.
    """

    def __init__(
        self,
        bound: Bound,
        federation: Federation,
        training: Training,
        execution: Execution,
        seed: int,
        machine: Machine | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        if entropy is not None and (execution.backend != "loop" or len(federation) > 1):
            raise PluresError("secret entropy belongs to one client, which trains by itself: backend='loop'")
        self.machine, self.entropy = machine or Machine(), entropy
        self.bound, self.federation, self.training, self.execution = bound, federation, training, execution
        self.seed = seed
        self.problem = Problem(bound.network, federation.task)
        self._client_keys = fold(seed, federation.names.keys)
        self._steps: dict[int, Steps] = {}
        self._recorder: Recorder | None = None
        self._thread = 0
        self._check_linear()
        self.dtype = bound.network.dtype
        if federation.inputs.device.type == "cpu":
            keep_freed_memory()
        bound.network.probe(federation.inputs[torch.linspace(0, len(federation.inputs) - 1, 8).long()])
        self.channels_last = channels_last(bound.network, federation.inputs.device)
        if self.channels_last:
            bound.network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def twin(self, thread: int) -> Engine:
        """An engine for another thread: it does the same with a copy of the network, and records steps of its own."""
        bound = copy.copy(self.bound)
        bound.network, bound.verdicts = copy.deepcopy(bound.network), {}
        made = Engine(bound, self.federation, self.training, self.execution, self.seed, self.machine, self.entropy)
        made._thread = thread
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Steps are kept by the identity of their phase, so a copy begins without any."""
        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update(copy.deepcopy({**vars(self), "_steps": {}, "_recorder": None}, memo))
        return made

    def visit(
        self,
        x: Stack,
        received: Stack,
        clients: list[int],
        round: int,
        schedule: Schedule,
        *,
        scheduled: bool = False,
        efforts: NDArray[np.float64] | None = None,
    ) -> Tensor:
        """Do the local work of a chunk: change the leaves of ``x`` that the schedule writes.

        Clients without training examples, such as some newcomers, do nothing.

        Args:
            x: working states; leaves that the schedule writes must be owned by the caller.
            received: states at the start of the visit; not changed.
            clients: the chunk, by decreasing number of training examples.
            round: number of the round, for batches.
            schedule: phases and assignments.
            scheduled: whether the run's learning-rate schedule applies, which it does only in training rounds. Work
                outside rounds (before predicting, between experiences, of newcomers) uses the rates as given.
            efforts: ``(clients,)`` the share of each phase's steps that a client does (:func:`batches.part`); default:
                all of them.

        Returns:
            ``(2, clients)`` each client's task loss and the phase's objective, averaged over the steps of the last
            phase that trains something.
        """
        able = int((self.federation.splits["train"].sizes[clients] > 0).sum())
        if able < len(clients):
            first = [{s: {p: t[:able] for p, t in ls.items()} for s, ls in stack.items()} for stack in (x, received)]
            losses = torch.zeros(2, 0, device=self.federation.inputs.device)
            if able:
                some = None if efforts is None else efforts[:able]
                losses = self.visit(
                    first[0], first[1], clients[:able], round, schedule, scheduled=scheduled, efforts=some
                )
            return torch.cat([losses, losses.new_zeros(2, len(clients) - able)], 1)
        steps = torch.zeros(len(clients), dtype=torch.int64, device=self.federation.inputs.device)
        lasting = round if scheduled else None
        rate, before = self.rate(Phase(), lasting), Phase()
        losses = torch.zeros(2, len(clients), device=steps.device)
        with self._kernels():
            for item in schedule:
                if isinstance(item, Phase) and not self._idle(item):
                    rate = self.rate(item, lasting)
                    steps, losses = self._train(item, x, received, clients, round, rate, efforts)
                    before = item
                elif isinstance(item, Assign):
                    self._assign(item, x, received, clients, round, steps, rate, before)
        return losses

    def _check_linear(self) -> None:
        """Refuse optimizers whose steps are not sums of gradients, if the method relies on that."""
        method, used = self.bound.method, self.training.optimizer
        for item in (*method.schedule, *method.predictor.adapt, *method.between):
            if isinstance(item, Phase):
                used = item.optimizer or self.training.optimizer
            elif item.linear and not isinstance(used, SGD):
                raise PluresError(f"the local optimizer is {type(used).__name__}: {item.linear}")

    def rate(self, phase: Phase, round: int | None = None) -> float:
        """Learning rate of a phase in a round of training, or in work outside rounds."""
        base = phase.lr if phase.lr is not None else (phase.optimizer or self.training.optimizer).lr
        return base if round is None else base * self.training.schedule(round, self.training.rounds)

    # --- gradient steps -----------------------------------------------------------------------------------------

    def amount(self, phase: Phase, round: int) -> tuple[float | None, int | None]:
        """Passes over a client's data or, if they are given instead, steps of a phase in a round."""
        if phase.epochs is None and phase.steps is None:
            return self.training.passes, self.training.steps
        steps = phase.steps
        if callable(steps):
            steps = steps(float(unit(self.seed, round, name_key(f"steps {phase.stream}"))))
        return phase.epochs, steps

    def steps(self, schedule: Schedule, round: int) -> NDArray[np.int64]:
        """Steps of every client's visit, ``(clients,)``, in the phase with the most."""
        split = self.federation.splits["train"]
        batch = self.training.batch_size or int(split.sizes.max())
        joined, sizes = self.bound.network.batch_coupled, split.sizes.numpy()
        found = np.zeros_like(sizes)
        for item in schedule:
            if isinstance(item, Phase):
                amount = self.amount(item, round)
                each = batches.counted(sizes, batch, *amount, item.batches, join_single=joined)[1]
                found = np.maximum(found, each)
        return found

    def draw(
        self, phase: Phase, clients: list[int], round: int, efforts: NDArray[np.float64] | None = None
    ) -> batches.Batches:
        """The batches of a phase, which depend only on seed, client, round, the phase's stream and efforts."""
        keys = branch(self._client_keys[clients], round, name_key(phase.stream))
        epochs, steps = self.amount(phase, round)
        return batches.plan(
            self.federation.splits["train"],
            clients,
            keys,
            self.training.batch_size,
            epochs,
            steps,
            phase.batches,
            join_single=self.bound.network.batch_coupled,
            same_width=self.execution.compile is True or self.execution.capture is True,
            efforts=efforts,
        )

    def _train(
        self,
        phase: Phase,
        x: Stack,
        received: Stack,
        clients: list[int],
        round: int,
        rate: float,
        efforts: NDArray[np.float64] | None = None,
    ) -> tuple[Tensor, Tensor]:
        plan = self.draw(phase, clients, round, efforts)
        order = np.argsort(-plan.steps, kind="stable")
        if (np.diff(order) < 0).any():
            assert efforts is not None
            return self._reordered(order, phase, x, received, clients, round, rate, efforts)
        try:
            losses = self.train(phase, x, received, plan, rate)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            few = [self.federation.clients[i] for i in clients if self.federation.splits["train"].sizes[i] == 1]
            raise PluresError(
                f"batch normalisation cannot train on a single example (batch size {self.training.batch_size}, clients "
                f"with one example: {', '.join(few) or 'none'}): take larger batches, hold such clients out, or use "
                "GroupNorm"
            ) from error
        steps = torch.from_numpy(plan.steps).to(losses.device)
        return steps, losses / steps.clamp(min=1)

    def _reordered(
        self,
        order: NDArray[np.int64],
        phase: Phase,
        x: Stack,
        received: Stack,
        clients: list[int],
        round: int,
        rate: float,
        efforts: NDArray[np.float64],
    ) -> tuple[Tensor, Tensor]:
        """Train a chunk in another order: that of its clients' steps, of which some do only a part."""
        index = torch.from_numpy(order).to(self.federation.inputs.device)
        here, there = ({s: {p: t[index] for p, t in ls.items()} for s, ls in stack.items()} for stack in (x, received))
        mine = [clients[i] for i in order.tolist()]
        found = self._train(phase, here, there, mine, round, rate, efforts[order])
        for leaf in self.bound.written_by((phase,)):
            x[leaf.slot][leaf.path][index] = here[leaf.slot][leaf.path]
        back = index.argsort()
        return found[0][back], found[1][:, back]

    def train(self, phase: Phase, x: Stack, received: Stack, plan: batches.Batches, rate: float) -> Tensor:
        """Do a phase's steps on given batches.

        Returns:
            ``(2, clients)`` each client's task loss and the phase's objective, summed over its steps.
        """
        return self._resolved(phase)(x, received, plan, rate)

    def _idle(self, phase: Phase) -> bool:
        """Whether a phase changes nothing, because everything it would train is frozen."""
        steps = self._resolved(phase)
        return not steps.trained and not steps.followed

    def _resolved(self, phase: Phase) -> Steps:
        if id(phase) not in self._steps:
            self._steps[id(phase)] = self._resolve(phase)
        return self._steps[id(phase)]

    def _resolve(self, phase: Phase) -> Steps:
        if self.execution.backend == "loop":
            return OneByOne(phase, self.bound, self.federation, self.training, self.entropy)
        chunk, kind = self.execution.chunk, self.federation.inputs.device.type
        assert isinstance(chunk, int)
        if self.execution.capture is True and self._recorder is None:
            self._recorder = RECORDERS[kind]([self.federation.targets])
        return Stacked(
            phase,
            self.bound,
            self.federation,
            self.training,
            compiler=self._compiled_step if self.execution.compile is True else None,
            recorder=self._recorder,
            shared=self._recorded_steps if kind == "cpu" else None,
            clients=chunk,
            patches=self._patches,
        )

    def _compiled_step(self, computes: str, make: Callable[[], Callable[..., Tensor]]) -> Callable[..., Tensor]:
        return self.machine.compiled(self._computes(computes), make)

    def _recorded_steps(self, computes: str, make: Callable[[bool], Recordings]) -> Recordings:
        return self.machine.recordings(self._computes(computes), make, self._thread)

    def _computes(self, step: str) -> str:
        execution = self.execution
        return f"{execution.precision} {execution.patches} {self.federation.inputs.device} {step}"

    def uncompiled(self, phases: Iterable[Phase], sizes: Iterable[int]) -> int:
        """How many steps of these phases, for stacks of these sizes, are not compiled yet."""
        stacked = [steps for steps in map(self._resolved, phases) if isinstance(steps, Stacked)]
        each = [self._computes(steps.computes(size)) for steps in stacked for size in sizes]
        return len(set(each) - self.machine.steps.keys())

    # --- assignments, measurements, forward passes --------------------------------------------------------------

    def _assign(
        self,
        item: Assign,
        x: Stack,
        received: Stack,
        clients: list[int],
        round: int,
        steps: Tensor,
        rate: float,
        before: Phase,
    ) -> None:
        measured: Leaves = {}
        optimizer = before.optimizer or self.training.optimizer
        if item.measure is not None:
            measured = self.measure(item.measure, x, received, clients, item.split)
        lr, number = (torch.tensor(value, dtype=self.dtype, device=steps.device) for value in (rate, round))
        drawn = branch(self._client_keys[clients], round, name_key("assign")) >> np.uint64(32)
        keys = torch.from_numpy(drawn.astype(np.int64)).to(steps.device)

        def update(
            examples: Examples, x: Stack, received: Stack, steps: Tensor, measured: Leaves, key: Tensor
        ) -> dict[str, Leaves]:
            reached = reach(optimizer, steps) if item.linear and isinstance(optimizer, SGD) else steps * torch.nan
            visit = Visit(steps, lr, reached, number, measured, self._batches(examples), key)
            new = item.update(self.bound.state(x), self.bound.state(received), visit)
            return {slot: dict(leaves) for slot, leaves in new.items()}

        examples: Examples = {split: self._given(item, clients, split, x, received) for split in item.reads}
        rest = x, received, steps.to(self.dtype), measured, keys
        new = self.each(update, examples, *rest, test=PaddingTest(update, (item.update,), "update"))
        for slot in item.writes:
            for path, value in new[slot].items():
                if path not in self.bound.network.frozen:
                    x[slot][path].copy_(value)

    def _given(self, item: Assign, clients: list[int], split: SplitName, x: Stack, received: Stack) -> Example:
        """The examples of a split as an assignment gets them: with inputs, what it needs of them, or without."""
        through = item.through
        if through is None:
            return self.whole(clients, split, blind=item.blind)

        def shown(examples: Examples, states: tuple[Stack, Stack]) -> Tensor:
            batch = Batch(*examples[QUERY], self.problem, train=False)
            now, then = states
            return through(self.bound.state(now), self.bound.state(then), batch)

        test, parts = PaddingTest(answers(shown), (through,), "predictor"), []
        with torch.no_grad():
            for inputs, targets, weight in self.walk(clients, split):
                padded = torch.where(weight.sum(1, keepdim=True) > 0, weight, 1.0)
                examples: Examples = {QUERY: (inputs, targets, padded)}
                found = self.each(filled(shown, targets.shape[1]), examples, (x, received), test=test)
                parts.append((found, targets, weight))
        seen, targets, weight = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        return seen, targets, weight

    def _batches(self, examples: Examples) -> dict[str, Batch]:
        return {split: Batch(*data, self.problem, train=False) for split, data in examples.items()}

    def whole(
        self, clients: list[int], split: SplitName, *, blind: bool = False
    ) -> tuple[Tensor | Inputs, Tensor, Tensor]:
        """All examples of some clients at once: inputs, targets ``(clients, most, ...)`` and weights, 0 for padding.

        Args:
            clients: their positions.
            split: the split.
            blind: read no inputs; they are ``(clients, most, 0)``.
        """
        (only,) = self.walk(clients, split, int(self.federation.splits[split].sizes.max()), blind=blind)
        return only

    def measure(
        self,
        fn: Callable[[State, State, Batch], Leaves],
        x: Stack,
        received: Stack,
        clients: list[int],
        split: SplitName,
    ) -> Leaves:
        """Mean of ``fn`` over each client's examples, ``(clients, ...)``, without training anything."""

        def one(examples: Examples, x: Stack, received: Stack) -> Leaves:
            batch = Batch(*examples[split], self.problem, train=False)
            return dict(fn(self.bound.state(x), self.bound.state(received), batch))

        total: Leaves = {}
        test = PaddingTest(one, (fn,), "measurement")
        sizes = self._amounts(split)[clients]
        with self._kernels(), torch.no_grad():
            for inputs, targets, weight in self.walk(clients, split):
                count = weight.sum(1)
                padded = torch.where(count.unsqueeze(1) > 0, weight, 1.0)
                found = self.each(one, {split: (inputs, targets, padded)}, x, received, test=test)
                for name, value in found.items():
                    share = per_client(count / sizes.clamp(min=1), value) * value
                    total[name] = total[name] + share if name in total else share
        return total

    def _amounts(self, split: SplitName) -> Tensor:
        """Total weight of each client's examples, ``(clients,)``; their number if examples have no weights."""
        rows, weights = self.federation.splits[split], self.federation.weights
        if weights is None:
            return rows.sizes.to(self.federation.inputs.device, self.dtype)
        total = weights.new_zeros(len(rows), dtype=torch.float64)
        return total.index_add_(0, rows.owners.to(weights.device), weights[rows.rows].double()).to(self.dtype)

    def walk(
        self, clients: list[int], split: SplitName, size: int = EVALUATION_BATCH, *, blind: bool = False
    ) -> Iterator[tuple[Tensor | Inputs, Tensor, Tensor]]:
        """A client's examples in stored order: inputs, targets ``(clients, batch, ...)`` and weights, 0 for padding.

        Args:
            clients: their positions.
            split: the split.
            size: most examples of a client at once.
            blind: read no inputs; they are ``(clients, batch, 0)``.
        """
        if size == EVALUATION_BATCH:
            wide = max(1, len(clients) * self.federation.inputs[:1].nbytes)
            size = max(1, min(size, EVALUATION_BYTES // wide))
        plan = batches.passes(self.federation.splits[split], clients, size)
        given = self.federation.weights
        for rows, count in zip(plan.rows[:, 0], plan.counts[:, 0], strict=True):
            weight = mask(torch.from_numpy(count).to(rows.device), rows.shape[1], self.dtype)
            weight = weight if given is None else weight * gather(given, rows)
            inputs = weight.new_empty(*weight.shape, 0) if blind else gather(self.federation.inputs, rows)
            yield inputs, gather(self.federation.targets, rows), weight

    def tiles(
        self, clients: list[int], split: SplitName
    ) -> Iterator[tuple[list[int], Tensor | Inputs, Tensor, Tensor]]:
        """Clients' examples in stored order, in batches of the clients that have some left, with little padding.

        Yields:
            Positions, in ``clients``, of a batch's clients; inputs, targets ``(places, batch, ...)`` and weights, 0 for
            padding. If nobody has an example, one batch of padding.
        """
        rows, given = self.federation.splits[split], self.federation.weights
        begins, sizes = rows.offsets.numpy()[clients], rows.sizes.numpy()[clients]
        owned = rows.rows if len(rows.rows) else rows.rows.new_zeros(1)
        each = self.federation.inputs[:1].nbytes

        def most(count: int) -> int:
            return max(LEAST, min(EVALUATION_BATCH, EVALUATION_BYTES // max(1, count * each)))

        for places, start, width in batches.tiles(sizes, most, LEAST):
            count = (sizes[places] - start).clip(0, width)
            within = np.minimum(np.arange(width), np.maximum(count - 1, 0)[:, None])
            index = np.minimum((begins[places] + start)[:, None] + within, len(owned) - 1)
            chosen = owned[torch.from_numpy(index).to(owned.device)]
            weight = mask(torch.from_numpy(count).to(owned.device), width, self.dtype)
            weight = weight if given is None else weight * gather(given, chosen)
            inputs, targets = gather(self.federation.inputs, chosen), gather(self.federation.targets, chosen)
            yield places.tolist(), inputs, targets, weight

    def forward(
        self,
        deployed: Stack,
        inputs: Tensor | Inputs,
        own: Examples | None = None,
        weight: Tensor | None = None,
        *,
        as_stored: bool = False,
    ) -> Tensor:
        """Outputs ``(clients, batch, outputs)`` of every client's own predictor in evaluation mode.

        Args:
            deployed: what the clients predict with (:meth:`~plures.run.Run.deployed`); leaves that all clients share
                may be expanded views.
            inputs: ``(clients, batch, *features)``.
            own: the clients' own examples of the splits that the predictor reads.
            weight: ``(clients, batch)`` 1 for an example, 0 for padding; by default all are examples.
            as_stored: compute with leaves in their stored layout, for the same bits as those of a published model.
        """
        last = self.channels_last and not as_stored
        predict, network, places = self.bound.method.predictor, self.bound.network, lead(inputs).shape[1]
        examples: Examples = {**(own or {}), QUERY: self._query(inputs, weight)}

        def outputs(examples: Examples, x: Stack) -> Tensor:
            inputs, unknown, _ = examples[QUERY]
            if not predict.composed:
                (model,) = x.values()
                return network(model, inputs, train=False)[0]
            known = self._batches({split: some for split, some in examples.items() if split != QUERY})
            batch = Batch(inputs, unknown, None, self.problem, train=False, own=known)
            return predict.predicted(self.bound.state(x), batch)

        about = (predict.outputs or network, *(stage.revise for stage in predict.calibrate))
        test = PaddingTest(answers(outputs), about, "predictor")
        with self.evaluating(as_stored=as_stored):
            alone = len(lead(inputs)) == 1 and full(examples)
            alike = alone or all(t.stride(0) == 0 for leaves in deployed.values() for t in leaves.values())
            verdicts = self.bound.verdicts
            if alike and not predict.composed and (alone or not test.apart(verdicts, examples, (deployed,))):
                (model,) = (laid_out(deployed) if last else deployed).values()
                one = {path: t[0] for path, t in model.items()}
                return self._together(one, inputs, examples[QUERY][2], EVALUATION_BATCH if last else None)
            if last:
                return apart(filled(outputs, places), examples, laid_out(deployed))  # type: ignore[no-any-return]
            return self.each(filled(outputs, places), examples, deployed, test=test)  # type: ignore[no-any-return]

    @contextmanager
    def evaluating(self, *, as_stored: bool = False) -> Iterator[None]:
        """A context in which the network predicts: its kernels, those of few outputs, and no gradients.

        Args:
            as_stored: leave out what rounds differently for other numbers of rows.
        """
        network, device = self.bound.network, self.federation.inputs.device.type
        with self._kernels(), nullcontext() if as_stored else thin(network.module, device), torch.no_grad():
            yield

    def _together(self, model: Leaves, inputs: Tensor | Inputs, weight: Tensor | None, most: int | None) -> Tensor:
        """Outputs ``(clients, batch, outputs)`` of one model for the examples of several clients.

        Where much is padding, it is left out, and its outputs are zeros.

        Args:
            model: the model's leaves.
            inputs: ``(clients, batch, *features)``.
            weight: 1 for an example, 0 for padding.
            most: largest number of examples at once; ``None`` for all.
        """
        shape = lead(inputs).shape[:2]
        flat: Tensor | Inputs = nested.mapped(lambda t: t.flatten(0, 1), inputs)
        kept = weight is None or float((weight > 0).float().mean()) > FULL
        real = None if weight is None or kept else weight.flatten().nonzero().squeeze(1)
        chosen = flat if real is None else flat[real]
        starts = range(0, len(chosen), most) if most is not None else ()
        parts = [chosen[start : start + (most or 0)] for start in starts] or [chosen]
        found = torch.cat([self.bound.network(model, part, train=False)[0] for part in parts])
        if real is not None:
            found = found.new_zeros(len(flat), *found.shape[1:]).index_copy_(0, real, found)
        return found.unflatten(0, shape)  # type: ignore[no-untyped-call, no-any-return]

    def decisions(self, deployed: Stack, outputs: Tensor, weight: Tensor | None = None) -> Tensor:
        """Every client's decisions, ``(clients, batch, *target)``; see :meth:`forward`."""
        decide = self.bound.method.predictor.decide
        if decide is None:
            with few(outputs.device.type, outputs.shape[-1]):
                return self.federation.task.decide(outputs)
        examples: Examples = {QUERY: self._query(outputs, weight)}

        def decided(examples: Examples, x: Stack) -> Tensor:
            return decide(self.bound.state(x), lead(examples[QUERY][0]))

        test = PaddingTest(answers(decided), (decide,), "decision")
        return self.each(filled(decided, outputs.shape[1]), examples, deployed, test=test)  # type: ignore[no-any-return]

    def _query(self, inputs: Tensor | Inputs, weight: Tensor | None) -> Example:
        """The inputs to predict, ``(clients, batch, ...)``, as examples with unknown targets."""
        shape, device = lead(inputs).shape[:2], inputs.device
        unknown = self.federation.task.blank(*shape).to(device)
        return inputs, unknown, torch.ones(shape, dtype=self.dtype, device=device) if weight is None else weight

    def each(self, fn: Callable[..., Any], examples: Examples, *rest: Any, test: PaddingTest) -> Any:
        """Map a function of one client and its examples over clients; without padding if that changes its result.

        Args:
            fn: ``(examples, *rest) -> tensors`` of one client.
            examples: by split, ``(clients, most, ...)``.
            rest: further arguments, ``(clients, ...)``.
            test: tells whether padding matters.
        """
        if self.execution.backend == "loop":
            return apart(fn, examples, *rest)
        if full(examples) or not test.apart(self.bound.verdicts, examples, rest):
            return self.mapped(fn)(examples, *rest)
        return unpadded(self.mapped, fn, examples, rest)

    def mapped(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Map a function of one client over the leading axis of its arguments, with the chosen backend."""
        if self.execution.backend == "vmap":
            return torch.func.vmap(fn)

        return lambda *args: apart(lambda _, *own: fn(*own), {}, *args)

    def _kernels(self) -> AbstractContextManager[None]:
        device = self.federation.inputs.device.type
        return kernels(self.bound.network.module, self.execution.precision, device, patches=self._patches)

    @property
    def _patches(self) -> bool:
        """Whether convolutions of stacked clients are products of patches."""
        return self.execution.patches and bool(self.bound.network.convolves & {1, 2})


def channels_last(network: Network, device: torch.device) -> bool:
    """Whether a network convolves faster with channels last: 2-D convolutions do, with oneDNN on a CPU."""
    has: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has and device.type == "cpu" and network.dtype == torch.float32 and 2 in network.convolves


def laid_out(deployed: Stack) -> Stack:
    """Leaves ``(clients, ...)`` with the channels of each client's 2-D kernels last."""

    def last(t: Tensor) -> Tensor:
        if t.dim() != 5:
            return t
        rows = t[:1] if t.stride(0) == 0 else t
        _, filters, channels, height, width = rows.shape
        size = channels * height * width
        strides = filters * size, size, 1, width * channels, channels  # explicit, because there may be one channel
        return rows.new_empty_strided(rows.shape, strides).copy_(rows).expand_as(t)

    return {slot: {path: last(t) for path, t in leaves.items()} for slot, leaves in deployed.items()}


def apart(fn: Callable[..., Any], examples: Examples, *rest: Any) -> Any:
    """Call a function of one client and its examples, without padding, for one client after the other.

    Args:
        fn: ``(examples, *rest) -> tensors`` of one client.
        examples: by name, ``(clients, most, ...)``.
        rest: further arguments, ``(clients, ...)``.
    """
    sizes = counts(examples).tolist() if examples else []
    alike = {name: counts_alike(example) for name, example in examples.items()}
    found = []
    for client in range(len(sizes) or len(nested.ends(rest)[0])):
        own = {
            name: trimmed((x[client], y[client], None if weight is None else weight[client]), size, alike[name])
            for (name, (x, y, weight)), size in zip(examples.items(), sizes[client] if sizes else (), strict=True)
        }
        found.append(fn(own, *nested.mapped(lambda t, client=client: t[client], rest)))
    return nested.mapped(lambda *each: torch.stack(each), *found)


def answers(fn: Callable[[Examples, Any], Tensor]) -> Callable[[Examples, Any], Tensor]:
    """A function of one client, restricted to its outputs for the examples to predict, without padding."""

    def given(examples: Examples, x: Any) -> Tensor:
        found, weight = fn(examples, x), examples[QUERY][2]
        return found if weight is None else found[weight > 0]

    return given


def filled(fn: Callable[[Examples, Any], Tensor], places: int) -> Callable[[Examples, Any], Tensor]:
    """The same function, with zeros appended to its result up to a number of places."""

    def given(examples: Examples, x: Any) -> Tensor:
        found = fn(examples, x)
        missing = places - len(found)
        return torch.cat([found, found.new_zeros(missing, *found.shape[1:])]) if missing else found

    return given
