"""Write docs/protection.md: what of each method differential privacy covers, what stays at home, and what would leak.

python -m tools.protection            writes the page
python -m tools.protection --check    only says whether it is up to date
"""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from torch import nn

from plures.errors import PluresError, PluresWarning
from plures.evaluate.spec import find_method
from plures.method import Bound, Method, Personal, Setting
from plures.methods import METHODS
from plures.models import Network, with_roles
from plures.models.residual import SqueezeExcitation
from plures.privacy import Private, examples_plan, settled
from plures.privacy.adaptive import SLOT
from plures.report.catalogue import model, sample
from plures.run import Full
from plures.run.participation import drawn

FILE = Path(__file__).parents[1] / "docs" / "protection.md"
HEAD = """\
# What is protected against whom

This page is made by `python -m tools.protection` from the layouts of the methods; a test keeps it true. Each method is
joined with `dp` (clients, by noise of the server) and with `dp_sgd` (single examples, by noise of every client), on a
small network; [the guide](guides/protect.md#differential-privacy) says what these mean.

- **Noised**: what leaves a client, all under one bound. Against other members and whoever gets the shared model, the
  client's data is hidden in it; against the server only with `trust=nobody` or `sum`.
- **At home**: what is trained and never leaves. It costs no epsilon, and is not protected against whoever gets it: it
  memorises its owner. With `dp_sgd` it is covered, too.
- Under `dp` and `dp_sgd`: "yes", or why not, which is what would leak. "yes" under `dp_sgd` says that nothing else of
  the method reads examples.
- In the clear for all methods: the number of examples, and scores on held-out examples. With `dp`, losses of training
  are withheld.

| method | noised | at home | `dp` | `dp_sgd` | secure sum |
|---|---|---|---|---|---|
"""


def bare() -> nn.Module:
    """A network without running statistics."""
    body = nn.Linear(8, 8), nn.ReLU(), nn.Unflatten(1, (-1, 1, 1)), SqueezeExcitation(8), nn.Flatten()
    return with_roles(nn.Sequential(*body, nn.Linear(8, 2)), head="5", se="3")


@cache
def setting() -> Setting:
    return Setting.of(sample())


def bound(method: Method, network: nn.Module) -> Bound:
    """A method on a small network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluresWarning)
        return method.bind(Network(method.prepare(lambda: network, setting())), setting())


@dataclass(frozen=True)
class Row:
    """A method's line.

    Attributes:
        name: of the method.
        noised: blocks that leave a client.
        home: blocks that are trained and stay.
        clients: why `dp` refuses it; empty if it does not.
        examples: why `dp_sgd` does.
        summed: whether the server needs only a sum.
    """

    name: str
    noised: str
    home: str
    clients: str
    examples: str
    summed: bool

    def __str__(self) -> str:
        cells = self.noised, self.home, self.clients or "yes", self.examples or "yes", "yes" if self.summed else "no"
        return f"| `{self.name}` | " + " | ".join(cells) + " |"


def row(name: str) -> Row:
    """What a method's layout says; the network has running statistics where the method keeps them at home."""
    method = METHODS[name]()
    found = {network: _clients(method, network()) for network in (model, bare)}
    network = bare if found[model] else model
    plain = bound(method, network())
    noised = [block.name for block in plain.blocks if plain.travelling(block)]
    home = [b.name for b in plain.blocks if isinstance(b.share, Personal) and set(b.leaves) & plain.written]
    nothing = "nothing is sent" if not plain.travels else ""
    refused = nothing or found[network]
    sent = ", ".join(one for one in noised if one != SLOT)
    return Row(
        name,
        sent if sent and not refused else "-",
        ", ".join(home) or "-",
        refused,
        _examples(name),
        plain.secure_aggregation and bool(noised),
    )


def _clients(method: Method, network: nn.Module) -> str:
    """Why differential privacy of clients is refused."""
    try:
        private = replace(method, wire=(*method.wire, Private()))
        made, plan = settled(private, lambda: drawn(Full(), setting(), 0), travels=bound(method, network).travels)
        if plan is not None:
            plan.check(bound(made, network))
    except PluresError as error:
        return reason(error)
    return ""


def _examples(name: str) -> str:
    """Why steps that are private for single examples are refused."""
    try:
        method = find_method(f"{name}+dp_sgd")()
        examples_plan(bound(method, bare()), None, 1, lambda rounds: rounds)
    except PluresError as error:
        text = str(error)
        what = re.search(r"channel '(\w+)'", text)
        if what:
            return f"{what[1]} without noise"
        return (
            "reads examples elsewhere, too" if text.startswith("dp_sgd: the method reads") else "trains in its own way"
        )
    return ""


def reason(error: PluresError) -> str:
    """What is between the place and the remedy of an error, and so says what would leak."""
    text = str(error)
    if channel := re.search(r"refuses channel '(\w+)' \(.*?\): ([^;(]*)", text):
        return f"{channel[1]}: {channel[2].strip()}"
    block = re.search(r"block '[^']*': ([^;]*)", text)
    return (block[1] if block else text).replace("|", "\\|").strip()


def page() -> str:
    return HEAD + "".join(f"{row(name)}\n" for name in METHODS)


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        return int(FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
