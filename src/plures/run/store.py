"""Personal leaves of all clients between their visits, in memory or memory-mapped on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from plures.method import Leaf


class ClientStore:
    """Rows of personal leaves, one per client.

    A client that was never visited has the initial values; its row is written only when it is first put, so
    a large population costs address space and not memory.

    Args:
        initial: initial value of every personal leaf.
        clients: size of the population.
        folder: keep rows in files under this folder; ``None`` for memory.
    """

    def __init__(self, initial: dict[Leaf, Tensor], clients: int, folder: Path | None = None) -> None:
        self._initial = initial
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="clients-") if folder is not None else None
        self.visited = torch.zeros(clients, dtype=torch.bool)
        self._rows = {leaf: self._empty(value, clients) for leaf, value in initial.items()}

    def _empty(self, value: Tensor, clients: int) -> Tensor:
        shape = (clients, *value.shape)
        if self._folder is None:
            return torch.empty(shape, dtype=value.dtype, device=value.device)
        file = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}.bin"
        count = clients * max(value.numel(), 1)
        return torch.from_file(str(file), shared=True, size=count, dtype=value.dtype).view(shape)

    def get(self, leaf: Leaf, clients: list[int]) -> Tensor:
        """Rows of some clients, ``(clients, ...)``, on the device of the initial value; a copy."""
        initial, rows = self._initial[leaf], self._rows[leaf]
        values = rows[clients].to(initial.device)
        fresh = ~self.visited[clients]
        if bool(fresh.any()):
            values[fresh.to(values.device)] = initial
        return values

    def __contains__(self, leaf: Leaf) -> bool:
        return leaf in self._rows

    def put(self, leaf: Leaf, clients: list[int], values: Tensor) -> None:
        """Store rows; call :meth:`mark` once all leaves of the clients are stored."""
        self._rows[leaf][clients] = values.to(self._rows[leaf].device)

    def mark(self, clients: list[int]) -> None:
        """Note that these clients hold their own values now."""
        self.visited[clients] = True

    def mean(self, leaf: Leaf) -> Tensor:
        """Uniform mean over the clients that were visited; the initial value when there is none."""
        seen = self.visited.nonzero().squeeze(1).tolist()
        initial = self._initial[leaf]
        if not seen:
            return initial
        mean = self.get(leaf, seen).to(torch.float64).mean(0)
        return (mean if initial.is_floating_point() else mean.round()).to(initial.dtype)

    def snapshot(self) -> dict[Leaf, Tensor]:
        """Rows of the visited clients, in client order, for a checkpoint."""
        seen = self.visited.nonzero().squeeze(1).tolist()
        return {leaf: rows[seen] for leaf, rows in self._rows.items()}

    def restore(self, visited: Tensor, rows: dict[Leaf, Tensor]) -> None:
        """Take over a snapshot."""
        seen = visited.nonzero().squeeze(1).tolist()
        for leaf, values in rows.items():
            self.put(leaf, seen, values)
        self.visited = visited.clone()
