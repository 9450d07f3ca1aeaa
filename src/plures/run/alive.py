"""The tensors that are alive at once, each storage counted once."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plures.models import nested
from plures.models.modes import Mode


def storages(values: object) -> dict[int, int]:
    """Bytes of every storage behind the tensors of a nested structure, by the storage's address."""
    found = [t.untyped_storage() for t in nested.ends(values) if isinstance(t, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


@dataclass
class Peak:
    """Current and peak bytes, each storage counted once.

    Attributes:
        peak: most bytes held at once.
    """

    peak: int = 0
    _now: int = 0
    _held: dict[int, tuple[int, int]] = field(default_factory=dict)

    def hold(self, owner: object, key: int, size: int) -> None:
        """Count a storage while an object lives."""
        owners, _ = self._held.get(key, (0, 0))
        self._held[key] = (owners + 1, size)
        self._now += 0 if owners else size
        self.peak = max(self.peak, self._now)
        weakref.finalize(owner, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        owners, size = self._held.pop(key)
        if owners > 1:
            self._held[key] = (owners - 1, size)
        else:
            self._now -= size


class Alive(Mode):  # type: ignore[no-untyped-call]
    """Tracks every storage created while the mode is on.

    Attributes:
        peak: most bytes of them alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._peak = Peak()
        self._known: set[int] = set()

    @property
    def peak(self) -> int:
        return self._peak.peak

    def done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = {t.untyped_storage().data_ptr() for t in nested.ends((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for tensor in nested.ends(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), before)
        return out

    def _note(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage.data_ptr()
        if key and key not in before and key not in self._known:
            self._known.add(key)
            self._peak.hold(storage, key, storage.nbytes())
            weakref.finalize(storage, self._known.discard, key).atexit = False
