"""The cohort engine: every backend and chunk size gives what each client gives alone in plain PyTorch (float64)."""

from __future__ import annotations

import copy
import logging
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plures.errors import PluresError
from plures.federation import Split
from plures.method import SGD, Adam, AdamW, Method, Phase, body, detach, dot, gradient, norm_statistics
from plures.methods import (
    apfl,
    ditto,
    fedavg,
    fedbabu,
    fedbn,
    fedper,
    fedprox,
    fedrep,
    ifca,
    lgfedavg,
    local,
    perfedavg,
    pfedme,
    scaffold,
)
from plures.run import Cosine, Execution, Run, Training, Uniform
from plures.run import choose as choosing
from plures.run.allocator import keep_freed_memory
from plures.run.batches import plan
from plures.run.choose import Pace
from plures.run.states import working
from trajectories import (
    HEAVY,
    LOOP,
    SIZES,
    WIDE,
    Hidden,
    Pooled,
    SelfAttention,
    assert_same,
    encoder,
    everything_of,
    mlp,
    normed,
    ragged,
    run,
)

EXECUTIONS = [
    Execution("loop", 3, False, "float64"),
    *(Execution("vmap", chunk, False, "float64") for chunk in (1, 3, 7)),
    WIDE,
]


# One trajectory, whatever the backend and the chunk ------------------------------------------------------------

METHODS = {
    "fedavg": (fedavg(), mlp),
    "ditto": (ditto(0.5), mlp),
    "scaffold I": (scaffold("I"), mlp),
    "scaffold II": (scaffold("II"), mlp),
    "fedrep": (fedrep(head_epochs=1.5), mlp),
    "apfl": (apfl(0.5, adaptive_lr=0.1), mlp),
    "pfedme": (pfedme(2.0, 3), mlp),
    "perfedavg": (perfedavg(0.05, "HF"), mlp),
    "ifca": (ifca(2), mlp),
    "fedbn": (fedbn(), normed),
    "pfedme with batch normalisation": (pfedme(2.0, 2), normed),
    "perfedavg with batch normalisation": (perfedavg(0.05, "HF"), normed),
}


@pytest.mark.parametrize("name", METHODS)
def test_backends_and_chunks_give_one_trajectory(name):
    method, model = METHODS[name]
    expected = everything_of(run(method, LOOP, model=model, participation=Uniform(0.8)))
    assert all(torch.isfinite(t).all() for t in expected.values())
    for execution in EXECUTIONS:
        assert_same(everything_of(run(method, execution, model=model, participation=Uniform(0.8))), expected)


@pytest.mark.parametrize("optimizer", [Adam(0.01), AdamW(0.01), SGD(0.1, momentum=0.9, nesterov=True)])
@pytest.mark.parametrize("name", ["fedavg", "ditto", "fedbn"])
def test_optimizer_state_of_idle_clients_rests(name, optimizer):
    method, model = METHODS[name]
    expected = everything_of(run(method, LOOP, model=model, optimizer=optimizer))
    for execution in (EXECUTIONS[2], WIDE):
        assert_same(everything_of(run(method, execution, model=model, optimizer=optimizer)), expected)


# Each client alone, in plain PyTorch ---------------------------------------------------------------------------


def group_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 3))


def layer_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))


PLAIN = {
    "sgd": (SGD(0.1, 0.9, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)),
    "nesterov": (SGD(0.1, 0.9, 0.0, True), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
    "adam": (Adam(0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
    "adamw": (AdamW(0.01), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01)),
}


def alone(done: Run, client: int, rounds: int, make, clip: float | None) -> dict[str, torch.Tensor]:
    """What a plain PyTorch loop gives for one client's batches."""
    net = copy.deepcopy(done.bound.network.module)
    net.load_state_dict(done.bound.network.leaves())
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    net.train()
    for number in range(rounds):
        optimizer = make(net.parameters())
        plan = done.engine.draw(done.method.schedule[0], [client], number)
        for step in range(int(plan.steps[0])):
            rows = plan.rows[step, 0, 0, : plan.counts[step, 0, 0]]
            optimizer.zero_grad()
            F.cross_entropy(net(done.federation.inputs[rows]), done.federation.targets[rows]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
    return {name: tensor.detach() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("optimizer", PLAIN)
@pytest.mark.parametrize("model", [mlp, normed, layer_normed, group_normed])
@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_local_training_is_plain_pytorch(model, optimizer, execution):
    ours, theirs = PLAIN[optimizer]
    for clip in (None, 0.3):
        done = run(local(), execution, model=model, optimizer=ours, clip=clip)
        states = done.states(list(range(len(SIZES))))["model"]
        for client in range(len(SIZES)):
            expected = alone(done, client, 2, theirs, clip)
            assert_same({path: t[client] for path, t in states.items()}, expected, atol=1e-12)


@pytest.mark.parametrize("model", [mlp, normed])
@pytest.mark.parametrize("execution", [LOOP, EXECUTIONS[2], WIDE], ids=["loop", "vmap 3", "vmap all"])
def test_a_round_of_fedavg_is_the_weighted_mean_of_plain_pytorch(model, execution):
    ours, theirs = PLAIN["sgd"]
    done = run(fedavg(), execution, model=model, optimizer=ours, clip=0.3, rounds=1)
    each = [alone(done, client, 1, theirs, 0.3) for client in range(len(SIZES))]
    for path, value in done.states([0])["model"].items():
        mean = sum(size * leaves[path].double() for size, leaves in zip(SIZES, each, strict=True)) / sum(SIZES)
        expected = mean if value.is_floating_point() else mean.round()
        torch.testing.assert_close(value[0].double(), expected, atol=1e-12, rtol=0)


# Every kind of layer -------------------------------------------------------------------------------------------


class Last(nn.Module):
    """A recurrent layer's output at the last step."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0][:, -1]


def conv(*layers: nn.Module, out: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(out, 3))


LAYERS = {
    "linear": ((6,), mlp),
    "conv1d": ((2, 9), lambda: conv(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), out=12)),
    "conv2d": ((2, 6, 6), lambda: conv(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), out=16)),
    "grouped convolution and average pooling": (
        (2, 6, 6),
        lambda: conv(nn.Conv2d(2, 4, 3, groups=2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), out=4),
    ),
    "batch norm 1d": ((6,), normed),
    "batch norm 2d": ((2, 5, 5), lambda: conv(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), out=36)),
    "batch norm without statistics": (
        (6,),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)),
    ),
    "instance norm": ((2, 5, 5), lambda: conv(nn.InstanceNorm2d(2, affine=True), out=50)),
    "layer norm": ((6,), layer_normed),
    "group norm": ((6,), group_normed),
    "dropout": (
        (6,),
        lambda: nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(20, 3)),
    ),
    "dropout2d": ((2, 5, 5), lambda: conv(nn.Conv2d(2, 8, 3), nn.Dropout2d(0.4), out=72)),
    "embedding": ((5,), lambda: Pooled(nn.Embedding(11, 4))),
    "rnn": ((5, 2), lambda: nn.Sequential(Last(nn.RNN(2, 4, batch_first=True)), nn.Linear(4, 3))),
    "lstm": ((5, 2), lambda: nn.Sequential(Last(nn.LSTM(2, 4, 2, batch_first=True)), nn.Linear(4, 3))),
    "gru": ((5, 2), lambda: nn.Sequential(Last(nn.GRU(2, 4, batch_first=True)), nn.Linear(4, 3))),
    "attention": ((5, 4), SelfAttention),
    "transformer": ((5, 4), encoder),
    "tokens through a transformer": (
        (5,),
        lambda: Pooled(nn.Embedding(11, 4), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)),
    ),
}


def layered(name, method, execution, **training):
    features, model = LAYERS[name]
    tokens = 11 if name in ("embedding", "tokens through a transformer") else 0
    data = ragged((11, 4, 7), features, tokens=tokens)
    work = {} if "steps" in training else {"epochs": 1}
    options = {"federation": data, "model": model, "batch_size": 4} | work | training
    return run(method, execution, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_kind_maps(name):
    done = layered(name, ditto(0.5), WIDE)
    assert done.execution.backend == "vmap"
    assert done.bound.network.unmappable is None
    expected = everything_of(layered(name, ditto(0.5), LOOP))
    assert any(not torch.equal(t[0], t[1]) for key, t in expected.items() if key.startswith("personal"))
    assert_same(everything_of(done), expected)


@pytest.mark.parametrize("name", ["conv2d", "batch norm 1d", "batch norm 2d", "dropout", "attention", "gru", "lstm"])
def test_second_order_methods_map(name):
    expected = everything_of(layered(name, perfedavg(0.05, "exact"), LOOP))
    done = layered(name, perfedavg(0.05, "exact"), WIDE)
    assert done.execution.backend == "vmap"
    assert_same(everything_of(done), expected)


def test_exact_meta_gradient_is_that_of_plain_autograd():
    done = layered("gru", perfedavg(0.05, "exact"), WIDE, rounds=1, steps=1, optimizer=SGD(0.1), clip=None)
    network, task = done.bound.network, nn.CrossEntropyLoss()
    moved = []
    for client in range(3):
        plan = done.engine.draw(done.method.schedule[0], [client], 0)
        w = {k: t.requires_grad_(True) for k, t in network.leaves().items()}
        outer = []
        for number in range(3):
            rows = plan.rows[0, number, 0, : plan.counts[0, number, 0]]
            outer.append((done.federation.inputs[rows], done.federation.targets[rows]))

        def loss(values, data):
            return task(torch.func.functional_call(network.module, values, (data[0],)), data[1])

        inner = torch.autograd.grad(loss(w, outer[0]), list(w.values()))
        adapted = {k: (t - 0.05 * g).detach().requires_grad_(True) for (k, t), g in zip(w.items(), inner, strict=True)}
        g = torch.autograd.grad(loss(adapted, outer[1]), list(adapted.values()))
        with torch.backends.mkldnn.flags(enabled=False):
            slope = torch.autograd.grad(loss(w, outer[2]), list(w.values()), create_graph=True)
        curved = torch.autograd.grad(sum((s * v).sum() for s, v in zip(slope, g, strict=True)), list(w.values()))
        moved.append({k: t.detach() - 0.1 * (a - 0.05 * c) for (k, t), a, c in zip(w.items(), g, curved, strict=True)})
    for path, value in done.states([0])["model"].items():
        torch.testing.assert_close(value[0], sum(m[path] for m in moved) / 3, atol=1e-12, rtol=0)


# Dropout -------------------------------------------------------------------------------------------------------


def masks(sizes=(8, 8), rounds=2, p=0.3, width=40) -> torch.Tensor:
    """Dropout masks that a run drew: ``(round, client, step, example, unit)``."""
    seen: list[torch.Tensor] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.out = nn.Dropout(p), nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.drop(torch.ones_like(x)))
            return self.out(seen[-1])

    data = ragged(sizes, (width,))
    done = Run(data, Net, fedavg(), Training(rounds=rounds, batch_size=4, epochs=1), execution=LOOP)
    seen.clear()
    for _ in done.rounds():
        pass
    return torch.stack(seen).view(rounds, len(sizes), -1, 4, width)


def test_dropout_masks_differ_between_clients_rounds_steps_and_examples():
    seen = masks().flatten(0, 3)
    assert len(torch.unique(seen, dim=0)) == len(seen)


def test_dropout_keeps_the_expectation_and_the_rate():
    seen = masks((400, 400), rounds=1)
    kept = (seen > 0).double()
    assert kept.mean().item() == pytest.approx(0.7, abs=4 * (0.21 / kept.numel()) ** 0.5)
    assert seen.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    units = kept.flatten(0, 3)
    assert units.mean(0).sub(0.7).abs().max().item() < 5 * (0.21 / len(units)) ** 0.5
    correlation = torch.corrcoef(units.T) - torch.eye(units.shape[1])
    assert correlation.abs().max().item() < 5.5 / len(units) ** 0.5


def test_a_dropout_layer_used_twice_draws_two_masks():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.out = nn.Dropout(0.5), nn.Linear(60, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                ones = torch.ones_like(x)
                same.append((self.drop(ones) == self.drop(ones)).double().mean().item())
            return self.out(self.drop(x))

    same: list[float] = []
    run(fedavg(), LOOP, model=Twice, federation=ragged((9, 5), (60,)), rounds=1)
    assert len(same) >= 2 * 3
    assert all(0.3 < share < 0.7 for share in same)


@pytest.mark.parametrize(
    ("model", "features"),
    [
        (lambda: SelfAttention(0.3), (5, 4)),
        (lambda: encoder(0.3), (5, 4)),
        (Hidden, (6,)),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.AlphaDropout(0.2), nn.Linear(5, 3)), (6,)),
    ],
    ids=["attention", "transformer", "functional", "alpha"],
)
@pytest.mark.parametrize("wanted", ["auto", "vmap"])
def test_hidden_randomness_falls_back_says_so_once_and_stays_deterministic(
    model, features, wanted, caplog, monkeypatch
):
    monkeypatch.setattr(choosing, "SHORT", 0.0)
    data = ragged((11, 4, 7), features)
    with caplog.at_level(logging.WARNING, "plures"):
        done = run(local(), Execution(wanted, 2, False, "float64"), model=model, federation=data)
    assert done.execution.backend == "loop"
    assert [record.message for record in caplog.records] == [
        "clients are trained one at a time: the model draws random numbers other than by dropout layers"
    ]
    torch.manual_seed(99)
    expected = everything_of(done)
    assert_same(everything_of(run(local(), LOOP, model=model, federation=data)), expected, atol=0.0)
    alone_again = run(local(), LOOP, model=model, federation=data.subset(["c1"]))
    for path, value in alone_again.predictors([0]).items():
        assert torch.equal(value[0], expected[f"predict.{path}"][1])


def test_training_leaves_the_global_generator_alone():
    data = ragged((11, 4), (6,))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for model in (Hidden, mlp, LAYERS["dropout"][1]):
        run(fedavg(), LOOP, model=model, federation=data, rounds=1)
    assert torch.equal(torch.rand(4), expected)


# Batch normalisation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_a_single_last_example_joins_the_batch_before_it(execution):
    data = ragged((17, 9, 4))
    done = run(local(), execution, model=normed, federation=data, rounds=1, epochs=1)
    plan = done.engine.draw(done.method.schedule[0], [0, 1, 2], 0)
    assert plan.counts[:, 0].T.tolist()[0] == [8, 9]
    assert plan.steps.tolist() == [2, 1, 1]
    assert plan.counts[0, 0].tolist() == [8, 9, 4]
    for client in range(3):
        expected = alone(done, client, 1, PLAIN["sgd"][1], 0.7)
        assert_same({path: t[0] for path, t in done.states([client])["model"].items()}, expected)


def test_a_client_with_one_example_cannot_train_batch_normalisation():
    with pytest.raises(PluresError, match="clients with one example: c1"):
        run(local(), LOOP, model=normed, federation=ragged((9, 1)))


def test_running_statistics_follow_the_model_that_made_them():
    """The personal model of a regularised method keeps its own statistics, next to the shared model's."""
    done = run(ditto(0.5), WIDE, model=normed)
    states = done.states(list(range(len(SIZES))))
    shared, own = (states[slot]["1.running_mean"] for slot in ("model", "personal"))
    assert not torch.allclose(shared, own, atol=1e-3)
    assert (own != 0).all()


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_a_gradient_taken_before_the_step_can_keep_its_statistics(execution):
    def before(x, received, batch):
        return {"slope": gradient(detach(x.model), batch, keep=x.model)}

    follow = Phase(objective=lambda x, received, batch: dot(x.model, x.slope), before=before)
    done = run(Method(schedule=(follow,)), execution, model=normed)
    assert_same(
        everything_of(done),
        everything_of(run(fedavg(), LOOP, model=normed)) | {"losses": everything_of(done)["losses"]},
    )


# What a phase writes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_the_head_phase_of_fedrep_leaves_the_body_and_its_statistics_alone(execution):
    done = run(fedrep(), execution, model=normed, rounds=1)
    clients = sorted(range(len(SIZES)), key=lambda i: -SIZES[i])
    received = done.states(clients)
    x = working(received, done.bound.written)
    done.engine.visit(x, received, clients, 1, done.method.schedule[:1])
    for path, value in x["model"].items():
        assert torch.equal(value, received["model"][path]) == (not path.startswith("3.")), path


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_the_frozen_head_of_fedbabu_stays_at_its_initial_value(execution):
    done = run(fedbabu(), execution, model=normed, rounds=3, optimizer=SGD(0.1, momentum=0.9, weight_decay=0.3))
    initial = done.bound.initial["model"]
    for path, value in done.states([0, 3])["model"].items():
        same = torch.equal(value, initial[path].expand_as(value))
        assert same == path.startswith("3."), path


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_the_received_state_and_the_module_are_not_changed(execution):
    net = normed()
    before = copy.deepcopy(net.state_dict())
    done = run(pfedme(2.0, 2), execution, model=net, rounds=1)
    clients = [0, 6, 4, 5, 2, 3, 1]
    received = done.states(clients)
    kept = {slot: {path: t.clone() for path, t in leaves.items()} for slot, leaves in received.items()}
    server = {name: {leaf: t.clone() for leaf, t in kept.values.items()} for name, kept in done.server.items()}
    done.engine.visit(working(received, done.bound.written), received, clients, 1, done.method.schedule)
    for slot, leaves in kept.items():
        for path, value in leaves.items():
            assert torch.equal(value, received[slot][path])
    for name, values in server.items():
        for leaf, value in values.items():
            assert torch.equal(value, done.server[name].values[leaf])
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value)


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_a_parameter_that_the_objective_does_not_use_gets_a_zero_gradient(execution):
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(6, 3), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    done = run(local(), execution, model=Spare, optimizer=SGD(0.1, momentum=0.9))
    for path in ("spare.weight", "spare.bias"):
        assert torch.equal(done.states([0])["model"][path][0], done.bound.initial["model"][path])


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_a_phase_may_train_statistics_alone(execution):
    done = run(Method(schedule=(Phase(norm_statistics),)), execution, model=normed, rounds=1)
    for path, value in done.states([0])["model"].items():
        changed = not torch.equal(value[0], done.bound.initial["model"][path])
        assert changed == path.startswith(("1.running", "1.num")), path


# Steps and epochs ----------------------------------------------------------------------------------------------


def drawn(sizes, per_step=1, **training):
    method = Method(schedule=(Phase(batches=per_step),))
    done = Run(ragged(sizes), mlp, method, Training(**({"rounds": 1, "batch_size": 8} | training)), execution=LOOP)
    clients = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    plan = done.engine.draw(method.schedule[0], clients, 0)
    found = []
    for position, client in enumerate(clients):
        own = plan.counts[: plan.steps[position], :, position].reshape(-1)
        rows = plan.rows[: plan.steps[position], :, position].flatten(0, 1)
        found.append((client, [r[:c].tolist() for r, c in zip(rows, own, strict=True)]))
    return done.federation.splits["train"], dict(found)


@pytest.mark.parametrize(
    ("training", "sizes", "expected"),
    [
        ({"epochs": 1}, SIZES, [5, 1, 2, 1, 3, 3, 4]),
        ({"epochs": 3}, SIZES, [15, 3, 6, 3, 9, 9, 12]),
        ({"epochs": 0.5}, SIZES, [3, 1, 1, 1, 2, 2, 2]),
        ({"epochs": 2.5}, SIZES, [13, 3, 5, 3, 8, 8, 10]),
        ({"epochs": 0}, SIZES, [0] * 7),
        ({"steps": 0}, SIZES, [0] * 7),
        ({"steps": 11}, SIZES, [11] * 7),
        ({"epochs": 2, "batch_size": None}, SIZES, [2] * 7),
        ({"epochs": 2, "batch_size": 1}, (3, 1, 2), [6, 2, 4]),
        ({"epochs": 1, "batch_size": 100}, SIZES, [1] * 7),
        ({"steps": 4}, (1, 1), [4, 4]),
    ],
)
def test_number_of_steps(training, sizes, expected):
    split, found = drawn(sizes, **training)
    assert [len(found[i]) for i in range(len(sizes))] == expected
    size = training.get("batch_size", 8) or max(sizes)
    for client, batches in found.items():
        n = sizes[client]
        per_epoch = -(-n // size)
        for first in range(0, len(batches), per_epoch):
            epoch = batches[first : first + per_epoch]
            rows = [row for batch in epoch for row in batch]
            assert len(set(rows)) == len(rows)
            assert set(rows) <= set(split[client].tolist())
            if len(epoch) == per_epoch:
                assert sorted(rows) == sorted(split[client].tolist())
                assert [len(batch) for batch in epoch[:-1]] == [size] * (per_epoch - 1)


def test_three_batches_for_each_step():
    split, found = drawn(SIZES, per_step=3, epochs=2)
    for client, batches in found.items():
        per_epoch = -(-SIZES[client] // 8)
        assert len(batches) == 3 * -(-2 * per_epoch // 3)
        for epoch in range(2):
            rows = [row for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for row in batch]
            assert sorted(rows) == sorted(split[client].tolist())


def test_many_steps_of_a_small_client_beside_a_large_one_take_little_memory():
    """The orders that are drawn grow with the examples visited, not with clients x epochs x largest client."""
    split = Split.of(list(torch.arange(20_010).split([20_000, 10])))
    made = plan(split, [0, 1], np.array([1, 2], dtype=np.uint64), 10, None, 2000)
    assert made.steps.tolist() == [2000, 2000]
    assert torch.bincount(made.rows[:, 0, 1].flatten())[20_000:].tolist() == [2000] * 10


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_no_steps_change_nothing(execution):
    for training in ({"steps": 0}, {"epochs": 0}):
        done = run(scaffold(), execution, rounds=2, **training)
        assert_same({path: t[0] for path, t in done.states([0])["model"].items()}, done.bound.initial["model"], 1e-15)
        assert done.losses == [(0.0, 0.0), (0.0, 0.0)]


# Compiled steps ------------------------------------------------------------------------------------------------

LACKING = choosing.uncompilable()
compiler = pytest.mark.skipif(LACKING is not None, reason=LACKING or "")


def compiled_equals_eager(method, model, optimizer, chunk):
    options = {"model": model, "optimizer": optimizer, "rounds": 3, "schedule": Cosine(0.1)}
    expected = everything_of(run(method, LOOP, **options))
    compiled = run(method, Execution("vmap", chunk, True, "float64"), **options)
    assert compiled.execution.compile is True
    assert_same(everything_of(compiled), expected)


@compiler
def test_compiled_steps_equal_eager_ones():
    """In C++, all the way; a graph for each of two phases."""
    compiled_equals_eager(ditto(0.5), mlp, Adam(0.01), 7)


@compiler
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("method", "model", "optimizer"),
    [(fedavg(), mlp, HEAVY), (ditto(0.5), mlp, Adam(0.01)), (fedavg(), LAYERS["dropout"][1], SGD(0.1))],
    ids=["fedavg-momentum", "ditto-adam", "dropout"],
)
def test_traced_steps_equal_eager_ones(method, model, optimizer):
    compiled_equals_eager(method, model, optimizer, 4)


@pytest.mark.parametrize(
    ("what", "why"), [("CXX", "there is no C[+][+] compiler nowhere"), ("include", "header files are not installed")]
)
def test_without_what_compilation_needs_nothing_is_compiled(what, why, monkeypatch, tmp_path, caplog):
    """As on a Debian without g++ or python3-dev: an explicit request gives a warning; ``auto`` does not try."""
    monkeypatch.setenv("CXX", "nowhere" if what == "CXX" else sys.executable)
    monkeypatch.setattr(choosing, "pace", lambda b, f, t, e, *_: Pace(0.0, 0.0 if e.compile else 1e6))
    if what == "include":
        monkeypatch.setattr(choosing.sysconfig, "get_path", lambda name: str(tmp_path))
    for compiled in ("auto", True):
        done = run(fedavg(), Execution("vmap", 4, compiled, "float64"), rounds=1)
        assert done.execution.compile is False
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert re.search(why, warned[0])


def test_batch_normalisation_is_not_compiled(caplog):
    with caplog.at_level(logging.WARNING, "plures"):
        done = run(fedavg(), Execution("vmap", 4, True, "float64"), model=normed, rounds=1)
    assert done.execution.compile is False
    assert "batch normalisation" in caplog.text
    assert_same(everything_of(done), everything_of(run(fedavg(), LOOP, model=normed, rounds=1)))


# Choosing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        Execution("loop", 5, False, "float64"),
        Execution("vmap", 3, False, "float32"),
        Execution("vmap", 1, False, "bfloat16"),
    ],
)
def test_settled_choices_are_respected_and_not_measured(wanted, monkeypatch):
    monkeypatch.setattr(choosing, "pace", lambda *_: pytest.fail("measured"))
    assert run(fedavg(), wanted, rounds=0).execution == wanted


@pytest.mark.parametrize(
    ("wanted", "check"),
    [
        (Execution(precision="float64"), lambda e: True),
        (Execution("loop", precision="float64"), lambda e: e.backend == "loop" and not e.compile),
        (Execution("vmap", precision="float64"), lambda e: e.backend == "vmap"),
        (Execution("auto", 2, precision="float64"), lambda e: e.chunk == 2),
    ],
)
def test_measuring_changes_nothing(wanted, check, monkeypatch):
    monkeypatch.setattr(choosing, "SHORT", 0.0)
    done = run(ditto(0.5), wanted)
    assert done.execution.settled
    assert check(done.execution)
    assert_same(everything_of(done), everything_of(run(ditto(0.5), done.execution)), atol=0.0)
    assert_same(everything_of(done), everything_of(run(ditto(0.5), LOOP)))


@pytest.mark.parametrize("wanted", ["auto", "vmap"])
def test_a_model_that_cannot_be_mapped_is_trained_one_client_at_a_time(wanted, caplog, monkeypatch):
    monkeypatch.setattr(choosing, "SHORT", 0.0)

    class Itemised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(x) * (1.0 if x.sum().item() > 0 else 2.0)

    with caplog.at_level(logging.WARNING, "plures"):
        done = run(fedavg(), Execution(wanted, precision="float64"), model=Itemised)
    assert done.execution.backend == "loop"
    assert len(caplog.records) == 1
    assert "one at a time" in caplog.text
    assert ".item()" in caplog.text
    assert_same(everything_of(done), everything_of(run(fedavg(), LOOP, model=Itemised)))


# Precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("model", [mlp, normed])
def test_bfloat16_is_near_and_float32_nearer(backend, model):
    exact = everything_of(run(fedavg(), LOOP, model=model, rounds=3))
    initial = run(fedavg(), LOOP, model=model, rounds=0).states([0])["model"]
    distance = {}
    for precision in ("float32", "bfloat16"):
        done = run(fedavg(), Execution(backend, 4, False, precision), model=model, rounds=3)
        states = done.states([0])["model"]
        assert all(t.dtype == torch.float32 for t in states.values() if t.is_floating_point())
        moved = {path: (t[0].double() - exact[f"model.{path}"][0]) for path, t in states.items()}
        scale = sum((exact[f"model.{p}"][0] - t[0]).square().sum() for p, t in initial.items() if "num" not in p)
        distance[precision] = float((sum(d.square().sum() for p, d in moved.items() if "num" not in p) / scale).sqrt())
    assert distance["float32"] < 1e-5
    assert 1e-5 < distance["bfloat16"] < 0.03


@pytest.mark.parametrize(
    "method", [fedprox(0.1), fedper(), lgfedavg(), fedrep()], ids=["fedprox", "fedper", "lgfedavg", "fedrep"]
)
def test_float64_leaves_stay_float64(method):
    for leaves in run(method, WIDE, rounds=1).states([0]).values():
        assert all(t.dtype == torch.float64 for t in leaves.values())
    assert isinstance(method.schedule[-1], Phase)
    assert body.slot == "model"


# The allocator -------------------------------------------------------------------------------------------------


def test_the_allocator_is_left_alone_where_it_is_not_ours(monkeypatch):
    assert keep_freed_memory() is keep_freed_memory()
    with monkeypatch.context() as patch:
        patch.setenv("MALLOC_ARENA_MAX", "2")
        assert not keep_freed_memory.__wrapped__()
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory.__wrapped__()
