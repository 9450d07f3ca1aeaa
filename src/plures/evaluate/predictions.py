"""The one evaluation loop: every client's own predictor on its own examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plures.errors import PluresError, suggestion
from plures.federation import SplitName
from plures.metrics.metric import PerExample, Predictions, columns
from plures.models import nested
from plures.run import Run
from plures.run.engine import Engine, Stack
from plures.run.predict import said
from plures.run.singly import singly, worthwhile
from plures.signature import checked

Reader = Callable[[Predictions], PerExample]
"""Selects the values needed for every example of a batch, ``(clients, batch, ...)``."""


@checked
def predictions(run: Run, client: str, split: SplitName) -> Predictions:
    """One client's predictions and targets on its own examples, for metrics and plots of your own.

    Args:
        run: the run, whose current state predicts.
        client: the client's name.
        split: the examples; their order is that of ``run.federation.splits[split]``.

    Returns:
        Outputs, targets, losses, decisions and probabilities of one client, ``(examples, ...)`` each. Numbers are in
        the units in which the model was trained (``run.federation.in_units`` gives the target's own).

    Raises:
        PluresError: if there is no such client.

    Examples:
        >>> import plures
        >>> from plures.methods import fedavg
        >>> data = plures.load("heart")
        >>> run = plures.Run(data, plures.default_model(data), fedavg(), plures.Training(rounds=1))
        >>> _ = run.step()
        >>> found = plures.predictions(run, "cleveland", "test")
        >>> tuple(found.probabilities.shape) == (len(data.splits["test"][0]), 2)
        True
        >>> right = (found.decisions == found.targets).double().mean()
        >>> bool(right == plures.score(run, "test").values["accuracy"][0])
        True
    """
    names = run.federation.clients
    if client not in names:
        raise PluresError(f"no client {client!r} in this run; {suggestion(client, names, 'clients are')}")
    chunk = [names.index(client)]
    parts = [part.map(lambda t: t[0]) for _, part in _batches(run, run.engine, split, chunk, run.deployed(chunk))]
    kept = [part.map(lambda t, real=part.weight > 0: t[real]) for part in parts]  # type: ignore[misc]
    return kept[0].joined(*kept[1:])


def read(
    run: Run,
    split: SplitName,
    readers: Sequence[Reader],
    deployed: Stack | None = None,
    clients: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], Tensor, list[tuple[Tensor, ...]]]]:
    """Let every client predict for its own examples, and collect the values that readers select.

    Args:
        run: the run whose federation is evaluated.
        split: the examples.
        readers: select the values to collect.
        deployed: leaves of the clients' predictors, ``(clients, ...)``; default: those that they would deploy now.
        clients: positions of the clients that predict; default: all.

    Yields:
        For each chunk: the clients, the weights of their examples and padding ``(clients, examples)``, and the values
        of each reader, ``(clients, examples, ...)``.
    """
    chosen = list(range(len(run.federation)) if clients is None else clients)
    if deployed is None:
        run.serve(chosen)

    federation = run.federation

    def work(engine: Engine, given: tuple[list[int], Stack]) -> tuple[list[int], Tensor, list[tuple[Tensor, ...]]]:
        chunk, stack = given
        batches, rows = _batches(run, engine, split, chunk, stack), len(chunk)
        in_turn = worthwhile(engine, chunk, split)
        if in_turn:
            batches = (([0], said(federation.task, *part)) for part in singly(engine, chunk, split, stack))
            rows = 1
        weights: list[Tensor] = []
        kept: list[list[tuple[Tensor, ...]]] = [[] for _ in readers]
        for places, batch in batches:
            weights.append(spread(batch.weight, places, rows))
            for held, reader in zip(kept, readers, strict=True):
                held.append(tuple(spread(one, places, rows) for one in columns(reader(batch))))
        weight, whole = _joined(weights), [tuple(map(_joined, zip(*parts, strict=True))) for parts in kept]
        if in_turn:
            sizes = federation.splits[split].sizes[chunk]
            weight, whole = stacked(weight[0], sizes), [tuple(stacked(one[0], sizes) for one in part) for part in whole]
        return chunk, weight, whole

    stacks = ((c, run.deployed(c) if deployed is None else rows_of(deployed, c)) for c in run.chunks(chosen))
    yield from run.clients.crew.each(work, stacks)


def _joined(batches: Sequence[Tensor]) -> Tensor:
    return batches[0] if len(batches) == 1 else torch.cat(list(batches), 1)


def stacked(values: Tensor, sizes: Tensor) -> Tensor:
    """Values of examples ``(n, ...)``, client after client, as ``(clients, most, ...)`` with zeros as padding."""
    clients, most = len(sizes), int(sizes.max())
    if clients * most == len(values):
        return values.unflatten(0, (clients, most))  # type: ignore[no-untyped-call, no-any-return]
    begins = torch.arange(clients) * most - (sizes.cumsum(0) - sizes)
    places = torch.arange(len(values)) + begins.repeat_interleave(sizes)
    found = values.new_zeros(clients * most, *values.shape[1:]).index_copy_(0, places, values)
    return found.unflatten(0, (clients, most))  # type: ignore[no-untyped-call, no-any-return]


def spread(values: Tensor, places: list[int], clients: int) -> Tensor:
    """Values of some clients, ``(places, ...)``, as ``(clients, ...)``, with zeros for the others."""
    if len(places) == clients:
        return values
    return values.new_zeros(clients, *values.shape[1:]).index_copy_(
        0, torch.tensor(places, device=values.device), values
    )


def _batches(
    run: Run, engine: Engine, split: SplitName, chunk: list[int], stack: Stack
) -> Iterator[tuple[list[int], Predictions]]:
    """Predictions of the clients at some places of the chunk, for some of their examples at a time."""
    task = run.federation.task
    own: dict[str, Any] = {name: engine.whole(chunk, name) for name in run.bound.method.predictor.reads}

    def told(split: SplitName) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor, Tensor]]:
        """Outputs, targets, weights and decisions of the clients at some places."""
        for places, inputs, targets, weight in engine.tiles(chunk, split):
            real = (weight > 0).to(weight.dtype)
            deployed, known = rows_of(stack, places), nested.mapped(lambda t, places=places: some(t, places), own)
            outputs = engine.forward(deployed, inputs, known, real)
            yield places, outputs, targets, weight, engine.decisions(deployed, outputs, real)

    train: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {place: [] for place in range(len(chunk))}
    fitted = any(metric.from_train for metric in run.federation.metrics)
    for places, outputs, targets, weight, _ in told("train") if fitted else ():
        for place, o, t, w in zip(places, outputs, targets, weight, strict=True):
            train[place].append((o[w > 0], t[w > 0], w[w > 0]))
    for places, outputs, targets, weight, decisions in told(split):
        found = said(task, outputs, targets, weight, decisions)
        if fitted:
            nothing = outputs[0, :0], targets[0, :0], weight[0, :0]
            parts = [zip(*(train[place] or [nothing]), strict=True) for place in places]
            whole = [[torch.cat(same) for same in part] for part in parts]
            each = zip(whole, outputs, targets, strict=True)
            found = replace(found, curves=torch.stack([task.curve_errors((o, t, w), *one) for (o, t, w), *one in each]))
        yield places, found


def rows_of(stack: Stack, clients: list[int]) -> Stack:
    """The rows of some clients in a stack."""
    return {slot: {path: some(t, clients) for path, t in leaves.items()} for slot, leaves in stack.items()}


def some(values: Tensor, clients: list[int]) -> Tensor:
    """Some rows of ``(clients, ...)``: a view, if they are the first ones or all are the same."""
    if values.stride(0) == 0 and len(values):
        return values[:1].expand(len(clients), *values.shape[1:])
    return values[: len(clients)] if clients == list(range(len(clients))) else values[clients]
