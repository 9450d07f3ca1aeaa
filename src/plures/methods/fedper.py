"""FedPer: a personal head."""

from plures.method import Method, Personal, Predict, Selector, Shared, head
from plures.methods.entry import entry


@entry("FedPer", "split model", "Arivazhagan, Aggarwal, Singh, Choudhary 2019, arXiv:1912.00818, Algorithm 1")
def fedper(personal: Selector = head, visits: int = 5) -> Method:
    """A shared body and a personal head, trained together.

    Args:
        personal: leaves that stay with the client.
        visits: visits an unseen client makes to train its head.
    """
    return Method(
        layout={personal: Personal(), "model": Shared()},
        predict=Predict("model", visits=visits),
    )
