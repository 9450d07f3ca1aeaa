"""The command line of a benchmark that measures one row for each of a few cases."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

C = TypeVar("C")


def main(
    name: str,
    about: str | None,
    cases: Iterable[C],
    measured: Callable[[C, int, Path], Any],
    markdown: Callable[[list[Any], str], str],
    rounds: int,
) -> None:
    """Measure every case in a folder of its own; write the rows as JSON, and as a table with the command.

    Args:
        name: name of the benchmark's module.
        about: what the benchmark measures.
        cases: what is compared.
        measured: ``(case, rounds, folder) -> row``, a dataclass.
        markdown: ``(rows, command) -> text``.
        rounds: default number of rounds.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=rounds)
    options = parser.parse_args()
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(case, options.rounds, Path(folder)))
        Console().print(rows[-1])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    command = f"python -m benchmarks.{name} --rounds {options.rounds}"
    options.out.with_suffix(".md").write_text(markdown(rows, command))
