"""What crosses the wire: with TLS nothing known can be found; without it shared leaves can, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hospitals import written

from plures.deploy.app import opened
from plures.deploy.conduct import STATE
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.plan import Plan
from plures.deploy.state import Versions
from plures.files import read

APP = Path(__file__).parent / "app"
CLIENTS = ("cleveland", "hungarian", "switzerland", "va")
LEAST = 8
"""Numbers that a leaf must have, so that its bytes do not occur by chance."""


def trained(fleet: Fleet, home: Path, out: Path) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Two rounds of Ditto; bytes of shared leaves, of personal leaves, and of the rows as tensors and as text."""
    file = written(home, method="ditto", rounds=2)
    assert fleet.wait(fleet.submit(APP, {"plan": str(file), "out": str(out)}), 120) == "finished:completed"
    state, about = read(out / STATE)
    shared = [
        t.numpy().tobytes() for name, t in state.items() if name.startswith("server:model") and t.numel() >= LEAST
    ]
    personal, rows = [], []
    for client in CLIENTS:
        versions = Versions(home / client / "state" / "heart" / Plan.load(file).label, about["run"])
        for version in versions.present():
            stored = versions.load(version) or {}
            personal += [t.numpy().tobytes() for t in stored.values() if t.numel() >= LEAST]
        data = opened(home / client / "site.toml").data
        rows += [row.numpy().tobytes() for row in data.inputs]
        rows += [line.encode() for line in (home / client / "data.csv").read_text().splitlines()[1:]]
    assert len(personal) >= 2 * len(CLIENTS)
    assert len(rows) == 2 * 920
    return shared, personal, rows


def captured(fleet: Fleet) -> list[bytes]:
    return [body for relay in fleet.relays.values() for body in relay.captured().values()]


def found(some: list[bytes], wires: list[bytes]) -> int:
    return sum(any(one in wire for wire in wires) for one in some)


@pytest.mark.parametrize("tls", [True, False])
def test_no_personal_leaf_and_no_row_is_on_the_wire(tls: bool, tmp_path: Path) -> None:
    home = tmp_path / "home"
    sites = {client: home / client / "site.toml" for client in CLIENTS}
    written(home)
    with Fleet(tmp_path / "fleet", sites, tls=tls, record=True, quick=True) as fleet:
        shared, personal, rows = trained(fleet, home, tmp_path / "out")
    wires = captured(fleet)
    assert sum(map(len, wires)) > 100_000
    assert found(personal, wires) == 0
    assert found(rows, wires) == 0
    assert found(shared, wires) == (0 if tls else len(shared))
    assert any(b"plures.safetensors" in wire for wire in wires) != tls
