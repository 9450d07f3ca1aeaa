"""Privacy against accuracy: what is left of personalization at epsilon 1, 2, 4 and 8, with schools as clients.

python -m benchmarks.privacy --out benchmarks/results/privacy

139 schools, each of which takes part in a round with probability 0.3; what leaves a school is clipped to a joint norm
of 0.3, and the noise is calibrated for 40 rounds at delta 1e-3. The unit is a school with all its pupils. Nothing is
tuned: all runs have the same learning rate and bound, so no budget is spent on choosing. It takes about six minutes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from rich.console import Console

from plures import RunSpec, fit, load
from plures.evaluate import finish
from plures.evaluate.scores import primary
from plures.run import Execution

METHODS = {
    "local": {},
    "fedavg": {},
    "fedavg_ft": {},
    "ditto": {"lam": 1.0},
    "mrmtl": {"lam": 1.0},
    "fedrep": {},
}
EPSILONS = (None, 8, 4, 2, 1)
ROUNDS, DELTA, CLIP = 40, 1e-3, 0.3


def spec_of(method: str, epsilon: float | None, seed: int) -> RunSpec:
    """A run with a budget of privacy; ``None`` for none."""
    return RunSpec(
        data="school",
        model="mlp",
        model_options={"hidden": [8]},
        method=method,
        parameters=METHODS[method],
        rounds=ROUNDS,
        lr=0.1,
        steps=10,
        participation="poisson",
        fraction=0.3,
        dp=None if epsilon is None else f"clip={CLIP},epsilon={epsilon},delta={DELTA}",
        seed=seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/privacy"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    school, console = load("school"), Console()
    metric = primary(school)
    heads = [f"epsilon {epsilon}" if epsilon else "no privacy" for epsilon in EPSILONS]
    lines = [f"| test {metric.title} | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    noises: dict[float, float] = {}
    for method in METHODS:
        cells = []
        for epsilon in EPSILONS:
            means = []
            if method == "local" and epsilon is not None:
                cells.append(cells[0])
                continue
            for seed in range(given.seeds):
                spec = spec_of(method, epsilon, seed).model_copy(update={"rounds": given.rounds}).calibrated(school)
                run = spec.run(school, Execution("vmap", 64, False, "float32"))
                result = finish(fit(run, method, every=5), seed)
                means.append(result.test.summary(metric).mean)
                if epsilon is not None and result.privacy is not None:
                    noises[epsilon] = result.privacy.noise
                    assert result.privacy.epsilon <= epsilon
            spread = f" ± {np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.3f}{spread}" if math.isfinite(float(np.mean(means))) else "diverged")
            console.print(method, epsilon, cells[-1])
        lines.append(f"| {method} | {' | '.join(cells)} |")
    found = ", ".join(f"{noise:.2f} at epsilon {epsilon}" for epsilon, noise in noises.items())
    text = "\n".join(
        [
            "# Privacy against accuracy",
            "",
            (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(),
            "",
            *lines,
            "",
            f"Means over schools, and over {given.seeds} seeds with their standard deviation. Noise: {found}.",
            "Local training sends nothing. Personal models are not protected against whoever gets them.",
            "",
        ]
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
