"""A model for every client, generated from an embedding by a network that the server trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError
from plures.method.optimizer import SGD, Optimizer
from plures.method.setting import Setting
from plures.method.shares.share import BlockState, Cohort, Probe, Share, Shared, blended, flatten, put, unflatten
from plures.method.tree import fixed
from plures.models import Leaves, Marked

EMBEDDING, OUTPUT, STEPS, VISITED = "embedding", "output", "steps", "visited"


@brief
@by_content
@dataclass(frozen=True)
class Generated(Share):
    """``theta_i = theta_0 + h(phi, e_i)``: the server trains the generator ``phi`` and the embeddings ``e_i``.

    After a round, one optimizer step along ``J_phi^T Delta`` and ``J_e^T Delta``, summed over the cohort (Shamsian et
    al. 2021, Algorithm 1): a vector-Jacobian product with the clients' changes. The generator's last layer starts at
    zero, so that every client starts from the same initial model ``theta_0``. Momentum and weight decay also move the
    embeddings of absent clients, as in the authors' code. Running statistics are not generated: all clients receive
    their mean.

    Attributes:
        columns: metadata columns that make the embedding, standardised; without any, embeddings are free and learned.
        size: length of a free embedding; default ``1 + clients // 4``.
        hidden: units of the hidden layers; none for a linear generator.
        optimizer: optimizer of generator and embeddings.
        clip: largest norm of the step's gradient over generator and embeddings; ``None`` for no limit.
        embeddings: initial free embeddings ``(clients, size)``; default: standard normal.
        learn_embeddings: whether free embeddings are trained.
        seed: of the generator's initial values.
    """

    columns: tuple[str, ...] = ()
    size: int | None = None
    hidden: Sequence[int] = (100, 100, 100)
    optimizer: Optimizer = field(default_factory=lambda: SGD(0.01, momentum=0.9, weight_decay=1e-3))
    clip: float | None = 50.0
    embeddings: Tensor | None = None
    learn_embeddings: bool = True
    seed: int = 0
    travels: ClassVar[bool] = True
    served: ClassVar[bool] = True
    individual: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise PluresError(f"columns={self.columns!r}: give a tuple of columns, ({self.columns!r},)")
        if self.size is not None and self.size < 1:
            raise PluresError(f"size={self.size}: give an embedding at least 1 number, or None for a size by default")
        if not all(isinstance(units, int) and units >= 1 for units in self.hidden):
            raise PluresError(f"hidden={self.hidden!r}: give the units of each layer, 1 or more, or () for none")

    def start(self, initial: Leaves, fresh: Callable[[int], Leaves], setting: Setting) -> BlockState:
        base = {k: t.unsqueeze(0).clone() for k, t in initial.items()}
        like = next(t for t in base.values() if t.is_floating_point())
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)

        extra: Leaves = {}
        if self.columns:
            facts = setting.numbers(self.columns).to(like)
            extra["center"], extra["scale"] = facts.mean(0), facts.std(0, correction=0).clamp(min=1e-6)
            extra[EMBEDDING] = self._described(extra, setting)
        elif self.embeddings is not None:
            extra[EMBEDDING] = self.embeddings.to(like).clone()
        else:
            extra[EMBEDDING] = normal(len(setting), self.size or 1 + len(setting) // 4)
        units = [extra[EMBEDDING].shape[1], *self.hidden]
        for layer, (fan_in, fan_out) in enumerate(pairwise(units)):
            extra[f"weight{layer}"] = normal(fan_in, fan_out) * (2 / fan_in) ** 0.5
            extra[f"bias{layer}"] = like.new_zeros(fan_out)
        extra[OUTPUT] = like.new_zeros(units[-1], flatten(Marked(base, fixed(initial))).shape[1])
        memory = {
            remembered(n, k): torch.zeros_like(extra[k]) for n in range(self.optimizer.slots) for k in self.trained
        }
        nobody = {VISITED: torch.zeros(len(setting), dtype=torch.bool)}
        return BlockState(base, extra | memory | nobody | {STEPS: torch.zeros(len(setting), dtype=torch.int64)})

    @property
    def trained(self) -> list[str]:
        """Names of the tensors that the server trains."""
        layers = [k for layer in range(len(self.hidden)) for k in (f"weight{layer}", f"bias{layer}")]
        return [*layers, OUTPUT, *([EMBEDDING] if self.own_row else [])]

    @property
    def own_row(self) -> bool:
        return not self.columns and self.learn_embeddings

    def local(self) -> Share:
        return Shared()

    def row(self, kept: BlockState, clients: Tensor) -> Tensor:
        return clients

    def read(self, kept: BlockState, rows: Tensor) -> Leaves:
        base = {k: t.expand(len(rows), *t.shape[1:]) for k, t in kept.values.items()}
        made = self._generate(kept.extra, kept.extra[EMBEDDING][rows.to(kept.extra[EMBEDDING].device)])
        base = kept.marked(base)
        return unflatten(flatten(base) + made.to(torch.float64), base)

    def write(self, kept: BlockState, rows: Tensor, values: Leaves, cohort: Cohort) -> BlockState:
        slopes = self._slopes(kept, rows, values, self.trained)
        scale = self._scale(torch.stack([slope.norm() for slope in slopes.values()]).norm())
        steps = kept.extra[STEPS] + 1
        visited = kept.extra[VISITED].index_fill(0, rows.cpu(), True)
        new = self._stepped(kept.extra, {k: scale * slope for k, slope in slopes.items()}, int(steps[0]))
        weight = torch.zeros(len(rows), dtype=torch.float64)
        weight.index_add_(0, torch.searchsorted(rows, cohort.rows), cohort.weights.cpu().to(torch.float64))
        seen = {k: blended(values[k], weight / weight.sum()).unsqueeze(0) for k in kept.buffers if k in values}
        return replace(kept, values=kept.values | seen, extra=kept.extra | new | {STEPS: steps, VISITED: visited})

    def join(self, kept: BlockState, setting: Setting, probe: Probe) -> BlockState:
        """Newcomers get the embedding of their metadata; free ones start from a mean and are fitted in visits.

        The mean is over the clients that took part; the others still have their random start.
        """
        old, visited = kept.extra[EMBEDDING], kept.extra[VISITED].to(kept.extra[EMBEDDING].device)
        learned = old[visited] if bool(visited.any()) else old
        e = self._described(kept.extra, setting) if self.columns else learned.mean(0).expand(len(setting), -1).clone()
        memory = {remembered(n, EMBEDDING): torch.zeros_like(e) for n in range(self.optimizer.slots) if self.own_row}
        none_yet = {
            STEPS: torch.zeros(len(setting), dtype=torch.int64),
            VISITED: torch.zeros(len(setting), dtype=torch.bool),
        }
        return replace(kept, extra=kept.extra | memory | none_yet | {EMBEDDING: e})

    def tune(self, kept: BlockState, rows: Tensor, values: Leaves) -> BlockState:
        """One step of each newcomer's embedding, the generator fixed."""
        slopes = self._slopes(kept, rows, values, [EMBEDDING])[EMBEDDING]
        slopes = slopes[rows.to(slopes.device)]
        names = [EMBEDDING, STEPS, *(remembered(n, EMBEDDING) for n in range(self.optimizer.slots))]
        mine = {k: kept.extra[k][rows.to(kept.extra[k].device)] for k in names}
        mine[STEPS] = mine[STEPS] + 1
        step = mine[STEPS].to(slopes.device, torch.float64).unsqueeze(1)
        scaled = {EMBEDDING: self._scale(slopes.norm(dim=1, keepdim=True)) * slopes}
        new = mine | self._stepped(mine, scaled, step)
        return replace(kept, extra=kept.extra | {k: put(kept.extra[k], rows, t) for k, t in new.items()})

    def _described(self, extra: Leaves, setting: Setting) -> Tensor:
        """Embeddings made from metadata: the standardised columns and a constant, ``(clients, size)``."""
        facts = (setting.numbers(self.columns).to(extra["center"]) - extra["center"]) / extra["scale"]
        return torch.cat([facts, torch.ones_like(facts[:, :1])], 1)

    def _generate(self, extra: Leaves, embedding: Tensor) -> Tensor:
        h = embedding
        for layer in range(len(self.hidden)):
            h = torch.relu(h @ extra[f"weight{layer}"] + extra[f"bias{layer}"])
        return h @ extra[OUTPUT]

    def _slopes(self, kept: BlockState, rows: Tensor, values: Leaves, names: list[str]) -> Leaves:
        """Gradients of some tensors: minus the vector-Jacobian products with the clients' changes."""
        old = self.read(kept, rows)
        change = flatten(kept.marked({**old, **values})) - flatten(kept.marked(old))
        free = {k: kept.extra[k].clone().requires_grad_(True) for k in names}
        extra = kept.extra | free
        with torch.enable_grad():
            made = self._generate(extra, extra[EMBEDDING][rows.to(change.device)])
            slopes = torch.autograd.grad(-(made * change.to(made)).sum(), list(free.values()))
        return dict(zip(names, slopes, strict=True))

    def _scale(self, norm: Tensor) -> Tensor:
        """Factor that scales a gradient of this norm to the limit."""
        return torch.ones_like(norm) if self.clip is None else (self.clip / (norm + 1e-6)).clamp(max=1.0)

    def _stepped(self, extra: Leaves, slopes: Leaves, step: Tensor | int) -> Leaves:
        """New values of the tensors with a gradient, and of their optimizer state."""
        names = list(slopes)
        values = {k: extra[k].clone() for k in names}
        memory = [
            {remembered(n, k): extra[remembered(n, k)].clone() for k in names} for n in range(self.optimizer.slots)
        ]
        lists = [list(some.values()) for some in memory]
        self.optimizer.step(list(values.values()), list(slopes.values()), lists, self.optimizer.lr, step)
        return values | {k: t for some in memory for k, t in some.items()}


def remembered(number: int, name: str) -> str:
    """Name of a tensor's optimizer state."""
    return f"memory{number}:{name}"
