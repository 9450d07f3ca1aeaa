"""LoRA, low-rank adaptation, of a frozen model."""

from typing import Literal

from plures.method import Clustered, Frozen, Layout, Method, Personal, Phase, Predict, Shared, head, role
from plures.methods.community import grouping
from plures.methods.entry import entry, remark
from plures.models import with_lora

factors, a, b = role("lora"), role("lora_a"), role("lora_b")


@entry(
    "LoRA",
    "split model",
    "Hu et al. 2022, ICLR, equation 3; averaged as by Zhang et al. 2024, ICASSP (FedIT), Sun et al. 2024, ICLR "
    "(FFA-LoRA) or Guo et al. 2025, ICLR (FedSA-LoRA)",
    {"share": ("personal", "shared")},
)
def lora(
    share: Literal["personal", "shared", "clustered"] = "shared",
    average: Literal["factors", "a", "b"] = "factors",
    rank: int = 4,
    alpha: float | None = None,
    heads: Literal["personal", "shared", "frozen"] = "personal",
    clusters: int = 2,
    column: str | None = None,
    visits: int = 5,
) -> Method:
    """A frozen base ``W`` whose layers get ``W + (alpha / rank) B A``; the factors and the head are trained.

    The server averages:

    * ``factors``: A and B, separately (FedIT). The average of the products ``B_i A_i`` is not the product of the
      averages, so this is not the average of what the clients use.
    * ``b``: B only, with the same random A frozen for everyone (FFA-LoRA): the product of the average is exact.
    * ``a``: A only; B stays with the client (FedSA-LoRA).

    A model without LoRA gets it around its linear and convolutional layers outside the head. Use a trained base:
    around random frozen weights, LoRA learns little. With batch normalisation, the running statistics stay those of
    the base, and are used in training, too.

    Args:
        share: with whom the factors that the server averages are shared; ``personal`` sends none.
        average: see above.
        rank: rank of added factors.
        alpha: scale of added factors; default: ``rank``.
        heads: with whom the head is shared; a frozen one is that of the base.
        clusters: number of clusters by initial gradients, for ``clustered``.
        column: metadata column that defines the clusters instead.
        visits: visits an unseen client makes to train what is personal.
    """
    shares = {
        "personal": Personal(),
        "shared": Shared(),
        "clustered": Clustered(1 if column else clusters, grouping(column), same_start=True),
    }
    exceptions: dict[str, Layout] = {"factors": {}, "a": {b: Personal()}, "b": {a: Frozen()}}
    remark(share == "personal" and average == "a", "lora: with share='personal', average='a' averages nothing")
    top: Layout = {} if heads == "frozen" else {head: shares[heads]}
    return Method(
        layout={**exceptions[average], factors: shares[share], **top, "model": Frozen()},
        schedule=(Phase(train=(b if average == "b" else factors, *top)),),
        predict=Predict(visits=visits),
        adds={"lora": lambda module, setting: with_lora(module, rank, alpha)},
    )
