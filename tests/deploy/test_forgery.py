"""An attacker on a site's machine without a key: what the attacker can do to real nodes, and with what effect."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.aftermath import CLIENTS, lost, prepared
from fleet import LATE

from plures.deploy.fleet.loopback import Fleet
from plures.deploy.fleet.process import Process, until
from plures.deploy.journal import Journal

HERE = Path(__file__).parent
APP = HERE / "app"


@contextmanager
def forging(node: Process, log: Path) -> Iterator[Path]:
    """The forger at work on a node; its file grows by a line for everything that it did."""
    port = node.command[node.command.index("--port") + 1]
    with log.open("w") as out:
        words = [sys.executable, str(HERE / "forger.py"), port]
        child = subprocess.Popen(words, stdout=out, env=node.environment)
        try:
            yield log
            assert child.poll() is None, "the forger has ended"
        finally:
            child.kill()
            child.wait()


def done(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_forged_weights_do_not_count_and_the_run_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    """Flower's plain node gives its tasks to anyone who asks, but their answers are not signed with the site's key.

    The network has no kinks, at which differences of rounding between processes would grow over many rounds.
    """
    home, out = fleet.folder / "sites", tmp_path / "out"
    file = prepared(home, {"min_clients": 3, "deadline": 60}, model="logistic", rounds=30)
    run = fleet.conduct(APP, file, out)
    journal = Journal(out)
    until(lambda: len(journal.events("round")) >= 2, LATE, fleet.superlink.tail)
    with forging(fleet.nodes["va"], tmp_path / "forger") as log:
        until(lambda: {answer.get("signed") for answer in done(log)} >= {True, False}, LATE, log.read_text)
        reached = len(journal.events("round"))
        until(lambda: len(journal.events("round")) > reached, LATE, fleet.superlink.tail)
    last = len(journal.events("round"))
    until(lambda: any("va" in e["clients"] for e in journal.events("round")[last:]), LATE, fleet.superlink.tail)
    fleet.control.stop(run)
    until(lambda: not fleet.superlink.members("flwr-serverapp"), LATE, fleet.superlink.tail)
    rounds = journal.events("round")
    assert {answer["client"] for answer in done(log)} == {"va"}
    reasons = {event["left_out"]["va"] for event in rounds if "va" in event["left_out"]}
    assert "the answer is not signed" in reasons
    assert any(reason.startswith("the answer is signed with a key that may not sign it, SHA256:") for reason in reasons)
    assert all(event["clients"] == [c for c in CLIENTS if c not in event["left_out"]] for event in rounds)
    assert lost(file, out) == []


def test_a_guarded_node_gives_its_tasks_to_nobody_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    file = prepared(home, {"min_clients": 1, "deadline": 60}, ["va"], rounds=6)
    with Fleet(tmp_path / "fleet", {"va": home / "va" / "site.toml"}, quick=True) as fleet:
        with forging(fleet.nodes["va"], tmp_path / "forger") as log:
            run = fleet.conduct(APP, file, tmp_path / "out")
            assert fleet.wait(run, 400) == "finished:completed", fleet.superlink.tail(40)
        told = done(log)
    assert told
    assert {json.dumps(one) for one in told} == {'{"refused": 401}'}
    assert lost(file, tmp_path / "out") == []
