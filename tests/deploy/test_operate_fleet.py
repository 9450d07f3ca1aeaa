"""An operator's day with real processes: a run is started, a site hangs, the run is stopped, resumed, cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call
from fleet import LATE, fenced
from hospitals import written

from plures.deploy.conduct import RESULT
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.fleet.process import until
from plures.deploy.journal import Journal
from plures.deploy.operate.place import works
from plures.deploy.templates import filled
from plures.errors import PluresError
from plures.tables.heart import heart_tables

HOSPITALS = sorted(heart_tables())


def test_an_operators_day(tmp_path: Path) -> None:
    written(tmp_path, rules="deadline = 300.0\nmin_clients = 3", rounds=6, method="fedavg")
    (tmp_path / "pyproject.toml").write_text(filled("pyproject.toml", name="heart", app="heart"))
    (tmp_path / "carrier.py").write_text(filled("carrier.py"))
    out, sites = tmp_path / "results", {client: tmp_path / client / "site.toml" for client in HOSPITALS}

    def status() -> dict:
        return json.loads(call("status", tmp_path, "--json"))

    def reached(done: Callable[[dict], bool], what: str, seconds: float = LATE) -> dict:
        seen: dict = {}

        def look() -> bool:
            seen.clear()
            seen.update(status())
            return done(seen)

        until(look, seconds, lambda: f"{what}: {seen}\n{fleet.superlink.tail()}", poll=0.3)
        return seen

    with Fleet(tmp_path, sites, quick=True, environment=fenced(tmp_path)) as fleet:
        fleet.agree(tmp_path / "federation.toml")
        first = status()
        assert [(site["client"], site["node"]) for site in first["sites"]] == [(c, "online") for c in HOSPITALS]
        assert (first["run"]["state"], first["superlink"], first["flower"]) == ("none", "up", "")

        assert "continues at the SuperLink" in call("run", tmp_path, "--detach")
        reached(lambda seen: seen["run"]["round"] >= 1, "no round")
        fleet.nodes["va"].pause()
        hung = reached(lambda seen: seen["run"]["waiting"] == ["va"], "va is not waited for")
        assert (hung["run"]["state"], hung["flower"]) == ("running", "running")
        assert [site["client"] for site in hung["sites"] if site["waited"]] == ["va"]
        assert hung["run"]["until"] - hung["run"]["since"] == 300
        again = call("run", tmp_path, "--detach")
        assert len(fleet.control.runs()) == 1, again

        assert f"`plures deploy run --out {out}` resumes" in call("stop", tmp_path)
        stopped = status()
        assert (stopped["run"]["state"], stopped["run"]["reason"]) == ("stopped", "by the operator")
        assert not works(out)
        assert call("stop", tmp_path) == "no run is under way\n"
        assert [run.status for run in fleet.control.runs()] == ["finished:stopped"]

        call("run", tmp_path, "--detach")
        waits = reached(lambda seen: seen["run"]["waiting"] == ["va"], "a resumed run does not wait for va")
        assert waits["run"]["state"] == "joining"
        assert waits["run"]["round"] == stopped["run"]["round"]
        fleet.nodes["va"].resume()
        reached(lambda seen: seen["run"]["round"] > stopped["run"]["round"], "it does not go on")

        fleet.superlink.kill()
        down = status()
        assert "does not answer" in down["superlink"]
        assert {site["node"] for site in down["sites"]} == {"unknown"}
        assert down["run"]["round"] >= stopped["run"]["round"]
        until(lambda: not works(out), LATE, "the run's process outlives its SuperLink")
        assert status()["run"]["state"] == "stopped"
        fleet.start_superlink()
        assert f"finished: {out}" in call("run", tmp_path)

        assert "va was removed from" in call("remove", "va", "--folder", tmp_path, "--yes")
        gone = status()
        assert [site["client"] for site in gone["sites"]] == HOSPITALS[:3]
        assert gone["notes"] == []
        with pytest.raises(PluresError, match="or was removed, and the SuperLink accepts no key twice"):
            fleet.control.register(fleet.keys.node_public("va"), "va")

    assert (out / RESULT).exists()
    last = status()
    assert (last["run"]["state"], last["run"]["round"], last["run"]["waiting"]) == ("finished", 6, [])
    assert all(site["counted"] for site in last["sites"])
    assert "holds a finished run" in call("run", tmp_path)
    assert [event["round"] for event in Journal(out).events("round")] == [1, 2, 3, 4, 5, 6]
