"""Ditto's table of attacks on Fashion-MNIST at a small budget, and how often a backdoor opens.

python -m benchmarks.hostile --out benchmarks/results/hostile

The protocol is that of Li et al. 2021, with fewer clients, rounds and pictures: 50 clients with five classes each, ten
of them in a round, one local pass of batches of 16 at a learning rate of 0.05. Attackers train on random labels (A1),
send noise as strong as their change (A2), or send ten times the change of random labels (A3). Rounds and Ditto's lambda
are chosen on the honest clients' validation data. Finished runs are kept in the JSON file and not repeated, so the
command may be stopped and started; ``--minutes`` stops it. All runs take about six minutes of a processor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from plures import RunSpec, fit
from plures.evaluate import finish, primary
from plures.federation import Federation
from plures.run import Execution

SEEDS, SHARES = (0,), (0.0, 0.1, 0.2, 0.5, 0.8)
ATTACKS = {
    "A1": ("random labels", "random_labels"),
    "A2": ("Gaussian updates", "gaussian"),
    "A3": ("random labels, ten times the change", "random_labels+replacement(factor=10)"),
}
METHODS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "Ditto, lambda 0.1": ("ditto", {"lam": 0.1}, None),
    "Ditto, lambda 1": ("ditto", {"lam": 1.0}, None),
    "FedAvg": ("fedavg", {}, None),
    "FedAvg + fine-tuning": ("fedavg_ft", {}, None),
    "Local only": ("local", {}, None),
    "FedAvg + multi-Krum": ("fedavg", {}, "multi_krum(f=3)"),
    "FedAvg + median": ("fedavg", {}, "median"),
    "FedAvg + norm bound": ("fedavg", {}, "norm_bound(norm=1.0)"),
}
DITTO = tuple(name for name in METHODS if name.startswith("Ditto"))
OPENED: dict[str, tuple[str, dict[str, Any], str | None]] = {
    **{name: METHODS[name] for name in METHODS if name != "Local only"},
    "FedRep": ("fedrep", {}, None),
}
BACKDOOR, DOORS = "backdoor(size=4,target=0)+replacement(factor=10)", 0.1
PUBLISHED = {
    "Ditto": (".943(.06)", "-", ".944(.07)", ".937(.07)", ".907(.10)"),
    "FedAvg": (".911(.08)", "-", ".897(.08)", ".855(.10)", ".753(.13)"),
    "Local only": (".876(.10)", "-", ".874(.10)", ".876(.11)", ".879(.10)"),
}
"""Table of Li et al. 2021 for A1, mean (standard deviation) over devices, as far as it is at hand."""
BASE: dict[str, Any] = {
    "data": "fashion_mnist",
    "data_options": {"partition": "pathological", "classes_per_client": 5, "clients": 50, "examples": 5000},
    "model": "mlp",
    "lr": 0.05,
    "rounds": 40,
    "batch_size": 16,
    "fraction": 0.2,
}
EXECUTION = Execution("vmap", 16, False, "float32", capture=False)


def cells() -> Iterator[tuple[str, RunSpec]]:
    """All runs, each with its key."""
    for seed in SEEDS:
        for name, (method, parameters, combine) in METHODS.items():
            for share in SHARES:
                for attack, (_, text) in ATTACKS.items():
                    if (share == 0 or method == "local") and attack != "A1":
                        continue  # without attackers, and without messages, all attacks are one
                    hostile = {"attack": text, "attackers": share}
                    own = {"method": method, "parameters": parameters, "combine": combine, "seed": seed}
                    yield f"{attack} {share} {seed} {name}", RunSpec(**BASE, **own, **hostile)
        for name, (method, parameters, combine) in OPENED.items():
            own = {"method": method, "parameters": parameters, "combine": combine, "seed": seed}
            yield f"backdoor {DOORS} {seed} {name}", RunSpec(**BASE, **own, attack=BACKDOOR, attackers=DOORS)


def done(spec: RunSpec, federation: Federation) -> dict[str, Any]:
    """What a run found: over honest clients, and how often the backdoor opens."""
    fitted = fit(spec.run(federation, EXECUTION), spec.title(), every=10)
    result = finish(fitted, spec.seed)
    over = result.test.summary(primary(federation))
    found = {"mean": over.mean, "std": over.std, "bottom": over.bottom, "validation": fitted.chosen.validation}
    for part in ("personal", "shared"):
        rates = {} if result.watched is None else getattr(result.watched, part)
        found[part] = float(np.mean(list(rates.values()))) if rates else None
    return found


def page(known: dict[str, dict[str, Any]]) -> str:
    """The tables, as far as their runs are done."""

    def chosen(attack: str, share: float, name: str) -> list[dict[str, Any]]:
        attack = "A1" if share == 0 or name == "Local only" else attack
        names = DITTO if name == "Ditto" else (name,)
        found = [[known.get(f"{attack} {share} {seed} {one}") for one in names] for seed in SEEDS]
        whole = [[one for one in some if one is not None] for some in found]
        return [max(some, key=lambda one: one["validation"]) for some in whole if len(some) == len(names)]

    def cell(runs: list[dict[str, Any]]) -> str:
        if len(runs) < len(SEEDS):
            return "-"
        mean, std, bottom = (float(np.mean([run[key] for run in runs])) for key in ("mean", "std", "bottom"))
        return f"{mean:.3f}({std:.2f}) {bottom:.2f}".replace("0.", ".")

    rows = ["Ditto", *(name for name in METHODS if name not in DITTO)]
    head = " | ".join(f"{share:.0%} attack" for share in SHARES)
    parts = [
        "Made by `python -m benchmarks.hostile --out benchmarks/results/hostile`.",
        "Fashion-MNIST, 50 clients with five classes each, 5,000 pictures, ten in a round, 40 rounds, one seed. "
        "Accuracy of honest clients: mean (standard deviation over clients), and the mean of the worst tenth. Rounds "
        "and Ditto's lambda (0.1 or 1) are chosen on the honest clients' validation data, per cell. Multi-Krum has "
        "f = 3, the most that ten uploads allow: rounds with more attackers are beyond it. Norms are bounded by 1.",
    ]
    for attack, (words, _) in ATTACKS.items():
        lines = [f"| {attack}: {words} | {head} |", "|---|" + "---:|" * len(SHARES)]
        for name in rows:
            lines.append(" | ".join([f"| {name}", *(cell(chosen(attack, share, name)) for share in SHARES)]) + " |")
            if attack == "A1" and name in PUBLISHED:
                lines.append(" | ".join([f"| {name}, published (500 clients, 5,000 rounds)", *PUBLISHED[name]]) + " |")
        parts.append("\n".join(lines))
    lines = [
        f"| backdoor, {DOORS:.0%} attack | accuracy | own model opens | received model opens |",
        "|---|---:|---:|---:|",
    ]
    for name in OPENED:
        runs = [known[key] for seed in SEEDS if (key := f"backdoor {DOORS} {seed} {name}") in known]
        if len(runs) == len(SEEDS):
            told = [
                np.mean([r[k] for r in runs]) if runs[0][k] is not None else None
                for k in ("mean", "personal", "shared")
            ]
            lines.append(f"| {name} | " + " | ".join("-" if v is None else f"{v:.0%}" for v in told) + " |")
    parts.append(
        "A trigger of four by four white pixels in the corner and ten times the change. *Opens*: the share of honest "
        "clients' test pictures of other classes that go to the attackers' class once they have the trigger."
    )
    parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop before a run after so many minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file, begun, federation = options.out.with_suffix(".json"), time.perf_counter(), None
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for key, spec in cells():
        if key in known or time.perf_counter() - begun > 60 * options.minutes:
            continue
        federation = spec.federation() if federation is None else federation
        known[key] = done(spec, federation)
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        Console().print(f"{key}: {known[key]['mean']:.3f}")
    options.out.with_suffix(".md").write_text(page(known), encoding="utf-8")


if __name__ == "__main__":
    main()
