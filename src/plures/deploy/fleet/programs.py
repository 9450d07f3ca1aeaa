"""Flower's own programs, run in a manner that plures chooses.

``--guard`` is for the node of a site. A SuperNode runs whatever app the SuperLink sends it; with the guard it ignores
the app's code and answers every message with the client of plures that is installed at the site, and ``site.toml`` says
what that client may do. So nobody who commands the SuperLink can run their own code at the site. And a SuperNode
gives its tasks to anyone who asks at a loopback port; with the guard, only to processes that it started.

``--warm`` is for all federations. Flower runs every task (a client's answer to one message, a server's run) in a new
interpreter, which loads torch again. With this, the process that starts tasks has loaded what they need and forks a
child for each, so that nothing of a task is left for the next one; where there is no fork, tasks start as they do
without it. And the node looks for work every second, not every three.

``--quick`` is for a whole federation on one machine, demos and tests: all look still sooner, and a node that was killed
is let in again after 20 seconds instead of a minute. What is sent, and to whom, is Flower's.

Whatever the manner: what starts tasks is started again when it ends (Flower would not miss it, and no task would ever
be done again), a task has a minute to begin, a node answers each message once and in its turn (``inbox.py``), a program
ends within some seconds of SIGTERM and at once of a second one, and what it writes is its user's alone.

This file is run as a script and loads plures only where a task needs it: Flower's programs themselves need no torch.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROGRAMS = {
    "flower-superlink": "flwr.superlink.cli",
    "flower-supernode": "flwr.supernode.cli",
    "flower-superexec": "flwr.supercore.cli",
    "flwr-clientapp": "flwr.supernode.cli",
    "flwr-serverapp": "flwr.superlink.cli",
}
"""Where each program is; there, its name has ``_`` for ``-``."""
NODE = "flower-supernode"
"""It returns when a handshake with the SuperLink broke off, and then its threads would keep it from ending for ever."""
TASKS = ("flwr-clientapp", "flwr-serverapp")
STARTERS = {
    "flower-superlink": "flwr.superlink.cli.flower_superlink",
    "flower-supernode": "flwr.supernode.start_client_internal",
    "flower-superexec": "flwr.supercore.superexec.executor.subprocess_executor",
}
"""Where a program starts others, by a module's name ``subprocess``."""
SUPERLINK, STARTER = "flower-superlink", "flower-superexec"
GUARD, WARM, QUICK = "--guard", "--warm", "--quick"
GUARDED = (STARTER, "flwr-clientapp")
"""What a guarded node starts."""
DESCRIPTORS = Path("/dev/fd")
"""Where a process finds what it has open."""
LOADED = ("plures.deploy.app", "flwr.supernode.cli", "flwr.superlink.cli")
"""What tasks need."""
THREADS = "OMP_NUM_THREADS"
INTERVAL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
PULL = ("flwr.supercore.constant", "PULL_INITIAL_BACKOFF")
HEARTBEAT = ("flwr.common.constant", "HEARTBEAT_DEFAULT_INTERVAL")
"""How long a task waits for arrays that are on their way; how often a node must say that it lives."""
TASKS_OF = {
    SUPERLINK: "flwr.supercore.corestate.sql_corestate",
    NODE: "flwr.supercore.corestate.in_memory_corestate",
}
"""Where a program keeps its tasks."""
BEGIN = 60.0
"""Seconds within which a task must begin: a new interpreter loads torch, and the machine may be busy."""
TASK_LOOKS = {SUPERLINK: 1.0, STARTER: 0.05}
"""Seconds between two questions of what starts tasks: of a SuperLink, and of a node, which answers when it has one."""
ANSWER, HERE = 0.5, 0.05
"""How long Flower's node sleeps between two looks for an answer of its own task, and how long it does here."""
ENDING = 3
"""Seconds that a SuperLink waits for requests to end when it is to end."""
RESTART_SECONDS = 1.0
"""Seconds before what starts tasks is started again."""
RAISED = ("flwr.supercore.app_utils", "flwr.supercore.heartbeat")
"""Where Flower raises a signal in a thread."""


def command(name: str, *manners: str) -> list[str]:
    """The words that run a program in some manners."""
    return [sys.executable, "-P", str(Path(__file__).resolve()), *manners, name]


def main(*words: str) -> None:
    """Run the program that the words say."""
    manners = list(itertools.takewhile(lambda word: word in PREPARE, words))
    run(words[len(manners) :], manners)


def run(words: Sequence[str], manners: Sequence[str]) -> None:
    """Run a program in this process, under the name that Flower gives it."""
    name = words[0]
    if name in (NODE, SUPERLINK) and "--port" in words:
        check_port(int(words[words.index("--port") + 1]))
    os.umask(0o077)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    for manner in PREPARE:
        if manner in manners:
            PREPARE[manner](name)
    heed(name)
    if name in TASKS_OF:
        give_time(importlib.import_module(TASKS_OF[name]))
    if name == NODE:
        beside("inbox").install()
    if name in STARTERS:
        starter: Any = importlib.import_module(STARTERS[name])
        secret = lock() if name == NODE and GUARD in manners and DESCRIPTORS.exists() else b""
        starter.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": started(manners, secret)})
    sys.argv = list(words)
    program = getattr(importlib.import_module(PROGRAMS[name]), name.replace("-", "_"))
    if name == NODE:
        os._exit(code(program, returned=1))
    program()


def give_time(tasks: Any) -> None:
    """Let tasks have :data:`BEGIN` seconds to begin; those that have begun must say as often as before that they live.

    Flower gives a task as long to begin as lies between two signs of life, which ``--quick`` makes short. A task whose
    interpreter took longer to start was given to a second one while it started, was then refused, and so on: on a busy
    machine, no task was ever done.

    Args:
        tasks: Flower's module that keeps them. A task that was taken has one interval to begin; one that has begun
            has that many intervals for its next sign of life.
    """
    tasks.HEARTBEAT_PATIENCE *= tasks.HEARTBEAT_DEFAULT_INTERVAL / BEGIN
    tasks.HEARTBEAT_DEFAULT_INTERVAL = BEGIN


def beside(name: str) -> Any:
    """A module beside this file, without the rest of plures."""
    spec: Any = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_port(port: int) -> None:
    """End with a sentence where the port of loopback on which this program is to listen is taken."""
    with socket.socket() as probe:
        if os.name == "posix":  # as who listens does: a port that was listened on a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            remedy = "end what listens there, perhaps another federation's program, or choose another port for this one"
            sys.exit(f"error: port {port} of 127.0.0.1 cannot be had ({error.strerror}): {remedy}")


def started(manners: Sequence[str], secret: bytes = b"") -> Callable[..., object]:
    """What stands for ``subprocess.Popen`` in a program that is run in some manners.

    Args:
        manners: of this program, and of what it starts.
        secret: that only what starts tasks is told.
    """

    def start(words: Sequence[str], **options: Any) -> object:
        if words[0] not in (GUARDED if GUARD in manners else PROGRAMS):
            print(f"{words[0]} was asked for and is not started here", file=sys.stderr)
            return None
        if WARM in manners and words[0] in TASKS and hasattr(os, "fork"):
            return fork(lambda: run(words, [manner for manner in manners if manner != WARM]))

        def opened() -> subprocess.Popen[bytes]:
            begin = [*command(words[0], *manners), *words[1:]]
            return (
                start_with_secret(begin, secret)
                if secret and words[0] == STARTER
                else subprocess.Popen(begin, **options)
            )

        return Restarted(opened) if words[0] == STARTER else opened()

    return start


def lock() -> bytes:
    """Let a node give tasks only to a program that knows a secret, which is returned.

    Flower asks for one where what starts tasks runs apart from the node. If a node starts it, nobody is asked, and any
    user of the machine could take the site's tasks.
    """
    secret = secrets.token_bytes(32)
    api: Any = importlib.import_module("flwr.supernode.main")
    create = api.create_app
    api.create_app = lambda **given: create(**given | {"superexec_auth_secret": secret})
    return secret


def start_with_secret(words: Sequence[str], secret: bytes) -> subprocess.Popen[bytes]:
    """Start what starts tasks and tell it the secret, which no file, argument or variable holds."""
    read, write = os.pipe()
    try:
        os.write(write, secret)
        os.close(write)
        return subprocess.Popen([*words, "--superexec-auth-secret-file", str(DESCRIPTORS / str(read))], pass_fds=[read])
    finally:
        os.close(read)


class Restarted:
    """A child that is started again whenever it ends by itself.

    Args:
        start: starts it.
    """

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.start, self.child, self.wanted = start, start(), True
        threading.Thread(target=self.keep, daemon=True).start()
        importlib.import_module("flwr.supercore.exit").add_exit_handler(self.terminate)

    def keep(self) -> None:
        """Restart it whenever it ends."""
        while True:
            code = self.child.wait()
            time.sleep(RESTART_SECONDS)
            if not self.wanted:
                return
            print(f"what starts tasks has ended (exit code {code}) and is started again", file=sys.stderr, flush=True)
            self.child = self.start()

    def terminate(self) -> None:
        """Ask it to end, for good."""
        self.wanted = False
        self.child.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code."""
        return self.child.wait(timeout)


def heed(name: str) -> None:
    """A program heeds signals in time.

    Flower ends a task whose parent is gone, or whose run was stopped, by a signal that it raises in one of its threads.
    Python handles signals in its main thread only, and one that waits (for answers: until a round's deadline, ten
    minutes) is not woken by a signal that another thread has got. A signal to the process wakes it.

    A SuperLink (uvicorn) that is to end waits for all requests, without a limit: one whose body never comes keeps it
    for ever, whatever further signals come. With this it waits for some seconds, and a second signal is the last.
    """
    if name == SUPERLINK:
        uvicorn: Any = importlib.import_module("uvicorn")
        used, first = uvicorn.run, uvicorn.Server.handle_exit

        def handle(server: Any, number: int, frame: object) -> None:
            if server.should_exit:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            first(server, number, frame)

        uvicorn.Server.handle_exit = handle
        uvicorn.run = lambda *given, **options: used(*given, **options, timeout_graceful_shutdown=ENDING)
    for module in RAISED:
        raising: Any = importlib.import_module(module)
        woken = {"raise_signal": lambda number: os.kill(os.getpid(), number)}
        raising.signal = SimpleNamespace(**vars(signal) | woken)


def guard(name: str) -> None:
    """The program that answers messages gets plures' client, and the app's code is not even unpacked."""
    if name == "flwr-clientapp":
        runtime: Any = importlib.import_module("flwr.supernode.runtime.run_clientapp")
        client = importlib.import_module("plures.deploy.app").client
        replaced = {"install_from_fab": lambda *_, **__: None, "get_load_client_app_fn": lambda **_: lambda *_: client}
        for used, own in replaced.items():
            getattr(runtime, used)
            setattr(runtime, used, own)


def warm(name: str) -> None:
    """What starts tasks has loaded what they need, on one thread: no pool of threads that a fork would lose."""
    look(name, idle=1.0)
    if name == STARTER and hasattr(os, "fork"):
        threads, os.environ[THREADS] = os.environ.get(THREADS), "1"
        for needed in LOADED:
            importlib.import_module(needed)
        gc.freeze()  # what is loaded stays shared: no collection in a child touches it
        del os.environ[THREADS]
        os.environ |= {} if threads is None else {THREADS: threads}


def quicken(name: str) -> None:
    """All look still sooner, and say more often that they live."""
    setattr(importlib.import_module(HEARTBEAT[0]), HEARTBEAT[1], 10)  # Flower takes no less
    look(name, idle=0.4)


def look(name: str, idle: float) -> None:
    """How often a program looks for work.

    A look at the SuperLink costs it ten milliseconds of a processor, and it uses only one for all nodes. A node's look
    for an answer of its own task costs little, and what starts its tasks waits at the node for one. A SuperLink starts
    one task for each run.

    Args:
        name: of the program.
        idle: seconds between two looks of a node at the SuperLink.
    """
    setattr(importlib.import_module(PULL[0]), PULL[1], 0.05)
    if name == NODE:
        loop: Any = importlib.import_module("flwr.supernode.start_client_internal")
        sleep = loop.time.sleep
        loop.time = SimpleNamespace(sleep=lambda seconds: sleep(idle if seconds > ANSWER else HERE))
    if name in TASK_LOOKS:  # of a SuperLink, for what it starts
        os.environ.setdefault(INTERVAL, str(TASK_LOOKS[name]))


PREPARE: dict[str, Callable[[str], None]] = {QUICK: quicken, WARM: warm, GUARD: guard}
"""How a program is prepared for each manner, in this order: Flower's constants change before its modules are loaded."""


def fork(task: Callable[[], None]) -> int:
    """Do a task in a child of this process; returns the child's id."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    child = os.fork()
    if child == 0:
        forget()
        os._exit(code(task))
    return child


def forget() -> None:
    """Leave signals, and what is to be done at the end, to the process that this one was forked from."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    ending: Any = importlib.import_module("flwr.supercore.exit.exit_handler")
    ending.registered_exit_handlers.clear()
    if THREADS in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ[THREADS]))


def code(task: Callable[[], None], returned: int = 0) -> int:
    """Do a task in this process, and give its exit code; ``returned`` if it does not say."""
    try:
        task()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return returned


if __name__ == "__main__":
    main(*sys.argv[1:])
