"""Random numbers that depend on names, never on call order or on the process."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: object) -> np.random.Generator:
    """A generator that is a pure function of its key, e.g. ``generator(seed, "split", client)``.

    The key's parts are joined by their ``repr`` and hashed (SHA-256); 128 bits of the hash are the key of a Philox
    generator, so two different keys give independent streams on every machine.
    """
    digest = hashlib.sha256("\x1f".join(map(repr, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
