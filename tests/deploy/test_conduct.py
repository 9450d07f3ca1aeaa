"""A federation of sites from its two files to its published models; stopped, and resumed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hospitals import files, simulated, written
from sites import Loopback, conductor

from plures.deploy.app import PUBLISHED, opened, site
from plures.deploy.conduct import CHECKPOINT, Conductor
from plures.deploy.journal import LOG, METRICS
from plures.deploy.plan import Plan
from plures.errors import PluresError
from plures.remote.message import Order, Reply, pack, unpack
from plures.remote.state import Versions
from plures.run.interrupt import rest
from plures.serving.personal import PersonalModel
from plures.tables.heart import heart_tables
from plures.tables.schema import Number, Schema


def hospitals(file: Path) -> Loopback:
    return Loopback([opened(file.parent / name / "site.toml") for name in heart_tables()])


def test_a_federation_of_sites_is_the_simulation(tmp_path):
    file = written(tmp_path)
    result = conductor(file, hospitals(file)).run()
    expected, run = simulated(file)
    assert result.chosen_round == expected.chosen_round
    for here, there in ((expected.test, result.test), (expected.validation, result.validation)):
        assert there.clients == here.clients
        assert there.sizes == here.sizes
        for metric, values in here.metrics.items():
            assert there.metrics[metric] == pytest.approx(values, rel=1e-4, abs=1e-6)
    assert [p.round for p in result.curve] == [p.round for p in expected.curve] == [1, 2, 3, 4]
    assert [p.validation for p in result.curve] == pytest.approx([p.validation for p in expected.curve], rel=1e-5)
    assert [p.bytes for p in result.curve] == [p.bytes for p in expected.curve]
    for place, client in enumerate(run.federation.clients):
        model = PersonalModel.load(tmp_path / client / "state" / "heart" / "ditto+threshold" / PUBLISHED)
        rows = run.federation.inputs[run.federation.splits["test"][place]]
        deployed = run.deployed([place])
        outputs = run.engine.forward(deployed, rows.unsqueeze(0))[0]
        torch.testing.assert_close(model.outputs(rows), outputs, atol=1e-5, rtol=1e-4)
        assert model.card.round == expected.chosen_round
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_a_federation_of_sites_learns_labels(tmp_path):
    """Several columns of 0 and 1 at every site: the scores and the models of the simulation."""
    rng, tables = np.random.default_rng(0), {}
    for number, name in enumerate(("east", "west")):
        x = rng.uniform(-1, 1, size=(60, 2)).round(3)
        signs = {"cough": x[:, 0] > 0.2 * number, "fever": x[:, 1] - x[:, 0] > 0.4}
        tables[name] = {key: column.tolist() for key, column in {"a": x[:, 0], "b": x[:, 1]}.items()}
        tables[name] |= {key: there.astype(int).tolist() for key, there in signs.items()}
    schema = Schema(task="multilabel", target=("cough", "fever"), columns=(Number(name="a"), Number(name="b")))
    file = files(tmp_path, schema, tables, method="ditto", rounds=3)
    sites = Loopback([opened(file.parent / name / "site.toml") for name in tables])
    result = conductor(file, sites).run()
    expected, run = simulated(file, tables)
    assert result.chosen_round == expected.chosen_round
    assert {"auroc", "f1", "loss"} <= {*expected.test.metrics}
    for metric, values in expected.test.metrics.items():
        assert result.test.metrics[metric] == pytest.approx(values, rel=1e-4, abs=1e-6)
    for place, client in enumerate(run.federation.clients):
        model = PersonalModel.load(tmp_path / client / "state" / "heart" / "ditto" / PUBLISHED)
        rows = run.federation.inputs[run.federation.splits["test"][place]]
        outputs = run.engine.forward(run.deployed([place]), rows.unsqueeze(0))[0]
        torch.testing.assert_close(model.outputs(rows), outputs, atol=1e-5, rtol=1e-4)
        assert model.card.sheet["labels"] == {name: sum(tables[client][name]) for name in ("cough", "fever")}


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_a_server_that_dies_goes_on_to_the_same_result(tmp_path, killed):
    file = written(tmp_path / "whole")
    expected = conductor(file, hospitals(file)).run()

    file = written(tmp_path / "halves")
    carrier = hospitals(file)
    calls = 0

    def dies(address: int, answer: bytes) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 4 + 4 * killed + 2:  # in the middle of a round, after some sites did their work
            raise KeyboardInterrupt
        return answer

    carrier.spoil = dies
    with pytest.raises(KeyboardInterrupt):
        conductor(file, carrier).run()
    again = hospitals(file)
    result = conductor(file, again).run()
    events = [json.loads(line) for line in (file.parent / "out" / LOG).read_text().splitlines()]
    assert [e["round"] for e in events if e["event"] == "resumed"] == [killed]
    assert [e["round"] for e in events if e["event"] == "round"] == [1, 2, 3, 4]
    assert result.test == expected.test
    assert result.validation == expected.validation
    assert [(p.round, p.validation, p.bytes) for p in result.curve] == [
        (p.round, p.validation, p.bytes) for p in expected.curve
    ]
    for client in heart_tables():
        ours, theirs = (
            PersonalModel.load(tmp_path / half / client / "state" / "heart" / "ditto+threshold" / PUBLISHED)
            for half in ("whole", "halves")
        )
        assert ours.card.digest == theirs.card.digest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_at_once_and_it_goes_on_to_the_same_result(tmp_path, number):
    expected = conductor(written(tmp_path / "whole"), hospitals(tmp_path / "whole" / "federation.toml")).run()

    def flower(heard: int, frame: object) -> None:
        raise SystemExit(heard)

    file = written(tmp_path / "halves")
    carrier, calls = hospitals(file), 0

    def struck(address: int, answer: bytes) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 4 + 4 * 2 + 2:
            os.kill(os.getpid(), number)
            rest(30)
        return answer

    carrier.spoil = struck
    before, begin = signal.signal(number, flower), time.monotonic()
    try:
        with pytest.raises(SystemExit, match=str(int(number))):
            conductor(file, carrier).run()
    finally:
        signal.signal(number, before)
    assert time.monotonic() - begin < 20
    events = [json.loads(line) for line in (file.parent / "out" / LOG).read_text().splitlines()]
    assert [e["round"] for e in events if e["event"] == "round"] == [1, 2]
    assert (events[-1]["event"], events[-1]["reason"]) == ("stopped", "ended from outside")
    assert (file.parent / "out" / CHECKPOINT).exists()
    result = conductor(file, hospitals(file)).run()
    assert (result.test, result.validation, result.chosen_round) == (
        expected.test,
        expected.validation,
        expected.chosen_round,
    )


def test_metrics_tell_the_round_and_who_was_left_out(tmp_path):
    file = written(tmp_path, rules="min_clients = 2", method="fedavg")
    carrier = hospitals(file)
    carrier.spoil = lambda address, answer: "gone" if address == 102 and len(carrier.log) > 8 else answer
    job = conductor(file, carrier)
    job.run()
    lines = (tmp_path / "out" / METRICS).read_text().splitlines()
    assert "plures_round 4" in lines
    assert "plures_clients 3" in lines
    assert 'plures_left_out_total{client="switzerland"} 3' in lines
    assert job.progress.left_out == {"switzerland": 3}
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    assert told["unpublished"] == {"switzerland": "gone"}


def test_too_few_sites_stop_the_run_and_it_goes_on(tmp_path):
    file = written(tmp_path, rules="min_clients = 3\npatience = 2")
    carrier = hospitals(file)
    job = conductor(file, carrier)
    carrier.spoil = lambda address, answer: "cut" if address > 101 and len(carrier.log) > 8 else answer
    with pytest.raises(PluresError, match="round 2 failed 2 times in a row"):
        job.run()
    carrier.spoil = lambda address, answer: answer
    result = conductor(file, carrier).run()
    other = written(tmp_path / "other", rules="min_clients = 3\npatience = 2")
    assert result.test == conductor(other, hospitals(other)).run().test


def test_a_sample_that_is_too_small_to_count_is_refused_before_the_first_round(tmp_path):
    file = written(tmp_path, rules="min_clients = 3", fraction=0.5)
    carrier = hospitals(file)
    with pytest.raises(PluresError, match="min_clients = 3, and participation asks 2 clients in round 1: lower it"):
        conductor(file, carrier).run()
    assert {unpack(body, Order)[0].request for _, body in carrier.log} == {"join"}


def test_the_start_names_who_did_not_join(tmp_path):
    file = written(tmp_path, rules="join_deadline = 0.1")
    carrier = hospitals(file)
    carrier.down = {101}
    with pytest.raises(PluresError, match=r"clients hungarian did not join within 0\.1 seconds"):
        conductor(file, carrier).run()


def test_a_leaf_that_is_personal_stays_on_its_site(tmp_path):
    file = written(tmp_path)
    carrier = hospitals(file)
    conductor(file, carrier).run()
    crossed = b"".join([body for _, body in carrier.log] + [body for _, body in carrier.answers])
    folder = tmp_path / "cleveland" / "state" / "heart" / "ditto+threshold"
    site = opened(tmp_path / "cleveland" / "site.toml")
    stored = Versions(folder, unpack(carrier.log[-1][1], Order)[0].run).load(4)
    personal = {name: t for name, t in stored.items() if name.startswith("own:personal")}
    assert personal
    for name, value in personal.items():
        if value.numel() > 1:
            assert value.numpy().tobytes() not in crossed, name
    rows = site.data.inputs[site.data.splits["train"][0]]
    assert not any(row.numpy().tobytes() in crossed for row in rows)


class Heard:
    """A callback that records all notifications."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def on_start(self, about: object) -> None:
        self.told.append(("start", about))

    def on_round(self, record: object) -> None:
        self.told.append(("round", record))

    def on_point(self, point: object) -> None:
        self.told.append(("point", point))

    def on_end(self, result: object) -> None:
        self.told.append(("end", result))

    def on_stop(self, reason: object) -> None:
        self.told.append(("stop", reason))


def test_callbacks_hear_of_a_rounds_scores_a_round_later(tmp_path):
    file = written(tmp_path)
    heard = Heard()
    conducted = Conductor(Plan.load(file), hospitals(file), tmp_path / "out", lambda seconds: None, callbacks=[heard])
    result = conducted.run()
    assert [what for what, _ in heard.told] == ["start", "round", *["point", "round"] * 3, "point", "end"]
    assert [point for what, point in heard.told if what == "point"] == result.curve
    assert [end for what, end in heard.told if what == "end"] == [result]
    for point, clients in zip(result.curve, [point.clients for point in result.curve], strict=True):
        assert len(clients) == 4
        assert point.validation == pytest.approx(sum(clients) / 4)


def test_what_a_sites_loader_says_stays_at_the_site(tmp_path):
    written(tmp_path)
    folder = tmp_path / "va"
    (folder / "rows.py").write_text("def load():\n    raise RuntimeError('patient 17 has cancer')\n")
    file = folder / "site.toml"
    file.write_text(file.read_text().replace('data = "data.csv"', 'loader = "rows.py:load"'))
    reply, _ = unpack(site({"site": str(file)}).answer(pack(Order(request="join"))), Reply)
    assert reply.status == "failed"
    assert "patient" not in reply.reason
    assert "the site's own log says what is wrong" in reply.reason
