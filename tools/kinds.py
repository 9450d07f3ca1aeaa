"""Write docs/tasks.md: which method works with which kind of task, as every method says itself.

python -m tools.kinds            writes the page
python -m tools.kinds --check    only says whether it is up to date
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from torch import nn

from plures.federation import Federation, from_arrays
from plures.method.needs import UnsuitableTaskError
from plures.methods import METHODS
from plures.models import with_roles
from plures.models.residual import SqueezeExcitation
from plures.run import Execution, Run, Training
from plures.tasks import KINDS

FILE = Path(__file__).parents[1] / "docs" / "tasks.md"
FEATURES = 8
WORK = Execution("loop", 1, False, "float64")

HEAD = """# Methods by tasks

Written by `python -m tools.kinds`, which starts every method on every kind of task with a small network; a test fails
if the page is out of date. A `·` is a combination that the method refuses before it trains, in the words below. The
[guide to tasks](guides/tasks.md) says what the tasks are.

"""


def targets(kind: str, draw: np.random.Generator, rows: int) -> np.ndarray:
    """Targets of a kind of task."""
    numbers = draw.normal(size=(rows, 2))
    if kind in ("classification", "binary"):
        return (numbers[:, 0] > 0).astype(int)
    if kind == "multilabel":
        return (numbers > 0).astype(int)
    if kind in ("counts", "ratings"):
        return np.floor(numbers[:, :1] ** 2)
    if kind == "survival":
        return np.stack([1 + numbers[:, 0] ** 2, numbers[:, 1] > 0], 1)
    if kind in ("segmentation", "next_token"):
        return draw.integers(0, 3, (rows, 2, 2) if kind == "segmentation" else (rows, 3))
    return numbers if kind in ("regression", "huber", "forecast") else numbers[:, :1]


@cache
def federation(kind: str) -> Federation:
    """Three clients with metadata, and public examples."""
    draw, owner = np.random.default_rng(0), np.repeat(["a", "b", "c"], 20)
    facts = {name: {"group": name, "completeness": 0.9, "reliability": 0.8} for name in "abc"}
    inputs = draw.normal(size=(len(owner), FEATURES))
    made = from_arrays(inputs, targets(kind, draw, len(owner)), owner, task=kind, metadata=facts, seed=0, name=kind)
    return made.donate(0.2)


def network(shape: tuple[int, ...], linear: bool) -> nn.Module:
    """A body with squeeze-and-excitation, and a head; or a single layer."""
    wide = math.prod(shape)
    end = [nn.Unflatten(1, shape)] if len(shape) > 1 else []
    if linear:
        return nn.Sequential(nn.Linear(FEATURES, wide), *end)
    body = (nn.Linear(FEATURES, 4), nn.Unflatten(1, (-1, 1, 1)), SqueezeExcitation(4), nn.Flatten(), nn.Tanh())
    parts = OrderedDict(body=nn.Sequential(*body), head=nn.Sequential(nn.Linear(4, wide), *end))
    return with_roles(nn.Sequential(parts), body="body", head="head", se=("body.2",))


def started(name: str, kind: str) -> Run:
    """A run of a method on a kind of task, before its first round."""
    data = federation(kind)
    model = partial(network, data.task.shape, name == "mocha")
    return Run(data, model, METHODS[name](), Training(rounds=1, batch_size=8, steps=1), execution=WORK)


def refusal(name: str, kind: str) -> str:
    """Why a method does not work with a kind of task; empty if it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            started(name, kind)
        except UnsuitableTaskError as error:
            return str(error)
    return ""


def page(found: Mapping[tuple[str, str], str]) -> str:
    """The page."""
    kinds = list(KINDS)
    lines = ["| method | " + " | ".join(f"`{kind}`" for kind in kinds) + " |", "| --- " + "| :-: " * len(kinds) + "|"]
    for name in METHODS:
        lines.append(f"| `{name}` | " + " | ".join("·" if found[name, kind] else "yes" for kind in kinds) + " |")
    told = (reason.replace(kind, "…").partition(" with ")[0] for (_, kind), reason in found.items() if reason)
    reasons = [f"- {reason}" for reason in dict.fromkeys(told)]
    return HEAD + "\n".join([*lines, "", "## Why not", "", *reasons, ""])


def main() -> int:
    found = {(name, kind): refusal(name, kind) for name in METHODS for kind in KINDS}
    text = page(found)
    if "--check" in sys.argv:
        return int(FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
