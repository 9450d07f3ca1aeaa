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

Array = NDArray[Any]


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
        dataset: has ``__len__`` and ``__getitem__``; all inputs of one shape.
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
    inputs: list[Array] = []
    targets: list[Array] = []
    for position in range(len(dataset)):
        item = dataset[position]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise PluresError(f"dataset item {position}: expected an (input, target) pair, got {type(item).__name__}")
        inputs.append(as_array(item[0], f"dataset item {position}, input"))
        targets.append(as_array(item[1], f"dataset item {position}, target", scalar=True))
        for what, values in (("input", inputs), ("target", targets)):
            if values[-1].shape != values[0].shape:
                raise PluresError(
                    f"dataset item {position}: {what} of shape {values[-1].shape}, but item 0 has {values[0].shape}; "
                    "crop or pad to one shape"
                )
    if not inputs:
        raise PluresError("the dataset is empty: give at least one item")
    rows = of_arrays(np.stack(inputs), np.stack(targets), client, groups, time, key, weights, columns)
    return assemble(rows, options, "from_dataset")
