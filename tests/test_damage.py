"""Comparisons, runs and published models damaged by a disk: intact parts are kept, the rest is computed again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import plures
from harm import Disk, harmed, stray, survived
from plures.cli import app
from plures.diagnose import Diagnosis
from plures.errors import PluresError, PluresWarning
from plures.evaluate import Comparison, RunFolder, RunSpec, compare, finish, fit
from plures.evaluate.compare import ComparisonProgress
from plures.files import digest
from plures.run import Execution, onboard
from plures.serving import PersonalModel

FAST = Execution("vmap", 8, False, "float32")
ASKED: dict[str, Any] = {
    "methods": ["ditto"],
    "rounds": 2,
    "seeds": 1,
    "tune_rounds": 1,
    "learning_rates": (0.1, 0.3),
    "execution": FAST,
    "batch_size": 8,
}


def people() -> plures.Federation:
    generator = np.random.default_rng(0)
    client = np.repeat(np.arange(4), 20)
    x = generator.normal(size=(len(client), 4)).astype(np.float32)
    y = ((x[:, 0] + (-1.0) ** client * x[:, 1]) > 0).astype(np.int64)
    return plures.from_arrays(x, y, [f"p{c}" for c in client], name="people")


def net() -> nn.Module:
    return plures.with_roles(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), head="2")


def compared(out: Path) -> tuple[Comparison, list[tuple[str, str]], list[str]]:
    """A comparison, the runs that were trained for it, and its warnings."""
    trained: list[tuple[str, str]] = []

    def listen(stage: ComparisonProgress) -> None:
        if stage.point is not None and (stage.method, stage.what) not in trained:
            trained.append((stage.method, stage.what))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PluresWarning)
        found = compare(people(), model=net, out=out, listener=listen, **ASKED)
    return found, trained, [str(one.message) for one in caught if issubclass(one.category, PluresWarning)]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeroes": lambda content: bytes(len(content)),
    "twice": lambda content: content + content,
}


def alike(one: Comparison, two: Comparison) -> bool:
    """Whether two comparisons are the same, except for their wall times."""

    def told(found: Comparison) -> str:
        data = found.model_dump(mode="json")
        for method in data["methods"]:
            for seed in method["seeds"]:
                for point in seed["curve"]:
                    del point["seconds"]
        return json.dumps(data)

    return told(one) == told(two)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """The folder of a finished comparison, which no test changes, and the comparison."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    return folder, compared(folder)[0]


@pytest.fixture
def out(tmp_path: Path, finished: tuple[Path, Comparison]) -> Path:
    """A copy of the finished comparison's folder."""
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


@pytest.fixture
def one(finished: tuple[Path, Comparison]) -> Comparison:
    """The finished comparison."""
    return finished[1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_comparison_repeats_the_damaged_run_alone(out: Path, one: Comparison, damage: str) -> None:
    for name in ("run.json", "models.safetensors", "state.safetensors"):
        file = out / "runs" / "fedavg-seed0" / name
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
        again, trained, warned = compared(out)
        assert alike(again, one)
        assert trained == [("fedavg", "seed 0")]
        (said,) = warned
        assert str(file) in said
        assert said.endswith("the run starts over")
        assert compared(out) == (again, [], []), "mended"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_comparison_repeats_the_damaged_trial_alone(out: Path, one: Comparison, damage: str) -> None:
    file = sorted((out / "trials").iterdir())[0]
    for name in (file, out / "comparison.json", out / "results.json"):
        name.write_bytes(DAMAGES[damage](name.read_bytes()))
    with pytest.raises(PluresError, match=r"results\.json .*run `plures compare` again"):
        Comparison.from_json(out / "results.json")
    again, trained, warned = compared(out)
    assert again == one
    assert [what for _, what in trained] == ["tuning"]
    assert [str(name) in said for name, said in zip((out / "comparison.json", file), warned, strict=True)]
    assert Comparison.from_json(out / "results.json") == one


def test_a_comparison_starts_the_run_of_a_damaged_checkpoint_again(out: Path, one: Comparison) -> None:
    run = out / "runs" / "fedavg-seed0"
    shutil.rmtree(run)
    file = out / "checkpoints" / "fedavg-seed0.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"half a checkpoint")
    again, trained, (said,) = compared(out)
    assert alike(again, one)
    assert trained == [("fedavg", "seed 0")]
    assert str(file) in said
    assert said.endswith("the run starts over")
    assert not file.exists()


def test_a_run_s_files_are_right_or_named(tmp_path: Path) -> None:
    """Model, scores and state of a run, whatever has happened to its files."""
    spec = RunSpec(data="heart", method="ditto+threshold", rounds=1)
    run = spec.run(spec.federation(), FAST)
    folder = RunFolder(tmp_path)
    folder.write(run, spec, finish(fit(run, "x"), 0))
    result, model = folder.result(), folder.model("va")
    row = torch.zeros(1, 32)
    outputs = folder.predict("va", row)[0]
    shutil.copytree(tmp_path, tmp_path / "other")
    found = survived(tmp_path / "run.json", folder.result, lambda got: got == result, flips=150)
    assert found["named"] > found["right"]
    survived(tmp_path / "models.safetensors", lambda: folder.model("va"), lambda got: digest(got) == digest(model), 150)
    survived(
        tmp_path / "models.safetensors",
        lambda: folder.predict("va", row)[0],
        lambda got: torch.equal(got, outputs),
        flips=20,
    )
    survived(tmp_path / "state.safetensors", folder.whole, lambda got: got == result, flips=150)


def test_a_newcomer_s_file_and_a_diagnosis_are_right_or_named(tmp_path: Path) -> None:
    spec = RunSpec(data="heart", method="fedavg", rounds=1, unseen=["va"])
    seen, held = spec.federation().hold_out(["va"])
    run = spec.run(seen, FAST)
    folder = RunFolder(tmp_path)
    folder.write(run, spec, finish(fit(run, "x"), 0))
    folder.add(onboard(run, held))
    (file,) = (tmp_path / "newcomers").iterdir()
    model, scores = folder.model("va"), folder.validation("va")
    survived(file, lambda: folder.model("va"), lambda got: digest(got) == digest(model), flips=100)
    survived(file, lambda: folder.validation("va"), lambda got: got == scores, flips=60)
    file.write_bytes(b"")
    with pytest.raises(PluresError, match=r"va.*damaged.*; delete it, and make the new client's model again"):
        folder.model("va")
    assert folder.model("cleveland").keys() == model.keys(), "the others are whole"
    out = tmp_path / "diagnosis.json"
    assert CliRunner().invoke(app, ["diagnose", "heart", "--rows", "60", "--out", str(out)]).exit_code == 0
    found = Diagnosis.from_json(out)
    survived(out, lambda: Diagnosis.from_json(out), lambda got: got == found, flips=40)


def test_a_published_model_is_right_or_named(tmp_path: Path) -> None:
    spec = RunSpec(data="heart", method="ditto+threshold", rounds=1)
    run = spec.run(spec.federation(), FAST)
    fit(run, "x")
    PersonalModel.of(run, "va", spec).save(tmp_path)
    file, model = tmp_path / "model.safetensors", PersonalModel.load(tmp_path)

    def same(found: PersonalModel) -> bool:
        return found.card == model.card and digest(found.tensors()) == digest(model.tensors())

    survived(file, lambda: PersonalModel.load(tmp_path), same, flips=200)
    card = json.loads(model.card.model_dump_json())
    save_file(load_file(file), file, {"plures": json.dumps({"card": card})})
    assert same(PersonalModel.load(tmp_path)), "as earlier versions wrote it, without a digest of all"
    for what, harm in harmed(file.read_bytes(), flips=1):
        file.write_bytes(harm)
        if what in ("cut to 1", "written twice", "all zeroes"):
            with pytest.raises(PluresError, match=r"model\.safetensors"):
                PersonalModel.load(tmp_path)


# A full disk ----------------------------------------------------------------------------------------------------


def test_a_comparison_goes_on_from_a_full_disk_at_any_of_its_files(
    tmp_path: Path, one: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path / "out", monkeypatch)
    stops = 0
    disk.room = 0
    while True:
        try:
            found = compared(tmp_path / "out")[0]
            break
        except PluresError as error:
            said = str(error)
        stops += 1
        assert said.startswith(f"cannot write {tmp_path / 'out'}"), said
        assert "No space left on device" in said
        assert said.endswith("; what was saved before is untouched")
        assert "free some space and give the same command again" in said
        assert len(said.splitlines()) == 1
        assert stray(tmp_path / "out") == []
        disk.room = disk.taken + 4  # some room is made each time
    assert stops > 4
    assert alike(found, one)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 160 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_comparison_on_a_small_disk_goes_on_when_there_is_room(small: Path, one: Comparison) -> None:
    with pytest.raises(PluresError, match=r"free some space.*No space left on device") as caught:
        compared(small)
    assert len(str(caught.value).splitlines()) == 1
    assert stray(small) == []
    subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
    assert alike(compared(small)[0], one)
