"""Several augmentations one after the other, on batches of several clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plures.augment.key import Key
from plures.augment.part import AUGMENTATIONS, Change, Mixture, Part
from plures.composed import called, options_of, pieces
from plures.errors import PluresError, suggestion
from plures.signature import arguments, kinds, shown

Wanted = str | Change | Sequence[str | Change]
"""``"crop(4)+flip"``, an augmentation, a function of (key, inputs, targets), or several of them."""


@dataclass(frozen=True)
class Augment:
    """Augmentations of training batches, one after the other.

    Attributes:
        parts: the augmentations.
    """

    parts: tuple[Change, ...]

    def check(self, features: tuple[int, ...], dtype: torch.dtype, target: tuple[int, ...]) -> None:
        """Refuse inputs that a part cannot change; see :meth:`Part.check`."""
        for part in self.parts:
            if isinstance(part, Part):
                part.check(features, dtype, target)

    def __call__(
        self, keys: Tensor, counts: Tensor, inputs: Tensor, targets: Tensor
    ) -> Mixture | tuple[Tensor, Tensor]:
        """Batches of several clients, changed.

        Args:
            keys: ``(batches, width)`` int64, one key for each example.
            counts: ``(batches,)`` number of examples; the rest is padding.
            inputs: ``(batches, width, *features)``.
            targets: ``(batches, width, *target)``.
        """
        batches, width = keys.shape
        place = torch.arange(width, device=keys.device)
        after = torch.where(place + 1 < counts[:, None], place + 1, 0)
        partner = after + width * torch.arange(batches, device=keys.device)[:, None]
        key = Key(keys.reshape(-1), partner.reshape(-1))
        x, y = inputs.flatten(0, 1), targets.flatten(0, 1)
        for number, part in enumerate(self.parts):
            found = part(key.part(number), x, y)
            both = (found.inputs, found.targets) if isinstance(found, Mixture) else found
            self._insist(part, x, y, both)
            if isinstance(found, Mixture):
                if number + 1 < len(self.parts):
                    raise PluresError(f"augmentation {_name(part)} mixes examples: put it last")
                each = (found.inputs, found.targets, found.others, found.share)
                return Mixture(*(t.view(batches, width, *t.shape[1:]) for t in each))
            x, y = both
        return x.view(inputs.shape), y.view(targets.shape)

    def _insist(self, part: Change, x: Tensor, y: Tensor, found: Any) -> None:
        """Refuse a result of another form, shape or type."""
        if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(t, Tensor) for t in found):
            raise PluresError(f"augmentation {_name(part)}: it returns {shown(found)}, not (inputs, targets)")
        for what, old, new in (("inputs", x, found[0]), ("targets", y, found[1])):
            if new.shape != old.shape or new.dtype != old.dtype:
                raise PluresError(
                    f"augmentation {_name(part)}: it turns {what} {tuple(old.shape)} of type {old.dtype} into "
                    f"{tuple(new.shape)} of type {new.dtype}; keep both"
                )


def _name(part: Change) -> str:
    return part.name if isinstance(part, Part) else repr(getattr(part, "__name__", type(part).__name__))


def augment_of(wanted: Wanted, find: Callable[[str], Any] | None = None) -> Augment:
    """Augmentations as they are named.

    Args:
        wanted: names of :data:`AUGMENTATIONS` with their options, joined by ``+``; an augmentation; your own function
            of (key, inputs, targets); or a list of them.
        find: finds what a name stands for; default: only the names of the catalogue are known.

    Examples:
        >>> augment_of("crop(2)+flip").parts
        (Crop(padding=2), Flip(vertical=False))
    """
    several = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Sequence) else list(wanted)
    parts: list[Change] = []
    for one in several:
        parts += [_named(piece.strip(), find or known) for piece in pieces(one)] if isinstance(one, str) else [one]
    for part in parts:
        if isinstance(part, type) or not callable(part):
            raise PluresError(f"augmentation {shown(part)}: give a name, such as 'flip', an object, or a function")
    if not parts:
        raise PluresError("augmentation: none is given; give a name, such as 'flip'")
    return Augment(tuple(parts))


def known(name: str) -> Any:
    """The augmentation of a name."""
    if name not in AUGMENTATIONS:
        raise PluresError(f"no augmentation {name!r}; {suggestion(name, AUGMENTATIONS, 'augmentations are')}")
    return AUGMENTATIONS[name]


def _named(text: str, find: Callable[[str], Any]) -> Any:
    name, options = called(text, "augmentation")
    found, what = find(name), f"augmentation {name!r}"
    if not isinstance(found, type) and options is None:
        return found
    bound = arguments(what, found, **options_of(what, options or [], kinds(found)))
    return found(*bound.args, **bound.kwargs)
