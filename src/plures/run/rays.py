"""Tasks on the machines of a Ray cluster."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from plures.errors import PluresError
from plures.extras import needed
from plures.run.execution import Execution
from plures.run.interrupt import NUMBERS, restore
from plures.run.packed import Packed, pack
from plures.run.tasks import Done, Given, GoneError, Place, Task, do
from plures.version import __version__

RETRIES = 3
"""How often a task is done again, on another node if there is one, because its process or its node ended."""
KEPT = 4
"""Number of things that stay in a cluster's memory: the data, a run, and the states of its last rounds."""
ANSWER_SECONDS = 3.0
"""Longest wait for the first answer of an address."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2, which Ray's servers speak, sends first: a preface and an empty frame of settings."""
LOOPBACK = {"127.0.0.1", "::1"}
QUIET = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}


def connect(address: str) -> Any:
    """Ray, connected to a cluster. The connection stays until the process ends, and with it a cluster of its own.

    Args:
        address: ``local`` starts a cluster on this machine, unless this process is connected to one; ``auto`` is the
            cluster that this machine belongs to; or ``HOST:PORT`` of its head node.

    Raises:
        PluresError: if Ray is not installed, if nothing answers, or if this process is connected to another cluster.
    """
    ray = library(address)
    at = None if address == "local" else found(address)
    if ray.is_initialized():
        own = ray.get_runtime_context().gcs_address
        if at is not None and not same(at, own):
            raise PluresError(f"ray={address!r}: this process is connected to {own}; call ray.shutdown() first")
        return ray
    with handlers():
        try:
            ray.init(address="local", include_dashboard=False, **QUIET) if at is None else ray.init(at, **QUIET)
        except Exception as error:  # of many kinds
            raise PluresError(
                f"ray={address!r}: there is no connection ({first(error)}); a cluster with a token needs it in "
                "RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
            ) from error
    return ray


def library(address: str) -> Any:
    """Ray, which reports no usage; a cluster that it starts answers to this process alone."""
    if "ray" not in sys.modules:  # it reads them when it is imported
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address == "local" and "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return needed("ray", f"ray={address!r}", "ray")


@contextmanager
def handlers() -> Iterator[None]:
    """A context after which signals are handled as before; Ray ends the process at SIGTERM."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in NUMBERS} if main else {}
    try:
        yield
    finally:
        restore(before)


def found(address: str) -> str:
    """The address of a cluster, at which something answers.

    Raises:
        PluresError: if nothing does, or something that is not Ray.
    """
    at, begin = address, f"ray={address!r}: "
    if address == "auto" and os.environ.get("RAY_ADDRESS"):
        at = os.environ["RAY_ADDRESS"]
        begin += f"RAY_ADDRESS={at}: "
    elif address == "auto":
        note = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
        at = note.read_text(encoding="utf-8").strip() if note.exists() else ""
        if not at:
            raise PluresError(f"{begin}no Ray cluster runs on this machine: start one with ray start, or say local")
        begin += f"{at}, where the cluster should be: "
    host, _, port = at.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        either = "local, auto or " if at == address else ""
        raise PluresError(f"{begin}give {either}the HOST:PORT of a cluster's head node")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as reached:
            reached.sendall(PREFACE)
            answer = reached.recv(4)
    except (OSError, OverflowError) as error:
        raise PluresError(f"{begin}nothing answers ({error}); is the cluster running?") from error
    if answer[3:] != PREFACE[27:28]:
        raise PluresError(f"{begin}what answers is not Ray; give the HOST:PORT that ray start said")
    return at


def same(at: str, own: str) -> bool:
    """Whether an address is that of the cluster which calls itself by another, such as a host by its number.

    For Ray, the loopback address stands for this machine.
    """
    (host, _, port), (other, _, own_port) = at.rpartition(":"), own.rpartition(":")
    if at == own or port != own_port:
        return at == own
    numbers, others = numbers_of(host), numbers_of(other)
    return bool(numbers & others) or (bool(numbers & LOOPBACK) and any(map(here, others)))


def numbers_of(host: str) -> set[str]:
    """The IP addresses of a host; none if it is not known."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return set()


def here(number: str) -> bool:
    """Whether an IP address is one of this machine's."""
    with socket.socket(socket.AF_INET6 if ":" in number else socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.bind((number, 0))
        except OSError:
            return False
    return True


def first(error: BaseException) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


class Rays:
    """Tasks on the machines of a Ray cluster, each on one core, or on a part of a GPU.

    What tasks are given is put into the cluster's shared memory once, and read there by all processes of a node. A task
    whose process or node ends is done again elsewhere; the results are those of tasks that ran to their end.

    Args:
        execution: says the cluster (``ray``), the device and how many tasks are done at once (``processes``).
        sent: what is in the cluster's memory already, by content; runs may share it.

    Raises:
        PluresError: if there is no connection, or if the cluster has no such device.
    """

    def __init__(self, execution: Execution, sent: dict[str, Any] | None = None) -> None:
        assert execution.ray is not None
        self._execution, self._address = execution, execution.ray
        self._sent = {} if sent is None else sent
        self._busy: dict[Any, int] = {}
        self._ray = connect(self._address)
        self._at = self._address if self._address == "local" else str(address_of(self._address))
        device = execution.torch_device.type
        kind = "CPU" if device == "cpu" else "GPU"
        have = self._ray.cluster_resources().get(kind, 0.0)
        if have < 1:
            option = f"--num-{kind.lower()}s"
            raise PluresError(f"ray={self._address!r}: the cluster has no {kind}; start its nodes with {option}")
        asked = execution.processes
        self.count = int(have) if asked == "auto" else asked
        part = {"num_cpus": 1} if kind == "CPU" else {"num_cpus": 0, "num_gpus": share(have, self.count)}
        # One remote function for all tasks: every other would be sent to the nodes again and wait for a worker anew.
        self._work = self._ray.remote(**part, max_retries=RETRIES, scheduling_strategy="SPREAD")(work)

    def __deepcopy__(self, memo: dict[int, object]) -> Rays:
        return Rays(self._execution)

    @property
    def free(self) -> int:
        return self.count - len(self._busy)

    def pack(self, what: object, called: str, *, apart: bool = True) -> Packed:
        return pack(what, f"ray={self._address!r}", "ray", called, apart=apart)

    def begin(self, number: int, task: Task, given: Given, item: Packed) -> None:
        connect(self._at)
        refs = [self._put(key, one) for key, one in given.items()]
        self._busy[self._work.remote(versions(), task, list(given), tuple(item), *refs)] = number

    def _put(self, key: str, what: Packed) -> Any:
        """The reference to something in the cluster's memory; the last few stay there."""
        own = f"{self._ray.get_runtime_context().get_job_id()} {key}"
        self._sent[own] = self._sent.pop(own, None) or self._ray.put(tuple(what))
        while len(self._sent) > KEPT:
            del self._sent[next(iter(self._sent))]
        return self._sent[own]

    def done(self) -> list[tuple[int, Done]]:
        ready, _ = self._ray.wait(list(self._busy), num_returns=1)
        results = []
        for one in ready:
            number = self._busy.pop(one)
            try:
                body, parts = self._ray.get(one)
            except self._ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                if isinstance(cause, ModuleNotFoundError):
                    raise PluresError(
                        f"ray={self._address!r}: a node lacks the module {cause.name!r}: your own modules must be "
                        "importable on all nodes, such as from the folder where the command starts"
                    ) from error
                raise GoneError(f"a task could not be done on the cluster ({first(cause)})") from error
            results.append((number, Packed(body, parts).unpacked(copied=True)))
        return results

    def end(self) -> list[int | None]:
        """Give up all tasks."""
        for one in self._busy:
            self._ray.cancel(one, force=True)
        self._busy.clear()
        return []


def address_of(address: str | None) -> str | None:
    """The ``HOST:PORT`` of a cluster for further processes; ``None`` for none."""
    return None if address is None else str(connect(address).get_runtime_context().gcs_address)


def share(gpus: float, tasks: int) -> float:
    """The part of a GPU for each of some tasks at once, in steps that Ray can count."""
    return 1.0 if tasks <= gpus else int(gpus / tasks * 10_000) / 10_000


def versions() -> tuple[str, str]:
    """What must be the same on all nodes."""
    return __version__, torch.__version__


PLACE = Place()
"""What a worker keeps between tasks. Tasks of Ray have no other place for it: they are functions of their arguments."""


def work(there: tuple[str, str], task: Task, keys: list[str], item: Any, *given: Any) -> tuple[Any, ...]:
    """Do a task in a worker of Ray.

    Args:
        there: versions of plures and torch of the process that asks.
        task: what to do.
        keys: the keys of what it is given.
        item: the item, packed.
        given: what it is given, packed, as arrays in the node's shared memory.
    """
    if there != versions():
        text = "a node has plures {} and torch {}, and this process has {} and {}: install the same on all nodes"
        return tuple(pack(Done(PluresError(text.format(*versions(), *there)), []), "ray", "ray", "an error"))
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    PLACE.take({key: Packed(*one) for key, one in zip(keys, given, strict=True)}, keys)
    done = do(task, PLACE, keys, Packed(*item).unpacked())
    return tuple(pack(done, "ray", "ray", "what clients send"))
