"""The stage of the wire that clips a client's whole upload, and adds noise to what everybody's uploads come to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from plures.codecs import Clip
from plures.errors import PluresError
from plures.method import Channel, Codec, Cohort, Leaves, Sending, joined, parted
from plures.method.channel import CHOICES, LOSS, OBJECTIVE
from plures.privacy import adaptive
from plures.privacy.accountant import Accountant, Neighbours
from plures.privacy.adaptive import BOUND
from plures.privacy.correlated import Matrix, roots, turnover
from plures.privacy.local import counted_answers, heard, said


@dataclass(frozen=True)
class Private(Codec):
    """Differential privacy of clients: each one's whole upload is clipped, and the sum of all gets Gaussian noise.

    A client's change of all leaves that travel, of all blocks together, is shortened to ``clip``. The server adds noise
    of standard deviation ``noise * clip`` to every entry of the sum, and divides by a fixed number, the expected size
    of a cohort (McMahan, Ramage, Talwar, Zhang 2018). Clients count alike. What stays at home costs nothing.

    It stands in a method by name, ``ditto+dp(clip=0.5,noise=1)``, and a run that contains it makes the plan complete
    (:class:`~plures.privacy.Plan`): weights, denominator and accounting follow from who is drawn.

    In a simulation the noise follows from the run's seed, as everything else does: whoever knows the seed can subtract
    it. In a federation of sites it comes from secret entropy of whoever adds it. Noise is floating point, which is not
    hardened against attacks on its lowest bits.

    Attributes:
        clip: the bound on the norm of a client's change; infinite only without noise. With ``quantile``, the first one.
        noise: standard deviation of the noise on the sum, in units of the bound.
        delta: of (epsilon, delta); well below 1 / clients.
        quantile: let the bound follow this quantile of the clients' norms (Andrew et al. 2021); ``None`` keeps it.
        quantile_lr: how fast it follows.
        votes: noise on the sum of the votes by which it follows; default: the expected cohort / 20.
        correlated: noise that partly cancels over rounds, for cohorts that are no random sample (DP-FTRL,
            :mod:`plures.privacy.correlated`).
        matrix: how it cancels: ``toeplitz``, by the square root of prefix sums; or by a binary ``tree``.
        mechanism: what hides an upload: ``gaussian`` noise; or, where nobody is trusted, ``duchi``: each number is cut
            to at most ``clip``, and a client tells noisy bits of one entry, or of a few, drawn at random (Duchi,
            Jordan, Wainwright 2014; Wang et al. 2019). A visit spends epsilon ``1 / noise`` then, without delta. For
            small uploads: the variance grows with the number of entries.
        trust: ``server``: the server is trusted with single uploads, and adds the noise; ``nobody``: every client adds
            it to its own upload, for the same epsilon against the server (local differential privacy); ``sum``: the
            server sees the sum of a ``secure_sum`` alone, to which every client has added its part of discrete noise.
        neighbours: ``add_or_remove`` or ``replace_one`` client.
        accountant: ``pld`` (tight) or ``rdp``.
        losses: whether clients report their training losses, which epsilon does not cover.
    """

    bounds: ClassVar[bool] = True

    clip: float = 1.0
    noise: float = 1.0
    delta: float = 1e-5
    quantile: float | None = None
    quantile_lr: float = 0.2
    votes: float | None = None
    correlated: bool = False
    matrix: Matrix = "toeplitz"
    mechanism: Literal["gaussian", "duchi"] = "gaussian"
    trust: Literal["server", "sum", "nobody"] = "server"
    neighbours: Neighbours = "add_or_remove"
    accountant: Accountant = "pld"
    losses: bool = False

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise PluresError(f"dp: clip={self.clip}; give a positive number")
        if not 0 <= self.noise < math.inf:
            raise PluresError(f"dp: noise={self.noise}; give 0 or more")
        if not 0 < self.delta < 1:
            raise PluresError(f"dp: delta={self.delta}; give a number between 0 and 1, well below 1 / clients")
        if self.clip == math.inf and (self.noise or self.quantile is not None):
            raise PluresError("dp: clip=inf bounds nothing, so no noise hides a client: give a number, or noise=0")
        if self.quantile is None and self.votes is not None:
            raise PluresError(
                f"dp: votes={self.votes:g} is not used without quantile: leave it out, or give a quantile"
            )
        if self.quantile is not None:
            adaptive.check(self.quantile, self.quantile_lr)
        for other, given in (
            ("quantile", self.quantile is not None),
            (f"trust={self.trust!r}", self.trust != "server"),
        ):
            if self.correlated and given:
                raise PluresError(f"dp: correlated noise needs one bound, and the server's noise: leave out {other}")
        if self.matrix != "toeplitz" and not self.correlated:
            raise PluresError(f"dp: matrix={self.matrix!r} is not used without correlated noise: add correlated=true")
        if self.mechanism == "duchi" and (self.trust != "nobody" or not self.noise):
            raise PluresError(
                "dp: mechanism='duchi' is what a client does to its own upload: say trust='nobody', and a noise above "
                "0, which is 1 / epsilon of a visit"
            )
        if self.quantile is not None and self.trust != "server":
            raise PluresError("dp: without a trusted server, no quantile of norms can be told: leave out quantile")

    @property
    def bound(self) -> Clip:
        """What shortens a change; with a quantile, one that is divided by the bound of the round."""
        return Clip(1.0 if self.quantile is not None else self.clip)

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        if self.clip == math.inf:
            return change, memory
        if self.mechanism == "duchi":
            numbers = (joined(change).double() / self.clip).nan_to_num(nan=0.0).clamp(-1, 1)
            count = counted_answers(1 / self.noise, numbers.shape[1])
            return said(numbers, 1 / self.noise, sending.keys, sending.coins(count)), memory
        if self.quantile is not None and BOUND in change:
            return self._voted(change, sending), memory
        clipped = self.bound.clipped(change)
        if self.trust != "nobody" or not self.noise:
            return clipped, memory
        flat, size = joined(clipped), self.noise * self.clip
        noisy = flat + size * sending.normal(flat.shape[1])
        return parted(noisy, {k: t[:1] for k, t in clipped.items()}), memory

    def _voted(self, change: Leaves, sending: Sending) -> Leaves:
        """Changes in units of the bound that was received, with a vote of +-1/2 on whether they are within it."""
        rest = {k: t for k, t in change.items() if k != BOUND}
        bound = sending.received[BOUND] if BOUND in sending.received else torch.ones(1)
        scaled = {k: t / bound.view(-1, *(1,) * (t.dim() - 1)).to(t.dtype) for k, t in rest.items()}
        within = joined(scaled).to(torch.float64).norm(dim=1) <= 1
        clipped = self.bound.clipped(scaled)
        return {k: clipped.get(k, (within.to(t.dtype) - 0.5)) for k, t in change.items()}

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        if self.mechanism == "duchi":
            return parted(self.clip * heard(payload, 1 / self.noise, joined(like).shape[1]), like)
        if self.trust == "nobody" or self.clip == math.inf:
            return payload
        if self.quantile is None or BOUND not in payload:
            return self.bound.clipped(payload)
        vote = payload[BOUND].clamp(-0.5, 0.5)
        rest = self.bound.clipped({k: t for k, t in payload.items() if k != BOUND})
        return {k: rest.get(k, vote) for k in payload}

    def total(self, payload: Leaves, like: Leaves, mass: float) -> Leaves:
        """The sum as it is: the bound is the clients' alone, for the server sees no single upload."""
        return payload

    def release(self, change: Leaves, total: Leaves, cohort: Cohort) -> Leaves:
        unit = cohort.sent[BOUND][:1] if self.quantile is not None else None
        made = {}
        for k, t in change.items():
            if k == BOUND:
                assert self.votes is not None
                made[k] = (t.double() + self._drawn(k, t, cohort, 0) * self.votes / total[k]).to(t.dtype)
                continue
            size = self.clip if unit is None else unit.double().view(-1, *(1,) * (t.dim() - 1))
            value = t.double() if unit is None else t.double() * size
            if self.noise and self.trust == "server":
                value = value + self._noise(k, t, cohort) * (self.noise * size) / total[k]
            made[k] = value.to(t.dtype)
        return made if self.quantile is not None or (self.noise and self.trust == "server") else change

    def _noise(self, name: str, like: Tensor, cohort: Cohort) -> Tensor:
        """Standard normal noise of a round, double; if correlated, made of that of all rounds so far."""
        if not self.correlated:
            return self._drawn(name, like, cohort, 0)
        made = torch.zeros_like(like, dtype=torch.float64)
        if self.matrix == "tree":
            for last, sign in turnover(cohort.round + 1):
                height = (last & -last).bit_length()
                made += sign * self._drawn(f"{name} {height}", like, cohort, cohort.round + 1 - last)
            return made
        shares = roots(cohort.round + 1, -0.5)
        for back, share in enumerate(shares.tolist()):
            made += share * self._drawn(name, like, cohort, back)
        return made

    def _drawn(self, name: str, like: Tensor, cohort: Cohort, back: int) -> Tensor:
        """Independent standard normal numbers of a leaf in the round so many rounds ago, double."""
        return cohort.normal(f"privacy {name}", *like.shape, round=cohort.round - back).to(like.device)

    def refusal(self, channel: Channel) -> str | None:
        if channel.name == CHOICES and channel.epsilon is not None and self.trust == "nobody":
            return None
        if channel.name == CHOICES:
            return (
                "a client's choice of a model tells of its data and gets no noise; take a method without clusters, or "
                "let choices be told by randomised response, where nobody is trusted: "
                "ifca(epsilon=1)+dp(trust=nobody)"
            )
        if channel.tensors:
            return (
                "it leaves beside what is clipped and gets no noise; take a method, or a model, without it (instead of "
                "the running statistics of BatchNorm: a model without, or personal ones, `+fedbn`)"
            )
        return None

    def beside(self, channel: Channel, values: Leaves, sending: Sending) -> Leaves:
        if self.losses or channel.name not in (LOSS, OBJECTIVE):
            return values
        return {k: torch.full_like(t, math.nan) for k, t in values.items()}

    def settled(self, expected: float) -> Private:
        """The stage with the noise on votes that follows from the expected size of a cohort, and that on changes."""
        if self.quantile is None:
            return self
        votes = expected / 20 if self.votes is None else self.votes
        return replace(self, votes=votes, noise=adaptive.shared_out(self.noise, votes))
