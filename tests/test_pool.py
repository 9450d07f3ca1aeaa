"""A pool of processes gives what one process gives, and ends as a whole."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import plures
import plures.run.coordinator as coordinator
import plures.run.processes as pool
from beside import refuses
from bits import assert_equal
from newcomers import clients
from plures import Run, Training, compare, fit
from plures.errors import PluresError
from plures.evaluate.callback import Callback
from plures.method import SGD, Method, Phase
from plures.methods import METHODS
from plures.report.catalogue import model
from plures.run import Execution, Uniform
from plures.run.checkpoint import snapshot
from plures.run.store import ClientStore

pytest.importorskip("cloudpickle", reason="a pool needs cloudpickle: pip install 'plures[pool]'")
pytestmark = [pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning"), pytest.mark.usefixtures("forked")]
ONE = Execution("loop", 2, False, "float32")
TWO = Execution("loop", 2, False, "float32", processes=2)
WORK = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))


def begun(name: str, execution: Execution) -> Run:
    data, _ = clients()
    method = METHODS[name]()
    return Run(data, lambda: model(), method, WORK, participation=Uniform(0.8), seed=3, execution=execution)


@pytest.mark.parametrize("name", ["scaffold", "ifca", "apple", "qffl"])
def test_every_bit_is_that_of_one_process(name):
    """Personal leaves, clusters by loss, views of others, weights that clients compute."""
    one, two = begun(name, ONE), begun(name, TWO)
    for _ in range(2):
        here, there = one.step(), two.step()
        assert (there.loss, there.objective, there.cohort) == (here.loss, here.objective, here.cohort)
        assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)
    assert_equal(one, two)


def test_augmented_inputs_on_disk_are_the_same_in_every_process(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, size=(90, 2, 4, 4)).astype(np.uint8))
    owner = np.repeat(["a", "b", "c"], [20, 30, 40])
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = plures.from_arrays(stored, np.arange(90) % 3, owner).augmented("flip+crop(1)")
    one, two = (
        Run(data, lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), METHODS["ditto"](), WORK, execution=execution)
        for execution in (ONE, TWO)
    )
    for run in (one, two):
        run.step()
    assert_equal(one, two)


def test_the_order_of_sums_is_that_of_the_chunks_whoever_is_done_first(monkeypatch):
    run = begun("fedavg", TWO)
    run.step()
    assert run.clients.executor.workers
    first = next(iter(run.clients.executor.workers.values()))
    os.kill(first.pid, signal.SIGSTOP)  # the other process trains all it may, and then waits for this one
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
    assert run.clients.executor.workers
    first, second = run.clients.executor.workers.values()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with pytest.raises(PluresError, match=r"round 2: a process of the pool ended \(exit codes \[-9\]\); use fewer"):
        run.step()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(run).items())
    assert not second.is_alive()
    run.step()
    one.step()
    one.step()
    assert_equal(one, run)


def test_what_a_visit_refuses_is_said_as_in_one_process():
    data, _ = clients()
    run = Run(data, nn.Linear(8, 2), Method(schedule=(Phase("model", refuses),)), WORK, execution=TWO)
    with pytest.raises(PluresError, match=r"^data of another kind$"):
        run.step()
    assert not run.clients.executor.workers


def test_a_round_that_fails_leaves_no_answers_to_the_next(monkeypatch):
    run, one = begun("fedavg", replace(TWO, chunk=1)), begun("fedavg", replace(ONE, chunk=1))
    true = coordinator.Uploads.add

    def fails(upload, answer):
        raise ArithmeticError("cannot be combined")

    first = pool.wait
    monkeypatch.setattr(pool, "wait", lambda busy: first(busy)[:1])  # so that another chunk is still to come
    monkeypatch.setattr(coordinator.Uploads, "add", fails)
    kept = []
    try:
        run.step()
    except ArithmeticError as error:
        kept.append(error)  # a notebook keeps the last error, and with it the round that failed
    monkeypatch.setattr(coordinator.Uploads, "add", true)
    run.step()
    one.step()
    assert_equal(one, run)
    assert kept


def test_the_processes_end_with_the_last_round():
    others = set(multiprocessing.active_children())
    fitted = fit(begun("fedavg", TWO), "pool")
    assert fitted.run.round == WORK.rounds
    assert set(multiprocessing.active_children()) <= others


class Stops(Callback):
    """Asks the run to end after the first round."""

    def on_round(self, record):
        raise KeyboardInterrupt


def test_the_processes_end_when_a_callback_ends_the_run_and_it_can_go_on():
    others = set(multiprocessing.active_children())
    run = begun("fedavg", TWO)
    with pytest.raises(KeyboardInterrupt):
        fit(run, "pool", callbacks=[Stops()])
    assert run.round == 1
    assert set(multiprocessing.active_children()) <= others
    assert fit(run, "pool").run.round == WORK.rounds
    one = begun("fedavg", ONE)
    fit(one, "one")
    assert_equal(one, run)


def test_an_error_of_the_disk_in_a_round_is_told_as_what_it_is(monkeypatch):
    def full(store, leaf, clients):
        raise OSError(5, "Input/output error")

    run = begun("scaffold", TWO)
    monkeypatch.setattr(ClientStore, "get", full)
    with pytest.raises(OSError, match="Input/output error"):
        run.step()


def test_a_comparison_with_tuning_is_that_of_one_process():
    data, _ = clients()
    values = [
        compare(
            data, ["fedavg"], model=model, rounds=2, seeds=1, tune_rounds=1, learning_rates=(0.01, 0.1),
            execution=execution,
        ).row("fedavg")
        for execution in (ONE, TWO)
    ]  # fmt: skip
    assert values[0] == values[1]


class OwnError(PluresError):
    """An error that cannot be rebuilt from its text alone."""

    def __init__(self, client: str, what: str) -> None:
        super().__init__(f"{client}: {what}")


def refuses_in_its_way(x, received, batch):
    if multiprocessing.parent_process() is not None:
        raise OwnError("ward", "data of another kind")
    return batch.loss(x.model)


def test_an_error_of_the_users_own_class_keeps_its_sentence():
    data, _ = clients()
    method = Method(schedule=(Phase("model", refuses_in_its_way),))
    with pytest.raises(PluresError, match=r"^ward: data of another kind$"):
        Run(data, nn.Linear(8, 2), method, WORK, execution=TWO).step()


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
from test_pool import TWO, Path, begun, fit, multiprocessing, torch
if __name__ == "__main__":
    torch.set_num_threads(2)
    run = begun("ditto", TWO)
    told = lambda point: print([worker.pid for worker in multiprocessing.active_children()], flush=True)
    fit(run, "pool", checkpoint=Path({file!r}), progress=told)
"""


def test_ctrl_c_ends_all_processes_after_the_round_and_one_process_goes_on_to_the_bit(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parent), *sys.path[1:]], file=str(file)))
    job = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None
    workers = [int(number) for number in job.stdout.readline().strip("[]\n").split(", ")]
    os.killpg(job.pid, signal.SIGINT)  # as from a terminal: all processes receive it
    assert job.wait(300) != 0
    end = time.monotonic() + 120
    while any(Path(f"/proc/{number}").exists() for number in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{number}").exists() for number in workers)
    went_on, whole = begun("ditto", ONE), begun("ditto", ONE)
    fit(went_on, "pool", checkpoint=file)
    fit(whole, "whole")
    assert went_on.round == WORK.rounds
    assert_equal(whole, went_on)


EXIT = """
import sys, weakref
class Guest: pass
guest = Guest()
bye = weakref.finalize(guest, print, "bye")  # as of a temporary folder made before anything is imported
sys.path[:0] = {paths!r}
from test_pool import TWO, begun
if __name__ == "__main__":
    run = begun("ditto", TWO)
    print(run.step().round, flush=True)
"""


def test_a_script_ends_though_its_run_still_has_a_pool(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(EXIT.format(paths=[str(Path(__file__).parent), *sys.path[1:]]))
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "bye"])


EARLY = """
import os, signal, sys, threading
sys.path[:0] = {paths!r}
from test_pool import TWO, Path, begun, fit, multiprocessing
def early():
    while len(multiprocessing.active_children()) < 2: pass
    os.killpg(0, signal.SIGINT)
if __name__ == "__main__":
    run = begun("ditto", TWO)
    threading.Thread(target=early, daemon=True).start()
    try:
        fit(run, "pool", checkpoint=Path({file!r}))
    except KeyboardInterrupt:
        print(run.round)
"""


def test_ctrl_c_while_the_processes_start_ends_the_run_after_its_first_round(tmp_path):
    script, file = tmp_path / "script.py", tmp_path / "checkpoint.safetensors"
    script.write_text(EARLY.format(paths=[str(Path(__file__).parent), *sys.path[1:]], file=str(file)))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, str(script)], **options, start_new_session=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert file.exists()


UNGUARDED = """
import sys
sys.path[:0] = {paths!r}
from test_pool import TWO, WORK, Run, clients, nn
Run(clients()[0], nn.Sequential(nn.Linear(8, 9000), nn.Linear(9000, 2)), {method}, WORK, execution=TWO).step()
"""


def test_a_script_that_starts_its_work_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    method = "__import__('plures').methods.fedavg()"
    script.write_text(UNGUARDED.format(paths=[str(Path(__file__).parent), *sys.path[1:]], method=method))
    done = subprocess.run([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("let a script start its work under: if __name__ == '__main__'")
