"""Secure aggregation (Bonawitz et al. 2017): a server learns the sum of its clients' uploads and no single one.

- ``shamir.py``: a secret in shares, of which a few say nothing.
- ``member.py``: what a client does: keys, shares, masks, and what it reveals afterwards.
- ``gather.py``: what the server does: it passes messages on, and takes the masks out of a sum.
- ``simulated.py``: all clients of a round in one process.

Over sites, its messages are those of :mod:`plures.remote`: ``masks.py`` is a site's part and ``sums.py`` the server's.

The stage that makes whole numbers of an upload is :class:`plures.codecs.SecureSum`.
"""

from plures.secure.gather import DealtError, faithful, remaining
from plures.secure.member import SHARE, Member, Public, Revealed, entropy
from plures.secure.shamir import recover, split
from plures.secure.simulated import Members

__all__ = [
    "SHARE",
    "DealtError",
    "Member",
    "Members",
    "Public",
    "Revealed",
    "entropy",
    "faithful",
    "recover",
    "remaining",
    "split",
]
