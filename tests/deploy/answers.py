"""Changes to a site's answers on their way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor

from plures.remote.message import HEADER, Reply, pack, unpack

Tensors = dict[str, Tensor]


Spoil = Callable[[bytes], bytes | str]


def header(text: bytes, tensors: bytes = b"") -> bytes:
    """A message with this header."""
    return len(text).to_bytes(8, "little") + text + tensors


def told(message: bytes) -> dict[str, Any]:
    """The whole header of a message, with the positions of its tensors."""
    found: dict[str, Any] = json.loads(message[8 : 8 + int.from_bytes(message[:8], "little")])
    return found


def reply(**changes: Any) -> Spoil:
    """The same answer, except for some fields of its JSON part."""

    def spoil(message: bytes) -> bytes:
        whole, length = told(message), int.from_bytes(message[:8], "little")
        fields = json.loads(whole["__metadata__"][HEADER]) | changes
        whole["__metadata__"][HEADER] = json.dumps(fields)
        return header(json.dumps(whole).encode(), message[8 + length :])

    return spoil


def tensors(change: Callable[[Tensors], Tensors]) -> Spoil:
    """The same answer, except for its tensors."""

    def spoil(message: bytes) -> bytes:
        said, found = unpack(message, Reply)
        return pack(said, change(found))

    return spoil


def each(change: Callable[[Tensor], Tensor], kind: str = "") -> Spoil:
    """Change every tensor whose name has this prefix."""
    return tensors(lambda found: {k: change(t) if k.startswith(kind) else t for k, t in found.items()})
