"""The round loop, the cohort engine and what a run keeps."""

from plures.run.buffer import Buffered
from plures.run.clock import Clocked
from plures.run.coordinator import RoundRecord, Threatening
from plures.run.execution import Execution
from plures.run.experts import experts_of
from plures.run.machine import Machine
from plures.run.onboard import onboard
from plures.run.participation import BySize, DropOut, Fixed, Full, Joint, Participation, Poisson, Uniform
from plures.run.run import Run
from plures.run.selection import Oort, PowerOfChoice
from plures.run.stream import learn
from plures.run.training import Constant, Cosine, Exponential, Milestones, Training

__all__ = [
    "Buffered",
    "BySize",
    "Clocked",
    "Constant",
    "Cosine",
    "DropOut",
    "Execution",
    "Exponential",
    "Fixed",
    "Full",
    "Joint",
    "Machine",
    "Milestones",
    "Oort",
    "Participation",
    "Poisson",
    "PowerOfChoice",
    "RoundRecord",
    "Run",
    "Threatening",
    "Training",
    "Uniform",
    "experts_of",
    "learn",
    "onboard",
]
