"""A network link that can be cut: forwards TCP connections, counts the bytes, and can record them."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

from plures.deploy.fleet.process import private

HOST = "127.0.0.1"
CHUNK = 65536


@dataclass
class Traffic:
    """Bytes from the connecting side (``up``) and back to it (``down``)."""

    up: int = 0
    down: int = 0


@dataclass
class Relay:
    """Listens on a port of this machine and forwards every connection to another port of it.

    Args:
        target: port that connections are forwarded to.
        record: folder for the recorded bytes, one file per connection and direction; default: nothing is recorded.
    """

    target: int
    record: Path | None = None
    traffic: Traffic = field(default_factory=Traffic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    passing: threading.Event = field(default_factory=threading.Event)
    ends: set[socket.socket] = field(default_factory=set)
    refusing: bool = False

    def __post_init__(self) -> None:
        relay, numbers = self, itertools.count(1)

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                relay.connect(self.request, next(numbers))

        class Server(ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

            def shutdown_request(self, request: Any) -> None:
                self.close_request(request)

        self.passing.set()
        self.server = Server((HOST, 0), Handler)
        self.port: int = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self, silent: bool = False) -> None:
        """Cut the link.

        Args:
            silent: hold back all bytes but keep connections open, as when a cable is pulled; otherwise reset existing
                and new connections, as a firewall does.
        """
        if silent:
            self.passing.clear()
        else:
            self.refusing = True
            self.drop()

    def heal(self) -> None:
        """Restore the link. Connections that were reset are not restored."""
        self.refusing = False
        self.passing.set()

    def close(self) -> None:
        """Stop listening and reset all connections."""
        self.server.shutdown()
        self.server.server_close()
        self.cut()
        self.passing.set()

    def captured(self) -> dict[str, bytes]:
        """All recorded bytes by connection and direction: ``3.up`` holds those sent up in the third connection."""
        if self.record is None or not self.record.exists():
            return {}
        return {file.name: file.read_bytes() for file in sorted(self.record.iterdir())}

    def drop(self) -> None:
        """Wake up all threads that wait for bytes. This ends only reading; the other side does not notice."""
        with self.lock:
            for end in self.ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RD)

    def connect(self, near: socket.socket, number: int) -> None:
        """Forward one connection, both ways, until both ends are done."""
        far = None if self.refusing else self.reach()
        if far is None:
            reset(near)
            return
        with far:
            with self.lock:
                self.ends |= {near, far}
            back = threading.Thread(target=self.pump, args=(far, near, number, "down"), daemon=True)
            back.start()
            self.pump(near, far, number, "up")
            back.join()
            with self.lock:
                self.ends -= {near, far}
            if self.refusing:
                reset(near)
                reset(far)

    def reach(self) -> socket.socket | None:
        """A connection to the target; ``None`` if nobody listens there."""
        with suppress(OSError):
            return socket.create_connection((HOST, self.target))
        return None

    def pump(self, source: socket.socket, sink: socket.socket, number: int, way: str) -> None:
        """Forward one direction of a connection until its source ends it."""
        with suppress(OSError):
            while data := source.recv(CHUNK):
                self.passing.wait()
                self.note(data, number, way)
                sink.sendall(data)
            if not self.refusing:
                sink.shutdown(socket.SHUT_WR)

    def note(self, data: bytes, number: int, way: str) -> None:
        """Count bytes that pass, and record them if asked to."""
        with self.lock:
            setattr(self.traffic, way, getattr(self.traffic, way) + len(data))
        if self.record is not None:
            self.record.mkdir(mode=0o700, parents=True, exist_ok=True)
            with private(self.record / f"{number}.{way}") as file:
                file.write(data)


def reset(end: socket.socket) -> None:
    """Make a connection end with a reset when it is closed, as if the other machine did not know it."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
