"""FedBABU: the body is trained federatedly, the head only when fine-tuning."""

from dataclasses import replace
from typing import Literal

from plures.method import Frozen, Method, Phase, Predict, Shared, body, buffers, head
from plures.methods.entry import entry


@entry("FedBABU", "split model", "Oh, Kim, Yun 2022, ICLR, Algorithm 1", {"epochs": (1, 3, 5)})
def fedbabu(epochs: float = 3, tune: Literal["all", "head"] = "all") -> Method:
    """FedAvg on the body with the same random, frozen head for everyone; each client fine-tunes before predicting.

    Running statistics in the head follow what it reads.

    Args:
        epochs: passes of fine-tuning.
        tune: what to fine-tune: ``all`` or ``head``.
    """
    statistics = replace(buffers & head, empty="fine")
    return Method(
        layout={statistics: Shared(), head: Frozen(), "model": Shared()},
        schedule=(Phase((body, buffers)),),
        predict=Predict("model", adapt=(Phase("model" if tune == "all" else head, epochs=epochs, stream="adapt"),)),
    )
