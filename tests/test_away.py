"""The fake device (``away.py``) behaves like CUDA: it refuses the same mixtures and computes the same values."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from away import AWAY, Away, pretended


@pytest.fixture(autouse=True)
def device():
    with pretended():
        yield


def there(*shape: int) -> torch.Tensor:
    return torch.ones(shape).to(AWAY)


PLACE, MASK = torch.tensor([1, 0]), torch.tensor([True, False, True])

REFUSED = {
    "sum": lambda: there(3) + torch.ones(3),
    "sum in place": lambda: there(3).add_(torch.ones(3)),
    "sum into the CPU": lambda: torch.ones(3).add_(there(3)),
    "a scalar there, a vector here": lambda: torch.ones(3) * there(),
    "a scalar here, changed in place": lambda: torch.ones(()).add_(there()),
    "three operands": lambda: torch.addcmul(there(3), torch.ones(3), there(3)),
    "mask": lambda: torch.zeros(3, dtype=torch.bool).logical_or_(there(3).isfinite()),
    "where": lambda: torch.where(MASK, there(3), 0.0),
    "masked_fill": lambda: there(3).masked_fill(MASK, 0.0),
    "matmul": lambda: there(2, 3) @ torch.ones(3),
    "linear": lambda: F.linear(there(2, 3), torch.ones(4, 3)),
    "cat": lambda: torch.cat([there(3), torch.ones(3)]),
    "cat of nothing": lambda: torch.cat([there(3), torch.empty(0)]),
    "stack of scalars": lambda: torch.stack([there(), torch.ones(())]),
    "an index from there": lambda: torch.ones(3)[PLACE.to(AWAY)],
    "a mask from there": lambda: torch.ones(3)[MASK.to(AWAY)],
    "values from here": lambda: there(3).__setitem__(PLACE, torch.ones(2)),
    "index_select": lambda: there(3).index_select(0, PLACE),
    "index_add": lambda: there(3).index_add(0, PLACE, there(2)),
    "index_copy": lambda: there(3).index_copy(0, PLACE.to(AWAY), torch.ones(2)),
    "gather": lambda: there(3).gather(0, PLACE),
    "scatter_add": lambda: torch.zeros(3).scatter_add_(0, PLACE, there(2)),
    "embedding": lambda: F.embedding(PLACE, there(3, 2)),
    "searchsorted": lambda: torch.searchsorted(torch.ones(3), there(2)),
    "weights of bincount": lambda: torch.bincount(PLACE, there(2)),
    "equal": lambda: torch.equal(there(3), torch.ones(3)),
    "loss": lambda: F.cross_entropy(there(2, 3), PLACE),
    "generator": lambda: torch.rand(3, device=AWAY, generator=torch.Generator()),
    "numpy": lambda: there(3).numpy(),
    "mapped": lambda: torch.func.vmap(lambda row: row + torch.ones(3))(there(2, 3)),
    "gradient": lambda: torch.func.grad(lambda w: (w * torch.ones(3)).sum())(there(3)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_what_cuda_refuses(what):
    with pytest.raises((RuntimeError, TypeError), match=r"same device|generator|numpy\(\)"):
        REFUSED[what]()


def test_old_check_of_a_federation_is_found():
    """A mask made without a device, as in the check that stopped every federation on a GPU."""
    inputs = there(4, 2)
    bad = torch.zeros(len(inputs), dtype=torch.bool)
    with pytest.raises(RuntimeError, match="same device"):
        bad |= ~torch.isfinite(inputs).flatten(1).all(1)


ALLOWED = {
    "a scalar from here": (lambda x: x * torch.tensor(2.0) + 1, [1.0, 3.0, 5.0]),
    "scalars in where": (lambda x: torch.where(x > 0, x, torch.tensor(9.0)), [9.0, 1.0, 2.0]),
    "a scalar in masked_fill": (lambda x: x.masked_fill(x > 1, torch.tensor(9.0)), [0.0, 1.0, 9.0]),
    "an index from here": (lambda x: x[PLACE], [1.0, 0.0]),
    "a mask from here": (lambda x: x[MASK], [0.0, 2.0]),
    "a list": (lambda x: x[[2, 1]], [2.0, 1.0]),
    "an empty list": (lambda x: x[[]], []),
    "a slice": (lambda x: x[1:], [1.0, 2.0]),
    "copied from here": (lambda x: x.clone().copy_(torch.ones(3)), [1.0, 1.0, 1.0]),
    "copied to here and back": (lambda x: torch.zeros(3).copy_(x).to(x.device), [0.0, 1.0, 2.0]),
    "made there": (lambda x: x + torch.tensor([1.0, 1.0, 1.0], device=x.device), [1.0, 2.0, 3.0]),
    "made like it": (lambda x: x + x.new_tensor([1.0, 2.0, 3.0]) + torch.ones_like(x), [2.0, 4.0, 6.0]),
    "matmul": (lambda x: x @ torch.eye(3, device=x.device), [0.0, 1.0, 2.0]),
    "random": (lambda x: x + 0 * torch.rand(3, device=x.device), [0.0, 1.0, 2.0]),
    "mapped gradient": (torch.func.vmap(torch.func.grad(lambda w: w.square())), [0.0, 2.0, 4.0]),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_allows_what_cuda_allows(what):
    do, values = ALLOWED[what]
    found = do(torch.arange(3.0).to(AWAY))
    assert isinstance(found, Away)
    assert found.device.type == AWAY
    assert found.tolist() == values
    assert type(found.cpu()) is torch.Tensor


def test_changes_in_place():
    x = torch.arange(3.0).to(AWAY)
    x[[0, 1]] = 7.0
    x[PLACE] = x[1:] + 1
    x.view(3, 1)[0].add_(4)
    assert x.tolist() == [7.0, 8.0, 2.0]
    x.unsqueeze_(0)
    assert x.shape == (1, 3)
    assert (float(x.sum()), bool((x > 1).all()), int(x.argmax())) == (17.0, True, 1)


def test_a_module_trains_there_as_here():
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double()
    away, x = copy.deepcopy(here).to(AWAY), torch.rand(5, 3, dtype=torch.float64)
    for module, inputs in ((here, x), (away, x.to(AWAY))):
        grads = torch.autograd.grad(module(inputs).square().sum(), list(module.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(module.parameters(), grads, strict=True):
                parameter.sub_(0.1 * grad)
    for key, value in here.state_dict().items():
        moved = away.state_dict()[key]
        assert isinstance(moved, Away)
        torch.testing.assert_close(moved.cpu(), value, atol=1e-12, rtol=0)
