"""Requests that go around layers of Flower's web application: only around those that would have handed them on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.superlink import main
from starlette.requests import Request
from starlette.responses import Response

from plures.deploy.fleet import layers
from plures.deploy.fleet.layers import AT_NODE, AT_SUPERLINK, around, install, kind

PATHS = (
    "/v1/control/start-run",
    "/v1/control/get-auth-tokens",
    "/v1/fleet/pull-messages",
    "/v1/runtime/acquire-task",
    "/v1/controls",
    "/V1/FLEET/pull-messages",
    "/v1/fleet",
    "/health",
    "/",
)


def asked(path: str, **state: object) -> dict[str, Any]:
    app = SimpleNamespace(state=SimpleNamespace(**state))
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"host", b"localhost")],
        "query_string": b"",
        "app": app,
    }


AROUND = [(name, path) for name, concerns in AT_SUPERLINK.items() for path in PATHS if not concerns(asked(path))]


@pytest.mark.parametrize(("name", "path"), AROUND)
def test_a_layer_that_is_gone_around_would_have_changed_nothing(name: str, path: str) -> None:
    """Flower's own layer hands such a request on, once, and returns the answer as it is."""
    scope, answer, seen = asked(path), Response(b"answer"), []
    before = list(answer.raw_headers)
    found = kind(name)(app=None)

    async def on(request: Request) -> Response:
        seen.append(request)
        return answer

    given = Request(scope)
    assert asyncio.run(found.dispatch(given, on)) is answer
    assert seen == [given]
    assert vars(given.state) == {"_state": {}}
    assert answer.raw_headers == before


def test_who_guards_a_path_is_never_gone_around() -> None:
    guards = {name.partition(":")[2]: concerns for name, concerns in AT_SUPERLINK.items()}
    control, fleet = asked("/v1/control/start-run"), asked("/v1/fleet/pull-messages")
    assert all(concerns(control) for name, concerns in guards.items() if name.startswith("Control"))
    assert guards["NodeAuthMiddleware"](fleet)
    assert not guards["FleetEventLogMiddleware"](fleet)
    assert guards["FleetEventLogMiddleware"](asked("/v1/fleet/pull-messages", fleet_event_log_plugin=object()))


def test_tracing_is_kept_where_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    (concerns,) = AT_NODE.values()
    assert not concerns(asked("/v1/runtime/acquire-task"))
    monkeypatch.setenv(layers.TRACING, "1")
    assert concerns(asked("/v1/runtime/acquire-task"))


def test_a_request_passes_the_layers_that_concern_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all of a SuperLink's layers in Flower's order, of which each notes that it was passed."""
    passed: list[str] = []

    def noting(name: str) -> Any:
        async def called(this: Any, scope: Any, receive: Any, send: Any) -> None:
            passed.append(name)
            await this.app(scope, receive, send)

        return called

    async def end(scope: Any, receive: Any, send: Any) -> None:
        passed.append("end")

    app: Any = end
    for layer in reversed(main._get_middleware()):
        if layer.cls.__module__.startswith("flwr"):
            monkeypatch.setattr(layer.cls, "__call__", noting(layer.cls.__name__))
            app = layer.cls(app)
    install(AT_SUPERLINK)

    def through(path: str, type_: str = "http") -> list[str]:
        passed.clear()
        asyncio.run(app(asked(path) | {"type": type_}, None, None))
        return list(passed)

    everything = [name.partition(":")[2] for name in AT_SUPERLINK]
    control = [name for name in everything if name.startswith("Control")]
    assert through("/v1/fleet/pull-messages") == ["ProtobufTranslationMiddleware", "NodeAuthMiddleware", "end"]
    assert through("/v1/runtime/acquire-task") == ["ProtobufTranslationMiddleware", "end"]
    assert set(through("/v1/control/list-runs")) == {*control, "ProtobufTranslationMiddleware", "end"}
    assert set(through("/", "lifespan")) == {*everything, "ProtobufTranslationMiddleware", "end"}


def test_a_layer_is_called_as_flower_would() -> None:
    told: list[tuple[str, object]] = []

    class Wrapped:
        async def __call__(self, *given: object) -> None:
            told.append(("around", given))

    async def layer(this: Any, *given: object) -> None:
        told.append(("through", given))

    called, this = around(layer, lambda scope: scope["path"] == "/here"), SimpleNamespace(app=Wrapped())
    for scope in ({"type": "http", "path": "/here"}, {"type": "http", "path": "/there"}, {"type": "lifespan"}):
        asyncio.run(called(this, scope, 1, 2))
        assert told.pop() == ("around" if scope.get("path") == "/there" else "through", (scope, 1, 2))
