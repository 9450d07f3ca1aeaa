"""Forked tasks: they get the threads that the site allows, from a process without any; when tasks must start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.common.constant import Status
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.corestate import in_memory_corestate, sql_corestate
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager

from plures.deploy.fleet.inbox import Inbox
from plures.deploy.fleet.programs import GUARD, NODE, SUPERLINK, TASKS_OF, command, give_time

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="tasks are not forked here")

FORKED = """
import os, sys
from plures.deploy.fleet import programs

def task():
    import torch
    torch.randn(300, 300) @ torch.randn(300, 300)
    print(os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads(), "plures.deploy.app" in sys.modules)
    sys.exit(7)

programs.warm(programs.STARTER)
child = programs.fork(task)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1)
"""


@pytest.mark.parametrize(("given", "told"), [("2", "2 2 True"), ("1", "1 1 True")])
def test_a_task_has_the_threads_that_the_site_allows_and_its_parent_has_none(given: str, told: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": given}
    done = subprocess.run([sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == [told, "7 1", ""]


DRAWN = """
import sys
from plures.deploy.fleet import programs

def task():
    import numpy, random, secrets, torch
    print(numpy.random.random(), random.random(), secrets.token_hex(8))

programs.load({*programs.LOADED, *programs.LATER, *programs.PROGRAMS.values(), *programs.STARTERS.values()})
for _ in range(2):
    programs.os.waitpid(programs.fork(task), 0)
print(*(name in sys.modules for name in programs.LOADED))
"""


def test_tasks_draw_random_numbers_of_their_own() -> None:
    done = subprocess.run([sys.executable, "-c", DRAWN], capture_output=True, text=True, check=True)
    first, second, loaded = done.stdout.splitlines()
    assert all(one != other for one, other in zip(first.split(), second.split(), strict=True)), done.stdout
    assert set(loaded.split()) == {"True"}


@pytest.mark.parametrize("words", [command(SUPERLINK), command(NODE, GUARD)])
def test_a_port_that_is_taken_is_one_sentence(words: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([*words, "--port", str(port)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} of 127.0.0.1 cannot be used (Address already in use): end the ")
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


STORES = {NODE: in_memory_corestate, SUPERLINK: sql_corestate}


def kept(name: str, folder: Path) -> Any:
    """The folder in which a program keeps its tasks."""
    objects = ObjectStoreFactory().store()
    if name == NODE:
        return Inbox(objects)
    state = SqlLinkState(str(folder / "tasks.db"), NoOpFederationManager(), objects)
    state.initialize()
    return state


@pytest.mark.parametrize("interval", [10, 30], ids=["quick", "usual"])
@pytest.mark.parametrize("name", TASKS_OF)
def test_a_task_has_a_minute_to_begin_and_must_then_say_that_it_lives(
    name: str, interval: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower gives it one interval, 10 seconds if quick, and on a slow machine starts it again and again."""
    store, begun, passed = STORES[name], STORES[name].now(), 0.0
    assert store.__name__ == TASKS_OF[name]
    monkeypatch.setattr(store, "HEARTBEAT_DEFAULT_INTERVAL", interval)
    monkeypatch.setattr(store, "HEARTBEAT_PATIENCE", 2)
    monkeypatch.setattr(store, "now", lambda: begun + timedelta(seconds=passed))
    give_time(store)
    state = kept(name, tmp_path)
    task = state.create_task(TaskType.CLIENT_APP, run_id=1)
    assert state.claim_task(task)
    passed = 59
    assert state.claim_task(task) is None
    assert state.activate_task(task)
    for _ in range(3):
        passed += 2 * interval - 1
        assert state.acknowledge_task_heartbeat(task)
    passed += 2 * interval + 1
    assert not state.acknowledge_task_heartbeat(task)
    second = state.create_task(TaskType.CLIENT_APP, run_id=1)
    assert state.claim_task(second)
    passed += 61
    assert not state.activate_task(second)
    assert [one.task_id for one in state.get_tasks(statuses=[Status.PENDING])] == [second]
    assert state.claim_task(second)
