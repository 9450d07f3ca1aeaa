"""Decoded examples on disk: made once, complete or not at all, and reused until their source changes."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.brief import brief
from plures.errors import PluresError
from plures.federation.mapped import FileRows, Known, Mapped, contents

Array = NDArray[Any]
Progress = Callable[[int, int], None]
"""Is told how many examples are decoded, and of how many."""

log = logging.getLogger("plures.decoded")
ROWS, DIGESTS, MARKS, ABOUT = "rows", "digests", "marks.npz", "about.json"
VERSION = 2


@brief
@dataclass(frozen=True)
class Decoded:
    """Examples of one shape and type.

    Attributes:
        inputs: by name; of those on disk, batches are read from there.
        marks: what else is known of each example, by name, such as its target; in memory.
    """

    inputs: Mapping[str, Mapped]
    marks: Mapping[str, Array]


def source_of(files: Sequence[Path], how: str) -> str:
    """A digest of names, sizes and times of files, and of how they are decoded."""
    found = blake2b(how.encode(), digest_size=16)
    for file in files:
        try:
            about = file.stat()
        except OSError as error:
            raise PluresError(f"{file}: cannot be read ({error.strerror})") from error
        found.update(f"\0{file.resolve()}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    return found.hexdigest()


def decoded(
    count: int,
    read: Callable[[int], tuple[Mapping[str, Array], Mapping[str, Array]]],
    source: str,
    cache: Path,
    progress: Progress | None = None,
) -> Decoded:
    """The decoded examples of a source, from a folder that has one such set.

    They are written to another folder that is renamed when it is complete, so an interrupted command leaves none that
    looks finished. The folder of an earlier state of the source is removed then.

    Args:
        count: number of examples.
        read: inputs and marks of the example at a position; their names, shapes and types are those of all. Read in
            order, and only if they are not there yet.
        source: tells this state of the source from others.
        cache: folder for the decoded examples of this source.
        progress: is told about every example.
    """
    there = cache / blake2b(f"{VERSION} {source}".encode(), digest_size=16).hexdigest()
    if not (there / ABOUT).is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            making = Path(mkdtemp(prefix="making-", dir=cache))
        except OSError as error:
            raise PluresError(f"{cache}: cannot be written ({error.strerror}); give another as cache=") from error
        try:
            _write(making, count, read, progress)
            os.replace(making, there)
        except OSError as error:
            if not (there / ABOUT).is_file():  # else another process was faster
                raise PluresError(f"{cache}: decoded examples cannot be written ({error.strerror})") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
        for old in cache.iterdir():
            if old != there and (old / ABOUT).is_file():
                shutil.rmtree(old, ignore_errors=True)
    inputs = {}
    for place, (name, about) in enumerate(json.loads((there / ABOUT).read_text(encoding="utf-8")).items()):
        known = Known({about["floating"]: np.fromfile(there / f"{DIGESTS}-{place}", dtype="S16")})
        inputs[name] = Mapped(FileRows(there / f"{ROWS}-{place}", about["type"], tuple(about["shape"])), known=known)
    with np.load(there / MARKS, allow_pickle=False) as marks:
        return Decoded(inputs, dict(marks))


def _write(
    folder: Path,
    count: int,
    read: Callable[[int], tuple[Mapping[str, Array], Mapping[str, Array]]],
    progress: Progress | None,
) -> None:
    about: dict[str, dict[str, Any]] = {}
    marks: dict[str, list[Array]] = {}
    with ExitStack() as stack:
        files = []
        for position in range(count):
            inputs, own = read(position)
            if not about:
                for place, (name, one) in enumerate(inputs.items()):
                    # one input is compared as the real number that it usually becomes, several each as what they are
                    floating = len(inputs) == 1 or one.dtype.kind == "f"
                    about[name] = {"type": one.dtype.str, "shape": [count, *one.shape], "floating": floating}
                    files.append([stack.enter_context((folder / f"{k}-{place}").open("wb")) for k in (ROWS, DIGESTS)])
            for (name, one), (rows, digests) in zip(inputs.items(), files, strict=True):
                rows.write(np.ascontiguousarray(one).data)
                digests.write(contents(one[None], about[name]["floating"]).tobytes())
            for name, mark in own.items():
                marks.setdefault(name, []).append(mark)
            number = position + 1
            if progress is not None:
                progress(number, count)
            if number * 10 // count > position * 10 // count:
                log.info("decoded %d of %d examples", number, count)
        for out in (file for pair in files for file in pair):
            out.flush()
            os.fsync(out.fileno())
    np.savez(folder / MARKS, **{name: np.stack(values) for name, values in marks.items()})  # type: ignore[arg-type]
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
