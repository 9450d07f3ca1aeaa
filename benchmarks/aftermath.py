"""Four hospitals as sites: compare what a run over them has left on every disk with a simulation.

The run's log names the cohort of each round that counted. A simulation in one process with these cohorts must give
every leaf that the server keeps, every version of a site's personal state that was acknowledged, and every published
model: then nothing that was acknowledged is lost, and each round was applied exactly once or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plures import Run
from plures.deploy.app import PUBLISHED
from plures.deploy.conduct import CHECKPOINT, RESULT, STATE
from plures.deploy.journal import Journal
from plures.deploy.plan import Plan
from plures.evaluate import score
from plures.files import read
from plures.remote.clients import ONE_CLIENT
from plures.remote.state import Versions
from plures.run import Fixed
from plures.run.checkpoint import BEST, snapshot
from plures.serving.personal import PersonalModel
from plures.tables.heart import heart_schema, heart_tables
from plures.tables.table import read_table, write_table

CLIENTS = ("cleveland", "hungarian", "switzerland", "va")
RUN = {"method": "ditto+threshold", "lr": 0.1, "rounds": 3, "seed": 3}
SENT = {"scaffold": ("model", "control"), "fedproto": ("prototypes",)}
"""Slots that a method sends besides the model."""

EXACT = ('tell = ["examples", "sizes"]', "digits = 17", "least = 1")
"""What a site allows in ``[allow]`` so that its numbers can be compared with the simulation's."""

UNCOMPARED = ("clients", "visited", BEST.rstrip(":"))
"""Parts of a checkpoint that are not compared: clients keep their own state, and the best round is an earlier one."""

HOLD, AT_WORK = "hold", "at-work"
LOADER = f"""\
import time
from pathlib import Path

from plures.tables.table import read_table

HERE = Path(__file__).parent


def load():
    while (HERE / "{HOLD}").exists():
        (HERE / "{AT_WORK}").touch()
        time.sleep(0.02)
    return read_table(HERE / "data.csv")
"""
"""How a site loads its data: it waits as long as there is a file ``hold``."""


def prepared(
    home: Path, rules: Mapping[str, float] | None = None, clients: Sequence[str] = CLIENTS, **run: Any
) -> Path:
    """Write the files of some hospitals, without anything that an earlier run has left; returns the federation's file.

    Args:
        home: folder of ``federation.toml`` and of a folder for each hospital.
        rules: rules of the federation.
        clients: names of the hospitals.
        run: settings that differ from :data:`RUN`.
    """
    told: dict[str, Any] = RUN | run
    lines = ['name = "heart"', f"clients = {json.dumps(clients)}", "", "[run]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in told.items()]
    lines += ["", "[rules]", *(f"{key} = {value}" for key, value in (rules or {}).items()), "", ""]
    file = home / "federation.toml"
    tables = heart_tables()
    for client in clients:
        folder = home / client
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "state", ignore_errors=True)
        for flag in (HOLD, AT_WORK):
            (folder / flag).unlink(missing_ok=True)
        write_table(folder / "data.csv", tables[client])
        (folder / "load.py").write_text(LOADER)
        own = [f'client = "{client}"', 'loader = "load.py:load"', 'federation = "../federation.toml"', "[allow]"]
        sent = json.dumps(SENT.get(told["method"], ("model",)))
        (folder / "site.toml").write_text("\n".join([*own, f"send = {sent}", *EXACT, ""]))
    file.write_text("\n".join(lines) + heart_schema().to_toml())
    return file


def kept(file: Path, client: str) -> Path:
    """Folder of a site's files for a federation and its method."""
    plan = Plan.load(file)
    return file.parent / client / "state" / plan.name / plan.label


def lost(file: Path, out: Path, afresh: Mapping[str, int] | None = None) -> list[str]:
    """Differences from the simulation; there must be none.

    Args:
        file: the federation's file.
        out: the folder of a run that is finished or has stopped.
        afresh: clients that started afresh, each with the number of rounds finished before.
    """
    state, _ = read(out / STATE if (out / STATE).exists() else out / CHECKPOINT)
    state = {name: value for name, value in state.items() if name.partition(":")[0] not in UNCOMPARED}
    rounds = Journal(out).rounds()
    found = [f"round {e['round']} is number {i} in the log" for i, e in enumerate(rounds, 1) if e["round"] != i]
    run = simulated(file, [event["clients"] for event in rounds])
    reached = int(state["round"])
    for number in range(len(rounds)):
        for client in (name for name, after in (afresh or {}).items() if after == number):
            place = run.setting.index(client)
            run.store.visited[place], run.last[place] = False, 0
        run.step()
        if run.round == reached:
            here = snapshot(run).items()
            found += differing(state, {k: t for k, t in here if k.partition(":")[0] not in UNCOMPARED})
            found += unlike(file, out, run)
    for place, client in enumerate(run.setting.clients):
        found += misplaced(kept(file, client), run, place)
    return found


def simulated(file: Path, cohorts: list[list[str]]) -> Run:
    """The same run in one process, over the sites' own tables, before its first round."""
    plan = Plan.load(file)
    spec = plan.spec
    tables = {client: read_table(file.parent / client / "data.csv") for client in plan.clients}
    federation = plan.table.federation(plan.name, tables)
    return Run(
        federation,
        spec.network(federation),
        spec.entry()(**spec.parameters),
        spec.training(),
        participation=Fixed(cohorts or [plan.clients]),
        seed=spec.seed,
        execution=ONE_CLIENT,
    )


def differing(values: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of the tensors in which two states differ, and by how much."""
    yield from sorted(values.keys() ^ expected.keys())
    for name in sorted(values.keys() & expected.keys()):
        here, there = values[name].double(), expected[name].double()
        if here.shape != there.shape:
            yield f"{name} (shapes {tuple(here.shape)} and {tuple(there.shape)})"
        elif not torch.allclose(here, there, atol=2e-6, rtol=1e-4):
            yield f"{name} (by {(here - there).abs().max():.2g})"


def misplaced(folder: Path, run: Run, place: int) -> list[str]:
    """Leaves of the acknowledged personal state that a site does not have; all of them if it left."""
    version = int(run.last[place])
    if not version or not folder.exists():
        return []
    files = [file for file in folder.glob("state-*.safetensors") if int(file.stem.partition("-")[2]) == version]
    if not files:
        return [f"version {version} of {run.setting.clients[place]}"]
    stored = Versions(folder, read(files[0])[1]["run"]).load(version) or {}
    own = {f"own:{leaf}": run.store.get(leaf, [place])[0] for leaf in run.stored_leaves()}
    mine = {name: value for name, value in stored.items() if name.startswith("own:")}
    return [f"{name} of {run.setting.clients[place]}" for name in differing(mine, own)]


def unlike(file: Path, out: Path, run: Run) -> list[str]:
    """Published models, and their scores in the result, that differ from the current state of the simulated run."""
    if not (out / RESULT).exists():
        return []
    told = json.loads((out / RESULT).read_text())
    found, expected = [], score(run, "test")
    for place, client in enumerate(run.setting.clients):
        if client in told["unpublished"]:
            continue
        rows = run.federation.inputs[run.federation.splits["test"][place]]
        outputs = run.engine.forward(run.deployed([place]), rows.unsqueeze(0))[0]
        given = PersonalModel.load(kept(file, client) / PUBLISHED).outputs(rows)
        if not torch.allclose(given, outputs, atol=1e-5, rtol=1e-3):
            found.append(f"the model of {client}")
        for metric, values in told["result"]["test"]["metrics"].items():
            if abs(values[place] - expected.values[metric][place]) > 1e-5 + 1e-3 * abs(values[place]):
                found.append(f"{metric} of {client}")
    return found
