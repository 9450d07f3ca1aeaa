"""A SuperLink and a node whose requests pass only the layers of Flower that concern them.

Flower wraps its web application into nine layers (middlewares), and every request passes all of them: also what nodes
and tasks send, which is nearly everything, passes the layers that log in users, check licenses and write logs of
commands. There each of them only hands the request on, which costs more than the work on the request itself. Here a
request goes around such a layer. The condition is the layer's own, but for one difference: a layer asks for the address
that the client has named, this file for the path by which Flower finds the function that answers. So no request
reaches a function without the layers that guard it.

This file is loaded by :mod:`plures.deploy.fleet.programs` without the rest of plures.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

CONTROL, FLEET = "flwr.superlink.routers.control.middlewares", "flwr.superlink.routers.fleet"
TRACING = "FLWR_TRACING_ENABLED"
Scope = Mapping[str, Any]
Layer = Callable[[Any, Scope, Any, Any], Awaitable[None]]


def command(scope: Scope) -> bool:
    """Whether a request is an operator's command."""
    return str(scope["path"]).startswith("/v1/control/")


def node(scope: Scope) -> bool:
    """Whether a request is a node's."""
    return str(scope["path"]).startswith("/v1/fleet/")


def logged(scope: Scope) -> bool:
    """Whether a request is a node's, and nodes' requests are logged."""
    return node(scope) and getattr(scope["app"].state, "fleet_event_log_plugin", None) is not None


def traced(scope: Scope) -> bool:
    """Whether tasks are traced."""
    return os.environ.get(TRACING) == "1"


AT_NODE = {"flwr.supercore.routers.runtime.tracing:RuntimeTracingMiddleware": traced}
AT_SUPERLINK = AT_NODE | {
    f"{CONTROL}:ControlSensitiveResponseMiddleware": command,
    f"{CONTROL}:ControlAuthenticationMiddleware": command,
    f"{CONTROL}:ControlLicenseMiddleware": command,
    f"{CONTROL}:ControlEventLogMiddleware": command,
    f"{FLEET}.node_auth:NodeAuthMiddleware": node,
    f"{FLEET}.middlewares:FleetEventLogMiddleware": logged,
}
"""The layers that do not concern every request, and whether a layer concerns a request."""


def around(layer: Layer, concerns: Callable[[Scope], bool]) -> Layer:
    """Wrap the call of a layer: a request that it does not concern goes to what it wraps."""

    async def called(this: Any, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not concerns(scope):
            await this.app(scope, receive, send)
        else:
            await layer(this, scope, receive, send)

    return called


def kind(name: str) -> Any:
    """Flower's class of a layer."""
    module, _, found = name.partition(":")
    return getattr(importlib.import_module(module), found)


def install(layers: Mapping[str, Callable[[Scope], bool]]) -> None:
    """Apply these changes to the program in this process."""
    for name, concerns in layers.items():
        found = kind(name)
        found.__call__ = around(found.__call__, concerns)
