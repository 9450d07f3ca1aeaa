"""The reverse proxy of a coordinator: an nginx that admits nodes and nothing else.

A SuperLink serves its nodes (``/v1/fleet/``) and its operators (``/v1/control/``) on one port, and the commands need no
password: anyone who reaches them commands the federation. So the SuperLink listens on loopback, behind this proxy.
"""

from __future__ import annotations

import re

from plures.deploy.templates import filled

PUBLIC = 8443
SUPERLINK = 8000
DNS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
"""A name under which sites reach it."""
ASKED = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "pull-object",
    "confirm-message-received",
)
"""The SuperLink's endpoints whose requests have small bodies. Pieces of arrays (``push-object``) are large."""
CONNECTIONS, RATE, BURST = 4, 5, 20
"""Limits per node: concurrent connections, requests per second, and requests in a burst when a message arrives."""


def nginx(listen: str = f"{PUBLIC}", port: int = SUPERLINK, patience: float = 10.0, nodes: int = 32) -> str:
    """The complete configuration of the proxy. The file belongs beside the coordinator's folder ``keys``.

    Args:
        listen: port that sites reach, on all addresses, or ``address:port``.
        port: port of the SuperLink on loopback.
        patience: seconds within which a handshake, all headers, and each further part of a body must arrive.
        nodes: number of nodes that may connect from one IP address, as behind the router of a campus.
    """
    return filled(
        "nginx.conf",
        listen=listen,
        port=port,
        patience=f"{1000 * patience:.0f}ms",
        nodes=nodes,
        connections=CONNECTIONS * nodes,
        rate=RATE * nodes,
        burst=BURST * nodes,
        asked="|".join(ASKED),
    )
