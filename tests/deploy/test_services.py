"""The service files of `plures deploy init` are installed unchanged; systemd, nft and logrotate read them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plures.cli import app
from plures.deploy import services
from plures.deploy.project import heart, write
from plures.deploy.services import COORDINATOR, service
from plures.errors import PluresError

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
ODD = 'a fed 100% "x"$HOME'


def command(name: str) -> str:
    found = shutil.which(name, path=PATH)
    return found or pytest.skip(f"{name} is not installed")


def units(folder: Path) -> list[Path]:
    """The coordinator's units in a folder, and the unit of a member in the same folder."""
    own = folder / "node.service"
    own.write_text(service("node.service", folder, app="va", title="heart", port=9094, client="va"))
    return [own, *(folder / "systemd" / name for name in COORDINATOR if name.endswith(".service"))]


@pytest.mark.parametrize("name", ["heart", ODD])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path, name):
    analyze = command("systemd-analyze")
    folder = tmp_path / name
    write(folder, heart())
    for unit in units(folder):
        file = tmp_path / f"heart-{unit.name.replace('@', '@ditto')}"
        file.write_text(unit.read_text().replace("/usr/sbin/nft", "/bin/true").replace("/usr/sbin/nginx", "/bin/true"))
        done = subprocess.run([analyze, "verify", file], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_units_name_the_user_the_folder_and_the_plures_that_wrote_them(tmp_path, monkeypatch):
    monkeypatch.setattr(services.os, "geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr(services.getpass, "getuser", lambda: "anna")
    write(tmp_path / "fed", heart())
    for unit in units(tmp_path / "fed"):
        lines = unit.read_text().splitlines()
        assert "User=anna" in lines
        assert f"WorkingDirectory={tmp_path / 'fed'}" in lines
        assert f'ReadWritePaths="{tmp_path / "fed"}"' in lines
        assert {"UMask=0077", "ProtectSystem=strict", "NoNewPrivileges=true", "WantedBy=multi-user.target"} <= set(
            lines
        )
    own = Path(sys.executable).with_name("plures")
    text = (tmp_path / "fed" / "systemd" / "superlink.service").read_text()
    assert f'ExecStart="{own}" deploy superlink --port 8000\n' in text
    assert 'meta skuid != { 0, "anna" }' in (tmp_path / "fed" / "systemd" / "guard.nft").read_text()
    assert "su anna anna" in (tmp_path / "fed" / "systemd" / "logrotate.conf").read_text()


def test_root_writes_services_for_a_user_who_is_not_root_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(services.os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(services.getpass, "getuser", lambda: "root")
    folder = tmp_path / "a fed"
    done = CliRunner().invoke(app, ["deploy", "init", str(folder)])
    assert f"`chown -R plures: '{folder}'`" in done.output
    assert all("User=plures\n" in unit.read_text() for unit in units(folder))
    monkeypatch.setattr(services.os, "geteuid", lambda: 1000, raising=False)
    assert "chown" not in CliRunner().invoke(app, ["deploy", "init", str(tmp_path / "other")]).output


def test_a_coordinator_that_is_a_member_too_shares_nothing_between_the_two(tmp_path):
    """Names of services, rules and ports are different, and so are the folders that each may write to."""
    home, site = tmp_path / "heart", tmp_path / "heart-va"
    write(home, heart("localhost"))
    for file in ("node.service", "guard.nft"):
        own = service(file, site, app="plures-heart-va", title="heart", port=9094, client="va")
        (site / file).parent.mkdir(exist_ok=True)
        (site / file).write_text(own)
    server = (home / "systemd" / "superlink.service").read_text()
    node = (site / "node.service").read_text()
    rules = [re.search(r"nft -f (\S+)", text)[1] for text in (server, node)]
    assert rules == ["/etc/plures/heart-superlink.nft", "/etc/plures/plures-heart-va.nft"]
    tables = [(home / "systemd" / "guard.nft").read_text(), (site / "guard.nft").read_text()]
    assert [re.findall(r"dport (\d+)", text) for text in tables] == [["8000"], ["9094"]]
    assert [re.findall(r"ReadWritePaths=(.*)", text) for text in (server, node)] == [[f'"{home}"'], [f'"{site}"']]


def test_a_folder_whose_name_no_unit_can_hold_is_refused(tmp_path):
    with pytest.raises(PluresError, match="control character, which a service file cannot hold"):
        service("superlink.service", tmp_path / "a\nUser=root", app="x", title="x", port=1)


def test_nobody_else_on_the_machine_reaches_the_port(tmp_path):
    """In a network of its own, with the rule unchanged: its user and root get in, another user does not."""
    nft = command("nft")
    if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("needs to be root and to have a network of its own")
    write(tmp_path, heart())
    rules = tmp_path / "guard.nft"
    rules.write_text((tmp_path / "systemd" / "guard.nft").read_text().replace('"plures"', '"nobody"'))
    script = tmp_path / "reach.py"
    script.write_text(
        "import fcntl, os, pwd, socket, struct, subprocess, sys\n"
        "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 0x41))\n"
        "subprocess.run(sys.argv[1:3] + [sys.argv[3]], check=True)\n"
        "server = socket.create_server(('127.0.0.1', 8000))\n"
        "for user in ('nobody', 'root', 'daemon'):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.setuid(pwd.getpwnam(user).pw_uid)\n"
        "        try:\n"
        "            socket.socket().connect(('127.0.0.1', 8000))\n"
        "            print(user, 'in', flush=True)\n"
        "        except OSError:\n"
        "            print(user, 'out', flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    words = ["unshare", "-n", sys.executable, str(script), nft, "-f", str(rules)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["nobody in", "root in", "daemon out"]


def test_logs_are_put_aside_and_the_log_of_a_run_stays_readable(tmp_path):
    rotate = command("logrotate")
    folder = tmp_path / "a fed"
    write(folder, heart())
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    text = (folder / "systemd" / "logrotate.conf").read_text()
    config = tmp_path / "logrotate.conf"
    config.write_text(text.replace("su plures plures", f"su {user} {user}").replace("0600 plures plures", "0600"))
    config.chmod(0o644)
    (folder / "results" / "ditto").mkdir(parents=True)
    log = folder / "results" / "ditto" / "log.jsonl"
    log.write_bytes(b'{"event": "round", "round": 1}\n' + b" " * 21_000_000)
    done = subprocess.run([rotate, "-s", tmp_path / "state", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in log.parent.iterdir()] == ["log.jsonl.1"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to be root")
@pytest.mark.parametrize(
    "words",
    [
        ["keys", "--host", "localhost", "--folder", "FED/keys"],
        ["keys", "--client", "va", "--folder", "FED/new/keys"],
        ["add", "va", "va.pub", "--folder", "FED"],
        ["join", "federation.toml", "ca.crt", "--client", "va", "--folder", "FED/site"],
        ["run", "FED"],
        ["stop", "FED"],
        ["remove", "va", "--folder", "FED", "--yes"],
        ["rotate", "--coordinator", "--folder", "FED"],
        ["superlink", "--keys", "FED/keys"],
    ],
)
def test_root_makes_nothing_in_the_folder_of_a_service_that_could_not_read_it(tmp_path, words):
    folder = tmp_path / "fed"
    write(folder, heart())
    for file in (folder, *folder.rglob("*")):
        os.chown(file, 65534, 65534)
    done = CliRunner().invoke(app, ["deploy", *(word.replace("FED", str(folder)) for word in words)])
    assert re.search(
        r"fed(/keys)? belongs to nobody, whose services cannot read files that root makes", str(done.exception)
    )
    assert all(file.stat().st_uid == 65534 for file in folder.rglob("*"))
    assert CliRunner().invoke(app, ["deploy", "status", str(folder)]).exit_code == 0
