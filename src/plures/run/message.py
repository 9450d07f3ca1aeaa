"""What a server and a site say to each other: a JSON header and named tensors. Nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from plures.errors import PluresError

PROTOCOL = 3
HEADER = "plures"
LONGEST = 16 * 2**20
"""Largest header that is read, in bytes."""

LONGEST_REASON = 500

Tensors = dict[str, Tensor]
Task = Literal["join", "train", "score", "gradients", "publish"]
Held = Literal["validation", "test"]
"""Splits that may be asked about: what a client trained on is nobody's business."""


class Header(BaseModel):
    """The JSON part of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    protocol: int = PROTOCOL


class Told(BaseModel):
    """What a site tells about itself.

    Attributes:
        examples: number of training examples.
        labels: training examples of each class, if the federation tells them.
        metadata: further facts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    examples: int = Field(ge=1)
    labels: list[Annotated[int, Field(ge=0)]] | None = None
    metadata: dict[str, float | str | bool | None] = {}


class Order(Header):
    """What a server asks of a site.

    Attributes:
        nonce: 32 hexadecimal digits, new for every message: no two orders have the same bytes.
        run: the run's fingerprint, which the site's must equal; empty when a site is asked to join.
        client: the client that is meant; empty when a site is asked who it is.
        task: ``join`` (say who you are), ``train`` (score what was evaluated, then work and upload), ``score``,
            ``gradients`` (of the initial model), ``publish`` (score, and keep the model for predictions).
        round: number of rounds finished.
        accepted: number of rounds finished when the client's last upload was applied, 0 for never: the version of its
            personal state that counts.
        keep: the version of its personal state that belongs to the best round so far.
        evaluate: splits to score on the received state, before any work.
        members: for blocks in which the client chooses alone, the row it used last.
        population: what every client told, in the order of the federation's clients.
    """

    nonce: str = Field(default_factory=lambda: secrets.token_hex(16), pattern="^[0-9a-f]{32}$")
    run: str = ""
    client: str = ""
    task: Task
    round: int = 0
    accepted: int = 0
    keep: int = 0
    evaluate: tuple[Held, ...] = ()
    members: dict[str, int] = {}
    population: list[Told] = []


class Scored(BaseModel):
    """How a client's predictor does on one split of its own examples.

    Attributes:
        examples: number of them.
        metrics: metric name to value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    examples: int = Field(ge=0)
    metrics: dict[str, float]


class Reply(Header):
    """What a site answers.

    Attributes:
        client: its name.
        order: the :func:`digest` of the order that it answers.
        run: the run's fingerprint, as the site computes it.
        round: the round of the order.
        status: ``done``; ``refused`` by the site's own rules; ``lost`` if the version that counts is not on its disk;
            ``failed``.
        reason: why, if it is not done.
        loss: mean task loss of the visit.
        objective: mean of what the visit minimised.
        rows: for blocks in which the client chooses alone, the row it chose.
        scores: by split.
        told: facts about the client, when it joins.
        seconds: that the site worked.
    """

    client: str
    order: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    run: str = ""
    round: int = 0
    status: Literal["done", "refused", "lost", "failed"] = "done"
    reason: str = Field(default="", max_length=LONGEST_REASON)
    loss: float = 0.0
    objective: float = 0.0
    rows: dict[str, int] = {}
    scores: dict[Held, Scored] = {}
    told: Told | None = None
    seconds: float = 0.0


H = TypeVar("H", bound=Header)


def pack(header: Header, tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """A message as bytes, in the format of safetensors."""
    flat = {name: t.detach().cpu().contiguous() for name, t in (tensors or {}).items()}
    return save(flat, {HEADER: header.model_dump_json()})


def read(message: bytes, kind: type[H]) -> H:
    """The header of a message; its tensors are not touched.

    Raises:
        PluresError: if it is damaged, or not such a message.
    """
    try:
        length = int.from_bytes(message[:8], "little")
        if not 0 < length <= min(LONGEST, len(message) - 8):
            raise PluresError(f"a message of {len(message)} bytes has no readable header")
        told = json.loads(message[8 : 8 + length])["__metadata__"][HEADER]
        protocol = json.loads(told).get("protocol")
        if protocol != PROTOCOL:
            raise PluresError(f"a message of protocol {protocol}, not {PROTOCOL}: install the same plures everywhere")
        return kind.model_validate_json(told)
    except ValidationError as error:
        first = error.errors()[0]
        raise PluresError(f"a message is malformed: {first['loc']}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PluresError(f"a message is damaged: {error}") from error


def unpack(message: bytes, kind: type[H]) -> tuple[H, Tensors]:
    """Header and tensors of a message.

    Raises:
        PluresError: if it is damaged, or not such a message.
    """
    header = read(message, kind)
    try:
        return header, load(message)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PluresError(f"a message is damaged: {error}") from error


def digest(message: bytes) -> str:
    """What an answer calls the order that it answers by: the SHA-256 of its bytes."""
    return hashlib.sha256(message).hexdigest()


def payload(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors themselves."""
    return sum(t.nbytes for t in tensors.values())
