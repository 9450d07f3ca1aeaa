"""Stored files are read as they were written, or one sentence names the file: every byte counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harm import survived
from plures.errors import PluresError
from plures.files import DamagedError, describe, digest, discard, read, read_json, replacing, write, write_json

TENSORS = {
    "model/weight": torch.arange(12.0).reshape(3, 4),
    "model/bias": torch.tensor(0.5, dtype=torch.float64),
    "count": torch.tensor([3, -1, 2]),
    "seen": torch.tensor([True, False]),
    "none": torch.empty(0, 2),
}
ABOUT = {"run": "abc", "round": 3, "names": ["å", 'a "b"\n'], "loss": 0.1}


def alike(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return digest(one) == digest(two)


def test_tensors_and_description_are_those_that_were_written(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    write(file, TENSORS, ABOUT)

    def same(found: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> bool:
        return found[1] == ABOUT and alike(found[0], TENSORS)

    found = survived(file, lambda: read(file), same)
    assert found["named"] > 650
    assert found["right"] < 0.02 * found["named"], "spaces of the header, at most"
    assert survived(file, lambda: describe(file), lambda about: about == ABOUT)["named"] > 400


def test_a_json_file_says_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    said = {"a": 1, "list": [1.5, None, True, {"b": "ü\n"}], "nan": float("nan"), "far": float("-inf"), "pair": (1, 2)}
    write_json(file, said)
    told = {"a": 1, "list": [1.5, None, True, {"b": "ü\n"}], "nan": None, "far": "-inf", "pair": [1, 2]}
    assert read_json(file) == told
    assert json.loads(file.read_text()).keys() == {*said, "sha256"}
    found = survived(file, lambda: read_json(file), lambda data: data == told)
    assert found["named"] > 5 * found["right"], "only spaces between the entries do not count"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4))
    assert read_json(file) == told, "how it is laid out does not count"


def test_what_is_damaged_and_what_to_do_is_said(tmp_path: Path) -> None:
    file, text = tmp_path / "m.safetensors", tmp_path / "m.json"
    write(file, TENSORS, ABOUT)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError, match=r"m\.safetensors is damaged: its values .* were saved; make it again"):
        read(file, "make it again")
    assert describe(file) == ABOUT, "the description is whole"
    file.write_bytes(bytes(content).replace(b"abc", b"abd"))
    with pytest.raises(
        DamagedError, match=r"m\.safetensors is damaged: its content is not what was saved; make it again"
    ):
        describe(file, "make it again")
    write_json(text, ABOUT)
    text.write_text(text.read_text().replace("abc", "abd"))
    with pytest.raises(DamagedError, match=r"m\.json is damaged: its content is not what was saved; make it again"):
        read_json(text, "make it again")
    for reading in (read, describe, read_json):
        with pytest.raises(PluresError, match=r"none cannot be read: No such file or directory"):
            reading(tmp_path / "none")


def test_files_without_a_digest_are_read_where_earlier_ones_are(tmp_path: Path) -> None:
    file, text = tmp_path / "old.safetensors", tmp_path / "old.json"
    save_file(TENSORS, file, {"plures": json.dumps(ABOUT)})
    with pytest.raises(DamagedError, match="of an earlier version of plures: it has no digest; delete it"):
        read(file)
    tensors, about = read(file, earlier=True)
    assert alike(tensors, TENSORS)
    assert about == ABOUT
    text.write_text(json.dumps(ABOUT))
    with pytest.raises(DamagedError, match="of an earlier version of plures: it has no digest; delete it"):
        read_json(text)
    assert read_json(text, earlier=True) == ABOUT
    write(file, TENSORS, ABOUT)
    file.write_bytes(file.read_bytes().replace(rb"\"sha256\"", rb"\"sha257\""))
    with pytest.raises(DamagedError, match="no digest"):
        read(file, earlier=True)


def test_tensors_that_share_memory_are_written_as_they_are(tmp_path: Path) -> None:
    file, whole = tmp_path / "views.safetensors", torch.arange(6.0)
    views = {"all": whole, "row": whole.view(2, 3)[1], "turned": whole.view(2, 3).T, "again": whole}
    write(file, views, {})
    assert alike(read(file)[0], views)
    assert alike(load_file(file), views)


def test_a_file_that_took_its_place_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before the rename, the folder's entry after it."""
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def renamed(file: Path, to: Path) -> Path:
        done.append("rename")
        return rename(file, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_json(tmp_path / "a.json", {})
    assert done == [f".a.json.{os.getpid()}.tmp", "rename", tmp_path.name]


def test_a_full_disk_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def fill() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(
        PluresError, match=r"cannot write .*a\.json: .*free some space and .*: .*No space left on device.*; what was"
    ):
        fill()
    assert read_json(file) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_discarded_with_what_killed_processes_left_of_it(tmp_path: Path) -> None:
    names = ("a[1].json", ".a[1].json.77.tmp", ".a[1].json.78.tmp", ".a1.json.77.tmp", "b.json")
    for name in names:
        (tmp_path / name).touch()
    discard(tmp_path / "a[1].json")
    assert {file.name for file in tmp_path.iterdir()} == {".a1.json.77.tmp", "b.json"}
    discard(tmp_path / "a[1].json")
