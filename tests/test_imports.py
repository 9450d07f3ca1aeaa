"""Imports point one way: between rooms as in the table, between modules without a circle. All benchmarks import."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import plures

SOURCES = Path(plures.__file__).parent
MAY = {
    "metrics": "",
    "tasks": "metrics",
    "augment": "",
    "federation": "metrics tasks augment",
    "tables": "metrics tasks federation",
    "models": "metrics tasks federation",
    "method": "metrics tasks federation models",
    "codecs": "metrics tasks models method",
    "privacy": "models method codecs",
    "robust": "models method",
    "methods": "metrics tasks models method codecs",
    "secure": "",
    "hardware": "",
    "run": "augment metrics tasks federation models method privacy secure hardware",
    "threat": "tasks federation models method robust run",
    "evaluate": "augment metrics tasks federation tables models method codecs privacy robust methods hardware run "
    "threat",
    "audit": "federation models method run evaluate tasks privacy",
    "diagnose": "metrics tasks federation models method methods evaluate",
    "track": "metrics tasks run evaluate",
    "study": "metrics tasks federation models methods run evaluate tables",
    "serving": "metrics tasks federation models method run evaluate tables",
    "report": "metrics tasks federation models method methods run evaluate audit",
    "remote": "metrics tasks federation models method codecs privacy secure run evaluate",
    "deploy": "metrics tasks federation models method privacy run evaluate tables track serving remote",
    "cases": "metrics tasks federation models method methods run evaluate report",
    "cli": "augment metrics tasks federation models run evaluate tables diagnose track study serving report remote "
    "deploy cases audit",
}
"""Room -> the rooms that it builds on, all of which stand above it here. Files beside the rooms are ground for all."""


def name(file: Path, root: Path) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it names in any import: at its top, in a function, for types alone."""
    files = {name(file, root): file for file in root.rglob("*.py")}

    def named(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, "imports are absolute"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in files else str(node.module)

    return {
        module: {*named(ast.parse(file.read_text(encoding="utf-8")))} & files.keys() - {module}
        for module, file in files.items()
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, one after the other; none if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(module) for module in error.args[1]]
    return []


def room(module: str) -> str:
    """The folder of a module; nothing for the ground, which is files beside the folders."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (SOURCES / parts[1]).is_dir() else ""


def test_no_modules_import_each_other():
    assert circle(imports(SOURCES)) == []


@pytest.mark.parametrize("hidden", ["import p.b", "def f():\n    from p import b", "if T:\n    from p.b import x"])
def test_a_circle_is_found_wherever_its_imports_stand(hidden: str, tmp_path: Path):
    package = tmp_path / "p"
    package.mkdir()
    for file, text in {"__init__": "", "a": hidden, "b": "from p.c import y", "c": "import p.a"}.items():
        (package / f"{file}.py").write_text(text)
    assert {*circle(imports(package))} == {"p.a", "p.b", "p.c"}
    (package / "c.py").write_text("import p")
    assert circle(imports(package)) == []


def test_rooms_build_on_the_rooms_above_them_alone():
    rooms = [*MAY]
    assert all({*may.split()} <= {*rooms[:place]} for place, may in enumerate(MAY.values()))
    there = {file.parent.name for file in SOURCES.glob("*/__init__.py")}
    assert there <= {*rooms}, "a new room stands in the table, with what it builds on"
    wrong = [
        f"{module} imports {other}"
        for module, others in imports(SOURCES).items()
        for other in others
        if module != "plures" and room(other) not in ("", room(module), *MAY.get(room(module), "").split())
    ]
    assert wrong == []


def test_nobody_imports_the_whole_package():
    assert [module for module, others in imports(SOURCES).items() if "plures" in others] == []


def test_every_benchmark_imports_what_there_is():
    """Nothing else runs all benchmarks, so a renamed import would only be noticed while making a table."""
    files = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
    assert len(files) > 10
    for file in files:
        assert importlib.import_module(f"benchmarks.{file.stem}").__file__ == str(file)
