"""Cold start: models for clients without labels, from metadata."""

from dataclasses import replace
from typing import Literal

from plures.method import Method, Mixed, Nearest, Personal, Regressed, Selector, Share
from plures.method.layout import LayoutKey
from plures.methods.ditto import ditto
from plures.methods.entry import entry, require


@entry(
    "Cold start",
    "generation",
    "ridge regression of models on metadata (Hoerl, Kennard 1970, equation 2.1)",
    {"ridge": (0.1, 1.0, 10.0)},
)
def cold_start(
    base: Method | None = None,
    by: Literal["regression", "nearest"] = "regression",
    columns: tuple[str, ...] = (),
    ridge: float = 1.0,
    neighbours: int = 1,
    visits: int = 0,
) -> Method:
    """A method with personal models in which an unseen client's first model comes from its metadata.

    ``theta_new = sum_i w_i(metadata) theta_i`` over the clients that took part: by ridge regression of their models on
    their metadata, or as the mean over the clients with the nearest metadata (with one categorical column: over its
    community). Without metadata both are the mean. The newcomer's labels are not used before its visits. For a
    hypernetwork driven by metadata, see ``pfedhn(columns=...)``.

    Running statistics start from their mean, because a regression may leave their range.

    Args:
        base: the method that trains the personal models; default: Ditto.
        by: ``regression`` or ``nearest``.
        columns: metadata columns; empty for all.
        ridge: strength of the regression's shrinkage to the mean.
        neighbours: number of nearest clients; ties with the last one are included.
        visits: k, visits in which the newcomer then adapts the model.
    """
    require("labels" not in columns, "cold_start: 'labels' counts local labels, which a newcomer does not have")
    base = ditto() if base is None else base
    rule = Regressed(columns, ridge) if by == "regression" else Nearest(columns, neighbours)
    layout: dict[LayoutKey, Share] = {}
    for key, share in base.layout.items():
        slot = key if isinstance(key, str) else key.slot
        copies_model = key not in base.slots or isinstance(base.slots[slot], Selector)
        if isinstance(share, Personal | Mixed) and copies_model:
            share = replace(share, unseen=rule)
        layout[key] = share
    require(layout != dict(base.layout), "cold_start: the base method has no personal model; use ditto() or local()")
    return replace(base, layout=layout, predict=replace(base.predictor, visits=visits))
