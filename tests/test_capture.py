"""Captured steps give the same results as uncaptured ones: tapes, and a fake graph that replays them on the CPU."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from benchmarks.gpu import QUICK
from torch import Tensor, nn

from four import begun, clients
from graphs import Pretended, pretended
from newcomers import linear
from plures import PluresError
from plures.federation import Federation, from_arrays
from plures.method import SGD, Adam, Method, Phase
from plures.methods import METHODS, fedavg
from plures.report.catalogue import model
from plures.run import Cosine, Execution, Run, Training, Uniform, capture
from plures.run.capture import RECORDERS
from plures.run.checkpoint import restore, snapshot
from plures.run.kernels import factors
from plures.run.machine import Machine
from plures.run.memory import equal
from plures.run.steps import Stacked
from plures.run.tape import Tapes

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


def ragged(sizes: list[int]) -> Federation:
    """Clients with some numbers of training examples, all different or not."""
    generator = np.random.default_rng(0)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    x = generator.normal(size=(len(owner), 6))
    return from_arrays(x, (x[:, 0] > 0).astype(int), owner, seed=0, dtype=torch.float64, name="sizes")


def network(*, drop: float = 0.0, norm: bool = False) -> Callable[[], nn.Module]:
    layers = [
        nn.Linear(6, 5),
        *[nn.BatchNorm1d(5)] * norm,
        nn.ReLU(),
        *[nn.Dropout(drop)] * (drop > 0),
        nn.Linear(5, 2),
    ]
    return lambda: nn.Sequential(*layers)


def reached(
    data: Federation, net: Callable[[], nn.Module], method: Method, training: Training, *, capture: bool, chunk: int
) -> tuple[dict[str, Tensor], list[float]]:
    execution = Execution("vmap", chunk, False, "float64", capture=capture)
    run = Run(data, net, method, training, execution=execution, seed=1)
    losses = [run.step().loss for _ in range(3)]
    return snapshot(run), losses


def both(*given: Any, chunk: int = 4) -> type[Pretended]:
    """The same run without and with capture, and counts of recordings and replays."""
    with pretended() as counted:
        plain, captured = (reached(*given, capture=capture, chunk=chunk) for capture in (False, True))
    assert plain[0].keys() == captured[0].keys()
    for key, value in plain[0].items():
        torch.testing.assert_close(captured[0][key], value, atol=1e-12, rtol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    np.testing.assert_allclose(captured[1], plain[1], rtol=1e-9)
    return counted


@pytest.mark.parametrize("name", [name for name in METHODS if name != "constant"])  # it takes no step
def test_every_method(name, monkeypatch, caplog):
    """Its second visit, whose steps are recorded as tapes and simplified."""
    caplog.set_level(logging.DEBUG, "plures")
    seen, _ = clients()
    here = begun(name, seen, "cpu")
    recorded = Mock()
    recorded.share = Tapes.share

    def recorder(still: Sequence[Tensor]) -> Mock:
        recorded.side_effect = Tapes(still)
        return recorded

    monkeypatch.setitem(RECORDERS, "cpu", recorder)
    execution = Execution("vmap", 3, False, "float64", capture=True)
    module, method = linear if name == "mocha" else model, METHODS[name](**QUICK.get(name, {}))
    there = Run(seen, module, method, here.training, participation=here.participation, execution=execution, seed=1)
    for run in (here, there):
        run.step()
        run.step()
    assert recorded.called, "no step was captured"
    steps = [step for step in there.engine._steps.values() if isinstance(step, Stacked) and step.trained]
    assert all(step.captured is not None for step in steps), "a step cannot be captured"
    assert "not simplified" not in caplog.text
    for key, value in snapshot(here).items():
        torch.testing.assert_close(snapshot(there)[key], value, atol=1e-12, rtol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("sizes", [[40] * 5, [30, 40, 44, 52]])
def test_examples_with_weights(sizes):
    """With and without padding."""
    data = ragged(sizes)
    drawn = torch.rand(len(data.inputs), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert both(replace(data, weights=drawn + 0.1), network(), fedavg(), Training(3, batch_size=10)).replayed > 0


def test_clients_of_equal_size_replay_one_step_for_each_width():
    """40 examples each: 28 for training, batches of 10, 10 and 8; three rounds of a chunk of four and one of one."""
    counted = both(ragged([40] * 5), network(), fedavg(), Training(3, batch_size=10))
    assert (counted.recorded, counted.replayed) == (4, 18)


def test_clients_of_different_sizes_are_padded_and_smaller_stacks_take_over():
    sizes = [200, 100, 60, 50, 30, 20, 10]
    counted = both(ragged(sizes), network(), fedavg(), Training(3, batch_size=8, schedule=Cosine()), chunk=7)
    assert counted.recorded == 8, "stacks of seven, four, two and one, with one rate and with several"


def test_in_a_long_run_only_uneven_batches_are_padded(monkeypatch):
    """24, 24 and 18 examples: the second of three steps has two batches of ten beside one of eight."""
    monkeypatch.setattr(capture, "MIXED", 3)
    given = ragged([40, 40, 29]), network(), fedavg(), Training(3, batch_size=10)
    kinds = list[list[capture.Kind]]()
    inner = capture.Captured.kinds
    monkeypatch.setattr(
        capture.Captured, "kinds", lambda self, plan, rate: kinds.append(inner(self, plan, rate)) or kinds[-1]
    )
    both(*given)
    assert given[0].splits["train"].sizes.tolist() == [24, 24, 18]
    found = [(kind.widths, kind.padded) for kind in kinds[0]]
    assert found == [((10,), False), ((10,), True), ((4,), False)]


def test_of_many_sizes_of_batches_only_the_most_frequent_are_recorded_unpadded():
    """Each client trains alone: full batches and two other sizes have steps of their own, and the rest share one."""
    counted = both(ragged([*range(100, 184, 7)]), network(), fedavg(), Training(3, batch_size=32), chunk=1)
    assert counted.recorded == 4


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9, nesterov=True), Adam(0.01), SGD(0.1, weight_decay=0.1)])
def test_optimizers_and_rates_are_not_frozen_into_a_step(optimizer):
    both(ragged([90, 40, 40]), network(), fedavg(), Training(3, batch_size=8, optimizer=optimizer, schedule=Cosine()))


@pytest.mark.parametrize(
    ("sizes", "chunk", "batch"), [([200, 60, 30, 10], 4, 8), ([40] * 4, 4, 8), ([*range(100, 184, 7)], 1, 32)]
)
@pytest.mark.parametrize("mixed", [1, capture.MIXED])
def test_a_resumed_run_has_the_bits_of_one_that_went_on(mixed, sizes, chunk, batch, monkeypatch):
    """Resumed, a step is recorded with one rate; in the run that goes on it reads the rate, which changes.

    Whether a step is padded must not depend on the batches that the run has had before either: clients that train
    alone have batches of more sizes than are recorded.
    """
    monkeypatch.setattr(capture, "MIXED", mixed)
    net = network()

    def begin() -> Run:
        training = Training(6, batch_size=batch, optimizer=SGD(0.1, momentum=0.9), schedule=Cosine())
        execution = Execution("vmap", chunk, False, "float64", capture=True)
        few = Uniform(0.2)
        return Run(ragged(sizes), net, METHODS["ditto"](), training, participation=few, execution=execution, seed=1)

    whole, resumed = begin(), begin()
    for _ in range(3):
        whole.step()
    restore(resumed, {key: value.clone() for key, value in snapshot(whole).items()})
    for run in (whole, resumed):
        run.step()
        run.step()
    expected, found = snapshot(whole), snapshot(resumed)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_dropout_draws_anew_in_every_replay():
    both(ragged([60, 40, 40]), network(drop=0.5), fedavg(), Training(3, batch_size=8))


def test_batch_normalisation_is_captured_among_equals_alone():
    assert both(ragged([40] * 4), network(norm=True), fedavg(), Training(3, batch_size=10)).replayed
    assert not both(ragged([70, 40, 30]), network(norm=True), fedavg(), Training(3, batch_size=10)).replayed


@pytest.mark.parametrize("room", [0, capture.AHEAD])
def test_longer_visits_than_the_first_are_fed_in_pieces(room, monkeypatch):
    monkeypatch.setattr(capture, "AHEAD", room)

    def drawn(unit: float) -> int:
        return 4 if unit < 0.6 else 11

    method = Method(schedule=(Phase(steps=drawn),))
    both(ragged([40] * 4), network(), method, Training(3, batch_size=10))


def test_a_long_visit_after_a_short_one_is_one_repetition(monkeypatch):
    """Choosing the backend measures a few steps with the recordings that the run then uses."""
    times = []
    replay = capture.Recordings.replay
    monkeypatch.setattr(capture.Recordings, "replay", lambda self, kind, n: times.append(n) or replay(self, kind, n))
    method = Method(schedule=(Phase(steps=lambda unit: 1 if unit < 0.35 else 11),))  # 0.04, 0.38, 0.04 in three rounds
    reached(ragged([40] * 4), network(), method, Training(3, batch_size=100), capture=True, chunk=4)
    assert times == [1, 11, 1]


@pytest.mark.parametrize("room", [0, capture.AHEAD])
def test_several_steps_are_recorded_in_the_memory_of_a_visit_of_one(room, monkeypatch):
    """The first visit takes one step; the second, with another rate, records steps of two widths at once."""
    monkeypatch.setattr(capture, "AHEAD", room)

    def drawn(unit: float) -> int:
        return 1 if unit < 0.35 else 11  # 0.04, 0.38, 0.04 in the three rounds

    given = ragged([40] * 4), network(), Method(schedule=(Phase(steps=drawn),))
    training = Training(3, batch_size=10, schedule=Cosine())
    both(*given, training)
    plain, captured = (reached(*given, training, capture=capture, chunk=4)[0] for capture in (False, True))
    for key, value in plain.items():
        torch.testing.assert_close(captured[key], value, atol=1e-12, rtol=1e-9)


def test_what_cannot_be_captured_runs_as_it_is_and_says_why(caplog):
    def refusing(self: Pretended, work: Callable[[], None]) -> Callable[[], None]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with caplog.at_level(logging.INFO, "plures"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretended, "__call__", refusing)
        assert not both(ragged([40] * 4), network(), fedavg(), Training(3, batch_size=10)).replayed
    said = "steps that train 'model' are not captured: operation not permitted when stream is capturing"
    assert [record.message for record in caplog.records if "captured" in record.message] == [said]


def test_tf32_and_capture_of_compiled_steps_are_refused_where_there_is_no_gpu():
    for given, message in (
        ({"capture": True, "compile": True}, "capture=True and compile=True exclude each other on a CPU"),
        ({"precision": "tf32"}, "precision='tf32' is arithmetic of CUDA devices, not of 'cpu': take 'float32'"),
        ({"capture": True, "backend": "loop"}, "capture=True is not used by backend='loop'"),
    ):
        with pytest.raises(PluresError, match=message):
            Execution(**given)
    for compiled in (False, True):
        told = {"backend": "vmap", "chunk": 3, "compile": compiled, "precision": "tf32", "capture": True}
        here = Execution("vmap", 3, compiled, "float32", capture=not compiled)
        assert Execution.from_dict(told) == here, "a GPU's run, read elsewhere"


@pytest.mark.parametrize("before", [(False, True), (True, True), (True, False)])
def test_tf32_is_what_was_asked_for_and_afterwards_what_it_was(before):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    was = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32, cudnn.allow_tf32 = before
        for rounded in (False, True):
            with factors(rounded=rounded):
                assert (matmul.allow_tf32, cudnn.allow_tf32) == (rounded, rounded)
            assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = was


def test_a_cohort_is_divided_into_equal_stacks():
    assert [equal(200, most) for most in (0, 1, 99, 100, 199, 200, 5000)] == [1, 1, 67, 100, 100, 200, 200]


def in_turn(begin: Callable[[Machine | None], list[Run]], machine: Machine | None) -> list[dict[str, Tensor]]:
    """The states of runs that took three rounds, one after the other."""
    found = []
    for run in begin(machine):
        for _ in range(3):
            run.step()
        found.append(snapshot(run))
    return found


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("sizes", [[200, 60, 30, 10], [40] * 4])
def test_runs_that_compute_the_same_share_recorded_steps_and_keep_their_bits(sizes, several):
    """Other seeds and learning rates share them; other hyper-parameters do not."""
    data, net = ragged(sizes), network()

    def begin(machine: Machine | None) -> list[Run]:
        execution = Execution("vmap", 4, False, "float64", capture=True)

        def run(lr: float, seed: int, lam: float) -> Run:
            training = Training(3, batch_size=8, optimizer=SGD(lr, momentum=0.9))
            method = METHODS["ditto"](lam=lam)
            return Run(data, net, method, training, execution=execution, seed=seed, machine=machine)

        return [run(0.1, 0, 0.5), run(0.3, 0, 0.5), run(0.1, 1, 0.5), run(0.1, 1, 0.7)]

    with pretended() as alone:
        expected = in_turn(begin, None)
    with pretended() as shared:
        found = in_turn(begin, Machine(several=several))
    for one, two in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], value) for key, value in two.items())
    each = alone.recorded // 4  # a step of the shared and one of the personal model, which alone depends on lam
    assert shared.recorded == each * (1 if several else 2) + each // 2


def test_recorded_steps_are_given_up_with_their_examples(monkeypatch):
    machine, method, net = Machine(), fedavg(), network()

    def run(data: Federation) -> int:
        execution = Execution("vmap", 4, False, "float64", capture=True)
        Run(data, net, method, Training(3, batch_size=8), execution=execution, machine=machine).step()
        return len(machine.recorded[0])

    one, other = ragged([40] * 4), ragged([50] * 4)
    assert [run(one), run(one), run(other)] == [1, 1, 1]
    method = METHODS["ditto"]()
    assert run(other) == 2, "the shared model is trained as in FedAvg"
    monkeypatch.setattr("plures.run.machine.RECORDED", 0)
    assert run(other) == 1


def test_a_copy_of_a_run_records_steps_of_its_own():
    net = network()

    def begin() -> Run:
        execution = Execution("vmap", 4, False, "float64", capture=True)
        return Run(ragged([60, 40, 40, 20]), net, fedavg(), Training(3, batch_size=8), execution=execution)

    run, same = begin(), begin()
    run.step()
    same.step()
    other = copy.deepcopy(run)
    for one in (run, other, same):
        one.step()
    for found in (run, other):
        assert all(torch.equal(snapshot(found)[key], value) for key, value in snapshot(same).items())


def test_threads_record_steps_of_their_own():
    execution = Execution("vmap", 2, False, "float64", capture=True, threads=2)
    machine = Machine()
    Run(ragged([40] * 4), network(), fedavg(), Training(3, batch_size=8), execution=execution, machine=machine).step()
    assert {thread: len(steps) for thread, steps in machine.recorded.items()} == {1: 1, 2: 1}


def test_threads_ask_for_recorded_steps_at_the_same_time():
    """While one thread looks through its steps, another one adds to its own; none is lost."""
    machine = Machine()

    class Asked(capture.Recordings):
        @property
        def nbytes(self) -> int:
            machine.recordings("later", made, 2)
            return 0

    def made(several: bool, kind: type[capture.Recordings] = capture.Recordings) -> capture.Recordings:
        return kind(Tapes(), 2, torch.float64, smaller=False)

    machine.recordings("first", lambda several: made(several, Asked), 1)
    machine.recordings("other", made, 2)
    machine.recordings("second", made, 1)
    assert {thread: list(steps) for thread, steps in machine.recorded.items()} == {
        1: ["first", "second"],
        2: ["other", "later"],
    }
