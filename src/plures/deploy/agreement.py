"""Edit ``federation.toml`` line by line, so that comments and layout stay as people wrote them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plures.deploy.plan import read_toml
from plures.errors import PluresError
from plures.files import write_text
from plures.tables.declared import toml

TABLE = re.compile(r"\s*\[")
HEAD = re.compile(r"\s*\[\s*keys\s*\]\s*(#.*)?")
ENTRY = re.compile(r"""(\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*=\s*)("[^"]*"|'[^']*')?""")
"""A name, and its value if that is a string on one line."""


def enter(file: Path, *, top: Mapping[str, str] | None = None, keys: Mapping[str, str | None] | None = None) -> None:
    """Write values into ``federation.toml``, each on a line of its own; existing values are replaced.

    Args:
        file: the file.
        top: values above all tables: ``coordinator``, ``authority``, ``superlink``.
        keys: client -> fingerprint for ``[keys]``; ``None`` removes the client's line.

    Raises:
        PluresError: the file's layout does not allow a line to be changed alone; the file stays as it is.
    """
    document = read_toml(file)
    lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    for name, value in (top or {}).items():
        document[name] = value
        end = next((place for place, line in enumerate(lines) if TABLE.match(line)), len(lines))
        change(lines, 0, end, name, value, at=after_comments(lines))
    for client, fingerprint in (keys or {}).items():
        changed: dict[str, Any] = document.setdefault("keys", {})
        changed.pop(client, None)
        if fingerprint is not None:
            changed[client] = fingerprint
        if not any(HEAD.fullmatch(line) for line in lines):
            lines += ["", "# The members' keys, as `ssh-keygen -lf` prints them.", "[keys]"]
        begin = next(place for place, line in enumerate(lines) if HEAD.fullmatch(line)) + 1
        end = next((p for p, line in enumerate(lines[begin:], begin) if TABLE.match(line)), len(lines))
        last = max((p for p in range(begin, end) if ENTRY.match(lines[p])), default=begin - 1)
        change(lines, begin, end, client, fingerprint, at=last + 1)
    after = "\n".join([*lines, ""])
    if readable(after) != document:
        raise PluresError(
            f"{file} is written in a way that plures cannot change line by line: {by_hand(top or {}, keys or {})}"
        )
    write_text(file, after)


def change(lines: list[str], begin: int, end: int, name: str, value: str | None, at: int) -> None:
    """Replace the line of a name between two line numbers, or insert it if there is none."""
    for place in range(begin, end):
        entry = ENTRY.match(lines[place])
        if entry and key_of(entry[2]) == name:
            lines[place : place + 1] = [] if value is None else [entry[1] + toml(value) + lines[place][entry.end() :]]
            return
    if value is not None:
        lines.insert(at, line_of(name, value))


def line_of(name: str, value: str) -> str:
    """A name and its value as a line; the name is quoted only if TOML requires it."""
    return f"{name if re.fullmatch(r'[A-Za-z0-9_-]+', name) else toml(name)} = {toml(value)}"


def key_of(text: str) -> str | None:
    """The name that a line begins with; ``None`` if it only looks like one, as inside a multi-line string."""
    return next(iter(readable(f"{text} = 0") or {}), None)


def after_comments(lines: list[str]) -> int:
    """Where the file's opening comments end."""
    return next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))


def readable(text: str) -> dict[str, Any] | None:
    """Parse text as TOML; ``None`` if it is not valid."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


def by_hand(top: Mapping[str, str], keys: Mapping[str, str | None]) -> str:
    """Instructions for editing the file by hand."""
    lines = [line_of(name, value) for name, value in top.items()]
    entries = [f"{line_of(c, k)} under [keys]" if k else f"nothing for {c!r} under [keys]" for c, k in keys.items()]
    return f"edit it by hand: {'; '.join([*lines, *entries])}"
