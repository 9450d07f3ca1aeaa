"""Use cases: the question of a data owner, the comparison that answers it, and what to do then; one file per case."""

from plures.cases.answer import answer, story
from plures.cases.case import Case, Part
from plures.cases.catalogue import CASES
from plures.cases.conduct import conduct
from plures.cases.course import Course, Learned, attend

__all__ = ["CASES", "Case", "Course", "Learned", "Part", "answer", "attend", "conduct", "story"]
