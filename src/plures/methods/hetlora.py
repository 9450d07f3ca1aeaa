"""LoRA of different ranks: weak clients hold fewer rows of A and columns of B."""

from typing import Literal

from plures.method import Frozen, Layout, Method, Personal, Phase, Predict, Shared, Sizes, head
from plures.methods.entry import entry, require
from plures.methods.lora import a, factors
from plures.models import with_lora


@entry(
    "HetLoRA",
    "edge",
    "Cho, Liu, Xu, Fahrezi, Joshi 2024, EMNLP, section 3 (truncation and zero-padding, without pruning of ranks)",
    {"average": ("held", "padded")},
)
def hetlora(
    ranks: tuple[int, ...] = (8, 4, 2),
    column: str | None = None,
    average: Literal["held", "padded"] = "held",
    alpha: float | None = None,
    heads: Literal["personal", "shared", "frozen"] = "personal",
    visits: int = 5,
) -> Method:
    """A frozen base whose layers get ``W + (alpha / rank) B A``; each client holds the first ranks of the factors.

    The server sends a client of rank ``r`` the first ``r`` rows of A and columns of B and averages what it gets back:

    * ``held``: every entry over the clients that hold it.
    * ``padded``: over all clients, with zeros where one holds nothing, as the paper does. Its weights by the norm of
      ``B A`` and its pruning of ranks in training are left out; clients count by their examples.

    Where all ranks are equal, it is :func:`~plures.methods.lora` with shared factors. Use a trained base.

    Args:
        ranks: of the clients, in turn, in their order; the largest is that of the whole.
        column: metadata column with the share of the largest rank that each client holds, in (0, 1].
        average: see above.
        alpha: scale of the factors; default: the largest rank.
        heads: with whom the head is shared; a frozen one is that of the base.
        visits: visits an unseen client makes to train what is personal.
    """
    require(bool(ranks) and min(ranks, default=0) >= 1, f"hetlora: ranks={ranks}: give ranks of 1 or more")
    rank = max(ranks)
    top: Layout = {} if heads == "frozen" else {head: Personal() if heads == "personal" else Shared()}
    return Method(
        layout={factors: Shared(), **top, "model": Frozen()},
        schedule=(Phase(train=(factors, *top)),),
        predict=Predict(visits=visits if heads == "personal" else 0),
        adds={"lora": lambda module, setting: with_lora(module, rank, alpha)},
        sizes=Sizes(tuple(one / rank for one in ranks), column, layers=a, left_out=average == "held"),
    )
