"""Data quality: which clients have missing values or noisy inputs?"""

from __future__ import annotations

import numpy as np
import torch

from plures.diagnose.chance import Floats, Ints, between
from plures.diagnose.result import Quality
from plures.diagnose.sample import Sample
from plures.federation import Federation
from plures.federation.inputs import parts
from plures.federation.quality import INDICATOR
from plures.federation.seeding import generator

COMPLETENESS, RELIABILITY = "completeness", "reliability"


def quality(sample: Sample, seed: int = 0) -> Quality:
    """Missing shares and noise of the sampled train rows.

    Missing values are taken from indicator columns, else from a metadata column "completeness". Noise is estimated
    of inputs that are pictures or series, from second differences of neighbours, which are small in smooth signals; of
    several such inputs, the mean.
    """
    federation, owner, clients = sample.federation, sample.owner, sample.clients
    rng = generator(seed, "quality")
    gaps = indicators(federation, sample.rows)
    missing, source, missing_p = None, "nothing", None
    if gaps is not None:
        weights = np.bincount(owner, minlength=clients)
        missing = (np.bincount(owner, gaps.mean(1), clients) / weights).tolist()
        source, missing_p = "indicators", between(gaps, owner, clients, rng).p
    elif COMPLETENESS in federation.metadata:
        missing, source = [1 - float(str(x)) for x in federation.metadata[COMPLETENESS]], "metadata"
    noise, noise_p, spread = None, None, 0.0
    smooth = [t for t in parts(federation.inputs) if t.is_floating_point() and t.dim() >= 3 and min(t.shape[2:]) >= 3]
    if smooth:
        places = torch.from_numpy(sample.rows).to(federation.inputs.device)
        found = [noise_shares(t[places].cpu().double().numpy(), owner, clients) for t in smooth]
        each = np.mean(found, axis=0)
        shares = np.bincount(owner, each, clients) / np.bincount(owner, minlength=clients)
        noise, spread = shares.tolist(), float(np.quantile(shares, 0.9) - np.quantile(shares, 0.1))
        noise_p = between(each[:, None], owner, clients, rng, sample.strata).p
    reliability = [float(str(x)) for x in federation.metadata.get(RELIABILITY, ())]
    return Quality(
        missing=missing,
        missing_from=source,
        missing_spread=max(missing) - min(missing) if missing else 0.0,
        missing_p=missing_p,
        noise=noise,
        noise_spread=spread,
        noise_p=noise_p,
        reliability_spread=max(reliability) - min(reliability) if reliability else None,
    )


def indicators(federation: Federation, rows: Ints) -> Floats | None:
    """The missing-value indicator columns, ``(n, columns)`` of 0 and 1."""
    places = [place for place, name in enumerate(federation.columns) if name.endswith(INDICATOR)]
    if not places:
        return None
    found = federation.one_input("diagnose").cpu()[torch.from_numpy(rows)][:, places]
    values = found.reshape(len(rows), -1).double().numpy()
    return np.asarray(values > values.min(), dtype=np.float64)


def noise_shares(inputs: Floats, owner: Ints, clients: int) -> Floats:
    """Variance of each row's noise as a share of its client's variance, ``(n,)``, clipped to 1.

    The variance of white noise is the mean squared second difference divided by the sum of the squared weights: 6 along
    a series (Gasser, Sroka, Jennen-Steinmetz 1986), 36 for the product of both directions of a picture (the mask of
    Immerkær 1996). What varies as fast as noise counts as noise: edges, textures.

    Args:
        inputs: ``(n, columns, time)`` or ``(n, [channels,] height, width)``; two feature dimensions of similar size are
            taken as a picture.
        owner: ``(n,)`` client of each row.
        clients: their number.
    """
    picture = inputs.ndim == 4 or (inputs.ndim == 3 and max(inputs.shape[1:]) <= 2 * min(inputs.shape[1:]))
    rough = np.diff(inputs, n=2, axis=-1)
    weight = 6.0
    if picture:
        rough, weight = np.diff(rough, n=2, axis=-2), 36.0
    each = (rough**2).reshape(len(inputs), -1).mean(1) / weight
    flat = inputs.reshape(len(inputs), -1)
    variance = np.array([flat[owner == client].var() for client in range(clients)])
    return np.asarray((each / np.maximum(variance[owner], 1e-12)).clip(0, 1), dtype=np.float64)
