"""Rules that make recorded steps cheaper: each does what it says, and leaves what it must not touch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plures.run.calls import Call
from plures.run.script import script
from plures.run.simplify import needed, simplified
from plures.run.tape import Tape, Tapes

CLIENTS, BATCH, CLASSES, FEATURES = 3, 4, 5, 6
drawn = torch.Generator().manual_seed(0)
X = torch.randn(CLIENTS, BATCH, FEATURES, generator=drawn, dtype=torch.float64)
TARGETS = torch.randint(0, CLASSES, (20,), generator=drawn)
ROWS = torch.randint(0, 20, (CLIENTS, BATCH), generator=drawn)


def step(weight: Tensor, bias: Tensor, targets: Tensor, rate: Tensor | float) -> Callable[[], None]:
    """A step of softmax regression for a stack of clients, with padding, in place."""

    def loss(w: Tensor, b: Tensor, x: Tensor, y: Tensor, real: Tensor) -> Tensor:
        return (F.cross_entropy(F.linear(x, w, b), y, reduction="none") * real).sum() / real.sum()

    real = torch.ones(CLIENTS, BATCH, dtype=torch.float64)
    real[0, 2:] = 0

    def work() -> None:
        chosen = targets.index_select(0, ROWS.flatten()).view(CLIENTS, BATCH)
        slopes = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(weight, bias, X, chosen, real)
        for value, slope in zip((weight, bias), slopes, strict=True):
            if isinstance(rate, Tensor):
                value.addcmul_(slope, rate, value=-1.0)
            else:
                value.add_(slope, alpha=-rate)

    return work


def leaves() -> tuple[Tensor, Tensor]:
    given = torch.Generator().manual_seed(1)
    shapes = (CLIENTS, CLASSES, FEATURES), (CLIENTS, CLASSES)
    weight, bias = (torch.randn(shape, generator=given, dtype=torch.float64) for shape in shapes)
    return weight, bias


def recorded(work: Callable[[], None]) -> list[Call]:
    with Tape() as tape:
        work()
    return needed(tape.calls)


def names(calls: list[Call]) -> list[str]:
    return [call.name for call in calls]


def by_hand(weight: Tensor, bias: Tensor, rate: float) -> None:
    """The same step by the formula of the gradient: probabilities less 1 for the right class."""
    chosen, count = TARGETS[ROWS], torch.tensor([2.0, 4.0, 4.0], dtype=torch.float64)
    for client in range(CLIENTS):
        real = slice(0, int(count[client]))
        x = X[client, real]
        slope = (x @ weight[client].T + bias[client]).softmax(1) - F.one_hot(chosen[client, real], CLASSES)
        weight[client] -= rate * slope.T @ x / count[client]
        bias[client] -= rate * slope.sum(0) / count[client]


@pytest.mark.parametrize("still", [True, False])
@pytest.mark.parametrize("tensor", [True, False])
def test_a_step_of_softmax_regression_is_that_by_hand(still, tensor):
    weight, bias = leaves()
    expected = leaves()
    rate = torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1
    repeat = Tapes([TARGETS] if still else [])(step(weight, bias, TARGETS, rate))
    for times in (0, 1, 3):
        if times:
            repeat(times)
        for _ in range(max(1, times)):
            by_hand(*expected, 0.1)
        torch.testing.assert_close((weight, bias), expected, rtol=1e-12, atol=1e-13)


def test_its_operations():
    """The loss ignores no class, weights are updated by the product itself, and the gradient is one formula."""
    weight, bias = leaves()
    calls = recorded(step(weight, bias, TARGETS, 0.1))
    assert {"where", "_log_softmax_backward_data", "bmm"} <= set(names(calls))
    fewer = names(simplified(calls, [TARGETS]))
    assert not {"where", "ne", "_log_softmax_backward_data", "bmm"} & set(fewer)
    assert {"baddbmm", "baddbmm_", "exp"} <= set(fewer)
    assert fewer.count("sum") == 2, "the loss of a batch and the gradient of the bias; examples are not counted"
    assert "_to_copy" not in fewer
    assert len(fewer) <= 3 * len(calls) // 4
    assert "where" in names(simplified(recorded(step(weight, bias, TARGETS, 0.1))))


def test_targets_that_the_loss_ignores_stay_ignored():
    targets = TARGETS.clone()
    targets[ROWS[0, 0]] = -100
    weight, bias = leaves()
    calls = simplified(recorded(step(weight, bias, targets, 0.1)), [targets])
    assert "where" in names(calls)


def test_a_rate_that_is_read_gives_the_bits_of_a_fixed_one():
    found = []
    for rate in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        weight, bias = leaves()
        Tapes([TARGETS])(step(weight, bias, TARGETS, rate))(3)
        found.append(weight)
    assert torch.equal(*found)


def test_a_product_is_not_added_where_its_factors_change_before():
    """The product is of the old factor, so it must be taken before the factor changes."""
    state, factor = torch.ones(1, 2, 2), torch.full((1, 2, 2), 2.0)

    def work() -> None:
        product = torch.bmm(factor, factor)
        factor.add_(1)
        state.add_(product)

    calls = simplified(recorded(work))
    assert names(calls) == ["bmm", "add_", "add_"]
    repeat = Tapes()(work)
    repeat(1)
    assert state.flatten().tolist() == [1 + 2 * 2**2 + 2 * 3**2 + 2 * 4**2] * 4


def test_a_product_that_is_read_twice_is_made_once():
    state, other, factor = torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.full((1, 2, 2), 2.0)

    def work() -> None:
        product = torch.bmm(factor, factor)
        state.add_(product)
        other.add_(product)

    assert names(simplified(recorded(work))) == ["bmm", "add_", "add_"]


def test_a_product_with_the_tensor_that_it_is_added_to():
    state, factor = torch.ones(1, 2, 2), torch.full((1, 2, 2), 2.0)

    def work() -> None:
        state.add_(torch.bmm(state, factor))

    assert names(simplified(recorded(work))) == ["bmm", "add_"]
    Tapes()(work)(1)
    assert state.flatten().tolist() == [125.0] * 4


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 0), (1, 2), (3, 1)])
def test_a_first_convolution_of_a_stack_becomes_a_product_of_patches(axes, stride, padding):
    """Only where its inputs need no gradient: the second one stays, and both give what they gave before."""
    convolve = (F.conv1d, F.conv2d)[axes - 1]
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    inputs, first, second = drawn(4, 5, 2, *[11] * axes), drawn(4, 3, 2, *[3] * axes), drawn(4, 2, 3, *[2] * axes)
    biases = drawn(4, 3)

    def loss(weights: list[Tensor], x: Tensor) -> Tensor:
        one, two, bias = weights
        return convolve(convolve(x, one, bias, stride=stride, padding=padding).relu(), two).square().mean()

    def stepped(weights: list[Tensor]) -> Callable[[], None]:
        def work() -> None:
            x = inputs.index_select(0, torch.arange(len(inputs)))
            slopes = torch.func.vmap(torch.func.grad(loss))(weights, x)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.sub_(slope, alpha=0.1)

        return work

    recorded, plain, others = ([first.clone(), second.clone(), biases.clone()] for _ in range(3))
    with Tape() as tape:
        stepped(others)()
    found = [call.name for call in simplified(needed(tape.calls))]
    assert [found.count(name) for name in ("convolution", "convolution_backward", "bmm", "unfold")] == [1, 1, 2, axes]
    repeat, work = Tapes()(stepped(recorded)), stepped(plain)
    work()
    for _ in range(3):
        repeat(1)
        work()
    torch.testing.assert_close(recorded, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "kernel"), [((7, 9), (2, 2)), ((6, 6), (2, 2)), ((1, 9), (1, 2)), ((6, 4), (2, 1))])
def test_the_largest_of_neighbours_and_its_place_are_those_of_the_kernel(shape, kernel):
    """Among equal neighbours, of which whole numbers up to two have many, the place is that of the same one."""
    x = torch.zeros(3, 4, *shape)
    largest, places = torch.ops.aten.max_pool2d_with_indices(x, list(kernel), list(kernel))

    def work() -> None:
        found = torch.ops.aten.max_pool2d_with_indices(x, list(kernel), list(kernel))
        largest.copy_(found[0])
        places.copy_(found[1])

    calls = simplified(recorded(work))
    assert "max_pool2d_with_indices" not in names(calls)
    repeat = script(calls)  # a tape would leave out rules that differ
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x.copy_(torch.randint(-1, 3, x.shape, generator=generator))
        wanted = torch.ops.aten.max_pool2d_with_indices(x, list(kernel), list(kernel))
        repeat(1)
        assert torch.equal(largest, wanted[0])
        assert torch.equal(places, wanted[1])


@pytest.mark.parametrize(
    "options", [([3, 3], [3, 3]), ([2, 2], [1, 1]), ([2, 2], [2, 2], [1, 1]), ([2, 2], [2, 2], [0, 0], [2, 2])]
)
def test_other_pooling_stays(options):
    x, largest = torch.zeros(2, 3, 8, 8), torch.zeros(())

    def work() -> None:
        largest.copy_(torch.ops.aten.max_pool2d_with_indices(x, *options)[0].sum())

    assert "max_pool2d_with_indices" in names(simplified(recorded(work)))
