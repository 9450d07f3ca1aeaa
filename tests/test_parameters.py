"""Parameters of methods, networks and data: each is used as intended, or refused in one line that names it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plures import PluresError, PluresWarning, Run, Training, load
from plures.evaluate import Code, RunSpec
from plures.evaluate.spec import find_method
from plures.method import Generated, Phase, Predict, Setting, body, head
from plures.methods import (
    METHODS,
    Entry,
    cfl,
    cold_start,
    ditto,
    fedala,
    fedbabu,
    fedbn,
    fedopt,
    fedper,
    fedrep,
    ifca,
    perfedavg,
    personal_moe,
    pfedhn,
)
from plures.models import Network, char_lstm, gcn, mlp, with_adapters, with_lora
from plures.run import Execution
from plures.signature import arguments, fits, fitted
from problems import EXACT, quadratic

HEART = Setting.of(load("heart"))


def travelling(method, model=lambda: mlp((13,), 2)):
    """Leaves of the model that are uploaded."""
    bound = method.bind(Network(model()), HEART)
    return {path for block in bound.blocks for slot, path in bound.travelling(block) if slot == "model"}


def test_a_role_is_named_or_selected():
    assert fedper("body") == fedper(body)
    assert fedper("head") == fedper()
    every = set(mlp((13,), 2).state_dict())
    chosen = travelling(fedper("body"))
    assert chosen
    assert chosen | travelling(fedper(head)) == every
    assert not chosen & travelling(fedper(head))
    with pytest.raises(PluresError, match=r"'nobody' matches no leaf .*with_roles"):
        travelling(fedper("nobody"))
    bound = fedala("body").bind(Network(mlp((13,), 2)), HEART)
    assert set(bound.initial["weight"]) == set(bound.initial["last"]) == every - chosen


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedper(5), "'fedper': personal=5; give text or a Selector"),
        (lambda: fedala(layers=["head"]), "'fedala': layers=.*; give text or a Selector"),
        (lambda: ditto(lam="abc"), "'ditto': lam='abc'; give a number"),
        (lambda: ditto(lam=float("nan")), "'ditto': lam=nan; give a number"),
        (lambda: ditto(lam=True), "'ditto': lam=True; give a number"),
        (lambda: ifca("two"), "'ifca': clusters='two'; give a whole number"),
        (lambda: ifca(1.5), "'ifca': clusters=1.5; give a whole number"),
        (lambda: (ifca + fedrep)(clusters="two"), "'ifca.fedrep': clusters='two'; give a whole number"),
        (lambda: fedopt(betas=0.9), r"'fedopt': betas=0.9; give a list \[a number, a number\]"),
        (lambda: fedopt(betas=[0.9, "x"]), r"give a list \[a number, a number\]"),
        (lambda: cold_start("ditto"), r"'cold_start': base='ditto'; give a Method or None"),
        (
            lambda: METHODS["fedsimclr"](views="crops"),
            r"'fedsimclr': views='crops'; give a function",
        ),
        (lambda: METHODS["personal_moe"](frozen="yes"), "frozen='yes'; give true or false"),
        (lambda: METHODS["scaffold"](option=2), "option=2; give 'I' or 'II'"),
        (lambda: fedrep(head_epochs=-1), "phase epochs=-1: give"),
        (lambda: fedrep(body_steps=-1), "phase steps=-1: give"),
        (lambda: fedbabu(epochs=-1), "phase epochs=-1: give"),
        (lambda: perfedavg(adapt_steps=-1), "phase steps=-1: give"),
        (lambda: Phase(epochs=float("inf")), "phase epochs=inf: give a finite number"),
        (lambda: pfedhn(size=-2), "size=-2: give"),
        (lambda: pfedhn(size=0), "size=0: give"),
        (lambda: pfedhn(hidden=(-1,)), r"hidden=\(-1,\): give the units of each layer"),
        (lambda: pfedhn(hidden="100"), r"hidden='100'; give a list \[a whole number, \.\.\.\]"),
        (lambda: Generated("country"), r"columns='country': give a tuple of columns, \('country',\)"),
    ],
)
def test_a_parameter_that_cannot_be(make, message):
    with pytest.raises(PluresError, match=message):
        make()


def test_what_the_command_line_writes_is_what_python_takes():
    assert fedopt(betas=[0.8, 0.9]).combine == fedopt(betas=(0.8, 0.9)).combine
    assert pfedhn(columns="country") == pfedhn(columns=["country"]) == pfedhn(columns=("country",))
    assert pfedhn(hidden=8) == pfedhn(hidden=(8,))
    assert cold_start(columns="country").layout == cold_start(columns=("country",)).layout
    assert isinstance(cold_start(ditto(np.float32(2))).predict, Predict)
    with pytest.warns(PluresWarning, match="never splits"):
        cfl(eps2=float("inf"))


@pytest.mark.parametrize("entry", METHODS.values(), ids=METHODS)
def test_every_default_and_value_to_try_is_of_its_type(entry: Entry):
    for name, parameter in inspect.signature(entry.build, eval_str=True).parameters.items():
        assert fits(parameter.default, parameter.annotation), name
    for name, values in entry.space.items():
        assert [arguments(entry.name, entry.build, **{name: v}).arguments[name] for v in values] == list(values)


def test_functions_whose_annotations_are_missing_take_anything():
    def mine(a, *more: int, b: "Nowhere" = 1, **rest: str):  # type: ignore[no-untyped-def]  # noqa: F821, UP037
        return a

    assert arguments("mine", mine, "x", 1, 2, b="y", c="z").args == ("x", 1, 2)


def spec(**fields):
    return RunSpec(data="heart", **fields)


def test_options_of_a_network():
    federation = load("heart")
    narrow = spec(model="mlp", model_options={"hidden": [7]}).network(federation)()
    assert [m.out_features for m in narrow.modules() if isinstance(m, nn.Linear)] == [7, 2]
    for options, message in (({"hidden": "x"}, "network 'mlp': hidden='x'"), ({"depth": 2}, "network 'mlp': .*depth")):
        with pytest.raises(PluresError, match=message):
            spec(model="mlp", model_options=options).network(federation)
    with pytest.raises(PluresError, match="name the model"):
        spec(model_options={"hidden": 7}).network(federation)


def test_donated_rows_are_those_of_the_clients_that_take_part():
    whole, all_give = load("heart"), spec(data_options={"donate": 0.1}).federation()
    assert torch.equal(all_give.public, whole.donate(0.1).public)
    part = spec(data_options={"donate": 0.1}, unseen=["va"]).federation()
    seen = whole.hold_out(["va"])[0].donate(0.1)
    assert torch.equal(part.public, seen.public)
    assert part.clients == whole.clients
    for client, rows in zip(part.clients, part.splits["train"], strict=True):
        origin = whole if client == "va" else seen
        assert torch.equal(rows, origin.splits["train"][origin.index(client)])
    with pytest.raises(PluresError, match="donate='abc': give the share"):
        spec(data_options={"donate": "abc"}).federation()


@pytest.mark.parametrize("command", [("run", "heart", "fedavg"), ("compare", "heart")], ids=["run", "compare"])
def test_the_command_line_passes_options_to_the_network(command, says, tmp_path):
    status, told = says(*command, "--model", "mlp", "--model-set", "depth=2", "--out", tmp_path / "r")
    assert status == 2
    assert "network 'mlp'" in told
    assert "depth" in told


def test_messages_name_the_remedy():
    tokens = replace(HEART, example=HEART.example.long())
    with pytest.raises(PluresError, match=r"personal_moe: the linear gate .*mixture_of_experts\(experts, gate\)"):
        personal_moe().prepare(lambda: mlp((13,), 2), tokens)
    for model in (gcn((31, 30), 7), char_lstm((80,), 76)):
        with pytest.raises(PluresError, match=r"no layer to adapt: .*gcn with adapter=8"):
            with_lora(model)
        with pytest.raises(PluresError, match=r"no layer to adapt: .*gcn with adapter=8"):
            with_adapters(model, 8)
    with pytest.warns(PluresWarning, match="fedbn is uniform FedAvg"):
        Run(quadratic(), nn.Linear(1, 1), fedbn(), Training(rounds=0), execution=EXACT)


# One of two parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("fedavg_ft", {"epochs": 3, "steps": 5}, "fedavg_ft: epochs=3, steps=5: give one of the two"),
        ("wise_ft", {"epochs": 2.5, "steps": 0}, "wise_ft: epochs=2.5, steps=0: give one of the two"),
        ("fedrep", {"head_epochs": 1, "head_steps": 2}, "fedrep: head_epochs=1, head_steps=2: give one of the two"),
        ("fedrep", {"body_epochs": 0, "body_steps": 2}, "fedrep: body_epochs=0, body_steps=2: give one of the two"),
    ],
)
def test_passes_and_steps_are_not_given_together(name, given, said):
    entry = METHODS[name]
    with pytest.raises(PluresError, match=said):
        entry(**given)
    with pytest.raises(PluresError, match=said):
        entry.fixing(**given)
    (first, one), (second, other) = given.items()
    with pytest.raises(PluresError, match="give one of the two"):
        entry.fixing(**{second: other})(**{first: one})


def test_passes_are_not_tuned_where_steps_are_given():
    assert METHODS["fedavg_ft"].fixing(steps=5).space == {}
    assert METHODS["fedrep"].fixing(body_steps=5).space == METHODS["fedrep"].space


def test_every_pair_of_passes_and_steps_is_known():
    """If a method has both ``steps`` and ``epochs``, ``steps`` replaces ``epochs``, and its entry says so."""
    for entry in METHODS.values():
        pairs = {n: n.replace("steps", "epochs") for n in entry.defaults if n.split("_")[-1] == "steps"}
        assert dict(entry.instead) == {n: other for n, other in pairs.items() if other in entry.defaults}, entry.name


@pytest.mark.parametrize(
    "given",
    [np.array([0.1, 0.2]), (one for one in (0.1, 0.2)), {0.1: "a", 0.2: "b"}.keys(), [np.float64(0.1), 0.2]],
    ids=["array", "generator", "keys", "list"],
)
def test_whatever_has_entries_in_an_order_is_a_list(given):
    assert list(fitted("compare", "learning_rates", given, Sequence[float] | None)) == [0.1, 0.2]


def test_a_set_has_no_order():
    with pytest.raises(PluresError, match=r"compare: methods=\{'ditto'\}; give a list"):
        fitted("compare", "methods", {"ditto"}, Sequence[str])


def test_a_device_is_its_name():
    assert Execution(device=torch.device("cpu")).device == "cpu"  # type: ignore[arg-type]


def test_a_type_that_does_not_say_what_it_takes():
    with pytest.raises(PluresError, match="the class dict does not say what its parameters are"):
        find_method(dict)()


def test_a_package_that_a_method_imports_is_missing(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluresError, match="'no_such_package' is not on the path; needs_more imports it"):
        find_method("needs_more:own", Code.of("needs_more:own"))
