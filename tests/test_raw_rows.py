"""Raw rows are prepared with what was fitted to the data: columns by name, levels, missing values, target units."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, finish, fit, score
from plures.federation import Federation, from_arrays
from plures.federation.build import by_content
from plures.method import SGD
from plures.methods import ditto, fedavg, fedem, knnper
from plures.run import Execution, Run, Training, onboard
from plures.run.onboard import rescaled
from plures.serving.export import export
from plures.serving.personal import PersonalModel, opened

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
FAST = Execution("vmap", 8, False, "float32")
ROWS = 60
GENERATOR = np.random.default_rng(3)
AGE = GENERATOR.integers(20, 80, ROWS).astype(float)
TABLE: dict[str, Any] = {
    "age": np.where(np.arange(ROWS) % 7 == 3, np.nan, AGE),
    "sex": np.array(["f", "m"])[GENERATOR.integers(0, 2, ROWS)],
    "smokes": GENERATOR.random(ROWS) < 0.4,
    "ward": np.array([None if i % 9 == 4 else ["east", "west", "north"][i % 3] for i in range(ROWS)], dtype=object),
    "weight": GENERATOR.normal(70, 9, ROWS),
    "note": np.array([f"case {i}" for i in range(ROWS)]),
    "site": np.array(["a", "b", "c"]).repeat(ROWS // 3),
    "sick": GENERATOR.integers(0, 2, ROWS),
}
INPUTS = ("age", "sex", "smokes", "ward", "weight")
NEW = {
    "weight": ["61.5", "80"],
    "ward": ["north", None],
    "smokes": ["true", "False"],
    "sex": ["m", "f"],
    "age": [None, "41"],
}


def people(**options: Any) -> Federation:
    options = {"missing": "impute", "standardize": True, "seed": 1, **options}
    return by_content(TABLE, target="sick", client="site", features=INPUTS, name="people", **options)


def made(out: Path, federation: Federation) -> RunFolder:
    spec = RunSpec(data="people", method="fedavg", rounds=2)
    run = Run(federation, spec.network(federation), fedavg(), Training(rounds=2, batch_size=8), execution=FAST)
    kept = RunFolder(out)
    kept.write(run, spec, finish(fit(run, "fedavg"), 0))
    return kept


def by_hand(federation: Federation) -> torch.Tensor:
    """The two new rows, input by input, computed from the table alone."""
    train = federation.splits["train"].rows.numpy()
    age, weight = TABLE["age"], TABLE["weight"]
    fill = np.nanmean(age[train])
    filled = np.where(np.isnan(age), fill, age)[train]
    heavy = weight[train]
    rows = [
        [(fill - filled.mean()) / filled.std(), 0, 1, 0, 1, 0, 1, 0, 0, (61.5 - heavy.mean()) / heavy.std(), 1],
        [(41 - filled.mean()) / filled.std(), 1, 0, 1, 0, 0, 0, 0, 1, (80 - heavy.mean()) / heavy.std(), 0],
    ]
    return torch.tensor(rows, dtype=torch.float32)


def test_rows_of_a_table_become_what_they_were_in_the_data():
    federation = people()
    assert federation.columns == (
        *("age", "sex=f", "sex=m", "smokes=False", "smokes=True", "ward=east", "ward=north", "ward=west"),
        *("ward is missing", "weight", "age is missing"),
    )
    torch.testing.assert_close(federation.scaled(NEW), by_hand(federation), rtol=1e-5, atol=1e-5)
    mixed = {name: TABLE[name] for name in reversed(list(TABLE))}
    assert torch.equal(federation.scaled(mixed), federation.inputs)
    without = {name: TABLE[name] for name in ("age", "sex", "smokes", "ward", "weight")}
    assert torch.equal(federation.scaled(without), federation.inputs)
    back = federation.unscaled(federation.inputs)
    assert torch.equal(back[:, 0].isnan(), torch.from_numpy(np.isnan(TABLE["age"])))
    torch.testing.assert_close(federation.scaled(back), federation.inputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sex": ["m", "x"]}, "column 'sex', row 2: 'x' did not occur in the run's data; its values are f, m"),
        ({"sex": ["m", None]}, "column 'sex', row 2: a missing value; the run's data had none in it"),
        ({"smokes": [1, 0]}, "column 'smokes', row 1: '1' did not occur in the run's data"),
        ({"weight": ["61,5", "80"]}, "column 'weight', row 1: '61,5' is not a finite number"),
        ({"weight": [61.5, None]}, "column 'weight' lacks a value, but lacked none in the run's data"),
        ({"weigth": [1, 2]}, "column 'weigth' was not in the run's data: leave it out; did you mean 'weight'"),
        ({"sex": None}, "column 'sex' is missing: the model reads age, sex, smokes, ward, weight"),
        ({"sex": ["m"]}, "column 'sex' has 1 rows"),
        ({"sex": "m"}, "column 'sex': give a list with one value per row"),
    ],
)
def test_what_the_data_cannot_explain_is_refused(change, words):
    table = {name: cells for name, cells in (NEW | change).items() if cells is not None}
    with pytest.raises(PluresError, match=words):
        people().scaled(table)


def test_a_table_without_imputation_refuses_a_missing_number_by_name():
    whole = {"age": AGE, "site": TABLE["site"], "sick": TABLE["sick"], "code": np.arange(ROWS) % 3}
    federation = by_content(whole, target="sick", client="site", categories=["code"], features=["code", "age"])
    assert torch.equal(federation.scaled({"age": [30], "code": ["2.0"]}), torch.tensor([[0.0, 0.0, 1.0, 30.0]]))
    with pytest.raises(PluresError, match="column 'age', row 2: a missing value"):
        federation.scaled({"age": [30, None], "code": [1, 2]})
    with pytest.raises(PluresError, match="column 'code', row 1: '3' did not occur"):
        federation.scaled({"age": [30], "code": [3]})
    arrays = from_arrays(np.stack([AGE, AGE**2], 1), TABLE["sick"], TABLE["site"], columns=["age", "square"])
    assert torch.equal(arrays.scaled({"square": [9], "age": [3]}), torch.tensor([[3.0, 9.0]]))
    unnamed = from_arrays(AGE[:, None], TABLE["sick"], TABLE["site"])
    with pytest.raises(PluresError, match="the inputs have no named columns"):
        unnamed.scaled({"age": [3]})


def test_run_published_model_and_endpoint_predict_the_same_of_a_table(tmp_path):
    pytest.importorskip("fastapi")
    from plures.serving.serve import PredictionRequest, read

    federation = people()
    kept = made(tmp_path / "run", federation)
    outputs, decided = kept.predict("b", NEW)
    network = kept._engine(kept.fitted(), FAST, None, None)
    stack = {"model": {path: t.unsqueeze(0) for path, t in kept.model("b").items()}}
    wanted = network.forward(stack, by_hand(federation).unsqueeze(0), {})[0]
    torch.testing.assert_close(outputs, wanted, rtol=1e-5, atol=1e-5)
    run = Run(federation, kept.spec().network(federation), fedavg(), Training(rounds=2, batch_size=8), execution=FAST)
    finish(fit(run, "fedavg"), 0)
    PersonalModel.of(run, "b", kept.spec()).save(tmp_path / "published")
    model = PersonalModel.load(tmp_path / "published")
    torch.testing.assert_close(model.predict(NEW)[0], outputs, rtol=1e-6, atol=1e-6)
    asked = read(model, PredictionRequest(columns=NEW), 10)
    torch.testing.assert_close(model.predict(asked)[0], outputs, rtol=1e-6, atol=1e-6)
    asked = read(model, PredictionRequest(rows=[[None, "m", True, "north", 61.5]]), 10)
    torch.testing.assert_close(model.predict(asked)[0], outputs[:1], rtol=1e-6, atol=1e-6)
    told = model.card.text()
    assert "- sex: one of f, m; others are refused" in told
    assert "- may be missing: age, ward" in told
    assert "- is not read: note, site, sick" in told
    file = tmp_path / "new.csv"
    file.write_text("weight,ward,smokes,sex,age\n61.5,north,true,m,\n80,,False,f,41\n")
    for folder in (["run", "--client", "b"], ["published"]):
        done = CliRunner().invoke(app, ["predict", str(tmp_path / folder[0]), *folder[1:], "--inputs", str(file)])
        assert done.exit_code == 0, done.output
        first = done.output.splitlines()[1].split(",")
        assert first[0] == federation.task.classes[int(decided[0])]
        assert float(first[1]) == pytest.approx(float(outputs.softmax(-1)[0, 0]), rel=1e-4)


def test_standardised_targets_are_predicted_in_their_own_units(tmp_path):
    """One feature, y = 100 + 20 x: a line trained to convergence predicts 100 + 20 x."""
    x = GENERATOR.normal(size=(ROWS, 1))
    y = 100 + 20 * x[:, 0]
    data = from_arrays(x, y, TABLE["site"], standardize_targets=True, columns=["x"], name="line")
    assert "targets standardised (mean" in data.source
    assert "predictions for new rows in their own units" in data.source
    spec = RunSpec(data="line", method="fedavg", model="logistic", rounds=60, lr=0.3, batch_size=None)
    run = Run(data, spec.network(data), fedavg(), spec.training(), execution=FAST)
    kept = RunFolder(tmp_path / "run")
    result = finish(fit(run, "fedavg"), 0)
    kept.write(run, spec, result)
    wanted = torch.tensor([[100.0], [140.0]])
    outputs, decided = kept.predict("a", torch.tensor([[0.0], [2.0]]))
    assert decided is None
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-2)
    model = PersonalModel.of(run, "a", spec)
    model.save(tmp_path / "published")
    again = PersonalModel.load(tmp_path / "published")
    torch.testing.assert_close(again.predict(torch.tensor([[0.0], [2.0]]))[0], outputs, rtol=1e-6, atol=1e-4)
    assert again.card.metrics["rmse"] == pytest.approx(result.validation.values("rmse")[0], abs=1e-6)
    assert again.card.metrics["rmse"] < 0.01
    file = tmp_path / "new.csv"
    file.write_text("x\n0\n2\n")
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), "--client", "a", "--inputs", str(file)])
    assert [float(value) for value in done.output.split()[1:]] == pytest.approx([100, 140], abs=1e-2)


def test_a_graph_fills_in_missing_values_and_predicts_in_units(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    x = np.stack([AGE, GENERATOR.normal(size=ROWS)], 1)
    y = 100 + AGE
    x[::5, 0] = np.nan
    data = from_arrays(x, y, TABLE["site"], standardize_targets=True, standardize=True, missing="impute", name="line")
    spec = RunSpec(data="line", method="fedavg", model="logistic", rounds=2)
    run = Run(data, spec.network(data), fedavg(), Training(rounds=2, batch_size=8), execution=FAST)
    fit(run, "fedavg")
    model = PersonalModel.of(run, "a", spec)
    rows = torch.tensor([[50.0, 1.0], [torch.nan, 0.0]])
    compared = export(model, tmp_path, rows, to=("folder", "onnx"))
    assert float(model.predict(rows)[0].min()) > 50
    assert [one.format for one in compared] == ["PyTorch", "folder", "ONNX"]
    assert all(one.largest < 1e-3 for one in compared)


def test_a_published_model_of_an_earlier_version_is_read_or_refused(tmp_path):
    data = from_arrays(AGE[:, None], AGE, TABLE["site"], standardize_targets=True, name="line")
    spec = RunSpec(data="line", method="fedavg", model="logistic", rounds=1)
    run = Run(data, spec.network(data), fedavg(), Training(rounds=1), execution=FAST)
    fit(run, "fedavg")
    model = PersonalModel.of(run, "a", spec)
    for source, refused in (("", False), (data.source, True)):
        old = json.loads(model.card.model_dump_json()) | {"format": 1, "source": source}
        del old["preparation"]
        tensors = {name: t for name, t in model.tensors().items() if "target" not in name}
        old["digest"] = plures.serving.describe.digest(tensors)
        plures.files.write(tmp_path / "model.safetensors", tensors, {"card": old})
        if refused:
            with pytest.raises(PluresError, match="did not keep the units of the target: publish the model again"):
                opened(tmp_path)
        else:
            assert opened(tmp_path).predict(torch.ones(1, 1))[0].shape == (1, 1)


# Newcomers ----------------------------------------------------------------------------------------------------------


def test_newcomers_are_prepared_as_the_run_was():
    """They have fewer levels, other means and gaps of their own, and become the very inputs of the run."""
    federation = people()
    run = Run(federation, nn.Linear(11, 2), fedavg(), Training(rounds=1), execution=FAST)
    some = [i for i in range(ROWS) if TABLE["sex"][i] == "f" and TABLE["ward"][i] != "west"]
    table = {name: cells[some] for name, cells in TABLE.items()} | {"site": np.array(["z"]).repeat(len(some))}
    fresh = by_content(table, target="sick", client="site", features=INPUTS, missing="impute", name="people")
    assert fresh.features != federation.features
    there = rescaled(run, fresh)
    torch.testing.assert_close(there.inputs, federation.inputs[some], rtol=0, atol=1e-6)
    assert len(onboard(run, there).federation) == 1
    with pytest.raises(PluresError, match="examples have shape"):
        onboard(run, fresh)
    table |= {"sex": np.array(["x"]).repeat(len(some))}
    odd = by_content(table, target="sick", client="site", features=INPUTS, missing="impute")
    with pytest.raises(PluresError, match="column 'sex', row 1: 'x' did not occur in the run's data"):
        rescaled(run, odd)


def test_newcomers_on_another_scale_of_targets_or_with_other_fillings_are_refused():
    x = np.stack([AGE, AGE % 7], 1)
    x[::5, 0] = np.nan
    seen = from_arrays(x, AGE, TABLE["site"], standardize_targets=True, missing="impute", name="seen")
    run = Run(seen, nn.Linear(3, 1), fedavg(), Training(rounds=1), execution=FAST)
    client = np.array(["z"]).repeat(ROWS)
    fresh = from_arrays(x + 5, AGE, client, missing="impute")
    with pytest.raises(PluresError, match="the new clients' targets are not on the scale"):
        onboard(run, replace(fresh, preparation=replace(fresh.preparation, fill=seen.preparation.fill)))
    with pytest.raises(PluresError, match="the new clients' missing values are not on the scale"):
        onboard(run, replace(fresh, preparation=replace(seen.preparation, fill=fresh.preparation.fill)))
    there = rescaled(run, fresh)
    mean, scale = seen.preparation.target
    torch.testing.assert_close(there.targets[:, 0], ((torch.from_numpy(AGE) - mean) / scale).float())
    gap = there.inputs[0].tolist()
    assert gap == [pytest.approx(float(seen.preparation.fill[0])), AGE[0] % 7 + 5, 1]
    with pytest.raises(PluresError, match="is scaled already: build it without standardize"):
        rescaled(run, seen)


# Runs whose data changed or are gone ---------------------------------------------------------------------------------


def folder_of(path: Path, shift: float) -> Path:
    path.mkdir(exist_ok=True)
    generator = np.random.default_rng(5)
    for name in "abc":
        x = generator.normal(size=(30, 3)).astype(np.float32)
        np.savez(path / f"{name}.npz", x=x + shift, y=(x[:, 0] > 0).astype(np.int64))
    return path


@pytest.mark.parametrize("method", ["ditto", "knnper", "ditto+threshold"])
def test_a_run_is_published_without_its_data(tmp_path, method):
    data = folder_of(tmp_path / "data", 0)
    spec = RunSpec(data=str(data), data_options={"standardize": True}, method=method, rounds=2, unseen=["c"])
    seen, held = spec.federation().hold_out(["c"])
    run, kept = spec.run(seen, FAST), RunFolder(tmp_path / "run")
    kept.write(run, spec, finish(fit(run, method), 0), spec.question(run, held))
    guest = onboard(run, held)
    kept.add(guest)
    live = PersonalModel.of(run, "a", spec), PersonalModel.of(guest, "c", spec)
    folder_of(data, 50)
    for client, wanted in zip("ac", live, strict=True):
        model = opened(kept.path, client)
        assert model.tensors().keys() == wanted.tensors().keys()
        for name, value in wanted.tensors().items():
            assert torch.equal(model.tensors()[name], value), name
        assert model.card.metrics == pytest.approx(wanted.card.metrics, abs=1e-6)
        same = {"metrics", "created"}
        assert model.card.model_dump(exclude=same) == wanted.card.model_dump(exclude=same)
    shutil.rmtree(data)
    file = tmp_path / "rows.npz"
    np.savez(file, x=np.ones((2, 3), np.float32))
    done = CliRunner().invoke(app, ["predict", str(kept.path), "--client", "c", "--inputs", str(file)])
    assert done.exit_code == 0, done.output


def test_a_newcomers_file_of_another_run_is_not_used(tmp_path):
    data = folder_of(tmp_path / "data", 0)
    kept = RunFolder(tmp_path / "run")
    for seed, unseen in ((0, ["c"]), (1, ["c"]), (1, [])):
        spec = RunSpec(data=str(data), method="fedavg_ft", rounds=1, unseen=unseen, seed=seed)
        whole = spec.federation()
        seen, held = whole.hold_out(unseen) if unseen else (whole, None)
        run = spec.run(seen, FAST)
        kept.write(run, spec, finish(fit(run, "fedavg_ft"), 0), spec.question(run, held))
        if not seed:
            kept.add(onboard(run, held))
            first = kept.predict("c", torch.ones(1, 3))[0]
        elif unseen:
            with pytest.raises(PluresError, match=r"c\.safetensors was made for another run than the one in"):
                kept.predict("c", torch.ones(1, 3))
    assert not torch.allclose(kept.predict("c", torch.ones(1, 3))[0], first)


@pytest.mark.parametrize("method", [ditto, knnper, fedem])
def test_a_run_in_memory_predicts_what_its_folder_predicts(tmp_path, method):
    federation = people()
    run = Run(federation, net, method(), Training(rounds=2, batch_size=8), execution=FAST)
    kept = RunFolder(tmp_path / "run")
    kept.write(run, None, finish(fit(run, "own"), 0))
    outputs, decided = run.predict("b", NEW)
    found, again = kept.predict("b", NEW, model=net, method=method())
    torch.testing.assert_close(outputs, found, rtol=1e-6, atol=1e-6)
    assert torch.equal(decided, again)
    rows = federation.splits["test"][1]
    tested = run.predict("b", {name: cells[rows] for name, cells in TABLE.items()})
    torch.testing.assert_close(run.predict("b")[0], tested[0], rtol=1e-6, atol=1e-6)
    accuracy = (tested[1] == federation.targets[rows]).double().mean()
    assert float(accuracy) == pytest.approx(score(run, "test").values["accuracy"][1])


def net() -> nn.Module:
    layers = nn.Sequential(nn.Linear(11, 5), nn.ReLU(), nn.Linear(5, 2))
    return plures.with_roles(layers, head="2")


def test_a_run_in_memory_predicts_in_the_units_of_the_target():
    y = 100 + 20 * AGE
    data = from_arrays(AGE[:, None], y, TABLE["site"], standardize=True, standardize_targets=True)
    run = Run(data, nn.Linear(1, 1), fedavg(), Training(60, None, optimizer=SGD(0.3)), execution=FAST)
    for _ in run.rounds():
        pass
    outputs, decided = run.predict("a", torch.tensor([[30.0], [70.0]]))
    assert decided is None
    torch.testing.assert_close(outputs, torch.tensor([[700.0], [1500.0]]), rtol=0, atol=0.5)
    with pytest.raises(PluresError, match="no client 'd'"):
        run.predict("d", torch.ones(1, 1))
