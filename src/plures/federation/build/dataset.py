"""A federation from a PyTorch dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.errors import PluresError
from plures.federation.build.assemble import assemble
from plures.federation.build.examples import as_array, of_arrays
from plures.federation.build.options import Options
from plures.federation.federation import Federation
from plures.federation.inputs import named

Array = NDArray[Any]
ONE = "input"
"""What an item's only input is called."""


class MapDataset(Protocol):
    """A map-style PyTorch dataset of (input, target) pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_dataset(
    dataset: MapDataset,
    client: ArrayLike | Tensor,
    *,
    groups: ArrayLike | Tensor | None = None,
    time: ArrayLike | Tensor | None = None,
    key: ArrayLike | Tensor | None = None,
    weights: ArrayLike | Tensor | None = None,
    columns: Sequence[str] = (),
    **options: Unpack[Options],
) -> Federation:
    """A federation from a map-style PyTorch dataset of (input, target) pairs.

    Every item is read once and kept in memory, so transforms of the dataset are applied once.

    Args:
        dataset: has ``__len__`` and ``__getitem__``; all inputs of one shape. An input may be a mapping of names to
            arrays, or a tuple of arrays, for a network with several inputs (see `from_arrays`).
        client: ``(len(dataset),)`` client of each item.
        groups: see `from_arrays`.
        time: see `from_arrays`.
        key: see `from_arrays`.
        weights: see `from_arrays`.
        columns: see `from_arrays`.
        options: see `from_arrays`.

    Examples:
        >>> pairs = [(torch.tensor([float(i)]), i % 2) for i in range(60)]
        >>> federation = plures.from_dataset(pairs, client=["A", "B", "C"] * 20)
        >>> federation.clients, tuple(federation.inputs.shape)
        (('A', 'B', 'C'), (60, 1))
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise PluresError(
            f"dataset: a {type(dataset).__name__} has no length or cannot be indexed; give a map-style dataset of "
            "(input, target) pairs"
        )
    inputs: list[dict[str, Array]] = []
    targets: list[Array] = []
    for position in range(len(dataset)):
        item = dataset[position]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise PluresError(f"dataset item {position}: expected an (input, target) pair, got {type(item).__name__}")
        several = named(item[0])
        given = {ONE: item[0]} if several is None else several
        inputs.append({k: as_array(v, f"dataset item {position}, {k}", scalar=k != ONE) for k, v in given.items()})
        targets.append(as_array(item[1], f"dataset item {position}, target", scalar=True))
        if inputs[-1].keys() != inputs[0].keys():
            raise PluresError(f"dataset item {position}: inputs {', '.join(inputs[-1])}, not {', '.join(inputs[0])}")
        first, last = ({**inputs[place], "target": targets[place]} for place in (0, -1))
        for what, values in last.items():
            if values.shape != first[what].shape:
                raise PluresError(
                    f"dataset item {position}: {what} of shape {values.shape}, but item 0 has {first[what].shape}; "
                    "crop or pad to one shape"
                )
    if not inputs:
        raise PluresError("the dataset is empty: give at least one item")
    stacked = {name: np.stack([item[name] for item in inputs]) for name in inputs[0]}
    rows = of_arrays(stacked.get(ONE, stacked), np.stack(targets), client, groups, time, key, weights, columns)
    return assemble(rows, options, "from_dataset")
