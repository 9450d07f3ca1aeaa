"""Catalogues that are built from the modules of a package."""

from __future__ import annotations

from pathlib import Path

import pytest

from plures.discover import entries
from plures.errors import PluresError
from plures.methods.entry import Entry

METHOD = """\
from plures.method import Method
from plures.methods.entry import entry


@entry("title", "family", "citation")
def {}():
    return Method()
"""


def test_two_modules_that_define_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for module, method in (("a", "one"), ("b", "two"), ("c", "one")):
        (folder / f"{module}.py").write_text(METHOD.format(method))
    (folder / "d.py").write_text("from shelf.b import two\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluresError, match="shelf: a and c both define 'one'; rename one"):
        entries("shelf", Entry)
    (folder / "c.py").unlink()
    assert [*entries("shelf", Entry)] == ["one", "two"]
