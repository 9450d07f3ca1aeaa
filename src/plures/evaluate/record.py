"""What results are made of, and what a finished run tells of its clients beyond their scores."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from plures.texts import visible_lines


def _json(value: float | None) -> float | str | None:
    """A number as JSON has it, which knows neither NaN nor infinity."""
    return value if value is None or math.isfinite(value) else None if math.isnan(value) else str(value)


Measured = Annotated[
    float,
    BeforeValidator(lambda value: float("nan") if value is None else value),
    PlainSerializer(_json, when_used="json"),
]
"""A number that may be missing or infinite: JSON has ``null`` for NaN, ``"inf"`` and ``"-inf"``."""

Score = Annotated[float | None, PlainSerializer(_json, when_used="json")]
"""A client's value, ``None`` where it has none; infinite where its model diverged, ``"inf"`` in JSON."""


class Result(BaseModel):
    """Immutable, without unknown fields; its texts are safe to show, whatever file they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _shown(cls, value: Any) -> Any:
        return shown(value)


def shown(value: Any) -> Any:
    """A value of a result with all its texts as :func:`~plures.texts.visible_lines` gives them."""
    if isinstance(value, str):
        return visible_lines(value)
    if isinstance(value, dict):
        return {shown(key): shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(inner, str | list | tuple | dict) for inner in value):
        return type(value)(map(shown, value))
    return value


class ClientValues(Result):
    """Metrics of every client on one split; ``None`` for a client without examples or where one is undefined.

    Attributes:
        clients: names.
        sizes: examples scored.
        metrics: metric name to one value per client.
    """

    clients: list[str]
    sizes: list[int]
    metrics: dict[str, list[Score]]


class Calibration(Result):
    """Sums in ten equal bins of confidence over test examples, from which a curve of any group of clients follows.

    Attributes:
        examples: per client, examples in each bin.
        confidence: per client, sum of the stated confidence in each bin.
        correct: per client, examples in each bin that were right.
    """

    examples: list[list[int]]
    confidence: list[list[float]]
    correct: list[list[int]]


class Mistake(Result):
    """A test example with a high loss.

    Attributes:
        row: its place in the federation's tensors.
        loss: cross-entropy or squared error.
        truth: the class or value that is right.
        predicted: the class or value that the client's predictor gave.
        confidence: stated probability of that class; ``None`` for regression.
    """

    row: int
    loss: Measured
    truth: str
    predicted: str
    confidence: float | None = None


class Layer(Result):
    """A layer in which clients' predictors differ, compared with the mean of all clients' predictors.

    Attributes:
        name: the module, after ``slot:`` where the predictor is composed of several slots.
        size: numbers in it.
        norm: per client, its length.
        distance: per client, the length of its difference from the mean.
        cosine: per client, the cosine of its angle to the mean.
    """

    name: str
    size: int
    norm: list[Measured]
    distance: list[Measured]
    cosine: list[Measured]


class Personal(Result):
    """What is personal in the clients' predictors at the end of a run.

    Attributes:
        layers: layers that are not the same for all clients.
        same: numbers of the predictor that are the same for all clients.
        places: per client, two principal components of the numbers that differ.
        explained: share of their variance along each of the two.
        peers: per client, places in the list of clients of the nearest others, the nearest first.
    """

    layers: list[Layer]
    same: int
    places: list[tuple[Measured, Measured]]
    explained: tuple[Measured, Measured]
    peers: list[list[int]]


class Move(Result):
    """A client that changed cluster.

    Attributes:
        round: from 0.
        block: the block of the layout.
        client: its name.
        cluster: where it went.
    """

    round: int
    block: str
    client: str
    cluster: int


class Details(Result):
    """What a finished run tells of its clients beyond their scores; at the round that validation chose.

    Attributes:
        calibration: of test examples; ``None`` for regression.
        confusion: per client, true class by decided class, in test examples; empty for regression and many classes.
        mistakes: per client, the test examples with the highest loss. Never their inputs: those stay with the client.
        personal: ``None`` where all clients predict with the same numbers.
        clusters: block to every client's cluster.
        moves: who changed cluster, in order.
        cold: unseen clients' test scores by the number of labelled examples that each may use.
    """

    calibration: Calibration | None = None
    confusion: list[list[list[int]]] = Field(default_factory=list)
    mistakes: list[list[Mistake]] = Field(default_factory=list)
    personal: Personal | None = None
    clusters: dict[str, list[int]] = Field(default_factory=dict)
    moves: list[Move] = Field(default_factory=list)
    cold: dict[str, ClientValues] = Field(default_factory=dict)
