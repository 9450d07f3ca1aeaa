"""Decoded examples on disk: made once, complete or not at all, and reused until their source changes."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.federation.mapped import FileRows, Known, Mapped, contents

Array = NDArray[Any]
Progress = Callable[[int, int], None]
"""Is told how many examples are decoded, and of how many."""

log = logging.getLogger("plures")
ROWS, DIGESTS, ABOUT = "rows.bin", "digests.bin", "about.json"
VERSION = 1


def source_of(files: Sequence[Path], how: str) -> str:
    """A digest of names, sizes and times of files, and of how they are decoded."""
    found = blake2b(f"{VERSION} {how}".encode(), digest_size=16)
    for file in files:
        try:
            about = file.stat()
        except OSError as error:
            raise PluresError(f"{file}: cannot be read ({error.strerror})") from error
        found.update(f"\0{file.resolve()}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    return found.hexdigest()


def decoded(
    files: Sequence[Path], read: Callable[[Path], Array], how: str, cache: Path, progress: Progress | None = None
) -> Mapped:
    """The decoded examples of some files, from a folder that has one such set.

    They are written to another folder that is renamed when it is complete, so an interrupted command leaves none that
    looks finished. The folder of an earlier state of the source is removed then.

    Args:
        files: one example each.
        read: decodes a file; all examples have one shape and type.
        how: the options of `read`, as text.
        cache: folder for the decoded examples of this source.
        progress: is told about every example.
    """
    name = source_of(files, how)
    there = cache / name
    if not (there / ABOUT).is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            making = Path(mkdtemp(prefix="making-", dir=cache))
        except OSError as error:
            raise PluresError(f"{cache}: cannot be written ({error.strerror}); give another as cache=") from error
        try:
            _write(making, files, read, progress)
            os.replace(making, there)
        except OSError as error:
            if not (there / ABOUT).is_file():  # else another process was faster
                raise PluresError(f"{cache}: decoded examples cannot be written ({error.strerror})") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
        for old in cache.iterdir():
            if old != there and (old / ABOUT).is_file():
                shutil.rmtree(old, ignore_errors=True)
    about = json.loads((there / ABOUT).read_text(encoding="utf-8"))
    digests = np.fromfile(there / DIGESTS, dtype="S16")
    return Mapped(FileRows(there / ROWS, about["type"], tuple(about["shape"])), known=Known({True: digests}))


def _write(folder: Path, files: Sequence[Path], read: Callable[[Path], Array], progress: Progress | None) -> None:
    first: Array | None = None
    with (folder / ROWS).open("wb") as rows, (folder / DIGESTS).open("wb") as digests:
        for number, file in enumerate(files, start=1):
            one = np.ascontiguousarray(read(file))
            first = one if first is None else first
            if one.shape != first.shape or one.dtype != first.dtype:
                raise PluresError(
                    f"{file}: of shape {one.shape}, but {files[0]} has {first.shape}; give size= to bring all to one"
                )
            rows.write(one.data)
            digests.write(contents(one[None], True).tobytes())
            if progress is not None:
                progress(number, len(files))
            if number * 10 // len(files) > (number - 1) * 10 // len(files):
                log.info("decoded %d of %d examples", number, len(files))
        for out in (rows, digests):
            out.flush()
            os.fsync(out.fileno())
    assert first is not None
    about = {"type": first.dtype.str, "shape": [len(files), *first.shape]}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
