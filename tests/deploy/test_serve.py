"""The HTTP endpoint: the model's own numbers, one clear sentence for bad requests, and no raw row in a log."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from beginning import Begins, Begun
from plures.cli import app as commands
from plures.deploy.fleet.process import until
from plures.errors import PluresError
from plures.evaluate import RunSpec
from plures.federation import from_arrays
from plures.run import Execution
from plures.serving.personal import PersonalModel
from plures.tables.heart import heart_schema, heart_tables

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from fastapi.testclient import TestClient

from plures.serving.serve import Connection, app, serve, server

LOOP = Execution("loop", 1, False, "float32")


@cache
def hospital() -> PersonalModel:
    """A model that reads raw rows of a table."""
    spec = RunSpec(data="hospitals", method="fedrep+threshold", rounds=2)
    run = spec.run(heart_schema().federation("hospitals", heart_tables()), LOOP)
    for _ in run.rounds():
        pass
    return PersonalModel.of(run, "va", spec, schema=heart_schema())


@cache
def numbers(kind: str = "named") -> PersonalModel:
    """A model that reads numbers: three named columns, or pictures, or for a regression."""
    shape = (40, 2, 3) if kind == "pictures" else (40, 3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :2] if kind == "regression" else (x.flatten(1)[:, 0] > 0).long()
    columns = ("height", "weight", "age") if kind == "named" else ()
    federation = from_arrays(x.numpy(), y.numpy(), ["a"] * 40, name="numbers", columns=columns, standardize=True)
    spec = RunSpec(data="numbers", method="local", rounds=1, model="logistic")
    return PersonalModel.of(spec.run(federation, LOOP), "a", spec)


def client(model: PersonalModel, limit: int = 1000, **options: object) -> TestClient:
    return TestClient(app(model, limit), base_url="http://127.0.0.1", **options)


def patients(count: int = 5) -> dict[str, list[object]]:
    """Raw rows, without the diagnosis."""
    return {name: cells[:count] for name, cells in heart_tables()["va"].items() if name != "diagnosis"}


def test_answers_with_the_models_own_numbers():
    model, table = hospital(), patients()
    asked = client(model).post("/predict", json={"columns": table})
    outputs, decided = model.predict(table)
    assert asked.status_code == 200
    told = asked.json()
    torch.testing.assert_close(torch.tensor(told["outputs"]), outputs)
    torch.testing.assert_close(torch.tensor(told["probabilities"]), outputs.softmax(-1))
    assert told["decisions"] == [("healthy", "disease")[i] for i in decided.tolist()]
    assert (told["client"], told["version"]) == ("va", model.card.version)
    assert told["classes"] == ["healthy", "disease"]
    assert told["threshold"] == model.card.threshold
    for chances, decision in zip(told["probabilities"], told["decisions"], strict=True):
        assert (decision == "disease") == (chances[1] > told["threshold"])
    rows = [list(row) for row in zip(*table.values(), strict=True)]
    assert client(model).post("/predict", json={"rows": rows}).json() == told


def test_numbers_pictures_and_regression():
    named, pictures, regression = (numbers(kind) for kind in ("named", "pictures", "regression"))
    rows = [[1.5, -2.0, 3], [0.25, 0, 1]]
    told = client(named).post("/predict", json={"rows": rows}).json()
    torch.testing.assert_close(torch.tensor(told["outputs"]), named.predict(torch.tensor(rows))[0])
    columns = {"age": [3, 1], "height": [1.5, 0.25], "weight": [-2.0, 0]}
    assert client(named).post("/predict", json={"columns": columns}).json() == told
    images = torch.arange(12.0).view(2, 2, 3)
    told = client(pictures).post("/predict", json={"rows": images.tolist()}).json()
    torch.testing.assert_close(torch.tensor(told["outputs"]), pictures.predict(images)[0])
    told = client(regression).post("/predict", json={"rows": rows}).json()
    torch.testing.assert_close(torch.tensor(told["outputs"]), regression.predict(torch.tensor(rows))[0])
    assert (told["probabilities"], told["decisions"], told["threshold"], told["classes"]) == (None, None, None, [])


def test_health_and_card():
    model = hospital()
    health, card = client(model).get("/health").json(), client(model).get("/card").json()
    assert (health["status"], health["client"], health["version"]) == ("ok", "va", model.card.version)
    assert card == json.loads(model.card.model_dump_json())
    paths = client(model).get("/openapi.json").json()["paths"]
    assert {"/health", "/card", "/predict"} == set(paths)
    assert client(model).get("/docs").status_code == 404  # its page would load scripts from elsewhere


def refused(model: PersonalModel, body: object, limit: int = 1000) -> tuple[int, str]:
    answer = client(model, limit).post("/predict", content=body if isinstance(body, str) else json.dumps(body))
    assert list(answer.json()) == ["detail"]
    return answer.status_code, answer.json()["detail"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sex": ["male", "femal"]}, "column 'sex', row 2: 1 row holds 'femal'"),
        ({"age": [50, 500]}, "column 'age', row 2"),
        ({"age": [50, math.nan]}, "row 2, column 'age': not finite"),
        ({"age": [50, [1]]}, "row 2, column 'age': a list; give a number, a word or null"),
        ({"age": [50]}, "column 'sex' has 2 values, column 'age' 1"),
        ({"weight": [1, 2]}, "column 'weight' is unknown; the model reads age, sex,"),
    ],
)
def test_a_raw_row_that_cannot_be_is_named(change, message):
    status, told = refused(hospital(), {"columns": patients(2) | change})
    assert status == 422
    assert message in told


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"rows": [[1, 2, 3], [1, "tall", 3]]}, "row 2, column 'weight': a text; give a number"),
        ({"rows": [[1, 2, 3], [1, 2]]}, "row 2 has 2 values, not a list of 3: height, weight, age"),
        ({"rows": [[1, None, 3]]}, "row 1, column 'weight': a null; give a number"),
        ({"rows": [[1, True, 3]]}, "row 1, column 'weight': a boolean; give a number"),
        ('{"rows": [[1, NaN, 3]]}', "row 1, column 'weight': not finite"),
        ('{"rows": [[1, 1e999, 3]]}', "row 1, column 'weight': not finite"),
        ('{"rows": [[1, 1%s, 3]]}' % ("0" * 60), "row 1, column 'weight': not finite, or too large"),
        ({"rows": []}, "no examples: give at least one row"),
        ({"columns": {"age": [], "height": [], "weight": []}}, "no example"),
        ({"columns": {"age": [1], "height": [1]}}, "column 'weight' is missing; the model reads height, weight, age"),
        ({}, "give either rows or columns"),
        ({"rows": [[1, 2, 3]], "columns": {"age": [1]}}, "give either rows or columns"),
        ({"lines": [[1, 2, 3]]}, "lines: Extra inputs are not permitted"),
        ({"rows": 3}, "rows: Input should be a valid"),
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
    ],
)
def test_numbers_that_cannot_be_are_named(body, message):
    status, told = refused(numbers(), body)
    assert status == 422
    assert message in told


def test_places_of_pictures_are_named():
    status, told = refused(numbers("pictures"), {"rows": [[[1, 2, 3], [1, 2, "x"]]]})
    assert (status, told) == (422, "row 1, place 2, place 3: a text; give a number")
    assert "no named columns" in refused(numbers("pictures"), {"columns": {"a": [1]}})[1]


def test_too_much_is_refused():
    assert refused(numbers(), {"rows": [[1, 2, 3]] * 4}, limit=3) == (413, "4 examples: send at most 3 at once")
    assert client(numbers(), 3).post("/predict", json={"rows": [[1, 2, 3]] * 3}).status_code == 200
    status, told = refused(numbers(), " " * 10_000, limit=3)
    assert (status, told) == (413, "more than 4672 bytes: send at most 3 examples at once")
    with pytest.raises(PluresError, match="limit=0"):
        app(numbers(), 0)


def test_other_hosts_are_refused():
    """A page of another site whose name resolves to this machine (DNS rebinding) gets nothing."""
    assert client(numbers()).get("/card", headers={"host": "evil.example"}).status_code == 400


def test_nothing_of_a_request_is_logged(caplog, monkeypatch):
    """Not on success, not on refusal, and not if the prediction itself fails."""
    caplog.set_level(logging.DEBUG)
    used = client(hospital(), raise_server_exceptions=False)
    secret = {"columns": patients(1) | {"age": [61.2345678]}}
    assert used.post("/predict", json=secret).status_code == 200
    assert used.post("/predict", json={"columns": patients(1) | {"sex": ["secretly"]}}).status_code == 422

    def fails(*_: object) -> None:
        raise RuntimeError("of the row 61.2345678")

    monkeypatch.setattr(PersonalModel, "predict", fails)
    failed = used.post("/predict", json=secret)
    assert (failed.status_code, failed.json()["detail"]) == (500, "the prediction failed: RuntimeError")
    assert "1 examples in" in caplog.text
    assert "prediction failed: RuntimeError" in caplog.text
    assert "61.23" not in caplog.text
    assert "secretly" not in caplog.text


def test_a_taken_port_is_named():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PluresError, match=f"cannot listen on 127.0.0.1 port {port}.*choose others with"):
            serve(numbers(), port=port)


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    numbers().save(tmp_path)
    monkeypatch.delitem(sys.modules, "plures.serving.serve")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = CliRunner().invoke(commands, ["serve", str(tmp_path)])
    assert isinstance(done.exception, PluresError)
    assert str(done.exception) == "serving needs FastAPI and uvicorn: pip install 'plures[serve]'"


def ask(port: int, columns: dict[str, list[object]]) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", json.dumps({"columns": columns}))
    (outputs,) = json.loads(connection.getresponse().read())["outputs"]
    connection.close()
    return outputs


@pytest.fixture
def port(monkeypatch):
    """An endpoint in this process with short timeouts and few connections."""
    monkeypatch.setattr(Connection, "patience", 1.0)
    monkeypatch.setattr("plures.serving.serve.CONNECTIONS", 20)
    running = server(app(numbers(), 10))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        yield listening.getsockname()[1]
        running.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def says(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Everything received until the endpoint closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire, contextlib.suppress(ConnectionError):
        for part in parts:
            wire.sendall(part)
            time.sleep(pause)
        found = bytearray()
        while piece := wire.recv(4096):
            found += piece
        return bytes(found)
    return b""


BODY = b'{"rows": [[0.1, 0.2, 0.3]]}'
HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (HEAD[:20],),
        (HEAD[:-1],),
        (HEAD, BODY[:5]),
        tuple(HEAD[i : i + 1] for i in range(len(HEAD))),
        (HEAD, *(BODY[i : i + 1] for i in range(len(BODY)))),
    ],
    ids=["nothing", "half a line", "half the headers", "half the body", "headers in drops", "a body in drops"],
)
def test_who_is_slow_is_cut_off(port, parts):
    """Before all drops are there: it takes them 2.7 s and more."""
    start, pause = time.monotonic(), 0.1 if len(parts) > 2 else 0.0
    assert says(port, *parts, pause=pause) == b""
    assert not pause or time.monotonic() - start < pause * len(parts)
    assert ask_numbers(port) == 200


def test_a_second_request_must_come_in_time_too(port):
    """A client in time is answered, on the same connection, even after the timeout of a single request."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        for _ in range(3):
            wire.sendall(HEAD + BODY)
            answer = http.client.HTTPResponse(wire)
            answer.begin()
            assert json.loads(answer.read())["client"] == "a"
            time.sleep(0.4)
        wire.sendall(HEAD[:30])
        with contextlib.suppress(ConnectionError):
            assert wire.recv(100) == b""


def ask_numbers(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", BODY)
    status = connection.getresponse().status
    connection.close()
    return status


def test_many_connections_keep_nobody_out_for_long(port):
    held = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(40)]
    assert ask_numbers(port) == 503
    until(lambda: ask_numbers(port) == 200, 60, "nobody is let in again")
    for wire in held:
        wire.close()


@contextlib.contextmanager
def held_up(begins: Begins, folder: Path) -> Iterator[Begun]:
    """A real server with a client that has sent half a request."""
    numbers().save(folder)
    process = begins("serve", folder, "--port", 0)
    until(lambda: process.out.exists() and "\n" in process.out.read_text(), 60, "no server")
    port = int(process.out.read_text().splitlines()[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.sendall(HEAD + BODY[:5])
        time.sleep(0.3)
        yield process


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_time_whoever_is_connected(begins, tmp_path, stop):
    """Half a request used to block it forever."""
    with held_up(begins, tmp_path) as process:
        process.send(stop)
        assert process.wait(60) == 0


def test_a_second_signal_ends_it_at_once(begins, tmp_path):
    with held_up(begins, tmp_path) as process:
        process.send(signal.SIGTERM)
        time.sleep(0.5)
        process.send(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def test_a_real_process_answers_until_it_is_stopped(tmp_path):
    model, table = hospital(), patients(3)
    model.save(tmp_path)
    command = [sys.executable, "-m", "plures.cli", "-v", "serve", str(tmp_path), "--port", "0"]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"serving the model of va, version (\S+), on http://127\.0\.0\.1:(\d+)", line)
        assert found, line + Path(tmp_path / "errors").read_text()
        assert found[1] == model.card.version
        connection = http.client.HTTPConnection("127.0.0.1", int(found[2]), timeout=60)
        body = json.dumps({"columns": table | {"age": [50, 61.2345678, 70]}})
        connection.request("POST", "/predict", body)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        assert answer.status == 200, told
        wanted = model.predict(table | {"age": [50, 61.2345678, 70]})[0]
        torch.testing.assert_close(torch.tensor(told["outputs"]), wanted, rtol=0, atol=1e-6)
        connection.request("POST", "/predict", json.dumps({"columns": table | {"sex": ["secretly"] * 3}}))
        assert connection.getresponse().status == 422
        connection.close()
        with ThreadPoolExecutor(4) as several:
            rows = [{name: cells[i : i + 1] for name, cells in patients(12).items()} for i in range(12)]
            answers = list(several.map(lambda row: ask(int(found[2]), row), rows))
        torch.testing.assert_close(torch.tensor(answers), model.predict(patients(12))[0], rtol=0, atol=1e-6)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
    assert code == 0
    written = process.stdout.read() + (tmp_path / "errors").read_text()
    assert "3 examples in" in written
    assert "61.23" not in written
    assert "secretly" not in written
