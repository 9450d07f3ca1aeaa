"""Use cases: the question of a data owner, the comparison that answers it, and what to do then; one file per case."""

from plures.cases.answer import answer
from plures.cases.case import Case, Part
from plures.cases.catalogue import CASES
from plures.cases.conduct import conduct

__all__ = ["CASES", "Case", "Part", "answer", "conduct"]
