"""Files that ``plures deploy init`` writes; ``$name`` stands for what is filled in, ``$$`` for a dollar."""

from __future__ import annotations

from importlib.resources import files
from string import Template


def filled(name: str, /, **values: object) -> str:
    """A file of this folder with its names filled in; a name without a value is a ``KeyError``."""
    text = files(__name__).joinpath(name).read_text(encoding="utf-8")
    return Template(text).substitute({key: str(value) for key, value in values.items()})
