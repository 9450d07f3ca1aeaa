"""Personal leaves of all clients between their visits, in memory or on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Leaf

BLOCK = 1024
"""Number of clients read at once when all are needed."""


class Rows(Protocol):
    """The values of one leaf, one row per client."""

    def read(self, clients: list[int]) -> Tensor:
        """Rows of some clients, ``(clients, ...)``, as a copy; rows that were never written are undefined."""

    def write(self, clients: list[int], values: Tensor) -> None:
        """Replace rows."""


class MemoryRows:
    """Rows of one tensor; a row takes memory when it is first written."""

    def __init__(self, like: Tensor, clients: int) -> None:
        self._rows = torch.empty((clients, *like.shape), dtype=like.dtype, device=like.device)

    def read(self, clients: list[int]) -> Tensor:
        return self._rows[clients]

    def write(self, clients: list[int], values: Tensor) -> None:
        self._rows[clients] = values.to(self._rows.device)


class DiskRows:
    """Rows of one sparse file; a row takes space when it is first written."""

    def __init__(self, like: Tensor, clients: int, path: Path) -> None:
        self._like, self._path = like, path
        self._file = path.open("w+b")
        self._file.truncate(clients * like.nbytes)

    def read(self, clients: list[int]) -> Tensor:
        rows = torch.empty((len(clients), self._like.nbytes), dtype=torch.uint8)
        for begin, end in _neighbours(clients):
            self._file.seek(clients[begin] * self._like.nbytes)
            self._file.readinto(rows[begin:end].numpy().data)
        return rows.view(self._like.dtype).view(len(clients), *self._like.shape).to(self._like.device)

    def write(self, clients: list[int], values: Tensor) -> None:
        rows = values.detach().cpu().reshape(len(clients), self._like.numel()).contiguous().view(torch.uint8)
        try:
            for begin, end in _neighbours(clients):
                self._file.seek(clients[begin] * self._like.nbytes)
                self._file.write(rows[begin:end].numpy().data)
            self._file.flush()
        except OSError as error:
            raise PluresError(
                f"the clients' leaves cannot be written to {self._path.parent}: {error.strerror}; free some space, or "
                "choose another folder (clients_on_disk)"
            ) from error


def _neighbours(clients: list[int]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of consecutive clients, whose rows are adjacent in a file."""
    apart = np.flatnonzero(np.diff(clients) != 1) + 1
    return pairwise([0, *apart.tolist(), len(clients)] if clients else [])


class ClientStore:
    """Rows of personal leaves, one per client.

    A client that was never visited has the initial values. Its row is written only when it is first put, so a large
    population takes neither memory nor disk space before its clients are visited.

    Args:
        initial: initial value of every personal leaf.
        clients: size of the population.
        folder: keep rows in files under this folder; ``None`` for memory.
    """

    def __init__(self, initial: dict[Leaf, Tensor], clients: int, folder: Path | None = None) -> None:
        self._initial = initial
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="clients-")
        self.visited = torch.zeros(clients, dtype=torch.bool)
        self._rows = {leaf: self._empty(value, clients, i) for i, (leaf, value) in enumerate(initial.items())}

    def _empty(self, value: Tensor, clients: int, number: int) -> Rows:
        if self._folder is None or not value.numel():
            return MemoryRows(value, clients)
        return DiskRows(value, clients, Path(self._folder.name) / f"{number}.bin")

    def get(self, leaf: Leaf, clients: list[int]) -> Tensor:
        """Rows of some clients, ``(clients, ...)``, on the device of the initial value; a copy."""
        values = self._rows[leaf].read(clients)
        fresh = ~self.visited[clients]
        if bool(fresh.any()):
            values[fresh.to(values.device)] = self._initial[leaf]
        return values

    def __contains__(self, leaf: Leaf) -> bool:
        return leaf in self._rows

    def put(self, leaf: Leaf, clients: list[int], values: Tensor) -> None:
        """Store rows; call :meth:`mark` once all leaves of the clients are stored."""
        self._rows[leaf].write(clients, values)

    def mark(self, clients: list[int]) -> None:
        """Record that these clients now have their own values."""
        self.visited[clients] = True

    def mean(self, leaf: Leaf) -> Tensor:
        """Uniform mean over the clients that were visited; the initial value if there are none."""
        seen, initial = self._seen(), self._initial[leaf]
        if not seen:
            return initial
        blocks = [seen[i : i + BLOCK] for i in range(0, len(seen), BLOCK)]
        total = torch.stack([self.get(leaf, block).to(torch.float64).sum(0) for block in blocks]).sum(0) / len(seen)
        return (total if initial.is_floating_point() else total.round()).to(initial.dtype)

    def _seen(self) -> list[int]:
        seen: list[int] = self.visited.nonzero().squeeze(1).tolist()
        return seen

    def snapshot(self) -> dict[Leaf, Tensor]:
        """Rows of the visited clients, in client order, for a checkpoint."""
        seen = self._seen()
        return {leaf: rows.read(seen) for leaf, rows in self._rows.items()}

    def restore(self, visited: Tensor, rows: dict[Leaf, Tensor]) -> None:
        """Restore a snapshot."""
        seen = visited.nonzero().squeeze(1).tolist()
        for leaf, values in rows.items():
            self.put(leaf, seen, values)
        self.visited = visited.clone()
