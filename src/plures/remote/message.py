"""Messages between a server and a site: a JSON header and named tensors. Nothing in a message is ever executed.

Every field has a type, a range and a size, declared here and checked on both sides before it is used.
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

PROTOCOL = 7
HEADER = "plures"
MAX_HEADER_BYTES = 16 * 2**20
"""Largest header that is read, in bytes."""

LONGEST_REASON = 500
LONGEST_NAME = 200
MAX_COUNT = 10**9
"""Largest count of anything: examples, rounds, seconds. Sums over all clients stay exact in every type."""

MAX_NUMBER = 1e15
"""Largest absolute value of any number in a message. Its square, summed over all clients, is finite in float32."""

MAX_ENTRIES = 10**5
"""Most entries of a list or a table."""

Tensors = dict[str, Tensor]
Request = Literal["join", "train", "score", "gradients", "publish", "keys", "deal", "reveal"]
"""What an order asks for."""

MASKING = ("keys", "deal", "reveal")
"""The exchanges of a secure sum beside the training."""

Held = Literal["validation", "test"]
"""Splits that a server may ask about. Scores on training examples would reveal too much about them."""


def clean(text: str, most: int = LONGEST_REASON) -> str:
    """Make a foreign text safe for a log, a terminal and a file: one line of printable characters, cut to size."""
    cut = text if len(text) <= most else f"{text[: most - 3]}..."
    return "".join(sign if visible(sign) == sign else "\ufffd" for sign in cut)


Text = Annotated[str, Field(max_length=LONGEST_REASON), AfterValidator(clean)]
Named = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(clean)]
Hexed = Annotated[str, Field(max_length=4096, pattern="^([0-9a-f]{2})*$")]
"""Bytes, in hexadecimal digits."""
Hexes = Annotated[dict[Named, Hexed], Field(max_length=MAX_ENTRIES)]
"""Bytes by client."""
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]


class Checked(BaseModel):
    """Base of all messages: exact types, no unknown fields, only finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Header(Checked):
    """The JSON part of a message."""

    protocol: Annotated[int, Field(ge=0, le=MAX_COUNT)] = PROTOCOL


class ClientFacts(Checked):
    """Facts that a site reports about itself.

    Attributes:
        examples: number of training examples.
        labels: training examples of each class, if the federation's members report them.
        metadata: further facts.
    """

    examples: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    labels: Annotated[list[Count], Field(max_length=MAX_ENTRIES)] | None = None
    metadata: Annotated[dict[Named, Number | Named | bool | None], Field(max_length=1000)] = {}


class Order(Header):
    """A request from the server to a site.

    Attributes:
        nonce: 32 hexadecimal digits, new for every message, so that no two orders have the same bytes.
        run: the run's fingerprint, which must equal the site's; empty when a site is asked to join.
        client: the client addressed; empty when a site is asked who it is.
        request: ``join`` (say who you are), ``train`` (score the splits in ``evaluate``, then train and upload),
            ``score``, ``gradients`` (of the initial model), ``publish`` (score, and keep the model for predictions);
            for a secure sum ``keys`` (make new ones), ``deal`` (shares of their secrets) and ``reveal`` (shares, by
            which the masks are taken out of the sum).
        round: number of rounds finished.
        accepted: the version of the client's personal state that counts: the number of rounds finished when its last
            upload was applied, 0 for never.
        keep: the version of its personal state that belongs to the best round so far.
        evaluate: splits to score on the received state, before any training.
        members: the row that the client used last, for each block in which clients choose for themselves.
        population: the facts that every client reported, in the order of the federation's clients.
        attempt: number of the attempt at this round's secure sum; each has keys of its own. 0 without one.
        keys: for ``deal``: each member's signed keys, as it sent them.
        shares: for ``train``: what each other member dealt to this one.
        came: for ``reveal``: the members whose uploads are in the sum.
    """

    nonce: str = Field(default_factory=lambda: secrets.token_hex(16), pattern="^[0-9a-f]{32}$", max_length=32)
    run: Named = ""
    client: Named = ""
    request: Request
    round: Count = 0
    accepted: Count = 0
    keep: Count = 0
    evaluate: Annotated[tuple[Held, ...], Field(max_length=2)] = ()
    members: Annotated[dict[Named, Count], Field(max_length=1000)] = {}
    population: Annotated[list[ClientFacts], Field(max_length=MAX_ENTRIES)] = []
    attempt: Annotated[int, Field(ge=0, le=2**53)] = 0
    keys: Hexes = {}
    shares: Hexes = {}
    came: Annotated[tuple[Named, ...], Field(max_length=MAX_ENTRIES)] = ()

    @model_validator(mode="after")
    def _in_time(self) -> Order:
        if max(self.accepted, self.keep) > self.round:
            raise ValueError(f"a version of round {max(self.accepted, self.keep)} after {self.round} rounds")
        return self


class Scored(Checked):
    """A client's scores on one split of its own examples.

    Attributes:
        examples: number of examples; ``None`` if the site does not report it.
        metrics: metric name to value; ``None`` for a metric that was not measured, or is not reported.
    """

    examples: Count | None = None
    metrics: Annotated[dict[Named, Number | None], Field(max_length=100)] = {}


class Pledge(Checked):
    """A member's keys for one attempt at a secure sum: the text that it signs.

    Attributes:
        run, round, attempt: what they are for.
        client: the member.
        seal, mask: its public keys, 32 bytes each, in hexadecimal digits.
    """

    run: Named
    round: Count
    attempt: Annotated[int, Field(ge=0, le=2**53)]
    client: Named
    seal: str = Field(pattern="^[0-9a-f]{64}$", max_length=64)
    mask: str = Field(pattern="^[0-9a-f]{64}$", max_length=64)


class Opening(Checked):
    """The shares that a member reveals: for no member both kinds.

    Attributes:
        own: by member whose upload is in the sum: a share of the seed of its own mask.
        keys: by member that dealt shares and sent no upload: a share of its secret key for masks.
    """

    own: Hexes
    keys: Hexes


class Reply(Header):
    """A site's answer.

    Attributes:
        client: the client's name.
        order: the :func:`digest` of the order that it answers.
        run: the run's fingerprint, as the site computes it.
        round: the round of the order.
        status: ``done``; ``refused`` by the site's own rules; ``lost`` if the version that counts is not on its disk;
            ``failed`` for any other error, including work that gave no usable numbers.
        reason: why, if it is not done.
        loss: mean task loss of the visit; ``None`` if the site does not report it.
        objective: mean of the objective that the visit minimised; ``None`` likewise.
        rows: the row that the client chose, for each block in which clients choose for themselves.
        scores: scores by split.
        facts: facts about the client, when it joins.
        metrics: the metrics that it will report on its validation examples, when it joins.
        seconds: time that the site worked; 0 if it does not report it.
        keys: its :class:`Pledge` in an envelope that it signed.
        shares: what it deals to each other member, sealed for that member alone.
        revealed: the shares that it reveals.
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
    facts: ClientFacts | None = None
    metrics: Annotated[tuple[Named, ...], Field(max_length=100)] = ()
    seconds: Annotated[float, Field(ge=0, le=MAX_COUNT)] = 0.0
    keys: Hexed = ""
    shares: Hexes = {}
    revealed: Opening | None = None


class Place(Checked):
    """Type, shape and position of a tensor in a message."""

    dtype: Annotated[str, Field(max_length=20)]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**53)]], Field(max_length=20)]
    data_offsets: tuple[Annotated[int, Field(ge=0, le=2**53)], Annotated[int, Field(ge=0, le=2**53)]]


PLACES: TypeAdapter[dict[str, Place]] = TypeAdapter(
    dict[Annotated[str, Field(max_length=LONGEST_REASON)], Place], config=ConfigDict(strict=True)
)
H = TypeVar("H", bound=Header)


def pack(header: Header, tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """Encode a message as bytes, in the format of safetensors."""
    flat = {name: t.detach().cpu().contiguous() for name, t in (tensors or {}).items()}
    return save(flat, {HEADER: header.model_dump_json()})


def head(message: bytes, kind: type[H], longest: int = MAX_HEADER_BYTES) -> tuple[H, set[str]]:
    """Header of a message and the names of its tensors. The tensors themselves are not read.

    Args:
        message: the bytes that arrived.
        kind: type of the header.
        longest: most bytes that the header may have.

    Raises:
        PluresError: if it is damaged, or not a message of this kind and protocol.
    """
    try:
        length = int.from_bytes(message[:8], "little")
        if not 0 < length <= min(longest, len(message) - 8):
            raise PluresError(f"a message of {len(message)} bytes has no readable header")
        places = parsed(message[8 : 8 + length])
        header = places.pop("__metadata__")[HEADER]
        protocol = parsed(header).get("protocol")
        if protocol != PROTOCOL:
            raise PluresError(f"a message of protocol {protocol}, not {PROTOCOL}: install the same plures everywhere")
        PLACES.validate_json(json.dumps(places))
        return kind.model_validate_json(header), set(places)
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
        PluresError: if it is damaged, or not a message of this kind and protocol.
    """
    return head(message, kind)[0], body(message)


BROKEN = (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError)
"""Errors that reading a damaged message raises, also for a header nested too deeply, or a shape without a size."""


def parsed(text: bytes | str) -> dict[str, Any]:
    """Parse a JSON object in which no key is repeated and every number is finite."""

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise PluresError(f"{clean(key, LONGEST_NAME)!r} appears twice in it")
            found[key] = value
        return found

    def refused(constant: str) -> NoReturn:
        raise PluresError(f"it contains {constant}, which is not JSON")

    found = json.loads(text, object_pairs_hook=once, parse_constant=refused)
    if not isinstance(found, dict):
        raise PluresError("it is not a JSON object")
    return found


def digest(message: bytes) -> str:
    """SHA-256 of an order's bytes, by which an answer refers to it."""
    return hashlib.sha256(message).hexdigest()


def payload(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors alone, without a header."""
    return sum(t.nbytes for t in tensors.values())


def room(clients: int = 0, classes: int = 0, facts: int = 0, blocks: int = 0, members: int = 0) -> int:
    """A generous limit on the bytes of a message's JSON part.

    Args:
        clients: number of clients that it describes.
        classes: number of label counts per client.
        facts: number of further facts per client.
        blocks: number of the method's blocks.
        members: number of clients in a secure sum.
    """
    return (
        2**16
        + members * (8 * LONGEST_NAME + 4096)
        + clients * (256 + 16 * classes + 8 * LONGEST_NAME * facts)
        + 8 * LONGEST_NAME * blocks
    )
