"""Demo: four hospitals on this machine, over real SuperNodes with TLS and registered keys, and what each gains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from plures.deploy.conduct import RESULT
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.journal import LOG
from plures.deploy.plan import SITE, Plan
from plures.deploy.project import PLAN, ROWS, heart, write
from plures.errors import PluresError
from plures.evaluate import fit
from plures.federation import Federation
from plures.files import filed, inside, write_text
from plures.remote.state import PUBLISHED
from plures.run import Execution
from plures.run.checkpoint import restore
from plures.serving.personal import PersonalModel
from plures.tables.heart import heart_tables

METHODS = ("ditto+threshold", "fedrep+threshold")
ALONE = "local+threshold"
"""The baseline: every hospital trains alone."""
LIMIT = 3600.0
WIRE, SITES = "wire.json", "sites"

Listen = Callable[[str, int, int, str], None]
"""``(what, done, total, text)``: reports the demo's progress."""


@dataclass(frozen=True)
class Hospital:
    """One hospital's results with a method.

    Attributes:
        client: the hospital's name.
        rows: numbers of its training, validation and test examples.
        accuracy: share of its test examples that its own model classified correctly.
        balanced: balanced accuracy: the mean of that share over classes.
        threshold: probability above which its model predicts disease.
        sent: bytes that left it, TLS included.
        received: bytes that reached it, TLS included.
    """

    client: str
    rows: tuple[int, int, int]
    accuracy: float
    balanced: float
    threshold: float | None
    sent: int = 0
    received: int = 0


@dataclass(frozen=True)
class Outcome:
    """A method's results; ``round`` is the one that validation chose, ``seconds`` the wall time of all rounds."""

    method: str
    round: int
    seconds: float
    hospitals: tuple[Hospital, ...]


def demo(out: Path, methods: Sequence[str], rounds: int, listen: Listen) -> list[Outcome]:
    """Run methods over four SuperNodes, one per hospital. A method already finished in the folder is not run again.

    Args:
        out: folder for everything: keys, sites, logs, results.
        methods: names of methods.
        rounds: number of rounds of each method.
        listen: called with the demo's progress.

    Returns:
        The hospitals' results alone (simulated), then those of each method.

    Raises:
        PluresError: a run failed, the folder holds results of other settings, or another demo works in it.
    """
    home, plans = out / "federation", {method: heart(method=method, rounds=rounds).plan for method in methods}
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / "lock", timeout=0):
            if not (home / PLAN).exists():
                write(home, heart(method=methods[0], rounds=rounds))
            waiting = [method for method in methods if waits(out / method, plans[method])]
            if waiting:
                over(out, home, {method: plans[method] for method in waiting}, rounds, listen)
            listen("every hospital", 1, 1, "alone, simulated")
            lone = alone(home, heart(method=ALONE, rounds=rounds).plan)
            return [lone, *(outcome(out, method) for method in methods)]
    except Timeout as error:
        raise PluresError(f"another demo works in {out}: wait for it, or choose another folder with --out") from error


def waits(out: Path, plan: str) -> bool:
    """Whether a method is still to be run. Also stores its plan beside its results, and refuses a different one."""
    kept = out / PLAN
    if kept.exists() and kept.read_text(encoding="utf-8") != plan:
        raise PluresError(f"{out} holds a run with other settings: choose another folder with --out, or delete it")
    write_text(kept, plan)
    return not (out / RESULT).exists()


def over(out: Path, home: Path, plans: Mapping[str, str], rounds: int, listen: Listen) -> None:
    """Run methods one after the other over the same nodes."""
    total = len(plans) * rounds
    clients = Plan.load(home / PLAN).clients
    sites = {client: inside(out, SITES, client) / SITE for client in clients}
    rows = {client: home / ROWS / f"{filed(client)}.csv" for client in clients}
    listen("starting a SuperLink and four SuperNodes", 0, total, "")
    with Fleet(out / "fleet", sites, relayed=True, quick=True) as fleet:
        for place, (method, plan) in enumerate(plans.items()):
            write_text(home / PLAN, plan)
            fleet.join(home / PLAN, rows)
            progress = DemoProgress(listen, method, out / method / LOG, place * rounds, total)
            run = fleet.conduct(home, home / PLAN, out / method)
            try:
                status = fleet.wait(run, LIMIT, progress)
            finally:
                passed(fleet, out / method / WIRE)
            if not (out / method / RESULT).exists():
                log = fleet.superlink
                raise PluresError(f"{method}: the run {status}; the end of {log.log}:\n{log.tail()}")


def passed(fleet: Fleet, file: Path) -> None:
    """Add the nodes' network traffic to the counts in a file, and reset the counters."""
    known = json.loads(file.read_text()) if file.exists() else {}
    for client, relay in fleet.relays.items():
        up, down = known.get(client, (0, 0))
        known[client] = (up + relay.traffic.up, down + relay.traffic.down)
        relay.traffic.up = relay.traffic.down = 0
    write_text(file, json.dumps(known, indent=1))


@dataclass(frozen=True)
class DemoProgress:
    """Reports how many rounds a run has finished, according to its log."""

    listen: Listen
    method: str
    log: Path
    before: int
    total: int

    def __call__(self) -> None:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        rounds = [event for event in map(json.loads, lines) if event["event"] == "round"]
        done = rounds[-1]["round"] if rounds else 0
        text = f"round {done}, loss {rounds[-1]['loss']:.3f}" if rounds else "hospitals join"
        self.listen(self.method, self.before + done, self.total, text)


def outcome(out: Path, method: str) -> Outcome:
    """A finished run's results, from the models published at the hospitals."""
    plan = Plan.load(out / method / PLAN)
    outcome = json.loads((out / method / RESULT).read_text())
    wire = json.loads((out / method / WIRE).read_text())
    tables = heart_tables()
    hospitals = []
    for client in plan.clients:
        folder = inside(inside(out, SITES, client) / "state", plan.name, plan.label) / PUBLISHED
        data = plan.table.federation(plan.name, {client: tables[client]})
        hospitals.append(hospital(PersonalModel.load(folder), data, *wire[client]))
    return Outcome(method, outcome["result"]["chosen_round"], outcome["progress"]["seconds"], tuple(hospitals))


def alone(home: Path, text: str) -> Outcome:
    """The hospitals' results with only their own rows. Nothing is sent, so it is simulated in this process."""
    file = home / "alone.toml"
    write_text(file, text)
    plan, tables = Plan.load(file), heart_tables()
    run = plan.spec.run(plan.table.federation(plan.name, tables), Execution("loop", 1, False, "float32", "cpu"))
    fitted = fit(run, ALONE)
    if fitted.best is not None:
        restore(run, fitted.best)
    hospitals = []
    for client in plan.clients:
        data = plan.table.federation(plan.name, {client: tables[client]})
        hospitals.append(hospital(PersonalModel.of(run, client, plan.spec), data))
    return Outcome(ALONE, run.round, 0.0, tuple(hospitals))


def hospital(model: PersonalModel, data: Federation, sent: int = 0, received: int = 0) -> Hospital:
    """Score a hospital's own model on its own test examples.

    Args:
        model: the hospital's model.
        data: its data, a federation of one.
        sent: bytes that left it.
        received: bytes that reached it.

    Raises:
        PluresError: the model is not a classifier.
    """
    rows = data.splits["test"][0]
    decided, targets = model.decided(model.outputs(data.one_input("the demo")[rows])), data.targets[rows]
    if decided is None:
        raise PluresError(f"the model of {model.card.client} predicts no class: it is not a classifier")
    right = (decided == targets).double()
    balanced = torch.stack([right[targets == which].mean() for which in sorted(set(targets.tolist()))]).mean()
    train, validation, test = (int(data.splits[name].sizes[0]) for name in ("train", "validation", "test"))
    own = model.card
    return Hospital(
        own.client,
        (train, validation, test),
        float(right.mean()),
        float(balanced),
        own.threshold,
        sent,
        received,
    )
