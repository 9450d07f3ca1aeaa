"""Real SuperNodes over Flower, with TLS and node authentication, give the same results as one process."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from benchmarks.aftermath import kept, lost, prepared
from benchmarks.stage import Failure, Stage, soon
from benchmarks.sums import DROPPED, IN_ROUND, dropping, kill
from fleet import LATE
from hospitals import files, simulated

from plures.deploy.app import PUBLISHED
from plures.deploy.conduct import RESULT, SECRET, STATE
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.journal import Journal
from plures.deploy.plan import Plan
from plures.evaluate.results import SeedResult
from plures.files import read
from plures.privacy import gaussian
from plures.remote.state import SUM, Versions
from plures.run.checkpoint import snapshot
from plures.run.cost import traffic
from plures.serving.personal import PersonalModel
from plures.tables.heart import heart_schema, heart_tables

APP = Path(__file__).parent / "app"
TWO = {"person": ("age", "sex"), "tests": tuple(c.name for c in heart_schema().columns if c.name not in ("age", "sex"))}
"""Arguments of a network with two inputs."""
METHODS = {
    "fedavg": ("model",),
    "ditto+threshold": ("model",),
    "fedrep": ("model",),
    "scaffold": ("model", "control"),
    "ifca": ("model",),
    "pfedme": ("model",),
    "ditto+trimmed_mean": ("model",),
    "scaffold+qsparse(keep=0.2, levels=7)": ("model", "control"),
}


def told(out: Path) -> dict:
    return json.loads((out / RESULT).read_text())


@pytest.mark.parametrize(("method", "arguments"), [*((method, {}) for method in METHODS), ("fedrep", TWO)])
def test_every_leaf_is_that_of_the_simulation(
    fleet: Fleet, tmp_path: Path, method: str, arguments: dict[str, tuple[str, ...]]
) -> None:
    """Also of a network with several inputs, each of which reads some columns of the sites' tables."""
    home, schema = fleet.folder / "sites", heart_schema().model_copy(update={"arguments": arguments})
    for client in heart_tables():
        shutil.rmtree(home / client / "state", ignore_errors=True)  # of another run of the same method
    rules = "min_clients = 4\ndeadline = 60"
    file = files(home, schema, heart_tables(), rules, METHODS[method], method=method, rounds=2)
    before = {client: (relay.traffic.down, relay.traffic.up) for client, relay in fleet.relays.items()}
    run = fleet.conduct(APP, file, tmp_path)
    assert fleet.wait(run, LATE) == "finished:completed", fleet.superlink.tail(40)
    found = told(tmp_path)
    result = SeedResult.model_validate(found["result"])
    expected, here = simulated(file)

    state, about = read(tmp_path / STATE)
    assert about["round"] == expected.chosen_round == result.chosen_round
    for name, value in snapshot(here).items():
        if not name.startswith("clients:") and name != "visited":
            torch.testing.assert_close(state[name], value, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for place, client in enumerate(here.federation.clients):
        folder = home / client / "state" / "heart" / Plan.load(file).label
        stored = Versions(folder, about["run"]).load(int(here.last[place]))
        assert stored is not None
        for leaf in here.stored_leaves():
            own = here.store.get(leaf, [place])[0]
            torch.testing.assert_close(stored[f"own:{leaf}"], own, atol=2e-6, rtol=1e-4)
        rows = here.federation.inputs[here.federation.splits["test"][place]]
        outputs = here.engine.forward(here.deployed([place]), rows[None])[0]
        torch.testing.assert_close(PersonalModel.load(folder / PUBLISHED).outputs(rows), outputs, atol=1e-5, rtol=1e-3)
    for metric, values in expected.test.metrics.items():
        assert result.test.metrics[metric] == pytest.approx(values, rel=1e-3, abs=1e-5)

    assert [point.bytes for point in result.curve] == [point.bytes for point in expected.curve]
    assert found["progress"]["bytes"]["up"] == 2 * len(here.federation) * traffic(here.bound)[0]
    passed = sum(
        sum((relay.traffic.down, relay.traffic.up)) - sum(before[client]) for client, relay in fleet.relays.items()
    )
    print(method, found["progress"]["bytes"], "on the wire", passed)


RESTARTED = Failure(
    "site restarted",
    "the node ends as a service does, with its work, and is started again after a round",
    lambda stage, client: stage.fleet.nodes[client].stop(),
    lambda stage, client: stage.fleet.nodes[client].start(),
)


def test_private_rounds_over_real_sites(fleet: Fleet, tmp_path: Path) -> None:
    """Noise of the coordinator, within a site's ceiling: the model is not that of the seed, and epsilon is told."""
    home = fleet.folder / "sites"
    for client in heart_tables():
        shutil.rmtree(home / client / "state", ignore_errors=True)
    rules, private = "min_clients = 4\ndeadline = 60", "clip=0.1,noise=1,delta=1e-3"
    file = files(home, heart_schema(), heart_tables(), rules, method="fedavg", rounds=2, dp=private)
    with (home / "va" / "site.toml").open("a") as own:
        own.write("epsilon = 8\nclip = 0.1\n")
    run = fleet.conduct(APP, file, tmp_path)
    assert fleet.wait(run, LATE) == "finished:completed", fleet.superlink.tail(40)
    result = SeedResult.model_validate(told(tmp_path)["result"])
    assert result.privacy is not None
    assert result.privacy.epsilon == pytest.approx(gaussian(1 / math.sqrt(2), 1e-3))
    assert [math.isnan(point.train_loss) for point in result.curve] == [True, True]
    assert not (tmp_path / SECRET).exists()
    state, _ = read(tmp_path / STATE)
    _, here = simulated(file)
    name = next(name for name in state if name.endswith("weight"))
    assert not torch.allclose(state[name], snapshot(here)[name], atol=1e-3)
    card = PersonalModel.load(home / "va" / "state" / "heart" / "fedavg" / PUBLISHED).card
    assert card.privacy is not None
    assert card.privacy.epsilon == pytest.approx(result.privacy.epsilon)


def test_what_a_client_remembers_outlives_its_sites_processes(fleet: Fleet, tmp_path: Path) -> None:
    """What a sparse upload left out is on the site's disk, and the next upload after a restart includes it."""
    home = fleet.folder / "sites"
    rules, run = {"min_clients": 1, "deadline": soon(), "patience": 20}, {"method": "ditto+qsparse(keep=0.1)"}
    with Stage(fleet, home, tmp_path, rules, run | {"rounds": 60}) as stage:
        stage.after(2)
        stage.strike((RESTARTED, "va"))
        stage.missed(RESTARTED)
        stored = max(kept(stage.file, "va").glob("state-*.safetensors"))
        left_out = {name: t for name, t in read(stored)[0].items() if name.startswith("own:wire/0:error:")}
        stage.mend(RESTARTED)
        stage.recovered(RESTARTED)
        stage.stop()
        (outcome,) = stage.outcomes()
    assert left_out
    assert sum(int(t.count_nonzero()) for t in left_out.values()) > 0
    assert outcome.missed
    assert outcome.lost == []


def test_a_secure_sum_is_that_of_the_others_if_a_site_is_killed_before_its_upload(fleet: Fleet, tmp_path: Path) -> None:
    """It has dealt shares, so its masks are in the sum, and the others reveal them. It takes part in the next round.

    Every leaf of the server, of the sites' states and of the published models is that of a simulation with the three.
    """
    home = fleet.folder / "sites"
    file = prepared(home, {"deadline": 60.0}, method="ditto+secure_sum", rounds=3)
    dropping(home)
    run = fleet.conduct(APP, file, tmp_path)
    assert fleet.wait(run, LATE, lambda: kill(fleet, home)) == "finished:completed", fleet.superlink.tail(40)
    rounds = Journal(tmp_path).rounds()
    everybody = sorted(heart_tables())
    others = [client for client in everybody if client != DROPPED]
    assert [event["clients"] for event in rounds] == [everybody, others, everybody], rounds
    assert IN_ROUND == 1
    assert list(rounds[1]["left_out"]) == [DROPPED]
    assert lost(file, tmp_path) == []
    for client in everybody:
        assert not (kept(file, client) / SUM).exists()
    print(told(tmp_path)["progress"]["bytes"], [event["seconds"] for event in rounds])
