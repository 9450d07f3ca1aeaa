"""What privacy costs is in tables, reports, cards and files, and options are used or refused."""

from __future__ import annotations

import math

import pytest

import plures
from plures.errors import PluresError
from plures.evaluate import RunFolder, finish
from plures.privacy import gaussian
from plures.report import console_table, html_report, markdown_table
from plures.run import Execution
from plures.serving import PersonalModel
from plures.study import read_study

ALONE = Execution("loop", 1, False, "float32")
TWO = gaussian(3.0 / math.sqrt(2), 1e-5)
"""Epsilon of two rounds with everybody, noise 3."""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("private") / "out"
    options = {"rounds": 2, "seeds": 1, "tune_rounds": 0, "model": "logistic", "execution": ALONE}
    return plures.compare("heart", [], dp="clip=0.5,noise=3", out=out, **options), out


def test_the_table_says_what_each_method_spent(compared):
    result, _ = compared
    spent = {row.name: row.epsilon for row in result.rows()}
    assert spent["local"] is None
    assert spent["fedavg"] == pytest.approx(TWO)
    assert spent["fedavg_ft"] == spent["intercept"] == spent["fedavg"]
    assert "epsilon spent" in markdown_table(result)
    assert f"{TWO:.2f}" in markdown_table(result)
    said = "Differential privacy of each client at delta 1e-05: clip 0.5, noise 3,"
    assert said in str(console_table(result).caption)
    assert "2 rounds, the server is trusted" in html_report(result)
    assert plures.Comparison.model_validate_json(result.to_json()) == result


def test_a_comparison_of_another_noise_is_another_one(compared):
    _, out = compared
    options = {"rounds": 2, "seeds": 1, "tune_rounds": 0, "model": "logistic", "execution": ALONE}
    with pytest.raises(PluresError, match="holds another comparison"):
        plures.compare("heart", [], dp="clip=0.5,noise=2", out=out, **options)


def test_a_card_says_what_is_covered_and_what_is_not(compared):
    _, out = compared
    folder = RunFolder(out / "runs" / "fedavg-seed0")
    assert folder.result().privacy.epsilon == pytest.approx(TWO)
    text = PersonalModel.stored(folder, "va").card.text()
    assert "## Privacy" in text
    assert f"epsilon {TWO:.3g}" in text
    assert "does not protect this client from whoever gets this model" in text


def test_the_folder_of_a_private_run_is_read_again(tmp_path, says):
    options = ["--rounds", "2", "--model", "logistic", "--quiet", "--out", str(tmp_path / "run")]
    status, text = says("run", "heart", "fedavg", "--dp", "clip=0.5,noise=3,quantile=0.5,votes=9", *options)
    assert status == 0
    assert f"epsilon {TWO:.3g}. Differential privacy of each client at delta 1e-05" in text
    model = PersonalModel.stored(RunFolder(tmp_path / "run"), "va")
    assert model.card.privacy.clip == 0.5
    assert model.card.spec.dp.startswith("clip=0.5")


def test_the_card_of_private_steps_covers_the_model_itself(tmp_path):
    options = {"rounds": 1, "model": "logistic", "batch_size": None, "steps": 2}
    spec = plures.RunSpec(data="heart", method="local+dp_sgd(noise=4,rate=1)", **options)
    run = spec.run(plures.load("heart"), ALONE)
    run.step()
    text = PersonalModel.of(run, "va", spec).card.text()
    assert "What left the client, and this model, are private: epsilon" in text
    assert "whoever gets this model included" in text
    assert "in each of 2 steps of its client, 1 round, nobody is trusted" in text


def test_rounds_after_the_chosen_one_count():
    heart = plures.load("heart")
    spec = plures.RunSpec(data="heart", rounds=3, model="logistic", lr=1e-9, dp="clip=0.5,noise=3")
    run = spec.run(heart, ALONE)
    result = finish(plures.fit(run, "fedavg"), 0)
    assert result.privacy.rounds == 3
    assert result.privacy.epsilon == pytest.approx(gaussian(3.0 / math.sqrt(3), 1e-5))


def test_noise_is_found_for_a_wanted_epsilon():
    heart = plures.load("heart")
    spec = plures.RunSpec(data="heart", rounds=4, dp="epsilon=2, clip=0.5, delta=1e-4")
    found = spec.calibrated(heart)
    assert found.calibrated(heart) == found
    run = found.run(heart, ALONE)
    assert 1.99 < run.origin.plan.epsilon(4) <= 2.0
    again = spec.run(heart, ALONE)
    assert again.origin.plan == run.origin.plan or again.origin.plan.stage == run.origin.plan.stage


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("noise=1,epsilon=2", "give epsilon or noise, not both"),
        ("clipping=1", "clipping"),
        ("clip=0", "clip=0"),
        ("clip=one", "clip"),
    ],
)
def test_a_bad_option_is_named(text, said):
    with pytest.raises(PluresError, match=said):
        plures.RunSpec(data="heart", dp=text)


def test_a_study_has_a_budget_of_privacy(tmp_path):
    file = tmp_path / "study.toml"
    text = 'name = "s"\n[[data]]\nname = "heart"\n[[methods]]\nname = "ditto"\n[[budgets]]\nrounds = 1\ndp = "{}"\n'
    file.write_text(text.format("clip=0.5,noise=3"))
    (budget,) = read_study(file).document.budgets
    assert budget.dp == "clip=0.5,noise=3"
    file.write_text(text.format("clip=0"))
    with pytest.raises(PluresError, match="clip=0"):
        read_study(file)
