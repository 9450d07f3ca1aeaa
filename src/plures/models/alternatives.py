"""Several networks in one module, of which each client holds one."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from plures.errors import PluresError
from plures.models.budget import Counted
from plures.models.outputs import told

NETWORKS = "networks"
"""The part of a module that holds several networks."""
HERE = "here"
"""Frozen numbers, one for each network, or for each exit of one: 1 where the client holds it."""


class OneOf(nn.Module):
    """Several networks; gives the outputs of the last one that it holds.

    A frozen number ``here.NAME`` for each network is 1 where it is held. A client holds one of them: the others' leaves
    and numbers are 0, and get no gradient.

    Args:
        networks: by name; copied.
        column, budget, limit, batch: who holds which, see :func:`one_of`.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        column: str | None = None,
        budget: Counted | None = None,
        limit: float | None = None,
        batch: int = 32,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({name: copy.deepcopy(network) for name, network in networks.items()})
        self.here = nn.ParameterDict()
        for name, network in networks.items():
            like = next(network.parameters()).detach()
            self.here[name] = nn.Parameter(like.new_ones(()), requires_grad=False)
        self.roles: dict[str, tuple[str, ...]] = {}
        self.column, self.budget, self.limit, self.batch = column, budget, limit, batch

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.chosen({name: told(one(*inputs, **named)) for name, one in self.networks.items()}, dict(self.here))

    def chosen(self, made: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> Tensor:
        """What the last network gave that is held.

        Args:
            made: what each network gave, by name, all of one shape.
            here: by name, whether it is held.
        """
        shapes = {tuple(t.shape[1:]) for t in made.values()}
        if len(shapes) != 1:
            said = ", ".join(f"{name} {tuple(t.shape[1:])}" for name, t in made.items())
            raise PluresError(f"what the clients' networks give has different shapes ({said}): let them be equal")
        found: Tensor | None = None
        for name, t in made.items():
            found = t if found is None else torch.where(here[name] > 0, t, found)
        assert found is not None
        return found

    def gates(self) -> dict[str, str]:
        """For each network the path of its number ``here``."""
        return {name: f"{HERE}.{name}" for name in self.networks}

    def keep(self, names: Collection[str]) -> None:
        """Leave the other networks out."""
        for name in [*self.networks]:
            if name not in names:
                del self.networks[name]
                del self.here[name]
        there = dict(self.named_modules())
        roles = {role: tuple(part for part in parts if part in there) for role, parts in self.roles.items()}
        self.roles = {role: parts for role, parts in roles.items() if parts}

    def heads(self) -> dict[str, str]:
        """For each network the name of the one part with the role ``head``."""
        found = {}
        for name in self.networks:
            own = [part for part in self.roles.get("head", ()) if part.startswith(f"{NETWORKS}.{name}.")]
            if len(own) != 1:
                raise PluresError(
                    f"network {name!r} needs exactly one part marked 'head' (found: {', '.join(own) or 'none'}): mark "
                    "it with plures.with_roles before one_of"
                )
            found[name] = own[0]
        return found
