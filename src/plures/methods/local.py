"""Local-only training."""

from plures.method import Method, Personal, Predict
from plures.methods.entry import entry


@entry("Local only", "baseline", "mandatory baseline")
def local(visits: int = 5) -> Method:
    """Every client trains its own model on its own data; nothing is sent.

    Objective: ``min f_i(x_i)`` for each client separately.

    Args:
        visits: visits an unseen client makes to train its model.
    """
    return Method(layout={"model": Personal()}, predict=Predict("model", visits=visits))
