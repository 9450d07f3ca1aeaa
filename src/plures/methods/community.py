"""Community adapters: a small part of the model shared within a community, and a personal head."""

from plures.method import (
    By,
    Clustered,
    Grouping,
    InitialGradients,
    Method,
    Personal,
    Predict,
    Shared,
    head,
    role,
)
from plures.methods.entry import entry
from plures.models import with_adapters


@entry(
    "Community adapters",
    "split model",
    "adapters of Houlsby et al. 2019, ICML, Figure 2; head as in Arivazhagan et al. 2019; shared by community",
    {"communities": (2, 3, 4)},
)
def community(communities: int = 2, column: str | None = None, width: int = 8, visits: int = 5) -> Method:
    """A base that everybody shares, adapters that a community shares, and a personal head, trained together.

    Prediction is by ``head_i(base(x) + adapter_g(base(x)))``, with an adapter ``h + up(relu(down(h)))`` in every layer.
    On a graph network this is ``h_v <- phi(h_v, {h_u}) + adapter_g(h_v)``. A model without adapters gets them.

    Communities are the values of a metadata column; without one they are clusters of the clients' initial gradients
    (:class:`~plures.method.InitialGradients`), since adapters that start equal give no other basis for a choice.

    Args:
        communities: number of communities, if no column is given.
        column: metadata column that defines the communities.
        width: bottleneck width of added adapters.
        visits: visits an unseen client makes to train its head.
    """
    return Method(
        layout={
            role("adapter"): Clustered(1 if column else communities, grouping(column), same_start=True),
            head: Personal(),
            "model": Shared(),
        },
        predict=Predict(visits=visits),
        adds={"adapter": lambda module, setting: with_adapters(module, width)},
    )


def grouping(column: str | None) -> Grouping:
    """Communities given by a column, or by initial gradients."""
    return By(column) if column else InitialGradients()
