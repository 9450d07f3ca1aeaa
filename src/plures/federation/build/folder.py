"""A federation from a folder with one file per client."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError, PluresWarning
from plures.federation.build.assemble import assemble
from plures.federation.build.examples import of_arrays
from plures.federation.build.options import HINTS, Options
from plures.federation.federation import Federation
from plures.federation.inputs import joined
from plures.federation.options import checked
from plures.files import NO_ARCHIVE

Array = NDArray[Any]
FAMILIES = {"i": "class", "u": "class", "b": "class", "U": "text", "S": "text", "f": "number"}
"""Kind of a target's type -> its description; a folder's files must agree."""


def from_folder(path: str | Path, *, columns: Sequence[str] = (), **options: Unpack[Options]) -> Federation:
    """A federation from a folder with one ``.npz`` file per client; the file's stem is the client's name.

    Each file holds ``x`` ``(n_i, *features)`` and ``y`` ``(n_i,)`` or ``(n_i, outputs)``, and may hold ``group``,
    ``time``, ``key`` and ``weight`` (either all files or none). Several inputs are ``x.NAME``, one array for each, such
    as ``x.tokens`` and ``x.mask``. Pickled objects are refused.

    Args:
        path: the folder.
        columns: see `from_arrays`.
        options: see `from_arrays`; the name is that of the folder if not given.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> for client in ("A", "B"):
        ...     np.savez(folder / f"{client}.npz", x=np.arange(90.0).reshape(30, 3), y=np.arange(30) % 2)
        >>> plures.from_folder(folder, copies="allow").clients
        ('A', 'B')
    """
    folder = Path(path)
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise PluresError(_no_folder(folder))
    parts = [_read_client(file) for file in files]
    first = parts[0]
    inputs = [key for key in first if key == "x" or key.startswith("x.")]
    for file, part in zip(files, parts, strict=True):
        if part.keys() != first.keys():
            raise PluresError(
                f"{file}: holds {', '.join(part)}, but {files[0].name} holds {', '.join(first)}; they must agree"
            )
        for key in (*inputs, "y"):
            if part[key].shape[1:] != first[key].shape[1:]:
                raise PluresError(
                    f"{file}: rows of {key} have shape {part[key].shape[1:]}, but {first[key].shape[1:]} in "
                    f"{files[0].name}"
                )
        if options.get("task") is None and FAMILIES[part["y"].dtype.kind] != FAMILIES[first["y"].dtype.kind]:
            raise PluresError(
                f"{file}: y is of type {part['y'].dtype}, but of type {first['y'].dtype} in {files[0].name}: save all "
                "in one type, or give task="
            )
    whole = {key: np.concatenate([part[key] for part in parts]) for key in first}
    client = np.repeat([file.stem for file in files], [len(part["y"]) for part in parts])
    options.setdefault("name", folder.name)
    given = joined("x", whole)
    assert given is not None
    rows = of_arrays(given, whole["y"], client, whole.get("group"), None, whole.get("key"), None, columns)
    rows = replace(rows, weights=whole.get("weight"))
    rule = checked({**options}, HINTS, "from_folder", ("columns",)).get("split")
    if "time" in whole and rule is not None and rule.by == "time":
        rows = replace(rows, time=whole["time"])
    elif "time" in whole:
        warnings.warn(
            f'{folder}: the files hold time, but the split is random; give split=SplitRule(by="time") to train on the '
            "earliest rows and test on the latest",
            PluresWarning,
            stacklevel=2,
        )
    return assemble(rows, options, "from_folder", ("columns",))


def _no_folder(folder: Path) -> str:
    """Explain why a folder has no file to read."""
    if folder.is_file():
        return f"{folder} is a file: give the folder with one .npz file per client, or read it and use from_table"
    if not folder.is_dir():
        return f"{folder}: no such folder; give one with a .npz file per client"
    others = dict.fromkeys(file.suffix for file in sorted(folder.iterdir()) if file.suffix)
    held = f"; it holds {', '.join(others)} files" if others else ""
    return f"no .npz file in {folder}{held}: expected one per client, with arrays x and y"


def input_arrays(archive: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of an .npz file that are inputs: ``x``, or ``x.NAME`` for each of several."""
    return {key: archive[key] for key in archive if key == "x" or key.startswith("x.")}


def check_inputs(file: Path, names: Collection[str]) -> None:
    """Refuse one input beside several."""
    if len(names) > 1 and "x" in names:
        raise PluresError(f"{file}: it holds {' and '.join(names)}; give one input as x, or several as x.NAME each")


def _read_client(file: Path) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            part = input_arrays(archive)
            part |= {key: archive[key] for key in ("y", "group", "time", "key", "weight") if key in archive.files}
    except NO_ARCHIVE as error:
        raise PluresError(
            f"{file}: cannot be read as .npz without pickled objects ({error}); write it again"
        ) from error
    inputs = input_arrays(part)
    check_inputs(file, inputs)
    for key, found in (("x", inputs), ("y", "y" in part)):
        if not found:
            raise PluresError(f"{file}: array {key!r} is missing; each client's file holds x and y")
    for key, values in inputs.items():
        if values.dtype.kind not in "fiub":
            raise PluresError(f"{file}: {key} of type {values.dtype} is not a number; encode it, or use from_table")
    if part["y"].dtype.kind not in FAMILIES:
        raise PluresError(f"{file}: y of type {part['y'].dtype} is neither classes nor numbers")
    lengths = {key: len(values) if values.ndim else 0 for key, values in part.items()}
    if len(set(lengths.values())) > 1:
        raise PluresError(f"{file}: lengths differ: {', '.join(f'{key} {n}' for key, n in lengths.items())}")
    if lengths["y"] == 0:
        raise PluresError(f"{file}: client {file.stem!r} has no rows; give it data or remove the file")
    return part
