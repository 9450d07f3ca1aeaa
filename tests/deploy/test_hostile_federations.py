"""A federation's file with path-like names: everything stays inside, or is refused where the name is first read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sites import Loopback
from typer.testing import CliRunner

from plures.cli import app
from plures.deploy.app import opened
from plures.deploy.conduct import RESULT, Conductor
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.files import inside
from plures.remote.state import HALF, LEFT, PUBLISHED, Versions, alone, leave, ours, strangers
from plures.tables.declared import toml
from plures.tables.heart import heart_schema, heart_tables
from plures.tables.table import write_table

ESCAPES = (
    "../..",
    "..",
    ".",
    "...",
    "a/../../..",
    "/",
    "~",
    "C:x",
    "..\\..",
    "a\\b",
    "con",
    "heart.",
    "-rf",
    "=1+1",
    "flower",
)
WRITTEN = (
    'the "best" of\u00a03',
    "O'Brien & Söhne",
    "[red]a[/red]",
    "</script><img src=x onerror=alert(1)>",
    "👩‍⚕️ 病院",
    "${HOME}",
)
OBEYED = ("", " ", "a ", "a\nb", "a\0b", "a\x1b[2Jb", "a\u202eb", "x" * 101, "x" * 100_000)
ONE, TWO = "cleveland", "va"


def home(folder: Path, name: str, clients: tuple[str, ...] = (ONE, TWO)) -> list[Path]:
    """Two hospitals with their rows, and files beside them that are nobody's business; their ``site.toml``."""
    plan = [f"name = {toml(name)}", f"clients = {toml(clients)}", "[run]", 'method = "ditto"', "rounds = 1"]
    text = "\n".join([*plan, "lr = 0.1", "batch_size = 256", "", heart_schema().to_toml()])
    files = []
    for number, (client, table) in enumerate(zip(clients, heart_tables().values(), strict=False)):
        place = folder / "members" / f"site {number}"
        place.mkdir(parents=True)
        (place / "federation.toml").write_text(text, encoding="utf-8")
        (place / "site.toml").write_text(f'client = {toml(client)}\ndata = "data.csv"\n', encoding="utf-8")
        write_table(place / "data.csv", table)
        (place / "state.txt").write_text("mine")
        (place / "state-00000001.safetensors").write_text("mine")
        files.append(place / "site.toml")
    for place in (folder, folder / "members"):
        (place / "log.jsonl").write_text("not yours")
        (place / "left over").mkdir()
        (place / "left over" / "model.safetensors").write_text("not yours")
    return files


def everything(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "lock"}


def conducted(files: list[Path], out: Path) -> None:
    plan = Plan.load(files[0].with_name("federation.toml"))
    Conductor(plan, Loopback([opened(file) for file in files]), out, wait=lambda seconds: None).run()


@pytest.mark.parametrize("name", [*ESCAPES, *WRITTEN, "absolute"])
def test_a_federation_of_any_name_works_within_the_state_folders_and_leaving_takes_nothing_else(
    tmp_path: Path, name: str
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "log.jsonl").write_text("not yours")
    name = str(foreign) if name == "absolute" else name
    files = home(tmp_path / "home", name)
    before = everything(tmp_path)
    conducted(files, tmp_path / "out")
    assert json.loads((tmp_path / "out" / RESULT).read_text())["plan"] == name
    made = everything(tmp_path).keys() - before.keys()
    states = [file.parent / "state" for file in files]
    assert {file.name for state in states for file in state.rglob("*.safetensors")} >= {"state-00000001.safetensors"}
    assert all(any(file.is_relative_to(place) for place in (*states, tmp_path / "out")) for file in made)
    for file in files:
        done = CliRunner().invoke(app, ["deploy", "leave", str(file), "--yes"])
        assert done.exit_code == 0, done.output
        assert [left.name for left in (file.parent / "state").rglob("*") if left.is_file()] == [LEFT]
    after = everything(tmp_path)
    assert {file: after.get(file) for file in before} == before


@pytest.mark.parametrize(
    "pair", [WRITTEN[:2], WRITTEN[2:4], WRITTEN[4:], ("../x", "=1+1"), ("a/b", ".."), ("con", "a\u00a0b")]
)
def test_clients_of_any_name_are_conducted_and_found_in_all_that_is_written(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    files = home(tmp_path / "home", "heart", pair)
    before = everything(tmp_path)
    conducted(files, tmp_path / "out")
    told = json.loads((tmp_path / "out" / RESULT).read_text(encoding="utf-8"))
    assert sorted(told["result"]["test"]["clients"]) == sorted(pair)
    assert told["unpublished"] == {}
    events = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert next(event for event in events if event["event"] == "joined")["clients"] == sorted(pair)
    made = everything(tmp_path).keys() - before.keys()
    places = [file.parent / "state" for file in files] + [tmp_path / "out"]
    assert all(any(file.is_relative_to(place) for place in places) for file in made)


@pytest.mark.parametrize("name", OBEYED)
def test_a_name_that_would_be_obeyed_is_refused_where_it_is_read(tmp_path: Path, name: str) -> None:
    for files in (home(tmp_path / "federation", name), home(tmp_path / "client", "heart", (name, TWO))):
        before = everything(tmp_path)
        for words in (["check"], ["leave", "--yes"]):
            done = CliRunner().invoke(app, ["deploy", words[0], str(files[0]), *words[1:]])
            said = str(done.exception)
            assert isinstance(done.exception, PluresError)
            assert re.search(r"(name|client|clients.*): a name (must not|may not|has) ", said)
            assert said.isprintable()
            assert len(said) < 400
        with pytest.raises(PluresError, match=r"a name (must not|may not|has) "):
            opened(files[0])
        assert everything(tmp_path) == before


def test_links_in_the_state_folder_are_not_followed(tmp_path: Path) -> None:
    files = home(tmp_path / "home", "heart")
    conducted(files, tmp_path / "out")
    foreign, state = tmp_path / "foreign", inside(files[0].parent / "state", "heart")
    foreign.mkdir()
    for name in ("state-00000001.safetensors", "log.jsonl", "rows.csv"):
        (foreign / name).write_text("not yours")
    (state / "ditto" / "elsewhere").symlink_to(foreign)
    (state / "ditto" / "metrics.prom").symlink_to(foreign / "rows.csv")
    (state / "ditto" / "notes.txt").write_text("my own")
    done = CliRunner().invoke(app, ["deploy", "leave", str(files[0]), "--yes"])
    assert done.exit_code == 0, done.output
    assert {file.name for file in foreign.iterdir()} == {"state-00000001.safetensors", "log.jsonl", "rows.csv"}
    assert strangers(state) == [state / "ditto" / "elsewhere", state / "ditto" / "notes.txt"]
    assert all(f"{file} is not plures' and stays" in done.output.replace("\n", "") for file in strangers(state))
    (files[1].parent / "state").rename(tmp_path / "moved")
    (files[1].parent / "state").mkdir()
    (files[1].parent / "state" / "heart").symlink_to(foreign)
    done = CliRunner().invoke(app, ["deploy", "leave", str(files[1]), "--yes"])
    assert "is a link that leads out of" in str(done.exception)
    with pytest.raises(PluresError, match="is a link that leads out of"):
        opened(files[1])
    assert len(list(foreign.iterdir())) == 3


def test_only_files_that_plures_writes_are_deleted(tmp_path: Path) -> None:
    own = [
        "state-00000003.safetensors",
        "answer-3-train.safetensors",
        "ledger.json",
        "log.jsonl",
        "log.jsonl.2",
        "lock",
    ]
    own += ["metrics.prom", *(f"{PUBLISHED}/{name}" for name in ("model.safetensors", "card.json", "card.md"))]
    own += [".ledger.json.17.tmp", f"{PUBLISHED}/.model.safetensors.4.tmp"]
    others = [
        "data.csv",
        "site.toml",
        "model.safetensors",
        "card.json",
        "state-x.safetensors",
        "a.safetensors",
        "log.jsonl.gz",
    ]
    others += ["xlog.jsonl", "ledger.json.bak", ".data.csv.17.tmp", ".tmp", ".a.tmp", f"{PUBLISHED}/log.jsonl"]
    others += ["backup/model.safetensors", "backup/data.csv"]
    for name in own + others:
        (tmp_path / "ditto" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ditto" / name).write_text(name)
    assert HALF.fullmatch(".data.csv.17.tmp")
    assert Versions(tmp_path / "ditto", "run").present() == [3]
    assert not ours(Path(".data.csv.17.tmp"))
    deleted = leave(tmp_path)
    assert {str(file.relative_to(tmp_path / "ditto")) for file in deleted} == set(own)
    assert {str(file.relative_to(tmp_path / "ditto")) for file in strangers(tmp_path)} == set(others)
    assert all((tmp_path / "ditto" / name).read_text() == name for name in others)


def test_a_folder_that_is_worked_in_keeps_the_half_written_files_of_others(tmp_path: Path) -> None:
    for name in (".notes.tmp", ".rows.csv.3.tmp", "deep/.result.json.3.tmp", ".result.json.3.tmp", ".log.jsonl.x.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with alone(tmp_path, "busy"):
        left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.tmp")}
    assert left == {".notes.tmp", ".rows.csv.3.tmp", "deep/.result.json.3.tmp", ".log.jsonl.x.tmp"}
