"""Forged files with a correct digest: used as they are, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harm import harmed
from plures.cli.models import read_examples
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, finish, fit
from plures.federation import from_folder
from plures.files import describe, read, read_json, write, write_json
from plures.report.client import client_page
from plures.run import Execution, onboard
from plures.serving import PersonalModel
from plures.serving.personal import opened
from plures.study import Store, recover

ROW = torch.zeros(1, 32)
ODD: tuple[Any, ...] = (None, -1, 10**400, 1.5, "os:system", "x\x1b[31m", [], {}, [[]], {"a": 1})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a newcomer, and a published model."""
    home = tmp_path_factory.mktemp("made")
    spec = RunSpec(data="heart", method="ditto+threshold", rounds=1, unseen=["va"])
    seen, held = spec.federation().hold_out(["va"])
    run = spec.run(seen, Execution("vmap", 8, False, "float32"))
    folder = RunFolder(home / "run")
    folder.write(run, spec, finish(fit(run, "x"), 0), spec.question(run, held))
    folder.add(onboard(run, held))
    PersonalModel.of(run, "cleveland", spec).save(home / "published")
    return home


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "sent"))


def refused(reading: Callable[[], object], file: Path | str) -> bool:
    """Whether something is refused in a sentence that names the file."""
    said = None
    try:
        reading()
    except PluresError as error:
        said = str(error)
    assert said is None or (str(file) in said and len(said.splitlines()) == 1), said
    return said is not None


def put(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(data))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("text", "said"), [("[" * 10**5, "recursion"), ('{"a":' + "1" * 5000 + "}", "4300 digits"), ("[]", "JSON object")]
)
def test_a_description_that_is_no_description_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file, other = tmp_path / "m.safetensors", tmp_path / "m.json"
    save_file({"a": torch.zeros(2)}, file, {"plures": text})
    other.write_text(text)
    for reading in (lambda: read(file), lambda: describe(file), lambda: read_json(other)):
        with pytest.raises(PluresError, match=rf"m\..*damaged.*{said}.*; delete it"):
            reading()


@pytest.mark.parametrize("key", ["clients", "dtype", "features", "metadata", "columns", "task", "preparation", "name"])
def test_models_that_make_no_sense_are_refused(home: Path, key: str) -> None:
    run, file = RunFolder(home / "run"), home / "run" / "models.safetensors"
    tensors, about = read(file)
    path = ("clients",) if key == "clients" else ("fitted", key)
    found = 0
    for value in ODD:
        write(file, tensors, put(about, path, value))
        found += refused(lambda: run.predict("cleveland", ROW), run.path)
        refused(lambda: opened(run.path, "cleveland").card.text(), run.path)
    assert found > (0 if key == "name" else 3)


@pytest.mark.parametrize("leaf", ["head.weight", "body.1.weight"])
def test_leaves_of_another_shape_or_type_are_refused(home: Path, leaf: str) -> None:
    for file, slot, reading in (
        (home / "run" / "models.safetensors", "cleveland/", lambda: RunFolder(home / "run").predict("cleveland", ROW)),
        (home / "run" / "newcomers" / "va.safetensors", "va/", lambda: RunFolder(home / "run").predict("va", ROW)),
    ):
        tensors, about = read(file)
        name = f"{slot}personal:{leaf}"
        for value in (torch.zeros(3, 1, 2), tensors[name].to(torch.int32)):
            write(file, {**tensors, name: value}, about)
            assert refused(reading, home / "run")


@pytest.mark.parametrize(
    "path", [("execution",), ("question", "method", "layout"), ("question", "data"), ("result",), ("spec", "method")]
)
def test_a_description_of_a_run_that_makes_no_sense_is_refused(home: Path, path: tuple[str, ...]) -> None:
    run = RunFolder(home / "run")
    file = run.path / "run.json"
    plain, found = read_json(file), 0
    for value in ODD:
        write_json(file, put(plain, path, value))
        found += refused(lambda: run.predict("cleveland", ROW), run.path)
        refused(lambda: opened(run.path, "cleveland").card.text(), run.path)
        refused(lambda: client_page(run.path, "cleveland"), run.path)
        found += refused(run.run, run.path)
    assert found > 3


def test_what_a_newcomer_s_file_says_of_it_is_refused_where_it_makes_no_sense(home: Path) -> None:
    run, file = RunFolder(home / "run"), home / "run" / "newcomers" / "va.safetensors"
    tensors, about = read(file)
    for path in (("validation",), ("validation", "accuracy"), ("examples",), ("examples", "va", "rows")):
        found = 0
        for value in ODD:
            write(file, tensors, put(about, path, value))
            found += refused(lambda: opened(run.path, "va").card.text(), run.path)
        assert found > 5


def test_a_published_model_that_makes_no_sense_is_refused(home: Path) -> None:
    file = home / "published" / "model.safetensors"
    tensors, about = read(file)
    for path in (("rows",), ("labels",), ("spec", "model_options"), ("preparation", "table", 0), ("kind",)):
        for value in ODD:
            write(file, tensors, {"card": put(about["card"], path, value)})
            refused(lambda: PersonalModel.load(home / "published").card.text(), file)
    write(file, tensors, {"card": put(about["card"], ("rows",), {"train": 3})})
    with pytest.raises(PluresError, match=r"the card is damaged \(rows of validation, test are missing\); publish"):
        PersonalModel.load(home / "published")


@pytest.mark.parametrize("leaf", ["personal/head.weight", "scaling:mean"])
def test_a_published_model_that_cannot_predict_is_refused_when_it_is_read(home: Path, leaf: str) -> None:
    from plures.serving.describe import digest

    file = home / "published" / "model.safetensors"
    tensors, about = read(file)
    for value in (torch.zeros(3, 1, 2), tensors[leaf].to(torch.int32)):
        odd = {**tensors, leaf: value}
        write(file, odd, {"card": about["card"] | {"digest": digest(odd)}})
        taken = not refused(lambda: PersonalModel.load(home / "published").predict(ROW), home / "published")
        assert taken == (leaf == "scaling:mean" and value.dtype == torch.int32), "whole numbers can be means"


@pytest.mark.parametrize(
    "x",
    [np.array(["a"]), np.zeros(3, "V8"), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "f4")]), np.zeros((2, 3), complex)],
)
def test_raw_examples_that_are_no_numbers_are_refused(tmp_path: Path, x: np.ndarray[Any, Any]) -> None:
    np.savez(tmp_path / "in.npz", x=x)
    with pytest.raises(PluresError, match=r"in\.npz: not such a file; give an \.npz file with an array x"):
        read_examples(tmp_path / "in.npz")


@pytest.mark.parametrize("dtype", [">f4", ">i8", np.longdouble])
def test_raw_examples_of_another_machine_are_read(tmp_path: Path, dtype: Any) -> None:
    np.savez(tmp_path / "in.npz", x=np.array([[1, 2]], dtype))
    assert read_examples(tmp_path / "in.npz").tolist() == [[1, 2]]


def test_a_study_s_database_holds_nothing_that_acts(tmp_path: Path) -> None:
    """A trigger would silently change the results that are written."""
    Store(tmp_path).close()
    content = (tmp_path / "study.db").read_bytes()
    for statement, kind in (
        ("CREATE TRIGGER odd AFTER UPDATE ON units BEGIN UPDATE units SET result = '{}'; END", "trigger"),
        ("CREATE VIEW odd AS SELECT 1", "view"),
    ):
        (tmp_path / "study.db").write_bytes(content)
        db = sqlite3.connect(tmp_path / "study.db")
        db.execute(statement)
        db.close()
        with pytest.raises(
            PluresError, match=rf"study\.db holds a {kind}, 'odd', which plures did not make; .*--recover"
        ):
            Store(tmp_path)
        assert recover(tmp_path) == 0
        Store(tmp_path).close()


@pytest.mark.parametrize(
    "statement",
    ["ALTER TABLE units DROP COLUMN digest", 'ALTER TABLE study ADD COLUMN "a) VALUES (1) --"', "DROP TABLE trials"],
)
def test_a_database_with_other_columns_is_recovered(tmp_path: Path, statement: str) -> None:
    store = Store(tmp_path)
    store.describe("text", "file", "folder", "search", "version")
    store.close()
    db = sqlite3.connect(tmp_path / "study.db")
    db.execute(statement)
    db.close()
    assert recover(tmp_path) == 0
    store = Store(tmp_path)
    assert store.described()["text"] == "text"
    store.close()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_of_arrays_is_right_or_named(tmp_path: Path, save: Callable[..., None]) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        save(tmp_path / f"{name}.npz", x=generator.normal(size=(20, 3)), y=generator.integers(0, 2, 20))
    file = tmp_path / "a.npz"
    content, found = file.read_bytes(), 0
    np.save(tmp_path / "bare.npy", np.zeros(3))
    for _, harm in [*harmed(content, flips=300), ("another kind", (tmp_path / "bare.npy").read_bytes())]:
        file.write_bytes(harm)
        found += refused(lambda: from_folder(tmp_path), tmp_path)
        refused(lambda: read_examples(file), file)
    assert found > 100
