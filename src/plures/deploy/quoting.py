"""Names and paths inside what others read: a systemd unit, a shell, a configuration of Flower's node.

Each reader has one function. TOML's is :func:`plures.tables.declared.toml`, a shell's is :func:`shlex.join`.
"""

from __future__ import annotations

from collections.abc import Iterable

from plures.errors import PluresError

ESCAPED = {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"}
"""What a word of a unit file's command would otherwise mean to systemd."""


def unit_command(words: Iterable[str]) -> str:
    """Words as a command in a unit file: ``ExecStart=`` and the like."""
    return " ".join(f'"{"".join(ESCAPED.get(sign, sign) for sign in plain(word))}"' for word in words)


def unit_value(text: str) -> str:
    """A text as any other value in a unit file, where quotes and dollars mean nothing."""
    return plain(text).replace("%", "%%")


def plain(text: str) -> str:
    """A text that has no line breaks, which no unit file can hold."""
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in text):
        raise PluresError(f"{text!r} has a control character, which no service file can hold: choose another folder")
    return text


def node_value(text: str) -> str:
    """A text as a value of ``--node-config``: Flower finds the end of a value at the next quote, escaped or not."""
    return '"' + "".join(c if c.isalnum() or c in "/._- " else rf"\U{ord(c):08x}" for c in text) + '"'
