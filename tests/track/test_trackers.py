"""What TensorBoard, MLflow and Weights & Biases wrote is read back: the run's own numbers, under the same names."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import NAMES, ROUNDS, Heard, fresh, mlflow, people, tensorboard, tensorboard_settings, wandb
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.evaluate import Point, RunFolder, finish, fit
from plures.metrics import CLASSIFICATION, REGRESSION
from plures.run import RoundRecord
from plures.study import Study
from plures.track import TRACKERS, MLflow, TensorBoard, Tracker, WandB, names, trackers

PLAIN = ["north", "s_d", "ward_3_b", "ward_3_b_2"]
ACCURACY = CLASSIFICATION[0]


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


EACH = [pytest.param(name, marks=() if name == "tensorboard" else pytest.mark.extra(name)) for name in TRACKERS]


def written(name: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The metrics of the one run that a tracker wrote into a folder of results."""
    if name == "tensorboard":
        return tensorboard(folder / "tensorboard")
    if name == "mlflow":
        return mlflow(folder / "mlflow" / "mlflow.db")[1]
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return wandb(file)[1]


def recorded(heard: Heard) -> dict[str, list[tuple[int, float]]]:
    """The same, assembled by hand from what the run itself reported."""
    found: dict[str, list[tuple[int, float]]] = {}

    def add(name: str, step: int, value: float) -> None:
        found.setdefault(name, []).append((step, value))

    for record in heard.told("round"):
        add("train/loss", record.round, record.loss)
        add("train/objective", record.round, record.objective)
        add("bytes/up", record.round, record.bytes_up)
        add("bytes/down", record.round, record.bytes_down)
        add("seconds/round", record.round, record.seconds)
        add("cohort/size", record.round, 4)
        add("cohort/left_out", record.round, 0)
    for point in heard.told("point"):
        add("bytes/total", point.round, point.bytes)
        add("seconds/total", point.round, point.seconds)
        add("validation/accuracy", point.round, point.validation)
        add("validation/worst", point.round, min(point.clients))
        for client, value in zip(PLAIN, point.clients, strict=True):
            add(f"client/{client}/accuracy", point.round, value)
    (result,) = heard.told("end")
    step = result.chosen_round
    add("chosen/round", step, step)
    for metric, values in result.test.metrics.items():
        add(f"test/{metric}", step, sum(values) / 4)
    add("test/worst", step, min(result.test.metrics["accuracy"]))
    add("test_last/accuracy", step, sum(result.test_last.metrics["accuracy"]) / 4)
    return found


def equal(one: dict, other: dict) -> None:
    """The same names, and the same values except for the last digit of a decimal number."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert [step for step, _ in values] == [step for step, _ in other[name]], name
        assert [v for _, v in values] == pytest.approx([v for _, v in other[name]], rel=1e-15, abs=0), name


@pytest.mark.parametrize("name", EACH)
def test_what_was_written_is_what_the_run_recorded(name, tmp_path):
    heard = Heard()
    fitted = fit(fresh(), "ditto lam=0.1", every=2, callbacks=[heard, *trackers([name], tmp_path)])
    finish(fitted, 0)
    equal(written(name, tmp_path), recorded(heard))


@pytest.mark.parametrize("name", EACH)
def test_settings_are_written(name, tmp_path):
    given = {"method": "ditto", "lr": 0.3, "parameters": {"lam": 0.1}, "model": None, "batch_size": 8, "clip": True}
    fitted = fit(fresh(), "ditto", every=5, callbacks=trackers([name], tmp_path), stage="tuning", settings=given)
    fitted.callbacks.on_end(None)
    expected = {
        "data": "people", "clients": 4, "stage": "tuning", "rounds": 5,
        "method": "ditto", "lr": 0.3, "parameters.lam": 0.1, "batch_size": 8, "clip": True,
    }  # fmt: skip
    if name == "tensorboard":
        assert tensorboard_settings(tmp_path) == (expected, True)
        (run,) = (tmp_path / "tensorboard" / "people").iterdir()
        assert run.name == "ditto__tuning"
    elif name == "mlflow":
        run, metrics = mlflow(tmp_path / "mlflow" / "mlflow.db")
        assert run.data.params == {key: str(value) for key, value in expected.items()}
        assert (run.info.run_name, run.info.status) == ("ditto, tuning", "FINISHED")
        assert run.data.tags["plures.version"] == plures.__version__
        assert "test/accuracy" not in metrics
    else:
        (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
        run, _, code = wandb(file)
        config = {one.key: json.loads(one.value_json) for one in run.config.update if one.key != "_wandb"}
        assert config == expected
        assert (run.display_name, run.run_group, run.job_type, code) == ("ditto, tuning", "people", "tuning", 0)
        assert socket.gethostname() != run.host
        assert not list(tmp_path.rglob("requirements.txt"))


@pytest.mark.parametrize("name", EACH)
def test_a_run_that_goes_on_is_complete(name, tmp_path):
    """Killed after round 3, with the checkpoint of round 2: at the end every round has its values once."""
    file, whole = tmp_path / "run.safetensors", Heard()
    finish(fit(fresh(), "m", callbacks=[whole]), 0)

    def kill(point: Point) -> None:
        if point.round == 3:
            raise MemoryError

    with pytest.raises(MemoryError):
        fit(
            fresh(),
            "m",
            checkpoint=file,
            checkpoint_every=2,
            progress=kill,
            callbacks=trackers([name], tmp_path),
        )
    finish(fit(fresh(), "m", checkpoint=file, callbacks=trackers([name], tmp_path)), 0)
    expected = recorded(whole)
    if name == "wandb":
        both = [wandb(file) for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
        resumed = [[one.value_json for one in run.config.update if one.key == "resumed_at"] for run, _, _ in both]
        (_, before, failed), (_, after, finished) = both if resumed == [[], ["2"]] else both[::-1]
        assert sorted(resumed) == [[], ["2"]]
        assert (failed, finished) == (1, 0)
        found = {key: before.get(key, [])[:2] + values for key, values in after.items()}
    else:
        found = written(name, tmp_path)
        if name == "mlflow":
            found = {key: sorted(dict(values).items()) for key, values in found.items()}
            assert mlflow(tmp_path / "mlflow" / "mlflow.db")[0].info.status == "FINISHED"
    timed = ("seconds/round", "seconds/total")
    assert found.keys() == expected.keys()
    assert [step for step, _ in found["seconds/round"]] == [1, 2, 3, 4, 5]
    equal(
        {key: values for key, values in found.items() if key not in timed},
        {key: values for key, values in expected.items() if key not in timed},
    )


@pytest.mark.parametrize("name", EACH)
def test_a_stopped_run_is_told_apart(name, tmp_path):
    class Stop(Heard):
        def on_round(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), "m", callbacks=[Stop(), *trackers([name], tmp_path)])
    assert [step for step, _ in written(name, tmp_path)["train/loss"]] == [1]
    if name == "tensorboard":
        assert not tensorboard_settings(tmp_path)[1]
    if name == "mlflow":
        assert mlflow(tmp_path / "mlflow" / "mlflow.db")[0].info.status == "KILLED"
    if name == "wandb":
        (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
        assert wandb(file)[2] == 255


@pytest.mark.parametrize("name", EACH)
def test_a_loss_that_is_not_a_number_is_written_as_such(name, tmp_path):
    (tracker,) = trackers([name], tmp_path)
    heard = Heard()
    fit(fresh(), "m", every=ROUNDS, callbacks=[heard])
    tracker.on_start(heard.told("start")[0])
    tracker.on_round(RoundRecord(1, NAMES, math.nan, 2**40 + 1, 5, 0.5))
    tracker.on_point(Point(round=1, train_loss=math.nan, validation=math.nan, bytes=7, seconds=1.0))
    tracker.on_end(None)
    found = written(name, tmp_path)
    assert math.isnan(found["train/loss"][0][1])
    assert found["bytes/up"] == [(1, 2**40 + 1)]
    assert "validation/accuracy" not in found


# Names ----------------------------------------------------------------------------------------------------------


class Kept(Tracker):
    """Records all writes."""

    def open(self, about, settings):
        self.values: dict[str, float] = {}

    def write(self, values, step):
        self.values |= values

    def close(self, status):
        self.values["closed"] = 1.0


def test_only_the_first_clients_are_written_one_by_one():
    few, nobody = Kept(2), Kept(0)
    fit(fresh(), "m", every=ROUNDS, callbacks=[few, nobody])
    single = [name for name in few.values if name.startswith("client/")]
    assert single == ["client/north/accuracy", "client/s_d/accuracy"]
    assert few.values.keys() - nobody.values.keys() == set(single)
    with pytest.raises(plures.PluresError, match="clients=-1"):
        Kept(-1)


def test_names_of_clients_are_plain_and_stay_apart():
    assert names.plain(NAMES) == PLAIN
    assert names.plain(["a/b", "a_b", "a b", "a_b_2", "..", "", "x" * 300]) == [
        "a_b", "a_b_2", "a_b_3", "a_b_2_2", "_" * 2, "_", "x" * 100,
    ]  # fmt: skip


def test_the_worst_client_follows_the_metrics_direction_and_nobody_is_invented():
    point = Point(round=1, train_loss=1.0, validation=0.5, bytes=1, seconds=1.0, clients=[0.2, None, 0.8])
    found = names.of_point(point, ACCURACY, ["a", "b", "c"])
    assert found["validation/worst"] == 0.2
    assert [key for key in found if key.startswith("client/")] == ["client/a/accuracy", "client/c/accuracy"]
    rmse = REGRESSION[0]
    assert names.of_point(point, rmse, [])["validation/worst"] == 0.8


def test_unseen_clients_have_their_own_name():
    seen, held = people().hold_out(["north"])
    kept = Kept()
    fitted = fit(fresh(seen), "m", every=ROUNDS, callbacks=[kept])
    result = finish(fitted, 0, held)
    assert kept.values["unseen/accuracy"] == result.unseen.metrics["accuracy"][0]


# Commands, libraries, network -----------------------------------------------------------------------------------


def test_an_unknown_tracker_is_refused_before_anything_runs(tmp_path):
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", "heart", "local", "--out", str(out), "--track", "clearml"])
    assert isinstance(done.exception, plures.PluresError)
    assert str(done.exception) == "--track clearml: there is no such tracker; choose among tensorboard, mlflow, wandb"
    assert not out.exists()


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("torch.utils.tensorboard", "tensorboard", TensorBoard),
        ("mlflow", "mlflow", MLflow),
        ("wandb", "wandb", WandB),
    ],
)
def test_a_missing_library_names_its_extra(module, extra, make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(plures.PluresError, match=rf"tracking with {extra} .*pip install 'plures\[{extra}\]'"):
        make(tmp_path)


def test_libraries_are_imported_only_where_they_are_used():
    """PyTorch's compiler and exporters, too: they take longer to load than all of plures. Counting needs neither."""
    late = {"tensorboard", "mlflow", "wandb", "pandas", "fastapi", "onnx", "sympy", "torch._dynamo", "torch.onnx"}
    counted = (
        "import torch; from plures.models.operations import Operations; a = torch.ones(2, 2)\n"
        "with Operations() as counted: a @ a\n"
        "assert counted.total == 16"
    )
    code = (
        f"import sys, plures.cli, plures.track, plures.deploy.app\n{counted}\nprint(sorted({late} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.skipif(not installed("tensorboard"), reason="tensorboard is not installed")
def test_the_commands_track(tmp_path):
    out = tmp_path / "run"
    options = ["--rounds", "2", "--out", str(out), "--track", "tensorboard"]
    done = CliRunner().invoke(app, ["run", "heart", "ditto", "--set", "lam=0.2", *options])
    assert done.exit_code == 0, done.output
    found, result = tensorboard(out), RunFolder(out).result()
    assert [value for _, value in found["validation/accuracy"]] == [point.validation for point in result.curve]
    assert tensorboard_settings(out)[0]["parameters.lam"] == 0.2
    out = tmp_path / "compare"
    options = ["--rounds", "1", "--seeds", "1", "--tune-rounds", "0", "--out", str(out), "--track", "tensorboard"]
    done = CliRunner().invoke(app, ["compare", "heart", "--method", "local", *options])
    assert done.exit_code == 0, done.output
    assert {run.name for run in (out / "tensorboard" / "heart").iterdir()} == {
        "constant__seed_0",
        "local__seed_0",
        "fedavg__seed_0",
        "intercept__seed_0",
        "fedavg_ft__seed_0",
    }


STUDY = """
name = "small"
seeds = 2

[[data]]
name = "heart"

[[methods]]
name = "ditto"
lr = 0.1

[[budgets]]
rounds = 2

[tuning]
trials = 0
"""


@pytest.mark.skipif(not installed("tensorboard"), reason="tensorboard is not installed")
def test_a_study_tracks_its_final_runs(tmp_path):
    file, out = tmp_path / "study.toml", tmp_path / "study"
    file.write_text(STUDY)
    done = CliRunner().invoke(app, ["study", str(file), "--out", str(out), "--track", "tensorboard"])
    assert done.exit_code == 0, done.output
    written = {file.parent.name: file.parent for file in (out / "tensorboard").rglob("events.*")}
    assert {name for name in written if "ditto" in name} == {"heart_ditto__seed_0", "heart_ditto__seed_1"}
    (compared,) = Study(out).comparisons()
    assert len(written) == 2 * len(compared.methods)
    for seed in compared.method("ditto").seeds:
        found = tensorboard(written[f"heart_ditto__seed_{seed.seed}"])
        assert [value for _, value in found["validation/accuracy"]] == [point.validation for point in seed.curve]


WATCHED = """
import sys
from pathlib import Path
asked = []
def hook(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1", "localhost"):
        asked.append(args[1])
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", "::1", "localhost", None):
        asked.append(args[0])
sys.addaudithook(hook)
from plures.evaluate import finish, fit
from plures.track import trackers
from tracked import fresh
finish(fit(fresh(), "m", callbacks=trackers(sys.argv[2:], Path(sys.argv[1]))), 0)
print("asked:", asked)
"""


def test_nothing_leaves_the_machine(tmp_path):
    """Neither this process nor a library's helper requests anything: the only proxy leads to this test."""
    used = [name for name in TRACKERS if installed(name)]
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.1)
        way = f"http://127.0.0.1:{door.getsockname()[1]}"
        out = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL"), way)
        switches = ("WANDB", "MLFLOW", "CI", "PYTEST", "DO_NOT_TRACK", "NO_PROXY", "no_proxy")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(switches)}
        done = subprocess.run(
            [sys.executable, "-c", WATCHED, str(tmp_path), *used],
            env=kept | out | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        assert "asked: []" in done.stdout
        with pytest.raises(TimeoutError):
            door.accept()
    assert all(written(name, tmp_path)["train/loss"] for name in used)
