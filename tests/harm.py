"""Damage to files, for tests that stored data is either read correctly or reported by name."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plures.errors import PluresError

EVERY = 3000
"""Up to this many bytes, each is flipped."""


def harmed(content: bytes, flips: int = 600, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """A file's content after a flipped bit (at its ends, and anywhere), a cut, zeroes, a doubled write, garbage.

    Args:
        content: of the whole file.
        flips: how many bytes of a large file are flipped, one at a time.
        seed: which ones, and which bit of each.
    """
    draw = random.Random(seed)
    every = range(len(content))
    places = every if len(content) < EVERY and flips >= 600 else draw.sample(every, min(flips, len(content)))
    for place in sorted({*places, *every[:9], *every[-8:]}):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        yield f"bit of byte {place}", bytes(flipped)
    for length in (0, 1, 7, 8, 9, len(content) // 2, len(content) - 1):
        yield f"cut to {length}", content[:length]
    for start in (0, 8, len(content) // 2, max(0, len(content) - 512)):
        end = min(len(content), start + 512)
        yield f"zeroes at {start}", content[:start] + bytes(end - start) + content[end:]
    yield "all zeroes", bytes(len(content))
    yield "written twice", content + content
    yield "garbage behind", content + b"\0garbage"
    yield "a newline behind", content + b"\n"
    yield "another file", b"not what was written\n" * 20


def survived(
    file: Path, reading: Callable[[], Any], same: Callable[[Any], bool], flips: int = 600, seed: int = 0
) -> dict[str, int]:
    """Damage a file in every way; how often it was still read correctly, and how often an error named it.

    Args:
        file: left as it was.
        reading: what uses it.
        same: whether what was read is what was written.
        flips: see :func:`harmed`.
        seed: see :func:`harmed`.
    """
    content, found = file.read_bytes(), {"right": 0, "named": 0}
    for what, harm in harmed(content, flips, seed):
        if harm == content:
            continue
        file.write_bytes(harm)
        refused, right = "", False
        try:
            right = same(reading())
        except PluresError as error:
            refused = str(error)
        assert right or str(file) in refused, f"{what}: {refused or 'other content'}"
        assert len(refused.splitlines()) <= 1, what
        found["named" if refused else "right"] += 1
    file.write_bytes(content)
    assert same(reading())
    return found


def stray(folder: Path) -> list[str]:
    """Partly written files."""
    return [str(file) for file in folder.rglob("*.tmp")]


class Disk:
    """A disk with room for a given number of further files in a folder.

    Every file that plures keeps is settled on the disk before it counts; there a full disk shows at the latest.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.room, self.taken, settle = folder, 10**9, 0, os.fsync

        def fsync(handle: int) -> None:
            file = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if self.folder in file.parents and not file.is_dir():
                if self.taken >= self.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.taken += 1
            settle(handle)

        monkeypatch.setattr(os, "fsync", fsync)
