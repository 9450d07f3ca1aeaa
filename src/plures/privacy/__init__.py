"""Differential privacy: what bounds and hides a client's contribution, who is drawn, and what that costs in epsilon."""

from plures.privacy.accountant import ACCOUNTANTS, NEIGHBOURS, Accountant, Neighbours, calibrated, epsilon, gaussian
from plures.privacy.adaptive import Geometric, shared_out
from plures.privacy.correlated import roots, sensitivity
from plures.privacy.draws import Draws
from plures.privacy.examples import ExamplesPlan, PerExample, dp_sgd, examples_plan, trusts_nobody
from plures.privacy.local import Response, duchi, response
from plures.privacy.plan import Plan, Spent, settled
from plures.privacy.stage import Private

__all__ = [
    "ACCOUNTANTS",
    "NEIGHBOURS",
    "Accountant",
    "Draws",
    "ExamplesPlan",
    "Geometric",
    "Neighbours",
    "PerExample",
    "Plan",
    "Private",
    "Response",
    "Spent",
    "calibrated",
    "dp_sgd",
    "duchi",
    "epsilon",
    "examples_plan",
    "gaussian",
    "response",
    "roots",
    "sensitivity",
    "settled",
    "shared_out",
    "trusts_nobody",
]
