"""One augmentation: what it can change, and the catalogue of those that come with plures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from plures.augment.key import Key
from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError

AUGMENTATIONS: dict[str, type[Part]] = {}
"""The augmentations that come with plures, by name."""


@brief
@by_content
@dataclass(frozen=True)
class Mixture:
    """A batch each of whose examples counts for two targets.

    The loss of an example is ``share * loss(targets) + (1 - share) * loss(others)``.

    Attributes:
        inputs: ``(n, *features)``; one tensor, or several by name.
        targets: ``(n, *target)``.
        others: ``(n, *target)``.
        share: ``(n,)`` in (0, 1).
    """

    inputs: Any
    targets: Tensor
    others: Tensor
    share: Tensor


class Several(Protocol):
    """Several inputs by name, as :class:`plures.federation.Inputs`."""

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """The tensors, by name."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Several:
        """The same inputs with a function applied to each tensor."""


def each(fn: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Inputs with a function applied to each of their tensors."""
    return fn(inputs) if isinstance(inputs, Tensor) else inputs.map(fn)


def tensors(inputs: Any) -> Mapping[str, Tensor]:
    """The tensors of inputs, by what messages call them."""
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    several = inputs.parts.items() if isinstance(getattr(inputs, "parts", None), Mapping) else ()
    return {f"input {name!r}": t for name, t in several}


Changed = tuple[Any, Tensor] | Mixture
Change = Callable[[Key, Any, Tensor], Changed]
"""``(key, inputs (n, *features), targets (n, *target)) -> (inputs, targets)``, of the same shapes and types.

Inputs are one tensor, or several by name (:class:`plures.federation.Inputs`).
"""


class Part:
    """One augmentation: a function of a key, inputs ``(n, *features)`` and targets ``(n, *target)``.

    Attributes:
        name: its name in :data:`AUGMENTATIONS`.
        reads: what inputs it changes: ``pictures`` ``([channels,] height, width)``, ``series`` ``(channels, time)``,
            ``numbers`` of any shape, ``tokens``.
        moves: whether it moves pixels or times, so that a target for each of them would have to move along.
    """

    name: ClassVar[str] = ""
    reads: ClassVar[Literal["pictures", "series", "numbers", "tokens"]] = "numbers"
    moves: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        AUGMENTATIONS[cls.name] = cls

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        raise NotImplementedError

    def check(self, features: tuple[int, ...], dtype: torch.dtype, target: tuple[int, ...]) -> None:
        """Refuse inputs and targets that it cannot change.

        Args:
            features: shape of an example's input.
            dtype: its type.
            target: shape of an example's target.
        """
        least = {"pictures": 2, "series": 2, "numbers": 0, "tokens": 1}[self.reads]
        if dtype.is_floating_point == (self.reads == "tokens") or len(features) < least:
            kind = str(dtype).removeprefix("torch.")
            raise PluresError(f"augmentation {self.name}: it is for {self.reads}, not for {kind} of shape {features}")
        if self.moves and len(target) > 1:
            raise PluresError(
                f"augmentation {self.name}: it moves the inputs, but not targets of shape {target}: write a function "
                "of (key, inputs, targets) that moves both"
            )
