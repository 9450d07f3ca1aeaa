"""Hostile clients in a simulation: what they train on, what they send, and how often a backdoor opens.

A deployed site has no such code: only :class:`~plures.run.Run` takes a threat.
"""

from plures.threat.attack import Attack, Round
from plures.threat.backdoor import Backdoor, Column, Corner, EdgeCase, Patch, Trigger, success
from plures.threat.named import ATTACKS, threat_of
from plures.threat.poison import LabelFlip, Poison, RandomLabels, Targeted
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
    "Column",
    "Corner",
    "EdgeCase",
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
    "Targeted",
    "Threat",
    "Trigger",
    "success",
    "threat_of",
]
