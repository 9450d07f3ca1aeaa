"""Everything on a device other than the CPU: nothing is left behind, and the numbers are those of the CPU."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from away import Away, pretended
from four import begun, clients
from plures import devices
from plures.cli import app
from plures.devices import find
from plures.diagnose import diagnose
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, compare, finish, fit, follow, score, with_labels
from plures.evaluate.callback import Callback
from plures.federation import Federation, Split, Stream, from_arrays
from plures.federation.quality import completeness_report, degrade, imputed_slopes
from plures.federation.shift import brightness, noise
from plures.federation.stream import by_column, by_label, by_time, permuted, rotated
from plures.methods import METHODS
from plures.models import NETWORKS, Network, build
from plures.models.network import seeded
from plures.report.catalogue import model
from plures.run import Execution, Run, Training, onboard
from plures.run.checkpoint import restore, snapshot
from plures.run.coordinator import RoundRecord
from plures.serving.export import export
from plures.serving.personal import PersonalModel

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            value.cpu(), other[key].cpu(), atol=1e-9, rtol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", METHODS)
def test_first_round_one_client_at_a_time(name):
    seen, _ = clients()
    here = begun(name, seen, "cpu", "loop")
    here.step()
    with pretended() as away:
        there = begun(name, seen, away, "loop")
        there.step()
        reached = snapshot(there)
    assert any(isinstance(t, Away) for t in reached.values())
    same(reached, snapshot(here))


@pytest.mark.parametrize("name", METHODS)
def test_second_round_of_a_stack_newcomers_and_states_that_change_device(name):
    """The first round on the CPU, the second on the device, then back on the CPU."""
    seen, later = clients()
    here = begun(name, seen, "cpu")
    here.step()
    first = {key: t.clone() for key, t in snapshot(here).items()}
    with pretended() as away:
        there = begun(name, seen, away)
        restore(there, first)
        there.step()
        reached, found = snapshot(there), score(onboard(there, later, visits=1), "test")
        restore(here, reached)
    back = {key: t.clone() for key, t in snapshot(here).items()}
    assert not any(isinstance(t, Away) for t in back.values())
    restore(here, first)
    here.step()
    same(reached, snapshot(here))
    same(back, snapshot(here))
    for metric, values in score(onboard(here, later, visits=1), "test").values.items():
        np.testing.assert_allclose(found.values[metric], values, atol=1e-9, err_msg=metric)


VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("fedu", {"graph": "nearest", "columns": ("completeness",), "neighbours": 1}),
    ("mocha", {"relationship": "mean"}),
    ("pfedhn", {"columns": ("completeness",), "hidden": (3,)}),
    ("energy", {"links": ("completeness", "reliability")}),
    ("digital_twin", {"groups": "group"}),
    ("community", {"column": "group"}),
    ("lora", {"share": "clustered", "average": "a"}),
    ("cfl", {"eps1": 1e9, "eps2": 0.0, "warmup": 0}),
    ("ifca", {"margin": 0.5}),
    ("fedamp", {"attention": "cosine"}),
    ("fedproto", {"by": "prototype"}),
    ("debias", {"joint": True}),
    ("scaffold", {"option": "I"}),
    ("fedopt", {"rule": "yogi"}),
    ("perfedavg", {"variant": "exact"}),
    ("apfl", {"adaptive_lr": 0.1, "mix_with": "received"}),
    ("cold_start", {"by": "nearest", "columns": ("completeness",)}),
    ("threshold", {"utility": "f1"}),
    ("prior_shift", {"estimate": "em", "iterations": 2}),
    ("temperature", {"bias": True}),
    ("wise_ft", {"mix": "outputs", "alpha": 0.5, "steps": 1}),
    ("hierarchical_bayes", {"learn": False, "draws": 2}),
]


@pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=[name for name, _ in VARIANTS])
def test_options_of_methods(name, parameters):
    seen, later = clients()
    reached = []
    for where in (nullcontext("cpu"), pretended()):
        with where as device:
            run = begun(name, seen, device, **parameters)
            run.step()
            guest = onboard(run, later, visits=0)
            reached.append((snapshot(run), score(guest, "test").values["loss"]))
    same(reached[1][0], reached[0][0])
    np.testing.assert_allclose(reached[1][1], reached[0][1], atol=1e-9)


def test_tensors_that_a_user_gives_may_lie_anywhere():
    """A graph over clients, a relationship, energies: on the CPU or on the device, whichever the run uses."""
    seen, _ = clients()
    even = torch.ones(3, 3) - torch.eye(3)
    given = {"fedu": ("graph", even / 3), "mocha": ("relationship", torch.eye(3)), "energy": ("links", even)}
    for name, (option, matrix) in given.items():
        with pretended() as away:
            runs = [
                begun(name, seen, device, **{option: matrix.to(place)})
                for device, place in (("cpu", "cpu"), ("cpu", away), (away, "cpu"), (away, away))
            ]
            for run in runs:
                run.step()
            first, *others = map(snapshot, runs)
            for other in others:
                same(other, first)


def test_a_client_without_data_and_rows_on_disk(tmp_path):
    seen, later = clients()
    nobody = replace(later, splits={**later.splits, "train": Split.of([torch.empty(0)])})
    reached = []
    for where in (nullcontext("cpu"), pretended()):
        with where as device:
            run = begun("ditto", seen, device)
            on_disk = Run(
                run.federation,
                model,
                run.method,
                run.training,
                participation=run.participation,
                execution=replace(run.execution, clients_on_disk=tmp_path),
                seed=1,
            )
            for one in (run, on_disk):
                one.step()
            both = snapshot(run), snapshot(on_disk)
            reached.append((*both, score(onboard(run, nobody, visits=2), "test").values["loss"]))
    same(reached[0][0], reached[1][0])
    same(reached[0][1], reached[1][1])
    np.testing.assert_allclose(reached[0][2], reached[1][2], atol=1e-9)


SHAPES: dict[str, tuple[int, ...]] = {
    "fedavg_cnn": (1, 28, 28),
    "fedrep_cnn": (3, 32, 32),
    "fedbn_cnn": (3, 28, 28),
    "har_cnn": (9, 36),
    "resnet": (3, 8, 8),
    "char_lstm": (5,),
    "char_transformer": (5,),
    "unet": (2, 4, 4),
    "matrix_factorization": (1,),
    "gcn": (7, 3),
    "sage": (7, 3),
}
"""Shape of an example that is not a table row; without a channel axis, it holds integers."""
TOKENS = ("char_lstm", "char_transformer", "matrix_factorization", "gcn", "sage")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    shape, outputs = SHAPES.get(name, (6,)), 1 if name == "matrix_factorization" else 3
    module = build(lambda: NETWORKS[name](shape, outputs), 0)
    drawn = np.random.default_rng(0).integers(0, 3, (2, *shape))
    x = torch.from_numpy(drawn if name in TOKENS else drawn.astype(np.float32))
    wanted, _ = Network(module)(Network(module).leaves(), x, train=False)
    with pretended() as away:
        network = Network(copy.deepcopy(module).to(away))
        found, _ = network(network.leaves(), x.to(away), train=False)
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-5, rtol=1e-5)


# --- data -------------------------------------------------------------------------------------------------------


def pictures(federation: Federation) -> Federation:
    return replace(federation, inputs=federation.inputs.view(-1, 2, 2, 2), metadata={})


SIMULATORS: dict[str, Callable[[Federation], Federation | Stream]] = {
    "subset": lambda f: f.subset(["a", "c"]),
    "hold out": lambda f: f.hold_out(["a"])[1],
    "donate": lambda f: f.donate(0.3),
    "labels": lambda f: with_labels(f, 3),
    "degrade": lambda f: degrade(replace(f, metadata={}), completeness=0.7, noise=0.3, how="mean"),
    "some columns": lambda f: degrade(replace(f, metadata={}), completeness=0.7, columns=["x1", "x3"]),
    "noise": lambda f: noise(replace(f, metadata={}), [0.0, 1.0]),
    "brightness": lambda f: brightness(pictures(replace(f, columns=())), [0.0, 1.0]),
    "rotated": lambda f: rotated(pictures(replace(f, columns=(), scaling=None)), [0.0, 30.0]),
    "permuted": lambda f: permuted(f, 2),
    "permuted pictures": lambda f: permuted(pictures(replace(f, columns=(), scaling=None)), 2),
    "by time": lambda f: by_time(f, np.arange(len(f.inputs)) % 7, 2),
    "by times there": lambda f: by_time(f, torch.arange(len(f.inputs), device=f.inputs.device) % 7, 2),
    "by label": lambda f: by_label(f, [(0,), (1,)]),
    "by column": lambda f: by_column(f, "x0", {"all": [0.0, 1.0]}),
}


def table() -> Federation:
    """Three clients with named columns, one of them binary, on a scale."""
    generator = np.random.default_rng(1)
    x = np.concatenate([np.arange(90)[:, None] % 2, generator.normal(size=(90, 7))], 1)
    names = tuple(f"x{i}" for i in range(8))
    return from_arrays(x, np.arange(90) // 2 % 2, np.repeat(list("abc"), 30), columns=names, standardize=True, seed=0)


@pytest.mark.parametrize("what", SIMULATORS)
def test_federations_and_streams(what):
    here, change = table(), SIMULATORS[what]
    wanted = change(here)
    with pretended() as away:
        found = change(here.to(away))
        for one, other in zip(*([f] if isinstance(f, Federation) else list(f) for f in (found, wanted)), strict=True):
            assert one.inputs.device.type == one.public.device.type == away
            same({"inputs": one.inputs, "targets": one.targets}, {"inputs": other.inputs, "targets": other.targets})
            for split, index in other.splits.items():
                assert one.splits[split].rows.tolist() == index.rows.tolist()
            assert str(one.describe()) == str(other.describe())
            assert one.metadata == other.metadata


def test_scale_completeness_and_diagnosis():
    here = table()
    gaps = replace(here, columns=(*here.columns[:-1], "x0 is missing"))
    raw, slopes, covariance = torch.ones(2, 8), torch.tensor([1.0, 2.0]), torch.eye(2) + 0.5
    wanted = diagnose(here, seed=0, rows=60)
    with pretended() as away:
        there = here.to(away)
        for given in (raw, raw.to(away)):
            torch.testing.assert_close(there.scaled(given).cpu(), here.scaled(raw))
            torch.testing.assert_close(here.scaled(given), here.scaled(raw))
        assert completeness_report(gaps.to(away)).share.tolist() == completeness_report(gaps).share.tolist()
        moved = imputed_slopes(slopes.to(away), covariance.to(away), [0.5, 0.9])
        torch.testing.assert_close(moved.cpu(), imputed_slopes(slopes, covariance, [0.5, 0.9]))
        found = diagnose(there, seed=0, rows=60)
    assert found.model_copy(update={"seconds": 0}) == wanted.model_copy(update={"seconds": 0})


def test_a_federation_lies_on_one_device():
    here = table()
    with pretended() as away:
        with pytest.raises(PluresError, match="its targets are on cpu, its inputs on meta"):
            replace(here, inputs=here.inputs.to(away))
        with pytest.raises(PluresError, match="rows of the train split"):
            replace(here, splits={**here.splits, "train": here.to(away).splits["train"]})
        bad = here.to(away).inputs.clone()
        bad[int(here.splits["test"][1][0])] = torch.nan
        with pytest.raises(PluresError, match="client 'b', test split"):
            replace(here.to(away), inputs=bad)


# --- results ----------------------------------------------------------------------------------------------------


def test_comparisons():
    """Trained and scored on the device, also with data that is already there."""
    seen, _ = clients()
    options = {"rounds": 1, "seeds": 1, "tune_rounds": 0, "learning_rates": (0.05,), "batch_size": 4, "steps": 1}

    def losses(data: Federation, device: str) -> list[list[float | None]]:
        execution = Execution("vmap", 3, False, "float64", device)
        found = compare(data, methods=[], model=model, execution=execution, **options)
        assert found.environment["device"] == device
        return [method.seeds[0].test.metrics["loss"] for method in found.methods]

    wanted = losses(seen, "cpu")
    with pretended() as away:
        for data, device in ((seen, away), (seen.to(away), "cpu")):
            np.testing.assert_allclose(losses(data, device), wanted, atol=1e-9)


def test_checkpoints_run_folders_and_personal_models(tmp_path):
    """Started on one device and resumed on the other; newcomers; models taken from a run on the device."""
    (tmp_path / "data").mkdir()
    for place, name in enumerate("abc"):
        x = np.random.default_rng(place).normal(size=(20, 8)).astype(np.float32)
        np.savez(tmp_path / "data" / f"{name}.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    spec = RunSpec(data=str(tmp_path / "data"), data_options={"standardize": True}, model="logistic", rounds=2)
    spec = spec.model_copy(update={"method": "ditto+threshold", "batch_size": 4, "unseen": ["c"]})
    known, new = spec.federation().hold_out(["c"])
    fixed = Execution("vmap", 2, False, "float64")
    wanted = spec.run(known, fixed)
    result = finish(fit(wanted, "run"), 0, new)

    class Stop(Callback):
        def on_round(self, record: RoundRecord) -> None:
            raise KeyboardInterrupt

    def begun_on(device: str, file: Path) -> Path:
        with pytest.raises(KeyboardInterrupt):
            fit(spec.run(known, replace(fixed, device=device)), "run", checkpoint=file, callbacks=[Stop()])
        return file

    here = begun_on("cpu", tmp_path / "here")
    with pretended() as away:
        there = begun_on(away, tmp_path / "there")
        run = spec.run(known, replace(fixed, device=away))
        reached = finish(fit(run, "run", checkpoint=here), 0, new)
        folder = RunFolder(tmp_path / "run")
        folder.write(run, spec, reached)
        folder.add(onboard(folder.run(away), new))
        examples = torch.rand(3, 8, dtype=torch.float64)
        given = [folder.predict(client, examples.to(away))[0] for client in ("a", "c")]
        personal = PersonalModel.of(run, "a", spec)
        assert personal.predict(examples.to(away))[0].tolist() == personal.predict(examples)[0].tolist()
        assert len(export(personal, tmp_path / "model", examples.to(away), to=("folder",))) == 2
    resumed = spec.run(known, fixed)
    finish(fit(resumed, "run", checkpoint=there), 0, new)
    same(snapshot(resumed), snapshot(wanted))
    for found, scores in ((reached.test, result.test), (reached.unseen, result.unseen)):
        assert found.metrics["loss"] == pytest.approx(scores.metrics["loss"])
    assert reached.details.confusion == result.details.confusion
    assert [folder.predict(client, examples)[0].tolist() for client in ("a", "c")] == [t.tolist() for t in given]
    torch.testing.assert_close(personal.predict(examples)[0], given[0], atol=1e-9, rtol=0)


def test_experiences_that_follow_one_another():
    training, reached = Training(rounds=1, steps=1, batch_size=4), []
    for where in (nullcontext("cpu"), pretended()):
        with where as device:
            stream = permuted(table().to(device), 2)
            execution = Execution("vmap", 3, False, "float64", device)
            factory = partial(NETWORKS["logistic"], (8,), 2)
            reached.append(follow(stream, factory, METHODS["ewc"](), training, execution=execution).values)
    np.testing.assert_allclose(reached[1], reached[0], atol=1e-9)


# --- devices that are not there ---------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(devices, "here", lambda: ["cpu", "cuda:0", "cuda:1"])
    assert [str(find(name)) for name in ("cpu", "cpu:0", "cuda", "cuda:1", "auto")] == [
        "cpu",
        "cpu",
        "cuda",
        "cuda:1",
        "cuda",
    ]
    for name, message in {
        "cuda:7": "no device 'cuda:7': PyTorch .* does not find it; this machine has cpu, cuda:0, cuda:1",
        "cdua": "no device 'cdua': did you mean 'cuda'",
        "gpu:0": "no device 'gpu:0': did you mean 'cuda'",
        "CUDA": "no device 'CUDA': did you mean 'cuda'",
        "": "no device '': this machine has",
        "xpu": "no device 'xpu': PyTorch .* does not find it",
        "meta": "no device 'meta': PyTorch .* does not find it",
        "mps": "device 'mps' has no double precision, which combining uploads needs: use 'cpu'",
    }.items():
        with pytest.raises(PluresError, match=message):
            Execution(device=name)
        with pytest.raises(PluresError, match=message):
            table().to(name)
    monkeypatch.setattr(devices, "here", lambda: ["cpu"])
    assert str(find("auto")) == "cpu"
    with pytest.raises(PluresError, match="no device 'cuda'"):
        compare(table(), methods=[], execution=Execution(device="cuda"))


def test_every_command_that_takes_a_device_refuses_one_that_is_not_there(monkeypatch, tmp_path):
    """Refused before it reads the data, for which there is no loader here."""
    monkeypatch.setattr(RunSpec, "federation", None)
    monkeypatch.setattr(devices, "here", lambda: ["cpu"])
    (tmp_path / "run.json").write_text(
        json.dumps({"spec": {"data": "heart", "unseen": ["va"]}, "execution": {}, "result": {}})
    )
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "s"\n[[data]]\nname = "heart"\n[[methods]]\nname = "ditto"\n[execution]\ndevice = "cuda"\n'
    )
    commands = ["run heart ditto --device cuda", "compare heart --method ditto --device cuda"]
    commands += [f"onboard {tmp_path} --device cuda", f"study {study}"]
    for command in commands:
        out = [] if command.startswith("onboard") else ["--out", str(tmp_path / "out")]
        found = CliRunner().invoke(app, [*command.split(), *out])
        assert isinstance(found.exception, PluresError), command
        assert "no device 'cuda': PyTorch" in str(found.exception), command
    assert "study.toml, line 7: execution.device" in str(found.exception)


def test_random_numbers_of_devices_in_use_are_left_as_they_were(monkeypatch):
    states, seeds = {0: "first", 1: "second"}, []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(torch.cuda, "get_rng_state", states.get)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: f"{state} again"}))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.get_rng_state()
    with seeded(3):
        assert torch.initial_seed() == 3
    assert states == {0: "first again", 1: "second again"}
    assert seeds == [3]
    assert torch.equal(torch.get_rng_state(), before)
