"""FedBABU: the body alone is learned, the head when it is needed."""

from dataclasses import replace

from plures.method import Frozen, Method, Phase, Predict, Shared, body, buffers, head
from plures.methods.entry import entry, require


@entry("FedBABU", "split model", "Oh, Kim, Yun 2022, ICLR, Algorithm 1", {"epochs": (1, 3, 5)})
def fedbabu(epochs: float = 3, tune: str = "all") -> Method:
    """FedAvg on the body with the same random, frozen head for everyone; each client fine-tunes before predicting.

    Running statistics in the head follow what it reads.

    Args:
        epochs: passes of the fine-tuning.
        tune: what is fine-tuned: ``all`` or ``head``.
    """
    require(tune in ("all", "head"), f"fedbabu: tune={tune!r}; give 'all' or 'head'")
    statistics = replace(buffers & head, empty="fine")
    return Method(
        layout={statistics: Shared(), head: Frozen(), "model": Shared()},
        schedule=(Phase((body, buffers)),),
        predict=Predict("model", adapt=(Phase("model" if tune == "all" else head, epochs=epochs, stream="adapt"),)),
    )
