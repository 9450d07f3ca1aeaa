"""Callbacks are notified of everything that a run does, in order, and change nothing in it."""

from __future__ import annotations

import pytest
import torch
from tracked import FAST, NAMES, ROUNDS, Heard, fresh, net, people

from plures.errors import PluresWarning
from plures.evaluate import compare, finish, fit
from plures.evaluate.callback import Callback, flat
from plures.files import describe
from plures.run.checkpoint import snapshot


def same(one, other) -> bool:
    ours, theirs = snapshot(one), snapshot(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_callback_hears_start_rounds_points_and_end_in_order():
    heard, points = Heard(), []
    fitted = fit(fresh(), "mine", every=2, callbacks=[heard], progress=points.append)
    result = finish(fitted, seed=0)
    assert heard.order == ["start", "round", "round", "point", "round", "round", "point", "round", "point", "end"]
    assert heard.told("point") == fitted.curve == result.curve
    assert [record.round for record in heard.told("round")] == [1, 2, 3, 4, 5]
    assert [record.loss for record in heard.told("round")] == [point.train_loss for point in points]
    assert [record.objective for record in heard.told("round")] == [point.objective for point in points]
    assert sum(record.seconds for record in heard.told("round")) == pytest.approx(fitted.curve[-1].seconds)
    assert heard.told("end") == [result]
    (about,) = heard.told("start")
    assert (about.title, about.federation, about.clients) == ("mine", "people", NAMES)
    assert (about.rounds, about.done, about.metric.name) == (ROUNDS, 0, "accuracy")
    assert about.settings["batch_size"] == 8
    assert "lr=0.3" in about.settings["optimizer"]


def test_a_callback_that_fails_is_named_and_left_out_and_the_run_stays_the_same():
    class Broken(Heard):
        def on_point(self, point):
            super().on_point(point)
            raise RuntimeError("the disk is full")

    alone = fit(fresh(), "m")
    broken, beside = Broken(), Heard()
    with pytest.warns(
        PluresWarning, match=r"callback Broken: on_point failed \(RuntimeError: the disk is full\)"
    ) as said:
        fitted = fit(fresh(), "m", callbacks=[broken, beside])
    assert len(said) == 1
    assert said[0].filename == __file__
    assert broken.order == ["start", "round", "point"]
    assert beside.order == ["start", *["round", "point"] * ROUNDS]
    assert same(fitted.run, alone.run)
    untimed = [[point.model_copy(update={"seconds": 0.0}) for point in one.curve] for one in (fitted, alone)]
    assert untimed[0] == untimed[1]
    finish(fitted, 0)
    assert beside.order[-1] == "end" != broken.order[-1]


def test_a_callback_stops_a_run_as_ctrl_c_does_and_the_run_goes_on_exactly(tmp_path):
    class Enough(Callback):
        def on_round(self, record):
            if record.round == 3:
                raise KeyboardInterrupt

    whole, file, heard = fit(fresh(), "m"), tmp_path / "run.safetensors", Heard()
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), "m", checkpoint=file, callbacks=[Enough(), heard])
    assert heard.order == ["start", *["round", "point"] * 3, "stop"]
    assert isinstance(heard.told("stop")[0], KeyboardInterrupt)
    assert len(describe(file)["curve"]) == 3
    again = Heard()
    fitted = fit(fresh(), "m", checkpoint=file, callbacks=[again])
    assert again.told("start")[0].done == 3
    assert [record.round for record in again.told("round")] == [4, 5]
    assert same(fitted.run, whole.run)


def test_an_error_of_the_run_is_told_and_raised():
    class LostError(Exception):
        pass

    def lose(point):
        raise LostError

    heard = Heard()
    with pytest.raises(LostError):
        fit(fresh(), "m", callbacks=[heard], progress=lose)
    assert heard.order == ["start", "round", "point", "stop"]
    assert isinstance(heard.told("stop")[0], LostError)


def test_a_comparison_tells_of_every_run_once(tmp_path):
    options = {"model": net, "rounds": 2, "seeds": 2, "tune_rounds": 1, "execution": FAST, "batch_size": 8}
    options["learning_rates"] = (0.1, 0.3)
    heard = Heard()
    result = compare(people(), ["ditto"], out=tmp_path, callbacks=[heard], **options)
    starts = heard.told("start")
    assert len({about.title for about in starts}) == len(starts)
    trials = [about for about in starts if about.stage == "tuning"]
    assert len(trials) == sum(len(method.trials) for method in result.methods)
    finals = [about for about in starts if about.stage != "tuning"]
    rates = {(about.title.split(" ")[0].rstrip(","), about.stage): about.settings["lr"] for about in finals}
    assert len(rates) == len(finals)
    used = {(m.name, f"seed {run.seed}"): m.lr for m in result.methods for run in m.seeds}
    assert rates.keys() == used.keys()
    assert all(rates[run] == lr for run, lr in used.items() if lr is not None)  # a constant trains nothing
    results = [told for told in heard.told("end") if told is not None]
    runs = [run for method in result.methods for run in method.seeds]
    assert len(results) == len(runs)
    assert all(run in results for run in runs)
    assert len(heard.told("end")) == len(starts)
    assert all(later == "start" for one, later in zip(heard.order, heard.order[1:], strict=False) if one == "end")
    again = Heard()
    compare(people(), ["ditto"], out=tmp_path, callbacks=[again], **options)
    assert again.events == []


def test_settings_are_flattened():
    given = {
        "lr": 0.1,
        "parameters": {"lam": 0.5, "sizes": (1, 2)},
        "model": None,
        "unseen": [],
        "on": True,
        "x": 1 + 2j,
    }
    assert flat(given) == {"lr": 0.1, "parameters.lam": 0.5, "parameters.sizes": "1, 2", "on": True, "x": "(1+2j)"}
