"""A client of a SuperLink's Control API. It does what the command ``flwr`` does, without a process per call.

Flower's own client is not part of its public interface; everything plures uses of it is in this file.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.common.serde import fab_to_proto, user_config_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from plures.errors import PluresError

IN_USE = f'"code":{int(ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE)},'
OVER = f'"code":{int(ApiErrorCode.RUN_ALREADY_FINISHED)},'
"""How the SuperLink refuses a key that it has seen before, and a request about a run that has ended."""

Value = bool | float | int | str


@dataclass(frozen=True)
class Node:
    """A node that the SuperLink knows.

    Attributes:
        id: id of the node.
        name: name under which it was registered.
        status: ``online``, ``offline``, ``registered`` (it has never connected) or ``unregistered``.
        seen: time of its last heartbeat in seconds since 1970; for a node that went silent, when it was declared
            offline.
    """

    id: int
    name: str
    status: str
    seen: float | None = None


@dataclass(frozen=True)
class Submitted:
    """A run that the SuperLink knows.

    Attributes:
        id: id of the run.
        status: its status in Flower's terms: ``running``, ``finished:completed``, ``finished:failed``, ...
        config: the configuration with which it was submitted.
    """

    id: int
    status: str
    config: Mapping[str, Value] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.status.startswith("finished")


@dataclass(frozen=True)
class Control:
    """The Control API of one SuperLink. It has no authentication: anyone who reaches it decides what the sites run.

    Args:
        address: ``host:port``.
        authority: certificate that the SuperLink's is checked against; ``None`` for no encryption.
    """

    address: str
    authority: Path | None

    def register(self, public_key: Path, name: str) -> int:
        """Register a node.

        Args:
            public_key: file with its public key, in OpenSSH's format.
            name: name under which the SuperLink lists it.

        Returns:
            Its id.

        Raises:
            PluresError: the file is not such a key, or the key is or was registered.
        """
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        try:
            key = serialization.load_ssh_public_key(public_key.read_bytes()).public_bytes(encoding, form)
        except (OSError, ValueError) as error:
            what = f"{public_key} is not a public key of a node: {error}"
            raise PluresError(f"{what}; make one with `plures deploy keys`") from error
        try:
            with self.client() as client:
                return int(client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)
        except PluresError as error:
            if IN_USE not in str(error):
                raise
            raise PluresError(
                f"{public_key} is registered, or was removed, and the SuperLink accepts no key twice: {name} must make "
                "a new pair with `plures deploy keys`"
            ) from error

    def nodes(self) -> list[Node]:
        """The nodes that are or were registered."""
        with self.client() as client:
            found = client.ListNodes(ListNodesRequest()).nodes_info
        return [Node(node.node_id, node.name, node.status, seen(node)) for node in found]

    def unregister(self, node: int) -> None:
        """Remove a node, which can then no longer connect."""
        with self.client() as client:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start(self, app: Path, config: Mapping[str, Value]) -> int:
        """Start a Flower app.

        Args:
            app: its folder.
            config: values for names that its ``[tool.flwr.app.config]`` has.

        Returns:
            The run's id.

        Raises:
            PluresError: the folder is not a Flower app, or the SuperLink refuses it.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # from Flower's use of its own dependencies
                content = build_fab_from_disk(app)
        except (OSError, ValueError) as error:
            raise PluresError(f"{app} is not a Flower app: {error}; write one with `plures deploy init`") from error
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        with self.client() as client:
            return int(client.StartRun(request).run_id)

    def status(self, run: int) -> str:
        """A run's status in Flower's terms: ``running``, ``finished:completed``, ``finished:failed``, ..."""
        with self.client() as client:
            return submitted(client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run]).status

    def runs(self, most: int = 100) -> list[Submitted]:
        """The newest runs, the newest first."""
        with self.client() as client:
            found = client.ListRuns(ListRunsRequest(limit=most)).run_dict.values()
        return [submitted(run) for run in sorted(found, key=lambda run: run.pending_at, reverse=True)]

    def stop(self, run: int) -> None:
        """End a run, unless it has ended meanwhile."""
        try:
            with self.client() as client:
                client.StopRun(StopRunRequest(run_id=run))
        except PluresError as error:
            if OVER not in str(error):
                raise

    @contextmanager
    def client(self) -> Iterator[ControlHttpClient]:
        """A connection. Its errors become a :class:`PluresError` that names the SuperLink."""
        try:
            certificate = None if self.authority is None else self.authority.read_bytes()
            with ControlHttpClient.from_server_address(
                self.address,
                insecure=certificate is None,
                root_certificates=certificate,
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            ) as client:
                yield client
        except httpx.HTTPStatusError as error:
            answer = error.response
            raise PluresError(f"SuperLink {self.address}: {answer.status_code}, {answer.text}") from error
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise PluresError(
                    f"the server at {self.address} has no certificate issued by {self.authority}: it is another "
                    "federation's SuperLink, or started before the certificate was made; restart it, or change a port"
                ) from error
            raise PluresError(f"SuperLink {self.address} does not answer: {error}; start it first") from error
        except OSError as error:
            what = f"{self.authority} is not a certificate: {error.strerror or error}"
            raise PluresError(f"{what}; `plures deploy keys --host NAME` makes it") from error


def submitted(run: Run) -> Submitted:
    status = ":".join(filter(None, (run.status.status, run.status.sub_status)))
    return Submitted(run.run_id, status, user_config_from_proto(run.override_config))


def seen(node: NodeInfo) -> float | None:
    """Time of a node's last heartbeat, in seconds since 1970. Flower stores only until when it counts as online."""
    if node.status == "online":
        return float(node.online_until - HEARTBEAT_PATIENCE * node.heartbeat_interval)
    return datetime.fromisoformat(node.last_deactivated_at).timestamp() if node.last_deactivated_at else None
