"""What a study consists of: counts by hand, identities, the federations of its cells."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import plures
from plures.errors import PluresError
from plures.evaluate import Code
from plures.evaluate.results import BASELINES
from plures.federation import SPLITS, Federation, from_arrays, load
from plures.federation import partition as deal
from plures.run.fingerprint import of_data
from plures.study import Plan, Store, ahead, begin, parse_study, plan_of, read_study
from plures.study.cells import dealt_anew, load_cell
from plures.study.document import PartitionPart
from plures.study.search import planned
from plures.study.work import Timing, Workspace
from plures.tasks import Classification, Regression

TEXT = """
name = "s"
seeds = [3, 5, 8]
methods = ["ditto", { name = "fedprox", lr = 0.1, parameters = { mu = 0.1 } }, { name = "apfl", data = ["h"] }]
data = [{ name = "heart", label = "h" }, { name = "har", partitions = ["few"] }]

[[partitions]]
[[partitions]]
label = "few"
how = "iid"
clients = 3

[[budgets]]
rounds = 4
[[budgets]]
rounds = 8

[tuning]
trials = 6
rounds = 2
lr = [0.1, 0.3]
"""


def plan(text: str = TEXT, search: str = "optuna") -> Plan:
    return plan_of(parse_study(text, "study.toml", Path()), search)


def test_units_are_counted_by_hand() -> None:
    found = plan()
    assert [cell.title for cell in found.cells] == [
        *("h, natural, 4 rounds", "h, natural, 8 rounds", "h, few, 4 rounds", "h, few, 8 rounds"),
        *("har, few, 4 rounds", "har, few, 8 rounds"),
    ]
    labels = [candidate.label for candidate in found.candidates]
    assert labels == [*BASELINES, "ditto", "fedprox", "apfl"]
    pairs = 4 * 8 + 2 * 7  # apfl stays away from har
    assert len(found.measures) == pairs - 6  # FedAvg with an intercept trains as FedAvg does
    tuned = pairs - 6 * 3  # and fedprox and the constant have nothing to tune
    assert [sum(unit.kind == kind for unit in found.units) for kind in ("tuning", "seed")] == [tuned, 3 * pairs]
    assert {unit.seed for unit in found.units if unit.kind == "seed"} == {3, 5, 8}
    assert len(found.by_id) == len(found.measures) + len(found.units)
    by_id = found.by_id
    for unit in found.units:
        needs = None if unit.needs is None else by_id[unit.needs]
        label = unit.candidate.label
        assert (needs is None) == (unit.kind == "tuning" or label in ("fedprox", "constant"))
        if needs is not None and label == "intercept":
            assert (needs.cell, needs.candidate.label, needs.kind, needs.seed) == (
                unit.cell,
                "fedavg",
                "seed",
                unit.seed,
            )
            assert found.units.index(unit) == found.units.index(needs) + 1
            assert found.measured_by(unit) == found.measured_by(needs)
        elif needs is not None:
            assert (needs.cell, needs.candidate, needs.kind) == (unit.cell, unit.candidate, "tuning")


def test_trials_are_counted_by_hand() -> None:
    by_label = {candidate.label: candidate for candidate in plan().candidates}
    tuning = plan().source.document.tuning
    counts = {label: planned(candidate, tuning, "optuna") for label, candidate in by_label.items()}
    strengths = len(by_label["ditto"].space["lam"])  # type: ignore[arg-type]
    assert strengths * 2 > 6  # more settings than trials
    none = {"constant": 0, "intercept": 0, "fedprox": 0}
    assert counts == none | {"local": 2, "fedavg": 2, "fedavg_ft": 6, "ditto": 6, "apfl": 6}
    grid = {label: planned(candidate, tuning, "grid") for label, candidate in by_label.items()}
    assert grid["local"] == 2
    assert grid["ditto"] == 2 + strengths - 1  # the default strength was tried with each learning rate


def test_a_plan_ahead_of_a_study_and_what_it_takes(tmp_path: Path) -> None:
    found, store = plan(), Store(tmp_path)
    begin(found, store)
    known = ahead(found, store)
    assert (known.cells, known.methods, known.runs, known.done_runs, known.done_trials) == (6, 8, 138, 0, 0)
    assert known.trials == 4 * (2 + 2 + 6 + 6 + 6) + 2 * (2 + 2 + 6 + 6)
    assert np.isnan(known.seconds)
    timing = Timing(execution={}, setup=1.0, round=0.5, score=0.25, memory=100, device_memory=0)
    owner = store.enter()
    for unit in found.measures:
        assert store.claim([unit], owner, 60) is unit
        store.finish(unit, owner, timing.model_dump_json(), 1.0)
    known = ahead(found, store)
    trial = 1 + 2 * 0.5 + 2 * 0.25  # a reading after each of two rounds
    short, long = 1 + 4 * 0.5 + 7 * 0.25, 1 + 8 * 0.5 + 11 * 0.25  # ... after each round, and three at the end
    runs = 3 * (2 * 6 + 5)
    once, repeated = 1 + 0.5 + 4 * 0.25, (1 + 7 * 0.25) + (1 + 11 * 0.25)  # the constant, and FedAvg's rounds
    rest = 3 * 3 * (2 * once + repeated)
    assert known.seconds == pytest.approx(known.trials * trial + runs * (short + long) + rest)
    assert known.memory == 100
    done = [unit for unit in found.units if unit.candidate.label == "fedprox"][:2]
    for unit in done:
        assert store.claim([unit], owner, 60) is unit
        store.finish(unit, owner, "{}", 1.0)
    after = ahead(found, store)
    assert after.done_runs == 2
    assert after.by_cell["h, natural, 4 rounds"][:2] == (24, 2)
    assert after.seconds == pytest.approx(known.seconds - 2 * short)


def test_an_edit_changes_the_identity_of_what_it_concerns_and_of_nothing_else() -> None:
    ids = {unit.id for unit in plan().units}
    assert ids == {unit.id for unit in plan().units}
    more = plan(TEXT.replace("seeds = [3, 5, 8]", "seeds = [3, 5, 8, 9]").replace('"ditto",', '"ditto", "fedper",'))
    assert ids < {unit.id for unit in more.units}
    longer = {unit.id for unit in plan(TEXT.replace("rounds = 8", "rounds = 9")).units}
    assert len(ids & longer) == len(ids) / 2
    patient = {unit.id for unit in plan(TEXT.replace("rounds = 8", "rounds = 8\npatience = 2")).units}
    assert len(ids & patient) == len(ids) / 2
    other = {unit.id for unit in plan(TEXT.replace("mu = 0.1", "mu = 0.2")).units}
    assert {plan().by_id[id].candidate.label for id in ids - other} == {"fedprox"}
    assert not ids & {unit.id for unit in plan(search="grid").units}
    renamed = TEXT.replace('"apfl", data', '"apfl", label = "mine", data')
    assert ids == {unit.id for unit in plan(renamed).units}


def cell(extra: str) -> Federation:
    source = parse_study(f'name = "s"\n[[data]]\nname = "heart"\n{extra}', "study.toml", Path())
    return load_cell(source, plan_of(source, "grid").cells[0]).federation


def owned(federation: Federation) -> torch.Tensor:
    return torch.cat([federation.splits[split].rows for split in SPLITS])


def test_natural_clients_are_those_of_the_data_set() -> None:
    assert of_data(cell("")) == of_data(load("heart"))
    assert of_data(cell("options = { seed = 1 }")) == of_data(load("heart", seed=1)) != of_data(load("heart"))


def test_pooled_rows_are_dealt_as_the_partition_says() -> None:
    whole = load("heart")
    rows = owned(whole).unique()
    dealt = cell('[[partitions]]\nhow = "dirichlet"\nclients = 5\nalpha = 2.0\nseed = 4')
    owner = deal(whole.targets[rows], "dirichlet", 5, alpha=2.0, seed=4)
    sizes = [sum(len(dealt.splits[split][i]) for split in SPLITS) for i in range(5)]
    assert sizes == np.bincount(owner[owner >= 0]).tolist()
    for client in range(5):
        mine = torch.cat([dealt.splits[split][client] for split in SPLITS])
        expected = whole.targets[rows[torch.from_numpy(owner == client)]]
        assert dealt.targets[mine].bincount(minlength=2).tolist() == expected.bincount(minlength=2).tolist()
    assert dealt.scaling is not None
    assert whole.scaling is not None
    train = dealt.inputs[dealt.splits["train"].rows]
    scaled = dealt.scaling[1] != 1
    assert int(scaled.sum()) > 3
    torch.testing.assert_close(train[:, scaled].mean(0), torch.zeros(int(scaled.sum())), atol=1e-5, rtol=0)
    torch.testing.assert_close(train[:, scaled].std(0, correction=0), torch.ones(int(scaled.sum())), atol=1e-5, rtol=0)
    raw = (dealt.inputs * dealt.scaling[1] + dealt.scaling[0]).sum(0)  # the same patients, in another order
    before = (whole.inputs * whole.scaling[1] + whole.scaling[0])[rows[torch.from_numpy(owner >= 0)]].sum(0)
    torch.testing.assert_close(raw, before, atol=1e-2, rtol=1e-4)


def test_limits_keep_shares_of_the_splits() -> None:
    whole, small = load("heart"), cell("max_examples = 40\nmax_clients = 3")
    assert len(small) == 3
    assert set(small.clients) < set(whole.clients)
    for place, client in enumerate(small.clients):
        before = [len(whole.splits[split][whole.index(client)]) for split in SPLITS]
        after = [len(small.splits[split][place]) for split in SPLITS]
        assert after == [max(1, int(40 / sum(before) * size)) for size in before]
    assert len(small.inputs) == len(owned(small))
    assert of_data(small) == of_data(cell("max_examples = 40\nmax_clients = 3"))


def test_shift_and_quality_are_applied() -> None:
    shifted = cell("[[partitions]]\nshift = { noise = [0.0, 2.0] }\nquality = { completeness = 0.5 }")
    assert shifted.metadata["noise"] == (0.0, 2.0, 0.0, 2.0)
    assert "completeness" in shifted.metadata


@pytest.mark.parametrize(
    ("extra", "line", "words"),
    [
        ('unseen = ["basel"]', 2, "no client 'basel'"),
        ('[[partitions]]\nhow = "iid"\nclients = 5000', 4, "lower clients"),
    ],
)
def test_what_the_data_do_not_allow_is_told_with_its_line(extra: str, line: int, words: str) -> None:
    with pytest.raises(PluresError, match=rf"study\.toml, line {line}: .*{words}"):
        cell(extra)


def test_tuning_without_validation_data_is_refused(tmp_path: Path) -> None:
    text = 'name = "s"\n[[data]]\nname = "heart"\nsplit = {{ validation = 0.0, test = 0.3 }}\n[tuning]\n{}\n'
    tuned, fixed = (
        plan_of(parse_study(text.format(tuning), "study.toml", Path()), "grid")
        for tuning in ("trials = 1", "trials = 0\nlr = [0.1]")
    )
    message = r"study\.toml, line 2: data\[0\]: .* has no validation example, so nothing could be tuned: .*trials = 0"
    with pytest.raises(PluresError, match=message):
        Workspace(tuned, Store(tmp_path / "tuned"), "me").at(tuned.cells[0])
    assert len(Workspace(fixed, Store(tmp_path / "fixed"), "me").at(fixed.cells[0]).federation) == 4


@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    store, found = Store(tmp_path), plan()
    one, other = ({"data": of_data(load("heart", seed=seed))} for seed in (0, 1))
    store.note_cell(found.cells[0], one, "{}", "{}", {})
    store.note_cell(found.cells[0], one, "{}", "{}", {})
    words = "the data of 'h, natural, 4 rounds' are not those .* client 'cleveland' .* has other training rows"
    with pytest.raises(PluresError, match=words):
        store.note_cell(found.cells[0], other, "{}", "{}", {})


def test_a_metric_belongs_to_the_cell() -> None:
    """A data set without a metric is the same cell as before; another metric makes another cell."""
    plain, named = TEXT, TEXT.replace('name = "heart",', 'name = "heart", metric = "auroc",')
    before, after = plan(plain).cells, plan(named).cells
    changed = [one.data.name for one, other in zip(before, after, strict=True) if one.key != other.key]
    assert changed == ["heart"] * 4
    loaded = load_cell(parse_study(named, "study.toml", Path()), after[0])
    assert [metric.name for metric in loaded.federation.metrics][:2] == ["auroc", "accuracy"]
    assert loaded.spec.metric == "auroc"
    dealt = load_cell(parse_study(named, "study.toml", Path()), after[2])
    assert dealt.federation.metrics[0].name == "auroc"
    wrong = named.replace("auroc", "auc")
    with pytest.raises(PluresError, match=r"study.toml.*no metric 'auc'; did you mean 'auroc'"):
        load_cell(parse_study(wrong, "study.toml", Path()), plan(wrong).cells[0])


def test_a_task_belongs_to_the_cell() -> None:
    """A data set without a task is the same cell as before; partitions deal its targets as they are learned."""
    named = TEXT.replace('name = "heart",', 'name = "heart", task = "saved:weighted",')
    module = ModuleType("saved")
    module.__dict__["weighted"] = Classification(class_weights={"disease": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "saved", module)
        source = parse_study(named, "study.toml", Path(), code=Code.of("saved:weighted"))
        before, after = plan(TEXT), plan_of(source, "grid")
        changed = [one.data.name for one, other in zip(before.cells, after.cells, strict=True) if one.key != other.key]
        assert changed == ["heart"] * 4
        plain = [load_cell(before.source, cell).federation for cell in before.cells[:4]]
        for cell, usual in zip(after.cells[:4], plain, strict=True):
            loaded = load_cell(source, cell)
            assert loaded.spec.task == "saved:weighted"
            assert loaded.federation.task == Classification(usual.task.classes, (1.0, 3.0))
            assert torch.equal(loaded.federation.targets, usual.targets)
        ids = {unit.id for unit in after.units}
        module.__dict__["weighted"] = Classification(class_weights={"disease": 4})
        assert {unit.id for unit in plan_of(source, "grid").units if unit.cell.data.name == "heart"}.isdisjoint(ids)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "clasification",
            r"study.toml, line 5: data\[0\].task: no task 'clasification'; did you mean 'classification'",
        ),
        ("mine:task", r"study.toml, line 5: data\[0\].task: task 'mine:task' is code, .* --allow-code"),
    ],
)
def test_a_task_that_cannot_be_is_refused_with_its_line(task: str, message: str) -> None:
    with pytest.raises(PluresError, match=message):
        parse_study(
            TEXT.replace('name = "heart",', f'name = "heart", task = "{task}",'),
            "study.toml",
            Path(),
            code=Code(by="option"),
        )


def test_targets_that_are_learned_are_not_read_again() -> None:
    """A task whose targets are on another scale than the data's keeps them when rows are dealt to other clients."""
    x = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    whole = from_arrays(x, np.exp(x[:, 0]), np.repeat(["a", "b"], 20), task=Logarithm())
    dealt = dealt_anew(whole, PartitionPart(how="iid", clients=4), None)
    assert len(dealt) == 4
    assert torch.allclose(dealt.targets, dealt.inputs, atol=1e-6)


@dataclass(frozen=True)
class Logarithm(Regression):
    """Regression on the logarithm of what is given."""

    def read(self, values, where):
        return super().read(np.log(values), where)


def test_a_table_is_data_like_any_other_once_for_each_split(tmp_path: Path):
    rows = [f"{'ab'[row % 2]},{row % 17},{row // 2 % 2}" for row in range(80)]
    (tmp_path / "rows.csv").write_text("\n".join(["ward,age,ill", *rows[:60]]))
    (tmp_path / "test.csv").write_text("\n".join(["ward,age,ill", *rows[60:]]))
    said = {"client": "ward", "target": "ill", "copies": "allow"}
    options = 'options = { client = "ward", target = "ill", copies = "allow"'
    (tmp_path / "study.toml").write_text(
        f"""
name = "splits"
methods = ["ditto"]
[[data]]
name = "rows.csv"
label = "first"
{options}, seed = 1 }}
[[data]]
name = "rows.csv"
label = "second"
{options}, seed = 2 }}
[[data]]
name = "rows.csv"
label = "official"
{options}, test = "test.csv" }}
[[budgets]]
rounds = 1
"""
    )
    source = read_study(tmp_path / "study.toml")
    plan = plan_of(source, "grid")
    first, second, official = (load_cell(source, cell).federation for cell in plan.cells)
    assert first == plures.from_table(tmp_path / "rows.csv", **said, seed=1)
    assert second == plures.from_table(tmp_path / "rows.csv", **said, seed=2)
    assert official == plures.from_table(tmp_path / "rows.csv", **said, test=tmp_path / "test.csv")
    assert first != second
