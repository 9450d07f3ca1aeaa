"""Cost of personalising on a device: the peak memory of every part of a method's local work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from plures.errors import PluresError
from plures.federation import Federation, Split
from plures.method import Assign, Bound, Leaf, Phase, Schedule
from plures.run import Execution, Run, Training
from plures.run.alive import Alive
from plures.run.cost import absent, alone, stored_leaves, traffics
from plures.run.engine import Engine, Stack
from plures.serving.probe import Probe

COUNTED = (
    "The numbers count tensors, each storage once: all leaves that the client has in its visit, second copies of "
    "received leaves where both values are needed, gradients and optimizer state of the leaves that a phase trains, "
    "what a forward pass keeps for the backward pass, and a step's examples. They do not count the program and its "
    "libraries, temporary tensors (the measured column has them), workspaces inside a kernel, fragmentation, and "
    "buffers of the network connection. Gradients and activations are added up, although a backward pass frees some "
    "activations before it has computed the last gradient."
)
"""Explanation of the numbers."""


@dataclass(frozen=True)
class Need:
    """Peak bytes of one phase or assignment of the local work.

    Attributes:
        what: the work, and its leaves.
        trained: leaves that gradient steps change; part of ``state``.
        state: all leaves of all slots that the client has during the visit.
        received: second copies of leaves that local work has changed and whose received value is still read.
        gradients: gradients of the trained leaves.
        optimizer: optimizer state of the trained leaves.
        activations: tensors that the forward pass keeps for the backward pass, and those that are computed before a
            step and constant in it; each storage once, without leaves and examples.
        work: most bytes alive at once in computations outside the step's own backward pass: before a step, or in an
            assignment.
        examples: inputs, targets and weights of a step's batches, or of the splits that an assignment reads.
        alive: peak bytes of all this on this machine, with every temporary tensor, and ``state`` and ``received``:
            measured by tracking every storage, while the others are counted.
    """

    what: str
    trained: int
    state: int
    received: int
    gradients: int
    optimizer: int
    activations: int
    work: int
    examples: int
    alive: int

    @property
    def total(self) -> int:
        """Bytes that must be held at once, without temporaries."""
        step = max(self.gradients + self.activations, self.work)
        return self.state + self.received + self.optimizer + self.examples + step


@dataclass(frozen=True)
class Memory:
    """A method's demands on a device.

    Attributes:
        needs: one for every phase and assignment of a visit, then one for the work before predicting.
        kept: bytes that the client stores between rounds.
        up: bytes that it sends per round.
        down: bytes that it receives per round.
    """

    needs: tuple[Need, ...]
    kept: int
    up: int
    down: int

    @property
    def peak(self) -> Need:
        """The part with the largest need."""
        return max(self.needs, key=lambda need: need.total)


def memory(run: Run, batch_size: int, client: str | None = None) -> Memory:
    """Measure the local work of one client with batches of a given size.

    One step of each phase is done on a copy, by the engine's ordinary autograd; the run is not changed.

    Args:
        run: a run, in any state: its method, network, federation and training.
        batch_size: examples in a batch; a client with fewer repeats its own.
        client: whose examples assignments read; default: the client with most training examples.

    Examples:
        >>> from plures.serving import memory
        >>> heart = plures.load("heart")
        >>> run = plures.Run(heart, plures.default_model(heart), plures.METHODS["fedavg"](), plures.Training(rounds=1))
        >>> memory(run, 8).peak.total < memory(run, 64).peak.total
        True
    """
    federation = run.federation
    sizes = federation.splits["train"].sizes
    place = int(sizes.argmax()) if client is None else federation.index(client)
    if batch_size < 1:
        raise PluresError(f"batch_size={batch_size}: a batch has at least 1 example")
    if not int(sizes[place]):
        raise PluresError(f"client {federation.clients[place]!r} has no training examples to work with: name another")
    batch = federation.splits["train"][place].repeat(-(-batch_size // int(sizes[place])))[:batch_size]
    rows = [batch if i == place else own for i, own in enumerate(federation.splits["train"])]
    repeated = replace(federation, splits={**federation.splits, "train": Split.of(rows)})
    training = replace(run.training, rounds=1, batch_size=batch_size, epochs=1.0, steps=None)
    method, bound = run.bound.method, run.bound
    up, down = traffics(bound, run.held, [place])[0]
    kept = stored_leaves(bound)
    stored = sum(bound.initial[s][p].nbytes for s, p in kept) - absent(bound, run.held, kept, [place])[0]
    bound = alone(bound, run.held, place)
    needs = _measured(bound, repeated, training, place, method.schedule, "")
    later = method.predictor.preparation
    needs += _measured(bound, repeated, training, place, later, "before predicting: ") if later else []
    return Memory(tuple(needs), stored, up, down)


def sizes(run: Run) -> dict[float, str]:
    """For every rate, the largest first, the client with most training examples that holds such a part of the network.

    Empty if all clients hold all of it.
    """
    if run.held is None:
        return {}
    examples = run.federation.splits["train"].sizes
    found: dict[float, str] = {}
    for rate in sorted(set(run.held.rates.tolist()), reverse=True):
        mine = (run.held.rates == rate).nonzero().flatten()
        found[rate] = run.federation.clients[int(mine[examples[mine].argmax()])]
    return found


def _measured(
    bound: Bound, federation: Federation, training: Training, place: int, schedule: Schedule, when: str
) -> list[Need]:
    """What each item of a schedule needs."""
    alone = Execution("loop", 1, False, "float64" if bound.network.dtype == torch.float64 else "float32")
    engine = Engine(bound, federation, training, alone, seed=0)
    received = {slot: {p: t.unsqueeze(0) for p, t in leaves.items()} for slot, leaves in bound.initial.items()}
    x: Stack = {slot: {p: t.clone() for p, t in leaves.items()} for slot, leaves in received.items()}
    sent = _sent(bound)
    state = sum(t.nbytes for leaves in bound.initial.values() for t in leaves.values())
    probes, peaks = [], []
    for item in schedule:
        probe = Probe(tuple(bound.initial))
        with Alive() as alive:
            engine.visit(x, received, [place], 0, (probe.watch(item),))
        probes.append(probe)
        peaks.append(alive.peak)
    needs = []
    for number, (item, probe, peak) in enumerate(zip(schedule, probes, peaks, strict=True)):
        trained = _bytes(bound, bound.trained(item)) if isinstance(item, Phase) else 0
        optimizer = (item.optimizer if isinstance(item, Phase) else None) or training.optimizer
        written = bound.written_by(schedule[: number + 1])
        read = set().union(*(later.read for later in probes[number:]))
        copies = _bytes(bound, {leaf for leaf in written if leaf.slot in read or leaf in sent})
        needs.append(
            Need(
                what=when + _title(item),
                trained=trained,
                state=state,
                received=copies,
                gradients=trained,
                optimizer=optimizer.slots * trained,
                activations=probe.saved.peak + probe.extra,
                work=probe.work,
                examples=probe.examples,
                alive=state + copies + peak,
            )
        )
    return needs


def _sent(bound: Bound) -> set[Leaf]:
    """Leaves whose received value a wire stage needs besides the new one."""
    return {leaf for block in bound.blocks for leaf in bound.travelling(block)} if bound.line.stages else set()


def _bytes(bound: Bound, leaves: Iterable[Leaf]) -> int:
    return sum(bound.initial[slot][path].nbytes for slot, path in leaves)


def _title(item: Phase | Assign) -> str:
    if isinstance(item, Assign):
        return f"assign {', '.join(item.writes)}"
    names = [target if isinstance(target, str) else target.block for target in item.targets]
    return f"train {', '.join(names)}" if names else f"compute {', '.join(item.keeps)}"
