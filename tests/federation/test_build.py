"""Builders: the same federation from every kind of source, statistics of training rows only, and clear messages."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from plures.errors import PluresError, PluresWarning
from plures.federation import SPLITS, Federation, SplitRule, from_arrays, from_dataset, from_folder

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (90, 4))
Y = np.arange(90) % 3
CLIENT = np.repeat(["a", "b", "c"], 30)


def same(one: Federation, other: Federation) -> None:
    assert one.clients == other.clients
    assert one.task == other.task
    for split in SPLITS:
        for mine, theirs in zip(one.splits[split], other.splits[split], strict=True):
            rows, others = (
                {(*f.inputs[r].tolist(), *f.targets[r].view(-1).tolist()) for r in rows_of}
                for f, rows_of in ((one, mine), (other, theirs))
            )
            assert rows == others


def test_every_source_gives_the_same_federation(tmp_path: Path):
    reference = from_arrays(X, Y, CLIENT)
    order = RNG.permutation(90)
    same(reference, from_arrays(torch.from_numpy(X[order]), torch.from_numpy(Y[order]), CLIENT[order]))
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    same(reference, from_dataset(pairs, CLIENT))
    for name in "abc":
        np.savez(tmp_path / f"{name}.npz", x=X[name == CLIENT], y=Y[name == CLIENT])
    same(reference, from_folder(tmp_path))
    assert from_folder(tmp_path).name == tmp_path.name


def test_a_federation_restricted_to_a_client_splits_it_alike():
    whole, alone = from_arrays(X, Y, CLIENT), from_arrays(X[30:60], Y[30:60], CLIENT[30:60], classes="012")
    same(whole.subset(["b"]), Federation(**{**vars(alone), "task": whole.task}))


def test_scaling_uses_train_rows_only():
    f = from_arrays(X, X[:, :1], CLIENT, standardize=True, standardize_targets=True, source="s")
    train = f.splits["train"].rows.numpy()
    expected = (X - X[train].mean(0)) / X[train].std(0)
    np.testing.assert_allclose(f.inputs.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(f.targets.numpy(), expected[:, :1], atol=1e-5)
    assert f.source.startswith("s; targets standardised (mean ")


def test_imputing_uses_train_rows_only():
    holes = X.copy()
    holes[RNG.random(X.shape) < 0.2] = np.nan
    holes[:, 3] = X[:, 3]
    f = from_arrays(holes, Y, CLIENT, missing="impute")
    train = f.splits["train"].rows.numpy()
    expected = np.where(np.isnan(holes), np.nanmean(holes[train], axis=0), holes)
    np.testing.assert_allclose(f.inputs[:, :4].numpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(f.inputs[:, 4:].numpy(), np.isnan(holes)[:, :3])
    assert f.columns[4:] == tuple(f"column {i} is missing" for i in range(3))
    assert sum(f.metadata["missing values"]) == np.isnan(holes).sum()
    scaled = from_arrays(holes, Y, CLIENT, missing="impute", standardize=True)
    assert torch.equal(scaled.inputs[:, 4:], f.inputs[:, 4:])


def test_a_constant_becomes_0_and_channels_share_a_scale():
    pictures = RNG.normal(5, 3, (90, 2, 6))
    pictures[:, 1] = 7
    f = from_arrays(pictures, Y, CLIENT, standardize=True)
    assert (f.inputs[:, 1] == 0).all()
    assert torch.equal(f.scaled(torch.full((1, 2, 6), 8.0))[:, 1], torch.ones(1, 6))  # another value is as far as it is
    train = f.inputs[f.splits["train"].rows, 0]
    assert abs(float(train.mean())) < 1e-5
    assert float(train.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_the_callers_arrays_are_not_touched():
    values = torch.from_numpy(X.astype(np.float32))
    before = values.clone()
    from_arrays(values, Y, CLIENT, standardize=True)
    assert torch.equal(values, before)


def test_types():
    assert from_arrays(X, Y, CLIENT).inputs.dtype == torch.float32
    assert from_arrays(X, Y, CLIENT, dtype=torch.float64).inputs.dtype == torch.float64
    tokens = from_arrays(np.ones((90, 5), dtype=np.int32), Y > 0, CLIENT, dtype=torch.int64)
    assert tokens.inputs.dtype == torch.int64
    assert tokens.task.outputs == 2


def test_metadata_by_column_and_by_client():
    by_column = from_arrays(X, Y, CLIENT, metadata={"country": ("AT", "CH", "IT")})
    rows = {name: {"country": country} for name, country in zip("cab", ("IT", "AT", "CH"), strict=True)}
    assert by_column.metadata == from_arrays(X, Y, CLIENT, metadata=rows).metadata == {"country": ("AT", "CH", "IT")}
    with pytest.raises(PluresError, match="metadata column 'country': 1 values for 3 clients"):
        from_arrays(X, Y, CLIENT, metadata={"country": ("AT",)})
    with pytest.raises(PluresError, match="no row for client 'c'"):
        from_arrays(X, Y, CLIENT, metadata={name: rows[name] for name in "ab"})


def poisoned(value: float) -> np.ndarray:
    x = X.copy()
    x[35, 2] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((poisoned(np.nan), Y, CLIENT), {}, r"client 'b', row 35, column 2: a missing value .*missing=\"impute\""),
        ((poisoned(np.inf), Y, CLIENT), {"missing": "impute"}, "client 'b', row 35, column 2: an infinite value"),
        ((poisoned(np.nan), Y, CLIENT), {"columns": "pqrs"}, "client 'b', row 35, column 'r'"),
        ((X, np.where(np.arange(90) == 70, 3, Y), CLIENT), {"classes": "xyz"}, r"client 'c', row 70: label 3 .*0..2"),
        ((X, np.where(np.arange(90) == 2, -1, Y), CLIENT), {"classes": "xyz"}, "client 'a', row 2: label -1"),
        ((X, np.array(["u", "v", "w"] * 30), CLIENT), {"classes": "uv"}, "client 'a', row 2: label 'w' .*u, v"),
        (
            (X, np.where(np.arange(90) == 40, np.nan, X[:, 0]), CLIENT),
            {},
            "client 'b', row 40: a NaN or an infinite target; correct it or leave the row out",
        ),
        ((X, Y + 0.5, CLIENT), {"task": "classification"}, "client 'a', row 0: a label that is not a whole number"),
        ((X, Y[:80], CLIENT), {}, "targets: 80 values for 90 inputs"),
        ((X, Y, CLIENT[:80]), {}, "client: 80 values for 90 inputs"),
        ((X, Y, CLIENT), {"time": np.where(np.arange(90) == 31, np.nan, 0)}, "client 'b', row 31: no time"),
        ((X, Y, CLIENT), {"dtype": torch.int64, "standardize": True}, "type torch.int64 cannot be scaled"),
        ((X, Y, CLIENT), {"groups": [1]}, "groups: 1 values for 90 inputs"),
        ((X, Y, np.where(np.arange(90) == 8, None, CLIENT)), {}, "client column, row 8"),
        ((X, np.where(np.arange(90) == 8, None, CLIENT), CLIENT), {}, "client 'a', row 8: no target"),
        ((X, Y, np.where(np.arange(90) == 8, np.nan, 1.0)), {}, "client column, row 8: nan"),
        ((X, Y, np.full(90, -1)), {}, "every row is left out"),
        ((X[:0], Y[:0], CLIENT[:0]), {}, "no example"),
        (
            (X, Y, CLIENT),
            {"task": "ranking"},
            "task='ranking' is unknown; did you mean 'ratings'",
        ),
        ((X, Y, CLIENT), {"missing": "drop"}, "missing='drop' is unknown"),
        ((X[:, :, None], Y, CLIENT), {"missing": "impute"}, r"needs inputs \(n, columns\)"),
        ((X.astype(str), Y, CLIENT), {}, "inputs of type <U32 are not numbers"),
        ((X, Y, CLIENT), {"columns": ("p",)}, r"columns: 1 names for inputs of shape \(90, 4\)"),
    ],
)
def test_bad_data_is_named(arguments: tuple, options: dict, message: str):
    with pytest.raises(PluresError, match=message):
        from_arrays(*arguments, **options)


def test_bad_datasets_and_folders_are_named(tmp_path: Path):
    with pytest.raises(PluresError, match=r"dataset item 1: input of shape \(3,\), but item 0 has \(2,\)"):
        from_dataset([(torch.ones(2), 0), (torch.ones(3), 1)], ["a", "a"])
    with pytest.raises(PluresError, match="dataset item 0: expected an"):
        from_dataset([torch.ones(2)], ["a"])
    with pytest.raises(PluresError, match="empty"):
        from_dataset([], [])
    with pytest.raises(PluresError, match=r"no \.npz file in"):
        from_folder(tmp_path)
    np.savez(tmp_path / "anna.npz", x=X[:30], y=Y[:30])
    for arrays, message in (
        ({"x": X[:3]}, r"ben\.npz: array 'y' is missing"),
        ({"x": X[:0], "y": Y[:0]}, "client 'ben' has no rows"),
        ({"x": X[:3], "y": Y[:4]}, r"ben\.npz: lengths differ: x 3, y 4"),
        ({"x": X[:3, :2], "y": Y[:3]}, r"ben\.npz: rows of x have shape \(2,\), but \(4,\) in anna\.npz"),
        ({"x": X[:3], "y": Y[:3], "time": Y[:3]}, r"ben\.npz: holds x, y, time, but anna\.npz holds x, y"),
        ({"x": np.array([None]), "y": Y[:1]}, r"ben\.npz: cannot be read"),
    ):
        np.savez(tmp_path / "ben.npz", **arrays)
        with pytest.raises(PluresError, match=message):
            from_folder(tmp_path)
    (tmp_path / "ben.npz").write_bytes(b"not an archive")
    with pytest.raises(PluresError, match=r"ben\.npz: cannot be read"):
        from_folder(tmp_path)


def test_thin_clients_are_legal_and_warned_about_once():
    client, labels = np.repeat(["a", "b", "c"], [86, 2, 2]), Y
    with pytest.warns(PluresWarning, match=r"2 clients have fewer than 3 training examples \(b, c\)") as caught:
        from_arrays(X, labels, client)
    assert len(caught) == 1
    with pytest.warns(PluresWarning, match=r"1 client has only one class to train on \(c\)"):
        from_arrays(X, np.where(CLIENT == "c", 0, Y), CLIENT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_arrays(X, X[:, 0], CLIENT)


def test_texts_that_order_rows_are_numbers_or_dates():
    x, y, client = np.arange(20.0), np.arange(20) % 2, ["a"] * 20
    shares = SplitRule(by="time")
    by_number = from_arrays(x, y, client=client, time=list(range(20)), split=shares)
    by_text = from_arrays(x, y, client=client, time=[str(n) for n in range(20)], split=shares)
    by_date = from_arrays(x, y, client=client, time=[f"2024-05-{n + 1:02}" for n in range(20)], split=shares)
    for other in (by_text, by_date):
        assert all(torch.equal(by_number.splits[s].rows, other.splits[s].rows) for s in SPLITS)
    days = [f"{n + 1:02}.05.2024" for n in range(20)]
    with pytest.raises(PluresError, match=r"client 'a', row 0: time '01.05.2024' is neither a number nor an ISO date"):
        from_arrays(x, y, client=client, time=days, split=shares)
