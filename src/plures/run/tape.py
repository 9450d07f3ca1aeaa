"""Steps recorded on a CPU: their operations, written down once and repeated without the Python that led to them.

Most of the time of a small model's step is spent in ``vmap``, gradients, methods and modules, which in the end call a
few dozen tensor operations, the same in every step. A :class:`Tape` writes them down below all of that. What a
repetition does not need is left out, the rest is simplified (:mod:`plures.run.simplify`) and becomes one function
(:mod:`plures.run.script`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plures.models import nested
from plures.models.modes import Mode
from plures.run.calls import Call, Value, values_in
from plures.run.padding import close
from plures.run.script import script
from plures.run.simplify import PLAIN, RULES, distinct, needed, simplified

log = logging.getLogger("plures")

ROUNDED = 0.75
"""How far a simplified step may be from the step: this power of the smallest relative difference of two numbers."""
REFUSED = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded
"""Marks of operations that read values into Python, or differ from time to time."""
EACH = "aten::_foreach_"
"""What the names of operations on lists of tensors begin with."""
UNDECLARED = {"aten::native_batch_norm": frozenset({"running_mean", "running_var"})}
"""Arguments that operations change although their signatures do not say so."""


class Tape(Mode):  # type: ignore[no-untyped-call]
    """Writes down the operations that run in its context.

    Attributes:
        calls: the operations so far.
        before: tensors from before the work that it has changed, in order, and copies of what they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.before: dict[Value, Tensor] = {}
        self._values: dict[int, Value] = {}
        self._bases: dict[int, Value] = {}

    def done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(tag in func.tags for tag in REFUSED) and not by_numbers(func, args):
            raise RuntimeError(f"{func} gives another result each time, or one that Python reads")
        if func._schema.name.startswith(EACH):
            return self._each(func, args, kwargs)
        given, named = [self._given(one) for one in args], {k: self._given(v) for k, v in kwargs.items()}
        arguments = func._schema.arguments
        written = {one.name for one in arguments if one.alias_info is not None and one.alias_info.is_write}
        written |= UNDECLARED.get(str(func._schema.name), frozenset())
        into = [value for one, value in zip(arguments, given, strict=False) if one.name in written]
        changed = values_in([into, [value for name, value in named.items() if name in written]])
        for one in changed:
            if one.memory.fixed and one not in self.before:
                self.before[one] = one.tensor.detach().clone()
        found = func(*args, **kwargs)
        same = {id(one.tensor) for one in changed}
        made = [one if isinstance(one, Tensor) and id(one) not in same else None for one in nested.ends(found)]
        results = [None if one is None else self._made(one) for one in made]
        self.calls.append(Call(func, given, named, results, changed))
        return found

    def _each(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """An operation on each tensor of a list, as one call for each."""
        single = getattr(torch.ops.aten, func._schema.name.removeprefix(EACH))
        made = []
        with self:
            for place in range(len(args[0])):
                own = [one[place] if isinstance(one, list | tuple) else one for one in args]
                made.append(single(*own, **kwargs))
        return made if func._schema.returns else None

    def _given(self, argument: Any) -> Any:
        """An argument with values in place of tensors; a tensor that no operation made exists before the work."""
        if isinstance(argument, list | tuple):
            return [self._given(one) for one in argument]
        if not isinstance(argument, Tensor):
            return argument
        if id(argument) not in self._values:
            base = self._bases.get(argument.untyped_storage().data_ptr())
            if base is not None and not base.fixed:
                raise RuntimeError("it reads the result of an operation in a way that cannot be followed")
            self._keep(argument, base, fixed=True)
        return self._values[id(argument)]

    def _made(self, tensor: Tensor) -> Value:
        """The value of a result: a tensor of its own, or a view of another one."""
        if id(tensor) not in self._values:
            base = self._bases.get(tensor.untyped_storage().data_ptr())
            self._keep(tensor, base, fixed=base is not None and base.fixed)
        return self._values[id(tensor)]

    def _keep(self, tensor: Tensor, base: Value | None, *, fixed: bool) -> None:
        value = self._values[id(tensor)] = Value(tensor, base, fixed)
        if base is None and tensor.numel():
            self._bases[tensor.untyped_storage().data_ptr()] = value


class Tapes:
    """Records work on a CPU; see :class:`~plures.run.capture.Recorder`.

    The repetition is compared with the work itself once, so that what a tape cannot see, such as a value that Python
    counts up, is an error here and not a wrong result later.

    Args:
        still: tensors that never change, such as the targets of all examples.
    """

    share = 0.75

    def __init__(self, still: Sequence[Tensor] = ()) -> None:
        self.still = still

    def __call__(self, work: Callable[[], None]) -> Callable[[int], None]:
        with Tape() as tape:
            work()
        wanted, calls = self._from_start(tape, work), needed(tape.calls)
        for rules in (RULES, PLAIN, ()):
            try:
                replay = script(simplified(calls, self.still, rules) if rules else distinct(calls))
                found = self._from_start(tape, partial(replay, 1))
            except RuntimeError as error:
                log.debug("a recorded step is not simplified: %s", str(error).strip().partition("\n")[0])
                continue
            if close(wanted, found, ROUNDED if rules else 1.0):
                return replay
        raise RuntimeError("the repetition of a step differs from the step")

    @staticmethod
    def _from_start(tape: Tape, work: Callable[[], None]) -> list[Tensor]:
        """What work changes what the tape changed into, from the same start."""
        for one, value in reversed(tape.before.items()):
            one.tensor.detach().copy_(value)
        work()
        return [one.tensor.detach().clone() for one in tape.before]


def by_numbers(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation indexes by numbers, so that the size of its result does not depend on values."""
    if func not in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
        return False
    return all(one is None or one.dtype not in (torch.bool, torch.uint8) for one in args[1])
