"""Qsparse-local-SGD: sparse, quantized uploads with error feedback."""

from plures import codecs
from plures.method import Method
from plures.methods.entry import entry, remark, require


@entry("Qsparse-local-SGD", "compression", "Basu, Data, Karakus, Diggavi 2020, IEEE JSAIT 1(1), Algorithm 1")
def qsparse(keep: int | float | None = 0.1, levels: int | None = None, norm: float | None = None) -> Method:
    """FedAvg whose clients send the largest entries of their change, quantized, and keep the rest for the next round.

    A client with the change ``d`` and the memory ``m`` sends ``g = Q(Top_k(m + d))`` and keeps ``m <- m + d - g``; the
    server moves by the mean of the ``g``, weighted by examples. So all that was sent and the memory sum up to all
    changes. The entries are chosen among all leaves that travel, not leaf by leaf. In Algorithm 1 every client takes
    part; here the memory of a client that is not drawn waits for its next visit. Running statistics are sent as they
    are. Downloads are those of FedAvg.

    It changes the wire alone, so it composes with any method: ``ditto+qsparse``.

    Args:
        keep: entries that are sent: how many, or a share of them below 1; ``None`` for all.
        levels: of the stochastic quantizer; ``None`` for none.
        norm: L2 norm to which ``m + d`` is shortened first; ``None`` for no bound.
    """
    require(keep is None or keep > 0, f"qsparse: keep={keep} must be positive, or None for all entries")
    whole = keep is None and levels is None and norm is None
    remark(whole, "qsparse that leaves nothing out is fedavg")
    first = () if norm is None else (codecs.Clip(norm),)
    return Method(wire=() if whole else (codecs.qsparse(keep, levels, first),))
