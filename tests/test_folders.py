"""A finished run predicts new rows with what was fitted to its data, whatever has happened to that data since."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import plures
from plures.evaluate import RunFolder, RunSpec, finish, fit
from plures.methods import ditto, knnper
from plures.run import Execution, Run, Training

FAST = Execution("vmap", 8, False, "float32")
GENERATOR = np.random.default_rng(0)
ROWS = GENERATOR.normal(3.0, 5.0, size=(3, 4)).astype(np.float32)


def hospitals(folder: Path, shift: float = 0.0, gaps: bool = False) -> Path:
    """A folder with three hospitals, whose files differ in their means by ``shift``."""
    generator = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    for name in "abc":
        x = generator.normal(3.0, 5.0, size=(40, 4)).astype(np.float32)
        if gaps:
            x[generator.random(x.shape) < [0.3, 0.0, 0.2, 0.0]] = np.nan
        np.savez(folder / f"{name}.npz", x=x + shift, y=(np.nan_to_num(x[:, 1]) > 3).astype(np.int64))
    return folder


def made(out: Path, data: Path, method: str = "ditto", **options: object) -> RunFolder:
    spec = RunSpec(data=str(data), data_options={"standardize": True, **options}, method=method, rounds=2)
    run = spec.run(spec.federation(), FAST)
    kept = RunFolder(out)
    kept.write(run, spec, finish(fit(run, method), 0), spec.question(run))
    return kept


@pytest.mark.parametrize("method", ["ditto", "knnper"])
def test_new_rows_are_scaled_as_in_the_run(tmp_path, method):
    """The same patient, before and after hospitals appended rows, and after the folder is gone."""
    data = hospitals(tmp_path / "data")
    kept = made(tmp_path / "run", data, method)
    inputs = torch.from_numpy(ROWS)
    before, decided = kept.predict("a", inputs)
    run = kept.run()
    scaled = run.federation.scaled(inputs).unsqueeze(0)
    own = {split: run.engine.whole([0], split) for split in run.bound.method.predictor.reads}
    torch.testing.assert_close(before, run.engine.forward(run.deployed([0]), scaled, own)[0], rtol=1e-6, atol=1e-6)
    hospitals(data, shift=50.0)
    after, again = kept.predict("a", inputs)
    assert torch.equal(before, after)
    assert torch.equal(decided, again)
    words = (
        r"are not those that it was made on: the data differ: client 'a' \(and 2 more clients\) has other training rows"
    )
    for old_data in (lambda: kept.predict("a"), kept.run, kept.data):
        with pytest.raises(plures.PluresError, match=words):
            old_data()
    shutil.rmtree(data)
    assert torch.equal(before, kept.predict("a", inputs)[0])
    with pytest.raises(plures.PluresError, match=r"inputs have shape \(3,\), but 'data' has \(4,\)"):
        kept.predict("a", inputs[:, :3])


def test_missing_values_of_new_rows_become_what_they_were_in_the_run(tmp_path):
    data = hospitals(tmp_path / "data", gaps=True)
    kept = made(tmp_path / "run", data, missing="impute")
    federation = kept.data()
    test = federation.splits["test"][federation.index("b")]
    raw = np.concatenate([np.load(data / f"{name}.npz")["x"] for name in "abc"])[test.numpy()]
    assert np.isnan(raw).any()
    stored = kept.fitted()
    torch.testing.assert_close(stored.scaled(torch.from_numpy(raw)), federation.inputs[test], rtol=0, atol=1e-6)
    expected = kept.predict("b")[0]
    shutil.rmtree(data)
    torch.testing.assert_close(kept.predict("b", torch.from_numpy(raw))[0], expected, rtol=0, atol=1e-6)
    raw[0, 1] = np.nan
    with pytest.raises(plures.PluresError, match="column 'column 1' lacks a value, but lacked none in the run's data"):
        kept.predict("b", torch.from_numpy(raw))


def net(width: int = 4) -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    return plures.with_roles(layers, head="2")


def test_a_run_of_python_objects_predicts_too(tmp_path):
    x = GENERATOR.normal(3.0, 5.0, size=(90, 4))
    data = plures.from_arrays(x, (x[:, 0] > 3).astype(int), np.repeat(["a", "b", "c"], 30), standardize=True)
    for method, other in ((ditto(lam=0.5), ditto(lam=2.0)), (knnper(), knnper(k=3))):
        run = Run(data, net, method, Training(rounds=2, batch_size=8), execution=FAST)
        kept = RunFolder(tmp_path / str(len(list(tmp_path.iterdir()))))
        kept.write(run, None, finish(fit(run, "own"), 0))
        inputs = torch.from_numpy(ROWS)
        scaled = data.scaled(inputs).unsqueeze(0)
        own = {split: run.engine.whole([1], split) for split in run.bound.method.predictor.reads}
        expected = run.engine.forward(run.deployed([1]), scaled, own)[0]
        found, _ = kept.predict("b", inputs, model=net, method=method)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        with pytest.raises(plures.PluresError, match=r"not the model and the method of the run .* there and"):
            kept.predict("b", inputs, model=net, method=other)
        with pytest.raises(plures.PluresError, match=r"not the model and the method .*leaf 0\.weight"):
            kept.predict("b", inputs, model=partial(net, 5), method=method)
        with pytest.raises(plures.PluresError, match="made from Python objects: give model= and method="):
            kept.predict("b", inputs)
