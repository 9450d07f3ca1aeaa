"""Rules that make recorded operations cheaper without changing what they compute, except for rounding.

A rule looks at one call and at those that made its arguments, and returns calls that make the same results; what
nothing needs afterwards is left out. ``vmap`` and autograd take a step apart into many small operations, and so each
rule puts something together that they took apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plures.run.calls import Call, Value, memories

ALWAYS = frozenset({"arange", "full", "ones", "scalar_tensor", "zeros"})
"""Operations that make the same tensor each time."""
FILLED = frozenset({"full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"})
"""Operations that read nothing but the shape of their argument."""
CHOSEN = frozenset(
    {"alias", "clone", "detach", "expand", "index_select", "select", "slice", "squeeze", "unsqueeze", "view"}
)
"""Operations whose values are all among the values of their first argument."""
FEW = 16
"""Largest number of classes for which the softmax is computed along another axis than the last."""
NARROW = 9
"""Largest number of a client's input channels for which a convolution that passes no gradient on becomes a product, as
measured."""

aten: Any = torch.ops.aten


class Listing:
    """Calls, with what made and what reads each value.

    Args:
        calls: the calls, in order.
        still: tensors from before the calls that never change.
    """

    def __init__(self, calls: list[Call], still: Sequence[Tensor]) -> None:
        self.calls = calls
        self.still = {one.untyped_storage().data_ptr() for one in still}
        self.changed = {one.memory for call in calls for one in call.changed}
        self.place = {one: place for place, call in enumerate(calls) for one in call.made}
        self.readers: dict[Value, list[Call]] = {}
        for call in calls:
            for one in call.read:
                self.readers.setdefault(one, []).append(call)

    def maker(self, one: Any, *names: str) -> Call | None:
        """The call that made a value, if it has one of these names."""
        place = self.place.get(one) if isinstance(one, Value) else None
        call = None if place is None else self.calls[place]
        return call if call is not None and call.name in names else None

    def once(self, one: Value) -> bool:
        """Whether only one call reads a value."""
        return len(self.readers.get(one, [])) == 1

    def steady(self, values: Iterable[Any], since: Value, place: int) -> bool:
        """Whether no call after the one that made ``since``, up to ``place``, changes the memory of these values."""
        held = memories(one for one in values if isinstance(one, Value))
        return not any(held & memories(call.changed) for call in self.calls[self.place[since] + 1 : place])

    def lasting(self, *values: Value) -> bool:
        """Whether no call changes the memory of these values."""
        return not self.changed & memories(values)

    def source(self, one: Value) -> Tensor | None:
        """The tensor among whose values all values of this one are, if it never changes."""
        while (call := self.maker(one, *CHOSEN)) is not None:
            one = call.args[0]
        return one.tensor if one.fixed and one.tensor.untyped_storage().data_ptr() in self.still else None


Rule = Callable[[Listing, int], list[Call] | None]
"""Calls to make in place of the one at a place, with the same results; ``None`` to leave it."""


def made(func: Any, *args: Any, result: Value | None = None, **kwargs: Any) -> Call:
    """A call that changes nothing, whose result is a new value or this one."""
    if result is None:
        tensors = [one.tensor if isinstance(one, Value) else one for one in args]
        found = func(*tensors, **kwargs)
        viewed = isinstance(args[0], Value) and found.untyped_storage().data_ptr() == (
            args[0].tensor.untyped_storage().data_ptr()
        )
        result = Value(found, args[0].memory if viewed else None, False)
    return Call(func, list(args), kwargs, [result], [])


def certain(listing: Listing, place: int) -> list[Call] | None:
    """A choice between two values by a test that all examples pass: the loss ignores examples of class -100."""
    call = listing.calls[place]
    if call.name != "where" or len(call.args) != 3:
        return None
    told, one = listing.maker(call.args[0], "ne"), call.args[1]
    if told is None or not isinstance(one, Value) or isinstance(told.args[1], Value):
        return None
    source, result = listing.source(told.args[0]), call.made[0]
    alike = one.tensor.shape == result.tensor.shape and one.tensor.dtype == result.tensor.dtype
    if source is None or not alike or not listing.lasting(one, result) or not bool((source != told.args[1]).all()):
        return None
    return [made(aten.alias.default, one, result=result)]


def passed(listing: Listing, place: int) -> list[Call] | None:
    """A test that all examples pass: its result is always the same, and so is their number."""
    call = listing.calls[place]
    if call.name != "ne" or isinstance(call.args[1], Value) or not listing.lasting(*call.made):
        return None
    source, result = listing.source(call.args[0]), call.made[0]
    if source is None or not bool((source != call.args[1]).all()):
        return None
    return [made(aten.full.default, list(result.tensor.shape), True, dtype=torch.bool, result=result)]


def straight(listing: Listing, place: int) -> list[Call] | None:
    """A transposed tensor that is transposed again."""
    call = listing.calls[place]
    first = listing.maker(call.args[0], "transpose") if call.name == "transpose" else None
    if first is None or {one % 8 for one in first.args[1:]} != {one % 8 for one in call.args[1:]}:
        return None
    return [made(aten.alias.default, first.args[0], result=call.made[0])]


def biased(listing: Listing, place: int) -> list[Call] | None:
    """A batched product to which something is added."""
    call = listing.calls[place]
    if call.name != "add" or call.kwargs or len(call.args) != 2:
        return None
    for other, product in (call.args, call.args[::-1]):
        multiplied = listing.maker(product, "bmm")
        if multiplied is None or not isinstance(other, Value) or not listing.once(product):
            continue
        result, shape = call.made[0], product.tensor.shape
        wide = all(one in (1, size) for one, size in zip(other.tensor.shape, shape, strict=False))
        wide &= other.tensor.dim() == 3
        if not wide or other.tensor.dtype != product.tensor.dtype or result.tensor.dtype != product.tensor.dtype:
            continue
        if not listing.steady(multiplied.args, product, place):
            continue
        before: list[Call] = []
        shaped = listing.maker(other, "view")
        scaled = None if shaped is None else listing.maker(shaped.args[0], "mul")
        once = scaled is not None and type(scaled.args[1]) in (int, float) and scaled.args[1] == 1
        if shaped is not None and scaled is not None and once:
            if not listing.steady(scaled.args[:1], scaled.made[0], place):
                continue
            before = [made(aten.view.default, scaled.args[0], shaped.args[1])]
            other = before[0].made[0]
        return [*before, made(aten.baddbmm.default, other, *multiplied.args, result=result)]
    return None


def slope(listing: Listing, place: int) -> list[Call] | None:
    """The gradient of a cross-entropy: probabilities, less 1 for the right class, times the example's weight."""
    call = listing.calls[place]
    if call.name != "_log_softmax_backward_data":
        return None
    scaled, told, axis = listing.maker(call.args[0], "mul"), call.args[1], call.args[2]
    if scaled is None or listing.maker(told, "_log_softmax") is None:
        return None
    for hot, scale in (scaled.args, scaled.args[::-1]):
        marked = listing.maker(hot, "scatter")
        if marked is None or not isinstance(scale, Value) or scale.tensor.dim() != told.tensor.dim():
            continue
        zeros, along, index, value = marked.args
        one_each = index.tensor.shape[axis] == scale.tensor.shape[axis] == 1 and along % 8 == axis % 8
        whole = index.tensor.numel() * told.tensor.shape[axis] == told.tensor.numel()
        empty = zeros.fixed and not bool(zeros.tensor.any())
        if value != -1 or not one_each or not whole or not empty:
            continue
        if scale.tensor.dtype != told.tensor.dtype or not listing.lasting(zeros, told, index, scale):
            continue
        likely = made(aten.exp.default, told)
        less = made(aten.scatter.value_reduce, likely.made[0], axis, index, -1.0, reduce="add")
        return [likely, less, made(aten.mul.Tensor, less.made[0], scale, result=call.made[0])]
    return None


def thin(listing: Listing, place: int) -> list[Call] | None:
    """A softmax over few classes, which PyTorch computes in a third of the time if they are not the last axis."""
    call = listing.calls[place]
    if call.name != "_log_softmax" or call.args[2] or call.args[0].tensor.dim() != 3:
        return None
    given, axis = call.args[:2]
    readers = {one.name for one in listing.readers.get(call.made[0], [])}
    if axis % 3 != 2 or given.tensor.shape[2] > FEW or not readers <= {"exp", "gather"}:
        return None
    turned = made(aten.transpose.int, given, 1, 2)
    told = made(aten._log_softmax.default, turned.made[0], 1, False)
    return [turned, told, made(aten.transpose.int, told.made[0], 1, 2, result=call.made[0])]


def added(listing: Listing, place: int) -> list[Call] | None:
    """A batched product that is added to a tensor in place, times a rate: the gradient of a layer to its weights.

    The smaller factor is multiplied by the rate, whether that is a number or a tensor, so that both give the same bits.
    """
    call = listing.calls[place]
    if call.name not in {"add_", "addcmul_"} or not isinstance(call.args[1], Value):
        return None
    into, value, *rates = call.args
    rates += call.kwargs.values()
    if any(isinstance(one, Value) and one.tensor.dim() > 0 for one in rates):
        return None
    turned = listing.maker(value, "transpose")
    product = value if turned is None else turned.args[0]
    multiplied = listing.maker(product, "bmm")
    if multiplied is None or not listing.once(value) or not listing.once(product):
        return None
    alike = into.tensor.shape == value.tensor.shape and into.tensor.dtype == value.tensor.dtype
    apart = into.memory not in memories(multiplied.args)
    flipped = turned is None or {one % 3 for one in turned.args[1:]} == {1, 2}
    if not (alike and apart and flipped) or not listing.steady(multiplied.args, product, place):
        return None
    factors, before = multiplied.args, list[Call]()
    if turned is not None:
        before = [made(aten.transpose.int, one, 1, 2) for one in reversed(factors)]
        factors = [one.made[0] for one in before]
    small = min((0, 1), key=lambda n: factors[n].tensor.numel())
    for factor in rates:
        if isinstance(factor, Value) or factor != 1:
            before.append(made(aten.mul.Tensor, factors[small], factor))
            factors = [before[-1].made[0] if n == small else one for n, one in enumerate(factors)]
    return [*before, Call(aten.baddbmm_.default, [into, *factors], {}, [None], [into])]


def patched(listing: Listing, place: int) -> list[Call] | None:
    """A convolution of a stack whose inputs need no gradient, such as a first layer, or its gradient to the weights.

    It has one group for each client. As batched products with the same patches of the inputs, both take half the time,
    if there are few channels.
    """
    call = listing.calls[place]
    if call.name not in {"convolution", "convolution_backward"}:
        return None
    back = call.name == "convolution_backward"
    inputs, weight = call.args[1:3] if back else call.args[:2]
    stride, padding, dilation, transposed, _, groups = call.args[4:10] if back else call.args[3:9]
    gradients = [one for one in listing.readers.get(inputs, []) if one.name == "convolution_backward"]
    last = bool(gradients) and all(one.args[1] is inputs and one.args[10] == [False, True, False] for one in gradients)
    narrow = inputs.tensor.shape[1] <= NARROW * groups
    if (
        not (last and narrow)
        or groups == 1
        or transposed
        or set(dilation) != {1}
        or (not back and call.args[2] is not None)
    ):
        return None
    filters, kernel = weight.tensor.shape[0] // groups, list(weight.tensor.shape[2:])
    axes, places = len(kernel), (call.args[0] if back else call.made[0]).tensor.shape[2:]
    batch, channels = inputs.tensor.shape[0], inputs.tensor.shape[1] // groups
    spatial, inside = [*range(3, 3 + axes)], [*range(3 + axes, 3 + 2 * axes)]
    calls: list[Call] = []

    def then(func: Any, *args: Any, **kwargs: Any) -> Value:
        calls.append(made(func, *args, **kwargs))
        return calls[-1].made[0]

    def copied(one: Value, order: list[int]) -> Value:
        return then(aten.clone.default, then(aten.permute.default, one, order), memory_format=torch.contiguous_format)

    def split(one: Value) -> Value:
        """``(batch, clients * channels, ...)`` as ``(batch, clients, channels, ...)``, if it can, before a copy."""
        shape = [batch, groups, -1, *one.tensor.shape[2:]]
        copy = listing.maker(one, "view", "_unsafe_view")
        before = None if copy is None else listing.maker(copy.args[0], "clone")
        if before is not None and listing.steady(before.args[:1], before.made[0], place):
            source: Value = before.args[0]
            if source.tensor.dim() == 3 + axes and source.tensor.shape[:2] == (batch, groups):
                return source
        return then(aten.view.default, one, shape)

    patches = split(inputs)
    if any(padding):
        around = [one for each in reversed(padding) for one in (each, each)]
        patches = then(aten.constant_pad_nd.default, patches, around, 0.0)
    for axis in range(axes):
        patches = then(aten.unfold.default, patches, 3 + axis, kernel[axis], stride[axis])
    patches = copied(patches, [1, 2, *inside, 0, *spatial])
    patches = then(aten.view.default, patches, [groups, channels * math.prod(kernel), batch * math.prod(places)])
    if back:
        slopes = copied(split(call.args[0]), [1, 2, 0, *spatial])
        slopes = then(aten.view.default, slopes, [groups, filters, batch * math.prod(places)])
        product = then(aten.bmm.default, slopes, then(aten.transpose.int, patches, 1, 2))
        return [*calls, made(aten.view.default, product, list(weight.tensor.shape), result=call.made[0])]
    flat = then(aten.view.default, weight, [groups, filters, channels * math.prod(kernel)])
    product = then(aten.view.default, then(aten.bmm.default, flat, patches), [groups * filters, batch, *places])
    order = [1, 0, *range(2, 2 + axes)]
    return [*calls, made(aten.permute.default, product, order, result=call.made[0])]


def pooled(listing: Listing, place: int) -> list[Call] | None:
    """The largest of two neighbours, or of two by two, for which PyTorch's own kernel takes more than twice as long.

    Neighbours in a row are compared first, so that of equal ones the index is that of the same one.
    """
    call = listing.calls[place]
    if call.name != "max_pool2d_with_indices":
        return None
    usual: list[Any] = [[], [0, 0], [1, 1], False]
    given, kernel, stride, padding, dilation, ceil = [*call.args, *usual[len(call.args) - 2 :]]
    halved = len(kernel) == 2 and set(kernel) <= {1, 2} and (stride or kernel) == kernel
    if not halved or {*padding} != {0} or {*dilation} != {1} or ceil:
        return None
    high, wide = kernel
    rows, columns = call.made[0].tensor.shape[-2:]
    width = given.tensor.shape[-1]
    calls: list[Call] = []

    def then(func: Any, *args: Any, **kwargs: Any) -> Value:
        calls.append(made(func, *args, **kwargs))
        return calls[-1].made[0]

    def each(one: Value, axis: int, size: int, number: int) -> list[Value]:
        return [then(aten.slice.Tensor, one, axis, n, size * number, size) for n in range(size)]

    def larger(one: Value, axis: int, size: int, number: int) -> tuple[Value, Value | None]:
        """The larger of neighbours along an axis, and whether it is the second one."""
        parts = each(one, axis, size, number)
        if size == 1:
            return parts[0], None
        return then(aten.maximum.default, *parts), then(aten.gt.Tensor, *reversed(parts))

    best, right = larger(given, -1, wide, columns)
    best, down = larger(best, -2, high, rows)
    first = torch.arange(rows).unsqueeze(1) * high * width + torch.arange(columns) * wide
    places = Value(first.to(given.tensor.device), None, True, True)
    if down is not None:
        places = then(aten.add.Tensor, places, down, alpha=width)
    if right is not None:
        sides = each(right, -2, high, rows)
        side = sides[0]
        if down is not None:  # the second where it is down: bits are flipped faster than values are chosen
            flipped = then(aten.bitwise_and.Tensor, down, then(aten.bitwise_xor.Tensor, *sides))
            side = then(aten.bitwise_xor.Tensor, side, flipped)
        places = then(aten.add.Tensor, places, side)
    return [
        *calls,
        made(aten.alias.default, best, result=call.made[0]),
        made(aten.alias.default, places, result=call.made[1]),
    ]


PLAIN: Sequence[Rule] = (certain, passed, straight, biased, slope, thin, added)
"""Rules whose results lie in memory as they did before."""
RULES: Sequence[Rule] = (*PLAIN, pooled, patched)


def simplified(calls: list[Call], still: Sequence[Tensor] = (), rules: Sequence[Rule] = RULES) -> list[Call]:
    """Calls with the same effect that take less time.

    Args:
        calls: recorded calls.
        still: tensors from before the calls that never change, such as the targets of all examples.
        rules: the rules to apply, in this order.
    """
    calls = distinct(calls)
    for rule in rules:
        place, listing = 0, Listing(calls, still)
        while place < len(listing.calls):
            found = rule(listing, place)
            if found is not None:
                calls = listing.calls
                listing = Listing([*calls[:place], *found, *calls[place + 1 :]], still)
            place += 1 if found is None else len(found)
        calls = needed(distinct(listing.calls))
    return calls


def distinct(calls: list[Call]) -> list[Call]:
    """The calls, each made only once if it has the same arguments again."""
    changed = {one.memory for call in calls for one in call.changed}
    same: dict[Value, Value] = {}
    once: dict[str, Call] = {}
    found: list[Call] = []

    def first(one: Any) -> Any:
        if isinstance(one, list):
            return [first(part) for part in one]
        return same.get(one, one) if isinstance(one, Value) else one

    for call in calls:
        if not same.keys().isdisjoint(call.read):
            call = replace(call, args=first(call.args), kwargs={k: first(v) for k, v in call.kwargs.items()})
        if call.passes:
            same[call.made[0]] = call.read[0]
            continue
        if call.made and not changed & memories([*call.read, *call.made]):
            before = once.setdefault(told(call), call)
            if before is not call:
                same |= zip(call.made, before.made, strict=True)
                continue
        found.append(call)
    return found


def told(call: Call) -> str:
    """A call as text: equal if it has the same arguments."""

    def text(one: Any) -> str:
        if isinstance(one, list):
            return f"[{', '.join(map(text, one))}]"
        return f"v{id(one)}" if isinstance(one, Value) else repr(one)

    return f"{call.func} {text(call.args)} {[(name, text(one)) for name, one in call.kwargs.items()]}"


def needed(calls: list[Call]) -> list[Call]:
    """The calls that a repetition has to make.

    Results that are the same each time are fixed, as are views of fixed tensors. Calls are left out if nothing reads
    their results, and they change nothing that is read later or that exists before the work.
    """
    changed = {one.memory for call in calls for one in call.changed}
    found: list[Call] = []
    for call in calls:
        always = call.name in ALWAYS and not call.read
        known = always or call.name in FILLED or (bool(call.read) and all(one.same for one in call.read))
        if call.made and known and not changed & {one.memory for one in call.made}:
            for one in call.made:
                one.fixed = one.same = True
        if call.changed or not call.made or not all(one.fixed for one in call.made):
            found.append(call)
    live: list[Call] = []
    read: set[Value] = set()
    for call in reversed(found):
        if read.intersection(call.made) or any(one.memory.fixed or one.memory in read for one in call.changed):
            live.append(call)
            read.update(call.read, (one.memory for one in call.read))
    return live[::-1]
