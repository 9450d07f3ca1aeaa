"""Evaluation: metrics, summaries, statistics, selection; and a comparison that is honest, resumable and complete."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
import torch

import plures
from people import FAST, net, people
from plures.evaluate import BASELINES, ClientScores, Comparison, compare, finish, fit, score
from plures.evaluate.predictions import said
from plures.evaluate.scores import Scores
from plures.evaluate.summary import bootstrap, harmed, interval, paired_test, summarize
from plures.files import describe
from plures.method import SGD, Method, Personal
from plures.methods import ditto, local
from plures.metrics.accuracy import accuracy
from plures.metrics.errors import rmse
from plures.metrics.losses import cross_entropy
from plures.report import html_report
from plures.run import Run, Training
from plures.run.checkpoint import save, snapshot
from plures.tasks import Classification, Regression
from problems import EXACT, quadratic, scalar

ACCURACY = np.array([0.9, 0.8, 0.95, 0.4, 0.7, 0.85, 0.6, 0.99, 0.75, 0.5])
SIZES = np.array([10, 20, 10, 5, 5, 10, 10, 10, 10, 10])


# Metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("EV0")
def test_61_summary_of_the_reference_vector():
    summary = summarize(ACCURACY, SIZES, higher=True)
    assert summary.mean == pytest.approx(0.744)
    assert summary.weighted == pytest.approx(0.769)
    assert summary.std == pytest.approx(0.1849972973)
    assert (summary.worst, summary.bottom) == (0.4, 0.4)
    assert summary.p10 == pytest.approx(0.49)
    assert summary.jain == pytest.approx(0.9417721519)


def test_61_the_bad_end_of_an_error_is_its_largest_value():
    summary = summarize(-ACCURACY, SIZES, higher=False)
    assert (summary.worst, summary.bottom, summary.p10) == (-0.4, -0.4, pytest.approx(-0.49))


def test_61_the_bottom_decile_of_thirty_clients_is_three():
    values = np.arange(30.0)
    assert summarize(values, np.ones(30), higher=True).bottom == 1.0
    assert summarize(values, np.ones(30), higher=False).bottom == 28.0


def test_scores_are_those_of_every_clients_own_model():
    """Each client's accuracy equals the one computed by hand from the model it would deploy, in client order."""
    data = people()
    run = Run(data, net, ditto(0.1), Training(rounds=3, batch_size=8, optimizer=SGD(0.3)), execution=FAST)
    for _ in run.rounds():
        pass
    found = score(run, "test")
    models = run.predictors(list(range(6)))
    for i, rows in enumerate(data.splits["test"]):
        leaves = {k: t[i] for k, t in models.items()}
        outputs = torch.func.functional_call(net(), leaves, (data.inputs[rows],))
        by_hand = (outputs.argmax(1) == data.targets[rows]).float().mean().item()
        assert found.values["accuracy"][i] == pytest.approx(by_hand)
    assert len({tuple(t.flatten().tolist()) for t in models["2.weight"]}) == 6


# Statistics -----------------------------------------------------------------------------------------------------


def test_harm_counts_strict_losses_in_the_metrics_direction():
    assert harmed(np.array([1.0, 2, 3, np.nan]), np.array([2.0, 2, 2, 0]), higher=True) == pytest.approx(1 / 3)
    assert harmed(np.array([1.0, 2, 3]), np.array([2.0, 2, 2]), higher=False) == pytest.approx(1 / 3)


def test_a_bootstrap_interval_has_the_percentiles_of_all_draws_of_the_clients():
    """Against all 5^5 equally probable draws with replacement; undefined clients are not drawn."""
    values = np.array([0.1, 0.9, 0.4, 0.45, 0.7])
    means = np.array(list(product(values, repeat=5))).mean(1)
    low, high = bootstrap(np.array([*values, np.nan]), resamples=200_000)
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.004)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)
    assert bootstrap(np.full(7, 0.3)) == pytest.approx((0.3, 0.3))
    assert np.isnan(bootstrap(np.array([0.5, np.nan]))).all()


def test_a_bootstrap_interval_of_five_clients_holds_the_mean_less_often_than_it_says():
    drawn = np.random.default_rng(0).normal(size=(400, 5))
    bounds = [bootstrap(values, resamples=500) for values in drawn]
    assert 0.79 < np.mean([low <= 0 <= high for low, high in bounds]) < 0.89


def test_interval_is_students():
    mean, width = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert width == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert math.isnan(interval([1.0])[1])


def test_paired_test_is_exact_for_few_clients():
    assert paired_test(np.array([2.0, 3, 4, 5]), np.array([1.0, 1, 1, 1])) == pytest.approx(2 / 16)
    assert paired_test(np.array([1.0, 2]), np.array([1.0, 2])) == 1.0
    shift = np.random.default_rng(0).normal(size=40)
    assert paired_test(shift + 2, shift) < 1e-3
    assert paired_test(shift, -shift[::-1] * 0 + shift.mean()) > 0.9


# Selection ------------------------------------------------------------------------------------------------------


def test_the_chosen_round_is_the_best_on_validation_and_its_state_is_what_is_tested():
    """Divergence after a good start: the state of the good round is restored, bit for bit."""
    states = {}

    class Falling:
        def __call__(self, round: int, rounds: int) -> float:
            return 1.0 if round < 3 else 60.0

    training = Training(8, None, steps=1, optimizer=SGD(0.1), schedule=Falling())
    run = Run(quadratic(), scalar(), local(), training, execution=EXACT)
    fitted = fit(run, "falling", progress=lambda p: states.update({p.round: snapshot(run)}))
    values = [p.validation for p in fitted.curve]
    assert fitted.chosen.round == int(np.argmin(values)) + 1 == 3
    last = ClientScores.of(score(run, "test"))
    result = finish(fitted, seed=0)
    assert result.chosen_round == 3
    assert result.test_last == last != result.test
    now = snapshot(run)
    assert all(torch.equal(now[key], states[3][key]) for key in now)


def test_tuning_never_reads_test_data(monkeypatch):
    """Test labels are poisoned: everything that is chosen stays the same."""
    clean = people()
    poisoned = people()
    for rows in poisoned.splits["test"]:
        poisoned.targets[rows] = 1 - poisoned.targets[rows]
    options = {"model": net, "rounds": 4, "seeds": 1, "tune_rounds": 2, "execution": FAST, "batch_size": 8}
    one, two = (compare(data, ["ditto"], **options) for data in (clean, poisoned))
    for a, b in zip(one.methods, two.methods, strict=True):
        assert (a.lr, a.parameters, a.trials) == (b.lr, b.parameters, b.trials)
        assert a.seeds[0].curve[-1].validation == b.seeds[0].curve[-1].validation
        assert a.seeds[0].chosen_round == b.seeds[0].chosen_round
    assert one.row("ditto").mean == pytest.approx(1 - two.row("ditto").mean)


# Checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ditto, local], ids=["ditto", "local"])
def test_resume_after_a_kill_is_exact(tmp_path, method):
    def fresh() -> Run:
        return Run(people(), net, method(), Training(rounds=7, batch_size=8, optimizer=SGD(0.2)), execution=FAST)

    whole = fit(fresh(), "m")

    class KilledError(Exception):
        pass

    def kill(point):
        if point.round == 5:
            raise KilledError

    file = tmp_path / "run.safetensors"
    with pytest.raises(KilledError):
        fit(fresh(), "m", checkpoint=file, checkpoint_every=2, progress=kill)
    again = fit(fresh(), "m", checkpoint=file, checkpoint_every=2)
    ours, theirs = snapshot(again.run), snapshot(whole.run)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    seen, expected = ([(p.round, p.validation, p.bytes) for p in fitted.curve] for fitted in (again, whole))
    assert seen == expected
    assert all(torch.equal(again.best[key], whole.best[key]) for key in whole.best)


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    training = Training(rounds=3, batch_size=8)
    save(Run(people(), net, ditto(), training, execution=FAST), "ditto", file)
    with pytest.raises(
        plures.PluresError, match="checkpoint of another run: the method's name is ditto there and local here"
    ):
        fit(Run(people(), net, local(), training, execution=FAST), "local", checkpoint=file)


def test_a_damaged_checkpoint_is_named(tmp_path):
    file = tmp_path / "run.safetensors"
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(plures.PluresError, match=r"run\.safetensors is not a file that plures wrote"):
        describe(file)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "run.safetensors"
    run = Run(people(), net, local(), Training(rounds=1, batch_size=8), execution=FAST)
    save(run, "local", file)
    before = file.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plures.files.save_file", full)
    with pytest.raises(plures.PluresError, match="No space left on device; what was saved before is untouched"):
        save(run, "local", file)
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["run.safetensors"]


# Comparison -----------------------------------------------------------------------------------------------------


def mine() -> Method:
    """A user's method: everything is personal."""
    return Method(layout={"model": Personal()})


def test_comparison_is_complete_resumes_and_reads_back(tmp_path):
    options = {"model": net, "rounds": 4, "seeds": 2, "tune_rounds": 2, "execution": FAST, "batch_size": 8}
    stages = []
    one = compare(people(), ["ditto", mine], out=tmp_path, unseen=["p5"], listener=stages.append, **options)
    assert [m.name for m in one.methods] == [*BASELINES, "ditto", "mine"]
    assert {len(m.seeds) for m in one.methods} == {2}
    assert one.federation.clients == ["p0", "p1", "p2", "p3", "p4"]
    assert all(run.unseen is not None and run.unseen.clients == ["p5"] for m in one.methods for run in m.seeds)
    assert stages[-1].done == stages[-1].total or stages[-1].done < stages[-1].total
    assert one.method("local").bytes_up == 0 < one.method("fedavg").bytes_up == one.method("ditto").bytes_up
    own, alone = one.method("mine"), one.method("local")
    if own.lr == alone.lr:
        assert [s.test for s in own.seeds] == [s.test for s in alone.seeds]
    trials = one.method("ditto").trials
    assert len(trials) == 3 + 4
    best = max(trials, key=lambda t: t.validation)
    assert (one.method("ditto").lr, one.method("ditto").parameters.get("lam")) == (
        best.lr,
        best.parameters.get("lam", 1.0),
    )

    assert Comparison.from_json(tmp_path / "results.json") == one
    lines = (tmp_path / "clients.csv").read_text().splitlines()
    assert len(lines) == 1 + 7 * 2 * 6
    again = compare(people(), ["ditto", mine], out=tmp_path, unseen=["p5"], **options)
    assert again == one
    with pytest.raises(
        plures.PluresError, match="holds another comparison: the training's rounds is 4 there and 5 here"
    ):
        compare(people(), ["ditto", mine], out=tmp_path, unseen=["p5"], **{**options, "rounds": 5})


def test_rows_agree_with_the_runs():
    options = {"model": net, "rounds": 3, "seeds": 3, "tune_rounds": 0, "execution": FAST, "batch_size": 8}
    result = compare(people(), ["ditto"], **options)
    row, method = result.row("ditto"), result.method("ditto")
    means = [float(np.mean(s.test.values("accuracy"))) for s in method.seeds]
    assert row.mean == pytest.approx(np.mean(means))
    assert row.mean_ci == pytest.approx(4.303 * np.std(means, ddof=1) / math.sqrt(3))
    own, base = method.per_client("accuracy"), result.method("fedavg").per_client("accuracy")
    assert (row.clients_low, row.clients_high) == bootstrap(own)
    assert row.harmed_fedavg == pytest.approx(np.mean(own < base))
    assert row.megabytes == pytest.approx(2 * 4 * 58 * row.chosen_round / 1e6)
    assert [r.name for r in result.rows()] == [*BASELINES, "ditto"]
    assert json.loads(result.to_json())["metric"]["name"] == "accuracy"
    frame = result.frame()
    assert list(frame.index) == [*BASELINES, "ditto"]
    assert (frame.loc["ditto", "mean"], frame.loc["ditto", "loss"]) == (row.mean, row.others["loss"])


def test_a_client_without_test_examples_is_left_out_not_zero():
    scores = ClientScores.of(Scores(("a", "b"), np.array([4, 0]), {"accuracy": np.array([0.5, np.nan])}))
    assert scores.metrics["accuracy"] == [0.5, None]
    assert summarize(scores.values("accuracy"), np.array(scores.sizes), higher=True).mean == 0.5


@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
def test_a_regression_is_compared_and_reported():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(120, 3))
    data = plures.from_arrays(x, x @ [1.0, -2.0, 0.5], np.repeat(["a", "b", "c"], 40), seed=0)
    budget = {"rounds": 60, "seeds": 1, "tune_rounds": 0, "learning_rates": (0.1,)}
    result = plures.compare(data, ["ditto"], model="logistic", **budget)
    assert result.row("ditto").mean < 0.1 * float(data.targets.std()), "an exact linear law"
    assert "root mean squared error" in html_report(result)


def test_a_diverged_model_is_wrong_on_every_example():
    outputs = torch.tensor([[[float("nan"), 0.0], [1.0, 0.0], [float("inf"), 0.0]]])
    targets, weight = torch.tensor([[0, 0, 0]]), torch.tensor([[1.0, 1.0, 0.0]])
    task = Classification(("a", "b"))
    found = said(task, outputs, targets, weight)
    assert accuracy.stacked(found).tolist() == [0.5]
    assert cross_entropy.stacked(found).tolist() == [math.inf]
    regression = Regression(1)
    wild = torch.tensor([[[float("nan")], [1.0]]]), torch.ones(1, 2, 1)
    assert rmse.stacked(said(regression, *wild, torch.tensor([[0.0, 1.0]]))).tolist() == [0.0]
    assert rmse.stacked(said(regression, *wild, torch.ones(1, 2))).tolist() == [math.inf]


@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
def test_among_equal_trials_the_default_is_chosen():
    """CFL does not split in a few rounds, so no bound can be better than another."""
    data = plures.from_arrays(np.eye(60, 4), np.arange(60) % 2, np.repeat(["a", "b", "c"], 20), seed=0)
    result = plures.compare(data, ["cfl"], rounds=1, seeds=1, tune_rounds=1, learning_rates=(0.1,))
    chosen = next(method for method in result.methods if method.name == "cfl")
    assert {"eps1": 0.4, "eps2": 1.6} | chosen.parameters == {"eps1": 0.4, "eps2": 1.6}
