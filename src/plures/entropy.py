"""Random numbers that nobody else can know: drawn from the operating system, or from a secret key in a file."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from plures.errors import PluresError

Entropy = Callable[[int], bytes]
"""``entropy(n)``: ``n`` random bytes, other ones in every call."""
KEY = 32
"""Bytes of a secret key."""


def uniform(entropy: Entropy, *shape: int) -> Tensor:
    """Random numbers in [0, 1) of 53 bits each, double."""
    words = torch.frombuffer(bytearray(entropy(8 * math.prod(shape))), dtype=torch.int64) if math.prod(shape) else None
    numbers = torch.zeros(0, dtype=torch.float64) if words is None else (words & (2**53 - 1)).double() / 2**53
    return numbers.reshape(shape)


def normal(entropy: Entropy, *shape: int) -> Tensor:
    """Independent standard normal numbers, double (Box and Muller 1958).

    Examples:
        >>> normal(Secret(bytes(32)).of("example"), 2, 3).shape
        torch.Size([2, 3])
    """
    half = -(-math.prod(shape) // 2)
    length, angle = uniform(entropy, 2, half)
    length, angle = (-2 * torch.log1p(-length)).sqrt(), 2 * math.pi * angle
    return torch.cat([length * angle.cos(), length * angle.sin()])[: math.prod(shape)].reshape(shape)


def normal_of(key: int, *shape: int) -> Tensor:
    """Independent standard normal numbers that follow from a key that is no secret, double."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


@dataclass(frozen=True)
class Secret:
    """A secret key, from which the random numbers of many purposes follow: whoever has it can repeat them, nobody else.

    Attributes:
        key: random bytes; no part of the text of this object.

    Examples:
        >>> secret = Secret(bytes(32))
        >>> secret.of("noise", 3)(4) == secret.of("noise", 3)(4), secret.of("noise", 3)(4) == secret.of("noise", 4)(4)
        (True, False)
    """

    key: bytes = field(repr=False)

    def of(self, *purpose: str | int) -> Entropy:
        """Random bytes of a purpose: the same ones whenever they are asked for in the same order."""
        calls = itertools.count()

        def drawn(count: int) -> bytes:
            return hashlib.shake_256(self.key + repr((*purpose, next(calls))).encode()).digest(count)

        return drawn

    def number(self, *purpose: str | int) -> int:
        """A random number of a purpose, from 0 to ``2 ** 63 - 1``."""
        return int.from_bytes(self.of(*purpose)(8), "big") >> 1


def kept(file: Path, remedy: str, *, new: bool, entropy: Entropy = os.urandom) -> Secret:
    """The secret in a file, which its owner alone may read.

    Args:
        file: where it is.
        remedy: what to do if it is lost.
        new: whether to draw it and write the file, if there is none yet.
        entropy: where new bytes come from.

    Raises:
        PluresError: if the file is missing and must not be made, cannot be read or written, or holds something else.
    """
    try:
        if new and not file.exists():
            half = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(entropy(KEY))
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(half, file)
        key = file.read_bytes()
    except FileNotFoundError as error:
        raise PluresError(f"{file} is missing: {remedy}") from error
    except OSError as error:
        raise PluresError(f"{file} cannot be used: {error.strerror}") from error
    if len(key) != KEY:
        raise PluresError(f"{file} has {len(key)} bytes and not {KEY}: {remedy}")
    if os.name == "posix" and file.stat().st_mode & 0o077:
        raise PluresError(f"{file} is not private: other users may read it; run `chmod 600 {file}`")
    return Secret(key)
