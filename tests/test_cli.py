"""The command line, as a user runs it; what is stopped or killed is a real process."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import plures
from plures.cli import app, main
from plures.evaluate import BASELINES, RunSpec
from plures.run.checkpoint import save

FIXED = ["--backend", "vmap", "--chunk", "4", "--no-compile-step"]


@dataclass(frozen=True)
class Done:
    """The outcome of a command."""

    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Done]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process, in some folder, as the entry point does."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*args: str, cwd: Path | None = None) -> Done:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["plures", *args])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Done(code, *capsys.readouterr())

    return call


def run_command(out: Path, rounds: int = 12, method: str = "ditto") -> list[str]:
    return ["run", "heart", method, "--rounds", str(rounds), "--lr", "0.05", "--out", str(out), *FIXED]


def test_lists_name_every_method_and_data_set(call):
    methods, datasets = call("methods").stdout, call("datasets").stdout
    assert all(name in methods for name in plures.METHODS)
    assert "har" in datasets
    assert "heart" in datasets
    assert "Algorithm 1" in call("methods", "ditto").stdout


def test_run_onboard_predict(call, tmp_path):
    out = tmp_path / "r"
    done = call(*run_command(out, 4), "--unseen", "va")
    assert done.returncode == 0, done.stderr
    assert "unseen clients:" in done.stdout
    assert sorted(f.name for f in out.iterdir()) == ["models.safetensors", "run.json", "state.safetensors"]
    onboarded = call("onboard", str(out))
    assert onboarded.returncode == 0, onboarded.stderr
    assert "va" in onboarded.stdout
    for client in ("va", "cleveland"):
        lines = call("predict", str(out), "--client", client).stdout.strip().splitlines()
        federation = plures.load("heart")
        assert lines[0] == "class," + ",".join(federation.task.classes)
        assert len(lines) == 1 + len(federation.splits["test"][federation.index(client)])
        assert all(sum(map(float, line.split(",")[1:])) == pytest.approx(1, abs=1e-4) for line in lines[1:])


def test_a_run_has_the_arithmetic_that_is_asked_for(call, tmp_path):
    told = {}
    for precision, tensors in (("float64", torch.float64), ("auto", torch.float32)):
        out = tmp_path / precision
        done = call(*run_command(out, 1), "--precision", precision)
        assert done.returncode == 0, done.stderr
        stored = load_file(out / "models.safetensors")
        told[precision] = {name: t for name, t in stored.items() if not name.startswith("fitted:")}
        assert {t.dtype for t in told[precision].values()} == {tensors}
    assert len(told["auto"]) == len(told["float64"]) > 0
    assert all(torch.allclose(t.float(), told["auto"][name], atol=1e-5) for name, t in told["float64"].items())


@pytest.mark.parametrize("command", [("run", "heart", "fedavg"), ("compare", "heart")])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--precision", "tf32"), "precision='tf32' is arithmetic of CUDA devices, not of 'cpu': take 'float32'"),
        (("--capture", "--compile-step"), "capture=True and compile=True exclude each other on a CPU"),
        (("--capture", "--backend", "loop"), "capture=True is not used by backend='loop': take backend='vmap'"),
    ],
)
def test_what_only_a_gpu_does_is_refused_on_a_cpu(call, tmp_path, command, options, said):
    done = call(*command, "--device", "cpu", *options, "--out", str(tmp_path / "r"))
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "r").exists()


def test_predict_scales_raw_examples_as_in_training(call, tmp_path):
    """A folder of raw examples: predicting from a file of raw rows equals predicting the stored, scaled rows."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b"):
        x = 50 + 20 * generator.normal(size=(60, 3)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=(x[:, 0] > 50).astype(np.int64))
    out = tmp_path / "r"
    done = call("run", str(folder), "fedavg", "--data", "standardize=true", "--rounds", "5", "--out", str(out), *FIXED)
    assert done.returncode == 0, done.stderr
    federation = plures.from_folder(folder, standardize=True)
    rows = federation.splits["test"][0]
    mean, scale = federation.scaling
    np.savez(tmp_path / "raw.npz", x=(federation.inputs[rows] * scale + mean).float().numpy())
    stored = call("predict", str(out), "--client", "a").stdout.splitlines()
    raw = call("predict", str(out), "--client", "a", "--inputs", str(tmp_path / "raw.npz")).stdout.splitlines()
    for one, two in zip(stored[1:], raw[1:], strict=True):
        assert one.split(",")[0] == two.split(",")[0]
        assert [float(v) for v in one.split(",")[1:]] == pytest.approx([float(v) for v in two.split(",")[1:]], abs=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 60 rounds that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert CliRunner().invoke(app, run_command(out, 60)).exit_code == 0
    return out


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_stopped_run_goes_on_exactly(call, whole, begins, tmp_path, how):
    """Stopped mid-run by a real signal, then resumed: the same state, bit for bit."""
    stopped = tmp_path / "stopped"
    process = begins(*run_command(stopped, 60))
    checkpoint = stopped / "checkpoint.safetensors"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send(how)
    code = process.wait(300)
    assert code in ((-9,) if how == signal.SIGKILL else (130,))
    assert checkpoint.exists()
    assert not (stopped / "run.json").exists()
    assert call(*run_command(stopped, 60)).returncode == 0
    one, two = load_file(whole / "state.safetensors"), load_file(stopped / "state.safetensors")
    assert one.keys() == two.keys()
    assert all(one[key].equal(two[key]) for key in one)
    first, second = (json.loads((d / "run.json").read_text())["result"] for d in (whole, stopped))
    assert first["test"] == second["test"]
    assert [p["validation"] for p in first["curve"]] == [p["validation"] for p in second["curve"]]
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--data", "seed=1"], r"client 'cleveland' \(and 3 more clients\) has other training rows"),
        (["--set", "lam=0.5"], "the method's parameter lam is 1.0 there and 0.5 here"),
        (["--lr", "0.1"], "the training's optimizer.lr is 0.05 there and 0.1 here"),
        (["--unseen", "va"], "client 'va' is only there"),
    ],
)
@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
def test_a_run_is_gone_on_with_for_the_same_question_alone(tmp_path, changed, words):
    spec = RunSpec(data="heart", method="ditto", rounds=4, lr=0.05)
    run = spec.run(spec.federation(), plures.Execution("vmap", 4, False, "float32"))
    save(run, spec.title(), tmp_path / "checkpoint.safetensors", question=spec.question(run, every=1))
    command = ["run", "heart", "ditto", "--rounds", "4", "--lr", "0.05", "--out", str(tmp_path), *FIXED, *changed]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, plures.PluresError)
    assert re.search(f"is a checkpoint of another run: .*{words}; choose another", str(done.exception))


def test_compare_writes_table_results_and_report(call, tmp_path):
    out = tmp_path / "c"
    options = ["--rounds", "3", "--seeds", "1", "--tune-rounds", "0", "--method", "ditto", "--out", str(out), *FIXED]
    done = call("compare", "heart", *options)
    assert done.returncode == 0, done.stderr
    assert "Ditto" in done.stdout
    result = plures.Comparison.from_json(out / "results.json")
    assert [m.name for m in result.methods] == [*BASELINES, "ditto"]
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert all(hospital in page for hospital in result.federation.clients)
    kept = plures.RunFolder(out / "runs" / "ditto-seed0")
    again = kept.run()
    own = kept.model("cleveland")
    assert all(t.equal(again.predictors([0])[k][0]) for k, t in own.items())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["comparee"], "no command 'comparee'; did you mean 'compare'?"),
        (["compare", "heart", "ditto", "fedrep"], "one data set, and then options: for methods, give --method ditto "),
        (["deploy", "sttaus"], "deploy: no command 'sttaus'; did you mean 'status'?"),
        (["run", "heart", "dito"], "no method 'dito'; did you mean 'ditto'?"),
        (["run", "hart", "ditto"], "did you mean 'heart'"),
        (["run", "heart", "ditto", "--set", "lam=-1"], "lam=-1 must not be negative"),
        (["run", "heart", "ditto", "--set", "mu=1"], "method 'ditto' has no option 'mu'; its options are lam"),
        (["run", "heart", "ditto", "--set", "lam"], "write NAME=VALUE"),
        (["run", "heart", "ditto", "--model", "mpl"], "no network 'mpl'; did you mean 'mlp'?"),
        (["run", "heart", "ditto", "--lr", "-1"], "SGD: lr=-1.0 must be a number >= 0"),
        (["run", "heart", "ditto", "--fraction", "2"], "participation fraction 2.0"),
        (["run", "heart", "ditto", "--unseen", "paris"], "no client 'paris'"),
        (["run", "heart", "nowhere.module:method"], "cannot be imported"),
        (["predict", "nowhere", "--client", "a"], "nowhere is not a finished run"),
        (["run", "heart", "fedper", "--model", "logistic"], "mark the part"),
    ],
)
def test_bad_input_gives_one_line_that_names_it(call, tmp_path, command, message):
    done = call(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
