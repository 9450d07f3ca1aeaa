"""How the tests are divided among processes, and the state in which each test starts."""

from __future__ import annotations

import functools
import gc
import importlib.util
import logging
import multiprocessing
import os
import random
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import settings

from beginning import Begins, Begun, warm
from plures.run import choose
from saying import Says

IN_TURN = {
    "one fleet": ("test_flower", "test_wire", "test_proxy", "test_loopback"),
    "failures": ("test_failures", "test_forgery"),
    "documents": ("test_doc_blocks",),
    "federations": ("test_operate_fleet", "test_walk", "test_demo", "test_project"),
    "points": ("test_crashes",),
    "browser": ("test_page_in_browser", "test_doc_site"),
    "studies": ("test_study_conduct", "test_study_cli", "test_study_results"),
}
"""Groups of test files that one process runs in turn, those that take longest first: they begin before all others.

The first two, and "federations", start processes of their own and mostly wait for them, while other groups compute.
Those of "one fleet" share its processes (``deploy/conftest.py``); those that end some of them come last.
"""
GROUPS = {file: group for group, files in IN_TURN.items() for file in files}

EXTRAS = {
    "hf": ("transformers", "peft"),
    "mlflow": ("mlflow",),
    "mobile": ("executorch",),
    "parquet": ("pyarrow",),
    "ray": ("ray",),
    "wandb": ("wandb",),
}
"""Modules of the extras that `make test` does not install; `make test-extras` does, and runs their tests."""

SPOKEN = "COLUMNS LINES TERM LANG LC_ NO_COLOR FORCE_COLOR CLICOLOR PY_COLORS TTY_ GITHUB_"
MEASURED = "PLURES_ FLWR_ WANDB_ MLFLOW_ OMP_ MALLOC_ PYTHONWARNINGS PYTHONOPTIMIZE"
"""Prefixes of environment variables that change how programs print and compute; tests do not see the caller's."""
KEPT = "PLURES_DATA"
"""Location of the data sets that are not in the package; tests of missing data sets are skipped."""

for name in [name for name in os.environ if name.startswith((*SPOKEN.split(), *MEASURED.split())) and name != KEPT]:
    del os.environ[name]
os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
"""Processes that tests start read plures compiled; to compile it takes each as long as to import it."""
typer.main.get_command = functools.cache(typer.main.get_command)
"""All commands of a process share one command line, because building it takes as long as a small command."""
choose.SHORT = 2.0
"""Seconds. A run that takes less is not measured: on a busy machine, small ones were, which takes longer than they."""
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--other-processor", action="store_true", help="compute with kernels that round by shape")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--other-processor"):
        from otherwise import OtherProcessor

        OtherProcessor().__enter__()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread, the usual umask, log and random numbers, whatever the machine and whatever ran before."""
    torch.set_num_threads(1)
    os.umask(0o022)
    log = logging.getLogger("plures")  # a site in this process turns it on
    log.setLevel(logging.NOTSET)
    log.handlers.clear()
    torch.default_generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups come first, in the order of ``IN_TURN``; tests of extras that are not installed are skipped."""
    order = {file: place for place, file in enumerate(GROUPS)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    missing = {name for name, modules in EXTRAS.items() if not all(map(importlib.util.find_spec, modules))}
    for item in items:
        for name in {name for mark in item.iter_markers("extra") for name in mark.args} & missing:
            item.add_marker(pytest.mark.skip(reason=f"the extra {name!r} is not installed"))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: searching a million of their objects for garbage takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A process takes a file, or a group of files, at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return GROUPS.get(PurePosixPath(file).stem, file)

    return Files(config, log)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork a pool's processes from one that has loaded plures, for tests of what they do, not of how they start."""
    context = warm()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


@pytest.fixture
def begins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begins]:
    """Begin a command in a process of its own, which has loaded plures already."""
    begun: list[Begun] = []

    def begin(*words: object) -> Begun:
        begun.append(Begun([str(word) for word in words], tmp_path_factory.mktemp("command") / "out"))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled steps are traced and differentiated as ever, but run kernel by kernel: writing C++ takes long."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Says:
    """The exit status of a command in this process, and its output on one line."""
    from plures import cli  # not before the variables above are gone

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["plures", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        told = capsys.readouterr()
        return status, " ".join((told.out + told.err).split())

    return run
