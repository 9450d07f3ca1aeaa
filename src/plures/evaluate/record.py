"""Base types of results, and the details of a finished run's clients."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from plures.content import alike
from plures.texts import visible_lines


def _json(value: float | None) -> float | str | None:
    """A number as JSON can hold it: NaN becomes ``None``, infinity text."""
    return value if value is None or math.isfinite(value) else None if math.isnan(value) else str(value)


Measured = Annotated[
    float,
    BeforeValidator(lambda value: float("nan") if value is None else value),
    PlainSerializer(_json, when_used="json"),
]
"""A number that may be missing or infinite: in JSON, NaN is ``null`` and infinity ``"inf"`` or ``"-inf"``."""

Score = Annotated[float | None, PlainSerializer(_json, when_used="json")]
"""A client's value: ``None`` if it has none, infinite if its model diverged (``"inf"`` in JSON)."""


class Result(BaseModel):
    """Base of all results: immutable, without unknown fields, and with texts that are safe to show."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _shown(cls, value: Any) -> Any:
        return shown(value)

    def __eq__(self, other: object) -> bool:
        """Equal fields, NaN like NaN."""
        fields = type(self).model_fields
        return type(other) is type(self) and all(alike(getattr(self, one), getattr(other, one)) for one in fields)


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
    """Metrics of every client on one split; ``None`` for a client without examples or with an undefined metric.

    Attributes:
        clients: names of the clients.
        sizes: per client, number of examples scored.
        metrics: metric name to one value per client.
    """

    clients: list[str]
    sizes: list[int]
    metrics: dict[str, list[Score]]


class Calibration(Result):
    """Sums over test examples in ten equal bins of confidence. They give the calibration curve of any group of clients.

    Attributes:
        examples: per client, number of examples in each bin.
        confidence: per client, sum of the confidence in each bin.
        correct: per client, number of correct examples in each bin.
    """

    examples: list[list[int]]
    confidence: list[list[float]]
    correct: list[list[int]]


class Mistake(Result):
    """A test example with a high loss.

    Attributes:
        row: its row in the federation's tensors.
        loss: cross-entropy or squared error.
        truth: the true class or value.
        predicted: the class or value that the client's predictor gave.
        confidence: predicted probability of that class; ``None`` for regression.
    """

    row: int
    loss: Measured
    truth: str
    predicted: str
    confidence: float | None = None


class Layer(Result):
    """A layer in which clients' predictors differ, compared with the mean of all clients' predictors.

    Attributes:
        name: the module, prefixed with ``slot:`` if the predictor is composed of several slots.
        size: how many numbers it has.
        norm: per client, its L2 norm.
        distance: per client, its L2 distance from the mean.
        cosine: per client, its cosine similarity to the mean.
    """

    name: str
    size: int
    norm: list[Measured]
    distance: list[Measured]
    cosine: list[Measured]


class Personal(Result):
    """How the clients' predictors differ at the end of a run.

    Attributes:
        layers: layers that are not the same for all clients.
        same: how many numbers of the predictor are the same for all clients.
        places: per client, its coordinates along the two principal components of the numbers that differ.
        explained: share of the variance along each of the two.
        peers: per client, positions of the nearest other clients in the list of clients, nearest first.
    """

    layers: list[Layer]
    same: int
    places: list[tuple[Measured, Measured]]
    explained: tuple[Measured, Measured]
    peers: list[list[int]]


class Move(Result):
    """A client that changed cluster.

    Attributes:
        round: round of the change, from 0.
        block: the block of the layout.
        client: the client's name.
        cluster: its new cluster.
    """

    round: int
    block: str
    client: str
    cluster: int


class BySubgroup(Result):
    """Test scores by the subgroups of one column; ``None`` for a subgroup that is too small, or without a value.

    Attributes:
        metrics: metric -> per subgroup, the mean over the clients that have enough of its examples
            (:data:`~plures.evaluate.results.LEAST`).
        pooled: metric -> per subgroup, the value on its examples of all clients together.
        clients: per subgroup, the value of every client in the metric by which methods are compared.
    """

    metrics: dict[str, list[Score]]
    pooled: dict[str, list[Score]]
    clients: list[list[Score]]


class Watched(Result):
    """What was seen of every client, honest or not, in a run with attackers or with a combination that leaves some out.

    Attributes:
        left_out: client -> share of the rounds that judged it in which its upload did not count; empty if the
            combination leaves nobody out.
        clusters: block -> client -> its cluster at the end.
        personal: honest client -> how often the attackers' backdoor opens its own predictor: the share of its triggered
            test examples of other classes that go to the attackers' class. Empty without a backdoor.
        shared: the same of the model that it receives, if that is a whole model.
    """

    left_out: dict[str, float] = Field(default_factory=dict)
    clusters: dict[str, dict[str, int]] = Field(default_factory=dict)
    personal: dict[str, float] = Field(default_factory=dict)
    shared: dict[str, float] = Field(default_factory=dict)


class FleetCard(Result):
    """What the devices of a simulated fleet did in a run, up to the chosen round. All lists are by client.

    Attributes:
        clients: their names, scored or not.
        kinds: class of each device.
        unfit: whether it lacks the memory to train.
        counted: visits whose work counted.
        late: visits that were not done at the deadline.
        dropped: visits during which the device failed or went away.
        surplus: visits that were not waited for, because enough others were done.
        seconds: simulated time that the device worked.
        joules: energy that it spent.
    """

    clients: list[str]
    kinds: list[str]
    unfit: list[bool]
    counted: list[int]
    late: list[int]
    dropped: list[int]
    surplus: list[int]
    seconds: list[float]
    joules: list[float]


class Details(Result):
    """Details of a finished run's clients besides their scores, at the round that validation chose.

    Attributes:
        calibration: calibration on test examples; ``None`` for regression.
        confusion: per client, test examples by true and decided class; empty for regression and many classes.
        mistakes: per client, the test examples with the highest loss, without their inputs: those stay with the client.
        personal: how the predictors differ; ``None`` if they are the same for all clients.
        clusters: block to every client's cluster.
        moves: all changes of cluster, in order.
        cold: unseen clients' test scores by the number of labelled examples that each may use.
        low: per client, lower bound of the 95 % confidence interval of its value in the metric by which methods are
            compared, over its test examples; ``None`` if unknown. Empty without intervals.
        high: per client, the upper bound.
        pooled: metric -> its value on the test examples of all clients together; empty with too many clients.
        subgroups: column -> test scores by its subgroups.
    """

    calibration: Calibration | None = None
    confusion: list[list[list[int]]] = Field(default_factory=list)
    mistakes: list[list[Mistake]] = Field(default_factory=list)
    personal: Personal | None = None
    clusters: dict[str, list[int]] = Field(default_factory=dict)
    moves: list[Move] = Field(default_factory=list)
    cold: dict[str, ClientValues] = Field(default_factory=dict)
    low: list[Score] = Field(default_factory=list)
    high: list[Score] = Field(default_factory=list)
    pooled: dict[str, Score] = Field(default_factory=dict)
    subgroups: dict[str, BySubgroup] = Field(default_factory=dict)
