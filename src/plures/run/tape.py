"""Steps recorded on a CPU: their operations, written down once and repeated without the Python that led to them.

Most of the time of a small model's step is spent in ``vmap``, gradients, methods and modules, which in the end call a
few dozen tensor operations, the same in every step. A :class:`Tape` writes them down below all of that. What a
repetition does not need is left out, and the rest becomes one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plures.brief import brief
from plures.models import nested
from plures.run.padding import close

PASSED = frozenset({"alias", "detach", "lift_fresh"})
"""Operations that give their argument, as far as a repetition is concerned."""
SHAPED = frozenset({"_unsafe_view", "expand", "slice", "view"})
"""Operations that give their argument if its shape stays the same."""
ALWAYS = frozenset({"arange", "full", "ones", "scalar_tensor", "zeros"})
"""Operations that make the same tensor each time."""
REFUSED = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded
"""Marks of operations that read values into Python, or differ from time to time."""
UNDECLARED = {"aten::native_batch_norm": frozenset({"running_mean", "running_var"})}
"""Arguments that operations change although their signatures do not say so."""
FUNCTIONS = (
    *("_foreach_add_", "_foreach_copy_", "_foreach_mul_", "_log_softmax", "_log_softmax_backward_data", "_softmax"),
    *("abs", "add", "addmm", "amax", "baddbmm", "bmm", "cat", "clamp", "clone", "div", "eq", "exp", "gather", "ge"),
    *("gt", "index_select", "le", "log", "logical_and", "lt", "maximum", "mean", "minimum", "mm", "mul", "ne", "neg"),
    *("permute", "pow", "relu", "reciprocal", "rsub", "scatter", "select", "sigmoid", "sqrt", "squeeze", "stack"),
    *("sub", "sum", "tanh", "transpose", "unbind", "unsqueeze", "where"),
)
DIRECT: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in FUNCTIONS if hasattr(torch, name)},
    **{name: getattr(Tensor, name) for name in ("add_", "copy_", "div_", "expand", "mul_", "sub_", "view")},
}
"""Functions that do the same as operations of these names, with the same arguments, and take less time to call."""


@brief
@dataclass(eq=False)
class Value:
    """A tensor of a tape.

    Attributes:
        tensor: the tensor that was seen.
        base: the value whose memory a view uses; ``None`` if it has memory of its own.
        fixed: whether a repetition uses this very tensor.
    """

    tensor: Tensor
    base: Value | None
    fixed: bool

    @property
    def memory(self) -> Value:
        return self.base or self


@dataclass(eq=False)
class Call:
    """One operation, with values in place of tensors.

    Attributes:
        func: the operation.
        args, kwargs: its arguments.
        results: its results; ``None`` for what is no tensor, or one of the arguments.
        changed: values among the arguments that it changes.
    """

    func: Any
    args: list[Any]
    kwargs: dict[str, Any]
    results: list[Value | None]
    changed: list[Value]

    @property
    def made(self) -> list[Value]:
        """The tensors that it makes."""
        return values_in(self.results)

    @property
    def name(self) -> str:
        """Its name, such as ``add_``."""
        return str(self.func._schema.name).removeprefix("aten::")

    @property
    def read(self) -> list[Value]:
        """The values among its arguments."""
        return values_in([self.args, self.kwargs])

    @property
    def passes(self) -> bool:
        """Whether its result is its argument."""
        if len(self.read) != 1 or len(self.made) != 1:
            return False
        one, two = self.read[0].tensor, self.made[0].tensor
        alike = one.shape == two.shape and one.stride() == two.stride() and one.dtype == two.dtype
        return self.name in PASSED or (self.name in SHAPED and alike)


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations that run in its context.

    Attributes:
        calls: the operations so far.
        before: tensors from before the work that it has changed, in order, and copies of what they were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.before: dict[Value, Tensor] = {}
        self._values: dict[int, Value] = {}
        self._bases: dict[int, Value] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(tag in func.tags for tag in REFUSED) and not by_numbers(func, args):
            raise RuntimeError(f"{func} gives another result each time, or one that Python reads")
        given, named = [self._given(one) for one in args], {k: self._given(v) for k, v in (kwargs or {}).items()}
        arguments = func._schema.arguments
        written = {one.name for one in arguments if one.alias_info is not None and one.alias_info.is_write}
        written |= UNDECLARED.get(str(func._schema.name), frozenset())
        into = [value for one, value in zip(arguments, given, strict=False) if one.name in written]
        changed = values_in([into, [value for name, value in named.items() if name in written]])
        for one in changed:
            if one.memory.fixed and one not in self.before:
                self.before[one] = one.tensor.detach().clone()
        found = func(*args, **(kwargs or {}))
        same = {id(one.tensor) for one in changed}
        made = [one if isinstance(one, Tensor) and id(one) not in same else None for one in nested.ends(found)]
        results = [None if one is None else self._made(one) for one in made]
        self.calls.append(Call(func, given, named, results, changed))
        return found

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
    """

    share = 0.75

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        with Tape() as tape:
            work()
        replay = program(needed(tape.calls))
        if not close(self._from_start(tape, work), self._from_start(tape, replay), 1.0):
            raise RuntimeError("the repetition of a step differs from the step")
        return replay

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


def values_in(arguments: Any) -> list[Value]:
    return [one for one in nested.ends(arguments) if isinstance(one, Value)]


def needed(calls: list[Call]) -> list[Call]:
    """The calls that a repetition has to make.

    Results that are the same each time are fixed, as are views of fixed tensors. Calls are left out if nothing reads
    their results, and they change nothing that is read later or that exists before the work.
    """
    changed = {one.memory for call in calls for one in call.changed}
    same: set[Value] = set()
    found: list[Call] = []
    for call in calls:
        known = call.read if call.read else [None] * (call.name not in ALWAYS)
        if call.made and all(one in same for one in known) and not changed & {one.memory for one in call.made}:
            same.update(call.made)
            for one in call.made:
                one.fixed = True
        if call.changed or not call.made or not all(one.fixed for one in call.made):
            found.append(call)
    live: list[Call] = []
    read: set[Value] = set()
    for call in reversed(found):
        if read.intersection(call.made) or any(one.memory.fixed or one.memory in read for one in call.changed):
            live.append(call)
            read.update(call.read, (one.memory for one in call.read))
    return live[::-1]


class Program:
    """The text of a function that makes calls, and the objects that it names."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.lines: list[tuple[str, list[str]]] = []
        self._names: dict[int, str] = {}

    def text(self, one: Any) -> str:
        """An argument or a result."""
        if isinstance(one, list):
            return f"[{', '.join(map(self.text, one))}]"
        if isinstance(one, Value):
            return self.named(one.tensor.detach() if one.fixed else None, one, "v")
        return repr(one) if one is None or isinstance(one, bool | int) else self.named(one, one, "c")

    def named(self, held: Any, one: Any, letter: str) -> str:
        """The name of an object, which is kept."""
        name = self._names.setdefault(id(one), f"{letter}{len(self._names)}")
        if held is not None:
            self.objects.setdefault(name, held)
        return name

    def add(self, call: Call, arguments: str) -> None:
        """Add a call whose results have names from now on."""
        function = DIRECT.get(call.name, call.func._op)
        text = f"{self.named(function, function, 'f')}({arguments})"
        several = any("List" in str(one.type) for one in call.func._schema.returns)
        made = ["_" if one is None else self.text(one) for one in call.results]
        left = f"{', '.join(made)}{',' * several} = " if call.made else ""
        self.lines.append((left + text, [self.text(one) for one in [*call.read, *call.made] if not one.fixed]))

    def function(self) -> Callable[[], None]:
        """The function, which lets go of each result after its last use."""
        last = {name: number for number, (_, names) in enumerate(self.lines) for name in names}
        body = ["def repeat():"]
        for number, (line, names) in enumerate(self.lines):
            body.append(f"    {line}")
            if over := [name for name in dict.fromkeys(names) if last[name] == number]:
                body.append(f"    del {', '.join(over)}")
        exec("\n".join([*body, "    return None"]), self.objects)
        repeat: Callable[[], None] = torch.no_grad()(self.objects["repeat"])
        return repeat


def program(calls: list[Call]) -> Callable[[], None]:
    """One function that makes the calls, each only once if it has the same arguments again."""
    made = Program()
    changed = {one.memory for call in calls for one in call.changed}
    same: dict[Value, Value] = {}
    once: dict[tuple[str, str], Call] = {}

    def first(one: Any) -> Any:
        if isinstance(one, list):
            return [first(part) for part in one]
        return same.get(one, one) if isinstance(one, Value) else one

    for call in calls:
        call = replace(call, args=first(call.args), kwargs={k: first(v) for k, v in call.kwargs.items()})
        if call.passes:
            same[call.made[0]] = call.read[0]
            continue
        arguments = ", ".join([*map(made.text, call.args), *(f"{k}={made.text(v)}" for k, v in call.kwargs.items())])
        if call.made and not changed & memories([*call.read, *call.made]):
            before = once.setdefault((str(call.func), arguments), call)
            if before is not call:
                same |= zip(call.made, before.made, strict=True)
                continue
        made.add(call, arguments)
    return made.function()


def memories(values: Iterable[Value]) -> set[Value]:
    return {one.memory for one in values}
