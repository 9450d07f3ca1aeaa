"""Attacks and robust combinations as options: of a run, a comparison, a study, a folder; and where they are refused."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import plures
from people import FAST, net, people
from plures.cli.common import who
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, compare, finish, fit
from plures.evaluate.results import Against, Comparison
from plures.study.plan import plan_of
from plures.study.reading import parse_study
from plures.tables.column import Number
from plures.tables.schema import Schema
from plures.threat import ALIE, SignFlip, Threat
from saying import Says

OPTIONS: dict[str, Any] = {
    "model": net,
    "rounds": 2,
    "seeds": 1,
    "every": 2,
    "learning_rates": [0.3],
    "tune_rounds": 0,
    "execution": FAST,
}
ATTACK: dict[str, Any] = {"attack": "sign_flip(factor=5)", "attackers": ["p2"]}
HONEST = ["p0", "p1", "p3", "p4", "p5"]


@pytest.fixture(scope="module")
def defended() -> Comparison:
    return compare(people(), ["fedamp"], combine="median", **ATTACK, **OPTIONS)


def seen(found: Comparison) -> Against:
    assert found.against is not None
    return found.against


def values(found: Any) -> list[float]:
    return list(map(float, found.per_client("accuracy")))


def test_only_honest_clients_are_scored(defended: Comparison) -> None:
    assert defended.federation.clients == HONEST
    assert defended.federation.hostile == seen(defended).attackers == ["p2"]
    assert (defended.federation.trained, defended.federation.population) == (6, None)
    against = seen(defended)
    for method in (*defended.methods, *against.plain, *against.undefended):
        run = method.seeds[0]
        assert run.test.clients == run.validation.clients == HONEST
        assert min(run.test.sizes) > 0
    assert all(row.mean == pytest.approx(sum(values(defended.method(row.name))) / 5) for row in defended.rows())


def test_runs_beside_differ_in_one_thing_alone(defended: Comparison) -> None:
    """They are those of comparisons without the combination, and without both, on the same clients."""
    against = seen(defended)
    sending = ["fedavg", "intercept", "fedavg_ft", "fedamp"]
    assert [method.name for method in against.plain] == sending
    assert [method.name for method in against.undefended] == sending[:-1]
    attacked, honest = (compare(people(), ["fedamp"], **more, **OPTIONS) for more in (ATTACK, {}))
    assert seen(attacked).undefended == []
    for method in against.undefended:
        assert values(method) == values(attacked.method(method.name))
    for method in against.plain:
        alone = dict(zip(honest.federation.clients, values(honest.method(method.name)), strict=True))
        assert values(method) == [alone[name] for name in HONEST]
        assert values(method) == values(next(m for m in seen(attacked).plain if m.name == method.name))
    for name in ("constant", "local", "fedamp"):
        assert values(defended.method(name)) == values(attacked.method(name))
    assert values(defended.method("fedavg")) != values(attacked.method("fedavg"))


def test_those_that_cannot_take_a_combination_say_why(defended: Comparison) -> None:
    against = seen(defended)
    assert against.uncombined == {
        "constant": "it sends nothing that could be combined",
        "local": "it sends nothing that could be combined",
        "fedamp": "the server keeps a model for each client, so that no two uploads meet in one",
    }
    assert defended.method("fedavg").title == "FedAvg + median"
    assert defended.method("fedamp").title == "FedAMP"
    with pytest.raises(PluresError, match="krum: it needs the uploads of at least 7 clients, and the federation has 6"):
        compare(people(), ["ditto"], combine="krum(f=2)", **OPTIONS)
    with pytest.raises(PluresError, match="at least 3 clients, and a round has 2: draw more clients in each round"):
        compare(people(), ["ditto"], combine="trimmed_mean", fraction=0.34, **OPTIONS)
    clustered = RunSpec(data="", method="ifca", parameters={"clusters": 2}, combine="trimmed_mean")
    assert clustered.uncombined(clustered.entry(), people(), net) == (
        "it needs at least 3 uploads to a model, and a cluster may have fewer members"
    )
    assert clustered.model_copy(update={"combine": "median"}).uncombined(clustered.entry(), people(), net) is None
    found = compare(people(), ["fedavg+krum", "scaffold"], combine="median", **OPTIONS)
    assert "both change how 'model' is combined: reduce" in seen(found).uncombined["fedavg+krum"]
    assert "scaffold" not in seen(found).uncombined
    assert seen(found).attack is None
    assert [method.name for method in seen(found).plain] == ["fedavg", "intercept", "fedavg_ft", "scaffold"]


def test_a_comparison_is_stored_and_resumed(defended: Comparison, tmp_path: Path) -> None:
    first = compare(people(), [], combine="median", out=tmp_path, **ATTACK, **OPTIONS)
    assert [values(m) for m in first.methods] == [values(defended.method(m.name)) for m in first.methods]
    assert Comparison.from_json(tmp_path / "results.json") == first
    (tmp_path / "results.json").unlink()
    assert compare(people(), [], combine="median", out=tmp_path, **ATTACK, **OPTIONS) == first
    with pytest.raises(PluresError, match="another comparison: threat is"):
        compare(people(), [], combine="median", out=tmp_path, **{**ATTACK, "attackers": ["p3"]}, **OPTIONS)
    with pytest.raises(PluresError, match="another comparison: combine is"):
        compare(people(), [], combine="trimmed_mean", out=tmp_path, **ATTACK, **OPTIONS)


def test_a_sample_is_drawn_among_the_honest() -> None:
    found = compare(people(), [], evaluate_clients=3, attack="mimic", attackers=["p2"], **OPTIONS)
    assert len(found.federation.clients) == 3
    assert "p2" not in found.federation.clients
    assert (found.federation.population, found.federation.trained) == (5, 6)
    with pytest.raises(PluresError, match="evaluate_clients=6: give a number from 2 to 5, the honest clients"):
        compare(people(), [], evaluate_clients=6, attack="mimic", attackers=["p2"], **OPTIONS)


def test_a_run_and_its_folder(says: Says, tmp_path: Path) -> None:
    words = ["run", "heart", "fedavg", "--rounds", 1, "--backend", "loop", "--chunk", 1, "--no-capture"]
    status, told = says(*words, "--attack", "alie(z=1)", "--attackers", "va", "--combine", "median", "--out", tmp_path)
    assert (status, "fedavg+median on heart" in told) == (0, True), told
    assert "under attack (alie(z=1)) of va, who do not count" in told
    assert "on average over 3 clients" in told
    folder = RunFolder(tmp_path)
    spec, result = folder.spec(), folder.result()
    assert (spec.attack, spec.attackers, spec.combine) == ("alie(z=1)", ["va"], "median")
    assert spec.threat() == Threat(("va",), ALIE(1.0))
    again = folder.run()
    assert again.threat == spec.threat()
    assert result.test.clients == ["cleveland", "hungarian", "switzerland"]
    assert finish(fit(again, "again"), 0).test == result.test
    status, told = says(*words, "--attack", "sign_flip", "--combine", "fedavg", "--out", tmp_path / "other")
    assert (status, told.startswith("error: no robust combination 'fedavg'; there are arc, ")) == (2, True), told


@pytest.mark.parametrize(
    ("texts", "meant"),
    [(None, None), (["0.2"], 0.2), (["3"], 3), (["va"], ["va"]), (["3", "4"], ["3", "4"]), ([], None)],
)
def test_attackers_on_the_command_line(texts: list[str] | None, meant: Any) -> None:
    assert who(texts) == meant
    assert type(who(texts)) is type(meant)


def test_a_run_keeps_its_attackers_as_they_were_given() -> None:
    for given in (0.25, 2, ["a", "b"]):
        spec = RunSpec(data="heart", attack="sign_flip", attackers=given)
        assert type(RunSpec.model_validate_json(spec.model_dump_json()).attackers) is type(given)
    assert RunSpec(data="heart", attack="sign_flip").threat() == Threat(0.2, SignFlip())
    late = RunSpec(data="heart", attack="sign_flip", attackers=2, attack_from=3, attack_knows="own").threat()
    assert late == Threat(2, SignFlip(), knows="own", start=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attackers": 0.2}, "attackers=0.2 is not used without an attack: name one, such as attack='sign_flip'"),
        ({"attack_from": 2}, "attack_from=2 is not used without an attack"),
        ({"attack_knows": "own"}, "attack_knows='own' is not used without an attack"),
        ({"attack": "sign_flop"}, "no attack 'sign_flop'"),
        ({"attack": "label_flip", "attack_from": 2}, "poisoned data are there from the first round to the last"),
        ({"combine": "ditto"}, "no robust combination 'ditto'"),
        ({"combine": "krum(f=-1)"}, "krum: f=-1"),
        (
            {"attack": "sign_flip", "attackers": 1.5},
            "attackers=1.5: give names of clients, a number, or a share below 1",
        ),
    ],
)
def test_options_that_cannot_be_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PluresError, match=said.replace("(", r"\(")):
        RunSpec(data="heart", **given)


def test_a_method_that_cannot_take_the_combination_is_no_run() -> None:
    spec = RunSpec(data="heart", method="local", combine="median")
    with pytest.raises(PluresError, match="combine='median': local does not take it: it sends nothing"):
        spec.run(spec.federation())


def test_a_federation_of_sites_refuses_attacks() -> None:
    table = Schema(task="regression", target="y", columns=(Number(name="x", center=1, scale=2),))
    for name, value, instead in (
        ("attack", "sign_flip", "attacks are simulated, with all data in one process"),
        ("combine", "median", r"write it behind the method, such as method = 'fedavg\+median'"),
    ):
        plan = Plan(name="wards", clients=("a", "b"), run={name: value}, schema=table)
        with pytest.raises(PluresError, match=rf"\[run\] {name} is not used in a federation of sites: {instead}"):
            _ = plan.spec


def test_a_site_loads_no_attack() -> None:
    """What modules import when they are loaded, from what a site runs on, never reaches ``plures.threat``."""
    source = Path(plures.__file__).parent
    left, reached = ["plures.deploy.app", "plures.remote.site"], set[str]()
    while left:
        module = left.pop()
        parts = module.split(".")[1:]
        file = next(
            (
                f
                for f in (source.joinpath(*parts).with_suffix(".py"), source.joinpath(*parts, "__init__.py"))
                if f.exists()
            ),
            None,
        )
        if module in reached or file is None:
            continue
        reached.add(module)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("plures"):
                left += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    assert "plures.evaluate.spec" in reached
    assert not any(module.startswith("plures.threat") for module in reached)


STUDY = """
name = "attacked"
seeds = 1
methods = ["fedamp"]
[[data]]
name = "heart"
[[budgets]]
rounds = 1
{budget}
[tuning]
trials = 0
lr = [0.1]
"""


def test_a_study_has_the_same_options() -> None:
    def cell(budget: str) -> Any:
        return plan_of(parse_study(STUDY.format(budget=budget), "study.toml", Path()), "grid").cells[0]

    wanted = 'attack = "sign_flip"\nattackers = 2\nattack_from = 1\ncombine = "median"'
    spec = cell(wanted).spec("heart")
    assert (spec.threat(), spec.combine) == (Threat(2, SignFlip()), "median")
    assert cell("attack_from = 1").key == cell("").key != cell(wanted).key
    with pytest.raises(PluresError, match="no attack 'flip'"):
        cell('attack = "flip"')
    with pytest.raises(PluresError, match=r"attackers=0\.2 is not used without an attack"):
        cell("attackers = 0.2")
    with pytest.raises(PluresError, match="no robust combination 'mean'"):
        cell('combine = "mean"')


def test_poisoned_runs_keep_the_data_that_were_given() -> None:
    spec = RunSpec(data="heart", attack="label_flip", attackers=["va"])
    data = spec.federation()
    run = spec.run(data, FAST)
    assert torch.equal(run.given.targets, data.targets)
    assert len(run.federation.targets) > len(data.targets)
