"""Docstrings of the reference: turn Sphinx cross-references into mkdocstrings links."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([\w.]+)`")


def linked(text: str, home: str) -> str:
    """A docstring with links to what it names, resolved from its own module.

    Args:
        text: the docstring.
        home: path of the module in which short names are looked up.
    """

    def link(match: re.Match[str]) -> str:
        path = match[1] if "." in match[1] else f"{home}.{match[1]}"
        return f'<autoref identifier="{path}" optional><code>{match[1].rpartition(".")[2]}</code></autoref>'

    return ROLE.sub(link, text)


class Roles(Extension):
    """The extension that mkdocs.yml names."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value, obj.module.path)
