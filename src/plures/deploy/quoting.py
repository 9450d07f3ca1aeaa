"""Quote names and paths for systemd units and for the configuration of Flower's node.

For TOML there is :func:`plures.tables.declared.toml`, for a shell :func:`shlex.join`.
"""

from __future__ import annotations

from collections.abc import Iterable

from plures.errors import PluresError

ESCAPED = {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"}
"""Characters with a special meaning to systemd in a command of a unit file."""


def unit_command(words: Iterable[str]) -> str:
    """Words as a command in a unit file: ``ExecStart=`` and the like."""
    return " ".join(f'"{"".join(ESCAPED.get(sign, sign) for sign in plain(word))}"' for word in words)


def unit_value(text: str) -> str:
    """Text as any other value in a unit file, where quotes and dollar signs have no meaning."""
    return plain(text).replace("%", "%%")


def plain(text: str) -> str:
    """Refuse text with control characters, which a unit file cannot hold."""
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in text):
        raise PluresError(f"{text!r} has a control character, which a service file cannot hold: choose another folder")
    return text


def node_value(text: str) -> str:
    """Text as a value of ``--node-config``: Flower ends a value at the next quote, escaped or not."""
    return '"' + "".join(c if c.isalnum() or c in "/._- " else rf"\U{ord(c):08x}" for c in text) + '"'
