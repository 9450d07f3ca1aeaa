"""Weights by the quality of the clients' data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.method import Combine, Known, Leaves, Method, Setting, Shared, State
from plures.methods.entry import entry, require


@dataclass(frozen=True, init=False)
class Reported(Known):
    """Each client's number of examples, and a number that it reports.

    Attributes:
        positive: whether to refuse zero as well as negative numbers.
        most: the largest number accepted.
    """

    positive: bool
    most: float

    def __init__(self, column: str, positive: bool = False, most: float = torch.inf) -> None:
        super().__init__("examples", column)
        object.__setattr__(self, "positive", positive)
        object.__setattr__(self, "most", most)

    def leaves(self, setting: Setting) -> Leaves:
        column = self.facts[1]
        numbers = setting.column(column)
        limits = f"metadata column {column!r} must hold numbers {'above' if self.positive else 'from'} 0 to {self.most}"
        for client, value in zip(setting.clients, setting.metadata.get(column, ()), strict=False):
            require(not isinstance(value, str), f"{limits}; client {client!r} has {value!r}")
        require(numbers.dim() == 1, limits)
        sound = (numbers <= self.most) & ((numbers > 0) if self.positive else (numbers >= 0))
        for client, number, fine in zip(setting.clients, numbers.tolist(), sound.tolist(), strict=True):
            require(fine, f"{limits}; client {client!r} has {number:g}")
        useless = setting.joins is None and not bool(numbers.any())
        require(not useless, f"metadata column {column!r} is 0 for every client: no client would count")
        return super().leaves(setting)


@entry("Quality weights", "data quality", "inverse variance: Cochran 1954, Biometrics")
def quality(column: str = "completeness", inverse: bool = False) -> Method:
    """FedAvg with each client weighted by its examples times the quality of its data, ``p_i ~ n_i rho_i``.

    With quality 1 everywhere this is FedAvg; a client of quality 0 does not count but still receives the model. The
    weights do not remove the bias from noise or imputation (see ``debias``); they trade it against variance.

    Args:
        column: metadata column with the quality that each client reports, such as ``completeness`` or ``reliability``.
        inverse: the column holds a variance, and a client's weight is its examples divided by it.
    """

    def weigh(x: State) -> Tensor:
        number = x.reported[column]
        return x.reported["examples"] * (1 / number if inverse else number)

    return Method(layout={"model": Shared(), "reported": Reported(column, inverse)}, combine=Combine(weigh))
