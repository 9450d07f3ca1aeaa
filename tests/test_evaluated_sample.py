"""A sample of clients is scored instead of all: who is in it, what it says about all, what large results leave out."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import plures
from people import FAST, net, people
from plures.errors import PluresError
from plures.evaluate import RunFolder, compare, finish, fit, score
from plures.evaluate.sample import sampled, sampling_width
from plures.federation import SplitRule
from plures.method import SGD
from plures.methods import ditto
from plures.report import headline, html_report
from plures.run import Run, Training, Uniform


def trained(**options):
    training = Training(rounds=3, batch_size=8, optimizer=SGD(0.3))
    made = Run(people(), net, ditto(), training, participation=Uniform(0.5), execution=FAST)
    return fit(made, "ditto", **options)


def test_the_sample_depends_on_names_alone_and_is_drawn_without_replacement():
    data = people()
    chosen = sampled(data, 4)
    assert len(set(chosen)) == 4
    assert chosen == sorted(chosen)
    out = next(i for i in range(6) if i not in chosen)
    rest = data.hold_out([data.clients[out]])[0]
    assert [rest.clients[i] for i in sampled(rest, 4)] == [data.clients[i] for i in chosen]
    assert sampled(data, 6) is None
    assert sampled(data, None) is None
    for wrong in (0, 1, 7):
        with pytest.raises(PluresError, match=f"evaluate_clients={wrong}: give a number from 2 to 6, the clients of"):
            sampled(data, wrong)


def test_every_client_is_drawn_as_often_as_any_other():
    inputs, owner = np.zeros((12000, 1)), np.arange(4000).repeat(3)
    data = plures.from_arrays(inputs, np.arange(12000) % 2, owner, split=SplitRule(0, 0), copies="allow", name="many")
    quarters = np.bincount(np.array(sampled(data, 1000)) // 1000, minlength=4)
    assert abs(quarters - 250).max() < 4 * (1000 * 0.25 * 0.75) ** 0.5


def test_the_interval_is_that_of_sampling_without_replacement():
    """By hand: s = sqrt(0.08 / 3) = 0.163299, and 1.96 s sqrt((1 - 4 / 10) / 4)."""
    values = np.array([0.5, 0.7, 0.9, 0.7, np.nan])
    assert sampling_width(values, 10) == pytest.approx(1.96 * (0.08 / 3) ** 0.5 * (0.6 / 4) ** 0.5)
    assert sampling_width(values[:4], 4) == 0.0
    assert np.isnan(sampling_width(values[:1], 10))
    rng = np.random.default_rng(0)
    whole = rng.exponential(size=2_000)
    hits = 0
    for _ in range(400):
        own = rng.choice(whole, 300, replace=False)
        hits += abs(own.mean() - whole.mean()) < sampling_width(own, len(whole))
    assert 0.92 < hits / 400 < 0.98


def test_scores_of_some_clients_are_those_that_they_have_among_all():
    done = trained().run
    whole, part = score(done, "test"), score(done, "test", clients=[4, 1])
    assert part.clients == (whole.clients[1], whole.clients[4])
    assert part.sizes.tolist() == whole.sizes[[1, 4]].tolist()
    for name, values in part.values.items():
        assert values.tolist() == whole.values[name][[1, 4]].tolist()


def test_a_run_is_chosen_tested_and_told_by_its_sample(tmp_path):
    fitted = trained(evaluate_clients=3)
    names = [fitted.run.federation.clients[i] for i in fitted.asked]
    result = finish(fitted, 0)
    assert result.validation.clients == result.test.clients == names
    for point in result.curve:
        assert point.validation == pytest.approx(np.mean(point.clients))
        assert len(point.clients) == 3
    assert len(result.details.mistakes) == len(result.details.personal.places) == 3
    assert set(result.never) <= set(names)
    folder = RunFolder(tmp_path / "run")
    folder.write(fitted.run, None, result, clients=fitted.asked)
    assert sorted(folder.model(names[0])) == sorted(fitted.run.predictors([fitted.asked[0]]))
    other = next(name for name in fitted.run.federation.clients if name not in names)
    with pytest.raises(PluresError, match=f"no client '{other}'"):
        folder.model(other)
    file = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        trained(evaluate_clients=3, checkpoint=file, checkpoint_every=1, progress=stopped)
    with pytest.raises(PluresError, match="evaluate_clients is 3 there and nothing here"):
        trained(checkpoint=file)
    assert trained(evaluate_clients=3, checkpoint=file).curve[-1].clients == result.curve[-1].clients


def stopped(point):
    if point.round == 2:
        raise KeyboardInterrupt


def test_a_comparison_states_its_sample_and_the_interval():
    options = {"rounds": 2, "seeds": 2, "learning_rates": [0.3], "tune_rounds": 1, "execution": FAST, "batch_size": 8}
    found = compare(people(), ["ditto"], model=net, evaluate_clients=4, **options)
    card = found.federation
    assert (len(card.clients), card.population, card.trained) == (4, 6, 6)
    assert all(method.seeds[0].test.clients == card.clients for method in found.methods)
    row = found.row("ditto")
    assert row.sampled_ci == pytest.approx(sampling_width(found.method("ditto").per_client(found.metric.name), 6))
    assert row.visits == pytest.approx(row.chosen_round)  # all six train
    told = headline(found)
    assert (
        "Only 4 of 6 clients were scored, one random sample for all methods, seeds and trials; a mean over all" in told
    )
    assert "(95 % confidence)" in told
    assert "4 sampled of 6" in html_report(found)
    whole = compare(people(), ["ditto"], model=net, **options)
    assert whole.row("ditto").sampled_ci is None
    assert "sample" not in headline(whole)
    assert plures.Comparison.model_validate_json(found.to_json()) == found


def test_what_belongs_to_single_clients_is_left_out_of_large_results_and_pages(monkeypatch):
    options = {"rounds": 2, "seeds": 1, "learning_rates": [0.3], "tune_rounds": 0, "execution": FAST, "batch_size": 8}
    monkeypatch.setattr(sys.modules["plures.evaluate.details"], "MOST_CLIENTS", 5)
    monkeypatch.setattr(sys.modules["plures.evaluate.fit"], "MOST_CLIENTS", 5)
    monkeypatch.setattr(sys.modules["plures.report.html"], "MOST_SHOWN", 4)
    monkeypatch.setattr(sys.modules["plures.evaluate.compare"], "LARGE", 5)
    with pytest.warns(plures.errors.PluresWarning, match="all 6 clients are scored in every run.*evaluate_clients=2"):
        found = compare(people(), ["ditto"], model=net, **options)
    seed = found.method("ditto").seeds[0]
    assert len(seed.test.clients) == 6
    assert (seed.details.mistakes, seed.details.personal, seed.curve[0].clients) == ([], None, [])
    page = html_report(found)
    assert "Charts and lists of clients show 4 of the 6, drawn at random; tables of methods all." in page
    assert page.count(chr(34) + "about" + chr(34) + ":") == 4
