"""Named data sets: published counts, no leaks, and messages that help."""

from __future__ import annotations

import gzip
import inspect
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from located import available, needs
from plures.errors import PluresError
from plures.federation import DATASETS, SPLITS, load, locate
from plures.federation.datasets import folder
from plures.federation.datasets.folder import read_idx
from plures.federation.datasets.har import STEP, read_windows


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
    windows = read_windows().inputs
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


def test_har_windows_are_fixed_point_and_overlap_exactly():
    windows = read_windows()
    assert windows.inputs.dtype == np.float32
    steps = windows.inputs / np.float32(STEP)
    assert np.array_equal(steps, np.rint(steps))
    same = windows.segment[1:] == windows.segment[:-1]
    assert same.sum() == 10299 - 857
    assert np.array_equal(windows.inputs[1:, :, :64][same], windows.inputs[:-1, :, 64:][same])


@needs("mnist")
def test_har_is_half_a_step_from_the_published_windows():
    file = locate("mnist").parent / "ucihar" / "ucihar.npz"
    if not file.is_file():
        pytest.skip("the windows that har.npz was packed from are not there")
    with np.load(file, allow_pickle=False) as source:
        assert np.abs(read_windows().inputs - source["x"].astype(np.float32)).max() == STEP / 2
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
    assert set(DATASETS) == {
        "fed_heart_disease",
        *("har", "heart", "fashion_mnist", "mnist", "cifar10", "usps", "omniglot_small", "spoken_digits"),
        *("parkinsons", "school", "landmine"),
        *("digits", "rotated_mnist", "shakespeare", "movielens", "cora", "citeseer", "twitch", "beijing_air"),
        "movielens_ranking",
        *("adult", "tcga_brca", "nsl_kdd", "ai4i2020", "cmapss", "cmapss_fleets", "beijing_forecast"),
    }
    for name, card in DATASETS.items():
        assert card.name == name
        assert all((card.task, card.clients, card.licence, card.source, card.citation, card.files, card.how_to_get))
        assert "seed" in inspect.signature(card.loader).parameters or card.clients.startswith("by partition")
    for name in ("har", "heart"):
        folder, card = locate(name), DATASETS[name]
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
    for part in ("'usps'", "usps/usps.npz", str(tmp_path), "PLURES_DATA", "../shared/data", DATASETS["usps"].source):
        assert part in str(caught.value)


EXPECTED = {
    "usps": (9280, 20, (1, 16, 16), 10),
    "omniglot_small": (4840, 160, (1, 28, 28), 242),
    "spoken_digits": (3000, 6, (1, 32, 32), 10),
    "parkinsons": (5875, 42, (19,), 1),
    "school": (15362, 139, (28,), 1),
    "landmine": (14820, 29, (9,), 2),
    "digits": (3717, 3, (3, 28, 28), 10),
    "rotated_mnist": (20000, 100, (1, 28, 28), 10),
    "shakespeare": (40268, 100, (80,), 76),
    "movielens": (100836, 610, (1,), 1),
    "movielens_ranking": (191012, 586, (1,), 1),
    "cora": (2708, 10, (31, 30), 7),
    "citeseer": (3312, 10, (31, 54), 6),
    "twitch": (7000, 7, (31, 32), 2),
    "beijing_air": (68614, 12, (26,), 1),
    "adult": (48842, 15, (93,), 2),
    "tcga_brca": (1088, 6, (39,), 1),
    "nsl_kdd": (125483, 55, (52,), 5),
    "ai4i2020": (10000, 3, (5,), 2),
    "cmapss": (37227, 200, (24,), 1),
    "cmapss_fleets": (30446, 20, (37,), 1),
    "beijing_forecast": (65721, 12, (39,), 3),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in EXPECTED])
def test_other_data_sets(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = load(name)
    examples, clients, features, outputs = EXPECTED[name]
    assert (len(f.inputs), len(f), f.features, f.task.outputs) == (examples, clients, features, outputs)


def write_idx(file: Path, values: NDArray[np.uint8]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    file.write_bytes(gzip.compress(header + values.tobytes()))


def test_idx_files(tmp_path: Path):
    file = tmp_path / "a.gz"
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(file, values)
    assert np.array_equal(read_idx(file), values)
    content = gzip.decompress(file.read_bytes())
    for broken, message in (
        (content[:-1], r"23 values for the shape \(2, 3, 4\)"),
        (b"\0\0\x0d" + content[3:], "not an IDX file of unsigned bytes"),
        (content[:10], "not an IDX file of unsigned bytes"),
        (b"", "not an IDX file of unsigned bytes"),
    ):
        file.write_bytes(gzip.compress(broken))
        with pytest.raises(PluresError, match=message):
            read_idx(file)
    for damaged in (gzip.compress(content)[:-6], content):
        file.write_bytes(damaged)
        with pytest.raises(PluresError, match=r"a\.gz is not a complete gzip file"):
            read_idx(file)


def test_fashion_mnist_is_taken_whole_where_debian_puts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(folder, "SYSTEM", tmp_path)
    monkeypatch.setenv("PLURES_DATA", str(tmp_path / "nothing"))
    pictures = np.random.default_rng(0).integers(0, 256, (60, 4, 5), dtype=np.uint8)
    labels = np.arange(60, dtype=np.uint8) % 10
    for part, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        with pytest.raises(PluresError, match="install the Debian package dataset-fashion-mnist"):
            locate("fashion_mnist")
        write_idx(tmp_path / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz", pictures[rows])
        write_idx(tmp_path / "fashion-mnist" / f"{part}-labels-idx1-ubyte.gz", labels[rows])
    assert locate("fashion_mnist") == tmp_path / "fashion-mnist"
    f = load("fashion_mnist", partition="iid", clients=2, standardize=False)
    assert f.source == "Fashion-MNIST, MIT"
    np.testing.assert_allclose(f.inputs[:, 0], pictures / 255, atol=1e-6)
    assert f.targets.tolist() == labels.tolist()


def test_fashion_mnist_falls_back_to_the_subset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(folder, "SYSTEM", tmp_path)
    if not available("fashion_mnist"):
        pytest.skip("the subset of fashion_mnist is not there (set PLURES_DATA)")
    f = load("fashion_mnist", partition="iid")
    assert (len(f.inputs), len(f), f.features, f.task.outputs) == (25000, 20, (1, 28, 28), 10)
    assert f.source == "Fashion-MNIST (subset), MIT"


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
