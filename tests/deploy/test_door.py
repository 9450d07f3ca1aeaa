"""What the reverse proxy lets through and cuts off under load: a real nginx in front of a server that counts."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from doors import NGINX, SIGNED, Door, head, opened, status

from plures.deploy.fleet.process import until
from plures.deploy.keys import Keyring
from plures.deploy.proxy import ASKED

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

PATIENCE = 1.0
PIECE = 5 * 1024 * 1024
"""Bytes of an array in one piece of Flower's."""
PUSH, PULL = "/v1/fleet/push-object", "/v1/fleet/pull-messages"


@dataclass
class Seen:
    """Requests that reached the server behind the proxy: path and bytes of each, and how many were open at once."""

    requests: list[tuple[str, int]] = field(default_factory=list)
    now: int = 0
    most: int = 0
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, path: str, size: int) -> None:
        with self.lock:
            self.requests.append((path, size))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    ring = Keyring(tmp_path_factory.mktemp("keys"))
    ring.make_server()
    return ring


@pytest.fixture(scope="module")
def listening(keys: Keyring) -> Iterator[tuple[Seen, int]]:
    """A server instead of the SuperLink, and its port."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.take(self.path, len(body))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.server, keys.server_key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield seen, server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def door(keys: Keyring, listening: tuple[Seen, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(tmp_path_factory.mktemp("door"), keys, listening[1], PATIENCE) as door:
        yield door


@pytest.fixture
def seen(listening: tuple[Seen, int]) -> Seen:
    found = listening[0]
    found.requests.clear()
    found.most, found.seconds = 0, 0.0
    return found


def closed(wire: socket.socket, seconds: float) -> bool:
    """Whether the proxy ends a connection within some seconds, with or without an answer."""
    wire.settimeout(seconds)
    try:
        while wire.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_what_nodes_ask_for_passes_as_it_stands(door: Door, seen: Seen) -> None:
    assert [door.answer(f"/v1/fleet/{name}", b"x" * 300) for name in ASKED] == [200] * len(ASKED)
    assert door.answer(PUSH, b"x" * (PIECE + 500)) == 200
    assert seen.requests == [*((f"/v1/fleet/{name}", 300) for name in ASKED), (PUSH, PIECE + 500)]


def test_large_bodies_are_refused_and_never_reach_the_superlink(door: Door, seen: Seen) -> None:
    huge = 60_000_000

    def send(number: int) -> int:
        with door.connect() as wire:
            wire.sendall(head(PUSH if number % 2 else PULL, huge) + b"x" * 1_000_000)
            return status(wire)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == [413] * 8
    assert door.answer(PULL, b"x" * 70_000) == 413
    assert door.answer(PUSH, b"x" * 5_400_000) == 413
    assert seen.requests == []


def test_a_body_without_a_length_is_measured_too(door: Door, seen: Seen) -> None:
    with door.connect() as wire:
        start = head(PULL, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        wire.sendall(start + b"".join(b"4000\r\n" + b"x" * 0x4000 + b"\r\n" for _ in range(5)))
        assert status(wire) == 413
    assert seen.requests == []


@pytest.mark.parametrize("missing", SIGNED)
def test_who_does_not_even_claim_a_key_is_refused_before_the_body(door: Door, seen: Seen, missing: str) -> None:
    without = {name: value for name, value in SIGNED.items() if name != missing}
    for headers in (without, without | {missing: ""}, without | {missing: "{}"}):
        with door.connect() as wire:
            wire.sendall(head(PUSH, 5_000_000, headers))  # and nothing of the body
            assert status(wire) == 401
    assert seen.requests == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
def test_nodes_only_post(door: Door, seen: Seen, method: str) -> None:
    assert door.answer(PULL, method=method) == 405
    assert door.answer(PUSH, method=method) == 405
    assert seen.requests == []


def test_long_headers_are_refused(door: Door, seen: Seen) -> None:
    assert door.answer(PULL, headers=SIGNED | {"X-Long": "x" * 5000}) == 400
    assert door.answer(PULL, headers=SIGNED | {f"X-{i}": "x" * 1000 for i in range(30)}) == 400
    assert door.answer(PULL + "?" + "x" * 5000) == 414
    assert seen.requests == []


def test_half_open_connections_are_cut_off_and_keep_nobody_out(door: Door, seen: Seen) -> None:
    """300 silent connections, 100 after their handshake, and 100 that stop within their headers."""
    silent = [socket.create_connection(("127.0.0.1", door.port), timeout=10) for _ in range(300)]
    greeted = [door.connect() for _ in range(100)]
    begun = [door.connect() for _ in range(100)]
    for wire in begun:
        wire.sendall(head(PULL, 10)[:60])
    assert door.answer(PULL, b"x" * 10) == 200
    assert all(closed(wire, 60) for wire in (*silent, *greeted, *begun))
    assert seen.requests == [(PULL, 10)]


def test_slow_headers_and_bodies_are_cut_off_and_never_reach_the_superlink(door: Door, seen: Seen) -> None:
    drip = door.connect()
    for letter in head(PULL, 10) * 20:  # each in time, all together not
        if closed(drip, PATIENCE / 5):
            break
        drip.sendall(bytes([letter]))
    else:
        pytest.fail("it may go on for ever")
    half = door.connect()
    half.sendall(head(PUSH, 1_000_000) + b"x" * 1000)
    assert closed(half, 60)
    assert seen.requests == []


def test_too_many_from_one_address_are_turned_away_for_a_while(
    keys: Keyring, listening: tuple[Seen, int], seen: Seen, tmp_path: Path
) -> None:
    with opened(tmp_path, keys, listening[1], nodes=2, patience=5.0) as door:
        held = [door.connect() for _ in range(8)]
        for wire in held:
            wire.sendall(head(PULL, 10))  # its headers are there, its body is not
        time.sleep(0.3)
        assert door.answer(PULL, b"x" * 10) == 503
        for wire in held:
            wire.sendall(b"x" * 10)
            assert status(wire) == 200
            wire.close()
        until(lambda: door.answer(PULL, b"x" * 10) == 200, 60, "nobody is let in again")
        with ThreadPoolExecutor(4) as pool:
            begin = time.monotonic()
            answers = list(pool.map(lambda _: door.answer(PULL, b"x"), range(45)))
        assert answers == [200] * 45  # more than its burst of 40: what comes too fast waits
        assert time.monotonic() - begin > 2.0


def test_few_pieces_are_at_the_superlink_at_once(door: Door, seen: Seen) -> None:
    """It holds each of them completely, and more than once, before it checks who sent it."""
    seen.seconds = 0.5
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: door.answer(PUSH, b"x" * 1000), range(40)))
    assert seen.most <= 16
    assert set(answers) == {200, 502}
    assert answers.count(200) >= 16


def test_the_log_of_the_door_holds_no_bodies_and_no_headers(door: Door, seen: Seen) -> None:
    assert door.answer(PULL + "?secret=1", b"BODY") == 200
    written = (door.folder / "run" / "access.log").read_text()
    assert f'"POST {PULL}" 200' in written
    assert not any(word in written for word in ("secret", "BODY", *SIGNED.values()))
