"""The research side needs nothing specific to POSIX. Not tried on Windows; this is the closest check on Linux."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plures import cli

SOURCES = Path(cli.__file__).parents[1]
STUDY = """
name = "s"
[[data]]
name = "heart"
[[methods]]
name = "ditto"
[[budgets]]
rounds = 1
[tuning]
trials = 0
"""

BARE = """
import builtins, os, signal, sys

MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"}
FUNCTIONS = ["fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getpgid", "killpg", "setsid", "uname",
             "statvfs", "fchmod", "fchown", "chown", "sched_getaffinity", "getloadavg", "mkfifo", "sysconf", "kill"]
real = builtins.__import__

def importing(name, globals=None, *rest, **named):
    if name in MODULES and str((globals or {}).get("__name__")).startswith("plures"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, *rest, **named)

def without(name, function):
    def call(*given, **named):
        if sys._getframe(1).f_globals.get("__name__", "").startswith("plures"):
            raise AttributeError(f"module 'os' has no attribute {name!r}")
        return function(*given, **named)
    return call

builtins.__import__ = importing
for name in FUNCTIONS:
    setattr(os, name, without(name, getattr(os, name)))
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGQUIT"):
    delattr(signal, name)
"""
"""Hides what Python on Windows lacks from plures, but not from the libraries it uses."""


MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}
NAMES = {
    *("os.fork", "os.kill", "os.killpg", "os.setsid", "os.getpgid", "os.getuid", "os.geteuid", "os.getgid", "os.uname"),
    *("os.statvfs", "os.fchmod", "os.chown", "os.fchown", "os.sched_getaffinity", "os.getloadavg", "os.mkfifo"),
    *("os.sysconf", "os.O_NOFOLLOW", "os.O_DIRECTORY", "signal.SIGKILL", "signal.SIGHUP", "signal.SIGALRM"),
    *("signal.SIGUSR1", "signal.SIGQUIT", "signal.SIGCHLD", "signal.alarm", "signal.setitimer", "signal.pause"),
    *("time.tzset", "socket.AF_UNIX", "select.poll", "select.epoll"),
}
GUARDED = {
    ("run/choose.py", "os.geteuid"),  # behind uncompilable(), which answers for Windows before
    ("run/interrupt.py", "os.kill"),  # itself, some seconds after a SIGTERM, which Windows sends to nobody
    ("study/store.py", "os.kill"),  # where it would kill the process that it asks about
    ("study/work.py", "resource"),  # caught: no memory figure
}
DEPLOYED = ("deploy", "cli/deploy.py", "cli/operate.py")
"""Flower's processes are started, stopped and watched as POSIX does."""


def used(file: Path) -> set[str]:
    """Modules and names in a file that exist only on POSIX."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
    return found & (MODULES | NAMES)


def test_what_only_posix_has_is_guarded_outside_of_deployment():
    found = {
        (file.relative_to(SOURCES).as_posix(), name)
        for file in SOURCES.rglob("*.py")
        if not file.relative_to(SOURCES).as_posix().startswith(DEPLOYED)
        for name in used(file)
    }
    assert found == GUARDED


def test_texts_are_read_and_written_in_one_encoding():
    """Windows has another default."""
    without = []
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = {keyword.arg for keyword in node.keywords}
                if node.func.attr in ("read_text", "write_text") and "encoding" not in named:
                    without.append(f"{file.relative_to(SOURCES)}:{node.lineno}")
    assert [place for place in without if not place.startswith(DEPLOYED)] == []


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is hidden there")
def test_research_works_without_what_only_posix_has(tmp_path: Path):
    """Not a test on Windows: the same Python without the modules and functions that Windows lacks."""
    (tmp_path / "study.toml").write_text(STUDY)
    script = tmp_path / "script.py"
    script.write_text(
        BARE
        + """
import plures.cli as cli

def plures(*words):
    sys.argv = ["plures", *words]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, (words, end.code)

fast = ("--rounds", "1", "--backend", "loop", "--chunk", "1", "--no-compile-step")
plures("run", "heart", "fedavg", *fast, "--out", "run")
plures("predict", "run", "--client", "va", "--out", "p.csv")
plures("diagnose", "heart", "--clients", "2", "--rows", "50", "--out", "d.json", "--out", "d.html")
untuned = ("--seeds", "1", "--tune-rounds", "0", "--lr", "0.1")
plures("compare", "heart", "--method", "ditto", *untuned, *fast, "--out", "c")
plures("client", "c", "va")
import plures.study.store as store
sys.platform = "win32"
assert store.born(os.getpid()) == "alive"
sys.platform = "linux"
store.born = lambda pid: "alive"
plures("study", "study.toml", "--out", "s")
from plures.serving import PersonalModel, export
from plures.serving.personal import opened
opened(__import__("pathlib").Path("run"), "va").save(__import__("pathlib").Path("m"))
plures("predict", "m", "--card")
import plures.serving.serve, plures.deploy.app, plures.deploy.promise, plures.report, plures.track
from plures.study.work import most_memory
assert most_memory() == 0
print("all done")
"""
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(cli.__file__).parents[2])])}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.endswith("all done\n"), done.stdout[-500:] + done.stderr[-3000:]
