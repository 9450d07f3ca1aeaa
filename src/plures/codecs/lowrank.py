"""Low rank: a matrix of a change as the product of two thin ones."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.method import Codec, Leaves, Sending
from plures.models.layers import uniform


@dataclass(frozen=True)
class LowRank(Codec):
    """PowerSGD's approximation of rank ``r`` (Vogels, Karimireddy, Jaggi 2019, Algorithm 1), for each client by itself.

    A tensor ``(o, ...)`` is read as a matrix ``M`` of ``o`` rows. With ``Q`` of the client's last visit,
    ``P = orthogonal(M Q)`` and ``Q = M^T P``; both are sent, and ``P Q^T`` stands for ``M``. So one step of the power
    iteration is made in each visit. The first ``Q`` is the same pseudo-random matrix everywhere. Tensors for which
    ``P`` and ``Q`` are no smaller, such as biases, are sent as they are.

    The paper averages ``P`` over the workers before it computes ``Q``, which takes two exchanges; here each client
    sends an approximation of its own. Use it with error feedback, as the paper does (its Algorithm 2):
    ``lowrank+feedback``.

    Attributes:
        rank: ``r``.
    """

    rank: int = 2

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PluresError(f"LowRank: rank={self.rank}; give a positive whole number")

    def start(self, change: Leaves) -> Leaves:
        return {f"right:{k}": self.first(k, matrices(t)) for k, t in change.items() if self.thin(t)}

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        payload, kept = Leaves(), Leaves()
        for name, tensor in change.items():
            if not self.thin(tensor):
                payload[f"whole:{name}"] = tensor
                continue
            matrix = matrices(tensor)
            left = torch.linalg.qr(matrix @ memory[f"right:{name}"]).Q
            right = matrix.mT @ left
            payload |= {f"left:{name}": left, f"right:{name}": right}
            kept[f"right:{name}"] = right
        return payload, kept

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        found = Leaves()
        for name, form in like.items():
            if self.thin(form):
                product = payload[f"left:{name}"] @ payload[f"right:{name}"].mT
                found[name] = product.reshape(len(product), *form.shape[1:])
            else:
                found[name] = payload[f"whole:{name}"]
        return found

    def thin(self, tensor: Tensor) -> bool:
        """Whether the factors of a tensor ``(clients, o, ...)`` are smaller than the tensor."""
        if tensor.dim() < 3 or not tensor.is_floating_point():
            return False
        rows, columns = matrices(tensor[:1]).shape[1:]
        return self.rank * (rows + columns) < rows * columns

    def first(self, name: str, matrix: Tensor) -> Tensor:
        """The ``Q`` before a client's first visit, ``(1, columns, rank)``."""
        columns = matrix.shape[2]
        numbers = uniform(torch.tensor(crc32(name.encode()), device=matrix.device), columns * self.rank) - 0.5
        return numbers.view(1, columns, self.rank).to(matrix.dtype)


def matrices(tensor: Tensor) -> Tensor:
    """A tensor ``(clients, o, ...)`` as matrices ``(clients, o, rest)``."""
    return tensor.flatten(2)
