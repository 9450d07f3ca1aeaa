"""Flower's own programs, run in a manner that plures chooses.

``--guard`` is for the node of a site. A SuperNode runs whatever app the SuperLink sends it; with the guard it ignores
the app's code and answers every message with the client of plures that is installed at the site, and ``site.toml`` says
what that client may do. So whoever commands the SuperLink, rightly or not, cannot run code of his own at the site.

``--quick`` is for a whole federation on one machine, demos and tests. Flower runs every task (a client's answer to one
message) in a new interpreter, which loads torch again; a SuperNode without work looks for some every three seconds; a
task that is quicker than the message's arrays waits a second for them; and a node that was killed is not let in again
for a minute. With this, a task is a process forked from one that has loaded what tasks need, all look sooner, and the
minute is 20 seconds. What is sent, and to whom, is Flower's.

This file is run as a script and loads plures only where a task needs it: Flower's programs themselves need no torch.
"""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import subprocess
import sys
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
GUARD, QUICK = "--guard", "--quick"
GUARDED = ("flower-superexec", "flwr-clientapp")
"""What a guarded node starts."""
LOADED = ("plures.deploy.app", "flwr.supernode.cli", "flwr.superlink.cli")
"""What tasks need."""
CONSTANTS = {
    ("flwr.supercore.constant", "PULL_INITIAL_BACKOFF"): 0.05,
    ("flwr.common.constant", "HEARTBEAT_DEFAULT_INTERVAL"): 10,
}
"""How long a task waits for arrays that are on their way; how often a node must say that it lives (Flower's least)."""
IDLE = 0.4
POLL = 0.2


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
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    for manner in manners:
        PREPARE[manner](name)
    if name in STARTERS:
        starter: Any = importlib.import_module(STARTERS[name])
        starter.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": started(manners)})
    sys.argv = list(words)
    program = getattr(importlib.import_module(PROGRAMS[name]), name.replace("-", "_"))
    if name == NODE:
        os._exit(code(program, returned=1))
    program()


def started(manners: Sequence[str]) -> Callable[..., object]:
    """What stands for ``subprocess.Popen`` in a program that is run in some manners."""

    def start(words: Sequence[str], **options: Any) -> object:
        if words[0] not in (GUARDED if GUARD in manners else PROGRAMS):
            print(f"{words[0]} was asked for and is not started here", file=sys.stderr)
            return None
        if QUICK in manners and words[0] in TASKS:
            return fork(lambda: run(words, manners))
        return subprocess.Popen([*command(words[0], *manners), *words[1:]], **options)

    return start


def guard(name: str) -> None:
    """The program that answers messages gets plures' client, and the app's code is not even unpacked."""
    if name == "flwr-clientapp":
        runtime: Any = importlib.import_module("flwr.supernode.runtime.run_clientapp")
        client = importlib.import_module("plures.deploy.app").client
        replaced = {"install_from_fab": lambda *_, **__: None, "get_load_client_app_fn": lambda **_: lambda *_: client}
        for used, own in replaced.items():
            getattr(runtime, used)
            setattr(runtime, used, own)


def quicken(name: str) -> None:
    """All look sooner; what runs tasks has loaded what they need."""
    for (module, constant), value in CONSTANTS.items():
        setattr(importlib.import_module(module), constant, value)
    if name == NODE:
        loop: Any = importlib.import_module("flwr.supernode.start_client_internal")
        loop.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, IDLE)))
    if name == "flower-superexec":
        os.environ["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = str(POLL)
        for needed in LOADED:
            importlib.import_module(needed)


PREPARE: dict[str, Callable[[str], None]] = {GUARD: guard, QUICK: quicken}


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
