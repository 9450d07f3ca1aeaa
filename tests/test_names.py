"""The order of clients and what identifies a client: one rule, everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.federation import SPLITS, Federation, Split, completeness_report, degrade, from_arrays, split_rows
from plures.method import Setting
from plures.names import in_order, name_of
from plures.tasks import Regression

NUMBERS = np.arange(1, 13)
CLIENT = NUMBERS.repeat(12)
X = np.random.default_rng(0).normal(size=(144, 3))
Y = np.tile([0, 1, 2], 48)
AGE = {int(number): 100 + int(number) for number in NUMBERS}


def numbered(**options: object) -> Federation:
    return from_arrays(X, Y, CLIENT, **options)


def test_numbers_in_names_are_sorted_as_numbers():
    assert in_order(["10", "9", "2", "1"]) == ("1", "2", "9", "10")
    assert in_order(["ward 10", "ward 9", "Ward 2", "ward b"]) == ("Ward 2", "ward 9", "ward 10", "ward b")
    assert in_order(["a 1", "a-1", "a1", "a01", "a1 b"]) == ("a 1", "a-1", "a01", "a1", "a1 b")
    padded = [f"subject {number:02}" for number in range(1, 31)]
    assert in_order(reversed(padded)) == tuple(padded)
    assert in_order(["9" * 5000, "1" + "0" * 5000]) == ("9" * 5000, "1" + "0" * 5000)


def test_without_numbers_names_are_sorted_as_texts():
    words = ["b", "a", "a b", "ab", "Z", "é", ""]
    assert in_order(words) == tuple(sorted(words))


def test_a_number_is_the_name_of_its_digits():
    assert [name_of(v) for v in (3, np.int64(3), 3.0, "3", np.str_("3"), -3)] == ["3"] * 5 + ["-3"]
    for nobody in (None, "", float("nan"), 1.5, [3]):
        with pytest.raises(PluresError, match="cannot name a client"):
            name_of(nobody)


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.str_, object])
def test_clients_are_in_natural_order_whatever_their_type(kind: type):
    federation = from_arrays(X, Y, CLIENT.astype(kind))
    assert federation.clients == tuple(map(str, range(1, 13)))
    assert split_rows(CLIENT.astype(kind))[0] == federation.clients
    for split in SPLITS:
        for name, rows in zip(federation.clients, federation.splits[split], strict=True):
            assert set(CLIENT[rows.numpy()].tolist()) == {int(name)}


def test_metadata_belong_to_the_client_that_they_are_given_for():
    by_column = numbered(metadata={"age": AGE})
    by_client = numbered(metadata={number: {"age": age} for number, age in AGE.items()})
    as_text = numbered(metadata={"age": {str(number): age for number, age in AGE.items()}})
    backwards = [*reversed(AGE)]
    stated = numbered(metadata={"client": backwards, "age": [AGE[number] for number in backwards]})
    for federation in (by_column, by_client, as_text, stated):
        assert dict(zip(federation.clients, federation.metadata["age"], strict=True)) == {
            str(number): age for number, age in AGE.items()
        }
        assert set(federation.metadata) == {"age"}


def test_lists_without_an_order_are_refused_where_there_are_two():
    with pytest.raises(PluresError, match="column 'age': whose value comes first"):
        numbered(metadata={"age": list(AGE.values())})
    swapped = np.where(CLIENT == 1, "b", "a")
    with pytest.raises(PluresError, match="state the order of the lists in a column 'client'"):
        from_arrays(X, Y, swapped, metadata={"age": (1, 2)})
    assert from_arrays(X, Y, np.where(CLIENT == 1, "a", "b"), metadata={"age": (1, 2)}).metadata == {"age": (1, 2)}


def test_metadata_that_do_not_fit_are_named():
    with pytest.raises(PluresError, match="metadata column 'age': no value for client '12'"):
        numbered(metadata={"age": dict.fromkeys(range(1, 12), 1)})
    with pytest.raises(PluresError, match="metadata: no row for client '12'"):
        numbered(metadata={number: {"age": 1} for number in range(1, 12)})
    with pytest.raises(PluresError, match="'client': it states the order of the lists, so it must name each of the 12"):
        numbered(metadata={"client": [1] * 12, "age": [0] * 12})
    with pytest.raises(PluresError, match="client '3' occurs twice among the keys"):
        numbered(metadata={"age": {**AGE, "3": 1}})
    with pytest.raises(PluresError, match="column 'age': give one value for each client, not 'old'"):
        numbered(metadata={"age": "old"})


def test_series_with_the_clients_as_labels():
    pandas = pytest.importorskip("pandas")
    ages = pandas.Series(AGE)[::-1]
    assert numbered(metadata={"age": ages}).metadata["age"] == tuple(AGE.values())
    table = pandas.DataFrame({"client": [*reversed(AGE)], "age": [*reversed(AGE.values())]})
    assert numbered(metadata=table).metadata["age"] == tuple(AGE.values())


def test_numbers_are_accepted_wherever_clients_are_named():
    federation = numbered(metadata={"age": AGE})
    assert federation.index(10) == federation.index("10") == 9
    assert federation.subset([10, 2, "1"]).clients == ("1", "2", "10")
    assert federation.subset([10, 2]).metadata["age"] == (102, 110)
    seen, unseen = federation.hold_out([np.int64(3)])
    assert unseen.clients == ("3",)
    assert seen.clients == tuple(str(n) for n in range(1, 13) if n != 3)
    setting = Setting.of(federation)
    assert setting.index(12) == 11
    assert setting.fact("age").tolist() == list(AGE.values())
    shares = degrade(federation, noise={number: 1.0 / number for number in range(1, 13)}).metadata["reliability"]
    assert shares == tuple(1 / (1 + 1.0 / number) for number in range(1, 13))


def test_misspelled_clients_get_a_suggestion():
    wards = from_arrays(X, Y, np.char.add("ward ", CLIENT.astype(str)))
    with pytest.raises(PluresError, match=r"no client 'Ward 3' in federation 'data'; did you mean 'ward 3'\?"):
        wards.index("Ward 3")
    with pytest.raises(PluresError, match=r"clients='ward 3': give a list of names, \['ward 3'\]"):
        wards.subset("ward 3")


def test_another_order_is_refused_with_the_right_one():
    rows = torch.arange(2)
    split = Split.of([rows, rows + 2])
    values = torch.zeros(4, 1)
    with pytest.raises(PluresError, match="in natural order, that is 2, 10"):
        Federation("two", Regression(1), values, values, ("10", "2"), dict.fromkeys(SPLITS, split))


def test_missing_values_are_counted_for_the_right_client():
    holes = np.where((CLIENT == 2)[:, None] & (np.arange(3) == 1), np.nan, X)
    federation = from_arrays(holes, Y, CLIENT, missing="impute")
    assert federation.metadata["missing values"] == tuple(12 if number == 2 else 0 for number in range(1, 13))
    report = completeness_report(holes, CLIENT)
    assert report.clients == federation.clients
    assert report.share[1].tolist() == [1, 0, 1]
    assert completeness_report(federation).share[1, 1] == 0


@pytest.mark.parametrize("gap", ["", np.nan, None])
def test_a_row_without_a_client_is_named(gap: object):
    client = np.array(["a", "b", gap, "b"] * 3)
    with pytest.raises(PluresError, match="client column, row 2: no client; give every row a client"):
        from_arrays(X[:12], Y[:12], client)


def test_numbers_in_object_columns_are_numbers():
    client = np.array([*CLIENT.tolist()], dtype=object)
    client[:12] = -1
    assert from_arrays(X, Y, client).clients == tuple(str(number) for number in range(2, 13))
