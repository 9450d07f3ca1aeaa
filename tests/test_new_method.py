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
USE = """
from typing import assert_type
from plures.method import Method
from plures.methods import tether

assert_type(tether(lam=0.1), Method)
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a contributor leaves it, with the tests of one method."""
    home = tmp_path_factory.mktemp("copy")
    for folder in ("src", "tools", "benchmarks/results"):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    (home / "tests").mkdir()
    (home / "docs").mkdir()
    (home / "src" / "plures" / "methods" / "tether.py").write_text(METHOD.lstrip())
    (home / "tests" / "test_tether.py").write_text(TEST)
    (home / "tests" / "oracles.toml").write_text(ORACLES)
    said(home, "-m", "tools.coverage")
    return home


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


def test_a_file_beside_the_others_is_a_method_of_the_catalogue(copied: Path):
    listed = said(copied, "-m", "plures.cli", "methods")
    regularised = listed.partition("\nregularised\n")[2].partition("\n\n")[0]
    assert "  tether: Tether. nobody 2026, equation 1\n    travels: model; stays: personal;" in regularised
    assert "tuned beside the learning rate: lam: (0.1, 1.0)" in said(copied, "-m", "plures.cli", "methods", "tether")


def test_it_has_its_row_of_coverage_and_its_page(copied: Path):
    coverage = (copied / "docs" / "coverage.md").read_text(encoding="utf-8")
    proof = "| 1 Tether | TT1 | the model is shared | `test_tether.py::test_tt1_the_model_is_shared` |"
    assert proof in coverage
    assert "| `tether` | regularised | nobody 2026, equation 1 |" in coverage
    page = said(copied, "-c", "from tools.pages import pages; print(pages()['methods/tether.md'])")
    assert page.startswith("# Tether")
    assert "the model is shared" in page


def test_type_checkers_know_it(copied: Path):
    assert "from plures.methods.tether import tether as tether\n" in (
        copied / "src" / "plures" / "methods" / "__init__.pyi"
    ).read_text(encoding="utf-8")
    (copied / "use.py").write_text(USE)
    said(copied, "use.py")
    pytest.importorskip("mypy")
    said(copied, "-m", "mypy", "--follow-imports", "silent", "--cache-dir", str(copied / "mypy"), "use.py")
