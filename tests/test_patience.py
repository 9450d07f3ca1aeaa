"""Patience ends a run once validation has not improved for some rounds; a resumed run ends at the same round."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import plures
from people import FAST, net, people
from plures import PluresError, Run, Training, compare, fit
from plures.evaluate.callback import Callback
from plures.evaluate.fit import Fit
from plures.evaluate.results import Point
from plures.evaluate.scores import primary
from plures.files import describe
from plures.method import SGD
from plures.report.document import curve
from plures.run.checkpoint import snapshot


def fresh(rate: float = 0.3, rounds: int = 20) -> Run:
    training = Training(rounds=rounds, batch_size=8, optimizer=SGD(rate))
    return Run(people(), net, plures.METHODS["ditto"](), training, seed=1, execution=FAST)


def read(*values: float, every: int, patience: int | None, rounds: int = 100) -> bool:
    """Whether a run with these readings has ended."""
    points = [
        Point(round=every * (place + 1), train_loss=0.0, validation=value, bytes=0, seconds=0.0)
        for place, value in enumerate(values)
    ]
    run = SimpleNamespace(federation=people(), training=Training(rounds=rounds), round=points[-1].round)
    assert primary(run.federation).higher
    return Fit(run, points, patience=patience).ended


@pytest.mark.parametrize(
    ("values", "every", "patience", "ended"),
    [
        ((0.5, 0.6, 0.5), 1, 2, False),  # one round after the best one, at round 2
        ((0.5, 0.6, 0.5, 0.6), 1, 2, True),  # as good is not better
        ((0.5, 0.6, 0.5, 0.61), 1, 2, False),
        ((0.5, 0.4), 4, 5, False),  # four rounds after the best
        ((0.5, 0.4, 0.4), 4, 5, True),
        ((float("nan"),) * 9, 1, 2, False),  # it is unknown which round is better
        ((0.5, float("nan"), float("nan")), 1, 2, True),
        ((0.5,) * 9, 1, None, False),
    ],
)
def test_rounds_without_a_better_reading_are_counted_from_the_best_one(values, every, patience, ended):
    assert read(*values, every=every, patience=patience) is ended


def test_a_run_that_learns_nothing_ends_after_its_patience():
    assert [point.round for point in fit(fresh(1e-12), "still", patience=3).curve] == [1, 2, 3, 4]
    assert [point.round for point in fit(fresh(1e-12), "still", every=2, patience=3).curve] == [2, 4, 6]


def test_the_rounds_that_are_run_are_those_of_a_patient_run_and_resuming_ends_at_the_same_one(tmp_path):
    patient, whole = fit(fresh(), "m", patience=4), fit(fresh(), "m")
    last = patient.run.round
    assert last < 20 == whole.run.round
    assert last - patient.chosen.round == 4
    assert untimed(patient) == untimed(whole)[:last]
    for stop in (1, patient.chosen.round, last - 1, last):
        file = tmp_path / f"{stop}.safetensors"

        class Stop(Callback):
            def on_round(self, record):
                if record.round == stop:  # noqa: B023
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(fresh(), "m", patience=4, checkpoint=file, callbacks=[Stop()])
        assert len(describe(file)["curve"]) == stop
        resumed = fit(fresh(), "m", patience=4, checkpoint=file)
        assert untimed(resumed) == untimed(patient)
        one, other = snapshot(resumed.run), snapshot(patient.run)
        assert all(bool((one[key] == other[key]).all()) for key in other)
        assert all(bool((resumed.best[key] == patient.best[key]).all()) for key in patient.best)
    with pytest.raises(PluresError, match="patience is 4 there and 5 here"):
        fit(fresh(), "m", patience=5, checkpoint=file)
    with pytest.raises(PluresError, match="patience is 4 there and nothing here"):
        fit(fresh(), "m", checkpoint=file)


def untimed(fitted: Fit[Run]) -> list[Point]:
    return [point.model_copy(update={"seconds": 0.0}) for point in fitted.curve]


def test_a_comparison_counts_the_spared_rounds_as_done_and_asks_for_the_same_patience_again(tmp_path):
    asked = {"model": net, "rounds": 12, "seeds": 2, "execution": FAST, "batch_size": 8, "tune_rounds": 0, "every": 1}
    stages = []
    result = compare(people(), [], out=tmp_path, patience=2, listener=stages.append, **asked)
    assert result.settings["patience"] == 2
    runs = [seed for method in result.methods if method.name != "constant" for seed in method.seeds]
    assert {seed.curve[-1].round - seed.chosen_round for seed in runs if seed.curve[-1].round < 12} == {2}
    assert any(seed.curve[-1].round < 12 for seed in runs)
    assert stages[-1].done == stages[-1].total == (4 * 12 + 1) * 2
    assert sum(stage.ended for stage in stages) == 10
    with pytest.raises(PluresError, match="holds another comparison: patience is 2 there and 3 here"):
        compare(people(), [], out=tmp_path, patience=3, **asked)
    with pytest.raises(PluresError, match=r"^patience=0: give at least 1 round, or None to run all rounds$"):
        compare(people(), [], patience=0, **asked)
    alone = result.method("local")
    drawn = curve(alone)
    first, second = ({point.round: point.validation for point in seed.curve} for seed in alone.seeds)
    at = max(*first, *second)  # a run that has ended keeps its last reading
    assert drawn[-1]["round"] == at
    ends = [readings.get(at, readings[max(readings)]) for readings in (first, second)]
    assert drawn[-1]["mean"] == pytest.approx(sum(ends) / 2)
