"""A federation of real Flower processes on this machine: one SuperLink and one SuperNode per site, over loopback."""

from __future__ import annotations

import json
import random
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from plures.deploy import agreement
from plures.deploy.fleet.control import Control, Value
from plures.deploy.fleet.forks import POSSIBLE
from plures.deploy.fleet.forkserver import ForkServer
from plures.deploy.fleet.process import Process, quiet_environment, spawned, until
from plures.deploy.fleet.programs import GUARD, QUICK, SUPERLINK, WARM, command
from plures.deploy.fleet.relay import HOST, Relay
from plures.deploy.keys import Keyring, authority_digest, with_pub
from plures.deploy.member import Joining
from plures.deploy.quoting import node_value
from plures.deploy.signing import public
from plures.errors import PluresError
from plures.files import filed, inside, write_text

CONNECTION = "plures"
PORTS = range(20000, 32000)
"""Range of ports. It lies below the ports of outgoing connections, so that a restarted process finds its port free."""
START = 180.0
JOIN = 300.0
"""Seconds that a SuperLink and a node may take to start: beside other work, loading their modules takes minutes."""
RESTART = 1.0
"""Seconds between two checks for nodes that have ended."""
ONLINE, READY = "SuperNode ID:", "Starting Flower SuperExec"
REFUSED = "[code: 2004]"
"""Log lines of Flower's nodes: admitted, ready for tasks (their task starter has loaded all modules, which may take
longer), refused."""
ENDED = "finished"


class Fleet:
    """A coordinator and its sites on this machine, each in its own processes.

    As a context manager, it starts all of them, and ends all of them even after an error or Ctrl-C.

    Args:
        folder: folder for keys, logs, Flower's own files and the SuperLink's database. A second fleet in the folder
            uses the same keys and database.
        sites: ``client -> site.toml``.
        tls: encrypt, and admit only nodes whose key is registered. Without it, all traffic is readable and every node
            is admitted, though answers are still signed. Turn it off for comparison only.
        relayed: every node reaches the SuperLink through its own :class:`~plures.deploy.fleet.relay.Relay`.
        record: every relay records its traffic under ``wire/<client>``.
        quick: poll more often, and fork all programs from one that has loaded their modules, where the system can; see
            :mod:`plures.deploy.fleet.programs`.
        warm: fork tasks from a process that has already loaded their modules, as in a real deployment.
        guard: nodes run plures' client, whatever app is submitted.
        environment: further environment variables of all processes.
    """

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, Path],
        *,
        tls: bool = True,
        relayed: bool = False,
        record: bool = False,
        quick: bool = False,
        warm: bool = True,
        guard: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.sites, self.tls = folder.resolve(), {k: v.resolve() for k, v in sites.items()}, tls
        self.keys = Keyring(self.folder / "keys")
        self.manners, self.guard = [QUICK] * quick + [WARM] * warm, [GUARD] * guard
        self.environment = quiet_environment(self.folder / "flower") | dict(environment or {})
        self.port = free_port()
        self.control = Control(f"{HOST}:{self.port}", self.keys.authority if tls else None)
        self.relays: dict[str, Relay] = {}
        if relayed or record:
            wires = {client: inside(self.folder, "wire", client) if record else None for client in self.sites}
            self.relays = {client: Relay(self.port, wire) for client, wire in wires.items()}
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / "lock", timeout=0)
        self.closing = threading.Event()
        self.supervisor = threading.Thread(target=self.supervise, name="supervisor", daemon=True)
        self.forks = ForkServer(self.manners, self.environment, self.folder / "logs" / "forks.log")
        self.launch = self.forks.launch if quick and POSSIBLE else spawned
        self.superlink = self.process("superlink", self.superlink_command())
        self.nodes = {client: self.process(f"node-{filed(client)}", self.node_command(client)) for client in self.sites}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Make missing keys, start the SuperLink, register and start the nodes, and wait until all are ready.

        Raises:
            PluresError: another fleet runs in the folder, or something does not start.
        """
        try:
            self.lock.acquire()
        except Timeout as error:
            raise PluresError(f"another fleet runs in {self.folder}: stop it, or choose another folder") from error
        self.make_keys()
        self.start_superlink()
        if self.tls:
            self.register()
        for client in self.sites:
            self.nodes[client].start()
        self.supervisor.start()
        for client in self.sites:
            self.wait_online(client)

    def supervise(self) -> None:
        """Restart nodes that have ended, as a service manager does (``Restart=always``).

        A node exits when the SuperLink refuses it, and when its connection breaks at certain moments.
        """
        while not self.closing.wait(RESTART):
            for node in self.nodes.values():
                node.revive()

    def close(self) -> None:
        """End every process. A second Ctrl-C kills those that are still running."""
        self.closing.set()
        everyone = [*self.nodes.values(), self.superlink]
        try:
            with ThreadPoolExecutor(len(everyone)) as pool:
                list(pool.map(Process.stop, everyone[:-1]))
            self.superlink.stop()
        finally:
            for process in (*everyone, self.forks.process):
                process.kill()
            for relay in self.relays.values():
                relay.close()
            self.lock.release()

    def start_superlink(self) -> float:
        """Start the SuperLink, also after it was killed. Its port stays the same.

        Returns:
            Seconds until it answers.
        """
        self.superlink.start()
        late = f"the SuperLink does not answer on port {self.port} within {START:g} s; see {self.superlink.log}"
        return until(self.healthy, START, late, self.superlink.require)

    def start_node(self, client: str) -> float:
        """Start a site's node and wait until it is ready.

        After a node was killed, the SuperLink refuses it until enough heartbeats are missed: up to a minute.

        Returns:
            Seconds until it is ready.
        """
        self.nodes[client].start()
        return self.wait_online(client)

    def wait_online(self, client: str) -> float:
        """Wait until a started node is admitted by the SuperLink and can start tasks.

        Returns:
            Seconds that it took.

        Raises:
            PluresError: it ended for a reason other than being refused, or was not admitted in time; the message
                contains the end of its log.
        """
        node = self.nodes[client]

        def unless() -> None:
            self.superlink.require()
            with node.changing:
                if REFUSED not in node.output():
                    node.require()

        def late() -> str:
            return f"{node.name} cannot work after {JOIN:g} s; the end of {node.log}:\n{node.tail()}"

        def done() -> bool:
            output = node.output()
            return node.alive and ONLINE in output and READY in output

        return until(done, JOIN, late, unless)

    def healthy(self) -> bool:
        """Whether the SuperLink answers."""
        scheme = "https" if self.tls else "http"
        with suppress(urllib.error.URLError, OSError):
            context = ssl.create_default_context(cafile=str(self.keys.authority)) if self.tls else None
            with urllib.request.urlopen(f"{scheme}://{HOST}:{self.port}/health", timeout=5, context=context) as answer:
                return bool(answer.status == 200)
        return False

    def submit(self, app: Path, config: Mapping[str, Value] | None = None) -> int:
        """Submit a Flower app to the SuperLink.

        Args:
            app: folder of the app.
            config: values for names that the app's ``[tool.flwr.app.config]`` has.

        Returns:
            The run's id.
        """
        return self.control.start(app, config or {})

    def conduct(self, app: Path, plan: Path, out: Path) -> int:
        """Start or resume a run of plures, and return its id.

        Args:
            app: folder of an app that points to plures.
            plan: ``federation.toml`` of the sites; the keys of sites and coordinator are entered into it.
            out: folder of the run.
        """
        self.agree(plan)
        files = {"plan": plan, "out": out, "key": self.keys.coordinator}
        return self.submit(app, {name: str(file.resolve()) for name, file in files.items()})

    def agree(self, plan: Path) -> None:
        """Enter the fingerprints of the coordinator and the sites into a ``federation.toml``."""
        top = {"coordinator": public(with_pub(self.keys.coordinator))}
        if self.tls:
            top["authority"] = authority_digest(self.keys.authority)
        agreement.enter(plan, top=top, keys={client: public(self.keys.node_public(client)) for client in self.sites})

    def join(self, plan: Path, data: Mapping[str, Path]) -> None:
        """Let every site join a federation, as its member would. Existing files in its folder stay.

        Args:
            plan: ``federation.toml``.
            data: client -> file with its rows.
        """
        self.agree(plan)
        for client, site in self.sites.items():
            key = self.keys.node(client)
            Joining.of(plan, self.keys.authority, client, site.parent, key, data[client]).write()

    def wait(self, run: int, seconds: float, between: Callable[[], None] | None = None) -> str:
        """Wait until a run has ended.

        Args:
            run: its id.
            seconds: how long to wait.
            between: called repeatedly while waiting.

        Returns:
            Its status in Flower's terms: ``finished:completed``, ``finished:failed`` or ``finished:stopped``.

        Raises:
            PluresError: it has not ended in time, or the SuperLink has ended.
        """
        status = ""

        def ended() -> bool:
            nonlocal status
            self.superlink.require()
            status = self.control.status(run)
            return status.startswith(ENDED)

        def late() -> str:
            where = f"the end of {self.superlink.log}"
            return f"run {run} is {status} after {seconds:g} s; {where}:\n{self.superlink.tail()}"

        until(ended, seconds, late, between, poll=0.5)
        return status

    def make_keys(self) -> None:
        """Make missing keys, and write the SuperLink's address for Flower's command line."""
        connection = [f"[superlink.{CONNECTION}]", f'address = "{HOST}:{self.port}"']
        if not self.keys.coordinator.exists():
            self.keys.make_coordinator()
        for client in self.sites:
            if not self.keys.node(client).exists():
                self.keys.make_node(client)
        if self.tls:
            if not self.keys.server.exists():
                self.keys.make_server()
            connection.append(f"root-certificates = {json.dumps(str(self.keys.authority))}")
        else:
            connection.append("insecure = true")
        home = Path(self.environment["FLWR_HOME"])
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(home / "config.toml", "\n".join(["[superlink]", f'default = "{CONNECTION}"', *connection, ""]))

    def register(self) -> None:
        """Register the public keys of sites that the SuperLink does not know yet."""
        known = {node.name for node in self.control.nodes()}
        for client in self.sites:
            if client not in known:
                self.control.register(self.keys.node_public(client), client)

    def process(self, name: str, command: list[str]) -> Process:
        return Process(name, command, self.environment, self.folder / "logs" / f"{name}.log", self.launch)

    def superlink_command(self) -> list[str]:
        arguments = superlink_arguments(self.port, self.folder / "superlink.db", self.keys if self.tls else None)
        return [*command(SUPERLINK, *self.manners), *arguments]

    def node_command(self, client: str) -> list[str]:
        door = self.relays[client].port if client in self.relays else self.port
        authority = self.keys.authority if self.tls else None
        return [
            *command("flower-supernode", *self.manners, *self.guard),
            *node_arguments(self.sites[client], f"{HOST}:{door}", free_port(), authority, self.keys.node(client)),
        ]


def superlink_arguments(port: int, database: Path, keys: Keyring | None) -> list[str]:
    """Arguments of a coordinator's SuperLink, which listens on loopback.

    Args:
        port: port on loopback.
        database: file of its database.
        keys: the coordinator's keys; ``None`` for no encryption and no authentication of nodes.
    """
    secure = ["--insecure"]
    if keys is not None:
        files = {"certfile": keys.server, "keyfile": keys.server_key, "ca-certfile": keys.authority}
        secure = [word for key, file in files.items() for word in (f"--ssl-{key}", str(file))]
        secure.append("--enable-supernode-auth")
    return ["--host", HOST, "--port", str(port), "--database", str(database), *secure]


def node_arguments(site: Path, superlink: str, port: int, authority: Path | None, key: Path) -> list[str]:
    """Arguments of a site's SuperNode.

    Args:
        site: its ``site.toml``.
        superlink: ``host:port`` of the coordinator.
        port: port on loopback, for the node's own processes.
        authority: certificate that verifies the coordinator's; ``None`` for no encryption.
        key: the site's private key.
    """
    secure = ["--root-certificates", str(authority), "--auth-supernode-private-key", str(key)]
    config = f"site={node_value(str(site.resolve()))} key={node_value(str(key.resolve()))}"
    return [
        *("--superlink", superlink, "--port", str(port), "--node-config", config),
        *(["--insecure"] if authority is None else secure),
    ]


def free_port() -> int:
    """A free port of this machine.

    Raises:
        PluresError: none was found.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise PluresError(f"no free port on {HOST} between {PORTS.start} and {PORTS.stop}: end programs that listen there")
