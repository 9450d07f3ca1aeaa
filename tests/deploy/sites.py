"""Sites in this process: the messages are real, the network is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from torch import nn

from plures.deploy.conduct import Conductor
from plures.deploy.plan import Plan
from plures.deploy.signing import Key, Notary
from plures.entropy import Entropy, Secret
from plures.federation import SPLITS, Federation, Split
from plures.method import Method
from plures.remote.allowed import Allowed
from plures.remote.clients import Remote, Rules, over_sites
from plures.remote.site import Site
from plures.remote.sites import Sites
from plures.run import Participation, Training
from plures.run.coordinator import Coordinator

EVERYTHING = ("model", "personal", "control")
KEYS = [Key(ec.generate_private_key(ec.SECP384R1())) for _ in range(8)]
"""Of the members that have keys, which secure sums need."""


def elsewhere(federation: Federation) -> Federation:
    """The same clients without any rows except public ones."""
    none = torch.empty(0, dtype=torch.int64)
    return replace(
        federation,
        inputs=federation.inputs[federation.public],
        targets=federation.targets[federation.public],
        splits={split: Split.of([none] * len(federation)) for split in SPLITS},
        public=torch.arange(len(federation.public)),
        metadata={},
    )


class Loopback:
    """A transport that calls the sites.

    Attributes:
        down: addresses that do not answer.
        spoil: ``(address, answer) -> answer``: the answer that arrives instead.
        log: every message that was sent, by address.
        answers: every answer that came, by address.
    """

    def __init__(self, sites: list[Site]) -> None:
        self.sites = {100 + number: site for number, site in enumerate(sites)}
        self.down: set[int] = set()
        self.spoil: Callable[[int, bytes], bytes | str] = lambda address, answer: answer
        self.log: list[tuple[int, bytes]] = []
        self.answers: list[tuple[int, bytes | str]] = []

    def addresses(self) -> list[int]:
        return sorted(self.sites.keys() - self.down)

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        self.log += messages.items()
        found = {a: self.spoil(a, self.sites[a].answer(m)) for a, m in messages.items() if a not in self.down}
        self.answers += found.items()
        return found


def far(
    federation: Federation,
    model: Callable[[], nn.Module],
    method: Method,
    training: Training,
    folder: Path,
    *,
    seed: int = 0,
    participation: Participation | None = None,
    rules: Rules | None = None,
    allowed: Allowed | None = None,
    tells: tuple[str, ...] | None = None,
    secret: Secret | None = None,
    entropy: Callable[[str], Entropy] = lambda client: os.urandom,
) -> tuple[Coordinator[Remote], Loopback]:
    """A remote run over sites that hold the clients of a federation."""
    declared = elsewhere(federation)
    tells = ("examples", "labels", *federation.metadata) if tells is None else tells
    sent = {key.slot if hasattr(key, "slot") else str(key) for key in method.layout} | {"model", "clipping"}
    members = {client: key.fingerprint for client, key in zip(federation.clients, KEYS, strict=False)}
    allowed = allowed or Allowed(send=tuple(sent), tell=(*tells, "sizes"), digits=17, least=1)
    sites = [
        Site(
            client,
            federation.subset([client]),
            declared,
            model,
            method,
            training,
            folder=folder / client,
            seed=seed,
            allowed=allowed,
            tells=tells,
            participation=participation,
            entropy=entropy(client),
            notary=Notary(members, KEYS[place]) if place < len(KEYS) else None,
        )
        for place, client in enumerate(federation.clients)
    ]
    carrier = Loopback(sites)
    known = Sites(carrier, federation.clients)
    known.meet()
    remote = over_sites(
        declared, model, method, known, training, participation=participation, seed=seed, rules=rules, secret=secret,
        notary=Notary(members), folder=folder,
    )  # fmt: skip
    return remote, carrier


def conductor(file: Path, carrier: Loopback, out: str = "out") -> Conductor:
    """The coordinator of an agreed file, which never waits."""
    plan = Plan.load(file)
    return Conductor(plan, carrier, file.parent / out, wait=lambda seconds: None, notary=Notary(plan.keys))
