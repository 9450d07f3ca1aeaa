"""What hiding single uploads costs: seconds and bytes of a round of four sites with and without secure sums.

In one process, where a message is a call and its answer, and over four real nodes with TLS. One case has a site that is
killed after it has dealt shares and before it sends its upload.

    python -m benchmarks.sums --out benchmarks/results/sums
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from statistics import median

from benchmarks.aftermath import CLIENTS, HOLD, lost, prepared
from benchmarks.stage import APP
from plures.deploy import agreement
from plures.deploy.app import opened
from plures.deploy.conduct import RESULT, Conductor
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.journal import Journal
from plures.deploy.keys import Keyring, with_pub
from plures.deploy.plan import Plan
from plures.deploy.signing import Key, Notary, Signed, SignedTransport, public
from plures.remote.state import SUM

DROPPED, IN_ROUND = "va", 1
"""Who is killed, and after how many rounds."""
NETWORKS: dict[str, tuple[int, ...]] = {"default network": (), "4 hidden layers of 512": (512, 512, 512, 512)}
METHODS = ("fedavg", "fedavg+secure_sum")

LOADER = f"""\
import json
import time
from pathlib import Path

from plures.tables.table import read_table

HERE = Path(__file__).parent


def load():
    for file in HERE.glob("state/*/*/{SUM}"):
        sum = json.loads(file.read_text())
        while sum["round"] == {IN_ROUND} and sum["dealt"] and (HERE / "{HOLD}").exists():
            (HERE / "at-upload").touch()
            time.sleep(0.02)
    return read_table(HERE / "data.csv")
"""
"""How the killed site loads its data: it waits between dealing and its upload, as long as there is a file ``hold``."""


def dropping(home: Path) -> None:
    """Let a site wait before its upload of one round, for :func:`kill`."""
    folder = home / DROPPED
    (folder / "load.py").write_text(LOADER)
    (folder / HOLD).touch()
    (folder / "at-upload").unlink(missing_ok=True)


def kill(fleet: Fleet, home: Path) -> None:
    """Kill the process that works at the site, once it is about to train for its upload."""
    if (home / DROPPED / "at-upload").exists() and (home / DROPPED / HOLD).exists():
        for task in fleet.nodes[DROPPED].members("flwr-clientapp"):
            with suppress(ProcessLookupError):
                os.kill(task, signal.SIGKILL)
        (home / DROPPED / HOLD).unlink()


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        case: method, network, and where.
        rounds: number of rounds.
        seconds: median of the rounds after the first.
        tensors: bytes of tensors that were sent in the rounds, and to score and publish.
        messages: the same, including headers.
        wire: bytes that passed through the nodes' connections; ``None`` in one process.
        cohorts: clients whose uploads counted, by round.
        differs: what differs from the same run in one process that exchanges no messages.
    """

    case: str
    rounds: int
    seconds: float
    tensors: int
    messages: int
    wire: int | None
    cohorts: list[int]
    differs: list[str]


class Calls:
    """A transport that calls the sites of this process."""

    def __init__(self, sites: Mapping[int, Signed]) -> None:
        self.sites = sites

    def addresses(self) -> list[int]:
        return sorted(self.sites)

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        return {address: self.sites[address].answer(message) for address, message in messages.items()}


def here(file: Path, out: Path, folder: Path) -> None:
    """A run over sites in this process, with the keys that a deployment has."""
    ring = Keyring(folder / "keys")
    ring.make_coordinator()
    for client in CLIENTS:
        ring.make_node(client)
    top = {"coordinator": public(with_pub(ring.coordinator))}
    agreement.enter(file, top=top, keys={client: public(ring.node_public(client)) for client in CLIENTS})
    plan, sites = Plan.load(file), {}
    for place, client in enumerate(CLIENTS):
        key = Key.load(ring.node(client))
        sites[place] = Signed(opened(file.parent / client / "site.toml", key), key, plan.orders, client)
    carrier = SignedTransport(Calls(sites), Key.load(ring.coordinator), plan.members)
    Conductor(plan, carrier, out, notary=Notary(plan.members)).run()


def written(home: Path, method: str, network: str, rounds: int) -> Path:
    """The files of the sites, and the federation's."""
    hidden = NETWORKS[network]
    model = {"model": "mlp"} if hidden else {}
    file = prepared(home, {"deadline": 120.0}, method=method, rounds=rounds, **model)
    if hidden:
        options = f"[run.model_options]\nhidden = {list(hidden)}\n\n[rules]"
        file.write_text(file.read_text().replace("[rules]", options, 1))
    return file


def row(case: str, file: Path, out: Path, wire: int | None = None) -> Row:
    """What a finished run has written."""
    passed = json.loads((out / RESULT).read_text())["progress"]["bytes"]
    events = Journal(out).rounds()
    return Row(
        case,
        len(events),
        median(event["seconds"] for event in events[1:]),
        passed["down"] + passed["up"],
        passed["wired"],
        wire,
        [len(event["clients"]) for event in events],
        lost(file, out),
    )


def in_one_process(rounds: int, folder: Path) -> Iterator[Row]:
    """The runs whose sites are in this process."""
    for place, (network, method) in enumerate(product(NETWORKS, METHODS)):
        inner = folder / str(place)
        file = written(inner / "sites", method, network, rounds)
        here(file, inner / "out", inner)
        yield row(f"{method}, {network}, one process", file, inner / "out")


def over_flower(rounds: int, folder: Path) -> Iterator[Row]:
    """The runs over real nodes."""
    home = folder / "sites"
    for client in CLIENTS:
        (home / client).mkdir(parents=True)
    with Fleet(folder / "fleet", {client: home / client / "site.toml" for client in CLIENTS}, relayed=True) as fleet:
        cases = [*product(NETWORKS, METHODS, [False]), ("default network", METHODS[1], True)]
        for place, (network, method, dies) in enumerate(cases):
            file, out = written(home, method, network, rounds), folder / str(place)
            if dies:
                dropping(home)
            begun = sum(relay.traffic.up + relay.traffic.down for relay in fleet.relays.values())
            status = fleet.wait(fleet.conduct(APP, file, out), 900, lambda: kill(fleet, home))
            if status != "finished:completed":
                raise SystemExit(f"{method}: {status}\n{fleet.superlink.tail(30)}")
            wire = sum(relay.traffic.up + relay.traffic.down for relay in fleet.relays.values()) - begun
            case = f"{method}, {network}, Flower" + (", one site killed" if dies else "")
            yield row(case, file, out, wire)


def markdown(rows: list[Row], command: str) -> str:
    head = (
        "| run | seconds a round | tensors, kB | messages, kB | on the wire, kB | uploads that counted | "
        "differs from a simulation |\n| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    )
    lines = [
        f"| {row.case} | {row.seconds:.2f} | {row.tensors / 1e3:.1f} | {row.messages / 1e3:.1f} | "
        f"{'' if row.wire is None else f'{row.wire / 1e3:.0f}'} | {', '.join(map(str, row.cohorts))} | "
        f"{', '.join(row.differs) or 'nowhere'} |"
        for row in rows
    ]
    return "\n".join(
        [
            f"Made by `{command}`. The machine did much other work, so single seconds are",
            "unreliable. In one process, where a message costs little, they differ by less than that; over Flower, by",
            "about the number of exchanges.",
            "",
            head,
            *lines,
            "",
            "*Seconds a round*: the median of the rounds after the first. *Tensors*: of all rounds, and of the two",
            "broadcasts at the end, which score and publish. *Messages*: the same, and headers; keys, shares and",
            "signatures are in these. A secure sum sends as many tensors as a plain mean, since a masked number takes",
            "four bytes, and three more messages to and from each site. *Differs*: leaves of the server, of a site or",
            "of a published model that are not those of a simulation with the clients whose uploads counted.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for found in chain(
            in_one_process(options.rounds, Path(folder, "here")), over_flower(options.rounds, Path(folder, "far"))
        ):
            print(found, flush=True)
            rows.append(found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps([asdict(found) for found in rows], indent=1) + "\n")
    command = f"python -m benchmarks.sums --rounds {options.rounds}"
    options.out.with_suffix(".md").write_text(markdown(rows, command))


if __name__ == "__main__":
    main()
