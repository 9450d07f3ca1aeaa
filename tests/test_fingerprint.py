"""Results are reused only for the same run: facts of data, models, methods and code, and their comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import plures
from plures.evaluate import compare, fit
from plures.federation import SPLITS
from plures.files import read, write
from plures.method import SGD, Method, Personal, Phase, Shared, task_loss
from plures.methods import METHODS, ditto, fedavg, fedprox
from plures.models import Network, build
from plures.run import Constant, Execution, Run, Training, fingerprint
from plures.run.facts import facts
from plures.run.fingerprint import difference, of_data, of_method, of_network

FAST = Execution("vmap", 8, False, "float32")
BUDGET = {"rounds": 2, "seeds": 1, "tune_rounds": 1, "learning_rates": (0.1, 0.3), "execution": FAST, "batch_size": 8}
CODE = """
import torch
from plures.method import Method, Phase, Shared, task_loss

STRENGTH = 0.5
class Scale:
    power = 2
    def of(self, value):
        return STRENGTH * value ** self.power

def pull(x):
    return Scale().of(torch.stack([t.abs().sum() for t in x.model.values()]).sum())

def own(lam: float = 0.5):
    def near(x, received, batch):
        return task_loss(x.model, batch) + lam * pull(x)

    return Method(layout={"model": Shared()}, schedule=(Phase(objective=near),))
"""


def people(seed: int = 0, split: int = 0, clients: int = 4):
    generator = np.random.default_rng(seed)
    client = np.repeat(np.arange(clients), 20)
    x = generator.normal(size=(len(client), 4)).astype(np.float32)
    y = ((x[:, 0] + (-1.0) ** client * x[:, 1]) > 0).astype(np.int64)
    return plures.from_arrays(x, y, [f"p{c}" for c in client], name="people", seed=split)


def net(width: int = 4) -> nn.Module:
    return plures.with_roles(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)), head="2")


def own(text: str = CODE) -> Callable[..., Method]:
    """The method of a module with this text, imported afresh."""
    module: dict[str, object] = {"__name__": "mine"}
    exec(compile(text, "mine.py", "exec"), module)
    method = module["own"]
    assert callable(method)
    return method


# A comparison in a folder ---------------------------------------------------------------------------------------


def other_rows():
    data = people()
    inputs = data.inputs.clone()
    inputs[data.splits["train"][1][0], 0] += 1
    return replace(data, inputs=inputs)


class Net(nn.Module):
    """A network of the user's own."""

    def __init__(self, bend: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> None:
        super().__init__()
        self.bend, self.first, self.last = bend, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.bend(self.first(x)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data": other_rows()}, "the data differ: client 'p1' has other training rows"),
        ({"data": people(split=1)}, r"client 'p0' \(and 3 more clients\) has other training rows"),
        ({"data": people(clients=5)}, "client 'p4' is only here"),
        ({"data": replace(people(), metadata={"age": (1, 2, 3, 4)})}, r"the data's metadata column 'age' is \(1, 2, 3"),
        ({"methods": [own(CODE.replace("STRENGTH = 0.5", "STRENGTH = 0.1"))]}, "STRENGTH is 0.5 there and 0.1 here"),
        ({"methods": [own(CODE.replace("power = 2", "power = 3"))]}, "power is 2 there and 3 here"),
        ({"methods": [own(CODE.replace("abs()", "square()"))]}, r"the code of .*pull \(function pull\) differ"),
        ({"methods": [own(CODE.replace("+ lam", "- lam"))]}, r"the code of .*objective \(function near\) differ"),
        ({"methods": [own(CODE.replace("float = 0.5", "float = 0.1"))]}, "parameter lam is 0.5 there and 0.1 here"),
        ({"model": partial(net, 5)}, r"leaf 0.weight is float32 \(4, 4\) there and float32 \(5, 4\) here|Linear"),
        ({"model": lambda: Net(torch.tanh)}, "the model's"),
        ({"epochs": 2.0}, "the training's epochs is 1.0 there and 2.0 here"),
        ({"unseen": ["p3"]}, "client 'p3' is only there"),
        ({"every": 2}, "read_validation_every is 1 there and 2 here"),
        ({"execution": replace(FAST, precision="float64")}, "type of the inputs is float32 there and float64 here"),
    ],
)
def test_a_comparison_comes_back_for_the_same_question_alone(tmp_path, changed, words):
    asked = {"data": people(), "methods": [own()], "model": net, **BUDGET}
    file = tmp_path / "comparison.json"
    first = {**asked, "methods": [own()]}
    claimed(first, tmp_path)
    before = file.read_text()
    claimed({**asked, "methods": [own("\n\n# a comment\n" + CODE)], "epochs": 1.0}, tmp_path)
    assert file.read_text() == before, "the same question, of functions and data made anew"
    with pytest.raises(plures.PluresError, match=rf"holds another comparison: .*{words}.*; choose another folder"):
        claimed({**asked, **changed}, tmp_path)


class StopError(Exception):
    pass


def claimed(asked, out: Path) -> None:
    """A comparison up to its first round."""

    def stop(stage):
        raise StopError

    with pytest.raises(StopError):
        compare(**asked, out=out, listener=stop)


def test_what_is_done_comes_back_without_a_round(tmp_path):
    asked = {"data": people(), "methods": ["ditto", own()], "model": net, "unseen": ["p3"], **BUDGET}
    one = compare(**asked, out=tmp_path)
    points = []
    again = compare(
        **{**asked, "methods": ["ditto", own()], "data": people()},
        out=tmp_path,
        listener=lambda s: points.append(s.point),
    )
    assert again == one
    assert points
    assert not any(points), "every run was read from the folder"
    moved = people()
    changed = moved.inputs.clone()
    changed[moved.splits["test"][3]] += 1
    with pytest.raises(
        plures.PluresError, match="of the clients held out, the data differ: client 'p3' has other test"
    ):
        compare(**{**asked, "data": replace(moved, inputs=changed)}, out=tmp_path)


def test_trials_and_runs_that_were_put_into_the_folder_are_refused(tmp_path):
    asked = {"data": people(), "methods": ["ditto"], "model": net, **BUDGET}
    compare(**asked, out=tmp_path / "a")
    compare(**{**asked, "data": people(1)}, out=tmp_path / "b")
    for kind, words in (("trials", "is a trial of another comparison"), ("runs", "holds another run")):
        mixed = tmp_path / f"mixed {kind}"
        mixed.mkdir()
        (mixed / kind).symlink_to(tmp_path / "b" / kind)
        with pytest.raises(plures.PluresError, match=f"{words}: the data differ: client 'p0'"):
            compare(**asked, out=mixed)


def test_results_without_their_question_are_refused(tmp_path):
    asked = {"data": people(), "methods": ["ditto"], "model": net, **BUDGET}
    compare(**asked, out=tmp_path)
    file = tmp_path / "comparison.json"
    told = json.loads(file.read_text())
    del told["question"], told["sha256"]
    file.write_text(json.dumps(told))
    with pytest.raises(plures.PluresError, match="an earlier version of plures wrote"):
        compare(**asked, out=tmp_path)
    file.unlink()
    with pytest.raises(plures.PluresError, match=r"results of another comparison \(results.json\)"):
        compare(**asked, out=tmp_path)


# Checkpoints ----------------------------------------------------------------------------------------------------


class Warmup:
    """A schedule of the user's own, with a state and no repr."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def __call__(self, round: int, rounds: int) -> float:
        return min(1.0, (round + 1) / self.rounds)


def small(**changed) -> Run:
    given = {
        "federation": people(),
        "model": net,
        "method": ditto(lam=1.0),
        "training": Training(rounds=4, batch_size=8),
    }
    return Run(**{**given, "execution": FAST, **changed})


def warm(**changed) -> Run:
    return small(**{"training": Training(4, 8, schedule=Warmup(2)), **changed})


def stopped(run: Run, file: Path) -> None:
    """Leave the checkpoint of a run that was killed in its second round."""

    def stop(point):
        if point.round == 2:
            raise StopError

    with pytest.raises(StopError):
        fit(run, "run", checkpoint=file, checkpoint_every=1, progress=stop)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"federation": people(split=1)}, "has other training rows"),
        ({"method": ditto(lam=0.5)}, r"the method's schedule\[0\].objective.lam is 1.0 there and 0.5 here"),
        ({"training": Training(4, 8, schedule=Warmup(3))}, "schedule.rounds is 2 there and 3 here"),
        ({"training": Training(4, 8, schedule=Constant())}, "schedule is Warmup there and Constant here"),
        ({"seed": 1}, "the values of the model's leaf 0.weight"),
        ({"model": partial(net, 3)}, "the model's network.0 is Linear"),
        ({"participation": plures.Uniform(0.5)}, "the participation's rule is Full there and Uniform here"),
        ({"execution": replace(FAST, precision="float64")}, "type of the inputs is float32 there and float64 here"),
    ],
)
def test_a_checkpoint_of_another_question_is_refused(tmp_path, changed, words):
    file = tmp_path / "checkpoint.safetensors"
    stopped(warm(), file)
    with pytest.raises(plures.PluresError, match=rf"is a checkpoint of another run: .*{words}.*; choose another"):
        fit(warm(**changed), "run", checkpoint=file)
    with pytest.raises(plures.PluresError, match="every is 1 there and 2 here"):
        fit(warm(), "run", checkpoint=file, every=2)


def test_the_machine_is_no_part_of_the_question(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    stopped(warm(), file)
    again = warm(execution=replace(FAST, backend="loop", chunk=1))
    assert fit(again, "run", checkpoint=file).run.round == 4


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    run = small()
    stopped(run, file)
    tensors, about = read(file)
    write(file, tensors, {**about, "question": {**about["question"], "versions": {"plures": "0.0.1"}}})
    with pytest.raises(plures.PluresError, match=r"the version of plures is 0\.0\.1 there and"):
        fit(run, "run", checkpoint=file)
    del about["question"]
    write(file, tensors, {**about, "fingerprint": {"method": "run"}})
    with pytest.raises(plures.PluresError, match="an earlier version of plures wrote, without saying for which data"):
        fit(run, "run", checkpoint=file)


# Facts ----------------------------------------------------------------------------------------------------------


def test_facts_are_the_same_in_every_process(tmp_path):
    """With any hash seed; for every method of the catalogue, a user's method, a network and data."""
    (tmp_path / "mine.py").write_text(CODE)
    script = textwrap.dedent(
        """
        import json, mine, plures
        from plures.methods import METHODS
        from plures.models import Network, build, default_model
        from plures.run.fingerprint import of_data, of_method, of_network
        told = {name: of_method(entry(), name, entry.given({})) for name, entry in METHODS.items()}
        data = plures.load("heart")
        told |= {"own": of_method(mine.own(), "own", {"names": {"b", "a", "c"}}), "data": of_data(data)}
        told["network"] = of_network(Network(build(default_model(data), 0)))
        print(json.dumps(told))
        """
    )
    found = []
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert " at 0x" not in json.dumps(found[0])
    here = {name: of_method(entry(), name, entry.given({})) for name, entry in METHODS.items()}
    assert {name: found[0][name] for name in METHODS} == here


def nested(depth: int):
    def outer():
        def inner(value):
            return value * depth

        return inner

    return outer


SHARED = {"b": 1, "a": 2}


def reads_shared():
    return SHARED


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x + 1, lambda x: x + 1.0),
        (lambda x, y=1: x, lambda x, y=2: x),
        (lambda x, *, y=1: x, lambda x, *, y=2: x),
        (nested(1), nested(2)),
        (partial(nested, 1), partial(nested, 2)),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.relu, torch.tanh),
        (SGD(0.1), SGD(0.2)),
        (Warmup(2).__call__, Warmup(3).__call__),
        ({"a": 1}, {"a": 2}),
        ([1, [2]], [1, [3]]),
        ({1, 2}, {1, 3}),
        (fedprox(mu=0.1), fedprox(mu=0.2)),
        (Method(layout={"model": Shared()}), Method(layout={"model": Personal()})),
        (lambda x: x in {"a", "b"}, lambda x: x in {"a", "c"}),
        (lambda x: [v for v in x if v > 1], lambda x: [v for v in x if v > 2]),
        ("x" * 500, "x" * 499 + "y"),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (nn.MultiheadAttention(4, 1), nn.MultiheadAttention(4, 2)),
    ],
)
def test_what_differs_has_other_facts(one, other):
    assert facts(one) != facts(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}),
        ({"y", "x"}, {"x", "y"}),
        (nested(1), nested(1)),
        (Warmup(2), Warmup(2)),
        (torch.arange(4).float()[::2], torch.tensor([0.0, 2.0])),
        (torch.zeros(2).requires_grad_(), torch.zeros(2)),
        (np.float64(0.5), 0.5),
        (ditto(), METHODS["ditto"]()),
    ],
)
def test_what_is_equal_has_equal_facts(one, other):
    assert facts(one) == facts(other)


def test_what_refers_to_itself_is_told():
    class Loop:
        def __init__(self) -> None:
            self.me = self

    told = facts(Loop())
    assert told["value.me"] == "the same as value"
    assert facts(reads_shared)["value.SHARED.a"] == "2"


def test_facts_of_a_network_do_not_depend_on_its_use():
    one, two = (
        Network(build(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)), 3)) for _ in "ab"
    )
    two(two.leaves(), torch.ones(3, 4), train=True, key=torch.tensor(7))
    assert of_network(one) == of_network(two)
    third = Network(build(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)), 4))
    assert "the values of the model's leaf 0.weight (float32 (4, 4)) differ" in str(
        difference({"model": of_network(one)}, {"model": of_network(third)})
    )
    assert difference({"model": of_network(one)}, {"model": of_network(third)}, values=False) is None


def test_a_frozen_backbone_is_another_model():
    def built(trains: bool) -> Network:
        torch.manual_seed(0)
        module = net()
        module[0].weight.requires_grad_(trains)
        return Network(module)

    said = difference({"model": of_network(built(False))}, {"model": of_network(built(True))})
    assert said == "the model's leaf 0.weight is float32 (4, 4) frozen there and float32 (4, 4) here"


def test_data_are_told_by_client_and_split():
    data = people()
    assert of_data(data) == of_data(people()) == of_data(data.to("cpu", torch.float32))
    assert of_data(data.to("cpu", torch.float64)) != of_data(data)
    for split in ("train", "validation", "test"):
        targets = data.targets.clone()
        row = int(data.splits[split][2][0])
        targets[row] = 1 - targets[row]
        old, new = of_data(data), of_data(replace(data, targets=targets))
        assert {key for key in old if old[key] != new[key]} == {split}
        said = difference({"data": old}, {"data": new})
        assert said == f"the data differ: client 'p2' has other {'training' if split == 'train' else split} rows"
    given = data.donate(0.2)
    assert of_data(given)["public rows"] != of_data(data)["public rows"]
    assert of_method(fedavg(), "a") != of_method(fedavg(), "b")
    assert of_method(Method(schedule=(Phase(objective=lambda x, r, b: task_loss(x.model, b)),)), "a") != of_method(
        Method(schedule=(Phase(objective=lambda x, r, b: 2 * task_loss(x.model, b)),)), "a"
    )


def test_many_clients_share_digests_and_a_group_is_named(monkeypatch):
    """With more clients than digests, groups of neighbours share one: of names, sizes, rows, inputs and targets."""
    monkeypatch.setattr(fingerprint, "MOST_DIGESTS", 3)
    owner = np.arange(7).repeat(8)
    x = np.random.default_rng(0).normal(size=(56, 2))
    whole = plures.from_arrays(x, np.arange(56) % 2, owner)
    told = fingerprint.of_data(whole)
    assert [len(told[split].split()) for split in SPLITS] == [3, 3, 3]
    ask = {fingerprint.DATA: told}
    assert fingerprint.difference(ask, {fingerprint.DATA: fingerprint.of_data(whole)}) is None
    other = replace(whole, inputs=whole.inputs.clone())
    other.inputs[whole.splits["train"][4][0], 1] += 1
    found = fingerprint.difference(ask, {fingerprint.DATA: fingerprint.of_data(other)})
    assert found == "the data differ: one of the clients '3' to '5' has other training rows"
    train = whole.splits["train"]
    moved = replace(train, offsets=train.offsets + torch.tensor([0, 1, 0, 0, 0, 0, 0, 0]))
    found = fingerprint.difference(
        ask, {fingerprint.DATA: fingerprint.of_data(replace(whole, splits={**whole.splits, "train": moved}))}
    )
    assert found == "the data differ: one of the clients '0' to '2' has other training rows"
    fewer = {fingerprint.DATA: fingerprint.of_data(whole.subset(range(6)))}
    assert fingerprint.difference(ask, fewer).startswith("the data differ: one of the clients '0' to '2' is only there")
