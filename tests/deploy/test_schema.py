"""The schema: what every cell becomes, sites against the simulation, and findings that name client, column and rows."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from plures.errors import PluresError, PluresWarning
from plures.federation import SPLITS, Federation, SplitRule, load
from plures.tables.check import Report, check
from plures.tables.heart import heart_metadata, heart_schema, heart_tables
from plures.tables.schema import Boolean, Category, Number, Schema, Splits, read_table, write_table
from plures.tasks import Classification, MultiLabel, Regression

SCHEMA = Schema(
    target="ill",
    classes=("no", "yes"),
    columns=(
        Number(name="age", unit="years", low=18, high=110, center=50, scale=10),
        Number(
            name="pressure", unit="mm Hg", low=60, high=240, zero_is_missing=True, center=130, scale=20, missing=0.5
        ),
        Category(name="sex", levels=("f", "m")),
        Category(name="pain", levels=("none", "some", "much"), missing=0.25),
    ),
)
TABLE: dict[str, list[Any]] = {
    "age": [45, "70", 50.0, 18],
    "pressure": [150, 0, None, 125],
    "sex": ["f", "m", "m", " f "],
    "pain": ["much", "none", None, "some"],
    "ill": ["yes", "no", "no", "yes"],
}
ENCODED = [
    # age, pressure, it is missing, f, m, none, some, much, it is missing
    [-0.5, 1.0, 0, 1, 0, 0, 0, 1, 0],
    [2.0, 0.0, 1, 0, 1, 1, 0, 0, 0],
    [0.0, 0.0, 1, 0, 1, 0, 0, 0, 1],
    [-3.2, -0.25, 0, 1, 0, 0, 1, 0, 0],
]


def cohort(n: int, seed: int) -> dict[str, list[Any]]:
    """``n`` rows that fit `SCHEMA`."""
    rng = np.random.default_rng(seed)
    gaps = (rng.random(n) < 0.1, rng.random(n) < 0.1)
    return {
        "age": rng.uniform(20, 90, n).round(3).tolist(),
        "pressure": [
            None if gap else float(x) for x, gap in zip(rng.normal(130, 12, n).round(1), gaps[0], strict=True)
        ],
        "sex": rng.choice(["f", "m"], n).tolist(),
        "pain": [None if gap else str(x) for x, gap in zip(rng.choice(["none", "much"], n), gaps[1], strict=True)],
        "ill": rng.choice(["no", "yes"], n).tolist(),
    }


def changed(column: str, **cells: Any) -> dict[str, list[Any]]:
    """40 good rows, some cells of a column replaced: ``r3=...`` is row 3."""
    table = cohort(40, 0)
    for row, cell in cells.items():
        table[column][int(row[1:]) - 1] = cell
    return table


def only(report: Report) -> str:
    """The one error of a report, as text."""
    (finding,) = report.errors
    return str(finding)


# Inputs


def test_every_cell_becomes_what_was_declared():
    assert SCHEMA.inputs == (
        "age",
        "pressure",
        "pressure is missing",
        "sex=f",
        "sex=m",
        "pain=none",
        "pain=some",
        "pain=much",
        "pain is missing",
    )
    encoded = SCHEMA.encode(TABLE)
    assert encoded.dtype == torch.float32
    assert torch.equal(encoded, torch.tensor(ENCODED))


def test_unscaled_inputs_stay_in_their_units_and_the_federation_scales_them():
    raw = SCHEMA.encode(TABLE, scaled=False)
    assert raw[:, 0].tolist() == [45, 70, 50, 18]
    assert raw[:, 1].tolist() == [150, 130, 130, 125]  # a gap is filled by the center
    assert torch.equal(raw[:, 2:], torch.tensor(ENCODED)[:, 2:])
    federation = SCHEMA.empty("e", ["a"])
    torch.testing.assert_close(federation.scaled(raw), torch.tensor(ENCODED))
    center, scale = SCHEMA.scaling
    assert center.tolist() == [50, 130, 0, 0, 0, 0, 0, 0, 0]
    assert scale.tolist() == [10, 20, 1, 1, 1, 1, 1, 1, 1]


def test_a_new_row_needs_no_target_and_may_miss_what_some_rows_may_miss():
    row = {"age": [45], "pressure": [None], "sex": ["f"], "pain": [None], "note": ["ignored"]}
    assert SCHEMA.encode(row).tolist() == [[-0.5, 0, 1, 1, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_give_the_same_inputs(library: str):
    table = {**TABLE, "age": [45, 70, 50, 18], "sex": ["f", "m", "m", "f"]}
    frame = pytest.importorskip(library).DataFrame(table)
    assert torch.equal(SCHEMA.encode(frame), torch.tensor(ENCODED))


def test_arrays_and_tensors_are_columns():
    table = {**TABLE, "age": torch.tensor([45, 70, 50, 18]), "pressure": np.array([150, 0, np.nan, 125])}
    assert torch.equal(SCHEMA.encode(table), torch.tensor(ENCODED))


@pytest.mark.parametrize("cell", [1, 1.0, np.float32(1), "1", "1.0", " 1 "])
def test_a_code_is_the_same_level_as_a_number_and_as_text(cell: object):
    schema = Schema(target="y", classes=("0", "1"), columns=(Category(name="code", levels=("01", "1", "2")),))
    assert schema.encode({"code": [cell]}).tolist() == [[0, 1, 0]]
    assert schema.encode({"code": ["01"]}).tolist() == [[1, 0, 0]]


def test_precision_is_not_lost_before_the_center_is_subtracted():
    schema = Schema(target="y", task="regression", columns=(Number(name="hertz", center=50, scale=1e-6),))
    assert schema.encode({"hertz": [50.000001]}).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"age": None}, "column 'age': is not in the table; add it to the table"),
        ({"age": [40, "old"]}, "column 'age', row 2: 1 cell is not a number, the first holds 'old'; write a number"),
        ({"age": [40, "45,5"]}, "'45,5'; write 45.5 with a point"),
        ({"age": [40, None]}, r"column 'age', row 2: missing in 1 of 2 rows \(50 %\), but none may be"),
        ({"age": [17, 50]}, "column 'age', row 1: 1 value lies outside the range 18 to 110 years, the first is 17"),
        ({"age": [40, math.inf]}, "column 'age', row 2: an infinite value"),
        ({"sex": ["f", "x"]}, "column 'sex', row 2: 1 row holds 'x', which is not one of the levels f, m; use one of"),
        ({"age": [40]}, "column 'pressure' has 2 rows, but column 'age' has 1"),
        ({"age": 40}, "column 'age' is not a sequence of values"),
        ({"age": [[1], [2]]}, "column 'age', rows 1, 2: 2 cells are not numbers"),
    ],
)
def test_predictions_refuse_rows_that_break_the_schema(cells: Mapping[str, Any], message: str):
    table = {"age": [40, 41], "pressure": [120, 121], "sex": ["f", "m"], "pain": ["none", "none"], **cells}
    with pytest.raises(PluresError, match=message):
        SCHEMA.encode({name: cells for name, cells in table.items() if cells is not None})


def test_predictions_refuse_what_is_no_table_and_a_table_without_rows():
    with pytest.raises(PluresError, match="a value of type list is not a table"):
        SCHEMA.encode([1, 2])  # type: ignore[arg-type]
    with pytest.raises(PluresError, match="the table has no rows"):
        SCHEMA.encode({name: [] for name in TABLE})


# Federations


def same_client(one: Federation, other: Federation, client: str) -> None:
    """The client's examples are the same bits in the same order, in every split."""
    assert one.columns == other.columns
    assert one.task == other.task
    for split in SPLITS:
        mine, theirs = (f.splits[split][f.index(client)] for f in (one, other))
        assert len(mine) == len(theirs)
        assert torch.equal(one.inputs[mine], other.inputs[theirs])
        assert torch.equal(one.targets[mine], other.targets[theirs])


def test_a_site_holds_the_same_bits_as_the_simulation():
    tables = heart_tables()
    schema = heart_schema()
    whole = schema.federation("heart", tables, heart_metadata())
    for hospital, table in tables.items():
        alone = schema.federation("heart", {hospital: table}, heart_metadata())
        assert alone.clients == (hospital,)
        assert alone.metadata == {"country": (heart_metadata()[hospital]["country"],)}
        same_client(alone, whole, hospital)
        own = torch.cat([alone.splits[split].rows for split in SPLITS])
        assert sorted(own.tolist()) == list(range(len(table["age"])))


def test_a_site_whose_rows_come_in_another_order_divides_them_alike():
    schema, table = heart_schema(), heart_tables()["cleveland"]  # no two rows are alike there
    order = np.random.default_rng(0).permutation(303).tolist()
    shuffled = {name: [cells[row] for row in order] for name, cells in table.items()}
    one, other = (schema.federation("h", {"cleveland": cells}) for cells in (table, shuffled))
    for split in SPLITS:
        rows, others = (
            {(*f.inputs[row].tolist(), int(f.targets[row])) for row in f.splits[split].rows} for f in (one, other)
        )
        assert rows == others


def test_the_seed_divides_otherwise_and_nothing_else_changes():
    table = cohort(60, 1)
    other = SCHEMA.model_copy(update={"splits": Splits(seed=7)})
    one, two = (schema.federation("s", {"a": table}) for schema in (SCHEMA, other))
    assert torch.equal(one.inputs, two.inputs)
    assert one.splits["test"].rows.tolist() != two.splits["test"].rows.tolist()
    assert [len(one.splits[split].rows) for split in SPLITS] == [36, 9, 15]  # 60, 15 and 25 % of 60


def test_the_coordinators_federation_has_everything_but_rows():
    full = SCHEMA.federation("s", {"b": cohort(20, 0), "a": cohort(30, 1)}, {"a": {"beds": 5}, "b": {"beds": 9}})
    empty = SCHEMA.empty("s", ["b", "a"], {"b": {"beds": 9}, "a": {"beds": 5}})
    assert len(empty.inputs) == len(empty.targets) == 0
    assert empty.clients == full.clients == ("a", "b")
    assert empty.metadata == full.metadata == {"beds": (5, 9)}
    assert empty.task == full.task == SCHEMA.task_of == Classification(("no", "yes"))
    assert empty.features == full.features == (9,)
    assert empty.columns == full.columns == SCHEMA.inputs
    assert empty.inputs.dtype == full.inputs.dtype
    assert empty.targets.dtype == full.targets.dtype
    assert all(torch.equal(a, b) for a, b in zip(empty.scaling or (), full.scaling or (), strict=True))
    assert empty.scaling is not None
    assert [len(rows) for split in SPLITS for rows in empty.splits[split]] == [0] * 6


def test_a_site_with_one_class_knows_all_classes():
    table = {**cohort(20, 0), "ill": ["yes"] * 20}
    with pytest.warns(PluresWarning, match="only one class"):
        federation = SCHEMA.federation("s", {"a": table})
    assert federation.task.outputs == 2
    assert federation.targets.tolist() == [1] * 20


def test_regression():
    schema = Schema(task="regression", target="y", columns=(Number(name="x", center=1, scale=2),))
    federation = schema.federation("r", {"a": {"x": [1, 3, 5, 7, 9, 11], "y": ["0.5", 1, 2, 3, 4, -1]}})
    assert federation.task == schema.task_of == Regression(1)
    assert federation.targets.tolist() == [[0.5], [1], [2], [3], [4], [-1]]
    assert federation.inputs.tolist() == [[0], [1], [2], [3], [4], [5]]
    assert schema.empty("r", ["a"]).targets.shape == (0, 1)


def test_rows_of_a_group_stay_together_and_the_group_is_no_input():
    schema = SCHEMA.model_copy(update={"group": "patient"})
    table = cohort(60, 3) | {"patient": [f"p{row // 3}" for row in range(60)]}
    federation = schema.federation("s", {"a": table})
    assert federation.columns == SCHEMA.inputs
    homes: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in federation.splits[split].rows.tolist():
            homes.setdefault(table["patient"][row], set()).add(split)
    assert len(homes) == 20
    assert all(len(splits) == 1 for splits in homes.values())


def test_rows_divided_by_time():
    schema = SCHEMA.model_copy(update={"date": "visit", "splits": Splits(by="time")})
    days = [f"2024-01-{day:02}" for day in range(20, 0, -1)]
    federation = schema.federation("s", {"a": cohort(20, 4) | {"visit": days}})
    assert [sorted(days[row] for row in federation.splits[split].rows) for split in SPLITS] == [
        [f"2024-01-{day:02}" for day in range(*span)] for span in ((1, 13), (13, 16), (16, 21))
    ]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "federation 's' has no tables"),
        ({"a": cohort(9, 0), "b": changed("age", r7="?")}, "client 'b', column 'age', row 7: 1 cell is not a number"),
        ({"b": changed("ill", r2=None)}, "client 'b', column 'ill', row 2: missing in 1 of 40 rows"),
        (
            {"b": changed("ill", r2="Yess")},
            "client 'b', column 'ill', row 2: .*not one of the classes no, yes; did you mean",
        ),
        ({"b": {"age": [1], "sex": [1, 2]}}, "client 'b': column 'sex' has 2 rows, but column 'age' has 1"),
        ({"b": {name: cells[:2] for name, cells in cohort(9, 0).items()}}, "client 'b': 2 rows, too few for 3 splits"),
        (
            {"b": cohort(9, 0) | {"sex": ["?"] * 9}},
            "client 'b', column 'sex', rows 1, 2, 3 and 6 more: 9 rows hold '?'",
        ),
    ],
)
def test_a_federation_refuses_what_breaks_the_schema(tables: Mapping[str, Any], message: str):
    with pytest.raises(PluresError, match=message):
        SCHEMA.federation("s", tables)


def test_metadata_is_of_all_clients():
    with pytest.raises(PluresError, match="metadata: none for client 'b'"):
        SCHEMA.empty("s", ["a", "b"], {"a": {"beds": 1}})


# Declarations


def test_toml_round_trip():
    schema = Schema(
        target='the "target"',
        classes=("ä\\b", "c, d"),
        date="visit",
        group="patient",
        splits=Splits(seed=3, validation=0.2, test=0.1, by="time"),
        columns=(
            Number(name="x", unit="µg/l", low=-0.1, high=1e22, center=1 / 3, scale=1e-7, missing=1.0),
            Number(name="zero", zero_is_missing=True),
            Category(name="y.z", levels=("1", "true", "[x]"), missing=0.07),
        ),
    )
    for declared in (schema, SCHEMA, heart_schema()):
        text = declared.to_toml()
        assert Schema.parse(tomllib.loads(text)["schema"]) == declared
        assert Schema.model_validate_json(declared.model_dump_json()) == declared
    line = '{ name = "age", kind = "number", unit = "years", low = 18, high = 110, center = 50, scale = 10 },'
    assert line in SCHEMA.to_toml()


COLUMN = {"name": "x", "kind": "number"}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"columns": []}, "columns: Tuple should have at least 1 item"),
        ({"columns": [COLUMN], "colour": 1}, "colour: is unknown here"),
        ({"columns": [COLUMN | {"scale": 0}]}, "column 'x', scale: Input should be greater than 0"),
        ({"columns": [COLUMN | {"scale": "1"}]}, "column 'x', scale: Input should be a valid number"),
        ({"columns": [COLUMN | {"center": math.inf}]}, "column 'x', center: must be a finite number"),
        ({"columns": [COLUMN | {"missing": 1.5}]}, "column 'x', missing: Input should be less than or equal to 1"),
        ({"columns": [COLUMN | {"low": 3, "high": 1}]}, "column 'x': low=3 must not be above high=1"),
        ({"columns": [COLUMN | {"levels": ["a"]}]}, "column 'x', levels: is unknown here"),
        ({"columns": [{"name": "x"}]}, "column 'x': kind is missing"),
        ({"columns": [{"kind": "number"}]}, "column number 1, name: is missing"),
        ({"columns": [{"name": "x", "kind": "category", "levels": ["1", "1.0"]}]}, "level '1' is declared twice"),
        ({"columns": [COLUMN, COLUMN]}, "column 'x' is declared twice"),
        ({"columns": [COLUMN | {"name": "y"}]}, "column 'y' is declared twice"),
        (
            {"columns": [COLUMN | {"missing": 0.1}, COLUMN | {"name": "x is missing"}]},
            "input 'x is missing' is declared",
        ),
        ({"columns": [COLUMN], "classes": ["a"]}, "classes: a classification needs two or more"),
        ({"columns": [COLUMN], "task": "regression"}, "classes: a regression has none"),
        ({"columns": [COLUMN], "splits": {"test": 1.2}}, "splits: split rule: validation=0.15 and test=1.2 must be"),
        ({"columns": [COLUMN], "splits": {"by": "time"}}, "by = 'time' needs a column of dates or numbers"),
    ],
)
def test_a_wrong_declaration_is_named(declared: Mapping[str, object], message: str):
    with pytest.raises(PluresError, match=message) as caught:
        Schema.parse({"target": "y", "classes": ["a", "b"], **declared}, "federation.toml, [schema]")
    assert str(caught.value).startswith("federation.toml, [schema]: ")
    assert "\n" not in str(caught.value)


def test_the_splits_are_those_of_the_library():
    assert Splits().rule == SplitRule()


def test_a_draft_from_pooled_data():
    pooled = {
        "site": ["a"] * 4 + ["b"] * 4,
        "age": [20, 30, 40, 50, 30, 40, 50, 60],  # mean 40, deviation 12.25
        "chol": [0, 200, 210, 0, 190, 200, 0, 200],  # mean of the others 200, deviation 6.32
        "code": [1, 2, 1, 2, 1, 10, 1, 2],
        "pain": ["some", "much", None, "some", "much", "some", "some", "some"],
        "smokes": [True, False, True, False, True, False, True, None],
        "flat": [7.0] * 8,
        "ill": [0, 1, 0, 1, 1, 0, 0, 1],
    }
    schema = Schema.of(
        pooled, "ill", "site", categories=["code"], zero_is_missing=["chol"], units={"age": "years"}, margin=0.1
    )
    assert schema == Schema(
        target="ill",
        classes=("0", "1"),
        columns=(
            Number(name="age", unit="years", low=16, high=64, center=40, scale=12),
            Number(name="chol", zero_is_missing=True, low=188, high=212, center=200, scale=6.3, missing=0.5),
            Category(name="code", levels=("1", "2", "10")),
            Category(name="pain", levels=("much", "some"), missing=0.25),
            Boolean(name="smokes", levels=("False", "True"), missing=0.25),
        ),
        client="site",
        ignored={"flat": "it is 7 in every row"},
    )
    assert schema.federation("d", {"all": {k: v for k, v in pooled.items() if k != "site"}}).features == (11,)


def test_a_drafts_range_never_becomes_negative_and_few_digits_remain():
    values = [0.012345, 0.5, 0.98765] * 3
    schema = Schema.of({"x": values, "y": np.linspace(0, 1, 9)}, "y")
    assert schema.task == "regression"
    (x,) = schema.columns
    assert x == Number(name="x", low=0, high=1.09, center=0.5, scale=0.4)  # 0.98765 + 0.0975; deviation 0.398


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "z"}, "no column 'z' in the table; its columns are id, x, y"),
        ({"target": "y", "units": {"w": "m"}}, "no column 'w'"),
        (
            {"target": "y"},
            "no column of the table can be an input; 'id' is left out: its text is different in every row",
        ),
        ({"target": "y", "features": ["x"]}, "column 'x': it has no value at all; complete it or leave it out"),
    ],
)
def test_a_draft_says_what_it_cannot_declare(options: Any, message: str):
    table = {"id": [f"case {row}" for row in range(40)], "x": [None] * 40, "y": [0, 1] * 20}
    with pytest.raises(PluresError, match=message):
        Schema.of(table, **options)


def test_all_hospitals_fit_a_draft_from_their_pooled_data():
    tables = heart_tables()
    names = list(tables["va"])
    pooled: dict[str, list[Any]] = {name: [cell for table in tables.values() for cell in table[name]] for name in names}
    pooled["hospital"] = [hospital for hospital, table in tables.items() for _ in table["age"]]
    schema = Schema.of(pooled, "diagnosis", "hospital", zero_is_missing=["chol", "trestbps"])
    assert all(check(schema, table, hospital).ok for hospital, table in tables.items())
    chol = next(column for column in schema.columns if column.name == "chol")
    assert chol == Number(
        name="chol", low=33, high=655, zero_is_missing=True, center=247, scale=58, missing=1
    )  # 85 and 603 of the data, 10 % wider; Switzerland measured none


# Files


def test_csv_round_trip(tmp_path: Path):
    tables = heart_tables()
    for hospital, table in tables.items():
        write_table(tmp_path / f"{hospital}.csv", table)
        found = read_table(tmp_path / f"{hospital}.csv")
        assert list(found) == list(table)
        one, other = (heart_schema().federation("h", {hospital: cells}) for cells in (table, found))
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    assert [file.name for file in sorted(tmp_path.iterdir())] == [f"{hospital}.csv" for hospital in sorted(tables)]


def test_missing_cells_of_csv(tmp_path: Path):
    file = tmp_path / "site.csv"
    file.write_bytes('\ufeffage, "name, first"\n1,"a, b"\n?,NA\n\n ,x\n'.encode())
    assert read_table(file) == {"age": ["1", None, None], "name, first": ["a, b", None, "x"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no header"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: 3 cells for 2 columns"),
        (b"a,a\n1,2\n", "column 'a' occurs twice"),
        (b"a,\n1,2\n", "column 2 has no name"),
        (b"a,b\n\xff,2\n", "is not UTF-8 text"),
        (b'a,b\n"1,2\n', "cannot be read as CSV"),
    ],
)
def test_a_broken_csv_is_named(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "site.csv"
    file.write_bytes(content)
    with pytest.raises(PluresError, match=f"site.csv.*{message}"):
        read_table(file)


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path):
    with pytest.raises(PluresError, match=r"none.csv: no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(PluresError, match=r"data.xlsx: cannot read a file '.xlsx'; give .csv, .tsv, .txt or .parquet"):
        read_table(tmp_path / "data.xlsx")


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pandas = pytest.importorskip("pandas")
    file = tmp_path / "site.parquet"
    file.write_bytes(b"no parquet")
    read: list[str] = []

    def reads(path: Path, engine: str) -> object:
        read.append(engine)
        if path.read_bytes() == b"no parquet":
            raise ValueError("no magic bytes")
        return pandas.DataFrame({"age": [45, None], "sex": pandas.array(["f", None], dtype="string")})

    monkeypatch.setattr(pandas, "read_parquet", reads)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PluresError, match=r"site.parquet: Parquet needs pandas and pyarrow"):
        read_table(file)
    for version in ("14.0.0", "9.0.0", "13.0.1.dev3"):
        monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(__version__=version))
        with pytest.raises(PluresError, match=rf"site.parquet: pyarrow {version} runs code that .* install 14.0.1"):
            read_table(file)
    assert read == [], "an old pyarrow runs what a file holds as it opens it"
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(__version__="14.0.1"))
    with pytest.raises(PluresError, match=r"site.parquet: cannot be read as Parquet"):
        read_table(file)
    file.write_bytes(b"parquet")
    assert read_table(file) == {"age": [45.0, None], "sex": ["f", None]}
    assert read == ["pyarrow", "pyarrow"]


# The check


def test_a_table_that_fits():
    report = check(SCHEMA, cohort(200, 0), "basel")
    assert report.ok
    assert report.findings == ()
    assert report.text() == "client 'basel', 200 rows: the data fit the schema (0 errors, 0 notes)"


def test_missing_and_extra_columns():
    table = cohort(40, 0)
    table["Age"], table["height"] = table.pop("age"), [170] * 40
    report = check(SCHEMA, table, "basel")
    assert only(report) == "client 'basel', column 'age': is not in the table; there is 'Age': is that it? Rename it"
    assert [str(note) for note in report.notes] == [
        "client 'basel', column 'Age': is not declared; nobody will read it",
        "client 'basel', column 'height': is not declared; nobody will read it",
    ]


def test_text_among_numbers():
    report = check(SCHEMA, changed("age", r4="forty", r9="n/a", r30="1_0"), "basel")
    assert report.errors[0].rows == (4, 9, 30)
    assert only(report) == (
        "client 'basel', column 'age', rows 4, 9, 30: 3 cells are not numbers, the first holds 'forty'; "
        "write a number, or leave the cell empty"
    )


def test_values_outside_the_range():
    report = check(SCHEMA, changed("age", r2=17.9, r3=18, r5=110, r6=110.5, r7=999, r40=-1), "basel")
    assert report.errors[0].rows == (2, 6, 7, 40)
    assert only(report) == (
        "client 'basel', column 'age', rows 2, 6, 7 and 1 more: 4 values lie outside the range 18 to 110 years, "
        "the first is 17.9; correct what is wrong, or leave the cell empty"
    )


@pytest.mark.parametrize(
    ("factor", "hint"),
    [
        (0.1, "all would fit if they were cm Hg: are they?"),
        (1 / 7.5, "all would fit if they were kPa: are they?"),
        (100, "all would fit if they were divided by 100: is the unit right?"),
        (0.01, "all would fit if they were multiplied by 100: is the unit right?"),
    ],
)
def test_a_wrong_unit_is_guessed(factor: float, hint: str):
    table = cohort(40, 0)
    table["pressure"] = [None if cell is None else cell * factor for cell in table["pressure"]]
    known = sum(cell is not None for cell in table["pressure"])
    report = check(SCHEMA, table, "basel")
    assert f"{known} values lie outside the range 60 to 240 mm Hg" in only(report)
    assert only(report).endswith(hint)


def test_open_ranges():
    columns = (Number(name="x", low=1, unit="g"), Number(name="y", high=1))
    schema = Schema(task="regression", target="z", columns=columns)
    one, two = check(schema, {"x": [0, 1, 2], "y": [0, 1, 2], "z": [1, 2, 3]}, "a").errors
    assert one.what == "1 value lies outside the range (at least 1 g), the first is 0"
    assert two.what == "1 value lies outside the range (at most 1), the first is 2"
    assert (one.rows, two.rows) == ((1,), (3,))


def test_unknown_categories_and_labels():
    table = changed("pain", r1="Mutch", r5="Mutch", r8="42")
    table["ill"][2] = "YES"
    first, second, third = check(SCHEMA, table, "basel").errors
    assert str(first) == (
        "client 'basel', column 'pain', rows 1, 5: 2 rows hold 'Mutch', which is not one of the levels none, some, "
        "much; did you mean 'much'?"
    )
    assert (second.rows, second.remedy) == ((8,), "use one of the levels")
    assert str(third) == (
        "client 'basel', column 'ill', row 3: 1 row holds 'YES', which is not one of the classes no, yes; "
        "did you mean 'yes'?"
    )


def test_many_unknown_categories_are_told_in_short():
    table = cohort(40, 0) | {"sex": [f"code {row}" for row in range(40)]}
    report = check(SCHEMA, table, "basel")
    assert len(report.errors) == 6
    assert str(report.errors[-1]).startswith(
        "client 'basel', column 'sex', rows 6, 7, 8 and 32 more: 35 other values that are not among the levels"
    )


def test_too_many_missing_values():
    table = cohort(40, 0)
    table["pain"] = [None] * 11 + ["none", "much"] * 14 + ["none"]
    table["pressure"] = [0] * 20 + [120] * 20  # half are allowed
    report = check(SCHEMA, table, "basel")
    assert report.errors[0].rows == tuple(range(1, 12))
    assert only(report) == (
        "client 'basel', column 'pain', rows 1, 2, 3 and 8 more: missing in 11 of 40 rows (27.5 %), "
        "but at most 25 % may be; complete them, or ask the coordinator to allow more"
    )


def test_a_target_that_is_missing():
    table = cohort(40, 0)
    del table["ill"]
    assert "client 'basel', column 'ill': is not in the table" in only(check(SCHEMA, table, "basel"))
    report = check(SCHEMA, changed("ill", r12=None, r13=float("nan")), "basel")
    assert only(report) == (
        "client 'basel', column 'ill', rows 12, 13: missing in 2 of 40 rows (5 %), but none may be; "
        "complete them or leave the rows out"
    )


def test_constant_columns_and_twins_are_noted():
    table = cohort(40, 0)
    table["sex"] = ["m"] * 40
    table["pressure"] = [None] * 40
    for name in table:
        table[name][20] = table[name][29] = table[name][4]
    schema = replace_column(SCHEMA, "pressure", missing=1.0)
    report = check(schema, table, "basel")
    assert report.ok
    told = [str(note) for note in report.notes]
    assert told[:2] == [
        "client 'basel', column 'pressure': has no value at all; predictions cannot use it here",
        "client 'basel', column 'sex': has the same value in all 40 rows that have one; is that right?",
    ]
    assert report.notes[2].rows == (21, 30)
    assert "2 rows repeat an earlier one, the first row 5" in told[2]


def replace_column(schema: Schema, name: str, **fields: Any) -> Schema:
    columns = tuple(c.model_copy(update=fields) if c.name == name else c for c in schema.columns)
    return schema.model_copy(update={"columns": columns})


def test_classes_that_are_rare_or_alone_are_noted():
    table = cohort(200, 0)
    table["ill"] = ["yes"] * 200
    (note,) = check(SCHEMA, table, "basel").notes
    assert str(note).startswith("client 'basel', column 'ill': all rows are of class 'yes'")
    table["ill"] = ["no"] * 12 + ["yes"] * 188
    (note,) = check(SCHEMA, table, "basel").notes
    assert note.what == "class 'no' has 12 rows of 200 (6 %)"
    three = SCHEMA.model_copy(update={"classes": ("no", "perhaps", "yes")})
    table["ill"] = ["no", "yes"] * 100
    (note,) = check(three, table, "basel").notes
    assert str(note) == (
        "client 'basel', column 'ill': class 'perhaps' has 0 rows of 200 (0 %); "
        "this site cannot measure how well it is recognised"
    )


def test_few_rows():
    table = {name: cells[:2] for name, cells in cohort(40, 0).items()}
    report = check(SCHEMA, table, "basel")
    assert "client 'basel': 2 rows, too few for 3 splits; give at least 3" in [str(error) for error in report.errors]
    report = check(SCHEMA, {name: cells[:20] for name, cells in cohort(40, 0).items()}, "basel")
    assert "20 rows, so about 5 to test on" in [note.what for note in report.notes]
    empty = check(SCHEMA, {name: [] for name in TABLE}, "basel")
    assert only(empty) == "client 'basel': the table has no rows; give at least one"


def test_what_is_no_table_is_named():
    with pytest.raises(PluresError, match="client 'basel': a value of type int is not a table"):
        check(SCHEMA, 3, "basel")  # type: ignore[arg-type]


def test_dates_and_groups():
    schema = SCHEMA.model_copy(update={"date": "visit", "group": "patient"})
    days: list[Any] = [f"2024-03-{day:02}" for day in range(1, 31)] + [date(2023, 12, 24), "2024-04-01T10:30:00+02:00"]
    table = cohort(40, 0) | {"visit": days + [None] * 8, "patient": list(range(40))}
    report = check(schema, table, "basel")
    assert report.ok
    assert report.sheet["span"] == ["2023-12-24", "2024-04-01"]
    assert "client 'basel', column 'visit': 8 rows without a date; the data span leaves them out" in map(
        str, report.notes
    )
    table["visit"][2], table["patient"][5] = "31.05.2024", None
    first, second = check(schema, table, "basel").errors
    assert str(first) == (
        "client 'basel', column 'visit', row 3: 1 without an ISO date, the first holds '31.05.2024'; "
        "write dates like 2024-05-31"
    )
    assert str(second).startswith("client 'basel', column 'patient', row 6: missing in 1 of 40 rows")
    timed = schema.model_copy(update={"group": None, "splits": Splits(by="time")})
    table["visit"][2] = "2024-03-03"
    assert "rows 33, 34, 35 and 5 more: 8 without a date, but the splits are by time" in only(
        check(timed, table, "basel")
    )


def test_dates_of_a_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(cohort(40, 0))
    frame["visit"] = pandas.to_datetime(["2024-01-05"] * 39 + [None])
    report = check(SCHEMA.model_copy(update={"date": "visit"}), frame, "basel")
    assert report.sheet["span"] == ["2024-01-05", "2024-01-05"]


def test_the_data_sheet_is_json_and_true():
    table = {name: cells * 10 for name, cells in TABLE.items()}
    sheet = check(SCHEMA, table, "basel").sheet
    assert json.loads(json.dumps(sheet)) == {
        "client": "basel",
        "rows": 40,
        "target": "ill",
        "labels": {"no": 20, "yes": 20},
        "span": None,
        "missing": {"age": 0.0, "pressure": 0.5, "sex": 0.0, "pain": 0.25},
    }
    schema = Schema(task="regression", target="y", columns=(Number(name="x"),))
    sheet = check(schema, {"x": [1, 2, 3, 4], "y": [0, 0, 4, 4]}, "basel").sheet
    assert sheet["values"] == {"mean": 2.0, "std": 2.0, "low": 0.0, "high": 4.0}


def test_the_text_is_a_table_of_the_findings():
    table = changed("age", r4="forty")
    table["height"] = [170] * 40
    table["ill"] = ["no", "yes"] * 20
    assert check(SCHEMA, table, "basel").text().splitlines() == [
        "client 'basel', 40 rows: the data do not fit the schema yet (1 error, 1 note)",
        "",
        "       column  rows   finding",
        "error  age     row 4  1 cell is not a number, the first holds 'forty'; write a number, or leave the cell "
        "empty",
        "note   height         is not declared; nobody will read it",
        "",
        "Rows are counted from 1, the first row below the header.",
    ]


# Heart


def test_all_hospitals_fit_the_schema_of_the_heart_data():
    tables = heart_tables()
    assert {hospital: len(table["age"]) for hospital, table in tables.items()} == {
        "cleveland": 303,
        "hungarian": 294,
        "switzerland": 123,
        "va": 200,
    }
    for hospital, table in tables.items():
        report = check(heart_schema(), table, hospital)
        assert report.ok, report.text()
        assert report.sheet["rows"] == len(table["age"])
    assert check(heart_schema(), tables["switzerland"], "switzerland").sheet["missing"] == pytest.approx(
        {
            **dict.fromkeys(("age", "sex", "cp"), 0.0),
            **dict.fromkeys(("restecg", "thalach", "exang"), 1 / 123),
            "trestbps": 2 / 123,
            "chol": 1.0,
            "fbs": 75 / 123,
            "oldpeak": 6 / 123,
            "slope": 17 / 123,
            "ca": 118 / 123,
            "thal": 52 / 123,
        }
    )


def test_the_federation_of_the_hospitals_is_the_packaged_one():
    federation, packaged = heart_schema().federation("heart", heart_tables(), heart_metadata()), load("heart")
    assert len(federation.inputs) == 920
    assert federation.clients == packaged.clients == ("cleveland", "hungarian", "switzerland", "va")
    assert bool(torch.isfinite(federation.inputs).all())
    assert federation.features == (35,)
    assert federation.task == packaged.task
    assert federation.metadata["country"] == packaged.metadata["country"]
    counts = [client.labels for client in federation.describe().clients]
    assert counts == [client.labels for client in packaged.describe().clients]
    assert counts == [(164, 139), (188, 106), (8, 115), (51, 149)]
    sizes = [[len(rows) for split in SPLITS for rows in f.splits[split]] for f in (federation, packaged)]
    assert sizes[0] == sizes[1]


def test_the_first_patient_by_hand():
    """63 years, male, typical angina, 145 mm Hg, 233 mg/dl, fasting sugar high, hypertrophy, 150 beats ..."""
    table = {name: cells[:1] for name, cells in heart_tables()["cleveland"].items()}
    row = dict(zip(heart_schema().inputs, heart_schema().encode(table)[0].tolist(), strict=True))
    numbers = {"age": 0.8, "trestbps": 0.75, "chol": -0.2, "thalach": 0.4, "oldpeak": 1.3, "ca": -0.5}
    ones = {"sex=male", "cp=typical angina", "fbs=yes", "restecg=ventricular hypertrophy", "exang=no", "slope=down"}
    expected = dict.fromkeys(row, 0.0) | numbers | dict.fromkeys({*ones, "thal=fixed defect"}, 1.0)
    assert row == pytest.approx(expected, rel=1e-6)


def test_findings_keep_their_client_when_copied():
    (finding,) = check(SCHEMA, changed("age", r4="x"), "basel").errors
    assert str(replace(finding, client="graz")).startswith("client 'graz', column 'age', row 4: ")


# Several target columns -----------------------------------------------------------------------------------------

SIGNS = Schema(
    task="multilabel", target=("cough", "fever"), columns=(Number(name="age", low=0, high=110, center=50, scale=10),)
)
PATIENTS: dict[str, list[Any]] = {
    "age": [40, 50, 60, 70],
    "fever": ["0", 1, 1.0, "1.0"],
    "cough": [1, 0, 0, 1],
}


def test_labels_are_columns_of_0_and_1():
    """Whatever the order of the columns in the table, labels are those of the schema."""
    rows = {name: cells * 10 for name, cells in PATIENTS.items()}
    rows["age"] = list(range(20, 60))
    federation = SIGNS.federation("signs", {"a": rows, "b": rows})
    assert federation.task == MultiLabel(("cough", "fever")) == SIGNS.empty("signs", ["a"]).task
    assert federation.targets[:4].tolist() == [[1, 0], [0, 1], [0, 1], [1, 1]]
    report = check(SIGNS, rows, "a")
    assert report.ok
    assert (report.sheet["target"], report.sheet["labels"]) == (("cough", "fever"), {"cough": 20, "fever": 30})
    json.dumps(report.sheet)
    assert Schema.parse(tomllib.loads(SIGNS.to_toml())["schema"]) == SIGNS
    assert 'target = ["cough", "fever"]' in SIGNS.to_toml()


def test_labels_that_are_rare_or_everywhere_are_noted():
    rows = {"age": list(range(20, 60)), "cough": [1] * 40, "fever": [1] * 3 + [0] * 37}
    told = [finding.sentence for finding in check(SIGNS, rows, "a").notes]
    assert any("all rows have the label 'cough'" in one for one in told)
    assert any("label 'fever' has 3 rows of 40 (7.5 %)" in one for one in told)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"fever": [0, 1, 2, 1]}, r"1 row holds '2', which is not one of the values of a label, 0, 1"),
        ({"fever": [0, 1, None, 1]}, r"missing in 1 of 4 rows \(25 %\), but none may be"),
    ],
)
def test_labels_that_cannot_be_are_refused(cells: dict[str, list[Any]], message: str):
    with pytest.raises(PluresError, match=f"column 'fever'.*{message}"):
        SIGNS.federation("signs", {"a": {**PATIENTS, **cells}})
    (lacking,) = check(SIGNS, {"age": PATIENTS["age"], "cough": [1, 0, 1, 1]}, "a").errors
    assert (lacking.column, "is not in the table" in lacking.sentence) == ("fever", True)


def test_several_numbers_are_a_regression():
    schema = Schema(task="regression", target=("low", "high"), columns=(Number(name="age"),))
    rows = {"age": list(range(20)), "high": list(range(20)), "low": list(range(1, 21))}
    federation = schema.federation("pressure", {"a": rows})
    assert federation.task == Regression(2)
    assert sorted(federation.targets.tolist()) == [[n + 1, n] for n in range(20)]
    assert check(schema, rows, "a").sheet["values"]["low"]["mean"] == 10.5


def test_a_draft_of_several_targets():
    rows = {"age": list(range(40)), "cough": [0, 1] * 20, "fever": [1, 1, 0, 0] * 10, "dose": [0.5, 2.0] * 20}
    schema = Schema.of(rows, ["cough", "fever"], features=["age"])
    assert (schema.task, schema.target, schema.classes) == ("multilabel", ("cough", "fever"), ())
    assert Schema.of(rows, ["cough", "dose"], features=["age"]).task == "regression"
    for target, options, message in (
        (["cough", "fever"], {"task": "classification", "classes": ["a", "b"]}, "a classification has one column"),
        ("dose", {"task": "regression", "classes": ["a", "b"]}, "classes: a regression has none; leave them out"),
    ):
        with pytest.raises(PluresError, match=message):
            Schema.of(rows, target, features=["age"], **options)
