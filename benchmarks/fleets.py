"""Three fleets: whom a deadline leaves out, and what partial work, buffers and cut networks give back to them.

python -m benchmarks.fleets --out benchmarks/results/fleets

139 schools on phones, on hospitals' servers, and on sensors (:mod:`plures.hardware`), with one network and one
learning rate; nothing is tuned. A fifth of the schools take part in a round. Rounds wait for all that were asked; or
1.3 times as many are asked, and the round ends at the deadline, which is the median of the visits' durations; or late
ones do a part of their steps, with FedAvg and with FedNova; or changes are buffered, with a step for as many as a round
needs. All have as many steps of the server. Cut networks are HeteroFL's without its scaler: each school holds the
largest of all, half and a quarter of the hidden units with which its visit ends by the deadline, or else a quarter. The
last row has the scaler, by which hidden layers of a part learn with a rate divided by the square of its share
(:func:`plures.methods.heterofl`). It takes some minutes of a processor.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from plures import RunSpec, fit, load
from plures.evaluate import finish
from plures.evaluate.devices import fleet_of
from plures.evaluate.results import SeedResult
from plures.evaluate.scores import primary
from plures.evaluate.summary import harmed, mean_known
from plures.run import Execution

FLEETS = ("phones", "hospitals", "sensors")
RATES = [1.0, 0.5, 0.25]
ROUNDS, FRACTION = 40, 0.2
EXECUTION = Execution("vmap", 32, False, "float32")


def variants(deadline: float, needed: int) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Method and settings of every line."""
    asked = {"deadline": deadline, "over_select": 1.3}
    parts = {"rates": RATES, "budget": "seconds", "limit": deadline, "weights": "examples", "scaler": False}
    return {
        "wait for all": ("fedavg", {}),
        "deadline, drop": ("fedavg", asked),
        "deadline, partial": ("fedavg", {**asked, "late": "partial"}),
        "deadline, partial, FedNova": ("fednova", {**asked, "late": "partial"}),
        "deadline, cut networks": ("heterofl", {**asked, "parameters": parts}),
        "buffered": ("fedavg", {"buffer": needed}),
        "buffered, cut networks": ("heterofl", {"buffer": needed, "parameters": parts}),
        "buffered, cut networks, scaler": ("heterofl", {"buffer": needed, "parameters": {**parts, "scaler": True}}),
    }


def spec_of(method: str, seed: int, rounds: int, **settings: object) -> RunSpec:
    return RunSpec(
        data="school",
        model="mlp",
        model_options={"hidden": [8]},
        method=method,
        rounds=rounds,
        lr=0.1,
        epochs=5,
        participation="uniform",
        fraction=FRACTION,
        seed=seed,
        **settings,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fleets"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    school, console = load("school"), Console()
    metric = primary(school)
    needed = int(FRACTION * len(school) + 0.5)
    lines = [
        f"python -m benchmarks.fleets --seeds {given.seeds} --rounds {given.rounds}",
        "",
        f"{len(school)} schools, {needed} in a round, {metric.title} on test data after the last round; "
        f"means of {given.seeds} seeds. Left out: clients whose work never counted. Harmed: worse off "
        "than with local training.",
    ]

    def done(spec: RunSpec, name: str) -> SeedResult:
        return finish(fit(spec.run(school, EXECUTION), name, every=spec.rounds), spec.seed)

    alone = [done(spec_of("local", seed, given.rounds), "local") for seed in range(given.seeds)]
    for fleet in FLEETS:
        run = spec_of("fedavg", 0, given.rounds, fleet=fleet).run(school, EXECUTION)
        devices, load_ = fleet_of(run), run.load()
        assert devices is not None
        able = int((load_.memory <= devices.memory).sum())
        seconds = load_.down / devices.down + load_.flops / devices.speed + load_.up / devices.up
        deadline = float(f"{np.median(seconds):.3g}")
        method, settings = variants(deadline, 1)["buffered, cut networks"]
        held = spec_of(method, 0, 1, fleet=fleet, **settings).run(school, EXECUTION).held
        assert held is not None
        shares = ", ".join(f"{int((held.rates == rate).sum())} with {rate:g}" for rate in RATES)
        lines += [
            "",
            f"## {fleet}",
            "",
            f"Deadline: {deadline:g} seconds. {able} devices have the memory to train. Shares of the hidden units in "
            f"cut networks: {shares} of them.",
            "",
        ]
        lines += [
            "| rounds | hours | joules | "
            f"{metric.title} | harmed | left out | by class | {metric.title} of those left out | harmed of those |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, (method, settings) in variants(deadline, min(needed, able)).items():
            runs = [
                done(spec_of(method, seed, given.rounds, fleet=fleet, **settings), name) for seed in range(given.seeds)
            ]
            lines.append(line(name, runs, alone, metric.name, higher=metric.higher))
            console.print(lines[-1])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".md").write_text("\n".join(["# Three fleets", "", *lines, ""]), encoding="utf-8")


def line(name: str, runs: list[SeedResult], alone: list[SeedResult], metric: str, *, higher: bool) -> str:
    """A line of the table."""
    hours, joules, means, hurt, left, theirs, theirs_hurt = ([] for _ in range(7))
    classes: dict[str, int] = {}
    for run, local in zip(runs, alone, strict=True):
        assert run.fleet is not None
        assert run.reached is not None
        own, before = run.test.values(metric), local.test.values(metric)
        out = np.array(run.fleet.counted) == 0
        for kind, gone in zip(run.fleet.kinds, out, strict=True):
            classes[kind] = classes.get(kind, 0) + int(gone)
        hours.append(run.reached.hours or 0.0)
        joules.append(run.reached.joules or 0.0)
        means.append(mean_known(own))
        hurt.append(harmed(own, before, higher=higher))
        left.append(int(out.sum()))
        if out.any():
            theirs.append(mean_known(own[out]))
            theirs_hurt.append(harmed(own[out], before[out], higher=higher))
    cells = [
        name,
        f"{np.mean(hours):.3g}",
        f"{np.mean(joules):.3g}",
        f"{np.mean(means):.3f}",
        f"{100 * np.mean(hurt):.0f} %",
        f"{np.mean(left):.1f}",
        ", ".join(f"{kind} {count / len(runs):.1f}" for kind, count in classes.items() if count) or "none",
        f"{np.mean(theirs):.3f}" if theirs else "",
        f"{100 * np.mean(theirs_hurt):.0f} %" if theirs_hurt else "",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
