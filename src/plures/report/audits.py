"""What attacks on finished runs found out about their clients: a section of the report, and a page of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template

import numpy as np

from plures.audit import Audit, Inverted, Membership
from plures.audit.inversion import Seen
from plures.report.columns import MISSING, known, share
from plures.report.markup import cell, count, heading, table
from plures.report.tables import MOST_LINES
from plures.version import __version__

TITLE = "What attacks find out"
LEAD = (
    "Attacks on finished runs. Membership: the chance that an attacker who knows the losses tells a training example "
    "from another one (50 % is guessing), for the model that a client predicts with and for what all have in common; "
    "with shadow models (LiRA), runs with half of the examples are attacked. Inversion: of how many clients the first "
    "round's messages bare an example, to the server or to everybody, and of how many without the method's stages on "
    "the wire (unprotected). Epsilon: the lower bound that canaries prove, beside the accountant's. An attack that "
    "fails is no proof: there are stronger ones."
)
NEAREST = (
    "Nearest: distance of the best reconstruction to an example of the client, as a share of its length; others': to "
    "one of other clients, which the attacker cannot have seen. A nearest that is no smaller than others' tells "
    "nothing. True positives are those at 1 % false ones; of pictures, PSNR is that of the best reconstruction, and "
    "from about 20 dB a person recognises what is on them."
)
SEERS: tuple[tuple[Seen, str], ...] = (("server", "the server"), ("everybody", "everybody"))


def audits_body(found: Mapping[str, Audit], titles: Mapping[str, str]) -> str:
    """The tables of some audits; HTML.

    Args:
        found: audits by name of the method.
        titles: what the methods are called.
    """
    named = {titles[name]: audit for name, audit in found.items()}
    parts = [_methods(named)]
    if len(named) == 1:
        parts += [f"<p>{escape(line)}</p>" for audit in named.values() for line in audit.summary()]
    parts.append(f"<h3>Every client</h3><p>{escape(NEAREST)}</p>")
    opened = " open" if len(named) == 1 else ""
    for title, audit in named.items():
        summary = f"<summary><b>{escape(title)}</b> <span>{count(len(audit.membership), 'client')}</span></summary>"
        parts.append(f"<details{opened}>{summary}{_clients(audit)}</details>")
    return "".join(parts)


def audit_page(audit: Audit, about: str) -> str:
    """The audit of one run as the text of one HTML file, without scripts.

    Args:
        audit: what was found.
        about: where it comes from, in one line.

    Examples:
        >>> from plures.audit import Audit, membership
        >>> heart = plures.load("heart")
        >>> run = plures.Run(heart, plures.default_model(heart), plures.METHODS["ditto"](), plures.Training(rounds=1))
        >>> found = Audit(title="Ditto", membership={"va": membership(run, "va")})
        >>> "Ditto" in plures.report.audit_page(found, "a run that has not begun")
        True
    """
    return Template(_file("audit.html")).substitute(
        name=escape(audit.title),
        about=escape(about),
        lead=escape(LEAD),
        body=audits_body({"": audit}, {"": audit.title}),
        css=_file("page.css"),
        version=__version__,
    )


def _file(name: str) -> str:
    return files("plures.report").joinpath("page", name).read_text(encoding="utf-8")


def _methods(named: Mapping[str, Audit]) -> str:
    """One line for each method."""
    shadowed, bare, claimed, inverted = (
        any(ask(audit) for audit in named.values()) for ask in (_shadowed, _unprotected, _canaried, _inverted)
    )
    head = heading("method", "", kind="name")
    head += heading("membership", "personal model", first="descending") + heading("membership", "worst client")
    head += heading("membership", "shared model", first="descending")
    head += heading("membership", "shadow models", first="descending") if shadowed else ""
    if inverted:
        head += "".join(heading("bared", f"to {who}", first="descending") for _, who in SEERS)
    if bare:
        head += "".join(heading(f"to {who}", "unprotected", first="descending") for _, who in SEERS)
    if claimed:
        head += heading("epsilon", "at least") + heading("epsilon", "by the accountant")
    lines = []
    for title, audit in named.items():
        own, shared = ([one[kind].auc for one in audit.membership.values()] for kind in ("personal", "shared"))
        cells = [_rate(_mean(own)), _rate(_most(own)), _rate(_mean(shared))]
        if shadowed:
            cells.append(_rate(_mean([one.auc for one in audit.shadowed.values()])))
        if inverted:
            cells += [_of(*audit.bared(seen)) for seen, _ in SEERS]
        if bare:
            cells += [_of(*audit.bared(seen, protected=False)) for seen, _ in SEERS]
        if claimed:
            one = audit.canaries
            cells += [_epsilon(None if one is None else one.bound), _epsilon(None if one is None else one.claimed)]
        lines.append(f'<tr><th scope="row">{escape(title)}</th>{"".join(cells)}</tr>')
    return table("sortable", "What attacks find out, by method", head, lines)


def _clients(audit: Audit) -> str:
    """One line for each client."""
    pictures = any(one.psnr is not None for own in audit.inversion.values() for one in own)
    views: list[tuple[Seen, str, Mapping[str, list[Inverted]]]] = []
    for seen, who in SEERS:
        if any(one.seen == seen for own in audit.inversion.values() for one in own):
            views.append((seen, who, audit.inversion))
        if any(one.seen == seen for own in audit.unprotected.values() for one in own):
            views.append((seen, f"{who}, unprotected", audit.unprotected))
    head = heading("client", "", kind="name") + heading("personal model", "membership", first="descending")
    head += heading("personal model", "true positives", first="descending")
    head += heading("shared model", "membership", first="descending")
    head += heading("shadow models", "membership", first="descending") if audit.shadows else ""
    for _, who, _ in views:
        head += heading("nearest", who) + heading("others\N{RIGHT SINGLE QUOTATION MARK}", who)
        head += heading("PSNR", who, first="descending") if pictures else ""
    lines = []
    for name, own in list(audit.membership.items())[:MOST_LINES]:
        cells = [_rate(own["personal"].auc), _rate(own["personal"].found), _rate(own["shared"].auc)]
        if audit.shadows:
            kept: Membership | None = audit.shadowed.get(name)
            cells.append(_rate(None if kept is None else kept.auc))
        for seen, _, attacked in views:
            best = min(
                (one for one in attacked.get(name, ()) if one.seen == seen), key=lambda one: one.error, default=None
            )
            cells += [_number(None if best is None else best.error), _number(None if best is None else best.control)]
            if pictures:
                peaks = [one.psnr for one in attacked.get(name, ()) if one.seen == seen and one.psnr is not None]
                cells.append(_number(max(peaks, default=None), 1))
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    people = len(audit.membership)
    cut = f"<p>The first {MOST_LINES} of {people:,} are listed; audit.json has all.</p>" if people > MOST_LINES else ""
    return cut + table("sortable clients", f"What attacks find out about every client of {audit.title}", head, lines)


def _shadowed(audit: Audit) -> bool:
    return bool(audit.shadowed)


def _unprotected(audit: Audit) -> bool:
    return bool(audit.unprotected)


def _inverted(audit: Audit) -> bool:
    return bool(audit.inversion)


def _canaried(audit: Audit) -> bool:
    return audit.canaries is not None


def _defined(values: Iterable[float], made: Callable[[list[float]], float]) -> float | None:
    there = [value for value in values if known(value) is not None]
    return float(made(there)) if there else None


def _mean(values: Iterable[float]) -> float | None:
    return _defined(values, lambda there: float(np.mean(there)))


def _most(values: Iterable[float]) -> float | None:
    return _defined(values, max)


def _rate(value: float | None) -> str:
    return cell(share(value), value)


def _number(value: float | None, digits: int = 3) -> str:
    return cell(MISSING if value is None or known(value) is None else f"{value:,.{digits}f}", value)


def _epsilon(value: float | None) -> str:
    text = MISSING if value is None else f"{value:.2f}" if np.isfinite(value) else "unbounded"
    return cell(text, value)


def _of(some: int, tried: int) -> str:
    """How many of those that were tried; sorted by their share."""
    return cell(f"{some} of {tried}", some / tried) if tried else cell(MISSING, None)
