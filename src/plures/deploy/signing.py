"""Signatures around messages: they prove that an order is the coordinator's and an answer a member's.

The layer lies between what says something (:class:`~plures.remote.clients.Remote`,
:class:`~plures.remote.site.Site`) and what carries it, and knows nothing of what is said. A message becomes an
envelope:

    =========  =====================================================================
    16 bytes   ``plures signed 1`` and a newline
    97 bytes   the signer's public key, a point of the curve P-384, not compressed
    96 bytes   the signature (ECDSA with SHA-384), r and s
    the rest   the message
    =========  =====================================================================

What is signed is the message with the role of the signer, and in an answer with the envelope that it answers: an order
is no answer, and an answer fits one order. Who may sign stands as a fingerprint in the agreed federation. Nothing of a
message is parsed before its signature has been verified with a key that is expected.
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
"""Bytes of a number of the curve."""
POINT, SIGNATURE = 1 + 2 * NUMBER, 2 * NUMBER
BEGIN = len(MAGIC) + POINT + SIGNATURE
"""Where the message begins."""
SSH = b"\0\0\0\x13ecdsa-sha2-nistp384\0\0\0\x08nistp384" + POINT.to_bytes(4, "big")
"""What OpenSSH writes before the point."""

Role = Literal["order", "answer"]
"""As whom one signs: the coordinator orders, a member answers."""


def fingerprint(point: bytes) -> str:
    """What a public key is called: ``SHA256:...``, as ``ssh-keygen -lf`` prints it."""
    return f"SHA256:{base64.b64encode(hashlib.sha256(SSH + point).digest()).decode().rstrip('=')}"


def public(file: Path) -> str:
    """The fingerprint of a public key in a file, in OpenSSH's format.

    Raises:
        PluresError: it is no such file, another kind of key, or a private key.
    """
    hint = "a member makes one with `plures deploy keys --client NAME` and sends the file that ends in .pub"
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PluresError(f"{file} is no public key: {what}; {hint}") from error
    if "PRIVATE KEY" in text:
        raise PluresError(f"{file} is a private key, which nobody may send: make a new pair and send its .pub")
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
        raise PluresError(f"{file} is no public key: {what}; {hint}") from error
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
            raise PluresError(f"{file} is no private key that can be used: {what}; `plures deploy keys`") from error
        if shared:
            raise PluresError(f"{file} is not private, other users may read or change it: chmod 600 {file}")
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP384R1):
            raise PluresError(f"{file} is not a key of the curve P-384: make one with `plures deploy keys`")
        return cls(private)

    @classmethod
    def of(cls, file: Path, owner: str, expected: str | None) -> Key:
        """Read the private key of somebody whom the agreed federation names.

        Args:
            file: the key.
            owner: whose it should be, for the message.
            expected: the fingerprint that stands in ``federation.toml``, if one does.

        Raises:
            PluresError: it cannot be used, or it is another key.
        """
        key = cls.load(file)
        if key.fingerprint != expected:
            stands = f"names {expected}" if expected else "names none"
            raise PluresError(
                f"{file} is {key.fingerprint}, but as the key of {owner} federation.toml {stands}: take the right key, "
                "or let the coordinator enter this one (`plures deploy add`) and get the file anew"
            )
        return key

    @property
    def point(self) -> bytes:
        """The public key."""
        encoding, form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        return self.private.public_key().public_bytes(encoding, form)

    @property
    def fingerprint(self) -> str:
        """What the public key is called."""
        return fingerprint(self.point)

    def sign(self, role: Role, message: bytes, order: bytes = b"") -> bytes:
        """A message in its envelope.

        Args:
            role: as whom.
            message: what is said.
            order: the envelope that it answers.
        """
        hashed = hashed_of(role, self.point, message, order)
        numbers = decode_dss_signature(self.private.sign(hashed, ec.ECDSA(Prehashed(hashes.SHA384()))))
        return MAGIC + self.point + b"".join(n.to_bytes(NUMBER, "big") for n in numbers) + message


def hashed_of(role: Role, point: bytes, message: bytes | memoryview, order: bytes) -> bytes:
    """What is signed."""
    hashed = hashlib.sha384(MAGIC + role.encode() + b"\n" + point + hashlib.sha384(order).digest())
    hashed.update(message)
    return hashed.digest()


def verified(role: Role, envelope: bytes, expected: Container[str], order: bytes = b"") -> tuple[str, bytes]:
    """Who signed an envelope, as a fingerprint, and the message in it.

    Args:
        role: as whom.
        envelope: what arrived.
        expected: fingerprints of the keys that may have signed it.
        order: the envelope that it answers.

    Raises:
        PluresError: it is not signed, or not by one of these, or something of it was changed.
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
        raise PluresError(f"the {role} is not signed by {signer}, or was changed on its way") from error
    return signer, envelope[BEGIN:]


class Signed:
    """A site that obeys only its coordinator, and signs its answers.

    Args:
        site: what answers.
        key: the member's own.
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
    """Carries orders that the coordinator has signed, and answers that are signed by who they say they are of.

    Args:
        transport: carries messages.
        key: the coordinator's own.
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
        """The answer itself; a reason if it does not count."""
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
