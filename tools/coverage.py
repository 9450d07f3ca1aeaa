"""Write docs/coverage.md: every entry, what must be proven about it, the tests that prove it, and the catalogue.

python -m tools.coverage           writes the file, and the stub of the methods' catalogue
python -m tools.coverage --check   only says whether both are up to date
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from plures.methods import METHODS
from plures.report import catalogue

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "coverage.md"
PACKAGE = ROOT / "src" / "plures" / "methods"


class Collector:
    """A pytest plugin that records which tests prove which oracles."""

    def __init__(self, items: Sequence[pytest.Item] = ()) -> None:
        self.tests: dict[str, list[str]] = defaultdict(list)
        self.pytest_collection_modifyitems(items)

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("oracle"):
                for name in mark.args:
                    test = item.nodeid.partition("[")[0]
                    if test not in self.tests[name]:
                        self.tests[name].append(test)


def collected() -> dict[str, list[str]]:
    """The tests that prove each oracle."""
    collector = Collector()
    quiet = ["--collect-only", "-q", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), str(ROOT / "tests")]
    code = pytest.main(quiet, plugins=[collector])
    if code != 0:
        raise SystemExit(f"the tests cannot be collected (pytest exit code {code})")
    return collector.tests


def lines(name: str) -> tuple[int, int]:
    """Lines of code of a method, and of all code in its file: no blank lines, docstrings or imports."""
    text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    code = {number for number, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
    whole: set[int] = set()
    own: set[int] = set()
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign):
            continue
        taken = code & span(node)
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
                taken -= span(inner.body[0])
        whole |= taken
        own = taken if isinstance(node, ast.FunctionDef) and node.decorator_list else own
    return len(own), len(whole)


def span(node: ast.stmt) -> set[int]:
    """Numbers of the lines of a statement, without its decorators."""
    assert node.end_lineno is not None
    return set(range(node.lineno, node.end_lineno + 1))


def entries() -> list[dict[str, object]]:
    """The oracles that must be proven."""
    found: list[dict[str, object]] = tomllib.loads((ROOT / "tests" / "oracles.toml").read_text("utf-8"))["entry"]
    return found


def table(tests: Mapping[str, list[str]]) -> str:
    """The document, from the tests that prove each oracle."""
    wanted = {name for entry in entries() for name in entry["oracles"]}  # type: ignore[attr-defined]
    missing, unknown = sorted(wanted - tests.keys()), sorted(tests.keys() - wanted)
    if missing or unknown:
        raise SystemExit(
            f"oracles without a test: {missing}; tests of oracles that tests/oracles.toml lacks: {unknown}"
        )
    told = [
        "# Coverage",
        "",
        "Written by `python -m tools.coverage` from the tests; `make test` fails if it is out of date.",
        "",
        "## Every entry, what it must reproduce, and the test that proves it",
        "",
        "| entry | oracle | what | tests |",
        "| ---: | --- | --- | --- |",
    ]
    for entry in entries():
        for name, what in entry["oracles"].items():  # type: ignore[attr-defined]
            where = ", ".join(f"`{test.removeprefix('tests/')}`" for test in tests[name])
            told.append(f"| {entry['number']} {entry['title']} | {name} | {what} | {where} |")
    counts = sorted(lines(name)[0] for name in METHODS)
    told += [
        "",
        "## The catalogue",
        "",
        f"{len(counts)} methods. Lines: code of a method with the checks of its parameters and without its docstring "
        f"(median {counts[len(counts) // 2]}, largest {counts[-1]}), and of its whole file. Up and down: what a client "
        "sends and receives in a round, in sizes of a small model; work: operations of a visit, relative to FedAvg's; "
        "secure sum: whether the server needs no more than one weighted sum of all uploads, which `secure_sum` hides "
        "them in.",
        "",
        "| method | family | citation | up | down | work | travels | stays | secure sum | unseen client | lines |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- | --- | --- | ---: |",
    ]
    for line in catalogue():
        cells = (
            *(f"`{line.name}`", line.family, line.citation, line.up, line.down, line.work),
            *(line.travels, line.stays, line.secure, line.unseen, "{} / {}".format(*lines(line.name))),
        )
        told.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(told) + "\n"


def stub() -> str:
    """The stub of ``plures.methods`` for type checkers and editors, with the names of its files."""
    about = "The methods and their catalogue. Written by `python -m tools.coverage` from the files beside it."
    told = [f'"""{about}"""', "", "from collections.abc import Mapping", ""]
    taken = [f"from plures.methods.{name} import {name} as {name}" for name in METHODS]
    told += sorted([*taken, "from plures.methods.entry import Entry as Entry"])
    return "\n".join([*told, "", "METHODS: Mapping[str, Entry]"]) + "\n"


def written(tests: Mapping[str, list[str]]) -> dict[Path, str]:
    """The files that are written from the code, and their content."""
    return {PACKAGE / "__init__.pyi": stub(), FILE: table(tests)}


def outdated(tests: Mapping[str, list[str]]) -> Iterator[str]:
    """A sentence for each file that is out of date."""
    for file, text in written(tests).items():
        if file.read_text(encoding="utf-8") != text:
            yield f"{file.relative_to(ROOT)} is out of date: run python -m tools.coverage"


def main() -> None:
    tests = collected()
    if "--check" in sys.argv:
        for sentence in outdated(tests):
            raise SystemExit(sentence)
        return
    for file, text in written(tests).items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
