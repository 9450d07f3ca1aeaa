"""What a method costs a client, against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plures
from plures.federation import SplitRule
from plures.method import Setting
from plures.models import Network
from plures.models.operations import Operations
from plures.run import Training
from plures.run.cost import flops


@pytest.mark.parametrize(
    ("training", "examples"),
    [
        (Training(batch_size=3, epochs=2), 14),
        (Training(batch_size=7), 7),
        (Training(batch_size=3, epochs=None, steps=4), 10),
    ],
    ids=["batches of 3, 3 and 1, twice", "one batch", "four steps: the fourth begins another pass"],
)
@pytest.mark.parametrize(("name", "models"), [("fedavg", 1), ("ditto", 2)])
def test_operations_of_a_linear_model(training: Training, examples: int, name: str, models: int):
    """An example costs 3 x 2 multiplications and as many additions, forward and again for the gradient."""
    sizes = (4, 7, 9)  # the client of median size counts
    x, y = torch.randn(sum(sizes), 3).numpy(), torch.arange(sum(sizes)).numpy() % 2
    clients = [client for client, size in zip("abc", sizes, strict=True) for _ in range(size)]
    data = plures.from_arrays(x, y, clients, split=SplitRule(validation=0, test=0))
    bound = plures.METHODS[name]().bind(Network(torch.nn.Linear(3, 2)), Setting.of(data))
    assert flops(bound, data, training) == models * examples * 2 * (2 * 3 * 2)


@pytest.mark.parametrize("inferring", [False, True])
def test_operations_are_those_of_pytorchs_counter(inferring: bool):
    """Of convolutions, attention and mapped products; without gradients, layers reach the counter whole."""
    torch.manual_seed(0)
    picture, words = torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x, stack = torch.randn(2, 3, 9, 9), torch.randn(5, 8, 6)

    def work() -> None:
        found = words(picture(x).flatten(2).unfold(2, 8, 8).flatten(1, 2))
        found = found.sum() + torch.func.vmap(lambda one: one @ one.T)(stack).sum()
        if not inferring:
            found.backward()

    with torch.inference_mode(inferring):
        with FlopCounterMode(display=False) as slow:
            work()
        with Operations() as counted:
            work()
    assert counted.total == slow.get_total_flops() > 0
