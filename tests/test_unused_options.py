"""An option is used or refused: never taken and forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.evaluate.spec import RunSpec
from plures.run import BySize, Execution, Full, Joint, Training, Uniform
from plures.study.plan import plan_of
from plures.study.reading import parse_study
from plures.tables.column import Number
from plures.tables.schema import Schema
from problems import quadratic


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({}, Full()),
        ({"fraction": 0.34}, Joint(Uniform(0.34))),
        ({"fraction": 1.0}, Full()),
        ({"participation": "uniform"}, Joint(Uniform(0.1))),
        ({"participation": "size", "fraction": 0.5}, Joint(BySize(0.5))),
        ({"participation": "full", "fraction": 1}, Full()),
    ],
)
def test_a_fraction_means_a_sample(given, rule):
    spec = RunSpec(data="heart", **given)
    assert spec.who() == rule
    assert RunSpec.model_validate(spec.model_dump()).who() == rule


REFUSED = [
    ({"participation": "full", "fraction": 0.34}, r"fraction=0.34 is not used with participation='full'"),
    ({"fraction": 1.5}, r"participation fraction 1.5: give a number in \(0, 1\]"),
    ({"epochs": 1, "steps": 5}, "epochs=1, steps=5: give one of the two"),
    ({"optimizer": "adam", "momentum": 0.9}, "momentum=0.9 is not used by optimizer='adam'"),
    ({"model_options": {"hidden": 3}}, "options {'hidden': 3} of a network that is not named: name the model"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_settings_of_a_run_that_exclude_each_other(given, message):
    with pytest.raises(PluresError, match=message):
        RunSpec(data="heart", **given)
    with pytest.raises(PluresError, match=message):
        plures.compare("heart", ["ditto"], rounds=1, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.1}, r"lr=0.1 is an option of a single run, .* learning_rates=\(0.1,\)"),
        ({"seed": 7}, "seed=7 is an option of a single run"),
        ({"method": "ditto"}, "method='ditto' is an option of a single run"),
        ({"parameters": {"lam": 1}}, "parameters=.* functools.partial"),
        ({"data_options": {"standardize": True}}, "data_options=.* are options of a loader"),
        ({"every": 0}, "every=0: give at least 1"),
        ({"learning_rates": ()}, "learning_rates is empty"),
        ({"learning_rates": (0.1, 0.2), "tune_rounds": 0}, "are not tried with tune_rounds=0"),
    ],
)
def test_settings_that_a_comparison_would_not_use(given, message):
    with pytest.raises(PluresError, match=message):
        plures.compare(quadratic(), ["ditto"], rounds=1, **given)


def test_local_work_is_epochs_or_steps():
    with pytest.raises(PluresError, match="epochs=2, steps=3: give one of the two"):
        Training(epochs=2, steps=3)
    assert (Training().passes, Training(epochs=0.5).passes, Training(steps=4).steps) == (1.0, 0.5, 4)


def test_one_client_after_the_other_is_not_compiled():
    with pytest.raises(PluresError, match="compile=True is not used by backend='loop'"):
        Execution("loop", compile=True)


def test_the_command_line_samples_by_a_fraction(tmp_path):
    words = ["run", "heart", "ditto", "--rounds", "1", "--fraction", "0.5", "--momentum", "0.9", "--optimizer", "adam"]
    error = CliRunner().invoke(app, [*words, "--out", str(tmp_path)]).exception
    assert isinstance(error, PluresError)
    assert "momentum=0.9" in str(error)
    done = CliRunner().invoke(app, [*words[:7], "--backend", "vmap", "--chunk", "4", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.exception
    assert plures.RunFolder(tmp_path / "run").spec().who() == Joint(Uniform(0.5))


HEAD = 'name = "s"\ndata = ["heart"]\n'


def test_a_budget_of_a_study_samples_by_its_fraction():
    source = parse_study(f"{HEAD}[[budgets]]\nfraction = 0.5\nsteps = 3", "study.toml", Path())
    spec = plan_of(source, "grid").cells[0].spec("heart")
    assert (spec.who(), spec.training().steps, spec.epochs) == (Joint(Uniform(0.5)), 3, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[budgets]]\noptimizer = "adam"\nmomentum = 0.5', r"line 5: budgets\[0\].momentum: is not used by adam"),
        ("[tuning]\ntrials = 0\nrounds = 3", "line 5: tuning.rounds: is not used, because trials = 0"),
        ('[tuning]\ntrials = 0\nsearch = "grid"', "line 5: tuning.search: is not used"),
        ("[tuning]\ntrials = 0\nlr = [0.1, 0.2]", "line 5: tuning.lr: is not searched.* single learning rate"),
        ('[tuning]\nsearch = "grid"\npruning = "median"', "line 5: tuning.pruning: 'median' is not used by the grid"),
    ],
)
def test_keys_of_a_study_that_nothing_reads(text, message):
    with pytest.raises(PluresError, match=message):
        parse_study(HEAD + text, "study.toml", Path())


SCHEMA = Schema(task="regression", target="y", columns=(Number(name="x", center=1, scale=2),))


def plan(**run):
    return Plan(name="f", clients=("a", "b"), run=run, schema=SCHEMA)


def test_a_federation_of_sites_samples_by_its_fraction():
    assert plan(fraction=0.5).spec.who() == Joint(Uniform(0.5))
    assert plan().spec.who() == Full()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"participation": "full", "fraction": 0.5}, r"\[run\] fraction=0.5 is not used"),
        ({"unseen": ["a"]}, r"\[run\] unseen is not used in a federation of sites: leave such clients out of clients"),
        ({"data_options": {"split": None}}, r"\[run\] data_options is not used"),
    ],
)
def test_runs_of_sites_that_would_not_use_a_setting(given, message):
    with pytest.raises(PluresError, match=message):
        _ = plan(**given).spec
