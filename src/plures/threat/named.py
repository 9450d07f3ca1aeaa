"""Threats by name, as commands and files give them: ``alie(z=1)``, ``label_flip+replacement``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from plures.composed import made, pieces
from plures.errors import PluresError
from plures.threat.attack import Attack
from plures.threat.backdoor import EdgeCase, column, corner
from plures.threat.poison import LabelFlip, Poison, RandomLabels
from plures.threat.threat import Knows, Threat
from plures.threat.uploads import (
    ALIE,
    FreeRider,
    Gaussian,
    InnerProduct,
    Mimic,
    MinMax,
    MinSum,
    Replacement,
    SignFlip,
)

ATTACKS: Mapping[str, Callable[..., Attack | Poison]] = {
    "alie": ALIE,
    "backdoor": corner,
    "column_backdoor": column,
    "edge_case": EdgeCase,
    "free_rider": FreeRider,
    "gaussian": Gaussian,
    "inner_product": InnerProduct,
    "label_flip": LabelFlip,
    "mimic": Mimic,
    "min_max": MinMax,
    "min_sum": MinSum,
    "random_labels": RandomLabels,
    "replacement": Replacement,
    "sign_flip": SignFlip,
}
"""Attacks on uploads and on data, by name."""


def threat_of(
    attack: str, attackers: float | int | Sequence[str] = 0.2, start: int = 1, knows: Knows = "all"
) -> Threat:
    """The threat that a text names: an attack on uploads, one on data, or one of each joined by ``+``.

    Args:
        attack: the name, with options or without.
        attackers: who attacks, as in :class:`Threat`.
        start: first round with forged uploads.
        knows: what an attack on uploads is computed from.

    Raises:
        PluresError: if a name or an option is unknown, or two attacks change the same thing.
    """
    found = [made("attack", one, ATTACKS) for one in pieces(attack)]
    uploads = [one for one in found if isinstance(one, Attack)]
    poisons = [one for one in found if isinstance(one, Poison)]
    for several, what in ((uploads, "what is sent"), (poisons, "the data")):
        if len(several) > 1:
            raise PluresError(f"attack {attack!r}: two of these change {what}; leave one of them out")
    who = attackers if isinstance(attackers, int | float) else tuple(attackers)
    attacked, poison = (uploads[0] if uploads else None), (poisons[0] if poisons else None)
    return Threat(who, attacked, poison, knows, start)
