"""The table of the README: the thirty people of UCI HAR with the small convolutional network, five seeds.

python -m benchmarks.har --out benchmarks/results/har
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from plures import METHODS, compare
from plures.evaluate import ComparisonProgress
from plures.evaluate.compare import DEFAULT
from plures.report import console_table, headline, markdown_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT), help=f"any of {', '.join(METHODS)}")
    options = parser.parse_args()
    console = Console()

    def listen(stage: ComparisonProgress) -> None:
        if stage.point is not None and stage.point.round == stage.rounds:
            console.print(f"{stage.done}/{stage.total} {stage.method} {stage.what}: {stage.point.validation:.3f}")

    result = compare(
        "har",
        options.methods,
        rounds=options.rounds,
        seeds=options.seeds,
        tune_rounds=8,
        out=Path("runs") / "benchmark-har",
        listener=listen,
    )
    console.print(console_table(result))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(result.to_json() + "\n")
    options.out.with_suffix(".md").write_text(
        f"Made by `python -m benchmarks.har --rounds {options.rounds} --seeds {options.seeds}`.\n\n"
        f"{markdown_table(result)}\n\n{headline(result)}\n"
    )


if __name__ == "__main__":
    main()
