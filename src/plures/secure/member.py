"""A client in a secure sum: its keys, the shares that it deals, its masks, and what it reveals afterwards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.secure.shamir import PRIME, split

Words = NDArray[np.uint32]
"""Whole numbers modulo ``2 ** 32``; additions wrap around."""
Entropy = Callable[[int], bytes]
"""``entropy(n)``: ``n`` random bytes."""
SECRET, SHARE = 32, 66
"""Bytes of a secret, and of a share of one."""
DIGEST = 32
"""Bytes of the digest of a share."""


@dataclass(frozen=True)
class Public:
    """The two public keys of a member in one round, 32 bytes each.

    Attributes:
        seal: for the shares that others send it.
        mask: for the masks that it has in common with others.
    """

    seal: bytes
    mask: bytes


@dataclass(frozen=True)
class Revealed:
    """The shares that a member reveals once it is known whose uploads are in the sum.

    Attributes:
        own: of the self mask's seed, for members whose uploads came.
        keys: of the secret key for masks, for members that dropped out after they had dealt their shares.
    """

    own: Mapping[int, int]
    keys: Mapping[int, int]


class Member:
    """One client in one round, Figure 4 of Bonawitz et al. 2017 against an honest-but-curious server.

    The steps come in this order: :attr:`public`, :meth:`deal`, :meth:`masked`, :meth:`reveal`. Each is done once. That
    keys belong to whom the server says must be made sure by other means, for example by signatures.

    Args:
        me: the member's number from 1, its place in the shares of all others.
        entropy: random bytes. With :func:`entropy` of a seed, a member can be made again from its seed and the messages
            that it got: a site keeps no more than that between two messages.
    """

    def __init__(self, me: int, entropy: Entropy = os.urandom) -> None:
        self.me, self._entropy = me, entropy
        self._seal, self._mask = (X25519PrivateKey.from_private_bytes(entropy(SECRET)) for _ in range(2))
        self._seed = entropy(SECRET)
        self._publics: dict[int, Public] = {}
        self._threshold = 0
        self._held: dict[int, tuple[int, int]] = {}
        self._step = "deal"

    @property
    def public(self) -> Public:
        """The keys that all others must get."""
        return Public(self._seal.public_key().public_bytes_raw(), self._mask.public_key().public_bytes_raw())

    def deal(self, publics: Mapping[int, Public], threshold: int) -> dict[int, bytes]:
        """Split both secrets of this member, and seal a share of each for every other member.

        Args:
            publics: the keys of all members that are asked, this one's among them.
            threshold: how many shares give a secret back: at least 2 and more than half, so that the server cannot ask
                two halves for different things.

        Returns:
            By member, what only that member can read, behind the digests of the two shares in it
            (:func:`commitments`), by which the server knows later whether they are the ones that are revealed.

        Raises:
            PluresError: if there are too few members, two have the same keys, or this one's are not its own.
        """
        self._next("deal", "masked")
        if not max(2, len(publics) // 2 + 1) <= threshold <= len(publics):
            raise PluresError(
                f"a secure sum of {len(publics)} clients with a threshold of {threshold}: it must be at least 2, more "
                f"than half of them, and no more than all"
            )
        if publics.get(self.me) != self.public or len({key.mask for key in publics.values()}) != len(publics):
            raise PluresError("a secure sum: the server gave keys that are not this client's, or the same keys twice")
        self._publics, self._threshold = dict(publics), threshold
        places = sorted(publics)
        keys, seeds = (
            split(int.from_bytes(secret), threshold, places, self._draw)
            for secret in (self._mask.private_bytes_raw(), self._seed)
        )
        self._held[self.me] = keys[self.me], seeds[self.me]
        sealed = {}
        for other in places:
            if other != self.me:
                nonce, text = self._entropy(12), keys[other].to_bytes(SHARE) + seeds[other].to_bytes(SHARE)
                digests = digest(keys[other]) + digest(seeds[other])
                route = self._route(self.me, other) + digests
                sealed[other] = digests + nonce + self._box(other).encrypt(nonce, text, route)
        return sealed

    def masked(self, words: Words, sealed: Mapping[int, bytes]) -> Words:
        """Add this member's masks to its upload.

        Args:
            words: the upload, ``(d,)``.
            sealed: what others dealt to this member. Those without an entry dropped out before they dealt; there are no
                masks with them.

        Raises:
            PluresError: if too few dealt, something was sealed by somebody else, or a member dealt shares whose digests
                are others.
        """
        self._next("masked", "reveal")
        for other, box in sealed.items():
            digests, box = box[: 2 * DIGEST], box[2 * DIGEST :]
            try:
                text = self._box(other).decrypt(box[:12], box[12:], self._route(other, self.me) + digests)
            except (InvalidTag, ValueError, KeyError) as error:
                raise PluresError(f"a secure sum: what member {other} dealt was changed on its way") from error
            key, seed = int.from_bytes(text[:SHARE]), int.from_bytes(text[SHARE:])
            if digests != digest(key) + digest(seed):
                raise PluresError(f"a secure sum: member {other} dealt other shares than the digests beside them say")
            self._held[other] = key, seed
        if len(self._held) < self._threshold:
            raise PluresError(
                f"a secure sum: {len(self._held)} clients dealt shares, and {self._threshold} must: nothing is sent"
            )
        masked = words + stream(self._seed, len(words))
        secret = self._mask.private_bytes_raw()
        for other in self._held:
            if other != self.me:
                masked += pair(secret, self.me, self._publics[other].mask, other, len(words))
        return masked

    def reveal(self, came: Collection[int]) -> Revealed:
        """The shares by which the server takes the masks out of the sum. For no member does it reveal both.

        Args:
            came: members whose uploads are in the sum.

        Raises:
            PluresError: if they are too few, or not all of them dealt: then nothing is revealed.
        """
        self._next("reveal", "nothing")
        if len(came) < self._threshold or not set(came) <= self._held.keys():
            raise PluresError(
                f"a secure sum: uploads of {len(came)} clients came, and {self._threshold} must: nothing is revealed"
            )
        own = {other: shares[1] for other, shares in self._held.items() if other in came}
        return Revealed(own, {other: shares[0] for other, shares in self._held.items() if other not in came})

    def _next(self, step: str, following: str) -> None:
        """Go on by one step; each is done once, so that no second question is answered with the same secrets."""
        if self._step != step:
            raise PluresError(f"a secure sum: this client was asked for {step!r}, and its next step is {self._step!r}")
        self._step = following

    def _draw(self) -> int:
        return int.from_bytes(self._entropy(80)) % PRIME

    def _box(self, other: int) -> AESGCM:
        return AESGCM(agreed(self._seal.private_bytes_raw(), self._publics[other].seal, b"plures shares"))

    def _route(self, sender: int, receiver: int) -> bytes:
        return f"{sender}>{receiver}".encode()


def digest(share: int) -> bytes:
    """What a dealer says of a share in the clear. A share is one of 2^521 numbers, so it stays hidden."""
    return hashlib.sha256(b"plures share" + share.to_bytes(SHARE)).digest()


def commitments(box: bytes) -> tuple[bytes, bytes]:
    """The digests of the two shares in a sealed box: of the key for masks, and of the own mask's seed."""
    return box[:DIGEST], box[DIGEST : 2 * DIGEST]


def entropy(seed: str) -> Entropy:
    """Bytes that follow from a seed, new ones in every call."""
    calls = iter(range(2**62))

    def drawn(count: int) -> bytes:
        return hashlib.shake_256(f"{seed}/{next(calls)}".encode()).digest(count)

    return drawn


def public_of(secret: bytes) -> bytes:
    """The public key of a secret one."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agreed(secret: bytes, public: bytes, purpose: bytes) -> bytes:
    """The key of 32 bytes that two members have in common, from one's secret key and the other's public key."""
    joint = X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(hashes.SHA256(), 32, None, purpose).derive(joint)


def pair(secret: bytes, me: int, public: bytes, other: int, count: int) -> Words:
    """The masks of one member with another, ``(count,)``. Those of the other with it are their negatives."""
    common = stream(agreed(secret, public, b"plures masks"), count)
    return common if me < other else np.negative(common)


def stream(seed: bytes, count: int) -> Words:
    """``count`` numbers that follow from a seed of 32 bytes: the key stream of ChaCha20."""
    encryptor = Cipher(ChaCha20(seed, bytes(16)), None).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * count)), dtype="<u4").astype(np.uint32)
