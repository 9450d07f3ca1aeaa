"""How much can a client learn alone, and what does learning together gain?"""

from __future__ import annotations

import numpy as np

from plures.diagnose.chance import Floats, Ints
from plures.diagnose.concept import OWN, SHARED, beyond, designs
from plures.diagnose.probe import Rows, fit
from plures.diagnose.result import Learning, LearningPoint
from plures.diagnose.sample import Sample, chosen_rows, columns, components, flat, targets
from plures.evaluate.summary import paired_test

PARTS = (0.25, 0.5, 1.0)
ALONE = (3.0, 30.0, 300.0)
VALIDATION = 3000
VALIDATION_EACH = 200


def learning(sample: Sample, seed: int = 0) -> tuple[Learning, int]:
    """Validation errors of a probe trained by each client alone, on all clients' rows, and then corrected per client.

    The ridge strength is one number for all clients, chosen for each point on the same validation rows.

    Returns:
        The curve, and the number of validation rows read.
    """
    federation, clients = sample.federation, sample.clients
    rows, owner = chosen_rows(federation, "validation", seed, VALIDATION, VALIDATION_EACH)
    both = np.concatenate([sample.rows, rows])
    points = components(flat(columns(federation, both, seed)), seed)
    common, own = designs(points, sample.target.shape[1], seed)
    owners = np.concatenate([sample.owner, owner])
    target = targets(federation, both)
    every = Rows(owners, target, common, own, np.zeros_like(target))
    cut = len(sample.rows)
    train, validation = every.take(np.arange(cut)), every.take(np.arange(cut, len(both)))
    where = order_within(train.owner)
    size = np.bincount(train.owner, minlength=clients)
    alone, curve = np.zeros(clients), []
    for part in PARTS:
        kept = np.flatnonzero(where < np.ceil(part * size[train.owner]))
        alone = _best(_alone(train.take(kept)), _alone(validation), clients, [(1.0, r) for r in ALONE], sample)[0]
        rows_used = float(np.ceil(part * size).mean())
        curve.append(LearningPoint(part=part, rows=rows_used, error=float(np.nanmean(alone))))
    together = [Rows(r.owner, r.target, r.common, r.own[:, :0], r.offset) for r in (train, validation)]
    pooled, outputs = _best(together[0], together[1], clients, [(r, 1.0) for r in SHARED], sample)
    tuned = beyond(train, outputs[0]), beyond(validation, outputs[1])
    personal = _best(tuned[0], tuned[1], clients, [(1.0, r) for r in OWN], sample)[0]
    known = np.isfinite(pooled) & np.isfinite(alone) & np.isfinite(personal)
    return Learning(
        local=curve,
        pooled=float(np.nanmean(pooled)),
        personal=float(np.nanmean(personal)),
        pooling=saved(alone, pooled),
        pooling_p=paired_test(pooled, alone),
        personalising=saved(pooled, personal),
        personalising_p=paired_test(personal, pooled),
        alone_better=float((alone < personal)[known].mean()) if known.any() else 0.0,
        slope=1 - curve[-1].error / curve[-2].error if curve[-2].error > 0 else 0.0,
        capped=bool((federation.splits["train"].sizes.numpy() > size).any()),
    ), len(rows)


def order_within(owner: Ints) -> Ints:
    """Position of each row among its client's rows, in the order given; owners are sorted."""
    size = np.bincount(owner)
    return np.asarray(np.arange(len(owner)) - np.repeat(size.cumsum() - size, size), dtype=np.int64)


def saved(before: Floats, after: Floats) -> float:
    """Share of the mean error that is saved."""
    mean = float(np.nanmean(before))
    return 1 - float(np.nanmean(after)) / mean if mean > 0 else 0.0


def errors(outputs: Floats, rows: Rows, clients: int, classification: bool) -> Floats:
    """Each client's share of errors, or root mean squared error over outputs; NaN for a client without rows."""
    if classification:
        wrong = (outputs.argmax(1) != rows.target.argmax(1)).astype(np.float64)
    else:
        wrong = ((outputs - rows.target) ** 2).mean(1)
    count = np.bincount(rows.owner, minlength=clients).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(rows.owner, wrong, clients) / count
    return np.asarray(mean if classification else np.sqrt(mean), dtype=np.float64)


def _alone(rows: Rows) -> Rows:
    """The same rows for models that share nothing."""
    return Rows(rows.owner, rows.target, rows.common[:, :0], rows.common, rows.offset)


def _best(
    train: Rows, validation: Rows, clients: int, ridges: list[tuple[float, float]], sample: Sample
) -> tuple[Floats, tuple[Floats, Floats]]:
    """Errors with the ridge strength of least mean error, and the outputs on train and validation rows."""
    tried = []
    for ridge in ridges:
        probe = fit(train, clients, ridge, sample.classification)
        outputs = probe.outputs(train), probe.outputs(validation)
        tried.append((errors(outputs[1], validation, clients, sample.classification), outputs))
    return min(tried, key=lambda found: float(np.nanmean(found[0])))
