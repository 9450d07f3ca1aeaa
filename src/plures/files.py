"""Files that are complete or absent: written beside their destination, renamed over it, verified when read."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plures.errors import PluresError, PluresWarning

T = TypeVar("T")
ABOUT = "plures"
"""Key of the description in the header of a tensor file."""
NO_ARCHIVE = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    BadZipFile,
    zlib.error,
)
"""Errors that NumPy raises for a file that is not an ``.npz``, or is damaged."""
VALUES, DIGEST = "values_sha256", "sha256"
"""Keys added to a description: the digest of the tensors, and the digest of all other entries."""


class DamagedError(PluresError):
    """A stored file does not hold what was written to it.

    Args:
        fault: the file, and what is wrong with it.
        remedy: what to do.
    """

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(f"{fault}; {remedy}")
        self.fault = fault


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary file to write, which then replaces ``file``; it is removed if that fails.

    The new content is flushed to disk, so neither a kill nor a power cut can undo it.

    Raises:
        PluresError: if the file cannot be written; the old one stays as it was.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _settle(temporary)
        temporary.replace(file)
        if os.name == "posix":  # a rename is an entry in the folder; elsewhere a folder cannot be opened
            _settle(file.parent)
    except (OSError, SafetensorError) as error:
        room = "free some space and give the same command again: " if full(error) else ""
        raise PluresError(f"cannot write {file}: {room}{error}; what was saved before is untouched") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def discard(file: Path) -> None:
    """Delete a file that is no longer needed, and what processes killed while they wrote it have left."""
    for path in (file, *file.parent.glob(f".{escape(file.name)}.*.tmp")):
        path.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Wait until what was written is on disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def full(error: BaseException) -> bool:
    """Whether an error, or its cause, says that the disk is full."""
    text = str(error)
    if (
        getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or "No space left" in text
        or "disk is full" in text
    ):
        return True
    return error.__cause__ is not None and full(error.__cause__)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before any work is done for it. Leaves nothing behind.

    Args:
        folder: an existing folder, or one to be made.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise PluresError(f"cannot write to {folder}: {place} is not a folder; choose another one")
    try:
        TemporaryDirectory(prefix=".plures", dir=place).cleanup()
    except OSError as error:
        raise PluresError(f"cannot write to {folder}: {error.strerror} in {place}; choose another one") from error


def check_file(file: Path) -> None:
    """Refuse a file that cannot be written, before any work is done for it."""
    if file.is_dir():
        raise PluresError(f"cannot write {file}: it is a folder; name a file")
    check_folder(file.parent)


SAFE = re.compile(r"[a-z0-9_=+,()\[\]'](?:[a-z0-9 _.=+,()\[\]'-]{0,98}[a-z0-9_=+,()\[\]'-])?")
LIKE_OURS = re.compile(r".*-[0-9a-f]{20}")
TAKEN = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])[ ]*(?:\..*)?")
"""Names reserved for devices on some systems, with any text after the first dot."""


def filed(name: str) -> str:
    """Convert a name to a file or folder name. Different names stay different, on every file system.

    A name that every file system accepts stays as it is. Otherwise unusual characters become dashes and a digest is
    added. That includes names with capitals: on some file systems, names that differ only in case are the same.
    """
    if SAFE.fullmatch(name) and not LIKE_OURS.fullmatch(name) and not TAKEN.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_=+,]+", "-", name)[:80].strip("-") or "name"
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
    return f"{plain}-{digest}"


def inside(root: Path, *names: str, suffix: str = "") -> Path:
    """A path inside a folder for any names, trusted or not: :func:`filed` makes a path component of each.

    Args:
        root: the folder; a link to it is followed.
        names: names of the folders below it; the last one names the file or folder itself.
        suffix: suffix of the file.

    Raises:
        PluresError: a link at this path leads out of the folder.
    """
    place = root.joinpath(*map(filed, names[:-1]), filed(names[-1]) + suffix)
    try:
        within = place.resolve().is_relative_to(root.resolve())
        _refuse_loops(place)
    except (OSError, RuntimeError) as error:
        raise PluresError(f"{place} cannot be used: {error}; remove the link there") from error
    if not within:
        raise PluresError(f"{place} is a link that leads out of {root}: remove it")
    return place


def _refuse_loops(place: Path) -> None:
    """Raise an error for links that lead to each other, which `Path.resolve` accepts since Python 3.13."""
    try:
        place.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise


def write(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description to one file, completely or not at all, with a digest of both."""
    plain = {**json.loads(json.dumps(strict(about))), VALUES: digest(tensors)}
    with replacing(file) as temporary:
        save_file(_apart(tensors), temporary, {ABOUT: json.dumps({**plain, DIGEST: _seal(plain)})})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with separate memory; only those that share memory are copied."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in seen else own
        seen.add(place)
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, types, shapes and bytes, ordered by name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.reshape(-1)
        total.update(flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _seal(plain: Mapping[str, Any]) -> str:
    """The digest of a JSON object's content, whatever its layout."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def unsealed(data: Mapping[str, Any], file: Path, remedy: str, *, earlier: bool = False) -> dict[str, Any]:
    """The entries of an object that was read from a file, checked against its digest.

    Args:
        data: the object.
        file: where it was read.
        remedy: what to do if it is damaged.
        earlier: whether to accept an object of an earlier version, which has no digest.

    Raises:
        DamagedError: if it differs from what was written.
    """
    plain = {key: value for key, value in data.items() if key != DIGEST}
    if DIGEST not in data and (VALUES in data or not earlier):
        raise DamagedError(f"{file} is damaged or of an earlier version of plures: it has no digest", remedy)
    if DIGEST in data and data[DIGEST] != _seal(plain):
        raise DamagedError(f"{file} is damaged: its content is not what was saved", remedy)
    return plain


@contextmanager
def understood(file: Path, remedy: str) -> Iterator[None]:
    """Refuse in one sentence a file whose digest is right but whose content cannot be used.

    The digest detects damage, not a forged file.

    Args:
        file: the file or folder that the block reads.
        remedy: what to do if it is refused.

    Raises:
        PluresError: if the content cannot be used; names the file.
    """
    try:
        yield
    except PluresError as error:
        if str(file) in str(error):
            raise
        raise PluresError(f"{file}: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise DamagedError(f"{file} does not hold what plures writes there ({first_line(error)})", remedy) from error


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def salvaged(reading: Callable[[], T], again: str) -> T | None:
    """Read a file whose content can be recomputed; ``None`` and a warning that names it if it is damaged.

    Args:
        reading: reads the file.
        again: what happens instead, for the warning.
    """
    try:
        return reading()
    except DamagedError as error:
        warnings.warn(f"{error.fault}: {again}", PluresWarning, stacklevel=3)
        return None


def describe(file: Path, remedy: str = "delete it") -> dict[str, Any]:
    """The JSON description in a file, without reading its tensors.

    Args:
        file: a file written by :func:`write`.
        remedy: what to do if it is damaged.

    Raises:
        DamagedError: if it is damaged.
    """
    return _read(file, remedy, earlier=False, tensors=False)[1]


def read(file: Path, remedy: str = "delete it", *, earlier: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file.

    Args:
        file: a file written by :func:`write`.
        remedy: what to do if it is damaged.
        earlier: whether to accept a file of an earlier version, which has no digest.

    Raises:
        DamagedError: if it is not exactly what was written.
    """
    return _read(file, remedy, earlier=earlier, tensors=True)


def _read(file: Path, remedy: str, *, earlier: bool, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, "pt") as handle:
            header = json.loads((handle.metadata() or {})[ABOUT])
            found = {key: handle.get_tensor(key) for key in handle.keys()} if tensors else {}  # noqa: SIM118
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise PluresError(f"{file} cannot be read: {error.strerror or error}") from error
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise DamagedError(f"{file} is not a file that plures wrote, or it is damaged: {error}", remedy) from error
    if not isinstance(header, dict):
        raise DamagedError(f"{file} is damaged: its description is not a JSON object", remedy)
    about = unsealed(header, file, remedy, earlier=earlier)
    values = about.pop(VALUES, None)
    if tensors and values not in (None, digest(found)):
        raise DamagedError(f"{file} is damaged: its values are not those that were saved", remedy)
    return found, about


def duplicate(file: Path, copy: Path) -> None:
    """Copy a file, completely or not at all."""
    with replacing(copy) as temporary:
        shutil.copyfile(file, temporary)


def write_text(file: Path, text: str, *, private: bool = False) -> None:
    """Write a text file completely or not at all; if it is ``private``, only its user may read it."""
    with replacing(file) as temporary:
        if private:
            temporary.touch(0o600)
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, data: Mapping[str, Any], *, private: bool = False) -> None:
    """Write an object to a JSON file, completely or not at all, with its digest as one more entry, ``sha256``.

    Args:
        file: where to write.
        data: anything JSON can hold; NaN becomes ``null``, infinity ``"inf"``.
        private: whether only its user may read it.
    """
    plain = strict(data)
    write_text(file, json.dumps({**plain, DIGEST: _seal(plain)}, indent=1), private=private)


def strict(value: Any) -> Any:
    """A value as JSON can represent it: NaN becomes ``null``, and infinity ``"inf"``."""
    if isinstance(value, Mapping):
        return {str(key): strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def read_json(file: Path, remedy: str = "delete it", *, earlier: bool = False) -> dict[str, Any]:
    """The object in a JSON file, without its digest.

    Args:
        file: a file written by :func:`write_json`.
        remedy: what to do if it is damaged.
        earlier: whether to accept an object without a digest.

    Raises:
        DamagedError: if it differs from what was written.
    """
    try:
        data = json.loads(file.read_bytes())
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise PluresError(f"{file} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{file} is damaged ({error})", remedy) from error
    if not isinstance(data, dict):
        raise DamagedError(f"{file} is damaged: it does not hold a JSON object", remedy)
    return unsealed(data, file, remedy, earlier=earlier)
