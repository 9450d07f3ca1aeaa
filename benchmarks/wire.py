"""What crosses the wire of four real nodes with TLS, next to what must cross according to the simulator's ledger.

python -m benchmarks.wire --out benchmarks/results/wire
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import main
from plures.deploy import project
from plures.deploy.conduct import RESULT
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.member import SITE

CASES: dict[str, dict[str, object]] = {
    "fedavg, default network": {"method": "fedavg"},
    "fedrep, default network": {"method": "fedrep"},
    "scaffold, default network": {"method": "scaffold"},
    "fedavg, 4 hidden layers of 512": {
        "method": "fedavg",
        "model": "mlp",
        "model_options": {"hidden": [512, 512, 512, 512]},
    },
}
ALLOWED = 'send = ["model", "control"]'


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        case: method and network.
        rounds: rounds of training; two more exchanges score and publish.
        ledger: bytes of tensors that the simulator counts for the rounds, both ways, all sites.
        tensors: bytes of tensors that were sent, including scoring and publishing.
        messages: the same, including headers.
        wire: bytes that passed through the nodes' connections: Flower, HTTP, TLS, polling, delivery of the app.
    """

    case: str
    rounds: int
    ledger: int
    tensors: int
    messages: int
    wire: int


def measured(case: str, rounds: int, folder: Path) -> Row:
    """A run over four nodes with TLS, each behind a relay that counts."""
    run = CASES[case] | {"rounds": rounds}
    home = folder / "federation"
    project.write(home, project.heart(**{k: v for k, v in run.items() if k != "model_options"}))
    sites = {client: folder / "sites" / client / SITE for client in project.heart().clients}
    rows = {client: home / project.ROWS / f"{client}.csv" for client in sites}
    plan = home / project.PLAN
    if "model_options" in run:
        hidden = json.dumps(run["model_options"]["hidden"])  # type: ignore[index]
        plan.write_text(plan.read_text().replace("[rules]", f"[run.model_options]\nhidden = {hidden}\n\n[rules]", 1))
    with Fleet(folder / "fleet", sites, relayed=True) as fleet:
        out = folder / "out"
        fleet.join(plan, rows)
        for site in sites.values():
            site.write_text(site.read_text().replace('send = ["model"]', ALLOWED))
        status = fleet.wait(fleet.conduct(home, plan, out), 900)
        if status != "finished:completed":
            raise SystemExit(f"{case}: {status}\n{fleet.superlink.tail(30)}")
        wire = sum(relay.traffic.up + relay.traffic.down for relay in fleet.relays.values())
    told = json.loads((out / RESULT).read_text())
    passed = told["progress"]["bytes"]
    ledger = told["result"]["curve"][-1]["bytes"]
    return Row(case, rounds, ledger, passed["down"] + passed["up"], passed["wired"], wire)


def markdown(rows: list[Row], command: str) -> str:
    head = (
        "| run | rounds | ledger, kB | tensors sent, kB | headers, bytes a message | on the wire, kB | "
        "beyond tensors, kB a round and site |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    lines = []
    for row in rows:
        messages = 4 * (2 * (row.rounds + 2) + 2)
        lines.append(
            f"| {row.case} | {row.rounds} | {row.ledger / 1e3:.1f} | {row.tensors / 1e3:.1f} | "
            f"{(row.messages - row.tensors) / messages:.0f} | {row.wire / 1e3:.0f} | "
            f"{(row.wire - row.tensors) / 4e3 / (row.rounds + 2):.0f} |"
        )
    return "\n".join(
        [
            f"Made by `{command}`: four SuperNodes with TLS and registered keys on one machine, Flower's own programs.",
            "",
            head,
            *lines,
            "",
            "*Ledger*: what the simulator counts for the rounds, both ways, all four sites. *Tensors sent*: the same",
            "and the two broadcasts at the end, which score and publish. *Beyond tensors*: headers, the delivery of",
            "the app, Flower's and HTTP's own, polling and heartbeats, TLS; it grows with the time that a run takes,",
            "and little with the size of the model.",
            "",
        ]
    )


if __name__ == "__main__":
    main("wire", __doc__, CASES, measured, markdown, 4)
