"""A small HTTP endpoint for one personal model, for programs at the site that holds it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from plures.errors import PluresError, suggestion
from plures.federation.inputs import Inputs
from plures.serving.personal import PersonalModel
from plures.version import __version__

try:
    import h11
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Request, Response
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as missing:
    raise PluresError("serving needs FastAPI and uvicorn: pip install 'plures[serve]'") from missing

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost")
CELL = 64
"""Most bytes of a request per number or word."""
CONNECTIONS = 256
"""Most connections at once; further ones are answered with status 503."""
ENDING = 3
"""Seconds that shutdown waits for open requests: without a limit, an incomplete request would block it for ever."""
LARGEST = torch.finfo(torch.float32).max


class TooMany(PluresError):  # noqa: N818 - it says what is wrong
    """More examples than the endpoint takes at once."""


class PredictionRequest(BaseModel):
    """A request: rows, or columns; or several inputs.

    Attributes:
        rows: one list for each example, in the order of the model's columns (nested as its features are).
        columns: column -> one value for each example.
        inputs: of a model with several inputs: name -> one list for each example, nested as its features are.
    """

    model_config = ConfigDict(extra="forbid")

    rows: list[list[Any]] | None = None
    columns: dict[str, list[Any]] | None = None
    inputs: dict[str, list[Any]] | None = None


class PredictionResponse(BaseModel):
    """The model's answer.

    Attributes:
        client: whose model it is.
        version: of the model.
        outputs: of the predictor, a list for each example: log-probabilities of classes up to a constant, log-odds of
            labels, or the predicted numbers; nested lists where there are outputs at every position.
        classes: names of the classes or labels; empty for regression.
        probabilities: of every class or label, in the order of ``classes``, which is that of the innermost lists.
        decisions: the predicted class, or the predicted labels; nested lists with a label at every position.
        threshold: probability of the second of two classes above which it is predicted.
    """

    client: str
    version: str
    outputs: list[Any]
    classes: list[str] = Field(default_factory=list)
    probabilities: list[Any] | None = None
    decisions: list[Any] | None = None
    threshold: float | None = None


def app(model: PersonalModel, limit: int = 1000, hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """The endpoint: ``GET /health``, ``GET /card``, ``POST /predict``.

    A request that cannot be predicted is refused with status 422 and one sentence that names the row and column, one
    that is too large with 413. Of a request, only the number of its rows is ever logged.

    Args:
        model: the model; it is never reloaded.
        limit: most examples in a request.
        hosts: names under which it answers; ``*`` for any.
    """
    if limit < 1:
        raise PluresError(f"limit={limit}: an endpoint must take at least 1 example in a request")
    card, turn = model.card, threading.Lock()
    shapes = card.features.values() if isinstance(card.features, dict) else [card.features]
    numbers = len(model.raw_columns) or sum(map(math.prod, shapes))
    most = 4096 + limit * CELL * numbers
    made = FastAPI(title=f"plures: {card.client}", version=card.version, docs_url=None, redoc_url=None)
    made.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @made.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "client": card.client, "version": card.version, "plures": __version__}

    @made.get("/card")
    def tell() -> Response:
        return Response(card.model_dump_json(), media_type="application/json")

    async def parsed(request: Request) -> PredictionRequest:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise HTTPException(413, f"more than {most} bytes: send at most {limit} examples at once")
        try:
            return PredictionRequest.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise HTTPException(422, f"{place}: {first['msg']}" if place else str(first["msg"])) from None

    @made.post("/predict", openapi_extra=_documented())
    def predict(asked: PredictionRequest = Depends(parsed)) -> PredictionResponse:  # noqa: B008 - FastAPI's way to say it
        begun = time.perf_counter()
        try:
            examples = read(model, asked, limit)
            with turn:
                outputs, decided = model.predict(examples)
        except TooMany as error:
            raise HTTPException(413, str(error)) from None
        except PluresError as error:
            raise HTTPException(422, str(error)) from None
        except Exception as error:
            log.error("prediction failed: %s", type(error).__name__)
            raise HTTPException(500, f"the prediction failed: {type(error).__name__}") from None
        log.info("%d examples in %.1f ms", len(outputs), 1000 * (time.perf_counter() - begun))
        task, chances = model.federation.task, model.probabilities(outputs)
        return PredictionResponse(
            client=card.client,
            version=card.version,
            outputs=outputs.tolist(),
            classes=[] if chances is None else list(task.names),
            probabilities=None if chances is None else chances.tolist(),
            decisions=None if decided is None else [task.answer(one) for one in decided],
            threshold=card.threshold,
        )

    return made


def read(model: PersonalModel, asked: PredictionRequest, limit: int) -> Tensor | Inputs | dict[str, list[Any]]:
    """The examples of a request, as the model's ``predict`` takes them.

    Raises:
        TooMany: for more than ``limit`` examples.
        PluresError: names the row and the column at fault.
    """
    features = model.card.features
    if isinstance(features, dict) and (model.schema is None or asked.inputs is not None):
        return _several(asked, features, limit)
    if asked.inputs is not None:
        raise PluresError("this model has one input: give rows or columns")
    if (asked.rows is None) == (asked.columns is None):
        raise PluresError("give either rows or columns")
    names = list(model.raw_columns)
    if asked.columns is not None:
        if not names:
            raise PluresError("this model's inputs have no named columns: give rows")
        table = _even(asked.columns, names)
        count = len(next(iter(table.values())))
    else:
        table, count = {}, len(asked.rows or [])
    _refuse_count(count, limit)
    rows = asked.rows if asked.rows is not None else [list(row) for row in zip(*table.values(), strict=True)]
    if not model.tabular:
        flat: list[float] = []
        assert not isinstance(features, dict)
        for place, row in enumerate(rows, start=1):
            _numbers(row, features, names, f"row {place}", flat)
        return torch.tensor(flat, dtype=torch.float64).view(len(rows), *features)
    for place, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise PluresError(f"row {place} has {len(row)} values, not {len(names)}: {', '.join(names)}")
        for name, cell in zip(names, row, strict=True):
            if cell is not None and not isinstance(cell, str | int | float):
                raise PluresError(f"row {place}, column {name!r}: a {_kind(cell)}; give a number, a word or null")
            if isinstance(cell, float) and not math.isfinite(cell):
                raise PluresError(f"row {place}, column {name!r}: not finite; give a number, or null if it is missing")
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _refuse_count(count: int, limit: int) -> None:
    if not count:
        raise PluresError("no examples: give at least one row")
    if count > limit:
        raise TooMany(f"{count} examples: send at most {limit} at once")


def _several(asked: PredictionRequest, features: Mapping[str, tuple[int, ...]], limit: int) -> Inputs:
    """Several inputs, as many rows of each."""
    if asked.inputs is None or asked.rows is not None or asked.columns is not None:
        raise PluresError(f"this model has several inputs: give inputs, a list for each of {', '.join(features)}")
    given = _even(asked.inputs, list(features), "input")
    _refuse_count(len(next(iter(given.values()))), limit)
    found: dict[str, Tensor] = {}
    for name, shape in features.items():
        flat: list[float] = []
        for place, row in enumerate(given[name], start=1):
            _numbers(row, shape, (), f"input {name!r}, row {place}", flat)
        found[name] = torch.tensor(flat, dtype=torch.float64).view(len(given[name]), *shape)
    return Inputs(found)


def _even(columns: dict[str, list[Any]], names: list[str], what: str = "column") -> dict[str, list[Any]]:
    """Columns in the order of the names, all present and of the same length."""
    for name in names:
        if name not in columns:
            raise PluresError(f"{what} {name!r} is missing; the model reads {', '.join(names)}")
    for name in columns:
        if name not in names:
            raise PluresError(f"{what} {name!r} is unknown; {suggestion(name, names, 'the model reads')}")
    count = len(columns[names[0]])
    for name in names:
        if len(columns[name]) != count:
            raise PluresError(f"{what} {name!r} has {len(columns[name])} values, {what} {names[0]!r} {count}")
    return {name: columns[name] for name in names}


def _numbers(values: Any, shape: Sequence[int], names: Sequence[str], where: str, into: list[float]) -> None:
    """Add the numbers of one example, refused unless they have the shape and are finite."""
    if not isinstance(values, list) or len(values) != shape[0]:
        found = f"has {len(values)} values" if isinstance(values, list) else f"is a {_kind(values)}"
        raise PluresError(f"{where} {found}, not a list of {shape[0]}{': ' + ', '.join(names) if names else ''}")
    for place, value in enumerate(values):
        at = f"{where}, column {names[place]!r}" if names else f"{where}, place {place + 1}"
        if len(shape) > 1:
            _numbers(value, shape[1:], (), at, into)
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PluresError(f"{at}: a {_kind(value)}; give a number")
        if not abs(value) <= LARGEST:
            raise PluresError(f"{at}: not finite, or too large; give a number")
        into.append(float(value))


def _kind(value: object) -> str:
    """What messages call the type of a JSON value."""
    words = {str: "text", bool: "boolean", type(None): "null", list: "list", dict: "object"}
    return words.get(type(value), "number")


def _documented() -> dict[str, Any]:
    return {
        "requestBody": {
            "content": {"application/json": {"schema": PredictionRequest.model_json_schema()}},
            "required": True,
        }
    }


class Connection(H11Protocol):
    """A connection that is closed if no complete request arrives in time, or if its answer is not read.

    Attributes:
        patience: seconds for a request.
        answer: seconds for its answer.
    """

    patience, answer = 10.0, 60.0
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.within(self.patience)

    def data_received(self, data: bytes) -> None:
        if self._limit is None:
            self.within(self.patience)
        super().data_received(data)
        if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE):
            self.within(self.answer)

    def on_response_complete(self) -> None:
        self.within(None)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.within(None)
        super().connection_lost(exc)

    def within(self, seconds: float | None) -> None:
        """Cut the connection after some seconds, unless this is called again."""
        if self._limit is not None:
            self._limit.cancel()
        self._limit = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


class Server(uvicorn.Server):
    """A server that a second signal ends at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)


def serve(
    model: PersonalModel,
    host: str = "127.0.0.1",
    port: int = 8000,
    limit: int = 1000,
    announce: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer requests until the process is stopped; then shut down within seconds, even with open connections.

    Args:
        model: what predicts.
        host: address to listen on; the endpoint has neither users nor TLS, so anybody who can reach an address other
            than the loopback ones can use it.
        port: 0 for any that is free.
        limit: most examples in a request.
        announce: called with the address once it is open.
    """
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    made = app(model, limit, hosts)
    try:
        opened = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise PluresError(f"cannot listen on {host} port {port}: {error}; choose others with --host, --port") from error
    with opened, contextlib.suppress(KeyboardInterrupt):
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{opened.getsockname()[1]}")
        server(made).run(sockets=[opened])


def server(made: FastAPI) -> Server:
    """The server of an endpoint."""
    config = uvicorn.Config(
        made,
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        http=Connection,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=ENDING,
    )
    return Server(config)
