"""A site's node in a network of its own (a network namespace of Linux), with one cable to this machine.

Only root can do that. Inside, the node talks to a forwarder on its own loopback, which talks through the cable to one
outside, which talks to the SuperLink; so the certificates need no other names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from plures.deploy.fleet.loopback import Fleet
from plures.deploy.fleet.relay import HOST

NET = 30
FORWARD = """\
import asyncio, sys

async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()

async def main(host, port, target, number):
    async def forward(reader, writer):
        inward, outward = await asyncio.open_connection(target, int(number))
        await asyncio.gather(pump(reader, outward), pump(inward, writer), return_exceptions=True)

    server = await asyncio.start_server(forward, host, int(port))
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass(frozen=True)
class Cable:
    """The cable of a node in a network of its own.

    Attributes:
        near: the cable's end on this machine.
    """

    near: str

    def pull(self) -> None:
        ip("link", "set", self.near, "down")

    def plug(self) -> None:
        ip("link", "set", self.near, "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def possible() -> bool:
    """Whether this user may create networks here."""
    try:
        ip("netns", "add", f"plures-try-{os.getpid()}")
        ip("netns", "delete", f"plures-try-{os.getpid()}")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextmanager
def cabled(fleet: Fleet, client: str) -> Iterator[Cable]:
    """Run a node of a running fleet in a network of its own.

    Args:
        fleet: a fleet with relays.
        client: the client whose node it is.
    """
    own = os.getpid()  # several processes may have cables at once
    name, near, far = f"plures-{own}", f"plu{own}n", f"plu{own}f"
    here, there = (f"10.231.{own % 254 + 1}.{host}" for host in (1, 2))
    node, port = fleet.nodes[client], str(fleet.relays[client].port)
    before = list(node.command)
    within = ["ip", "netns", "exec", name]
    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "delete", name)
        cable = Cable(near)
        ip("link", "add", cable.near, "type", "veth", "peer", "name", far, "netns", name)
        ip("address", "add", f"{here}/{NET}", "dev", cable.near)
        cable.plug()
        ip("-n", name, "address", "add", f"{there}/{NET}", "dev", far)
        for device in (far, "lo"):
            ip("-n", name, "link", "set", device, "up")
        stack.enter_context(forwarder([], here, port, HOST, port))
        stack.enter_context(forwarder(within, HOST, port, here, port))
        node.stop()
        node.command = within + before
        fleet.start_node(client)
        try:
            yield cable
        finally:
            with suppress(subprocess.CalledProcessError):
                cable.plug()
            node.stop()
            node.command = before
            fleet.start_node(client)


@contextmanager
def forwarder(within: list[str], host: str, port: str, target: str, number: str) -> Iterator[None]:
    """A process that forwards connections to another host and port, possibly inside a network namespace."""
    command = [*within, sys.executable, "-c", FORWARD, host, port, target, number]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "the forwarder does not start"
            yield
        finally:
            process.kill()
