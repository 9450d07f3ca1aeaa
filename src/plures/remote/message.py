"""What a server and a site say to each other: a JSON header and named tensors. Nothing in it is ever executed.

Every field has a type, a range and a size, declared here and checked before it is used, whoever sent it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from plures.errors import PluresError
from plures.texts import visible

PROTOCOL = 4
HEADER = "plures"
MAX_HEADER_BYTES = 16 * 2**20
"""Largest header that is read, in bytes."""

LONGEST_REASON = 500
LONGEST_NAME = 200
MAX_COUNT = 10**9
"""Most of anything that is counted: examples, rounds, seconds. Sums over all clients stay exact in every type."""

MAX_NUMBER = 1e15
"""Largest number that is told of anything: its square, summed over all clients, is finite in single precision."""

MAX_ENTRIES = 10**5
"""Most entries of a list or a table."""

Tensors = dict[str, Tensor]
Task = Literal["join", "train", "score", "gradients", "publish"]
Held = Literal["validation", "test"]
"""Splits that may be asked about: what a client trained on is nobody's business."""


def clean(text: str, most: int = LONGEST_REASON) -> str:
    """A text from elsewhere, fit for a log, a terminal and a file: one line of printable signs, cut to a length."""
    cut = text if len(text) <= most else f"{text[: most - 3]}..."
    return "".join(sign if visible(sign) == sign else "\ufffd" for sign in cut)


Text = Annotated[str, Field(max_length=LONGEST_REASON), AfterValidator(clean)]
Named = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(clean)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]


class Checked(BaseModel):
    """Exact types, no unknown fields, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Header(Checked):
    """The JSON part of a message."""

    protocol: Annotated[int, Field(ge=0, le=MAX_COUNT)] = PROTOCOL


class Told(Checked):
    """What a site tells about itself.

    Attributes:
        examples: number of training examples.
        labels: training examples of each class, if the federation tells them.
        metadata: further facts.
    """

    examples: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    labels: Annotated[list[Count], Field(max_length=MAX_ENTRIES)] | None = None
    metadata: Annotated[dict[Named, Number | Named | bool | None], Field(max_length=1000)] = {}


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

    nonce: str = Field(default_factory=lambda: secrets.token_hex(16), pattern="^[0-9a-f]{32}$", max_length=32)
    run: Named = ""
    client: Named = ""
    task: Task
    round: Count = 0
    accepted: Count = 0
    keep: Count = 0
    evaluate: Annotated[tuple[Held, ...], Field(max_length=2)] = ()
    members: Annotated[dict[Named, Count], Field(max_length=1000)] = {}
    population: Annotated[list[Told], Field(max_length=MAX_ENTRIES)] = []

    @model_validator(mode="after")
    def _in_time(self) -> Order:
        if max(self.accepted, self.keep) > self.round:
            raise ValueError(f"a version of round {max(self.accepted, self.keep)} after {self.round} rounds")
        return self


class Scored(Checked):
    """How a client's predictor does on one split of its own examples.

    Attributes:
        examples: number of them; ``None`` if the site does not tell it.
        metrics: metric name to value; ``None`` for one that was not measured, or is not told.
    """

    examples: Count | None = None
    metrics: Annotated[dict[Named, Number | None], Field(max_length=100)] = {}


class Reply(Header):
    """What a site answers.

    Attributes:
        client: its name.
        order: the :func:`digest` of the order that it answers.
        run: the run's fingerprint, as the site computes it.
        round: the round of the order.
        status: ``done``; ``refused`` by the site's own rules; ``lost`` if the version that counts is not on its disk;
            ``failed`` also if work on what it received gave no usable numbers.
        reason: why, if it is not done.
        loss: mean task loss of the visit; ``None`` where the site does not tell it.
        objective: mean of what the visit minimised; ``None`` likewise.
        rows: for blocks in which the client chooses alone, the row it chose.
        scores: by split.
        told: facts about the client, when it joins.
        metrics: when it joins, those that it will tell of its validation examples.
        seconds: that the site worked; 0 where it does not tell it.
    """

    client: Named
    order: str = Field(default="", pattern="^([0-9a-f]{64})?$", max_length=64)
    run: Named = ""
    round: Count = 0
    status: Literal["done", "refused", "lost", "failed"] = "done"
    reason: Text = ""
    loss: Number | None = None
    objective: Number | None = None
    rows: Annotated[dict[Named, Count], Field(max_length=1000)] = {}
    scores: Annotated[dict[Held, Scored], Field(max_length=2)] = {}
    told: Told | None = None
    metrics: Annotated[tuple[Named, ...], Field(max_length=100)] = ()
    seconds: Annotated[float, Field(ge=0, le=MAX_COUNT)] = 0.0


class Place(Checked):
    """Where a tensor lies in a message."""

    dtype: Annotated[str, Field(max_length=20)]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**53)]], Field(max_length=20)]
    data_offsets: tuple[Annotated[int, Field(ge=0, le=2**53)], Annotated[int, Field(ge=0, le=2**53)]]


PLACES: TypeAdapter[dict[str, Place]] = TypeAdapter(
    dict[Annotated[str, Field(max_length=LONGEST_REASON)], Place], config=ConfigDict(strict=True)
)
H = TypeVar("H", bound=Header)


def pack(header: Header, tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """A message as bytes, in the format of safetensors."""
    flat = {name: t.detach().cpu().contiguous() for name, t in (tensors or {}).items()}
    return save(flat, {HEADER: header.model_dump_json()})


def head(message: bytes, kind: type[H], longest: int = MAX_HEADER_BYTES) -> tuple[H, set[str]]:
    """Header of a message, and the names of its tensors, which are not read.

    Args:
        message: as it arrived.
        kind: of header.
        longest: bytes that the header may have.

    Raises:
        PluresError: if it is damaged, or not such a message.
    """
    try:
        length = int.from_bytes(message[:8], "little")
        if not 0 < length <= min(longest, len(message) - 8):
            raise PluresError(f"a message of {len(message)} bytes has no readable header")
        places = parsed(message[8 : 8 + length])
        told = places.pop("__metadata__")[HEADER]
        protocol = parsed(told).get("protocol")
        if protocol != PROTOCOL:
            raise PluresError(f"a message of protocol {protocol}, not {PROTOCOL}: install the same plures everywhere")
        PLACES.validate_json(json.dumps(places))
        return kind.model_validate_json(told), set(places)
    except ValidationError as error:
        first = error.errors()[0]
        raise PluresError(clean(f"a message is malformed: {first['loc']}: {first['msg']}")) from error
    except BROKEN as error:
        raise PluresError(clean(f"a message is damaged: {error}")) from error


def body(message: bytes) -> Tensors:
    """The tensors of a message.

    Raises:
        PluresError: if it is damaged.
    """
    try:
        return load(message)
    except BROKEN as error:
        raise PluresError(clean(f"a message is damaged: {error}")) from error


def unpack(message: bytes, kind: type[H]) -> tuple[H, Tensors]:
    """Header and tensors of a message.

    Raises:
        PluresError: if it is damaged, or not such a message.
    """
    return head(message, kind)[0], body(message)


BROKEN = (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError)
"""What reading a damaged message raises: also for a header that is nested too deeply, or a shape without a size."""


def parsed(text: bytes | str) -> dict[str, Any]:
    """A JSON object in which every key stands once and every number is one."""

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise PluresError(f"{clean(key, LONGEST_NAME)!r} stands twice in it")
            found[key] = value
        return found

    def refused(constant: str) -> NoReturn:
        raise PluresError(f"{constant} stands in it, which is no JSON")

    found = json.loads(text, object_pairs_hook=once, parse_constant=refused)
    if not isinstance(found, dict):
        raise PluresError("it is no JSON object")
    return found


def digest(message: bytes) -> str:
    """What an answer calls the order that it answers by: the SHA-256 of its bytes."""
    return hashlib.sha256(message).hexdigest()


def payload(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors themselves."""
    return sum(t.nbytes for t in tensors.values())


def room(clients: int = 0, classes: int = 0, facts: int = 0, blocks: int = 0) -> int:
    """Bytes that the JSON part of a message may have, generously.

    Args:
        clients: that it tells of.
        classes: number of label counts of each.
        facts: number of further facts of each.
        blocks: number of the method's blocks.
    """
    return 2**16 + clients * (256 + 16 * classes + 8 * LONGEST_NAME * facts) + 8 * LONGEST_NAME * blocks
