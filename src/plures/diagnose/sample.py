"""The rows that a diagnosis uses: a sample of each client's, in a form suitable for distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plures.brief import brief
from plures.diagnose.chance import Floats, Ints
from plures.errors import PluresError
from plures.federation import Federation, SplitName
from plures.federation.inputs import parts
from plures.federation.seeding import generator

MAX_ROWS = 6000
"""Most train rows over all clients."""
MAX_ROWS_PER_CLIENT = 400
"""Most train rows of a client."""
MIN_ROWS_PER_CLIENT = 24
"""Train rows of a client that are kept regardless of the total."""
MAX_CLIENTS = 150
"""Most clients examined, except for sizes and labels, which count all."""
COMPONENTS = 32
BINS = 10
CLIP = 10.0


@brief
@dataclass(frozen=True)
class Sample:
    """Rows of some clients.

    Attributes:
        federation: restricted to the examined clients.
        rows: ``(n,)`` rows of the federation's tensors, client after client.
        owner: ``(n,)`` client of each row.
        raw: for each input, ``(n, columns, values)`` by entry of the first feature dimension; for tokens, their
            frequencies projected at random, ``(n, components, 1)``.
        points: ``(n, d)`` the leading principal components, scaled by one factor to mean variance 1.
        target: ``(n, outputs)`` one-hot labels, or targets scaled to mean 0 and standard deviation 1.
        strata: ``(n,)`` labels; for regression, which third of all targets the first target lies in.
        real: for each input, whether it consists of real numbers and not of tokens.
    """

    federation: Federation
    rows: Ints
    owner: Ints
    raw: tuple[Floats, ...]
    points: Floats
    target: Floats
    strata: Ints
    real: tuple[bool, ...]

    @property
    def clients(self) -> int:
        return len(self.federation)

    @property
    def classification(self) -> bool:
        return bool(self.federation.task.classes)


def chosen_clients(federation: Federation, seed: int, most: int = MAX_CLIENTS) -> Federation:
    """The federation, or a random part of at most ``most`` clients; clients without train rows are dropped."""
    names = [c for c, n in zip(federation.clients, federation.splits["train"].sizes.tolist(), strict=True) if n]
    if len(names) < 2:
        raise PluresError(
            f"federation {federation.name!r} has {len(names)} client(s) with train rows; a diagnosis compares clients "
            "and needs at least two"
        )
    if len(names) > most:
        order = generator(seed, "diagnose clients").permutation(len(names))[:most]
        names = [names[i] for i in order]
    return federation if len(names) == len(federation) else federation.subset(names)


def chosen_rows(federation: Federation, split: SplitName, seed: int, rows: int, each: int) -> tuple[Ints, Ints]:
    """A random part of every client's rows of a split, and the client of each."""
    cap = min(each, max(MIN_ROWS_PER_CLIENT, rows // len(federation)))
    taken, owner = [], []
    for number, (name, own) in enumerate(zip(federation.clients, federation.splits[split], strict=True)):
        order = generator(seed, "diagnose", split, name).permutation(len(own))[:cap]
        taken.append(own.cpu().numpy()[order])
        owner.append(np.full(len(order), number))
    return np.concatenate(taken).astype(np.int64), np.concatenate(owner).astype(np.int64)


def sample(federation: Federation, seed: int = 0, rows: int = MAX_ROWS, each: int = MAX_ROWS_PER_CLIENT) -> Sample:
    """Train rows of the clients, never validation or test rows."""
    chosen, owner = chosen_rows(federation, "train", seed, rows, each)
    raw = columns(federation, chosen, seed)
    return Sample(
        federation,
        chosen,
        owner,
        raw,
        components(flat(raw), seed),
        targets(federation, chosen),
        strata(federation, chosen),
        tuple(inputs.is_floating_point() for inputs in parts(federation.inputs)),
    )


def columns(federation: Federation, rows: Ints, seed: int) -> tuple[Floats, ...]:
    """Inputs ``(n, columns, values)``, each column scaled to mean 0 and standard deviation 1 over these rows."""
    places = torch.from_numpy(rows).to(federation.inputs.device)
    return tuple(_columns(inputs[places].cpu(), seed) for inputs in parts(federation.inputs))


def flat(several: Sequence[Floats]) -> Floats:
    """Inputs side by side, ``(n, d)``; each counts alike in distances, however many numbers it has."""
    each = [values.reshape(len(values), -1) for values in several]
    return each[0] if len(each) == 1 else np.hstack([values / np.sqrt(values.shape[1]) for values in each])


def _columns(inputs: Tensor, seed: int) -> Floats:
    if not inputs.is_floating_point():
        return projected(inputs.reshape(len(inputs), -1).numpy().astype(np.int64), seed)[:, :, None]
    width = inputs.shape[1] if inputs.dim() > 1 else 1
    values = inputs.double().reshape(len(inputs), width, -1).numpy()
    scale = values.std((0, 2), keepdims=True)
    scaled = (values - values.mean((0, 2), keepdims=True)) / np.where(scale > 0, scale, 1)
    return np.asarray(scaled.clip(-CLIP, CLIP), dtype=np.float64)


def projected(tokens: Ints, seed: int, width: int = COMPONENTS) -> Floats:
    """Frequencies of tokens ``(n, length)``, projected at random to ``(n, width)`` (Johnson, Lindenstrauss 1984)."""
    _, codes = np.unique(tokens, return_inverse=True)
    codes = codes.reshape(tokens.shape)
    matrix = generator(seed, "tokens").standard_normal((int(codes.max()) + 1, width)) / np.sqrt(width)
    found = np.zeros((len(tokens), width))
    for place in range(tokens.shape[1]):
        found += matrix[codes[:, place]] / tokens.shape[1]
    return found


def components(values: Floats, seed: int, most: int = COMPONENTS) -> Floats:
    """Leading principal components ``(n, d)`` by the randomised range finder (Halko, Martinsson, Tropp 2011)."""
    centred = values - values.mean(0)
    wanted = min(most, *centred.shape)
    basis = generator(seed, "components").standard_normal((centred.shape[1], min(wanted + 8, centred.shape[1])))
    for _ in range(2):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    left, size, _ = np.linalg.svd(centred @ basis, full_matrices=False)
    found = (left * size)[:, :wanted]
    kept = found[:, size[:wanted] > 1e-6 * max(float(size[0]), 1e-300)] if len(size) else found
    if not kept.shape[1]:
        return np.zeros((len(values), 1))
    return np.asarray(kept / np.sqrt((kept**2).mean()), dtype=np.float64)


def targets(federation: Federation, rows: Ints) -> Floats:
    """One-hot labels, or targets scaled over all clients' train rows."""
    own = federation.targets.cpu()
    found = own[torch.from_numpy(rows)]
    if federation.task.classes:
        return np.asarray(np.eye(len(federation.task.classes))[found.numpy()], dtype=np.float64)
    every = own[federation.splits["train"].rows.cpu()].double().flatten(1)
    scale = every.std(0, correction=0)
    values = (found.double().reshape(len(found), -1) - every.mean(0)) / torch.where(scale > 0, scale, 1)
    return np.asarray(values.numpy(), dtype=np.float64)


def strata(federation: Federation, rows: Ints, bins: int = 3) -> Ints:
    """Labels; for regression the bin of the first target among the quantiles of all train targets."""
    own = federation.targets.cpu()
    found = own[torch.from_numpy(rows)]
    if federation.task.classes:
        return np.asarray(found.numpy(), dtype=np.int64)
    return binned(own.double().reshape(len(own), -1)[:, 0].numpy(), federation, rows, bins)


def binned(values: Floats, federation: Federation, rows: Ints, bins: int) -> Ints:
    """Quantile bin, among all train rows, of the value of each row."""
    every = values[federation.splits["train"].rows.cpu().numpy()]
    edges = np.unique(np.quantile(every, np.arange(1, bins) / bins))
    return np.searchsorted(edges, values[rows], side="right").astype(np.int64)
