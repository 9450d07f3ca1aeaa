"""Reference networks: the papers' sizes and formulas, shapes, marked parts, and refused options."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from plures.errors import PluresError
from plures.federation import Federation, from_arrays
from plures.method import SGD, Setting
from plures.methods import fedavg, fedbn, fedrep
from plures.models import (
    NETWORKS,
    Network,
    autoencoder_classifier,
    build,
    char_lstm,
    char_transformer,
    default_model,
    fedavg_cnn,
    fedbn_cnn,
    fedrep_cnn,
    gcn,
    har_cnn,
    logistic,
    matrix_factorization,
    mixture_of_experts,
    mlp,
    moe,
    redrawn,
    resnet,
    sage,
)
from plures.models.residual import Block, SqueezeExcitation
from plures.models.sequence import CausalAttention
from plures.run import Execution, Run, Training
from sizes import parameters


@dataclass(frozen=True)
class Case:
    """A small instance of a network; inputs are integers below ``numbers``, or real if that is 0."""

    features: tuple[int, ...]
    outputs: int = 3
    numbers: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def inputs(self, *batch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        if self.numbers:
            return torch.randint(0, self.numbers, (*batch, *self.features), generator=generator)
        return torch.randn(*batch, *self.features, generator=generator, dtype=torch.float64)

    def network(self, name: str) -> Network:
        return Network(build(partial(NETWORKS[name], self.features, self.outputs, **self.options), 1).double())


GRAPH = {"vocabulary": 7, "hidden": 5}
CASES = {
    "logistic": ("logistic", Case((6,))),
    "mlp": ("mlp", Case((6,))),
    "fedavg_cnn": ("fedavg_cnn", Case((16, 16))),
    "fedrep_cnn": ("fedrep_cnn", Case((16, 16))),
    "fedbn_cnn": ("fedbn_cnn", Case((5, 5), options={"width": 0.1})),
    "har_cnn": ("har_cnn", Case((2, 36))),
    "resnet": ("resnet", Case((3, 8, 9), options={"width": 4})),
    "resnet se batch": ("resnet", Case((8, 8), options={"width": 8, "se": True, "reduction": 2, "norm": "batch"})),
    "unet": ("unet", Case((2, 5, 6), options={"width": 4})),
    "char_lstm": ("char_lstm", Case((6,), 5, 5, {"hidden": 4})),
    "char_transformer": ("char_transformer", Case((6,), 5, 9, {"vocabulary": 9, "width": 8, "heads": 2})),
    "matrix_factorization": ("matrix_factorization", Case((1,), 1, 8, {"items": 8, "factors": 3})),
    "gcn": ("gcn", Case((7, 4), 3, 8, GRAPH)),
    "gcn adapter": ("gcn", Case((7, 4), 3, 8, GRAPH | {"adapter": 2})),
    "sage": ("sage", Case((13, 4), 3, 8, GRAPH | {"adapter": 2})),
    "autoencoder_classifier": ("autoencoder_classifier", Case((3, 11), options={"code": 4})),
    "autoencoder pictures": ("autoencoder_classifier", Case((9, 8), options={"code": 4})),
    "moe": ("moe", Case((2, 3), options={"experts": 2, "hidden": 4})),
}
WITHOUT_HEAD = ("logistic", "moe")
OF_PIXELS = ("unet",)


def federation(*features: int, outputs: int = 3) -> Federation:
    """Two clients with 15 examples each of some shape."""
    inputs = torch.randn(30, *features, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % outputs
    return from_arrays(inputs, labels, ["a"] * 15 + ["b"] * 15)


FIVE = 5 * 5
COUNTS = {
    "logistic": (logistic, (28, 28), 784 * 10 + 10),
    "mlp": (mlp, (1, 28, 28), (784 * 200 + 200) + (200 * 10 + 10)),
    "2nn": (partial(mlp, hidden=(200, 200)), (28, 28), 199_210),
    "fedavg_cnn 28": (
        fedavg_cnn,
        (28, 28),
        (FIVE * 32 + 32) + (32 * FIVE * 64 + 64) + (64 * 4 * 4 * 512 + 512) + (512 * 10 + 10),
    ),
    "fedavg_cnn 32": (
        fedavg_cnn,
        (3, 32, 32),
        (3 * FIVE * 32 + 32) + (32 * FIVE * 64 + 64) + (64 * 5 * 5 * 512 + 512) + (512 * 10 + 10),
    ),
    "fedrep_cnn": (
        fedrep_cnn,
        (3, 32, 32),
        (3 * FIVE * 64 + 64) + (64 * FIVE * 64 + 64) + (1600 * 120 + 120) + (120 * 64 + 64) + (64 * 10 + 10),
    ),
    "fedbn_cnn": (
        fedbn_cnn,
        (3, 28, 28),
        (3 * FIVE * 64 + 64)
        + (64 * FIVE * 64 + 64)
        + (64 * FIVE * 128 + 128)
        + (6272 * 2048 + 2048)
        + (2048 * 512 + 512)
        + (512 * 10 + 10)
        + 2 * (64 + 64 + 128 + 2048 + 512),
    ),
    "har_cnn": (
        har_cnn,
        (9, 128),
        (9 * 8 * 32 + 32) + (32 * 5 * 32 + 32) + 2 * (32 + 32) + (32 * 6 * 64 + 64) + (64 * 10 + 10),
    ),
    "resnet 20": (partial(resnet, depth=20, norm="batch"), (3, 32, 32), 269_722),
    "resnet 56": (partial(resnet, depth=56, norm="group"), (3, 32, 32), 853_018),
    "resnet 8 se": (
        partial(resnet, norm="none", se=True),
        (8, 8),
        (9 * 16 + 16)
        + sum(2 * (9 * c * c + c) - (9 * c * c // 2 if c > 16 else 0) + 2 * c * c // 4 + c for c in (16, 32, 64))
        + (64 * 10 + 10),
    ),
    "char_lstm": (
        partial(char_lstm, vocabulary=90),
        (80,),
        90 * 8 + (4 * 256 * (8 + 256) + 2 * 4 * 256) + (4 * 256 * 512 + 2 * 4 * 256) + (256 * 10 + 10),
    ),
    "char_transformer": (
        partial(char_transformer, vocabulary=76),
        (80,),
        (76 + 80) * 64 + 2 * (4 * (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64) + 2 * 128) + 128 + 650,
    ),
    "gcn": (partial(gcn, vocabulary=1433, hidden=16), (31, 30), (1433 * 16 + 16) + (16 * 10 + 10)),
    "gcn adapter": (
        partial(gcn, vocabulary=50, adapter=3),
        (7, 4),
        (50 * 64 + 64) + 2 * ((64 * 3 + 3) + (3 * 64 + 64)) + (64 * 10 + 10),
    ),
    "sage": (
        partial(sage, vocabulary=50),
        (7, 4),
        (2 * 50 * 64 + 64) + (2 * 64 * 64 + 64) + (64 * 10 + 10),
    ),
    "autoencoder 1-D": (
        autoencoder_classifier,
        (9, 128),
        (9 * 5 * 16 + 16)
        + (16 * 5 * 32 + 32)
        + (32 * 32 * 32 + 32)
        + (32 * 1024 + 1024)
        + (32 * 5 * 16 + 16)
        + (16 * 5 * 9 + 9)
        + (32 * 10 + 10),
    ),
    "autoencoder flat": (
        autoencoder_classifier,
        (20,),
        (20 * 128 + 128) + (128 * 32 + 32) + (32 * 128 + 128) + (128 * 20 + 20) + (32 * 10 + 10),
    ),
    "moe": (moe, (4, 5), 4 * ((20 * 64 + 64) + (64 * 10 + 10)) + (20 * 4 + 4)),
}
INTEGERS = ("char_lstm", "char_transformer", "gcn", "gcn adapter", "sage")


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_shapes(name: str):
    network, features, count = COUNTS[name]
    module = network(features, 10)
    assert parameters(module) == count
    x = torch.randint(0, 50, (2, *features)) if name in INTEGERS else torch.randn(2, *features)
    assert module(x).shape == (2, 10)


def test_published_counts():
    assert parameters(char_lstm((80,), 90)) == 820_522 + 2 * 4 * 256
    assert parameters(gcn((31, 30), 7, vocabulary=1433, hidden=16)) == 23_063
    assert COUNTS["fedavg_cnn 28"][2] == 582_026
    assert COUNTS["fedavg_cnn 32"][2] == 878_538
    assert COUNTS["fedbn_cnn"][2] == 14_219_210


PICTURES = ("mlp", "fedavg_cnn", "fedrep_cnn", "fedbn_cnn", "resnet", "autoencoder_classifier", "moe")


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_with_and_without_channel_axis_are_the_same(name: str):
    plain, channel = (build(partial(NETWORKS[name], f, 4), 1).eval() for f in ((20, 17), (1, 20, 17)))
    pictures = torch.randn(3, 20, 17)
    torch.testing.assert_close(plain(pictures), channel(pictures.unsqueeze(1)), rtol=0, atol=0)


def test_every_network_has_a_case():
    assert {name for name, _ in CASES.values()} == set(NETWORKS)


@pytest.mark.parametrize("key", CASES)
def test_the_head_is_one_part_that_runs_last_on_vectors_and_body_is_the_rest(key: str):
    name, case = CASES[key]
    network = case.network(name)
    parts = {role: {path for path, leaf in network.info.items() if role in leaf.roles} for role in ("head", "body")}
    if name in WITHOUT_HEAD:
        assert parts == {"head": set(), "body": set()}
        return
    decoder = {path for path, leaf in network.info.items() if "decoder" in leaf.roles}
    assert parts["head"] == {path for path in network.info if path.startswith("head.")}
    assert parts["body"] == set(network.info) - parts["head"] - decoder
    leaves = network.leaves()
    outputs, vectors, _ = network.tapped(leaves, case.inputs(4), train=False)
    pixels = case.features[1:] if name in OF_PIXELS else ()
    assert outputs.shape == (4, case.outputs, *pixels)
    assert vectors.dim() == 2 + len(pixels)
    assert torch.equal(network.part("head", leaves, vectors), outputs)


def client_loss(network: Network, leaves, x, y):
    outputs = network(leaves, x, train=True)[0]
    outputs = outputs.flatten(2).mean(2) if outputs.dim() > 2 else outputs
    return (outputs - y).square().mean() if outputs.shape[-1] == 1 else functional.cross_entropy(outputs, y)


@pytest.mark.parametrize("key", CASES)
def test_gradients_of_stacked_clients_are_those_of_each_alone(key: str):
    name, case = CASES[key]
    network, x = case.network(name), case.inputs(3, 5)
    if name in ("gcn", "sage"):
        x[0, :, 2] = -1
        x = x.to(torch.int32)
    y = torch.arange(15).view(3, 5) % case.outputs
    y = y.double().unsqueeze(-1) + 0.5 if case.outputs == 1 else y
    buffers = {path for path, leaf in network.info.items() if leaf.buffer}
    stacked = {}
    for path, leaf in network.leaves().items():
        copies = leaf.expand(3, *leaf.shape).clone()
        stacked[path] = copies if path in buffers else copies + 0.1 * torch.randn_like(copies)
    fixed = {path: value for path, value in stacked.items() if path in buffers}
    trained = {path: value for path, value in stacked.items() if path not in buffers}

    def loss(trained, fixed, x, y):
        return client_loss(network, trained | fixed, x, y)

    together = torch.func.vmap(torch.func.grad(loss))(trained, fixed, x, y)
    for client in range(3):
        own = {path: value[client].clone().requires_grad_() for path, value in trained.items()}
        value = loss(own, {path: value[client] for path, value in fixed.items()}, x[client], y[client])
        alone = torch.autograd.grad(value, list(own.values()), allow_unused=True)
        moved = 0
        for (path, leaf), grad in zip(own.items(), alone, strict=True):
            expected = torch.zeros_like(leaf) if grad is None else grad
            torch.testing.assert_close(together[path][client], expected, rtol=1e-9, atol=1e-12, msg=path)
            moved += bool(expected.any())
        assert moved >= len(own) - sum("decoder" in leaf.roles for leaf in network.info.values())


@pytest.mark.parametrize("key", CASES)
def test_every_network_can_be_reset_by_a_seed(key: str):
    name, case = CASES[key]
    module = NETWORKS[name](case.features, case.outputs, **case.options)
    one, again, other = (redrawn(module, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[path], again[path]) for path in one)
    assert any(not torch.equal(one[path], other[path]) for path in one)


def test_logistic_is_refused_where_a_body_is_needed():
    with pytest.raises(PluresError, match="'head' matches no leaf"):
        fedrep().bind(Network(logistic((5,), 2)), Setting.of(federation(5)))


@pytest.mark.parametrize(("norm", "kind"), [("none", None), ("batch", nn.BatchNorm1d), ("group", nn.GroupNorm)])
def test_har_norms(norm, kind):
    module = har_cnn((9, 128), 6, norm=norm)
    assert sum(isinstance(m, nn.BatchNorm1d | nn.GroupNorm) for m in module.modules()) == (2 if kind else 0)
    assert all(isinstance(m, kind) for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.GroupNorm))
    assert parameters(module) == 20_230 + (128 if kind else 0)


@pytest.mark.parametrize(("name", "side"), [("fedavg_cnn", 16), ("fedrep_cnn", 16), ("fedbn_cnn", 4), ("resnet", 8)])
def test_smallest_pictures(name: str, side: int):
    assert NETWORKS[name]((side, side), 2).eval()(torch.randn(1, side, side)).shape == (1, 2)
    with pytest.raises(PluresError, match=rf"{name} .*at least {side} x {side}.*shape \(3, {side - 1}, 40\)"):
        NETWORKS[name]((3, side - 1, 40), 2)


def test_shortest_windows():
    for time in range(36, 80):
        assert har_cnn((2, time), 3)(torch.randn(1, 2, time)).shape == (1, 3)
    with pytest.raises(PluresError, match=r"at least 36 samples.*shape \(9, 35\)"):
        har_cnn((9, 35), 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedavg_cnn((784,), 10), r"fedavg_cnn reads pictures.*shape \(784,\)"),
        (lambda: har_cnn((1, 9, 128), 6), r"har_cnn reads \(channels, time\).*shape \(1, 9, 128\)"),
        (lambda: mlp((), 2), r"mlp: examples of shape \(\)"),
        (lambda: mlp((0,), 2), r"mlp: examples of shape \(0,\)"),
        (lambda: mlp((4,), 2, hidden=()), r"mlp: hidden=\(\)"),
        (lambda: mlp((4,), 2, hidden=(8, 0)), r"mlp: hidden=\(8, 0\)"),
        (lambda: logistic((4,), 0), "logistic: outputs=0"),
        (lambda: fedbn_cnn((28, 28), 10, width=0), "fedbn_cnn: width=0"),
        (lambda: har_cnn((9, 128), 6, norm="layer"), "norm='layer' is unknown; use none, batch, group"),
        (lambda: resnet((3, 32, 32), 10, depth=10), r"resnet: depth=10; give 8, 14, 20"),
        (lambda: resnet((3, 32, 32), 10, width=0), "resnet: width=0"),
        (lambda: resnet((3, 32, 32), 10, norm="layer"), "resnet: norm='layer' is unknown"),
        (lambda: resnet((128,), 10), r"resnet reads pictures.*shape \(128,\)"),
        (lambda: char_lstm((80, 2), 76), r"char_lstm reads sequences of integers \(length,\).*shape \(80, 2\)"),
        (lambda: char_lstm((80,), 76, hidden=0), "char_lstm: hidden=0"),
        (lambda: char_transformer((80, 2), 76), r"char_transformer reads sequences.*shape \(80, 2\)"),
        (lambda: char_transformer((80,), 76, width=10), "width=10 is not a multiple of heads=4"),
        (lambda: matrix_factorization((2,), 1), r"reads one item \(1,\).*shape \(2,\) and 1 outputs"),
        (lambda: matrix_factorization((1,), 5), r"predicts 1 rating.*shape \(1,\) and 5 outputs"),
        (lambda: matrix_factorization((1,), 1, items=0), "matrix_factorization: items=0"),
        (lambda: gcn((30, 4), 2), r"gcn reads neighbourhoods.*shape \(30, 4\)"),
        (lambda: sage((31,), 2), r"sage reads neighbourhoods.*shape \(31,\)"),
        (lambda: gcn((1, 4), 2), r"gcn reads neighbourhoods.*shape \(1, 4\)"),
        (lambda: sage((7, 4), 2, vocabulary=0), "sage: vocabulary=0"),
        (lambda: gcn((7, 4), 2, adapter=-1), "gcn: adapter=-1"),
        (lambda: autoencoder_classifier((7,), 2, code=0), "autoencoder_classifier: code=0"),
        (lambda: moe((7,), 2, experts=0), "moe: experts=0"),
        (lambda: mixture_of_experts([], nn.Linear(2, 2)), "at least one expert"),
        (
            lambda: mixture_of_experts([nn.Linear(2, 2)] * 3, nn.Linear(2, 2))(torch.ones(1, 2)),
            "the gate gives 2 numbers for 3 experts",
        ),
        (lambda: char_lstm((4,), 5)(torch.ones(1, 4)), "reads integers.*inputs are torch.float32"),
        (lambda: gcn((7, 4), 2)(torch.ones(1, 7, 4)), "reads integers.*inputs are torch.float32"),
    ],
)
def test_messages(make, message):
    with pytest.raises(PluresError, match=message):
        make()


@pytest.mark.parametrize(
    ("features", "network"),
    [
        ((7,), mlp),
        ((28, 28), fedavg_cnn),
        ((3, 32, 32), fedavg_cnn),
        ((1, 16, 16), fedavg_cnn),
        ((20, 30), fedavg_cnn),
        ((8, 8), mlp),
        ((9, 128), har_cnn),
        ((9, 30), mlp),
        ((2, 3, 4, 5), mlp),
    ],
)
def test_default_model(features, network):
    f = federation(*features)
    factory = default_model(f)
    assert factory.func is network
    assert factory()(f.inputs[:2]).shape == (2, 3)


def test_default_model_refuses_tokens():
    f = federation(12)
    with pytest.raises(PluresError, match=r"integer inputs.*char_lstm .*matrix_factorization .*gcn "):
        default_model(replace(f, inputs=f.inputs.long()))


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_har_cnn_trains_alike_stacked_and_alone(norm: str):
    f = federation(2, 40)
    method = fedbn() if norm != "none" else fedavg()
    models = []
    for backend, chunk in (("loop", 1), ("vmap", 2)):
        run = Run(
            f,
            partial(har_cnn, f.features, 3, norm),
            method,
            Training(rounds=2, batch_size=4, optimizer=SGD(0.05)),
            execution=Execution(backend, chunk, False, "float64"),
        )
        for _ in run.rounds():
            pass
        models.append(run.predictors([0, 1]))
    for path, value in models[0].items():
        torch.testing.assert_close(value, models[1][path], msg=lambda m, path=path: f"{path}: {m}")


# Residual networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "filters", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_a_block_whose_convolutions_give_zero_is_its_shortcut(channels: int, filters: int, stride: int):
    block, x = Block(channels, filters, stride, "none", None), torch.randn(2, channels, 7, 6)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    y = block(x)
    assert torch.equal(y[:, :channels], x[:, :, ::stride, ::stride].relu())
    assert not y[:, channels:].any()


@pytest.mark.oracle("SE1")
def test_squeeze_excitation_halves_or_passes_every_channel():
    gate, x = SqueezeExcitation(8), torch.randn(2, 8, 3, 4)
    means, w1, w2 = x.mean((2, 3)), gate.squeeze.weight, gate.excite.weight
    expected = torch.sigmoid((means @ w1.T).relu() @ w2.T + gate.excite.bias)
    torch.testing.assert_close(gate(x), x * expected[:, :, None, None])
    with torch.no_grad():
        gate.excite.bias.fill_(math.inf)
        assert torch.equal(gate(x), x)
        nn.init.zeros_(gate.excite.weight)
        nn.init.zeros_(gate.excite.bias)
        assert torch.equal(gate(x), x / 2)


@pytest.mark.oracle("SE1")
def test_an_infinite_bias_of_all_gates_gives_the_network_without():
    plain, gated = resnet((3, 8, 8), 4, 14), resnet((3, 8, 8), 4, 14, se=True)
    assert gated.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    x = torch.randn(5, 3, 8, 8)
    assert not torch.equal(gated(x), plain(x))
    for part in gated.modules():
        if isinstance(part, SqueezeExcitation):
            nn.init.constant_(part.excite.bias, math.inf)
    assert torch.equal(gated(x), plain(x))


def test_gates_have_a_role_of_their_own_inside_the_body():
    info = Network(resnet((3, 8, 8), 4, 14, se=True)).info
    gates = {path for path, leaf in info.items() if leaf.roles == {"body", "se"}}
    assert len(gates) == 6 * 3
    assert gates == {path for path in info if ".se." in path}


# Sequences ------------------------------------------------------------------------------------------------------


def test_char_lstm_is_the_recursion_of_the_paper():
    module, text = char_lstm((4,), 5, hidden=3, layers=1), torch.tensor([[1, 4, 0, 2]])
    leaves = module.state_dict()
    w, u, b = (leaves[f"body.1.lstm.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih"))
    b = b + leaves["body.1.lstm.bias_hh_l0"]
    h = c = torch.zeros(3)
    for character in text[0]:
        i, f, g, o = (w @ leaves["body.0.weight"][character] + u @ h + b).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    torch.testing.assert_close(module(text)[0], leaves["head.weight"] @ h + leaves["head.bias"])


def test_attention_is_that_of_pytorch_with_a_causal_mask():
    own, x = CausalAttention(12, 3), torch.randn(2, 5, 12)
    other = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        other.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
    other.out_proj = own.out
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(own(x), other(x, x, x, attn_mask=mask, need_weights=False)[0])


def test_the_transformer_reads_every_position_in_order_and_none_from_later():
    module, text = char_transformer((6,), 9, width=8), torch.arange(6).unsqueeze(0)
    outputs = module(text)
    for place in range(6):
        changed = text.clone()
        changed[0, place] = 8
        assert (module(changed) - outputs).abs().max() > 1e-4
    assert (module(text[:, [1, 0, 2, 3, 4, 5]]) - outputs).abs().max() > 1e-5
    blocks, later = module.body[:4], text.clone()
    later[0, 3:] = 8
    torch.testing.assert_close(blocks(later)[:, :3], blocks(text)[:, :3], rtol=0, atol=1e-6)
    info = Network(module).info
    assert sum("attention" in leaf.roles for leaf in info.values()) == 2 * 4 * 2


# Ratings --------------------------------------------------------------------------------------------------------


def test_matrix_factorization_is_the_formula_and_so_are_its_gradients():
    module = matrix_factorization((1,), 1, items=3, factors=2, mean=3.5)
    table = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, -0.25], [3.0, 1.0, 0.0]])
    with torch.no_grad():
        module.body[0].weight.copy_(table)
        module.head.factors.weight.copy_(torch.tensor([[0.5, -1.0]]))
        module.head.factors.bias.fill_(0.25)
    predicted = module(torch.tensor([[0], [1], [2]]))
    assert predicted.flatten().tolist() == [3.5 + 0.5 + 0.25 - 1.5, 3.5 - 0.25 + 0.25 + 1.0, 3.5 + 0.0 + 0.25 + 0.5]
    predicted[1].sum().backward()
    assert module.body[0].weight.grad.tolist() == [[0, 0, 0], [0.5, -1.0, 1.0], [0, 0, 0]]
    assert module.head.factors.weight.grad.tolist() == [[0.0, -1.0]]
    assert module.head.factors.bias.grad.tolist() == [1.0]


# Graphs ---------------------------------------------------------------------------------------------------------

WORDS = 6
NEIGHBOURS = {0: [1, 2], 1: [0], 2: [0, 3], 3: [2], 4: []}
ACTIVE = {0: [1, 4], 1: [2], 2: [3, 5, 6], 3: [], 4: [1, 6]}


def neighbourhoods(k: int = 2) -> torch.Tensor:
    """Inputs of all nodes of the graph above, whose nodes have at most two neighbours."""

    def row(node: int | None) -> list[int]:
        return [-1] * 3 if node is None else ACTIVE[node] + [0] * (3 - len(ACTIVE[node]))

    def near(node: int | None) -> list[int | None]:
        found = [] if node is None else NEIGHBOURS[node]
        return [*found, *[None] * (k - len(found))]

    return torch.tensor(
        [[row(v), *map(row, near(v)), *(row(u) for j in near(v) for u in near(j))] for v in NEIGHBOURS],
    )


def adjacency() -> tuple[torch.Tensor, torch.Tensor]:
    """Adjacency and binary features of the same graph as matrices."""
    a, x = torch.zeros(5, 5), torch.zeros(5, WORDS)
    for v, others in NEIGHBOURS.items():
        a[v, others] = 1
        x[v, [number - 1 for number in ACTIVE[v]]] = 1
    return a, x


def test_gcn_is_the_formula_on_the_whole_graph():
    module = gcn((7, 3), 4, vocabulary=WORDS, hidden=5)
    nn.init.normal_(module.body.first.linear.bias)
    (a, x), first = adjacency(), module.body.first.linear
    loops = a + torch.eye(5)
    mean = loops / loops.sum(1, keepdim=True)
    expected = mean @ (mean @ x @ first.weight + first.bias).relu() @ module.head.weight.T + module.head.bias
    torch.testing.assert_close(module(neighbourhoods()), expected)
    wide = gcn((13, 3), 4, vocabulary=WORDS, hidden=5)
    wide.load_state_dict(module.state_dict())
    torch.testing.assert_close(wide(neighbourhoods(3)), expected)


def test_sage_is_the_formula_on_the_whole_graph():
    module = sage((7, 3), 4, vocabulary=WORDS, hidden=5)
    (a, x), one, two = adjacency(), module.body.first, module.body.second
    mean = a / a.sum(1, keepdim=True).clamp(min=1)
    h = (x @ one.own.weight + one.own.bias + mean @ x @ one.near.weight).relu()
    h = (two.own(h) + mean @ h @ two.near.weight.T).relu()
    torch.testing.assert_close(module(neighbourhoods()), module.head(h))


@pytest.mark.oracle("G2")
@pytest.mark.parametrize("network", [gcn, sage])
def test_a_graph_without_edges_is_a_perceptron(network):
    module = network((7, 3), 4, vocabulary=WORDS, hidden=5)
    x, inputs = adjacency()[1], neighbourhoods()
    inputs[:, 1:] = -1
    leaves = module.state_dict()
    same = {"head.weight": leaves["head.weight"], "head.bias": leaves["head.bias"]}
    if network is gcn:
        perceptron = mlp((WORDS,), 4, hidden=(5,))
        bag = module.body.first.linear
    else:
        perceptron = mlp((WORDS,), 4, hidden=(5, 5))
        bag = module.body.first.own
        same |= {"body.3.weight": leaves["body.second.own.weight"], "body.3.bias": leaves["body.second.own.bias"]}
    perceptron.load_state_dict({"body.1.weight": bag.weight.detach().T, "body.1.bias": bag.bias.detach(), **same})
    torch.testing.assert_close(module(inputs), perceptron(x))


@pytest.mark.parametrize("network", [gcn, sage])
def test_graph_adapters_are_nothing_at_first_and_then_add_to_each_layer(network):
    plain = network((7, 3), 4, vocabulary=WORDS, hidden=5)
    adapted = network((7, 3), 4, vocabulary=WORDS, hidden=5, adapter=2)
    assert adapted.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    assert torch.equal(adapted(neighbourhoods()), plain(neighbourhoods()))
    own = {path for path, leaf in Network(adapted).info.items() if "adapter" in leaf.roles}
    assert own == {path for path in adapted.state_dict() if ".adapter." in path}
    assert len(own) == 2 * 4
    nn.init.constant_(adapted.body.second.adapter.up.bias, 0.5)
    shift = 0.5 * plain.head.weight.sum(1)
    torch.testing.assert_close(adapted(neighbourhoods()), plain(neighbourhoods()) + shift)


# Auto-encoder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2])
def test_reconstructions_have_the_shape_of_the_inputs(dims: int):
    for side in range(5, 14):
        features = (2, 3 * side) if dims == 1 else (2, side, side + 1)
        module, x = autoencoder_classifier(features, 3, code=4), torch.randn(2, *features)
        assert module.reconstruct(x).shape == x.shape
    for features in ((9,), (9, 8), (2, 3, 4, 5)):
        module, x = autoencoder_classifier(features, 3), torch.randn(2, *features)
        assert module.reconstruct(x).shape == x.shape


def test_decoder_and_head_read_the_same_code():
    network, x = Network(autoencoder_classifier((2, 12), 3, code=4)), torch.randn(5, 2, 12)
    leaves = network.leaves()
    _, code, _ = network.tapped(leaves, x, train=False)
    assert code.shape == (5, 4)
    assert torch.equal(network.part("decoder", leaves, code), network.module.reconstruct(x))
    assert torch.equal(network.part("body", leaves, x), code)


def test_the_dense_auto_encoder_learns_what_fits_its_code():
    module, x = autoencoder_classifier((6,), 2, code=2), torch.randn(40, 2) @ torch.randn(2, 6)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (module.reconstruct(x) - x).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 * x.var().item()


# Mixtures of experts --------------------------------------------------------------------------------------------


def mixture(experts: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A mixture, inputs, and the outputs of its experts ``(experts, batch, outputs)``."""
    module, x = moe((3,), 2, experts=experts, hidden=4), torch.randn(5, 3)
    return module, x, torch.stack([expert(x) for expert in module.experts])


def set_gate(module: nn.Module, logits: list[float]) -> None:
    nn.init.zeros_(module.gate[1].weight)
    with torch.no_grad():
        module.gate[1].bias.copy_(torch.tensor(logits))


def test_a_mixture_weighs_its_experts_by_example_and_owns_copies_of_them():
    module, x, each = mixture(3)
    weights = module.gate(x).exp() / module.gate(x).exp().sum(1, keepdim=True)
    torch.testing.assert_close(module(x), torch.einsum("kbo,bk->bo", each, weights))
    info = Network(module).info
    assert {path for path, leaf in info.items() if leaf.roles == {"gate"}} == {"gate.1.weight", "gate.1.bias"}
    assert sum(leaf.roles == {"experts"} for leaf in info.values()) == 3 * 4
    expert = nn.Linear(2, 2)
    twice = mixture_of_experts([expert, expert], nn.Linear(2, 2))
    nn.init.zeros_(twice.experts[0].weight)
    assert expert.weight.any()
    assert torch.equal(twice.experts[1].weight, expert.weight)


@pytest.mark.oracle("ME0")
def test_one_expert_is_that_expert():
    module, x, each = mixture(1)
    assert torch.equal(module(x), each[0])


@pytest.mark.oracle("ME1")
def test_a_zero_gate_is_the_mean_ensemble():
    module, x, each = mixture(4)
    set_gate(module, [0.0] * 4)
    torch.testing.assert_close(module(x), each.mean(0))


@pytest.mark.oracle("ME2")
def test_a_gate_with_one_huge_logit_is_a_hard_choice():
    module, x, each = mixture(4)
    set_gate(module, [0.0, 0.0, 1e4, 0.0])
    assert torch.equal(module(x), each[2])


@pytest.mark.oracle("ME3")
def test_a_constant_gate_interpolates_outputs():
    module, x, each = mixture(2)
    set_gate(module, [math.log(0.3), math.log(0.7)])
    torch.testing.assert_close(module(x), 0.3 * each[0] + 0.7 * each[1])
