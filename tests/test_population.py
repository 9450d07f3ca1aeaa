"""Clients that are drawn seldom or never: who trains, who is served how, and what the report says of it."""

from __future__ import annotations

import numpy as np
import pytest

from plures.evaluate import Comparison, compare, fit, follow
from plures.federation import Stream
from plures.method import SGD, Method, Personal, everything
from plures.methods import fedavg, fedper, local
from plures.report import html_report
from plures.report.sheets import drawn
from plures.run import Joint, Run, Training, Uniform
from problems import EXACT, quadratic, run, scalar
from test_results import FAST, net, people

LOW = Joint(Uniform(0.3))


# Local-only training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [local, lambda: fedper(everything), lambda: Method(layout={"model": Personal()})])
def test_where_nothing_travels_everybody_trains_in_every_round(make):
    """After r rounds of one full gradient step, w = b (1 - (1 - lr a)^r), whoever the others draw."""
    sampled, whole = (run(make(), 4, steps=1, participation=p) for p in (LOW, None))
    expected = [b * (1 - (1 - 0.1 * a) ** 4) for a, b in zip((1.0, 2.0, 4.0), (-1.0, 0.5, 3.0), strict=True)]
    for done in (sampled, whole):
        assert done.predictors([0, 1, 2])["weight"].flatten().tolist() == pytest.approx(expected)
        assert done.last.tolist() == [4, 4, 4]


def test_where_something_travels_a_sample_trains():
    done = run(fedavg(), 0, participation=LOW)
    done.training = Training(rounds=3, batch_size=None, steps=1, optimizer=SGD(0.1))
    assert [len(record.cohort) for record in done.rounds()] == [1, 1, 1]


def test_an_explicit_cohort_of_a_single_run_is_kept():
    assert run(local(), 1, participation=Uniform(0.3)).last.sum() == 1


def test_a_stream_trains_everybody_alone():
    data = quadratic()
    stream = Stream("twice", ("one", "two"), (data, data))
    training = Training(rounds=2, batch_size=None, steps=1, optimizer=SGD(0.1))
    options = {"execution": EXACT}
    few = follow(stream, scalar(), local(), training, participation=Uniform(0.3), **options)
    every = follow(stream, scalar(), local(), training, **options)
    assert np.array_equal(few.values, every.values)


@pytest.fixture(scope="module")
def sampled() -> tuple[Comparison, Comparison]:
    """A comparison in which two of six clients are drawn in a round, and one in which all are."""
    options = {"model": net, "rounds": 3, "seeds": 2, "tune_rounds": 0, "execution": FAST, "batch_size": 8}
    return compare(people(), ["fedper"], fraction=0.3, **options), compare(people(), ["fedper"], **options)


def test_the_local_baseline_is_that_of_full_participation(sampled):
    few, every = sampled
    for one, other in zip(few.method("local").seeds, every.method("local").seeds, strict=True):
        assert one.test == other.test
        assert one.chosen_round == other.chosen_round
    assert few.method("fedavg").seeds[0].test != every.method("fedavg").seeds[0].test
    assert (few.row("local").megabytes, few.row("local").visits) == (0.0, few.row("local").chosen_round)


# Bytes --------------------------------------------------------------------------------------------------------------


def test_a_clients_megabytes_are_those_that_travelled(sampled):
    """Two of six clients: 58 numbers of four bytes go up and down for each, a third of the full amount per client."""
    few, every = sampled
    for result, share in ((few, 1 / 3), (every, 1.0)):
        row = result.row("fedavg")
        assert row.megabytes == pytest.approx(share * 2 * 4 * 58 * row.chosen_round / 1e6)
        assert row.visits == pytest.approx(share * row.chosen_round)
        assert drawn(result, result.method("fedavg")) == pytest.approx(share)
    seed = few.method("fedper").seeds[0]
    assert seed.reached is not None
    assert [seed.reached.bytes, seed.reached.visits] == [2 * 2 * 4 * 40 * seed.chosen_round, 2 * seed.chosen_round]
    page = html_report(few)
    assert "divided by all clients, drawn or not" in page


def test_visits_are_counted_on_after_an_interruption(tmp_path):
    def fresh():
        training = Training(rounds=4, batch_size=8, optimizer=SGD(0.1))
        return Run(people(), net, fedavg(), training, participation=Uniform(0.3), execution=FAST)

    def stop(point):
        if point.round == 2:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), "m", checkpoint=file, checkpoint_every=1, progress=stop)
    again = fit(fresh(), "m", checkpoint=file)
    assert [point.visits for point in again.curve] == [2, 4, 6, 8]
