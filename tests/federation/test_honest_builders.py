"""Builders report what they do not use, what they cannot read, and what is probably a mistake."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from plures import compare
from plures.errors import PluresError, PluresWarning
from plures.evaluate.compare import refuse_unmeasured
from plures.federation import SPLITS, Federation, SplitRule, from_arrays, from_dataset, from_folder, load

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (90, 4))
Y = np.arange(90) % 3
CLIENT = np.repeat(["a", "b", "c"], 30)


def test_rows(federation: Federation) -> list[int]:
    return federation.splits["test"].rows.tolist()


test_rows.__test__ = False  # type: ignore[attr-defined]


# Options -----------------------------------------------------------------------------------------------------------


def test_an_option_that_nobody_reads_is_refused_by_every_builder(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    builders = {
        "from_arrays": lambda **o: from_arrays(X, Y, CLIENT, **o),
        "from_dataset": lambda **o: from_dataset([*zip(X, Y, strict=True)], CLIENT, **o),
        "from_folder": lambda **o: from_folder(tmp_path, **o),
    }
    for name, build in builders.items():
        with pytest.raises(PluresError, match=rf"{name} has no option 'standardise'; did you mean 'standardize'\?"):
            build(standardise=True)
    with pytest.raises(PluresError, match="from_folder has no option 'groups'"):
        from_folder(tmp_path, groups=Y)  # type: ignore[call-arg]
    with pytest.raises(PluresError, match="data set 'heart' has no option 'standardise'; did you mean 'standardize'"):
        load("heart", standardise=False)


@pytest.mark.parametrize("text", ["False", "false", "0", 0, False, np.bool_(False)])
def test_truth_given_as_text_is_read(text: object):
    assert from_arrays(X, Y, CLIENT, standardize=text).scaling is None  # type: ignore[arg-type]
    assert load("heart", standardize=text).scaling is None


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("standardize", "maybe", "standardize='maybe'; give true or false"),
        ("standardize", 2, "standardize=2; give true or false"),
        ("seed", "x", "seed='x'; give a whole number"),
        ("seed", 1.5, "seed=1.5; give a whole number"),
        ("seed", True, "seed=True; give a whole number"),
        ("name", 3, "name=3; give a text"),
        ("split", 0.2, "split=0.2; give a SplitRule"),
        ("split", {"tets": 0.2}, r"a split rule has no option 'tets'; did you mean 'test'\?"),
        (
            "task",
            "ranking",
            "task='ranking' is unknown; did you mean 'ratings'",
        ),
        ("dtype", "float99", "dtype='float99'; give a torch.dtype"),
        ("metadata", [1, 2], "metadata=.*; give a mapping"),
    ],
)
def test_options_have_their_declared_type(option: str, value: object, message: str):
    with pytest.raises(PluresError, match=message):
        from_arrays(X, Y, CLIENT, **{option: value})  # type: ignore[arg-type]


def test_options_of_the_command_line_mean_what_they_say():
    by_text = from_arrays(X, Y, CLIENT, seed="3", dtype="float64", split={"test": "0.4", "validation": 0})  # type: ignore[arg-type]
    meant = from_arrays(X, Y, CLIENT, seed=3, dtype=torch.float64, split=SplitRule(0, 0.4))
    assert by_text.inputs.dtype == torch.float64
    assert test_rows(by_text) == test_rows(meant)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": np.arange(90)}, "time: the split is random, so it has no effect"),
        ({"seed": 3, "time": np.arange(90), "split": SplitRule(by="time")}, "seed=3: a split by time draws nothing"),
        ({"classes": ("a", "b", "c"), "task": "regression"}, "classes: a regression has none"),
        ({"standardize_targets": True}, "standardize_targets: classes have no scale"),
        ({"dtype": torch.int64}, "client 'a', row 0: an input that torch.int64 cannot hold"),
        ({"dtype": torch.complex64}, "inputs are floating point, or integers for tokens"),
        ({"columns": ("p", "q", "p", "r")}, "columns: 'p' is given twice"),
        ({"classes": ("p", "q", "p")}, "classes: 'p' is given twice"),
        ({"groups": np.where(np.arange(90) == 31, np.nan, 1.0)}, "client 'b', row 31: no group"),
        ({"key": np.arange(90) // 2}, "key: '0' stands for 2 rows of client 'a'"),
    ],
)
def test_options_without_effect_are_refused(options: dict, message: str):
    with pytest.raises(PluresError, match=message):
        from_arrays(X, Y, CLIENT, **options)


def test_integers_have_no_missing_value():
    with pytest.raises(PluresError, match=r"integers of type torch.int64 have no missing value"):
        from_arrays(np.ones((90, 2), dtype=np.int64), Y, CLIENT, missing="impute", dtype=torch.int64)


# Classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1001, 2002], ("1001", "2002")),
        ([1, 2], ("1", "2")),
        ([-1, 1], ("-1", "1")),
        ([True, False], ("False", "True")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["stage 10", "stage 9"], ("stage 9", "stage 10")),
        (["very ill", "ill"], ("ill", "very ill")),
        (np.array([0, "b", 1.0], dtype=object), ("0", "1", "b")),
    ],
)
def test_classes_are_the_values_that_occur(labels: list, names: tuple[str, ...]):
    given = np.resize(np.array(labels), 90)
    federation = from_arrays(X, given, CLIENT)
    assert federation.task.classes == names
    assert federation.task.outputs == len(names)
    back = [federation.task.classes[code] for code in federation.targets.tolist()]
    assert back == [str(int(v)) if isinstance(v, float) else str(v) for v in given.tolist()]


def test_whole_floating_labels_are_classes_if_it_is_said():
    federation = from_arrays(X, Y + 4.0, CLIENT, task="classification")
    assert federation.task.classes == ("4", "5", "6")
    with pytest.warns(PluresWarning, match=r"this is a regression, but they are 3 whole numbers \(0, 1, 2\)"):
        assert from_arrays(X, Y.astype(float), CLIENT).task.kind == "regression"
    with pytest.warns(PluresWarning, match="90 different whole numbers .* each is taken as a class"):
        from_arrays(X, np.arange(90), np.full(90, "a"))


def test_labels_among_given_classes_go_by_name_where_the_names_are_numbers():
    labels = np.resize([2002, 1001], 90)
    assert from_arrays(X, labels, CLIENT, classes=("1001", "2002", "3003")).targets[:2].tolist() == [1, 0]
    assert from_arrays(X, labels, CLIENT, classes=[3003, 2002, 1001]).targets[:2].tolist() == [1, 2]
    assert from_arrays(X, Y, CLIENT, classes=("2", "1", "0")).targets[:3].tolist() == [2, 1, 0]
    assert from_arrays(X, Y, CLIENT, classes=("x", "y", "z")).targets[:3].tolist() == [0, 1, 2]
    assert from_arrays(X, Y > 0, CLIENT, classes=("True", "False")).targets[:2].tolist() == [1, 0]
    with pytest.raises(PluresError, match="client 'a', row 0: label 0 is not one of the classes 1, 2, 3"):
        from_arrays(X, Y, CLIENT, classes=("1", "2", "3"))
    with pytest.raises(PluresError, match=r"label 'yse' is not one of the classes no, yes; did you mean 'yes'\?"):
        from_arrays(X, np.resize(["no", "yse"], 90), CLIENT, classes=("no", "yes"))


def test_classes_are_those_of_the_whole_federation():
    labels = np.where(CLIENT == "c", 7, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluresWarning)
        federation = from_arrays(X, labels, CLIENT)
        alone = from_arrays(X[CLIENT == "c"], labels[CLIENT == "c"], CLIENT[CLIENT == "c"])
    assert federation.task.classes == ("0", "1", "2", "7")
    assert federation.subset(["c"]).task == federation.task
    assert alone.task.classes == ("7",)
    newcomer = alone.classified(federation.task)
    assert newcomer.task == federation.task
    assert set(newcomer.targets.tolist()) == {3}
    assert federation.classified(alone.task) is federation


def test_labels_that_look_alike_are_told():
    with pytest.warns(PluresWarning, match="classes 'Yes' and 'yes ' differ only by case, blanks or notation"):
        from_arrays(X, np.resize(["Yes", "yes ", "no"], 90), CLIENT)


def test_odd_targets_are_refused():
    with pytest.raises(PluresError, match="neither classes nor numbers"):
        from_arrays(X, np.datetime64("2020-01-01") + np.arange(90), CLIENT)
    with pytest.raises(PluresError, match="client 'a', row 2: no target"):
        from_arrays(X, np.array(["a", "b", ""] * 30), CLIENT)


# Splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_split_of_arrays_does_not_depend_on_the_type_of_numbers(dtype: torch.dtype):
    reference = test_rows(from_arrays(X, Y, CLIENT))
    assert test_rows(from_arrays(X, Y, CLIENT, dtype=dtype)) == reference
    assert test_rows(from_arrays(X.astype(np.float32), Y, CLIENT, standardize=True)) == reference


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.str_, object])
def test_a_key_keeps_the_split_whatever_else_changes(kind: type):
    key = RNG.permutation(90) + 100
    whole = test_rows(from_arrays(X, Y, CLIENT, key=key))
    assert test_rows(from_arrays(X[:, :2] + 1, Y, CLIENT, key=key.astype(kind))) == whole
    order = RNG.permutation(90)
    mixed = test_rows(from_arrays(X[order], Y[order], CLIENT[order], key=key[order].astype(kind)))
    assert sorted(order[mixed].tolist()) == sorted(whole)


def test_copies_of_training_rows_are_counted():
    x, y = np.concatenate([X, X[:12]]), np.concatenate([Y, Y[:12]])
    client = np.concatenate([CLIENT, CLIENT[:12]])
    federation = from_arrays(x, y, client, copies="allow")
    twin = {row: (row + 90 if row < 12 else row - 90) for row in (*range(12), *range(90, 102))}
    train = set(federation.splits["train"].rows.tolist())
    asked = [row for split in SPLITS[1:] for row in federation.splits[split].rows.tolist()]
    copied = sum(twin.get(row) in train for row in asked)
    assert copied > 0
    with pytest.warns(
        PluresWarning, match=rf"{copied} of {len(asked)} validation and test rows are copies .* at their client"
    ):
        from_arrays(x, y, client)
    with pytest.warns(PluresWarning, match=r"copies of training rows \(\d+ at others\)"):
        from_arrays(x, y, np.concatenate([CLIENT, np.full(12, "c")]))
    groups = np.concatenate([np.arange(90), np.arange(12)])
    assert len(from_arrays(x, y, client, groups=groups)) == 3


def test_rows_that_are_equal_by_chance_are_no_copies():
    coarse = RNG.integers(0, 2, (90, 4)).astype(float)
    assert len(from_arrays(coarse, Y, CLIENT)) == 3


def test_a_folder_with_one_floating_file_is_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    np.savez(tmp_path / "b.npz", x=X + 1, y=Y.astype(float))
    with pytest.raises(PluresError, match=r"b\.npz: y is of type float64, but of type int64 in a\.npz"):
        from_folder(tmp_path)
    assert from_folder(tmp_path, task="classification").task.classes == ("0", "1", "2")
    np.savez(tmp_path / "b.npz", x=X + 1, y=np.array(["0", "1", "2"] * 30))
    with pytest.raises(PluresError, match=r"b\.npz: y is of type <U1, but of type int64"):
        from_folder(tmp_path)
    np.savez(tmp_path / "b.npz", x=X.astype(str), y=Y)
    with pytest.raises(PluresError, match=r"b\.npz: x of type <U32 is not a number"):
        from_folder(tmp_path)


def test_a_folder_with_times_says_when_it_does_not_use_them(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=X, y=Y, time=np.arange(90), key=np.arange(90))
    with pytest.warns(PluresWarning, match="the files hold time, but the split is random"):
        from_folder(tmp_path)
    timed = from_folder(tmp_path, split=SplitRule(by="time"))
    assert min(test_rows(timed)) > max(timed.splits["train"].rows.tolist())


# Things that are not data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": X[:5]}, "input 'a': .* must have as many rows|values for 5 inputs"),
        ({"my input": X}, "input 'my input': give a name that a function's parameter may have"),
        ({}, "inputs: an empty mapping"),
        ({1.0, 2.0}, "inputs: a set is not an array; .* or use from_table"),
        ([[1.0, 2.0], [3.0]], "inputs: rows differ in shape or type"),
        ((row for row in X), "inputs: a generator is not an array"),
        (None, "inputs: a NoneType is not an array"),
    ],
)
def test_what_is_no_array_is_refused(inputs: object, message: str):
    with pytest.raises(PluresError, match=message):
        from_arrays(inputs, Y, CLIENT)  # type: ignore[arg-type]


def test_items_that_are_mappings_and_streams_are_refused():
    with pytest.raises(PluresError, match="dataset item 1: inputs table, not pixels"):
        from_dataset([({"pixels": X[0]}, 0), ({"table": X[0]}, 0)], ["a", "a"])
    with pytest.raises(PluresError, match="dataset item 0: no field 'label', which target= names; its fields are x, y"):
        from_dataset([{"x": X[0], "y": 0}], ["a"])
    with pytest.raises(PluresError, match="dataset: a generator has no length"):
        from_dataset((pair for pair in zip(X, Y, strict=True)), CLIENT)  # type: ignore[arg-type]
    with pytest.raises(PluresError, match=r"dataset item 1: target of shape \(2,\), but item 0 has \(\)"):
        from_dataset([(X[0], 0), (X[1], [0, 1])], ["a", "a"])


def test_bfloat16_and_sparse_tensors_are_read():
    dense = torch.from_numpy(X).float()
    assert torch.equal(from_arrays(dense.to_sparse(), Y, CLIENT).inputs, dense)
    assert torch.equal(from_arrays(dense.bfloat16(), Y, CLIENT).inputs, dense.bfloat16().float())


def test_a_file_is_no_data_set(tmp_path: Path):
    file = tmp_path / "wards.csv"
    file.write_text("a,b\n1,2\n")
    for name in (str(file), "wards.csv"):
        with pytest.raises(PluresError, match=r"wards\.csv': a table is not a data set by itself; read it") as caught:
            load(name)
        assert "fashion_mnist" not in str(caught.value)
    with pytest.raises(PluresError, match=r"is a file: give the folder with one .npz file per client"):
        from_folder(file)
    with pytest.raises(PluresError, match=r"it holds \.csv files: expected one per client"):
        from_folder(tmp_path)
    with pytest.raises(PluresError, match="nowhere: no such folder"):
        from_folder(tmp_path / "nowhere")


def test_nothing_is_tuned_without_validation_data_or_compared_without_test_data():
    blind = from_arrays(X, Y, CLIENT, split=SplitRule(validation=0, test=0.3))
    with pytest.raises(PluresError, match="'data' has no validation example, so nothing could be tuned"):
        compare(blind, ["ditto"], rounds=1, seeds=1)
    refuse_unmeasured(blind, trials=0)
    untested = from_arrays(X, Y, CLIENT, split=SplitRule(validation=0.3, test=0))
    with pytest.raises(PluresError, match="'data' has no test example, so nothing could be compared"):
        compare(untested, ["ditto"], rounds=1, seeds=1, tune_rounds=0)


FOUR = np.array(["a", "b", "c", "d"])[np.arange(80) % 4]


def memory_of_one_column() -> np.ndarray:
    """A read-only column of a larger table, as a frame gives it: its values are not adjacent in memory."""
    column = np.asfortranarray(np.random.default_rng(0).normal(size=(80, 3)))[:, :1]
    column.flags.writeable = False
    return column


def test_a_single_column_of_a_frame_is_as_good_as_a_copy_of_it():
    column = memory_of_one_column()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        federation = from_arrays(column, np.arange(80) // 4 % 2, FOUR)
    assert torch.equal(federation.inputs, torch.from_numpy(column.copy()).float())


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("float64"), "float64", torch.float64])
def test_types_of_the_inputs_in_every_notation(dtype: torch.dtype):
    column = np.random.default_rng(0).normal(size=(80, 2))
    assert torch.equal(from_arrays(column, np.arange(80) // 4 % 2, FOUR, dtype=dtype).inputs, torch.from_numpy(column))
