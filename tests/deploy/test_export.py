"""Exported models give the outputs of the personal model in another runtime, and their reported figures are true."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from plures.cli import app
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, finish, fit
from plures.federation import Federation, from_arrays
from plures.run import Execution
from plures.serving.export import Exported, export
from plures.serving.formats import to_onnx
from plures.serving.personal import PersonalModel
from plures.tables.heart import heart_schema, heart_tables
from plures.tables.table import write_table

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
if find_spec("onnxscript") is None:  # not imported, which takes a second in each process that collects tests
    pytest.skip("the extra 'export' is not installed", allow_module_level=True)

LOOP = Execution("loop", 1, False, "float32")


@cache
def trained(method: str, kind: str = "heart", model: str | None = None) -> tuple[PersonalModel, torch.Tensor]:
    """A client's model, and its raw test examples."""
    spec = RunSpec(data="heart", method=method, model=model, rounds=3)
    federation = spec.federation() if kind == "heart" else made(kind)
    run = spec.run(federation, LOOP)
    for _ in run.rounds():
        pass
    place = 0
    rows = federation.splits["test"][place]
    found, scaling = federation.inputs[rows], federation.scaling
    if scaling is not None:
        shape = (1, -1, *(1,) * (found.dim() - 2))
        found = found * scaling[1].to(found).view(shape) + scaling[0].to(found).view(shape)
    return PersonalModel.of(run, federation.clients[place], spec), found


def made(kind: str) -> Federation:
    generator = np.random.default_rng(0)
    x = 3 + 2 * generator.normal(size=(150, 1, 16, 16) if kind == "pictures" else (150, 4)).astype(np.float32)
    flat = x.reshape(150, -1)
    y = (flat[:, :3].argmax(1)) if kind == "pictures" else flat[:, :2] * [1, -2]
    return from_arrays(x, y, np.repeat(["a", "b"], 75), name=kind, standardize=True)


def run_onnx(file: Path, raw: torch.Tensor) -> list[np.ndarray]:
    """Run the file as a program that knows nothing about plures would."""
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"inputs": raw.numpy()})


@pytest.mark.parametrize("method", ["ditto+threshold", "fedrep+temperature", "knnper"])
def test_onnx_predicts_as_the_model_does(tmp_path, method):
    """Scaling, composition, own examples, calibration and decision are all in the graph, for any number of rows."""
    model, raw = trained(method)
    exported = export(model, tmp_path, raw)
    wanted, decided = model.predict(raw)
    for count in (1, 2, 17, len(raw)):
        outputs, chances, classes = run_onnx(tmp_path / "model.onnx", raw[:count])
        np.testing.assert_allclose(outputs, wanted[:count].numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(chances, wanted[:count].softmax(-1).numpy(), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(classes, decided[:count].numpy())
    assert [one.format for one in exported] == ["PyTorch", "ONNX"]
    assert exported[1].changed == 0


def test_the_threshold_is_in_the_graph(tmp_path):
    """Decisions at another threshold than one half: some differ from the class of highest probability."""
    model, raw = trained("ditto+threshold")
    moved = model.holding(model.tensors() | {"threshold/threshold": torch.tensor(0.4)})
    export(moved, tmp_path, raw)
    outputs, chances, classes = run_onnx(tmp_path / "model.onnx", raw)
    np.testing.assert_array_equal(classes, outputs[:, 1] - outputs[:, 0] > np.float32(0.4))
    assert (classes != chances.argmax(1)).any()


def test_regression_has_outputs_alone(tmp_path):
    model, raw = trained("fedem", "numbers")
    exported = export(model, tmp_path, raw, int8=True)
    (outputs,) = run_onnx(tmp_path / "model.onnx", raw)
    np.testing.assert_allclose(outputs, model.predict(raw)[0].numpy(), rtol=0, atol=1e-5)
    assert [one.changed for one in exported] == [None, None, None]


@cache
def pictures(home: Path) -> tuple[list[Exported], PersonalModel, torch.Tensor]:
    model, raw = trained("fedper", "pictures", "fedavg_cnn")
    return export(model, home, raw, int8=True, to=("folder", "onnx"), calibration=raw), model, raw


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Exported], PersonalModel, torch.Tensor]:
    return pictures(tmp_path_factory.mktemp("convolutions"))


def test_what_is_told_is_true(convolutions):
    """Sizes are those of the files; differences and decisions match another run of the files."""
    exported, model, raw = convolutions
    assert [one.format for one in exported] == ["PyTorch", "folder", "ONNX", "ONNX int8", "ONNX int8, static"]
    wanted, decided = (t.numpy() for t in model.predict(raw))
    for one in exported[2:]:
        outputs, _, classes = run_onnx(one.file, raw)
        assert one.size == one.file.stat().st_size
        assert one.largest == pytest.approx(np.abs(outputs - wanted).max(), abs=1e-6)
        assert one.mean == pytest.approx(np.abs(outputs - wanted).mean(), abs=1e-6)
        assert one.changed == pytest.approx((classes != decided).mean(), abs=1e-9)
        assert one.examples == len(raw)
        assert one.milliseconds > 0
    assert exported[0].size == sum(t.nbytes for t in model.tensors().values())
    assert (exported[1].largest, exported[1].changed, exported[1].size) == (0, 0, exported[1].file.stat().st_size)


def test_int8_is_a_third_of_the_size_and_near(convolutions):
    exported, model, raw = convolutions
    plain, *small = exported[2:]
    spread = float(model.predict(raw)[0].std())
    assert plain.largest < 1e-4
    for one in small:
        assert one.size < plain.size / 3
        assert 1e-4 < one.largest < spread
        assert one.changed < 0.2


def test_what_cannot_be_a_graph_is_refused_in_one_line(tmp_path):
    """The refusal does not break a later export in the same process."""
    model, raw = trained("hierarchical_bayes")
    with pytest.raises(PluresError, match="predictor of hierarchical_bayes cannot be exported") as told:
        export(model, tmp_path, raw)
    assert "\n" not in str(told.value)
    assert "use `plures serve`" in str(told.value)
    assert list(tmp_path.iterdir()) == []
    good, rows = trained("fedrep+temperature")
    assert export(good, tmp_path, rows)[1].changed == 0


def test_bad_requests_are_named(tmp_path, monkeypatch):
    model, raw = trained("ditto+threshold")
    with pytest.raises(PluresError, match="no format 'tflite'; choose among folder, onnx, executorch"):
        export(model, tmp_path, raw, to=("tflite",))
    with pytest.raises(PluresError, match="NaN"):
        export(model, tmp_path, raw * torch.nan)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PluresError, match=r"needs onnxscript: pip install 'plures\[export\]'"):
        to_onnx(model, raw)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(PluresError, match=r"needs executorch: pip install 'plures\[mobile\]'"):
        export(model, tmp_path, raw, to=("executorch",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extra("mobile")
@pytest.mark.parametrize("method", ["ditto+threshold", "knnper"])
def test_executorch_predicts_as_the_model_does(tmp_path, method):
    runtime = importlib.import_module("executorch.runtime")
    model, raw = trained(method)
    exported = export(model, tmp_path, raw, to=("executorch",))
    wanted, decided = model.predict(raw)
    program = runtime.Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
    for row in range(5):
        outputs, chances, classes = program.execute([raw[row : row + 1]])
        torch.testing.assert_close(outputs[0], wanted[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(chances[0], wanted[row].softmax(-1), rtol=0, atol=1e-5)
        assert int(classes[0]) == int(decided[row])
    assert exported[1].size == (tmp_path / "model.pte").stat().st_size
    assert exported[1].changed == 0


def test_the_command_line_exports_a_client_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    spec = RunSpec(data="heart", method="ditto+threshold", rounds=2)
    run = spec.run(spec.federation(), LOOP)
    folder = RunFolder(tmp_path / "run")
    folder.write(run, spec, finish(fit(run, "test"), 0))
    words = [
        "export",
        str(folder.path),
        "--client",
        "va",
        "--to",
        "onnx",
        "--to",
        "folder",
        "--out",
        str(tmp_path / "x"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exception is None, done.exception
    assert "on 50 examples" in " ".join(done.stdout.split())
    monkeypatch.setenv("COLUMNS", "80")
    narrow = CliRunner().invoke(app, [*words, "--int8"]).stdout
    assert all(name in narrow for name in ("model.onnx", "model.int8.onnx", "ONNX int8", "largest"))
    assert "…" not in narrow
    raw = torch.zeros(3, 25)
    model = PersonalModel.load(tmp_path / "x")
    raw[0, model.federation.preparation.gaps[0]] = torch.nan
    outputs, *_ = run_onnx(tmp_path / "x" / "model.onnx", raw)
    wanted, _ = model.predict(raw)
    np.testing.assert_allclose(outputs, wanted.numpy(), rtol=0, atol=1e-5)
    missing = CliRunner().invoke(app, ["export", str(tmp_path / "x"), "--out", str(tmp_path / "y")]).exception
    assert isinstance(missing, PluresError)
    assert "give some with --inputs" in str(missing)


def test_raw_rows_of_a_table_are_examples(tmp_path):
    """A site's model with a schema, and its own CSV file: the graph takes the rows encoded, but not scaled."""
    tables = heart_tables()
    spec = RunSpec(data="hospitals", method="fedavg", rounds=1)
    run = spec.run(heart_schema().federation("hospitals", tables), LOOP)
    model = PersonalModel.of(run, "va", spec, schema=heart_schema())
    model.save(tmp_path / "m")
    write_table(tmp_path / "rows.csv", tables["va"])
    words = ["export", str(tmp_path / "m"), "--inputs", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(app, words)
    assert done.exception is None, done.exception
    assert f"on {len(tables['va']['age'])} examples" in " ".join(done.stdout.split())
    encoded = model.encode(tables["va"], scaled=False)
    outputs, *_ = run_onnx(tmp_path / "x" / "model.onnx", encoded)
    np.testing.assert_allclose(outputs, model.predict(tables["va"])[0].numpy(), rtol=0, atol=1e-5)
    predicted = CliRunner().invoke(app, ["predict", str(tmp_path / "m"), "--inputs", str(tmp_path / "rows.csv")])
    assert predicted.exception is None, predicted.exception
    assert len(predicted.stdout.splitlines()) == 1 + len(tables["va"]["age"])
