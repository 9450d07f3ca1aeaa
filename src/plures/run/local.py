"""Clients in this process: their visits, a chunk at a time, and what they measure for the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from plures.entropy import Entropy
from plures.errors import PluresError
from plures.method import (
    Batch,
    BlockState,
    Bound,
    Leaf,
    Sending,
    Share,
    State,
    Summed,
    flatten,
    gradient,
    joined,
    parted,
)
from plures.method.channel import BUFFERS, GRADIENTS, LOSS, OBJECTIVE, UPDATE, VIEWS, WEIGHTS
from plures.method.method import WIRE
from plures.models import Leaves
from plures.run.coordinator import Coordinator, Values, Work
from plures.run.cost import stored_leaves
from plures.run.crew import Crew, dealt
from plures.run.engine import Engine, Stack
from plures.run.randomness import fold, name_key
from plures.run.states import states, working
from plures.run.uploads import Answer, mass, weighing

if TYPE_CHECKING:
    from plures.secure import Members  # it needs a library that only secure sums need


class Local:
    """Clients whose data is in this process. The coordinator's store has what they keep between rounds.

    Args:
        engine: does the local work, on these clients' data.

    Attributes:
        bare: whether the payloads of a secure sum have no masks yet, as at a site, which adds its own.
    """

    alone = False
    apart = False

    def __init__(self, engine: Engine) -> None:
        self.engine, self.federation, self.execution = engine, engine.federation, engine.execution
        self.crew = Crew(engine)
        self.bare = False
        self._members: tuple[int, Members] | None = None

    @property
    def entropy(self) -> Entropy | None:
        """Random bytes of the only client, at its site."""
        return self.engine.entropy

    def stored_leaves(self, bound: Bound) -> list[Leaf]:
        return stored_leaves(bound)

    def close(self) -> None:
        """Release resources other than memory; there are none here. Work may continue afterwards."""

    def chunks(self, clients: list[int]) -> list[list[int]]:
        """Clients in chunks of similar size, by decreasing number of training examples."""
        chosen = np.array(clients, dtype=np.int64)
        ordered = chosen[np.lexsort((chosen, -self.federation.splits["train"].sizes.numpy()[chosen]))].tolist()
        size, threads = self.execution.chunk, self.execution.threads
        assert isinstance(size, int)
        side = threads if isinstance(threads, int) else 1
        if side == 1:
            return [ordered[i : i + size] for i in range(0, len(ordered), size)]
        amounts = dict(
            zip(chosen.tolist(), self.federation.splits["train"].sizes.numpy()[chosen].tolist(), strict=True)
        )
        groups = [ordered[i : i + side * size] for i in range(0, len(ordered), side * size)]
        return [part for group in groups for part in dealt(group, amounts, side) if part]

    # --- the local work of a round ------------------------------------------------------------------------------

    def work(self, run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]) -> Work:
        def visit(engine: Engine, given: tuple[list[int], Stack]) -> tuple[list[int], Stack, Stack, Tensor]:
            chunk, received = given
            return chunk, received, *visited(run, engine, chunk, received)

        chunks = ((chunk, states(run, chunk, server)) for chunk in self.chunks(clients))
        return Work(clients, (self._answered(run, *done) for done in self.crew.each(visit, chunks)), server)

    def visit(self, run: Coordinator[Any], chunk: list[int], server: Mapping[str, BlockState]) -> tuple[Answer, Values]:
        """The visits of a chunk of clients: what they send, and what stays with them."""
        received = states(run, chunk, server)
        return self._answered(run, chunk, received, *visited(run, self.engine, chunk, received))

    def _answered(
        self, run: Coordinator[Any], chunk: list[int], received: Stack, x: Stack, losses: Tensor
    ) -> tuple[Answer, Values]:
        """What a chunk of clients sends after its visits, and what stays with it."""
        answer = self._sent(run, x, received, chunk, losses)
        return answer, {leaf: x[leaf.slot][leaf.path] for leaf in stored_leaves(run.bound)}

    def _sent(self, run: Coordinator[Any], x: Stack, received: Stack, clients: list[int], losses: Tensor) -> Answer:
        """What a chunk of clients sends; what the wire stages remember is written to ``x``."""
        bound = run.bound
        going = [leaf for block in bound.blocks for leaf in bound.travelling(block)]
        new, old = ({str(leaf): stack[leaf.slot][leaf.path] for leaf in going} for stack in (x, received))
        buffers = {str(leaf): new.pop(str(leaf)) for leaf in bound.buffers}
        weights: Leaves = {}
        for block in bound.blocks:
            if bound.travelling(block) and callable(bound.combine(block).weights):
                weights |= weighing(bound, block, self.engine.mapped(lambda x: bound.weighed(block, x))(x))  # noqa: B023
        views = {str(leaf): x[leaf.slot][leaf.path] for leaf in bound.view_inputs()}
        loss, objective = losses
        sent = {BUFFERS: buffers, WEIGHTS: weights, VIEWS: views, LOSS: {"": loss}, OBJECTIVE: {"": objective}}
        if bound.line.stages:
            summed = self.summed(run, clients) if bound.line.summed else None
            sending = Sending(self._keys(clients, run.round, WIRE), old, summed, self.engine.entropy)
            change = {k: t - old[k] for k, t in new.items()}
            new, remembered = bound.line.encode(change, x.get(WIRE, {}), sending)
            x[WIRE] = remembered
            if bound.line.summed and not self.bare:
                new = self._masked(run, clients, new)
            sent = beside(bound, sent, sending)
        return Answer(clients, {UPDATE: new, **sent})

    # --- secure sums --------------------------------------------------------------------------------------------

    def summed(self, run: Coordinator[Any], clients: list[int]) -> Summed:
        """What some clients know about the sum that their uploads are part of."""
        return Summed(mass(run.bound, run.examples(clients)), run.everybody())

    def _masked(self, run: Coordinator[Any], clients: list[int], payload: Leaves) -> Leaves:
        """Payloads of int32 with the clients' masks."""
        members, names = self._members_of(run), run.setting.clients
        words = joined(payload).cpu().numpy().view(np.uint32)
        masked = np.stack([members.masked(names[i], row) for i, row in zip(clients, words, strict=True)])
        return parted(torch.from_numpy(masked.view(np.int32)).to(run.device), payload)

    def unmask(self, run: Coordinator[Any], came: list[int], like: Leaves) -> Leaves:
        words = self._members_of(run).remaining([run.setting.clients[i] for i in came], joined(like).shape[1])
        return parted(torch.from_numpy(words.view(np.int32)).unsqueeze(0).to(run.device), like)

    def _members_of(self, run: Coordinator[Any]) -> Members:
        """The members of this round's secure sum, with keys that follow from the run's seed."""
        if self._members is None or self._members[0] != run.round:
            from plures.secure import Members

            names = [run.setting.clients[i] for i in run.asked(run.round)]
            members = Members(names, run.bound.line.enough(len(names)), f"{run.seed}/{run.round}")
            self._members = run.round, members
        return self._members[1]

    def _keys(self, clients: list[int], round: int, purpose: str) -> Tensor:
        keys = fold(self.engine.seed, self.federation.names.keys[clients], round, name_key(purpose)) >> np.uint64(1)
        return torch.from_numpy(keys.astype(np.int64)).to(self.federation.inputs.device)

    # --- what clients measure for the server --------------------------------------------------------------------

    def held(self, run: Coordinator[Any], clients: list[int], *, squared: bool = False) -> Tensor:
        place = {client: number for number, client in enumerate(clients)}
        found = torch.zeros(len(clients), dtype=run.bound.network.dtype, device=run.device)
        for chunk in self.chunks(clients):
            measured = self._measured(self._squared if squared else self._loss, states(run, chunk), chunk)["loss"]
            found[[place[i] for i in chunk]] = measured.sqrt() if squared else measured
        return found

    def losses(self, run: Coordinator[Any], clients: list[int], rows: int, share: Share) -> Tensor:
        """Losses of some clients with each model of ``share``, ``(rows, clients)``.

        All blocks with this share switch models together; for other blocks, clients use what they hold.
        """
        blocks = [block.name for block in run.served() if block.share == share]
        found = torch.zeros(rows, len(clients), dtype=run.bound.network.dtype, device=run.device)
        place = {client: number for number, client in enumerate(clients)}
        for chunk in self.chunks(clients):
            for row in range(rows):
                chosen = {name: torch.full((len(chunk),), row) for name in blocks}
                held = states(run, chunk, rows=chosen)
                found[row, [place[i] for i in chunk]] = self._measured(self._loss, held, chunk)["loss"]
        return found

    def gradients(self, run: Coordinator[Any], clients: list[int]) -> tuple[Tensor, int]:
        place = {client: number for number, client in enumerate(clients)}
        found: dict[int, Tensor] = {}
        sent = 0
        for chunk in self.chunks(clients):
            slopes = self.slopes(chunk)
            sent += sum(t.nbytes for t in slopes.values())
            found |= {place[i]: row for i, row in zip(chunk, flatten(slopes), strict=True)}
        return torch.stack([found[number] for number in range(len(clients))]), sent

    def slopes(self, clients: list[int]) -> Leaves:
        """Gradients of a chunk at the initial model by leaf, ``(clients, ...)``."""
        initial = self.engine.bound.initial.items()
        held = {s: {p: t.expand(len(clients), *t.shape) for p, t in leaves.items()} for s, leaves in initial}
        slopes = self._measured(self._slope, held, clients)
        return beside(self.engine.bound, {GRADIENTS: slopes}, Sending(self._keys(clients, 0, GRADIENTS), {}))[GRADIENTS]

    def _loss(self, x: State, received: State, batch: Batch) -> Leaves:
        predict = self.engine.bound.method.predictor
        outputs = batch.outputs(predict.leaves(x)) if predict.reads else predict.predicted(x, batch)
        return {"loss": batch.problem.loss(outputs, batch.targets, batch.weight)}

    def _squared(self, x: State, received: State, batch: Batch) -> Leaves:
        predict = self.engine.bound.method.predictor
        outputs = batch.outputs(predict.leaves(x)) if predict.reads else predict.predicted(x, batch)
        losses = batch.problem.losses(outputs, batch.targets, batch.weight)
        return {"loss": batch.mean(losses**2)}

    def _slope(self, x: State, received: State, batch: Batch) -> Leaves:
        slopes = gradient(self.engine.bound.method.predictor.leaves(x), batch)
        return {path: slopes[path] for path in self.engine.bound.probed()}

    def _measured(self, fn: Callable[[State, State, Batch], Leaves], held: Stack, clients: list[int]) -> Leaves:
        return self.engine.measure(fn, held, held, clients, "train")


def beside(bound: Bound, sent: dict[str, Leaves], sending: Sending) -> dict[str, Leaves]:
    """What is sent on channels other than the update's, after the stages of the wire.

    Raises:
        PluresError: if a stage changes what views read, because in one process they read the clients' own leaves.
    """
    known = {channel.name: channel for channel in bound.channels}
    found = {name: bound.line.beside(known[name], t, sending) if t else t for name, t in sent.items()}
    if found.get(VIEWS) is not sent.get(VIEWS):
        raise PluresError(f"a wire stage changes what is sent on channel {VIEWS!r}: it may only refuse it")
    return found


def visited(run: Coordinator[Any], engine: Engine, chunk: list[int], received: Stack) -> tuple[Stack, Tensor]:
    """The states of a chunk of clients after their visits of a round, and their losses."""
    x, shares = working(received, run.bound.written), run.turn.efforts
    efforts = np.array([shares.get(client, 1.0) for client in chunk]) if any(i in shares for i in chunk) else None
    return x, engine.visit(x, received, chunk, run.round, run.method.schedule, scheduled=True, efforts=efforts)
