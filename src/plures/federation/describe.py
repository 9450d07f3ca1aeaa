"""What a federation is made of: clients, sizes, label skew, missing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from plures.federation.inputs import Features, Inputs, one_tensor, shape_text
from plures.federation.metadata import MISSING_VALUES
from plures.federation.preparation import Preparation
from plures.federation.splits import SPLITS, Split, SplitName
from plures.tasks import Task

SHOWN = 5
QUANTILES = {"least": 0.0, "lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75, "most": 1.0}


@dataclass(frozen=True)
class ClientDescription:
    """One client.

    Attributes:
        name: of the client.
        sizes: examples in each split.
        labels: examples of each class or label over all splits; empty for numbers.
        target_mean: mean of each target over all splits; empty for classification.
        target_std: their standard deviations (over n); empty for classification.
        missing: missing input values, imputed or not.
        metadata: its row of the metadata table.
    """

    name: str
    sizes: Mapping[SplitName, int]
    labels: tuple[int, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    missing: int
    metadata: Mapping[str, object]

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Description:
    """A federation in numbers; its ``str`` is a table.

    Attributes:
        name: of the federation.
        kind: of the task.
        called: name of the task's outputs.
        classes: class names.
        features: shape of an input.
        source: origin and licence.
        clients: one entry per client.
        label_skew: mean over clients of the total variation distance ``sum_k |p_ik - p_k| / 2`` between the client's
            label frequencies and the pooled ones: 0 if alike, towards 1 if disjoint; None without classes.
    """

    name: str
    kind: str
    called: str
    classes: tuple[str, ...]
    features: Features
    source: str
    clients: tuple[ClientDescription, ...]
    label_skew: float | None

    @property
    def examples(self) -> int:
        return sum(client.size for client in self.clients)

    @property
    def missing(self) -> int:
        return sum(client.missing for client in self.clients)

    def __str__(self) -> str:
        sizes = {split: [client.sizes[split] for client in self.clients] for split in SPLITS}
        text = ", ".join(f"{split} {sum(counts)}" for split, counts in sizes.items())
        counted = len(self.clients[0].labels)
        what = f"{counted} {self.called}" if counted else "real targets"
        lines = [
            f"{self.name}: {self.kind}, {what}, inputs {shape_text(self.features)}",
            f"{len(self.clients)} clients, {self.examples} examples ({text})",
            f"missing values: {self.missing}",
        ]
        if self.label_skew is not None:
            lines.append(f"label skew: {self.label_skew:.3f} (mean total variation distance to the pooled labels)")
        if self.source:
            lines.append(f"source: {self.source}")
        return "\n".join([*lines, "", *_aligned(self._table(sizes))])

    def _table(self, sizes: Mapping[SplitName, Sequence[int]]) -> list[list[str]]:
        keys = [key for key in self.clients[0].metadata if key != MISSING_VALUES]
        target = "labels" if self.clients[0].labels else "target mean (std)"
        table = [["client", *SPLITS, target, "missing", *keys]]
        table += [self._row(client, keys) for client in self.clients]
        if len(self.clients) > 2 * SHOWN + 1:
            table[SHOWN + 1 : -SHOWN] = [["..."]]
            for word, share in QUANTILES.items():
                counts = (torch.tensor(sizes[split]).double().quantile(share) for split in SPLITS)
                table.append([f"({word})", *(f"{float(count):g}" for count in counts)])
        return table

    def _row(self, client: ClientDescription, keys: Sequence[str]) -> list[str]:
        if len(client.labels) > 2 * SHOWN:
            target = f"{sum(count > 0 for count in client.labels)} {self.called}"
        elif client.labels:
            target = " ".join(map(str, client.labels))
        else:
            moments = zip(client.target_mean, client.target_std, strict=True)
            target = " ".join(f"{mean:.3g} ({std:.3g})" for mean, std in moments)
        counts = [str(client.sizes[split]) for split in SPLITS]
        return [client.name, *counts, target, str(client.missing), *(str(client.metadata[key]) for key in keys)]


class Described(Protocol):
    """What is read from a federation; a protocol, because the federation imports this module."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...

    @property
    def targets(self) -> Tensor: ...

    @property
    def features(self) -> Features: ...

    @property
    def clients(self) -> tuple[str, ...]: ...

    @property
    def splits(self) -> Mapping[SplitName, Split]: ...

    @property
    def metadata(self) -> Mapping[str, tuple[object, ...]]: ...

    @property
    def source(self) -> str: ...

    @property
    def inputs(self) -> Tensor | Inputs: ...

    @property
    def preparation(self) -> Preparation | None: ...


def describe(federation: Described) -> Description:
    """Clients, sizes, label skew and missing values of a federation, over all splits.

    Examples:
        >>> from plures.federation import describe
        >>> [(client.name, client.labels) for client in describe(plures.load("heart")).clients]
        [('cleveland', (164, 139)), ('hungarian', (188, 106)), ('switzerland', (8, 115)), ('va', (51, 149))]
    """
    made = federation.preparation
    places = [] if made is None or made.schema is None else list(made.schema.gaps)
    recorded = federation.metadata.get(MISSING_VALUES)
    clients, frequencies = [], []
    total = torch.zeros(len(federation.task.names), dtype=torch.float64)
    for number, name in enumerate(federation.clients):
        rows = torch.cat([federation.splits[split][number] for split in SPLITS])
        targets = federation.targets[rows].cpu()
        counts = federation.task.counts(targets)
        if counts is not None:
            total += counts
            frequencies.append(counts.double() / counts.sum())
        values = targets.double()
        gaps = int(one_tensor(federation.inputs, "missing values")[rows][:, places].sum()) if places else 0
        clients.append(
            ClientDescription(
                name=name,
                sizes={split: len(federation.splits[split][number]) for split in SPLITS},
                labels=() if counts is None else tuple(int(count) for count in counts.tolist()),
                target_mean=() if counts is not None else tuple(values.mean(0).tolist()),
                target_std=() if counts is not None else tuple(values.std(0, correction=0).tolist()),
                missing=gaps if recorded is None else int(str(recorded[number])),
                metadata={key: column[number] for key, column in federation.metadata.items()},
            )
        )
    skew = None
    if federation.task.classes:
        skew = float((torch.stack(frequencies) - total / total.sum()).abs().sum(1).mean() / 2)
    return Description(
        name=federation.name,
        kind=federation.task.kind,
        called=federation.task.called,
        classes=federation.task.classes,
        features=federation.features,
        source=federation.source,
        clients=tuple(clients),
        label_skew=skew,
    )


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell, numbers right-aligned."""
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(max(map(len, table)))]
    lines = []
    for row in table:
        cells = zip(row, widths, strict=False)
        lines.append("  ".join(cell.rjust(width) if _number(cell) else cell.ljust(width) for cell, width in cells))
    return [line.rstrip() for line in lines]


def _number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()
