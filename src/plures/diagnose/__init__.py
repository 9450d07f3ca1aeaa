"""How the clients of a federation differ, and which methods that favours, before anything is trained."""

from plures.diagnose.advise import fires
from plures.diagnose.diagnosis import Diagnosis
from plures.diagnose.families import FAMILIES, Family
from plures.diagnose.measure import diagnose
from plures.diagnose.rules import RULES, Rule
from plures.diagnose.section import diagnosis_page, diagnosis_section

__all__ = [
    "FAMILIES",
    "RULES",
    "Diagnosis",
    "Family",
    "Rule",
    "diagnose",
    "diagnosis_page",
    "diagnosis_section",
    "fires",
]
