"""Files of examples: in folders ``client/class/*``, or in a list."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.brief import brief
from plures.errors import PluresError, suggestion


@brief
@dataclass(frozen=True)
class Listing:
    """Files with their clients and classes.

    Attributes:
        root: the folder that they are in.
        name: of the folder or the list.
        files: one for each example.
        clients: ``(n,)`` names.
        targets: ``(n,)`` texts.
        whole: whether they are all files in the folder, and not those of a list.
    """

    root: Path
    name: str
    files: list[Path]
    clients: NDArray[Any]
    targets: NDArray[Any]
    whole: bool

    @property
    def keys(self) -> NDArray[np.str_]:
        """What identifies each example: its path in the folder."""
        root = self.root
        return np.array(
            [one.relative_to(root).as_posix() if one.is_relative_to(root) else str(one) for one in self.files]
        )

    def cache(self, called: str) -> Path:
        """The folder for what is decoded, if no other is given; ``called`` is what the files of a folder are."""
        return self.root / ".plures" / (called if self.whole else self.name)


def listing(path: Path, suffixes: Sequence[str], called: str, columns: Sequence[str]) -> Listing:
    """The files in a folder, or those that a CSV file lists.

    Args:
        path: the folder, or the CSV file, to which its paths are relative.
        suffixes: of the files in a folder.
        called: what they are, for messages.
        columns: of a list: names of those with the file, the client and the class.
    """
    return _walked(path, suffixes, called) if path.is_dir() else _listed(path, called, columns)


def has(folder: Path, suffixes: Sequence[str]) -> bool:
    """Whether a folder has such files as ``client/class/*``."""
    return any(one.suffix.lower() in suffixes for one in folder.glob("[!.]*/[!.]*/*.*"))


def _walked(folder: Path, suffixes: Sequence[str], called: str) -> Listing:
    found = sorted(one for one in folder.glob("[!.]*/[!.]*/[!.]*") if one.suffix.lower() in suffixes)
    if not found:
        patterns = " or ".join(
            f"client/class/*{suffix}" if not place else f"*{suffix}" for place, suffix in enumerate(suffixes)
        )
        raise PluresError(f"{folder}: no {called} {patterns} in it; give such a folder, or a CSV file")
    clients, classes = [one.parts[-3] for one in found], [one.parts[-2] for one in found]
    return Listing(folder, folder.resolve().name, found, np.array(clients), np.array(classes), whole=True)


def _listed(path: Path, called: str, columns: Sequence[str]) -> Listing:
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PluresError(f"{path}: cannot be read as a CSV file ({error})") from error
    if not rows:
        raise PluresError(f"{path}: it lists no {called}; give a row for each")
    for option, column in zip(("file", "client", "target"), columns, strict=True):
        if column not in rows[0][1]:
            near = suggestion(column, [str(name) for name in rows[0][1]], "columns are")
            raise PluresError(f"{path}: no column {column!r}, which {option}= names; {near}")
        for line, row in rows:
            if not row[column]:
                raise PluresError(f"{path}, line {line}, column {column!r}: empty; complete it or remove the row")
    file, client, target = columns
    files = [path.parent / row[file] for _, row in rows]
    of = np.array([row[client] for _, row in rows])
    return Listing(path.parent, path.stem, files, of, np.array([row[target] for _, row in rows]), whole=False)
