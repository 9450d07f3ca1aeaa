"""The server's part of a secure sum: it takes the masks out of a sum of masked uploads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from plures.errors import PluresError
from plures.secure.member import SECRET, Public, Revealed, Words, commitments, digest, pair, public_of, stream
from plures.secure.shamir import recover


class DealtError(PluresError):
    """A member dealt shares of which no secret can be made, so its masks stay in the sum.

    Attributes:
        member: its number.
    """

    def __init__(self, member: int) -> None:
        super().__init__(f"a secure sum: the shares that member {member} dealt do not fit together: there is no sum")
        self.member = member


def faithful(by: int, said: Revealed, dealt: Mapping[int, Mapping[int, bytes]]) -> int | None:
    """The first member of whom another one revealed a share that is not the one it was dealt; ``None`` if all are.

    Args:
        by: who revealed.
        said: what it revealed.
        dealt: by dealer and receiver, the sealed boxes, with the digests of what is in them.
    """
    for kind, shares in enumerate((said.keys, said.own)):
        for dealer, share in shares.items():
            if dealer != by and digest(share) != commitments(dealt[dealer][by])[kind]:
                return dealer
    return None


def remaining(
    publics: Mapping[int, Public],
    dealt: Collection[int],
    came: Collection[int],
    revealed: Mapping[int, Revealed],
    threshold: int,
    count: int,
) -> Words:
    """The masks that remain in the sum of the uploads that came, ``(count,)``.

    Args:
        publics: the keys of all that were asked.
        dealt: members that dealt shares: their masks with those that came are in the sum.
        came: members whose uploads are in it.
        revealed: what members have revealed, by member; those that dropped out meanwhile are missing.
        threshold: how many shares give a secret back.
        count: numbers in an upload.

    Raises:
        PluresError: if too few have revealed their shares: there is no sum then.
        DealtError: if those of one member do not fit together. The shares must be those that were dealt
            (:func:`faithful`).
    """
    if len(came) < threshold or len(revealed) < threshold:
        least = min(len(came), len(revealed))
        raise PluresError(f"a secure sum: {least} clients stayed to the end, and {threshold} must: there is no sum")
    masks = np.zeros(count, dtype=np.uint32)
    for member in came:
        masks += stream(_secret(member, {by: said.own[member] for by, said in revealed.items()}, threshold), count)
    for member in set(dealt) - set(came):
        secret = _secret(member, {by: said.keys[member] for by, said in revealed.items()}, threshold)
        if public_of(secret) != publics[member].mask:
            raise DealtError(member)
        for other in came:
            masks -= pair(secret, member, publics[other].mask, other, count)
    return masks


def _secret(member: int, shares: Mapping[int, int], threshold: int) -> bytes:
    """The secret that a member dealt, by the first shares and by the last, which together are all."""
    places = sorted(shares)
    first, last = (recover({by: shares[by] for by in some}) for some in (places[:threshold], places[-threshold:]))
    if first != last or first >> 8 * SECRET:
        raise DealtError(member)
    return first.to_bytes(SECRET)
