"""Every key of a TOML text has its line."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from plures.study.lines import key_lines, line_of

TEXT = '''# c = 1
name = "a # b"   # comment
"quoted key".x = 1
multi = """
a = 3
[no]
quoted \\""" end""""
arr = [ 1, # one
  2,
  { a = 1, b.c = [3, 4] },
]
[t]
d.e.f = 3
[[data]]
name = 'x'
options = { k = "}", z = 2 }
[[data]]
name = "y"
[data.options]
k = 1979-05-27 07:32:00
[[data.sub]]
q = 1
[[data.sub]]
q = \'\'\'
]]\'\'\'
[ "a.b" . c ]
z=""'''


def test_lines_by_hand() -> None:
    tomllib.loads(TEXT)
    assert key_lines(TEXT) == {
        ("name",): 2,
        ("quoted key",): 3,
        ("quoted key", "x"): 3,
        ("multi",): 4,
        ("arr",): 8,
        ("arr", 0): 8,
        ("arr", 1): 9,
        ("arr", 2): 10,
        ("arr", 2, "a"): 10,
        ("arr", 2, "b"): 10,
        ("arr", 2, "b", "c"): 10,
        ("arr", 2, "b", "c", 0): 10,
        ("arr", 2, "b", "c", 1): 10,
        ("t",): 12,
        ("t", "d"): 13,
        ("t", "d", "e"): 13,
        ("t", "d", "e", "f"): 13,
        ("data",): 14,
        ("data", 0): 14,
        ("data", 0, "name"): 15,
        ("data", 0, "options"): 16,
        ("data", 0, "options", "k"): 16,
        ("data", 0, "options", "z"): 16,
        ("data", 1): 17,
        ("data", 1, "name"): 18,
        ("data", 1, "options"): 19,
        ("data", 1, "options", "k"): 20,
        ("data", 1, "sub"): 21,
        ("data", 1, "sub", 0): 21,
        ("data", 1, "sub", 0, "q"): 22,
        ("data", 1, "sub", 1): 23,
        ("data", 1, "sub", 1, "q"): 24,
        ("a.b",): 26,
        ("a.b", "c"): 26,
        ("a.b", "c", "z"): 27,
    }


def test_the_innermost_known_part_of_a_path_decides() -> None:
    lines = key_lines("x = 1\n[[data]]\nname = 'a'\n")
    assert line_of(lines, ("data", 0, "model")) == 2
    assert line_of(lines, ("data", "list", 0, "name")) == 3
    assert line_of(lines, ("nowhere",)) == 1


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=0, max_size=5)
PLAIN = st.one_of(st.integers(0, 99), st.booleans(), KEYS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def text_of(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ",\n ".join(map(text_of, value)) + "\n]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{text_of(key)} = {text_of(inner)}" for key, inner in value.items()) + " }"
    return str(value)


def paths(value: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """All paths in a parsed document."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return {(*at, key) for key, _ in items}.union(*(paths(inner, (*at, key)) for key, inner in items))


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3), st.dictionaries(KEYS, VALUES, max_size=3))
def test_every_path_is_found_and_lines_ascend(tables: list[dict[str, Any]], one: dict[str, Any]) -> None:
    lines = []
    for table in tables:
        lines += ["[[several]]  # a comment", *(f"{text_of(k)} = {text_of(v)}" for k, v in table.items())]
    lines += ["", '["one"]', *(f"{text_of(k)} = {text_of(v)}" for k, v in one.items())]
    text = "\n".join(lines)
    found = key_lines(text)
    assert set(found) == paths(tomllib.loads(text))
    written = text.split("\n")
    for place in range(len(tables)):
        assert written[found["several", place] - 1] == "[[several]]  # a comment"
    for key in one:
        assert written[found["one", key] - 1].startswith(text_of(key))
