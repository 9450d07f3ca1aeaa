"""WAV files in folders and lists: the numbers that they hold, of every width, decoded once."""

from __future__ import annotations

import csv
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import plures
from plures import PluresError
from plures.evaluate.own import find_loader
from plures.federation import Mapped
from plures.federation.build.sounds import read

LEVELS = np.array([[-1.0, 0.5], [0.0, 0.25], [0.5, -0.25], [127 / 128, -1.0]])
"""Numbers that 8 bits hold exactly: four samples of two channels."""


def written(file: Path, sound: np.ndarray, width: int = 2, rate: int = 8000) -> Path:
    """A WAV file of numbers from -1 to 1, ``(samples, channels)``, packed byte by byte."""
    numbers = np.round(sound * 2 ** (8 * width - 1)).astype(np.int64) + (128 if width == 1 else 0)
    packed = b"".join(int(n).to_bytes(width, "little", signed=width > 1) for n in numbers.reshape(-1))
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as out:
        out.setparams((sound.shape[1], width, rate, 0, "NONE", ""))
        out.writeframes(packed)
    return file


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_numbers_of_every_width(tmp_path: Path, width: int, channels: int) -> None:
    sound, rate = read(written(tmp_path / "a.wav", LEVELS[:, :channels], width, 16000))
    assert rate == 16000
    assert sound.dtype == np.float32
    np.testing.assert_array_equal(sound, LEVELS[:, :channels].mean(1)[None])


def folder(root: Path, samples: int = 40) -> tuple[Path, np.ndarray]:
    """48 sounds of two speakers and two words, in the order of their paths."""
    drawn = np.random.default_rng(0).integers(-(2**15), 2**15, size=(48, samples)) / 2**15
    for place, sound in enumerate(drawn):
        written(root / "words" / f"s{place // 24}" / ("no", "yes")[place // 12 % 2] / f"{place:02}.wav", sound[:, None])
    return root / "words", drawn


def test_folders_and_lists_give_the_same_federation(tmp_path: Path) -> None:
    """Kept on disk, decoded once, found by the command line, and trained by the default network."""
    path, drawn = folder(tmp_path)
    told: list[int] = []
    walked = plures.from_sounds(path, progress=lambda done, of: told.append(done))
    assert isinstance(walked.inputs, Mapped)
    np.testing.assert_array_equal(walked.inputs[:].numpy(), drawn[:, None].astype(np.float32))
    assert (walked.clients, walked.task.classes) == (("s0", "s1"), ("no", "yes"))
    assert walked.targets.tolist() == [place // 12 % 2 for place in range(48)]
    load, known = find_loader(str(path))
    again = load(standardize=True)
    assert told == list(range(1, 49)), "it is not decoded again"
    assert float(again.inputs[again.splits["train"].rows].mean().abs()) < 1e-6
    assert {"samples", "rate"} <= known.keys()
    with (tmp_path / "list.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["file", "client", "class"])
        for file in sorted(path.rglob("*.wav")):
            rows.writerow([file.relative_to(tmp_path), file.parts[-3], file.parts[-2]])
    listed = plures.from_sounds(tmp_path / "list.csv")
    assert torch.equal(listed.inputs[:], walked.inputs[:])
    assert torch.equal(listed.targets, walked.targets)
    run = plures.Run(walked, plures.default_model(walked), plures.methods.fedavg(), plures.Training(rounds=1))
    assert run.step().round == 1


def test_what_differs_is_named(tmp_path: Path) -> None:
    path, drawn = folder(tmp_path)
    odd = written(path / "s1" / "yes" / "zz.wav", np.full((44, 1), 0.5))
    with pytest.raises(PluresError, match=r"zz\.wav: 44 samples, but .*00\.wav has 40; give samples="):
        plures.from_sounds(path)
    cut, longer = (plures.from_sounds(path, samples=samples).inputs[:].numpy() for samples in (41, 50))
    np.testing.assert_array_equal(cut[:, :, :40], longer[:, :, :40])
    np.testing.assert_array_equal(longer[-1, 0], [0.5] * 44 + [0.0] * 6)
    np.testing.assert_array_equal(longer[0, 0], [*drawn[0].astype(np.float32), *[0.0] * 10])
    written(odd, np.full((40, 1), 0.5), rate=16000)
    with pytest.raises(PluresError, match=r"zz\.wav: 16000 samples per second, but .*00\.wav has 8000; resample it"):
        plures.from_sounds(path)
    with pytest.raises(PluresError, match=r"00\.wav: 8000 samples per second, but rate=16000; resample it"):
        plures.from_sounds(path, rate=16000)
    odd.write_bytes(b"RIFF")
    with pytest.raises(PluresError, match=r"zz\.wav: cannot be read as an uncompressed WAV file"):
        plures.from_sounds(path)
    written(odd, np.zeros((0, 1)))
    with pytest.raises(PluresError, match=r"zz\.wav: no or incomplete samples"):
        plures.from_sounds(path)
    with pytest.raises(PluresError, match=r"no sounds client/class/\*\.wav in it"):
        plures.from_sounds(path / "s0")
    with pytest.raises(PluresError, match="samples=0: give 1 or more"):
        plures.from_sounds(path, samples=0)
