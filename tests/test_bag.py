"""Sums of listed rows are a linear layer on binary features, for one client and for a stack, to any derivative."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from plures import Execution, Run, Training, from_arrays
from plures.methods import fedavg
from plures.models import gcn
from plures.models.bag import Bag, Slopes, Sums, summed

VOCABULARY, UNITS, CLIENTS = 6, 3, 2


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def listed(*shape: int) -> Tensor:
    """Numbers -1 to the vocabulary; 0 and -1 are no feature, and some are listed twice."""
    return torch.randint(-1, VOCABULARY + 1, shape, generator=torch.Generator().manual_seed(1))


def counts(numbers: Tensor) -> Tensor:
    """How often each row lists each feature, ``(..., vocabulary)``."""
    names = torch.arange(1, VOCABULARY + 1)
    return (numbers.unsqueeze(-1) == names).sum(-2).double()


def test_sums_by_hand():
    layer = Bag(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]))
        assert layer.bias is not None
        layer.bias.copy_(torch.tensor([0.5, 0.0]))
    numbers = torch.tensor([[1, 3, 0], [2, 2, -1], [0, 0, 0]], dtype=torch.int32)
    assert layer(numbers).tolist() == [[5.5, 50.0], [4.5, 40.0], [0.5, 0.0]]
    layer(numbers).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5), (0, 5), (1, 1)])
def test_sums_are_a_product_with_the_matrix_of_counts(shape: tuple[int, ...]):
    weight, numbers = drawn(VOCABULARY, UNITS), listed(*shape)
    torch.testing.assert_close(Sums.of(weight, numbers), counts(numbers) @ weight)
    slope = drawn(*shape[:-1], UNITS)
    expected = counts(numbers).flatten(0, -2).T @ slope.flatten(0, -2)
    torch.testing.assert_close(Slopes.of(slope, numbers, VOCABULARY), expected)


def test_each_function_is_the_derivative_of_the_other():
    numbers = listed(4, 5)
    for function, given in (
        (lambda weight: Sums.of(weight, numbers), drawn(VOCABULARY, UNITS)),
        (lambda slope: Slopes.of(slope, numbers, VOCABULARY), drawn(4, UNITS)),
    ):
        assert torch.autograd.gradcheck(function, given.requires_grad_())
        assert torch.autograd.gradgradcheck(lambda values, function=function: function(values).sin(), given)


@pytest.mark.parametrize("mapped", [(0, 0), (0, None), (None, 0), (1, 2)])
def test_a_stack_has_the_sums_and_gradients_of_each_client(mapped: tuple[int | None, int | None]):
    weights, numbers = drawn(CLIENTS, VOCABULARY, UNITS), listed(CLIENTS, 4, 5)

    def loss(weight: Tensor, numbers: Tensor) -> Tensor:
        return Sums.of(weight, numbers).sin().sum()

    def second(weight: Tensor, numbers: Tensor) -> Tensor:
        return grad(loss)(weight, numbers).square().sum()

    own = [[values[0 if place is None else client] for client in range(CLIENTS)]
           for values, place in zip((weights, numbers), mapped, strict=True)]  # fmt: skip
    given = [values[0] if place is None else values.movedim(0, place)
             for values, place in zip((weights, numbers), mapped, strict=True)]  # fmt: skip
    for function in (Sums.of, grad(loss), grad(second)):
        expected = torch.stack([function(*one) for one in zip(*own, strict=True)])
        torch.testing.assert_close(vmap(function, mapped)(*given), expected)


def test_stacks_of_stacks():
    """Three models of each client on the client's own examples."""
    weights, numbers = drawn(3, CLIENTS, VOCABULARY, UNITS), listed(CLIENTS, 4, 5)

    def slopes(weight: Tensor, numbers: Tensor) -> Tensor:
        return grad(lambda weight: Sums.of(weight, numbers).sin().sum())(weight)

    found = vmap(vmap(slopes, (0, None)), (1, 0))(weights, numbers)
    each = [[slopes(weights[model, client], numbers[client]) for model in range(3)] for client in range(CLIENTS)]
    torch.testing.assert_close(found, torch.stack([torch.stack(models) for models in each]))


def test_a_compiled_graph_gets_the_same_numbers_from_a_lookup(monkeypatch: pytest.MonkeyPatch):
    weight, numbers = drawn(VOCABULARY, UNITS), listed(4, 5)
    expected = summed(weight, numbers)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(Sums, "of", None)
    torch.testing.assert_close(summed(weight, numbers), expected)


def test_recorded_stacks_of_graph_networks_are_those_of_clients_one_by_one():
    numbers = listed(24, 7, 4)
    data = from_arrays(numbers, torch.arange(24) % 2, ["a"] * 9 + ["b"] * 15, copies="allow", dtype=torch.int32)
    found = []
    for execution in (Execution("loop", 1, False), Execution("vmap", 2, False, capture=True)):
        training = Training(rounds=2, batch_size=4)
        network = partial(gcn, (7, 4), 2, vocabulary=VOCABULARY, hidden=4)
        run = Run(data, network, fedavg(), training, execution=execution)
        for _ in run.rounds():
            pass
        found.append(run.predictors([0, 1]))
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name])
