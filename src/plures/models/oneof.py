"""Several networks in one module, of which each client holds one: a network for each class of clients."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.federation.inputs import Inputs
from plures.models import nested
from plures.models.alternatives import HERE, NETWORKS, OneOf
from plures.models.footprint import Counted
from plures.models.network import call, with_roles
from plures.models.units import Along, Width, Widths
from plures.signature import checked


@checked
def one_of(
    networks: Mapping[str, nn.Module],
    column: str | None = None,
    budget: Counted | None = None,
    limit: float | None = None,
    batch: int = 32,
) -> nn.Module:
    """A network for each class of clients, for any method that keeps them apart.

    Whatever a method shares of the network is shared among the clients that hold the same one, and costs, bytes and
    published models are those of a client's own. Inputs and outputs of all must be of one shape. In a simulation the
    networks of all classes are computed for every client, so that it takes as long as their sum.

    Args:
        networks: two or more, by name.
        column: metadata column with the name of each client's network; or, with ``budget``, with what its device has of
            that; default: the clients get the networks in turn, in their order.
        budget: ``parameters``, ``bytes``, ``flops`` or ``memory`` (:class:`~plures.models.footprint.Footprint`): each
            client gets the network that needs the most of those that its device can hold.
        limit: what every device has, in place of ``column``.
        batch: examples of a step, for ``budget="memory"``.

    Raises:
        PluresError: if there are fewer than two, or one has no parameters.

    Examples:
        >>> from plures.models import mlp
        >>> network = one_of({"small": mlp((13,), 2, (8,)), "large": mlp((13,), 2, (64, 64))}, column="device")
        >>> [name for name, _ in network.networks.named_children()]
        ['small', 'large']
    """
    if len(networks) < 2:
        raise PluresError(f"one_of: networks={', '.join(networks) or 'none'}: give two or more, by name")
    for name, network in networks.items():
        if not name.isidentifier():
            raise PluresError(f"one_of: network {name!r}: give it a name of letters, digits and _")
        if not [*network.parameters()]:
            raise PluresError(f"one_of: network {name!r} has no parameter: give one that learns")
    roles: dict[str, tuple[str, ...]] = {}
    for name, network in networks.items():
        own: Mapping[str, tuple[str, ...]] = getattr(network, "roles", {})
        for role, parts in own.items():
            here = tuple(f"{NETWORKS}.{name}.{part}" if part else f"{NETWORKS}.{name}" for part in parts)
            roles[role] = (*roles.get(role, ()), *here)
    return with_roles(OneOf(networks, column, budget, limit, batch), **roles)


def networks_of(module: OneOf, example: Tensor | Inputs) -> Widths:
    """What clients hold of the networks: each one wholly or not at all.

    Raises:
        PluresError: if the networks give outputs of different shapes for an example.
    """
    module = copy.deepcopy(module).eval()
    like = next(module.parameters())

    def blank(t: Tensor) -> Tensor:
        kind = like.dtype if t.is_floating_point() else t.dtype
        return torch.zeros(2, *t.shape[1:], dtype=kind, device=like.device)

    with torch.no_grad():
        call(module, nested.mapped(blank, example))
    leaves: dict[str, tuple[Along, ...]] = {}
    for number, name in enumerate(module.networks):
        own = [path for path, _ in module.networks[name].named_parameters(f"{NETWORKS}.{name}")]
        own += [path for path, _ in module.networks[name].named_buffers(f"{NETWORKS}.{name}")]
        leaves |= {path: (Along(None, number, 1),) for path in (*own, f"{HERE}.{name}")}
    return Widths(tuple(Width(name, 1) for name in module.networks), leaves, frozenset())
