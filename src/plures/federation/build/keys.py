"""Identify the rows of a client when they are split."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.federation.build.examples import Examples
from plures.federation.build.inputs import Where
from plures.federation.mapped import Mapped, contents, digests

Array = NDArray[Any]


def keys_of(
    data: Examples, rows: Array, where: Where, raw: Array | Mapped | dict[str, Array | Mapped], floating: bool
) -> Array | None:
    """``(rows,)`` digests that identify a client's rows; None to use their order."""
    if data.keys is not None:
        return data.keys[rows]
    if data.key is None:
        return None if data.ordered else _contents(raw, floating)
    text = _texts(data.key[rows])
    codes = np.unique(text, return_inverse=True)[1].reshape(-1)
    pairs = where.client * (int(codes.max()) + 1) + codes
    _, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    if (counts > 1).any():
        at = int(first[counts > 1][0])
        client = where.names[int(where.client[at])]
        raise PluresError(
            f"key: {str(text[at])!r} stands for {int(counts.max())} rows of client {client!r}; each row needs its own"
        )
    return digests(key.encode() for key in text.tolist())


def _contents(raw: Array | Mapped | dict[str, Array | Mapped], floating: bool) -> Array:
    """``(rows,)`` digests of inputs; of several, the digests of their digests."""
    if not isinstance(raw, dict):
        return raw.digests(floating) if isinstance(raw, Mapped) else contents(raw, floating)
    each = [
        part.digests() if isinstance(part, Mapped) else contents(part, part.dtype.kind == "f") for part in raw.values()
    ]
    return each[0] if len(each) == 1 else digests(b"".join(row) for row in zip(*each, strict=True))


def _texts(values: Array) -> Array:
    """A text for each value, the same for all types that hold the same integer."""
    if values.dtype.kind in "fO":
        return np.array([str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values.tolist()])
    return values.astype(str)


def keys_of_texts(texts: Iterable[str]) -> Array:
    """``(rows,)`` digests that identify rows by texts."""
    return digests(text.encode() for text in texts)


def digest(content: bytes | memoryview) -> bytes:
    return blake2b(content, digest_size=16).digest()
