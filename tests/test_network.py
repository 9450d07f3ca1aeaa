"""Modules as pure functions of their leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from plures.errors import PluresError
from plures.models import Network, build, with_roles
from plures.models.layers import KeyedDropout, uniform
from trajectories import Hidden, SelfAttention, encoder, normed

KEY = torch.tensor(12345)


def test_a_call_changes_neither_module_nor_leaves_and_returns_new_statistics():
    module = normed().double()
    network, before = Network(module), copy.deepcopy(module.state_dict())
    leaves = network.leaves()
    kept = {path: t.clone() for path, t in leaves.items()}
    x = torch.randn(9, 6, dtype=torch.float64)
    outputs, fresh = network(leaves, x, train=True)
    plain = copy.deepcopy(module).train()
    assert torch.equal(outputs, plain(x))
    assert set(fresh) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for path, value in fresh.items():
        assert torch.equal(value, plain.state_dict()[path])
    for path, value in leaves.items():
        assert torch.equal(value, kept[path])
        assert torch.equal(module.state_dict()[path], before[path])
    moved, none = network(leaves | fresh, x, train=False)
    assert torch.equal(moved, plain.eval()(x))
    assert none == {}


def test_the_live_copy_gives_what_substitution_gives():
    for module in (normed(), nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 3))):
        network, x = Network(module), torch.randn(8, 6)
        for train in (True, False):
            live, kept = network(network.live, x, train=train, key=KEY)
            other, expected = network(dict(network.live), x, train=train, key=KEY)
            assert torch.equal(live, other)
            assert kept.keys() == expected.keys()
            assert all(torch.equal(kept[path], expected[path]) for path in kept)


@pytest.mark.parametrize("whole", [True, False], ids=["layer", "parameter"])
def test_what_two_parts_share_is_substituted_in_both_and_left_in_place(whole):
    first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    last.weight = first.weight
    module = nn.Sequential(first, nn.Tanh(), first if whole else last)
    network = Network(module if whole else with_roles(module, head="2"))
    x, other = torch.randn(5, 4), torch.randn(4, 4)
    before = network(network.live, x, train=False)[0]
    assert list(network.live) == ["0.weight"]
    outputs, _ = network({"0.weight": other}, x, train=False)
    assert torch.equal(outputs, (x @ other.T).tanh() @ other.T)
    many = torch.func.vmap(lambda w: network({"0.weight": w}, x, train=False)[0])(torch.stack([other, -other]))
    torch.testing.assert_close(many, torch.stack([outputs, outputs]))
    assert torch.equal(network(network.live, x, train=False)[0], before)
    if not whole:
        assert torch.equal(network.part("head", {"0.weight": other}, x), x @ other.T)


def test_dropout_is_a_function_of_its_key():
    network = Network(nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 3)))
    x, leaves = torch.randn(4, 6), network.leaves()
    one, again, other = (network(leaves, x, train=True, key=k)[0] for k in (KEY, KEY, KEY + 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    evaluated = network(leaves, x, train=False, key=KEY)[0]
    assert torch.equal(evaluated, network(leaves, x, train=False)[0])


def test_keyed_numbers_are_uniform_and_unrelated_between_keys():
    keys = torch.randint(2**32, (50,), generator=torch.Generator().manual_seed(0))
    draws = torch.stack([uniform(key, 2000) for key in keys])
    assert ((draws >= 0) & (draws < 1)).all()
    counts = torch.histc(draws, 20, 0, 1)
    expected = draws.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum().item() < 19 + 5 * 38**0.5
    assert (torch.corrcoef(draws) - torch.eye(50)).abs().max().item() < 5.5 / 2000**0.5
    neighbours = torch.corrcoef(torch.stack([draws[:, :-1].flatten(), draws[:, 1:].flatten()]))
    assert abs(neighbours[0, 1].item()) < 5 / draws.numel() ** 0.5


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(p):
    layer = KeyedDropout(p, 1).train()
    assert torch.equal(layer(torch.ones(5, 5)), torch.full((5, 5), 1 - p))


def test_feature_dropout_drops_whole_features():
    network = Network(nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(8, 8, 1, bias=False)))
    leaves = network.leaves() | {"1.weight": torch.eye(8).view(8, 8, 1, 1)}
    seen = network(leaves, torch.ones(3, 8, 4, 4), train=True, key=KEY)[0]
    assert set(seen.flatten(2).mean(2).unique().tolist()) == {0.0, 2.0}
    assert set(seen.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("module", "features", "mapped"),
    [
        (normed(), (6,), True),
        (nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), (6,), True),
        (SelfAttention(), (5, 4), True),
        (encoder(), (5, 4), True),
        (nn.LSTM(2, 3, 1), (5, 2), True),
        (SelfAttention(0.1), (5, 4), False),
        (encoder(0.1), (5, 4), False),
        (Hidden(), (6,), False),
        (nn.Sequential(nn.Linear(6, 3), nn.RReLU()), (6,), False),
    ],
)
def test_hidden_randomness_is_found_by_a_probe(module, features, mapped):
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.module(x)
            return out[0] if isinstance(out, tuple) else out

    network = Network(First())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    network.probe(torch.randn(8, *features))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (network.unmappable is None) == mapped
    if not mapped:
        x, leaves = torch.randn(8, *features), network.leaves()
        one, again, other = (network(leaves, x, train=True, key=k)[0] for k in (KEY, KEY, KEY + 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_a_probe_leaves_the_generator_as_it_was():
    network = Network(Hidden())
    state = torch.get_rng_state()
    network.probe(torch.zeros(2, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert network.random


def test_sparse_embeddings_cannot_be_stacked():
    assert "sparse" in str(Network(nn.Sequential(nn.Embedding(5, 3, sparse=True))).unmappable)


def test_roles_and_buffers_of_the_leaves():
    info = Network(normed()).info
    assert info["0.weight"].roles == {"body"}
    assert info["3.bias"].roles == {"head"}
    assert info["1.running_mean"].buffer
    assert info["1.running_mean"].module is nn.BatchNorm1d
    assert not info["1.weight"].buffer
    with pytest.raises(PluresError, match="no part 'tail'"):
        with_roles(nn.Linear(2, 2), head="tail")
    with pytest.raises(PluresError, match="nothing to train"):
        Network(nn.BatchNorm1d(3, affine=False))


def test_build_is_a_function_of_the_seed():
    one, again, other = (build(normed, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[path], again[path]) for path in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    given = normed()
    for seed in (0, 3):
        copied = build(given, seed)
        assert copied is not given
        assert all(torch.equal(value, given.state_dict()[path]) for path, value in copied.state_dict().items())
