"""What is known about each method: oracles, the tests that prove them, and the experiments that include it."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plures.methods import METHODS
from plures.methods.entry import Entry

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
COVERAGE = ROOT / "docs" / "coverage.md"
FAMILIES = ROOT / "benchmarks" / "results" / "families.md"
BASELINES = ("Local only", "FedAvg", "FedAvg + fine-tuning")

NAMED: dict[str, tuple[str, ...]] = {
    "LoRA and adapters": ("lora",),
    "Personal squeeze-and-excitation": ("personal_se",),
    "Community adapters on a graph network": ("community",),
    "Personal mixture of experts": ("personal_moe",),
    "Self-knowledge distillation": ("self_distillation",),
    "Federated SimCLR": ("fedsimclr",),
    "Clusters by initial gradients": ("gradient_clusters",),
    "Cold start from metadata": ("cold_start",),
    "Personal decision thresholds": ("threshold",),
    "Missing data and sensor quality": ("quality", "debias"),
    "EWC with a proximal tether": ("ewc",),
    "FedAvgM, FedOpt": ("fedavgm", "fedopt"),
}
"""Methods of the entries of tests/oracles.toml whose titles differ from the catalogue's."""

GENERAL = (
    *("Evaluation", "Shares", "Central DP-FedAvg", "Local differential privacy", "Simulated fleets"),
    *("Krum, multi-Krum", "Coordinate median, trimmed mean", "Bulyan", "Norm bounding", "FLTrust", "FoolsGold"),
    *("All robust combinations", "Attacks", "Isolation by clusters", "Secure aggregation"),
    *("Personalization under secure sums", "Compression", "Audits", "A network for each class of clients"),
)
"""Entries of tests/oracles.toml that do not belong to one method of the catalogue."""


@dataclass(frozen=True)
class Oracle:
    """A result that must be reproduced, and the tests that show it."""

    name: str
    what: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """An experiment of ``benchmarks/results/families.md``.

    Attributes:
        group: part of the field.
        name: name of the experiment.
        helps: whether the family was expected to help there.
        why: a sentence about the data.
        columns: headings of its table.
        rows: its table, by the first cell.
    """

    group: str
    name: str
    helps: bool
    why: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]

    @property
    def anchor(self) -> str:
        """The anchor of its heading."""
        title = f"{self.group}: {self.name} ({'helps' if self.helps else 'does not help'})"
        return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def oracles() -> dict[str, list[Oracle]]:
    """Oracles of every method of the catalogue, by method name, with the tests that ``docs/coverage.md`` lists."""
    titles = {entry.title: (entry.name,) for entry in METHODS.values()} | NAMED | dict.fromkeys(GENERAL, ())
    tests = dict(proofs())
    found: dict[str, list[Oracle]] = {name: [] for name in METHODS}
    for one in tomllib.loads((TESTS / "oracles.toml").read_text("utf-8"))["entry"]:
        if one["title"] not in titles:
            raise SystemExit(f"tests/oracles.toml: no method is called {one['title']!r}; name it in tools/evidence.py")
        for method in titles[one["title"]]:
            found[method] += [Oracle(name, what, tests[name]) for name, what in one["oracles"].items()]
    return found


def proofs() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every oracle and the tests that prove it, ``file::test``, read from the table that ``tools.coverage`` writes."""
    section = COVERAGE.read_text(encoding="utf-8").partition("\n## The catalogue")[0]
    for line in section.splitlines():
        cells = line.split(" | ")
        if line.startswith("| ") and len(cells) == 4 and "`" in cells[3]:
            yield cells[1], tuple(re.findall(r"`([^`]+)`", cells[3]))


def users() -> dict[str, list[str]]:
    """Tests that call each method by its name, ``file::test``."""
    found: dict[str, list[str]] = {name: [] for name in METHODS}
    for test, node in functions():
        called = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        for name in called & METHODS.keys():
            found[name].append(test)
    return found


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every test function and its location."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{file.relative_to(TESTS).as_posix()}::{node.name}", node


def experiments() -> list[Experiment]:
    """The experiments of ``benchmarks/results/families.md``."""
    found = []
    for section in FAMILIES.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        named = re.fullmatch(r"(.+): (\S+) \((helps|does not help)\)", heading.strip())
        if named is None:
            raise SystemExit(f"{FAMILIES.name}: the heading {heading!r} is not 'group: name (helps)'")
        lines = [line for line in text.splitlines() if line.startswith("|")]
        cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
        why = text.strip().partition("\n")[0]
        rows = {row[0]: row[1:] for row in cells[2:]}
        found.append(Experiment(named[1], named[2], named[3] == "helps", why, cells[0][1:], rows))
    return found


def title_in(entry: Entry, experiment: Experiment) -> list[str]:
    """The rows of an experiment for this method: its title, possibly followed by a comma and a setting."""
    names = {entry.title, ALIASES.get(entry.name, entry.title)}
    return [row for row in experiment.rows if row.partition(",")[0] in names]


ALIASES = {"ewc": "EWC", "metadata_clusters": "metadata clusters"}
"""Names of methods in those tables of ``benchmarks/results/families.md`` that do not come from a comparison."""
