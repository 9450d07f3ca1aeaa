"""Lines that plures writes into an agreed file: everything that people wrote there is preserved."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

import pytest

from plures.deploy.agreement import enter
from plures.deploy.plan import Plan
from plures.deploy.project import blank
from plures.errors import PluresError

FIRST, SECOND = f"SHA256:{'a' * 43}", f"SHA256:{'b/+' * 14}c"
NAMES = (
    "mercy",
    "st. anna",
    'the "old" one',
    "o'neill",
    "a = b",
    "[keys]",
    "🏥 west",
    "back\\slash",
    "#1",
    "ünal",
    "%n $HOME",
)


def federation(folder: Path, clients: tuple[str, ...] = NAMES) -> Path:
    file = folder / "federation.toml"
    file.write_text(blank("study", clients).plan)
    return file


def changed(before: str, after: str) -> list[str]:
    return [line for line in difflib.ndiff(before.split("\n"), after.split("\n")) if line[0] in "+-"]


def test_keys_are_entered_replaced_and_taken_out_and_nothing_else_changes(tmp_path: Path) -> None:
    file = federation(tmp_path)
    before = file.read_text()
    for place, client in enumerate(NAMES):
        enter(file, keys={client: FIRST[:-2] + f"{place:02d}"})
    plan = Plan.load(file)
    assert plan.keys == {client: FIRST[:-2] + f"{place:02d}" for place, client in enumerate(NAMES)}
    lines = changed(before, file.read_text())
    assert len(lines) == len(NAMES) + 3
    assert all(line.startswith("+ ") for line in lines)
    whole = file.read_text()
    enter(file, keys={"[keys]": SECOND})
    assert Plan.load(file).keys["[keys]"] == SECOND
    assert [line[0] for line in changed(whole, file.read_text())] == ["-", "+"]
    enter(file, keys=dict.fromkeys(NAMES))
    assert Plan.load(file).keys == {}
    assert len(changed(before, file.read_text())) == 3


def test_the_coordinators_lines_stand_above_all_tables(tmp_path: Path) -> None:
    file = federation(tmp_path)
    before = file.read_text()
    enter(file, top={"coordinator": FIRST, "authority": "0" * 64})
    enter(file, top={"coordinator": SECOND})
    plan = Plan.load(file)
    assert (plan.coordinator, plan.authority) == (SECOND, "0" * 64)
    assert len(changed(before, file.read_text())) == 2


def test_what_people_wrote_beside_a_key_stays(tmp_path: Path) -> None:
    file = federation(tmp_path, ("north", "south"))
    table = f'\n[keys] # read by telephone\n# of Dr. Who\n  north="{FIRST}" # 21 May\n\n# the end'
    file.write_text(file.read_text() + table)
    enter(file, keys={"north": SECOND})
    enter(file, keys={"south": FIRST})
    assert (
        f'[keys] # read by telephone\n# of Dr. Who\n  north="{SECOND}" # 21 May\nsouth = "{FIRST}"\n\n# the end\n'
        in (file.read_text())
    )
    assert Plan.load(file).keys == {"north": SECOND, "south": FIRST}


@pytest.mark.parametrize(
    "written",
    [
        "keys.north = '{}'\n",
        "keys = {{ north = '{}' }}\n",
        "note = '''\n[keys]\nnorth = 0\n'''\n",
        "note = '''\n[keys]\n\"\\q\" = 0\n'''\n",
    ],
    ids=["dotted", "inline", "in a text", "nearly an entry"],
)
def test_a_file_in_which_no_line_can_be_changed_alone_stays_as_it_is(tmp_path: Path, written: str) -> None:
    file = federation(tmp_path, ("north", "south"))
    file.write_text(written.format(FIRST) + file.read_text())
    before = file.read_bytes()
    tomllib.loads(file.read_text())
    with pytest.raises(PluresError, match=r'federation\.toml .* edit it by hand: south = "SHA256:b.*" under \[keys\]'):
        enter(file, keys={"south": SECOND})
    assert file.read_bytes() == before


def test_a_file_that_an_editor_began_with_a_mark_is_read_and_changed(tmp_path: Path) -> None:
    file = federation(tmp_path, ("north", "south"))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    enter(file, keys={"north": FIRST})
    assert Plan.load(file).keys == {"north": FIRST}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (f'[keys]\nwest = "{FIRST}"', r"\[keys\] has a key of 'west', which is not in clients"),
        (f'[keys]\nnorth = "{FIRST}"\nsouth = "{FIRST}"', "'south' has the key of 'north': everybody needs"),
        ('[keys]\nnorth = "SHA256:short"', "keys, north: .* is not a key's fingerprint"),
        ('[keys]\nnorth = "MD5:aa:bb"', "keys, north: .* is not a key's fingerprint"),
    ],
)
def test_keys_that_cannot_be(tmp_path: Path, lines: str, message: str) -> None:
    file = federation(tmp_path, ("north", "south"))
    file.write_text(f"{file.read_text()}\n{lines}\n")
    with pytest.raises(PluresError, match=message):
        Plan.load(file)


def test_a_member_cannot_have_the_coordinators_key(tmp_path: Path) -> None:
    file = federation(tmp_path, ("north", "south"))
    enter(file, top={"coordinator": FIRST}, keys={"north": FIRST})
    with pytest.raises(PluresError, match="'north' has the key of the coordinator"):
        Plan.load(file)


def test_a_plan_without_keys_says_how_to_add_them(tmp_path: Path) -> None:
    file = federation(tmp_path, ("north", "south"))
    with pytest.raises(
        PluresError, match=r"names no coordinator's key: the coordinator makes it .*`plures deploy keys --host NAME`"
    ):
        _ = Plan.load(file).orders
    enter(file, top={"coordinator": FIRST}, keys={"north": SECOND})
    with pytest.raises(
        PluresError, match=r"has no key of south under \[keys\]: .* `plures deploy add CLIENT CLIENT.pub`"
    ):
        _ = Plan.load(file).members
