"""Nodes of a Ray cluster as real processes on loopback addresses, and work that says on which of them it is done."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NODE, SEEN = "PLURES_TEST_NODE", "PLURES_TEST_SEEN"
"""Environment variables: which node a process belongs to, and the folder in which work leaves its marks."""
SLOW = 0.2
"""Seconds of a step of the work that leaves marks."""


class Node:
    """A node of a cluster on this machine.

    Args:
        mark: in the environment of all its processes.
        words: arguments of ``ray start``.
        environment: of its processes.
        log: what it says.
    """

    def __init__(self, mark: str, words: list[str], environment: dict[str, str], log: Path) -> None:
        self.mark, self.log = mark, log
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *words]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                start, env=environment | {NODE: mark}, stdout=file, stderr=file, start_new_session=True
            )

    def kill(self) -> None:
        """Kill all its processes, as if the machine were gone."""
        for number in marked(self.mark):
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def marked(mark: str) -> list[int]:
    """Processes with a mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{NODE}={mark}\0".encode() in environment:
            found.append(int(entry.name))
    return found


@contextmanager
def cluster(folder: Path, cores: int = 1) -> Iterator[tuple[str, list[Node]]]:
    """Two nodes with some cores each, at 127.0.0.2 and 127.0.0.3; gives the address and the nodes.

    This process has the cluster's token while they run; it must not have imported Ray before.
    """
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), SEEN: str(folder)}
    before = {name: os.environ.get(name) for name in own}
    os.environ |= own
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    address, size = f"127.0.0.2:{port}", [f"--num-cpus={cores}", "--object-store-memory=100000000"]
    head = ["--head", "--node-ip-address=127.0.0.2", f"--port={port}", "--include-dashboard=false"]
    run, nodes = secrets.token_hex(4), list[Node]()
    files = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path has at most 107 bytes
    try:
        nodes.append(Node(f"2-{run}", [*head, *size, f"--temp-dir={files}"], environment, folder / "2.log"))
        wait_for(lambda: "--block" in nodes[0].log.read_text(), nodes[0])
        second = [f"--address={address}", "--node-ip-address=127.0.0.3", *size]
        nodes.append(Node(f"3-{run}", second, environment, folder / "3.log"))
        wait_for(lambda: "--block" in nodes[1].log.read_text(), nodes[1])
        yield address, nodes
    finally:
        for node in nodes:
            node.kill()
        shutil.rmtree(files, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def wait_for(ready: Any, node: Node, seconds: float = 180.0) -> None:
    """Wait until a node is ready.

    Raises:
        RuntimeError: if it ends, or if that takes too long.
    """
    end = time.monotonic() + seconds
    while not ready():
        if node.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"a Ray node did not start:\n{node.log.read_text()}")
        time.sleep(0.1)


def marking(x: Any, received: Any, batch: Any) -> Any:
    """The loss of the model, after a while and with a mark of the node that computes it."""
    node = os.environ.get(NODE)
    if node is not None:
        (Path(os.environ[SEEN]) / f"at-{node}").touch()
        time.sleep(SLOW)
    return batch.loss(x.model)
