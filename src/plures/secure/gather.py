"""The server's part of a secure sum: it takes the masks out of a sum of masked uploads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from plures.errors import PluresError
from plures.secure.member import SECRET, Public, Revealed, Words, pair, stream
from plures.secure.shamir import recover


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
    """
    if len(came) < threshold or len(revealed) < threshold:
        least = min(len(came), len(revealed))
        raise PluresError(f"a secure sum: {least} clients stayed to the end, and {threshold} must: there is no sum")
    chosen = sorted(revealed)[:threshold]
    masks = np.zeros(count, dtype=np.uint32)
    for member in came:
        masks += stream(_secret({by: revealed[by].own[member] for by in chosen}), count)
    for member in set(dealt) - set(came):
        secret = _secret({by: revealed[by].keys[member] for by in chosen})
        for other in came:
            masks -= pair(secret, member, publics[other].mask, other, count)
    return masks


def _secret(shares: Mapping[int, int]) -> bytes:
    try:
        return recover(shares).to_bytes(SECRET)
    except OverflowError as error:
        raise PluresError("a secure sum: shares do not fit together: there is no sum") from error
