"""LG-FedAvg: a personal representation under a shared head."""

from plures.method import Method, Personal, Predict, Shared, head
from plures.methods.entry import entry


@entry(
    "LG-FedAvg",
    "split model",
    "Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency 2020, arXiv:2001.01523",
)
def lgfedavg(visits: int = 5) -> Method:
    """A personal body and a shared head, trained together: the mirror of FedPer.

    Args:
        visits: visits an unseen client makes to train its body.
    """
    return Method(
        layout={head: Shared(), "model": Personal()},
        predict=Predict("model", visits=visits),
    )
