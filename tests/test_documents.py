"""Files that documents link to exist; methods are short; every oracle is proven."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools.coverage import Collector, lines, outdated

from plures.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", file.read_text(encoding="utf-8")):
        method = re.fullmatch(r"methods/(\w+)\.md", target)  # made when the site is built
        assert (file.parent / target).exists() or (method and method[1] in {*METHODS, "index"}), target


def test_methods_are_short():
    """No method is longer than 40 lines without its docstring, and half of them are shorter than 20."""
    counts = sorted(lines(name)[0] for name in METHODS)
    assert counts[-1] <= 40
    assert counts[len(counts) // 2] < 20


def test_every_oracle_is_proven_and_the_coverage_table_is_up_to_date(request):
    """From this session's tests if it has all, else in a process of its own: pytest cannot collect inside itself."""
    items, narrowed = request.session.items, request.config.option.keyword or request.config.option.markexpr
    if not narrowed and {item.path for item in items} == {*(ROOT / "tests").rglob("test_*.py")}:
        assert list(outdated(Collector(items).tests)) == []
        return
    done = subprocess.run([sys.executable, "-m", "tools.coverage", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
