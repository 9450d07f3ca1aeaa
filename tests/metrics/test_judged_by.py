"""Any metric can be the one by which rounds and settings are chosen and clients are called harmed."""

from __future__ import annotations

import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.errors import PluresError, PluresWarning
from plures.evaluate import Point, RunFolder, RunSpec, cold_start_curve, compare, finish, fit, primary, score
from plures.evaluate.callback import Callback
from plures.federation import Federation, from_arrays
from plures.methods import fedavg
from plures.metrics import Metric, alone
from plures.metrics.auroc import auroc
from plures.metrics.losses import mean_loss
from plures.report import console_table
from plures.run import Execution, Run, Training

FAST = Execution("vmap", 8, False, "float32")
OWN = """
from plures import Metric

def rest(predictions):
    return 1 - (predictions.decisions == predictions.targets).double()

mistakes = Metric("mistakes", "share of mistakes", rest, unit="%", range=(0, 1))
odd = 3
asks = rest
"""


def rare(clients: int = 5, seed: int = 0) -> Federation:
    """Clients with one positive example in ten; inputs say little about which one it is."""
    generator = np.random.default_rng(seed)
    client = np.repeat(np.arange(clients), 60)
    y = (np.arange(len(client)) % 10 == 0).astype(np.int64)
    x = generator.normal(size=(len(client), 3)).astype(np.float32) + 0.8 * y[:, None]
    return from_arrays(x, y, [f"p{c}" for c in client], name="rare", seed=seed)


def trained(federation: Federation, rounds: int = 4) -> Run:
    return Run(federation, plures.default_model(federation), fedavg(), Training(rounds=rounds), execution=FAST)


def test_a_federation_says_what_comes_first() -> None:
    plain, other = rare(), rare().judged_by("auroc")
    assert (primary(plain).name, primary(other)) == ("accuracy", auroc)
    assert {m.name for m in plain.metrics} == {m.name for m in other.metrics}
    assert other.subset(["p1", "p2"]).metric is auroc
    assert all(part.metric is auroc for part in other.hold_out(["p1"]))
    assert other.judged_by("accuracy").metric is other.judged_by(None).metric is None


def test_a_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(PluresError, match="no metric 'auc' for classification in 2 classes; did you mean 'auroc'"):
        rare().judged_by("auc")
    with pytest.raises(PluresError, match="metric 'auroc': there is another metric of this name; rename yours"):
        rare().judged_by(replace(auroc, higher=False))


def test_the_round_is_chosen_by_it() -> None:
    """Every point of the curve is the mean of the metric that was asked for, computed by its own function."""
    run = trained(rare().judged_by("auroc"))
    seen = []

    def look(point: Point) -> None:
        seen.append(score(run, "validation", metrics=(auroc,)).values["auroc"])

    fitted = fit(run, "auroc", progress=look)
    values = [point.validation for point in fitted.curve]
    assert values == pytest.approx([np.nanmean(one) for one in seen])
    assert fitted.chosen.round == 1 + int(np.argmax(values))
    result = finish(fitted, 0)
    assert set(result.test.metrics) == {metric.name for metric in run.federation.metrics}


def test_a_smaller_value_can_be_better() -> None:
    fitted = fit(trained(rare().judged_by("brier")), "brier")
    values = [point.validation for point in fitted.curve]
    assert fitted.chosen.round == 1 + int(np.argmin(values))


def test_a_comparison_is_judged_by_it(tmp_path: Path) -> None:
    options = {"rounds": 2, "seeds": 1, "tune_rounds": 1, "learning_rates": (0.01, 0.3), "execution": FAST}
    result = compare(rare(), ["fedper"], metric="auroc", out=tmp_path, **options)
    assert (result.metric.name, result.metric.title, result.metric.percent) == ("auroc", "AUROC", False)
    row = result.row("fedper")
    assert row.mean == pytest.approx(np.nanmean(result.method("fedper").per_client("auroc")))
    own, alone_ = (result.method(name).per_client("auroc") for name in ("fedper", "local"))
    assert row.harmed_local == np.mean(own < alone_)
    best = max(result.method("fedper").trials, key=lambda trial: trial.validation)
    assert result.method("fedper").lr == best.lr
    assert compare(rare(), ["fedper"], metric="auroc", out=tmp_path, **options).rows() == result.rows()


def test_the_first_of_several_metrics_chooses_and_the_others_are_reported_beside_it(tmp_path: Path) -> None:
    options = {"rounds": 2, "seeds": 1, "tune_rounds": 1, "learning_rates": (0.01, 0.3), "execution": FAST}
    one = compare(rare(), [], metric="auroc", **options)
    three = compare(rare(), [], metric=["auroc", "sensitivity", "brier"], out=tmp_path, **options)
    assert three.metric.name == "auroc"
    others = [(card.name, card.named) for card in three.others]
    assert others[:3] == [("sensitivity", True), ("brier", True), ("accuracy", False)]
    assert [name for name, named in others if named] == ["sensitivity", "brier"]
    assert len(others) == len(one.others) + 1
    assert [row.mean for row in three.rows()] == [row.mean for row in one.rows()]
    assert [method.lr for method in three.methods] == [method.lr for method in one.methods]
    row, told = three.row("fedavg"), three.method("fedavg")
    assert row.others["sensitivity"] == pytest.approx(np.nanmean(told.per_client("sensitivity")), nan_ok=True)
    frame, csv = three.frame(), three.to_csv().splitlines()[0].split(",")
    assert frame.loc["fedavg", "brier"] == row.others["brier"]
    assert csv[6:9] == ["auroc", "sensitivity", "brier"]
    assert compare(rare(), [], metric=["auroc", "sensitivity", "brier"], out=tmp_path, **options) == three
    with pytest.raises(PluresError, match=r"holds another comparison.*metrics beside it"):
        compare(rare(), [], metric=["auroc", "sensitivity"], out=tmp_path, **options)


def test_metrics_beside_the_first_may_be_ones_own() -> None:
    worst = Metric("worst", "largest loss", lambda p: p.losses, alone(lambda losses: losses.max()))
    federation = rare().judged_by("auroc", worst)
    assert [one.name for one in federation.metrics][:2] == ["auroc", "worst"]
    assert federation.hold_out(["p1"])[1].beside == (worst,)
    with pytest.raises(PluresError, match="metric 'auroc' is named twice; name it once"):
        rare().judged_by("auroc", worst, "auroc")
    result = compare(rare(), [], metric=["auroc", worst], rounds=1, seeds=1, tune_rounds=0, execution=FAST)
    assert result.others[0].name == "worst"


def test_results_of_another_metric_are_not_gone_on_with(tmp_path: Path) -> None:
    options = {"rounds": 1, "seeds": 1, "tune_rounds": 0, "learning_rates": (0.1,), "execution": FAST}
    compare(rare(), ["fedper"], metric="auroc", out=tmp_path, **options)
    with pytest.raises(PluresError, match=r"holds another comparison.*metric"):
        compare(rare(), ["fedper"], metric="f1", out=tmp_path, **options)
    with pytest.raises(PluresError, match=r"holds another comparison.*metric"):
        compare(rare(), ["fedper"], out=tmp_path, **options)


def test_a_checkpoint_of_another_metric_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"

    with pytest.raises(KeyboardInterrupt):
        fit(trained(rare().judged_by("auroc"), 9), "run", checkpoint=file, checkpoint_every=1, callbacks=[Stop()])
    with pytest.raises(PluresError, match="metric"):
        fit(trained(rare(), 9), "run", checkpoint=file)


class Stop(Callback):
    def on_round(self, record: object) -> None:
        raise KeyboardInterrupt


def test_a_metric_of_ones_own_in_python() -> None:
    worst = Metric("worst", "largest loss", lambda p: p.losses, alone(lambda losses: losses.max()))
    result = compare(rare(), [], metric=worst, rounds=1, seeds=1, tune_rounds=0, execution=FAST)
    assert result.metric.name == "worst"
    assert "worst" in result.to_csv().splitlines()[0]
    assert all(math.isfinite(x) for x in result.method("fedavg").per_client("worst"))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "measures_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*words: str) -> str:
    result = CliRunner().invoke(app, [*words], catch_exceptions=True)
    return result.output + (str(result.exception) if result.exception else "")


def test_plures_run_takes_a_metric(own: Path) -> None:
    small = ("--rounds", "1", "--out", "out", "--backend", "loop", "--chunk", "1", "--no-compile-step")
    said = command("run", "heart", "fedavg", "--metric", "measures_of_mine:mistakes", *small)
    assert "share of mistakes" in said, said
    folder = RunFolder(own / "out")
    assert folder.spec().metric == "measures_of_mine:mistakes"
    test = folder.result().test
    assert np.array(test.metrics["mistakes"]) == pytest.approx(1 - np.array(test.metrics["accuracy"]))
    with pytest.raises(PluresError, match=r"metric 'measures_of_mine:mistakes' is code.*only with your consent"):
        folder.spec().federation(folder.reading)


def test_plures_compare_takes_several_metrics(own: Path) -> None:
    small = ("--rounds", "1", "--seeds", "1", "--tune-rounds", "0", "--method", "fedper", "--backend", "loop")
    asked = ("--metric", "auroc", "--metric", "measures_of_mine:mistakes", "--metric", "sensitivity_at_specificity_90")
    command("compare", "heart", *asked, *small, "--out", "out", "--chunk", "1", "--no-compile-step")
    result = plures.Comparison.from_json(own / "out" / "results.json")
    named = [card.name for card in result.others if card.named]
    assert (result.metric.name, named) == ("auroc", ["mistakes", "sensitivity_at_specificity_90"])
    table = console_table(result)
    narrow, kept = Console(width=64), StringIO()
    narrow.file = kept
    narrow.print(table)
    assert "mistakes" in kept.getvalue()
    assert "MB per" not in kept.getvalue()


def test_what_is_no_metric_is_refused(own: Path) -> None:
    assert "no metric 'auc'" in command("run", "heart", "fedavg", "--metric", "auc")
    assert "3 is neither a plures.Metric" in command("run", "heart", "fedavg", "--metric", "measures_of_mine:odd")
    asked = command("run", "heart", "fedavg", "--metric", "measures_of_mine:asks")
    assert "metric 'measures_of_mine:asks'" in asked
    assert "predictions" in asked
    assert "TypeError" not in asked


def test_a_task_may_leave_the_loss_unmeasured() -> None:
    """Divergence is detected from outputs, not from a metric that the task may lack."""
    federation = rare()
    federation = replace(federation, task=replace(federation.task, metrics=(auroc,)))
    assert list(finish(fit(trained(federation, 1), "run"), 0).test.metrics) == ["auroc"]
    run = Run(
        federation,
        plures.default_model(federation),
        fedavg(),
        Training(rounds=1, optimizer=plures.SGD(1e38)),
        execution=FAST,
    )
    with pytest.warns(PluresWarning, match=rf"the models of {len(federation)} clients diverged \(p0, "):
        finish(fit(run, "run"), 0)


def test_cold_start_has_every_metric() -> None:
    seen, unseen = rare(6).judged_by("auroc").hold_out(["p5"])
    run = trained(seen, 1)
    run.step()
    curve = cold_start_curve(run, unseen, (0,))
    assert curve.values()[0] == pytest.approx(curve.values("auroc")[0], nan_ok=True)
    with pytest.raises(PluresError, match="no metric 'auc' here"):
        curve.values("auc")


def test_old_descriptions_name_no_metric() -> None:
    assert RunSpec(data="heart").metric is None
    assert RunSpec.model_validate({"data": "heart"}).judged(rare()).metric is None


def counting(predictions):
    return torch.ones_like(predictions.losses)


def ignoring(weight, ones):
    return ones.sum(1)


def writing(predictions):
    predictions.outputs.zero_()
    return predictions.losses


def failing(predictions):
    return predictions.chances[..., 7]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric("fails", "fails", failing), "metric 'fails': IndexError"),
        (
            Metric("writes", "writes", writing),
            r"metric 'writes' writes into predictions\.outputs: it must work on a copy",
        ),
        (
            Metric("counts", "counts", counting, ignoring),
            "is 8 for 8 examples and 9 with a row of padding",
        ),
        (
            Metric("mixed", "mixed", mean_loss.each, ignoring),
            "metric 'mixed' is .* with a row of padding",
        ),
        (Metric("flat", "flat", lambda p: p.losses.sum()), r"metric 'flat': each\(predictions\) returned"),
        (
            Metric("one", "one", counting, lambda w, x: x.sum()),
            r"metric 'one': value\(weight, \.\.\.\) returned",
        ),
    ],
)
def test_a_metric_that_cannot_work_is_refused_before_the_first_step(metric: plures.Metric, message: str) -> None:
    data = rare()
    with pytest.raises(PluresError, match=message):
        plures.Run(data.judged_by(metric), plures.default_model(data), plures.METHODS["fedavg"]())
