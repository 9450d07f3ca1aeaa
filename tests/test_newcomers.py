"""Newcomers: their data has the same meaning as the run's, or is refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.errors import PluresError
from plures.evaluate import finish, fit, score
from plures.evaluate.spec import RunSpec
from plures.federation import from_arrays
from plures.method import Generated, Method, Regressed, Setting
from plures.methods import cold_start, debias, fedavg, hierfavg, quality
from plures.run import Execution, onboard
from plures.run.onboard import rescaled
from plures.tasks import Classification, Regression
from problems import quadratic, run

FIXED = Execution("vmap", 4, False)


def clients(folder, names, seed=0, classes=2):
    """Raw examples far from the unit scale."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    for name in names:
        x = (50 + 20 * generator.normal(size=(60, 3))).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=np.digitize(x[:, 0], np.linspace(45, 55, classes - 1)).astype(np.int64))
    return folder


def finished(tmp_path, method="fedavg", **options):
    spec = RunSpec(data=str(clients(tmp_path / "data", "ab")), method=method, **{"rounds": 3, **options})
    done = spec.run(spec.federation(), FIXED)
    result = finish(fit(done, spec.title()), 0)
    folder = plures.RunFolder(tmp_path / "run")
    folder.write(done, spec, result)
    return folder


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words):
    error = call(*words).exception
    assert isinstance(error, PluresError), error
    return str(error)


def described(federation, **columns):
    return replace(federation, metadata=columns)


def newcomer(**columns):
    return described(quadratic((2.0,), (9.0,), (5,), names=("zz",)), **columns)


# Scale --------------------------------------------------------------------------------------------------------------


def test_new_raw_data_are_brought_onto_the_scale_of_the_run(tmp_path):
    """A newcomer's stored test rows are ((x - mean) / scale) of its file with the run's numbers, not its own."""
    options = {"standardize": True, "split": None, "metadata": {"a": {"age": 1}, "b": {"age": 2}}}
    kept = finished(tmp_path, "knnper", data_options=options)
    folder = clients(tmp_path / "new", ["zz"], seed=3)
    assert call("onboard", kept.path, "--data", folder).exit_code == 0
    raw, mean_scale = plures.from_folder(folder), kept.spec().federation().scaling
    expected = (raw.inputs[raw.splits["train"][0]] - mean_scale[0]) / mean_scale[1]
    stored, _ = plures.run.checkpoint.read(kept.path / "newcomers" / "zz.safetensors")
    torch.testing.assert_close(stored["own:train:inputs"][0], expected.float(), atol=1e-5, rtol=0)
    table = call("onboard", kept.path, "--data", folder).stdout
    guest = onboard(kept.run(), rescaled(kept.run(), raw))
    assert f"{score(guest, 'test').values['accuracy'][0]:.4f}" in table


def test_data_on_another_scale_are_refused():
    x, y = 50 + 20 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40.0) / 40
    raw, standard = (from_arrays(x, y, ["a"] * 20 + ["b"] * 20, standardize=s) for s in (False, True))
    other = from_arrays(x * 2, y, ["a"] * 20 + ["b"] * 20, standardize=True)
    on_raw, on_standard = (
        run(fedavg(), 1, federation=f, model=lambda: torch.nn.Linear(2, 1), lr=0.01) for f in (raw, standard)
    )
    for done, wrong in ((on_raw, standard), (on_standard, raw), (on_standard, other)):
        with pytest.raises(PluresError, match=r"not on the scale .*scaling differs.*rescaled"):
            onboard(done, wrong)
    again = rescaled(on_standard, raw)
    torch.testing.assert_close(again.inputs, standard.inputs, atol=1e-5, rtol=0)
    assert onboard(on_standard, again).federation.scaling is on_standard.federation.scaling
    assert onboard(on_standard, standard).federation.clients == ("a", "b")
    assert rescaled(on_raw, raw) is raw
    with pytest.raises(PluresError, match="scaled already"):
        rescaled(on_raw, standard)


def test_targets_of_a_folder_are_brought_onto_the_scale_of_the_run(tmp_path):
    """kNN-Per keeps a newcomer's own targets: ((y - mean) / scale) of its file with the run's numbers."""
    options = {"standardize_targets": True, "task": "regression"}
    kept = finished(tmp_path, "knnper", data_options=options, lr=0.0001)
    folder = clients(tmp_path / "new", ["zz"], seed=3)
    assert call("onboard", kept.path, "--data", folder).exit_code == 0
    raw, (mean, scale) = plures.from_folder(folder, task="regression"), kept.spec().federation().preparation.target
    stored, _ = plures.run.checkpoint.read(kept.path / "newcomers" / "zz.safetensors")
    expected = (raw.targets[raw.splits["train"][0]] - mean) / scale
    torch.testing.assert_close(stored["own:train:targets"][0], expected.float(), atol=1e-5, rtol=0)


# Names --------------------------------------------------------------------------------------------------------------


def test_a_trained_client_is_not_replaced(tmp_path):
    kept = finished(tmp_path)
    before = kept.model("a")
    message = refused("onboard", kept.path, "--data", clients(tmp_path / "new", ["zz", "a"], seed=5))
    assert "client 'a' took part in the run" in message
    assert "rename" in message
    assert not (kept.path / "newcomers").exists()
    assert all(torch.equal(t, before[path]) for path, t in kept.model("a").items())
    assert call("onboard", kept.path, "--data", tmp_path / "new", "--client", "zz").exit_code == 0


# Metadata -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        tuple(np.array([1, 2, 10])),
        tuple(np.array([1, 2, 10], dtype=np.float32)),
        (np.array(1), np.array([2]), torch.tensor(10)),
        (1, 2.0, np.int8(10)),
    ],
    ids=["int64", "float32", "arrays", "mixed"],
)
def test_every_kind_of_number_is_a_number(values):
    setting = Setting.of(described(quadratic(), age=values))
    assert setting.fact("age").tolist() == [1.0, 2.0, 10.0]
    assert dict(setting.levels) == {}
    assert [type(v) in (int, float) for v in setting.metadata["age"]] == [True] * 3


@pytest.mark.parametrize("values", [(True, False, True), tuple(np.array([True, False, True]))], ids=["bool", "bool_"])
def test_truth_values_are_zero_and_one(values):
    setting = Setting.of(described(quadratic(), urban=values))
    assert setting.fact("urban").tolist() == [1.0, 0.0, 1.0]
    assert setting.groups("urban")[1] == ("False", "True")


def test_a_missing_number_is_refused_where_it_is_used():
    data = described(quadratic(), age=(1.0, None, 3.0))
    assert run(fedavg(), 1, federation=data).round == 1
    with pytest.raises(PluresError, match=r"column 'age' of client 'b' is not a finite number but None"):
        run(Method(layout={"model": Generated(("age",))}), 0, federation=data)
    with pytest.raises(PluresError, match=r"column 'age' of client 'b' is not a finite number"):
        run(quality("age"), 1, federation=data)


def seen(method, **columns):
    return run(method, 2, federation=described(quadratic(), **columns))


@pytest.mark.parametrize(
    "make", [cold_start, lambda: cold_start(columns=("age",)), lambda: quality("age")], ids=["all", "one", "known"]
)
def test_a_column_that_newcomers_lack(make):
    done = seen(make(), age=(1.0, 2.0, 3.0))
    with pytest.raises(PluresError, match=r"nothing is known about 'age' for client 'zz'"):
        onboard(done, newcomer())


def test_a_group_that_newcomers_lack():
    done = seen(hierfavg(column="site"), site=("x", "y", "x"))
    with pytest.raises(PluresError, match=r"no metadata column 'site' .*add it for client 'zz'"):
        onboard(done, newcomer())


def test_columns_that_the_run_did_not_have_are_ignored():
    done = seen(cold_start(), age=(1.0, 2.0, 3.0))
    one = onboard(done, newcomer(age=(2.5,)))
    two = onboard(done, newcomer(age=(2.5,), site=("nowhere",), height=(1.8,)))
    assert "site" not in two.setting.facts
    assert torch.equal(one.predictors([0])["weight"], two.predictors([0])["weight"])


def test_text_in_a_column_of_numbers():
    done = seen(cold_start(by="nearest"), age=(1.0, 2.0, 3.0))
    with pytest.raises(PluresError, match=r"column 'age' of client 'zz' is not a finite number but 'old'"):
        onboard(done, newcomer(age=("old",)))
    with pytest.raises(PluresError, match=r"not a finite number but None"):
        onboard(done, newcomer(age=(None,)))
    assert Regressed(("age",))(done.setting, Setting.of(newcomer(age=(2,)), done.setting)).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("value", [float("nan"), 7.0, -7.0, 0.0, None, "good"])
def test_reports_of_newcomers_are_checked(value):
    done = seen(debias(), reliability=(1.0, 0.5, 0.8))
    with pytest.raises(PluresError, match=r"'reliability'.*client 'zz'"):
        onboard(done, newcomer(reliability=(value,)))
    assert len(onboard(done, newcomer(reliability=(0.5,))).federation) == 1


def test_nobody_has_complete_data():
    with pytest.raises(PluresError, match="'completeness' is 0 for every client"):
        seen(quality(), completeness=(0, 0, 0))
    done = seen(quality(), completeness=(1, 0.5, 0))
    assert len(onboard(done, newcomer(completeness=(0.0,))).federation) == 1


# Tasks --------------------------------------------------------------------------------------------------------------


def test_another_task_is_refused():
    x, y = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    data = from_arrays(x, y, ["a"] * 15 + ["b"] * 15, classes=["no", "yes"])
    done = run(fedavg(), 1, federation=data, model=lambda: torch.nn.Linear(2, 2))
    three = from_arrays(x, torch.arange(30) % 3, ["c"] * 30)
    for wrong, message in (
        (three, "number of outputs is 3; this run was trained on 2"),
        (replace(data, task=Classification(("yes", "no"))), "classes are yes, no; .* on no, yes"),
        (replace(data, inputs=data.inputs.long()), "inputs have type int64; .* on float64"),
        (replace(data, task=Regression(2), targets=torch.zeros(30, 2)), "task is regression"),
    ):
        with pytest.raises(PluresError, match=message):
            onboard(done, wrong)


def test_more_classes_in_a_folder_are_refused(tmp_path):
    kept = finished(tmp_path)
    message = refused("onboard", kept.path, "--data", clients(tmp_path / "new", ["zz"], classes=3))
    assert "label 2 is not one of the classes 0, 1" in message
    few = clients(tmp_path / "few", ["yy"])
    with np.load(few / "yy.npz") as archive:
        np.savez(few / "yy.npz", x=archive["x"], y=np.zeros(60, dtype=np.int64))
    with pytest.warns(plures.PluresWarning, match="only one class"):
        assert call("onboard", kept.path, "--data", few).exit_code == 0


def test_a_negative_number_of_visits():
    with pytest.raises(PluresError, match="visits=-3"):
        onboard(run(fedavg(), 1), newcomer(), visits=-3)


# Predicting ---------------------------------------------------------------------------------------------------------


def test_a_newcomer_predicts_by_its_own_examples(tmp_path):
    """From disk as from memory, using only neighbours."""
    kept = finished(tmp_path, "knnper", parameters={"k": 3, "lam": 1.0}, lr=0.0001)
    folder = clients(tmp_path / "new", ["yy", "zz"], seed=3)
    with np.load(folder / "yy.npz") as archive:
        np.savez(folder / "yy.npz", x=archive["x"][:20], y=archive["y"][:20])
    assert call("onboard", kept.path, "--data", folder).exit_code == 0
    guest = onboard(kept.run(), plures.from_folder(folder))
    x = torch.tensor([[30.0, 50.0, 50.0], [70.0, 50.0, 50.0]])
    for place, client in enumerate(("yy", "zz")):
        own = {"train": guest.engine.whole([place], "train")}
        expected = guest.engine.forward(guest.deployed([place]), x[None], own)[0]
        outputs, decided = kept.predict(client, x)
        torch.testing.assert_close(outputs, expected)
        assert decided.tolist() == [0, 1]
    np.savez(tmp_path / "q.npz", x=x.numpy())
    lines = call("predict", kept.path, "--client", "zz", "--inputs", tmp_path / "q.npz").stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["class", "0", "1"]
    assert "give --inputs" in refused("predict", kept.path, "--client", "zz")
    assert "no client 'nobody'" in refused("predict", kept.path, "--client", "nobody")


def test_a_diverged_model_does_not_predict(tmp_path):
    kept = finished(tmp_path)
    state = plures.run.checkpoint
    tensors, about = state.read(kept.path / "models.safetensors")
    state.write(kept.path / "models.safetensors", {k: torch.full_like(t, torch.nan) for k, t in tensors.items()}, about)
    assert "diverged" in (message := refused("predict", kept.path, "--client", "a"))
    assert "lower learning rate" in message


def test_inputs_that_are_no_numbers(tmp_path):
    with pytest.raises(PluresError, match="NaN or an infinite value"):
        finished(tmp_path).predict("a", torch.tensor([[1.0, torch.nan, 2.0]]))
