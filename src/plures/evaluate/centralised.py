"""The centralised baseline: one model for all clients, trained with all their examples in one place."""

from __future__ import annotations

from plures.method import Method
from plures.methods.entry import entry
from plures.methods.fedavg import fedavg


@entry("Pooled, not federated", "centralised", "training on all clients' examples together", together=True)
def pooled() -> Method:
    """One model, trained on all clients' training examples together, which breaks privacy.

    It needs all data in one place, so it is no method that a federation could choose: it says what keeping the data
    apart costs.
    """
    return fedavg()
