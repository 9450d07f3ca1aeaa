"""One client's model on its own: its folder and card, predictions over HTTP, other formats, memory on a device."""

from plures.serving.card import Card, Part
from plures.serving.device import Memory, Need, memory
from plures.serving.export import Exported, export
from plures.serving.personal import PersonalModel

__all__ = ["Card", "Exported", "Memory", "Need", "Part", "PersonalModel", "export", "memory"]
