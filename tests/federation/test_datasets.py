"""Named data sets: published counts, no leaks, and messages that help."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.federation import CATALOGUE, SPLITS, load, locate
from plures.federation.datasets.har import read_windows


def available(name: str) -> bool:
    try:
        locate(name)
    except PluresError:
        return False
    return True


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not available(name), reason=f"data set {name} is not there (set PLURES_DATA)")


@pytest.fixture(scope="module")
def har():
    return load("har")


def test_har_counts(har):
    assert tuple(har.inputs.shape) == (10299, 9, 128)
    assert len(har) == 30
    assert har.task.classes[0] == "WALKING"
    assert torch.bincount(har.targets).tolist() == [1722, 1544, 1406, 1777, 1906, 1944]
    sizes = sum(har.splits[s].sizes for s in SPLITS)
    assert (int(sizes.min()), int(sizes.max())) == (281, 409)


def test_har_holds_every_activity_in_every_split(har):
    for split in SPLITS:
        for rows in har.splits[split]:
            assert len(har.targets[rows].unique()) == 6


def test_har_splits_share_no_sample(har):
    windows = read_windows().inputs.view(np.uint16)
    split_of = np.full(len(windows), -1)
    for number, split in enumerate(SPLITS):
        split_of[har.splits[split].rows.numpy()] = number
    overlap = (windows[1:, :, :64] == windows[:-1, :, 64:]).all((1, 2))
    assert overlap.sum() == 9442
    assert (split_of[1:] == split_of[:-1])[overlap].all()
    halves: dict[bytes, int] = {}
    for window, split in zip(windows, split_of.tolist(), strict=True):
        for half in (window[:, :64], window[:, 64:]):
            assert halves.setdefault(half.tobytes(), split) == split


def test_har_is_standardised_on_train_windows(har):
    train = har.inputs[har.splits["train"].rows].double()
    assert train.mean((0, 2)).abs().max() < 1e-3
    assert (train.std((0, 2), correction=0) - 1).abs().max() < 1e-3
    raw = load("har", standardize=False)
    assert float(raw.inputs[:, 6:].mean((0, 2)).norm()) == pytest.approx(0.8, abs=0.2)  # gravity, in g


@needs("mnist")
def test_har_equals_the_published_windows_bit_for_bit():
    file = locate("mnist").parent / "ucihar" / "ucihar.npz"
    if not file.is_file():
        pytest.skip("the windows that har.npz was packed from are not there")
    with np.load(file, allow_pickle=False) as source:
        assert np.array_equal(read_windows().inputs.view(np.uint16), source["x"].view(np.uint16))
        assert np.array_equal(read_windows().activity, source["y"])


def test_heart_counts():
    heart = load("heart")
    sizes = sum(heart.splits[s].sizes for s in SPLITS)
    assert dict(zip(heart.clients, sizes.tolist(), strict=True)) == {
        "cleveland": 303,
        "hungarian": 294,
        "switzerland": 123,
        "va": 200,
    }
    healthy = [row.labels[0] for row in heart.describe().clients]
    assert healthy == [164, 188, 8, 51]
    assert heart.metadata["country"] == ("USA", "Hungary", "Switzerland", "USA")
    cholesterol = heart.inputs[:, heart.columns.index("chol is missing")]
    rows = torch.cat([heart.splits[s][2] for s in SPLITS])
    assert bool((cholesterol[rows] == 1).all())
    assert heart.metadata["missing values"][:2] == (6, 782)


def test_cards_are_complete():
    assert set(CATALOGUE) == {
        *("har", "heart", "fashion_mnist", "mnist", "cifar10", "usps", "omniglot_small", "spoken_digits"),
        *("parkinsons", "school", "landmine"),
    }
    for name, card in CATALOGUE.items():
        assert card.name == name
        assert all((card.task, card.clients, card.licence, card.source, card.citation, card.files, card.how_to_get))
        assert "seed" in inspect.signature(card.loader).parameters or card.clients.startswith("by partition")
    for name in ("har", "heart"):
        folder, card = locate(name), CATALOGUE[name]
        size = sum((folder / file).stat().st_size for file in card.files) / 1e6
        assert size == pytest.approx(card.megabytes, abs=0.05)


def test_messages_name_the_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(PluresError, match="no data set 'fashion-mnist': did you mean 'fashion_mnist'"):
        load("fashion-mnist")
    with pytest.raises(PluresError, match="'har' has no option 'alpha'; its options are split, standardize"):
        load("har", alpha=1)
    monkeypatch.setenv("PLURES_DATA", str(tmp_path))
    with pytest.raises(PluresError) as caught:
        load("usps")
    for part in ("'usps'", "usps/usps.npz", str(tmp_path), "PLURES_DATA", "../shared/data", CATALOGUE["usps"].source):
        assert part in str(caught.value)


EXPECTED = {
    "fashion_mnist": (25000, 20, (1, 28, 28), 10),
    "usps": (9280, 20, (1, 16, 16), 10),
    "omniglot_small": (4840, 160, (1, 28, 28), 242),
    "spoken_digits": (3000, 6, (1, 32, 32), 10),
    "parkinsons": (5875, 42, (19,), 1),
    "school": (15362, 139, (28,), 1),
    "landmine": (14820, 29, (9,), 2),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in EXPECTED])
def test_other_data_sets(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = load(name)
    examples, clients, features, outputs = EXPECTED[name]
    assert (len(f.inputs), len(f), f.features, f.task.outputs) == (examples, clients, features, outputs)


@needs("parkinsons")
def test_parkinsons_is_split_by_time_and_takes_both_targets():
    f = load("parkinsons", target="both", standardize=False)
    assert f.task.outputs == 2
    time = f.inputs[:, 2]
    for i in range(len(f)):
        assert time[f.splits["train"][i]].max() <= time[f.splits["test"][i]].min()


@needs("omniglot_small")
def test_omniglot_options():
    f = load("omniglot_small", clients="alphabet", alphabets=("Greek", "Latin"))
    assert f.clients == ("Greek", "Latin")
    assert f.task.outputs == 50
    assert f.describe().label_skew == pytest.approx((26 / 50 + 24 / 50) / 2)


@needs("usps")
def test_dealt_pictures_take_the_partitions_options():
    f = load("usps", partition="pathological", clients=12, classes_per_client=3, examples=3000, size=28)
    assert f.features == (1, 28, 28)
    assert f.clients[0] == "client 00"
    assert all(sum(count > 0 for count in row.labels) == 3 for row in f.describe().clients)


@needs("cifar10")
def test_cifar_is_unpacked():
    f = load("cifar10", shards=("test",), partition="iid", clients=4, standardize=False)
    assert f.features == (3, 32, 32)
    np.testing.assert_allclose(f.inputs.mean((0, 2, 3)), [0.4942, 0.4851, 0.4504], atol=1e-4)
    assert os.fspath(locate("cifar10")).endswith("cifar10")
