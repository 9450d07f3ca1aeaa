"""From a table to a federation: kinds of columns, what is fitted to train rows alone, sites and simulation, files."""

from __future__ import annotations

import csv
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.errors import PluresError
from plures.evaluate import RunFolder
from plures.federation import SPLITS, SplitRule
from plures.serving import PersonalModel
from plures.tables import Boolean, Category, Date, Number, Ordered, read_schema, schema_of
from plures.tables.source import read_rows
from saying import Says

ROWS = 90
CLIENTS = ["10", "2", "Süd/St. Anna"]


def patients(seed: int = 0) -> dict[str, list[Any]]:
    """Rows of three hospitals, of which one never measured crp; the value ``rare`` occurs once."""
    rng = np.random.default_rng(seed)
    hospital = [CLIENTS[row % 3] for row in range(ROWS)]
    table: dict[str, list[Any]] = {
        "hospital": hospital,
        "patient_id": [f"P{row // 2:03}" for row in range(ROWS)],
        "age": rng.integers(20, 90, ROWS).tolist(),
        "smokes": rng.choice(["no", "yes"], ROWS).tolist(),
        "pain": rng.choice(["low", "medium", "high"], ROWS).tolist(),
        "band": rng.choice(["<40", "40-59", "60+"], ROWS).tolist(),
        "ward": rng.choice(["A", "B"], ROWS).tolist(),
        "visit": [f"{1 + day % 28:02}.0{1 + day % 9}.2024" for day in rng.integers(0, 300, ROWS).tolist()],
        "crp": [None if own == "2" else float(x) for own, x in zip(hospital, rng.normal(5, 2, ROWS), strict=True)],
        "city": ["Graz" if own == "2" else f"Ort {own}" for own in hospital],
        "site": [7] * ROWS,
        "note": [f"seen at {row}" for row in range(ROWS)],
        "nr": list(range(500, 500 + ROWS)),
        "outcome": rng.choice([1, 2], ROWS).tolist(),
    }
    return table


def rows_of(federation: plures.Federation, table: dict[str, list[Any]], split: str) -> np.ndarray:
    """The rows of a table that are in a split: a federation lists them client after client."""
    owner = np.array(table["hospital"])
    order = np.concatenate([np.flatnonzero(owner == client) for client in federation.clients])
    return order[federation.splits[split].rows.numpy()]


def test_kinds_are_found_and_everything_is_fitted_to_train_rows():
    table = patients()
    before = plures.from_table(table, client="hospital", target="outcome", key="note")
    late = int(rows_of(before, table, "test")[0])
    table["ward"][late] = "C"  # occurs in a test row alone; splits do not move with what is fitted
    federation = plures.from_table(table, client="hospital", target="outcome", key="note")
    assert federation.clients == ("2", "10", "Süd/St. Anna")
    assert federation.task.classes == ("1", "2")
    schema = schema_of(federation)
    assert schema is not None
    train = rows_of(federation, table, "train")
    assert late not in train
    age, crp = (np.array([np.nan if x is None else x for x in table[name]])[train] for name in ("age", "crp"))
    days = np.array([np.datetime64("-".join(reversed(table["visit"][row].split(".")))) for row in train])
    days = days.astype("datetime64[D]").astype(float)
    found = {column.name: column for column in schema.columns}
    fitted = found["crp"]
    assert isinstance(fitted, Number)
    assert (fitted.center, fitted.scale) == (pytest.approx(np.nanmean(crp)), pytest.approx(np.nanstd(crp)))
    assert schema.columns == (
        Number(name="age", center=age.mean(), scale=age.std()),
        Boolean(name="smokes", levels=("no", "yes")),
        Ordered(name="pain", levels=("low", "medium", "high"), other=True),
        Ordered(name="band", levels=("<40", "40-59", "60+"), other=True),
        Category(name="ward", levels=("A", "B"), other=True),
        Date(name="visit", format="%d.%m.%Y", center=days.mean(), scale=days.std()),
        Number(name="crp", center=fitted.center, scale=fitted.scale, missing=1.0),
    )
    assert schema.ignored == {
        "patient_id": "it is free text, with 45 different values",
        "city": "it names the client: each value occurs at one client only",
        "site": "it is 7 in every row",
        "nr": "it is a running number, different in every row",
    }
    columns = dict(zip(federation.columns, federation.inputs.T, strict=True))
    order = np.concatenate([rows_of(federation, table, split) for split in SPLITS])
    placed = torch.cat([federation.splits[split].rows for split in SPLITS])
    for name, wanted in {
        "age": [(x - age.mean()) / age.std() for x in table["age"]],
        "smokes": [float(x == "yes") for x in table["smokes"]],
        "pain": [{"low": 0.0, "medium": 0.5, "high": 1.0}[x] for x in table["pain"]],
        "ward=A": [float(x == "A") for x in table["ward"]],
        "ward is another value": [float(x == "C") for x in table["ward"]],
        "crp is missing": [float(x is None) for x in table["crp"]],
    }.items():
        torch.testing.assert_close(columns[name][placed], torch.tensor(wanted, dtype=torch.float32)[order])
    missing = [client.missing for client in federation.describe().clients]
    assert missing == [30, 0, 0]


def test_a_site_makes_the_inputs_of_the_simulation_bit_for_bit(tmp_path: Path):
    table = patients()
    whole = plures.from_table(table, client="hospital", target="outcome", group="patient_id")
    schema = schema_of(whole)
    assert schema is not None
    (tmp_path / "s.toml").write_text(schema.to_toml(), encoding="utf-8")
    assert read_schema(tmp_path / "s.toml") == schema
    for client in whole.clients:
        rows = [row for row, own in enumerate(table["hospital"]) if own == client]
        own = {name: [cells[row] for row in rows] for name, cells in table.items() if name != "hospital"}
        if client == "2":
            del own["crp"]  # the hospital that never measured it has no such column
        alone = schema.federation("site", {client: own})
        for split in SPLITS:
            mine, theirs = alone.splits[split][0], whole.splits[split][whole.index(client)]
            assert torch.equal(alone.inputs[mine], whole.inputs[theirs])
            assert torch.equal(alone.targets[mine], whole.targets[theirs])
            groups = {own["patient_id"][row] for row in mine.tolist()}
            others = {own["patient_id"][row] for row in range(len(rows)) if row not in mine.tolist()}
            assert not groups & others
    again = plures.from_table(table, client="hospital", schema=tmp_path / "s.toml")
    assert torch.equal(again.inputs, whole.inputs)
    with pytest.raises(PluresError, match="target: the schema says it; leave it out"):
        plures.from_table(table, client="hospital", target="outcome", schema=schema)


def write(file: Path, table: dict[str, list[Any]], separator: str = ",") -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, delimiter=separator)
        writer.writerow(table)
        writer.writerows(["" if cell is None else cell for cell in row] for row in zip(*table.values(), strict=True))


def test_files_folders_and_frames_give_the_same_federation(tmp_path: Path):
    table = patients()
    kinds = {"client": "hospital", "target": "outcome"}
    memory = plures.from_table(table, **kinds)
    points = {name: cells for name, cells in table.items() if name != "crp"}
    points["crp"] = [None if x is None else str(x).replace(".", ",") for x in table["crp"]]
    sources: list[Any] = []
    for name, separator in {"a.csv": ",", "b.csv": ";", "c.tsv": "\t"}.items():
        write(tmp_path / name, points if separator == ";" else table, separator)
        sources.append(tmp_path / name)
    for library in ("pandas", "polars"):
        module = pytest.importorskip(library)
        sources.append(module.DataFrame(table, **({} if library == "pandas" else {"strict": False})))
    for source in sources:
        found = plures.from_table(source, **kinds)
        assert found.columns == memory.columns
        assert torch.equal(found.inputs, memory.inputs)
        assert all(torch.equal(found.splits[split].rows, memory.splits[split].rows) for split in SPLITS)
    folder = tmp_path / "wards"
    folder.mkdir()
    for client in ("2", "10"):
        rows = [row for row, own in enumerate(table["hospital"]) if own == client]
        lacking = ("hospital", "crp") if client == "2" else ("hospital",)
        write(
            folder / f"{client}.csv",
            {n: [cells[row] for row in rows] for n, cells in table.items() if n not in lacking},
        )
    found = plures.from_table(folder, target="outcome")
    assert (found.clients, found.name) == (("2", "10"), "wards")
    assert "crp is missing" in found.columns
    with pytest.raises(PluresError, match="the files of a folder name the clients; leave it out"):
        plures.from_table(folder, client="hospital", target="outcome")


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        (
            "age",
            "fourty",
            r"p.csv, column 'age', line 9: 'fourty' is not a number, as most of the column is",
        ),
        ("age", "41,5", r"column 'age', line 9: '41,5' is not a number.*write a decimal point"),
        ("visit", "soon", r"p.csv, column 'visit', line 9: 'soon' is not a date like the others"),
        ("hospital", "", r"p.csv, column 'hospital', line 9: no client"),
        ("outcome", "", r"p.csv, column 'outcome', line 9: missing in 1 of 90 rows"),
    ],
)
def test_a_bad_cell_is_named_with_its_file_row_and_column(tmp_path: Path, column: str, cell: str, message: str):
    table = patients()
    table[column][7] = cell
    write(tmp_path / "p.csv", table)
    with pytest.raises(PluresError, match=message):
        plures.from_table(tmp_path / "p.csv", client="hospital", target="outcome")


def test_misspelled_names_are_answered_with_the_right_one(tmp_path: Path):
    write(tmp_path / "patients.csv", patients())
    for given, message in {
        ("patiens.csv", "hospital", "outcome"): "did you mean 'patients.csv'",
        ("patients.csv", "hospitl", "outcome"): "no column 'hospitl' in the table; did you mean 'hospital'",
        ("patients.csv", "hospital", "outcom"): "no column 'outcom' in the table; did you mean 'outcome'",
    }.items():
        with pytest.raises(PluresError, match=message):
            plures.from_table(tmp_path / given[0], client=given[1], target=given[2])


def test_splits_that_the_data_come_with(tmp_path: Path):
    table = patients()
    table["part"] = [("train", "val", "Test")[row // 30] for row in range(ROWS)]
    table["fold"] = [1 + row // 3 % 5 for row in range(ROWS)]
    kinds: dict[str, Any] = {"client": "hospital", "target": "outcome", "drop": ["part"]}
    given = plures.from_table(table, **{**kinds, "drop": ["fold"]}, split_column="part")
    for place, split in enumerate(SPLITS):
        assert sorted(rows_of(given, table, split).tolist()) == list(range(30 * place, 30 * place + 30))
    folds = plures.from_table(table, **kinds, split_column="fold", fold=2)
    test = [row for row in range(ROWS) if table["fold"][row] == 2]
    assert sorted(rows_of(folds, table, "test").tolist()) == test
    assert [len(rows) for rows in folds.splits["validation"]] == [4, 4, 4]  # 15 % of the 24 others of each client
    halves = [{name: cells[part] for name, cells in table.items()} for part in (slice(0, 60), slice(60, None))]
    write(tmp_path / "test.csv", halves[1])
    apart = plures.from_table(halves[0], **{**kinds, "drop": ["part", "fold"]}, test=tmp_path / "test.csv")
    assert sorted(rows_of(apart, table, "test").tolist()) == list(range(60, 90))
    when = plures.from_table(
        {**table, "day": [f"2024-01-{1 + row // 3:02}" for row in range(ROWS)]}, **kinds, time="day"
    )
    last = rows_of(when, table, "test")
    assert len(last)
    assert min(last) > max(rows_of(when, table, "train"))
    with pytest.raises(PluresError, match=r"column 'part', row 5: 'later' is no split; write train,"):
        plures.from_table(
            {**table, "part": [*table["part"][:4], "later", *table["part"][5:]]},
            **{**kinds, "drop": ["fold"]},
            split_column="part",
        )
    with pytest.raises(PluresError, match="rows of group P000 are in different splits"):
        plures.from_table(
            {**table, "fold": [row % 2 for row in range(ROWS)], "hospital": ["a"] * ROWS},
            **kinds,
            split_column="fold",
            fold=1,
            group="patient_id",
        )


def test_a_regression_is_learned_on_the_scale_of_its_train_rows():
    table = patients()
    table["cost"] = [1000.0 + 100 * age for age in table["age"]]
    federation = plures.from_table(table, client="hospital", target="cost", drop=["outcome"], split=SplitRule(0.2, 0.2))
    train = np.array(table["cost"])[rows_of(federation, table, "train")]
    schema = schema_of(federation)
    assert schema is not None
    assert schema.target_center == (pytest.approx(train.mean()),)
    assert schema.target_scale == (pytest.approx(train.std()),)
    rows = federation.splits["train"].rows
    np.testing.assert_allclose(federation.in_units(federation.targets[rows])[:, 0], train, rtol=1e-5)


def test_the_command_line_from_a_file_to_predictions_of_new_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    table = patients()
    write(tmp_path / "patients.csv", table)
    new = {name: cells[:4] for name, cells in table.items() if name not in ("outcome", "hospital", "nr")}
    new["ward"] = ["A", "B", "Z", "A"]  # another value is an input of its own
    write(tmp_path / "new.csv", new)

    def plures_(*words: str) -> str:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    said = ("--client", "hospital", "--target", "outcome")
    assert "left out" in plures_("describe", "patients.csv", *said, "--out", "s.toml")
    plures_("run", "patients.csv", "fedper", *said, "--rounds", "1", "--out", "r")
    assert (tmp_path / "r/schema.toml").read_text() == (tmp_path / "s.toml").read_text()
    known = plures.from_table("patients.csv", client="hospital", target="outcome")
    later = {name: cells[:30] for name, cells in patients(1).items()} | {"hospital": ["Ulm"] * 30}
    write(tmp_path / "later.csv", later)
    assert "Ulm" in plures_("onboard", "r", "--data", "later.csv", "--visits", "1")
    (tmp_path / "patients.csv").unlink()
    printed = plures_("predict", "r", "new.csv", "--client", "10").splitlines()
    assert printed[0] == "class,1,2"
    folder, client = RunFolder(tmp_path / "r"), "10"
    outputs, decided = folder.predict(client, new)
    assert decided is not None
    assert [line.split(",")[0] for line in printed[1:]] == [known.task.classes[place] for place in decided.tolist()]
    inputs = known.scaled(new)
    assert inputs[2, known.columns.index("ward is another value")] == 1
    rows = [table["hospital"][:30].index(client), 0, 1]
    assert torch.equal(
        known.scaled({n: [cells[row] for row in rows] for n, cells in table.items()})[0], known.inputs[30]
    )
    model = PersonalModel.stored(folder, client)
    assert model.raw_columns == ("age", "smokes", "pain", "band", "ward", "visit", "crp")
    assert torch.equal(model.predict(new)[0], outputs)
    both = {**new, "hospital": ["10", "2", "10", "2"]}  # each row by the model of its client, in the order of the rows
    mixed, _ = folder.predict(None, both)
    torch.testing.assert_close(mixed[[0, 2]], outputs[[0, 2]])
    torch.testing.assert_close(mixed[[1, 3]], folder.predict("2", new)[0][[1, 3]])
    write(tmp_path / "both.csv", both)
    plures_("predict", "r", "both.csv", "--out", "p.csv")
    lines = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()]
    assert lines[0] == ["hospital", "class", "1", "2"]
    assert [line[0] for line in lines[1:]] == both["hospital"]
    assert folder.predict("Ulm", new)[0].shape == (4, 2)
    with pytest.raises(PluresError, match="column 'age', row 2: 1 cell is not a number, the first holds 'old'"):
        folder.predict(client, {**new, "age": [30, "old", 40, 50]})


@pytest.mark.parametrize("kind", [str, int, float])
def test_numbers_order_rows_as_dates_do(kind: type, tmp_path: Path):
    """Cycles 1 to 200 in a random order: the last 20 % of each client test, as numbers and not as text."""
    cycle = np.random.default_rng(0).permutation(200) + 1
    table = {
        "engine": ["a", "b"] * 100,
        "heat": np.random.default_rng(1).normal(size=200).tolist(),
        "cycle": [kind(number) for number in cycle.tolist()],
        "worn": ["no", "no", "yes", "yes"] * 50,
    }
    federation = plures.from_table(table, client="engine", target="worn", time="cycle")
    schema = schema_of(federation)
    assert schema is not None
    assert (schema.time, schema.date, schema.names) == ("cycle", None, ("heat",))
    order = np.concatenate([np.arange(0, 200, 2), np.arange(1, 200, 2)])  # a federation lists client after client
    for place, own in enumerate((np.arange(0, 200, 2), np.arange(1, 200, 2))):
        latest = own[np.argsort(cycle[own])][-len(federation.splits["test"][place]) :]
        found = order[federation.splits["test"][place].numpy()]
        assert sorted(found.tolist()) == sorted(latest.tolist())
    (tmp_path / "s.toml").write_text(schema.to_toml())
    again = plures.from_table(table, schema=tmp_path / "s.toml")
    assert torch.equal(again.splits["test"].rows, federation.splits["test"].rows)
    site = schema.federation("a", {"a": {name: cells[::2] for name, cells in table.items()}})
    assert torch.equal(site.splits["test"][0], federation.splits["test"][0])
    with pytest.raises(PluresError, match="column 'cycle', row 7: missing in 1 of 200 rows"):
        plures.from_table(
            {**table, "cycle": [*table["cycle"][:6], None, *table["cycle"][7:]]},
            client="engine",
            target="worn",
            time="cycle",
        )
    dated = plures.from_table({**table, "cycle": ["20240531"] * 200}, client="engine", target="worn", time="cycle")
    assert schema_of(dated).date == "cycle"  # type: ignore[union-attr]


WRITTEN = {
    "%d.%m.%Y": "%d.%m.%Y",
    "%m/%d/%Y": "%m/%d/%Y",
    "%d-%b-%Y": "%d-%b-%Y",
    "%B %d, %Y": "%B %d, %Y",
    "%d.%m.%y %H:%M": "%d.%m.%y %H:%M",
    "%Y%m%d": None,
    "%Y-%m-%d %H:%M:%S": None,
}
"""How dates are written -> what the schema says of it; nothing of what is ISO."""


@pytest.mark.parametrize("written", WRITTEN)
def test_dates_of_any_clear_format_order_rows(written: str):
    rng = np.random.default_rng(0)
    days = rng.permutation(400)[:120]
    table: dict[str, list[Any]] = {
        "ward": ["A", "B"] * 60,
        "visit": [datetime.fromordinal(738000 + day).strftime(written) for day in days.tolist()],
        "x": rng.normal(size=120).tolist(),
        "ill": rng.choice(["no", "yes"], 120).tolist(),
    }
    federation = plures.from_table(table, client="ward", target="ill", time="visit")
    schema = schema_of(federation)
    assert schema is not None
    assert (schema.date, schema.date_format) == ("visit", WRITTEN[written])
    for place in range(2):
        own = days[place::2]
        late = np.sort(own)[-len(federation.splits["test"][place]) :]
        x = federation.unscaled(federation.inputs)[federation.splits["test"][place], 0]
        expected = [np.float32(table["x"][row]) for row in range(120) if days[row] in late and row % 2 == place]
        assert sorted(x.tolist()) == pytest.approx(sorted(expected), abs=1e-5)
    site = schema.federation("a", {"A": {name: cells[::2] for name, cells in table.items()}})
    assert torch.equal(site.inputs, federation.inputs[: len(site.inputs)])
    table["visit"][2] = "soon"
    with pytest.raises(PluresError, match=r"column 'visit', row 3: 1 without (an ISO|such a) date, the first holds"):
        schema.federation("a", {"A": table})


def test_dates_that_may_be_two_are_refused_until_the_user_says_which(tmp_path: Path, says: Says):
    table = patients()
    table["visit"] = [f"{1 + row % 9:02}/{1 + row % 8:02}/2024" for row in range(ROWS)]
    file = tmp_path / "p.csv"
    write(file, table)
    said = ("describe", str(file), "--client", "hospital", "--target", "outcome", "--time", "visit")
    code, text = says(*said)
    assert code == 2
    assert f"{file}, column 'visit', line 2: '01/01/2024' may be %d/%m/%Y or %m/%d/%Y; say which, with dates=" in text
    code, text = says(*said, "--data", 'dates={"visit": "%m/%d/%Y"}', "--out", str(tmp_path / "s.toml"))
    assert code == 0
    schema = read_schema(tmp_path / "s.toml")
    assert (schema.date, schema.date_format, schema.splits.by) == ("visit", "%m/%d/%Y", "time")


def test_predictions_repeat_the_client_and_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "patients.csv", patients())
    said = ("--client", "hospital", "--target", "outcome", "--data", "key=note")
    cli = CliRunner()
    assert cli.invoke(app, ["run", "patients.csv", "fedavg", *said, "--rounds", "1", "--out", "r"]).exit_code == 0
    new = {name: cells[:4] for name, cells in patients().items() if name != "outcome"}
    write(tmp_path / "new.csv", new)
    lines = [line.split(",") for line in cli.invoke(app, ["predict", "r", "new.csv"]).stdout.splitlines()]
    assert lines[0] == ["hospital", "note", "class", "1", "2"]
    assert [line[:2] for line in lines[1:]] == [list(pair) for pair in zip(new["hospital"], new["note"], strict=True)]
    folder = tmp_path / "new"
    folder.mkdir()
    for client in ("10", "2"):  # without --client, a file's name says whose model predicts
        own = [row for row in range(4) if new["hospital"][row] == client]
        write(folder / f"{client}.csv", {n: [c[row] for row in own] for n, c in new.items() if n != "hospital"})
    rows = read_rows(folder)
    assert rows["client"] == ["10", "10", "2"]
    assert rows["note"] == ["seen at 0", "seen at 3", "seen at 1"]
    write(folder / "2.csv", {"client": ["x"]})
    with pytest.raises(PluresError, match="has a column 'client', but the files name the clients"):
        read_rows(folder)
