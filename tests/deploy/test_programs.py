"""What is forked: with the threads that the site allows, from a process that has none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from plures.deploy.fleet.programs import GUARD, NODE, SUPERLINK, command

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


@pytest.mark.parametrize("words", [command(SUPERLINK), command(NODE, GUARD)])
def test_a_port_that_is_taken_is_one_sentence(words: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([*words, "--port", str(port)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} of 127.0.0.1 cannot be had (Address already in use): end what ")
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
