"""What crosses the wire: with TLS nothing recognizable; without it shared leaves, and nothing else."""

from __future__ import annotations

from pathlib import Path

from fleet import LATE
from hospitals import written

from plures.deploy.app import opened
from plures.deploy.conduct import STATE
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.plan import Plan
from plures.files import read
from plures.remote.state import Versions

APP = Path(__file__).parent / "app"
CLIENTS = ("cleveland", "hungarian", "switzerland", "va")
LEAST = 8
"""Numbers that a leaf must have, so that its bytes do not occur by chance."""


def trained(fleet: Fleet, home: Path, out: Path, method: str) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Two rounds of Ditto; bytes of shared leaves, of personal leaves, and of the rows as tensors and as text.

    Under masks, uploads without them, which only sites have, count as personal.
    """
    file = written(home, method=method, rounds=2)
    assert fleet.wait(fleet.conduct(APP, file, out), LATE) == "finished:completed"
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
        for upload in versions.folder.glob("answer-*-train.safetensors") if method.endswith("secure_sum") else ():
            bare = read(upload)[0]["update:words"].numpy()
            personal += [bare.tobytes(), bare[:LEAST].tobytes(), bare[-LEAST:].tobytes()]
        data = opened(home / client / "site.toml").data
        rows += [row.numpy().tobytes() for row in data.inputs]
        rows += [line.encode() for line in (home / client / "data.csv").read_text().splitlines()[1:]]
    assert len(personal) >= 2 * len(CLIENTS)
    assert len(rows) == 2 * 920
    return shared, personal, rows


def captured(fleet: Fleet) -> dict[tuple[str, str], bytes]:
    return {(client, name): body for client, relay in fleet.relays.items() for name, body in relay.captured().items()}


def found(some: list[bytes], wires: list[bytes]) -> int:
    return sum(any(one in wire for wire in wires) for one in some)


def on_the_wire(fleet: Fleet, home: Path, out: Path, method: str = "ditto") -> tuple[float, bool]:
    """Share of the shared leaves found in a run's traffic, and whether their form is found; nothing else ever is."""
    before = {key: len(body) for key, body in captured(fleet).items()}
    shared, personal, rows = trained(fleet, home, out, method)
    wires = [body[before.get(key, 0) :] for key, body in captured(fleet).items()]
    assert sum(map(len, wires)) > 100_000
    assert found(personal, wires) == 0
    assert found(rows, wires) == 0
    assert len(shared) > 0
    return found(shared, wires) / len(shared), any(b"plures.safetensors" in wire for wire in wires)


def test_with_tls_nothing_is_found_on_the_wire(fleet: Fleet, tmp_path: Path) -> None:
    assert on_the_wire(fleet, fleet.folder / "sites", tmp_path) == (0, False)


def test_without_tls_shared_leaves_are_found_and_nothing_else(tmp_path: Path) -> None:
    """Also of a secure sum: what the server sends out is found, and no upload without its masks."""
    home = tmp_path / "home"
    written(home)
    sites = {client: home / client / "site.toml" for client in CLIENTS}
    with Fleet(tmp_path / "fleet", sites, tls=False, record=True, quick=True) as fleet:
        assert on_the_wire(fleet, home, tmp_path / "out") == (1, True)
        assert on_the_wire(fleet, home, tmp_path / "under masks", "ditto+secure_sum") == (1, True)
