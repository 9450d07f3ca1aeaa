"""What the catalogue says about each method, measured on a small model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from plures.evaluate.spec import find_method
from plures.federation import Federation, Split
from plures.method import Bound, Channel, Clustered, Generated, Mixed, Personal, Setting
from plures.methods import METHODS, Entry
from plures.models import Network, with_roles
from plures.models.residual import SqueezeExcitation
from plures.run import Training
from plures.run.cost import flops, traffic
from plures.tasks import Classification


@dataclass(frozen=True)
class Line:
    """A method's line in the catalogue; sizes and work are relative to a small model and to FedAvg."""

    name: str
    title: str
    family: str
    citation: str
    up: str
    down: str
    work: str
    travels: str
    stays: str
    secure: str
    unseen: str


def catalogue() -> Iterator[Line]:
    """A line for every method.

    Examples:
        >>> from plures.report import catalogue
        >>> line = next(line for line in catalogue() if line.name == "fedavg")
        >>> line.title, line.up, line.stays
        ('FedAvg', '1', '-')
    """
    federation, training = sample(), Training(batch_size=10)
    base = flops(bind(find_method("fedavg"), federation), federation, training)
    for entry in METHODS.values():
        yield line(entry, federation, training, base)


def bind(entry: Entry, federation: Federation) -> Bound:
    """A method with its defaults on the small model."""
    method, setting = entry(), Setting.of(federation)
    return method.bind(Network(method.prepare(model, setting)), setting)


def leaving(entry: Entry) -> tuple[Channel, ...]:
    """Everything that leaves a client, for a method with its defaults on the small model."""
    return bind(entry, sample()).channels


def line(entry: Entry, federation: Federation, training: Training, base: int) -> Line:
    """What one method does with a small model."""
    bound = bind(entry, federation)
    whole = sum(t.nbytes for t in bound.initial["model"].values())
    up, down = (f"{part / whole:.2g}" for part in traffic(bound))
    work = f"{flops(bound, federation, training) / base:.2g}"
    sent = [b.name for b in bound.blocks if bound.travelling(b)] + sorted({slot for slot, _ in bound.view_inputs()})
    travels = ", ".join(sent) or "-"
    stays = ", ".join(b.name for b in bound.blocks if isinstance(b.share, Personal) and set(b.leaves) & bound.written)
    secure = "yes" if bound.secure_aggregation else "no"
    cells = (up, down, work, travels, stays or "-", secure, newcomer(bound))
    return Line(entry.name, entry.title, entry.family, entry.citation, *cells)


def newcomer(bound: Bound) -> str:
    """How an unseen client gets its model."""
    predict, shares = bound.method.predictor, [b.share for b in bound.blocks if bound.travelling(b)]
    steps = ["shared model" if shares else "initial model"]
    for share in shares:
        if isinstance(share, Clustered):
            steps = ["its cluster's model"]
        if isinstance(share, Mixed):
            steps = ["mean of the models"]
        if isinstance(share, Generated):
            steps = ["generated from metadata" if share.columns else "mean embedding"]
    if predict.visits:
        steps.append(f"{predict.visits} local visit{'s' if predict.visits > 1 else ''}")
    if predict.adapt:
        steps.append("adaptation")
    if predict.calibrate:
        steps.append("calibration")
    return " + ".join(steps)


def model() -> nn.Module:
    """A small network with body, normalisation, squeeze-and-excitation and head."""
    body = (
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Unflatten(1, (-1, 1, 1)),
        SqueezeExcitation(8),
        nn.Flatten(),
    )
    return with_roles(nn.Sequential(*body, nn.Linear(8, 2)), head="6", se="4")


def sample() -> Federation:
    """Four clients with the facts that methods may ask for."""
    inputs = torch.randn(168, 8, generator=torch.Generator().manual_seed(0))
    split = Split.of([torch.arange(40) + first for first in (0, 40, 80, 120)])
    return Federation(
        "sample",
        Classification(("no", "yes")),
        inputs,
        (inputs[:, 0] > 0).long(),
        ("a", "b", "c", "d"),
        {"train": split, "validation": split, "test": split},
        {
            "group": ("one", "one", "two", "two"),
            "completeness": (1.0, 0.9, 0.8, 0.7),
            "reliability": (1.0, 0.9, 0.8, 0.7),
        },
        public=torch.arange(160, 168),
    )
