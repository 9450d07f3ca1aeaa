"""Several inputs of every example, by name, handled like one tensor with the rows first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.utils._pytree import MappingKey, register_pytree_node

from plures.content import alike
from plures.errors import PluresError
from plures.federation.options import number_type

Features = tuple[int, ...] | dict[str, tuple[int, ...]]
"""Shape of one example's input, or the shapes of several inputs by name."""
T = TypeVar("T")
Kind = str | dict[str, str]
"""Name of the inputs' type, or of the types of several inputs by name."""


class Inputs:
    """Several inputs of the same examples, such as tokens with an attention mask, or a picture with a table.

    Like one tensor, it is indexed by rows (``inputs[rows]``); a name gives one of its tensors (``inputs["mask"]``). A
    network gets them as keyword arguments; those called ``0``, ``1``, ... as positional arguments.

    Args:
        parts: tensors by name, all with the same number of rows, their first dimension.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = dict(parts)

    @overload
    def __getitem__(self, rows: str) -> Tensor: ...
    @overload
    def __getitem__(self, rows: slice | int | Tensor | None) -> Inputs: ...
    def __getitem__(self, rows: Any) -> Tensor | Inputs:
        return self.parts[rows] if isinstance(rows, str) else self.map(lambda t: t[rows])

    def __iter__(self) -> Iterator[Inputs]:
        each = zip(*(t.unbind() for t in self.parts.values()), strict=True)
        return (Inputs(dict(zip(self.parts, row, strict=True))) for row in each)

    def __len__(self) -> int:
        return len(self.lead)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inputs) and alike(self.parts, other.parts)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """One line without data."""
        return f"Inputs({', '.join(f'{k}={t.dtype} {tuple(t.shape)}' for k, t in self.parts.items())})"

    def map(self, fn: Callable[[Tensor], Tensor]) -> Inputs:
        """The same inputs with a function applied to each tensor."""
        return Inputs({name: fn(t) for name, t in self.parts.items()})

    @property
    def lead(self) -> Tensor:
        """The first of the tensors, whose leading dimensions are those of all."""
        return next(iter(self.parts.values()))

    @property
    def device(self) -> torch.device:
        return self.lead.device

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.parts.values())

    @property
    def arguments(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments of a network."""
        if all(name.isdecimal() for name in self.parts):
            return tuple(self.parts.values()), {}
        return (), self.parts


register_pytree_node(
    Inputs,
    lambda inputs: (list(inputs.parts.values()), list(inputs.parts)),
    lambda values, names: Inputs(dict(zip(names, values, strict=True))),
    serialized_type_name="plures.federation.Inputs",
    flatten_with_keys_fn=lambda inputs: ([(MappingKey(k), t) for k, t in inputs.parts.items()], list(inputs.parts)),
)


def lead(inputs: Tensor | Inputs) -> Tensor:
    """A tensor with the leading dimensions and the device of the inputs."""
    return inputs if isinstance(inputs, Tensor) else inputs.lead


def parts(inputs: Tensor | Inputs) -> list[Tensor]:
    """The tensors of the inputs."""
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.parts.values())


def one_tensor(inputs: Tensor | Inputs, what: str) -> Tensor:
    """Inputs that are one tensor; several are refused.

    Args:
        inputs: the inputs.
        what: what needs one tensor, for the message.
    """
    if isinstance(inputs, Tensor):
        return inputs
    raise PluresError(f"{what} reads one input tensor, but examples have several: {', '.join(inputs.parts)}")


def told_apart(name: str, inputs: Tensor | Inputs) -> dict[str, Tensor]:
    """The tensors under the names by which files store them: ``name`` itself, or ``name.part`` for each of several."""
    if isinstance(inputs, Tensor):
        return {name: inputs}
    return {f"{name}.{part}": t for part, t in inputs.parts.items()}


def joined(name: str, tensors: Mapping[str, T]) -> T | dict[str, T] | None:
    """What :func:`told_apart` stored, one or several by name; ``None`` if nothing was."""
    if name in tensors:
        return tensors[name]
    start = f"{name}."
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)} or None


def as_inputs(found: Tensor | Mapping[str, Tensor]) -> Tensor | Inputs:
    """One tensor, or several by name."""
    return found if isinstance(found, Tensor) else Inputs(found)


def as_named(raw: Any, inputs: Inputs, name: str) -> dict[str, Tensor]:
    """Rows as tensors by the names of other inputs, in their own types.

    Args:
        raw: inputs, or a mapping of their names to tensors or arrays; or a tuple of them, for positional ones.
        inputs: the others.
        name: of their federation, for messages.
    """
    given = named(raw)
    if given is None or set(given) != set(inputs.parts):
        raise PluresError(f"{name!r} has the inputs {', '.join(inputs.parts)}: give a mapping with these names")
    return {k: torch.as_tensor(given[k]) for k in inputs.parts}


def like(raw: Any, inputs: Inputs, name: str) -> Inputs:
    """Rows as inputs of the same names, shapes and types as others.

    Args:
        raw: see :func:`as_named`.
        inputs: the others.
        name: of their federation, for messages.
    """
    given = as_named(raw, inputs, name)
    found = {k: given[k].to(t.device, t.dtype) for k, t in inputs.parts.items()}
    for key, t in found.items():
        if t.shape[1:] != inputs[key].shape[1:] or len(t) != len(next(iter(found.values()))):
            raise PluresError(
                f"input {key!r} has shape {tuple(t.shape)}, but {name!r} needs (n, *{tuple(inputs[key].shape[1:])}), "
                "with as many rows as the other inputs"
            )
    return Inputs(found)


def named(raw: Any) -> dict[str, Any] | None:
    """Several inputs by name, from a mapping or, by their positions, from a tuple; ``None`` for anything else."""
    if isinstance(raw, Inputs):
        return {**raw.parts}
    if isinstance(raw, Mapping):
        return {str(name): part for name, part in raw.items()}
    if isinstance(raw, tuple):
        return {str(place): part for place, part in enumerate(raw)}
    return None


def shape_of(inputs: Tensor | Inputs) -> Features:
    """Shape of one example's input, or shapes by name."""
    if isinstance(inputs, Tensor):
        return tuple(inputs.shape[1:])
    return {name: tuple(t.shape[1:]) for name, t in inputs.parts.items()}


def shape_text(features: Features) -> str:
    """Shapes for messages and reports."""
    if isinstance(features, dict):
        return ", ".join(f"{name} {shape_text(shape)}" for name, shape in features.items())
    return " x ".join(map(str, features)) or "scalar"


def kind_of(inputs: Tensor | Inputs) -> Kind:
    """Name of the inputs' type, such as ``float32``, or of each type."""
    if isinstance(inputs, Tensor):
        return str(inputs.dtype).removeprefix("torch.")
    return {name: str(t.dtype).removeprefix("torch.") for name, t in inputs.parts.items()}


def zeros(rows: int, features: Any, kind: Kind) -> Tensor | Inputs | None:
    """Inputs of zeros; ``None`` if a type is not numeric.

    Args:
        rows: their number.
        features: shape of one example's input, or shapes by name.
        kind: as :func:`kind_of` names it.
    """
    if isinstance(kind, str):
        dtype = number_type(kind)
        return None if dtype is None else torch.zeros(rows, *features, dtype=dtype)
    parts = {name: zeros(rows, features[name], one) for name, one in kind.items()}
    found = {name: t for name, t in parts.items() if isinstance(t, Tensor)}
    return Inputs(found) if len(found) == len(kind) else None
