"""Conditional shift: do clients label the same inputs differently?"""

from __future__ import annotations

import numpy as np

from plures.diagnose.chance import Floats, Ints, positive
from plures.diagnose.features import features
from plures.diagnose.probe import Rows, fit, losses
from plures.diagnose.result import ConceptShift
from plures.diagnose.sample import Sample
from plures.federation.seeding import generator

SHARED = (3.0, 30.0)
OWN = (3.0, 30.0, 300.0)
OWN_COMPONENTS = 16
MANY_OUTPUTS = 40
INTERCEPT = 10.0
"""Ridge strength; for a client's intercepts a hundredth of it: a prior of standard deviation 3 on the log odds."""


def concept_shift(sample: Sample, seed: int = 0) -> ConceptShift:
    """Loss that a correction for each client saves on rows it was not fitted to.

    Each client's train rows are halved. On one half, one model of all clients is fitted (linear in principal components
    and random Fourier features), with an intercept for each client and output, so that label skew is accounted for;
    then a ridge correction for each client, linear in the first components. Both are evaluated on the other half, then
    the halves swap. Ridge strengths are chosen in the other fold. Chance gives a gain of at most zero.
    """
    shared, own = designs(sample.points, sample.target.shape[1], seed)
    rows = Rows(sample.owner, sample.target, shared, own, np.zeros_like(sample.target))
    half = halves(sample.owner, seed)
    turns = [_turn(rows, half == part, sample.clients, sample.classification) for part in (0, 1)]
    gains = np.zeros(len(sample.owner))
    before = after = 0.0
    for part, (base, corrected) in enumerate(turns):
        other = int(np.argmin([found.mean() for found in turns[1 - part][1]]))
        gains[half != part] = base - corrected[other]
        before, after = before + base.sum(), after + corrected[other].sum()
    count = np.bincount(sample.owner, minlength=sample.clients)
    return ConceptShift(
        gain=float(1 - after / before) if before > 0 else 0.0,
        shared=float(before / len(gains)),
        corrected=float(after / len(gains)),
        p=positive(gains, generator(seed, "concept shift")),
        clients=(np.bincount(sample.owner, gains, sample.clients) / np.maximum(count, 1)).tolist(),
    )


def designs(points: Floats, outputs: int, seed: int) -> tuple[Floats, Floats]:
    """Features of the shared model (intercept, components, Fourier) and of a client's (intercept, components)."""
    one = np.ones((len(points), 1))
    waves = features(points, seed, 64 if outputs <= MANY_OUTPUTS else 16)
    waves = waves * np.sqrt(waves.shape[1] / 2)
    return np.hstack([one, points, waves]), np.hstack([one, points[:, :OWN_COMPONENTS]])


def halves(owner: Ints, seed: int) -> Ints:
    """A random half (0 or 1) for each row, within its client."""
    order = np.lexsort((generator(seed, "halves").random(len(owner)), owner))
    half = np.empty(len(owner), dtype=np.int64)
    half[order] = np.arange(len(owner)) % 2
    return half


def beyond(rows: Rows, outputs: Floats) -> Rows:
    """The same rows, for fitting a correction of a model with these outputs."""
    return Rows(rows.owner, rows.target, rows.common[:, :0], rows.own, outputs)


def _turn(rows: Rows, trained: Ints, clients: int, classification: bool) -> tuple[Floats, list[Floats]]:
    """Losses on the other half without corrections, and with those of each ridge strength."""
    here, there = rows.take(np.flatnonzero(trained)), rows.take(np.flatnonzero(~trained.astype(bool)))
    best, known = None, (here, there)
    for ridge in SHARED:
        only = [Rows(r.owner, r.target, r.common, r.own[:, :1], r.offset) for r in (here, there)]
        probe = fit(only[0], clients, (ridge, INTERCEPT), classification)
        outputs = [probe.outputs(r) for r in only]
        found = losses(outputs[1], there.target, classification)
        if best is None or found.mean() < best.mean():
            best = found
            known = (beyond(here, outputs[0]), beyond(there, outputs[1]))
    assert best is not None
    corrected = []
    for ridge in OWN:
        probe = fit(known[0], clients, (1.0, ridge), classification)
        corrected.append(losses(probe.outputs(known[1]), there.target, classification))
    return best, corrected
