"""Recorded operations as one function of TorchScript: repeated without Python, and so beside other threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from plures.run.calls import Call, Value

LAYOUTS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2, torch.channels_last_3d: 3}
"""Numbers of memory formats in TorchScript."""
TYPES = {"List[int]": "int[]", "List[float]": "float[]", "List[bool]": "bool[]", "Device": "Device", "str": "str"}
"""Types of constants in the text of a graph, by their names in the schemas of operations."""


class Script:
    """The text of a graph that makes some calls, as often as it is told, and what it is given.

    Tensors from before the calls and constants are arguments, so that the text has no values in it.
    """

    def __init__(self) -> None:
        self.given: dict[str, tuple[str, Any]] = {}
        self.lines: list[str] = []
        self._names: dict[Value, str] = {}
        self._constants: dict[tuple[str, str], str] = {}
        self._count = 0

    def add(self, call: Call) -> None:
        """Add a call whose results have names from now on."""
        schema = call.func._schema
        arguments = []
        for place, one in enumerate(schema.arguments):
            value = call.args[place] if place < len(call.args) else call.kwargs.get(one.name, one.default_value)
            converted = call.name == "_to_copy" and isinstance(value, int | float)
            arguments.append(self.argument(value, str(one.type), converted=converted))
        made = f"{schema.name}({', '.join(arguments)})"
        names = [self.fresh() if one is None else self.named(one) for one in call.results]
        kinds = [str(one.type) for one in schema.returns]
        if kinds == ["List[Tensor]"]:
            whole = self.fresh()
            self.lines += [f"{whole} : Tensor[] = {made}", f"{each(names)} = prim::ListUnpack({whole})"]
        elif set(kinds) == {"Tensor"} and len(kinds) == len(names):
            self.lines.append(f"{each(names)} = {made}")
        else:
            raise RuntimeError(f"{call.func} returns something other than tensors")

    def argument(self, value: Any, kind: str, *, converted: bool = False) -> str:
        """An argument of an operation.

        Args:
            value: the argument.
            kind: its type in the operation's schema.
            converted: whether a number is a tensor for this operation; others take numbers.
        """
        if isinstance(value, Value):
            return self.named(value)
        if isinstance(value, list) and any(isinstance(one, Value) for one in value):
            name, parts = self.fresh(), ", ".join(self.argument(one, kind) for one in value)
            optional = "?" * any(one is None for one in value)
            self.lines.append(f"{name} : Tensor{optional}[] = prim::ListConstruct({parts})")
            return name
        if kind == "Tensor" and converted:
            return self.held(torch.tensor(value), kind)
        return "%none" if value is None else self.constant(value, kind)

    def constant(self, value: Any, kind: str) -> str:
        """The name of a constant."""
        kind = kind.removeprefix("Optional[").removesuffix("]" * kind.startswith("Optional["))
        if isinstance(value, torch.memory_format):
            value = LAYOUTS[value]
        if kind == "float":
            value = float(value)
        plain = {bool: "bool", int: "int", float: "float", complex: "complex"}
        text = TYPES.get(kind) or plain.get(type(value), "int")
        key = text, repr(value)
        if key not in self._constants:
            self._constants[key] = self.held(value, text)
        return self._constants[key]

    def named(self, one: Value) -> str:
        """The name of a tensor."""
        if one not in self._names:
            self._names[one] = self.held(one.tensor.detach(), "Tensor") if one.fixed else self.fresh()
        return self._names[one]

    def held(self, value: Any, kind: str) -> str:
        """The name of something that is given."""
        name = f"%g{len(self.given)}"
        self.given[name] = kind, value
        return name

    def fresh(self) -> str:
        """The name of a result."""
        self._count += 1
        return f"%r{self._count}"

    def function(self) -> Callable[[int], None]:
        """The function, which takes the number of times."""
        given = ", ".join([f"{name} : {kind}" for name, (kind, _) in self.given.items()] + ["%times : int"])
        text = "\n".join(
            [
                f"graph({given}):",
                " %none : NoneType = prim::Constant()",
                " %on : bool = prim::Constant[value=1]()",
                " prim::Loop(%times, %on)",
                "  block0(%number : int):",
                *(f"   {line}" for line in self.lines),
                "   -> (%on)",
                " return (%none)",
            ]
        )
        work = torch._C._create_function_from_graph("repeat", torch._C.parse_ir(text))
        held = [value for _, value in self.given.values()]

        def repeat(times: int) -> None:
            with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                work(*held, times)

        return repeat


def each(names: list[str]) -> str:
    return ", ".join(f"{name} : Tensor" for name in names)


def script(calls: list[Call]) -> Callable[[int], None]:
    """One function that makes the calls as often as it is told.

    Raises:
        RuntimeError: if TorchScript does not know one of the operations.
    """
    made = Script()
    for call in calls:
        made.add(call)
    return made.function()
