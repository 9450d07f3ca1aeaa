"""A real nginx with the configuration of the reverse proxy, in front of a port on this machine."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from plures.deploy.fleet.loopback import free_port
from plures.deploy.fleet.process import Process, until
from plures.deploy.keys import Keyring
from plures.deploy.proxy import nginx

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
SIGNED = {"flwr-public-key": "QUJD", "flwr-signature": "REVG", "flwr-timestamp": "2026-01-01T00:00:00+00:00"}
"""Made-up headers in the form that a node sends."""


@dataclass
class Door:
    """An nginx that was started, and the certificate of its authority."""

    folder: Path
    port: int
    authority: Path
    proxy: Process

    def connect(self) -> ssl.SSLSocket:
        """A connection after its handshake."""
        context = ssl.create_default_context(cafile=str(self.authority))
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return context.wrap_socket(plain, server_hostname="localhost")

    def answer(
        self, path: str, body: bytes = b"", headers: Mapping[str, str] = SIGNED, method: str = "POST", length: int = -1
    ) -> int:
        """The status of a raw request, whose path is sent unchanged."""
        with self.connect() as wire:
            wire.sendall(head(path, len(body) if length < 0 else length, headers, method) + body)
            return status(wire)


def head(path: str, length: int, headers: Mapping[str, str] = SIGNED, method: str = "POST") -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {PROTOBUF_MEDIA_TYPE}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {length}", "Connection: close", "", ""]).encode()


def status(wire: socket.socket) -> int:
    """The status of the answer."""
    response = http.client.HTTPResponse(wire)
    response.begin()
    return response.status


@contextmanager
def opened(folder: Path, keys: Keyring, upstream: int, patience: float = 10.0, nodes: int = 32) -> Iterator[Door]:
    """Start the proxy; it is stopped at the end."""
    port = free_port()
    (folder / "run").mkdir(parents=True)
    (folder / "keys").symlink_to(keys.folder)
    (folder / "nginx.conf").write_text(nginx(f"127.0.0.1:{port}", upstream, patience, nodes))
    words = [str(NGINX), "-p", str(folder), "-c", "nginx.conf"]
    checked = subprocess.run([*words, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers would run as nobody, who may not write here
    proxy = Process("nginx", [*words, "-g", f"daemon off; {user}"], dict(os.environ), folder / "log")
    proxy.start()
    try:
        door = Door(folder, port, keys.authority, proxy)

        def listens() -> bool:
            try:
                return door.answer("/") == 403
            except OSError:
                return False

        until(listens, 10, proxy.tail, proxy.require)
        yield door
    finally:
        proxy.kill()
