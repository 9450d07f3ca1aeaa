"""What `plures deploy init` writes can be read, built, and run as its own instructions say."""

from __future__ import annotations

import configparser
import itertools
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from fleet import LATE
from flwr.common.config import parse_config_args
from typer.testing import CliRunner, Result

from plures.cli import app
from plures.deploy.agreement import enter
from plures.deploy.fleet.loopback import free_port
from plures.deploy.fleet.process import QUIET, Process, quiet_environment
from plures.deploy.keys import Keyring, authority_digest
from plures.deploy.member import Joining
from plures.deploy.plan import Plan, SiteFile
from plures.deploy.project import blank, heart, write
from plures.deploy.signing import public
from plures.errors import PluresError
from plures.tables.check import check
from plures.tables.table import read_table

BIN = Path(sys.executable).parent


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["deploy", *map(str, words)])


def words_of(unit: Path, folder: Path) -> list[str]:
    """The command of a service, with this machine's folders."""
    service = configparser.RawConfigParser(strict=False)
    service.optionxform = str  # type: ignore[assignment, method-assign]
    service.read_string(unit.read_text().replace("\\\n", " "))
    assert (service["Service"]["Restart"], service["Service"]["RestartSec"]) == ("always", "10")
    text = (
        service["Service"]["ExecStart"].replace("/opt/plures/bin/", f"{BIN}/").replace("/srv/plures/heart", str(folder))
    )
    return shlex.split(text)


def test_a_blank_federation_is_read_by_its_readers_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    done = call("init", folder, "--client", "mercy", "--client", "st. anna", "--host", "fed.example.org")
    assert done.exit_code == 0, done.output
    plan = Plan.load(folder / "federation.toml")
    assert (plan.name, plan.clients, plan.rules.min_clients) == ("study", ("mercy", "st. anna"), 1)
    assert plan.spec.method == "ditto+threshold"
    assert plan.superlink == "fed.example.org:8443"
    assert not (folder / "sites").exists()
    app = tomllib.loads((folder / "pyproject.toml").read_text())
    assert app["tool"]["flwr"]["app"]["components"] == {"serverapp": "carrier:server", "clientapp": "carrier:client"}
    assert app["project"]["dependencies"] == []
    quiet = dict(line.split("=") for line in (folder / "flower.env").read_text().splitlines() if "=" in line)
    assert quiet == QUIET
    assert tomllib.loads((folder / "flower" / "config.toml").read_text())["superlink"]["default"] == "plures"
    texts = {file: file.read_text() for file in folder.rglob("*") if file.is_file()}
    del texts[folder / "nginx.conf"]  # has variables of its own; nginx reads it in test_door.py
    assert not [file for file, text in texts.items() if re.search(r"\$[a-z]|example\.org:?\$", text)]
    (folder / "federation.toml").unlink()
    with pytest.raises(PluresError, match=r"README\.md exists and is never overwritten"):
        write(folder, blank("study"))
    assert not (folder / "federation.toml").exists()
    assert all(
        file.read_text() == text for file, text in texts.items() if file.name != "federation.toml" or file.exists()
    )


def joined(home: Path, client: str, data: Path | None = None) -> Path:
    """The ``site.toml`` of a member that joined the federation of a folder, whose keys are made if there are none."""
    file, keys, own = home / "federation.toml", Keyring(home / "keys"), Keyring(home / "site" / "keys")
    if not keys.coordinator.exists():
        assert call("keys", "--folder", keys.folder, "--host", "localhost", "--federation", file).exit_code == 0
    own.make_node(client)
    enter(file, keys={client: public(own.node_public(client))})
    Joining.of(file, keys.authority, client, home / "site", None, data).write()
    return home / "site" / "site.toml"


def test_the_rows_of_a_new_site_are_asked_for_and_then_read(tmp_path: Path) -> None:
    write(tmp_path, blank("study", ["mercy"]))
    file = joined(tmp_path, "mercy")
    home, own = file.parent, SiteFile.load(file)
    assert (own.client, own.loader, own.data, own.allow.send) == ("mercy", "load_data.py:load", None, ("model",))
    with pytest.raises(PluresError, match=r"there are no rows yet: put them into .*data\.csv, or say in load_data\.py"):
        own.table(home)
    rows = [f"{20 + i},{100 + i},{'yes' if i % 3 else 'no'},{'yes' if i % 2 else 'no'}" for i in range(40)]
    (home / "data.csv").write_text("\n".join(["age,pressure,smoker,outcome", *rows]))
    assert own.table(home)["age"][:2] == ["20", "21"]
    done = call("check", home / "site.toml")
    assert done.exit_code == 0, done.output
    assert "client 'mercy', 40 rows: the data fit the schema (0 errors" in done.output
    assert re.search(r"it would send in a round: \d+ numbers of 'model'\nit would tell: examples\n", done.output)


def test_check_says_what_is_wrong_and_fails(tmp_path: Path) -> None:
    write(tmp_path, heart())
    data = tmp_path / "rows" / "va.csv"
    file = joined(tmp_path, "va", data)
    assert call("check", file).exit_code == 0
    lines = data.read_text().splitlines()
    lines[7] = re.sub(r"^\d+", "240", lines[7])
    data.write_text("\n".join(lines))
    done = call("check", file)
    assert done.exit_code == 1
    assert "age" in done.output
    assert "line 8" in done.output
    file.write_text(file.read_text().replace("va.csv", "cleveland.csv"))
    done = call("check", file, "--federation", plan_with(tmp_path, "scaffold"))
    assert done.exit_code == 1
    assert "error  the method sends 'control', and [allow] send does not name it" in done.output
    file.write_text(file.read_text().replace('client = "va"', 'client = "nobody"'))
    with pytest.raises(PluresError, match="client 'nobody' is not one of the federation's; they are cleveland"):
        raise call("check", file).exception or AssertionError


def plan_with(folder: Path, method: str) -> Path:
    file = folder / "other.toml"
    file.write_text(heart(method=method).plan)
    return file


def test_every_hospital_of_the_example_may_join(tmp_path: Path) -> None:
    files = write(tmp_path, heart(rounds=7))
    plan = Plan.load(tmp_path / "federation.toml")
    assert (plan.spec.rounds, len(plan.clients), len(files)) == (7, 4, 13 + 4)
    for client in plan.clients:
        assert check(plan.table, read_table(tmp_path / "rows" / f"{client}.csv"), client).ok


def test_flower_builds_the_app_of_a_pointer_only(tmp_path: Path) -> None:
    folder = tmp_path / "heart"
    write(folder, heart())
    environment = quiet_environment(tmp_path / "home")
    done = subprocess.run(
        [BIN / "flwr", "build"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.fab")
    with zipfile.ZipFile(built) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "carrier.py", "pyproject.toml"]


def test_keys_are_made_by_a_command_for_each_side(tmp_path: Path) -> None:
    keys, file = tmp_path / "keys", tmp_path / "federation.toml"
    write(tmp_path, blank("study", ["mercy"], "fed.example.org"))
    done = call("keys", "--folder", keys, "--host", "fed.example.org", "--federation", file)
    assert done.exit_code == 0, done.output
    plan = Plan.load(file)
    assert plan.coordinator == public(keys / "coordinator.pub")
    assert plan.authority == authority_digest(keys / "ca.crt")
    assert f'coordinator = "{plan.coordinator}"' in done.output
    again = ("keys", "--folder", keys, "--host", "fed.example.org", "--federation", file)
    with pytest.raises(PluresError, match="exists and is never overwritten"):
        raise call(*again).exception or AssertionError
    file.write_text(blank("study", ["mercy"], "fed.example.org").plan)  # written anew: the same fingerprints come back
    assert call(*again).exit_code == 0
    assert Plan.load(file).coordinator == plan.coordinator
    file.write_text("clients = [")
    with pytest.raises(PluresError, match=r"federation\.toml is not valid TOML"):
        raise call(*again).exception or AssertionError
    file.write_text(blank("study", ["mercy"], "fed.example.org").plan)
    assert stat.S_IMODE((keys / "coordinator").stat().st_mode) == 0o600
    done = call("keys", "--folder", keys, "--client", "mercy")
    assert f"for the coordinator: {keys / 'nodes' / 'mercy.pub'}" in done.output
    assert f"by telephone: {public(keys / 'nodes' / 'mercy.pub')}\n" in done.output
    assert stat.S_IMODE((keys / "nodes" / "mercy").stat().st_mode) == 0o600
    for wrong in ([], ["--host", "a", "--client", "b"]):
        with pytest.raises(PluresError, match="say --host NAME at the coordinator, or --client NAME at a site"):
            raise call("keys", "--folder", keys, *wrong).exception or AssertionError


def test_a_site_that_leaves_keeps_nothing(tmp_path: Path) -> None:
    write(tmp_path, heart())
    home = joined(tmp_path, "va", tmp_path / "rows" / "va.csv").parent
    secret = home / "state" / "heart" / "ditto+threshold" / "state-00000003.safetensors"
    secret.parent.mkdir(parents=True)
    secret.write_text("personal")
    declined = CliRunner().invoke(app, ["deploy", "leave", str(home / "site.toml")], input="n\n")
    assert (declined.exit_code, secret.exists()) == (1, True)
    done = call("leave", home / "site.toml", "--yes", "--reason", "end of study")
    assert done.exit_code == 0
    assert "deleted 1 files; va has left heart" in done.output
    assert [file.name for file in (home / "state").rglob("*") if file.is_file()] == ["left"]
    assert (tmp_path / "rows" / "va.csv").exists()


def test_the_services_start_as_they_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "heart"
    write(folder, heart("localhost"))
    superlink, door, runtime = free_port(), free_port(), free_port()
    for file in folder.rglob("*"):
        if file.suffix in (".conf", ".service", ".toml"):
            file.write_text(file.read_text().replace("8000", str(superlink)).replace("8443", str(door)))
    environment = {**quiet_environment(folder / "flower"), "PATH": f"{BIN}:/usr/sbin:/usr/bin:/bin"}
    started = []

    def start(name: str, unit: Path, home: Path, *more: str) -> Process:
        words = ["/bin/sh", "-c", f"cd {shlex.quote(str(home))} && exec {shlex.join([*words_of(unit, folder), *more])}"]
        started.append(Process(name, words, environment, tmp_path / "logs" / name))
        started[-1].start()
        return started[-1]

    def flwr(*words: str) -> str:
        done = subprocess.run(
            [BIN / "flwr", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    site = joined(folder, "va", folder / "rows" / "va.csv").parent
    (folder / "run").mkdir()
    try:
        start("superlink", folder / "systemd" / "superlink.service", folder).wait_for("Uvicorn running", LATE)
        if shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin"):
            start("proxy", folder / "systemd" / "proxy.service", folder)
            reached = door
        else:
            reached = superlink
        flwr("supernode", "register", str(site / "keys" / "nodes" / "va.pub"), "plures", "--name", "va")
        node = start("node", site / "node.service", site, "--port", str(runtime), "--superlink", f"localhost:{reached}")
        node.wait_for("SuperNode ID:", LATE)
        assert "online" in flwr("supernode", "list", "plures", "--format", "json")
        variables = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in node.members()]
        assert all(f"{name}={value}".encode() in own for own in variables for name, value in QUIET.items())
        assert all(f"FLWR_HOME={site / 'state' / 'flower'}".encode() in own for own in variables)
    finally:
        for process in reversed(started):
            process.stop()


def test_a_node_without_its_files_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, heart())
    site = joined(tmp_path, "va", tmp_path / "rows" / "va.csv")
    with pytest.raises(PluresError, match="nowhere is missing: `plures deploy keys` makes a key, "):
        raise call("node", site, "--key", tmp_path / "nowhere").exception or AssertionError
    (site.parent / "agreed" / "ca.crt").unlink()
    with pytest.raises(PluresError, match=r"ca\.crt is missing"):
        raise call("node", site).exception or AssertionError


def test_a_node_finds_all_that_it_needs_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, heart("fed.example.org"))
    site = joined(tmp_path, "va", tmp_path / "rows" / "va.csv")
    started: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda program, words, environment: started.append(words))
    assert call("node", site).exit_code == 0
    assert call("node", site, "--superlink", "other:1", "--port", "9999").exit_code == 0
    first, second = (dict(itertools.pairwise(words)) for words in started)
    assert (first["--superlink"], first["--port"]) == ("fed.example.org:8443", "9094")
    assert (second["--superlink"], second["--port"]) == ("other:1", "9999")
    key = site.parent / "keys" / "nodes" / "va"
    assert (first["--root-certificates"], first["--auth-supernode-private-key"]) == (
        str(site.parent / "agreed" / "ca.crt"),
        str(key),
    )
    assert parse_config_args([first["--node-config"]]) == {"site": str(site.resolve()), "key": str(key.resolve())}
