"""What clients on a Ray cluster need of Ray, with a pretended Ray that does tasks in this process."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import signal
import socket
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import plures.run.rays as rays
from beside import refuses
from bits import assert_equal
from newcomers import clients
from plures import PluresError, Run, Training, with_roles
from plures.errors import PluresWarning
from plures.method import SGD, Method, Phase
from plures.methods import METHODS
from plures.report.catalogue import model
from plures.run import Execution, Machine, Uniform
from plures.run.checkpoint import snapshot
from plures.run.packed import Packed, pack
from plures.run.tasks import Done, Place, do, in_turn

pytest.importorskip("cloudpickle", reason="Ray clients need cloudpickle: pip install 'plures[ray]'")
WORK = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))
ONE = Execution("loop", 2, False, "float32")
RAY = Execution("loop", 2, False, "float32", ray="local")


class RayError(Exception):
    """An error of the pretended Ray."""


class Pretended:
    """As much of Ray as plures uses. The last task that began is done first.

    Attributes:
        puts: sizes in bytes of what was put into the memory of the cluster.
        memory: that memory, and what was put there.
        asked: the options of tasks.
        cancelled: the tasks that were given up.
        dies: the error with which tasks are lost for good.
    """

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, **resources: float) -> None:
        self.resources = resources or {"CPU": 2.0}
        self.on = False
        self.dies: Any = None
        self.puts, self.asked, self.cancelled = list[int](), list[dict[str, Any]](), list[object]()
        self.memory = list[tuple[Packed, Packed]]()
        self.inits = list[tuple[Any, dict[str, Any]]]()

    def is_initialized(self) -> bool:
        return self.on

    def init(self, address: Any = None, **options: Any) -> None:
        self.on = True
        self.inits.append((address, options))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_job_id=lambda: "job", gcs_address="head:6379")

    def put(self, what: Any) -> Any:
        self.puts.append(sum(part.nbytes for part in (what[0], *what[1])))
        one, two = (Packed(what[0].copy(), [part.copy() for part in what[1]]) for _ in range(2))
        self.memory.append((one, two))
        return SimpleNamespace(value=tuple(one))

    def remote(self, **options: Any) -> Any:
        self.asked.append(options)
        return lambda function: SimpleNamespace(
            remote=lambda *given: Begun(function, [getattr(one, "value", one) for one in given])
        )

    def wait(self, begun: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return begun[-num_returns:], begun[:-num_returns]

    def get(self, one: Any) -> Any:
        if self.dies:
            raise self.dies
        return one.function(*one.given)

    def cancel(self, one: object, force: bool) -> None:
        self.cancelled.append(one)


class Begun:
    """A task that has begun."""

    def __init__(self, function: Any, given: list[Any]) -> None:
        self.function, self.given = function, given


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    found = Pretended()
    monkeypatch.setitem(sys.modules, "ray", found)
    monkeypatch.setattr(rays, "PLACE", Place())
    return found


def wide() -> torch.nn.Module:
    """A network whose parameters are large enough to lie apart."""
    layers = torch.nn.Sequential(torch.nn.Linear(8, 256), torch.nn.BatchNorm1d(256), torch.nn.Linear(256, 2))
    return with_roles(layers, head="2")


def begun(name: str, execution: Execution, network: Any = model, **options: Any) -> Run:
    data, _ = clients()
    method = METHODS[name]()
    return Run(
        data, lambda: network(), method, WORK, participation=Uniform(0.8), seed=3, execution=execution, **options
    )


@pytest.mark.parametrize("name", ["ditto", "scaffold", "ifca"])
def test_every_bit_is_that_of_one_process_whichever_task_is_done_first(ray, name):
    one, two = begun(name, ONE), begun(name, RAY)
    assert two.execution.processes == 2
    for _ in range(2):
        assert two.step().loss == one.step().loss
    assert_equal(one, two)


@pytest.mark.parametrize("name", ["fedavg", "ditto", "scaffold", "ifca", "apple", "fedper", "lora", "pfedhn"])
@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_what_all_workers_of_a_node_read_is_not_written_to(ray, name, backend):
    """Otherwise they would compute with each other's values."""
    one, two = (begun(name, replace(how, backend=backend), wide) for how in (ONE, RAY))
    for _ in range(2):
        assert two.step().loss == one.step().loss
    assert_equal(one, two)
    assert sum(len(found.parts) for found, _ in ray.memory) > 2
    assert all(found.key == put.key for found, put in ray.memory)


def test_data_are_put_once_for_all_runs_of_a_machine_and_the_state_of_a_round_once(ray):
    machine, (data, _) = Machine(), clients()
    for name in ("fedavg", "ditto"):
        run = Run(data, lambda: model(), METHODS[name](), WORK, execution=RAY, machine=machine)
        run.step()
        run.step()
    assert len(ray.puts) == 1 + 2 * (1 + 2)  # the data; of each run what makes it, and the states of two rounds
    assert len(machine.sent) == rays.KEPT
    assert machine.portable().sent == {}


def test_tasks_are_tried_again_elsewhere_and_one_that_is_lost_for_good_is_told_in_one_sentence(ray):
    run = begun("fedavg", RAY)
    run.step()
    assert ray.asked[0] == {"max_retries": 3, "scheduling_strategy": "SPREAD", "num_cpus": 1}
    before = snapshot(run)
    ray.dies = RayError("The node died.\nIts log says why.")
    said = r"^round 2: a task could not be done on the cluster \(RayError: The node died\.\)$"
    with pytest.raises(PluresError, match=said):
        run.step()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(run).items())
    assert len(ray.cancelled) == 1  # the other one that had begun
    ray.dies = None
    run.step()
    one = begun("fedavg", ONE)
    one.step()
    one.step()
    assert_equal(one, run)


def test_a_module_that_a_node_lacks_is_named(ray):
    run = begun("fedavg", RAY)
    ray.dies = RayError("\x1b[36mray::work()\x1b[39m (pid=1)")
    ray.dies.cause = ModuleNotFoundError("No module named 'mine'", name="mine")
    with pytest.raises(PluresError, match=r"^ray='local': a node lacks the module 'mine': your own modules must be "):
        run.step()


def test_what_a_visit_refuses_is_said_as_in_one_process(ray, monkeypatch):
    data, _ = clients()
    run = Run(data, torch.nn.Linear(8, 2), Method(schedule=(Phase("model", refuses),)), WORK, execution=RAY)
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)  # as if it were elsewhere
    with pytest.raises(PluresError, match=r"^data of another kind$"):
        run.step()


def test_signals_are_handled_as_before_and_copies_use_the_same_connection(ray):
    before = signal.getsignal(signal.SIGTERM)
    run = begun("fedavg", RAY)
    assert signal.getsignal(signal.SIGTERM) is before
    other = copy.deepcopy(run)
    run.step()
    other.step()
    assert_equal(run, other)
    assert [options["include_dashboard"] for _, options in ray.inits] == [False]


def test_nodes_with_another_version_are_refused(ray, monkeypatch):
    run = begun("fedavg", RAY)
    there = itertools.chain([("1.0", "2.0")] * 2, itertools.repeat(("0.9", "2.0")))
    monkeypatch.setattr(rays, "versions", lambda: next(there))
    said = r"^a node has plures 0\.9 and torch 2\.0, and this process has 1\.0 and 2\.0: install the same on all nodes$"
    with pytest.raises(PluresError, match=said):
        run.step()


def test_a_gpu_is_shared_by_the_tasks_that_run_at_once(ray):
    assert [rays.share(2, tasks) for tasks in (1, 2, 3, 4)] == [1.0, 1.0, 0.6666, 0.5]
    ray.resources = {"GPU": 1.0}
    with pytest.raises(PluresError, match=r"^ray='local': the cluster has no CPU; start its nodes with --num-cpus$"):
        rays.Rays(RAY)


def test_on_gpus_tasks_ask_for_a_part_of_one(ray, monkeypatch):
    ray.resources = {"CPU": 8.0, "GPU": 2.0}
    monkeypatch.setattr("plures.run.execution.find", torch.device)
    executor = rays.Rays(Execution(device="cuda", processes=4, ray="local"))
    assert executor.count == 4
    item = executor.pack(3, "an item")
    executor.begin(0, _double, {}, item)
    assert (ray.asked[0]["num_cpus"], ray.asked[0]["num_gpus"]) == (0, 0.5)
    assert executor.done() == [(0, Done(6, []))]
    assert rays.Rays(Execution(device="cuda", ray="local")).count == 2


def _double(place: Place, keys: list[str], item: int) -> int:
    return 2 * item


def test_warnings_of_tasks_are_heard(ray):
    executor = rays.Rays(RAY)
    with pytest.warns(PluresWarning, match="item 1 is odd"):
        found = list(in_turn(executor, _odd, {}, lambda number: executor.pack(number, "an item"), 3))
    assert found == [0, 1, 2]


def _odd(place: Place, keys: list[str], item: int) -> int:
    import warnings

    if item % 2:
        warnings.warn(f"item {item} is odd", PluresWarning, stacklevel=1)
    return item


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_a_place_keeps_what_the_last_task_needed_and_makes_it_once():
    place, given = Place(), {key: pack(key.upper(), "x", "ray", "x") for key in "ab"}
    place.take(given, ["a", "b"])
    held = place.held["a"]
    place.take({"c": pack("C", "x", "ray", "x")}, ["a", "c"])
    assert place.held == {"a": "A", "c": "C"}
    assert place.held["a"] is held
    assert place.made("a", list) is place.made("a", list)
    assert place.made("b", dict) == {}
    assert do(lambda place, keys, item: item / 0, place, [], 1).answer.args[0].startswith("Traceback")


def test_large_tensors_lie_apart_and_come_back_bit_for_bit():
    weights = torch.randn(3, 4000)
    given = {
        "float": weights,
        "bfloat16": weights.bfloat16(),
        "bool": weights > 0,
        "view": weights[1],
        "transposed": weights.T,
        "expanded": weights[:1].expand(9, -1),
        "small": torch.arange(3),
        "grad": weights.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(weights),
        "scalar": torch.tensor(2.0),
        "same": weights,
    }
    packed = pack(given, "x", "ray", "x")
    assert [part.nbytes for part in packed.parts] == [48000, 24000, 12000, 16000, 48000]
    for copied in (False, True):
        found = packed.unpacked(copied=copied)
        for name, value in given.items():
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            assert torch.equal(found[name], value), name
        assert found["same"] is found["float"]
        assert found["grad"].requires_grad
        shares = found["float"].data_ptr() == packed.parts[0].ctypes.data
        assert shares is not copied
    other = weights.clone()
    other[0, 0] += 1
    assert pack(weights, "x", "ray", "x").key == pack(weights.clone(), "x", "ray", "x").key
    assert pack(weights, "x", "ray", "x").key != pack(other, "x", "ray", "x").key
    assert isinstance(packed, Packed)


# --- addresses --------------------------------------------------------------------------------------------------------


def test_addresses_at_which_nothing_of_ray_answers(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(
        PluresError, match=r"^ray='auto': no Ray cluster runs on this machine: start one with ray start"
    ):
        rays.found("auto")
    for odd in ("head", "ray://head:10001", "head:port", ":6379"):
        with pytest.raises(PluresError, match=r"give local, auto or the HOST:PORT of a cluster's head node$"):
            rays.found(odd)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        PluresError, match=rf"^ray='127\.0\.0\.1:{port}': nothing answers \(.*\); is the cluster running"
    ):
        rays.found(f"127.0.0.1:{port}")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}\n")  # of a cluster that has ended
    with pytest.raises(
        PluresError, match=rf"^ray='auto': 127\.0\.0\.1:{port}, where the cluster should be: nothing ans"
    ):
        rays.found("auto")


def test_nothing_is_written_for_a_cluster_that_is_not_there(ray, says, tmp_path):
    (tmp_path / "s.toml").write_text('data = ["heart"]\nmethods = ["fedavg"]\nname = "s"\nbudgets = [{rounds = 1}]\n')
    for words in (["run", "heart", "ditto"], ["compare", "heart"], ["study", tmp_path / "s.toml"]):
        status, told = says(*words, "--ray", "127.0.0.1:1", "--out", tmp_path / "out")
        assert (status, told.startswith("error: ray='127.0.0.1:1': nothing answers")) == (2, True), told
        assert not (tmp_path / "out").exists()


def test_a_wrong_address_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head")
    with pytest.raises(
        PluresError, match=r"^ray='auto': RAY_ADDRESS=head: give the HOST:PORT of a cluster's head node$"
    ):
        rays.found("auto")


@pytest.mark.parametrize(
    ("at", "own", "same"),
    [
        ("head:1", "head:1", True),
        ("localhost:1", "127.0.0.1:1", True),  # a name, and its number
        ("127.0.0.1:1", "127.0.0.3:1", True),  # for Ray, the first is this machine, as is the second
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.2:1", "127.0.0.3:1", False),
        ("127.0.0.1:1", "203.0.113.9:1", False),  # no address of this machine
    ],
)
def test_a_cluster_has_several_addresses(at, own, same):
    assert rays.same(at, own) is same


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.0 400 Bad Request", "what answers is not Ray"),
        (b"", "what answers is not Ray"),
        (bytes([0, 0, 18, 4, 0]), None),
    ],
)
def test_what_answers_is_told_from_ray(answer, said):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if said is None:
            assert rays.found(address) == address
        else:
            with pytest.raises(PluresError, match=said):
                rays.found(address)
        thread.join()


def test_what_excludes_a_cluster_is_refused_and_what_is_missing_is_named(monkeypatch, ray):
    with pytest.raises(PluresError, match=r"^threads=2 and ray exclude each other: leave one of them out$"):
        Execution(threads=2, ray="local")
    with pytest.raises(PluresError, match=r"^an execution's 'ray' is not read from a file$"):
        Execution.from_dict({"ray": "elsewhere:6379"})
    assert Execution(processes=4, ray="local").alone("head:6379") == Execution(ray="head:6379")
    monkeypatch.setattr(rays, "found", lambda address: address)
    ray.on = True
    with pytest.raises(
        PluresError, match=r"^ray='other:1': this process is connected to head:6379; call ray\.shutdown"
    ):
        rays.connect("other:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PluresError, match=r"^ray='local' needs ray: pip install 'plures\[ray\]'$"):
        begun("fedavg", RAY)
