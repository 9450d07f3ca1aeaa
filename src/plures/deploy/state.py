"""What a site keeps on its own disk between rounds: versions of its personal state."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from plures.errors import PluresError
from plures.files import read, write, write_text

FORMAT = 1
LEFT = "left"


class Versions:
    """Personal states of one client in one run, one file for each version.

    A version is the number of rounds that are finished when the upload made with it counts. Which one that is, the
    server says: a version that it never accepted is forgotten, and nothing is lost that it did accept.

    Args:
        folder: of this federation and method; made when it is first written to.
        run: fingerprint of the run; files of another run are refused.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    def _file(self, version: int) -> Path:
        return self.folder / f"state-{version:08d}.safetensors"

    def present(self) -> list[int]:
        """The versions on disk."""
        return sorted(int(file.stem.removeprefix("state-")) for file in self.folder.glob("state-*.safetensors"))

    def load(self, version: int) -> Mapping[str, Tensor] | None:
        """A version, or ``None`` if it is not there."""
        if not self._file(version).exists():
            return None
        tensors, about = read(self._file(version))
        self._check(about)
        return tensors

    def save(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a version whole, or not at all."""
        try:
            write(self._file(version), tensors, {"format": FORMAT, "run": self.run, "version": version})
        except (PluresError, OSError) as error:
            cause = error.__cause__ if isinstance(error, PluresError) else error
            full = getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            raise PluresError("its disk is full" if full else f"its state cannot be written: {error}") from error

    def prune(self, *kept: int) -> None:
        """Forget all versions that are older than the newest of these, but for them.

        A newer one stays: it was made for an order that overtook the present one, and may be the one that counts.
        """
        for version in self.present():
            if version < max(kept) and version not in kept:
                self._file(version).unlink(missing_ok=True)

    def _check(self, about: Mapping[str, Any]) -> None:
        if about.get("format") != FORMAT or about.get("run") != self.run:
            raise PluresError(
                f"{self.folder} holds the state of another run ({about.get('run')}, not {self.run}): "
                "delete it with `plures deploy leave`, or give the federation another name"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A lock on the folder, so that two orders never work on it at once."""
        with alone(self.folder, "busy with an earlier round"):
            yield


@contextmanager
def alone(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process; what a killed process has half written there is deleted.

    Args:
        folder: made if it is missing.
        busy: what to say if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            for file in folder.rglob(".*.tmp"):
                file.unlink(missing_ok=True)
            yield
    except Timeout as error:
        raise PluresError(busy) from error


def leave(folder: Path, reason: str = "") -> list[Path]:
    """Leave a federation: delete everything kept for it and note that orders are refused from now on.

    Args:
        folder: of the federation.
        reason: kept in the note, for the site's own records.

    Returns:
        The files that were deleted.
    """
    with suppress(PluresError):  # a full disk has room for the note only after the deletion
        write_text(folder / LEFT, reason)
    files = forget(folder)
    if not has_left(folder):
        write_text(folder / LEFT, reason)
    return files


def forget(folder: Path) -> list[Path]:
    """Delete everything in the folder of a site that has left, but for the note; the files that were deleted."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / LEFT)
    for file in files:
        file.unlink(missing_ok=True)
    for inner in sorted((f for f in folder.rglob("*") if f.is_dir()), reverse=True):
        with suppress(OSError):  # an order that is under way has written there: it forgets that itself
            inner.rmdir()
    return files


def has_left(folder: Path) -> bool:
    """Whether the site left the federation of this folder."""
    return (folder / LEFT).exists()
