"""A new method is one file, one test and one line of oracles: everything else finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHOD = '''
"""A personal model tied to the global one."""

from plures.method import Method, Personal, Phase, Predict, Shared, squared_distance, task_loss
from plures.methods.entry import entry


@entry("Tether", "regularised", "nobody 2026, equation 1", {"lam": (0.1, 1.0)})
def tether(lam: float = 0.5) -> Method:
    """A personal model tied to the global one.

    ``F_i(v_i) + lam / 2 ||v_i - w||^2``

    Args:
        lam: strength of the tie.
    """

    def near(x, received, batch):
        return task_loss(x.personal, batch) + lam / 2 * squared_distance(x.personal, received.model)

    return Method(
        layout={"model": Shared(), "personal": Personal(unseen="model")},
        schedule=(Phase(train="personal", objective=near), Phase(train="model")),
        predict=Predict("personal", visits=3),
    )
'''
TEST = """
import pytest
from plures.methods import tether


@pytest.mark.oracle("TT1")
def test_tt1_the_model_is_shared():
    assert tether().layout["model"]
"""
ORACLES = '[[entry]]\nnumber = 1\ntitle = "Tether"\n[entry.oracles]\nTT1 = "the model is shared"\n'
OTHERS = ("constant", "local", "fedavg", "intercept", "fedavg_ft", "fedopt")
"""The methods that the catalogue keeps, the last for use cases: more would take long and show nothing else."""
SHOWN = """
from typer.testing import CliRunner
from plures.cli import app
from tools import coverage
from tools.pages import pages
import use

coverage.main()
print(end="\\0")
for words in (["methods"], ["methods", "tether"]):
    print(CliRunner().invoke(app, words, catch_exceptions=False).output, end="\\0")
print(pages()["methods/tether.md"], end="")
"""
USE = """
from typing import assert_type
from plures.method import Method
from plures.methods import tether

assert_type(tether(lam=0.1), Method)
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a contributor leaves it, with the tests of one method, and few others."""
    home = tmp_path_factory.mktemp("copy")
    for folder in ("src", "tools", "benchmarks/results"):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    (home / "tests").mkdir()
    (home / "docs").mkdir()
    methods = home / "src" / "plures" / "methods"
    for file in methods.glob("*.py"):
        if file.stem not in (*OTHERS, "__init__", "entry"):
            file.unlink()
    (methods / "tether.py").write_text(METHOD.lstrip())
    (home / "tests" / "test_tether.py").write_text(TEST)
    (home / "tests" / "oracles.toml").write_text(ORACLES)
    (home / "use.py").write_text(USE)
    (home / "shown.py").write_text(SHOWN)
    return home


@pytest.fixture(scope="module")
def shown(copied: Path) -> list[str]:
    """The list of methods, the line of the new one, and its page, from a new process that first writes the files."""
    return said(copied, "shown.py").split("\0")[1:]


def said(home: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=home,
        env=os.environ | {"PYTHONPATH": f"{home / 'src'}{os.pathsep}{home}", "MYPYPATH": str(home / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_file_beside_the_others_is_a_method_of_the_catalogue(shown: list[str]):
    regularised = shown[0].partition("\nregularised\n")[2].partition("\n\n")[0]
    assert "  tether: Tether. nobody 2026, equation 1\n    travels: model; stays: personal;" in regularised
    assert "tuned beside the learning rate: lam: (0.1, 1.0)" in shown[1]


def test_it_has_its_row_of_coverage_and_its_page(copied: Path, shown: list[str]):
    coverage = (copied / "docs" / "coverage.md").read_text(encoding="utf-8")
    proof = "| 1 Tether | TT1 | the model is shared | `test_tether.py::test_tt1_the_model_is_shared` |"
    assert proof in coverage
    assert "| `tether` | regularised | nobody 2026, equation 1 |" in coverage
    assert shown[2].startswith("# Tether")
    assert "the model is shared" in shown[2]


@pytest.mark.usefixtures("shown")
def test_type_checkers_know_it(copied: Path):
    """Other packages, which take mypy longest to read, are left out."""
    assert "from plures.methods.tether import tether as tether\n" in (
        copied / "src" / "plures" / "methods" / "__init__.pyi"
    ).read_text(encoding="utf-8")
    pytest.importorskip("mypy")
    options = ("--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent")
    said(copied, "-m", "mypy", *options, "use.py")
    (copied / "wrong.py").write_text(USE.replace("Method)", "int)"))
    with pytest.raises(AssertionError, match='Expression is of type "Method", not "int"'):
        said(copied, "-m", "mypy", *options, "wrong.py")
