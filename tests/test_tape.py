"""Tapes repeat work on the same memory, with fewer operations, and refuse what they could not repeat."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from plures.run.capture import sizes
from plures.run.tape import Tape, Tapes, needed


def changing(state: Tensor, other: Tensor) -> dict[str, Callable[[], object]]:
    """Works that change ``state`` in ways that a tape could get wrong."""
    mean, count = torch.zeros(3), torch.zeros((), dtype=torch.int64)
    whole = state.view(6)

    def fresh() -> None:
        total = torch.zeros(2, 3)
        total.add_(other)
        total[0].mul_(state.sum())
        state.copy_(total)

    def several() -> None:
        largest, place = state.max(1)
        first, second = other.unbind()
        state.add_(torch.stack([first * largest[0], second + place[1]]))

    def repeated() -> None:
        state.add_((other * 2).exp() + (other * 2).exp())

    def read_again() -> None:
        before = state * 2
        state.add_(1)
        state.add_(before * (state * 2))

    def shaped() -> None:
        state.view(3, 2).t().add_(other.view(2, 3).expand(2, 3).detach())

    def overlapping() -> None:
        whole[:4].add_(1)
        state[0].mul_(2)
        whole[2:].sub_(other.view(6)[2:])

    def statistics() -> None:
        count.add_(1)
        state.copy_(batch_norm(state + other, mean, torch.ones(3), training=True) * count)

    def graph() -> None:
        with torch.enable_grad():
            leaf = state.detach().requires_grad_()
            (slope,) = torch.autograd.grad((leaf.tanh() * other).square().sum(), [leaf])
        state.sub_(slope, alpha=0.1)

    def mapped() -> None:
        def loss(row: Tensor, weight: Tensor) -> Tensor:
            return torch.logsumexp(row * weight, 0)

        state.sub_(0.1 * torch.func.vmap(torch.func.grad(loss))(state, other))

    works = fresh, several, repeated, read_again, shaped, overlapping, statistics, graph, mapped
    return {work.__name__: work for work in works}


NAMES = list(changing(torch.zeros(2, 3), torch.zeros(2, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_a_repetition_does_what_the_work_does(name):
    start, other = torch.arange(6.0).view(2, 3) / 7, torch.arange(6.0).view(2, 3).flip(0) / 5
    recorded, plain = start.clone(), start.clone()
    repeat, work = Tapes()(changing(recorded, other)[name]), changing(plain, other)[name]
    work()
    for _ in range(3):
        torch.testing.assert_close(recorded, plain, rtol=1e-6, atol=1e-6)
        repeat(1)
        work()


def test_what_differs_from_time_to_time_is_refused():
    state, calls = torch.ones(3), []

    def counting() -> None:
        calls.append(None)
        state.add_(len(calls))

    refused: dict[str, Callable[[], object]] = {
        "differs from the step": counting,
        "gives another result each time": lambda: state.add_(torch.rand(3)),
        "or one that Python reads": lambda: state.add_(1) if state.sum() > 0 else None,
    }
    for said, work in refused.items():
        with pytest.raises(RuntimeError, match=said):
            Tapes()(work)


def test_only_what_is_needed_is_repeated():
    """A view of a given tensor, what is the same each time, and what nothing reads are left out."""
    state, given = torch.ones(3), torch.ones(2, 3)
    with Tape() as tape:
        first = given[0]
        same = torch.arange(3)
        state.exp()
        state.add_(first * same)
    assert {call.name for call in tape.calls} >= {"select", "arange", "exp", "mul", "add_"}
    assert [call.name for call in needed(tape.calls)] == ["mul", "add_"]


def test_sizes_of_stacks_shrink_to_one_client():
    assert sizes(20, 0.5) == [20, 10, 5, 3, 2, 1]
    assert sizes(10, 0.75) == [10, 8, 6, 5, 4, 3, 2, 1]
    assert sizes(1, 0.75) == [1]
