"""Matrix factorisation: the client is the user."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.network import with_roles
from plures.models.parts import Features, Tokens, tokens

ITEMS = 9742
"""Items of MovieLens ml-latest-small."""


class Items(Tokens):
    """An item's factors ``q_i`` and, as last column, its bias ``b_i``; they start small."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.1)


class User(nn.Module):
    """The user's factors and bias: ``(batch, factors + 1) -> (batch, 1)``, ``q_i . p_u + b_u + b_i + mean``."""

    def __init__(self, factors: int, mean: float) -> None:
        super().__init__()
        self.factors, self.mean = nn.Linear(factors, 1), mean

    def forward(self, items: Tensor) -> Tensor:
        return self.factors(items[:, :-1]) + items[:, -1:] + self.mean  # type: ignore[no-any-return]


def matrix_factorization(
    features: Features, outputs: int, items: int = ITEMS, factors: int = 16, mean: float = 0.0
) -> nn.Module:
    """Matrix factorisation with biases (Koren, Bell, Volinsky 2009, equation 4): ``mean + b_i + b_u + q_i . p_u``.

    The ``body`` is the items' factors and biases, the ``head`` the user's; so a personal head makes each client one
    user.

    Args:
        features: ``(1,)``, the item's number, 0 to ``items - 1``.
        outputs: 1, the rating.
        items: number of items (MovieLens ml-latest-small has 9742).
        factors: size of the factor vectors.
        mean: the overall average rating, a constant; 0 for standardised ratings.
    """
    tokens("matrix_factorization", features, outputs, items=items, factors=factors)
    if features != (1,) or outputs != 1:
        raise PluresError(
            "matrix_factorization reads one item (1,) and predicts 1 rating; "
            f"examples have shape {features} and {outputs} outputs"
        )
    body = nn.Sequential(Items(items, factors + 1), nn.Flatten())
    return with_roles(nn.Sequential(OrderedDict(body=body, head=User(factors, mean))), body="body", head="head")
