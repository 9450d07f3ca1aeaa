"""Real Flower processes on loopback: what reaches them, what kills them, and what remains of them."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from fleet import LATE, echo, fenced, tried

from plures.deploy.fleet.forks import POSSIBLE
from plures.deploy.fleet.loopback import JOIN, ONLINE, READY, Fleet
from plures.deploy.fleet.process import QUIET, Process, lives, marked, quiet_environment, until
from plures.deploy.fleet.programs import STARTER
from plures.deploy.fleet.relay import HOST
from plures.deploy.keys import Keyring
from plures.errors import PluresError


def sites(replies: list[dict[str, object]]) -> list[str]:
    return sorted(str(reply["site"]) for reply in replies)


def everyone(fleet: Fleet) -> list[str]:
    return sorted(str(file) for file in fleet.sites.values())


def test_every_site_answers_once_and_calls_nobody_else(fleet: Fleet, tmp_path: Path) -> None:
    rounds = echo(fleet, tmp_path / "out.json", rounds=2)
    assert [sites(one["replies"]) for one in rounds] == [everyone(fleet)] * 2
    for reply in rounds[0]["replies"] + rounds[1]["replies"]:
        assert reply["off"] == 0
        assert {key: reply[key] for key in QUIET} == QUIET
        assert reply["OMP_NUM_THREADS"] == "1"
        assert reply["FLWR_HOME"] == str(fleet.folder / "flower")
    assert tried(fleet.folder) == []


def test_the_fence_sees_a_call_home(tmp_path: Path) -> None:
    words = "from flwr.supercore.telemetry import *; event(EventType.PING).result()"
    outside = {**quiet_environment(tmp_path / "home"), **fenced(tmp_path), "FLWR_TELEMETRY_ENABLED": "1"}
    subprocess.run([sys.executable, "-c", words], env=outside, check=False, capture_output=True)
    assert any("telemetry.flower.ai" in line for line in tried(tmp_path))
    subprocess.run(
        [sys.executable, "-c", words], env={**outside, **QUIET, "FENCE": str(tmp_path / "quiet")}, check=False
    )
    assert not (tmp_path / "quiet").exists()


def test_a_node_whose_handshake_breaks_off_ends_and_comes_back(fleet: Fleet, tmp_path: Path) -> None:
    """As behind a reverse proxy whose SuperLink is down: a connection is accepted and closed."""
    relay, node, child = fleet.relays["va"], fleet.nodes["va"], fleet.nodes["va"].child
    assert child is not None

    class Closes(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)

    with ThreadingTCPServer(("127.0.0.1", 0), Closes) as door:
        threading.Thread(target=door.serve_forever, args=(0.05,), daemon=True).start()
        right, relay.target = relay.target, door.server_address[1]
        try:
            relay.drop()
            until(lambda: child.poll() is not None, LATE, node.tail)
        finally:
            relay.target = right
            door.shutdown()
    assert child.returncode == 1
    until(lambda: node.alive and all(words in node.output() for words in (ONLINE, READY)), JOIN, node.tail)
    (round_,) = echo(fleet, tmp_path / "out.json")
    assert sites(round_["replies"]) == everyone(fleet)


def test_a_guarded_node_runs_no_code_that_is_sent_to_it(fleet: Fleet, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('client = "careful"')
    careful = Fleet(tmp_path / "own", {"careful": site}, quick=True)
    careful.keys.make_node("careful")
    words = [
        word.replace(str(careful.port), str(fleet.port)).replace(str(careful.keys.authority), str(fleet.keys.authority))
        for word in careful.nodes["careful"].command
    ]
    node = Process("careful", words, careful.environment, tmp_path / "log")
    new = fleet.control.register(careful.keys.node_public("careful"), "careful")
    node.start()
    try:
        for said in (ONLINE, READY):
            node.wait_for(said, JOIN)
        (round_,) = echo(fleet, tmp_path / "out.json", node, nodes=5)
    finally:
        node.stop()
    told = {reply["node"]: reply for reply in round_["replies"]}
    assert "what arrived is not a message of plures" in told.pop(new)["error"]
    assert not site.with_name("ran").exists()
    assert not list((tmp_path / "own" / "flower").rglob("echo.py"))
    assert sites(list(told.values())) == everyone(fleet)
    assert all(file.with_name("ran").exists() for file in fleet.sites.values())
    assert list((fleet.folder / "flower").rglob("echo.py"))


def test_a_node_without_a_registered_key_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    stranger = Fleet(tmp_path, {"stranger": tmp_path / "site.toml"})
    stranger.keys.make_node("stranger")
    command = stranger.nodes["stranger"].command
    for old, new in ((stranger.port, fleet.port), (stranger.keys.authority, fleet.keys.authority)):
        command = [word.replace(str(old), str(new)) for word in command]
    node = Process("stranger", command, stranger.environment, tmp_path / "log")
    node.start()
    try:
        with pytest.raises(PluresError, match=r"stranger has ended \(exit code 1\)[\s\S]*Failed to activate SuperNode"):
            node.wait_for("SuperNode ID:", LATE)
    finally:
        node.kill()
    assert "stranger" not in {known.name for known in fleet.control.nodes()}


def test_a_process_that_ends_tells_why(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "print('no port', flush=True); raise SystemExit(3)"]
    process = Process("superlink", words, quiet_environment(tmp_path), tmp_path / "logs" / "superlink.log")
    process.start()
    with pytest.raises(PluresError, match=r"superlink has ended \(exit code 3\).*superlink\.log:\nno port"):
        process.wait_for("ready", LATE)
    process.start()
    process.wait_for("no port", LATE)
    process.kill()
    process.revive()
    assert not process.alive


def test_what_a_killed_owner_left_is_ended_before_a_new_start(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
    first, second = (Process("one", words, quiet_environment(tmp_path), tmp_path / "log") for _ in range(2))
    first.start()
    first.wait_for("here", LATE)
    second.start()
    try:
        assert first.child is not None
        assert first.child.wait(10) == -signal.SIGKILL
        assert second.alive
    finally:
        second.kill()


def test_a_child_without_its_environment_ends_with_its_parent(tmp_path: Path) -> None:
    """nginx overwrites its environment, so once the shell that started it has ended nothing else tells whose it is."""
    words = ["/bin/sh", "-c", "env -i sleep 60 & echo $!; echo here; wait"]
    shell = Process("shell", words, quiet_environment(tmp_path), tmp_path / "log")
    shell.start()
    shell.wait_for("here", LATE)
    child = int(shell.output().split()[0])
    shell.stop()
    assert not lives(child)


def test_a_superlink_ends_in_time_whoever_is_connected(tmp_path: Path) -> None:
    """A request with an incomplete body used to keep it alive forever; a run has its own process, which ends too."""
    alone = Fleet(tmp_path, {})
    alone.make_keys()
    context = ssl.create_default_context(cafile=str(alone.keys.authority))
    head = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf"
    try:
        for signals in (1, 2):
            alone.start_superlink()
            family = alone.superlink.members()
            assert len(family) > 1
            child = alone.superlink.child
            assert child is not None
            with (
                socket.create_connection((HOST, alone.port), timeout=30) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as wire,
            ):
                wire.sendall(head)
                begin = time.monotonic()
                for _ in range(signals):
                    time.sleep(0.5)
                    child.terminate()
                assert child.wait(10) == -signal.SIGTERM
                assert time.monotonic() - begin < (10 if signals == 1 else 3)
            until(lambda: not any(lives(pid) for pid in family), LATE, "what it started goes on")  # noqa: B023
    finally:
        alone.superlink.kill()


def test_a_node_ends_in_time_and_comes_back(fleet: Fleet, tmp_path: Path) -> None:
    node = fleet.nodes["va"]
    child, family, begin = node.child, node.members(), time.monotonic()
    assert child is not None
    child.terminate()
    assert child.wait(10) == 0
    until(lambda: not any(lives(pid) for pid in family), 10, "what it started goes on")
    assert time.monotonic() - begin < 10
    until(lambda: node.alive and all(words in node.output() for words in (ONLINE, READY)), JOIN, node.tail)
    (round_,) = echo(fleet, tmp_path / "out.json")
    assert sites(round_["replies"]) == everyone(fleet)


def test_what_starts_tasks_is_started_again(fleet: Fleet, tmp_path: Path) -> None:
    """Flower does not supervise it: the node would stay online and never answer again."""
    for process in (fleet.nodes["cleveland"], fleet.superlink):
        (starter,) = process.members(STARTER)
        os.kill(starter, signal.SIGKILL)
        until(lambda: starter not in process.members(STARTER) and process.members(STARTER), LATE, process.tail)  # noqa: B023
    (round_,) = echo(fleet, tmp_path / "out.json")
    assert sites(round_["replies"]) == everyone(fleet)


def test_tasks_are_forked_and_leave_nothing_for_the_next(fleet: Fleet, tmp_path: Path) -> None:
    rounds = echo(fleet, tmp_path / "out.json", rounds=3)
    told: dict[str, list[dict[str, object]]] = {}
    for one in rounds:
        for reply in one["replies"]:
            told.setdefault(reply["site"], []).append(reply)
    for client, node in fleet.nodes.items():
        (starter,) = node.members(STARTER)
        replies = told[str(fleet.sites[client])]
        assert [reply["parent"] for reply in replies] == [starter] * 3
        assert len({reply["process"] for reply in replies}) == 3
        assert [reply["before"] for reply in replies] == [0] * 3
        assert all(reply["loaded"] for reply in replies)
        threads = len(list(Path(f"/proc/{starter}/task").iterdir()))
        assert threads == 2, "but the watch over its parent, what is forked has no thread that could hold a lock"


def test_what_is_written_is_its_users_alone(fleet: Fleet, tmp_path: Path) -> None:
    echo(fleet, tmp_path / "out.json")
    private = ("superlink.db", "logs", "wire", "flower", "keys/nodes")
    found = [path for name in private for path in (fleet.folder / name, *(fleet.folder / name).rglob("*"))]
    open_ = {str(path.relative_to(fleet.folder)) for path in found if path.stat().st_mode & 0o077}
    assert len(found) > 20
    assert {stat.S_IMODE(file.with_name("ran").stat().st_mode) for file in fleet.sites.values()} == {0o600}
    assert {name for name in open_ if not name.endswith(".pub")} <= {"wire", "flower/config.toml"}


def test_commands_write_for_their_user_alone_whatever_the_shell_lets_others_read(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "plures.cli", "deploy", "keys", "--client", "mercy"]
    subprocess.run(words, cwd=tmp_path, umask=0, check=True, capture_output=True)
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys", *tmp_path.rglob("keys/*"))}
    assert made == {"keys": 0o700, "nodes": 0o700}
    assert stat.S_IMODE((tmp_path / "keys" / "nodes" / "mercy").stat().st_mode) == 0o600


def test_a_folder_belongs_to_one_fleet(tmp_path: Path) -> None:
    first, second = Fleet(tmp_path, {}), Fleet(tmp_path, {})
    with first.lock, pytest.raises(PluresError, match=f"another fleet runs in {tmp_path}: stop it"):
        second.start()


INTERRUPTED = """
import signal, sys, time
from pathlib import Path
from plures.deploy.fleet.loopback import Fleet
folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with Fleet(folder, {"one": folder / "site.toml"}, quick=sys.argv[2] == "quick") as fleet:
    others = [fleet.forks.process] if fleet.forks.process.alive else []
    print(*[process.mark for process in (fleet.superlink, *fleet.nodes.values(), *others)], flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("manner", "many"), [("usual", 2), ("quick", 2 + POSSIBLE)])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, manner: str, many: int) -> None:
    words = [sys.executable, "-c", INTERRUPTED, str(tmp_path), manner]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        marks = child.stdout.readline().split()
        assert [bool(marked(mark)) for mark in marks] == [True] * many
        child.send_signal(signal.SIGINT)
        assert child.wait(20) != 0
    assert [marked(mark) for mark in marks] == [set()] * many


@pytest.mark.skipif(not POSSIBLE, reason="this system has no forks")
def test_a_killed_owner_of_forks_leaves_nothing_behind(tmp_path: Path) -> None:
    words = [sys.executable, "-c", INTERRUPTED, str(tmp_path), "quick"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        marks = child.stdout.readline().split()
        child.kill()
    until(lambda: not any(marked(mark) for mark in marks), LATE, "what was forked goes on")


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    keys = Keyring(tmp_path / "keys")
    keys.make_server(["fed.example.org", "10.0.0.7"])
    keys.make_node("mercy")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in sorted((tmp_path / "keys").rglob("*.*"))}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "mercy.pub": 0o644, "server.crt": 0o644, "server.key": 0o600}
    assert stat.S_IMODE(keys.node("mercy").stat().st_mode) == 0o600
    assert keys.node("mercy").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert keys.node_public("mercy").read_text().startswith("ecdsa-sha2-nistp384 ")
    before = {file: file.read_bytes() for file in keys.folder.rglob("*") if file.is_file()}
    for make in (keys.make_server, keys.make_authority, lambda: keys.make_node("mercy")):
        with pytest.raises(PluresError, match="exists and is never overwritten"):
            make()
    assert before == {file: file.read_bytes() for file in keys.folder.rglob("*") if file.is_file()}
    keys.server.unlink()
    keys.server_key.unlink()
    keys.make_server()
    assert keys.authority.read_bytes() == before[keys.authority]
    for name in ("../mercy", "..", ".", "-x"):
        keys.make_node(name)
        assert keys.node(name).parent == keys.folder / "nodes"
    with pytest.raises(PluresError, match="client"):
        keys.make_node("")
    assert {file.relative_to(keys.folder).parts[0] for file in keys.folder.rglob("*")} == {
        *("nodes", "ca.crt", "ca.key", "server.crt", "server.key"),
    }


def test_the_certificate_names_its_hosts(tmp_path: Path) -> None:
    from cryptography import x509

    keys = Keyring(tmp_path)
    keys.make_server(["fed.example.org", "10.0.0.7"])
    certificate = x509.load_pem_x509_certificate(keys.server.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "fed.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.0.0.7"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(keys.authority.read_bytes()))
    with pytest.raises(PluresError, match=r"host 'kö\.example': "):
        Keyring(tmp_path / "other").make_server(["kö.example"])
    (tmp_path / "ca.key").unlink()
    keys.server.rename(tmp_path / "old.crt")
    keys.server_key.rename(tmp_path / "old.key")
    with pytest.raises(PluresError, match=r"cannot sign a server certificate.*put ca.crt and ca.key back"):
        keys.make_server()
