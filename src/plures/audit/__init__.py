"""Audits: what a run's models and messages really tell about its clients' examples.

- ``membership.py``: from a model's losses, who was in its training data.
- ``shadow.py``: the same with shadow models (LiRA).
- ``inversion.py``: examples that a server, or everybody, can compute from an upload.
- ``canary.py``: a lower bound on epsilon, from clients that were planted.
- ``report.py``: all of them for a finished run; ``kept.py``: those that are in the folder of a comparison.
"""

from plures.audit.canary import Canaries, canaries, lower_bound
from plures.audit.inversion import Inverted, inversion, ratio
from plures.audit.kept import audits
from plures.audit.membership import Membership, guessing, membership
from plures.audit.report import Audit, audited
from plures.audit.shadow import likelihood_ratio, shadowed

__all__ = [
    "Audit",
    "Canaries",
    "Inverted",
    "Membership",
    "audited",
    "audits",
    "canaries",
    "guessing",
    "inversion",
    "likelihood_ratio",
    "lower_bound",
    "membership",
    "ratio",
    "shadowed",
]
