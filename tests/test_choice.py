"""What ``auto`` chooses depends only on measured paces; here they are given, and nothing is timed."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from plures.evaluate import compare
from plures.method import SGD
from plures.methods import ditto, fedavg
from plures.run import Execution, Machine, Run, Training
from plures.run import choose as choosing
from plures.run.choose import Choice, Pace, even, steps_of
from problems import quadratic, scalar
from trajectories import LOOP, assert_same, everything_of, mlp, ragged

AUTO = Execution(precision="float64", capture=False)
TRAINING = Training(rounds=10, batch_size=10)


@dataclass
class Stopwatch:
    """Paces by backend, clients and compilation, instead of measured ones; records what was asked for.

    Attributes:
        loop: seconds of a step of one client.
        stack: seconds of a step of some clients together.
        compiled: the same, compiled.
        compilation: seconds of a compilation.
        spent: seconds that each measurement takes.
    """

    loop: float
    stack: Callable[[int], float]
    compiled: Callable[[int], float] = lambda n: 1e9
    compilation: float = 3.0
    spent: float = 0.0
    asked: list[Execution] = field(default_factory=list)

    def __call__(self, bound, federation, training, execution, seed, phase, machine, allowed) -> Pace:
        self.asked.append(execution)
        if execution.compile is True:
            machine.compilations.append(self.compilation)
            engine = choosing.Engine(bound, federation, training, execution, seed, machine)
            steps = engine._resolved(phase)
            steps._compiled(execution.chunk)
            return Pace(0.0, self.compiled(execution.chunk), self.compilation, self.spent)
        step = self.loop if execution.backend == "loop" else self.stack(execution.chunk)
        return Pace(0.0, step, 0.0, self.spent)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stopwatch], Stopwatch]:
    """Replaces all measurements with a stopwatch; compilation returns the step unchanged."""

    def put(stopwatch: Stopwatch) -> Stopwatch:
        monkeypatch.setattr(choosing, "SHORT", 0.0)
        monkeypatch.setattr(choosing, "pace", stopwatch)
        monkeypatch.setattr(choosing, "uncompilable", lambda: None)
        monkeypatch.setattr(torch, "compile", lambda step, dynamic: step)
        return stopwatch

    return put


def alike(clients: int = 20, size: int = 100):
    """Clients with equally many examples."""
    return quadratic((1.0,) * clients, (0.5,) * clients, (size,) * clients, [f"c{i:02d}" for i in range(clients)])


def chosen(data, rounds: int, machine: Machine | None = None, wanted: Execution = AUTO, method=None) -> Execution:
    training = replace(TRAINING, rounds=rounds)
    return Run(data, scalar(), method or fedavg(), training, execution=wanted, machine=machine).execution


# What a round takes ----------------------------------------------------------------------------------------------


def choice(data, wanted: Execution = AUTO) -> Choice:
    run = Run(data, scalar(), fedavg(), TRAINING, execution=LOOP)
    return Choice(run.bound, run.federation, TRAINING, wanted, 0, len(data), Machine())


def test_seconds_of_a_round_are_those_counted_by_hand():
    """Three clients with 3, 2 and 1 steps in stacks of two; a step of one takes 1 s, of two 1.5 s, a visit 10 s."""
    found = {1: [Pace(10.0, 1.0)], 2: [Pace(10.0, 1.5)]}
    made = choice(quadratic(sizes=(30, 20, 10)))
    assert made.steps[0].tolist() == [3, 2, 1]
    assert made.round(found, 2) == pytest.approx((10 + 2 * 1.5 + 1 * 1.0) + (10 + 1 * 1.0))
    assert made.round(found, 2, compiled=True) == pytest.approx((10 + 3 * 1.5) + (10 + 1 * 1.0))


def test_paces_between_measured_sizes_are_interpolated():
    found = {2: [Pace(0.0, 2.0)], 4: [Pace(0.0, 3.0)]}
    assert choice(alike(3, 10)).round(found, 3) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(None, None, [3, 2, 1]), (2.0, None, [6, 4, 2]), (None, 5, [5, 5, 5])]
)
def test_steps_of_a_cohort_are_those_of_its_batches(epochs, steps, expected):
    data, phase = quadratic(sizes=(10, 20, 25)), fedavg().schedule[0]
    training = Training(batch_size=10, epochs=epochs, steps=steps)
    assert steps_of(phase, data, training, 3).tolist() == expected


def test_half_a_cohort_has_clients_of_all_sizes():
    data = quadratic((1.0,) * 5, (0.0,) * 5, (50, 10, 30, 20, 40), list("abcde"))
    assert steps_of(fedavg().schedule[0], data, TRAINING, 3).tolist() == [5, 3, 1]


def test_chunks_are_of_nearly_equal_size():
    assert even(20) == [1, 2, 3, 4, 5, 7, 10, 20]
    assert even(200)[-1] == 100
    assert max(even(1000)) == 125


# What is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "stack", "backend", "chunk"),
    [
        (1e-3, lambda n: 2e-3 * n, "loop", None),
        (1e-3, lambda n: 1e-3, "vmap", 20),
        (1e-3, lambda n: 1e-4 * max(n, 8) ** 2 / 8, "vmap", 7),
    ],
    ids=["one after the other", "all together", "what fits into the cache"],
)
def test_the_shortest_round_is_taken(loop, stack, backend, chunk, timed):
    timed(Stopwatch(loop, stack))
    found = chosen(alike(), 1)
    assert (found.backend, found.compile) == (backend, False)
    assert chunk is None or found.chunk == chunk


def test_sizes_between_the_measured_ones_are_measured_where_they_promise_most(timed):
    """A step of up to ten clients takes 1 ms, of twenty 4: from eight and twenty, ten are expected to take 1.5 ms."""
    watch = timed(Stopwatch(1e-2, lambda n: 1e-3 if n <= 10 else 4e-3))
    assert chosen(alike(), 1).chunk == 10
    assert [e.chunk for e in watch.asked if e.backend == "vmap"] == [8, 20, 1, 7, 10]


def test_ragged_clients_drop_out_of_a_stack_and_it_may_still_win(timed):
    """1,000 steps of one client and one of nineteen others: 1,019 steps alone, 1,000 in a stack that costs no more."""
    sizes = (10_000, *(10,) * 19)
    data = quadratic((1.0,) * 20, (0.5,) * 20, sizes, [f"c{i:02d}" for i in range(20)])
    timed(Stopwatch(1e-3, lambda n: 1e-3 * (0.9 + 0.1 * n)))
    assert chosen(data, 1).backend == "vmap"
    timed(Stopwatch(1e-3, lambda n: 1e-3 * (1.5 + 0.1 * n)))
    assert chosen(data, 1).backend == "loop"


# Compilation by expected gain ------------------------------------------------------------------------------------


def quick(n: int) -> float:
    """Ten steps of twenty clients at once take 0.1 s."""
    return 1e-2 * (1 + n / 1e6)


@pytest.mark.parametrize(("rounds", "compiled"), [(20, False), (60, False), (100, True), (1000, True)])
def test_twenty_seconds_of_work_are_worth_three_of_compilation(rounds, compiled, timed):
    """A round takes 0.1 s and is hoped to take half of it, so 4 s, the expectation at first, pay after 80 rounds."""
    watch = timed(Stopwatch(1e-1, quick, lambda n: 2e-3))
    found = chosen(alike(), rounds)
    assert (found.compile, any(e.compile for e in watch.asked)) == (compiled, compiled)


def test_a_compilation_that_disappoints_is_not_taken(timed):
    watch = timed(Stopwatch(1e-1, quick, lambda n: 2e-2))
    assert chosen(alike(), 1000).compile is False
    assert sum(e.compile is True for e in watch.asked) == 1


def test_what_a_compilation_took_here_counts_for_the_next(timed):
    """After one that took a minute, another kind of work that would have been worth four seconds is not."""
    machine = Machine()
    timed(Stopwatch(1e-1, quick, lambda n: 2e-3, compilation=60.0))
    assert chosen(alike(), 1000, machine).compile is True
    assert machine.compilation == 60.0
    assert chosen(alike(19), 200, machine).compile is False
    assert chosen(alike(19), 200).compile is True


def test_a_smaller_compiled_chunk_is_tried_where_much_is_left(timed):
    """Compiled, ten clients fit into the cache and twenty do not."""
    timed(Stopwatch(1e-1, lambda n: 1e-3 * n, lambda n: 4e-5 * n if n <= 10 else 4e-4 * n))
    assert chosen(alike(), 10_000).chunk <= 10


def test_a_smaller_compiled_chunk_is_tried_where_compiling_spares_what_makes_it_slow(timed):
    """A step of n clients takes 2 + n ms. Compiled, one of twenty takes 20 ms, a round of ten steps 0.2 s.

    Of the 2 ms, compiling spares 1.6. So twice ten clients are hoped to take 0.8 * 20.8 / 20.4 of the 0.2 s, 37 ms
    less, which is worth three seconds after 82 rounds; by 24 / 22 for 20.8 / 20.4 it would be after 118.
    """
    watch = timed(Stopwatch(1e-1, lambda n: 1e-3 * (2 + n), lambda n: 1e-3 * n * (1 if n > 10 else 0.5)))
    assert choosing.bare({n: [Pace(0.1, 1e-3 * (2 + n))] for n in (1, 8, 20)}) == {
        n: [Pace(0.1, pytest.approx(1e-3 * (0.4 + n)))] for n in (1, 8, 20)
    }
    assert [chosen(alike(), rounds).chunk for rounds in (60, 100)] == [20, 10]
    assert [e.chunk for e in watch.asked if e.compile] == [20, 20, 10]


def test_stacks_on_a_cpu_are_captured_and_less_is_hoped_of_compiling_them(timed):
    """A round takes 0.1 s. Compiled it is hoped to take 0.095 s, so 4 s pay after 800 rounds; here it takes 0.02 s."""
    watch = timed(Stopwatch(1e-1, quick, lambda n: 2e-3))
    free = replace(AUTO, capture="auto")
    for rounds, compiled in ((700, False), (900, True)):
        found = chosen(alike(), rounds, wanted=free)
        assert (found.backend, found.capture, found.compile) == ("vmap", not compiled, compiled)
    assert all(e.capture for e in watch.asked if e.backend == "vmap" and not e.compile)
    assert chosen(alike(), 900, wanted=replace(AUTO, capture=True)).compile is False
    assert chosen(alike(), 1, wanted=replace(free, compile=True)).capture is False


def test_compiling_captured_steps_is_tried_within_what_measuring_left_of_the_budget(timed):
    """5 % of 900 rounds of 0.1 s are 4.5 s, of which a compilation, expected to take 4 s, needs nearly all."""
    for spent, tried in ((0.4, True), (0.6, False)):
        made = choice(alike(), replace(AUTO, capture="auto"))
        made.training = replace(TRAINING, rounds=900)
        made.timed[replace(AUTO, backend="vmap", chunk=20, compile=False, capture=True)] = 0.1
        made.paces[True] = {20: [Pace(0.0, 0.01)]}
        made.spent = spent
        timed(Stopwatch(1e-1, quick, lambda n: 2e-3))
        assert made.best().compile is tried
        assert made.spent == pytest.approx(spent + 3.0 * tried)


def test_less_is_hoped_of_compilation_where_a_network_convolves(timed):
    """A round takes 0.1 s. Compiled, it is hoped to take half of that, or nine tenths where the network convolves."""
    made = choice(alike())
    made.timed[replace(AUTO, backend="vmap", chunk=20, compile=False, capture=False)] = 0.1
    made.paces[False] = {20: [Pace(0.0, 0.01)]}
    assert min(made.hoped().values()) == pytest.approx(0.05)
    made.bound.network.convolves = frozenset({1})
    assert min(made.hoped().values()) == pytest.approx(0.09)


def test_a_compilation_that_the_budget_covers_is_hoped_for_where_a_network_convolves_too(timed):
    """A round takes 0.1 s: 5 % of 900 rounds are 4.5 s, of 700 rounds 3.5; a compilation is expected to take 4 s."""
    made = choice(alike())
    made.bound.network.convolves = frozenset({2})
    made.timed[replace(AUTO, backend="vmap", chunk=20, compile=False, capture=False)] = 0.1
    made.paces[False] = {20: [Pace(0.0, 0.01)]}
    for rounds, expected in ((900, 0.05), (700, 0.09)):
        made.training = replace(TRAINING, rounds=rounds)
        assert min(made.hoped().values()) == pytest.approx(expected)


def test_what_compilation_gained_counts_for_other_methods_of_the_same_network(timed):
    """Compiled, the network of the first method is slower than before. So the second one, whose work is of another
    kind, is not compiled, though 1,000 rounds of 0.1 s would be worth it by what is hoped for at first."""
    watch, machine = timed(Stopwatch(1e-1, quick, lambda n: 1.1e-2)), Machine()
    assert chosen(alike(), 1000, machine).compile is False
    assert list(machine.gains.values()) == [pytest.approx(1.1, rel=1e-3)]
    asked = len(watch.asked)
    assert chosen(alike(), 1000, machine, method=ditto(0.1)).compile is False
    assert not any(e.compile for e in watch.asked[asked:])
    assert any(e.compile for e in watch.asked[:asked])


@pytest.mark.parametrize("wanted", [replace(AUTO, compile=True), Execution("vmap", "auto", True, "float64")])
def test_compilation_that_was_asked_for_is_done_whatever_it_costs(wanted, timed):
    timed(Stopwatch(1e-1, quick, lambda n: 1e-3))
    assert chosen(alike(), 1, wanted=wanted).compile is True


# What it may cost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rounds", "most"), [(1, 2.0), (100, 5.0)])
def test_measuring_costs_two_seconds_or_five_percent_of_the_run(rounds, most, timed, monkeypatch):
    """A round takes a second, and so does each measurement; what would go beyond the bound is left out."""
    watch = timed(Stopwatch(5e-4, lambda n: 4.9e-4 * n))
    monkeypatch.setattr(choosing, "pace", lambda *args: replace(watch(*args), spent=1.0))
    made = choice(alike(200))
    made.training = replace(TRAINING, rounds=rounds)
    made.compare()
    assert made.spent <= most
    assert {e.backend for e in watch.asked} == ({"loop", "vmap"})


def test_larger_stacks_are_left_once_they_are_hopeless(timed):
    watch = timed(Stopwatch(1e-3, lambda n: 1e-3 * n**2))
    chosen(alike(200), 1)
    assert {e.chunk for e in watch.asked if e.backend == "vmap"} == {8, 1, 32}


def glanced(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """A clock by which each step of one client takes the given seconds, instead of the real one."""
    moments = iter([0.0, step, 0.0, choosing.GLANCE * step])
    monkeypatch.setattr(choosing, "time", SimpleNamespace(perf_counter=lambda: next(moments)))


@pytest.mark.parametrize(("rounds", "measured"), [(2, False), (3, True)])
def test_a_run_of_less_than_half_a_second_is_not_measured(rounds, measured, timed, monkeypatch):
    """Ten steps of twenty clients at a millisecond each: two rounds take 0.4 s, three 0.6 s."""
    watch, machine = timed(Stopwatch(1e-3, lambda n: 1e-5)), Machine()
    monkeypatch.setattr(choosing, "SHORT", 0.5)
    glanced(monkeypatch, 1e-3)
    found = chosen(alike(), rounds, machine)
    assert (found.backend, found.settled) == ("vmap" if measured else "loop", True)
    assert (bool(watch.asked), bool(machine.timings)) == (measured, measured)


def test_rounds_of_runs_to_come_count_for_whether_one_is_measured(timed, monkeypatch):
    watch = timed(Stopwatch(1e-3, lambda n: 1e-5))
    monkeypatch.setattr(choosing, "SHORT", 0.5)
    glanced(monkeypatch, 1e-3)
    assert chosen(alike(), 2, Machine().expecting(3)).backend == "vmap"
    assert watch.asked


def test_a_step_that_takes_long_is_looked_at_once(timed, monkeypatch):
    """It takes 0.2 s; four more would take longer than the run may."""
    timed(Stopwatch(0.2, lambda n: 1e-5))
    monkeypatch.setattr(choosing, "SHORT", 0.5)
    moments = iter([0.0, 0.2])
    monkeypatch.setattr(choosing, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    assert chosen(alike(), 1).backend == "vmap"
    assert next(moments, None) is None


@pytest.mark.parametrize(
    "wanted",
    [replace(AUTO, backend="vmap"), replace(AUTO, compile=True), replace(AUTO, convolutions="patches")],
    ids=["stacks", "compiled", "patches"],
)
def test_what_was_asked_for_is_not_given_up_in_a_short_run(wanted, timed, monkeypatch):
    timed(Stopwatch(1e-3, lambda n: 1e-5, lambda n: 1e-5))
    monkeypatch.setattr(choosing, "SHORT", math.inf)
    found = chosen(alike(), 1, wanted=wanted)
    assert (found.backend, found.convolutions) == ("vmap", wanted.convolutions)
    assert wanted.compile is not True or found.compile is True


# What runs share -------------------------------------------------------------------------------------------------


def test_runs_of_one_machine_measure_each_kind_of_work_once(timed):
    watch, machine = timed(Stopwatch(1e-1, quick)), Machine()
    first = chosen(alike(), 5, machine, method=ditto(0.1))
    asked = len(watch.asked)
    assert chosen(alike(), 5, machine, method=ditto(2.0)) == first
    assert len(watch.asked) == asked
    chosen(alike(), 5, machine)
    assert len(watch.asked) > asked


def test_what_comes_after_a_run_counts_for_its_compilation(timed):
    timed(Stopwatch(1e-1, quick, lambda n: 2e-3))
    machine = Machine()
    assert chosen(alike(), 10, machine.expecting(1000)).compile is True
    assert chosen(alike(), 10, machine).compile is True, "the step is compiled already"
    assert chosen(alike(), 10).compile is False


STEPPED = Execution("vmap", 4, True, "float64")


def trained(execution: Execution, method=None, lr: float = 0.1, seed: int = 0, machine: Machine | None = None) -> Run:
    training = Training(rounds=2, batch_size=4, optimizer=SGD(lr))
    run = Run(ragged(), mlp, method or fedavg(), training, execution=execution, seed=seed, machine=machine)
    run.losses = [(record.loss, record.objective) for record in run.rounds()]
    return run


def test_runs_with_other_rates_and_seeds_share_compiled_steps_and_results_stay(timed):
    timed(Stopwatch(1.0, quick))
    machine = Machine()
    trained(STEPPED, machine=machine)
    known = dict(machine.steps)
    done = trained(STEPPED, lr=0.3, seed=1, machine=machine)
    assert known
    assert machine.steps == known
    assert_same(everything_of(done), everything_of(trained(LOOP, lr=0.3, seed=1)))


def test_compiled_steps_do_not_keep_the_data_of_the_run_that_made_them(timed):
    timed(Stopwatch(1.0, quick))
    machine = Machine()
    data = weakref.ref(trained(STEPPED, machine=machine).federation)
    gc.collect()
    assert machine.steps
    assert data() is None


def test_steps_that_compute_something_else_are_not_shared(timed):
    timed(Stopwatch(1.0, quick))
    machine = Machine()
    trained(STEPPED, ditto(0.5), machine=machine)
    known = len(machine.steps)
    done = trained(STEPPED, ditto(0.7), machine=machine)
    assert len(machine.steps) == known + 2, "the personal phase anew, in stacks of four and of three"
    assert_same(everything_of(done), everything_of(trained(LOOP, ditto(0.7))))


def test_a_comparison_measures_each_kind_of_work_once(timed):
    """Rounds of local, FedAvg and its variants with fine-tuning and intercept are alike; Ditto has two more phases."""
    watch = timed(Stopwatch(1e-1, quick))
    options = {"rounds": 2, "seeds": 3, "learning_rates": (0.1, 0.2), "tune_rounds": 1, "batch_size": 10}
    compare(alike(3), ["ditto"], model=scalar(), execution=AUTO, **options)
    assert sum(e.backend == "loop" for e in watch.asked) == 1 + 2


def test_the_choice_is_told(timed, caplog):
    timed(Stopwatch(1e-1, quick))
    with caplog.at_level(logging.INFO, "plures"):
        chosen(alike(), 1)
    assert (
        "auto takes stacks of 20 clients in float64: 100 ms a round, in place of one client after the other: 20 s "
        in (caplog.text)
    )


def test_the_measured_pace_of_copies_is_positive_and_leaves_the_run_alone():
    run = trained(LOOP)
    before = {k: t.clone() for k, t in everything_of(run).items()}
    found = choosing.pace(
        run.bound, run.federation, TRAINING, replace(LOOP, backend="vmap"), 0, run.method.schedule[0], Machine(), 0.1
    )
    assert found.step > 0
    assert found.fixed >= 0
    assert np.isfinite([found.step, found.fixed, found.spent]).all()
    assert_same(everything_of(run), before, atol=0.0)
