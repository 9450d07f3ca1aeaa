"""Inputs that stay in a file or a data set: a tensor of which only the rows asked for are ever read."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.brief import brief
from plures.content import alike
from plures.errors import PluresError

Array = NDArray[Any]
BLOCK = 1 << 25
"""Bytes that are read at once where all rows are read one after the other."""


class Rows(Protocol):
    """Raw rows of one shape and type, which can be read by position, and sent to other processes."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def take(self, places: NDArray[np.int64]) -> Array:
        """Rows at some positions, as an array of their own."""


@dataclass
class FileRows:
    """Rows in a file, of which those asked for are read.

    They are read, not mapped: a page of a mapped file makes up to 2 MB around it resident, so that the process would
    seem to hold the whole file.

    Attributes:
        path: the file.
        type: NumPy's name of the numbers' type.
        shape: ``(n, *features)``, in row-major order.
        offset: bytes before the first row.
    """

    path: Path
    type: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.type)

    @cached_property
    def _file(self) -> int:
        try:
            opened = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise PluresError(
                f"{self.path}: the inputs cannot be read from it ({error}); make the data again"
            ) from error
        weakref.finalize(self, os.close, opened)
        return opened

    def take(self, places: NDArray[np.int64]) -> Array:
        if len(places) and not (places.min() >= 0 and places.max() < self.shape[0]):
            raise IndexError(f"a row outside the {self.shape[0]} rows of {self.path}")
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        wide = found.nbytes // max(1, len(places))
        if wide == 0:
            return found
        view = found.reshape(-1).view(np.uint8).data
        ends = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)] if len(places) else []
        starts = (self.offset + places[ends[:-1]] * wide).tolist()  # of runs of rows that lie one after the other
        for (first, last), start in zip(pairwise(ends), starts, strict=True):
            self._fill(view[first * wide : last * wide], start)
        return found

    def _fill(self, view: memoryview, start: int) -> None:
        """Read bytes from a place of the file."""
        done = 0
        while done < len(view):
            if hasattr(os, "preadv"):
                read = os.preadv(self._file, [view[done:]], start + done)
            else:
                os.lseek(self._file, start + done, os.SEEK_SET)
                some = os.read(self._file, len(view) - done)
                read = len(some)
                view[done : done + read] = some
            if read == 0:
                raise PluresError(f"{self.path}: the file has become shorter; make the data again")
            done += read

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "type", "shape", "offset")}


def file_rows(array: Array) -> FileRows | None:
    """The file that an array of ``np.memmap`` or ``np.load(mmap_mode=)`` maps; ``None`` for any other array."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    base: Any = array
    while isinstance(base.base, np.memmap):
        base = base.base
    start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return FileRows(Path(str(array.filename)).resolve(), array.dtype.str, array.shape, int(base.offset) + int(start))


@brief
@dataclass
class Known:
    """What was found out about all raw rows, once.

    Attributes:
        digests: ``(n,)`` a digest of each row as floating-point (key ``True``) or whole numbers (``False``).
        bad: ``(n,)`` rows with a NaN or an infinite value.
    """

    digests: dict[bool, Array]
    bad: NDArray[np.bool_] | None = None


class Mapped(Tensor):
    """Inputs ``(n, *features)`` of which only rows are read: converted, scaled and moved when they are.

    To the rest of the code it is a tensor that can be indexed along its first axis. Whatever would need all of it at
    once is refused.

    Attributes:
        source: the raw rows.
        places: the rows of the source that are rows of this; ``None`` for all.
        exact: the floating-point type in which raw numbers are scaled, before they get the tensor's own type.
        moments: what is subtracted, and what divides the result, for each entry of the first feature dimension.
        known: what was found out about the rows.
    """

    source: Rows
    places: NDArray[np.int64] | None
    exact: torch.dtype
    moments: tuple[Tensor, Tensor] | None
    known: Known

    @staticmethod
    def __new__(
        cls,
        source: Rows,
        dtype: torch.dtype | None = None,
        *,
        device: torch.device | None = None,
        places: NDArray[np.int64] | None = None,
        exact: torch.dtype | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
        known: Known | None = None,
    ) -> Mapped:
        kind = dtype or torch.from_numpy(np.empty(0, source.dtype)).dtype
        size = (source.shape[0] if places is None else len(places), *source.shape[1:])
        made: Mapped = torch.Tensor._make_wrapper_subclass(cls, size, dtype=kind, device=device or torch.device("cpu"))
        made.source, made.places, made.moments = source, places, moments
        made.exact, made.known = exact or kind, known or Known({})
        return made

    def __init__(self, source: Rows, *args: Any, **options: Any) -> None:
        super().__init__()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        known = HANDLED.get(func.overloadpacket)
        if known is not None and isinstance(args[0], Mapped):
            return known(func, *args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        raise PluresError(
            f"inputs that are read from disk as they are needed cannot be changed or read as a whole ({name}): do it "
            "before they are stored, or load them into memory"
        )

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"<Mapped inputs {tuple(self.shape)} of type {self.dtype}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Mapped:
        return self._as()

    def __reduce_ex__(self, protocol: Any) -> Any:
        options = self._options()
        return _made, (self.source, self.dtype, {**options, "device": str(self.device)})

    def _options(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in ("places", "exact", "moments", "known")}
        return {**found, "device": self.device}

    def _as(self, dtype: torch.dtype | None = None, **options: Any) -> Mapped:
        return Mapped(self.source, dtype or self.dtype, **(self._options() | options))

    def typed(self, dtype: torch.dtype) -> Self:
        """The same rows as numbers of another type, which they are scaled in."""
        return self._as(dtype, exact=dtype)  # type: ignore[return-value]

    def some(self, rows: NDArray[np.int64]) -> Mapped:
        """Some of the rows, not read yet."""
        return self._as(places=rows if self.places is None else self.places[rows])

    def scaled(self, mean: Tensor, scale: Tensor) -> Mapped:
        """The same rows minus a mean, divided by a scale, for each entry of the first feature dimension."""
        return self._as(moments=(mean, scale))

    def rows(self, places: Tensor | NDArray[np.int64]) -> Tensor:
        """The rows at some positions, as an ordinary tensor."""
        chosen = places.cpu().numpy() if isinstance(places, Tensor) else places
        raw = self.source.take(chosen if self.places is None else self.places[chosen])
        found = torch.from_numpy(raw).to(self.device).to(self.exact)
        if self.moments is not None:
            shape = (1, -1, *[1] * (found.dim() - 2))
            mean, scale = (t.to(found).view(shape) for t in self.moments)
            found = (found - mean) / scale
        return found.to(self.dtype)

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], Array]]:
        """All raw rows of the source, a block at a time: their positions, and the rows."""
        n, wide = self.source.shape[0], max(1, math.prod(self.source.shape[1:]) * self.source.dtype.itemsize)
        step = max(1, BLOCK // wide)
        for first in range(0, n, step):
            places = np.arange(first, min(n, first + step))
            yield places, self.source.take(places)

    def digests(self, floating: bool | None = None) -> Array:
        """``(n,)`` a digest of each raw row; equal numbers of all types have the same.

        Args:
            floating: whether they are compared as floating-point numbers; default: as the type says.
        """
        kind = self.dtype.is_floating_point if floating is None else floating
        if kind not in self.known.digests:
            self.known.digests[kind] = np.concatenate([contents(raw, kind) for _, raw in self.blocks()])
        found = self.known.digests[kind]
        return found if self.places is None else found[self.places]

    def identity(self) -> Tensor:
        """``(n, 16)`` the digests as bytes, which stand for the rows where only their identity matters."""
        return torch.from_numpy(np.ascontiguousarray(self.digests()).view(np.uint8).reshape(-1, 16))

    def same(self, other: Mapped) -> bool:
        """Whether the other rows are the same numbers, of the same type and scaled alike, by their digests."""
        kind = (self.dtype, self.exact, self.shape, self.device)
        if kind != (other.dtype, other.exact, other.shape, other.device) or not alike(self.moments, other.moments):
            return False
        return bool(np.array_equal(self.digests(), other.digests()))

    def bad(self) -> Tensor:
        """``(n,)`` which rows have a NaN or an infinite value."""
        if self.known.bad is None:
            whole = self.source.dtype.kind != "f"
            n = self.source.shape[0]
            parts = [~np.isfinite(raw).reshape(len(raw), -1).all(1) for _, raw in (() if whole else self.blocks())]
            self.known.bad = np.concatenate(parts) if parts else np.zeros(n, dtype=bool)
        found = self.known.bad
        return torch.from_numpy(found if self.places is None else found[self.places])

    def summed(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of some rows, not scaled, for each entry of the first feature dimension.

        They are sums over blocks in double precision; the number and 1 where all are the same.
        """
        bare = self._as(moments=None)
        step = max(1, BLOCK // max(1, bare[:1].nbytes))

        def each() -> Iterator[Tensor]:
            for first in range(0, len(rows), step):
                yield bare.rows(rows[first : first + step]).double().transpose(0, 1).flatten(1)

        least = torch.stack([part.amin(1) for part in each()]).amin(0)
        most = torch.stack([part.amax(1) for part in each()]).amax(0)
        count = len(rows) * math.prod(self.shape[2:])
        mean = torch.stack([part.sum(1) for part in each()]).sum(0) / count
        spread = torch.stack([(part - mean[:, None]).square().sum(1) for part in each()]).sum(0) / count
        constant = least == most
        return torch.where(constant, least, mean), torch.where(constant, 1.0, spread.sqrt())


def contents(raw: Array, floating: bool) -> Array:
    """``(rows,)`` digests of inputs, the same for all types that hold the same numbers."""
    with np.errstate(over="ignore"):
        values = raw.reshape(len(raw), -1).astype(np.float32 if floating else np.int64, copy=False)
    if floating and bool((np.signbit(values) & (values == 0)).any()):
        values = values + 0  # -0.0 is the number 0.0
    view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    width = len(view) // max(1, len(values))
    return digests(view[row * width : (row + 1) * width] for row in range(len(values)))


def digests(contents: Iterable[bytes | memoryview]) -> Array:
    """A digest of 16 bytes for each content."""
    return np.frombuffer(b"".join(blake2b(one, digest_size=16).digest() for one in contents), dtype="S16")


def _made(source: Rows, dtype: torch.dtype, options: dict[str, Any]) -> Mapped:
    return Mapped(source, dtype, **{**options, "device": torch.device(options["device"])})


def _select(func: Any, values: Mapped, axis: int, index: Any) -> Tensor:
    if axis % values.dim():
        return Mapped.__torch_dispatch__(func, (), (None,))  # type: ignore[no-any-return]
    if isinstance(index, Tensor):
        return values.rows(index)
    return values.rows(np.array([index % len(values)]))[0]


def _index(func: Any, values: Mapped, indices: list[Tensor | None]) -> Tensor:
    first, *rest = indices
    if first is None or any(one is not None for one in rest):
        return Mapped.__torch_dispatch__(func, (), (None,))  # type: ignore[no-any-return]
    chosen = first.nonzero().squeeze(1) if first.dtype == torch.bool else first % len(values)
    return values.rows(chosen.reshape(-1)).view(*chosen.shape, *values.shape[1:])


def _slice(func: Any, values: Mapped, axis: int = 0, *places: int | None) -> Tensor:
    if axis % values.dim():
        return Mapped.__torch_dispatch__(func, (), (None,))  # type: ignore[no-any-return]
    return values.rows(np.arange(len(values))[slice(*(places or (None,)))])


def _copy(func: Any, values: Mapped, *, dtype: Any = None, device: Any = None, **_: Any) -> Mapped:
    return values._as(dtype, device=torch.device(device) if device is not None else values.device)


def _like(func: Any, values: Mapped, *args: Any, **options: Any) -> Any:
    return func(torch.empty(0, dtype=values.dtype, device=values.device), *args, **options)


ATEN = torch.ops.aten
HANDLED: dict[Any, Callable[..., Any]] = {
    ATEN.index_select: _select,
    ATEN.select: _select,
    ATEN.index: _index,
    ATEN.slice: _slice,
    ATEN._to_copy: _copy,
    ATEN.detach: lambda func, values: values._as(),
    ATEN.alias: lambda func, values: values._as(),
    ATEN.new_zeros: _like,
    ATEN.new_ones: _like,
    ATEN.new_empty: _like,
    ATEN.new_full: _like,
}
"""What can be done with mapped inputs; each is given the operation, and its arguments."""
