"""What `plures deploy init --containers` writes: read, walked through without Docker, and built and run with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.deploy.conduct import RESULT
from plures.deploy.containers import text
from plures.deploy.plan import Plan, SiteFile
from plures.tables.heart import heart_tables

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
HOSPITALS = sorted(heart_tables())
SHIM = """\
#!{python} -S
import sys
from multiprocessing.connection import Client
with Client({address!r}) as asked:
    asked.send(sys.argv[1:])
    code, output = asked.recv()
print(output, end="")
sys.exit(code)
"""


def made(folder: Path, *words: str) -> dict[str, Any]:
    """Write a folder; returns its compose file, with doubled dollar signs undone."""
    done = CliRunner().invoke(app, ["deploy", "init", str(folder), "--containers", *words], catch_exceptions=False)
    assert done.exit_code == 0
    content = (folder / "containers" / "compose.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(content.replace("$$", "$")))


@pytest.mark.parametrize("name", ["heart", 'a fed $HOME "x"'])
def test_nothing_runs_as_root_and_nothing_secret_is_in_the_image(tmp_path, name):
    folder = tmp_path / name
    told = made(folder, "--example", "heart")
    services = told["services"]
    assert sorted(services) == sorted([*HOSPITALS, "superlink", "door", "operator"])
    for own in services.values():
        number, _, group = own["user"].partition(":")
        assert int(number) > 0
        assert int(group) > 0
        assert (own["read_only"], own["cap_drop"]) == (True, ["ALL"])
        assert "no-new-privileges:true" in own["security_opt"]
        assert [volume["source"] for volume in own["volumes"]] == [own["working_dir"]]
    assert services["superlink"]["working_dir"] == str(folder)
    assert {client: services[client]["working_dir"] for client in HOSPITALS} == {
        client: str(folder / "sites" / client) for client in HOSPITALS
    }
    published = {name: own["ports"] for name, own in services.items() if "ports" in own}
    assert published == {"superlink": ["8443:8443"]}
    assert {services[name]["network_mode"] for name in ("door", "operator")} == {"service:superlink"}
    image = (folder / "containers" / "Containerfile").read_text()
    copied = [line for line in image.splitlines() if line.startswith(("COPY", "ADD"))]
    assert copied == ["COPY wheels/ /wheels/"]
    assert (folder / "containers" / ".dockerignore").read_text().split("\n")[1:3] == ["*", "!wheels"]
    assert "USER 10001:10001" in image
    assert f"plures[flower]=={plures.__version__}" in image


def test_a_federation_of_ones_own_has_the_coordinators_containers_alone(tmp_path):
    told = made(tmp_path / "study", "--client", "mercy", "--host", "fed.example.org")
    assert sorted(told["services"]) == ["door", "operator", "superlink"]
    assert not (tmp_path / "study" / "containers" / "up.sh").exists()
    assert Plan.load(tmp_path / "study" / "federation.toml").superlink == "fed.example.org:8443"


def test_a_dollar_is_no_variable_of_the_compose_file():
    assert yaml.safe_load(text('a "$HOME" \\ b')) == 'a "$$HOME" \\ b'


def test_the_script_goes_every_step_of_the_written_instructions(tmp_path):
    """With a stand-in for Docker, which runs each container's command of plures here, in the container's folder."""
    folder = tmp_path / "a fed"
    services = made(folder, "--example", "heart")["services"]
    address, walked = str(tmp_path / "docker.sock"), []

    def docker(words: list[str]) -> tuple[int, str]:
        assert words[:3] == ["compose", "-f", "containers/compose.yaml"]
        what, rest = words[3], words[4:]
        walked.append(" ".join([what, *rest]))
        if what != "run":
            return 0, ""
        assert rest[:3] == ["--rm", "-T", "--no-deps"]
        service, command = rest[3], rest[4:]
        if command[0] in ("run", "status"):
            return 0, ""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(services[service]["working_dir"])
            patch.setattr(os, "geteuid", lambda: int(services[service]["user"].partition(":")[0]))
            done = CliRunner().invoke(app, ["deploy", *command])
        return done.exit_code if not done.exception else 1, done.output + str(done.exception or "")

    def serve(listener: Listener) -> None:
        while True:
            with listener.accept() as asked:
                words = asked.recv()
                if words is None:
                    return
                asked.send(docker(words))

    shim = tmp_path / "bin" / "docker"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=sys.executable, address=address))
    shim.chmod(0o755)
    with Listener(address) as listener:
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        environment = os.environ | {"PATH": f"{shim.parent}:{os.environ['PATH']}"}
        for _ in range(2):  # a second time, as after an error in the middle
            words = ["sh", str(folder / "containers" / "up.sh")]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    plan = Plan.load(folder / "federation.toml")
    assert sorted(plan.members) == HOSPITALS
    assert plan.superlink == "superlink:8443"
    for client in HOSPITALS:
        own = SiteFile.load(folder / "sites" / client / "site.toml")
        assert (own.client, own.data) == (client, "data.csv")
        assert Plan.load(folder / "sites" / client / "agreed" / "federation.toml") == plan
    assert walked[0] == "build superlink"
    assert walked[-3:] == [
        "up -d --wait",
        "run --rm -T --no-deps operator run --out results/first",
        "run --rm -T --no-deps operator status --out results/first",
    ]


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0
    or subprocess.run(["docker", "info"], capture_output=True).returncode != 0,
    reason="there is no Docker with compose that runs",
)
def test_four_hospitals_in_containers(tmp_path):
    """The image is built from this very plures, and the whole example runs to its end."""
    folder = tmp_path / "heart"
    made(folder, "--example", "heart")
    wheels = folder / "containers" / "wheels"
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", wheels, ROOT], check=True)
    file = folder / "federation.toml"
    file.write_text(file.read_text().replace("rounds = 20", "rounds = 3"))
    compose = ["docker", "compose", "-f", str(folder / "containers" / "compose.yaml")]
    try:
        subprocess.run(["sh", folder / "containers" / "up.sh"], check=True, timeout=1800)
        assert (folder / "results" / "first" / RESULT).exists()
        told = subprocess.run([*compose, "exec", "superlink", "id", "-u"], capture_output=True, text=True, check=True)
        assert int(told.stdout) > 0
    finally:
        subprocess.run([*compose, "down", "--timeout", "30"], check=False)
