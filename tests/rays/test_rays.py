"""Two nodes of a Ray cluster give what one process gives, also if one of them is killed in the middle of a round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.nodes import SEEN, Node, cluster, marked, marking
from torch import nn

from bits import assert_equal
from newcomers import clients
from people import FAST, net, people
from plures import PluresError, Run, RunFolder, Training, compare, with_roles
from plures.method import SGD, Method, Phase
from plures.methods import METHODS
from plures.report.catalogue import model
from plures.run import Execution, Uniform

pytestmark = [
    pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning"),
    pytest.mark.extra("ray"),
]
WORK = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Node]]]:
    with cluster(tmp_path_factory.mktemp("nodes"), cores=2) as (address, started):
        yield address, started
        import ray

        ray.shutdown()


def wide() -> nn.Module:
    """A network whose parameters are large enough to be read where all workers of a node read them."""
    return with_roles(nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 2)), head="2")


def begun(name: str, ray: str | None = None, network: Callable[[], nn.Module] = wide) -> Run:
    data, _ = clients()
    execution = Execution("loop", 1, False, "float32", ray=ray)
    method = Method(schedule=(Phase("model", marking),)) if name == "marking" else METHODS[name]()
    made = (lambda: nn.Linear(8, 2)) if name == "marking" else (lambda: network())
    return Run(data, made, method, WORK, participation=Uniform(0.8), seed=3, execution=execution)


@pytest.mark.parametrize("name", ["scaffold", "ifca", "apple", "qffl"])
def test_every_bit_is_that_of_one_process(nodes, name):
    """Personal leaves, clusters by loss, views of others, weights that clients compute."""
    before = signal.getsignal(signal.SIGTERM)
    one, two = begun(name), begun(name, nodes[0])
    assert two.execution.processes == 4
    assert signal.getsignal(signal.SIGTERM) is before
    for _ in range(2):
        here, there = one.step(), two.step()
        assert (there.loss, there.objective, there.cohort) == (here.loss, here.objective, here.cohort)
        assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)
    assert_equal(one, two)


def test_a_comparison_has_the_same_table(nodes):
    asked = {"model": net, "rounds": 2, "seeds": 1, "tune_rounds": 1, "learning_rates": (0.1, 0.3), "batch_size": 8}
    one = compare(people(), ["ditto"], execution=FAST, **asked)
    two = compare(people(), ["ditto"], execution=Execution("vmap", 8, False, "float32", ray=nodes[0]), **asked)
    assert [method.seeds[0].test for method in two.methods] == [method.seeds[0].test for method in one.methods]
    assert two.row("ditto") == one.row("ditto")


STUDY = """
name = "nodes"
data = ["heart"]
methods = ["fedavg"]
seeds = 1
budgets = [{{rounds = 2}}]
tuning = {{trials = 0}}
execution = {{backend = "loop", chunk = 2, threads = 1{ray}}}
"""


def test_a_study_has_the_same_results_by_option_and_by_file(nodes, says, tmp_path):
    from plures.study import Study

    found = {}
    for name, own, words in (
        ("one", "", []),
        ("option", "", ["--ray", nodes[0]]),
        ("file", f', ray = "{nodes[0]}"', []),
    ):
        file = tmp_path / f"{name}.toml"
        file.write_text(STUDY.format(ray=own))
        status, told = says("study", file, "--out", tmp_path / name, "--quiet", *words)
        assert status == 0, told
        found[name] = [method.seeds[0].test for one in Study(tmp_path / name).comparisons() for method in one.methods]
    assert found["option"] == found["one"] == found["file"]


def test_the_command_line_has_one_flag(nodes, says, tmp_path):
    words = ["heart", "ditto", "--rounds", "2", "--backend", "loop", "--chunk", "2", "--quiet"]
    for name, own in (("one", []), ("two", ["--ray", nodes[0]])):
        status, told = says("run", *words, *own, "--out", tmp_path / name)
        assert status == 0, told
    one, two = (RunFolder(tmp_path / name).result() for name in ("one", "two"))
    assert two.test == one.test


def test_another_cluster_than_the_one_of_this_process_is_refused(nodes, monkeypatch):
    monkeypatch.setattr("plures.run.rays.found", lambda address: address)
    with pytest.raises(PluresError, match=rf"this process is connected to {nodes[0]}; call ray\.shutdown"):
        begun("fedavg", "127.0.0.2:6000")


def test_a_node_that_is_killed_in_a_round_costs_its_work_and_nothing_else(nodes):
    address, (_, second) = nodes
    one, two = begun("marking"), begun("marking", address)
    mark = Path(os.environ[SEEN]) / f"at-{second.mark}"
    two.step()
    mark.unlink()  # it is used
    killed = []

    def kill() -> None:
        while not mark.exists():
            time.sleep(0.01)
        second.kill()
        killed.append(two.round)

    thread = threading.Thread(target=kill)
    thread.start()
    two.step()
    thread.join()
    assert killed == [1]
    assert marked(second.mark) == []
    two.step()
    for _ in range(3):
        one.step()
    assert_equal(one, two)


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from test_rays import begun, model, Path
from plures import fit
if __name__ == "__main__":
    run = begun("ditto", "local", model)
    fit(run, "rays", checkpoint=Path({file!r}), progress=lambda point: print(point.round, flush=True))
"""


def test_ctrl_c_ends_a_cluster_of_its_own_after_the_round(tmp_path):
    from plures import fit

    file, script, mark = tmp_path / "checkpoint.safetensors", tmp_path / "script.py", f"own-{os.getpid()}"
    paths = [str(Path(__file__).parent), *sys.path]
    script.write_text(SCRIPT.format(paths=paths, file=str(file)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PLURES_TEST_NODE": mark}
    job = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment,
    )  # fmt: skip
    assert job.stdout is not None
    assert job.stdout.readline() == "1\n"
    assert len(marked(mark)) > 2
    os.killpg(job.pid, signal.SIGINT)  # as from a terminal: all processes of the group receive it
    _, told = job.communicate(timeout=300)
    assert job.returncode != 0
    assert told.rstrip().endswith("KeyboardInterrupt")
    end = time.monotonic() + 60
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.1)
    assert marked(mark) == []
    went_on, whole = begun("ditto", network=model), begun("ditto", network=model)
    fit(went_on, "rays", checkpoint=file)
    fit(whole, "whole")
    assert_equal(whole, went_on)
