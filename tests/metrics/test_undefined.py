"""A metric that is undefined for some clients is NaN all the way to the report: counted, reported, in no mean."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.errors import PluresWarning
from plures.evaluate import Comparison, compare, finish, fit
from plures.evaluate.summary import harmed, summarize
from plures.federation import Federation, from_arrays
from plures.methods import fedavg
from plures.report import console_table, headline, html_report, markdown_table
from plures.run import Execution, Run, Training

FAST = Execution("vmap", 8, False, "float32")
OPTIONS = {"rounds": 2, "seeds": 2, "tune_rounds": 0, "learning_rates": (0.1,), "execution": FAST}
SENTENCE = "For 2 of 6 clients, AUROC is undefined (where all examples are of one class); means leave them out."
LACKING = [4, 5]
pytestmark = pytest.mark.filterwarnings(
    "ignore:one-sided.*only one class", "ignore:AUROC is undefined for 2 of 6", "ignore:AUROC is undefined for every"
)


def one_sided() -> Federation:
    """Six clients, the last two of which have examples of one class alone."""
    generator = np.random.default_rng(0)
    client = np.repeat(np.arange(6), 40)
    x = generator.normal(size=(len(client), 3)).astype(np.float32)
    y = np.where(client < 4, x[:, 0] + generator.normal(size=len(client)) > 0, 0).astype(np.int64)
    return from_arrays(x, y, [f"p{c}" for c in client], name="one-sided", seed=0)


def nobody() -> Federation:
    """Two clients for which no ranking is defined."""
    return one_sided().subset(["p4", "p5"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undefined")


@pytest.fixture(scope="module")
def result(folder: Path) -> Comparison:
    with pytest.warns(PluresWarning, match="AUROC is undefined for 2 of 6 clients on validation data where all"):
        return compare(one_sided(), ["fedper"], metric="auroc", out=folder, **OPTIONS)


def test_scores_have_nan_for_these_clients_alone(result: Comparison) -> None:
    for method in result.methods:
        for seed in method.seeds:
            assert np.flatnonzero(np.isnan(seed.test.values("auroc"))).tolist() == LACKING
            assert seed.test.undefined("auroc") == 2
            assert seed.test.undefined("accuracy") == 0


def test_rows_count_them_and_leave_them_out(result: Comparison) -> None:
    row, own = result.row("fedper"), result.method("fedper").per_client("auroc")
    assert row.undefined == 2
    assert row.mean == pytest.approx(own[:4].mean())
    assert row.worst == own[:4].min()
    alone = result.method("local").per_client("auroc")
    assert row.harmed_local == np.mean(own[:4] < alone[:4])
    assert row.others["auprc"] == pytest.approx(np.nanmean(result.method("fedper").per_client("auprc")))


def test_files_have_null_and_nothing(result: Comparison, folder: Path) -> None:
    told = json.loads((folder / "results.json").read_text())
    values = told["methods"][0]["seeds"][0]["test"]["metrics"]["auroc"]
    assert [i for i, value in enumerate(values) if value is None] == LACKING
    assert Comparison.from_json(folder / "results.json").rows() == result.rows()
    lines = [line for line in csv.DictReader(io.StringIO(result.to_csv())) if line["method"] == "local"]
    assert {line["client"] for line in lines if line["auroc"] == ""} == {"p4", "p5"}
    assert all(line["accuracy"] for line in lines)


def test_terminal_page_and_headline_say_it(result: Comparison) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(console_table(result))
    assert " ".join(SENTENCE.split()) in " ".join(console.export_text().split())
    assert SENTENCE in headline(result)
    page = html_report(result)
    assert SENTENCE in page
    assert "For 2 of 6 clients, average precision is undefined" in page
    assert "NaN" not in page.partition("<body")[2].partition("<script")[0]
    assert "nan" not in markdown_table(result)


def test_nothing_is_said_where_it_is_defined_for_all() -> None:
    data = one_sided().subset(["p0", "p1", "p2"])
    result = compare(data, [], metric="auroc", **OPTIONS)
    assert result.row("local").undefined == 0
    assert "is undefined" not in headline(result) + html_report(result)


def test_a_metric_that_nobody_has_chooses_the_last_round_and_says_so() -> None:
    data = one_sided().subset(["p4", "p5"]).judged_by("auroc")
    run = Run(data, plures.default_model(data), fedavg(), Training(rounds=3), execution=FAST)
    with pytest.warns(PluresWarning, match="AUROC is undefined for every client .* so the last round was chosen"):
        result = finish(fit(run, "none"), 0)
    assert result.chosen_round == 3
    assert all(math.isnan(point.validation) for point in result.curve)


def test_a_metric_that_nobody_has_is_said_to_be_undefined_for_every_client(tmp_path: Path) -> None:
    """And then nobody is best."""
    result = compare(nobody(), [], metric="auroc", **OPTIONS | {"seeds": 1})
    sentence = "AUROC is undefined for every client (where all examples are of one class)."
    page = html_report(result)
    assert sentence in headline(result)
    assert sentence in page
    assert ">best mean" not in page
    command = [
        "run",
        f"{__name__}:nobody",
        "fedavg",
        "--metric",
        "auroc",
        "--rounds",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "test AUROC is undefined for every client where all examples are of one class" in " ".join(
        done.output.split()
    )


def test_summaries_count_who_is_known() -> None:
    values = np.array([0.5, math.nan, 0.7])
    over = summarize(values, [1, 1, 3], higher=True)
    assert (over.known, over.mean, over.weighted) == (2, pytest.approx(0.6), pytest.approx(0.65))
    assert summarize(values[1:2], [1], higher=True).known == 0
    assert harmed(values, np.array([0.6, 0.1, math.nan]), higher=True) == 1.0
