"""What a site would send and report if it joined, compared with what it allows, before it joins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plures.deploy.plan import Plan, SiteFile
from plures.errors import PluresError, suggestion
from plures.method import Leaf
from plures.remote.allowed import TRAINING, beyond, spends
from plures.remote.clients import ONE_CLIENT
from plures.remote.site import sent, work_beyond
from plures.tables.check import Report, check
from plures.tables.table import Table


@dataclass(frozen=True)
class Promise:
    """What the federation's plan asks of a site.

    Attributes:
        numbers: slot -> how many of its values the site would send in a round.
        facts: facts that it would report.
        measured: measurements of its rows that it would report, once a round.
        digits: significant digits of the measurements.
        spent: what all rounds of the plan spend of differential privacy, in words.
        refused: one sentence for each thing that the site does not allow.
    """

    numbers: dict[str, int]
    facts: tuple[str, ...]
    measured: tuple[str, ...]
    digits: int
    spent: str
    refused: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.refused

    def text(self) -> str:
        """The promise as text for a terminal."""
        sent = ", ".join(f"{count} numbers of {slot!r}" for slot, count in self.numbers.items()) or "nothing"
        lines = [
            f"it would send in a round: {sent}",
            f"it would tell: {', '.join(self.facts)}",
            f"it would measure, once in a round, to {self.digits} digits: {', '.join(self.measured) or 'nothing'}",
            f"the whole plan: {self.spent}",
        ]
        return "\n".join([*lines, *(f"error  {sentence}" for sentence in self.refused)])


def held(site: Path, federation: Path | None = None) -> Iterator[Report | Promise]:
    """Compare a site's rows, then its rules, with what was agreed; the rules only if the rows fit.

    Args:
        site: the site's file.
        federation: the agreed file; default: the one that the site's file names.

    Raises:
        PluresError: one of the files cannot be read, or the client is not a member.
    """
    own = SiteFile.load(site)
    own = own if federation is None else own.model_copy(update={"federation": str(federation.resolve())})
    plan = Plan.load(site.parent / own.federation)
    if own.client not in plan.clients:
        near = suggestion(own.client, plan.clients, "they are")
        raise PluresError(f"{site}: client {own.client!r} is not one of the federation's; {near}")
    table = own.table(site.parent)
    report = check(plan.table, table, own.client)
    yield report
    if report.ok:
        yield promise(plan, own, table)


def promise(plan: Plan, own: SiteFile, table: Table) -> Promise:
    """What a plan asks of a site whose rows have passed their check.

    Args:
        plan: what the members agreed on.
        own: the site's file.
        table: its rows.
    """
    spec = plan.spec
    data = plan.table.federation(plan.name, {own.client: table}, {own.client: own.metadata})
    data = spec.judged(data, own.code)
    empty = spec.judged(plan.table.empty(plan.name, plan.clients), own.code)
    run = spec.run(data, ONE_CLIENT, own.code, model=spec.network(empty, own.code))
    leaves = sent(run)
    numbers: dict[str, int] = {}
    for slot, path in leaves:
        numbers[slot] = numbers.get(slot, 0) + run.bound.initial[slot][path].numel()
    allowed, spent, ceilings = own.allow.allowed.towards(run.method), "no differential privacy", list[str]()
    if allowed.ceilings or run.origin.plan is not None:
        agreed = plan.origin(own.code)
        ceilings = beyond(agreed, spec.rounds, plan.tells, allowed)
        if agreed.plan is not None:
            spent = str(agreed.plan.spent(spec.rounds, spends(agreed.plan, spec.rounds)))
    refused = *unwilling(leaves, own), *silent(plan.tells, own), *work_beyond(run, allowed), *ceilings
    validation, train = (int(data.splits[s].sizes[0]) for s in ("validation", "train"))
    measured = [name for name in allowed.measures(data.metrics, validation) if name not in TRAINING]
    measured += [name for name in allowed.measures(data.metrics, train) if name in TRAINING]
    return Promise(numbers, plan.tells, tuple(measured), allowed.digits, spent, refused)


def unwilling(leaves: Iterable[Leaf], own: SiteFile) -> list[str]:
    """What would be sent but is not allowed."""
    allowed = own.allow.allowed
    slots = {leaf.slot: None for leaf in leaves if not allowed.sends(leaf)}
    return [
        f"the method sends {slot!r}, and [allow] send does not name it; add it, or do without this federation"
        for slot in slots
    ]


def silent(tells: Iterable[str], own: SiteFile) -> list[str]:
    """What would be reported but is not allowed or not known."""
    found = []
    for name in tells:
        if name not in own.allow.tell:
            found.append(f"members tell {name!r}, and [allow] tell does not name it; add it, or do without")
        elif name not in ("examples", "labels") and name not in own.metadata:
            found.append(f"members tell {name!r}, which metadata does not have; add it")
    return found
