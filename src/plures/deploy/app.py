"""The Flower app: a server and a client made of what the members agreed on. ``plures deploy init`` points to them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from plures.deploy.conduct import Conductor
from plures.deploy.journal import Journal
from plures.deploy.plan import Plan, SiteFile
from plures.deploy.signing import Key, Notary, Signed, SignedTransport
from plures.errors import PluresError, suggestion
from plures.evaluate import Code
from plures.evaluate.results import PrivacyCard
from plures.files import inside
from plures.remote.allowed import FILE, beyond, spends
from plures.remote.flower import Answerer, Config, GridTransport, client_app, server_app
from plures.remote.message import LONGEST_REASON, Held, Order, Reply, Scored, digest, pack
from plures.remote.site import Site
from plures.remote.state import PUBLISHED, RefusedError
from plures.run import Run
from plures.run.origin import Origin
from plures.serving.personal import PersonalModel
from plures.tables.check import check
from plures.texts import visible_lines
from plures.track import trackers

log = logging.getLogger(__name__)

KEYS = "keys"


class Closed:
    """Stands in for a site that cannot take part. The reason may reveal data, so it goes only to the site's own log.

    Args:
        client: the client's name, as far as known.
        refuses: what the site does not agree to, if that is why.
    """

    def __init__(self, client: str, refuses: str = "") -> None:
        self.client, self.refuses = client, refuses

    def answer(self, message: bytes) -> bytes:
        reason = "its files or its data did not pass their check; the site's own log says what is wrong"
        status, reason = ("refused", self.refuses[:LONGEST_REASON]) if self.refuses else ("failed", reason)
        return pack(
            Reply.model_validate({"client": self.client, "order": digest(message), "status": status, "reason": reason})
        )


def opened(file: Path, key: Key | None = None) -> Site:
    """The site that a ``site.toml`` describes, with its data read and checked.

    Args:
        file: the site's file.
        key: the member's private key, with which it signs the keys of secure sums; ``None`` without them.
    """
    own = SiteFile.load(file)
    plan = Plan.load(file.parent / own.federation)
    if own.client not in plan.clients:
        near = suggestion(own.client, plan.clients, "they are")
        raise PluresError(f"{file}: client {own.client!r} is not one of the federation's; {near}")
    spec, folder, allowed = plan.spec, inside(file.parent / own.state, plan.name, plan.label), own.allow.allowed
    agreed = foreseen(plan, own) if allowed.ceilings else None
    for sentence in beyond(agreed, spec.rounds, plan.tells, allowed, folder / FILE) if agreed else ():
        raise RefusedError(sentence)
    table = own.table(file.parent)
    report = check(plan.table, table, own.client)
    if not report.ok:
        raise PluresError(report.text())
    empty = spec.judged(plan.table.empty(plan.name, plan.clients), own.code)
    data = plan.table.federation(plan.name, {own.client: table}, {own.client: own.metadata})
    data = spec.judged(data, own.code)

    def publish(run: Run, order: Order, scores: Mapping[Held, Scored]) -> None:
        privacy, rounds = run.origin.plan, spec.rounds
        card = None
        if privacy is not None:
            card = PrivacyCard.of(privacy.spent(rounds, spends(privacy, rounds, cache=folder / FILE)))
        model = PersonalModel.of(run, own.client, spec, sheet=report.sheet, code=own.code, privacy=card)
        model.save(folder / PUBLISHED)
        Journal(folder).event("published", round=order.round, version=model.card.version)

    return Site(
        own.client,
        data,
        empty,
        spec.network(empty, own.code),
        spec.built(own.code),
        spec.training(),
        folder=folder,
        agreed=plan.agreed,
        seed=spec.seed,
        allowed=allowed,
        tells=plan.tells,
        publish=publish,
        max_norm=plan.rules.max_norm,
        participation=spec.who(),
        notary=None if key is None else Notary(plan.keys, key),
    )


def foreseen(plan: Plan, own: SiteFile) -> Origin | None:
    """The agreed run before a row is read; ``None`` if the method needs facts: then the first order is checked."""
    try:
        return plan.origin(own.code)
    except PluresError:
        return None


class Plain(logging.Formatter):
    """Lines without terminal control characters, whatever texts they contain."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def speak() -> None:
    """Show plures' own log lines in the process's log, and no other library's."""
    own = logging.getLogger("plures")
    if not own.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Plain("%(asctime)s %(levelname)s %(message)s"))
        own.addHandler(handler)
        own.setLevel(logging.INFO)


def site(config: Config) -> Answerer:
    """The site of a node. The node's configuration names its file and its key: ``site="/a/site.toml" key="/a/key"``."""
    speak()
    file = Path(str(config.get("site", "site.toml")))
    try:
        own = SiteFile.load(file)
        plan = Plan.load(file.parent / own.federation)
        coordinator = plan.orders
        key = Key.of(key_file(file, own, config.get("key")), own.client, plan.keys.get(own.client))
    except PluresError as error:
        log.error("%s", error)
        return Closed(file.parent.name)
    return Signed(answerer(file, own.client, key), key, coordinator, own.client)


def key_file(file: Path, own: SiteFile, given: object = None) -> Path:
    """The file of a site's private key: the one that was given, else the one that its own file names."""
    if not (given or own.key):
        raise PluresError(f'{file}: key is missing, the site\'s private key: write key = "keys/nodes/..." there')
    return Path(str(given)) if given else file.parent / str(own.key)


def answerer(file: Path, client: str, key: Key | None = None) -> Answerer:
    """The site itself, or :class:`Closed` if it cannot take part."""
    try:
        return opened(file, key)
    except RefusedError as error:
        log.error("%s: %s", file, error)
        return Closed(client, str(error))
    except PluresError as error:
        log.error("%s", error)
    except Exception:  # whatever a site's own loader raises: its text may hold data and stays here
        log.exception("%s: the site's rows cannot be read", file)
    return Closed(client)


def conducted(transport: GridTransport, config: Config) -> None:
    """Conduct the run that the configuration describes.

    Its keys: ``plan``, the federation's file; ``out``, the run's folder; ``key``, the coordinator's private key
    (default: ``keys/coordinator`` beside the plan); ``track``, names of trackers; and ``code``, user-defined functions
    that the plan may name as its method, each with its hash. Entries of ``track`` and ``code`` are separated by spaces.
    """
    speak()
    file = Path(str(config.get("plan", "federation.toml")))
    plan, out = Plan.load(file), Path(str(config.get("out", "results")))
    code = Code.of(str(config.get("code", "")), by="coordinator").reading(file)
    plan.rehearse(code)  # refused before any site is asked
    private = Path(str(config.get("key") or file.parent / KEYS / "coordinator"))
    signed = SignedTransport(transport, Key.of(private, "the coordinator", plan.orders), plan.members)
    callbacks = trackers(str(config.get("track", "")).split(), out)
    job = Conductor(plan, signed, out, callbacks=callbacks, code=code, notary=Notary(plan.members))
    transport.arrived = job.watched.arrived
    job.run()


client, server = client_app(site), server_app(conducted)
