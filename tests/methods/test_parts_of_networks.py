"""Clients that hold parts of one network: against numbers by hand, plain loops and networks that really are smaller."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cutting import one_hidden, small
from plures.codecs import TopK
from plures.errors import PluresError
from plures.federation import Split
from plures.method import Combine, Method, Mixed, Personal, Sizes, head
from plures.methods import ditto, fedavg, fedper, fedprox, fjord, heterofl, hetlora, ifca, lora
from plures.models import har_cnn, mlp, resnet
from plures.models.footprint import footprint
from plures.models.reference import NETWORKS
from plures.models.widths import check, narrowed, widths_of
from plures.remote.clients import insist_on_one_size
from plures.robust import Median
from plures.run import Execution, Fixed, Run, Training, onboard
from plures.run.cost import alone, flops, traffic, traffics
from plures.serving.device import memory, sizes
from points import pictures, two_points
from problems import EXACT, begun, close, near, run, same
from shifted import ragged

LOOP = Execution("loop", 2, False, "float64")
plain = partial(heterofl, scaler=False, masked=False)
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


def shared(done: Run) -> dict[str, Tensor]:
    return {leaf: t[0] for kept in done.server.values() for leaf, t in kept.values.items()}


# --- the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "features", "options", "sizes", "steps"),
    [
        ("mlp", (13,), {"hidden": (64, 8)}, (64, 8), (1, 1)),
        ("fedavg_cnn", (1, 28, 28), {}, (32, 64, 512), (1, 1, 1)),
        ("fedbn_cnn", (3, 28, 28), {"width": 0.25}, (16, 16, 32, 512, 128), (1,) * 5),
        ("har_cnn", (9, 128), {}, (32, 32, 64), (8, 8, 1)),
        ("resnet", (3, 16, 16), {}, (16, 16, 32, 32, 64, 64), (4, 4, 8, 8, 16, 16)),
        (
            "resnet",
            (16, 16),
            {"norm": "batch", "se": True},
            (16, 16, 4, 32, 32, 8, 64, 64, 16),
            (1,) * 9,
        ),
    ],
)
def test_a_part_in_smaller_tensors_gives_what_the_network_with_zeros_gives(name, features, options, sizes, steps):
    module, example = NETWORKS[name](features, 5, **options), torch.zeros(0, *features)
    found = widths_of(module, example).only(lambda path: True)
    assert tuple(width.size for width in found.widths) == sizes
    assert tuple(width.step for width in found.widths) == steps
    check(module, found, example)
    whole = sum(p.numel() for p in module.parameters())
    half = sum(p.numel() for p in narrowed(module, found, found.at(0.5)).parameters())
    assert 0.2 < half / whole < 0.55
    same_size = narrowed(module, found, found.at(1.0))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), same_size.parameters(), strict=True))


def test_tied_layers_and_sums_have_one_width():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x))
            return self.last(h + torch.relu(self.again(torch.relu(self.again(h)))))

    found = widths_of(module := Twice(), torch.zeros(0, 4))
    assert [(width.size, width.at(0.5)) for width in found.widths] == [(6, 3)]
    check(module, found, torch.zeros(0, 4))
    assert [tuple(p.shape) for p in narrowed(module, found, (3,)).parameters()] == [
        *((3, 4), (3,), (3, 3), (3,), (2, 3), (2,)),
    ]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.memory, self.last = nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.memory(torch.relu(self.encode(x)))[0][:, -1])


@pytest.mark.parametrize(
    ("module", "features", "said"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2)), (4,), "'0' go through .*linear"),
        (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)), (4,), "in layer '1'"),
        (nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 2)), (4,), "'0' go through .*softmax in layer '1'"),
        (Recurrent(), (3, 4), "'encode' go through .*lstm in layer 'memory'"),
        (nn.Sequential(nn.Linear(4, 2)), (4,), "no hidden width"),
        (nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 2)), (4,), "unflatten"),
    ],
)  # fmt: skip
def test_a_network_whose_units_cannot_be_told_is_refused_with_its_layer(module, features, said):
    with pytest.raises(PluresError, match=said):
        widths_of(module, torch.zeros(0, *features)).only(lambda path: True)


def test_a_forward_function_with_sizes_of_its_own_is_refused():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)).view(-1, 6))

    found = widths_of(module := Fixed(), torch.zeros(0, 4))
    with pytest.raises(PluresError, match="with half of its units it fails"):
        check(module, found, torch.zeros(0, 4))


def test_a_footprint_by_hand():
    found = footprint(mlp((13,), 2, hidden=(64,)), torch.zeros(0, 13))
    assert found.parameters == 13 * 64 + 64 + 64 * 2 + 2
    assert found.bytes == 4 * found.parameters
    assert found.flops == 2 * (2 * 13 * 64) + 3 * (2 * 64 * 2)
    assert found.activations == 4 * 64
    assert found.memory(10) == 2 * found.bytes + 10 * found.activations


# --- rounds by hand ---------------------------------------------------------------------------------------------


@pytest.mark.oracle("HF1")
@pytest.mark.parametrize("execution", [EXACT, LOOP])
def test_hf1_a_round_of_two_sizes_by_hand(execution):
    """b holds the first unit alone. a: o = 1, w1 - .1 (6, -2), w2 - .1 (2, 4); b: o = 3, w1 - .1 12, w2 - .1 4."""
    done = run(plain(), 1, federation=two_points(), model=one_hidden, steps=1, execution=execution)
    found = shared(done)
    assert found["model/0.weight"].flatten().tolist() == close([(0.4 - 0.2) / 2, 2.2])
    assert found["model/2.weight"].flatten().tolist() == close([(2.8 + 2.6) / 2, -1.4])


@pytest.mark.oracle("HF2")
def test_hf2_the_scaler_by_hand():
    """With r = 1/2 b has h = 2 and o = 6: w2 - .1 * 10 * 2, w1 - .1 * 10 * 3 / r."""
    done = run(heterofl(masked=False), 1, federation=two_points(), model=one_hidden, steps=1)
    found = shared(done)
    assert found["model/0.weight"].flatten().tolist() == close([(0.4 - 5.0) / 2, 2.2])
    assert found["model/2.weight"].flatten().tolist() == close([(2.8 + 1.0) / 2, -1.4])
    outputs = done.predict("b", torch.ones(1, 1))[0]
    assert float(outputs) == close(1.9 * max(0.0, -2.3 / 0.5))


@pytest.mark.oracle("HF2")
def test_hf2_with_the_scaler_hidden_layers_learn_at_a_rate_divided_by_the_square_of_the_share():
    """A part with leaves w is the network with w / r and no scaler; w -= lr g / r is w / r -= lr / r^2 g."""
    share, rate, steps = 0.5, 0.1, 3
    federation = ragged().take([0])
    method = heterofl(rates=(share,), masked=False)
    done = run(method, 1, federation=federation, model=small, steps=steps, lr=rate)
    module = started(small, share)
    hidden = [p for path, p in module.named_parameters() if not path.startswith("4.")]
    with torch.no_grad():
        for p in hidden:
            p /= share
    groups = [{"params": hidden, "lr": rate / share**2}, {"params": list(module[4].parameters())}]
    optimizer = torch.optim.SGD(groups, rate)
    rows = federation.splits["train"][0]
    for _ in range(steps):
        optimizer.zero_grad()
        scores = module(federation.inputs[rows].double())
        torch.nn.functional.cross_entropy(scores, federation.targets[rows]).backward()
        optimizer.step()
    held = done.states([0])["model"]
    for path, p in module.named_parameters():
        wanted = p.detach() * (1.0 if path.startswith("4.") else share)
        assert torch.allclose(done.held.part(path, held[path][0], 0), wanted, atol=1e-10), path


@pytest.mark.oracle("HF3")
def test_hf3_entries_that_nobody_holds_keep_their_value():
    only_b = Fixed([["b"]])
    found = shared(run(plain(), 2, federation=two_points(), model=one_hidden, steps=1, participation=only_b))
    assert (float(found["model/0.weight"][1]), float(found["model/2.weight"][0, 1])) == (2.0, -1.0)
    assert float(found["model/0.weight"][0]) != 1.0


@pytest.mark.oracle("HF4")
def test_hf4_masked_cross_entropy_by_a_plain_loop():
    federation = ragged()
    few = federation.targets != 2
    rows = [own[few[own]] if n % 2 else own for n, own in enumerate(federation.splits["train"])]
    federation = replace(federation, splits={**federation.splits, "train": Split.of(rows)})
    method = heterofl(rates=(1.0, 0.5), scaler=False, weights="examples")
    done = run(method, 1, federation=federation, model=small, steps=3)
    assert done.states([0, 1])["present"]["classes"].tolist() == [[1, 1, 1], [1, 1, 0]]
    wanted = []
    for n, own in enumerate(rows):
        module = started(small, 0.5 if n % 2 else 1.0)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        present = torch.bincount(federation.targets[own], minlength=3) > 0
        for _ in range(3):
            optimizer.zero_grad()
            scores = module(federation.inputs[own].double())
            torch.nn.functional.cross_entropy(scores * present, federation.targets[own]).backward()
            optimizer.step()
        wanted.append({path: p.detach() for path, p in module.named_parameters()})
    sent = torch.tensor([len(own) for own in rows], dtype=torch.float64)
    bias = sum(s * w["4.bias"] for s, w in zip(sent, wanted, strict=True)) / sent.sum()
    assert torch.allclose(shared(done)["model/4.bias"], bias, atol=1e-12)
    last = sum(s * w["0.bias"][5] for s, w in zip(sent[::2], wanted[::2], strict=True)) / sent[::2].sum()
    assert float(shared(done)["model/0.bias"][5]) == close(float(last))


def started(model, rate: float, seed: int = 0) -> nn.Module:
    """A part of a network in smaller tensors, with the initial values of a run."""
    from plures.models import build

    module = build(model, seed).double()
    widths = widths_of(module, torch.zeros(0, 5, dtype=torch.float64))
    return narrowed(module, widths, widths.at(rate))


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.oracle("HF0", "FJ0")
@degenerate
@pytest.mark.parametrize("execution", [EXACT, LOOP])
@pytest.mark.parametrize(
    ("method", "equal"),
    [
        (plain, fedavg("uniform")),
        (partial(plain, weights="examples"), fedavg()),
        (partial(heterofl, masked=False), fedavg("uniform")),
        (fjord, fedavg()),
    ],
)
def test_hf0_equal_devices_are_fedavg(method, equal, execution):
    given = {"federation": ragged(), "model": small, "steps": 4, "batch_size": 8, "execution": execution}
    assert same(*(shared(run(one, 3, **given)) for one in (method(rates=(1.0,)), equal)))


@pytest.mark.oracle("HL0")
@degenerate
def test_hf0_equal_ranks_are_lora():
    given = {"federation": ragged(), "model": small, "steps": 4, "batch_size": 8}
    one, two = (run(method, 3, **given) for method in (hetlora(ranks=(2,)), lora(rank=2)))
    assert same(shared(one), shared(two))
    assert same(one.predictors([3]), two.predictors([3]))


@pytest.mark.oracle("HF5")
@pytest.mark.parametrize("execution", [EXACT, LOOP])
@pytest.mark.parametrize(
    ("model", "features"),
    [
        (partial(mlp, (5,), 3, hidden=(6, 4)), (5,)),
        (partial(har_cnn, (2, 40), 3, norm="batch"), (2, 40)),
        (partial(har_cnn, (2, 40), 3), (2, 40)),
        (partial(resnet, (1, 8, 8), 3, width=8), (1, 8, 8)),
    ],
)
def test_hf5_parts_train_as_networks_that_are_really_smaller(model, features, execution):
    """All of rate 1/2: every leaf is that of FedAvg with the smaller network, and zero elsewhere."""
    federation = pictures(features)
    given = {"steps": 3, "batch_size": 6, "execution": execution, "federation": federation, "lr": 0.05}
    cut = run(plain(rates=(0.5,), statistics="shared"), 2, model=model, **given)
    whole = cut.bound.network.trainable()
    widths = widths_of(whole, federation.inputs)
    few = run(fedavg("uniform"), 2, model=narrowed(whole, widths, widths.at(0.5)), **given)
    held = cut.states([0])["model"]
    for path, wanted in few.states([0])["model"].items():
        assert torch.allclose(cut.held.part(path, held[path][0], 0), wanted[0], atol=1e-10), path
        inside = cut.held.mask(path, held[path][0], [0])[0] if path in cut.held.cut else torch.ones(())
        assert not bool((held[path][0] * ~inside.bool()).any())
    assert torch.allclose(cut.predict("p")[0], few.predict("p")[0], atol=1e-10)


@pytest.mark.oracle("HF6")
def test_hf6_the_order_of_the_clients_makes_no_difference():
    federation = ragged()
    rates = torch.tensor([1, 0.5, 0.25, 1, 0.5, 0.25, 1]).tolist()
    federation = replace(federation, metadata={"rate": tuple(rates)})
    order = [6, 2, 0, 5, 1, 4, 3]
    given = {"model": small, "steps": 3, "batch_size": 8}
    one = run(plain(column="rate"), 2, federation=federation, **given)
    two = run(plain(column="rate"), 2, federation=federation.take(order), **given)
    assert near(shared(one), shared(two))


@pytest.mark.parametrize("term", [fedprox(mu=0.5), ditto(lam=0.5)])
def test_hf7_what_a_client_does_not_hold_stays_zero_in_every_slot(term):
    done = run(plain(rates=(1.0, 0.5)) + term, 2, federation=ragged(), model=small, steps=3, batch_size=8)
    state = done.states([1])
    for slot in ("model", "personal"):
        if slot in state:
            assert not bool(state[slot]["0.weight"][0, 3:].any())
            assert bool(state[slot]["0.weight"][0, :3].any())


def test_hf8_personal_heads_and_clusters_have_parts_too():
    done = run(plain(rates=(1.0, 0.5)) + fedper(), 2, federation=ragged(), model=small, steps=3, batch_size=8)
    assert not bool(done.predictors([1])["4.weight"][0, :, 2:].any())
    assert not torch.equal(done.predictors([0])["4.bias"][0], done.predictors([1])["4.bias"][0])
    done = run(plain(rates=(1.0, 0.5)) + ifca(2), 2, federation=ragged(), model=small, steps=3, batch_size=8)
    assert not bool(done.predictors([1])["4.weight"][0, :, 2:].any())


# --- ordered dropout, ranks -------------------------------------------------------------------------------------


@pytest.mark.oracle("FJ1")
def test_fj1_a_step_trains_the_drawn_width_alone():
    """Widths 1, 2, 4 and 8 of eight units: after a step, exactly the units of the drawn width have moved."""
    federation = two_points()
    model = lambda: nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))  # noqa: E731
    moved = set()
    for seed in range(24):
        begin = begun(fjord(rates=(1.0, 0.5, 0.25, 0.125)), 1, federation=federation, model=model, steps=1, seed=seed)
        before = begin.states([0])["model"]["0.weight"][0].clone()
        only = Fixed([["a"]])
        done = run(
            fjord(rates=(1.0, 0.5, 0.25, 0.125)), 1, federation=federation, model=model, steps=1, seed=seed,
            participation=only,
        )  # fmt: skip
        changed = (done.states([0])["model"]["0.weight"][0] != before).flatten().tolist()
        count = sum(changed)
        assert changed == [True] * count + [False] * (8 - count)
        moved.add(count)
    assert moved == {1, 2, 4, 8}


@pytest.mark.oracle("FJ2")
def test_fj2_a_client_draws_no_width_above_its_own():
    model = lambda: nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))  # noqa: E731
    method = fjord(rates=(0.25, 1.0))
    done = run(method, 6, federation=two_points(), model=model, steps=5, participation=Fixed([["a"]] * 6))
    start = begun(method, 6, federation=two_points(), model=model).server["model"].values["model/0.weight"]
    changed = (done.server["model"].values["model/0.weight"] != start).flatten().tolist()
    assert changed == [True, True, *[False] * 6]


@pytest.mark.oracle("FJ3")
def test_fj3_self_distillation_by_hand():
    """alpha = 1: a client at its own width alone learns nothing, because it is its own teacher."""
    given = {"federation": ragged(), "model": small, "steps": 2}
    still = run(fjord(rates=(0.5,), alpha=1.0), 1, **given)
    start = begun(fjord(rates=(0.5,)), 1, **given)
    assert near(shared(still), shared(start))
    moved = run(fjord(rates=(1.0, 0.25), alpha=1.0), 1, **given)
    assert not near(shared(moved), shared(start))


@pytest.mark.oracle("HL1")
def test_hl1_padded_factors_are_averaged_with_zeros():
    federation = ragged().take([0, 1])
    given = {"federation": federation, "model": small, "steps": 2}
    held, padded = (run(hetlora(ranks=(2, 1), average=how), 1, **given) for how in ("held", "padded"))
    name = "model/0.lora_a.weight"
    sizes = federation.splits["train"].sizes.double()
    assert torch.allclose(shared(padded)[name][1], shared(held)[name][1] * sizes[0] / sizes.sum())
    assert torch.allclose(shared(padded)[name][0], shared(held)[name][0])


# --- costs and budgets ------------------------------------------------------------------------------------------


@pytest.mark.oracle("HF7")
def test_bytes_and_operations_are_those_of_the_part():
    federation = ragged()
    done = run(plain(rates=(1.0, 0.5)), 1, federation=federation, model=small, steps=1)
    whole = 8 * (5 * 6 + 6 + 6 * 4 + 4 + 4 * 3 + 3)
    half = 8 * (5 * 3 + 3 + 3 * 2 + 2 + 2 * 3 + 3)
    assert traffics(done.bound, done.held, [0, 1]) == [(whole, whole), (half, half)]
    assert traffic(done.bound) == (round((4 * whole + 3 * half) / 7),) * 2
    record = next(begun(plain(rates=(1.0, 0.5)), 1, federation=federation, model=small).rounds())
    assert (record.bytes_up, record.bytes_down) == (4 * whole + 3 * half,) * 2
    few = alone(done.bound, done.held, 1)
    assert [tuple(t.shape) for t in few.initial["model"].values()] == [(3, 5), (3,), (2, 3), (2,), (3, 2), (3,)]
    training = Training(rounds=1, batch_size=None, steps=1)
    median = int(federation.splits["train"].sizes.argsort(stable=True)[3])
    rows = int(federation.splits["train"].sizes[median])
    wide = (6, 4) if median % 2 == 0 else (3, 2)
    products = 2 * (2 * 5 * wide[0]) + 3 * (2 * wide[0] * wide[1] + 2 * wide[1] * 3)
    assert flops(done.bound, federation, training) == rows * products


@pytest.mark.oracle("HF7")
def test_the_memory_of_a_device_is_that_of_its_part():
    done = begun(plain(rates=(1.0, 0.5)), 1, federation=ragged(), model=small)
    found = {rate: memory(done, 8, client) for rate, client in sizes(done).items()}
    whole, half = found[1.0], found[0.5]
    assert (whole.up, half.up) == (8 * 79, 8 * 35)
    assert (whole.peak.trained, half.peak.trained) == (8 * 79, 8 * 35)
    print_of = footprint(alone(done.bound, done.held, 1).network.trainable(), torch.zeros(0, 5, dtype=torch.float64))
    of_the_loss = 8 * (8 * 3 + 1)
    assert 0 <= half.peak.activations - 8 * print_of.activations <= of_the_loss
    assert half.peak.gradients == print_of.bytes


@pytest.mark.oracle("HF7")
@pytest.mark.parametrize(
    ("budget", "limits", "rates"),
    [
        ("parameters", (79, 78, 35, 34), (1.0, 0.5, 0.5, 0.25)),
        ("bytes", (8 * 79, 8 * 79 - 1, 8 * 35, 8 * 21), (1.0, 0.5, 0.5, 0.25)),
        ("flops", (10_000, 132, 131, 80), (1.0, 0.5, 0.25, 0.25)),
    ],
)
def test_a_budget_chooses_the_largest_part_that_fits(budget, limits, rates):
    """Of rate 1/2, a step needs 2 (2 5 3) + 3 (2 3 2 + 2 2 3) = 132 operations for an example."""
    federation = replace(ragged().take([0, 1, 2, 3]), metadata={"device": limits})
    method = plain(rates=(0.25, 1.0, 0.5), column="device", budget=budget)
    found = begun(method, 1, federation=federation, model=small).held
    assert found is not None
    assert tuple(found.rates.tolist()) == rates


def test_a_budget_of_memory_counts_a_batch():
    federation = ragged()
    module = started(small, 0.5)
    need = footprint(module, federation.inputs).memory(16)
    for limit, rate in ((need, 0.5), (need - 1, 0.25)):
        method = plain(rates=(0.5, 0.25), budget="memory", limit=limit, batch=16)
        found = begun(method, 1, federation=federation, model=small).held
        assert found is not None
        assert set(found.rates.tolist()) == {rate}


@pytest.mark.parametrize(
    ("given", "metadata", "said"),
    [
        ({"rates": (0.5, 1.5)}, {}, "rates=.*above 0 and at most 1"),
        ({"column": "rate"}, {"rate": (1, 2)}, "column 'rate' of client '1' is 2"),
        ({"column": "rate"}, {"rate": ("a", "b")}, "has words"),
        ({"budget": "parameters"}, {}, "needs one of column"),
        ({"limit": 3.0}, {}, "say of what"),
        ({"budget": "parameters", "limit": 3.0}, {}, "client '0' has 3 parameters.*needs"),
        ({"column": "device", "budget": "flops"}, {"device": ("a", "b")}, "has words"),
    ],
)
def test_sizes_that_cannot_be_are_refused(given, metadata, said):
    federation = replace(ragged().take([0, 1]), metadata=metadata)
    with pytest.raises(PluresError, match=said):
        begun(plain(**given), 1, federation=federation, model=small)


# --- what does not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Method(wire=(TopK(0.5),)), "TopK needs uploads of one size"),
        (Method(combine=Combine(reduce=Median())), "a reducer compares whole uploads"),
        (Method(layout={"model": Mixed(lambda kept, cohort: torch.eye(7))}), "Mixed compares or mixes whole models"),
        (Method(layout={head: Personal(unseen="mean")}), "Personal compares or mixes"),
        (Method(sizes=Sizes((0.1,))), "how much of the network each client holds"),
    ],
)
def test_what_needs_whole_uploads_is_refused(other, said):
    mine = Method(sizes=Sizes((1.0, 0.5)))
    with pytest.raises(PluresError, match=said):
        begun(mine + other, 1, federation=ragged(), model=small)


def test_newcomers_and_clients_that_were_never_drawn_have_their_own_size():
    federation = replace(ragged(), metadata={"rate": (1.0, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5)})
    seen, later = federation.hold_out(["4"])
    method = heterofl(column="rate")
    done = run(method, 2, federation=seen, model=small, participation=Fixed([["0", "3"]] * 2))
    assert not bool(done.predictors([1])["4.weight"][0, :, 2:].any())
    assert bool(done.predictors([3])["4.weight"][0, :, 2:].any())
    guest = onboard(done, later)
    assert not bool(guest.predictors([0])["4.weight"][0, :, 2:].any())
    in_turn = run(heterofl(rates=(1.0, 0.5)), 1, federation=seen, model=small, participation=Fixed([["0"]]))
    assert bool(in_turn.predictors([2])["4.weight"][0, :, 2:].any())
    assert not bool(in_turn.predictors([1])["4.weight"][0, :, 2:].any())


def test_chunks_and_backends_agree():
    given = {"federation": ragged(), "model": small, "steps": 3, "batch_size": 8}
    runs = [
        run(heterofl(rates=(1.0, 0.5, 0.25)), 2, execution=Execution(backend, chunk, False, "float64"), **given)
        for backend, chunk in (("vmap", 16), ("vmap", 3), ("loop", 2))
    ]
    assert near(shared(runs[0]), shared(runs[1]))
    assert near(shared(runs[0]), shared(runs[2]))


def test_sites_refuse_parts_of_different_sizes():
    bound = begun(plain(rates=(1.0, 0.5)), 1, federation=ragged(), model=small).bound
    assert not bound.secure_aggregation
    with pytest.raises(PluresError, match="sites exchange uploads of one size"):
        insist_on_one_size(bound)


def test_the_work_of_a_visit_is_that_of_the_part():
    """What a simulated fleet is timed by: bytes, operations and memory of every client's own network."""
    done = begun(plain(rates=(1.0, 0.5)), 1, federation=ragged(), model=small, steps=1)
    found = done.load()
    assert found.up.tolist() == found.down.tolist() == [8 * 79, 8 * 35] * 3 + [8 * 79]
    rows = done.federation.splits["train"].sizes.numpy()
    half = 2 * (2 * 5 * 3) + 3 * (2 * 3 * 2 + 2 * 2 * 3)
    assert found.flops[1::2].tolist() == pytest.approx((rows[1::2] * half).tolist())
    assert found.memory[1] < found.memory[0]
