"""Files that are whole or not there: written beside their place, then renamed over it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plures.errors import PluresError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary file to write, which then takes the place of ``file``; nothing of it is left if that fails."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise PluresError(f"cannot write {file}: {error}; what was saved before is untouched") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Refuse a folder in which nothing can be written, before any work is done for it. Leaves nothing.

    Args:
        folder: there, or to be made.
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
"""Names of devices on some systems, whatever comes after the first dot."""


def filed(name: str) -> str:
    """A name as the name of a file or folder; two names never share one, and none means anything to a file system.

    A name that every file system takes stays as it is; in another, odd signs become dashes and a digest is added. So it
    is with capitals, for on some file systems names that differ by them alone are one.
    """
    if SAFE.fullmatch(name) and not LIKE_OURS.fullmatch(name) and not TAKEN.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_=+,]+", "-", name)[:80].strip("-") or "name"
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
    return f"{plain}-{digest}"


def inside(root: Path, *names: str) -> Path:
    """The place for something in a folder, whatever it is called: each name becomes one that :func:`filed` makes.

    Args:
        root: the folder; a link to it is followed.
        names: of the folders below it, the last of the file or folder itself. Who gave them does not matter.

    Raises:
        PluresError: a link at the place leads out of the folder.
    """
    place = root.joinpath(*map(filed, names))
    try:
        within = place.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:
        raise PluresError(f"{place} cannot be used: {error}; remove the link there") from error
    if not within:
        raise PluresError(f"{place} is a link that leads out of {root}: remove it")
    return place


def write(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description to one file, whole or not at all."""
    with replacing(file) as temporary:
        save_file(
            {k: t.cpu().contiguous().clone() for k, t in tensors.items()}, temporary, {"plures": json.dumps(about)}
        )
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())


def write_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe(file: Path) -> dict[str, Any]:
    """The JSON description in a file, without reading its tensors."""
    try:
        with safe_open(file, "pt") as handle:
            about: dict[str, Any] = json.loads((handle.metadata() or {})["plures"])
            return about
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise PluresError(f"{file} is not a file that plures wrote, or it is damaged: {error}; delete it") from error


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file."""
    about = describe(file)
    with safe_open(file, "pt") as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}, about  # noqa: SIM118
