"""User-defined data and networks are named like methods: an object, or ``module:function`` with consent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import plures
from plures import Code, PluresError, RunFolder, RunSpec
from plures.evaluate import BASELINES
from plures.evaluate.own import METHOD, NETWORK, find_loader, find_network, network_kinds
from plures.federation import Federation
from plures.methods import fedavg
from plures.models import mlp
from plures.study import parse_study, plan_of
from saying import Says

OWN = """
from pathlib import Path
import numpy as np
from torch import nn
from plures.federation import from_arrays
from plures.methods import fedavg
from plures.tasks import Classification

Path(__file__).with_name("imported").touch()
FEW = 3

def hospitals(rows: int = 20, seed: int = 0):
    x = np.random.default_rng(seed).normal(size=(2 * rows, 3)).astype("float32")
    return from_arrays(x, (x[:, 0] > 0).astype(int), np.repeat(["Basel", "Graz"], rows), name="hospitals")

def numbers():
    return [1, 2]

def net(features, outputs, width: int = 4):
    return nn.Sequential(nn.Linear(features[0], width), nn.ReLU(), nn.Linear(width, outputs))

def fixed(bias: bool = True):
    return nn.Linear(3, 2, bias=bias)

ready = nn.Linear(3, 2)
fed = hospitals()
weighted = Classification(class_weights={"1": 3})

def method():
    return fedavg()
"""
CODE = Code.typed("mine:hospitals", "mine:numbers", "mine:net", "mine:fixed", "mine:ready", "mine:fed", "mine:FEW")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module that reports when it is imported."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def mine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same on the path, as in a user's program."""
    monkeypatch.syspath_prepend(home)
    return home


def test_a_name_of_a_catalogue_is_its_entry_and_needs_no_consent():
    assert METHOD.find("fedavg") is fedavg
    assert NETWORK.find("mlp") is mlp
    with pytest.raises(
        PluresError, match=r"no network 'mpl'; did you mean 'mlp'\? \(your own is named module:function"
    ):
        NETWORK.find("mpl")


def test_data_of_ones_own_are_what_the_function_returns(mine: Path):
    build, options = find_loader("mine:hospitals", CODE)
    assert options == {"rows": int, "seed": int}
    federation = build(rows=30)
    assert (federation.clients, len(federation.inputs)) == (("Basel", "Graz"), 60)
    spec = RunSpec(data="mine:hospitals", data_options={"rows": 10, "donate": 0.5})
    donated = spec.federation(CODE)
    assert (len(donated.inputs), len(donated.public)) == (20, 6)  # 6 of 10 rows train, of which each gives 3
    assert find_loader("mine:fed", CODE)[0]().clients == ("Basel", "Graz")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("mine:hospitals", {"row": 3}, r"data set 'mine:hospitals'.* no parameter 'row'; did you mean 'rows'"),
        ("mine:numbers", {}, r"data set 'mine:numbers': its function returns .*; let it return a Federation"),
        ("mine:FEW", {}, r"data set 'mine:FEW': 3 is not a function that returns a Federation"),
        ("mine:hospital", {}, r"data set 'mine:hospital' is code, not a data set of the catalogue.* with your consent"),
    ],
)
def test_data_that_cannot_be_are_refused(mine: Path, data: str, options: dict[str, object], message: str):
    with pytest.raises(PluresError, match=message):
        RunSpec(data=data, data_options=options).federation(CODE)


def shapes(model: object) -> list[tuple[int, ...]]:
    assert callable(model)
    module = model if isinstance(model, nn.Module) else model()
    return [tuple(p.shape) for p in module.parameters()]


def test_a_network_of_ones_own_is_a_module_or_a_function_that_gets_what_it_asks_for(mine: Path):
    federation = find_loader("mine:fed", CODE)[0]()
    assert shapes(find_network("mine:net", federation, {"width": 7}, CODE)) == [(7, 3), (7,), (2, 7), (2,)]
    assert shapes(find_network("mine:fixed", federation, {"bias": False}, CODE)) == [(2, 3)]
    assert find_network("mine:ready", federation, {}, CODE) is sys.modules["mine"].ready
    assert [*network_kinds("mine:net", CODE)] == ["width"]
    for name, options, message in (
        ("mine:ready", {"width": 1}, "network 'mine:ready' is a module, which has no options: leave out width"),
        ("mine:FEW", {}, "network 'mine:FEW': 3 is neither a module nor a function that returns one"),
        ("mine:fixed", {"width": 1}, "network 'mine:fixed'.* no parameter 'width'"),
    ):
        with pytest.raises(PluresError, match=message):
            find_network(name, federation, options, CODE)


def test_the_command_line_finds_all_three_in_the_current_folder(says: Says, home: Path):
    words = ["--rounds", 1, "--data", "rows=30", "--model-set", "width=5"]
    status, told = says("run", "mine:hospitals", "mine:method", "--model", "mine:net", *words)
    assert status == 0, told
    folder = RunFolder(home / "runs" / "run", Code.of("mine:hospitals", "mine:method", "mine:net"))
    assert folder.spec().data_options == {"rows": 30}
    again = folder.run()
    assert again.bound.initial["model"]["0.weight"].shape == (5, 3)
    assert len(again.federation.inputs) == 60
    wanted = folder.predict("Basel")[0]
    status, told = says("predict", folder.path, "--client", "Basel", "--allow-code", "mine:method")
    assert (status, "network 'mine:net' is code, not a network of the catalogue" in told) == (2, True), told
    allowed = [word for name in folder.code.allowed for word in ("--allow-code", name)]
    assert says("predict", folder.path, "--client", "Basel", "--out", "p.csv", *allowed)[0] == 0
    assert wanted.shape[1] == 2
    assert says("client", folder.path, "Basel")[0] == 2
    assert says("client", folder.path, "Basel", "--allow-code", "mine:hospitals")[0] == 0
    assert str(home) not in sys.path


def test_a_comparison_takes_names_and_objects_alike(mine: Path):
    work = {"rounds": 1, "seeds": 1, "tune_rounds": 0, "learning_rates": (0.1,)}
    named = plures.compare("mine:hospitals", ["mine:method"], model="mine:fixed", **work)
    own = sys.modules["mine"]
    objects = plures.compare(own.hospitals(), [own.method], model=own.fixed, **work)
    values = [m.seeds[0].test.metrics for m in named.methods], [m.seeds[0].test.metrics for m in objects.methods]
    assert values[0] == values[1]


def test_a_task_of_ones_own_is_named_and_found_as_the_rest(says: Says, home: Path):
    words = ["--rounds", 1, "--model", "mine:fixed"]
    status, told = says("run", "mine:hospitals", "fedavg", "--task", "mine:weighted", *words)
    assert status == 0, told
    folder = RunFolder(home / "runs" / "run", Code.of("mine:hospitals", "mine:fixed", "mine:weighted"))
    assert folder.spec().task == "mine:weighted"
    assert folder.run().federation.task.class_weights == (1.0, 3.0)
    assert folder.fitted().task.class_weights == (1.0, 3.0)  # stored as data, so that no code is needed to predict
    with pytest.raises(PluresError, match=r"task 'mine:weighted' is code, not a task of the catalogue, .* consent"):
        RunFolder(folder.path, Code.of("mine:hospitals", "mine:fixed")).run()


def test_a_comparison_takes_a_task_by_name_or_as_an_object(mine: Path):
    work = {"model": "mine:fixed", "rounds": 2, "seeds": 1, "tune_rounds": 0, "learning_rates": (0.1,)}
    own = Code.of("mine:weighted", "mine:hospitals", "mine:FEW")
    weighted = own.load("mine:weighted", "task")
    federation = find_loader("mine:hospitals", own)[0]()
    found = [
        [method.seeds[0].test.metrics["loss"] for method in result.methods]
        for result in (
            plures.compare("mine:hospitals", ["fedavg"], task="mine:weighted", **work),
            plures.compare("mine:hospitals", ["fedavg"], task=weighted, **work),
            plures.compare(federation, ["fedavg"], task="mine:weighted", **work),
            plures.compare(federation.with_task(weighted), ["fedavg"], **work),
            plures.compare(federation, ["fedavg"], **work),
        )
    ]
    assert found[0] == found[1] == found[2] == found[3] != found[4]
    with pytest.raises(
        PluresError, match=r"task 'mine:FEW': 3 is neither a plures.Task nor a function that returns one"
    ):
        plures.compare(federation, ["fedavg"], task="mine:FEW", **work)
    with pytest.raises(PluresError, match=r"federation 'hospitals': a regression cannot be learned from data"):
        plures.compare(federation, ["fedavg"], task="regression", **work)


def attempts(home: Path) -> dict[str, tuple[str, Callable[[], object]]]:
    federation = plures.load("heart")
    data = "[[data]]\nname = {data}\nmodel = {model}\n[[budgets]]\nrounds = 1\n[tuning]\ntrials = 0\n"
    study = 'name = "s"\n[[methods]]\nname = "fedavg"\n' + data

    def read(data: str, model: str) -> object:
        return parse_study(study.format(data=repr(data), model=repr(model)), "study.toml", home)

    return {
        "data": ("data set", lambda: RunSpec(data="mine:hospitals").federation()),
        "network": ("network", lambda: RunSpec(data="heart", model="mine:net").network(federation)),
        "task": ("task", lambda: RunSpec(data="heart", task="mine:weighted").federation()),
        "task of a run": ("task", lambda: RunSpec(data="heart", task="mine:weighted").run(federation)),
        "run": ("network", lambda: RunSpec(data="heart", model="mine:net").run(federation)),
        "study data": ("data set", lambda: read("mine:hospitals", "mlp")),
        "study network": ("network", lambda: read("heart", "mine:net")),
    }


@pytest.mark.parametrize("attempt", attempts(Path()))
def test_a_name_that_is_read_runs_nothing(mine: Path, attempt: str):
    kind, work = attempts(mine)[attempt]
    with pytest.raises(PluresError, match=rf"{kind} 'mine:\w+' is code, not a {kind} of the catalogue, .* consent"):
        work()
    assert not (mine / "imported").exists()


def test_a_study_knows_a_network_of_ones_own_by_what_it_does(mine: Path):
    text = (
        'name = "s"\n[[methods]]\nname = "fedavg"\n[[data]]\nname = "mine:hospitals"\nmodel = "mine:net"\n'
        "model_options = { width = 3 }\n[[budgets]]\nrounds = 1\n[tuning]\ntrials = 0\nlr = [0.1]\n"
    )

    def units() -> list[str]:
        return [unit.id for unit in plan_of(parse_study(text, "study.toml", mine, code=CODE), "grid").units]

    before = units()
    assert units() == before
    sys.modules["mine"].net = lambda features, outputs, width=4: nn.Linear(features[0], outputs)
    assert not {*units()} & {*before}


def test_an_object_goes_wherever_a_name_goes():
    federation = plures.load("heart")
    assert isinstance(federation, Federation)
    torch.manual_seed(0)
    result = plures.compare(
        federation, [fedavg], model=nn.Linear(federation.features[0], 2), rounds=1, seeds=1, tune_rounds=0
    )
    assert [m.name for m in result.methods] == [*BASELINES]
