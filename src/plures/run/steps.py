"""The one local-training loop: the gradient steps of a phase, one client at a time or for a stack of clients.

Objectives are written for one client. :class:`OneByOne` runs them through ordinary autograd, :class:`Stacked` maps
them over the clients with ``torch.func``. Both see the same batches and give the same result.
"""

from __future__ import annotations

import copy
import itertools
import logging
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.augment import Mixture
from plures.entropy import Entropy
from plures.errors import PluresError
from plures.federation import Federation, Mapped
from plures.federation.inputs import Inputs, lead, parts
from plures.method import SGD, Adam, Batch, Bound, Leaf, Optimizer, Phase, Problem, State
from plures.method.leaf import by_slot
from plures.method.state import Pass
from plures.method.tree import detach
from plures.models import Leaves, nested
from plures.run import batches
from plures.run.batches import Batches
from plures.run.capture import Captured, Part, Recorder, Recordings
from plures.run.facts import digest, facts
from plures.run.padding import Example, Examples, PaddingTest, close, identity, mask
from plures.run.training import Training

log = logging.getLogger("plures")

Stack = dict[str, Leaves]
"""The states of a chunk of clients: slot -> path -> ``(clients, ...)``."""

Rows = slice | Tensor
Tensors = list[Tensor]
Changed = dict[Leaf, Tensor]
Doubled = tuple[Tensor, Tensor]
"""The other targets of examples that count for two, and the shares of the first ones."""
Passes = dict[str, list[tuple[Pass, Batch]]]
"""For each slot, its last forward pass on each batch of a step, with that batch."""

Sharing = Callable[[str, Callable[[bool], Recordings]], Recordings]
"""``(key, make) -> recordings`` that runs share; ``make`` is told whether other learning rates will follow."""

Gradients = tuple[Tensors, tuple[Tensor, Tensor], Changed]
"""Gradients of the trained leaves, task loss and objective, and followed leaves."""

SMALL = 1 << 19
"""Largest number of trained values of a stack whose gradients are computed outside ``vmap``, as measured; that is no
faster for larger stacks."""
BLOCK = 1 << 20
"""Bytes of inputs that one client's steps gather at once."""


class Steps:
    """The gradient steps of one phase, resolved once for a run.

    Args:
        phase: what is trained, and how.
        bound: the method, resolved against its network.
        federation: the data, on the device.
        training: local work.
        entropy: secret random bytes of the client, at a site.
    """

    def __init__(
        self, phase: Phase, bound: Bound, federation: Federation, training: Training, entropy: Entropy | None = None
    ) -> None:
        self.phase, self.network, self.federation = phase, bound.network, federation
        self.problem, self.dtype = Problem(bound.network, federation.task, entropy=entropy), bound.network.dtype
        self.verdicts = bound.verdicts
        self.optimizer, self.clip = phase.optimizer or training.optimizer, training.clip
        if not getattr(self.optimizer, "decoupled", False):
            self.problem = replace(self.problem, decay=getattr(self.optimizer, "weight_decay", 0.0))
        self.random = bound.network.random or phase.random
        self.trained = bound.trained(phase)
        self.slots = [[n for n, leaf in enumerate(self.trained) if leaf.slot == slot] for slot in dict(self.trained)]
        """Positions of each slot's leaves among the trained ones; each slot's gradient is clipped separately."""
        models = [n for n, leaf in enumerate(self.trained) if bound.of_model(leaf)]
        others = [n for n in range(len(self.trained)) if n not in set(models)]
        self.updates = [(self.optimizer, models), *([(undecayed(self.optimizer), others)] if others else [])]
        self.kept = bound.kept_by(phase)
        self.state = bound.state
        self.followed = [leaf for leaf in [*bound.selected(phase), *self.kept] if leaf not in set(self.trained)]
        """Leaves that follow the forward passes, or what is computed before each step."""
        self.plain = plain(phase)
        self.read = read_by(bound, phase)
        self.source = federation.inputs, federation.targets, federation.weights
        self.augment = federation.augment
        self.ahead = self.augment is not None or any(isinstance(part, Mapped) for part in parts(federation.inputs))
        """Whether examples are gathered before a step, not in it."""
        self.shapes = [(tuple(bound.initial[s][p].shape), bound.initial[s][p].dtype) for s, p in self.read]
        self.anchored = [] if self.plain else self.read
        """Leaves whose received value the phase can read."""
        self.direct = phase.objective is None and bool(phase.targets)
        """Whether the objective is the task loss itself."""
        whole = bound.initial[phase.slot].keys() == bound.initial["model"].keys()
        self.model = phase.slot if whole else "model"
        """The slot whose task loss is reported: the phase's slot if it holds a whole model, else ``model``."""
        self.loss_slots = list(dict.fromkeys([self.model, *dict(self.trained), *dict(self.kept)]))
        """Slots whose forward passes give the task loss; the first slot that has any is reported."""

    def __call__(self, x: Stack, received: Stack, plan: Batches, rate: float) -> Tensor:
        """Train the leaves of ``x`` in place.

        Args:
            x: working states, ``(clients, ...)``.
            received: states at the start of the visit; not changed.
            plan: the batches.
            rate: learning rate.

        Returns:
            ``(2, clients)`` sums over each client's steps: of the task loss, and of the objective.
        """
        raise NotImplementedError

    def _examples(self, rows: Tensor, counts: Tensor | None, keys: Tensor | None) -> tuple[Example, Doubled | None]:
        """The examples of some batches, augmented.

        Args:
            rows: ``(batches, width)``.
            counts: ``(batches,)`` number of examples in each batch, for augmentation.
            keys: ``(batches, width)`` randomness of each example, for augmentation.

        Returns:
            Inputs, targets ``(batches, width, ...)`` and the examples' weights; if examples count for two targets, the
            other targets and the share of the first ones.
        """
        inputs, targets = gather(self.source[0], rows), gather(self.source[1], rows)
        weights = None if self.source[2] is None else gather(self.source[2], rows)
        if self.augment is None or counts is None or keys is None:
            return (inputs, targets, weights), None
        made = self.augment(keys, counts, inputs, targets)
        if isinstance(made, Mixture):
            if self.problem.task.joint:
                raise PluresError(
                    f"augmentation: the loss of {self.problem.task.kind} compares the examples of a batch, which "
                    "cannot be mixed; leave the mixture out"
                )
            return (made.inputs, made.targets, weights), (made.others, made.share)
        return (*made, weights), None

    def _batch(self, data: Iterable[Example], key: Tensor | None) -> Any:
        """What the objective gets: one batch, or a tuple when the phase asks for several."""
        if self.phase.batches == 1:
            (one,) = data
            return Batch(*one, self.problem, True, key)
        keys = (None if key is None else (key + number * 0x27D4EB2F) & 0xFFFFFFFF for number in itertools.count())
        return tuple(Batch(*one, self.problem, True, own) for one, own in zip(data, keys))  # noqa: B905

    def _before(
        self, x: State, anchor: State, data: list[Example], key: Tensor | None
    ) -> tuple[Stack, Changed, Passes]:
        """What the phase computes before a step, the leaves that it changes, and its forward passes."""
        if self.phase.before is None:
            return {}, {}, {}
        batch = self._batch(data, key)
        extra = {slot: dict(leaves) for slot, leaves in self.phase.before(x, anchor, batch).items()}
        kept = {leaf: extra[leaf.slot][leaf.path] for leaf in self.kept if leaf.path in extra[leaf.slot]}
        return extra, kept | self._statistics(x, batch), self._passes(x, batch)

    def _passes(self, x: State, batch: Batch | tuple[Batch, ...]) -> Passes:
        """Forward passes that give the task loss of a slot."""
        found: Passes = {}
        if not self.direct:
            for one in batch if isinstance(batch, tuple) else (batch,):
                last = {x.slot_of(made.leaves): (made, one) for made in one.seen if made.of(one)}
                for slot, pair in last.items():
                    if slot is not None:
                        found.setdefault(slot, []).append(pair)
        return found

    def _task_loss(self, x: State, batch: Batch | tuple[Batch, ...], value: Tensor, before: Passes) -> Tensor:
        """Task loss of the phase's slot, next to the objective's ``value``.

        It is the loss of the last forward pass with the slot, or marked as being for it (``keep=``), in the objective
        or before it; otherwise of a pass with another slot that the phase trains or keeps. If several batches had such
        passes, it is their mean. A step without such a pass makes an extra one, without gradient.
        """
        if self.direct:
            return value.detach()
        passes = before | self._passes(x, batch)
        for slot in self.loss_slots:
            if slot in passes:
                each = [made.task_loss(one) for made, one in passes[slot]]
                return each[0] if len(each) == 1 else torch.stack(each).mean()
        one: Batch = batch[0] if isinstance(batch, tuple) else batch
        return one.loss(detach(getattr(x, self.model)))

    def _statistics(self, x: State, batch: Batch | tuple[Batch, ...]) -> Changed:
        """Running statistics left by the forward passes, for the leaves that the phase may change."""
        changed: Changed = {}
        if self.followed:
            for one in batch if isinstance(batch, tuple) else (batch,):
                for made in one.seen:
                    slot = x.slot_of(made.leaves)
                    if slot is not None:
                        changed |= {Leaf(slot, path): value for path, value in made.buffers.items()}
        return {leaf: value for leaf, value in changed.items() if leaf in self.followed}

    def _clipped(self, grads: Tensors, *, stacked: bool = False) -> Tensors:
        """Gradients, scaled so that each slot's norm is at most the limit."""
        if self.clip is None or len(self.slots) == 1:
            return clipped(grads, self.clip, stacked=stacked)
        found = dict[int, Tensor]()
        for places in self.slots:
            found |= zip(places, clipped([grads[n] for n in places], self.clip, stacked=stacked), strict=True)
        return [found[n] for n in range(len(grads))]

    def _advance(
        self, values: Tensors, grads: Tensors, memory: list[Tensors], lr: Tensor | float, step: Tensor | int
    ) -> None:
        """One step of the optimizer, without weight decay for leaves that do not belong to a model."""
        for optimizer, places in self.updates:
            if len(places) == len(values):
                optimizer.step(values, grads, memory, lr, step)
            elif places:
                some = [[kept[n] for n in places] for kept in memory]
                optimizer.step([values[n] for n in places], [grads[n] for n in places], some, lr, step)


class OneByOne(Steps):
    """One client after the other, through ordinary autograd; it costs no more than a plain training loop."""

    def __call__(self, x: Stack, received: Stack, plan: Batches, rate: float) -> Tensor:
        return torch.stack([self._client(x, received, plan, rate, client) for client in range(len(plan.steps))], 1)

    def _client(self, x: Stack, received: Stack, plan: Batches, rate: float, client: int) -> Tensor:
        own = as_stack(self.read, [x[slot][path][client] for slot, path in self.read])
        anchor = self.state(as_stack(self.anchored, [received[slot][path][client] for slot, path in self.anchored]))
        work = own | self._borrow(own)
        values = [work[slot][path].requires_grad_(True) for slot, path in self.trained]
        plain = [value.detach() for value in values]
        memory = [[torch.zeros_like(value) for value in plain] for _ in range(self.optimizer.slots)]
        phase, losses, objectives, state = self.phase, [], [], self.state(work)
        for step, (data, key) in enumerate(self._data(plan, client), start=1):
            changed: Changed = {}
            passes: Passes = {}
            if phase.before is not None:
                with torch.no_grad():
                    extra, changed, passes = self._before(self.state(work), anchor, data, key)
                state = self.state(work | extra)
            batch = self._batch(data, key)
            loss = phase.minimised(state, anchor, batch)
            statistics = self._statistics(state, batch)
            with torch.no_grad():
                losses.append(self._task_loss(state, batch, loss, passes))
            if values:
                grads = torch.autograd.grad(loss, values, allow_unused=True)
                used = [torch.zeros_like(p) if g is None else g for p, g in zip(plain, grads, strict=True)]
                self._advance(plain, self._clipped(used), memory, rate, step)
            if self.followed:
                write(work, changed | statistics)
            objectives.append(loss.detach())
        for value in values:
            value.requires_grad_(False)
        for slot, path in [*self.trained, *self.followed]:
            if work[slot] is not own[slot]:
                own[slot][path].copy_(work[slot][path])
        if not losses:
            return plan.rows.new_zeros(2, dtype=self.dtype)
        return torch.stack([torch.stack(each).sum().to(self.dtype) for each in (losses, objectives)])

    def _borrow(self, own: Stack) -> Stack:
        """The phase's slot as the module's own parameters, so that calls do not have to substitute them."""
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
        width, augmenting = rows.shape[1], None
        if self.augment is not None:
            augmenting = plan.examples[:steps, :, client, :width].flatten(0, 1)
        block = each * max(1, BLOCK // max(1, each * width * self.source[0][:1].nbytes))
        keys = plan.keys[:, client].unbind() if self.random else [None] * steps
        for first in range(0, len(rows), block):
            some = rows[first : first + block]
            known, keyed = None, None
            if augmenting is not None:
                keyed = augmenting[first : first + block]
                known = torch.tensor(counts[first : first + block], device=some.device)
            (inputs, targets, weights), double = self._examples(some, known, keyed)
            counted = itertools.repeat(None) if weights is None else weights
            made: list[Example] = [
                (x, y, w) if count == width else (x[:count], y[:count], None if w is None else w[:count])
                for x, y, w, count in zip(inputs, targets, counted, counts[first:])  # noqa: B905
            ]
            if double is not None:
                made = [doubled(one, *other) for one, *other in zip(made, *double, strict=True)]
            for number in range(0, len(made), each):
                yield made[number : number + each], keys[(first + number) // each]


class Stacked(Steps):
    """A stack of clients at once: objectives, and their gradients where needed, mapped by ``torch.func.vmap``.

    Args:
        compiler: returns the compiled step for a description of what it computes. A compiled step always runs on all
            clients of the chunk, with idle ones masked. ``None`` to compile nothing.
        recorder: records steps to replay them; ``None`` to run them one by one.
        shared: returns the recorded steps for a description of what they compute and read, possibly of an earlier run;
            ``None`` to record anew.
        clients: largest number of clients in a stack.
        patches: whether convolutions are products of patches, whose gradient is efficient only if it is mapped.
    """

    def __init__(
        self,
        phase: Phase,
        bound: Bound,
        federation: Federation,
        training: Training,
        *,
        compiler: Callable[[str, Callable[[], Callable[..., Tensor]]], Callable[..., Tensor]] | None = None,
        recorder: Recorder | None = None,
        shared: Sharing | None = None,
        clients: int = 1,
        patches: bool = False,
    ) -> None:
        super().__init__(phase, bound, federation, training)
        self.compiler, self.patches = compiler, patches
        self.rest = [leaf for leaf in self.read if leaf not in set(self.trained)]
        self.captured = None
        if recorder is not None:
            written = [place for place, leaf in enumerate(self.rest) if leaf in set(self.followed)]
            recorded = self._recordings(recorder, shared, clients)
            widths = batches.widths(
                federation.splits["train"].sizes.numpy(),
                training.batch_size,
                join_single=bound.network.batch_coupled,
            )
            self.captured = Captured(recorded, written, self.dtype, widths=widths, visits=training.rounds)
        self.together: bool | None = None
        """Whether clients with different batches may step together; ``None`` until it is tested."""

    def __call__(self, x: Stack, received: Stack, plan: Batches, rate: float) -> Tensor:
        clients, device = len(plan.steps), plan.rows.device
        memory = [[torch.zeros_like(x[s][p]) for s, p in self.trained] for _ in range(self.optimizer.slots)]
        losses = torch.zeros(2, clients, device=device, dtype=self.dtype)
        amounts = torch.from_numpy(plan.counts).to(device)
        keys = plan.keys if self.random else None
        part, previous, source = self._part(x, received, memory, slice(0, clients)), clients, self.source
        if (replayed := self._replayed(part, plan, keys, rate)) is not None:
            return replayed
        compiled = None if self.compiler is None or self._apart(part, plan) else self._compiled(clients)
        for step, active in enumerate(plan.active):
            if compiled is not None:
                running = torch.from_numpy(step < plan.steps).to(device)
                lr, number = (torch.tensor(value, dtype=torch.float64, device=device) for value in (rate, step + 1))
                drawn = [] if keys is None else [keys[step]]
                index, padded = list(plan.rows[step]), list(amounts[step])
                if self.ahead:
                    keyed = None if self.augment is None else list(plan.examples[step])
                    index, padded, source = self._gathered(index, keyed, list(amounts[step]), True)
                losses += compiled(*part, index, padded, drawn, running, lr, number, source)
                continue
            for rows, sizes in self._groups(plan.counts[step, :, :active], part, plan):
                if isinstance(rows, Tensor) or previous != active:
                    part = self._part(x, received, memory, rows)
                    previous = active if isinstance(rows, slice) else -1
                index = [plan.rows[step, number, rows, :width] for number, width in enumerate(sizes.max(1).tolist())]
                padded = [] if (sizes == sizes[:, :1]).all() else list(amounts[step][:, rows])
                drawn = [] if keys is None else [keys[step, rows]]
                if self.ahead:
                    keyed = None
                    if self.augment is not None:
                        keyed = [own[rows, : one.shape[1]] for own, one in zip(plan.examples[step], index, strict=True)]
                    known = list(amounts[step][:, rows])
                    index, padded, source = self._gathered(index, keyed, known, bool(padded))
                losses[:, rows] += self._step(*part, index, padded, drawn, None, rate, step + 1, source)
                if isinstance(rows, Tensor):
                    self._return(part, x, memory, rows)
        return losses

    def _replayed(self, part: Part, plan: Batches, keys: Tensor | None, rate: float) -> Tensor | None:
        """Train with recorded steps; ``None`` if they cannot be recorded or recording does not pay off."""
        if self.captured is None or not len(plan.rows) or not self.captured.worth(plan):
            return None
        if self.ahead:
            self.captured = None
            log.info("steps that train %r are not captured: examples are augmented or on disk", self.phase.slot)
            return None
        kinds = self.captured.kinds(plan, rate)
        if any(kind.padded for kind in kinds) and self._apart(part, plan):
            return None

        def step(
            part: Part, rows: Tensors, counts: Tensors, keys: Tensors, lr: Tensor | float, number: Tensor
        ) -> Tensor:
            work = self._step if self.compiler is None else self._compiled(len(rows[0]))
            return work(*part, rows, counts, keys, None, lr, number, self.source)

        try:
            return self.captured(step, part, plan, kinds, keys, rate)
        except RuntimeError as error:
            self.captured = None
            log.info("steps that train %r are not captured: %s", self.phase.slot, str(error).strip().partition("\n")[0])
            return None

    def _gathered(
        self, rows: Tensors, keys: Tensors | None, counts: Tensors, padded: bool
    ) -> tuple[Tensors, Tensors, tuple[Tensor | Inputs, Tensor, Tensor | None]]:
        """The examples of a step in place of the federation's: rows of them, counts, and the examples, augmented.

        Args:
            rows: ``(clients, batch)`` for each batch of the step.
            keys: ``(clients, batch)`` randomness of each example, for each batch; ``None`` for no augmentation.
            counts: ``(clients,)`` real examples for each batch.
            padded: whether some rows are padding.
        """
        made: list[Example] = []
        mixed = False
        for index, key, count in zip(rows, keys or itertools.repeat(None), counts):  # noqa: B905
            example, double = self._examples(index, count, key)
            if double is not None:
                inputs, targets, weight = example
                if padded:
                    real = mask(count, index.shape[1], self.dtype)
                    weight = real if weight is None else weight * real
                example, mixed = doubled((inputs, targets, weight), *double), True
            made.append(example)
        places: Tensors = []
        first = 0
        for inputs, *_ in made:
            clients, width = lead(inputs).shape[:2]
            places.append(torch.arange(first, first + clients * width, device=inputs.device).view(clients, width))
            first += clients * width
        x = concatenated([inputs for inputs, *_ in made])
        y = torch.cat([one[1].flatten(0, 1) for one in made])
        known = [weight.flatten() for *_, weight in made if weight is not None]
        return places, counts if padded and not mixed else [], (x, y, torch.cat(known) if known else None)

    def _recordings(self, recorder: Recorder, shared: Sharing | None, clients: int) -> Recordings:
        """The steps to record for stacks of up to a number of clients, possibly those that an earlier run recorded."""
        held = [one for one in nested.ends(self.source) if isinstance(one, Tensor)]

        def make(several: bool) -> Recordings:
            smaller = self.compiler is None
            return Recordings(recorder, clients, self.dtype, smaller=smaller, several=several, held=held)

        return make(False) if shared is None else shared(f"{self.computes(clients)} {[id(one) for one in held]}", make)

    def _compiled(self, clients: int) -> Callable[..., Tensor]:
        """The compiled step for a number of clients, possibly from an earlier run that computes the same."""

        def make() -> Callable[..., Tensor]:
            step: Callable[..., Tensor] = torch.compile(own_code(self.light()._step), dynamic=False)
            return step

        assert self.compiler is not None
        return self.compiler(self.computes(clients), make)

    def light(self) -> Stacked:
        """A copy without what single steps do not use.

        Compiled steps outlive the run that made them, and must not keep its data and recorded steps alive.
        """
        same = copy.copy(self)
        same.captured = same.compiler = None
        del same.federation
        return same

    def computes(self, clients: int) -> str:
        """Everything that a step of some clients depends on besides its arguments, as one string."""
        shapes = [None if t is None else tuple(t.shape) for t in nested.ends(self.source)]
        return f"{self._depends} {clients} {shapes}"

    @cached_property
    def _depends(self) -> str:
        """What the step of any number of clients depends on; rates and numbers of steps are arguments."""
        optimizers = [replace(o, lr=1.0) if isinstance(o, SGD | Adam) else o for o, _ in self.updates]
        bare = replace(self.phase, lr=None, steps=None, epochs=None, optimizer=None)
        described = facts((bare, optimizers, self.federation.task), "step") | facts(self.network.module, tensors=False)
        held = [name for name, part in self.network.module.named_modules() if self.network.still(part)]
        places = (
            self.read,
            self.shapes,
            self.trained,
            self.kept,
            self.followed,
            self.anchored,
            [n for _, n in self.updates],
        )
        about = (self.clip, self.problem.decay, self.dtype, held, sorted(self.network.fixed), places, self.loss_slots)
        return digest(repr((sorted(described.items()), about)).encode())

    def _groups(self, counts: NDArray[np.int64], part: Part, plan: Batches) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
        """Clients that step together: all active ones, or, if padding matters, those with equal batches."""
        if (counts == counts[:, :1]).all() or not self._apart(part, plan):
            yield slice(0, counts.shape[1]), counts
            return
        for size in np.unique(counts, axis=1).T:
            rows = np.flatnonzero((counts == size[:, None]).all(0))
            yield torch.from_numpy(rows), counts[:, rows]

    def _apart(self, part: Part, plan: Batches) -> bool:
        """Whether only clients with equal batches may step together."""
        if self.together is None:
            self.together = not self.network.batch_coupled and not self._sees_padding(part, plan)
        return not self.together

    def _sees_padding(self, part: Part, plan: Batches) -> bool:
        examples: dict[str, Example] = {}
        for number, (index, count) in enumerate(zip(plan.rows[0], plan.counts[0], strict=True)):
            inputs, targets = gather(self.source[0], index), gather(self.source[1], index)
            weight = mask(torch.from_numpy(count).to(index.device), index.shape[1], self.dtype)
            examples[str(number)] = inputs, targets, weight

        def one(examples: Examples, trained: Tensors, rest: Tensors, received: Tensors, key: Tensor) -> Any:
            inputs, targets, weights = (list(each) for each in zip(*examples.values(), strict=True))
            known = [weight for weight in weights if weight is not None]
            return self._alone(trained, rest, received, inputs, targets, known, [key] if self.random else [])

        about = (self.network.module,) if self.plain else (self.phase.objective, self.phase.before)
        rest = part.trained, part.rest, part.received, plan.keys[0]
        return PaddingTest(one, about, "model" if self.plain else "objective").apart(self.verdicts, examples, rest)

    def _part(self, x: Stack, received: Stack, memory: list[Tensors], rows: Rows) -> Part:
        return Part(
            [x[slot][path][rows] for slot, path in self.trained],
            [x[slot][path][rows] for slot, path in self.rest],
            [received[slot][path][rows] for slot, path in self.anchored],
            [[kept[rows] for kept in some] for some in memory],
        )

    def _return(self, part: Part, x: Stack, memory: list[Tensors], rows: Tensor) -> None:
        """Write a part that is a copy back into the stack."""
        for leaf, value in zip([*self.trained, *self.rest], [*part.trained, *part.rest], strict=True):
            if leaf in self.trained or leaf in self.followed:
                x[leaf.slot][leaf.path][rows] = value
        for whole, some in zip(memory, part.memory, strict=True):
            for all_rows, changed in zip(whole, some, strict=True):
                all_rows[rows] = changed

    def _step(
        self, trained: Tensors, rest: Tensors, received: Tensors, memory: list[Tensors],
        rows: Tensors, counts: Tensors, keys: Tensors, running: Tensor | None,
        lr: Tensor | float, step: Tensor | int, source: tuple[Tensor | Inputs, Tensor, Tensor | None],
    ) -> Tensor:  # fmt: skip
        """One step of all clients of a part, changing its leaves in place.

        Args:
            trained, rest, received, memory: the part.
            rows: ``(clients, batch)`` for each batch of the step.
            counts: ``(clients,)`` real examples for each batch; empty when nothing is padded.
            keys: ``(clients,)`` dropout keys; empty when nothing is random.
            running: ``(clients,)`` which clients take the step; ``None`` for all.
            lr: learning rate.
            step: number of the step, from 1.
            source: inputs, targets and, where examples have some, weights of the federation.

        Returns:
            ``(2, clients)`` task losses and objectives.
        """
        inputs = [gather(source[0], index) for index in rows]
        targets = [gather(source[1], index) for index in rows]
        weights = [mask(count, index.shape[1], self.dtype) for index, count in zip(rows, counts, strict=False)]
        if source[2] is not None:
            counted = [gather(source[2], index) for index in rows]
            weights = [w * real for w, real in zip(counted, weights, strict=True)] if weights else counted
        grads, pair, changed = self._gradients(trained, rest, received, inputs, targets, weights, keys)
        losses = torch.stack([each.to(self.dtype) for each in pair])
        before = None if running is None else [value.clone() for value in trained]
        if trained:
            self._advance(trained, self._clipped(grads, stacked=True), memory, lr, step)
        others = as_stack(self.rest, rest)
        if running is not None and before is not None:
            for value, old in zip(trained, before, strict=True):
                value.copy_(torch.where(per_client(running, value), value, old))
            losses = torch.where(running, losses, 0.0)
            changed = {k: torch.where(per_client(running, v), v, others[k.slot][k.path]) for k, v in changed.items()}
        write(others, changed)
        return losses

    def _gradients(self, trained: Tensors, *given: Any) -> Gradients:
        """Gradients of all clients of a part; see :meth:`_gradient` for the arguments, with ``(clients, ...)``.

        No client's loss depends on another's leaves, so one backward pass through the sum of all losses, outside
        ``vmap``, gives every client's gradient with less work in Python than a mapped one. It is taken where that
        work counts, in steps of small models that are neither compiled nor captured, if on the objective's first step
        it gives what the first and the last client get alone. It does not for everything that ``vmap`` maps: not for
        some recurrent layers, nor for functions whose own rule for ``vmap`` is not differentiable.
        """
        replayed = self.captured is not None or torch.compiler.is_compiling()
        if replayed or self.patches or not 0 < sum(value.numel() for value in trained) <= SMALL:
            return self._mapped(trained, *given)
        about = Stacked, self.network.module, *identity(self.phase.objective), *identity(self.phase.before)
        key = tuple(map(id, about))
        if key in self.verdicts:
            return self._summed(trained, *given) if self.verdicts[key][1] else self._mapped(trained, *given)
        try:
            summed = self._summed(trained, *given)
        except RuntimeError as error:
            log.debug("gradients for %r are mapped: %s", self.phase.slot, str(error).strip().partition("\n")[0])
            right = False
        else:
            right = all(self._as_alone(summed, client, trained, *given) for client in {0, len(trained[0]) - 1})
        self.verdicts[key] = about, right
        return summed if right else self._mapped(trained, *given)

    def _as_alone(self, found: Gradients, client: int, *given: Any) -> bool:
        """Whether gradients of all clients of a part have, for one of them, what it gets alone."""
        one = nested.mapped(lambda t: t[client], given)
        return close(nested.mapped(lambda t: t[client], found), self._alone(*one), 0.5)

    def _alone(self, trained: Tensors, *given: Any) -> Gradients:
        """Gradients of one client that is not mapped, without ``torch.func.grad``, which imports PyTorch's compiler."""
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in trained]
            value, (pair, changed) = self._objective(leaves, self._former(trained), *given)
            grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True) if leaves else ()
        return list(grads), pair, changed

    def _summed(self, trained: Tensors, *given: Any) -> Gradients:
        """Gradients of all clients, by one backward pass through the sum of their objectives."""
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in trained]
            values, (pair, changed) = torch.func.vmap(self._objective)(leaves, self._former(trained), *given)
            grads = torch.autograd.grad(values.sum(), leaves, allow_unused=True, materialize_grads=True)
        return list(grads), pair, changed

    def _mapped(self, trained: Tensors, *given: Any) -> Gradients:
        """Gradients of all clients, by a backward pass for one client that is mapped."""
        return torch.func.vmap(self._gradient)(trained, *given)

    def _gradient(self, trained: Tensors, *given: Any) -> Gradients:
        """Gradients, task loss and objective, and followed leaves of one client, to be mapped.

        Args:
            trained: the client's trained leaves.
            given: further arguments of :meth:`_objective`.
        """
        if trained:
            former = self._former(trained)
            grads, (pair, changed) = torch.func.grad(self._objective, has_aux=True)(trained, former, *given)
        else:
            grads, (_, (pair, changed)) = [], self._objective(trained, trained, *given)
        return grads, pair, changed

    def _objective(
        self, leaves: Tensors, trained: Tensors, rest: Tensors, received: Tensors,
        inputs: list[Tensor | Inputs], targets: Tensors, weights: Tensors, keys: Tensors,
    ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], Changed]]:  # fmt: skip
        """What one client minimises; its task loss and objective, without gradient, and followed leaves.

        Args:
            leaves: the trained leaves, through which the gradient is taken.
            trained: the same, for what is computed before the step; empty if nothing is.
            rest, received, inputs, targets, weights, keys: see :meth:`_step`.
        """
        data = list(zip(inputs, targets, weights or itertools.repeat(None)))  # noqa: B905
        key = keys[0] if keys else None
        anchor = self.state(as_stack(self.anchored, received))
        earlier: tuple[Stack, Changed, Passes] = {}, {}, {}
        if self.phase.before is not None:
            earlier = self._before(self.state(self._joined(trained, rest)), anchor, data, key)
        extra, kept, passes = earlier
        x, batch = self.state(self._joined(leaves, rest) | extra), self._batch(data, key)
        value = self.phase.minimised(x, anchor, batch)
        changed = kept | self._statistics(x, batch)
        return value, ((self._task_loss(x, batch, value, passes), value.detach()), changed)

    def _former(self, trained: Tensors) -> Tensors:
        """The trained leaves for what is computed before the step; none if nothing is, because mapping each costs."""
        return [] if self.phase.before is None else trained

    def _joined(self, trained: Tensors, rest: Tensors) -> Stack:
        """A state of trained and other leaves, in the order of the slots."""
        values = dict(zip([*self.trained, *self.rest], [*trained, *rest], strict=True))
        return as_stack(self.read, [values[leaf] for leaf in self.read])


def plain(phase: Phase) -> bool:
    """Whether a phase minimises the plain task loss of one slot."""
    return phase.objective is None and phase.before is None


def read_by(bound: Bound, phase: Phase) -> list[Leaf]:
    """Leaves that a phase can read: all, unless it minimises the plain task loss of one slot."""
    slots = {phase.slot, *(slot for slot, _ in bound.trained(phase))} if plain(phase) else set(bound.initial)
    return [Leaf(slot, path) for slot in bound.initial if slot in slots for path in bound.initial[slot]]


def as_stack(leaves: list[Leaf], values: Tensors) -> Stack:
    """Slots with the given leaves."""
    return by_slot(dict(zip(leaves, values, strict=True)))


def concatenated(batches: Sequence[Tensor | Inputs]) -> Tensor | Inputs:
    """Batches ``(clients, width, ...)`` one after the other, as ``(examples, ...)``."""
    each = [parts(batch) for batch in batches]
    joined = [torch.cat([one.flatten(0, 1) for one in same]) for same in zip(*each, strict=True)]
    first = batches[0]
    return joined[0] if isinstance(first, Tensor) else Inputs(dict(zip(first.parts, joined, strict=True)))


def write(stack: Stack, changed: Changed) -> None:
    """Copy values into the leaves of a stack."""
    for (slot, path), value in changed.items():
        stack[slot][path].copy_(value.detach())


@overload
def gather(values: Tensor, rows: Tensor) -> Tensor: ...
@overload
def gather(values: Inputs, rows: Tensor) -> Inputs: ...
@overload
def gather(values: Tensor | Inputs, rows: Tensor) -> Tensor | Inputs: ...
def gather(values: Tensor | Inputs, rows: Tensor) -> Tensor | Inputs:
    """``values[rows]`` for rows of any shape, by the fastest kernel."""
    if isinstance(values, Inputs):
        return values.map(lambda t: gather(t, rows))
    return values.index_select(0, rows.reshape(-1)).view(*rows.shape, *values.shape[1:])


def doubled(example: Example, others: Tensor, share: Tensor) -> Example:
    """A batch in which each example stands twice: for its own target, and for another one, with weights of sum 1.

    Args:
        example: the batch, ``(..., batch, *features)``.
        others: the other targets, possibly followed by padding.
        share: weights for the own targets, in the same way.
    """
    inputs, targets, weight = example
    axis = share.dim() - 1
    size = targets.shape[axis]
    own = share.narrow(axis, 0, size)
    pair = torch.cat([own, 1 - own], axis)
    return (
        nested.mapped(lambda t: torch.cat([t, t], axis), inputs),
        torch.cat([targets, others.narrow(axis, 0, size)], axis),
        pair if weight is None else torch.cat([weight, weight], axis) * pair,
    )


def undecayed(optimizer: Optimizer) -> Optimizer:
    """The same optimizer without weight decay."""
    if not getattr(optimizer, "weight_decay", 0.0):
        return optimizer
    if not isinstance(optimizer, SGD | Adam):
        raise PluresError(
            f"{type(optimizer).__name__} has weight decay, which must not act on the numbers that the method trains "
            "besides models: set weight_decay=0"
        )
    return replace(optimizer, weight_decay=0.0)


def clipped(grads: list[Tensor], limit: float | None, *, stacked: bool = False) -> list[Tensor]:
    """Gradients of each client scaled to at most ``limit`` in norm, as ``torch.nn.utils.clip_grad_norm_`` does."""
    if limit is None:
        return grads
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
