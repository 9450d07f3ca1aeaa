"""HierFAVG: clients, edges, cloud."""

import torch
from torch import Tensor

from plures.method import By, Clustered, Cohort, Method
from plures.methods.entry import entry, remark, require


@entry("HierFAVG", "edge", "Liu, Zhang, Song, Letaief 2020, IEEE ICC, Algorithm 1", {"period": (1, 2, 5)})
def hierfavg(period: int | None = 2, column: str = "group") -> Method:
    """Every edge averages its clients in every round; the cloud averages the edges every few rounds.

    Edges and clients are weighted by training examples. In the cloud an edge counts with all of its clients, whether
    or not they took part recently, because its model stands for all of them; an edge without participants sends the
    model it has.
    In the paper's terms a round is kappa1 local steps, and ``period`` is kappa2. Bytes are those between clients and
    edges; between an edge and the cloud, one model goes up and one down in every ``period`` rounds.

    Args:
        period: rounds between cloud averages; 1 is FedAvg if all take part; ``None`` for never, which is
            FedAvg inside each edge.
        column: metadata column that names each client's edge.
    """
    require(period is None or period >= 1, f"hierfavg: period={period} must be at least 1, or None for never")
    remark(period is None, "hierfavg with period=None is fedavg inside each edge")

    def cloud(models: Tensor, weights: Tensor, cohort: Cohort) -> Tensor | None:
        if period is None or (cohort.round + 1) % period:
            return None
        groups, names = cohort.setting.groups(column)
        examples = cohort.setting.fact("examples").to("cpu", torch.float64)
        share = torch.zeros(len(names), dtype=torch.float64).index_add(0, groups, examples)
        return (share / share.sum()).expand(len(names), -1)

    return Method(layout={"model": Clustered(1, By(column), mixing=cloud, same_start=True)})
