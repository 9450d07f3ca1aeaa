"""Claims of the document about deployment: every test that it names exists, and its table of fields is complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from plures.remote import message

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "deployment.md"
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
FIELD = re.compile(r"^\| `(\w+)\.(\w+)`")
MESSAGES = (message.Order, message.Reply, message.ClientFacts, message.Scored, message.Pledge, message.Opening)


def lines(heading: str) -> Iterator[str]:
    """Lines of a section of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{DOCUMENT.name} has no section {heading!r}"
    yield from section[1].splitlines()


def test_every_test_that_the_document_names_exists() -> None:
    named = NAMED.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(named) > 30
    files = {file.name: file for file in (ROOT / "tests").rglob("test_*.py")}
    missing = []
    for name, function in named:
        tree = ast.parse(files[name].read_text(encoding="utf-8")) if name in files else ast.Module([], [])
        if not any(isinstance(node, ast.FunctionDef) and node.name == function for node in ast.walk(tree)):
            missing.append(f"{name}::{function}")
    assert missing == []


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_the_table_lists_every_field_of_every_message_once(kind: type[BaseModel]) -> None:
    listed = [FIELD.match(line) for line in lines("What leaves a site, when, and who may refuse it")]
    fields = [found[2] for found in listed if found and found[1] == kind.__name__]
    assert sorted(fields) == sorted(kind.model_fields)


def test_no_message_is_missing_from_the_table() -> None:
    defined = {
        name
        for name, kind in vars(message).items()
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__module__ == message.__name__
    }
    assert defined == {kind.__name__ for kind in MESSAGES} | {"Checked", "Header", "Place"}
