"""Line numbers of the keys of a TOML text, which the standard library's parser does not give."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

KeyPath = tuple[str | int, ...]
"""Keys of tables and positions in arrays, from the outside in: ``("data", 0, "options", "seed")``."""

BLANK, NEWLINE = " \t", "\r\n"
BARE_ENDS = ",]}#" + NEWLINE
KEY_ENDS = "=.]" + BLANK + NEWLINE
ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line of every table, key and array element of a TOML text, counted from 1.

    Args:
        text: valid TOML; the caller has parsed it already.
    """
    return _Scanner(text).lines()


def line_of(lines: dict[KeyPath, int], path: Sequence[str | int]) -> int:
    """The line of a key, or of the innermost part of the text around it; 1 if no part of the path is written.

    Parts of the path that are not in the text, such as the kind of value a validator tried, are skipped.
    """
    found: KeyPath = ()
    for part in path:
        if (*found, part) in lines:
            found = (*found, part)
    return lines.get(found, 1)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text, self.at = text + "\n", 0
        self.breaks = [place for place, sign in enumerate(self.text) if sign == "\n"]
        self.found: dict[KeyPath, int] = {}
        self.counts: dict[KeyPath, int] = {}

    def lines(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip(BLANK + NEWLINE):
            table = self._header() if self.text[self.at] == "[" else self._pair(table)
        return self.found

    def _note(self, path: KeyPath) -> None:
        self.found.setdefault(path, bisect_left(self.breaks, self.at) + 1)

    def _skip(self, signs: str) -> bool:
        """Skip the given characters and comments; returns whether anything is left."""
        while self.at < len(self.text) and self.text[self.at] in signs + "#":
            self.at = self.text.index("\n", self.at) if self.text[self.at] == "#" else self.at + 1
        return self.at < len(self.text)

    def _header(self) -> KeyPath:
        """``[table]`` or ``[[array of tables]]``."""
        double = self.text.startswith("[[", self.at)
        begun = self.at
        self.at += 1 + double
        *outer, last = self._key()
        path: KeyPath = ()
        for part in outer:
            path = (*path, part)
            self._note(path)
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        path, end, self.at = (*path, last), self.text.index("]", self.at) + 1 + double, begun
        self._note(path)
        if double:
            self.counts[path] = self.counts.get(path, 0) + 1
            path = (*path, self.counts[path] - 1)
            self._note(path)
        self.at = end
        return path

    def _pair(self, table: KeyPath) -> KeyPath:
        """``key = value``; returns its table."""
        begun, path = self.at, table
        keys, after = self._key(), self.at
        self.at = begun
        for part in keys:
            path = (*path, part)
            self._note(path)
        self.at = self.text.index("=", after) + 1
        self._value(path)
        return table

    def _key(self) -> list[str]:
        """A key, dotted or not; stops at the character after it."""
        parts = []
        while True:
            self._skip(BLANK)
            if self.text[self.at] in "\"'":
                parts.append(self._string())
            else:
                begun = self.at
                while self.text[self.at] not in KEY_ENDS:
                    self.at += 1
                parts.append(self.text[begun : self.at])
            self._skip(BLANK)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, path: KeyPath) -> None:
        self._skip(BLANK)
        sign = self.text[self.at]
        if sign in "\"'":
            self._string()
        elif sign == "[":
            self._several("]", lambda number: self._element((*path, number)))
        elif sign == "{":
            self._several("}", lambda _: self._pair(path))
        else:
            while self.text[self.at] not in BARE_ENDS:
                self.at += 1

    def _several(self, end: str, one: Callable[[int], object]) -> None:
        """The content between brackets."""
        self.at += 1
        number = 0
        while self._skip(BLANK + NEWLINE + ",") and self.text[self.at] != end:
            one(number)
            number += 1
        self.at += 1

    def _element(self, path: KeyPath) -> None:
        self._note(path)
        self._value(path)

    def _string(self) -> str:
        """A string of any of the four kinds; its text."""
        quote = self.text[self.at]
        mark = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(mark)
        signs: list[str] = []
        while not self.text.startswith(mark, self.at):
            if quote == '"' and self.text[self.at] == "\\":
                self.at += 1
                signs.append(self._escaped())
            else:
                signs.append(self.text[self.at])
            self.at += 1
        self.at += len(mark)
        while len(mark) == 3 and self.text[self.at] == quote:  # up to two quotes may precede the end mark
            self.at += 1
        return "".join(signs)

    def _escaped(self) -> str:
        """The character of an escape; stops at the escape's last character."""
        sign = self.text[self.at]
        digits = {"x": 2, "u": 4, "U": 8}.get(sign, 0)
        if not digits:
            return ESCAPES.get(sign, "")
        code = self.text[self.at + 1 : self.at + 1 + digits]
        self.at += digits
        return chr(int(code, 16))
