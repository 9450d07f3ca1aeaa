"""A pool of processes gives what one process gives, and ends as a whole."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import plures.run.pool as pool
from newcomers import clients
from plures import Run, Training, fit
from plures.errors import PluresError
from plures.method import SGD, Method, Phase
from plures.methods import CATALOGUE
from plures.report.catalogue import model
from plures.run import Execution, Uniform
from plures.run.checkpoint import snapshot

pytest.importorskip("cloudpickle", reason="a pool needs cloudpickle: pip install 'plures[pool]'")
pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
ONE = Execution("loop", 2, False, "float32")
TWO = Execution("loop", 2, False, "float32", processes=2)
WORK = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With as many threads in every process, sums have the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def begun(name: str, execution: Execution) -> Run:
    data, _ = clients()
    method = CATALOGUE[name]()
    return Run(data, lambda: model(), method, WORK, participation=Uniform(0.8), seed=3, execution=execution)


def assert_equal(one: Run, two: Run) -> None:
    """All that changes in a run, to the bit."""
    left, right = snapshot(one), snapshot(two)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("name", ["scaffold", "ifca", "apple", "qffl"])
def test_every_bit_is_that_of_one_process(name):
    """Personal leaves, clusters by loss, views of others, weights that clients compute."""
    one, two = begun(name, ONE), begun(name, TWO)
    for _ in range(2):
        here, there = one.step(), two.step()
        assert (there.loss, there.objective, there.cohort) == (here.loss, here.objective, here.cohort)
        assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)
    assert_equal(one, two)


def test_the_order_of_sums_is_that_of_the_chunks_whoever_is_done_first(monkeypatch):
    run = begun("fedavg", TWO)
    run.step()
    assert run.clients.workers is not None
    first = next(iter(run.clients.workers.values()))
    os.kill(first.pid, signal.SIGSTOP)  # the other one visits all it may, and then waits for this one
    asleep = time.monotonic()
    true = pool.wait

    def patient(busy):
        if time.monotonic() > asleep + 1:
            os.kill(first.pid, signal.SIGCONT)
        return true(busy, 0.2)

    monkeypatch.setattr(pool, "wait", patient)
    run.step()
    one = begun("fedavg", ONE)
    one.step()
    one.step()
    assert_equal(one, run)


def test_a_process_that_dies_is_told_in_one_sentence_and_the_round_can_be_repeated():
    run, one = begun("ditto", TWO), begun("ditto", ONE)
    run.step()
    before = snapshot(run)
    assert run.clients.workers is not None
    first, second = run.clients.workers.values()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with pytest.raises(PluresError, match=r"round 2: a process of the pool ended \(exit codes \[-9\]\); take fewer"):
        run.step()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(run).items())
    assert not second.is_alive()
    run.step()
    one.step()
    one.step()
    assert_equal(one, run)


def refuses(x, received, batch):
    if multiprocessing.parent_process() is not None:
        raise PluresError("data of another kind")
    return batch.loss(x.model)


def test_what_a_visit_refuses_is_said_as_in_one_process():
    data, _ = clients()
    run = Run(data, nn.Linear(8, 2), Method(schedule=(Phase("model", refuses),)), WORK, execution=TWO)
    with pytest.raises(PluresError, match=r"^data of another kind$"):
        run.step()
    assert run.clients.workers is None


def test_a_pool_of_none_is_refused_and_what_it_needs_is_named(monkeypatch):
    with pytest.raises(PluresError, match=r"^processes=0: give at least 1$"):
        Execution(processes=0)
    with monkeypatch.context() as patch:
        patch.setattr("plures.run.execution.find", torch.device)
        with pytest.raises(PluresError, match=r"^processes=2 share a CPU, not 'cuda': take device='cpu'$"):
            Execution(processes=2, device="cuda")
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(PluresError, match=r"needs cloudpickle: pip install 'plures\[pool\]'"):
        begun("fedavg", TWO).step()


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from test_pool import TWO, Path, begun, fit, torch
if __name__ == "__main__":
    torch.set_num_threads(2)
    run = begun("ditto", TWO)
    told = lambda point: print([worker.pid for worker in run.clients.workers.values()], flush=True)
    fit(run, "pool", checkpoint=Path({file!r}), progress=told)
"""


def test_ctrl_c_ends_all_processes_after_the_round_and_one_process_goes_on_to_the_bit(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parent), *sys.path[1:]], file=str(file)))
    job = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None
    workers = [int(number) for number in job.stdout.readline().strip("[]\n").split(", ")]
    os.killpg(job.pid, signal.SIGINT)  # what a terminal does: all processes hear it
    assert job.wait(60) != 0
    end = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{number}").exists() for number in workers)
    went_on, whole = begun("ditto", ONE), begun("ditto", ONE)
    fit(went_on, "pool", checkpoint=file)
    fit(whole, "whole")
    assert went_on.round == WORK.rounds
    assert_equal(whole, went_on)
