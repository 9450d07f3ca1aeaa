"""Error feedback: what a lossy stage leaves out of a change is sent later."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from plures.errors import PluresError
from plures.method import Channel, Codec, Cohort, Leaves, Line, Sending, Wire, lay


@dataclass(frozen=True)
class Feedback(Codec):
    """Error feedback: what stages leave out of a change, the client adds to its next one.

    ``sent = Q(m + d)``, ``m <- m + d - sent``, so that all that was sent and the memory sum up to all changes. The
    memory of a client that is seldom drawn is as old as its last visit.

    By name it stands behind the stages that it is for: ``topk+quantize+feedback``.

    Attributes:
        stages: what encodes ``m + d``; without any, those that it is joined to.
    """

    stages: Wire = ()

    def __post_init__(self) -> None:
        me = type(self).__name__
        if odd := next((stage for stage in self.stages if not isinstance(stage, Codec)), None):
            raise PluresError(f"{me}: {odd!r} is not a stage; write the stages before it, topk+{me.lower()}")
        if any(isinstance(stage, Feedback) for stage in self.stages):
            raise PluresError(f"{me}: its stages remember what they leave out already; leave one feedback out")
        if longer := next((type(stage).__name__ for stage in self.stages if stage.lengthens), None):
            raise PluresError(
                f"{me}: {longer} sends more than there is, so what is remembered would grow without end; give "
                f"{longer} unbiased=False"
            )
        if summing := next((type(stage).__name__ for stage in self.stages if stage.sums), None):
            raise PluresError(f"{me}: nobody can decode a single payload of {summing}, so nobody knows its error")

    def behind(self, before: Wire) -> Wire:
        down, up = (tuple(stage for stage in before if stage.down is side) for side in (True, False))
        if self.down and down:
            raise PluresError("Downlink: the downloads are encoded already; leave one downlink out")
        return (*down, *up, self) if self.stages or not up else (*down, replace(self, stages=up))

    def start(self, change: Leaves) -> Leaves:
        if not self.stages:
            me = type(self).__name__
            raise PluresError(f"wire stage {me} has no stages: put it behind those that leave out, `topk+{me.lower()}`")
        inner = self.inner(change).memory
        return {f"error:{k}": torch.zeros_like(t) for k, t in change.items()} | {f"in:{k}": t for k, t in inner.items()}

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        line = self.inner({k: torch.zeros_like(t[:1]) for k, t in change.items()})
        whole = {k: memory[f"error:{k}"] + d for k, d in change.items()}
        own = {k.removeprefix("in:"): t for k, t in memory.items() if k.startswith("in:")}
        payload, own = line.encode(whole, own, sending)
        sent = line.decode(payload)
        errors = {f"error:{k}": t - sent[k] for k, t in whole.items()}
        return payload, errors | {f"in:{k}": t for k, t in own.items()}

    def decode(self, payload: Leaves, like: Leaves) -> Leaves:
        return self.inner(like).decode(payload)

    def inner(self, change: Leaves) -> Line:
        """The stages, laid for a change ``(1, ...)``."""
        return lay(self.stages, change)

    def release(self, change: Leaves, total: Leaves, cohort: Cohort) -> Leaves:
        for stage in self.stages:
            change = stage.release(change, total, cohort)
        return change

    def refusal(self, channel: Channel) -> str | None:
        return next((reason for stage in self.stages if (reason := stage.refusal(channel))), None)

    def beside(self, channel: Channel, values: Leaves, sending: Sending) -> Leaves:
        for stage in self.stages:
            values = stage.beside(channel, values, sending)
        return values
