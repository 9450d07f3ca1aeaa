"""Datasets decoded once into a file: the numbers of the same dataset in memory, and nothing frozen by chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import plures
from plures import Federation, PluresError
from plures.federation import Mapped

PIXELS = np.random.default_rng(0).integers(0, 256, size=(60, 4, 6, 3)).astype(np.uint8)
SITE = ["a", "b", "c"] * 20


class Records:
    """Stands for a ``datasets.Dataset``: items are mappings, and it says which state it is in."""

    def __init__(self, item: Callable[[int], dict[str, Any]], fingerprint: str = "first") -> None:
        self.item, self._fingerprint, self.read = item, fingerprint, 0

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read += 1
        return self.item(index)


def pictures(place: int) -> dict[str, Any]:
    return {"image": Image.fromarray(PIXELS[place]), "label": place % 4, "site": SITE[place]}


def tokens(place: int) -> dict[str, Any]:
    return {"ids": [place, 1, 2], "mask": [1.0, 0.5, 0.0], "label": ("no", "yes")[place % 2], "site": place % 3}


def values(federation: Federation) -> list[Tensor]:
    parts = [federation.inputs] if isinstance(federation.inputs, Tensor) else list(federation.inputs.parts.values())
    return [*(part[:] for part in parts), federation.targets, *(split.rows for split in federation.splits.values())]


def test_pictures_have_their_pixels_from_0_to_1_on_disk_and_in_memory(tmp_path: Path):
    stored = plures.from_dataset(Records(pictures), "site", cache=tmp_path)
    held = plures.from_dataset(Records(pictures), "site")
    assert isinstance(stored.inputs, Mapped)
    assert not isinstance(held.inputs, Mapped)
    assert torch.equal(stored.inputs[:], torch.from_numpy(PIXELS.transpose(0, 3, 1, 2)).float() / 255)
    assert all(map(torch.equal, values(stored), values(held)))
    assert stored.targets.tolist() == [place % 4 for place in range(60)]
    assert stored.clients == ("a", "b", "c")
    assert torch.equal(stored.scaled(torch.from_numpy(PIXELS.transpose(0, 3, 1, 2))), stored.inputs[:])


class Labels:
    """Stands for a ``ClassLabel``."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)


@pytest.mark.parametrize("cached", [False, True])
def test_numbers_that_a_dataset_has_names_for_get_them(tmp_path: Path, cached: bool):
    """Classes in the order of their numbers, also those that do not occur."""
    kinds, sites = ("7", "dog", "cat", "eel", "fly"), ("south", "north", "west")
    records = Records(lambda place: {"x": [place, 0.5], "label": place % 4, "site": place % 3})
    records.features = {"x": None, "label": Labels(*kinds), "site": Labels(*sites)}  # type: ignore[attr-defined]
    found = plures.from_dataset(records, "site", cache=tmp_path if cached else None)
    assert found.task.classes == kinds  # type: ignore[attr-defined]
    assert found.clients == ("north", "south", "west")
    assert found.targets.tolist() == [place % 4 for place in range(60)]
    assert plures.from_dataset(records, "site", classes=["0", "1", "2", "3"]).task.classes == ("0", "1", "2", "3")  # type: ignore[attr-defined]
    records.item = lambda place: {"x": [place, 0.5], "label": place % 4 if place < 50 else -1, "site": place % 3}
    with pytest.raises(PluresError, match="item 50: label -1 is none of its 5 names; leave such"):
        plures.from_dataset(records, "site")


def test_several_inputs_and_a_tensor_dataset(tmp_path: Path):
    stored, held = (plures.from_dataset(Records(tokens), "site", cache=folder) for folder in (tmp_path / "a", None))
    assert all(isinstance(part, Mapped) for part in stored.inputs.parts.values())  # type: ignore[union-attr]
    assert all(map(torch.equal, values(stored), values(held)))
    assert values(stored)[0][7].tolist() == [7, 1, 2]
    assert stored.task.classes == ("no", "yes")
    pairs = torch.utils.data.TensorDataset(torch.randn(60, 5, dtype=torch.float64), torch.arange(60) % 2)
    given = {"cache": tmp_path / "b", "fingerprint": "1"}
    stored, held = (plures.from_dataset(pairs, SITE, standardize=True, **options) for options in (given, {}))  # type: ignore[arg-type]
    assert all(map(torch.equal, values(stored), values(held)))


def test_decoded_again_only_when_the_fingerprint_changes(tmp_path: Path):
    told: list[tuple[int, int]] = []
    for fingerprint, reads in (("first", True), ("first", False), ("second", True)):
        records = Records(pictures, fingerprint)
        plures.from_dataset(records, "site", cache=tmp_path, progress=lambda done, of: told.append((done, of)))
        assert (records.read > 0) == reads
    assert told == 2 * [(number, 60) for number in range(1, 61)]
    assert len(list(tmp_path.iterdir())) == 1, "the earlier state is gone"
    records = Records(pictures, "second")
    plures.from_dataset(records, "site", cache=tmp_path, fingerprint="mine")
    assert records.read > 0


@pytest.mark.parametrize("cached", [True, False])
def test_random_transforms_are_refused(tmp_path: Path, cached: bool):
    draw = np.random.default_rng(1)

    def flipped(place: int) -> dict[str, Any]:
        pixels = PIXELS[place, :, :: -1 if draw.random() < 0.5 else 1]
        return {"image": pixels.copy(), "label": place % 4, "site": SITE[place]}

    with pytest.raises(PluresError, match=r"dataset item \d+: read twice, it differs.* federation\.augmented"):
        plures.from_dataset(Records(flipped), "site", cache=tmp_path if cached else None)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_decoded_is_named(tmp_path: Path):
    with pytest.raises(PluresError, match="dataset item 0: no field 'sit', which client= names; did you mean 'site'"):
        plures.from_dataset(Records(pictures), "sit")
    with pytest.raises(PluresError, match="dataset item 0, name: 'n0' is no number"):
        plures.from_dataset(Records(lambda place: {**pictures(place), "name": f"n{place}"}), "site")
    with pytest.raises(PluresError, match=r"cache: nothing tells whether .* give fingerprint="):
        plures.from_dataset([(torch.ones(2), 0)] * 60, SITE, cache=tmp_path)
    with pytest.raises(PluresError, match="fingerprint: it belongs to a cache"):
        plures.from_dataset([(torch.ones(2), 0)] * 60, SITE, fingerprint="1")
    with pytest.raises(PluresError, match="names a field, but dataset item 0 is a pair"):
        plures.from_dataset([(torch.ones(2), 0)] * 60, "site")
    mixed = [(np.ones(2, dtype=np.int64 if place == 30 else np.float32), 0) for place in range(60)]
    with pytest.raises(PluresError, match="dataset item 30, input: of type int64, but item 0 has float32"):
        plures.from_dataset(mixed, SITE, cache=tmp_path, fingerprint="1")
    assert not list(tmp_path.iterdir()), "nothing that looks finished"
