"""The scale of inputs: what was subtracted from them and what they were then divided by; of several inputs, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation.inputs import Inputs, joined, told_apart
from plures.federation.mapped import Mapped

Moments = tuple[Tensor, Tensor]
"""Offset that is subtracted, and scale that divides the result, for each entry of the first feature dimension."""
Scaling = Moments | Mapping[str, Moments]
"""Moments of one tensor; of several inputs, those of each that is scaled, by its name."""


def scaled(raw: Tensor | Inputs, scaling: Scaling | None) -> Tensor | Inputs:
    """Inputs on the scale that a network reads, in operations that every runtime supports."""
    if isinstance(raw, Inputs):
        return Inputs({name: _scaled(t, _own(scaling, name)) for name, t in raw.parts.items()})
    return _scaled(raw, _only(scaling))


def unscaled(inputs: Tensor | Inputs, scaling: Scaling | None) -> Tensor | Inputs:
    """Inverse of :func:`scaled`, up to rounding."""
    if isinstance(inputs, Inputs):
        return Inputs({name: _unscaled(t, _own(scaling, name)) for name, t in inputs.parts.items()})
    return _unscaled(inputs, _only(scaling))


def standardized(inputs: Tensor, moments: Moments) -> Tensor:
    """New inputs on a scale; they are changed in place, unless they stay on disk."""
    if isinstance(inputs, Mapped):
        return inputs.scaled(*moments)
    mean, scale = _shaped(moments, inputs)
    return inputs.sub_(mean).div_(scale)


def moments_of(values: Tensor, train: Tensor) -> Moments:
    """Mean and standard deviation over the train rows for each entry of dimension 1; the value and 1 where constant."""
    if isinstance(values, Mapped):
        return values.summed(train.numpy())
    means, scales = [], []
    for channel in range(values.shape[1]):  # one at a time: double precision of everything would be large
        own = values[train, channel].double().flatten()
        constant = bool((own == own[0]).all())
        means.append(float(own[0] if constant else own.mean()))
        scales.append(1.0 if constant else float(own.std(correction=0)))
    return torch.tensor(means, dtype=torch.float64), torch.tensor(scales, dtype=torch.float64)


def stored(scaling: Scaling | None) -> dict[str, Tensor]:
    """The tensors of a scaling under the names by which files store them."""
    if scaling is None:
        return {}
    if isinstance(scaling, tuple):
        return dict(zip(("mean", "scale"), scaling, strict=True))
    means = Inputs({name: mean for name, (mean, _) in scaling.items()})
    scales = Inputs({name: scale for name, (_, scale) in scaling.items()})
    return told_apart("mean", means) | told_apart("scale", scales)


def of_stored(tensors: Mapping[str, Tensor]) -> Scaling | None:
    """Inverse of :func:`stored`; other tensors are ignored."""
    mean, scale = joined("mean", tensors), joined("scale", tensors)
    if mean is None or scale is None:
        return None
    if isinstance(mean, Tensor):
        assert isinstance(scale, Tensor)
        return mean, scale
    assert not isinstance(scale, Tensor)
    return {name: (one, scale[name]) for name, one in mean.items()}


def _own(scaling: Scaling | None, name: str) -> Moments | None:
    if isinstance(scaling, tuple):
        raise PluresError("the scaling is that of one input tensor, but examples have several: give it by name")
    return None if scaling is None else scaling.get(name)


def _only(scaling: Scaling | None) -> Moments | None:
    if isinstance(scaling, Mapping):
        raise PluresError(f"the scaling is that of several inputs ({', '.join(scaling)}), but examples have one tensor")
    return scaling


def _scaled(raw: Tensor, moments: Moments | None) -> Tensor:
    if moments is None:
        return raw
    mean, scale = _shaped(moments, raw)
    return (raw - mean) / scale


def _unscaled(inputs: Tensor, moments: Moments | None) -> Tensor:
    if moments is None:
        return inputs
    mean, scale = _shaped(moments, inputs)
    return inputs * scale + mean


def _shaped(moments: Moments, inputs: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, -1, *(1,) * (inputs.dim() - 2))
    mean, scale = (t.to(inputs.device, inputs.dtype).view(shape) for t in moments)
    return mean, scale
