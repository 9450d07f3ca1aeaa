"""Padding: whether a function of batches sees it, found out once by changing it; and how to do without.

Clients of different sizes work side by side on batches that are padded to one width, with weight 0 for what is no
example. A function that respects the weights, as :meth:`~plures.method.Batch.mean` does, gives what it gives for the
examples alone. One that averages by itself, counts the rows, or lets examples interact does not; clients then work only
beside others with batches of the same size, without padding.
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
from plures.models import nested

Example = tuple[Tensor, Tensor, Tensor | None]
"""Inputs, targets and weights of a batch; ``None`` when all are examples."""

Examples = Mapping[str, Example]
"""A client's batches by name."""

Verdicts = dict[tuple[int, ...], tuple[object, bool]]
"""What was found out, by the identity of what was asked about, which is kept so that its identity stays its own."""

TRIED = 16
"""Most examples of a batch on which a function is asked."""
ADDED = 3
"""Rows of padding that are tried."""
FAR = 8.0
"""How many times as large as they are the values that a function reads are tried, too."""


@dataclass(frozen=True)
class Asked:
    """Whom to ask whether padding matters.

    Attributes:
        fn: ``(examples, *rest) -> tensors`` of one client: what must not depend on padding.
        about: the functions and modules in it.
        what: what they are, for the warning.
    """

    fn: Callable[..., Any]
    about: tuple[object, ...]
    what: str

    def apart(self, verdicts: Verdicts, examples: Examples, rest: tuple[Any, ...]) -> bool:
        """Whether padding changes what the function gives; found out once, and said by a warning if it does.

        Where these examples cannot tell, clients work apart, and the next ones are asked.

        The function is asked about some examples of one client alone, with the last one repeated as padding, and with
        other padding. All values that it reads are changed, once a little and once by a lot, for a term may be switched
        off at the start.

        Args:
            verdicts: what is known already; the new verdict is added.
            examples: by name, ``(clients, most, ...)``.
            rest: what else the function reads, ``(clients, ...)``.
        """
        parts = tuple(part for one in self.about for part in _parts(one))
        key = tuple(map(id, parts))
        if key not in verdicts:
            with torch.autocast(next(iter(examples.values()))[0].device.type, enabled=False):
                found = self._sees(examples, rest)
            if found is None:
                return True
            verdicts[key] = parts, found
            if found:
                warnings.warn(
                    f"padding of batches changes the {self.what} {_named(self.about)}, so clients work only beside "
                    "others with batches of the same size: exact, but slower; average by batch.mean(values), or weigh "
                    "by batch.mask, to spare that",
                    PluresWarning,
                    stacklevel=2,
                )
        return verdicts[key][1]

    def _sees(self, examples: Examples, rest: tuple[Any, ...]) -> bool | None:
        """Whether the function sees padding; ``None`` where all examples are alike, so that padding cannot differ."""
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
            return not (_close(one, two, 1.0) and _close(alone, one, 0.5))

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
    """Whether there is no padding."""
    return all(weight is None or bool((weight > 0).all()) for *_, weight in examples.values())


def counts(examples: Examples) -> Tensor:
    """``(clients, batches)`` examples that are no padding, of batches ``(clients, most, ...)``."""
    found = [
        inputs.new_full(inputs.shape[:1], inputs.shape[1], dtype=torch.int64) if weight is None else (weight > 0).sum(1)
        for inputs, _, weight in examples.values()
    ]
    return torch.stack(found, 1)


def trimmed(example: Example, size: int) -> Example:
    """A client's batch without padding; where it has no example, one row of padding."""
    inputs, targets, weight = example
    return inputs[: max(1, size)], targets[: max(1, size)], None if size or weight is None else weight[:1]


def unpadded(
    mapped: Callable[[Callable[..., Any]], Callable[..., Any]],
    fn: Callable[..., Any],
    examples: Examples,
    rest: tuple[Any, ...],
) -> Any:
    """Map a function of one client and its examples over clients, those with equally many examples at once.

    Args:
        mapped: maps a function of one client over the leading axis of its arguments.
        fn: ``(examples, *rest) -> tensors``.
        examples: by name, ``(clients, most, ...)``.
        rest: what else it reads, ``(clients, ...)``.
    """
    sizes = counts(examples)
    found, order = [], []
    for size in torch.unique(sizes, dim=0):
        rows = (sizes == size).all(1).nonzero().squeeze(1)
        taken = dict(zip(examples, size.tolist(), strict=True))
        data = {name: tuple(t[rows] for t in example if t is not None) for name, example in examples.items()}

        def alone(data: dict[str, Any], *rest: Any, taken: dict[str, int] = taken) -> Any:
            return fn({k: trimmed((*some, None)[:3], taken[k]) for k, some in data.items()}, *rest)

        found.append(mapped(alone)(data, *nested.mapped(lambda t, rows=rows: t[rows], rest)))
        order.append(rows)
    back = torch.cat(order).argsort()
    return nested.mapped(lambda *each: torch.cat(each)[back], *found)


def _tried(example: Example, client: int, size: int, repeat: bool) -> Example:
    """Some examples of one client and padding after them: its last one again, or examples of others."""
    inputs, targets, weight = example
    places = torch.linspace(0, inputs.shape[0] * inputs.shape[1] - 1, ADDED).long().to(inputs.device)
    parts = []
    for values in (inputs, targets):
        last = values[client, max(0, size - 1)].expand(ADDED, *values.shape[2:])
        parts.append(torch.cat([values[client, :size], last if repeat else values.flatten(0, 1)[places]]))
    real = torch.arange(size + ADDED, device=inputs.device) < size
    return parts[0], parts[1], real.to(torch.float32 if weight is None else weight.dtype)


def _changed(value: Any, generator: torch.Generator, scale: float) -> Any:
    """Numbers changed by some percent, zeros by a little, and scaled; signs and integers as they were."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    drawn = torch.rand(2, *value.shape, generator=generator, dtype=torch.float64).to(value)
    changed = value * (0.9 + 0.2 * drawn[0]) + (value == 0) * drawn[1] * 0.1 / max(1, value.numel()) ** 0.5
    return scale * changed


def _close(one: Any, two: Any, power: float) -> bool:
    """Whether two results agree within rounding: to ``eps ** power`` where solvers may stop at that."""
    pairs = [(a, b) for a, b in zip(nested.ends(one), nested.ends(two), strict=True) if a.numel()]
    largest = [float(a.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) for a, _ in pairs]
    for (a, b), size in zip(pairs, largest, strict=True):
        eps = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
        far = 10 * (eps**power * size + eps * max(largest))
        if not torch.allclose(a.double(), b.double(), rtol=0, atol=far, equal_nan=True):
            return False
    return True


def _named(about: tuple[object, ...]) -> str:
    """What a reader knows functions and modules by."""
    names = []
    for one in about:
        while isinstance(one, functools.partial):
            one = one.func
        one = getattr(one, "module", one)
        if one is not None:
            names.append(getattr(one, "__qualname__", type(one).__name__).rpartition("<locals>.")[2])
    return " and ".join(map(repr, names))


def _parts(one: object) -> tuple[object, object]:
    """Object and function of a method, which Python binds anew each time."""
    return getattr(one, "__self__", None), getattr(one, "__func__", one)
