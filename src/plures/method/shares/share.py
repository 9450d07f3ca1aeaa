"""With whom a block of leaves is shared: what the server keeps of it, what a client receives, what uploads change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.entropy import Entropy, normal, normal_of, uniform
from plures.errors import PluresError
from plures.method.setting import Setting
from plures.method.tree import fixed, parameters
from plures.models import Leaves, Marked


@brief
@by_content
@dataclass(frozen=True)
class BlockState:
    """The server's state of a block.

    Attributes:
        values: the block's leaves by ``slot/path``, ``(rows, ...)``: one row per model.
        extra: further tensors that belong to the share (membership, embeddings, ...).
        copied: for each row added since the last round, the row it is a copy of: what the server's step remembers of
            that row is copied too.
        buffers: names of the values that forward passes update (running statistics): a server averages them, and never
            moves, mixes or generates them.
    """

    values: Leaves
    extra: Leaves = field(default_factory=dict)
    copied: tuple[int, ...] = ()
    buffers: frozenset[str] = frozenset()

    def marked(self, values: Leaves | None = None) -> Leaves:
        """The values, or others of the same names, in a form that :func:`flatten` leaves the buffers out of."""
        return Marked(self.values if values is None else values, self.buffers)

    def grown(self, rows: Sequence[int]) -> BlockState:
        """The same with further models, copies of some of its rows."""
        values = {k: torch.cat([t, t[list(rows)]]) for k, t in self.values.items()}
        return replace(self, values=values, copied=(*self.copied, *rows))


@brief
@dataclass(frozen=True, eq=False)
class Cohort:
    """What the server knows of a round.

    Attributes:
        round: number of the round, from 0.
        clients: ``(cohort,)`` int64 positions of the clients that take part.
        setting: the federation's facts.
        visited: ``(population,)`` who took part in an earlier round.
        draw: uniform numbers in [0, 1) of this round: ``draw(name, count)``.
        key: a random key of this round, an integer from 0 to 2**63 - 1 by name: ``key(name)``, or of another round:
            ``key(name, round)``. In a server's step, a reducer, and the wire's server side, each block has different
            keys.
        rows: ``(cohort,)`` the row that each upload goes to.
        weights: ``(cohort,)`` their weights; also known to a server's step.
        changes: ``(cohort, d)`` each upload minus what the client received, as one vector, without buffers such as
            running statistics; only for shares that must see individual uploads.
        sent: what everybody received in this round of leaves that are common to all, by ``slot/path``, ``(1, ...)``.
        received: ``(models, d)`` what was sent out of each row in use, in increasing order of rows, as such vectors.
        hidden: random bytes that only the server knows, by name and round: ``hidden(name, round)``; ``None`` in a
            simulation, where everything follows from the keys.
        entropy: random bytes that only the client knows, at its site; ``None`` in a simulation.
    """

    round: int
    clients: Tensor
    setting: Setting
    visited: Tensor
    draw: Callable[[str, int], Tensor]
    key: Callable[..., int] = lambda name, round=0: 0
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    changes: Tensor | None = None
    received: Tensor | None = None
    sent: Leaves = field(default_factory=dict)
    hidden: Callable[[str, int], Entropy] | None = None
    entropy: Entropy | None = None

    def coins(self, name: str) -> Tensor:
        """A random number in [0, 1) of each client of the cohort that nobody else knows, ``(cohort,)``.

        In a simulation they follow from the seed.
        """
        if self.entropy is not None:
            return uniform(self.entropy, len(self.clients))
        return self.draw(name, len(self.setting))[self.clients]

    def normal(self, name: str, *shape: int, round: int | None = None) -> Tensor:
        """Standard normal numbers that nobody but the server knows, double, the same ones whenever they are asked for.

        In a simulation they follow from :attr:`key`.

        Args:
            name: what they are for.
            shape: of the result.
            round: in whose place they are; default: this one.
        """
        number = self.round if round is None else round
        if self.hidden is not None:
            return normal(self.hidden(name, number), *shape)
        return normal_of(self.key(name, number), *shape)

    @property
    def uploads(self) -> Tensor:
        """``(cohort, d)`` the uploads themselves, as such vectors."""
        if self.received is None or self.changes is None:
            raise PluresError("individual uploads are only available to a share with individual=True")
        return self.received[torch.unique(self.rows, return_inverse=True)[1].to(self.changes.device)] + self.changes

    @property
    def fraction(self) -> float:
        """Size of the cohort divided by that of the population."""
        return len(self.clients) / len(self.setting)


@dataclass(frozen=True)
class Probe:
    """What clients measure for the server before a round.

    Attributes:
        losses: ``(clients, rows) -> (rows, clients)`` training loss of some clients with each of the first rows.
        gradients: ``(clients) -> (clients, d)`` gradient of some clients' training loss at the run's initial model,
            with respect to the leaves that travel; only for shares that say ``probes``.
    """

    losses: Callable[[list[int], int], Tensor]
    gradients: Callable[[list[int]], Tensor]


class Share:
    """With whom a block is shared.

    Attributes:
        travels: whether the block's leaves leave the client.
        served: whether the server keeps the block's value.
        individual: whether the server must see individual uploads, which rules out secure aggregation.
        probes: whether it asks every client for a gradient at the initial model before the first round.
    """

    travels: ClassVar[bool] = False
    served: ClassVar[bool] = False
    individual: bool = False
    probes: bool = False

    def start(self, initial: Leaves, fresh: Callable[[int], Leaves], setting: Setting) -> BlockState:
        """What the server keeps before the first round.

        Args:
            initial: the block's initial leaves, without a row axis.
            fresh: ``fresh(number)`` gives other random initial leaves.
            setting: the federation's facts.
        """
        return BlockState({k: t.unsqueeze(0).clone() for k, t in initial.items()})

    def row(self, kept: BlockState, clients: Tensor) -> Tensor:
        """The row that each of some clients receives and contributes to, ``(clients,)``."""
        return torch.zeros(len(clients), dtype=torch.int64)

    def read(self, kept: BlockState, rows: Tensor) -> Leaves:
        """Values of some rows, ``(len(rows), ...)``; a single common row is expanded, not copied."""
        return {k: t.expand(len(rows), *t.shape[1:]) if len(t) == 1 else t[rows] for k, t in kept.values.items()}

    def choose(self, kept: BlockState, cohort: Cohort, probe: Probe) -> BlockState:
        """Before a round: who receives what."""
        return kept

    def write(self, kept: BlockState, rows: Tensor, values: Leaves, cohort: Cohort) -> BlockState:
        """After a round: new values ``(len(rows), ...)`` of the rows that received uploads."""
        return replace(kept, values={**kept.values, **{k: put(kept.values[k], rows, v) for k, v in values.items()}})

    def downloads(self, setting: Setting) -> int:
        """Number of models that a client receives in a round."""
        return 1

    def join(self, kept: BlockState, setting: Setting, probe: Probe) -> BlockState:
        """What the server keeps for clients that come later, who then have the positions 0, 1, ...

        Args:
            kept: what it keeps for the clients of the run.
            setting: facts about the newcomers.
            probe: measures the newcomers, on rows that they could receive.
        """
        return kept

    def tune(self, kept: BlockState, rows: Tensor, values: Leaves) -> BlockState:
        """What newcomers change by a visit without upload; by default nothing that the server keeps."""
        return kept

    @property
    def common(self) -> bool:
        """Whether everybody receives the same at any time, so that who took part makes no difference."""
        return False

    @property
    def alone(self) -> bool:
        """Whether every client itself chooses which of the rows that it receives it uses."""
        return False

    @property
    def epsilon(self) -> float | None:
        """Epsilon of a choice that clients tell by randomised response; ``None`` if they tell the true one."""
        return None

    def chose(self, kept: BlockState, clients: Tensor, rows: Tensor) -> BlockState:
        """What the server keeps after some clients have chosen."""
        return kept

    def local(self) -> Share:
        """What the share is to a single client, which has received its row (all of them if it chooses alone)."""
        return self

    @property
    def own_row(self) -> bool:
        """Whether a client alone determines the row it receives, so that a newcomer may train it."""
        return False


def put(whole: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A copy of ``whole`` with some rows replaced."""
    return values if len(whole) == len(rows) == 1 else whole.index_copy(0, rows.to(whole.device), values)


def blended(rows: Tensor, weights: Tensor) -> Tensor:
    """Combinations of rows ``(n, ...)`` with weights ``(..., n)``, of the same type; a one-hot weight gives its row."""
    weights = weights.to(rows.device, torch.float64)
    if bool(((weights != 0).sum(-1) == 1).all() and (weights.sum(-1) == 1).all()):
        return rows[weights.argmax(-1)]
    value: Tensor = torch.tensordot(weights, rows.to(torch.float64), 1)
    return (value if rows.is_floating_point() else value.round()).to(rows.dtype)


def flatten(leaves: Leaves) -> Tensor:
    """Parameters ``(rows, ...)`` as one vector per row, ``(rows, d)`` in double precision; without any, ``d`` is 0."""
    parts = [t.reshape(len(t), -1).to(torch.float64) for t in parameters(leaves).values()]
    return torch.cat(parts, 1) if parts else next(iter(leaves.values())).new_zeros((rows(leaves), 0)).double()


def rows(leaves: Leaves) -> int:
    """Number of rows of stacked leaves."""
    return len(next(iter(leaves.values())))


def unflatten(flat: Tensor, like: Leaves) -> Leaves:
    """The inverse of :func:`flatten`; leaves that are not parameters come from ``like``."""
    leaves, place, held = {}, 0, fixed(like)
    for k, t in like.items():
        if k in held or not t.is_floating_point():
            leaves[k] = t
            continue
        size = t[0].numel()
        leaves[k] = flat[:, place : place + size].reshape(len(flat), *t.shape[1:]).to(t.dtype)
        place += size
    return leaves


@dataclass(frozen=True)
class Shared(Share):
    """Everybody has the same value; the server combines the uploads of the cohort."""

    travels: ClassVar[bool] = True
    served: ClassVar[bool] = True

    @property
    def common(self) -> bool:
        return type(self) is Shared


@dataclass(frozen=True)
class Frozen(Share):
    """Everybody has the initial value; it never changes and never travels."""

    served: ClassVar[bool] = True

    @property
    def common(self) -> bool:
        return type(self) is Frozen


Inherit = Callable[[Setting, Setting], Tensor]
"""``(seen, newcomers) -> (newcomers, seen)``: from what is known of both, the weights by which newcomers inherit."""


@dataclass(frozen=True)
class Personal(Share):
    """Every client has its own value, which never leaves it.

    Attributes:
        unseen: what an unseen client starts from: ``initial`` values, the uniform ``mean`` over the clients that
            took part, the name of a slot with the same leaves (``model``), or weights of the clients that took part,
            made from metadata (:mod:`plures.method.shares.inherit`).
    """

    unseen: str | Inherit = "initial"


@dataclass(frozen=True)
class Known(Share):
    """Facts that each client knows about itself (:class:`Setting`): they never change by training and never travel.

    In the layout, ``"about": Known("examples")`` gives every client a slot ``about`` with the leaf ``examples``.

    Attributes:
        facts: their names; without any, ``examples``.
    """

    facts: tuple[str, ...]

    def __init__(self, *facts: str) -> None:
        object.__setattr__(self, "facts", facts or ("examples",))

    def leaves(self, setting: Setting) -> Leaves:
        """The slot's leaves, before they are filled in for each client."""
        return {name: torch.zeros_like(setting.kind(name)) for name in self.facts}
