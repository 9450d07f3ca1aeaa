"""A site's files between rounds: versions of its personal state."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

from filelock import FileLock, Timeout
from torch import Tensor

from plures.errors import PluresError
from plures.files import DamagedError, full, read, write, write_text

log = logging.getLogger(__name__)

FORMAT = 1
LEFT, PUBLISHED = "left", "published"
SUM = "sum.json"
"""A site's secrets of a secure sum that is under way."""
OURS = re.compile(
    r"(?:state-\d+|answer-[^/]+|state|sum|checkpoint(?:\.copy|\.before)?)\.safetensors"
    r"|(?:ledger|result|ceiling|sum)\.json|lock|secret|log\.jsonl(?:\.\d+)?|metrics\.prom"
    r"|published/(?:model\.safetensors|card\.(?:json|md))"
)
"""Files that plures writes to the folder of a site or of a coordinator. No other file there is ever deleted."""
HALF = re.compile(r"\.(.+)\.\d+\.tmp")
"""A file that a killed process left half-written."""


def ours(file: Path) -> bool:
    """Whether a file in such a folder is one that plures writes, complete or half-written."""
    half = HALF.fullmatch(file.name)
    name = half[1] if half else file.name
    return OURS.fullmatch(f"{PUBLISHED}/{name}" if file.parent.name == PUBLISHED else name) is not None


class ToldError(PluresError):
    """An error whose message the server may read, since it contains nothing local. Its cause goes to the site's log.

    Attributes:
        status: the status that the server is sent.
    """

    status: ClassVar[Literal["refused", "lost", "failed"]] = "failed"


class RefusedError(ToldError):
    """An order that the site's rules do not allow."""

    status = "refused"


class LostError(ToldError):
    """The version of the personal state that the server counts on is not on the disk."""

    status = "lost"


@contextmanager
def writing() -> Iterator[None]:
    """Turn an error of writing a file into one that the server may read."""
    try:
        yield
    except (PluresError, OSError) as error:
        why = "its disk is full" if full(error.__cause__ or error) else "its state cannot be written"
        raise ToldError(why) from error


class Versions:
    """Personal states of one client in one run, one file for each version.

    A version is numbered by the rounds that are finished once the upload made with it is applied. The server decides
    which versions count: one that it never accepted is deleted in time, and one that it accepted is not lost.

    Args:
        folder: folder of this federation and method; created on the first write.
        run: fingerprint of the run; files of another run are refused.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    def _file(self, version: int) -> Path:
        return self.folder / f"state-{version:08d}.safetensors"

    def present(self) -> list[int]:
        """The versions on disk."""
        found = (file.stem.removeprefix("state-") for file in self.folder.glob("state-*.safetensors"))
        return sorted(int(number) for number in found if number.isdecimal())

    def load(self, version: int) -> Mapping[str, Tensor] | None:
        """Load a version; ``None`` if it is missing, or damaged (the log then names the file).

        Raises:
            PluresError: if it belongs to another run.
        """
        if not self._file(version).exists():
            return None
        try:
            tensors, about = read(self._file(version), "this version is lost, and the client starts afresh")
        except DamagedError as error:
            log.warning("%s", error)
            return None
        self._check(about)
        return tensors

    def save(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a version completely, or not at all."""
        with writing():
            write(self._file(version), tensors, {"format": FORMAT, "run": self.run, "version": version})

    def prune(self, newest: int, named: Collection[int]) -> None:
        """Delete old versions.

        Args:
            newest: how many of the newest versions stay, whatever an order says.
            named: further versions that stay.
        """
        for version in self.present()[:-newest]:
            if version not in named:
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
        with alone(self.folder, ToldError("busy with an earlier round")):
            yield


@contextmanager
def alone(folder: Path, busy: PluresError) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process, and delete half-written files of a killed process.

    Args:
        folder: created if it is missing.
        busy: the error to raise if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            for place in (folder, folder / PUBLISHED):
                for file in place.glob(".*.tmp"):
                    if ours(file):
                        file.unlink(missing_ok=True)
            yield
    except Timeout as error:
        raise busy from error


def leave(folder: Path, reason: str = "") -> list[Path]:
    """Leave a federation: delete everything kept for it and note that orders are refused from now on.

    Args:
        folder: folder of the federation.
        reason: kept in the note, for the site's own records.

    Returns:
        The files that were deleted. Files that plures did not write stay; see :func:`strangers`.
    """
    with suppress(PluresError):  # on a full disk there is room for the note only after the deletion
        write_text(folder / LEFT, reason)
    files = forget(folder)
    if not has_left(folder):
        write_text(folder / LEFT, reason)
    return files


def forget(folder: Path) -> list[Path]:
    """Delete all files that plures wrote to the folder of a site that has left, except the note. Returns them."""
    files, _ = _sorted(folder)
    for file in files:
        file.unlink(missing_ok=True)
    for inner, _, _ in os.walk(folder, topdown=False):
        if Path(inner) != folder:
            with suppress(OSError):  # it holds a foreign file, or an order under way has written there
                os.rmdir(inner)
    return files


def strangers(folder: Path) -> list[Path]:
    """Files and links in the folder of a site that plures did not write."""
    return _sorted(folder)[1]


def _sorted(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files in a folder that plures wrote, and all others except the note. Links are not followed."""
    known, others = [], []
    for inner, folders, files in os.walk(folder):
        place = Path(inner)
        others += [place / name for name in folders if (place / name).is_symlink()]
        for file in (place / name for name in files):
            if ours(file):
                known.append(file)
            elif file != folder / LEFT:
                others.append(file)
    return sorted(known), sorted(others)


def back(folder: Path) -> None:
    """Take part again. Past answers were deleted with the state, so this is consent to a new run."""
    (folder / LEFT).unlink(missing_ok=True)


def has_left(folder: Path) -> bool:
    """Whether the site left the federation of this folder."""
    return (folder / LEFT).exists()
