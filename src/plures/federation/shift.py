"""Feature shift: the same task seen through different sensors, client by client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from plures.errors import PluresError
from plures.federation.federation import Federation
from plures.federation.seeding import generator
from plures.names import by_name

Assignment = Mapping[str, int]
V = TypeVar("V")


def rotate(federation: Federation, degrees: Sequence[float], *, assignment: Assignment | None = None) -> Federation:
    """Rotate each client's images counterclockwise by its angle.

    Multiples of 90 degrees move pixels exactly (``torch.rot90``); other angles resample bilinearly about the centre,
    with zeros outside the image (so rotate before standardising, or accept the mean as background).

    Args:
        federation: inputs ``(n, channels, height, width)`` or ``(n, height, width)``, square.
        degrees: the angles, one per group of clients (e.g. ``(0, 90, 180, 270)``, the rotated MNIST of Ghosh, Chung,
            Yin, Ramchandran 2020).
        assignment: client -> position in ``degrees``; client i has i mod len(degrees) if not given.

    Returns:
        A federation with its own inputs, whose metadata column "rotation" holds each client's angle.
    """
    inputs = federation.one_input("rotate")
    shape = tuple(inputs.shape[1:])
    if len(shape) not in (2, 3) or shape[-1] != shape[-2]:
        raise PluresError(f"rotate: needs square pictures (height, width) or (channels, height, width), got {shape}")

    def turn(rows: Tensor, angle: float) -> Tensor:
        pictures = inputs[rows]
        quarters, rest = divmod(angle, 90)
        if rest == 0:
            return torch.rot90(pictures, int(quarters), (-2, -1))
        flat = pictures.reshape(len(pictures), -1, *shape[-2:])
        turned = torch.tensor(np.deg2rad(angle), dtype=flat.dtype, device=flat.device)
        cos, sin, zero = turned.cos(), turned.sin(), torch.zeros_like(turned)
        matrix = torch.stack([torch.stack([cos, -sin, zero]), torch.stack([sin, cos, zero])])
        grid = functional.affine_grid(matrix.expand(len(flat), 2, 3), list(flat.shape), align_corners=False)
        return functional.grid_sample(flat, grid, mode="bilinear", align_corners=False).reshape(pictures.shape)

    return _shift(federation, "rotation", degrees, assignment, turn)


def brightness(
    federation: Federation,
    factors: Sequence[float],
    *,
    offsets: Sequence[float] | None = None,
    assignment: Assignment | None = None,
) -> Federation:
    """Inputs become ``factor * input + offset``, without clipping.

    Args:
        federation: floating-point inputs of any shape.
        factors: one per group of clients.
        offsets: the same number of them; zeros if not given.
        assignment: client -> position in ``factors``; client i has i mod len(factors) if not given.

    Returns:
        A federation with its own inputs; metadata column "brightness" holds (factor, offset).
    """
    inputs = federation.one_input("brightness")
    offsets = [0.0] * len(factors) if offsets is None else offsets
    if len(offsets) != len(factors):
        raise PluresError(f"brightness: {len(offsets)} offsets for {len(factors)} factors; they must match")

    def change(rows: Tensor, value: tuple[float, float]) -> Tensor:
        return value[0] * inputs[rows] + value[1]

    return _shift(federation, "brightness", list(zip(factors, offsets, strict=True)), assignment, change)


def noise(
    federation: Federation, deviations: Sequence[float], *, seed: int = 0, assignment: Assignment | None = None
) -> Federation:
    """Add Gaussian noise with each client's standard deviation; a pure function of the seed and the row.

    Args:
        federation: floating-point inputs of any shape.
        deviations: standard deviations >= 0, one per group of clients, in units of the inputs.
        seed: of the noise.
        assignment: client -> position in ``deviations``; client i has i mod len(deviations) if not given.

    Returns:
        A federation with its own inputs; metadata column "noise" holds the standard deviation.
    """
    for deviation in deviations:
        if deviation < 0:
            raise PluresError(f"noise: standard deviation {deviation} is negative")
    inputs = federation.one_input("noise")
    drawn = generator(seed, "noise").standard_normal(tuple(inputs.shape), dtype=np.float32)
    standard = torch.from_numpy(drawn).to(inputs)

    def add(rows: Tensor, deviation: float) -> Tensor:
        return inputs[rows] + deviation * standard[rows]

    return _shift(federation, "noise", deviations, assignment, add)


def _shift(
    federation: Federation,
    column: str,
    values: Sequence[V],
    assignment: Assignment | None,
    change: Callable[[Tensor, V], Tensor],
) -> Federation:
    """Replace every client's inputs by ``change(its rows, its value)`` and record the value."""
    inputs = federation.one_input(column)
    if not inputs.is_floating_point():
        raise PluresError(f"{column}: inputs of type {inputs.dtype} cannot be shifted; give floating point")
    if column in federation.metadata:
        raise PluresError(f"{column}: federation {federation.name!r} has this metadata column already; shift it once")
    if not values:
        raise PluresError(f"{column}: give at least one value")
    owned = torch.cat([split.rows for split in federation.splits.values()])
    if int(owned.bincount().max()) > 1:
        raise PluresError(
            f"{column}: a row of federation {federation.name!r} occurs twice; clients must not share rows"
        )
    groups = []
    assigned = None if assignment is None else by_name(assignment)
    for number, client in enumerate(federation.clients):
        if assigned is not None and client not in assigned:
            raise PluresError(f"{column}: the assignment has no entry for client {client!r}")
        group = number % len(values) if assigned is None else assigned[client]
        if not 0 <= group < len(values):
            raise PluresError(f"{column}: client {client!r} has group {group}, outside 0..{len(values) - 1}")
        groups.append(group)
    inputs = inputs.clone()
    for number, group in enumerate(groups):
        rows = torch.cat([split[number] for split in federation.splits.values()])
        inputs[rows] = change(rows, values[group])
    metadata = {**federation.metadata, column: tuple(values[group] for group in groups)}
    return replace(federation, inputs=inputs, metadata=metadata)
