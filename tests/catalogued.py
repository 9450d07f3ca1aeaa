"""Short runs of any method of the catalogue, and how far apart they are."""

from __future__ import annotations

from torch import Tensor, nn

from newcomers import linear
from plures.federation import Federation
from plures.method import SGD
from plures.methods import METHODS
from plures.models import with_roles
from plures.models.residual import SqueezeExcitation
from plures.run import Execution, Run, Training

WHOLE = [name for name in METHODS if METHODS[name]().sizes is None]
"""Methods whose clients hold the whole network. Sites and stages of the wire refuse the others, as their tests say."""
ALL = Execution("vmap", 5, False, "float64")


def gated() -> nn.Module:
    """A body with squeeze-and-excitation, and a head; nothing in it changes without a gradient."""
    body = (nn.Linear(8, 4), nn.Unflatten(1, (-1, 1, 1)), SqueezeExcitation(4), nn.Flatten(), nn.Tanh())
    return with_roles(nn.Sequential(*body, nn.Linear(4, 2)), head="5", se=("2",))


def trained(name: str, federation: Federation, rounds: int = 1, batch_size: int | None = 8) -> Run:
    """A run in which every client takes part."""
    training = Training(rounds=rounds, batch_size=batch_size, steps=2, optimizer=SGD(0.05))
    done = Run(federation, linear if name == "mocha" else gated, METHODS[name](), training, execution=ALL, seed=1)
    for _ in done.rounds():
        pass
    return done


def everything(done: Run) -> dict[str, Tensor]:
    """All leaves of all clients, and what they predict with."""
    clients = list(range(len(done.federation)))
    stacks = {"": done.states(clients), "deployed ": done.deployed(clients)}
    return {
        f"{when}{slot}/{path}": t
        for when, stack in stacks.items()
        for slot, leaves in stack.items()
        for path, t in leaves.items()
    }


def away(one: Run, other: Run, slot: str = "") -> float:
    """The largest difference between two runs, in all leaves or in those of one slot."""
    left, right = everything(one), everything(other)
    assert left.keys() == right.keys()
    compared = [k for k in left if k.startswith(slot) and left[k].numel()]
    return max(float((left[k].double() - right[k].double()).abs().max()) for k in compared)
