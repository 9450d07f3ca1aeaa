"""A site's part in secure sums: keys that it signs, shares that it deals, masks on its upload, and what it reveals."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from plures.errors import PluresError
from plures.files import read_json, write_json
from plures.method import joined, parted
from plures.method.channel import UPDATE
from plures.remote.bounds import by_channel, labelled
from plures.remote.ledger import Ledger
from plures.remote.message import Opening, Order, Pledge, Reply, Tensors
from plures.remote.state import SUM, RefusedError, writing
from plures.run.coordinator import Coordinator

if TYPE_CHECKING:
    from plures.secure import Member, Public  # they need a library that only secure sums need

T = TypeVar("T")
Words = NDArray[np.uint32]
log = logging.getLogger(__name__)


class Notary(Protocol):
    """Signs a member's keys, and knows who signed those of others (:class:`plures.deploy.signing.Notary`)."""

    def sign(self, text: bytes) -> bytes:
        """An envelope around a text, signed by the member whose notary this is."""

    def opened(self, client: str, envelope: bytes) -> bytes:
        """The text in an envelope.

        Raises:
            PluresError: if it is none, or was not signed with the agreed key of this client.
        """


def pledged(notary: Notary, order: Order, client: str, envelope: str) -> Public:
    """The keys that a member signed for one attempt at a secure sum.

    Args:
        notary: knows the members' keys that sign.
        order: an order of this attempt.
        client: the member.
        envelope: what it sent, in hexadecimal digits.

    Raises:
        PluresError: if the member did not sign it, or signed it for another attempt.
    """
    from plures.secure import Public

    try:
        pledge = Pledge.model_validate_json(notary.opened(client, bytes.fromhex(envelope)))
    except ValidationError as error:
        raise PluresError(f"the keys of client {client!r} are malformed") from error
    if (pledge.run, pledge.round, pledge.attempt, pledge.client) != (order.run, order.round, order.attempt, client):
        raise PluresError(f"the keys of client {client!r} are for another round or attempt")
    return Public(bytes.fromhex(pledge.seal), bytes.fromhex(pledge.mask))


class Secret(BaseModel):
    """What a site keeps of its current attempt: everything else follows from the seed and from what it was sent.

    Attributes:
        round, attempt: what it is for.
        seed: 64 hexadecimal digits; empty once it has revealed.
        dealt: digest of the members' signed keys, once it has dealt.
        publics: these keys, two for each member, in hexadecimal digits.
        shares: what the others dealt to it, once it has been asked for its upload.
        revealed: what it has revealed.
    """

    round: int
    attempt: int
    seed: str
    dealt: str = ""
    publics: dict[str, tuple[str, str]] = {}
    shares: dict[str, str] | None = None
    revealed: Opening | None = None


class Masks:
    """A site's part in the secure sum of one round.

    What it was asked for once is fixed: another set of keys, shares or uploads in the same attempt is refused, and the
    same one gets the same answer. A new attempt makes new secrets, in place of the old ones, and none begins after the
    site has revealed shares.

    Args:
        folder: folder of the federation and method.
        run: the run as this site sees it, in the order's round.
        order: an order of this round.
        ledger: the site's record of its answers.
        notary: signs its keys, and checks those of others; ``None`` if the site has no key.

    Raises:
        RefusedError: if the order comes too late, or the site is not drawn in this round.
    """

    def __init__(
        self, folder: Path, run: Coordinator[Any], order: Order, ledger: Ledger, notary: Notary | None
    ) -> None:
        self.file, self.order, self.ledger = folder / SUM, order, ledger
        names = run.origin.setting.clients
        self.numbers = {names[i]: i + 1 for i in run.asked(order.round)}
        self.threshold = run.bound.line.enough(len(self.numbers))
        if notary is None:
            raise RefusedError("this site has no key to sign with, and a secure sum needs one")
        self.notary = notary
        if order.client not in self.numbers:
            raise RefusedError(f"round {order.round + 1} does not ask this client")
        ledger.summing(order)

    def answer(self) -> Reply:
        """The answer to an order for keys, for shares, or to reveal."""
        order = self.order
        given: dict[str, object] = {"client": order.client, "run": order.run}
        if order.request == "keys":
            return Reply.model_validate({**given, "keys": self._keys()})
        if order.request == "deal":
            return Reply.model_validate({**given, "shares": self._deal()})
        return Reply.model_validate({**given, "revealed": self._reveal()})

    def _keys(self) -> str:
        secret, due = self._read(), (self.order.round, self.order.attempt)
        if secret is not None and (secret.round, secret.attempt) > due:
            raise RefusedError("it has begun a later attempt at a secure sum")
        if secret is None or (secret.round, secret.attempt) != due:
            secret = Secret(round=due[0], attempt=due[1], seed=os.urandom(32).hex())
            self._write(secret)
        public = self._member(secret).public
        pledge = Pledge(
            run=self.order.run,
            round=secret.round,
            attempt=secret.attempt,
            client=self.order.client,
            seal=public.seal.hex(),
            mask=public.mask.hex(),
        )
        return self.notary.sign(pledge.model_dump_json().encode()).hex()

    def _deal(self) -> dict[str, str]:
        secret, keys = self._current(), self.order.keys
        content = hashlib.sha256(json.dumps(dict(keys), sort_keys=True).encode()).hexdigest()
        if secret.dealt not in ("", content):
            raise RefusedError("it has dealt shares in this attempt, for other keys")
        self._check(keys)
        publics = self._done(lambda: {name: pledged(self.notary, self.order, name, keys[name]) for name in keys})
        known = {name: (public.seal.hex(), public.mask.hex()) for name, public in publics.items()}
        secret = secret.model_copy(update={"dealt": content, "publics": known})
        sealed = self._dealing(secret)[1]
        self._write(secret)
        names = {number: name for name, number in self.numbers.items()}
        return {names[number]: box.hex() for number, box in sealed.items()}

    def _check(self, keys: Mapping[str, str]) -> None:
        """Refuse keys of nobody, keys that a member has not signed, and keys of too few."""
        if odd := sorted(keys.keys() - self.numbers.keys()):
            raise RefusedError(f"the keys of {odd[0]!r} do not belong to a client that this round asks")
        if len(keys) < self.threshold:
            raise RefusedError(f"keys of {len(keys)} clients came, and {self.threshold} must for a secure sum")

    def ready(self) -> None:
        """Check what the others dealt, before any work is done for the upload, and fix it."""
        secret, shares = self._current(), dict(self.order.shares)
        if not secret.dealt:
            raise RefusedError("it has not dealt shares in this attempt")
        if secret.shares not in (None, shares):
            raise RefusedError("it was asked for its upload in this attempt, with other shares")
        if odd := sorted(shares.keys() - (secret.publics.keys() - {self.order.client})):
            raise RefusedError(f"a share of {odd[0]!r}, who is not one of the others in this attempt")
        secret = secret.model_copy(update={"shares": shares})
        self._masking(secret, np.zeros(0, dtype=np.uint32))
        self._write(secret)

    def over(self, sent: Tensors) -> Tensors:
        """An upload with this site's masks."""
        payload = by_channel(sent)[UPDATE]
        words = joined(payload).numpy().view(np.uint32)[0]
        masked = torch.from_numpy(self._masking(self._current(), words)[1].view(np.int32))
        return sent | labelled({UPDATE: parted(masked.unsqueeze(0), payload)})

    def _reveal(self) -> Opening:
        from plures.secure import SHARE

        secret, came = self._current(), set(self.order.came)
        if secret.revealed is not None:
            self.ledger.reveals(self.order)
            return secret.revealed
        if secret.shares is None:
            raise RefusedError("it was not asked for its upload in this attempt")
        if self.order.client not in came:
            raise RefusedError("its own upload is not in the sum")
        if odd := sorted(came - (secret.shares.keys() | {self.order.client})):
            raise RefusedError(f"{odd[0]!r} has not dealt shares in this attempt, so its upload cannot be in the sum")
        member, _ = self._masking(secret, np.zeros(0, dtype=np.uint32))
        shares = self._done(lambda: member.reveal([self.numbers[name] for name in came]))
        names = {number: name for name, number in self.numbers.items()}
        own, keys = (
            {names[n]: value.to_bytes(SHARE).hex() for n, value in some.items()} for some in (shares.own, shares.keys)
        )
        revealed = Opening(own=own, keys=keys)
        self.ledger.reveals(self.order)
        self._write(Secret(round=secret.round, attempt=secret.attempt, seed="", revealed=revealed))
        return revealed

    # --- the member behind it -----------------------------------------------------------------------------------

    def _member(self, secret: Secret) -> Member:
        from plures.secure import Member, entropy

        return Member(self.numbers[self.order.client], entropy(secret.seed))

    def _dealing(self, secret: Secret) -> tuple[Member, dict[int, bytes]]:
        """The member after it has dealt, and what it deals."""
        from plures.secure import Public

        member, publics = self._member(secret), {}
        for name, (seal, mask) in secret.publics.items():
            publics[self.numbers[name]] = Public(bytes.fromhex(seal), bytes.fromhex(mask))
        return member, self._done(lambda: member.deal(publics, self.threshold))

    def _masking(self, secret: Secret, words: Words) -> tuple[Member, Words]:
        """The member after it has masked an upload, and the masked upload."""
        member, _ = self._dealing(secret)
        sealed = {self.numbers[client]: bytes.fromhex(box) for client, box in (secret.shares or {}).items()}
        return member, self._done(lambda: member.masked(words, sealed))

    def _done(self, step: Callable[[], T]) -> T:
        """The result of a step of the protocol, whose refusals contain nothing local."""
        try:
            return step()
        except PluresError as error:
            raise RefusedError(str(error)) from error

    # --- its file -----------------------------------------------------------------------------------------------

    def _current(self) -> Secret:
        """The secrets of the order's attempt."""
        secret = self._read()
        if secret is None or (secret.round, secret.attempt) != (self.order.round, self.order.attempt):
            raise RefusedError("it has no secrets for this attempt at a secure sum, or no longer")
        return secret

    def _read(self) -> Secret | None:
        if not self.file.exists():
            return None
        try:
            return Secret.model_validate(read_json(self.file, "the next attempt at a secure sum replaces it"))
        except (PluresError, ValidationError) as error:
            log.warning("%s", error)
            return None

    def _write(self, secret: Secret) -> None:
        with writing():
            write_json(self.file, secret.model_dump(mode="json"), private=True)
