"""A personal mixture of shared experts."""

from math import prod

import torch
from torch import nn

from plures.errors import PluresError
from plures.method import Frozen, Method, Personal, Phase, Predict, Setting, Shared, role
from plures.methods.entry import entry, require
from plures.models import mixture_of_experts, redrawn

gate = role("gate")


@entry(
    "Personal MoE",
    "split model",
    "mixture of Jacobs, Jordan, Nowlan, Hinton 1991, equation 1.1, with a gate for each client",
    {"experts": (2, 3, 4)},
)
def personal_moe(experts: int = 3, frozen: bool = False, visits: int = 5) -> Method:
    """All clients share the same experts; each has its own gate: ``y = sum_k softmax(g_i(x))_k e_k(x)``.

    A model without a gate becomes a mixture of copies of itself and a linear gate that starts as their mean. The first
    copy has the model's values, the others new ones (``reset_parameters`` of their layers); frozen values stay. To mix
    trained models, pass them as the model and freeze them:
    ``lambda: mixture_of_experts(experts_of(run), gate)``.

    Args:
        experts: number of copies of a model without a gate.
        frozen: train only the gates; otherwise the experts are trained with them and averaged.
        visits: visits an unseen client makes to train its gate.
    """
    require(experts >= 1, f"personal_moe: experts={experts}; give at least 1")
    return Method(
        layout={gate: Personal(), "model": Frozen() if frozen else Shared()},
        schedule=(Phase(gate) if frozen else Phase(),),
        predict=Predict(visits=visits),
        adds={"gate": lambda module, setting: mixed(module, experts, setting)},
    )


def mixed(module: nn.Module, experts: int, setting: Setting) -> nn.Module:
    """A mixture of copies of a module with different initial values."""
    if not setting.dtype.is_floating_point:
        raise PluresError(
            "personal_moe: the linear gate that it adds cannot read integer examples (tokens, graphs): give a model "
            "with a gate that can, mixture_of_experts(experts, gate), or use another method, such as fedper"
        )
    seeds = torch.randint(1, 2**31, (experts - 1,)).tolist()
    linear = nn.Linear(prod(setting.features), experts)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return mixture_of_experts([module, *(redrawn(module, seed) for seed in seeds)], nn.Sequential(nn.Flatten(), linear))
