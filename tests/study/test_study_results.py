"""What a study found, as frames and comparisons: the values of the runs, and of `compare` under the same settings."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plures
from plures.errors import PluresError
from plures.evaluate import Code
from plures.evaluate.results import BASELINES
from plures.run import Execution
from plures.study import Store, Study, begin, conduct, parse_study, plan_of

TEXT = """
name = "found"
seeds = 2
methods = ["ditto", { name = "fedprox", label = "prox", lr = 0.1, parameters = { mu = 0.5 } }]

[[data]]
name = "heart"
model = "logistic"
unseen = ["va"]

[[budgets]]
rounds = 3
batch_size = 16

[tuning]
rounds = 2
trials = 1
lr = [0.03, 0.1]
search = "grid"

[execution]
backend = "loop"
chunk = 3
"""


def done(text: str, folder: Path) -> Study:
    plan, store = plan_of(parse_study(text, "study.toml", folder), "grid"), Store(folder)
    begin(plan, store)
    conduct(plan, store, plan.measures, lambda event: None)
    conduct(plan, store, plan.units, lambda event: None)
    store.close()
    return Study(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return done(TEXT, tmp_path_factory.mktemp("found"))


def plain(value: Any) -> Any:
    """Without wall times."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key != "seconds"}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def test_a_study_gives_what_compare_gives(study: Study) -> None:
    same = plures.compare(
        "heart",
        ["ditto"],
        model="logistic",
        unseen=["va"],
        rounds=3,
        seeds=2,
        learning_rates=(0.03, 0.1),
        tune_rounds=2,
        batch_size=16,
        execution=Execution("loop", 3, False),
    )
    (mine,) = study.comparisons()
    assert [method.name for method in mine.methods] == [*BASELINES, "ditto", "prox"]
    for name in (*BASELINES[1:], "ditto"):
        assert plain(mine.method(name).model_dump()) == plain(same.method(name).model_dump())
    ours, theirs = (found.method("constant").model_dump(exclude={"lr"}) for found in (mine, same))
    assert plain(ours) == plain(theirs)
    assert (mine.metric, mine.federation) == (same.metric, same.federation)
    rows = {row.name: row.model_dump() for row in same.rows()}
    assert all(row.model_dump() == rows[row.name] for row in mine.rows() if row.name != "prox")


PATIENT = """
name = "patient"
seeds = 2
methods = []
data = [{ name = "heart", model = "logistic" }]
budgets = [{ rounds = 30, every = 2, patience = 4 }]
tuning = { trials = 0, lr = [0.3] }
execution = { backend = "loop", chunk = 3 }
"""


def test_patience_ends_the_runs_of_a_study_where_it_ends_those_of_compare(tmp_path: Path) -> None:
    same = plures.compare(
        "heart",
        [],
        model="logistic",
        rounds=30,
        every=2,
        patience=4,
        seeds=2,
        learning_rates=[0.3],
        tune_rounds=0,
        batch_size=32,
        execution=Execution("loop", 3, False),
    )
    (mine,) = done(PATIENT, tmp_path).comparisons()
    assert (mine.settings["patience"], mine.settings["read_validation_every"]) == (4, 2)
    for name in BASELINES[1:]:
        assert plain(mine.method(name).model_dump()) == plain(same.method(name).model_dump())
    ends = [(run.curve[-1].round, run.chosen_round) for method in mine.methods for run in method.seeds]
    assert min(end for end, _ in ends) < 30
    assert all(end in (1, 30) or end - best == 4 for end, best in ends)


def test_settings_tell_the_trials(study: Study) -> None:
    (mine,) = study.comparisons()
    tuning = mine.settings["tuning"]
    assert {name: (t["search"], t["finished"], t["pruned"]) for name, t in tuning.items()} == {
        "constant": ("none", 0, 0),
        "local": ("grid", 2, 0),
        "fedavg": ("grid", 2, 0),
        "intercept": ("none", 0, 0),
        "fedavg_ft": ("grid", len(mine.method("fedavg_ft").trials), 0),
        "ditto": ("grid", len(mine.method("ditto").trials), 0),
        "prox": ("none", 0, 0),
    }
    assert (mine.method("prox").lr, mine.method("prox").parameters) == (0.1, {"mu": 0.5})


def test_the_frame_has_a_row_for_each_client_method_and_seed(study: Study) -> None:
    frame, (mine,) = study.frame(), study.comparisons()
    assert len(frame) == 7 * 2 * 4
    seen = frame[~frame["unseen"]]
    assert sorted(seen["client"].unique()) == ["cleveland", "hungarian", "switzerland"]
    assert set(frame[frame["unseen"]]["client"]) == {"va"}
    for method in mine.methods:
        for run in method.seeds:
            part = seen[(seen["method"] == method.name) & (seen["seed"] == run.seed)].set_index("client")
            for metric, values in run.test.metrics.items():
                assert part.loc[run.test.clients, metric].tolist() == values
            assert set(part["chosen_round"]) == {run.chosen_round}
    mean = seen.groupby(["method", "seed"])["accuracy"].mean().groupby("method").mean()
    assert mean["ditto"] == pytest.approx(mine.row("ditto").mean)
    assert seen.set_index("client").loc["cleveland", "client.country"].unique().tolist() == ["USA"]
    sizes = dict(zip(mine.federation.clients, mine.federation.sizes["train"], strict=True))
    assert dict(zip(seen["client"], seen["train_examples"], strict=True)) == sizes


def test_polars_has_the_same_rows(study: Study) -> None:
    one, two = study.frame(), study.frame("polars")
    assert two.columns == list(one.columns)
    assert two["accuracy"].to_list() == one["accuracy"].tolist()
    with pytest.raises(PluresError, match="choose pandas or polars"):
        study.frame("excel")  # type: ignore[arg-type]


def test_runs_and_trials(study: Study) -> None:
    runs, trials, (mine,) = study.runs(), study.trials(), study.comparisons()
    assert len(runs) == 14
    for method in mine.methods:
        part = runs[runs["method"] == method.name]
        assert set(part["lr"].dropna()) == {method.lr} - {None}
        assert [json.loads(text) for text in part["parameters"]] == [method.parameters] * 2
        means = [np.mean(run.test.values("accuracy")) for run in method.seeds]
        assert part["test"].tolist() == pytest.approx(means)
        assert part["trials_finished"].tolist() == [len(method.trials)] * 2
        tried = trials[trials["method"] == method.name]
        assert tried["validation"].tolist() == [trial.validation for trial in method.trials]
    assert set(trials["rounds"]) == {2}


def test_optuna_shows_the_trials(study: Study) -> None:
    shown, (mine,) = study.optuna("heart", "ditto"), study.comparisons()
    assert [trial.value for trial in shown.trials] == [trial.validation for trial in mine.method("ditto").trials]
    with pytest.raises(PluresError, match="no tuning of 'prox' on 'heart'; there are"):
        study.optuna("heart", "prox")


def test_a_missing_package_names_its_extra(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PluresError, match=r"a frame needs pandas: pip install 'plures\[frames\]'"):
        study.frame()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(PluresError, match=r"plures\[tune\]"):
        study.optuna("heart", "ditto")


def test_kept_models_are_run_folders(study: Study) -> None:
    folders = sorted(path.parent.name for path in study._store.folder.glob("runs/*/ditto/*/run.json"))
    assert folders == ["seed-0", "seed-1"]
    (mine,) = study.comparisons()
    (path,) = study._store.folder.glob("runs/*/ditto/seed-1")
    assert plures.RunFolder(path).result() == mine.method("ditto").seeds[1]
    assert plures.RunFolder(path).spec().lr == mine.method("ditto").lr


def test_a_study_may_be_read_elsewhere(study: Study, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes((study._store.folder / "study.db").read_bytes())
    assert Study(tmp_path).frame().equals(study.frame())


def test_a_finished_study_is_not_told_of_other_data_or_by_another_version(study: Study, tmp_path: Path) -> None:
    """There is nothing left to do, but its results are not returned."""
    store, plan = Store(tmp_path), study.plan
    study._store.db.backup(store.db)
    begin(plan, store)
    assert not store.unfinished(plan.units)
    cell = plan.cells[0]
    known = store.cell(cell.key)
    assert known is not None
    there = json.loads(known["fingerprint"])
    there["data"]["test"] = "0123" + there["data"]["test"][4:]
    for kept, words in (
        (json.dumps(there), "the data of 'heart' are not .* client 'cleveland' has other test rows; restore them"),
        ("0123456789abcdef", "the results of 'heart' in .* are of an earlier version"),
    ):
        store.db.execute("UPDATE cells SET fingerprint = ?", (kept,))
        with pytest.raises(PluresError, match=words):
            begin(plan, store)
    store.db.execute("UPDATE study SET version = '0.0.1'")
    with pytest.raises(PluresError, match=r"holds results of plures 0\.0\.1, but this is"):
        begin(plan, store)
    store.close()


def test_an_edited_method_is_another_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of the code before the edit stay under their own identity."""
    text = "from plures.methods import ditto\ndef own():\n    return ditto(lam={})"

    def ids(strength: float) -> set[str]:
        module = types.ModuleType("mine")
        exec(text.format(strength), module.__dict__)
        monkeypatch.setitem(sys.modules, "mine", module)
        source = parse_study(TEXT.replace('"ditto"', '"mine:own"'), "study.toml", Path(), code=Code.of("mine:own"))
        return {unit.id for unit in plan_of(source, "grid").units if unit.candidate.part.name == "mine:own"}

    assert ids(0.5) == ids(0.5)
    assert not ids(0.5) & ids(0.25)
