"""Chunks side by side in threads: the same numbers as one after the other."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plures import Execution, PluresError, Run, Training, score
from plures.evaluate import Scores
from plures.federation import Federation, from_arrays
from plures.method import SGD
from plures.methods import METHODS
from plures.run.checkpoint import restore, snapshot
from plures.run.choose import choose
from plures.run.crew import Crew, dealt
from plures.run.engine import Engine

ALONE = {
    "loop": Execution("loop", 3, False, "float64"),
    "stacks": Execution("vmap", 3, False, "float64"),
    "recorded": Execution("vmap", 3, False, "float64", capture=True),
}


def federation(seed: int = 0) -> Federation:
    sizes = [60, 44, 30, 24, 16, 12, 10]
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(sum(sizes), 4))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return from_arrays(x, (x[:, 0] > 0.2 * owner - 0.5).astype(int), owner, seed=0, dtype=torch.float64, name="crew")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def begun(execution: Execution, method: str = "ditto", **training: Any) -> Run:
    given = Training(4, batch_size=8, optimizer=SGD(0.1, momentum=0.9), **training)
    return Run(federation(), network, METHODS[method](), given, execution=execution, seed=1)


def scored(run: Run) -> Scores:
    return score(run, "test")


@pytest.mark.parametrize("name", ALONE)
def test_two_threads_give_what_one_gives(name):
    """State, losses, records and scores, to rounding; which clients share a chunk differs."""
    alone, beside = begun(ALONE[name]), begun(replace(ALONE[name], chunk=2, threads=2))
    for _ in range(2):
        one, two = alone.step(), beside.step()
        np.testing.assert_allclose(two.loss, one.loss, rtol=1e-12)
    expected, found = snapshot(alone), snapshot(beside)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-11, atol=1e-13, msg=lambda m, k=key: f"{k}: {m}")
    one, two = scored(alone), scored(beside)
    assert one.clients == two.clients
    for key, values in one.values.items():
        np.testing.assert_allclose(two.values[key], values, rtol=1e-11, err_msg=key)


def test_a_resumed_run_has_the_bits_of_one_that_went_on():
    execution = replace(ALONE["recorded"], chunk=2, threads=2)
    whole, resumed = begun(execution), begun(execution)
    whole.step()
    restore(resumed, {key: value.clone() for key, value in snapshot(whole).items()})
    for run in (whole, resumed):
        run.step()
        run.step()
    expected, found = snapshot(whole), snapshot(resumed)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert scored(whole) == scored(resumed)


def test_clients_are_dealt_to_the_thread_with_the_least_work():
    """60 | 44; then 30 to the second, 24 to the first; 16 to the second, and the rest where there is room."""
    amounts = dict(enumerate([60, 44, 30, 24, 16, 12]))
    assert dealt(list(amounts), amounts, 2) == [[0, 3, 5], [1, 2, 4]]
    assert dealt([3, 1], {3: 9, 1: 1}, 3) == [[3], [1], []]
    run = begun(replace(ALONE["loop"], chunk=2, threads=2))
    chunks = run.chunks(list(range(7)))
    assert sorted(map(len, chunks)) == [1, 2, 2, 2]
    assert sorted(client for chunk in chunks for client in chunk) == list(range(7))


def crew() -> Crew:
    run = begun(replace(ALONE["loop"], threads=2))
    return Crew(run.engine)


def test_results_come_in_order_from_two_threads_with_their_own_networks():
    work = crew()
    both = threading.Barrier(2)

    def told(engine: Engine, item: int) -> tuple[int, str, int]:
        both.wait(10)  # passes only if two are at work at once
        return item, threading.current_thread().name, id(engine.bound.network.module)

    found = list(work.each(told, iter(range(6))))
    assert [item for item, *_ in found] == list(range(6))
    assert len({name for _, name, _ in found}) == len({module for *_, module in found}) == 2
    assert id(work.engine.bound.network.module) not in {module for *_, module in found}
    assert threading.current_thread().name not in {name for _, name, _ in found}


def test_an_error_is_raised_in_the_calling_thread_and_nothing_else_is_begun():
    seen = []

    def told(engine: Engine, item: int) -> int:
        seen.append(item)
        if item == 1:
            raise PluresError("no")
        return item

    with pytest.raises(PluresError, match="no"):
        list(crew().each(told, iter(range(50))))
    assert len(seen) < 10


def test_threads_of_pytorch_are_divided_and_kept():
    before = torch.get_num_threads()
    each = list(crew().each(lambda engine, item: torch.get_num_threads(), range(2)))
    assert each == [max(1, before // 2)] * 2
    assert torch.get_num_threads() == before


def test_a_fork_starts_threads_of_its_own(monkeypatch):
    """Threads do not survive in a forked process."""
    work = crew()
    names = [list(work.each(lambda engine, item: threading.current_thread().name, range(2)))]
    names.append(list(work.each(lambda engine, item: threading.current_thread().name, range(2))))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    names.append(list(work.each(lambda engine, item: threading.current_thread().name, range(2))))
    assert names[0] == names[1]
    assert not set(names[1]) & set(names[2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "threads=0: give at least 1"),
        ({"threads": 2, "processes": 2}, "threads=2 and processes exclude each other"),
        ({"threads": 2, "backend": "vmap", "compile": True}, "threads=2 and compile=True exclude each other"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(PluresError, match=said):
        Execution(**options)


def recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.cell(x.unsqueeze(-1))[0][:, -1])  # type: ignore[no-any-return]

    return Last()


def test_auto_takes_one_thread_and_some_layers_take_no_more(caplog):
    run = begun(ALONE["loop"])
    assert run.execution == ALONE["loop"]
    given = run.bound, run.engine.federation, run.training
    assert choose(*given, Execution(precision="float64"), 0, 7).threads == 1
    gru = Run(federation(), recurrent, METHODS["fedavg"](), Training(2, batch_size=8), execution=ALONE["loop"])
    wanted = replace(ALONE["loop"], threads=2)
    assert choose(gru.bound, gru.engine.federation, gru.training, wanted, 0, 7).threads == 1
    assert "one thread" in caplog.text
