"""Clients at sites: builds the orders sent to them, and turns their answers into a round's result."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plures.entropy import Secret
from plures.errors import PluresError
from plures.federation import Federation
from plures.method import BlockState, Bound, Leaf, Method, Share, View, flatten
from plures.method.channel import LOSS, OBJECTIVE, VIEWS
from plures.method.leaf import by_leaf
from plures.models import Leaves, ModelFactory
from plures.privacy import Plan
from plures.remote.bounds import (
    TooFewError,
    UnableError,
    away,
    balance,
    by_channel,
    check,
    expected,
    fits,
    key,
    known,
    norm,
    opened,
    probed,
    received,
    suspect,
)
from plures.remote.downloads import changes
from plures.remote.masks import Notary
from plures.remote.message import (
    MASKING,
    ClientFacts,
    Held,
    Order,
    Reply,
    Request,
    Scored,
    Tensors,
    body,
    clean,
    pack,
    payload,
    room,
)
from plures.remote.sites import Sites, population
from plures.remote.sums import Sums
from plures.run.coordinator import BrokenError, Coordinator, Moved, Values, Work
from plures.run.execution import Execution
from plures.run.facts import facts, raw
from plures.run.fingerprint import of_method, of_task
from plures.run.origin import Origin
from plures.run.participation import Participation, may_be_empty
from plures.run.states import states
from plures.run.training import Training
from plures.run.turn import Paced
from plures.run.uploads import Answer

ONE_CLIENT = Execution("loop", 1, False, "float32", "cpu")
"""How a site trains: one client in a plain loop, since there is nothing to stack."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """The server's rules for rounds and uploads.

    Attributes:
        min_clients: fewest valid uploads for a round to count; of Poisson cohorts that are smaller, all.
        deadline: seconds that a round waits for answers.
        max_norm: largest L2 norm of the difference between an upload and what was sent, over all floating-point
            leaves.
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


def fingerprint(bound: Bound, training: Training, federation: Federation, seed: int, agreed: str = "") -> str:
    """Hash of what must be equal at the server and at every site: method, model with its initial values, local work."""
    digest = hashlib.sha256()
    question = {
        "federation": federation.name,
        "clients": federation.clients,
        "features": federation.features,
        "task": of_task(federation.task),
        "method": of_method(bound.method, "method"),
        "training": facts(training, "training"),
        "seed": seed,
        "agreed": agreed,
        "blocks": [(b.name, [str(leaf) for leaf in b.leaves]) for b in bound.blocks],
    }
    digest.update(json.dumps(question).encode())
    for leaf, value in by_leaf(bound.initial).items():
        digest.update(f"{leaf} {value.dtype} {tuple(value.shape)}".encode())
        if leaf.slot == "model":
            digest.update(raw(value))
    return digest.hexdigest()[:16]


def insist_on_one_size(bound: Bound) -> None:
    """Refuse uploads of different sizes, which sites do not send."""
    if bound.held is not None:
        raise PluresError(
            "clients hold parts of the network that differ in size, and sites exchange uploads of one size: leave the "
            "method to simulations, or give all sites one network that fits them"
        )


def answer(run: Coordinator[Any], client: int, reply: Reply, tensors: Tensors) -> tuple[Answer, Values]:
    """Split a valid upload into the values to combine and the values that are stored for this client."""
    losses = (LOSS, reply.loss), (OBJECTIVE, reply.objective)
    numbers = {channel: {"": torch.tensor([] if x is None else [x])} for channel, x in losses}
    views = {leaf: tensors[f"{VIEWS}:{leaf}"].unsqueeze(0) for leaf in run.bound.view_inputs()}
    return Answer([client], {**by_channel(tensors), **numbers}), views


class Remote:
    """Clients at sites. Their data and personal state stay with them.

    Args:
        sites: registry of the sites; every client must have joined.
        facts: the facts that each client reported, in the order of the federation's clients.
        run_id: the run's fingerprint.
        rules: when a round counts.
        notary: knows the members' keys that sign, which secure sums need.
        folder: where uploads of a secure sum are kept while their masks are asked for; ``None`` for memory alone.

    Attributes:
        sent, received: bytes of tensors sent to sites and received from them.
        wired: bytes of all messages in both directions, headers included.
        scores: each client's scores in the last exchange, by split, for the splits in ``evaluate``.
        evaluate: splits that clients score in each round, on the state before it.
        excluded: clients that are no longer asked, and why.
        best: ``last`` in the best state so far, whose personal versions the sites keep; ``None`` for none.
        final: clients that refused in the last exchange, or lost their state: retrying is pointless.
        sums: secure sums, for methods that need no more.
    """

    alone = True
    apart = True
    entropy = None

    def __init__(
        self,
        sites: Sites,
        facts: Sequence[ClientFacts],
        run_id: str,
        rules: Rules,
        notary: Notary | None = None,
        folder: Path | None = None,
    ) -> None:
        self.sites, self.facts, self.run_id, self.rules = sites, list(facts), run_id, rules
        self.sent = self.received = self.wired = 0
        self.evaluate: tuple[Held, ...] = ()
        self.scores: dict[Held, dict[int, Scored]] = {}
        self.best: Tensor | None = None
        self.final: set[str] = set()
        self.excluded: dict[str, str] = {}
        self._unable: set[str] = set()
        self.sums = Sums(run_id, notary, folder)

    def stored_leaves(self, bound: Bound) -> list[Leaf]:
        return bound.view_inputs()

    # --- downloads ----------------------------------------------------------------------------------------------

    def order(
        self,
        run: Coordinator[Any],
        client: int,
        request: Request,
        server: Mapping[str, BlockState],
        fields: Mapping[str, Any] | None = None,
    ) -> tuple[Order, Tensors]:
        """The order for one client, with some more fields, and the tensors sent with it."""
        members: dict[str, int] = {}
        tensors: Tensors = {}
        accepted = int(run.last[client])
        bare = request in ("gradients", *MASKING)
        changed = {} if bare else changes(run, accepted)
        encoded = run.bound.down.forms[0] if changed else {}
        for block in () if bare else run.served():
            share, kept = block.share, server[block.name]
            leaves = [name for name in map(str, run.bound.travelling(block)) if name not in encoded]
            rows = share.row(kept, torch.tensor([client]))
            if share.alone:
                members[block.name] = int(rows)
                rows = torch.arange(len(next(iter(kept.values.values()))))
            values = {name: t for name, t in share.read(kept, rows).items() if name in leaves}
            if share.downloads(run.setting) or not (accepted or self._initial(run, values)):
                tensors |= {key(run.bound, block, name): t for name, t in values.items()}
        if not bare:
            tensors |= self._views(run, client) | changed
        order = Order(
            run=self.run_id,
            client=run.setting.clients[client],
            request=request,
            round=run.round,
            accepted=accepted,
            keep=0 if self.best is None else int(self.best[client]),
            evaluate=() if request in MASKING else self.evaluate,
            members=members,
            population=self.facts,
            **(fields or {}),
        )
        return order, tensors

    def _initial(self, run: Coordinator[Any], values: Leaves) -> bool:
        """Whether a row still has its initial values, which every site can compute itself."""
        flat = {str(leaf): t for leaf, t in by_leaf(run.bound.initial).items()}
        return all(torch.equal(t[0], flat[name]) for name, t in values.items())

    def _views(self, run: Coordinator[Any], client: int) -> Tensors:
        """The leaves of other clients that one client receives through views."""
        found: Tensors = {}
        for block in run.bound.blocks:
            if isinstance(block.share, View):
                seen, of = states(run, [client])[block.slot], block.share.of
                travelling = {p for b in run.served() if b.slot == of for _, p in run.bound.travelling(b)}
                leaves = [leaf for leaf in block.leaves if of is None or leaf.path in travelling]
                found |= {key(run.bound, block, leaf): seen[leaf.path] for leaf in leaves}
        return found

    # --- uploads ------------------------------------------------------------------------------------------------

    def exchange(
        self, run: Coordinator[Any], clients: list[int], request: Request, server: Mapping[str, BlockState]
    ) -> tuple[dict[int, tuple[Reply, Tensors]], dict[str, str]]:
        """Ask some clients and wait for them. Returns their answers, and the clients left out with the reason."""
        self.final, self._unable = set(self.excluded), set()
        found, left = self._asked(run, request, server, {client: {} for client in clients})
        self._keep_scores(found)
        return found, left

    def _keep_scores(self, found: Mapping[int, tuple[Reply, Tensors]]) -> None:
        self.scores = {split: {} for split in self.evaluate}
        for client, (reply, _) in found.items():
            for split in self.evaluate:
                if split in reply.scores:
                    self.scores[split][client] = reply.scores[split]

    def _asked(
        self,
        run: Coordinator[Any],
        request: Request,
        server: Mapping[str, BlockState],
        fields: Mapping[int, Mapping[str, Any]],
    ) -> tuple[dict[int, tuple[Reply, Tensors]], dict[str, str]]:
        """Ask clients, with some fields in their orders. Returns their answers, and who is left out with the reason."""
        self.sites.meet()
        left: dict[str, str] = {}
        messages, asked = {}, {}
        for client, some in fields.items():
            name = run.setting.clients[client]
            if name in self.excluded:
                left[name] = self.excluded[name]
                continue
            if name not in self.sites.where:
                left[name] = "not connected"
                continue
            order, tensors = self.order(run, client, request, server, some)
            address = self.sites.where[name]
            messages[address], asked[address] = pack(order, tensors), client
            self.sent += payload(tensors)
            self.wired += len(messages[address])
        found: dict[int, tuple[Reply, Tensors]] = {}
        answers = self.sites.transport.exchange(messages, self.rules.deadline)
        for address, client in asked.items():
            answer = answers.get(address, f"no answer within {self.rules.deadline:g} seconds")
            try:
                found[client] = self._read(run, client, request, messages[address], answer)
            except PluresError as error:
                self._leave(left, run.setting.clients[client], error)
        for name, reason in left.items():
            log.warning("round %d: client %r is left out: %s", run.round, name, reason)
        return dict(sorted(found.items())), left

    def _leave(self, left: dict[str, str], name: str, error: PluresError) -> None:
        """Record why a client's answer does not count."""
        left[name] = str(error)
        if isinstance(error, UnableError):
            self._unable.add(name)

    def _read(
        self, run: Coordinator[Any], client: int, request: Request, order: bytes, answer: bytes | str
    ) -> tuple[Reply, Tensors]:
        if isinstance(answer, str):
            raise PluresError(clean(answer))
        self.wired += len(answer)
        leaves = expected(run) if request == "train" else probed(run) if request == "gradients" else {}
        columns = {column for one in self.facts for column in one.metadata}
        members = len(run.setting) if run.bound.line.summed else 0
        longest = room(1, len(run.setting.task.names), len(columns), len(run.bound.blocks), members)
        reply = opened(answer, order, longest, leaves)
        name = run.setting.clients[client]
        if reply.client != name:
            raise PluresError(f"the answer comes from client {reply.client!r}")
        if reply.status == "lost" and request == "train":
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
            raise PluresError(f"the answer is for round {reply.round}")
        ranges = {metric.name: metric.range for metric in run.federation.metrics}
        for split, scored in reply.scores.items():
            for metric, value in scored.metrics.items():
                if metric not in ranges:
                    raise PluresError(f"bad scores: {metric!r} is not a metric of this task")
                least, most = ranges[metric]
                if value is not None and not least <= value <= most:
                    raise PluresError(
                        f"bad scores: {metric!r} on {split} examples is {value:g}, not between {least:g} and {most:g}"
                    )
        tensors = body(answer)
        self.received += payload(tensors)
        return reply, tensors

    # --- the round ----------------------------------------------------------------------------------------------

    def work(self, run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]) -> Work:
        if run.bound.line.summed:
            return self._summed(run, clients, server)
        replies, left = self.exchange(run, clients, "train", server)
        like = expected(run)
        valid: dict[int, tuple[Reply, Tensors]] = {}
        moved: dict[str, float] = {}
        lengths = [0.0]
        for client, (reply, tensors) in replies.items():
            name = run.setting.clients[client]
            try:
                check(run, like, reply, tensors)
                before = received(run, client, reply.rows, server)
                far = away(run, client, tensors, before)
                if not far <= self.rules.max_norm:
                    raise UnableError(
                        f"bad upload: it is {far:.3g} away from what was sent (L2 norm), and [rules] max_norm allows "
                        f"{self.rules.max_norm:g}"
                    )
                lengths.append(norm([*before.values(), *known(run, client).values()]))
                moved[name], valid[client] = far, (reply, tensors)
            except PluresError as error:
                self._leave(left, name, error)
                log.warning("round %d: client %r is left out: %s", run.round, name, error)
        broke = suspect(run, moved, self._unable)
        if broke is not None:
            reasons = "; ".join(f"{name}: {left[name]}" for name in left if name in self._unable)
            raise BrokenError(run.round, broke, f"most sites cannot work on what it left ({reasons})")
        least = min(self.rules.min_clients, len(clients)) if may_be_empty(run.participation) else self.rules.min_clients
        if len(valid) < least:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            raise TooFewError(
                f"round {run.round + 1}: {len(valid)} of {len(clients)} clients did their work, at least "
                f"{self.rules.min_clients} must ({reasons})"
            )
        balance(run, valid)
        chosen, who = dict(server), list(valid)
        for block in run.served():
            if block.share.alone:
                rows = torch.tensor([valid[i][0].rows[block.name] for i in who])
                chosen[block.name] = block.share.chose(chosen[block.name], torch.tensor(who), rows)
        answers = [answer(run, client, *said) for client, said in valid.items()]
        return Work(who, answers, chosen, left, Moved(moved, max(lengths)))

    def _summed(self, run: Coordinator[Any], clients: list[int], server: Mapping[str, BlockState]) -> Work:
        """The work of a round of which only the sum is read. How far single uploads moved is not known then."""
        if not clients:
            return Work([], [], server)
        self.final, self._unable = set(self.excluded), set()
        pending = self.sums.pending(run)
        if pending is None:
            least = self.rules.min_clients
            pending = self.sums.gathered(run, clients, lambda r, f: self._asked(run, r, server, f), least)
        self._keep_scores(pending.replies)
        answers = [answer(run, client, *said) for client, said in pending.replies.items()]
        return Work(list(pending.replies), answers, dict(server), dict(pending.left), Moved())

    def unmask(self, run: Coordinator[Any], came: list[int], like: Leaves) -> Leaves:
        return self.sums.unmask(run, came, like, lambda r, f: self._asked(run, r, run.server, f))

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
        nowhere = torch.stack(list(found.values())).mean(0)  # a client left out gets the mean and so moves no other
        return torch.stack([found.get(client, nowhere) for client in clients]), sent

    def losses(self, run: Coordinator[Any], clients: list[int], rows: int, share: Share) -> Tensor:
        raise PluresError(
            f"{share}: at sites, each client must choose its model itself: use a share whose `alone` is true"
        )

    def held(self, run: Coordinator[Any], clients: list[int], *, squared: bool = False) -> Tensor:
        raise PluresError("a site tells its losses to nobody before it trains: leave the selection of clients out")

    # --- measurements without work ------------------------------------------------------------------------------

    def ask(
        self, run: Coordinator[Any], request: Request, *splits: Held, clients: Sequence[str] | None = None
    ) -> dict[str, str]:
        """Let clients score the current state on some splits, and publish it if that is the request.

        Args:
            run: the coordinator.
            request: ``score`` or ``publish``.
            splits: splits to score.
            clients: names of the clients to ask; default: all.

        Returns:
            The clients that did not answer, and why. The scores of the others are in :attr:`scores`.
        """
        asked = sorted(map(run.setting.index, run.setting.clients if clients is None else clients))
        before, self.evaluate = self.evaluate, splits
        _, left = self.exchange(run, asked, request, run.server)
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
    secret: Secret | None = None,
    notary: Notary | None = None,
    folder: Path | None = None,
) -> Coordinator[Remote]:
    """A coordinator that trains a method over sites.

    Args:
        federation: the clients, without any rows.
        model: a factory of modules, or a module; the same one at every site.
        method: the method to run.
        sites: registry of the sites; every client must have joined.
        training: local work and number of rounds.
        participation: which clients are asked in each round; those that cannot be reached are left out.
        seed: root of all randomness.
        agreed: what else must be the same here and at every site, as text: parameters, versions.
        rules: when a round counts.
        secret: key of the server's noise and cohorts, and of other random numbers that nobody else may know; needed
            where the server adds noise.
        notary: knows the members' keys that sign; needed for secure sums alone.
        folder: where uploads of a secure sum are kept while their masks are asked for; ``None`` for memory alone.

    Raises:
        PluresError: if a client never joined, or reported facts that do not fit the federation.
    """
    if sites.missing:
        raise PluresError(f"clients {', '.join(sites.missing)} never joined: start their sites, or leave them out")
    data, training = federation.to("cpu", torch.float32), training or Training()
    reported = [sites.facts[client] for client in data.clients]
    setting = population(data, reported)
    origin = Origin.of(method, model, setting, data, torch.float32, participation, seed)
    if isinstance(origin.participation, Paced):
        raise PluresError("a simulated fleet, and a selection of clients, are for simulations: leave them out at sites")
    insist_on_one_size(origin.bound)
    origin = replace(origin.counting(training), secret=secret)
    if secret is None and isinstance(origin.plan, Plan) and origin.plan.stage.trust == "server":
        raise PluresError(
            "dp: the server's noise must not follow from the seed, which every member knows: give a secret"
        )
    if origin.bound.line.summed and isinstance(origin.plan, Plan) and origin.plan.amplified:
        raise PluresError(
            "dp beside secure_sum: this privacy counts on nobody knowing who is drawn, and the members of a secure sum "
            "must know it: let everybody take part, or leave secure_sum out"
        )
    run_id = fingerprint(origin.bound, training, federation, seed, agreed)
    clients = Remote(sites, reported, run_id, rules or Rules(), notary, folder)
    return Coordinator(origin, clients, data, setting, training, ONE_CLIENT)
