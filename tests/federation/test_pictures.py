"""Pictures in folders and lists: the numbers of the arrays they hold, decoded once, and never half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import plures
from plures import PluresError
from plures.cli.progress import progress
from plures.federation import Mapped
from plures.federation.build import decoded


def folder(root: Path, mode: str = "RGB") -> tuple[Path, np.ndarray]:
    """48 pictures of two clients and two classes, and their pixels in the order of their paths."""
    drawn = np.random.default_rng(0).integers(0, 256, size=(48, 4, 6, 3)).astype(np.uint8)
    drawn = drawn if mode == "RGB" else drawn[..., 0]
    for place, pixels in enumerate(drawn):
        file = root / "pets" / f"c{place // 24}" / ("cat", "dog")[place // 12 % 2] / f"{place:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return root / "pets", drawn


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_classes_and_clients(tmp_path: Path, mode: str):
    path, drawn = folder(tmp_path, mode)
    federation = plures.from_pictures(path)
    wanted = drawn.transpose(0, 3, 1, 2) if mode == "RGB" else drawn[:, None]
    assert isinstance(federation.inputs, Mapped)
    assert federation.name == "pets"
    assert torch.equal(federation.inputs[:], torch.from_numpy(wanted).float() / 255)
    assert federation.clients == ("c0", "c1")
    assert federation.task.classes == ("cat", "dog")
    assert federation.targets.tolist() == [place // 12 % 2 for place in range(48)]
    assert torch.equal(federation.scaled(torch.from_numpy(wanted)), federation.inputs[:])


def test_decoded_once_until_the_source_changes(tmp_path: Path):
    path, drawn = folder(tmp_path, "L")
    told: list[tuple[int, int]] = []

    def tell(done: int, of: int) -> None:
        told.append((done, of))

    plures.from_pictures(path, progress=tell)
    assert told == [(number, 48) for number in range(1, 49)]
    plures.from_pictures(path, progress=tell)
    assert len(told) == 48
    Image.fromarray(255 - drawn[0]).save(path / "c0" / "cat" / "000.png")
    again = plures.from_pictures(path, progress=tell)
    assert len(told) == 48 + 49
    assert len(again.inputs) == 49
    assert len(list((path / ".plures" / "pictures").iterdir())) == 1, "the earlier state is gone"


def test_an_interrupted_start_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, _ = folder(tmp_path, "L")

    def stop(done: int, of: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plures.from_pictures(path, progress=stop)
    assert not list((path / ".plures" / "pictures").iterdir())
    assert len(plures.from_pictures(path).inputs) == 48


def test_a_list_of_files_gives_the_same(tmp_path: Path):
    path, _ = folder(tmp_path, "L")
    rows = [f"{one.relative_to(tmp_path)},{one.parts[-3]},{one.parts[-2]}" for one in sorted(path.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,site,label", *rows]))
    listed = plures.from_pictures(tmp_path / "list.csv", file="path", client="site", target="label")
    walked = plures.from_pictures(path)
    assert torch.equal(listed.inputs[:], walked.inputs[:])
    assert torch.equal(listed.targets, walked.targets)


def test_sizes_and_broken_files_are_named(tmp_path: Path):
    path, _ = folder(tmp_path, "L")
    odd = path / "c1" / "dog" / "odd.png"
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(odd)
    with pytest.raises(PluresError, match=r"odd\.png: of shape \(1, 8, 8\), but .*00\.png has \(1, 4, 6\); give size="):
        plures.from_pictures(path)
    assert plures.from_pictures(path, size=(4, 6)).features == (1, 4, 6)
    odd.write_bytes(b"no picture")
    with pytest.raises(PluresError, match=r"odd\.png: cannot be read as a picture"):
        plures.from_pictures(path)
    Image.fromarray(np.zeros((4, 6), dtype=np.uint16)).save(odd)
    with pytest.raises(PluresError, match=r"odd\.png: has more than 8 bits for a colour"):
        plures.from_pictures(path)
    with pytest.raises(PluresError, match="no pictures client/class"):
        plures.from_pictures(tmp_path / "pets" / "c0")


def test_the_command_line_finds_pictures_and_augments(tmp_path: Path):
    path, _ = folder(tmp_path, "L")
    spec = plures.RunSpec(data=str(path), method="fedavg", rounds=1, augment="crop(1)+flip")
    federation = spec.federation()
    assert federation.augment is not None
    assert federation.features == (1, 4, 6)
    assert spec.run(federation).step().round == 1
    assert decoded.source_of([path / "c0" / "cat" / "00.png"], "a") != decoded.source_of(
        [path / "c0" / "cat" / "00.png"], "b"
    )


def test_a_command_says_how_far_it_has_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, _ = folder(tmp_path, "L")
    for times in (1, 0):
        with progress("comparing", 1):
            plures.from_pictures(path)
        assert capsys.readouterr().out.count("decoded 24 of 48 examples") == times
