"""Shared by methods that work on representations: loss terms, and what a client remembers of its last visit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plures.method.method import Start
from plures.method.setting import Setting
from plures.models import Leaves, Network, nested


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between vectors along the last dimension; 0 for a vector of zeros."""
    return (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1)


def contrast(own: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:
    """``-log(e^(s_near/t) / (e^(s_near/t) + e^(s_far/t)))`` of every example, ``(batch,)``, with cosines ``s``.

    The contrastive term of MOON (Li, He, Song 2021, equation 3).

    Args:
        own, near, far: ``(batch, d)``.
        temperature: t.
    """
    similar = cosine(own, torch.stack([near, far]))
    return F.softplus((similar[1] - similar[0]) / temperature)


def nt_xent(first: Tensor, second: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views (Chen, Kornblith, Norouzi, Hinton 2020, equation 1).

    Each view must find the other view of its example among all others of the batch. One example has no negatives,
    so its loss is 0.

    Args:
        first, second: ``(batch, d)`` representations of two views of the same examples.
        temperature: divisor of the cosines.
        weight: ``(batch,)`` 1 for an example and 0 for padding.

    Returns:
        The mean over all views, a scalar.
    """
    z = F.normalize(torch.cat([first, second]), dim=-1)
    similar = z @ z.T / temperature
    partner = similar.roll(len(first), 1).diagonal()
    hidden = torch.eye(len(z), dtype=torch.bool, device=z.device)
    if weight is not None:
        hidden = hidden | (weight.repeat(2) == 0)
    each = similar.masked_fill(hidden, -torch.inf).logsumexp(1) - partner
    return each.mean() if weight is None else (each * weight.repeat(2)).sum() / (2 * weight.sum())


def distillation(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``t^2 KL(softmax(teacher/t) || softmax(student/t))`` of every example, ``(batch,)`` (Hinton et al. 2015).

    Args:
        teacher, student: ``(batch, classes)`` scores.
        temperature: t.
    """
    given, own = (F.log_softmax(scores / temperature, -1) for scores in (teacher, student))
    return temperature**2 * (given.exp() * (given - own)).sum(-1)


def members(targets: Tensor, classes: int, like: Tensor) -> Tensor:
    """One-hot targets ``(batch, classes)``, in the type of ``like``."""
    return (targets.unsqueeze(-1) == torch.arange(classes, device=targets.device)).to(like.dtype)


def blank(start: Start, *shape: int) -> Tensor:
    """Zeros of the model's floating-point type, on its device."""
    return next(iter(start.model.values())).new_zeros(shape, dtype=start.network.dtype)


def width(network: Network, setting: Setting) -> int:
    """Size of a representation: the head's input for one example."""
    leaves = network.leaves()
    device = next(iter(leaves.values())).device

    def zero(t: Tensor) -> Tensor:
        kind = network.dtype if t.is_floating_point() else t.dtype
        return torch.zeros(1, *t.shape[1:], dtype=kind, device=device)

    return network.tapped(leaves, nested.mapped(zero, setting.example), train=False)[1].numel()


def unvisited(start: Start) -> Leaves:
    """A slot that says whether a client was visited before: ``visited`` is 0, and 1 after its first visit."""
    return {"visited": blank(start)}


def visited(flag: Leaves) -> Leaves:
    """The same slot after a visit."""
    return {"visited": torch.ones_like(flag["visited"])}


def remembered(flag: Leaves, own: Leaves, received: Leaves) -> Leaves:
    """What a client kept of its last visit, or what it received if this is its first one."""
    return {k: torch.where(flag["visited"] > 0, t, received[k]) for k, t in own.items()}
