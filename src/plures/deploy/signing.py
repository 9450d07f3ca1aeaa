"""Signed envelopes, which prove that an order comes from the coordinator and an answer from a member.

This layer lies between the two ends (:class:`~plures.remote.clients.Remote`, :class:`~plures.remote.site.Site`) and the
transport, and does not interpret messages. A message becomes an envelope:

    =========  =====================================================================
    16 bytes   ``plures signed 1`` and a newline
    97 bytes   the signer's public key, a point of the curve P-384, not compressed
    96 bytes   the signature (ECDSA with SHA-384), r and s
    the rest   the message
    =========  =====================================================================

The signature covers the message, the signer's role and, in an answer, the envelope that it answers. So an order cannot
pass as an answer, and an answer fits only one order. The agreed federation lists the fingerprints of all keys that may
sign. No part of a message is parsed before its signature has been verified with an expected key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature

from plures.errors import PluresError
from plures.remote.message import Reply, digest, head, pack
from plures.remote.sites import Transport

if TYPE_CHECKING:
    from plures.remote.flower import Answerer

log = logging.getLogger(__name__)

MAGIC = b"plures signed 1\n"
NUMBER = 48
"""Bytes of a coordinate, and of each number of a signature, on P-384."""
POINT, SIGNATURE = 1 + 2 * NUMBER, 2 * NUMBER
BEGIN = len(MAGIC) + POINT + SIGNATURE
"""Offset of the message in an envelope."""
SSH = b"\0\0\0\x13ecdsa-sha2-nistp384\0\0\0\x08nistp384" + POINT.to_bytes(4, "big")
"""OpenSSH's prefix of the point in a public key."""

Role = Literal["order", "answer", "keys"]
"""Role of the signer: the coordinator signs orders; a member signs answers, and for the other members the keys of its
masks in a secure sum."""


def fingerprint(point: bytes) -> str:
    """Fingerprint of a public key: ``SHA256:...``, as ``ssh-keygen -lf`` prints it."""
    return f"SHA256:{base64.b64encode(hashlib.sha256(SSH + point).digest()).decode().rstrip('=')}"


def public(file: Path) -> str:
    """The fingerprint of a public key in a file, in OpenSSH's format.

    Raises:
        PluresError: the file is not such a key, or it is a private key.
    """
    hint = "a member makes one with `plures deploy keys --client NAME` and sends the file that ends in .pub"
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not text"
        raise PluresError(f"{file} is not a public key: {what}; {hint}") from error
    if "PRIVATE KEY" in text:
        raise PluresError(f"{file} is a private key, which must never be sent: make a new pair and send its .pub")
    try:
        line = text.strip()
        words = line.split()
        blob = base64.b64decode(words[1], validate=True)
        point = blob.removeprefix(SSH)
        if len(line.splitlines()) != 1 or len(blob) != len(SSH) + POINT or len(point) != POINT:
            raise ValueError("it is not one key of the curve P-384")
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
    except (ValueError, IndexError, binascii.Error) as error:
        what = "it is not one key of the curve P-384" if isinstance(error, IndexError | binascii.Error) else str(error)
        raise PluresError(f"{file} is not a public key: {what}; {hint}") from error
    return fingerprint(point)


@dataclass(frozen=True)
class Key:
    """A private key that signs.

    Attributes:
        private: the key, of the curve P-384.
    """

    private: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, file: Path) -> Key:
        """Read a private key that ``plures deploy keys`` made.

        Raises:
            PluresError: it is missing, of another kind, or other users of the machine may read or change it.
        """
        try:
            shared = os.name == "posix" and bool(file.stat().st_mode & 0o027)
            private = serialization.load_ssh_private_key(file.read_bytes(), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise PluresError(
                f"{file} is not a usable private key: {what}; make one with `plures deploy keys`"
            ) from error
        if shared:
            raise PluresError(f"{file} is not private: other users may read or change it; run `chmod 600 {file}`")
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP384R1):
            raise PluresError(f"{file} is not a key of the curve P-384: make one with `plures deploy keys`")
        return cls(private)

    @classmethod
    def of(cls, file: Path, owner: str, expected: str | None) -> Key:
        """Read a private key and check it against the agreed federation.

        Args:
            file: file of the key.
            owner: the key's owner, for the message.
            expected: the fingerprint in ``federation.toml``, if there is one.

        Raises:
            PluresError: the key cannot be used, or it is another key.
        """
        key = cls.load(file)
        if key.fingerprint != expected:
            stands = f"names {expected}" if expected else "names none"
            raise PluresError(
                f"{file} is {key.fingerprint}, but as the key of {owner} federation.toml {stands}: use the right key, "
                "or let the coordinator enter this one (`plures deploy add`) and get the new federation.toml"
            )
        return key

    @property
    def point(self) -> bytes:
        """The public key."""
        encoding, form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        return self.private.public_key().public_bytes(encoding, form)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the public key."""
        return fingerprint(self.point)

    def sign(self, role: Role, message: bytes, order: bytes = b"") -> bytes:
        """Sign a message, and return its envelope.

        Args:
            role: role of the signer.
            message: the message.
            order: the envelope that it answers, if it is an answer.
        """
        hashed = hashed_of(role, self.point, message, order)
        numbers = decode_dss_signature(self.private.sign(hashed, ec.ECDSA(Prehashed(hashes.SHA384()))))
        return MAGIC + self.point + b"".join(n.to_bytes(NUMBER, "big") for n in numbers) + message


def hashed_of(role: Role, point: bytes, message: bytes | memoryview, order: bytes) -> bytes:
    """The SHA-384 digest that is signed."""
    hashed = hashlib.sha384(MAGIC + role.encode() + b"\n" + point + hashlib.sha384(order).digest())
    hashed.update(message)
    return hashed.digest()


def verified(role: Role, envelope: bytes, expected: Container[str], order: bytes = b"") -> tuple[str, bytes]:
    """Verify an envelope. Returns the signer's fingerprint and the message.

    Args:
        role: role of the signer.
        envelope: the bytes that arrived.
        expected: fingerprints of the keys that may have signed it.
        order: the envelope that it answers, if it is an answer.

    Raises:
        PluresError: it is not signed, not signed with one of these keys, or was changed.
    """
    if len(envelope) < BEGIN or not envelope.startswith(MAGIC):
        raise PluresError(f"the {role} is not signed")
    point, signature = envelope[len(MAGIC) : BEGIN - SIGNATURE], envelope[BEGIN - SIGNATURE : BEGIN]
    signer = fingerprint(point)
    if signer not in expected:
        raise PluresError(f"the {role} is signed with a key that may not sign it, {signer}")
    numbers = (int.from_bytes(signature[:NUMBER], "big"), int.from_bytes(signature[NUMBER:], "big"))
    hashed = hashed_of(role, point, memoryview(envelope)[BEGIN:], order)
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        key.verify(encode_dss_signature(*numbers), hashed, ec.ECDSA(Prehashed(hashes.SHA384())))
    except (InvalidSignature, ValueError) as error:
        raise PluresError(f"the {role} is not signed by {signer}, or was changed on the way") from error
    return signer, envelope[BEGIN:]


class Notary:
    """Signs a member's keys for a secure sum, and checks those of others against the agreed federation.

    Members exchange these keys through the coordinator, who can neither make nor change any: each lies in an envelope
    that its member signed.

    Args:
        members: client -> fingerprint of its key.
        key: the member's own key; ``None`` at the coordinator, who only checks.
    """

    def __init__(self, members: Mapping[str, str], key: Key | None = None) -> None:
        self.members, self.key = dict(members), key

    def sign(self, text: bytes) -> bytes:
        assert self.key is not None, "a member signs"
        return self.key.sign("keys", text)

    def opened(self, client: str, envelope: bytes) -> bytes:
        """The text in an envelope.

        Raises:
            PluresError: if it was not signed with the agreed key of this client.
        """
        try:
            return verified("keys", envelope, {self.members.get(client, "")})[1]
        except PluresError as error:
            raise PluresError(
                f"the keys of client {client!r} are not signed with the key that federation.toml names for it"
            ) from error


class Signed:
    """Accepts only orders signed by its coordinator, and signs the site's answers.

    Args:
        site: the site that answers.
        key: the member's own key.
        coordinator: fingerprint of the coordinator's key.
        client: the member's name.
    """

    def __init__(self, site: Answerer, key: Key, coordinator: str, client: str) -> None:
        self.site, self.key, self.coordinator, self.client = site, key, coordinator, client

    def answer(self, message: bytes) -> bytes:
        return self.key.sign("answer", self._answer(message), message)

    def _answer(self, message: bytes) -> bytes:
        try:
            _, order = verified("order", message, {self.coordinator})
        except PluresError as error:
            log.warning("refused: %s; this site's federation.toml names coordinator %s", error, self.coordinator)
            return pack(Reply(client=self.client, order=digest(message[BEGIN:]), status="refused", reason=str(error)))
        return self.site.answer(order)


class SignedTransport:
    """Signs the coordinator's orders, and accepts only answers signed by the client that they name.

    Args:
        transport: carries messages.
        key: the coordinator's own key.
        members: client -> fingerprint of its key.
    """

    def __init__(self, transport: Transport, key: Key, members: Mapping[str, str]) -> None:
        self.transport, self.key = transport, key
        self.names = {fingerprint: client for client, fingerprint in members.items()}

    def addresses(self) -> list[int]:
        return self.transport.addresses()

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        orders = {address: self.key.sign("order", message) for address, message in messages.items()}
        answers = self.transport.exchange(orders, deadline)
        return {
            address: self._checked(answers[address], order) for address, order in orders.items() if address in answers
        }

    def _checked(self, answer: bytes | str, order: bytes) -> bytes | str:
        """The message in an answer, or the reason why it does not count."""
        if isinstance(answer, str):
            return answer
        try:
            signer, message = verified("answer", answer, self.names, order)
            client = head(message, Reply)[0].client
        except PluresError as error:
            return str(error)
        if client != self.names[signer]:
            return f"the answer of client {client!r} is signed with the key of {self.names[signer]!r}"
        return message
