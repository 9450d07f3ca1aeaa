"""A fake CUDA graph: records the operations of some work on the CPU, and repeats them on the same memory.

It has the same limits as a real graph: numbers that Python computed while the work was recorded stay as they
were, new tensors take the memory of the recorded ones, and work that waits for a value is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plures.run import capture

aten = torch.ops.aten
WAITING = (aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim)
"""Operations that bring a value to the CPU, or whose result has a size that depends on values."""


class Operations(TorchDispatchMode):
    """Notes operations with their operands and results."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in WAITING:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing\nmore lines")
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            given = {id(t) for t in tensors([*args, *(kwargs or {}).values()])}
            fresh = [t for t in tensors(made) if id(t) not in given]
            self.done.append((func, args, kwargs or {}, fresh))
        return made


def tensors(made: Any) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, list | tuple):
        for part in made:
            yield from tensors(part)


class Pretended:
    """A recorder on the CPU that counts recordings and replays."""

    share = 0.5
    recorded = replayed = 0

    def __init__(self, still: Sequence[Tensor] = ()) -> None: ...

    def __call__(self, work: Callable[[], None]) -> Callable[[int], None]:
        operations = Operations()
        with operations:
            work()
        type(self).recorded += 1

        def replay(times: int) -> None:
            for _ in range(times):
                once()

        def once() -> None:
            type(self).replayed += 1
            for func, args, kwargs, fresh in operations.done:
                given = {id(t) for t in tensors([*args, *kwargs.values()])}
                made = [t for t in tensors(func(*args, **kwargs)) if id(t) not in given]
                for held, value in zip(fresh, made, strict=True):
                    held.copy_(value)

        return replay


@contextmanager
def pretended() -> Iterator[type[Pretended]]:
    """Allow capturing steps on the CPU; yields the counter."""

    class Counted(Pretended):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(capture.RECORDERS, "cpu", Counted)  # type: ignore[arg-type]
        yield Counted
