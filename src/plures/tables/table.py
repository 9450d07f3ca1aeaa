"""Raw tables: mappings, frames and files, read column by column."""

from __future__ import annotations

import csv
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from plures.cells import Lines
from plures.errors import PluresError, closest
from plures.federation.encode import Frame
from plures.files import write_text
from plures.texts import csv_text, uncelled

V = TypeVar("V")

MISSING = ("", "?", "NA")
"""Strings that mean a missing value in a CSV file."""
SEPARATORS = (",", ";", "\t", "|")
"""What may stand between the columns of a text file."""
PRESENT = {"true": "1", "yes": "1", "false": "0", "no": "0"}
"""Words in a column of a label: whether it is present."""
WHOLE = re.compile(r"(-?\d+)\.0+")
DECIMAL = re.compile(r"-?\d+(,\d+)?")
SAFE = (14, 0, 1)
"""The first pyarrow that runs no code from a Parquet file."""

Cells = list[Any] | NDArray[Any]
"""A column: an array of numbers, or a list of anything."""


class Column(Protocol):
    """Values of one column: a sequence, an array, or a series of pandas or polars."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Table = Mapping[str, Column] | Frame
"""Column names and values: a mapping, or a frame of pandas or polars."""


def columns(table: Table) -> dict[str, Cells]:
    """The columns of a table, all of one length.

    Raises:
        PluresError: if it is not a table, or columns differ in length.
    """
    if hasattr(table, "collect") and not hasattr(table, "__len__"):
        raise PluresError(f"a {type(table).__name__} has no rows yet: read it first, with collect()")
    if not isinstance(table, Mapping) and not hasattr(table, "columns"):
        raise PluresError(
            f"a value of type {type(table).__name__} is not a table; give a mapping from column names to values, or a "
            "pandas or polars frame"
        )
    names = [*map(str, _names(table))]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise PluresError(f"column {twice[0]!r} occurs twice in the table; rename or remove one")
    found = {str(name): _cells(str(name), table[name]) for name in _names(table)}
    first = next(iter(found), "")
    for name, cells in found.items():
        if len(cells) != len(found[first]):
            raise PluresError(
                f"column {name!r} has {len(cells)} rows, but column {first!r} has {len(found[first])}; give both one "
                "value per row"
            )
    return found


def lines_of(table: Table) -> Sequence[int]:
    """The line of each row of a table from a text file; empty for any other table."""
    return table.lines if isinstance(table, Lines) else ()


def absent(cell: Any) -> bool:
    """Whether a cell is None, NaN, or pandas' missing value or date."""
    if isinstance(cell, str):
        return False
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(cell, float | np.floating) and math.isnan(cell)


def text(cell: Any) -> str:
    """A cell as text: stripped, and integers without a decimal point."""
    if isinstance(cell, float | np.floating) and cell.is_integer():
        return str(int(cell))
    word = str(cell).strip()
    whole = WHOLE.fullmatch(word) if "." in word else None
    return whole[1] if whole else word


def gaps_of(cells: Cells) -> NDArray[np.bool_]:
    """Which cells of a column are missing, ``(n,)``; see :func:`absent`."""
    if isinstance(cells, np.ndarray):
        return np.isnan(cells) if cells.dtype.kind == "f" else np.zeros(len(cells), dtype=bool)
    if written(cells):
        return np.array([cell is None for cell in cells], dtype=bool)
    return np.array([absent(cell) for cell in cells], dtype=bool)


def written(cells: Cells) -> TypeGuard[list[str | None]]:
    """Whether all cells of a column are texts or ``None``, as those of a CSV file are."""
    return not isinstance(cells, np.ndarray) and {*map(type, cells)} <= {str, type(None)}


def each(cells: Cells, read: Callable[[Any], V]) -> list[V]:
    """What is read from each cell of a column; texts repeat, and each is read once."""
    if written(cells):
        known = {cell: read(cell) for cell in {*cells}}
        return [known[cell] for cell in cells]
    return [read(cell) for cell in (cells.tolist() if isinstance(cells, np.ndarray) else cells)]


def texts(cells: Cells) -> list[str]:
    """The cells of a column as texts, empty if missing."""
    return each(cells, lambda cell: "" if absent(cell) else text(cell))


def number(cell: Any) -> float | None:
    """A cell as a number: NaN if missing, None if not a number."""
    if absent(cell):
        return float("nan")
    if isinstance(cell, str) and "_" in cell:
        return None
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return None


def numbers(cells: Cells) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A column as numbers ``(n,)``, NaN if missing, and a mask of cells that are not numbers."""
    if isinstance(cells, np.ndarray):
        return cells.astype(np.float64), np.zeros(len(cells), dtype=bool)
    if written(cells) and (plain := _all_numbers(cells)) is not None:
        return plain, np.zeros(len(cells), dtype=bool)
    found = each(cells, number)
    wrong = np.array([value is None for value in found], dtype=bool)
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64), wrong


def presence(cell: Any) -> Any:
    """A label's cell as 0 or 1, if it is a word for one of these; otherwise the cell as it is."""
    return cell if absent(cell) else PRESENT.get(text(cell).casefold(), cell)


def distinct(cells: Cells) -> set[str]:
    """The texts of the cells of a column that are not missing."""
    return {text(cell) for cell in ({*cells} if written(cells) else cells) if not absent(cell)}


def _all_numbers(cells: Sequence[str | None]) -> NDArray[np.float64] | None:
    """A column of texts as numbers, all at once; ``None`` if one of them is not a number."""
    words = ["nan" if cell is None else cell for cell in cells]
    if "_" in "".join(words):
        return None
    try:
        return np.fromiter(map(float, words), dtype=np.float64, count=len(words))
    except ValueError:
        return None


def read_table(path: Path) -> dict[str, list[Any]]:
    """A table from a file: CSV (a header, UTF-8; ``""``, ``?`` and ``NA`` are missing) or Parquet (by pandas).

    The separator is the one of comma, semicolon, tab and ``|`` that the header holds most of. Unless it is the comma,
    a column whose cells are all whole numbers or numbers with a decimal comma is read as numbers.

    Returns:
        Column -> cells: texts from CSV, which know their lines, typed values from Parquet; None for a missing value.

    Raises:
        PluresError: names the file, and the line if known.

    Examples:
        >>> import tempfile
        >>> from plures.tables import read_table
        >>> file = Path(tempfile.mkdtemp()) / "rows.csv"
        >>> length = file.write_text("age,ill\\n51,yes\\n?,no\\n")
        >>> read_table(file)
        {'age': ['51', None], 'ill': ['yes', 'no']}
    """
    if path.suffix.lower() not in READERS and (path.suffix or path.exists()):
        kind = repr(path.suffix) if path.suffix else "without a suffix"
        raise PluresError(f"{path}: cannot read a file {kind}; give {', '.join(TEXT)} or .parquet")
    if not path.is_file():
        there = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = closest(path.name, there)
        raise PluresError(f"{path}: no such file; {f'did you mean {near!r}?' if near else 'give the path of a table'}")
    return READERS[path.suffix.lower()](path)


def write_table(path: Path, table: Table) -> None:
    """Write a table as CSV for :func:`read_table`; a missing value is an empty cell.

    Examples:
        >>> import tempfile
        >>> from plures.tables import read_table, write_table
        >>> file = Path(tempfile.mkdtemp()) / "rows.csv"
        >>> write_table(file, {"age": [51, None], "ill": ["yes", "no"]})
        >>> read_table(file)
        {'age': ['51', None], 'ill': ['yes', 'no']}
    """
    found = columns(table)
    rows = ([None if absent(cell) else text(cell) for cell in row] for row in zip(*found.values(), strict=True))
    write_text(path, csv_text([found, *rows]))


def _names(table: Table) -> Sequence[Any]:
    return list(table) if isinstance(table, Mapping) else list(table.columns)


def _cells(name: str, values: Any) -> Cells:
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    array = np.asarray(values)
    if array.ndim != 1:
        raise PluresError(f"column {name!r} is not a sequence of values, one per row; give a list or an array")
    if array.dtype.kind in "iufb":
        return array
    found: list[Any] = (array.astype("datetime64[us]") if array.dtype.kind == "M" else array).tolist()
    return found


def _read_csv(path: Path) -> Lines:
    begun, lines = 1, []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            separator = max(SEPARATORS, key=first.count)
            reader = csv.reader(file, strict=True, skipinitialspace=True, delimiter=separator)
            header = [uncelled(name.strip()) for name in next(reader, [])]
            _check_header(path, header)
            rows, begun = [], reader.line_num + 1
            for row in reader:
                at, begun = begun, reader.line_num + 1
                if row and len(row) != len(header):
                    raise PluresError(
                        f"{path}, line {at}: {len(row)} cells for {len(header)} columns; correct the line"
                    )
                if row:
                    rows.append(row)
                    lines.append(at)
    except UnicodeDecodeError as error:
        line = _undecoded(path)
        raise PluresError(
            f"{path}, line {line}: is not UTF-8 text ({error.reason}); save it as CSV in UTF-8"
        ) from error
    except csv.Error as error:
        what = "a quote is opened that is not closed" if "end of data" in str(error) else str(error)
        raise PluresError(f"{path}, line {begun}: cannot be read as CSV: {what}; correct the line") from error
    except OSError as error:
        raise PluresError(f"{path}: cannot be read as CSV ({error}); save it again") from error
    whole = zip(*rows, strict=True) if rows else [()] * len(header)
    found = {name: _known(cells) for name, cells in zip(header, whole, strict=True)}
    table = Lines(found if separator == "," else {name: _with_points(cells) for name, cells in found.items()})
    table.lines = lines
    return table


def _undecoded(path: Path) -> int:
    """The first line of a file that is not UTF-8."""
    whole = path.read_bytes()
    try:
        whole.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return whole[: error.start].count(b"\n") + 1
    return 1


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not any(header):
        raise PluresError(f"{path}: has no header; name the columns in the first line")
    for place, name in enumerate(header):
        if not name:
            raise PluresError(f"{path}: column {place + 1} has no name in the header; name or remove it")
        if name in header[:place]:
            raise PluresError(f"{path}: column {name!r} occurs twice in the header; rename or remove one")


def _with_points(cells: list[str | None]) -> list[Any]:
    """Cells with decimal points, if all are whole numbers or numbers with a decimal comma."""
    known = [cell for cell in cells if cell is not None]
    if not any("," in cell for cell in known) or not all(map(DECIMAL.fullmatch, known)):
        return list(cells)
    return [None if cell is None else cell.replace(",", ".") for cell in cells]


def _known(cells: Sequence[str]) -> list[str | None]:
    """Cells of a CSV file without blanks around them; ``None`` for a missing value."""
    words = [*map(str.strip, cells)]
    if "'" in "".join(words):
        words = each(words, uncelled)
    return [None if word in MISSING else word for word in words]


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        pandas, arrow = map(importlib.import_module, ("pandas", "pyarrow"))
    except ImportError as error:
        raise PluresError(
            f"{path}: Parquet needs pandas and pyarrow; install plures[parquet], or save as CSV"
        ) from error
    if tuple(map(int, re.findall(r"\d+", arrow.__version__)[:3])) < SAFE:
        raise PluresError(
            f"{path}: pyarrow {arrow.__version__} runs code that a Parquet file may hold (CVE-2023-47248): install "
            f"{'.'.join(map(str, SAFE))} or later, or save as CSV"
        )
    try:
        frame = pandas.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise PluresError(f"{path}: cannot be read as Parquet ({error}); write it again, or save as CSV") from error
    found = columns(frame)
    return {name: [None if absent(cell) else cell for cell in cells] for name, cells in found.items()}


TEXT = (".csv", ".tsv", ".txt")
READERS: Mapping[str, Callable[[Path], dict[str, list[Any]]]] = {
    **dict.fromkeys(TEXT, _read_csv),
    ".parquet": _read_parquet,
}
"""Suffix of a file -> what reads it."""
