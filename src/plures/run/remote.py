"""A run whose clients are behind a network: what the server asks, what it accepts, and who does not count."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation import Federation
from plures.federation import Task as Problem
from plures.method import Block, Bound, Kept, Leaf, Method, Setting, Share, View, flatten, named
from plures.models import Leaves, ModelFactory
from plures.run.coordinator import BrokenError, Coordinator, Moved, Values, Work
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
from plures.run.origin import Origin
from plures.run.participation import Participation
from plures.run.states import states
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
    run: Coordinator[Any], client: int, rows: Mapping[str, int], sent: Mapping[str, Tensor], server: Mapping[str, Kept]
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


def expected(run: Coordinator[Any]) -> dict[str, Tensor]:
    """What an upload holds: a value of the right shape and type under every name."""
    found = {f"told:{named((s, p))}": run.bound.initial[s][p] for s, p in run.bound.told()}
    for block in run.served():
        leaves = run.bound.travelling(block)
        found |= {key(run.bound, block, named((s, p))): run.bound.initial[s][p] for s, p in leaves}
        if leaves and callable(run.bound.combine(block).weights):
            given = run.bound.weighed(block, run.bound.initial)
            by_leaf = {"": given} if isinstance(given, Tensor) else given
            found |= {f"{WEIGHT}{key(run.bound, block, name)}": t for name, t in by_leaf.items()}
    return found


def probed(run: Coordinator[Any]) -> Leaves:
    """The leaves of which a gradient is asked, as they are at the start."""
    return {path: run.bound.initial["model"][path] for path in run.bound.probed()}


def check(run: Coordinator[Any], like: Mapping[str, Tensor], reply: Reply, tensors: Tensors) -> None:
    """Refuse an upload that is not what was asked for (:func:`expected`)."""
    if missing := sorted(like.keys() - tensors.keys()):
        raise PluresError(f"bad upload: leaf {missing[0]!r} is missing")
    for name, one in like.items():
        value = tensors[name]
        if value.shape != one.shape or value.dtype != one.dtype:
            raise PluresError(
                f"bad upload: {name!r} is {value.dtype} {tuple(value.shape)}, not {one.dtype} {tuple(one.shape)}"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UnableError(f"bad upload: {name!r} holds a NaN or an infinite value")
        if name.startswith(WEIGHT) and not bool((value >= 0).all()):
            raise PluresError(f"bad upload: {name!r} holds a negative weight")
        if name.startswith(WEIGHT) and not bool((value <= MOST).all()):
            raise PluresError(f"bad upload: {name!r} holds a weight above {MOST:g}")
    for block in run.served():
        if block.share.alone:
            row, rows = reply.rows.get(block.name, -1), len(next(iter(run.server[block.name].values.values())))
            if not 0 <= row < rows:
                raise PluresError(f"bad upload: block {block.name!r} chose model {row} of {rows}")


def balance(run: Coordinator[Any], valid: Mapping[int, tuple[Reply, Tensors]]) -> None:
    """Cut computed weights with which one client would count for everything (:data:`OUTWEIGHS`)."""
    examples = dict(zip(valid, run.examples(list(valid)).tolist(), strict=True))
    for block in run.served():
        prefix = f"{WEIGHT}{key(run.bound, block, '')}"
        own = {i: {n: t for n, t in tensors.items() if n.startswith(prefix)} for i, (_, tensors) in valid.items()}
        total = {i: sum(float(t.double().sum()) for t in weights.values()) for i, weights in own.items()}
        for client, weights in own.items():
            others = [i for i in own if i != client]
            most = OUTWEIGHS * sum(total[i] for i in others)
            most *= max(1.0, examples[client] / sum((examples[i] for i in others), 1e-9))
            if 0 < most < total[client]:
                name, share = run.setting.clients[client], most / total[client]
                log.warning("round %d: the weight of client %r is cut to %.3g of it", run.round, name, share)
                valid[client][1].update({n: t * share for n, t in weights.items()})


def suspect(run: Coordinator[Any], able: Collection[str], unable: Collection[str]) -> str | None:
    """Who has broken the last round that counted.

    Its update stood out (:data:`STANDS_OUT`), and most of those that were to work on it now cannot. One client can
    say so as it likes, and make its own update as short as it likes. So it is not believed alone, unless the update
    was long for what had been sent: no honest one is, but where a method starts from nothing.

    Args:
        run: the coordinator.
        able: who did its work now.
        unable: who could not.
    """
    moved = run.moved.by
    if not moved:
        return None
    name = max(moved, key=lambda name: moved[name])
    unable = {other for other in unable if other != name and meets(run, other, name)}
    able = {other for other in able if other != name and meets(run, other, name)}
    others = [norm for other, norm in moved.items() if other != name]
    usual = median(others) if others else run.moved.sent
    if len(unable) < 2:
        usual = max(usual, run.moved.sent)
    return name if moved[name] > STANDS_OUT * usual and len(unable) > len(able) else None


def meets(run: Coordinator[Any], client: str, other: str) -> bool:
    """Whether a client receives a model to which another one sends."""
    pair = torch.tensor([run.setting.index(client), run.setting.index(other)])
    for block in run.bound.blocks:
        if isinstance(block.share, View) or block.share.alone:
            return True
        if block.share.served and run.bound.travelling(block):
            one, two = block.share.row(run.server[block.name], pair).tolist()
            if one == two:
                return True
    return False


def answer(run: Coordinator[Any], client: int, reply: Reply, tensors: Tensors) -> tuple[Answer, Values]:
    """What a valid upload says: what is combined, and what is kept of this client."""
    values: dict[str, Leaves] = {}
    weights: dict[str, Tensor | Leaves] = {}
    for block in run.served():
        leaves = [named(leaf) for leaf in run.bound.travelling(block)]
        if not leaves:
            continue
        values[block.name] = {k: tensors[key(run.bound, block, k)].unsqueeze(0) for k in leaves}
        prefix = f"{WEIGHT}{key(run.bound, block, '')}"
        given = {n.removeprefix(prefix): t.unsqueeze(0) for n, t in tensors.items() if n.startswith(prefix)}
        if given:
            weights[block.name] = given.get("", given)
    loss, objective = (torch.tensor([] if x is None else [x]) for x in (reply.loss, reply.objective))
    told = {(s, p): tensors[f"told:{named((s, p))}"].unsqueeze(0) for s, p in run.bound.told()}
    return Answer([client], values, weights, loss, objective), told


class Remote:
    """Clients at sites, which keep their data, and what is personal, to themselves.

    Args:
        sites: who is where; everyone must have joined.
        told: what each client told, in the order of the federation's clients.
        run_id: the run's fingerprint.
        rules: when a round counts.

    Attributes:
        sent, received: bytes of tensors that went to sites and came from them; with headers in ``wired``.
        scores: for the splits that were to be evaluated, what each client scored in the last exchange.
        evaluate: splits that a round has evaluated, on the state before it.
        excluded: who is not asked any more, and why.
        best: ``last`` in the best state so far, whose personal versions the sites keep; ``None`` for none.
        final: who refused in the last exchange, or lost its state: asking again is in vain.
    """

    alone = True

    def __init__(self, sites: Sites, told: Sequence[Told], run_id: str, rules: Rules) -> None:
        self.sites, self.told, self.run_id, self.rules = sites, list(told), run_id, rules
        self.sent = self.received = self.wired = 0
        self.evaluate: tuple[Held, ...] = ()
        self.scores: dict[Held, dict[int, Scored]] = {}
        self.best: Tensor | None = None
        self.final: set[str] = set()
        self.excluded: dict[str, str] = {}
        self._unable: set[str] = set()

    def held(self, bound: Bound) -> list[Leaf]:
        return bound.told()

    # --- what goes down -----------------------------------------------------------------------------------------

    def order(
        self, run: Coordinator[Any], client: int, task: Task, server: Mapping[str, Kept]
    ) -> tuple[Order, Tensors]:
        """What one client is asked, and what it receives."""
        members: dict[str, int] = {}
        tensors: Tensors = {}
        accepted = int(run.last[client])
        for block in run.served() if task != "gradients" else ():
            share, kept = block.share, server[block.name]
            leaves = [named(leaf) for leaf in run.bound.travelling(block)]
            rows = share.row(kept, torch.tensor([client]))
            if share.alone:
                members[block.name] = int(rows)
                rows = torch.arange(len(next(iter(kept.values.values()))))
            values = {name: t for name, t in share.read(kept, rows).items() if name in leaves}
            if share.downloads(run.setting) or not (accepted or self._initial(run, values)):
                tensors |= {key(run.bound, block, name): t for name, t in values.items()}
        if task != "gradients":
            tensors |= self._views(run, client)
        order = Order(
            run=self.run_id,
            client=run.setting.clients[client],
            task=task,
            round=run.round,
            accepted=accepted,
            keep=0 if self.best is None else int(self.best[client]),
            evaluate=self.evaluate,
            members=members,
            population=self.told,
        )
        return order, tensors

    def _initial(self, run: Coordinator[Any], values: Leaves) -> bool:
        """Whether a row is as it was at the start, which every site knows by itself."""
        flat = {named((s, p)): t for s, ls in run.bound.initial.items() for p, t in ls.items()}
        return all(torch.equal(t[0], flat[name]) for name, t in values.items())

    def _views(self, run: Coordinator[Any], client: int) -> Tensors:
        """What one client sees of the others."""
        found: Tensors = {}
        for block in run.bound.blocks:
            if isinstance(block.share, View):
                seen, of = states(run, [client])[block.slot], block.share.of
                travelling = {p for b in run.served() if b.slot == of for _, p in run.bound.travelling(b)}
                leaves = [leaf for leaf in block.leaves if of is None or leaf[1] in travelling]
                found |= {key(run.bound, block, named((s, p))): seen[p] for s, p in leaves}
        return found

    # --- what comes up ------------------------------------------------------------------------------------------

    def exchange(
        self, run: Coordinator[Any], clients: list[int], task: Task, server: Mapping[str, Kept]
    ) -> tuple[dict[int, tuple[Reply, Tensors]], dict[str, str]]:
        """Ask some clients and wait for them; what they answer, and who does not count and why."""
        self.sites.meet()
        self.final, self._unable = set(self.excluded), set()
        left: dict[str, str] = {}
        messages, asked = {}, {}
        for client in clients:
            name = run.setting.clients[client]
            if name in self.excluded:
                left[name] = self.excluded[name]
                continue
            if name not in self.sites.where:
                left[name] = "not connected"
                continue
            order, tensors = self.order(run, client, task, server)
            address = self.sites.where[name]
            messages[address], asked[address] = pack(order, tensors), client
            self.sent += payload(tensors)
            self.wired += len(messages[address])
        found: dict[int, tuple[Reply, Tensors]] = {}
        answers = self.sites.transport.exchange(messages, self.rules.deadline)
        for address, client in asked.items():
            answer = answers.get(address, f"no answer within {self.rules.deadline:g} seconds")
            try:
                found[client] = self._read(run, client, task, messages[address], answer)
            except PluresError as error:
                self._leave(left, run.setting.clients[client], error)
        self.scores = {split: {} for split in self.evaluate}
        for client, (reply, _) in found.items():
            for split in self.evaluate:
                if split in reply.scores:
                    self.scores[split][client] = reply.scores[split]
        for name, reason in left.items():
            log.warning("round %d: client %r is left out: %s", run.round, name, reason)
        return dict(sorted(found.items())), left

    def _leave(self, left: dict[str, str], name: str, error: PluresError) -> None:
        """Note why an answer does not count."""
        left[name] = str(error)
        if isinstance(error, UnableError):
            self._unable.add(name)

    def _read(
        self, run: Coordinator[Any], client: int, task: Task, order: bytes, answer: bytes | str
    ) -> tuple[Reply, Tensors]:
        if isinstance(answer, str):
            raise PluresError(clean(answer))
        self.wired += len(answer)
        leaves = expected(run) if task == "train" else probed(run) if task == "gradients" else {}
        columns = {column for one in self.told for column in one.metadata}
        reply = opened(answer, order, room(1, run.setting.task.outputs, len(columns), len(run.bound.blocks)), leaves)
        name = run.setting.clients[client]
        if reply.client != name:
            raise PluresError(f"the answer is of client {reply.client!r}")
        if reply.status == "lost" and task == "train":
            run.forget(client)
        if reply.status in ("lost", "refused"):
            self.final.add(name)
        if reply.status == "failed":
            raise UnableError(f"{reply.status}: {reply.reason}")
        if reply.status != "done":
            raise PluresError(f"{reply.status}: {reply.reason}")
        if reply.run != self.run_id:
            raise PluresError("its method, model or data columns are not those of this run: give it the same files")
        if reply.round != run.round:
            raise PluresError(f"the answer is of round {reply.round}")
        ranges = {metric.name: metric.range for metric in run.federation.metrics}
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

    # --- the round ----------------------------------------------------------------------------------------------

    def work(self, run: Coordinator[Any], clients: list[int], server: Mapping[str, Kept]) -> Work:
        replies, left = self.exchange(run, clients, "train", server)
        like = expected(run)
        valid: dict[int, tuple[Reply, Tensors]] = {}
        moved: dict[str, float] = {}
        lengths = [0.0]
        for client, (reply, tensors) in replies.items():
            name = run.setting.clients[client]
            try:
                check(run, like, reply, tensors)
                norm = distance(run, client, reply.rows, tensors, server)
                if not norm <= self.rules.max_norm:
                    raise UnableError(
                        f"bad upload: it is {norm:.3g} away from what was sent (L2 norm), and [rules] max_norm allows "
                        f"{self.rules.max_norm:g}"
                    )
                nothing = {leaf: torch.zeros_like(value) for leaf, value in tensors.items()}
                lengths.append(distance(run, client, reply.rows, nothing, server))
                moved[name], valid[client] = norm, (reply, tensors)
            except PluresError as error:
                self._leave(left, name, error)
                log.warning("round %d: client %r is left out: %s", run.round, name, error)
        broke = suspect(run, moved, self._unable)
        if broke is not None:
            told = "; ".join(f"{name}: {left[name]}" for name in left if name in self._unable)
            raise BrokenError(run.round, broke, f"most sites cannot work on what it left ({told})")
        if len(valid) < self.rules.min_clients:
            told = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            raise TooFewError(
                f"round {run.round + 1}: {len(valid)} of {len(clients)} clients did their work, at least "
                f"{self.rules.min_clients} must ({told})"
            )
        balance(run, valid)
        chosen, who = dict(server), list(valid)
        for block in run.served():
            if block.share.alone:
                rows = torch.tensor([valid[i][0].rows[block.name] for i in who])
                chosen[block.name] = block.share.chose(chosen[block.name], torch.tensor(who), rows)
        answers = [answer(run, client, *said) for client, said in valid.items()]
        return Work(who, answers, chosen, left, Moved(moved, max(lengths)))

    def gradients(self, run: Coordinator[Any], clients: list[int]) -> tuple[Tensor, int]:
        replies, left = self.exchange(run, clients, "gradients", run.server)
        like, found, sent = probed(run), {}, 0
        for client, (_, tensors) in replies.items():
            if tensors.keys() != like.keys() or not all(fits(tensors[path], t) for path, t in like.items()):
                left[run.setting.clients[client]] = "its gradient does not fit the model"
                continue
            sent += payload(tensors)
            found[client] = flatten({path: tensors[path].unsqueeze(0) for path in like})[0]
        left = {name: reason for name, reason in left.items() if name not in self.excluded}
        if left or not found:
            raise TooFewError(
                "the method groups clients by their first gradients and needs everybody's: "
                + "; ".join(f"{name}: {reason}" for name, reason in left.items())
            )
        nowhere = torch.stack(list(found.values())).mean(0)  # for who is left out, and so does not move the others
        return torch.stack([found.get(client, nowhere) for client in clients]), sent

    def losses(self, run: Coordinator[Any], clients: list[int], rows: int, share: Share) -> Tensor:
        raise PluresError(f"{share}: over a network clients choose alone, by a share that says so (Share.alone)")

    # --- measurements without work ------------------------------------------------------------------------------

    def ask(
        self, run: Coordinator[Any], task: Task, *splits: Held, clients: Sequence[str] | None = None
    ) -> dict[str, str]:
        """Let clients score the present state on some splits, and publish it if that is the task.

        Args:
            run: the coordinator.
            task: ``score`` or ``publish``.
            splits: what is scored.
            clients: names of those that are asked; default: all.

        Returns:
            Who did not answer, and why; :attr:`scores` has what the others scored.
        """
        asked = sorted(map(run.setting.index, run.setting.clients if clients is None else clients))
        before, self.evaluate = self.evaluate, splits
        _, left = self.exchange(run, asked, task, run.server)
        self.evaluate = before
        return left


def over_sites(
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
) -> Coordinator[Remote]:
    """The coordinator of a method in training over sites.

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
    """
    if sites.missing:
        raise PluresError(f"clients {', '.join(sites.missing)} never joined: start their sites, or leave them out")
    data, training = federation.to("cpu", torch.float32), training or Training()
    told = [sites.told[client] for client in data.clients]
    setting = population(data, told)
    origin = Origin.of(method, model, setting, data, torch.float32, participation, seed)
    run_id = fingerprint(origin.bound, training, federation, seed, agreed)
    clients = Remote(sites, told, run_id, rules or Rules())
    return Coordinator(origin, clients, data, setting, training, ONE_CLIENT)
