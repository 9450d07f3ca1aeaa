"""Sequences of experiences over the same clients, for continual (lifelong) federated learning."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError, suggestion
from plures.federation.federation import Federation
from plures.federation.inputs import kind_of
from plures.federation.preparation import Preparation
from plures.federation.seeding import generator
from plures.federation.shift import rotate
from plures.federation.splits import SPLITS
from plures.signature import checked

SEASONS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"spring": (3, 4, 5), "summer": (6, 7, 8), "autumn": (9, 10, 11), "winter": (12, 1, 2)}
)
"""Months of the meteorological seasons of the northern hemisphere."""


@checked
@brief
@dataclass(frozen=True)
class Stream:
    """Experiences, which are federations, in the order in which they are learned (Lomonaco et al. 2021).

    Domain-incremental when only the inputs change (`rotated`, `permuted`, `by_time`, `seasons`), class-incremental
    when the labels do (`by_label`), with one output for all classes (van de Ven, Tuytelaars, Tolias 2022). Each
    experience is an ordinary federation with its own train, validation and test splits, so that a learner is scored on
    every experience after each: accuracy on earlier experiences shows what it has not forgotten.

    Attributes:
        name: its name in reports.
        names: of the experiences.
        experiences: their federations: the same clients, features and task.
    """

    name: str
    names: tuple[str, ...]
    experiences: tuple[Federation, ...]

    def __post_init__(self) -> None:
        if not self.experiences or len(self.names) != len(self.experiences) or len(set(self.names)) < len(self.names):
            raise PluresError(f"stream {self.name!r}: give at least one experience, and a different name for each")
        first = self.experiences[0]
        for name, experience in zip(self.names, self.experiences, strict=True):
            for what, here, there in (
                ("clients", experience.clients, first.clients),
                ("features", experience.features, first.features),
                ("task", experience.task, first.task),
                ("type of inputs", kind_of(experience.inputs), kind_of(first.inputs)),
            ):
                if here != there:
                    raise PluresError(
                        f"stream {self.name!r}, experience {name!r}: {what} differ from those of experience "
                        f"{self.names[0]!r}"
                    )

    def __len__(self) -> int:
        return len(self.experiences)

    def __getitem__(self, position: int) -> Federation:
        return self.experiences[position]

    def __iter__(self) -> Iterator[Federation]:
        return iter(self.experiences)

    @property
    def clients(self) -> tuple[str, ...]:
        return self.experiences[0].clients


def by_column(
    federation: Federation, column: str | ArrayLike | Tensor, values: Mapping[str, Collection[float]]
) -> Stream:
    """One experience for each set of values of a column, in the order given.

    An experience has the rows of its values in the splits that they have in the federation: no test row becomes a train
    row, and tensors are shared, not copied. Rows with other values are in no experience.

    Args:
        federation: every client needs a train row of every experience.
        column: name of an input column (in its raw units), or ``(examples,)`` values, one for each row.
        values: name of the experience -> values.
    """
    if not values:
        raise PluresError("by column: give at least one experience")
    known = _values(federation, column)
    tolerance = 1e-5 * float(known.abs().max()) if isinstance(column, str) else 0.0  # inputs are float32 and scaled
    experiences = []
    for name, members in values.items():
        wanted = torch.tensor(list(members), dtype=torch.float64)
        experiences.append(_restricted(federation, name, ((known[:, None] - wanted).abs() <= tolerance).any(1)))
    return Stream(federation.name, tuple(values), tuple(experiences))


@checked
def by_time(federation: Federation, time: str | ArrayLike | Tensor, experiences: int) -> Stream:
    """Consecutive experiences in time, each with the same number of rows (equal times stay together).

    Rows keep their split, so the federation must not be split by time itself: its early rows would all train.

    Args:
        federation: every client needs a train row of every experience.
        time: name of an input column, or ``(examples,)`` numbers or dates, one for each row.
        experiences: how many.
    """
    if experiences < 1:
        raise PluresError(f"by time: {experiences} experiences; give at least 1")
    known = _values(federation, time)
    owned = torch.cat([split.rows for split in federation.splits.values()]).cpu()
    sorted_times = known[owned].sort().values
    cuts = (float(sorted_times[len(owned) * k // experiences]) for k in range(1, experiences))
    begins = [float("-inf"), *cuts, float("inf")]
    names = tuple(f"time {k + 1}" for k in range(experiences))
    parts = (
        _restricted(federation, name, (known >= begins[k]) & (known < begins[k + 1])) for k, name in enumerate(names)
    )
    return Stream(federation.name, names, tuple(parts))


def by_label(federation: Federation, classes: Sequence[Collection[int]]) -> Stream:
    """Class-incremental experiences, e.g. ``[(0, 1), (2, 3), ...]``: split MNIST (Zenke, Poole, Ganguli 2017).

    Args:
        federation: classification; every client needs a train row of every experience.
        classes: class numbers of each experience; a class is in at most one experience.
    """
    if not federation.task.classes:
        raise PluresError(f"by label: federation {federation.name!r} is {federation.task.kind}; it has no classes")
    listed = [label for members in classes for label in members]
    if len(set(listed)) < len(listed) or not set(listed) <= set(range(len(federation.task.classes))):
        raise PluresError(
            f"by label: {listed}; give class numbers 0..{len(federation.task.classes) - 1}, each once at most"
        )
    names = {f"classes {', '.join(federation.task.classes[i] for i in members)}": members for members in classes}
    return by_column(federation, federation.targets, names)


def seasons(federation: Federation, column: str = "month") -> Stream:
    """Spring, summer, autumn and winter by a column of months 1 to 12, e.g. ``seasons(load("beijing_air"))``."""
    return by_column(federation, column, SEASONS)


def rotated(federation: Federation, degrees: Sequence[float]) -> Stream:
    """Rotated images (Lopez-Paz, Ranzato 2017): in each experience all clients' images are rotated by its angle.

    Args:
        federation: see `plures.federation.rotate`.
        degrees: one angle for each experience, counterclockwise.
    """
    turned = tuple(rotate(federation, (angle,)) for angle in degrees)
    return Stream(federation.name, tuple(f"{angle:g} degrees" for angle in degrees), turned)


@checked
def permuted(federation: Federation, experiences: int, *, seed: int = 0) -> Stream:
    """Permuted inputs (Goodfellow et al. 2013; Kirkpatrick et al. 2017).

    Each experience but the first has its own order, the same for all clients. In a table, columns are permuted; in
    images and signals, positions, alike in all channels.

    Args:
        federation: inputs ``(n, columns)`` or ``(n, channels, ...)``.
        experiences: how many.
        seed: of the orders.
    """
    if experiences < 1:
        raise PluresError(f"permuted: {experiences} experiences; give at least 1")
    parts, given = [federation], federation.one_input("permuted")
    for number in range(1, experiences):
        rng = generator(seed, "permuted", number)
        if given.dim() < 3:
            order = torch.from_numpy(rng.permutation(given.shape[1]))
            inputs = given[:, order]
            moments = federation.scaling
            scaling = (moments[0][order], moments[1][order]) if isinstance(moments, tuple) else None
            columns = tuple(federation.columns[i] for i in order.tolist()) if federation.columns else ()
            made = federation.preparation and Preparation(target=federation.preparation.target)
            parts.append(replace(federation, inputs=inputs, scaling=scaling, columns=columns, preparation=made))
        else:
            flat = given.flatten(2)
            order = torch.from_numpy(rng.permutation(flat.shape[2]))
            parts.append(replace(federation, inputs=flat[:, :, order].reshape(given.shape)))
    return Stream(federation.name, tuple(f"order {number}" for number in range(experiences)), tuple(parts))


def _values(federation: Federation, column: str | ArrayLike | Tensor) -> Tensor:
    """``(examples,)`` float64 values of a column in raw units."""
    if not isinstance(column, str):
        values = _numbers(federation, np.asarray(column.cpu() if isinstance(column, Tensor) else column))
        if values.shape != (len(federation.inputs),):
            raise PluresError(
                f"stream of {federation.name!r}: values of shape {tuple(values.shape)} for "
                f"{len(federation.inputs)} rows; give one for each"
            )
        return values
    if column not in federation.columns or len(federation.features) != 1:
        raise PluresError(
            f"stream of {federation.name!r}: no input column {column!r}; "
            f"{suggestion(column, federation.columns, 'columns are')} (or give one value for each row)"
        )
    place = federation.columns.index(column)
    values = federation.one_input("the column of a stream")[:, place].double().cpu()
    if isinstance(federation.scaling, tuple):
        values = values * float(federation.scaling[1][place]) + float(federation.scaling[0][place])
    return values


def _numbers(federation: Federation, values: NDArray[Any]) -> Tensor:
    """Numbers as float64; dates as microseconds since 1970."""
    if values.dtype.kind == "O" and all(isinstance(value, date) for value in values.flat):
        values = values.astype("datetime64[us]")
    if values.dtype.kind == "M":
        missing, values = np.isnat(values), values.astype("datetime64[us]").astype(np.int64)
    elif values.dtype.kind in "biuf":
        missing = np.isnan(values)
    else:
        raise PluresError(f"stream of {federation.name!r}: values of type {values.dtype}; give numbers or dates")
    if missing.any():
        raise PluresError(f"stream of {federation.name!r}: row {int(missing.argmax())} has no value; give one for each")
    return torch.from_numpy(values.astype(np.float64))


def _restricted(federation: Federation, name: str, used: Tensor) -> Federation:
    """The federation restricted to the used rows, in their splits."""
    used = used.to(federation.splits["train"].rows.device)
    splits = {
        split: type(federation.splits[split]).of([rows[used[rows]] for rows in federation.splits[split]])
        for split in SPLITS
    }
    for client, size in zip(federation.clients, splits["train"].sizes.tolist(), strict=True):
        if size == 0:
            raise PluresError(
                f"stream of {federation.name!r}, experience {name!r}: client {client!r} has no training rows; leave "
                "the client out (subset), or split the federation at random"
            )
    for split in SPLITS:
        if len(federation.splits[split].rows) and not len(splits[split].rows):
            raise PluresError(
                f"stream of {federation.name!r}, experience {name!r}: no {split} rows; split the federation at random, "
                "not by what the experiences differ in"
            )
    return replace(federation, name=f"{federation.name}, {name}", splits=splits)
