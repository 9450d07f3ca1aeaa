"""Padding: test once, by changing it, whether a function of batches depends on it; if so, work without it.

Clients of different sizes train side by side on batches that are padded to one width; padded rows, and they alone, have
weight 0. A function that respects the weights, as :meth:`~plures.method.Batch.mean` does, returns what it returns for
the examples alone. One that takes its own average, counts rows, or lets examples interact does not; then only clients
with batches of the same size are stacked, without padding.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plures.errors import PluresWarning
from plures.federation.inputs import Inputs
from plures.models import nested

Example = tuple[Tensor | Inputs, Tensor, Tensor | None]
"""Inputs, targets and weights of a batch; the weights are ``None`` if no row is padding and all count alike."""

Examples = Mapping[str, Example]
"""A client's batches by name."""

Verdicts = dict[tuple[int, ...], tuple[object, bool]]
"""Identity of the tested functions -> the functions, kept alive so that the identity stays valid, and the verdict."""

TRIED = 16
"""Largest number of examples on which a function is tested."""
ADDED = 3
"""Rows of padding in a test."""
FAR = 8.0
"""Factor by which the values that a function reads are scaled in a second test."""


@dataclass(frozen=True)
class PaddingTest:
    """A function to test for dependence on padding.

    Attributes:
        fn: ``(examples, *rest) -> tensors`` of one client, which must not depend on padding.
        about: the functions and modules in it.
        what: what they are, for the warning.
    """

    fn: Callable[..., Any]
    about: tuple[object, ...]
    what: str

    def apart(self, verdicts: Verdicts, examples: Examples, rest: tuple[Any, ...]) -> bool:
        """Whether padding changes the function's result; tested once, with a warning if it does.

        If these examples cannot decide it, the answer is yes, and the next examples are tested.

        The function is called with some examples of one client alone, with the last one repeated as padding, and with
        other padding. All values that it reads are perturbed, once slightly and once strongly, because a term may be
        zero at the start.

        Args:
            verdicts: known verdicts; the new one is added.
            examples: by name, ``(clients, most, ...)``.
            rest: further arguments of the function, ``(clients, ...)``.
        """
        held = tuple(part for one in self.about for part in identity(one))
        key = tuple(map(id, held))
        if key not in verdicts:
            with torch.autocast(next(iter(examples.values()))[1].device.type, enabled=False):
                found = self._sees(examples, rest)
            if found is None:
                return True
            verdicts[key] = held, found
            if found:
                warnings.warn(
                    f"padding of batches changes the {self.what} {_named(self.about)}, so only clients with batches of "
                    "the same size are stacked, which is exact but slower: average with batch.mean(values), or weight "
                    "by batch.mask, to avoid this",
                    PluresWarning,
                    stacklevel=2,
                )
        return verdicts[key][1]

    def _sees(self, examples: Examples, rest: tuple[Any, ...]) -> bool | None:
        """Whether the function depends on padding; ``None`` if all examples are equal, so that it cannot be seen."""
        sizes = counts(examples)
        client = int((sizes > 0).sum(1).argmax())
        taken = dict(zip(examples, sizes[client].clamp(max=TRIED).tolist(), strict=True))
        repeated, strange = (
            {k: _tried(e, client, taken[k], how) for k, e in examples.items()} for how in (True, False)
        )
        if all(map(torch.equal, nested.ends(repeated), nested.ends(strange))):
            return None
        bare = {k: trimmed(e, taken[k]) for k, e in repeated.items()}
        generator = torch.Generator().manual_seed(0)

        def differs(rest: tuple[Any, ...]) -> bool:
            alone, one, two = (self.fn(some, *rest) for some in (bare, repeated, strange))
            return not (close(one, two, 1.0) and close(alone, one, 0.5))

        own = nested.mapped(lambda t: t[client], rest)
        for scale in (1.0, FAR):
            try:
                found = differs(nested.mapped(lambda t, scale=scale: _changed(t, generator, scale), own))
            except (RuntimeError, ValueError, ArithmeticError):  # a state that never occurs may be refused
                found = scale == 1.0 and differs(own)
            if found:
                return True
        return False


def mask(counts: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """``(clients, width)`` 1 for an example and 0 for padding, given how many examples each client has."""
    return (torch.arange(width, device=counts.device) < counts.unsqueeze(1)).to(dtype)


def full(examples: Examples) -> bool:
    """Whether no row is padding."""
    return all(weight is None or bool((weight > 0).all()) for *_, weight in examples.values())


def counts(examples: Examples) -> Tensor:
    """``(clients, batches)`` number of rows that are not padding, of batches ``(clients, most, ...)``."""
    found = [
        targets.new_full(targets.shape[:1], targets.shape[1], dtype=torch.int64)
        if weight is None
        else (weight > 0).sum(1)
        for _, targets, weight in examples.values()
    ]
    return torch.stack(found, 1)


def counts_alike(example: Example) -> bool:
    """Whether all rows that are not padding have weight 1."""
    weight = example[2]
    return weight is None or bool(((weight == 0) | (weight == 1)).all())


def trimmed(example: Example, size: int, alike: bool = True) -> Example:
    """A client's batch without padding; one row of padding if it has no example.

    Args:
        example: the batch.
        size: number of rows that are not padding.
        alike: whether all of them have weight 1, so that no weights are needed.
    """
    inputs, targets, weight = example
    most = max(1, size)
    return inputs[:most], targets[:most], None if weight is None or (size and alike) else weight[:most]


def unpadded(
    mapped: Callable[[Callable[..., Any]], Callable[..., Any]],
    fn: Callable[..., Any],
    examples: Examples,
    rest: tuple[Any, ...],
) -> Any:
    """Map a function of one client and its examples over clients, grouped by their number of examples.

    Args:
        mapped: maps a function of one client over the leading axis of its arguments.
        fn: ``(examples, *rest) -> tensors``.
        examples: by name, ``(clients, most, ...)``.
        rest: further arguments, ``(clients, ...)``.
    """
    sizes, alike = counts(examples), {name: counts_alike(example) for name, example in examples.items()}
    found, order = [], []
    for size in torch.unique(sizes, dim=0):
        rows = (sizes == size).all(1).nonzero().squeeze(1)
        taken = dict(zip(examples, size.tolist(), strict=True))
        data = {name: tuple(t[rows] for t in example if t is not None) for name, example in examples.items()}

        def alone(data: dict[str, Any], *rest: Any, taken: dict[str, int] = taken) -> Any:
            return fn({k: trimmed((*some, None)[:3], taken[k], alike[k]) for k, some in data.items()}, *rest)

        found.append(mapped(alone)(data, *nested.mapped(lambda t, rows=rows: t[rows], rest)))
        order.append(rows)
    back = torch.cat(order).argsort()
    return nested.mapped(lambda *each: torch.cat(each)[back], *found)


def _tried(example: Example, client: int, size: int, repeat: bool) -> Example:
    """Some examples of one client followed by padding: its last example repeated, or examples of other clients."""
    inputs, targets, weight = example
    places = torch.linspace(0, targets.shape[0] * targets.shape[1] - 1, ADDED).long().to(targets.device)

    def padded(values: Tensor) -> Tensor:
        last = values[client, max(0, size - 1)].expand(ADDED, *values.shape[2:])
        return torch.cat([values[client, :size], last if repeat else values.flatten(0, 1)[places]])

    real = torch.arange(size + ADDED, device=targets.device) < size
    return nested.mapped(padded, inputs), padded(targets), real.to(torch.float32 if weight is None else weight.dtype)


def _changed(value: Any, generator: torch.Generator, scale: float) -> Any:
    """Floating-point values changed by some percent, zeros by a little, then scaled; signs and integers stay."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    drawn = torch.rand(2, *value.shape, generator=generator, dtype=torch.float64).to(value)
    changed = value * (0.9 + 0.2 * drawn[0]) + (value == 0) * drawn[1] * 0.1 / max(1, value.numel()) ** 0.5
    return scale * changed


def close(one: Any, two: Any, power: float) -> bool:
    """Whether two results agree within rounding, or to ``eps ** power``, where iterative solvers may stop."""
    pairs = [(a, b) for a, b in zip(nested.ends(one), nested.ends(two), strict=True) if a.numel()]
    largest = [float(a.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) for a, _ in pairs]
    for (a, b), size in zip(pairs, largest, strict=True):
        eps = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
        far = 10 * (eps**power * size + eps * max(largest))
        if not torch.allclose(a.double(), b.double(), rtol=0, atol=far, equal_nan=True):
            return False
    return True


def _named(about: tuple[object, ...]) -> str:
    """Names of functions and modules, for a message."""
    names = []
    for one in about:
        while isinstance(one, functools.partial):
            one = one.func
        one = getattr(one, "module", one)
        if one is not None:
            names.append(getattr(one, "__qualname__", type(one).__name__).rpartition("<locals>.")[2])
    return " and ".join(map(repr, names))


def identity(one: object) -> tuple[object, object]:
    """Object and function of a bound method, because Python creates a new bound method at each access."""
    return getattr(one, "__self__", None), getattr(one, "__func__", one)
