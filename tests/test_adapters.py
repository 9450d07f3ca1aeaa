"""Low-rank adaptation and bottleneck adapters: no effect at first, exact when merged, with the declared roles."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from plures.errors import PluresError
from plures.models import (
    Network,
    build,
    char_transformer,
    fedavg_cnn,
    har_cnn,
    merged,
    mlp,
    redrawn,
    resnet,
    with_adapters,
    with_lora,
    with_roles,
)
from plures.models.adapters import Lora
from sizes import parameters

NETWORKS = {
    "linear": (partial(mlp, (6,), 3, (5, 4)), (6,)),
    "conv 1-D": (partial(har_cnn, (2, 40), 3), (2, 40)),
    "conv 2-D": (partial(fedavg_cnn, (16, 16), 3), (16, 16)),
    "strided": (partial(resnet, (3, 8, 8), 3, width=8, se=True), (3, 8, 8)),
    "attention": (partial(char_transformer, (6,), 9, width=8), (6,)),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1, dilation=2, padding_mode="circular")),
        (4, 7, 7),
    ),
}


def case(name: str) -> tuple[nn.Module, torch.Tensor]:
    make, features = NETWORKS[name]
    x = torch.randn(4, *features, dtype=torch.float64)
    return build(make, 1).double(), torch.randint(0, 9, (4, *features)) if name == "attention" else x


def randomized(module: nn.Module) -> nn.Module:
    """Set every factor, or adapter, to random values."""
    for path, leaf in module.named_parameters():
        if "lora_b" in path or "adapter" in path:
            nn.init.normal_(leaf)
    return module


@pytest.mark.oracle("LR0")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("add", [partial(with_lora, rank=2), partial(with_adapters, width=2)], ids=["lora", "adapter"])
def test_at_the_start_the_model_is_the_base_and_stays_it_after_a_reset(name: str, add):
    module, x = case(name)
    adapted = add(module)
    assert torch.equal(adapted(x), module(x))
    again = redrawn(adapted, 7)
    if name != "groups":
        assert not torch.equal(again(x), module(x))
    values = again.state_dict()
    ends = [path for path in values if "lora_b" in path or ".up." in path]
    assert ends
    assert not any(values[path].any() for path in ends)
    assert all(values[path.replace("lora_b", "lora_a").replace(".up.", ".down.")].any() for path in ends)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_base_is_copied_with_type_and_roles(name: str):
    module, x = case(name)
    before = copy.deepcopy(module.state_dict())
    randomized(with_lora(module))(x).sum().backward()
    assert all(torch.equal(value, before[path]) for path, value in module.state_dict().items())
    assert all(leaf.grad is None for leaf in module.parameters())
    for adapted in (with_lora(module), with_adapters(module, 2)):
        assert all(leaf.dtype == torch.float64 for leaf in adapted.parameters())
        assert {role: adapted.roles[role] for role in getattr(module, "roles", {})} == getattr(module, "roles", {})


@pytest.mark.oracle("LR2")
@pytest.mark.parametrize("name", NETWORKS)
def test_merged_gives_the_same_outputs_from_the_plain_architecture(name: str):
    module, x = case(name)
    adapted = randomized(with_lora(module, rank=2, alpha=0.5))
    plain = merged(adapted)
    assert plain.state_dict().keys() == module.state_dict().keys()
    assert getattr(plain, "roles", {}) == getattr(module, "roles", {})
    assert (adapted(x) - module(x)).abs().max() > 1e-3
    torch.testing.assert_close(plain(x), adapted(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain.float()(x.float() if x.is_floating_point() else x), adapted(x).float())


@pytest.mark.oracle("LR2")
def test_the_update_is_alpha_over_rank_b_a():
    layer = with_lora(nn.Linear(3, 2), rank=2, alpha=3.0)
    assert isinstance(layer, Lora)
    with torch.no_grad():
        layer.lora_a.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]))
        layer.lora_b.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
    change = 1.5 * torch.tensor([[1.0, -1.0, 2.0], [0.0, 2.0, 0.0]])
    torch.testing.assert_close(merged(layer).weight, layer.base.weight + change)
    torch.testing.assert_close(layer(torch.eye(3)), (layer.base.weight + change).T + layer.base.bias)


@pytest.mark.oracle("LR1")
@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(2, 4, 3), nn.Conv1d(4, 6, 3, groups=2)], ids=str)
def test_full_rank_spans_the_full_layer(layer: nn.Module):
    layer, wanted = layer.double(), copy.deepcopy(layer).double()
    nn.init.normal_(wanted.weight)
    groups = getattr(layer, "groups", 1)
    change = (wanted.weight - layer.weight).detach().reshape(groups, layer.weight.shape[0] // groups, -1)
    rank = min(change.shape[1:])
    adapted = with_lora(layer, rank)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    with torch.no_grad():
        adapted.lora_a.weight.copy_(v.reshape(adapted.lora_a.weight.shape))
        adapted.lora_b.weight.copy_((u * s.unsqueeze(1)).reshape(adapted.lora_b.weight.shape))
    x = torch.randn(3, *{nn.Linear: (5,), nn.Conv2d: (2, 5, 5), nn.Conv1d: (4, 7)}[type(layer)], dtype=torch.float64)
    torch.testing.assert_close(adapted(x), functional_layer(layer, x, wanted.weight), rtol=1e-11, atol=1e-11)


def functional_layer(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(layer, {"weight": weight}, (x,))


@pytest.mark.oracle("LR3")
def test_the_mean_of_factors_is_not_the_mean_of_products():
    base = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(base.weight)
    clients = [with_lora(base, rank=1) for _ in range(2)]
    for axis, client in enumerate(clients):
        with torch.no_grad():
            client.lora_a.weight.copy_(torch.eye(2)[axis].view(1, 2))
            client.lora_b.weight.copy_(torch.eye(2)[axis].view(2, 1))
    mean = copy.deepcopy(clients[0])
    values = [client.state_dict() for client in clients]
    mean.load_state_dict({path: (values[0][path] + values[1][path]) / 2 for path in values[0]})
    assert merged(mean).weight.tolist() == [[0.25, 0.25], [0.25, 0.25]]
    products = sum(merged(client).weight for client in clients) / 2
    assert products.tolist() == [[0.5, 0.0], [0.0, 0.5]]


def leaves_of(module: nn.Module, role: str) -> set[str]:
    return {path for path, leaf in Network(module).info.items() if role in leaf.roles}


def test_roles_mark_the_factors_and_nothing_of_the_base():
    module = with_lora(mlp((6,), 3, (5, 4)))
    assert leaves_of(module, "lora_a") == {"body.1.lora_a.weight", "body.3.lora_a.weight"}
    assert leaves_of(module, "lora_b") == {"body.1.lora_b.weight", "body.3.lora_b.weight"}
    assert leaves_of(module, "lora") == leaves_of(module, "lora_a") | leaves_of(module, "lora_b")
    assert leaves_of(module, "head") == {"head.weight", "head.bias"}
    with_head = with_lora(mlp((6,), 3, (5, 4)), head=True)
    assert leaves_of(with_head, "lora") - leaves_of(module, "lora") == {"head.lora_a.weight", "head.lora_b.weight"}
    assert leaves_of(with_head, "head") == {f"head.{end}.weight" for end in ("base", "lora_a", "lora_b")} | {
        "head.base.bias"
    }
    house = with_adapters(mlp((6,), 3), 2)
    ends = {f"{part}.{leaf}" for part in ("down", "up") for leaf in ("weight", "bias")}
    assert leaves_of(house, "adapter") == {f"body.1.adapter.{end}" for end in ends}
    assert parameters(house) - parameters(mlp((6,), 3)) == (200 * 2 + 2) + (2 * 200 + 200)


def test_targets_are_types_or_parts():
    module = char_transformer((6,), 9, width=8)
    attention = with_lora(module, 2, targets=module.roles["attention"])
    assert parameters(attention) - parameters(module) == 2 * 4 * (8 * 2 + 2 * 8)
    names = [f"body.2.attention.{name}" for name in ("query", "value")]
    assert len(leaves_of(with_lora(module, targets=names), "lora")) == 4
    assert leaves_of(with_lora(module, targets=("head",)), "lora") == {"head.lora_a.weight", "head.lora_b.weight"}
    picture = fedavg_cnn((16, 16), 3)
    convolutions = with_lora(picture, 2, targets=(nn.Conv2d,))
    assert parameters(convolutions) - parameters(picture) == (2 * 25 + 2 * 32) + (2 * 32 * 25 + 2 * 64)


def test_an_adapter_is_the_formula():
    layer = nn.Linear(3, 4)
    module, x = randomized(with_adapters(layer, 2)), torch.randn(5, 3)
    down, up = module.adapter.down, module.adapter.up
    h = layer(x)
    torch.testing.assert_close(module(x), h + (h @ down.weight.T + down.bias).relu() @ up.weight.T + up.bias)
    conv = nn.Conv1d(2, 4, 3)
    module, x = randomized(with_adapters(conv, 2)), torch.randn(5, 2, 7)
    down, up = (part.weight.squeeze(-1) for part in (module.adapter.down, module.adapter.up))
    h = conv(x)
    inner = (down @ h + module.adapter.down.bias.unsqueeze(-1)).relu()
    torch.testing.assert_close(module(x), h + up @ inner + module.adapter.up.bias.unsqueeze(-1))


def test_a_layer_used_twice_is_adapted_once_and_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first = nn.Embedding(6, 4), nn.Linear(4, 4)
            self.again, self.out = self.first, nn.Linear(4, 6)
            self.out.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.again(self.first(self.table(x))))

    module = with_lora(Tied(), 2)
    assert module.first is module.again
    assert module.out.base.weight is module.table.weight
    assert len(leaves_of(module, "lora")) == 4
    x = torch.arange(6)
    torch.testing.assert_close(merged(randomized(module))(x), module(x))


@pytest.mark.parametrize("train", [True, False])
def test_layers_whose_weights_are_read_directly(train: bool):
    encoder = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).train(train)
    module, x = randomized(with_lora(encoder, 2)), torch.randn(3, 5, 8)
    assert isinstance(module.self_attn.out_proj, Lora)
    with torch.no_grad():
        outputs = module(x)
        assert (outputs - encoder(x)).abs().max() > 1e-3
        torch.testing.assert_close(merged(module)(x), outputs)
    with pytest.raises(PluresError, match=r"outside the head and outside MultiheadAttention, TransformerEncoderLayer"):
        with_adapters(encoder, 2)


@pytest.mark.parametrize("add", [partial(with_lora, rank=2), partial(with_adapters, width=2)], ids=["lora", "adapter"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_stacked_clients_are_those_of_each_alone(name: str, add):
    module, x = case(name)
    network = Network(randomized(add(module)))
    data = torch.stack([x, x.flip(0)])
    stacked = {path: torch.stack([leaf, 1.1 * leaf]) for path, leaf in network.leaves().items()}

    def loss(leaves, x):
        return network(leaves, x, train=True)[0].square().mean()

    together = torch.func.vmap(torch.func.grad(loss))(stacked, data)
    for client in range(2):
        own = {path: value[client].clone().requires_grad_() for path, value in stacked.items()}
        alone = torch.autograd.grad(loss(own, data[client]), list(own.values()))
        for path, grad in zip(own, alone, strict=True):
            torch.testing.assert_close(together[path][client], grad, rtol=1e-9, atol=1e-11, msg=path)


def test_with_a_frozen_base_only_the_factors_move_the_outputs():
    x = torch.randn(60, 6)
    y = (x @ torch.randn(6, 3)).argmax(1)
    module = with_lora(with_roles(nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), head="2"), 4)
    base = {path: value.clone() for path, value in module.state_dict().items()}
    factors = [leaf for path, leaf in module.named_parameters() if path in leaves_of(module, "lora")]
    optimizer = torch.optim.SGD(factors, 1.0)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    changed = {path for path, value in module.state_dict().items() if not torch.equal(value, base[path])}
    assert changed == {"0.lora_a.weight", "0.lora_b.weight"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_lora(mlp((6,), 3), 0), "with_lora: rank=0"),
        (lambda: with_lora(mlp((6,), 3), alpha=0.0), "alpha=0.0"),
        (lambda: with_adapters(mlp((6,), 3), 0), "with_adapters: width=0"),
        (lambda: with_lora(mlp((6,), 3), targets=("tail",)), "no part 'tail'; parts are body, body.0"),
        (lambda: with_lora(mlp((6,), 3), targets=(nn.Conv1d,)), "no layer to adapt"),
        (lambda: with_lora(with_lora(mlp((6,), 3))), "has LoRA or adapters already"),
        (lambda: with_adapters(with_lora(mlp((6,), 3)), 2), "has LoRA or adapters already"),
    ],
)
def test_messages(make, message):
    with pytest.raises(PluresError, match=message):
        make()
