"""Follows the tensors of a client's local work: those saved for a backward pass, and those alive at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from plures.federation.inputs import parts
from plures.method import Assign, Batch, Phase, State, Visit
from plures.models import Leaves
from plures.run.alive import Alive, Peak, storages
from plures.serving.watched import Watched


class Handle:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Probe:
    """Watches one phase or assignment while the engine runs it.

    Args:
        slots: names of all slots.

    Attributes:
        read: slots whose received value was read.
        saved: tensors that graphs save for their backward passes.
        extra: bytes computed before a step and constant during it.
        work: see :class:`Need`.
        examples: see :class:`Need`.
    """

    def __init__(self, slots: tuple[str, ...]) -> None:
        self.slots = slots
        self.read: set[str] = set()
        self.saved = Peak()
        self.extra = self.work = self.examples = 0

    def watch(self, item: Phase | Assign) -> Phase | Assign:
        """The same item, watched; for a phase, one step."""
        if isinstance(item, Assign):
            measure = None if item.measure is None else self._plain(item.measure)
            return replace(item, update=self._assigning(item), measure=measure)

        def objective(x: State, received: State, batch: Any) -> Tensor:
            self._count(batch)
            with self._saving((self._all(x), self._all(received), _fields(batch))):
                return item.minimised(x, self._watched(received), batch)

        return replace(item, objective=objective, before=self._before(item), epochs=None, steps=1)

    def _before(self, phase: Phase) -> Callable[[State, State, Any], Mapping[str, Leaves]] | None:
        if phase.before is None:
            return None
        compute = self._plain(phase.before)

        def before(x: State, received: State, batch: Any) -> Mapping[str, Leaves]:
            made: Mapping[str, Leaves] = compute(x, received, batch)
            known = storages((self._all(x), self._all(received), _fields(batch)))
            self.extra = max(self.extra, sum(size for key, size in storages(dict(made)).items() if key not in known))
            return made

        return before

    def _plain(self, fn: Callable[[State, State, Any], Any]) -> Callable[[State, State, Any], Any]:
        """A function of a batch whose temporaries are tracked."""

        def followed(x: State, received: State, batch: Any) -> Any:
            self._count(batch)
            with self._working():
                return fn(x, self._watched(received), batch)

        return followed

    def _assigning(self, item: Assign) -> Callable[[State, State, Visit], Mapping[str, Leaves]]:
        def update(x: State, received: State, visit: Visit) -> Mapping[str, Leaves]:
            self._count(tuple(visit.examples.values()))
            with self._working():
                return item.update(x, self._watched(received), visit)

        return update

    @contextmanager
    def _working(self) -> Iterator[None]:
        with Alive() as alive:
            yield
        self.work = max(self.work, alive.peak)

    @contextmanager
    def _saving(self, known: object) -> Iterator[None]:
        ours = storages(known)

        def pack(tensor: Tensor) -> Tensor | Handle:
            storage = tensor.untyped_storage()
            if not storage.nbytes() or storage.data_ptr() in ours:
                return tensor
            handle = Handle(tensor.detach())
            self.saved.hold(handle, storage.data_ptr(), storage.nbytes())
            return handle

        with saved_tensors_hooks(pack, lambda kept: kept.tensor if isinstance(kept, Handle) else kept):
            yield

    def _count(self, batch: Any) -> None:
        self.examples = max(self.examples, sum(t.nbytes for t in _fields(batch) if t is not None))

    def _watched(self, received: State) -> State:
        slots = Watched(self._all(received))
        slots.read = self.read
        return State(slots)

    def _all(self, state: State) -> dict[str, Leaves]:
        return {slot: getattr(state, slot) for slot in self.slots if slot in state}


def _fields(batch: Batch | tuple[Batch, ...]) -> list[Tensor | None]:
    """Inputs, targets and weights of one or several batches."""
    several = batch if isinstance(batch, tuple) else (batch,)
    return [tensor for one in several for tensor in (*parts(one.inputs), one.targets, one.weight)]
