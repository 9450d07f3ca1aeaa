"""A comparison in several processes gives what one process gives, reports the same, and ends as a whole."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import plures
from beside import refuses
from people import FAST, net, people
from plures import PluresError, compare
from plures.errors import PluresWarning
from plures.evaluate.callback import Callback
from plures.evaluate.compare import Job, Tuned, next_job
from plures.method import Method, Phase
from plures.run.fingerprint import of_method

pytest.importorskip("cloudpickle", reason="processes need cloudpickle: pip install 'plures[pool]'")
pytestmark = pytest.mark.usefixtures("forked")
TWO = replace(FAST, processes=2)
ASKED: dict[str, Any] = {"model": net, "rounds": 3, "seeds": 2, "tune_rounds": 1, "batch_size": 8}


def timeless(value: Any) -> Any:
    """A result without its seconds."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


class Heard(Callback):
    """Records its notifications, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.title = ""

    def on_start(self, about):
        self.title = about.title
        self.told.append((self.title, "start"))

    def on_round(self, record):
        self.told.append((self.title, f"round {record.round}"))

    def on_end(self, result):
        self.told.append((self.title, f"end, {'trial' if result is None else result.chosen_round}"))


def test_every_number_is_that_of_one_process_and_so_is_what_is_told(tmp_path):
    one, two, stages = Heard(), Heard(), []
    alone = compare(people(), ["ditto"], execution=FAST, callbacks=[one], **ASKED)
    beside = compare(people(), ["ditto"], execution=TWO, callbacks=[two], listener=stages.append, out=tmp_path, **ASKED)
    assert timeless(beside.model_dump(mode="json")) == timeless(alone.model_dump(mode="json"))
    runs = [sorted(part for part in heard.told if part[1].startswith("end")) for heard in (one, two)]
    assert runs[0] == runs[1]
    assert len(runs[0]) == (3 + 3 + 5 + 7) + 6 * 2  # trials of all but constant and intercept, then final runs
    at = two.told.index(("local, seed 1", "start"))
    assert [what for _, what in two.told[at : at + 4]] == ["start", "round 1", "round 2", "round 3"]
    assert two.told[at + 4][0] == "local, seed 1"  # one run after the other, as in one process
    assert stages[-1].done == stages[-1].total == (3 + 3 + 5 + 7) * 1 + 5 * 2 * 3 + 2 * 1
    assert sum(stage.ended for stage in stages) == len(runs[0])
    assert multiprocessing.active_children() == []
    again = compare(people(), ["ditto"], execution=FAST, out=tmp_path, **ASKED)
    assert again == beside  # what two processes stored, one process reads


def test_a_process_does_runs_of_methods_that_it_has_done_before_tuning_first():
    def job(method: str, seed: int | None, effort: float) -> Job:
        return Job(method, seed, Tuned(0.1, {}, []), effort=effort)

    a, b, c = job("a", 1, 3.0), job("b", 1, 2.0), job("c", None, math.inf)
    tuned = [job("b", None, math.inf)]
    assert next_job([a, b], tuned) == 1
    assert next_job([a, b], []) == 0
    assert next_job([c, a, b], tuned) == 0
    assert next_job([a], tuned) == 0


def own() -> Method:
    return Method(schedule=(Phase("model", refuses),))


def test_what_a_run_refuses_is_said_as_in_one_process():
    with pytest.raises(PluresError, match=r"^data of another kind$"):
        compare(people(), [own], execution=TWO, **ASKED)
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_told_in_one_sentence():
    def kill(stage):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(PluresError, match=r"^a process of the comparison ended \(exit codes \[.*-9.*\]\); the"):
        compare(people(), [], execution=TWO, listener=kill, **ASKED)


def test_warnings_of_the_processes_are_heard():
    asked = ASKED | {"tune_rounds": 0, "learning_rates": [1e30], "seeds": 1}
    with pytest.warns(PluresWarning, match="models of . clients diverged"):
        compare(people(), [], execution=TWO, **asked)


def test_what_cannot_travel_is_refused(monkeypatch):
    lock = __import__("threading").Lock()
    with pytest.raises(PluresError, match=r"^processes=2: the comparison cannot be sent to other processes \("):
        compare(people(), [], execution=TWO, **(ASKED | {"model": lambda: (lock, net())[1]}))
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(PluresError, match=r"needs cloudpickle: pip install 'plures\[pool\]'"):
        compare(people(), [], execution=TWO, **ASKED)


SCRIPT = """
import sys, torch
sys.path[:0] = {paths!r}
from test_workers import ASKED, TWO, compare, net, people
if __name__ == "__main__":
    torch.set_num_threads(2)
    told = lambda stage: print(stage.what, stage.point.round, flush=True)
    asked = ASKED | dict(rounds=4000, seeds=1, tune_rounds=0, every=4000)
    compare(people(), [], execution=TWO, listener=told, out={out!r}, **asked)
"""


def test_ctrl_c_keeps_the_rounds_of_every_process(tmp_path):
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parent), *sys.path[1:]], out=str(out)))
    job = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None
    at = 0
    for line in job.stdout:
        at += line.strip() == "seed 0 50"
        if at == 2:  # both processes
            break
    else:
        pytest.fail("the script has ended")
    os.killpg(job.pid, signal.SIGINT)  # as from a terminal: all processes receive it
    job.stdout.read()
    assert job.wait(60) != 0
    kept = [int(load_file(file)["round"]) for file in (out / "checkpoints").iterdir()]
    assert len(kept) == 2  # that of each process, after the round that it was in
    assert max(kept) >= 50
    assert any(rounds % 10 for rounds in kept)


def test_methods_of_the_catalogue_travel_by_name():
    """So they are the code of their modules there, which is part of what a run answers."""
    cloudpickle = pytest.importorskip("cloudpickle")
    assert all(cloudpickle.loads(cloudpickle.dumps(entry)) is entry for entry in plures.METHODS.values())
    ditto, temperature = plures.METHODS["ditto"], plures.METHODS["temperature"]
    for made in (ditto.fixing(lam=0.25), ditto.fixing(lam=0.25) + temperature, (ditto + temperature).fixing(lam=0.25)):
        there = cloudpickle.loads(cloudpickle.dumps(made))
        assert (there.name, there.fixed, there.space) == (made.name, made.fixed, made.space)
        assert of_method(there(), there.name, there.given({})) == of_method(made(), made.name, made.given({}))


STDIN = """
import sys, torch
sys.path[:0] = {paths!r}
from test_workers import FAST, TWO, Method, Phase, net, people, plures
torch.set_num_threads(1)
scale = 1.5
def slower(x, received, batch):
    return batch.loss(x.model) / scale
def own():
    return Method(schedule=(Phase("model", slower),))
for execution in (FAST, TWO):
    run = plures.Run(people(), net, own(), plures.Training(rounds=2, batch_size=8), execution=execution)
    print([record.loss for record in run.rounds()])
"""


def test_what_a_program_on_standard_input_defines_travels_and_gives_what_one_process_gives(tmp_path):
    """As in a notebook, nothing that it defines can be imported."""
    program = STDIN.format(paths=[str(Path(__file__).parent), *sys.path[1:]])
    options = {"capture_output": True, "text": True, "timeout": 200, "cwd": tmp_path}
    done = subprocess.run([sys.executable, "-"], input=program, **options)
    assert done.returncode == 0, done.stderr
    one, two = done.stdout.splitlines()
    assert one == two


def test_a_process_that_may_start_none_says_so(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    run = plures.Run(people(), net, plures.methods.fedavg(), execution=TWO)
    for start in (run.step, lambda: compare(people(), [], execution=TWO, **ASKED)):
        with pytest.raises(PluresError, match=r"^processes=2: this process was itself started by a pool, and may not"):
            start()


def test_what_cannot_travel_to_a_pool_is_refused():
    lock = __import__("threading").Lock()

    def guarded(x, received, batch):
        with lock:
            return batch.loss(x.model)

    run = plures.Run(people(), net, Method(schedule=(Phase("model", guarded),)), execution=TWO)
    with pytest.raises(
        PluresError, match=r"^processes=2: the run cannot be sent to other processes \(TypeError: cannot "
    ):
        run.step()
