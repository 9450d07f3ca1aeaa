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
"""What nodes ask a SuperLink for with small bodies; pieces of arrays (``push-object``) are large."""
CONNECTIONS, RATE, BURST = 4, 5, 20
"""What one node needs at most: connections at once, requests in a second, and at once when a message comes."""


def nginx(listen: str = f"{PUBLIC}", port: int = SUPERLINK, patience: float = 10.0, nodes: int = 32) -> str:
    """The configuration of the proxy, complete in one file, to lie beside the folder ``keys`` of the coordinator.

    Args:
        listen: port that sites reach, or ``address:port``; default: on all addresses.
        port: the SuperLink's, on loopback.
        patience: seconds within which a handshake, all headers, and each further part of a body must come.
        nodes: how many nodes may call from one address, as behind the router of a campus; others are not limited by it.
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
