"""Subgroups inside clients, intervals over a client's test examples, and all clients' examples together."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plures
from plures.errors import PluresError
from plures.evaluate import Comparison, compare, finish, fit
from plures.evaluate.coincidence import explained
from plures.evaluate.inside import Inside, interval_inside
from plures.evaluate.results import LEAST
from plures.federation import Federation, from_arrays
from plures.federation.subgroups import parsed, subgroups_of
from plures.metrics import alone
from plures.metrics.accuracy import accuracy
from plures.metrics.auroc import auroc
from plures.report import console_table, html_report
from saying import Says

EXACT = plures.Execution("vmap", 8, False, "float32")


def cut(values: Sequence[Any], edges: Sequence[float] = (), train: Sequence[int] | None = None) -> list[str]:
    """The subgroup of every value."""
    rows = np.arange(len(values)) if train is None else np.array(train)
    found = subgroups_of("x", np.array(values, dtype=object), edges, rows)
    return [found.names[code] for code in found.codes.tolist()]


def wards(unsure: bool = False) -> Federation:
    """Two clients; women are the first half of each client's rows, and one input in ten of theirs is wrong."""
    client = np.repeat(["A", "B"], 120)
    y = np.arange(240) % 2
    sex = np.where(np.arange(240) % 120 < 60, "f", "m").astype(object)
    x = np.where((np.arange(240) % 10 == 3) & (sex == "f"), 1 - y, y)
    sex[7] = None if unsure else sex[7]
    age = np.arange(240) % 60 + 20
    return from_arrays(
        np.stack([x, age], 1).astype(np.float32),
        y,
        client,
        columns=["x", "age"],
        subgroups={"sex": sex},
        key=np.arange(240),
        copies="allow",
        name="wards",
    )


def compared(data: Federation, *methods: str, **options: Any) -> Comparison:
    return compare(data, methods, rounds=2, seeds=1, learning_rates=[0.1], tune_rounds=0, execution=EXACT, **options)


# --- what a subgroup is -----------------------------------------------------------------------------------------------


def test_edges_of_bands_come_behind_the_name() -> None:
    assert parsed("age:40,60.5") == ("age", (40.0, 60.5))
    assert parsed("sex") == ("sex", ())
    assert parsed("ratio a:b") == ("ratio a:b", ())
    with pytest.raises(PluresError, match="the edges of bands must increase"):
        parsed("age:60,40")


def test_numbers_are_cut_at_stated_edges_and_an_edge_belongs_above() -> None:
    assert cut([39, 40, "59.9", 60], [40, 60]) == ["below 40", "40 to below 60", "40 to below 60", "60 or more"]
    assert cut([1, 2], [5]) == ["below 5", "below 5"]


def test_without_edges_train_rows_alone_decide_and_few_values_are_groups_themselves() -> None:
    """The thirds of 0 to 8 begin at 3 and 6; what the other rows hold has no say."""
    found = cut([*range(9), 1000, -1000], train=range(9))
    assert found == ["below 3"] * 3 + ["3 to below 6"] * 3 + ["6 or more"] * 4 + ["below 3"]
    assert cut([1.0, 2.0, 10.0]) == ["1", "2", "10"]


def test_rows_without_a_value_are_a_subgroup() -> None:
    assert cut(["f", None, "m", float("nan"), ""]) == ["f", "missing", "m", "missing", "missing"]
    assert cut([1, None, 50], [40]) == ["below 40", "missing", "40 or more"]
    assert cut(["missing", None]) == ["missing", "missing"]


def test_too_many_texts_and_bands_of_texts_are_refused() -> None:
    with pytest.raises(PluresError, match="'x': 30 different values, such as 'a00'; give a column with at most 20"):
        cut([f"a{i:02}" for i in range(30)])
    with pytest.raises(PluresError, match="bands are for numbers, but values are f, m"):
        cut(["f", "m"], [3])


def test_a_column_of_the_inputs_is_in_its_own_units() -> None:
    table = {
        "ward": ["A", "B"] * 60,
        "ill": ["no", "no", "yes"] * 40,
        "age": [*range(20, 80)] * 2,
        "sex": (["f"] * 40 + ["m"] * 20) * 2,
    }
    data = plures.from_table(table, client="ward", target="ill", name="w").with_subgroups(["age:40", "sex"])
    assert [data.subgroups["age"].names[c] for c in data.subgroups["age"].codes] == [
        "below 40" if age < 40 else "40 or more" for own in (0, 1) for age in table["age"][own::2]
    ]
    names = data.subgroups["sex"].names
    assert [names[c] for c in data.subgroups["sex"].codes] == [*table["sex"][::2], *table["sex"][1::2]]
    with pytest.raises(PluresError, match="no input column 'agee'; did you mean 'age'"):
        data.with_subgroups(["agee"])


# --- where they come from ---------------------------------------------------------------------------------------------


def test_a_column_of_subgroups_is_no_input_unless_features_name_it(tmp_path: Path) -> None:
    table = {
        "ward": ["A", "B"] * 30,
        "ill": ["no", "no", "yes"] * 20,
        "age": [*range(20, 50)] * 2,
        "sex": ["f", "m", "f", "f"] * 15,
        "dose": [1.5, 2.5, 4.5] * 20,
    }
    built = plures.from_table(table, client="ward", target="ill", subgroups=["sex", "age:30,40"])
    assert built.columns == ("dose",)
    assert {name: groups.names for name, groups in built.subgroups.items()} == {
        "sex": ("f", "m"),
        "age": ("below 30", "30 to below 40", "40 or more"),
    }
    schema = built.preparation.schema if built.preparation else None
    assert schema is not None
    assert schema.ignored == dict.fromkeys(("age", "sex"), "it tells subgroups, and features do not name it")  # type: ignore[attr-defined]
    both = plures.from_table(table, client="ward", target="ill", subgroups=["age:30,40"], features=["age", "dose"])
    assert both.columns == ("age", "dose")
    owner = np.argsort(table["ward"], kind="stable")  # a table's rows are kept by client
    assert [built.subgroups["sex"].names[code] for code in built.subgroups["sex"].codes.tolist()] == [
        table["sex"][row] for row in owner.tolist()
    ]
    with pytest.raises(PluresError, match="subgroups: no column 'sexx' in the table; did you mean 'sex'"):
        plures.from_table(table, client="ward", target="ill", subgroups=["sexx"])


def test_subgroups_follow_rows_that_are_left_out() -> None:
    client, group = [0] * 30 + [-1] * 5 + [1] * 30, ["a"] * 30 + ["z"] * 5 + ["b"] * 30
    data = from_arrays(np.arange(65.0)[:, None], np.arange(65) % 2, client, subgroups={"g": group}, copies="allow")
    assert data.subgroups["g"].names == ("a", "b")
    assert data.subgroups["g"].codes.tolist() == [0] * 30 + [1] * 30


# --- what is reported -------------------------------------------------------------------------------------------------


def test_values_are_those_of_each_clients_rows_of_the_subgroup() -> None:
    data = wards(unsure=True)
    run = plures.Run(data, plures.default_model(data), plures.METHODS["ditto"](), plures.Training(rounds=2))
    result = finish(fit(run, "ditto"), 0)
    assert result.details is not None
    found, groups = result.details.subgroups["sex"], data.subgroups["sex"]
    assert groups.names == ("f", "m", "missing")
    told = {client: plures.predictions(run, client, "test") for client in data.clients}
    codes = {client: groups.codes[rows] for client, rows in zip(data.clients, data.splits["test"], strict=True)}
    for group in (0, 1):
        right = [(told[c].decisions == told[c].targets)[codes[c] == group].double() for c in data.clients]
        assert all(len(own) >= LEAST for own in right)
        assert found.clients[group] == pytest.approx([float(own.mean()) for own in right], abs=1e-6)
        assert found.metrics["accuracy"][group] == pytest.approx(
            np.mean([float(own.mean()) for own in right]), abs=1e-6
        )
        assert found.pooled["accuracy"][group] == pytest.approx(float(torch.cat(right).mean()), abs=1e-6)
    assert [found.metrics["auroc"][2], found.pooled["auroc"][2]] == [None, None]
    everyone = plures.evaluate.pooled(run, "test")
    assert result.details.pooled == pytest.approx({name: round(value, 6) for name, value in everyone.items()})


@pytest.fixture(scope="module")
def result() -> Comparison:
    return compared(wards(), subgroups=["age:30,75"])


def test_the_table_says_the_worst_subgroup_and_the_gap(result: Comparison) -> None:
    method = result.method("fedavg")
    by_sex = method.by_subgroup("sex", "accuracy")
    row = result.row("fedavg")
    assert row.subgroups["sex"].gap == pytest.approx(abs(by_sex[0] - by_sex[1]))
    assert row.subgroups["sex"].worst == ("f", "m")[int(by_sex.argmin())]
    assert row.subgroups["sex"].value == by_sex.min()
    sizes = result.federation.subgroups["age"]
    assert sizes.names == ["below 30", "30 to below 75", "75 or more"]
    assert [sum(map(sum, sizes.sizes[split])) for split in ("train", "validation", "test")] == [
        len(wards().splits[split].rows) for split in ("train", "validation", "test")
    ]
    few = method.by_subgroup("age", "accuracy")
    assert [np.isnan(value) for value in few] == [clients == 0 for clients in sizes.judged(LEAST)]
    assert Comparison.model_validate_json(result.to_json()) == result
    lines = result.frame("subgroups")
    assert lines.loc[("fedavg", "sex", "f"), "accuracy"] == by_sex[0]
    assert lines.loc[("fedavg", "sex", "f"), "pooled_accuracy"] == method.by_subgroup("sex", "accuracy", pooled=True)[0]
    assert lines.loc[("fedavg", "age", "75 or more"), "judged_clients"] == sizes.judged(LEAST)[2]
    table = result.frame()
    assert table.loc["fedavg", "sex_worst"] == row.subgroups["sex"].worst
    assert table.loc["fedavg", "pooled_accuracy"] == row.pooled["accuracy"]
    page = html_report(result)
    assert "Subgroups inside clients" in page
    assert "Pooled metrics" in page
    heading = f"judged by {sizes.judged(LEAST)[0]} client"
    assert heading in page
    headings = [str(column.header) for column in console_table(result).columns]
    assert {"worst\nby sex", "gap\nby sex", "worst\nby age", "pooled\nall rows"} <= {*headings}
    part = result.among(["A"])
    assert (part.federation.subgroups, part.row("fedavg").subgroups) == ({}, {})
    assert part.method("fedavg").inside()[0].tolist() == method.inside()[0][:1].tolist()


def test_where_less_is_better_the_worst_subgroup_has_the_highest_value(result: Comparison) -> None:
    other = result.model_copy(update={"metric": next(card for card in result.metrics if card.name == "loss")})
    values = other.method("local").by_subgroup("sex", "loss")
    gap = other.row("local").subgroups["sex"]
    assert (gap.worst, gap.value) == (("f", "m")[int(values.argmax())], values.max())


def test_on_the_command_line(says: Says, tmp_path: Path) -> None:
    rows = [
        [("A", "B")[i % 2], ("f", "m")[i // 2 % 2], 20 + i % 60, i % 7, ("no", "yes")[i % 3 > 1]] for i in range(240)
    ]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ward", "sex", "age", "dose", "ill"], *rows])
    out = tmp_path / "out"
    options = ["--tune-rounds", "0", "--lr", "0.1", "--seeds", "1", "--rounds", "1", "--quiet"]
    table = ["--client", "ward", "--target", "ill", "--out", str(out)]
    status, _ = says(
        "compare", str(tmp_path / "rows.csv"), *table, "--subgroup", "sex", "--subgroup", "age:40,60", *options
    )
    assert status == 0
    result = Comparison.from_json(out / "results.json")
    assert result.federation.subgroups["age"].names == ["below 40", "40 to below 60", "60 or more"]
    assert result.settings["subgroups"] == ["sex", "age:40,60"]
    assert "Subgroups inside clients" in (out / "report.html").read_text()
    assert '"dose"' in (out / "schema.toml").read_text()
    status, text = says("compare", str(tmp_path / "rows.csv"), *table, "--subgroup", "sex", *options)
    assert status == 2
    assert "holds another comparison" in text


# --- intervals inside a client ----------------------------------------------------------------------------------------


def test_an_interval_of_accuracy_is_that_of_the_binomial() -> None:
    """Of n examples of which k are right, a draw has binomially many right ones."""
    n, k = 50, 40
    chances = np.cumsum([comb(n, j) * 0.8**j * 0.2 ** (n - j) for j in range(n + 1)])
    exact = [np.searchsorted(chances, q) / n for q in (0.025, 0.975)]
    right = (torch.arange(n) < k).double()
    assert interval_inside(accuracy, torch.ones(n), [right], "a", 4000) == pytest.approx(exact, abs=0.0201)
    assert interval_inside(accuracy, torch.ones(n), [right], "a") == interval_inside(
        accuracy, torch.ones(n), [right], "a"
    )


def test_an_interval_of_auroc_is_that_of_drawn_rows() -> None:
    """The same draws with rows repeated, scored by scikit-learn; draws of one class have no value."""
    score = pytest.importorskip("sklearn.metrics").roc_auc_score
    from plures.run.randomness import name_key

    draw = np.random.default_rng(3)
    chances, true = draw.random(12), np.arange(12) < 3
    drawn = np.random.default_rng((name_key("bootstrap inside"), name_key("a"))).multinomial(
        12, np.full(12, 1 / 12), 60
    )
    known = [score(np.repeat(true, own), np.repeat(chances, own)) for own in drawn if 0 < own[true].sum() < own.sum()]
    kept = [torch.tensor(chances).unsqueeze(1), torch.tensor(true).unsqueeze(1)]
    expected = np.quantile(known, (0.025, 0.975))
    assert interval_inside(auroc, torch.ones(12), kept, "a", 60) == pytest.approx(expected, abs=1e-12)


def test_without_two_examples_or_with_one_class_there_is_no_interval() -> None:
    assert np.isnan(interval_inside(accuracy, torch.ones(1), [torch.ones(1)], "a")).all()
    kept = [torch.rand(9, 1), torch.ones(9, 1, dtype=torch.bool)]
    assert np.isnan(interval_inside(auroc, torch.ones(9), kept, "a")).all()
    own = replace(accuracy, value=alone(lambda right: right.mean()))
    assert np.isnan(interval_inside(own, torch.ones(9), [torch.arange(9.0)], "a")).all()


def test_every_client_has_its_interval_in_the_frame_and_the_page(result: Comparison) -> None:
    lines = result.frame("clients")
    low, high = result.method("local").inside()
    assert lines.loc[("local", "B"), ["low", "high"]].tolist() == [low[1], high[1]]
    value = result.method("local").per_client("accuracy")
    assert ((low <= value) & (value <= high)).all()
    assert (low < high).any()
    page = html_report(result)
    assert '"inside":[[' in page


def test_with_many_clients_nothing_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plures.evaluate.inside.MOST_CLIENTS", 1)
    data = wards()
    run = plures.Run(data, plures.default_model(data), plures.METHODS["fedavg"](), plures.Training(rounds=1))
    inside = Inside(run)
    plures.score(run, "test", collector=inside)
    assert inside.found() == {}


# --- clusters ---------------------------------------------------------------------------------------------------------


def test_the_share_explained_is_adjusted_for_chance() -> None:
    """Shares of women .9, .7, .3, .1: total 0.2 and within 0.02 each for both subgroups, so R2 = 0.8 + 0.1."""
    counts = [[900, 100], [700, 300], [300, 700], [100, 900]]
    raw, chance = 1 - 2 * (2 * 0.1**2 + 2 * 0.1**2) / (2 * (2 * 0.4**2 + 2 * 0.2**2)), 1 / 3
    assert explained([0, 0, 1, 1], counts) == pytest.approx((raw - chance) / (1 - chance))
    assert explained([0, 1, 1, 0], counts) == pytest.approx((0 - chance) / (1 - chance))


def test_clusters_of_clients_with_mixes_that_chance_explains_say_nothing() -> None:
    assert np.isnan(explained([0, 0, 1, 1], [[6, 4], [6, 4], [4, 6], [4, 6]]))
    assert np.isnan(explained([0, 0, 0, 0], [[9, 1], [9, 1], [1, 9], [1, 9]]))
    assert np.isnan(explained([0, 1, 2, 3], [[9, 1], [9, 1], [1, 9], [1, 9]]))
    assert explained([0, 0, 1, 1, 2], [[90, 10], [90, 10], [10, 90], [10, 90], [0, 0]]) == 1


def test_a_misspelled_subgroup_that_is_no_input_is_found() -> None:
    data = plures.from_arrays(
        np.zeros((60, 1), np.float32), np.arange(60) % 2, ["a", "b", "c"] * 20, columns=["dose"], name="data"
    ).with_subgroups({"sex": ["f", "m"] * 30})
    with pytest.raises(PluresError, match=r"no input column 'sxe'; did you mean 'sex'\?"):
        data.with_subgroups("sxe")
