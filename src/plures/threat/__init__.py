"""Hostile clients in a simulation: what they train on, what they send, and how often a backdoor opens.

A deployed site has no such code: only :class:`~plures.run.Run` takes a threat.
"""

from plures.threat.attack import Attack, Round
from plures.threat.backdoor import Backdoor, Patch, success
from plures.threat.named import ATTACKS, threat_of
from plures.threat.poison import LabelFlip, Poison, RandomLabels
from plures.threat.threat import Threat
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

__all__ = [
    "ALIE",
    "ATTACKS",
    "Attack",
    "Backdoor",
    "FreeRider",
    "Gaussian",
    "InnerProduct",
    "LabelFlip",
    "Mimic",
    "MinMax",
    "MinSum",
    "Patch",
    "Poison",
    "RandomLabels",
    "Replacement",
    "Round",
    "SignFlip",
    "Threat",
    "success",
    "threat_of",
]
