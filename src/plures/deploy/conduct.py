"""The server of a federation of sites: conducts a run to its end despite failures of sites, network and itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from plures.deploy.account import Account
from plures.deploy.journal import BROKEN, Journal
from plures.deploy.plan import Plan
from plures.deploy.watch import Watched
from plures.entropy import Secret, kept
from plures.errors import PluresError
from plures.evaluate.callback import About, Callback, Callbacks
from plures.evaluate.code import NOTHING, Code
from plures.evaluate.fit import Fit, mean_of_measured
from plures.evaluate.results import ClientScores, Point, PrivacyCard, SeedResult
from plures.evaluate.scores import Scores, primary
from plures.files import DamagedError, describe, discard, duplicate, read, write, write_json
from plures.metrics import Metric
from plures.privacy import Plan as Privacy
from plures.remote.bounds import TooFewError
from plures.remote.clients import Remote, over_sites
from plures.remote.masks import Notary
from plures.remote.message import ClientFacts, Held, Request, Scored
from plures.remote.sites import Sites, Transport
from plures.remote.state import alone
from plures.run.checkpoint import Snapshot, restore, snapshot
from plures.run.coordinator import BrokenError, Coordinator, Moved, RoundRecord
from plures.run.interrupt import ending, rest
from plures.run.participation import may_be_empty
from plures.version import __version__

log = logging.getLogger(__name__)

CHECKPOINT, COPY = "checkpoint.safetensors", "checkpoint.copy.safetensors"
"""The state after the last round, and a copy. If both are lost, so is the run, since sites never go back a round."""
NEW = "the run cannot continue; start a new one, under another name in the federation's file"
BEFORE = "checkpoint.before.safetensors"
"""The state before the last round, in case that round broke the model."""
SECRET = "secret"
"""Key of the server's noise and cohorts. It is deleted when the run ends: nobody can repeat the noise any more."""
STATE, RESULT = "state.safetensors", "result.json"
POLL_SECONDS = 0.5
"""Seconds between checks for sites that have not joined."""

FAR = 10.0
"""Cap on values without an upper limit, such as errors, as a multiple of the median over the clients."""

Wait = Callable[[float], None]
Over = Coordinator[Remote]


@dataclass
class Progress:
    """A run's record so far, apart from the state of its models.

    Attributes:
        pending: the last round's point, whose validation score comes with the next round.
        last: the last round's entry in the log.
        left_out: number of rounds in which a client was asked but did not count; the log has the reasons.
        failed: number of rounds that did not count.
        excluded: clients that broke the model and are no longer asked, and why.
        moved: L2 norms of the last round's updates, by client.
        length: L2 norm of what was sent in that round.
        bytes: bytes of tensors down and up, and of messages both ways.
        seconds: wall time of all rounds.
        visits: number of client visits.
    """

    pending: dict[str, Any] | None = None
    last: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    excluded: dict[str, str] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    length: float = 0.0
    bytes: dict[str, int] = field(default_factory=lambda: {"down": 0, "up": 0, "wired": 0})
    seconds: float = 0.0
    visits: int = 0

    def leave_out(self, *clients: str) -> None:
        """Count a round in which some clients were asked but did not count."""
        for client in clients:
            self.left_out[client] = self.left_out.get(client, 0) + 1


class Conductor:
    """Conducts one method over the sites of a federation.

    After each round the state is written before any site is asked again, so a round is applied once or not at all.
    The validation scores of a round come with the uploads of the next one.

    A round that breaks the model is undone. There are two cases:

    - The combined uploads are not finite. Then the round never counts.
    - In the next round, more than half of the sites that answer and use its result fail, send values that are not
      finite or exceed ``max_norm``, and one update of the round stood out in length. Then the state before the round is
      restored.

    Either way, the client with the longest update of that round is named in the log and in the result and is not asked
    again, and the round is repeated. Repeated orders differ only in their nonce, so a site gives the same answer as
    before.

    Args:
        plan: the plan that the members agreed on.
        transport: carries messages.
        out: folder of the run: checkpoint, log, metrics, and at the end the result and the server's state. A run that
            was stopped is resumed from it.
        wait: called with the number of seconds to wait.
        callbacks: notified about the run; they get a round's validation scores one round later.
        code: user-defined functions that the plan may name as its method.
        notary: knows the members' keys, which sign the keys of secure sums; needed for these alone.
    """

    def __init__(
        self,
        plan: Plan,
        transport: Transport,
        out: Path,
        wait: Wait = rest,
        callbacks: Sequence[Callback] = (),
        code: Code = NOTHING,
        notary: Notary | None = None,
    ) -> None:
        self.plan, self.out, self.wait, self.callbacks, self.code = plan, out, wait, callbacks, code
        self.notary = notary
        self.journal = Journal(out)
        self.checkpoint, self.copy, self.before = out / CHECKPOINT, out / COPY, out / BEFORE
        patience = min(plan.rules.deadline, plan.rules.join_deadline)
        self.watched = Watched(transport, self.journal, lambda: self.sites.where)
        task = plan.spec.judged(plan.table.empty(plan.name, plan.clients), code).task
        self.sites = Sites(self.watched, plan.clients, patience, tells=plan.tells, task=task)
        self.progress = Progress()
        self.account: Account | None = None

    def run(self) -> SeedResult:
        """Run all remaining rounds; then choose every client's model, score it on test data, and publish it.

        Raises:
            PluresError: if the folder is in use or holds a finished run, clients do not join, or rounds fail too often.
        """
        busy = PluresError(f"another run works in {self.out}: stop it, or choose another folder")
        with alone(self.out, busy), ending():
            if (self.out / RESULT).exists():
                discard(self.out / SECRET)  # a run that was killed at its very end still has it
                raise PluresError(f"{self.out} holds a finished run: choose another folder, or delete it")
            try:
                return self.finish()
            except BaseException as error:
                why = str(error) if isinstance(error, Exception) else "ended from outside"
                with suppress(PluresError):  # a full disk may be why it stops
                    self.journal.event("stopped", reason=why)
                raise

    def finish(self) -> SeedResult:
        """Continue the run to its end."""
        self.mend()
        self.join()
        remote = self.begin()
        self.measurable(remote)
        fitted = self.resumed(remote)
        with fitted.callbacks.stopping():
            fitted.callbacks.on_start(About.of(remote, self.plan.label, settings=self.plan.spec.model_dump()))
            for _ in fitted.rounds():
                self.round(fitted, remote)
            result = self.conclude(fitted, remote)
        fitted.callbacks.on_end(result)
        return result

    def mend(self) -> None:
        """Replace a damaged or missing checkpoint by its copy.

        Both are written before a site is asked again, so the copy is never behind what the sites did.
        """
        if not self.checkpoint.exists() and not self.copy.exists():
            return
        try:
            read(self.checkpoint)
        except PluresError as error:
            if self.checkpoint.exists() and not isinstance(error, DamagedError):
                raise
            read(self.copy, f"{self.checkpoint} is damaged too: {NEW}")
            duplicate(self.copy, self.checkpoint)
            self.journal.event("mended", reason=str(error))
            log.warning("%s; its copy is used", error)

    # --- the beginning ------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Wait until every client has reported its facts.

        When resuming, all have done so; then wait until they are online again, but no longer than a round would.
        """
        end = time.monotonic() + self.plan.rules.join_deadline
        if self.checkpoint.exists():
            facts = describe(self.checkpoint)["facts"]
            self.sites.facts = {client: ClientFacts.model_validate(one) for client, one in facts.items()}
            end = time.monotonic() + self.plan.rules.deadline
        self.watched.what = {"request": "join"}
        self.watched.waiting(self.sites.absent, seconds=end - time.monotonic())
        self.sites.meet()
        said: object = None
        while (self.sites.missing or (self.checkpoint.exists() and self.sites.absent)) and time.monotonic() < end:
            absent, reasons = self.sites.absent, sorted(set(self.sites.refused.values()))
            if said != (absent, reasons):
                self.watched.waiting(absent, seconds=end - time.monotonic(), refused=reasons)
                said = absent, reasons
            self.wait(POLL_SECONDS)
            self.sites.meet()
        if self.sites.missing:
            refused = "; ".join(sorted(set(self.sites.refused.values())))
            raise PluresError(
                f"clients {', '.join(self.sites.missing)} did not join within {self.plan.rules.join_deadline:g} "
                f"seconds{f' ({refused})' if refused else ''}: start their sites, or leave them out of the federation"
            )
        self.journal.event("joined", clients=sorted(self.sites.where), version=__version__)

    def measurable(self, remote: Over) -> None:
        """Warn before the first round if no site reports the metric by which rounds are chosen."""
        metric, measured = primary(remote.federation).name, self.sites.measures.values()
        if measured and not any(metric in names for names in measured):
            self.journal.event("unmeasured", metric=metric)
            log.warning("no site reports %r for its validation examples: the last round will be chosen", metric)

    def begin(self) -> Over:
        """The run before its first round."""
        spec = self.plan.spec
        empty = spec.judged(self.plan.table.empty(self.plan.name, self.plan.clients), self.code)
        remote = over_sites(
            empty,
            spec.network(empty, self.code),
            spec.built(self.code),
            self.sites,
            spec.training(),
            participation=spec.who(),
            seed=spec.seed,
            agreed=self.plan.agreed,
            rules=self.plan.rules.rules,
            secret=self.secret(),
            notary=self.notary,
            folder=self.out,
        )
        for round in range(remote.training.rounds if not may_be_empty(remote.participation) else 0):
            if (asked := len(remote.cohort(round))) < self.plan.rules.min_clients:
                raise PluresError(
                    f"[rules] min_clients = {self.plan.rules.min_clients}, and participation asks {asked} clients in "
                    f"round {round + 1}: lower it, or let more take part"
                )
        if remote.origin.plan is not None:
            self.account = Account(remote.origin.plan, remote.training.rounds)
            whole = self.account.whole
            self.journal.event("private", epsilon=whole.epsilon, delta=whole.delta, plan=whole.plan)
            log.info("all rounds: %s", whole)
        return remote

    def secret(self) -> Secret:
        """The key of the server's random numbers, made before the first round."""
        why = f"without it, noise and cohorts of earlier rounds are unknown: {NEW}"
        return kept(self.out / SECRET, why, new=not self.checkpoint.exists())

    def resumed(self, remote: Over) -> Fit[Over]:
        """The fit so far: new, or restored from the checkpoint."""
        fitted = Fit(remote, [], callbacks=Callbacks(self.callbacks))
        if self.checkpoint.exists():
            self.take_up(fitted, remote, self.checkpoint)
            if remote.round and all(event["round"] != remote.round for event in self.journal.rounds()):
                self.journal.event("round", **self.progress.last)
            self.journal.event("resumed", round=remote.round)
            log.info("resuming after round %d", remote.round)
        return fitted

    def take_up(self, fitted: Fit[Over], remote: Over, file: Path) -> None:
        """Restore everything from a checkpoint."""
        about = fitted.resume(self.plan.label, file)
        self.progress = Progress(**about["progress"])
        remote.clients.best = None if fitted.best is None else fitted.best["last"]
        self.accuse(remote)

    def accuse(self, remote: Over) -> None:
        """Tell the run which clients are excluded, and how far each moved, to find one that broke the last round."""
        remote.clients.excluded = self.progress.excluded
        remote.moved = Moved(self.progress.moved, self.progress.length)

    # --- a round ------------------------------------------------------------------------------------------------

    def round(self, fitted: Fit[Over], remote: Over) -> None:
        """Do one round that counts, and save its result before anything else happens."""
        before = snapshot(remote)
        remote.clients.evaluate = ("validation",) if self.progress.pending else ()
        try:
            record = self.attempt(remote)
        except BrokenError as error:
            self.undo(fitted, remote, error)
            return
        self.progress.moved, self.progress.length = dict(remote.moved.by), remote.moved.sent
        self.scored(fitted, remote, before)
        self.count(remote)
        self.progress.seconds += record.seconds
        self.progress.visits += len(record.cohort)
        self.progress.pending = {
            "round": record.round,
            "train_loss": record.loss,
            "objective": record.objective,
            "visits": self.progress.visits,
        }
        self.progress.leave_out(*record.left_out)
        self.progress.last = {
            "round": record.round,
            "clients": list(record.cohort),
            "left_out": dict(record.left_out),
            "loss": record.loss,
            "objective": record.objective,
            "seconds": round(record.seconds, 3),
            "moved": {client: float(f"{norm:.4g}") for client, norm in remote.moved.by.items()},
        }
        if self.checkpoint.exists():
            duplicate(self.checkpoint, self.before)
        self.keep(fitted, remote)
        self.tell(fitted, remote, record)
        fitted.callbacks.on_round(record)

    def attempt(self, remote: Over) -> RoundRecord:
        """Try the round until enough clients do their work."""
        reason = ""
        self.watched.what = {"round": remote.round + 1}
        for number in range(self.plan.rules.patience):
            try:
                return remote.step()
            except TooFewError as error:
                reason = str(error)
                self.progress.failed += 1
                self.journal.event("failed round", round=remote.round + 1, reason=str(error))
                log.warning("%s", error)
                if number + 1 < self.plan.rules.patience:
                    self.wait(min(30.0, self.plan.rules.deadline / 4))
        raise PluresError(
            f"round {remote.round + 1} failed {self.plan.rules.patience} times in a row; the last time, {reason}; "
            f"{self.out} keeps the run's state: the same command resumes it"
        )

    def undo(self, fitted: Fit[Over], remote: Over, error: BrokenError) -> None:
        """Exclude the client that broke the model, and go back to the state before that round."""
        plan = remote.origin.plan
        if error.round == remote.round and isinstance(plan, Privacy) and plan.stage.trust != "nobody":
            raise PluresError(
                f"{error}; sites have its result, which differential privacy counts and cannot take back: {NEW}"
            ) from error
        log.warning("%s, which is left out from now on", error)
        self.count(remote)
        self.progress.failed += 1
        now = self.progress
        if error.round == 1:
            fitted.curve, fitted.best, remote.clients.best, self.progress = [], None, None, Progress()
            remote.begin()
        elif error.round == remote.round:
            if not self.before.exists() or read(self.before, NEW)[1]["round"] != error.round - 1:
                raise PluresError(f"{error}; {self.out} does not keep the state before it: start a new run") from error
            self.take_up(fitted, remote, self.before)
        for name in ("left_out", "failed", "bytes", "seconds", "visits"):  # these include rounds that do not count
            setattr(self.progress, name, getattr(now, name))
        reason = f"left out: its update of round {error.round} broke the model"
        self.progress.leave_out(error.client)
        self.progress.excluded = {**now.excluded, error.client: reason}
        self.accuse(remote)
        self.journal.event(BROKEN, round=error.round, client=error.client, reason=str(error))
        self.keep(fitted, remote)

    def scored(self, fitted: Fit[Over], remote: Over, state: Snapshot) -> None:
        """Record the clients' scores at the last state, and whether it is the best so far."""
        if self.progress.pending is None:
            return
        scores = gathered(remote, "validation")
        metric = primary(remote.federation)
        down, up = self.progress.bytes["down"], self.progress.bytes["up"]
        point = Point(
            **self.progress.pending,
            validation=mean_of_measured(limited(scores, metric), metric.name),
            clients=ClientScores.of(scores).metrics[metric.name],
            bytes=down + up,
            seconds=self.progress.seconds,
        )
        fitted.reached(point, lambda: state)
        remote.clients.best = None if fitted.best is None else fitted.best["last"]
        fitted.callbacks.on_point(point)
        self.progress.pending = None

    def count(self, remote: Over) -> None:
        """Add the bytes sent and received since the last call."""
        sites = remote.clients
        for name, number in (("down", sites.sent), ("up", sites.received), ("wired", sites.wired)):
            self.progress.bytes[name] += number
        sites.sent = sites.received = sites.wired = 0

    def keep(self, fitted: Fit[Over], remote: Over) -> None:
        """Write the checkpoint."""
        facts = {client: one.model_dump() for client, one in self.sites.facts.items()}
        progress = vars(self.progress)
        fitted.save(self.plan.label, self.checkpoint, progress=progress, facts=facts, round=remote.round)
        duplicate(self.checkpoint, self.copy)

    def tell(self, fitted: Fit[Over], remote: Over, record: RoundRecord) -> None:
        """Log the round and write the metrics."""
        self.journal.event("round", **self.progress.last)
        log.info("round %d of %d: loss %.4f", record.round, remote.training.rounds, record.loss)
        metric = primary(remote.federation).name
        own = {
            remote.setting.clients[client]: value
            for client, scored in remote.clients.scores.get("validation", {}).items()
            if (value := scored.metrics.get(metric)) is not None
        }
        spent = {} if self.account is None else self.account.after(remote.round, self.progress.seconds)
        self.journal.metrics(
            {
                "round": remote.round,
                "rounds": remote.training.rounds,
                "round_seconds": record.seconds,
                "train_loss": record.loss,
                "train_objective": record.objective,
                "clients": len(record.cohort),
                "validation": fitted.curve[-1].validation if fitted.curve else float("nan"),
                "client_validation": own,
                "left_out_total": self.progress.left_out,
                "failed_rounds_total": self.progress.failed,
                "bytes_down_total": self.progress.bytes["down"],
                "bytes_up_total": self.progress.bytes["up"],
                "bytes_wired_total": self.progress.bytes["wired"],
                **spent,
            }
        )

    # --- the end ------------------------------------------------------------------------------------------------

    def conclude(self, fitted: Fit[Over], remote: Over) -> SeedResult:
        """Score the last state, go back to the one that validation chose, and let every client publish its model.

        Test data is read once, with the chosen model; a site would refuse to score it a second time.
        """
        if self.progress.pending is not None:
            before = snapshot(remote)
            self.everybody(remote, "score", "validation")
            self.scored(fitted, remote, before)
            self.keep(fitted, remote)
        if fitted.best is not None:
            restore(remote, fitted.best)
        write(self.out / STATE, snapshot(remote), {"run": remote.clients.run_id, "round": remote.round})
        left = self.everybody(remote, "publish", "validation", "test")
        self.count(remote)
        result = SeedResult(
            seed=remote.seed,
            curve=fitted.curve,
            chosen_round=remote.round,
            validation=ClientScores.of(gathered(remote, "validation")),
            test=ClientScores.of(gathered(remote, "test")),
            never=[remote.setting.clients[i] for i in remote.never.tolist()],
            privacy=None if self.account is None else PrivacyCard.of(self.account.whole),
        )
        outcome = {
            "plan": self.plan.name,
            "method": self.plan.label,
            "result": result.model_dump(mode="json"),
            "unpublished": left,
        }
        discard(self.copy)
        discard(self.before)
        write_json(self.out / RESULT, outcome | {"progress": vars(self.progress)})
        discard(self.checkpoint)
        discard(self.out / SECRET)
        remote.clients.sums.forget()
        self.journal.event("finished", chosen_round=result.chosen_round, unpublished=left)
        return result

    def everybody(self, remote: Over, request: Request, *splits: Held) -> dict[str, str]:
        """Ask all clients, and repeat for those that do not answer. Returns those that never did, and why."""
        found: dict[Held, dict[int, Any]] = {split: {} for split in splits}
        missing: dict[str, str] = dict.fromkeys(self.plan.clients, "")
        final: set[str] = set()
        self.watched.what = {"request": request}
        for number in range(self.plan.rules.patience):
            left = remote.clients.ask(
                remote, request, *splits, clients=[client for client in missing if client not in final]
            )
            missing = {client: reason for client, reason in (missing | left).items() if client in final | left.keys()}
            final |= remote.clients.final
            for split in splits:
                found[split] |= remote.clients.scores[split]
            if not missing.keys() - final:
                break
            if number + 1 < self.plan.rules.patience:
                self.wait(min(30.0, self.plan.rules.deadline / 4))
        remote.clients.scores = found
        return missing


def limited(scores: Scores, metric: Metric) -> Scores:
    """Scores for choosing a round, capped so that no single client's value decides (:data:`FAR`)."""
    least, most = metric.range
    best = most if metric.higher else least
    far = np.abs(scores.values[metric.name] - best)
    known = far[~np.isnan(far)]
    if most - least <= 1 or len(known) < 3:
        return scores
    return replace(
        scores,
        values={**scores.values, metric.name: best - metric.sign * np.minimum(far, FAR * np.median(known))},
    )


def gathered(remote: Over, split: Held) -> Scores:
    """The clients' scores in the last exchange, NaN for those that did not answer."""
    found = remote.clients.scores.get(split, {})
    names = [metric.name for metric in remote.federation.metrics]
    clients = range(len(remote.setting))
    scored = [found[i] if i in found else Scored() for i in clients]
    values = {name: np.array([one.metrics.get(name) for one in scored], dtype=np.float64) for name in names}
    sizes = np.array([one.examples or 0 for one in scored], dtype=np.int64)
    return Scores(remote.setting.clients, sizes, values)
