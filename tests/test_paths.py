"""Names that become files and folders: they stay inside the folder, and no two of them collide."""

from __future__ import annotations

from pathlib import Path

import pytest

from plures.errors import PluresError
from plures.files import filed, inside
from plures.names import checked_name
from plures.texts import visible, visible_lines

OUT = (
    *"|*?:~<>.\0", "..", "", "../..", "../../x", "/etc", "/", "//", "a/b", "a/../..", "a\\b", "..\\..", "C:", "C:x",
    "C:\\x", "\\\\h\\s", "nul\0", "~root", "-rf", "a\nb", "a\x1b[2Jb", "a\u202eb", "x" * 5000, "con", "CON", "nul.txt",
    "com1", "aux ", "lpt9.a.b", "a.", "a ", " a", "a..", "...", "a:b", '"', "'", "`x`", "$(x)", "\ud800", "日本", "é",
    "e\u0301", "a-" + "0" * 20, "A-" + "0" * 20,
)  # fmt: skip
"""Names with a special meaning to a file system, a shell or a terminal."""
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


@pytest.mark.parametrize("name", OUT)
def test_every_name_is_one_part_that_every_file_system_takes(name: str) -> None:
    file = filed(name)
    assert file
    assert file.isascii()
    assert file.isprintable()
    assert not set(file) & set('/\\:*?"<>|')
    assert file[0] not in ".-~ "
    assert file[-1] not in ". "
    assert file.partition(".")[0].strip().lower() not in DEVICES
    assert len(file) <= 110
    assert file in (name, filed(name))


def test_no_two_names_meet_even_where_case_does_not_count() -> None:
    names = {*OUT, "own", "Own", "OWN", "cleveland", "Cleveland", "a-b", "a/b", "a.b", "name"}
    for _ in range(3):  # the safe form of a name is a name that a user may choose, too
        names |= {filed(name) for name in names} | {filed(name).lower() for name in names}
    kept = [filed(name) for name in names]
    assert len({file.lower() for file in kept}) == len(names)


@pytest.mark.parametrize("name", OUT)
def test_a_place_is_inside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    for names in ((name,), (name, name), ("x", name), (name, "..", "..")):
        place = inside(root, *names)
        assert place.relative_to(root).parts == tuple(map(filed, names))
        assert place.resolve().relative_to(root.resolve()).parts == tuple(map(filed, names))


def test_a_link_that_leads_out_is_refused_and_one_to_the_root_is_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir(), outside.mkdir()
    (root / "heart").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    (root / "near").mkdir()
    (root / "other").symlink_to(root / "near")
    for names in (("heart",), ("heart", "ditto"), ("heart", "a", "b")):
        with pytest.raises(PluresError, match=r"heart.* is a link that leads out of .*root: remove it"):
            inside(root, *names)
    with pytest.raises(PluresError, match=r"loop/x cannot be used: .*; remove the link there"):
        inside(root, "loop", "x")
    assert inside(root, "other", "x") == root / "other" / "x"
    (tmp_path / "link").symlink_to(root)
    assert inside(tmp_path / "link", "near") == tmp_path / "link" / "near"


@pytest.mark.parametrize(
    "name",
    ["a", "ward 3", "O'Brien", 'the "best"', "a/b", "..", "[red]", "=1+1", "</script>", "日本", "👩‍⚕️", "نص", "x" * 100],
)
def test_names_of_any_script_and_with_any_sign_are_names(name: str) -> None:
    assert checked_name(name, "client") == name == visible(name)


OBEYED = "\0\n\r\t\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066\ufeff\ud800"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "must not be empty"),
        (" ", "must not be empty"),
        ("a ", "end with a space"),
        *[(f"a{sign}b", "may not contain line breaks, control characters") for sign in OBEYED],
        ("x" * 101, "at most 100 characters, not 101"),
        ("x" * 10_000_000, "at most 100 characters, not 10000000"),
    ],
)
def test_a_name_that_would_be_obeyed_is_refused_in_one_printable_sentence(name: str, told: str) -> None:
    with pytest.raises(PluresError, match=told) as caught:
        checked_name(name, "client")
    sentence = str(caught.value)
    assert sentence.startswith("client '")
    assert sentence.isprintable()
    assert len(sentence) < 300


def test_what_is_obeyed_is_shown_instead() -> None:
    assert visible("a\x1b[2J\nb\x9b\u202e") == r"a\x1b[2J\nb\x9b\u202e"
    assert visible_lines("a\x1b[2J\nb\t\r\u202e") == "a\\x1b[2J\nb\t\\r\\u202e"
