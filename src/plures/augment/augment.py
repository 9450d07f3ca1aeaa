"""Several augmentations one after the other, on batches of several clients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plures.augment.key import Key
from plures.augment.part import AUGMENTATIONS, Change, Changed, Mixture, Part, Several, each, tensors
from plures.composed import called, options_of, pieces
from plures.errors import PluresError, suggestion
from plures.signature import arguments, kinds, shown

One = str | Change | Sequence[str | Change]
Wanted = One | Mapping[str, One]
"""``"crop(4)+flip"``, an augmentation, a function of (key, inputs, targets), or several; or such by name of input."""


@dataclass(frozen=True)
class Augment:
    """Augmentations of training batches, one after the other.

    Attributes:
        parts: the augmentations.
    """

    parts: tuple[Change, ...]

    def __call__(self, keys: Tensor, counts: Tensor, inputs: Any, targets: Tensor) -> Mixture | tuple[Any, Tensor]:
        """Batches of several clients, changed.

        Args:
            keys: ``(batches, width)`` int64, one key for each example.
            counts: ``(batches,)`` number of examples; the rest is padding.
            inputs: ``(batches, width, *features)``; one tensor, or several by name.
            targets: ``(batches, width, *target)``.
        """
        batches, width = keys.shape
        place = torch.arange(width, device=keys.device)
        after = torch.where(place + 1 < counts[:, None], place + 1, 0)
        partner = after + width * torch.arange(batches, device=keys.device)[:, None]
        key = Key(keys.reshape(-1), partner.reshape(-1))
        x, y = each(lambda t: t.flatten(0, 1), inputs), targets.flatten(0, 1)

        def apart(t: Tensor) -> Tensor:
            return t.view(batches, width, *t.shape[1:])

        for number, part in enumerate(self.parts):
            found = part(key.part(number), x, y)
            both = (found.inputs, found.targets) if isinstance(found, Mixture) else found
            self._insist(part, x, y, both)
            if isinstance(found, Mixture):
                if number + 1 < len(self.parts):
                    raise PluresError(f"augmentation {_name(part)} mixes examples: put it last")
                others = (apart(t) for t in (found.targets, found.others, found.share))
                return Mixture(each(apart, found.inputs), *others)
            x, y = both
        return each(apart, x), apart(y)

    def _insist(self, part: Change, x: Any, y: Tensor, found: Any) -> None:
        """Refuse a result of another form, shape or type."""
        before = {**tensors(x), "targets": y}
        after = {**tensors(found[0]), "targets": found[1]} if isinstance(found, tuple) and len(found) == 2 else {}
        if not all(isinstance(t, Tensor) for t in after.values()) or after.keys() != before.keys():
            raise PluresError(f"augmentation {_name(part)}: it returns {shown(found)}, not (inputs, targets)")
        for what, old in before.items():
            new = after[what]
            if new.shape != old.shape or new.dtype != old.dtype:
                raise PluresError(
                    f"augmentation {_name(part)}: it turns {what} {tuple(old.shape)} of type {old.dtype} into "
                    f"{tuple(new.shape)} of type {new.dtype}; keep both"
                )


@dataclass(frozen=True)
class Within:
    """An augmentation of one of several inputs.

    Attributes:
        name: of the input.
        change: what changes it.
    """

    name: str
    change: Change

    def __call__(self, key: Key, inputs: Several, targets: Tensor) -> Changed:
        found = self.change(key, inputs.parts[self.name], targets)
        if isinstance(found, Mixture):
            raise PluresError(
                f"augmentation {_name(self.change)}: it mixes examples, but input {self.name!r} is one of several; "
                "write a function of (key, inputs, targets) that mixes all of them"
            )
        if not isinstance(found, tuple) or len(found) != 2:
            raise PluresError(f"augmentation {_name(self.change)}: it returns {shown(found)}, not (inputs, targets)")
        made, targets = found
        return type(inputs)({**inputs.parts, self.name: made}), targets  # type: ignore[call-arg]


def within(several: Mapping[str, Tensor], target: tuple[int, ...], part: Change) -> Change:
    """An augmentation that comes with plures, applied to the only one of several inputs that it can change.

    Args:
        several: the inputs by name.
        target: shape of an example's target.
        part: the augmentation; a function gets all inputs.
    """
    if not isinstance(part, Part):
        return part
    fits = []
    for name, t in several.items():
        with contextlib.suppress(PluresError):
            part.check(tuple(t.shape[1:]), t.dtype, target)
            fits.append(name)
    if len(fits) != 1:
        held = f"could change {' and '.join(fits)}" if fits else f"can change none of {', '.join(several)}"
        raise PluresError(
            f"augmentation {part.name}: it {held}; say which input, as in augmented({{{(fits or [*several])[0]!r}: "
            f"{part.name!r}}})"
        )
    return Within(fits[0], part)


def _name(part: Change) -> str:
    return part.name if isinstance(part, Part) else repr(getattr(part, "__name__", type(part).__name__))


def augment_of(wanted: Augment | Wanted, find: Callable[[str], Any] | None = None) -> Augment:
    """Augmentations as they are named.

    Args:
        wanted: names of :data:`AUGMENTATIONS` with their options, joined by ``+``; an augmentation; your own function
            of (key, inputs, targets); or a list of them. Of several inputs: such for each input, by its name.
        find: finds what a name stands for; default: only the names of the catalogue are known.

    Examples:
        >>> augment_of("crop(2)+flip").parts
        (Crop(padding=2), Flip(vertical=False))
    """
    if isinstance(wanted, Augment):
        return wanted
    if isinstance(wanted, Mapping):
        named = {name: augment_of(one, find).parts for name, one in wanted.items()}
        if not named:
            raise PluresError("augmentation: none is given; give a name, such as 'flip'")
        return Augment(tuple(Within(str(name), part) for name, parts in named.items() for part in parts))
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
