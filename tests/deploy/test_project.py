"""What `plures deploy init` writes can be read, built, and run as its own instructions say."""

from __future__ import annotations

import configparser
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
from typer.testing import CliRunner, Result

from plures.cli import app
from plures.deploy.fleet.loopback import free_port
from plures.deploy.fleet.process import QUIET, Process, quiet_environment
from plures.deploy.keys import authority_digest
from plures.deploy.plan import Plan, SiteFile
from plures.deploy.project import HOST, blank, heart, write
from plures.deploy.signing import public
from plures.errors import PluresError
from plures.tables.check import check

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
    own = SiteFile.load(folder / "sites" / "mercy" / "site.toml")
    assert (own.client, own.loader, own.data, own.allow.send) == ("mercy", "load_data.py:load", None, ("model",))
    app = tomllib.loads((folder / "pyproject.toml").read_text())
    assert app["tool"]["flwr"]["app"]["components"] == {"serverapp": "carrier:server", "clientapp": "carrier:client"}
    assert app["project"]["dependencies"] == []
    quiet = dict(line.split("=") for line in (folder / "flower.env").read_text().splitlines() if "=" in line)
    assert quiet == QUIET
    assert tomllib.loads((folder / "flower" / "config.toml").read_text())["superlink"]["default"] == "plures"
    assert "fed.example.org:8443" in (folder / "sites" / "mercy" / "node.service").read_text()
    texts = {file: file.read_text() for file in folder.rglob("*") if file.is_file()}
    del texts[folder / "nginx.conf"]  # has variables of its own; nginx reads it in test_door.py
    assert not [
        file for file, text in texts.items() if re.search(r"\$[a-z]|example\.org:?\$", text.replace("$site", ""))
    ]
    (folder / "federation.toml").unlink()
    with pytest.raises(PluresError, match=r"README\.md exists and is never overwritten"):
        write(folder, blank("study"))
    assert not (folder / "federation.toml").exists()
    assert all(
        file.read_text() == text for file, text in texts.items() if file.name != "federation.toml" or file.exists()
    )


def test_the_rows_of_a_new_site_are_asked_for_and_then_read(tmp_path: Path) -> None:
    write(tmp_path, blank("study", ["mercy"]))
    home = tmp_path / "sites" / "mercy"
    shutil.copy(tmp_path / "federation.toml", home)
    own = SiteFile.load(home / "site.toml")
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
    file = tmp_path / "sites" / "va" / "site.toml"
    assert call("check", file).exit_code == 0
    data = file.with_name("data.csv")
    lines = data.read_text().splitlines()
    lines[7] = re.sub(r"^\d+", "240", lines[7])
    data.write_text("\n".join(lines))
    done = call("check", file)
    assert done.exit_code == 1
    assert "age" in done.output
    assert "row 7" in done.output
    file.write_text(file.read_text().replace('data = "data.csv"', 'data = "../cleveland/data.csv"'))
    done = call("check", file, "--federation", plan_with(tmp_path, "scaffold"))
    assert done.exit_code == 1
    assert "error  the method sends 'control', and [allow] send does not name it" in done.output
    file.write_text(file.read_text().replace('client = "va"', 'client = "nobody"'))
    with pytest.raises(PluresError, match="client 'nobody' is not one of the federation's: cleveland, hungarian"):
        raise call("check", file).exception or AssertionError


def plan_with(folder: Path, method: str) -> Path:
    file = folder / "other.toml"
    file.write_text(heart(method=method).plan)
    return file


def test_every_hospital_of_the_example_may_join(tmp_path: Path) -> None:
    files = write(tmp_path, heart(rounds=7))
    plan = Plan.load(tmp_path / "federation.toml")
    assert (plan.spec.rounds, len(plan.clients), len(files)) == (7, 4, 13 + 4 * 5)
    for client in plan.clients:
        home = tmp_path / "sites" / client
        assert (home / "federation.toml").read_text() == (tmp_path / "federation.toml").read_text()
        own = SiteFile.load(home / "site.toml")
        assert check(plan.table, own.table(home), own.client).ok
    assert SiteFile.load(tmp_path / "sites" / "va" / "site.toml").metadata == {"country": "USA"}


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
    write(tmp_path, blank("study", ["mercy"]))
    done = call("keys", "--folder", keys, "--host", "fed.example.org", "--federation", file)
    assert done.exit_code == 0, done.output
    plan = Plan.load(file)
    assert plan.coordinator == public(keys / "coordinator.pub")
    assert plan.authority == authority_digest(keys / "ca.crt")
    assert f'coordinator = "{plan.coordinator}"' in done.output
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
    home = tmp_path / "sites" / "va"
    secret = home / "state" / "heart" / "ditto+threshold" / "state-00000003.safetensors"
    secret.parent.mkdir(parents=True)
    secret.write_text("personal")
    declined = CliRunner().invoke(app, ["deploy", "leave", str(home / "site.toml")], input="n\n")
    assert (declined.exit_code, secret.exists()) == (1, True)
    done = call("leave", home / "site.toml", "--yes", "--reason", "end of study")
    assert done.exit_code == 0
    assert "deleted 1 files; va has left heart" in done.output
    assert [file.name for file in (home / "state").rglob("*") if file.is_file()] == ["left"]
    assert (home / "data.csv").exists()


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

    site = folder / "sites" / "va"
    assert call("keys", "--folder", folder / "keys", "--host", "localhost").exit_code == 0
    assert call("keys", "--folder", site / "keys", "--client", "va").exit_code == 0
    shutil.copy(folder / "keys" / "ca.crt", site)
    (folder / "run").mkdir()
    try:
        start("superlink", folder / "systemd" / "superlink.service", folder).wait_for("Uvicorn running", 60)
        if shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin"):
            start("proxy", folder / "systemd" / "proxy.service", folder)
            reached = door
        else:
            reached = superlink
        flwr("supernode", "register", str(site / "keys" / "nodes" / "va.pub"), "plures", "--name", "va")
        unit = site / "node.service"
        unit.write_text(unit.read_text().replace(str(door), str(reached)))
        node = start("node", unit, site, "--port", str(runtime))
        node.wait_for("SuperNode ID:", 60)
        assert "online" in flwr("supernode", "list", "plures", "--format", "json")
        variables = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in node.members()]
        assert all(f"{name}={value}".encode() in own for own in variables for name, value in QUIET.items())
        assert all(f"FLWR_HOME={site / 'state' / 'flower'}".encode() in own for own in variables)
    finally:
        for process in reversed(started):
            process.stop()


def test_a_node_without_its_files_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, heart())
    site = tmp_path / "sites" / "va" / "site.toml"
    words = ["node", site, "--superlink", f"{HOST}:8443", "--authority", tmp_path / "ca.crt", "--key", tmp_path / "key"]
    with pytest.raises(
        PluresError, match=r"ca\.crt is missing: `plures deploy keys` makes it, or the coordinator sends"
    ):
        raise call(*words).exception or AssertionError
