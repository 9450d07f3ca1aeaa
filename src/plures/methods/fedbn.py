"""FedBN: personal normalisation layers."""

from dataclasses import replace
from typing import Literal

from plures.method import Combine, Layout, Method, Personal, Predict, Shared, norm_layers, norm_statistics
from plures.methods.entry import entry

HINT = "the model has none, so fedbn is uniform FedAvg, fedavg('uniform')"
POLICIES: dict[str, Layout] = {
    "fedbn": {replace(norm_layers, hint=HINT): Personal(unseen="mean"), "model": Shared()},
    "silobn": {replace(norm_statistics, hint=HINT): Personal(unseen="mean"), "model": Shared()},
    "average": {"model": Shared()},
}


@entry("FedBN", "split model", "Li, Jiang, Zhang, Kamp, Dou 2021, ICLR, Algorithm 1")
def fedbn(policy: Literal["fedbn", "silobn", "average"] = "fedbn", visits: int = 1) -> Method:
    """FedAvg with uniform weights of everything except the normalisation layers, which stay with the client.

    Three layouts are available: affine parameters and running statistics personal (``fedbn``), only the statistics
    personal (``silobn``, Andreux et al. 2020), and everything averaged (``average``). An unseen client starts from the
    mean of the personal leaves over the clients that took part, and re-estimates them in ``visits`` visits.

    Args:
        policy: the layout.
        visits: visits an unseen client makes.
    """
    return Method(
        layout=POLICIES[policy],
        combine=Combine("uniform"),
        predict=Predict("model", visits=visits if policy != "average" else 0),
    )
