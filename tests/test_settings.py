"""One list of settings for the command line, Python and studies: the same work gives the same numbers."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import fields as fields_of
from pathlib import Path

import pytest
import typer

import plures
from plures import SGD, Adam, AdamW, RunSpec
from plures.cli import app
from plures.cli.options import DataOptions, MachineOptions
from plures.cli.research import compare_command
from plures.errors import PluresError
from plures.evaluate.compare import INSTEAD
from plures.evaluate.tuning import searches
from plures.methods import METHODS
from plures.run import Cosine, Milestones
from plures.study import Study, read_study
from plures.study.document import BudgetPart, DataPart
from saying import Says

LOCAL = {
    "optimizer": "sgd(nesterov=true,momentum=0.9)",
    "weight_decay": 0.01,
    "schedule": "milestones(at=[1],gamma=0.5)",
    "clip": 0.5,
    "steps": 2,
}
SPACE = {"ditto": {"lr": [0.05, 0.2], "lam": [0.5, 2.0]}}
TOML = """
name = "small"
seeds = 1
data = ["heart"]
methods = [{ name = "ditto", space = { lr = [0.05, 0.2], lam = [0.5, 2.0] } }]
tuning = { rounds = 1, lr = [0.1], search = "grid" }
execution = { backend = "loop", chunk = 1 }

[[budgets]]
rounds = 2
every = 1
optimizer = "sgd(nesterov=true,momentum=0.9)"
weight_decay = 0.01
schedule = "milestones(at=[1],gamma=0.5)"
clip = 0.5
steps = 2
"""
WORDS = [
    *("--rounds", "2", "--every", "1", "--seeds", "1", "--lr", "0.1", "--tune-rounds", "1", "--method", "ditto"),
    *("--weight-decay", "0.01", "--clip", "0.5", "--steps", "2", "--backend", "loop", "--chunk", "1"),
    *("--optimizer", "sgd(nesterov=true,momentum=0.9)", "--schedule", "milestones(at=[1],gamma=0.5)"),
    *("--space", "ditto.lr=0.05,0.2", "--space", "ditto.lam=0.5,2"),
]


def test_a_comparison_has_the_same_numbers_on_the_command_line_in_python_and_in_a_study(says: Says, tmp_path: Path):
    alone = plures.Execution("loop", 1, False)
    here = plures.compare(
        "heart",
        ["ditto"],
        rounds=2,
        every=1,
        seeds=1,
        learning_rates=[0.1],
        tune_rounds=1,
        space=SPACE,
        execution=alone,
        **LOCAL,
    )
    assert [(t.lr, t.parameters.get("lam")) for t in here.methods[-1].trials] == [
        *((0.05, None), (0.2, None)),
        *((here.methods[-1].trials[-1].lr, lam) for lam in (0.5, 2.0)),
    ]
    assert says("compare", "heart", *WORDS, "--no-compile-step", "--out", str(tmp_path / "c"))[0] == 0
    (tmp_path / "study.toml").write_text(TOML)
    assert says("study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "s"))[0] == 0
    typed = plures.Comparison.from_json(tmp_path / "c" / "results.json")

    file = tmp_path / "c" / "compare.toml"
    options = tomllib.loads(file.read_text())
    assert list(options)[:3] == ["data", "method", "rounds"]
    assert (options["data"], options["lr"]) == ("heart", [0.1])
    assert options["space"] == ["ditto.lr=0.05,0.2", "ditto.lam=0.5,2"]
    assert (options["clip"], options["compile_step"], options["momentum"]) == (0.5, False, 0.0)
    assert not {"config", "quiet", "patience", "track"} & options.keys()
    code, text = says("compare", "--config", file, "--quiet")  # all is done: the folder is this comparison's
    assert code == 0
    assert "Ditto" in text
    assert "% done" not in text
    assert tomllib.loads(file.read_text()) == options
    code, text = says("compare", "--config", file, "--clip", "0.4")
    assert code == 2
    assert "holds another comparison: the training's clip is 0.5 there and 0.4 here" in text
    assert tomllib.loads(file.read_text()) == options
    (studied,) = Study(tmp_path / "s").comparisons()
    assert typed.settings["space"] == SPACE

    ditto = here.methods[-1]
    federation = plures.load("heart")
    training = plures.Training(
        2, 32, steps=2, optimizer=SGD(ditto.lr, 0.9, 0.01, True), schedule=Milestones((1,), 0.5), clip=0.5
    )
    method = METHODS["ditto"](**ditto.parameters)
    run = plures.Run(federation, plures.default_model(federation), method, training, execution=alone)
    by_hand = plures.fit(run, "by hand")
    assert [point.validation for point in by_hand.curve] == [point.validation for point in ditto.seeds[0].curve]
    for other in (typed, studied):
        same = next(method for method in other.methods if method.name == "ditto")
        assert (same.lr, same.parameters) == (ditto.lr, ditto.parameters)
        assert same.seeds[0].test == ditto.seeds[0].test


def test_every_setting_of_a_run_is_an_option_and_a_key_of_a_study():
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    fields = {*RunSpec.model_fields}
    run = {p.name for p in commands["run"].params} | {"parameters", "subgroups"}  # --set, --subgroup
    assert fields - run == set()
    compared = {p.name for p in commands["compare"].params} | {"subgroups"}
    assert fields - compared == {*INSTEAD} & fields - {"lr", "method"}
    python = {*inspect.signature(plures.compare).parameters} | fields
    named = {"lr": "learning_rates", "method": "methods", "subgroup": "subgroups"}
    of_terminal = {p for p in inspect.signature(compare_command).parameters if named.get(p, p) not in python}
    of_tables, of_machine = ({field.name for field in fields_of(kind)} for kind in (DataOptions, MachineOptions))
    assert of_terminal - of_tables - of_machine <= {"config", "quiet", "processes", "track"}
    of_data = {"data", "data_options", "method", "parameters", "lr", "seed"}  # tables of the study, or its seeds
    keys = {*BudgetPart.model_fields, *DataPart.model_fields}
    assert fields - keys - of_data == {"evaluate_clients", "subgroups"}  # a study scores all clients that it keeps


@pytest.mark.parametrize(
    ("text", "given", "made"),
    [
        ("sgd", {"momentum": 0.5}, SGD(0.1, 0.5)),
        ("sgd(momentum=0.5,nesterov=yes)", {"weight_decay": 0.2}, SGD(0.1, 0.5, 0.2, True)),
        ("adam(betas=[0.8,0.9])", {}, Adam(0.1, (0.8, 0.9))),
        ("adamw", {}, AdamW(0.1, weight_decay=0.0)),
        ("adamw(weight_decay=0.3)", {}, AdamW(0.1, weight_decay=0.3)),
    ],
)
def test_optimizers_are_named_with_their_options(text: str, given: dict[str, float], made: object):
    assert RunSpec(data="heart", optimizer=text, **given).training().optimizer == made


def test_schedules_are_named_with_their_options():
    assert RunSpec(data="heart", schedule="cosine(0.2)").training().schedule == Cosine(0.2)
    rates = RunSpec(data="heart", schedule="milestones(at=[2],gamma=0.5)").training().schedule
    assert [rates(n, 4) for n in range(4)] == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "sdg"}, "no optimizer 'sdg'; did you mean 'sgd'?"),
        ({"optimizer": "sgd(momentun=0.9)"}, "optimizer 'sgd': no parameter 'momentun'; did you mean 'momentum'?"),
        ({"optimizer": "adam(lr=0.1)"}, "optimizer 'adam': lr=0.1 is an option of its own"),
        ({"optimizer": "sgd(momentum=0.5)", "momentum": 0.9}, "optimizer 'sgd': momentum=0.5 is an option of its own"),
        ({"schedule": "cosin"}, "no schedule 'cosin'; did you mean 'cosine'?"),
        ({"schedule": "cosine(final=low)"}, "schedule 'cosine': final=low: give a number"),
    ],
)
def test_a_wrong_optimizer_or_schedule_is_named(given: dict[str, object], said: str):
    with pytest.raises(PluresError) as error:
        RunSpec(data="heart", **given)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"dito": {"lam": [1.0]}}, "space: no method 'dito' is compared; did you mean 'ditto'?"),
        ({"ditto": {"lamb": [1.0]}}, "space: ditto has no parameter 'lamb'; did you mean 'lam'?"),
        ({"ditto": {"lam": []}}, "space: ditto.lam=[]; give a list of values to try"),
        ({"ditto": {"lr": [0.0]}}, "learning_rates: 0.0 cannot train"),
        ({"intercept": {"lr": [0.1]}}, "space: intercept is not tuned, it has the learning rate of fedavg"),
        ({"constant": {"lr": [0.1]}}, "space: constant is not tuned, there is nothing to choose"),
        ({"ditto lam=1.0": {"lam": [0.1]}}, "space: lam of ditto lam=1.0 is fixed"),
    ],
)
def test_a_wrong_search_space_is_named(space: dict[str, dict[str, list[float]]], said: str):
    fixed = METHODS["ditto"].fixing(lam=1.0)
    entries = {**{name: METHODS[name] for name in ("constant", "intercept", "ditto")}, fixed.name: fixed}
    with pytest.raises(PluresError) as error:
        searches(entries, [0.1], space)
    assert said in str(error.value)


def test_a_space_without_tuning_is_refused():
    with pytest.raises(PluresError, match="space is not tried with tune_rounds=0"):
        plures.compare("heart", ["ditto"], tune_rounds=0, learning_rates=[0.1], space=SPACE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ditto.lam"], "write METHOD.NAME=VALUES, such as ditto.lam=0.01,0.1"),
        (["dito.lam=1"], "no method 'dito' is compared; did you mean 'ditto'?"),
        (["ditto.lamb=1"], "method 'ditto' has no parameter 'lamb'; did you mean 'lam'?"),
        (["ditto.lam=1,x"], "--space ditto.lam=x: give a number"),
        (["ditto.lam=1", "ditto.lam=2"], "ditto.lam is given twice; give all values at once"),
    ],
)
def test_a_wrong_space_on_the_command_line_is_named(says: Says, words: list[str], said: str):
    code, text = says("compare", "heart", "--method", "ditto", *(part for word in words for part in ("--space", word)))
    assert code == 2
    assert said in text


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ('optimizer = "adm"', "no optimizer 'adm'; did you mean 'adam'?"),
        ('schedule = "cosine(end=0.1)"', "schedule 'cosine': no parameter 'end'"),
        ('fraction = 0.5\nparticipation = "full"', "is not used with participation = 'full'"),
    ],
)
def test_a_wrong_budget_of_a_study_is_named_with_its_line(tmp_path: Path, key: str, said: str):
    file = tmp_path / "study.toml"
    file.write_text(f'name = "small"\ndata = ["heart"]\n[[budgets]]\n{key}\n')
    with pytest.raises(PluresError) as error:
        read_study(file)
    assert str(error.value).startswith("study.toml, line 4: budgets[0].")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("roundz = 3", "compare.toml: no option 'roundz'; did you mean 'rounds'?"),
        ('rounds = "many"', "compare.toml: rounds: 'many' is not a valid int"),
        ("rounds = true", "compare.toml: rounds = True; give a single value, as --rounds takes it"),
        ("rounds = [3]", "compare.toml: rounds = [3]; give a single value, as --rounds takes it"),
        ("compile_step = 1", "compare.toml: compile_step = 1; give true or false"),
        ('backend = "lop"', "compare.toml: backend: 'lop' is not one of 'auto', 'loop', 'vmap'"),
        ("rounds 3", "compare.toml is not TOML"),
        ("[data_options]\nsead = 3", "data 'heart' has no option 'sead'; did you mean 'seed'?"),
        ('tune-rounds = 0\nlr = 0.1\nspace = ["ditto.lam=1"]', "space is not tried with tune_rounds=0"),
        ('optimizer = "sgd(mu=1)"', "optimizer 'sgd': no parameter 'mu'"),
    ],
)
def test_a_wrong_file_of_options_is_named(says: Says, tmp_path: Path, content: str, said: str):
    file = tmp_path / "compare.toml"
    file.write_text(content)
    code, text = says("compare", "heart", "--config", file, "--out", tmp_path / "out")
    assert code == 2
    assert said in text
    assert not (tmp_path / "out").exists()


def test_a_missing_file_of_options_is_named(says: Says, tmp_path: Path):
    code, text = says("compare", "heart", "--config", tmp_path / "nowhere.toml")
    assert code == 2
    assert "nowhere.toml" in text


def test_exit_codes(says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert says("methods", "ditto")[0] == 0
    assert says("compare", "hart")[0] == 2
    assert says("compare", "heart", "--roundz", "3")[0] == 2
    assert says("compar", "heart")[0] == 2
    assert says("compare", "heart", "--track", "tensorbord") == (
        2,
        "error: --track tensorbord: there is no such tracker; did you mean 'tensorboard'?",
    )

    def stop(*words: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("plures.cli.research.compare", stop)
    code, text = says("compare", "heart", "--out", tmp_path / "out")
    assert code == 130
    assert "the same command resumes" in text
