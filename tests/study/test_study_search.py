"""Tuning: which settings are tried, which are stopped, and what is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from plures.errors import PluresError
from plures.evaluate import tuning as one_after_the_other
from plures.study import parse_study, plan_of, resolved
from plures.study import search as searching
from plures.study.document import Range, TuningPart
from plures.study.plan import Candidate
from plures.study.search import best, every_setting, points, run_search, start
from plures.study.store import Tried


def candidate(space: str, method: str = "ditto") -> Candidate:
    text = f'name = "s"\ndata = ["heart"]\n[[methods]]\nname = "{method}"\nlabel = "m"\n[methods.space]\n{space}'
    return plan_of(parse_study(text, "study.toml", Path()), "optuna").candidates[-1]


LISTS = candidate("lr = [0.01, 0.1, 1.0]\nlam = [0.1, 1.0, 10.0, 100.0]")
RANGES = candidate("lr = { low = 0.001, high = 1.0, log = true }\nlam = { low = 0.01, high = 4.0 }")


class World:
    """Trials whose curves are known: validation grows with rounds to a peak at lr = 0.1, lam = 2."""

    def __init__(self, rounds: int = 4, better: int = 1) -> None:
        self.rounds, self.better, self.ran, self.kept = rounds, better, 0, list[Tried]()

    def attempt(self, setting: dict[str, Any], behind: Any) -> tuple[dict[int, float], bool, float]:
        self.ran += 1
        top = -abs(math.log10(setting.get("lr", 0.1) / 0.1)) - abs(setting.get("lam", 2.0) - 2) / 2
        curve = {}
        for step in range(1, self.rounds + 1):
            curve[step] = self.better * (top - 1 / step)
            if step < self.rounds and behind(step, curve[step]):
                return curve, True, 0.0
        return curve, False, 0.0

    def search(self, of: Candidate, history: list[Tried] | None = None, **options: Any) -> dict[str, Any]:
        search = options.pop("search", "optuna")
        part = TuningPart.model_validate({"trials": 12, "rounds": self.rounds, "pruning": "none"} | options)
        history = [] if history is None else history
        return run_search(
            of, part, search, history, self.attempt, self.kept.append, higher=self.better > 0, seed="a study"
        )


def test_a_small_space_is_tried_whole_beginning_with_the_defaults() -> None:
    world = World()
    assert start(LISTS) == {"lr": 0.1, "lam": 1.0}
    settings = every_setting(LISTS, 12)
    assert settings is not None
    assert settings[0] == start(LISTS)
    assert every_setting(LISTS, 11) is None
    assert world.search(LISTS, trials=30) == {"lr": 0.1, "lam": 1.0}
    assert [tried.setting for tried in world.kept] == settings
    assert world.ran == 12


def test_no_setting_of_lists_is_tried_twice() -> None:
    world = World()
    world.search(LISTS, trials=11)
    settings = [json.dumps(tried.setting) for tried in world.kept]
    assert len(settings) == len(set(settings)) == world.ran == 11


def test_whole_numbers_that_come_again_are_not_run_again() -> None:
    world, few = World(), candidate("lr = [0.1]\nlam = { low = 1, high = 3 }")
    world.search(few, trials=10)
    states = [tried.state for tried in world.kept]
    assert len(states) == 10
    assert world.ran == states.count("finished") <= 3
    assert states.count("repeated") == 10 - world.ran
    assert all(isinstance(tried.setting["lam"], int) for tried in world.kept)


@pytest.mark.parametrize("better", [1, -1])
def test_ranges_are_searched_towards_the_peak(better: int) -> None:
    world = World(better=better)
    chosen = world.search(RANGES, trials=40)
    first = [tried.validation * better for tried in world.kept[:5]]
    assert world.kept[0].setting["lam"] == RANGES.entry.defaults["lam"]
    assert best(world.kept, higher=better > 0).validation * better > max(first)
    assert abs(math.log10(chosen["lr"] / 0.1)) < 0.5
    assert abs(chosen["lam"] - 2) < 1
    assert all(0.001 <= t.setting["lr"] <= 1 and 0 <= t.setting["lam"] <= 4 for t in world.kept)


@pytest.mark.parametrize("pruning", ["median", "halving"])
def test_what_falls_behind_is_stopped_and_never_chosen(pruning: str) -> None:
    world = World(rounds=8)
    chosen = world.search(RANGES, trials=24, pruning=pruning)
    states = [tried.state for tried in world.kept]
    pruned = [tried for tried in world.kept if tried.state == "pruned"]
    assert states.count("finished") + len(pruned) == 24 == world.ran
    assert 4 <= len(pruned) <= 20
    assert all(len(tried.curve) < 8 for tried in pruned)
    assert all(len(tried.curve) == 8 for tried in world.kept if tried.state == "finished")
    assert chosen in [tried.setting for tried in world.kept if tried.state == "finished"]
    if pruning == "median":  # by hand: the best value so far is below the median of the finished trials at that point
        for tried in pruned:
            step = max(tried.curve)
            before = [t.curve[step] for t in world.kept[: tried.number] if t.state == "finished"]
            middle = sorted(before)
            median = (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
            assert max(tried.curve.values()) < median


@pytest.mark.parametrize("pruning", ["median", "halving"])
@pytest.mark.parametrize("cut", [1, 5, 13])
def test_a_search_that_stopped_goes_on_as_if_it_had_not(pruning: str, cut: int) -> None:
    whole, again = World(rounds=6), World(rounds=6)
    chosen = whole.search(RANGES, trials=20, pruning=pruning)
    assert again.search(RANGES, whole.kept[:cut], trials=20, pruning=pruning) == chosen
    assert again.kept == whole.kept[cut:]


def test_a_setting_that_diverged_is_the_worst() -> None:
    nan = Tried(0, "finished", {"lr": 1.0}, {1: math.nan}, math.nan, 0.0, {})
    bad = Tried(1, "finished", {"lr": 0.1}, {1: 9.0}, 9.0, 0.0, {})
    assert best([nan, bad], higher=True) is bad
    assert best([nan, bad], higher=False) is bad


def test_the_grid_tries_what_compare_tries() -> None:
    world = World()
    chosen = world.search(LISTS, search="grid", trials=1)
    settings = [tuple(tried.setting.values()) for tried in world.kept]
    assert settings == [(0.01,), (0.1,), (1.0,), (0.1, 0.1), (0.1, 10.0), (0.1, 100.0)]
    assert chosen == {"lr": 0.1}  # the default strength won
    rates, strengths = [0.01, 0.1, 1.0], {"lam": [0.1, 1.0, 10.0, 100.0]}
    assert one_after_the_other.attempts(rates, strengths, LISTS.entry.defaults) == 6
    again = World()
    assert again.search(LISTS, world.kept[:4], search="grid") == chosen
    assert again.ran == 2


def test_points_of_ranges() -> None:
    assert points(Range(low=0.01, high=1.0, log=True)) == pytest.approx([0.01, 0.1, 1.0])
    assert points(Range(low=1, high=4)) == [1, 2, 4]
    assert points(Range(low=1, high=2)) == [1, 2]


def test_without_optuna_the_grid_is_taken_or_the_extra_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resolved("auto"), resolved("random"), resolved("grid")) == ("optuna", "random", "grid")
    monkeypatch.setattr(searching.importlib.util, "find_spec", lambda name: None)
    assert (resolved("auto"), resolved("grid")) == ("grid", "grid")
    with pytest.raises(PluresError, match=r"pip install 'plures\[tune\]'"):
        resolved("optuna")
