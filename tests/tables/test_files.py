"""Files and frames as people have them: each becomes the right numbers, or one sentence says where it is wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plures
from plures.errors import PluresError
from plures.tables import check, read_table, schema_of
from plures.tables.source import read_rows

ROWS = 60
Rows = dict[str, list[Any]]


def rows(**more: list[Any]) -> Rows:
    """Three wards; ``crp`` has decimals."""
    rng = np.random.default_rng(0)
    found: Rows = {
        "ward": [str(1 + row % 3) for row in range(ROWS)],
        "age": [20 + 7 * row % 53 for row in range(ROWS)],
        "crp": [round(float(x), 2) for x in rng.gamma(2, 3, ROWS)],
        "sex": ["f", "m"] * (ROWS // 2),
        "ill": ["no", "no", "yes", "yes"] * (ROWS // 4),
    }
    return found | more


def commas(cell: Any) -> str:
    return str(cell).replace(".", ",") if isinstance(cell, float) else str(cell)


def write(
    file: Path, table: Rows, separator: str = ",", encoding: str = "utf-8", cell: Callable[[Any], str] = str
) -> Path:
    with file.open("w", newline="", encoding=encoding) as opened:
        lines = csv.writer(opened, delimiter=separator)
        lines.writerow(table)
        lines.writerows(["" if one is None else cell(one) for one in row] for row in zip(*table.values(), strict=True))
    return file


def numbers(data: Any, **options: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """The columns and the unscaled inputs of what is read."""
    federation = plures.from_table(data, **{"client": "ward", "target": "ill", "copies": "allow", **options})
    return federation.columns, federation.unscaled(federation.inputs).numpy()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {}),
        ("a.csv", {"separator": ";"}),
        ("a.tsv", {"separator": "\t"}),
        ("a.txt", {"separator": "|"}),
        ("a.csv", {"encoding": "utf-8-sig"}),
        ("a.csv", {"separator": ";", "cell": commas}),
        ("a.csv", {"separator": "\t", "cell": commas}),
        ("a.csv", {"separator": "|", "encoding": "utf-8-sig", "cell": commas}),
    ],
)
def test_every_way_to_write_a_file_gives_the_same_numbers(tmp_path: Path, name: str, options: dict[str, Any]):
    columns, found = numbers(write(tmp_path / name, rows(), **options))
    expected_columns, expected = numbers(rows())
    assert columns == expected_columns == ("age", "crp", "sex=f", "sex=m", "sex is another value")
    assert np.array_equal(found, expected)
    own = [row for row in range(ROWS) if row % 3 == 0]  # ward 1 is the first client
    assert found[: len(own), 1] == pytest.approx([rows()["crp"][row] for row in own], abs=1e-5)
    assert found[: len(own), 2].tolist() == [float(row % 2 == 0) for row in own]


def test_frames_are_read_like_files(tmp_path: Path):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    expected = numbers(write(tmp_path / "a.csv", rows()))
    typed = pandas.DataFrame(rows()).astype({"ward": "category", "sex": "category"})
    for frame in (pandas.DataFrame(rows()), polars.DataFrame(rows()), typed):
        columns, found = numbers(frame)
        assert columns == expected[0]
        assert np.array_equal(found, expected[1])
    with pytest.raises(PluresError, match=r"a LazyFrame has no rows yet: read it first, with collect\(\)"):
        numbers(polars.DataFrame(rows()).lazy())
    grades = pandas.Categorical(rows()["ill"], ["yes", "no", "unknown"], ordered=True)
    ordered = plures.from_table(
        pandas.DataFrame(rows()).assign(ill=grades), client="ward", target="ill", copies="allow"
    )
    assert ordered.task.classes == ("yes", "no")


@pytest.mark.extra("parquet")
def test_a_parquet_file_is_read_like_its_frame(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(rows()).to_parquet(tmp_path / "a.parquet")
    assert np.array_equal(numbers(tmp_path / "a.parquet")[1], numbers(rows())[1])


def test_a_folder_is_read_like_one_file(tmp_path: Path):
    table, folder = rows(), tmp_path / "wards"
    folder.mkdir()
    for ward in ("1", "2", "3"):
        own = [row for row in range(ROWS) if table["ward"][row] == ward]
        write(
            folder / f"{ward}.csv",
            {name: [cells[row] for row in own] for name, cells in table.items() if name != "ward"},
        )
    (folder / "notes.md").write_text("not a table")
    assert np.array_equal(numbers(folder, client=None)[1], numbers(table)[1])
    lines = (folder / "2.csv").read_text().splitlines()
    (folder / "2.csv").write_text(
        "\n".join([*lines[:5], lines[5].replace(lines[5].split(",")[0], "abc", 1), *lines[6:]])
    )
    with pytest.raises(PluresError, match=r"2.csv, column 'age', line 6: 'abc' is not a number"):
        numbers(folder, client=None)
    (folder / "2.csv").write_text("age,crp,sex,ill\n")
    with pytest.raises(PluresError, match=r"2.csv: the table has no rows"):
        numbers(folder, client=None)


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["1", "2"], ("1", "2")),
        (["0.0", "1.0"], ("0", "1")),
        ([0.0, 1.0], ("0", "1")),
        ([False, True], ("False", "True")),
        (["false", "true"], ("false", "true")),
        ([-1, 1], ("-1", "1")),
        (["10", "9"], ("9", "10")),
    ],
)
def test_classes_of_any_type(cells: list[Any], classes: tuple[str, ...]):
    table = rows(ill=[cells[row // 2 % 2] for row in range(ROWS)])
    federation = plures.from_table(table, client="ward", target="ill", copies="allow")
    assert federation.task.classes == classes
    first = classes.index(plures.tables.table.text(cells[0]))
    own = [row for row in range(ROWS) if row % 3 == 0]
    assert federation.targets[: len(own)].tolist() == [first if row // 2 % 2 == 0 else 1 - first for row in own]


def test_clients_are_in_natural_order_and_have_any_name():
    numbered = plures.from_table(
        rows(ward=[1.0 + row // 5 for row in range(ROWS)]), client="ward", target="ill", copies="allow"
    )
    assert numbered.clients == tuple(str(number) for number in range(1, 13))
    named = plures.from_table(
        rows(ward=[("A/B", "St. Anna", "S\u00fcd \u2603")[row % 3] for row in range(ROWS)]),
        client="ward",
        target="ill",
        copies="allow",
    )
    assert named.clients == ("A/B", "St. Anna", "S\u00fcd \u2603")


def test_what_is_no_input_is_named_and_what_one_ward_lacks_is_missing():
    lacking = [None if row % 3 == 1 else cell for row, cell in enumerate(rows()["crp"])]
    table = rows(
        crp=lacking,
        case=[f"C{row:05}" for row in range(ROWS)],
        note=[f'line {row}\nmore; "q"' for row in range(ROWS)],
        always=["x"] * ROWS,
    )
    schema = schema_of(plures.from_table(table, client="ward", target="ill", copies="allow"))
    assert schema is not None
    assert {*schema.ignored} == {"case", "note", "always"}
    columns, found = numbers(table)
    assert columns[1:3] == ("crp", "crp is missing")
    assert found[20:40, 2].tolist() == [1.0] * 20
    assert found[:20, 2].tolist() == [0.0] * 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a.csv: has no header"),
        (b"ward,age,ill\n", r"a.csv: the table has no rows"),
        (b"ward,age,age\nw,1,2\n", r"a.csv: column 'age' occurs twice in the header"),
        (b"ward,age,ill\nw,3,yes\nv,4\n", r"a.csv, line 3: 2 cells for 3 columns"),
        (b'ward,age,ill\nw,"3,yes\nv,4,no\n', r"a.csv, line 2: cannot be read as CSV: a quote is opened"),
        ("ward,age,ill\nZ\u00fcrich,3,yes\n".encode("latin-1"), r"a.csv, line 2: is not UTF-8 text"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(PluresError, match=message):
        numbers(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("age", {7: "inf"}, r"column 'age', line 9: an infinite value"),
        ("age", {7: 1e300}, r"column 'age', line 9: an infinite value, or one too large for a 32-bit number"),
        ("ill", {7: None}, r"column 'ill', line 9: missing in 1 of 60 rows"),
        ("ill", dict.fromkeys(range(ROWS), "yes"), r"column 'ill': is 'yes' in every row; a classification needs two"),
        (
            "crp",
            {row: f"{row},5" for row in range(ROWS)},
            r"'crp', line 2: '0,5' is not a number.*decimal point",
        ),
        ("crp", {row: f"${row}.5" for row in range(ROWS)}, r"column 'crp', line 2: '\$0.5' is not a number"),
        ("crp", {row: f"{row}%" for row in range(ROWS)}, r"column 'crp', line 2: '0%' is not a number"),
        ("crp", {3: "high"}, r"column 'crp', line 5: 'high' is not a number, as most of the column is"),
        ("ward", {4: None}, r"column 'ward', line 6: no client"),
        ("ward", {4: "9"}, r"client '9': 1 row, too few for 3 splits"),
    ],
)
def test_a_bad_cell_is_refused_with_its_file_column_and_row(
    tmp_path: Path, column: str, cells: dict[int, Any], message: str
):
    table = rows()
    table[column] = [cells.get(row, cell) for row, cell in enumerate(table[column])]
    with pytest.raises(PluresError, match=message) as refused:
        numbers(write(tmp_path / "a.csv", table))
    assert str(refused.value).startswith(str(tmp_path / "a.csv")) or column == "ward"


def test_a_common_test_set_is_that_of_every_client(tmp_path: Path):
    table = rows()
    test = {name: cells[:7] for name, cells in rows(age=[99] * ROWS).items() if name != "ward"}
    write(tmp_path / "train.csv", table)
    write(tmp_path / "test.csv", test)
    federation = plures.from_table(
        tmp_path / "train.csv", client="ward", target="ill", test=tmp_path / "test.csv", copies="allow"
    )
    raw = federation.unscaled(federation.inputs)
    for place in range(3):
        own = raw[federation.splits["test"][place]]
        assert own[:, 0].tolist() == [99.0] * 7
        assert sorted(own[:, 1].tolist()) == pytest.approx(sorted(test["crp"]), abs=1e-5)
    assert sum(len(federation.splits[split].rows) for split in ("train", "validation")) == ROWS
    assert float(raw[federation.splits["train"].rows][:, 0].max()) < 99


def test_a_fold_that_does_not_exist_is_refused(tmp_path: Path):
    write(tmp_path / "a.csv", rows(fold=[row // 3 % 5 for row in range(ROWS)]))
    said = {"client": "ward", "target": "ill", "copies": "allow", "split_column": "fold"}
    federation = plures.from_table(tmp_path / "a.csv", fold=3, **said)
    assert federation.splits["test"].sizes.tolist() == [4, 4, 4]
    with pytest.raises(PluresError, match=r"a.csv: fold '9': column 'fold' has no such value; it has 0, 1, 2, 3, 4"):
        plures.from_table(tmp_path / "a.csv", fold=9, **said)
    write(tmp_path / "b.csv", rows(fold=["train", "val"] * 30))
    with pytest.raises(PluresError, match=r"b.csv: column 'fold': no row is for test"):
        plures.from_table(tmp_path / "b.csv", **said)


def test_a_place_in_a_text_file_is_its_line_as_an_editor_shows_it(tmp_path: Path):
    """Cells of several lines and empty lines count; a bad cell, a ragged row and a site's finding say the same line."""
    file = tmp_path / "a.csv"
    lines = [f"{'AB'[row % 2]},{20 + 7 * row % 53},{row % 5}.5,{('no', 'yes')[row // 2 % 2]}" for row in range(ROWS)]
    lines[1] = '"B\n",21,0.5,no'  # two lines
    lines[3] += "\n"  # an empty line follows
    head = "ward,age,crp,ill"
    for bad in (40, 50):
        content = [head, *lines]
        content[1 + bad] = "A,high,1.5,no"
        file.write_text("\n".join(content) + "\n")
        shown = file.read_text().split("\n").index("A,high,1.5,no") + 1
        assert shown == bad + 4
        with pytest.raises(PluresError, match=rf"a\.csv, column 'age', line {shown}: 'high' is not a number"):
            numbers(file)
        schema = schema_of(numbers_of(tmp_path, [head, *lines]))
        assert schema is not None
        report = check(schema, read_table(file), "A")
        assert [finding.where for finding in report.errors] == [f"line {shown}"]
        assert "Lines are those of the file, the header included." in report.text()
        with pytest.raises(PluresError, match=f"column 'age', line {shown}: 1 cell is not a number"):
            schema.encode(read_rows(file))
        content[1 + bad] = "A,33"
        file.write_text("\n".join(content) + "\n")
        with pytest.raises(PluresError, match=rf"a\.csv, line {shown}: 2 cells for 4 columns"):
            numbers(file)
    table = {name: list(cells) for name, cells in read_rows(tmp_path / "whole.csv").items()}
    table["age"][40] = "high"
    with pytest.raises(PluresError, match="column 'age', row 41: 'high' is not a number"):
        numbers(table)


def numbers_of(folder: Path, lines: list[str]) -> plures.Federation:
    (folder / "whole.csv").write_text("\n".join(lines) + "\n")
    return plures.from_table(folder / "whole.csv", client="ward", target="ill", copies="allow")
