"""Missing inputs and noisy sensors: simulate them, report them, and undo their effect on a slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError, check_choice, suggestion
from plures.federation.federation import Federation
from plures.federation.metadata import MISSING_VALUES
from plures.federation.seeding import generator
from plures.federation.splits import SPLITS
from plures.names import by_name, coded

Quantity = float | Mapping[str, float] | Callable[[str], float]
"""One number for all clients, one for each, or a function of the client's name."""

Cause = Literal["zero", "mean", "target", "noise", "correlation"]
IMPUTED = ("zero", "mean")
INDICATOR = " is missing"


def degrade(
    federation: Federation,
    *,
    completeness: Quantity = 1.0,
    noise: Quantity = 0.0,
    how: Literal["zero", "mean"] = "zero",
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> Federation:
    """Give each client poorer inputs: sensor noise, then values missing completely at random (MCAR) and imputed.

    The result for a client depends on the seed, its name and its own rows; all splits are treated alike, and moments
    come from its train rows. On standardised inputs, zero is the mean over all clients.

    Args:
        federation: floating-point inputs of any shape; no row belongs to two clients.
        completeness: probability in (0, 1] that an input value is present.
        noise: variance >= 0 of the added Gaussian noise, in units of the client's own variance of the column (entry
            of the first feature dimension): classical measurement error.
        how: a missing value becomes ``zero``, or the ``mean`` of the client's present values of that column in its
            train split (zero if it has none).
        columns: names of the affected columns; default: all.
        seed: of all draws.

    Returns:
        A federation with its own inputs. Metadata are what each client would report: "completeness", the share of its
        train values that are present, and "reliability" ``var(x) / (var(x) + var(noise)) = 1 / (1 + noise)``, which is
        the factor by which noise shrinks a simple slope. "missing values" is increased.

    Raises:
        PluresError: for a number out of range or missing, or a federation that was already degraded.

    Examples:
        >>> from plures.federation import degrade
        >>> heart = plures.load("heart")
        >>> poorer = degrade(heart, completeness={client: 0.5 if client == "va" else 1.0 for client in heart.clients})
        >>> poorer.metadata["completeness"], torch.equal(poorer.targets, heart.targets)
        ((1.0, 1.0, 1.0, 0.5067708333333333), True)
    """
    inputs = federation.one_input("degrade")
    if not inputs.is_floating_point():
        raise PluresError(f"degrade: inputs of type {inputs.dtype} cannot be noisy; give floating point")
    check_choice("degrade: how", how, IMPUTED)
    for column in ("completeness", "reliability"):
        if column in federation.metadata:
            raise PluresError(
                f"degrade: federation {federation.name!r} has metadata column {column!r} already; degrade it once"
            )
    owned = torch.cat([split.rows for split in federation.splits.values()])
    if int(owned.bincount().max()) > 1:
        raise PluresError(f"degrade: a row of federation {federation.name!r} occurs twice; clients must not share rows")
    kept = _each(federation, completeness, "completeness", lambda share: 0 < share <= 1, "a share in (0, 1]")
    added = _each(federation, noise, "noise", lambda ratio: 0 <= ratio < math.inf, "a number of at least 0")
    chosen = _chosen(federation, columns)
    inputs = inputs.clone()
    reported, lost = [], []
    for number, (name, share, ratio) in enumerate(zip(federation.clients, kept, added, strict=True)):
        rows = torch.cat([federation.splits[split][number] for split in SPLITS])
        train = len(federation.splits["train"][number])
        own = inputs[rows][:, chosen]
        shape = (1, -1, *[1] * (own.dim() - 2))
        if ratio > 0:
            scale = own[:train].double().transpose(0, 1).flatten(1).std(1, correction=0).view(shape)
            standard = torch.from_numpy(generator(seed, "sensor", name).standard_normal(tuple(own.shape))).to(
                own.device
            )
            own = (own.double() + math.sqrt(ratio) * scale * standard).to(own.dtype)
        drawn = generator(seed, "missing", name).random(tuple(own.shape)) if share < 1 else np.zeros(tuple(own.shape))
        there = torch.from_numpy(drawn < share).to(own.device)
        filling = torch.zeros(own.shape[1], dtype=torch.float64, device=own.device).view(shape)
        if how == "mean":
            total = torch.where(there, own, 0)[:train].double().transpose(0, 1).flatten(1).sum(1)
            filling = (total / there[:train].transpose(0, 1).flatten(1).sum(1).clamp(min=1)).view(shape)
        inputs[rows[:, None], chosen] = torch.where(there, own, filling.to(own.dtype))
        reported.append(float(there[:train].double().mean()))
        lost.append(int((~there).sum()))
    before = federation.metadata.get(MISSING_VALUES, (0,) * len(federation))
    metadata = {
        **federation.metadata,
        "completeness": tuple(reported),
        "reliability": tuple(1 / (1 + ratio) for ratio in added),
        MISSING_VALUES: tuple(int(str(old)) + new for old, new in zip(before, lost, strict=True)),
    }
    return replace(federation, inputs=inputs, metadata=metadata)


@brief
@by_content
@dataclass(frozen=True)
class Completeness:
    """The share of its values that each client has.

    Attributes:
        clients: names in natural order.
        columns: of the table; a column of strings counts once, not once for each of its values.
        share: ``(clients, columns)`` float64, of the values that are present.
    """

    clients: tuple[str, ...]
    columns: tuple[str, ...]
    share: Tensor

    @property
    def overall(self) -> tuple[float, ...]:
        """Each client's share over all columns: a weight for the server, or a metadata column."""
        return tuple(self.share.mean(1).tolist())


def completeness_report(
    data: Federation | ArrayLike, client: ArrayLike | None = None, *, columns: Sequence[str] = ()
) -> Completeness:
    """Completeness of real data: of a federation built with ``missing="impute"``, or of raw columns with NaN.

    A federation remembers its missing values in the columns ``<column> is missing`` (all splits count); a column
    without one is complete.

    Args:
        data: the federation, or inputs ``(n, columns)``.
        client: ``(n,)`` client of each row, for raw inputs.
        columns: their names, for raw inputs.
    """
    if not isinstance(data, Federation):
        values = np.asarray(data, dtype=np.float64)
        if client is None or values.ndim != 2 or len(np.asarray(client)) != len(values):
            raise PluresError(f"completeness of inputs {values.shape}: give (n, columns) and the client of each row")
        if columns and len(columns) != values.shape[1]:
            raise PluresError(f"completeness: {len(columns)} column names for {values.shape[1]} columns")
        names, owner = coded(np.asarray(client))
        there = np.stack([(~np.isnan(values[owner == i])).mean(0) for i in range(len(names))])
        named = tuple(columns) or tuple(f"column {number}" for number in range(values.shape[1]))
        return Completeness(names, named, torch.from_numpy(there))
    if not data.columns:
        raise PluresError(
            f"completeness: federation {data.name!r} has no column names; build it with columns= or a table"
        )
    gaps = {c.removesuffix(INDICATOR): i for i, c in enumerate(data.columns) if c.endswith(INDICATOR)}
    tables = dict.fromkeys(c.removesuffix(INDICATOR).partition("=")[0] for c in data.columns)
    share = torch.ones(len(data), len(tables), dtype=torch.float64)
    for number in range(len(data)):
        rows = torch.cat([data.splits[split][number] for split in SPLITS])
        for place, column in enumerate(tables):
            if column in gaps:
                share[number, place] = 1 - data.one_input("completeness")[rows, gaps[column]].double().mean()
    return Completeness(data.clients, tuple(tables), share)


def attenuation(
    cause: Cause, *, missing: float = 0.0, mean: float = 0.0, variance: float = 1.0, noise: float = 0.0
) -> float:
    """Factor by which poor data multiply the least-squares slope of y on one x; a server divides by it.

    In the population, for ``y = beta x + e``, values missing completely at random with rate q:

    - ``zero``: x imputed by zero: ``s^2 / (s^2 + q mu^2)``;
    - ``mean``: x imputed by its mean: 1. Missing data do not attenuate here, because covariance and variance both
      shrink by 1 - q. They do attenuate the correlation; and with several inputs slopes move, see `imputed_slopes`;
    - ``correlation``: the correlation of y with x imputed by its mean: ``sqrt(1 - q)``;
    - ``target``: y imputed by its mean: ``1 - q``;
    - ``noise``: classical measurement error of variance v: ``s^2 / (s^2 + v)``, the reliability.

    Args:
        cause: one of these.
        missing: q in [0, 1).
        mean: mu of x.
        variance: s^2 > 0 of x.
        noise: v >= 0.
    """
    if not (0 <= missing < 1 and 0 < variance < math.inf and noise >= 0):
        raise PluresError(
            f"attenuation: missing={missing}, variance={variance}, noise={noise}; needs a rate in [0, 1), a variance "
            "above 0 and noise of at least 0"
        )
    match cause:
        case "zero":
            return variance / (variance + missing * mean**2)
        case "mean":
            return 1.0
        case "correlation":
            return math.sqrt(1 - missing)
        case "target":
            return 1 - missing
        case "noise":
            return variance / (variance + noise)
    raise PluresError(f"attenuation: cause {cause!r} is unknown; {suggestion(cause, get_args(Cause), 'use')}")


def imputed_slopes(slopes: Tensor, covariance: Tensor, completeness: Tensor | float) -> Tensor:
    """Least-squares slopes in the population when inputs are missing at random, each imputed by its mean.

    With ``d`` the completeness of each input and ``C`` the covariance, imputed inputs have covariance ``d d' * C`` off
    the diagonal and ``d * diag C`` on it, and covariance ``d * C beta`` with y. Where inputs are correlated, a slope
    is biased: an input stands in for the missing other. It may grow as well as shrink (equal slopes,
    unit variances, correlation r: each is multiplied by ``(1 + r) / (1 + d r)``).

    Args:
        slopes: ``(p,)`` beta.
        covariance: ``(p, p)`` C.
        completeness: ``(p,)`` or one number, in (0, 1].

    Returns:
        ``(p,)`` slopes.
    """
    share = torch.as_tensor(completeness, dtype=covariance.dtype, device=covariance.device).expand(len(slopes))
    if not bool(((share > 0) & (share <= 1)).all()):
        raise PluresError(f"imputed slopes: completeness {share.tolist()}; give shares in (0, 1]")
    observed = share[:, None] * share * covariance
    observed = observed - torch.diag((share**2 - share) * covariance.diagonal())
    solved: Tensor = torch.linalg.solve(observed, share * (covariance @ slopes))
    return solved


def _each(
    federation: Federation, quantity: Quantity, name: str, valid: Callable[[float], bool], rule: str
) -> list[float]:
    """The value for each client, checked."""
    values = []
    given = by_name(quantity) if isinstance(quantity, Mapping) else {}
    for client in federation.clients:
        if isinstance(quantity, Mapping):
            if client not in given:
                raise PluresError(f"degrade: {name} has no entry for client {client!r}")
            value = given[client]
        else:
            value = quantity(client) if callable(quantity) else quantity
        if not valid(value):
            raise PluresError(f"degrade: {name} {value} of client {client!r}; give {rule}")
        values.append(float(value))
    return values


def _chosen(federation: Federation, columns: Sequence[str] | None) -> Tensor:
    """Positions of the affected columns, ``(columns,)`` int64."""
    features = tuple(federation.one_input("degrade").shape[1:])
    if not features:
        raise PluresError(f"degrade: inputs of federation {federation.name!r} have no feature dimension")
    if columns is None:
        return torch.arange(features[0])
    for column in columns:
        if column not in federation.columns:
            raise PluresError(f"degrade: no column {column!r}; {suggestion(column, federation.columns, 'columns are')}")
    return torch.tensor([federation.columns.index(column) for column in columns], dtype=torch.int64)
