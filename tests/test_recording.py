"""FedAvg with an intercept repeats FedAvg's rounds in a comparison, and gets the bits of a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from people import FAST, net, people
from plures import compare
from plures.evaluate import finish, fit, recording
from plures.evaluate.callback import Callback
from plures.evaluate.results import Comparison, SeedResult
from plures.evaluate.spec import RunSpec
from plures.run import Run

RATE = 0.1
WORK = {"batch_size": 8, "rounds": 4}
GIVEN: dict[str, Any] = {
    **WORK,
    "model": net,
    "seeds": 1,
    "learning_rates": [RATE],
    "tune_rounds": 0,
    "every": 3,
    "execution": FAST,
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of all rounds that were trained."""
    names, step = list[str](), Run.step

    def counted(run: Run) -> Any:
        names.append("intercept" if "intercept" in run.bound.initial else "other")
        return step(run)

    monkeypatch.setattr(Run, "step", counted)
    monkeypatch.setitem(fit.__kwdefaults__, "step", counted)
    return names


def untimed(result: SeedResult) -> SeedResult:
    """A result without the seconds that it took."""
    return result.model_copy(update={"curve": [point.model_copy(update={"seconds": 0.0}) for point in result.curve]})


def alone(patience: int | None = None, every: int = 3, clients: int = 3, **work: Any) -> SeedResult:
    """FedAvg with an intercept as a run of its own."""
    spec = RunSpec(data="people", method="intercept", lr=RATE, **{**WORK, **work})
    run = spec.run(people(clients), FAST, model=net)
    return untimed(finish(fit(run, "intercept", every=every, patience=patience), 0))


def found(comparison: Comparison) -> SeedResult:
    return untimed(comparison.method("intercept").seeds[0])


@pytest.mark.parametrize(
    "work",
    [{}, {"participation": "uniform", "fraction": 0.4}, {"attack": "sign_flip+label_flip", "attackers": ["p1"]}],
    ids=["all", "some", "attacked"],
)
def test_it_repeats_the_rounds_and_has_the_result_of_a_run_of_its_own(trained: list[str], work: dict[str, Any]) -> None:
    comparison = compare(people(3), [], **GIVEN, **work)
    assert "intercept" not in trained
    assert "other" in trained
    assert found(comparison) == alone(**work)
    curve = comparison.method("intercept").seeds[0].curve
    assert [point.round for point in curve] == [3, 4]
    fedavg = comparison.method("fedavg").seeds[0].curve
    assert [point.seconds for point in curve] == [point.seconds for point in fedavg]
    assert [point.train_loss for point in curve] == [point.train_loss for point in fedavg]


def test_where_fedavg_ends_early_it_trains_on(trained: list[str]) -> None:
    comparison = compare(people(6), [], **GIVEN | {"rounds": 30, "every": 1, "patience": 3})
    ended = {name: comparison.method(name).seeds[0].curve[-1].round for name in ("fedavg", "intercept")}
    assert ended["fedavg"] < ended["intercept"] < 30
    assert trained.count("intercept") == ended["intercept"] - ended["fedavg"]
    assert found(comparison) == alone(patience=3, every=1, clients=6, rounds=30)


def test_with_states_too_large_to_keep_it_trains_itself(trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST", 100)
    comparison = compare(people(3), [], **GIVEN)
    assert trained.count("intercept") == 4
    assert found(comparison) == alone()


def test_an_interrupted_comparison_resumes_to_the_same_result(tmp_path: Path) -> None:
    class Stop(Callback):
        def __init__(self, method: str) -> None:
            self.method, self.now = method, ""

        def on_start(self, about: Any) -> None:
            self.now = about.name

        def on_round(self, record: Any) -> None:
            if self.now == self.method and record.round == 2:
                raise KeyboardInterrupt

    for method in ("fedavg", "intercept"):
        with pytest.raises(KeyboardInterrupt):
            compare(people(3), [], **GIVEN, out=tmp_path, callbacks=[Stop(method)])
    assert found(compare(people(3), [], **GIVEN, out=tmp_path)) == alone()
