"""All audits of a finished run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel

from plures.audit.canary import Canaries, canaries
from plures.audit.inversion import Inverted, Seen, inversion
from plures.audit.membership import Membership, membership
from plures.audit.shadow import shadowed
from plures.errors import PluresError
from plures.federation import Federation
from plures.run import Run

PASSED = 0.05
"""A reconstruction this near to an example of a client, and nearer than to any of others, is the example."""


def percent(share: float, digits: int = 0) -> str:
    """A share as the rest of plures writes it, ``50 %``."""
    return f"{100 * share:.{digits}f} %"


class Audit(BaseModel):
    """What was found out about the clients of a run.

    Attributes:
        title: the method.
        membership: by client and model, ``personal`` or ``shared``.
        shadows: number of shadow models; 0 for none.
        shadowed: by client, with shadow models.
        inversion: by client, what is computed from the first round's messages.
        unprotected: the same if uploads did not pass the method's stages; empty for a method without any.
        untried: why there is no inversion.
        canaries: of a run with differential privacy.
    """

    title: str
    membership: dict[str, dict[str, Membership]]
    shadows: int = 0
    shadowed: dict[str, Membership] = {}
    inversion: dict[str, list[Inverted]] = {}
    unprotected: dict[str, list[Inverted]] = {}
    untried: str = ""
    canaries: Canaries | None = None

    def bared(self, seen: Seen, *, protected: bool = True) -> tuple[int, int]:
        """Of how many clients an example was computed, and how many were tried.

        Args:
            seen: by whom.
            protected: with the method's stages on the wire; otherwise without.
        """
        attacked = self.inversion if protected else self.unprotected
        tried = [[one for one in own if one.seen == seen] for own in attacked.values()]
        found = [any(one.error < min(PASSED, one.control) for one in own) for own in tried if own]
        return sum(found), len(found)

    def summary(self) -> list[str]:
        """What it says, in sentences."""
        lines = []
        for kind in ("personal", "shared"):
            found = {client: own[kind] for client, own in self.membership.items() if not np.isnan(own[kind].auc)}
            if found:
                worst = max(found, key=lambda client: found[client].auc)
                mean = float(np.mean([one.auc for one in found.values()]))
                lines.append(
                    f"Membership, {kind} models: an attacker who knows the losses tells a training example from "
                    f"another one in {percent(mean)} of pairs on average (50 % is guessing), "
                    f"{percent(found[worst].auc)} for {worst}."
                )
        if self.shadowed:
            told = {client: one for client, one in self.shadowed.items() if not np.isnan(one.auc)}
            mean = float(np.mean([one.auc for one in told.values()] or [np.nan]))
            lines.append(
                f"Membership with {self.shadows} shadow models, personal models of runs with half of the examples: "
                f"{percent(mean)} of pairs."
            )
        views: tuple[tuple[Seen, str], ...] = (("server", "the server"), ("everybody", "everybody"))
        for seen, who in views:
            bare, tried = self.bared(seen)
            if tried:
                least = min(one.error for own in self.inversion.values() for one in own if one.seen == seen)
                without, of = self.bared(seen, protected=False)
                lines.append(
                    f"Inversion of the first round: {who} computes an example of {bare} of {tried} clients; "
                    f"the nearest reconstruction is {percent(least, 1)} of an example's length away."
                    + (f" Without the method's stages on the wire it is {without} of {of}." if of else "")
                )
        seers = {one.seen for own in self.inversion.values() for one in own}
        if self.inversion and not seers:
            lines.append("No part of the model is sent, so there is nothing to invert.")
        elif self.inversion and "server" not in seers:
            lines.append("The server reads the sum of all uploads and no single one.")
        if self.untried:
            lines.append(f"Inversion was not tried: {self.untried}.")
        if self.canaries is not None:
            one = self.canaries
            lines.append(
                f"Canaries: epsilon is at least {one.bound:.2f}, and {one.claimed:.2f} by the accountant (delta "
                f"{one.delta:g}); {percent(one.found)} of the planted clients were found, and {percent(one.false)} of "
                "the others taken for planted."
            )
        return lines


def audited(
    finished: Run,
    fresh: Run,
    title: str,
    *,
    bare: Run | None = None,
    clients: Sequence[str] = (),
    make: Callable[[Federation], Run] | None = None,
    shadows: int = 0,
    planted: int = 1000,
    progress: Callable[[str], None] = lambda what: None,
) -> Audit:
    """Audit a run.

    Args:
        finished: the run in the state that was chosen.
        fresh: the same run before its first round.
        title: the method.
        bare: the same run before its first round, without stages on the wire; ``None`` if it has none.
        clients: whom to look at; default: all that are honest.
        make: trains a run on other data, for shadow models.
        shadows: number of shadow models; 0 for none.
        planted: canaries and others, if the method has differential privacy.
        progress: called with what comes next.

    Raises:
        PluresError: if shadow models are wanted and cannot be trained.
    """
    everybody = finished.federation.clients
    hostile = set() if finished.threat is None else {everybody[i] for i in finished.threat.hostile(everybody)}
    if attacking := [name for name in clients if name in hostile]:
        raise PluresError(f"client {attacking[0]!r} is an attacker of this simulation: audit honest clients")
    names = tuple(clients) or tuple(name for name in everybody if name not in hostile)
    progress("membership")
    found = Audit(title=title, membership={name: membership(finished, name) for name in names})
    progress("inversion")
    cohort = {fresh.federation.clients[i] for i in fresh.cohort(0)}
    try:
        found.inversion = {name: inversion(fresh, name) for name in names if name in cohort}
        if bare is not None:
            progress("inversion without stages on the wire")
            drawn = {bare.federation.clients[i] for i in bare.cohort(0)}
            found.unprotected = {name: inversion(bare, name) for name in names if name in drawn}
    except PluresError as error:
        found.untried = str(error)
    if shadows:
        assert make is not None, "shadow models need a function that trains them"
        progress(f"{shadows + 1} runs with half of the examples")
        found.shadows, found.shadowed = shadows, shadowed(finished.given, make, shadows, clients=names)
    if fresh.spent() is not None:
        progress("canaries")
        found.canaries = canaries(finished.origin.method, finished.participation, max(finished.round, 1), planted)
    return found
