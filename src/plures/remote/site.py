"""A site: carries out the server's orders for one client, whose data and personal state stay on its own disk."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from plures.entropy import Entropy
from plures.errors import PluresError
from plures.evaluate import score
from plures.federation import Federation
from plures.method import MEMBERSHIP, BlockState, Leaf, Method, Mine, Phase, Seen
from plures.method.channel import LOSS, OBJECTIVE
from plures.method.wire import BeyondError
from plures.models import ModelFactory
from plures.remote.allowed import FILE, SECONDS, TRAINING, Allowed, beyond
from plures.remote.bounds import distance, key, labelled, received, size
from plures.remote.clients import ONE_CLIENT, Rules, fingerprint, insist_on_one_size
from plures.remote.downloads import based, caught_up, resting, templates
from plures.remote.ledger import Ledger
from plures.remote.masks import Masks, Notary
from plures.remote.message import (
    LONGEST_REASON,
    MASKING,
    MAX_NUMBER,
    ClientFacts,
    Held,
    Order,
    Reply,
    Scored,
    Tensors,
    body,
    digest,
    head,
    pack,
    room,
)
from plures.remote.sites import population
from plures.remote.state import SUM, LostError, RefusedError, ToldError, Versions, forget, has_left
from plures.run import Participation, Run, Training
from plures.run.uploads import decoded

log = logging.getLogger(__name__)

OWN, ROW = "own", "row"
"""Prefixes in a version's file: personal leaves, and rows of the server's state that only this client changes."""

Publish = Callable[[Run, Order, Mapping[Held, Scored]], None]
"""``(run, order, scores)``: stores the client's finished model for predictions."""


def sent(run: Run) -> list[Leaf]:
    """The leaves that leave a client in a round: those that it uploads, and those that views of others read."""
    return [leaf for block in run.served() for leaf in run.bound.travelling(block)] + run.bound.view_inputs()


def work_beyond(run: Run, allowed: Allowed, round: int = 0) -> list[str]:
    """One sentence for each limit of the site that a visit would exceed."""
    phases = [item for item in run.bound.method.schedule if isinstance(item, Phase)]
    usual = 0.0 if run.training.steps is not None else run.training.passes
    epochs = max((p.epochs or 0 if p.epochs or p.steps else usual for p in phases), default=0)
    found = []
    if allowed.max_epochs is not None and epochs > allowed.max_epochs:
        found.append(f"a visit takes {epochs:g} epochs, and this site allows {allowed.max_epochs:g}")
    if allowed.max_steps is not None:
        steps = sum(int(run.engine.draw(phase, [0], round).steps[0]) for phase in phases)
        if steps > allowed.max_steps:
            found.append(f"a visit takes {steps} steps, and this site allows {allowed.max_steps}")
    return found


class Site:
    """Answers the server's orders for one client.

    Args:
        client: the client's name.
        data: the client and its data, a federation of one.
        federation: all clients as agreed, without any rows.
        model: the network's factory.
        method: the method to run.
        training: local work.
        seed: root of all randomness.
        agreed: what else must be the same at the server and at every site, as text.
        folder: where the site stores the files of this federation and method.
        allowed: what the site allows.
        tells: facts that the federation's members report.
        publish: stores a finished model.
        max_norm: largest L2 norm of its update; the server refuses a longer one, and cannot see it in a secure sum.
        participation: who takes part in each round, as agreed; default: everybody. Secure sums depend on it.
        entropy: random bytes for the noise that the site adds and for what DP-SGD draws, which nobody else knows. They
            are never stored: a repeated order gets the stored answer.
        notary: signs with the member's key, and knows those of the others; needed for secure sums alone.

    Raises:
        PluresError: if ``data`` does not hold exactly this client, or does not fit the federation.
    """

    def __init__(
        self,
        client: str,
        data: Federation,
        federation: Federation,
        model: nn.Module | ModelFactory,
        method: Method,
        training: Training,
        *,
        folder: Path,
        agreed: str = "",
        seed: int = 0,
        allowed: Allowed | None = None,
        tells: Sequence[str] = ("examples",),
        publish: Publish | None = None,
        max_norm: float = Rules.max_norm,
        participation: Participation | None = None,
        entropy: Entropy = os.urandom,
        notary: Notary | None = None,
    ) -> None:
        if data.clients != (client,):
            raise PluresError(f"the site of client {client!r} holds data of {', '.join(data.clients)}: give it its own")
        if data.features != federation.features or data.task != federation.task:
            raise PluresError(
                f"client {client!r}: its examples have shape {data.features}, those of the federation "
                f"{federation.features}; {data.task} against {federation.task}: run `plures deploy check`"
            )
        self.client, self.data, self.federation = client, data, federation.to("cpu", torch.float32)
        self.model, self.method, self.training, self.seed = model, method, training, seed
        self.agreed = agreed
        self.folder, self.allowed, self.tells, self.publish = folder, allowed or Allowed(), tuple(tells), publish
        self.max_norm, self.participation, self.entropy, self.notary = max_norm, participation, entropy, notary
        self.allowed = self.allowed.towards(method)
        self.allowed.measures(data.metrics, 0)
        self._built: tuple[list[ClientFacts], Run, str] | None = None
        self._checked = False

    def answer(self, message: bytes) -> bytes:
        """Answer a message of the server. Never raises: an error becomes an answer, too."""
        begun, order = time.perf_counter(), Order(request="join")
        tensors: Tensors = {}
        try:
            order = self._read(message)
            self._stays()
            torch.set_num_threads(self.allowed.threads)
            done = self._join() if order.request == "join" else self._work(order, message)
            self._stays()
            reply, tensors = done
        except ToldError as error:
            reply = Reply(client=self.client, status=error.status, reason=str(error)[:LONGEST_REASON])
            log.warning("round %d: %s: %s", order.round + 1, error.status, error.__cause__ or error)
        except Exception:  # its text may contain data, so it stays here
            reply = Reply(client=self.client, status="failed", reason="its local work failed; its own log says more")
            log.exception("round %d failed", order.round + 1)
        tells = "seconds" in self.allowed.tell and self.allowed.agrees(SECONDS)
        seconds = time.perf_counter() - begun if tells else 0.0
        fixed = {"order": digest(message), "round": order.round, "seconds": seconds}
        return pack(reply.model_copy(update=fixed), tensors)

    def _read(self, message: bytes) -> Order:
        """Read an order without its leaves. The server may know what is wrong with a message that it sent."""
        try:
            return head(message, Order)[0]
        except PluresError as error:
            raise ToldError(str(error)) from error

    def _stays(self) -> None:
        """Refuse if the site has left, and delete the files of an order that was under way at the time."""
        for folder in (self.folder, self.folder.parent):
            if has_left(folder):
                forget(folder)
                raise RefusedError("it has left the federation")

    # --- who the site is ----------------------------------------------------------------------------------------

    def facts(self) -> ClientFacts:
        """The facts that the site reports about itself."""
        columns = [name for name in self.tells if name not in ("examples", "labels")]
        for name in self.tells:
            if name not in self.allowed.tell:
                raise RefusedError(f"the federation's members tell {name!r}, and this site does not allow it")
            if name in columns and name not in self.data.metadata:
                raise ToldError(f"the federation's members tell {name!r}, which is missing in the site's metadata")
        rows = self.data.splits["train"][0]
        counts = self.data.task.counts(self.data.targets[rows]) if "labels" in self.tells else None
        return ClientFacts.model_validate(
            {
                "examples": len(rows),
                "labels": None if counts is None else counts.tolist(),
                "metadata": {name: self.data.metadata[name][0] for name in columns},
            }
        )

    def _join(self) -> tuple[Reply, Tensors]:
        metrics = self.allowed.measures(self.data.metrics, int(self.data.splits["validation"].sizes[0]))
        return Reply(client=self.client, facts=self.facts(), metrics=tuple(k for k in metrics if k not in TRAINING)), {}

    # --- what the site does -------------------------------------------------------------------------------------

    def _leaves(self, run: Run, order: Order, message: bytes) -> Tensors:
        """Read the leaves of an order, after checking that it is no longer than an order of this run can be."""
        known = {key(run.bound, b, name): t for b in run.served() for name, t in run.server[b.name].values.items()}
        known |= templates(run.bound, order.accepted, order.round)
        facts, blocks = len(self.tells), len(run.bound.blocks)
        members = len(self.federation) if run.bound.line.summed else 0
        most = room(len(self.federation), len(self.federation.task.names), facts, blocks, members) + size(known)
        if len(message) > most:
            raise RefusedError(f"the order has {len(message)} bytes, and {most} at most are needed")
        try:
            return body(message)
        except PluresError as error:
            raise ToldError(str(error)) from error

    def _work(self, order: Order, message: bytes) -> tuple[Reply, Tensors]:
        if order.client != self.client:
            raise RefusedError(f"the order is for client {order.client!r}")
        run = self.run(order)
        received = self._leaves(run, order, message)
        content = digest(pack(order.model_copy(update={"nonce": "", "attempt": 0, "shares": {}}), received))
        versions = Versions(self.folder, order.run)
        with versions.alone():
            ledger = Ledger(self.folder, order.run, self.training.rounds, probes=run.bound.probes)
            masks = self._masks(run, ledger, order)
            if masks and order.request in MASKING:
                return masks.answer(), {}
            if masks:
                masks.ready()
            reply, sent = ledger.answer(order, content) or self._worked(run, versions, ledger, order, content, received)
            return reply, masks.over(sent) if masks else sent

    def _masks(self, run: Run, ledger: Ledger, order: Order) -> Masks | None:
        """The site's part in a secure sum, if the order belongs to one."""
        if not run.bound.line.summed or order.request not in ("train", *MASKING):
            if order.request in MASKING or order.attempt:
                raise RefusedError("this order belongs to no secure sum")
            return None
        return Masks(self.folder, run, order, ledger, self.notary)

    def _worked(
        self, run: Run, versions: Versions, ledger: Ledger, order: Order, content: str, received: Tensors
    ) -> tuple[Reply, Tensors]:
        """Do the work that an order asks for, with a record before and after it."""
        self._restore(run, versions, order)
        self._receive(run, order, received)
        ledger.claim(order, content, self.allowed.versions)
        reply, sent = self._done(run, versions, ledger, order)
        ledger.close(order, reply, sent)
        return reply, sent

    def _done(self, run: Run, versions: Versions, ledger: Ledger, order: Order) -> tuple[Reply, Tensors]:
        """Do the work that an order asks for."""
        if order.request == "gradients":
            return self._reply(order), {path: slope[0] for path, slope in run.clients.slopes([0]).items()}
        if order.request != "train":
            (self.folder / SUM).unlink(missing_ok=True)  # there is no round any more whose sum needs its secrets
        scores = {split: self._scored(run, ledger, order, split) for split in order.evaluate}
        if order.request == "train":
            return self._train(run, versions, ledger, order, scores)
        if order.request == "publish" and self.publish is not None:
            self.publish(run, order, scores)
        return self._reply(order, scores=scores), {}

    def _reply(self, order: Order, **values: object) -> Reply:
        return Reply.model_validate({"client": self.client, "run": order.run, **values})

    def run(self, order: Order) -> Run:
        """The run as this client sees it, at its start."""
        if len(order.population) != len(self.federation):
            raise RefusedError(f"the order describes {len(order.population)} members, not {len(self.federation)}")
        if self._built is None or self._built[0] != order.population:
            self._built = order.population, *self._build(order.population)
        _, run, run_id = self._built
        if run_id != order.run:
            raise RefusedError("the server runs another method, model or version: install the same files and packages")
        self._permit(run, order.round)
        run.begin()
        run.round = order.round
        run.last = torch.tensor([order.accepted])
        return run

    def _build(self, reported: list[ClientFacts]) -> tuple[Run, str]:
        """Build network and engine from the facts that the clients reported, and the run's fingerprint."""
        run = Run(
            self.data,
            self.model,
            self.method,
            self.training,
            participation=self.participation,
            seed=self.seed,
            execution=ONE_CLIENT,
            entropy=self.entropy,
            population=population(self.federation, reported),
        )
        run.clients.bare = True
        insist_on_one_size(run.bound)
        return run, fingerprint(run.bound, self.training, self.federation, self.seed, self.agreed)

    def _permit(self, run: Run, round: int) -> None:
        """Refuse a run that sends or takes more than the site allows."""
        for leaf in sent(run):
            if not self.allowed.sends(leaf):
                raise RefusedError(f"the method sends {str(leaf)!r}, and this site allows {self._listed()}")
        for excess in work_beyond(run, self.allowed, round):
            raise RefusedError(excess)
        if self.allowed.ceilings and not self._checked:
            for sentence in beyond(run.origin, self.training.rounds, self.tells, self.allowed, self.folder / FILE):
                raise RefusedError(sentence)
            self._checked = True

    def _listed(self) -> str:
        return ", ".join(map(repr, self.allowed.send)) or "nothing"

    def _restore(self, run: Run, versions: Versions, order: Order) -> None:
        """Load the version of the personal state that counts."""
        if not order.accepted:
            return
        stored = versions.load(order.accepted)
        if stored is None:
            raise LostError(f"version {order.accepted} of its personal state is not on its disk; it starts afresh")
        for leaf in run.stored_leaves():
            run.store.put(leaf, [0], stored[f"{OWN}:{leaf}"].unsqueeze(0))
        run.store.mark([0])
        if run.bound.down.stages:
            resting(run, stored)
        for block in run.served():
            if isinstance(block.share, Mine):
                rows = {str(leaf): stored[f"{ROW}:{leaf}"].unsqueeze(0) for leaf in run.bound.travelling(block)}
                kept = run.server[block.name]
                run.server[block.name] = replace(kept, values={**kept.values, **rows})

    def _receive(self, run: Run, order: Order, received: Tensors) -> None:
        """Put the received leaves into the run."""
        known = caught_up(run, order.accepted, received)
        for block in run.served():
            kept = run.server[block.name]
            values = dict(kept.values)
            for name, old in kept.values.items():
                label = key(run.bound, block, name)
                if label in received:
                    known.add(label)
                    self._fits(label, received[label], old)
                    values[name] = received[label]
            extra = kept.extra
            if block.share.alone:
                row, rows = order.members.get(block.name, 0), len(next(iter(values.values())))
                if not 0 <= row < rows:
                    raise RefusedError(f"the order assigns it model {row} of {rows}")
                extra = {**extra, MEMBERSHIP: torch.tensor([row])}
            run.server[block.name] = replace(kept, values=values, extra=extra)
        if odd := sorted(received.keys() - known):
            raise RefusedError(f"the server sent {odd[0]!r}, which this method does not know")
        for block in run.served():
            if isinstance(block.share, Seen) and block.share.of is not None:
                run.server[block.name] = self._seen(run, block.share.of, run.server[block.name], block.leaves, received)

    def _seen(self, run: Run, of: str, kept: BlockState, leaves: Sequence[Leaf], received: Tensors) -> BlockState:
        """A view of other clients, with the client's own values for leaves that are never sent."""
        sent = {label.partition(":")[2] for label in received}
        mine = run.states([0])[of]
        own = {
            str(leaf): mine[leaf.path].expand(kept.values[str(leaf)].shape) for leaf in leaves if str(leaf) not in sent
        }
        return replace(kept, values={**kept.values, **own})

    def _fits(self, label: str, value: torch.Tensor, old: torch.Tensor) -> None:
        if value.shape != old.shape or value.dtype != old.dtype:
            raise RefusedError(f"the server sent {label!r} of shape {tuple(value.shape)}, not {tuple(old.shape)}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise RefusedError(f"the server sent {label!r} with a NaN or an infinite value")

    def _scored(self, run: Run, ledger: Ledger, order: Order, split: Held) -> Scored:
        """Score the client's predictor. Validation examples are scored once a round, however often the server asks."""
        if split == "validation" and (known := ledger.measured(order.round)):
            return known
        scores = score(run, split)
        examples = int(scores.sizes[0])
        values = {metric.name: metric.within(float(scores.values[metric.name][0])) for metric in self.data.metrics}
        metrics: dict[str, float | None] = {
            **self._reported(examples, {k: x for k, x in values.items() if x is not None})
        }
        return Scored(examples=examples if "sizes" in self.allowed.tell else None, metrics=metrics)

    def _reported(self, examples: int, numbers: Mapping[str, float]) -> dict[str, float]:
        """The numbers that may be reported, rounded, given how many examples they were measured on."""
        allowed = self.allowed.measures(self.data.metrics, examples)
        return {k: self.allowed.rounded(x) for k, x in numbers.items() if k in allowed and abs(x) <= MAX_NUMBER}

    def _train(
        self, run: Run, versions: Versions, ledger: Ledger, order: Order, scores: Mapping[Held, Scored]
    ) -> tuple[Reply, Tensors]:
        chosen = run.choose([0])
        summed = run.clients.summed(run, [0]) if run.bound.line.summed else None
        try:
            answer, kept = run.clients.visit(run, [0], chosen)
        except BeyondError as error:
            raise ToldError(
                "a number of its update is beyond what a secure sum carries: give a larger bound"
            ) from error
        alone = [block for block in run.served() if block.share.alone]
        rows = {block.name: int(block.share.row(chosen[block.name], torch.tensor([0]))) for block in alone}
        sent, before = labelled(answer.sent), received(run, 0, rows, chosen)
        if not all(bool(value.isfinite().all()) for value in sent.values()):
            raise ToldError("its local work gave a NaN or an infinite value")
        if not (norm := distance(run, 0, answer.sent, before, summed)) <= self.max_norm:
            length = f"its update has L2 norm {norm:.3g}" if summed is None else "its update is too long"
            raise ToldError(f"{length}, and [rules] max_norm allows {self.max_norm:g}")
        values = decoded(run.bound, answer.sent, before, summed)
        mine = [b for b in run.served() if isinstance(b.share, Mine)]
        run.commit([0], kept)
        stays: Tensors = {f"{OWN}:{leaf}": rows[0] for leaf, rows in kept.items()}
        stays |= {f"{ROW}:{leaf}": values[str(leaf)][0] for b in mine for leaf in run.bound.travelling(b)}
        versions.save(order.round + 1, stays | based(run))
        versions.prune(self.allowed.versions, ledger.named)
        numbers = dict(zip(TRAINING, (answer.sent[LOSS][""].item(), answer.sent[OBJECTIVE][""].item()), strict=True))
        reported = self._reported(int(self.data.splits["train"].sizes[0]), numbers)
        loss, objective = (reported.get(name) for name in TRAINING)
        return self._reply(order, scores=scores, rows=rows, loss=loss, objective=objective), sent
