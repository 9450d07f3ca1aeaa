"""A coordinator's reverse proxy: a real nginx lets a node through and refuses every command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from doors import NGINX, Door, opened
from fleet import ECHO, echo
from flwr.proto.message_pb2 import PushObjectRequest

from plures.deploy.fleet.control import Control
from plures.deploy.fleet.loopback import JOIN, ONLINE, READY, Fleet, free_port, node_arguments
from plures.deploy.fleet.process import Process
from plures.deploy.fleet.programs import QUICK, command
from plures.errors import PluresError

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@dataclass
class Before:
    """The reverse proxy in front of a fleet's SuperLink."""

    fleet: Fleet
    door: Door

    @property
    def port(self) -> int:
        return self.door.port

    def answer(self, path: str, body: bytes = b"") -> int:
        """The status that a raw request gets at the proxy."""
        return self.door.answer(path, body)

    def inside(self, path: str) -> int:
        """The same request at the SuperLink itself."""
        return replace(self.door, port=self.fleet.port).answer(path)


@pytest.fixture(scope="module")
def door(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Before]:
    with opened(tmp_path_factory.mktemp("door") / "opened", fleet.keys, fleet.port) as door:
        yield Before(fleet, door)


def test_a_node_works_through_the_door(door: Before, tmp_path: Path) -> None:
    site, keys = tmp_path / "site.toml", door.fleet.keys
    site.write_text("")
    keys.make_node("outside")
    new = door.fleet.control.register(keys.node_public("outside"), "outside")
    arguments = node_arguments(site, f"localhost:{door.port}", free_port(), keys.authority, keys.node("outside"))
    words = [*command("flower-supernode", QUICK), *arguments]
    node = Process("outside", words, door.fleet.environment, tmp_path / "log")
    node.start()
    try:
        for said in (ONLINE, READY):
            node.wait_for(said, JOIN)
        (round_,) = echo(door.fleet, tmp_path / "out.json", node, door.door.proxy, nodes=5)
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
        "/v1/fleet/",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/pull-messages%2f..%2f..%2fcontrol/list-runs",
        "/v1/fleet/something-new",
    ],
)
def test_every_other_path_is_refused(door: Before, path: str) -> None:
    assert door.answer(path) == 403


def test_commands_that_are_refused_at_the_door_work_on_loopback(door: Before, tmp_path: Path) -> None:
    assert door.inside("/v1/control/list-runs") == 200
    assert door.inside("/v1/fleet/../control/list-runs") != 403
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


def test_a_made_up_signature_is_refused_by_the_superlink(door: Before) -> None:
    assert door.answer("/v1/fleet/push-object", b"x" * 5_243_000) in (400, 401)
    assert door.answer("/v1/fleet/pull-messages") == 401


def test_bodies_of_strangers_cost_the_superlink_little(door: Before) -> None:
    """It keeps a body more than once before it checks who signed it, so bodies are small, and few at once."""
    body = PushObjectRequest(object_content=b"x" * 5_242_880).SerializeToString()
    child = door.fleet.superlink.child
    assert child is not None
    before = memory(child.pid, "VmRSS")
    Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # reset its peak memory
    with ThreadPoolExecutor(24) as pool:
        answers = Counter(pool.map(lambda _: door.answer("/v1/fleet/push-object", body), range(48)))
    grown = memory(child.pid, "VmHWM") - before
    print(f"{dict(answers)}, {grown / 1e6:.0f} MB more than {before / 1e6:.0f} MB")
    assert set(answers) <= {401, 502}
    assert answers[401] >= 16
    assert grown < 400e6


def memory(pid: int, what: str) -> int:
    """Memory of a process in bytes, by Linux's name for it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))
