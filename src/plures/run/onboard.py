"""Newcomers: a model for clients that never took part."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, TypeVar

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation import Federation
from plures.federation.inputs import Inputs, kind_of
from plures.federation.preparation import Preparation, numbers
from plures.method import (
    MEMBERSHIP,
    Assign,
    Block,
    Known,
    Leaf,
    Personal,
    Phase,
    Probe,
    Schedule,
    Selector,
    Setting,
    blended,
    paths,
)
from plures.run.deployed import Deployed
from plures.run.engine import Stack
from plures.run.states import working
from plures.run.store import ClientStore
from plures.signature import checked

R = TypeVar("R", bound=Deployed)


@checked
def onboard(run: Annotated[R, "a Run"], newcomers: Federation, visits: int | None = None) -> R:
    """The run as newcomers see it: shared leaves come from the run, personal ones they train themselves.

    Newcomers use the run's task, with its loss and weights, and its metrics. A newcomer joins the cluster with the
    lowest loss on its own training data; one without training data joins the cluster that most clients use. Its
    personal leaves start as their share says and are trained in local visits, if it has training data. Shared leaves
    stay as they are, because nothing is uploaded.

    Args:
        run: a trained run.
        newcomers: the unseen clients and their data, on the scale of the run's (:func:`rescaled`). Metadata columns
            that the run did not have are ignored.
        visits: number of visits; default: the method's.

    Returns:
        A run whose clients are the newcomers, ready to predict and to be scored.

    Examples:
        >>> seen, later = plures.load("heart").hold_out(["va"])
        >>> run = plures.Run(seen, plures.default_model(seen), plures.METHODS["fedavg"](), plures.Training(rounds=2))
        >>> for record in run.rounds():
        ...     pass
        >>> guest = plures.onboard(run, later)
        >>> torch.equal(guest.predictors([0])["head.weight"][0], run.predictors([0])["head.weight"][0])
        True
    """
    if visits is not None and visits < 0:
        raise PluresError(f"visits={visits}: a new client cannot make a negative number of visits")
    newcomers = newcomers.to(run.federation.inputs.device, run.execution.dtype).classified(run.federation.task)
    check(newcomers, run.federation)
    judged = run.federation
    newcomers = replace(newcomers, task=judged.task, metric=judged.metric, beside=judged.beside)
    guest = run.on(newcomers, Setting.of(newcomers, run.setting))
    for block in run.bound.blocks:
        if isinstance(block.share, Known):
            block.share.leaves(guest.setting)
    guest.trained_with = run
    guest.last = torch.zeros(len(newcomers), dtype=torch.int64)
    guest.store = ClientStore(
        {leaf: run.bound.initial[leaf.slot][leaf.path] for leaf in run.stored_leaves()}, len(newcomers)
    )
    blocks = {block.name: block for block in run.bound.blocks if block.share.served}
    unplaced = {MEMBERSHIP: torch.zeros(len(newcomers), dtype=torch.int64)}
    guest.server = {
        name: replace(kept, extra=kept.extra | unplaced) if MEMBERSHIP in kept.extra else kept
        for name, kept in run.server.items()
    }
    for name, block in blocks.items():
        probe = Probe(partial(_losses, run, guest, block), guest.gradients)
        guest.server = {**guest.server, name: block.share.join(guest.server[name], guest.setting, probe)}
    schedule, trained = alone(run), [blocks[name] for name in blocks if blocks[name].share.own_row]
    for chunk in guest.chunks(list(range(len(newcomers)))):
        start = _start(run, guest, chunk)
        guest.commit(chunk, {leaf: start[leaf.slot][leaf.path] for leaf in run.stored_leaves()})
        for number in range(run.bound.method.predictor.visits if visits is None else visits):
            received = guest.states(chunk)
            x = working(received, run.bound.written)
            guest.engine.visit(x, received, chunk, run.round + number, schedule)
            guest.commit(chunk, {leaf: x[leaf.slot][leaf.path] for leaf in run.stored_leaves()})
            for block in trained:
                values = {str(leaf): x[leaf.slot][leaf.path] for leaf in block.leaves}
                tuned = block.share.tune(guest.server[block.name], torch.tensor(chunk), values)
                guest.server = {**guest.server, block.name: tuned}
    return guest


def check(newcomers: Federation, seen: Federation) -> None:
    """Refuse newcomers whose inputs or targets differ in meaning from those that a run was trained on."""
    for what, new, old in (
        ("examples have shape", newcomers.features, seen.features),
        ("inputs have type", kind_of(newcomers.inputs), kind_of(seen.inputs)),
        ("task is", newcomers.task.kind, seen.task.kind),
        ("number of outputs is", newcomers.task.outputs, seen.task.outputs),
        (f"{seen.task.called} are", ", ".join(newcomers.task.names), ", ".join(seen.task.names)),
    ):
        if new != old:
            raise PluresError(
                f"the new clients' {what} {new}; this run was trained on {old}: build their federation like the "
                "run's, with its columns, dtype, task and classes"
            )
    if newcomers.columns and seen.columns and newcomers.columns != seen.columns:
        one, other = next(pair for pair in zip(newcomers.columns, seen.columns, strict=True) if pair[0] != pair[1])
        raise PluresError(
            f"the new clients' input columns differ from the run's, {one!r} instead of {other!r}: prepare their data "
            "like the run's with plures.run.onboard.rescaled(run, newcomers)"
        )
    found, wanted = (numbers(data.scaling, data.preparation) for data in (newcomers, seen))
    gaps = any(data.preparation is not None and data.preparation.gaps for data in (newcomers, seen))
    for name in dict.fromkeys((*found, *wanted)):
        if name == "fill" and not gaps:
            continue
        if name in found and name in wanted and torch.allclose(found[name].to(wanted[name]), wanted[name]):
            continue
        what = "targets" if name.startswith("target") else "missing values" if name == "fill" else "inputs"
        raise PluresError(
            f"the new clients' {what} are not on the scale of the run's (Federation."
            f"{'scaling' if what == 'inputs' else 'preparation'} differs): build their federation without standardize "
            "and standardize_targets, then bring it there by plures.run.onboard.rescaled(run, newcomers)"
        )


def rescaled(run: Deployed, newcomers: Federation) -> Federation:
    """Newcomers with raw data, prepared like a run's data.

    Args:
        run: the run.
        newcomers: built without ``standardize`` and ``standardize_targets``; with ``missing="impute"`` if values are
            missing, which are then filled as in the run's data.

    Raises:
        PluresError: for instance for a value of a text column that did not occur in the run's data.
    """
    seen, own = run.federation, newcomers.preparation or Preparation()
    if newcomers.scaling is not None or own.target is not None:
        raise PluresError(f"{newcomers.name!r} is scaled already: build it without standardize and standardize_targets")
    made = seen.preparation or Preparation()
    if seen.scaling is None and seen.preparation is None and newcomers.columns in ((), seen.columns):
        return newcomers
    given = newcomers.inputs
    raw = given if isinstance(given, Inputs) else own.emptied(given)
    table = own.table and made.table and isinstance(raw, Tensor)
    inputs = seen.scaled(own.decoded(raw) if table and isinstance(raw, Tensor) else raw)
    return replace(
        newcomers,
        inputs=inputs.to(given) if isinstance(inputs, Tensor) and isinstance(given, Tensor) else inputs,
        targets=made.scaled_targets(newcomers.targets),
        columns=seen.columns,
        scaling=seen.scaling,
        preparation=seen.preparation,
    )


def alone(run: Deployed) -> Schedule:
    """The method's schedule restricted to the leaves that a client determines alone."""
    kept = {leaf for block in run.bound.blocks if block.share.own_row for leaf in block.leaves}.union(
        run.stored_leaves()
    )
    narrowed: list[Phase | Assign] = []
    for item in run.method.schedule:
        if isinstance(item, Phase):
            own = [leaf for leaf in run.bound.selected(item) if leaf in kept]
            if own:
                narrowed.append(replace(item, train=exactly(own)))
            elif item.keeps:
                narrowed.append(replace(item, lr=0.0))
        else:
            narrowed.append(item)
    return tuple(narrowed)


def exactly(leaves: list[Leaf]) -> tuple[Selector, ...]:
    """Selectors that choose exactly these leaves."""
    slots = dict.fromkeys(leaf.slot for leaf in leaves)
    return tuple(replace(paths(*(leaf.path for leaf in leaves if leaf.slot == slot)), slot=slot) for slot in slots)


def _losses(run: Deployed, guest: Deployed, block: Block, clients: list[int], rows: int) -> Tensor:
    """Losses of newcomers with each model of a block; without training data, they prefer what most clients use.

    Clients that have not taken part yet do not count, because they have not chosen.
    """
    losses = guest.losses(clients, rows, block.share)
    members = run.membership[block.name]
    chosen = members[run.last > 0] if bool((run.last > 0).any()) else members
    users = torch.bincount(chosen, minlength=rows)[:rows]
    none = guest.federation.splits["train"].sizes[clients] == 0
    return torch.where(none.to(losses.device), -users.to(losses).unsqueeze(1), losses)


def _start(run: Deployed, guest: Deployed, chunk: list[int]) -> Stack:
    """States of newcomers before their first visit."""
    states = guest.states(chunk)
    fresh: Stack = {slot: dict(leaves) for slot, leaves in states.items()}
    seen: list[int] = run.store.visited.nonzero().squeeze(1).tolist()
    for block in run.bound.blocks:
        source = block.share.unseen if isinstance(block.share, Personal) else "initial"
        weights = source(run.setting.take(seen), guest.setting.take(chunk)) if callable(source) and seen else None
        for leaf in block.leaves:
            if leaf not in run.store:
                continue
            slot, path = leaf
            statistics = run.bound.info[slot][path].buffer
            if weights is not None and not statistics:
                fresh[slot][path] = blended(run.store.get(leaf, seen), weights)
            elif source == "mean" or weights is not None:
                mean = run.store.mean(leaf)
                fresh[slot][path] = mean.expand(len(chunk), *mean.shape)
            elif isinstance(source, str) and source != "initial":
                fresh[slot][path] = states[source][path]
    return fresh
