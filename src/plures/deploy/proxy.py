"""The door of a coordinator: an nginx that lets nodes in and nothing else.

A SuperLink serves its nodes (``/v1/fleet/``) and whoever commands it (``/v1/control/``) on one port, and the commands
ask for no password: who reaches them can run code at every site. So the SuperLink listens on loopback, and this proxy
stands before it.
"""

from __future__ import annotations

from plures.deploy.templates import filled

PUBLIC = 8443
SUPERLINK = 8000


def nginx(listen: str = f"{PUBLIC}", port: int = SUPERLINK) -> str:
    """The configuration of the proxy, complete in one file, to lie beside the folder ``keys`` of the coordinator.

    Args:
        listen: port that sites reach, or ``address:port``; default: on all addresses.
        port: the SuperLink's, on loopback.
    """
    return filled("nginx.conf", listen=listen, port=port)
