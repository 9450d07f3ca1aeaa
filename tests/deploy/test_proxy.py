"""The door of a coordinator: a real nginx lets a node through and refuses every command."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import ECHO, echo
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from plures.deploy.fleet.control import Control
from plures.deploy.fleet.loopback import Fleet, free_port, node_arguments
from plures.deploy.fleet.process import Process, until
from plures.deploy.fleet.programs import QUICK, command
from plures.deploy.proxy import nginx
from plures.errors import PluresError

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@dataclass
class Door:
    """An nginx before the SuperLink of a fleet."""

    fleet: Fleet
    port: int

    def answer(self, path: str, body: bytes = b"") -> int:
        """The status that a raw request gets, its path sent as it stands."""
        return status(self.fleet, self.port, path, body)


def status(fleet: Fleet, port: int, path: str, body: bytes = b"") -> int:
    context = ssl.create_default_context(cafile=str(fleet.keys.authority))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wire,
    ):
        wire.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        response = http.client.HTTPResponse(wire)
        response.begin()
        return response.status


@pytest.fixture(scope="module")
def door(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder, port = tmp_path_factory.mktemp("door"), free_port()
    (folder / "run").mkdir()
    (folder / "keys").symlink_to(fleet.keys.folder)
    (folder / "nginx.conf").write_text(nginx(f"127.0.0.1:{port}", fleet.port))
    words = [str(NGINX), "-p", str(folder), "-c", "nginx.conf"]
    checked = subprocess.run([*words, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    proxy = Process("nginx", [*words, "-g", "daemon off;"], dict(os.environ), folder / "log")
    proxy.start()
    try:
        opened = Door(fleet, port)

        def listens() -> bool:
            try:
                return opened.answer("/") == 403
            except OSError:
                return False

        until(listens, 10, proxy.tail, proxy.require)
        yield opened
    finally:
        proxy.kill()


def test_a_node_works_through_the_door(door: Door, tmp_path: Path) -> None:
    site, keys = tmp_path / "site.toml", door.fleet.keys
    site.write_text("")
    keys.make_node("outside")
    new = door.fleet.control.register(keys.node_public("outside"), "outside")
    arguments = node_arguments(site, f"localhost:{door.port}", free_port(), keys.authority, keys.node("outside"))
    words = [*command("flower-supernode", QUICK), *arguments]
    node = Process("outside", words, door.fleet.environment, tmp_path / "log")
    node.start()
    try:
        node.wait_for("SuperNode ID:", 30)
        (round_,) = echo(door.fleet, tmp_path / "out.json", nodes=5)
    finally:
        node.stop()
    replies = {reply["node"]: reply for reply in round_["replies"]}
    assert len(replies) == 5
    assert (replies[new]["site"], replies[new]["off"]) == (str(site), 0)
    assert f"localhost:{door.port}" in words


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/control/list-runs",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/pull-task-input",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet/./register-node",
        "/v1/fleet//register-node",
        "//v1/control/list-runs",
        "/V1/FLEET/../control/list-runs",
        "/v1/fleet",
    ],
)
def test_every_other_path_is_refused(door: Door, path: str) -> None:
    assert door.answer(path) == 403


def test_commands_that_are_refused_at_the_door_work_on_loopback(door: Door, tmp_path: Path) -> None:
    assert status(door.fleet, door.fleet.port, "/v1/control/list-runs") == 200
    assert status(door.fleet, door.fleet.port, "/v1/fleet/../control/list-runs") != 403
    here = door.fleet.control
    there = Control(f"localhost:{door.port}", door.fleet.keys.authority)
    before = {node.name for node in here.nodes()}
    door.fleet.keys.make_node("intruder")
    key = door.fleet.keys.node_public("intruder")
    with pytest.raises(PluresError, match=f"SuperLink localhost:{door.port}: 403"):
        there.register(key, "intruder")
    with pytest.raises(PluresError, match="403"):
        there.start(ECHO, {"out": str(tmp_path / "never.json")})
    with pytest.raises(PluresError, match="403"):
        there.nodes()
    assert {node.name for node in here.nodes()} == before
    assert here.register(key, "intruder") in {node.id for node in here.nodes()}


def test_the_door_takes_the_largest_piece_that_flower_sends_and_nothing_huge(door: Door) -> None:
    assert door.answer("/v1/fleet/push-object", b"x" * 6_000_000) not in (403, 413)
    assert door.answer("/v1/control/list-runs", b"x" * 100) == 403
