"""Objects as bytes and arrays: large tensors stay apart, so that other processes can read them where they lie."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plures.errors import PluresError
from plures.extras import needed

APART = 4096
"""Bytes from which a tensor is an array of its own."""
Bytes = NDArray[np.uint8]


class Packed(NamedTuple):
    """An object for other processes.

    Attributes:
        body: all but its large tensors.
        parts: those, ``(bytes,)`` each; without a copy where the tensor is on the CPU.
    """

    body: Bytes
    parts: list[Bytes]

    @property
    def key(self) -> str:
        """A digest of the content."""
        found = hashlib.sha256()
        for part in (self.body, *self.parts):
            found.update(len(part).to_bytes(8, "little"))
            found.update(part.data)
        return found.hexdigest()

    def unpacked(self, *, copied: bool = False) -> Any:
        """The object.

        Args:
            copied: whether its tensors are copies. If not, they share the memory of the arrays, and must not be
                changed.
        """
        return pickle.loads(self.body.data, buffers=[part.copy() if copied else part for part in self.parts])


def pack(what: object, option: str, extra: str, called: str, *, apart: bool = True) -> Packed:
    """Pack an object: definitions in a script or notebook by value, the rest by name.

    Args:
        what: the object.
        option: the option that needs it, for errors.
        extra: the extra of plures that installs what this needs.
        called: what the object is called in errors.
        apart: whether large tensors lie apart. If not, whoever unpacks the object has tensors of its own, and may
            change them: the parameters of a network, for example, to which steps write.

    Raises:
        PluresError: if cloudpickle is missing, or if a part cannot leave this process.
    """
    pickler: Any = needed("cloudpickle", option, extra).CloudPickler
    parts: list[Bytes] = []

    class Apart(pickler):  # type: ignore[misc]
        """Leaves large tensors out."""

        def reducer_override(self, one: Any) -> Any:
            if not _plain(one):
                return super().reducer_override(one)
            held = one.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            own = pickle.PickleBuffer(held) if apart and one.nbytes >= APART else bytearray(held)
            return _tensor, (own, one.dtype, tuple(one.shape), one.device.type)

    def keep(buffer: pickle.PickleBuffer) -> None:
        parts.append(np.frombuffer(buffer.raw(), np.uint8))

    body = io.BytesIO()
    try:
        Apart(body, protocol=5, buffer_callback=keep).dump(what)
    except Exception as error:  # a user's class may raise anything when it is pickled
        raise PluresError(
            f"{option}: {called} cannot be sent to other processes ({type(error).__name__}: {error}): give data, "
            f"network and methods by name, create what cannot be sent inside the function that uses it, or leave "
            f"{option.partition('=')[0]} out"
        ) from error
    return Packed(np.frombuffer(body.getbuffer(), np.uint8), parts)


def _plain(one: object) -> bool:
    """Whether an object is a tensor that nothing but its values makes; others have names that differ each time."""
    if type(one) is not Tensor or one.layout != torch.strided or one.is_quantized:
        return False
    return one.is_contiguous() and not one.requires_grad and one.nbytes > 0


def _tensor(held: Sequence[int], dtype: torch.dtype, shape: tuple[int, ...], device: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        flat = torch.frombuffer(held, dtype=torch.uint8)
    return flat.view(dtype).view(shape).to(device)
