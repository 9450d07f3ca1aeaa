"""Features of a frozen backbone, computed once instead of in every step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation import Federation
from plures.federation.preparation import Preparation
from plures.models import nested
from plures.models.network import call
from plures.models.outputs import told

BATCH = 256
"""Examples that pass through the backbone at once."""


def featured(federation: Federation, backbone: nn.Module) -> Federation:
    """The same federation, whose inputs are the outputs of a frozen backbone in evaluation mode.

    Training a head on it gives the numbers of training backbone and head with a frozen backbone, and takes a small part
    of the time. New rows have to pass through the backbone, too, before the trained head can read them.

    Args:
        federation: the examples, without augmentation, which would change the features in every step.
        backbone: reads the inputs and gives ``(batch, *features)``; not changed. All its parameters must be frozen
            (``requires_grad_(False)``), because the head alone is trained afterwards.

    Examples:
        >>> from torch import nn
        >>> from plures.models import featured
        >>> heart = plures.load("heart")
        >>> backbone = nn.Sequential(nn.Linear(heart.features[0], 5), nn.ReLU()).requires_grad_(False)
        >>> featured(heart, backbone).features
        (5,)
    """
    if federation.augment is not None:
        raise PluresError(f"federation {federation.name!r} augments its examples, so their features are never the same")
    trainable = [name for name, p in backbone.named_parameters() if p.requires_grad]
    if trainable:
        raise PluresError(
            f"the backbone's {trainable[0]} can be trained, so its features would change: freeze it with "
            "backbone.requires_grad_(False)"
        )
    modes = {module: module.training for module in backbone.modules()}
    device = next((t.device for t in [*backbone.parameters(), *backbone.buffers()]), federation.inputs.device)
    found: list[Tensor] = []
    try:
        backbone.eval()
        with torch.no_grad():
            for first in range(0, len(federation.inputs), BATCH):
                some = nested.mapped(lambda t: t.to(device), federation.inputs[first : first + BATCH])
                outputs = told(call(backbone, some))
                if not isinstance(outputs, Tensor) or outputs.dim() < 2 or len(outputs) != len(some):
                    raise PluresError(
                        f"the backbone gives {type(outputs).__name__}, but features are one tensor (batch, *features): "
                        "wrap it in a module that returns them"
                    )
                found.append(outputs.to(federation.inputs.device))
    finally:
        for module, mode in modes.items():
            module.training = mode
    made = federation.preparation
    kept = None if made is None or made.target is None else Preparation(target=made.target)
    return replace(federation, inputs=torch.cat(found), columns=(), scaling=None, preparation=kept)
