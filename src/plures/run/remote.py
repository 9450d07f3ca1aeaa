"""A run whose clients are behind a network: what the server asks, what it accepts, and who does not count."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Protocol

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation import Federation
from plures.federation import Task as Problem
from plures.method import Block, Bound, Cohort, Kept, Leaf, Method, Setting, Share, View, flatten, named
from plures.models import Leaves, ModelFactory
from plures.run.coordinator import Coordinator, RoundRecord, Work, builder
from plures.run.engine import Stack
from plures.run.execution import Execution
from plures.run.facts import facts
from plures.run.fingerprint import of_method
from plures.run.message import (
    LARGEST,
    MOST,
    Held,
    Order,
    Reply,
    Scored,
    Task,
    Tensors,
    Told,
    body,
    clean,
    digest,
    head,
    pack,
    payload,
    room,
)
from plures.run.participation import Full, Participation
from plures.run.store import ClientStore
from plures.run.training import Training
from plures.run.uploads import Answer

ONE_CLIENT = Execution("loop", 1, False, "float32", "cpu")
"""How a site works: there is nothing to stack."""

WEIGHT = "weight:"
"""What names of weights in an upload begin with."""

OUTWEIGHS = 1e4
"""An example of one client counts, by its computed weights, at most so many times as much as one of all others."""

STANDS_OUT = 3.0
"""A client can have broken a round only if its update was so many times longer than the median of the others'; on the
word of one client alone, also so many times longer than what was sent."""

AGAIN = 30.0
"""Seconds until a site that could not be taken in is asked again."""

log = logging.getLogger(__name__)


class TooFewError(PluresError):
    """A round that does not count, for too few clients did their work."""


class UnableError(PluresError):
    """A client answered that it could not work, or what it made of the server's state is no usable number."""


class BrokenError(PluresError):
    """A round that broke the model.

    Attributes:
        round: number of the round, from 1.
        client: the one whose update in it was the longest.
    """

    def __init__(self, round: int, client: str, what: str) -> None:
        super().__init__(f"round {round} broke the model: {what}; the longest update was that of client {client!r}")
        self.round, self.client = round, client


class Transport(Protocol):
    """Carries messages to sites, which it knows by an address."""

    def addresses(self) -> list[int]:
        """The sites that can be reached now."""

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        """Answers of those that answered within ``deadline`` seconds; a string says why there is none."""


@dataclass(frozen=True)
class Rules:
    """What a server insists on.

    Attributes:
        min_clients: a round counts if at least so many valid uploads came.
        deadline: seconds that a round waits for answers.
        max_norm: how far an upload may be from what was sent: the L2 norm of their difference over all leaves of
            floating point.
    """

    min_clients: int = 1
    deadline: float = 600.0
    max_norm: float = 1000.0

    def __post_init__(self) -> None:
        if self.min_clients < 1:
            raise PluresError(f"min_clients={self.min_clients}: a round needs at least one client")
        if not self.deadline > 0:
            raise PluresError(f"deadline={self.deadline}: give a positive number of seconds")
        if not 0 < self.max_norm < math.inf:
            raise PluresError(f"max_norm={self.max_norm}: give a positive number")


class Sites:
    """Who is where, and what they told.

    Args:
        transport: carries messages.
        clients: names of the clients that belong to the federation.
        deadline: seconds to wait for an answer to the question who a site is.
        tells: facts that the members agreed to tell; others are dropped. ``None`` for all that they tell.
        problem: what is predicted, which label counts must fit.

    Attributes:
        where: the address of every client that can be reached: where it was met last.
        met: the client of every address that answered who it is. That it is this client, answers must prove
            themselves (:mod:`plures.deploy.signing`).
        told: what every client told that ever joined.
        measures: what every client will tell of its validation examples.
        refused: addresses that are not taken in, and why.
    """

    def __init__(
        self,
        transport: Transport,
        clients: Sequence[str],
        deadline: float = 60.0,
        *,
        tells: Sequence[str] | None = None,
        problem: Problem | None = None,
    ) -> None:
        self.tells, self.problem = tells, problem
        self.transport, self.clients, self.deadline = transport, tuple(clients), deadline
        self.where: dict[str, int] = {}
        self.met: dict[int, str] = {}
        self.told: dict[str, Told] = {}
        self.measures: dict[str, tuple[str, ...]] = {}
        self.refused: dict[int, str] = {}
        self._asked: dict[int, float] = {}

    def meet(self) -> None:
        """Ask the sites that are not known yet who they are."""
        present = self.transport.addresses()
        self.where = {client: address for client, address in self.where.items() if address in present}
        self.where = {self.met[address]: address for address in present if address in self.met} | self.where
        now = time.monotonic()
        new = [a for a in present if a not in self.met and now >= self._asked.get(a, now)]
        self._asked |= dict.fromkeys(new, now + AGAIN)
        self.refused = {address: reason for address, reason in self.refused.items() if address in present}
        questions = {address: pack(Order(task="join")) for address in new}
        for address, answer in self.transport.exchange(questions, self.deadline).items():
            try:
                self._greet(address, questions[address], answer)
                self.refused.pop(address, None)
            except PluresError as error:
                self.refused[address] = str(error)
                log.warning("site %s is not taken in: %s", address, error)

    def _greet(self, address: int, question: bytes, answer: bytes | str) -> None:
        if isinstance(answer, str):
            raise PluresError(clean(answer))
        reply = opened(answer, question, room(1, self.problem.outputs, len(self.tells or ())) if self.problem else None)
        if reply.status != "done":
            raise PluresError(reply.reason)
        if reply.client not in self.clients or reply.told is None:
            raise PluresError(f"client {reply.client!r} does not belong to this federation")
        told = agreed(reply.client, reply.told, self.problem, self.tells)
        if self.told.setdefault(reply.client, told) != told:
            log.warning("client %r tells other facts than when it joined; those it told first stay", reply.client)
        self.where[reply.client], self.met[address] = address, reply.client
        self.measures[reply.client] = reply.metrics
        log.info("client %r is there, with %d training examples", reply.client, told.examples)

    @property
    def missing(self) -> list[str]:
        """Clients that never told anything."""
        return [client for client in self.clients if client not in self.told]

    @property
    def absent(self) -> list[str]:
        """Clients that cannot be reached now."""
        return [client for client in self.clients if client not in self.where]


def agreed(client: str, told: Told, problem: Problem | None, tells: Sequence[str] | None = None) -> Told:
    """What a client told, as far as the members agreed to tell it.

    Raises:
        PluresError: if something agreed on is missing, or label counts do not fit classes and examples.
    """
    if tells is not None:
        columns = [name for name in tells if name not in ("examples", "labels")]
        lacking = [name for name in columns if told.metadata.get(name) is None]
        if "labels" in tells and told.labels is None and problem is not None and problem.kind == "classification":
            lacking.append("labels")
        if lacking:
            raise PluresError(f"client {client!r} does not tell {lacking[0]!r}, which the members agreed to tell")
        metadata = {name: told.metadata[name] for name in columns}
        told = told.model_copy(
            update={"labels": told.labels if "labels" in tells else None, "metadata": metadata},
        )
    if problem is not None and told.labels is not None:
        if len(told.labels) != problem.outputs:
            raise PluresError(
                f"client {client!r} tells {len(told.labels)} label counts for {problem.outputs} classes: "
                "let its site check its data"
            )
        if sum(told.labels) != told.examples:
            raise PluresError(
                f"client {client!r} tells {told.examples} examples and {sum(told.labels)} labels: "
                "let its site check its data"
            )
    return told


def population(federation: Federation, told: Sequence[Told]) -> Setting:
    """Facts about clients whose data are elsewhere.

    Args:
        federation: the clients, without a row, in the order of ``told``.
        told: what each told.
    """
    if len(told) != len(federation):
        raise PluresError(f"{len(told)} clients are told of, and the federation has {len(federation)}")
    for client, one in zip(federation.clients, told, strict=True):
        agreed(client, one, federation.task)
    columns = list(dict.fromkeys(column for one in told for column in one.metadata))
    metadata = {column: tuple(one.metadata.get(column) for one in told) for column in columns}
    setting = Setting.of(replace(federation, metadata=metadata))
    facts = dict(setting.facts)
    facts["examples"] = torch.tensor([one.examples for one in told]).to(facts["examples"])
    private = set()
    if "labels" in facts:
        counts = [one.labels for one in told if one.labels is not None]
        if len(counts) == len(told):
            facts["labels"] = torch.tensor(counts).to(facts["labels"])
        else:
            private.add("labels")
    return replace(setting, facts=facts, private=frozenset(private))


def fingerprint(bound: Bound, training: Training, federation: Federation, seed: int, agreed: str = "") -> str:
    """What must be equal at the server and at every site: method, model with its initial values, and local work."""
    digest = hashlib.sha256()
    told = {
        "federation": federation.name,
        "clients": federation.clients,
        "features": federation.features,
        "classes": federation.task.classes,
        "method": of_method(bound.method, "method"),
        "training": facts(training, "training"),
        "seed": seed,
        "agreed": agreed,
        "blocks": [(b.name, [named(leaf) for leaf in b.leaves]) for b in bound.blocks],
    }
    digest.update(json.dumps(told).encode())
    for slot, leaves in bound.initial.items():
        for path, value in leaves.items():
            digest.update(f"{slot}/{path} {value.dtype} {tuple(value.shape)}".encode())
            if slot == "model":
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def opened(
    answer: bytes, order: bytes, longest: int | None = None, leaves: Mapping[str, Tensor] | None = None
) -> Reply:
    """Header of the answer to an order.

    Args:
        answer: as it came.
        order: as it was sent.
        longest: bytes that the answer may have without its leaves; ``None`` for any number.
        leaves: what an answer may hold beside its header.

    Raises:
        PluresError: if it is too long, which is said of it unread; damaged, no answer, or that to another order; or if
            it holds something else.
    """
    allowed = leaves or {}
    if longest is not None and len(answer) > (most := longest + size(allowed)):
        raise PluresError(f"the answer has {len(answer)} bytes, and {most} at most are needed")
    reply, names = head(answer, Reply)
    if reply.order != digest(order):
        raise PluresError("the answer is to another order than the one just sent")
    if odd := sorted(names - allowed.keys()):
        raise PluresError(f"bad upload: leaf {clean(odd[0], 200)!r} is not expected")
    return reply


def size(leaves: Mapping[str, Tensor]) -> int:
    """Bytes that leaves take in a message, with all that it says of them."""
    return payload(leaves) + sum(6 * len(name) + 32 * (8 + t.dim()) for name, t in leaves.items())


def fits(value: Tensor, like: Tensor) -> bool:
    """Whether a tensor has the shape and type of another, and numbers on which arithmetic stays finite."""
    return value.shape == like.shape and value.dtype == like.dtype and bool((value.abs() <= LARGEST).all())


def distance(
    run: Coordinator, client: int, rows: Mapping[str, int], sent: Mapping[str, Tensor], server: Mapping[str, Kept]
) -> float:
    """How far an upload is from what was sent: the L2 norm over all leaves of floating point.

    Args:
        run: the run, at the server or at a site.
        client: position of the client.
        rows: which model it chose of blocks in which it chooses alone.
        sent: the upload.
        server: what the server keeps.
    """
    told = run.bound.told()  # compared with what was told last, which at first is the initial value
    pairs = [(sent[f"told:{named(leaf)}"], run.store.get(leaf, [client])[0]) for leaf in told]
    for block in run.served():
        kept, share = server[block.name], block.share
        row = torch.tensor([rows[block.name]]) if share.alone else share.row(kept, torch.tensor([client]))
        before = share.read(kept, row)
        leaves = [named(leaf) for leaf in run.bound.travelling(block)]
        pairs += [(sent[key(run.bound, block, name)], before[name][0]) for name in leaves]
    parts = [(a.double() - b.double()).norm() for a, b in pairs if a.is_floating_point()]
    return float(torch.stack(parts).norm()) if parts else 0.0


def key(bound: Bound, block: Block, name: str) -> str:
    """What a block's leaf is called in a message."""
    return f"{bound.blocks.index(block)}:{name}"


class Remote(Coordinator):
    """A method in training over sites that keep their data, and what is personal, to themselves.

    Args:
        federation: the clients, without a row.
        model: a factory of modules, or a module; the same one at every site.
        method: what to run.
        sites: who is where; everyone must have joined.
        training: local work and number of rounds.
        participation: who is asked in each round; who cannot be reached is left out.
        seed: root of all randomness.
        agreed: what else must be the same here and at every site, as text: parameters, versions.
        rules: when a round counts.

    Attributes:
        sent, received: bytes of tensors that went to sites and came from them; with headers in ``wired``.
        scores: for the splits that were to be evaluated, what each client scored in the last exchange.
        evaluate: splits that a round has evaluated, on the state before it.
        moved: how far the updates of the last round that counted went, by client.
        length: L2 norm of what was sent in it.
        excluded: who is not asked any more, and why.
        best: ``last`` in the best state so far, whose personal versions the sites keep; ``None`` for none.
        final: who refused in the last exchange, or lost its state: asking again is in vain.
    """

    def __init__(
        self,
        federation: Federation,
        model: nn.Module | ModelFactory,
        method: Method,
        sites: Sites,
        training: Training | None = None,
        *,
        participation: Participation | None = None,
        seed: int = 0,
        agreed: str = "",
        rules: Rules | None = None,
    ) -> None:
        self.federation = federation.to("cpu", torch.float32)
        self.sites, self.rules = sites, rules or Rules()
        self.training, self.execution = training or Training(), ONE_CLIENT
        if sites.missing:
            raise PluresError(f"clients {', '.join(sites.missing)} never joined: start their sites, or leave them out")
        self.told = [sites.told[client] for client in federation.clients]
        self.setting = population(self.federation, self.told)
        build = builder(method, model, self.setting, self.federation, torch.float32)
        given = isinstance(model, nn.Module)
        super().__init__(method, self.setting, build, participation or Full(), seed, given=given)
        self.run_id = fingerprint(self.bound, self.training, federation, seed, agreed)
        self.store = ClientStore({(s, p): self.bound.initial[s][p] for s, p in self.bound.told()}, len(federation))
        self.sent = self.received = self.wired = 0
        self.evaluate: tuple[Held, ...] = ()
        self.scores: dict[Held, dict[int, Scored]] = {}
        self.best: Tensor | None = None
        self.final: set[str] = set()
        self.moved: dict[str, float] = {}
        self.length = 0.0
        self.excluded: dict[str, str] = {}
        self._moving: dict[str, float] = {}
        self._sending = 0.0
        self._unable: set[str] = set()
        self._told_now: dict[int, dict[Leaf, Tensor]] = {}

    # --- what goes down -----------------------------------------------------------------------------------------

    def order(self, client: int, task: Task, server: Mapping[str, Kept]) -> tuple[Order, Tensors]:
        """What one client is asked, and what it receives."""
        members: dict[str, int] = {}
        tensors: Tensors = {}
        accepted = int(self.last[client])
        for block in self.served() if task != "gradients" else ():
            share, kept = block.share, server[block.name]
            leaves = [named(leaf) for leaf in self.bound.travelling(block)]
            rows = share.row(kept, self._one(client))
            if share.alone:
                members[block.name] = int(rows)
                rows = torch.arange(len(next(iter(kept.values.values()))))
            values = {name: t for name, t in share.read(kept, rows).items() if name in leaves}
            if share.downloads(self.setting) or not (accepted or self._initial(values)):
                tensors |= {key(self.bound, block, name): t for name, t in values.items()}
        for block in self.bound.blocks if task != "gradients" else ():
            if isinstance(block.share, View):
                tensors |= self._view(block, block.share, client)
        order = Order(
            run=self.run_id,
            client=self.setting.clients[client],
            task=task,
            round=self.round,
            accepted=accepted,
            keep=0 if self.best is None else int(self.best[client]),
            evaluate=self.evaluate,
            members=members,
            population=self.told,
        )
        return order, tensors

    def _initial(self, values: Leaves) -> bool:
        """Whether a row is as it was at the start, which every site knows by itself."""
        flat = {named((s, p)): t for s, ls in self.bound.initial.items() for p, t in ls.items()}
        return all(torch.equal(t[0], flat[name]) for name, t in values.items())

    def _view(self, block: Block, share: View, client: int) -> Tensors:
        """What one client sees of the others."""
        states: Stack = {s: {p: t.unsqueeze(0) for p, t in ls.items()} for s, ls in self.bound.initial.items()}
        for other in self.served():
            kept = self.server[other.name]
            values = other.share.read(kept, other.share.row(kept, self._one(client)))
            for slot, path in other.leaves:
                states[slot][path] = values[named((slot, path))]
        for slot, path in self.bound.told():
            states[slot][path] = self.store.get((slot, path), [client])
        seen = self.seen(share, self._one(client), [self.setting.clients[client]], states)
        travelling = {p for b in self.served() if b.slot == share.of for _, p in self.bound.travelling(b)}
        return {
            key(self.bound, block, named((block.slot, path))): t
            for path, t in seen.items()
            if share.of is None or path in travelling
        }

    def _one(self, client: int) -> Tensor:
        return torch.tensor([client])

    # --- what comes up ------------------------------------------------------------------------------------------

    def exchange(
        self, clients: list[int], task: Task, server: Mapping[str, Kept]
    ) -> tuple[dict[int, tuple[Reply, Tensors]], dict[str, str]]:
        """Ask some clients and wait for them; what they answer, and who does not count and why."""
        self.sites.meet()
        self.final, self._unable = set(self.excluded), set()
        left: dict[str, str] = {}
        messages, asked = {}, {}
        for client in clients:
            name = self.setting.clients[client]
            if name in self.excluded:
                left[name] = self.excluded[name]
                continue
            if name not in self.sites.where:
                left[name] = "not connected"
                continue
            order, tensors = self.order(client, task, server)
            address = self.sites.where[name]
            messages[address], asked[address] = pack(order, tensors), client
            self.sent += payload(tensors)
            self.wired += len(messages[address])
        found: dict[int, tuple[Reply, Tensors]] = {}
        answers = self.sites.transport.exchange(messages, self.rules.deadline)
        for address, client in asked.items():
            answer = answers.get(address, f"no answer within {self.rules.deadline:g} seconds")
            try:
                found[client] = self._read(client, task, messages[address], answer)
            except PluresError as error:
                self._leave(left, client, error)
        self.scores = {split: {} for split in self.evaluate}
        for client, (reply, _) in found.items():
            for split in self.evaluate:
                if split in reply.scores:
                    self.scores[split][client] = reply.scores[split]
        for name, reason in left.items():
            log.warning("round %d: client %r is left out: %s", self.round, name, reason)
        return dict(sorted(found.items())), left

    def _leave(self, left: dict[str, str], client: int, error: PluresError) -> None:
        """Note why an answer does not count."""
        name = self.setting.clients[client]
        left[name] = str(error)
        if isinstance(error, UnableError):
            self._unable.add(name)

    def _read(self, client: int, task: Task, order: bytes, answer: bytes | str) -> tuple[Reply, Tensors]:
        if isinstance(answer, str):
            raise PluresError(clean(answer))
        self.wired += len(answer)
        leaves = self.expected if task == "train" else self._probed_leaves() if task == "gradients" else {}
        columns = {column for one in self.told for column in one.metadata}
        reply = opened(answer, order, room(1, self.setting.task.outputs, len(columns), len(self.bound.blocks)), leaves)
        name = self.setting.clients[client]
        if reply.client != name:
            raise PluresError(f"the answer is of client {reply.client!r}")
        if reply.status == "lost" and task == "train":
            self.last[client] = 0
        if reply.status in ("lost", "refused"):
            self.final.add(name)
        if reply.status == "failed":
            raise UnableError(f"{reply.status}: {reply.reason}")
        if reply.status != "done":
            raise PluresError(f"{reply.status}: {reply.reason}")
        if reply.run != self.run_id:
            raise PluresError("its method, model or data columns are not those of this run: give it the same files")
        if reply.round != self.round:
            raise PluresError(f"the answer is of round {reply.round}")
        ranges = {metric.name: metric.range for metric in self.setting.task.metrics}
        for split, scored in reply.scores.items():
            for metric, value in scored.metrics.items():
                if metric not in ranges:
                    raise PluresError(f"bad scores: {metric!r} is no metric of this task")
                least, most = ranges[metric]
                if value is not None and not least <= value <= most:
                    raise PluresError(
                        f"bad scores: {metric!r} on {split} examples is {value:g}, not between {least:g} and {most:g}"
                    )
        tensors = body(answer)
        self.received += payload(tensors)
        return reply, tensors

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """What an upload holds: a value of the right shape and type under every name."""
        found = {f"told:{named((s, p))}": self.bound.initial[s][p] for s, p in self.bound.told()}
        for block in self.served():
            leaves = self.bound.travelling(block)
            found |= {key(self.bound, block, named((s, p))): self.bound.initial[s][p] for s, p in leaves}
            if leaves:
                weights = self._weights(block)
                found |= {f"{WEIGHT}{key(self.bound, block, name)}": t for name, t in weights.items()}
        return found

    def _weights(self, block: Block) -> Leaves:
        """A block's weights if clients compute them, as of the initial state: one without a name, or one by leaf."""
        if not callable(self.bound.combine(block).weights):
            return {}
        given = self.bound.weighed(block, self.bound.initial)
        return {"": given} if isinstance(given, Tensor) else given

    def check(self, reply: Reply, tensors: Tensors) -> None:
        """Refuse an upload that is not what was asked for."""
        if missing := sorted(self.expected.keys() - tensors.keys()):
            raise PluresError(f"bad upload: leaf {missing[0]!r} is missing")
        for name, like in self.expected.items():
            value = tensors[name]
            if value.shape != like.shape or value.dtype != like.dtype:
                raise PluresError(
                    f"bad upload: {name!r} is {value.dtype} {tuple(value.shape)}, not {like.dtype} {tuple(like.shape)}"
                )
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise UnableError(f"bad upload: {name!r} holds a NaN or an infinite value")
            if name.startswith(WEIGHT) and not bool((value >= 0).all()):
                raise PluresError(f"bad upload: {name!r} holds a negative weight")
            if name.startswith(WEIGHT) and not bool((value <= MOST).all()):
                raise PluresError(f"bad upload: {name!r} holds a weight above {MOST:g}")
        for block in self.served():
            if block.share.alone:
                row, rows = reply.rows.get(block.name, -1), len(next(iter(self.server[block.name].values.values())))
                if not 0 <= row < rows:
                    raise PluresError(f"bad upload: block {block.name!r} chose model {row} of {rows}")

    def distance(self, client: int, reply: Reply, tensors: Tensors, server: Mapping[str, Kept]) -> float:
        """How far an upload is from what the server had: the L2 norm over all leaves of floating point.

        Raises:
            UnableError: if it is farther than the rules allow.
        """
        norm = distance(self, client, reply.rows, tensors, server)
        if not norm <= self.rules.max_norm:
            raise UnableError(
                f"bad upload: it is {norm:.3g} away from what was sent (L2 norm), and [rules] max_norm allows "
                f"{self.rules.max_norm:g}"
            )
        return norm

    def _balanced(self, valid: Mapping[int, tuple[Reply, Tensors]]) -> None:
        """Cut computed weights with which one client would count for everything (:data:`OUTWEIGHS`)."""
        examples = dict(zip(valid, self.examples(list(valid)).tolist(), strict=True))
        for block in self.served():
            prefix = f"{WEIGHT}{key(self.bound, block, '')}"
            own = {i: {n: t for n, t in tensors.items() if n.startswith(prefix)} for i, (_, tensors) in valid.items()}
            total = {i: sum(float(t.double().sum()) for t in weights.values()) for i, weights in own.items()}
            for client, weights in own.items():
                others = [i for i in own if i != client]
                most = OUTWEIGHS * sum(total[i] for i in others)
                most *= max(1.0, examples[client] / sum((examples[i] for i in others), 1e-9))
                if 0 < most < total[client]:
                    name, share = self.setting.clients[client], most / total[client]
                    log.warning("round %d: the weight of client %r is cut to %.3g of it", self.round, name, share)
                    valid[client][1].update({n: t * share for n, t in weights.items()})

    # --- the round ----------------------------------------------------------------------------------------------

    def step(self) -> RoundRecord:
        self._moving = {}
        try:
            return super().step()
        except (RuntimeError, ArithmeticError) as error:
            if not self._moving:
                raise
            raise self._broken(f"its uploads cannot be combined ({type(error).__name__})") from error

    def _broken(self, what: str) -> BrokenError:
        return BrokenError(self.round + 1, max(self._moving, key=lambda name: self._moving[name]), what)

    def insist(self, server: Mapping[str, Kept], memory: Mapping[str, Leaves]) -> None:
        for name, kept in server.items():
            for leaf, value in {**kept.values, **memory[name]}.items():
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise self._broken(f"what was made of its uploads is not finite in {leaf!r}")

    def suspect(self, able: Collection[str]) -> str | None:
        """Who has broken the last round that counted.

        Its update stood out (:data:`STANDS_OUT`), and most of those that were to work on it now cannot. One client can
        say so as it likes, and make its own update as short as it likes. So it is not believed alone, unless the update
        was long for what had been sent: no honest one is, but where a method starts from nothing.

        Args:
            able: who did its work now.
        """
        if not self.moved:
            return None
        name = max(self.moved, key=lambda name: self.moved[name])
        unable = {other for other in self._unable - {name} if self._meets(other, name)}
        able = {other for other in set(able) - {name} if self._meets(other, name)}
        others = [norm for other, norm in self.moved.items() if other != name]
        usual = median(others) if others else self.length
        if len(unable) < 2:
            usual = max(usual, self.length)
        stands_out = self.moved[name] > STANDS_OUT * usual
        return name if stands_out and len(unable) > len(able) else None

    def _meets(self, client: str, other: str) -> bool:
        """Whether a client receives a model to which another one sends."""
        pair = torch.tensor([self.setting.index(client), self.setting.index(other)])
        for block in self.bound.blocks:
            if isinstance(block.share, View) or block.share.alone:
                return True
            if block.share.served and self.bound.travelling(block):
                one, two = block.share.row(self.server[block.name], pair).tolist()
                if one == two:
                    return True
        return False

    def choose(self, block: Block, cohort: Cohort) -> Kept:
        return self.server[block.name] if block.share.alone else super().choose(block, cohort)

    def work(self, clients: list[int], server: Mapping[str, Kept]) -> Work:
        replies, left = self.exchange(clients, "train", server)
        valid: dict[int, tuple[Reply, Tensors]] = {}
        moving: dict[str, float] = {}
        lengths = [0.0]
        for client, (reply, tensors) in replies.items():
            try:
                self.check(reply, tensors)
                norm = self.distance(client, reply, tensors, server)
                nothing = {name: torch.zeros_like(value) for name, value in tensors.items()}
                lengths.append(distance(self, client, reply.rows, nothing, server))
                moving[self.setting.clients[client]] = norm
                valid[client] = reply, tensors
            except PluresError as error:
                self._leave(left, client, error)
                log.warning("round %d: client %r is left out: %s", self.round, self.setting.clients[client], error)
        suspect = self.suspect(moving)
        if suspect is not None:
            told = "; ".join(f"{name}: {left[name]}" for name in left if name in self._unable)
            raise BrokenError(self.round, suspect, f"most sites cannot work on what it left ({told})")
        if len(valid) < self.rules.min_clients:
            told = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            raise TooFewError(
                f"round {self.round + 1}: {len(valid)} of {len(clients)} clients did their work, at least "
                f"{self.rules.min_clients} must ({told})"
            )
        self._balanced(valid)
        self._moving, self._sending = moving, max(lengths)
        chosen, who = dict(server), list(valid)
        for block in self.served():
            if block.share.alone:
                rows = torch.tensor([valid[i][0].rows[block.name] for i in who])
                chosen[block.name] = block.share.chose(chosen[block.name], torch.tensor(who), rows)
        self._told_now = {
            i: {(s, p): tensors[f"told:{named((s, p))}"] for s, p in self.bound.told()}
            for i, (_, tensors) in valid.items()
        }
        return Work(who, self._answers(valid), chosen, left)

    def _answers(self, valid: Mapping[int, tuple[Reply, Tensors]]) -> Iterator[Answer]:
        for client, (reply, tensors) in valid.items():
            values: dict[str, Leaves] = {}
            weights: dict[str, Tensor | Leaves] = {}
            for block in self.served():
                leaves = [named(leaf) for leaf in self.bound.travelling(block)]
                if not leaves:
                    continue
                values[block.name] = {k: tensors[key(self.bound, block, k)].unsqueeze(0) for k in leaves}
                prefix = f"{WEIGHT}{key(self.bound, block, '')}"
                given = {n.removeprefix(prefix): t.unsqueeze(0) for n, t in tensors.items() if n.startswith(prefix)}
                if given:
                    weights[block.name] = given.get("", given)
            loss, objective = (torch.tensor([math.nan if x is None else x]) for x in (reply.loss, reply.objective))
            yield Answer([client], values, weights, loss, objective)

    def mean(self, losses: Tensor) -> float:
        return float(losses.nanmean())

    def applied(self, work: Work) -> None:
        for client, leaves in self._told_now.items():
            for leaf, value in leaves.items():
                self.store.put(leaf, [client], value.unsqueeze(0))
            self.store.mark([client])
        self._told_now = {}
        self.moved, self.length = self._moving, self._sending

    def gradients(self, clients: list[int]) -> Tensor:
        replies, left = self.exchange(clients, "gradients", self.server)
        like, found = self._probed_leaves(), {}
        for client, (_, tensors) in replies.items():
            if tensors.keys() != like.keys() or not all(fits(tensors[path], t) for path, t in like.items()):
                left[self.setting.clients[client]] = "its gradient does not fit the model"
                continue
            self._probed += payload(tensors)
            found[client] = flatten({path: tensors[path].unsqueeze(0) for path in like})[0]
        left = {name: reason for name, reason in left.items() if name not in self.excluded}
        if left or not found:
            raise TooFewError(
                "the method groups clients by their first gradients and needs everybody's: "
                + "; ".join(f"{name}: {reason}" for name, reason in left.items())
            )
        nowhere = torch.stack(list(found.values())).mean(0)  # for who is left out, and so does not move the others
        return torch.stack([found.get(client, nowhere) for client in clients])

    def _probed_leaves(self) -> Leaves:
        """The leaves of which a gradient is asked, as they are at the start."""
        return {path: self.bound.initial["model"][path] for path in self.bound.probed()}

    def losses(self, clients: list[int], rows: int, share: Share) -> Tensor:
        raise PluresError(f"{share}: over a network clients choose alone, by a share that says so (Share.alone)")

    # --- measurements without work ------------------------------------------------------------------------------

    def ask(self, task: Task, *splits: Held, clients: Sequence[str] | None = None) -> dict[str, str]:
        """Let clients score the present state on some splits, and publish it if that is the task.

        Args:
            task: ``score`` or ``publish``.
            splits: what is scored.
            clients: names of those that are asked; default: all.

        Returns:
            Who did not answer, and why; :attr:`scores` has what the others scored.
        """
        asked = sorted(map(self.setting.index, self.setting.clients if clients is None else clients))
        before, self.evaluate = self.evaluate, splits
        _, left = self.exchange(asked, task, self.server)
        self.evaluate = before
        return left
