"""A federation from a PyTorch dataset, or one of Hugging Face."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from plures.brief import described
from plures.errors import PluresError, suggestion
from plures.federation.build.assemble import assemble
from plures.federation.build.decoded import Progress, decoded
from plures.federation.build.examples import as_array, check_names, of_arrays
from plures.federation.build.options import ARRAYS, Options
from plures.federation.build.pictures import DEEP, LEVELS, pixels_of
from plures.federation.federation import Federation
from plures.federation.inputs import named
from plures.federation.mapped import Mapped

Array = NDArray[Any]
Example = tuple[dict[str, Array], dict[str, Array]]
"""Inputs by name; target and, if it is a field, client."""
ONE, TARGET, CLIENT, PICTURE = "input", "target", "client", "picture"
AGAIN, READ = 8, 3
"""Number of items that are read several times, and how often, to find random transforms."""


class MapDataset(Protocol):
    """A map-style dataset of (input, target) pairs, or of mappings."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_dataset(
    dataset: MapDataset,
    client: str | ArrayLike | Tensor,
    *,
    target: str = "label",
    cache: str | Path | None = None,
    fingerprint: str | None = None,
    progress: Progress | None = None,
    groups: ArrayLike | Tensor | None = None,
    time: ArrayLike | Tensor | None = None,
    key: ArrayLike | Tensor | None = None,
    weights: ArrayLike | Tensor | None = None,
    columns: Sequence[str] = (),
    **options: Unpack[Options],
) -> Federation:
    """A federation from a map-style PyTorch dataset, or a ``datasets.Dataset`` of Hugging Face.

    Every item is read once, and kept in memory or, with `cache`, in a file from which batches are read, so that the
    items need not fit into memory. A dataset with random transforms is refused, because they would be frozen:
    `Federation.augmented` changes examples anew in every epoch.

    Args:
        dataset: has ``__len__`` and ``__getitem__``; all inputs of one shape. An item is a pair (input, target), whose
            input may be a mapping of names to arrays, or a tuple of arrays, for a network with several inputs (see
            `from_arrays`); or a mapping, whose fields are target, client and inputs. A picture of Pillow becomes
            ``(channels, height, width)``, from 0 to 1 unless it is standardised.
        client: ``(len(dataset),)`` client of each item; or the field that names it.
        target: field of the target, if items are mappings. Classes and clients have the names that a
            ``datasets.Dataset`` knows for them (``ClassLabel``).
        cache: folder for the decoded items. They are used again while the fingerprint is the same.
        fingerprint: text that is another one whenever the items are; default: what a ``datasets.Dataset`` says itself.
        progress: called with the number of items read and of all.
        groups: see `from_arrays`.
        time: see `from_arrays`.
        key: see `from_arrays`.
        weights: see `from_arrays`.
        columns: see `from_arrays`.
        options: see `from_arrays`.

    Raises:
        PluresError: among others for an item of another shape, which it names.

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
    count = len(dataset)
    if count == 0:
        raise PluresError("the dataset is empty: give at least one item")
    if cache is None and fingerprint is not None:
        raise PluresError("fingerprint: it belongs to a cache; give a folder as cache=, or leave it out")
    read = _Reader(dataset, target, client if isinstance(client, str) else None)
    inputs: dict[str, Array | Mapped]
    if cache is None:
        _refuse_randomness(read, count)
        examples = []
        for position in range(count):
            examples.append(read(position))
            if progress is not None:
                progress(position + 1, count)
        inputs = {name: np.stack([own[name] for own, _ in examples]) for name in examples[0][0]}
        marks = {name: np.stack([own[name] for _, own in examples]) for name in examples[0][1]}
        pictures = read.pictures
    else:
        types: dict[str, np.dtype[Any]] = {}
        state = _fingerprint(dataset, fingerprint)

        def example(position: int) -> Example:
            if position == 0:
                _refuse_randomness(read, count)
            own, also = read(position)
            also[PICTURE] = np.array(read.pictures)
            for name, values in own.items():
                if types.setdefault(name, values.dtype) != values.dtype:
                    raise PluresError(
                        f"dataset item {position}, {name}: of type {values.dtype}, but item 0 has {types[name]}; give "
                        "all one type"
                    )
            return {k: v.reshape(1) if v.ndim == 0 else v for k, v in own.items()}, also

        stored = decoded(count, example, f"dataset {state} {count} {target} {read.client}", Path(cache), progress)
        inputs, marks = {**stored.inputs}, {**stored.marks}
        pictures = bool(marks[PICTURE].all())
    if options.get("task") is None and options.get("classes") is None and (classes := _labels(dataset, target)):
        marks[TARGET], options["classes"] = _named(marks[TARGET], classes, target), classes
    if isinstance(client, str) and (clients := _labels(dataset, client)):
        marks[CLIENT] = _named(marks[CLIENT], clients, client)
    rows = of_arrays(
        inputs.get(ONE, inputs),
        marks[TARGET],
        marks[CLIENT] if isinstance(client, str) else client,
        groups,
        time,
        key,
        weights,
        columns,
    )
    also = ("client", "target", "cache", "fingerprint", "progress", *ARRAYS)
    return assemble(replace(rows, unit=LEVELS if pictures else None), options, "from_dataset", also)


@dataclass
class _Reader:
    """Reads items as inputs, target and client, all with the names and shapes of the first.

    Attributes:
        dataset: the items.
        target: field of the target.
        client: field of the client, or None.
        pictures: whether the only input of the first item is a picture.
        shapes: names and shapes of the first item that was read.
    """

    dataset: MapDataset
    target: str
    client: str | None
    pictures: bool = False
    shapes: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    def __call__(self, position: int) -> Example:
        where = f"dataset item {position}"
        given, target, client = self._parts(self.dataset[position], where)
        if not self.shapes:
            check_names(given)
            self.pictures = len(given) == 1 and _is_picture(next(iter(given.values())))
        inputs = {}
        for name, value in given.items():
            inputs[name] = _numbers(value, f"{where}, {name}", scalar=name != ONE or self.client is not None)
            if _is_picture(value) and len(given) > 1:
                inputs[name] = inputs[name].astype(np.float32) / np.float32(LEVELS)
        marks = {TARGET: as_array(target, f"{where}, target", scalar=True)}
        first = self.shapes or {
            "inputs": {k: v.shape for k, v in inputs.items()},
            TARGET: {TARGET: marks[TARGET].shape},
        }
        self.shapes = first
        if inputs.keys() != first["inputs"].keys():
            raise PluresError(f"{where}: inputs {', '.join(inputs)}, not {', '.join(first['inputs'])}")
        for what, shape in {**first["inputs"], **first[TARGET]}.items():
            values = marks[TARGET] if what == TARGET and what not in inputs else inputs[what]
            if values.shape != shape:
                raise PluresError(
                    f"{where}: {what} of shape {values.shape}, but item 0 has {shape}; crop or pad to one shape"
                )
        if self.client is not None:
            marks[CLIENT] = np.asarray(client)
            if marks[CLIENT].ndim or marks[CLIENT].dtype.kind not in "iufUb":
                raise PluresError(f"{where}: {self.client} is {described(client)}; give a name or a number of a client")
        return inputs, marks

    def _parts(self, item: Any, where: str) -> tuple[dict[str, Any], Any, Any]:
        """Inputs by name, target and client of an item."""
        if isinstance(item, Mapping):
            for option, name in (("target", self.target), ("client", self.client)):
                if name is not None and name not in item:
                    near = suggestion(name, [str(one) for one in item], "its fields are")
                    raise PluresError(f"{where}: no field {name!r}, which {option}= names; {near}")
            fields = {str(k): v for k, v in item.items() if k not in (self.target, self.client)}
            inputs = {ONE: next(iter(fields.values()))} if len(fields) == 1 else fields
            return inputs, item[self.target], None if self.client is None else item[self.client]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise PluresError(f"{where}: expected an (input, target) pair or a mapping, got {type(item).__name__}")
        if self.client is not None:
            raise PluresError(
                f"client={self.client!r} names a field, but {where} is a pair: give the client of each item instead"
            )
        several = named(item[0])
        return {ONE: item[0]} if several is None else several, item[1], None


def _numbers(value: Any, what: str, scalar: bool) -> Array:
    """An input as an array of numbers."""
    if _is_picture(value):
        if value.mode in DEEP:
            raise PluresError(f"{what}: has more than 8 bits for a colour; convert it to 8 bits, or to an array")
        return pixels_of(value)
    array = as_array(value, what, scalar=scalar)
    if array.dtype.kind not in "fiub":
        raise PluresError(f"{what}: {described(value)} is no number; encode it, or leave the field out of the dataset")
    return array


def _labels(dataset: MapDataset, field: str) -> tuple[str, ...]:
    """What a ``datasets.Dataset`` calls the numbers of a field (``ClassLabel``); empty if it does not say."""
    features = getattr(dataset, "features", None)
    return tuple(getattr(features.get(field), "names", None) or ()) if isinstance(features, Mapping) else ()


def _named(numbers: Array, names: tuple[str, ...], field: str) -> Array:
    """The names in the place of their numbers."""
    for position, number in enumerate(numbers):
        if not 0 <= number < len(names):
            raise PluresError(
                f"dataset item {position}: {field} {number} is none of its {len(names)} names; leave such items out"
            )
    return np.asarray(names)[numbers]


def _is_picture(value: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _fingerprint(dataset: MapDataset, given: str | None) -> str:
    found = given or getattr(dataset, "_fingerprint", None)
    if not isinstance(found, str):
        raise PluresError(
            "cache: nothing tells whether the dataset is the one that was decoded; give fingerprint=, a text that you "
            "change when its items change, such as its version"
        )
    return found


def _refuse_randomness(read: _Reader, count: int) -> None:
    """Refuse a dataset of which some items, read a few times, differ."""
    for position in sorted({place * (count - 1) // (AGAIN - 1) for place in range(AGAIN)}):
        first, *more = (read(position)[0] for _ in range(READ))
        for again in more:
            if any(values.tobytes() != again[name].tobytes() for name, values in first.items()):
                raise PluresError(
                    f"dataset item {position}: read twice, it differs, and training would always see one of its random "
                    'versions; leave random transforms out of the dataset, and use federation.augmented("crop(4)+flip")'
                )
