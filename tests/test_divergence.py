"""Diverging training: one sentence, harm is counted, and results are read back unchanged."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest

from people import FAST
from plures.errors import PluresWarning
from plures.evaluate import ClientScores, Comparison, compare
from plures.evaluate.results import Trial
from plures.evaluate.summary import harmed, interval, paired_test, summarize
from plures.evaluate.tuning import coordinate
from plures.federation import from_arrays
from plures.report import console_table, headline, html_report, markdown_table
from report.comparisons import comparison

INF = math.inf


def test_whoever_diverges_is_harmed_against_a_finite_value():
    values, reference = np.array([INF, INF, 1.0, 2.0, np.nan, INF]), np.array([1.0, INF, INF, 1.0, 1.0, np.nan])
    assert harmed(values, reference, higher=False) == 2 / 4
    assert harmed(-values, -reference, higher=True) == 2 / 4
    assert harmed(np.full(3, INF), np.ones(3), higher=False) == 1.0
    assert harmed(np.full(3, INF), np.full(3, INF), higher=False) == 0.0


def test_a_difference_to_a_diverged_client_is_the_largest():
    """Four differences of one sign: 2 of 16 patterns are as extreme, whether or not one difference is infinite."""
    assert paired_test(np.array([INF, 3.0, 4.0, 5.0]), np.ones(4)) == 2 / 16
    assert paired_test(np.array([INF, 0.5, 0.5, 0.5]), np.ones(4)) == 1.0
    assert paired_test(np.array([INF, 1.0]), np.array([INF, 1.0])) == 1.0
    assert paired_test(np.full(5, INF), np.ones(5)) == 2 / 32


def test_summaries_of_infinite_values():
    over = summarize(np.array([1.0, INF, 3.0]), np.array([1.0, 0.0, 1.0]), higher=False)
    assert (over.mean, over.weighted, over.worst, over.bottom) == (INF, 2.0, INF, INF)
    assert math.isnan(over.std)
    assert interval([1.0, INF])[0] == INF


def test_a_diverged_setting_is_not_chosen():
    worth = {0.1: 2.0, 0.3: INF, 1.0: math.nan}

    def attempt(lr, parameters):
        return Trial(lr=lr, parameters=parameters, validation=worth[lr])

    assert coordinate((1.0, 0.3, 0.1), {}, {}, attempt, higher=False)[0] == 0.1


def people(kind: str):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(120, 4)).astype(np.float32)
    y = (x @ np.ones(4)).astype(np.float32) if kind == "regression" else (x[:, 0] > 0).astype(np.int64)
    return from_arrays(x, y, [f"p{i % 4}" for i in range(120)], name="people")


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_comparison_in_which_everything_diverges(kind, tmp_path):
    """Sentences instead of NumPy's warnings; valid JSON that gives the same rows; pages that can be written."""
    options = {"rounds": 12, "seeds": 2, "learning_rates": (1e30,), "tune_rounds": 0, "batch_size": 8, "model": "mlp"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = compare(people(kind), [], execution=FAST, out=tmp_path, **options)
        rows = result.rows()
        html_report(result)
        console_table(result)
        markdown_table(result)
        text = headline(result)
    odd = [str(w.message) for w in told if not issubclass(w.category, PluresWarning)]
    assert not odd, odd
    assert {str(w.message).partition("(")[0] for w in told} == {"the models of 4 clients diverged "}
    assert [row.diverged for row in rows] == [0, 4, 4, 4, 4]
    assert "Training diverged" in text
    assert "Local only for 4 of 4 clients" in text
    loss = result.method("local").per_client("loss")
    assert loss.tolist() == [INF] * 4
    assert harmed(loss, result.method("fedavg").per_client("loss"), higher=False) == 0.0

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    for file in [tmp_path / "results.json", *tmp_path.glob("runs/*/run.json")]:
        json.loads(file.read_text(), parse_constant=refuse)
    again = Comparison.from_json(tmp_path / "results.json")
    assert again.method("fedavg").per_client("loss").tolist() == [INF] * 4


def test_a_method_that_diverges_beside_others_that_do_not():
    made = comparison(
        kind="regression", clients=10, seeds=2, missing=False, names=("local", "fedavg", "fedavg_ft", "ditto")
    )

    def lost(scores: ClientScores) -> ClientScores:
        first = [INF] * 3 + scores.metrics["rmse"][3:]
        return scores.model_copy(update={"metrics": {**scores.metrics, "rmse": first, "loss": first}})

    methods = list(made.methods)
    seeds = [seed.model_copy(update={"test": lost(seed.test)}) for seed in methods[3].seeds]
    methods[3] = methods[3].model_copy(update={"seeds": seeds})
    result = made.model_copy(update={"methods": methods})
    before, after = made.row("ditto"), result.row("ditto")
    values, alone = (made.method(name).per_client("rmse") for name in ("ditto", "local"))
    assert after.harmed_local == (3 + (values[3:] > alone[3:]).sum()) / 10 > before.harmed_local - 0.3
    assert (after.mean, after.diverged) == (INF, 3)
    assert [row.name for row in result.rows()][-1] == "ditto"
    assert "Ditto for 3 of 10 clients" in headline(result)
    assert "\N{INFINITY}" in markdown_table(result)
    assert '"lost":[true,true,true,false' in html_report(result)
