"""A transform of one example, as torchvision and albumentations have them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from plures.augment.key import Key
from plures.augment.part import Changed


@runtime_checkable
class SeededTransform(Protocol):
    """A transform with a generator of its own that reads and returns ``image``, as albumentations' ``Compose``."""

    def set_random_seed(self, seed: int, /) -> None: ...

    def __call__(self, *, image: Any) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Each:
    """An augmentation that calls a transform for one example after the other, on the CPU.

    Attributes:
        transform: takes one input and returns one of the same shape, as torchvision's transforms do, and draws from
            the generators of PyTorch, NumPy or Python, which are seeded by the example's key and restored afterwards;
            or a transform of albumentations, which gets a picture as an array ``(height, width[, channels])``.

    Examples:
        >>> import torch
        >>> from plures.augment import Each, augment_of
        >>> augment = augment_of(Each(lambda picture: picture + torch.rand(())))
    """

    transform: Callable[..., Any]

    def __call__(self, key: Key, inputs: Tensor, targets: Tensor) -> Changed:
        seeds = (key.bits() & 0x7FFFFFFF).tolist()
        python, numpy = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):
                made = [self._one(seed, one) for seed, one in zip(seeds, inputs.cpu(), strict=True)]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
        return torch.stack(made).to(inputs.device), targets

    def _one(self, seed: int, one: Tensor) -> Tensor:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        if not isinstance(self.transform, SeededTransform):
            return torch.as_tensor(self.transform(one))
        self.transform.set_random_seed(seed)
        array = one.numpy() if one.dim() == 2 else np.ascontiguousarray(one.numpy().transpose(1, 2, 0))
        found = torch.as_tensor(self.transform(image=array)["image"])
        return found if one.dim() == 2 else found.reshape(*found.shape[:2], -1).permute(2, 0, 1)
