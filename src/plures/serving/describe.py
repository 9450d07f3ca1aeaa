"""Fills in a card from a run and a predictor."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import torch
from torch import Tensor

from plures.evaluate import RunSpec
from plures.evaluate.folder import Counts
from plures.evaluate.results import PrivacyCard
from plures.federation import Federation
from plures.federation.inputs import kind_of
from plures.files import digest as digest
from plures.method import Bound, Phase, Predict, State
from plures.models import Leaves
from plures.run import Execution
from plures.serving.card import Card, Part, PreparationDict
from plures.tables.schema import Schema
from plures.tables.source import schema_of
from plures.tasks import Task, to_dict
from plures.version import __version__

FARTHEST = 60.0
"""Log-odds beyond which a decision rule is assumed constant."""


def described(
    federation: Federation,
    bound: Bound,
    client: str,
    spec: RunSpec,
    counted: Counts,
    *,
    round: int,
    execution: Execution,
    schema: Schema | None = None,
    sheet: Mapping[str, Any] | None = None,
    privacy: PrivacyCard | None = None,
) -> Card:
    """The card of a client's model, except for what needs the finished model.

    Args:
        federation: the client's federation; its rows are not read.
        bound: the method and the network.
        client: its name.
        spec: the run's settings.
        counted: the client's numbers of examples.
        round: rounds finished.
        execution: of the run.
        schema: format of raw table rows; default: that of the federation's data.
        sheet: the data sheet of the client's data.
        privacy: what the run spent of differential privacy.
    """
    schema = schema_of(federation) if schema is None else schema
    predict, said = bound.method.predictor, to_dict(federation.task, spec.task)
    return Card(
        client=client,
        federation=federation.name,
        source=federation.source,
        kind=said["kind"],
        classes=federation.task.classes,
        outputs=federation.task.outputs,
        options={name: value for name, value in said.items() if name != "kind"},
        features=federation.features,
        dtype=kind_of(federation.inputs),
        columns=federation.columns,
        preparation=None if federation.preparation is None else cast(PreparationDict, federation.preparation.to_dict()),
        spec=spec.model_copy(update={"data": federation.name, "data_options": {}, "unseen": []}),
        precision="float32" if execution.precision == "auto" or execution.precision == "tf32" else execution.precision,
        round=round,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=counted["rows"],
        carries={split: counted["rows"][split] for split in predict.reads},
        labels=counted["labels"],
        fitted_to=reads(predict),
        parts=parts(bound),
        sheet=dict(sheet or {}),
        privacy=privacy,
        table=None if schema is None else schema.model_dump(mode="json"),
        versions={
            "plures": __version__,
            "torch": torch.__version__,
            "safetensors": importlib.metadata.version("safetensors"),
            "python": platform.python_version(),
        },
    )


def parts(bound: Bound) -> tuple[Part, ...]:
    """The blocks of a method's layout, with whom each is shared, and how much of it travels."""

    def numbers(leaves: tuple[tuple[str, str], ...]) -> int:
        return sum(bound.initial[slot][path].numel() for slot, path in leaves)

    return tuple(
        Part(
            name=block.name,
            share=type(block.share).__name__.lower(),
            numbers=numbers(block.leaves),
            travels=numbers(bound.travelling(block)),
            served=block.share.served,
        )
        for block in bound.blocks
    )


def fitted(predict: Predict, leaves: Mapping[str, Leaves]) -> dict[str, dict[str, float | list[float]]]:
    """Values fitted by a predictor's calibrations: slot, name, value."""
    return {
        stage.slot: {path: value.tolist() for path, value in leaves[stage.slot].items()}
        for stage in predict.calibrate
        if stage.slot in leaves
    }


def reads(predict: Predict) -> tuple[str, ...]:
    """Splits whose examples are used to build the predictor from the trained leaves."""
    found: list[str] = []
    for item in predict.preparation:
        if isinstance(item, Phase):
            found.append("train")
        else:
            found += [*item.reads, *([] if item.measure is None else [item.split])]
    return tuple(dict.fromkeys(found))


def threshold(predict: Predict, leaves: Mapping[str, Leaves], task: Task) -> float | None:
    """Probability of the second of two classes above which a predictor predicts it.

    Found by bisection of the decision rule, to 1e-12; 0 or 1 for a constant rule. ``None`` for other
    tasks, and if the rule is not a threshold.
    """
    if len(task.classes) != 2:
        return None
    decide = predict.decide
    if decide is None:
        return 0.5

    def positive(odds: Tensor) -> Tensor:
        return decide(State(leaves), torch.stack([torch.zeros_like(odds), odds], -1)).bool()

    grid = torch.linspace(-FARTHEST, FARTHEST, 4801, dtype=torch.float64)
    above = positive(grid)
    if bool((above[:-1] & ~above[1:]).any()):
        return None
    count = int(above.sum())
    if count in (0, len(grid)):
        return 1.0 - float(count > 0)
    low, high = grid[-count - 1], grid[-count]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if bool(positive(middle.view(1))) else (middle, high)
    return 1 / (1 + math.exp(-float(low)))
