"""A relay that can be cut: what it counts, records, breaks and restores."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from plures.deploy.fleet.process import until
from plures.deploy.fleet.relay import Relay


@pytest.fixture
def far() -> Iterator[int]:
    """A server that answers every three bytes with the same bytes twice; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    end, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(end,), daemon=True).start()

        def answer(end: socket.socket) -> None:
            with closing(end), suppress(ConnectionResetError):
                while data := end.recv(3, socket.MSG_WAITALL):
                    end.sendall(2 * data)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=5)


def first_byte(relay: Relay) -> bytes:
    with connect(relay) as end:
        return end.recv(1)


def ask(end: socket.socket, words: bytes) -> bytes:
    end.sendall(words)
    return end.recv(2 * len(words), socket.MSG_WAITALL)


def test_it_counts_and_keeps_every_byte(far: int, tmp_path: Path) -> None:
    with closing(Relay(far, tmp_path / "wire")) as relay:
        with connect(relay) as one, connect(relay) as two:
            assert ask(one, b"abc") == b"abcabc"
            assert ask(two, b"xyz") == b"xyzxyz"
            assert ask(one, b"def") == b"defdef"
        assert (relay.traffic.up, relay.traffic.down) == (9, 18)
        kept = {frozenset((way, relay.captured()[f"{n}.{way}"]) for way in ("up", "down")) for n in (1, 2)}
    assert kept == {
        frozenset({("up", b"abcdef"), ("down", b"abcabcdefdef")}),
        frozenset({("up", b"xyz"), ("down", b"xyzxyz")}),
    }


def test_a_cut_resets_and_refuses_until_it_is_mended(far: int) -> None:
    with closing(Relay(far)) as relay:
        assert relay.captured() == {}
        with connect(relay) as end:
            assert ask(end, b"abc") == b"abcabc"
            relay.cut()
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        with pytest.raises(ConnectionResetError):
            first_byte(relay)
        assert relay.traffic.up == 3
        relay.heal()
        with connect(relay) as end:
            assert ask(end, b"abc") == b"abcabc"
        until(lambda: not relay.ends, 5, "the connections are kept")


def test_nothing_passes_a_silent_cut_and_nothing_is_lost(far: int) -> None:
    with closing(Relay(far)) as relay, connect(relay) as end:
        assert ask(end, b"abc") == b"abcabc"
        relay.cut(silent=True)
        end.sendall(b"def")
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            end.recv(1)
        assert relay.traffic.up == 3
        relay.heal()
        end.settimeout(5)
        assert end.recv(6, socket.MSG_WAITALL) == b"defdef"


def test_a_target_that_is_gone_looks_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()[1]
    with closing(Relay(nobody)) as relay, pytest.raises(ConnectionResetError):
        first_byte(relay)


def test_an_end_of_one_side_reaches_the_other(far: int) -> None:
    with closing(Relay(far)) as relay, connect(relay) as end:
        end.sendall(b"abc")
        end.shutdown(socket.SHUT_WR)
        assert end.recv(6, socket.MSG_WAITALL) == b"abcabc"
        assert end.recv(1) == b""
