"""Runs Flower's own programs with modifications, called manners here.

``--guard`` is for the node of a site. A SuperNode runs whatever app the SuperLink sends it. With the guard, it ignores
the app's code and answers every message with the client of plures installed at the site, whose rights ``site.toml``
sets. So nobody who controls the SuperLink can run their own code at the site. Besides, a SuperNode gives its tasks to
anyone who asks at a loopback port; with the guard, only to processes that it started. A task is Flower's here: a
client's work on one message, or a server's run.

``--warm`` is for all federations. Flower runs every task in a new interpreter, which loads torch again. With this
option, the process that starts tasks has loaded their modules and forks a child for each, so that nothing of one task
is left for the next. On systems without fork, tasks start as usual. Also, the node polls for work every second instead
of every three.

``--quick`` is for a whole federation on one machine, in demos and tests: all programs poll still more often, a node's
request waits at the SuperLink until there is a message (``outbox.py``), and a killed node is admitted again after 20
seconds instead of a minute. Messages and their recipients do not change.

``forks`` is no program of Flower's: it loads their modules once and forks the programs (``forks.py``), also for a whole
federation on one machine.

In all manners, the process that starts tasks is restarted when it ends (Flower would not notice, and no further task
would run), a task has a minute to start, a node answers each message once and in turn (``inbox.py``), a request passes
only those layers of Flower that concern it (``layers.py``), a program ends within seconds of SIGTERM and at once on a
second one, and its files are readable only by its user.

This file is run as a script and loads plures only where a task needs it; Flower's programs themselves need no torch.
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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
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
"""Module of each program's entry point, a function with the program's name and ``_`` for ``-``."""
NODE = "flower-supernode"
"""The node's program. It returns when a handshake with the SuperLink fails, but its threads would keep it alive."""
TASKS = ("flwr-clientapp", "flwr-serverapp")
STARTERS = {
    "flower-superlink": "flwr.superlink.cli.flower_superlink",
    "flower-supernode": "flwr.supernode.start_client_internal",
    "flower-superexec": "flwr.supercore.superexec.executor.subprocess_executor",
}
"""The module in which a program starts others, through the name ``subprocess``."""
SUPERLINK, STARTER = "flower-superlink", "flower-superexec"
FORKS = "forks"
GUARD, WARM, QUICK = "--guard", "--warm", "--quick"
GUARDED = (STARTER, "flwr-clientapp")
"""The only programs that a guarded node starts."""
DESCRIPTORS = Path("/dev/fd")
"""Folder of a process's open file descriptors."""
LOADED = (
    *("plures.deploy.app", "flwr.supernode.cli", "flwr.superlink.cli"),
    *("numpy.ma", "numpy.ctypeslib", "cryptography.hazmat.backends.openssl"),
)
LATER = ("uvicorn", "flwr.supernode.main", "flwr.superlink.main", "flwr.supernode.runtime.run_clientapp")
"""Modules that tasks need, and those that programs load only when they have started. ``numpy.random`` is not among
them: it chooses its seed when it is loaded, and forks must not share one."""
THREADS = "OMP_NUM_THREADS"
INTERVAL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
PULL = ("flwr.supercore.constant", "PULL_INITIAL_BACKOFF")
HEARTBEAT = ("flwr.common.constant", "HEARTBEAT_DEFAULT_INTERVAL")
"""Flower's constants: how long a task first waits for arrays in transit, and the interval of a node's heartbeats."""
TASKS_OF = {
    SUPERLINK: "flwr.supercore.corestate.sql_corestate",
    NODE: "flwr.supercore.corestate.in_memory_corestate",
}
"""The module in which a program stores its tasks."""
BEGIN = 60.0
"""Seconds within which a task must start: a new interpreter loads torch, and the machine may be busy."""
TASK_LOOKS = {SUPERLINK: 1.0, STARTER: 0.05}
"""Seconds between two polls for tasks: at a SuperLink, and at a node, which answers only when it has one."""
ANSWER, HERE = 0.5, 0.05
"""Seconds that Flower's node sleeps between two checks for its own task's answer: Flower's value, and ours."""
ENDING = 3
"""Seconds that a SuperLink waits for open requests when it is told to end."""
RESTART_SECONDS = 1.0
"""Seconds before the process that starts tasks is restarted."""
RAISED = ("flwr.supercore.app_utils", "flwr.supercore.heartbeat")
"""Modules in which Flower raises a signal in a thread."""


def command(name: str, *manners: str) -> list[str]:
    """The command that runs a program in some manners."""
    return [sys.executable, "-P", str(Path(__file__).resolve()), *manners, name]


def main(*words: str) -> None:
    """Run the program that the arguments name."""
    manners = list(itertools.takewhile(lambda word: word in PREPARE, words))
    if words[len(manners) :] == (FORKS,):
        serve(manners)
    else:
        run(words[len(manners) :], manners)


def serve(manners: Sequence[str]) -> None:
    """Load what all programs need, and fork those that are asked for through standard input."""
    gc.disable()
    os.umask(0o077)
    for manner in PREPARE:
        if manner in manners:
            PREPARE[manner](FORKS)
    needed = {*LOADED, *LATER, *PROGRAMS.values(), *STARTERS.values(), *TASKS_OF.values(), *RAISED}
    load(sorted(needed))
    forks, line = importlib.import_module("plures.deploy.fleet.forks"), Connection(os.dup(0))
    forks.serve(line, lambda wanted: code(lambda: forked(wanted, forks)))


def forked(wanted: Any, forks: Any) -> None:
    """Run a program in this process, which a fork server has forked. One that starts others gets a server of its own.

    Args:
        wanted: the program, as ``forks.py`` describes it.
        forks: the module.
    """
    forget()
    manners = list(itertools.takewhile(lambda word: word in PREPARE, wanted.words))
    words = wanted.words[len(manners) :]
    if wanted.secret:
        words = [*words, *secretly(bytes.fromhex(wanted.secret))[0]]
    starts = words[0] in (NODE, SUPERLINK)
    run(words, manners, forks.beside(lambda again: code(lambda: forked(again, forks))) if starts else None)


def run(words: Sequence[str], manners: Sequence[str], forks: Any = None) -> None:
    """Run a program in this process, under Flower's name for it.

    Args:
        words: its name and arguments.
        manners: its manners.
        forks: the fork server of the process that it starts to start tasks; default: that is a new interpreter.
    """
    name = words[0]
    gc.disable()  # what is loaded stays: searching it for garbage takes a tenth of the time to load it
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
    if name in (NODE, SUPERLINK):
        layers = beside("layers")
        layers.install(layers.AT_NODE if name == NODE else layers.AT_SUPERLINK)
    if name == SUPERLINK and QUICK in manners:
        beside("outbox").install()
    if name in STARTERS:
        starter: Any = importlib.import_module(STARTERS[name])
        secret = lock() if name == NODE and GUARD in manners and DESCRIPTORS.exists() else b""
        starter.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": started(manners, secret, forks)})
    sys.argv = list(words)
    program = getattr(importlib.import_module(PROGRAMS[name]), name.replace("-", "_"))
    gc.freeze()
    gc.enable()
    if name == NODE:
        os._exit(code(program, returned=1))
    program()


def give_time(tasks: Any) -> None:
    """Give tasks :data:`BEGIN` seconds to start, and leave the heartbeat timeout of started tasks as it was.

    Flower gives a task one heartbeat interval to start, which ``--quick`` makes short. A task whose interpreter took
    longer was given to a second interpreter and refused to the first, and so on: on a busy machine, no task was ever
    done.

    Args:
        tasks: Flower's module that stores tasks. A claimed task has one interval to start; a started one must send its
            next heartbeat within ``HEARTBEAT_PATIENCE`` intervals.
    """
    tasks.HEARTBEAT_PATIENCE *= tasks.HEARTBEAT_DEFAULT_INTERVAL / BEGIN
    tasks.HEARTBEAT_DEFAULT_INTERVAL = BEGIN


def beside(name: str) -> Any:
    """Load a module beside this file, without the rest of plures."""
    spec: Any = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_port(port: int) -> None:
    """Exit with a message if this program's loopback port is taken."""
    with socket.socket() as probe:
        if os.name == "posix":  # as the server does: a port that was in use a moment ago counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            remedy = "end the program that uses it, perhaps another federation's, or choose another port for this one"
            sys.exit(f"error: port {port} of 127.0.0.1 cannot be used ({error.strerror}): {remedy}")


def started(manners: Sequence[str], secret: bytes = b"", forks: Any = None) -> Callable[..., object]:
    """Replacement of ``subprocess.Popen`` in a program that runs in some manners.

    Args:
        manners: manners of this program and of the programs that it starts.
        secret: secret that is passed only to the process that starts tasks.
        forks: fork server of that process.
    """

    def start(words: Sequence[str], **options: Any) -> object:
        if words[0] not in (GUARDED if GUARD in manners else PROGRAMS):
            print(f"{words[0]} was requested, but this node does not start it", file=sys.stderr)
            return None
        if WARM in manners and words[0] in TASKS and hasattr(os, "fork"):
            return fork(lambda: run(words, [manner for manner in manners if manner != WARM]))

        def opened() -> Any:
            if forks is not None and words[0] == STARTER:
                session = options.get("start_new_session", False)
                return forks.begin([*manners, *words], session, secret.hex())
            begin = [*command(words[0], *manners), *words[1:]]
            return (
                start_with_secret(begin, secret)
                if secret and words[0] == STARTER
                else subprocess.Popen(begin, **options)
            )

        return Restarted(opened) if words[0] == STARTER else opened()

    return start


def lock() -> bytes:
    """Make a node give tasks only to a program that knows a secret. Returns the secret.

    Flower requires one only if the process that starts tasks runs separately from the node. If the node starts it, no
    secret is checked, and any user of the machine could take the site's tasks.
    """
    secret = secrets.token_bytes(32)
    api: Any = importlib.import_module("flwr.supernode.main")
    create = api.create_app
    api.create_app = lambda **given: create(**given | {"superexec_auth_secret": secret})
    return secret


def start_with_secret(words: Sequence[str], secret: bytes) -> subprocess.Popen[bytes]:
    """Start the process that starts tasks, and pass it the secret through a pipe: no file or variable contains it."""
    more, read = secretly(secret)
    try:
        return subprocess.Popen([*words, *more], pass_fds=[read])
    finally:
        os.close(read)


def secretly(secret: bytes) -> tuple[list[str], int]:
    """Arguments of the process that starts tasks, which name a pipe with its secret, and the pipe's descriptor."""
    read, write = os.pipe()
    os.write(write, secret)
    os.close(write)
    return ["--superexec-auth-secret-file", str(DESCRIPTORS / str(read))], read


class Restarted:
    """A child process that is restarted whenever it ends by itself.

    Args:
        start: starts it, and returns a :class:`subprocess.Popen` or its like.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
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
            print(f"the task starter ended (exit code {code}) and is restarted", file=sys.stderr, flush=True)
            self.child = self.start()

    def terminate(self) -> None:
        """End it for good."""
        self.wanted = False
        self.child.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit code."""
        return int(self.child.wait(timeout))


def heed(name: str) -> None:
    """Make a program react to signals in time.

    Flower ends a task whose parent is gone, or whose run was stopped, by raising a signal in one of its threads. Python
    handles signals only in its main thread, and a main thread that waits (for answers, up to a round's deadline of ten
    minutes) is not woken by a signal raised in another thread. A signal to the process wakes it.

    A SuperLink (uvicorn) told to end waits for all requests without a limit: a request whose body never arrives keeps
    it running forever, whatever further signals arrive. With this change, it waits for some seconds, and a second
    signal ends it.
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
    """Make the program that answers messages use plures' client. The app's code is not even unpacked."""
    if name == "flwr-clientapp":
        runtime: Any = importlib.import_module("flwr.supernode.runtime.run_clientapp")
        client = importlib.import_module("plures.deploy.app").client
        replaced = {"install_from_fab": lambda *_, **__: None, "get_load_client_app_fn": lambda **_: lambda *_: client}
        for used, own in replaced.items():
            getattr(runtime, used)
            setattr(runtime, used, own)


def warm(name: str) -> None:
    """Load the tasks' modules in the process that starts tasks, on one thread: a fork would lose a thread pool."""
    look(name, idle=1.0)
    if name == STARTER and hasattr(os, "fork"):
        load(LOADED)


def load(modules: Iterable[str]) -> None:
    """Load modules for processes that will be forked."""
    threads, os.environ[THREADS] = os.environ.get(THREADS), "1"
    for needed in modules:
        importlib.import_module(needed)
    gc.freeze()  # loaded objects stay shared: garbage collection in a child does not touch them
    del os.environ[THREADS]
    os.environ |= {} if threads is None else {THREADS: threads}


def quicken(name: str) -> None:
    """Poll still more often, and send heartbeats more often."""
    setattr(importlib.import_module(HEARTBEAT[0]), HEARTBEAT[1], 10)  # the shortest interval that Flower accepts
    look(name, idle=0.4)


def look(name: str, idle: float) -> None:
    """Set how often a program polls for work.

    A poll costs the SuperLink ten milliseconds of processor time, and it uses one processor for all nodes. A node's
    check for its own task's answer is cheap, and its task starter's requests wait at the node. A SuperLink starts one
    task per run.

    Args:
        name: name of the program.
        idle: seconds between two polls of the SuperLink by a node.
    """
    setattr(importlib.import_module(PULL[0]), PULL[1], 0.05)
    if name == NODE:
        loop: Any = importlib.import_module("flwr.supernode.start_client_internal")
        sleep = loop.time.sleep
        loop.time = SimpleNamespace(sleep=lambda seconds: sleep(idle if seconds > ANSWER else HERE))
    if name in TASK_LOOKS:  # a SuperLink sets it for the programs that it starts
        os.environ.setdefault(INTERVAL, str(TASK_LOOKS[name]))


PREPARE: dict[str, Callable[[str], None]] = {QUICK: quicken, WARM: warm, GUARD: guard}
"""Prepares a program for each manner, in this order: Flower's constants must change before its modules are loaded."""


def fork(task: Callable[[], None]) -> int:
    """Do a task in a forked child process, and return the child's id."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    child = os.fork()
    if child == 0:
        forget()
        os._exit(code(task))
    return child


def forget() -> None:
    """Reset signal handlers and exit handlers in a forked child: they belong to its parent."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    ending: Any = importlib.import_module("flwr.supercore.exit.exit_handler")
    ending.registered_exit_handlers.clear()
    if THREADS in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ[THREADS]))


def code(task: Callable[[], None], returned: int = 0) -> int:
    """Do a task in this process, and return its exit code: ``returned`` if it ends without setting one."""
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
