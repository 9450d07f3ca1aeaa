"""The tests' own layout: code that several tests use is in a helper module, once."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent


@cache
def trees() -> dict[Path, ast.Module]:
    """All files of the tests, read once."""
    return {file: ast.parse(file.read_text()) for file in sorted(TESTS.rglob("*.py"))}


def imported(tree: ast.AST) -> set[str]:
    """Names of all modules that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_no_file_imports_a_test_module():
    tests = {file.stem for file in trees() if file.stem.startswith("test_")}
    wrong = {
        f"{file.relative_to(TESTS)} imports {name}"
        for file, tree in trees().items()
        for name in imported(tree)
        if tests & set(name.split("."))
    }
    assert not wrong, "move what they share to a helper module"


def test_no_helper_is_defined_twice():
    places = defaultdict(list)
    for file, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("test_"):
                places[ast.dump(node)].append(f"{file.relative_to(TESTS)}: {node.name}")
    assert not [found for found in places.values() if len(found) > 1], "keep one, in a helper module"
