"""Follows the units of hidden layers through a forward pass: which axes of which leaves have the same units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from plures.brief import brief
from plures.models import nested
from plures.models.units import Width


@dataclass(frozen=True)
class Mark:
    """Units along an axis of a tensor.

    Attributes:
        axis: the axis.
        width: position of their width.
        each: consecutive entries of each unit.
        zero: whether a unit that is left out is 0 here.
        first: whether the axis has further entries, which are 0, after the units.
    """

    axis: int
    width: int
    each: int = 1
    zero: bool = True
    first: bool = False


@brief
@dataclass
class Follower(TorchFunctionMode):
    """Follows units through the functions that a module calls.

    Attributes:
        paths: the module's leaves by identity.
        now: names of the submodules at work, the innermost last.
        lost: for tensors of which it is not known which units are in them, the widths of these and why.
    """

    paths: dict[int, str]
    now: list[str] = field(default_factory=list)
    found: list[Width] = field(default_factory=list)
    joined: list[int] = field(default_factory=list)
    axes: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    marks: dict[int, Mark] = field(default_factory=dict)
    lost: dict[int, dict[int, str]] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)
    under: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        found = func(*args, **given)
        made = [t for t in nested.ends(found) if isinstance(t, Tensor)]
        if made:
            self.alive += made
            self._note(func, found, made, args, given)
        return found

    def _note(self, func: Callable[..., Any], found: Any, made: list[Tensor], args: Any, given: dict[str, Any]) -> None:
        """Note which units are in the results of a function."""
        read = [t for t in nested.ends((args, given)) if isinstance(t, Tensor)]
        marked = [self.marks[id(t)] for t in read if id(t) in self.marks]
        lost = dict(pair for t in read for pair in self.lost.get(id(t), {}).items())
        rule = RULES.get(func)
        try:
            if rule is not None:
                rule(self, func, found, *args, **given)
            elif marked:
                raise UntoldError
        except (UntoldError, TypeError, AttributeError, IndexError):
            marked += [self.marks.pop(id(t)) for t in made if id(t) in self.marks]
            lost |= {mark.width: self.why(mark.width, func) for mark in marked}
        if lost and any(id(t) in self.paths for t in read):
            for width, why in lost.items():
                self.stick(width, why)
        elif lost:
            for t in made:
                self.lost[id(t)] = lost

    def enter(self, name: str, part: object, args: object) -> None:
        """A submodule begins its work."""
        self.now.append(name)

    def leave(self, part: object, args: object, found: object) -> None:
        """It has done it."""
        self.now.pop()

    def of(self, t: Any) -> Mark | None:
        """The units in a tensor."""
        mark = self.marks.get(id(t))
        return None if mark is None else replace(mark, width=self.root(mark.width))

    def put(self, t: Tensor, mark: Mark | None) -> None:
        """Note the units of a tensor."""
        if mark is None:
            self.marks.pop(id(t), None)
        else:
            self.marks[id(t)] = mark

    def root(self, width: int) -> int:
        while self.joined[width] != width:
            width = self.joined[width]
        return width

    def new(self, size: int) -> int:
        """A further width."""
        self.found.append(Width(self.now[-1] if self.now else "the network", size))
        self.joined.append(len(self.joined))
        return len(self.found) - 1

    def join(self, one: int, other: int) -> int:
        """Make one width of two."""
        one, other = sorted((self.root(one), self.root(other)))
        a, b = self.found[one], self.found[other]
        if one != other:
            if a.size != b.size:
                raise UntoldError
            self.joined[other] = one
            self.found[one] = replace(a, step=math.lcm(a.step, b.step), stuck=a.stuck or b.stuck)
        return one

    def stick(self, width: int, why: str) -> None:
        """Note that no unit of a width can be left out."""
        number = self.root(width)
        if not self.found[number].stuck:
            self.found[number] = replace(self.found[number], stuck=why)

    def why(self, width: int, func: Callable[..., Any]) -> str:
        """Why no unit can be left out, because of a function that reads them."""
        number, layer = self.root(width), self.now[-1] if self.now else ""
        name = resolve_name(func) or getattr(func, "__name__", "a function")
        here = f"layer {layer!r}" if layer else "its forward function"
        return (
            f"the widths of the network cannot be cut: the units of layer {self.found[number].name!r} go through "
            f"{name.removeprefix('torch.')} in {here}, where it is not known which results belong to which units, or "
            "whether units that are left out stay 0: use another layer, or leave this part out"
        )

    def lies(self, leaf: Any, axis: int, width: int, each: int = 1) -> None:
        """Note that units lie along an axis of a leaf."""
        if leaf is None:
            return
        if id(leaf) not in self.paths:
            raise UntoldError
        key = self.paths[id(leaf)], axis
        if key in self.axes:
            before, old = self.axes[key]
            if old != each:
                raise UntoldError
            width = self.join(before, width)
        self.axes[key] = width, each

    def passed(self, found: Tensor, t: Tensor, **changes: Any) -> None:
        """Note that a result has the units of a tensor."""
        mark = self.of(t)
        self.put(found, mark and replace(mark, **changes))

    def result(self) -> list[int]:
        """Positions of the widths, without those that are one with others."""
        return [number for number in range(len(self.found)) if self.root(number) == number]


class UntoldError(Exception):
    """It is not known which units are in a result."""


def _axis(axis: int, t: Tensor) -> int:
    return axis % t.dim() if t.dim() else 0


def _linear(to: Follower, func: Any, found: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    mark = to.of(input)
    if mark is not None and (mark.axis != input.dim() - 1 or not mark.zero or mark.first):
        raise UntoldError
    _layer(to, found, mark, weight, bias, found.dim() - 1)


def _layer(
    to: Follower, found: Tensor, mark: Mark | None, weight: Tensor, bias: Tensor | None, axis: int, inputs: int = 1
) -> None:
    """Units of the outputs of a layer, whose weight has them along its first axis, and its inputs' along another."""
    if id(weight) not in to.paths:
        if mark is not None:
            raise UntoldError
        return
    if mark is not None:
        to.lies(weight, inputs, mark.width, mark.each)
    width = to.new(len(weight))
    to.lies(weight, 0, width)
    to.lies(bias, 0, width)
    to.made |= {to.paths[id(t)] for t in (weight, bias) if t is not None}
    to.put(found, Mark(axis, to.root(width)))


def _convolution(
    to: Follower, func: Any, found: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> None:  # fmt: skip
    mark, channel = to.of(input), input.dim() - weight.dim() + 1
    if mark is not None and (mark.axis != channel or mark.each != 1 or not mark.zero or mark.first):
        raise UntoldError
    if groups == 1:
        _layer(to, found, mark, weight, bias, channel)
    elif mark is not None and groups == len(weight) == to.found[mark.width].size:
        to.lies(weight, 0, mark.width)
        to.lies(bias, 0, mark.width)
        to.put(found, mark)
    elif mark is not None:
        raise UntoldError


def _per_channel(to: Follower, found: Tensor, input: Tensor, *leaves: Tensor | None) -> None:
    mark = to.of(input)
    if mark is None:
        return
    if mark.axis != 1 or mark.each != 1 or mark.first:
        raise UntoldError
    for leaf in leaves:
        to.lies(leaf, 0, mark.width)
    to.put(found, mark)


def _batch_norm(
    to: Follower, func: Any, found: Tensor, input: Tensor, running_mean: Tensor | None = None,
    running_var: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None, *rest: Any,
    **options: Any,
) -> None:  # fmt: skip
    _per_channel(to, found, input, running_mean, running_var, weight, bias)


def _group_norm(
    to: Follower, func: Any, found: Tensor, input: Tensor, num_groups: int, weight: Tensor | None = None,
    bias: Tensor | None = None, *rest: Any, **options: Any,
) -> None:  # fmt: skip
    _per_channel(to, found, input, weight, bias)
    mark = to.of(input)
    if mark is not None:
        width = to.found[mark.width]
        to.found[mark.width] = replace(width, step=math.lcm(width.step, width.size // num_groups))


def _layer_norm(
    to: Follower, func: Any, found: Tensor, input: Tensor, normalized_shape: Sequence[int], *rest: Any, **options: Any
) -> None:
    mark = to.of(input)
    if mark is not None and mark.axis >= input.dim() - len(normalized_shape):
        raise UntoldError
    to.put(found, mark)


def _same(to: Follower, func: Any, found: Tensor, input: Tensor, *rest: Any, **options: Any) -> None:
    """Functions of single entries that are 0 at 0, and others that keep the order of all axes."""
    to.passed(found, input)


def _gate(to: Follower, func: Any, found: Tensor, input: Tensor, *rest: Any, **options: Any) -> None:
    """Functions of single entries that are not 0 at 0."""
    to.passed(found, input, zero=False)


def _pool(to: Follower, func: Any, found: Any, input: Tensor, *rest: Any, **options: Any) -> None:
    mark, made = to.of(input), found[0] if isinstance(found, tuple) else found
    if mark is not None and mark.axis != 1:
        raise UntoldError
    to.put(made, mark)


def _reshape(to: Follower, func: Any, found: Tensor, input: Tensor, *rest: Any, **options: Any) -> None:
    """Axes after that of the units become part of it, or part of it becomes axes after it."""
    mark = to.of(input)
    if mark is None:
        return
    before, after = tuple(input.shape), tuple(found.shape)
    if before[: mark.axis] != after[: mark.axis] or len(after) <= mark.axis or mark.first:
        raise UntoldError
    size = to.found[mark.width].size
    if after[mark.axis] % size:
        raise UntoldError
    to.put(found, replace(mark, each=after[mark.axis] // size))


def _moved(to: Follower, func: Any, found: Tensor, input: Tensor, *dims: Any, **options: Any) -> None:
    mark = to.of(input)
    if mark is None:
        return
    if func in (torch.transpose, Tensor.transpose):
        one, other = (_axis(int(d), input) for d in dims[:2])
        order = list(range(input.dim()))
        order[one], order[other] = other, one
    else:
        listed = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
        order = [_axis(int(d), input) for d in listed]
    to.put(found, replace(mark, axis=order.index(mark.axis)))


def _indexed(to: Follower, func: Any, found: Tensor, input: Tensor, index: Any) -> None:
    mark = to.of(input)
    if mark is None:
        return
    axis, place = 0, 0
    for item in index if isinstance(index, tuple) else (index,):
        if item is None:
            place += 1
        elif isinstance(item, slice | int):
            if axis == mark.axis and item != slice(None):
                raise UntoldError
            if axis == mark.axis:
                break
            axis, place = axis + 1, place + isinstance(item, slice)
        else:
            raise UntoldError
    to.put(found, replace(mark, axis=place + mark.axis - axis))


def _unsqueezed(to: Follower, func: Any, found: Tensor, input: Tensor, dim: int) -> None:
    mark = to.of(input)
    if mark is not None:
        dim = dim % (input.dim() + 1)
        to.put(found, replace(mark, axis=mark.axis + (dim <= mark.axis)))


def _reduced(
    to: Follower, func: Any, found: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False, **options: Any
) -> None:
    mark = to.of(input)
    if mark is None:
        return
    if dim is None:
        raise UntoldError
    gone = {_axis(int(d), input) for d in (dim if isinstance(dim, Sequence) else (dim,))}
    if mark.axis in gone or not mark.zero:
        raise UntoldError
    to.put(found, mark if keepdim else replace(mark, axis=mark.axis - sum(d < mark.axis for d in gone)))


def _added(to: Follower, func: Any, found: Tensor, input: Any, other: Any, **options: Any) -> None:
    one, two = (to.of(t) if isinstance(t, Tensor) else None for t in (input, other))
    if one is None and two is None:
        return
    if one is None or two is None or not (one.zero and two.zero) or input.shape != other.shape:
        raise UntoldError
    if (one.axis, one.each) != (two.axis, two.each) or (one.first and two.first):
        raise UntoldError
    if one.first or two.first:
        few, many = (one, two) if one.first else (two, one)
        to.under.append((few.width, many.width))
        to.put(found, many)
    else:
        to.put(found, replace(one, width=to.join(one.width, two.width)))


def _multiplied(to: Follower, func: Any, found: Tensor, input: Any, other: Any, **options: Any) -> None:
    marks = [(t, to.of(t)) for t in (input, other) if isinstance(t, Tensor)]
    some = [(t, mark) for t, mark in marks if mark is not None]
    if not some:
        return
    at = {found.dim() - t.dim() + mark.axis for t, mark in some}
    if len(at) != 1 or len({mark.each for _, mark in some}) != 1 or any(mark.first for _, mark in some):
        raise UntoldError
    width = some[0][1].width if len(some) == 1 else to.join(some[0][1].width, some[1][1].width)
    zero = any(mark.zero for _, mark in some)
    if not zero or found.shape[(axis := at.pop())] != some[0][0].shape[some[0][1].axis]:
        raise UntoldError
    to.put(found, Mark(axis, width, some[0][1].each))


def _divided(to: Follower, func: Any, found: Tensor, input: Any, other: Any, **options: Any) -> None:
    if isinstance(other, Tensor) and to.of(other) is not None:
        raise UntoldError
    to.passed(found, input)


def _padded(
    to: Follower, func: Any, found: Tensor, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> None:
    mark = to.of(input)
    if mark is None:
        return
    place = 2 * (input.dim() - 1 - mark.axis)
    here = list(pad[place : place + 2]) or [0, 0]
    if mode != "constant" or value or here[0] or not mark.zero:
        raise UntoldError
    to.put(found, replace(mark, first=mark.first or bool(here[1])))


Rule = Callable[..., None]
RESHAPES = (
    *(torch.flatten, Tensor.flatten, torch.unflatten, Tensor.unflatten),
    *(Tensor.view, Tensor.reshape, torch.reshape),
)
_SAME = (
    *(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.leaky_relu, F.relu6, F.elu, F.celu, F.selu, F.gelu),
    *(F.silu, F.mish, F.hardswish, F.hardtanh, F.softsign, F.tanhshrink, F.softshrink, F.hardshrink),
    *(torch.tanh, Tensor.tanh, F.tanh, torch.square, Tensor.square, torch.abs, Tensor.abs, torch.neg, Tensor.neg),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(Tensor.contiguous, Tensor.clone, Tensor.to, Tensor.float, Tensor.double, Tensor.detach, torch.clone),
)
_POOL = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d),
    *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate),
)
RULES: dict[Callable[..., Any], Rule] = {
    F.linear: _linear,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    F.batch_norm: _batch_norm,
    F.instance_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.hardsigmoid, F.softplus, torch.exp), _gate),
    **dict.fromkeys(_POOL, _pool),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys((torch.transpose, Tensor.transpose, torch.permute, Tensor.permute), _moved),
    Tensor.__getitem__: _indexed,
    **dict.fromkeys((torch.unsqueeze, Tensor.unsqueeze), _unsqueezed),
    **dict.fromkeys((torch.mean, Tensor.mean, torch.sum, Tensor.sum), _reduced),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.add_, Tensor.__iadd__, torch.sub), _added),
    **dict.fromkeys((Tensor.sub, Tensor.__sub__, Tensor.__radd__), _added),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_), _multiplied),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _divided),
    F.pad: _padded,
}
"""How functions treat the units of what they get; units that go through others cannot be left out."""
