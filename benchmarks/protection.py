"""What each protection costs against none, in seconds and bytes of a round.

python -m benchmarks.protection --out benchmarks/results/protection

Twenty clients, all in every round, one pass of batches of ten over 3,000 pictures of Fashion-MNIST, a perceptron with
100 units. Protections take turns with the plain run in one process, and the seconds are the median over rounds of the
ratio to the plain round just before; so other work on the machine matters little. Bytes are those of the ledger, of a
client in a round: what a secure sum adds in keys, shares and reveals is not in them. It takes about two minutes.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from plures import RunSpec
from plures.federation import Federation
from plures.run import Execution, Run
from plures.run.cost import traffic

EXECUTION = Execution("vmap", 20, False, "float32", capture=False)


@dataclass(frozen=True)
class Protected:
    """A run with a protection.

    Attributes:
        method: the method, with its stages by name.
        combine: a robust combination.
        coins: whether clients of a private run come by coins of their own, and not all in every round.
        examples: whether steps draw their examples by coins; it is compared with plain full batches, as many steps.
    """

    method: str
    combine: str | None = None
    examples: bool = False
    coins: bool = True

    def begun(self, federation: Federation, rounds: int) -> Run:
        """The run before its first round."""
        work: dict[str, Any] = {"batch_size": None, "steps": 10} if self.examples else {"batch_size": 10}
        private = "dp(" in self.method and self.coins
        spec = RunSpec(
            data="fashion_mnist",
            model="mlp",
            model_options={"hidden": [100]},
            method=self.method,
            combine=self.combine,
            rounds=rounds,
            lr=0.05,
            participation="poisson" if private else "full",
            fraction=1.0 if private else None,
            **work,
        )
        return spec.run(federation, EXECUTION)


PLAIN, BATCHES = Protected("fedavg"), Protected("fedavg", examples=True)
PROTECTIONS = {
    "median": Protected("fedavg", "median"),
    "trimmed mean": Protected("fedavg", "trimmed_mean(f=2)"),
    "multi-Krum": Protected("fedavg", "multi_krum(f=2)"),
    "Bulyan": Protected("fedavg", "bulyan(f=2)"),
    "geometric median": Protected("fedavg", "geometric_median"),
    "centred clipping": Protected("fedavg", "centred_clip"),
    "norm bound": Protected("fedavg", "norm_bound(norm=1.0)"),
    "FoolsGold": Protected("fedavg", "foolsgold"),
    "buckets of 2, geometric median": Protected("fedavg", "bucketing(size=2)+geometric_median"),
    "DP of clients": Protected("fedavg+dp(clip=1,noise=1,delta=0.001)"),
    "DP of examples, against full batches": Protected("fedavg+dp_sgd(clip=1,noise=1,rate=0.1)", examples=True),
    "DP of clients, noise of a tree": Protected(
        "fedavg+dp(clip=1,noise=1,delta=0.001,correlated=true,matrix=tree)", coins=False
    ),
    "noisy bits of every client": Protected(
        "fedavg+dp(clip=0.01,noise=0.2,delta=0.001,trust=nobody,mechanism=duchi)", coins=False
    ),
    "secure sum": Protected("fedavg+secure_sum"),
    "top 1 %, with feedback": Protected("fedavg+topk(0.01)+feedback"),
    "signs, with feedback": Protected("fedavg+sign+feedback"),
    "4 levels, with feedback": Protected("fedavg+quantize(levels=4)+feedback"),
    "top 1 % up and 10 % down": Protected("fedavg+topk(0.1)+downlink+topk(0.01)+feedback"),
}


def compared(name: str, federation: Federation, rounds: int) -> str:
    """A line of the table."""
    protected = PROTECTIONS[name]
    base, guarded = (one.begun(federation, rounds + 1) for one in (BATCHES if protected.examples else PLAIN, protected))
    base.step()
    guarded.step()
    ratios = []
    for _ in range(rounds):
        plain = base.step().seconds
        ratios.append(guarded.step().seconds / plain)
    up, down = (f"{part / 1000:,.0f} kB" for part in traffic(guarded.bound))
    most = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"| {name} | {statistics.median(ratios):.2f} | {most} | {up} | {down} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="measure lines whose name contains this; others stay as they are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loading = {"partition": "dirichlet_per_class", "alpha": 0.5, "clients": 20, "examples": 3000}
    federation = RunSpec(data="fashion_mnist", data_options=loading, method="fedavg").federation()
    up, down = (f"{part / 1000:,.0f} kB" for part in traffic(PLAIN.begun(federation, 1).bound))
    lines = ["| protection | seconds of a round, plain = 1 | least to most | up | down |", "|---|---:|---:|---:|---:|"]
    lines.append(f"| none | 1 | | {up} | {down} |")
    file = options.out.with_suffix(".md")
    earlier = file.read_text(encoding="utf-8").splitlines() if options.only and file.exists() else []
    for name in PROTECTIONS:
        known = [line for line in earlier if line.startswith(f"| {name} |")]
        if options.only not in name:
            lines += known
            continue
        lines.append(compared(name, federation, options.rounds))
        Console().print(lines[-1], markup=False)
    text = [
        "Made by `python -m benchmarks.protection --out benchmarks/results/protection`.",
        "20 clients, 3,000 pictures of Fashion-MNIST, a perceptron with 79,510 parameters, all in one process on one "
        f"thread; the median of {options.rounds} rounds, each against a plain round just before it. Made on a busy "
        "machine, so that only ratios mean something; lines may be of different days. Bytes of a client in a round, "
        "without keys and shares of a secure sum.",
        "\n".join(lines),
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
