"""Qsparse-local-SGD: the largest entries of a change, quantized, with the error kept for the next round."""

from __future__ import annotations

from plures.codecs.feedback import Feedback
from plures.codecs.quantize import Quantize
from plures.codecs.sparse import TopK
from plures.method import Wire


def qsparse(keep: int | float | None, levels: int | None = None, first: Wire = ()) -> Feedback:
    """``Q(Top_k)`` of change plus memory with error feedback (Basu, Data, Karakus, Diggavi 2020, Algorithm 1).

    Args:
        keep: entries that are sent: how many, or a share of them below 1; ``None`` for all.
        levels: of the stochastic quantizer; ``None`` for none.
        first: stages before both, such as ``(Clip(1.0),)``.
    """
    sparse = () if keep is None else (TopK(keep),)
    return Feedback((*first, *sparse, *(() if levels is None else (Quantize(levels),))))
