"""Split and modular models: LoRA, channel gates, community adapters, mixtures of experts, FedRoD."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plures.errors import PluresError
from plures.federation import SPLITS, Federation, Split
from plures.method import Assign, Known, Method, Setting, role
from plures.methods import fedavg, fedper, ifca, local
from plures.methods.community import community
from plures.methods.fedrod import fedrod
from plures.methods.lora import lora
from plures.methods.personal_moe import personal_moe
from plures.methods.personal_se import personal_se
from plures.models import Network, gcn, logistic, merged, mixture_of_experts, resnet, with_lora, with_roles
from plures.run import Execution, Fixed, Run, Uniform, experts_of, onboard
from plures.run.cost import traffic
from plures.tasks import Classification, Regression
from problems import near, personal, quadratic, run, same, scalar, shared, weight
from shifted import mlp, ragged

printed = lambda value: pytest.approx(value, abs=6e-10)  # noqa: E731
TOGETHER = Execution("vmap", 16, False, "float64")


def trained(method: Method, rounds: int = 5, **options) -> Run:
    """Mini-batches on ragged clients."""
    given = {"steps": 4, "batch_size": 8, "federation": ragged(), "model": mlp, "execution": TOGETHER, **options}
    return run(method, rounds, **given)


def outputs(done: Run, inputs: torch.Tensor | None = None) -> torch.Tensor:
    """What every client predicts for some inputs, ``(clients, examples, outputs)``."""
    clients = list(range(len(done.federation)))
    inputs = done.federation.inputs[:20] if inputs is None else inputs
    return done.engine.forward(done.deployed(clients), inputs.expand(len(clients), *inputs.shape))


def grouped(federation: Federation, *groups: str) -> Federation:
    return replace(federation, metadata={"group": groups})


def parts(done: Run, name: str) -> dict[str, torch.Tensor]:
    """Leaves of every client with a role."""
    info = done.bound.network.info
    return {path: t for path, t in shared(done).items() if name in info[path].roles}


# A model gets its missing parts ---------------------------------------------------------------------------


def test_added_parts_follow_the_seed_and_leave_the_model_alone():
    setting = Setting.of(ragged())
    method = lora(rank=2)
    one, again, other = (method.prepare(mlp, setting, seed).state_dict() for seed in (3, 3, 4))
    plain = fedavg().prepare(mlp, setting, 3).state_dict()
    assert same(one, again)
    assert not torch.equal(one["0.lora_a.weight"], other["0.lora_a.weight"])
    assert torch.equal(one["0.base.weight"], plain["0.weight"])
    assert torch.equal(one["2.weight"], plain["2.weight"])
    has_it = partial(with_lora, mlp(), 1)
    assert method.prepare(has_it, setting).state_dict()["0.lora_a.weight"].shape == (1, 5)


# LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("LR0")
def test_lora_starts_as_the_base():
    assert torch.equal(outputs(trained(lora(), 0)), outputs(trained(fedavg(), 0)))


@pytest.mark.parametrize("share", ["personal", "shared", "clustered"])
@pytest.mark.parametrize("average", ["factors", "b"])
def test_the_base_never_changes(share, average):
    first, done = trained(lora(share, average), 0), trained(lora(share, average), 3)
    before, after = (shared(r) for r in (first, done))
    moved = {path for path in before if not torch.equal(before[path], after[path])}
    assert moved == {"0.lora_b.weight", "2.weight", "2.bias"} | ({"0.lora_a.weight"} if average == "factors" else set())


@pytest.mark.oracle("LR1")
def test_full_rank_reaches_what_the_full_layer_reaches():
    """Least squares with three outputs: rank 3 finds the solution, rank 1 cannot."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, size, generator=generator, dtype=torch.float64) for size in (5, 3))
    x = torch.linalg.qr(x)[0] * 30**0.5
    data = Federation("LS", Regression(3), x, y, ("a",), dict.fromkeys(SPLITS, Split.of([torch.arange(30)])))
    best = torch.linalg.lstsq(x, y).solution.T

    def found(rank: int) -> torch.Tensor:
        method = lora("personal", rank=rank, heads="frozen")
        model = partial(nn.Linear, 5, 3, bias=False)
        (module,) = experts_of(run(method, 1, federation=data, model=model, lr=0.2, steps=400))
        return merged(module).weight.detach()

    torch.testing.assert_close(found(3), best, atol=1e-8, rtol=0)
    assert (found(1) - best).abs().max() > 0.05


@pytest.mark.oracle("LR2")
def test_merged_inference_is_unmerged_inference():
    done = trained(lora("personal", rank=2, alpha=3.0))
    x = done.federation.inputs[:20]
    modules = experts_of(done)
    assert len(modules) == 7
    folded = torch.stack([merged(module).eval()(x) for module in modules])
    torch.testing.assert_close(folded, outputs(done), atol=1e-12, rtol=0)
    assert [tuple(p) for p in merged(modules[0]).state_dict()] == [tuple(p) for p in mlp().state_dict()]


@pytest.mark.oracle("LR3")
def test_the_server_averages_factors_not_products():
    """Clients send B = e_i and A = e_i^T: the product of the averages has entries 0.25, that of products 0.5."""
    method = lora(heads="frozen", rank=1)

    def unit(x, received, visit):
        e = torch.nn.functional.one_hot(x.about["which"].long(), 2).to(visit.lr.dtype)
        return {"model": {"lora_a.weight": e.view(1, 2), "lora_b.weight": e.view(2, 1)}}

    method = replace(
        method,
        layout={**method.layout, "about": Known("which")},
        schedule=(Assign(("model",), unit),),
        adds=method.adds,
    )
    rows = torch.zeros(4, 2, dtype=torch.float64)
    split = Split.of([torch.arange(2), torch.arange(2, 4)])
    data = Federation("two", Regression(2), rows, rows, ("a", "b"), dict.fromkeys(SPLITS, split))
    done = run(method, 1, federation=replace(data, metadata={"which": (0, 1)}), model=partial(nn.Linear, 2, 2))
    state = {path: t[0] for path, t in shared(done).items()}
    assert torch.equal(state["lora_b.weight"] @ state["lora_a.weight"], torch.full((2, 2), 0.25, dtype=torch.float64))
    products = sum(torch.outer(e, e) for e in torch.eye(2)) / 2
    assert torch.equal(products, torch.eye(2) * 0.5)


@pytest.mark.oracle("LR3")
@pytest.mark.parametrize(("average", "exact"), [("b", True), ("factors", False)])
def test_freezing_a_makes_the_average_exact(average, exact):
    sizes = torch.tensor([float(n) for n in ragged().splits["train"].sizes], dtype=torch.float64)
    alone, together = (trained(lora(share, average, heads="frozen"), 1, lr=0.5) for share in ("personal", "shared"))
    a, b = (shared(alone)[f"0.lora_{kind}.weight"] for kind in "ab")
    mean = torch.einsum("n,nij->ij", sizes / sizes.sum(), b @ a)
    server = {path: t[0] for path, t in shared(together).items()}
    difference = (server["0.lora_b.weight"] @ server["0.lora_a.weight"] - mean).abs().max()
    assert difference < 1e-14 if exact else difference > 1e-5


def test_sharing_a_and_keeping_b():
    state = shared(trained(lora(average="a"), 3))
    assert len(state["0.lora_a.weight"].unique(dim=0)) == 1
    assert len(state["0.lora_b.weight"].unique(dim=0)) == 7


@pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
@pytest.mark.parametrize(("groups", "share"), [("aaaaaaa", "shared"), ("abcdefg", "personal")])
def test_lora_in_one_cluster_is_shared_and_in_n_personal(groups, share, cohort):
    left = trained(lora("clustered", column="group"), federation=grouped(ragged(), *groups), participation=cohort)
    assert near(shared(left), shared(trained(lora(share), participation=cohort)))
    assert not near(shared(left), shared(trained(lora("shared" if share == "personal" else "personal"))))


def test_what_lora_sends():
    """mlp: 5 -> 6 -> 3; rank 2: A has 10 numbers, B 12; the head has 21."""
    sent = {
        average: traffic(trained(lora("shared", average, rank=2, heads=heads), 0).bound)[0] // 8
        for average, heads in (("factors", "personal"), ("a", "frozen"), ("b", "frozen"))
    }
    assert sent == {"factors": 22, "a": 10, "b": 12}
    assert traffic(trained(lora("personal"), 0).bound) == (0, 0)
    assert traffic(trained(lora(rank=2, heads="shared"), 0).bound)[0] == 8 * (22 + 21)


def test_lora_refuses_what_it_cannot_do():
    for bad in ({"share": "all"}, {"average": "products"}, {"heads": "mine"}):
        with pytest.raises(PluresError, match="give"):
            lora(**bad)
    with pytest.raises(PluresError, match="no layer to adapt"):
        trained(lora(), 0, model=lambda: with_roles(nn.Sequential(nn.Linear(5, 3)), head="0"))
    with pytest.raises(PluresError, match="'lora' matches no leaf"):
        replace(lora(), adds={}).bind(Network(mlp()), Setting.of(ragged()))


# Squeeze-and-excitation -----------------------------------------------------------------------------------------

se_net = partial(resnet, (1, 8, 8), 3, width=4, se=True, reduction=2)


def pictures(sizes=(9, 12, 15), equal: bool = False) -> Federation:
    """Small random pictures of three classes; shifted by client, or the same for everyone."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(sum(sizes), 1, 8, 8, generator=generator, dtype=torch.float64)
    split = Split.of(list(torch.arange(sum(sizes)).split(list(sizes))))
    if equal:
        split = Split.of([split[0]] * len(sizes))
    names = tuple("abc"[: len(sizes)])
    task = Classification(("x", "y", "z"))
    return Federation("pictures", task, x, torch.arange(sum(sizes)) % 3, names, dict.fromkeys(SPLITS, split))


def gated(method: Method, rounds: int = 2, **options) -> Run:
    return run(method, rounds, **{"federation": pictures(), "model": se_net, "steps": 2, **options})


@pytest.mark.oracle("SE0")
def test_equal_gates_are_the_global_model():
    data = pictures(equal=True)
    for part in ("gate", "bias"):
        own, all_shared = (gated(method, federation=data) for method in (personal_se(part), fedavg()))
        # Normalising a batch of almost equal values magnifies rounding from another order of summation, to about 1e-8.
        torch.testing.assert_close(outputs(own), outputs(all_shared), atol=1e-7, rtol=0)
    done = gated(personal_se("bias"))
    assert not torch.equal(outputs(done)[0], outputs(done)[1])
    for leaf in done.stored_leaves():
        done.store.put(leaf, [0, 1, 2], torch.zeros_like(done.store.get(leaf, [0, 1, 2])))
    assert torch.equal(outputs(done)[0], outputs(done)[1])


@pytest.mark.oracle("SE1")
def test_a_gate_of_zero_weights_halves_and_an_infinite_bias_opens():
    done = gated(personal_se())
    x = done.federation.inputs[:6]
    plain = resnet((1, 8, 8), 3, width=4).double().eval()
    gates = [m for m in experts_of(done)[0].modules() if type(m).__name__ == "SqueezeExcitation"]
    assert len(gates) == 3

    def with_gates(excite: float, bias: float) -> torch.Tensor:
        for slot, path in done.stored_leaves():
            rows = done.store.get((slot, path), [0])
            value = bias if path.endswith("excite.bias") else excite
            done.store.put((slot, path), [0], torch.full_like(rows, value))
        return outputs(done, x)[0]

    def without_gates(scale: float) -> torch.Tensor:
        state = {path: t[0] for path, t in shared(done).items() if path in plain.state_dict()}
        for path in state:
            if ".convolutions.4." in path:
                state[path] = state[path] * scale
        plain.load_state_dict(state)
        return plain(x).detach()

    torch.testing.assert_close(with_gates(0.0, 0.0), without_gates(0.5), atol=1e-12, rtol=0)
    torch.testing.assert_close(with_gates(0.0, torch.inf), without_gates(1.0), atol=1e-12, rtol=0)
    assert not torch.allclose(without_gates(0.5), without_gates(1.0))


def test_what_of_a_gate_stays():
    biases, gates = (gated(personal_se(part), 0) for part in ("bias", "gate"))
    assert {path.split(".", 2)[2] for _, path in biases.stored_leaves()} == {"se.excite.bias"}
    kinds = {path.split(".", 2)[2] for _, path in gates.stored_leaves()}
    assert kinds == {"se.squeeze.weight", "se.excite.weight", "se.excite.bias"}
    assert len(biases.stored_leaves()) == 3
    assert len(gates.stored_leaves()) == 9


def test_gates_need_a_model_that_has_them():
    with pytest.raises(PluresError, match=r"resnet\(features, outputs, se=True\)"):
        trained(personal_se(), 0)
    with pytest.raises(PluresError, match="give 'gate' or 'bias'"):
        personal_se("all")


# Community adapters ---------------------------------------------------------------------------------------------


@pytest.mark.oracle("G0")
@pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
@pytest.mark.parametrize(("groups", "whole"), [("aaaaaaa", "shared"), ("abcdefg", "personal")])
def test_one_community_shares_and_n_keep(groups, whole, cohort):
    done = trained(community(column="group"), federation=grouped(ragged(), *groups), participation=cohort)
    selector = role("adapter") | role("head") if whole == "personal" else role("head")
    by_layout = replace(fedper(selector), adds=community().adds)
    assert near(shared(done), shared(trained(by_layout, participation=cohort)))
    other = trained(community(column="group"), federation=grouped(ragged(), *"aabbbcc"), participation=cohort)
    assert not near(shared(done), shared(other))


class Sum(nn.Module):
    """Base, adapter and head, added."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("base", "adapter", "head"):
            self.add_module(name, scalar()())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.adapter(x) + self.head(x)


@pytest.mark.oracle("G1")
def test_two_rounds_of_communities_by_hand():
    model = lambda: with_roles(Sum(), adapter="adapter", head="head")  # noqa: E731
    data = grouped(quadratic(), "one", "one", "two")
    done = run(community(column="group"), 2, federation=data, model=model, lr=0.05)
    assert weight(done, path="base.weight") == printed(0.5335661458)
    assert personal(done, "model", "adapter.weight") == printed([-0.0212510417, -0.0212510417, 1.0883833333])
    assert personal(done, "model", "head.weight") == printed([-0.218878125, 0.0775625, 1.0883833333])


class Perceptron(nn.Module):
    """What remains of a graph convolutional network on a node without neighbours."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.body, self.head = graph.body, graph.head
        self.roles = graph.roles

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.body.first, self.body.second
        own = first.linear(x[:, 0])
        h = torch.relu(own) + first.adapter(own)
        return self.head(h + second.adapter(h))


@pytest.mark.oracle("G2")
@pytest.mark.parametrize("edges", [False, True])
def test_a_graph_without_edges_is_a_perceptron(edges):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 7, (24, 3, 4), generator=generator)
    if not edges:
        rows[:, 1:] = -1
    split = Split.of(list(torch.arange(24).split(8)))
    task = Classification(("x", "y"))
    data = Federation("graph", task, rows, torch.arange(24) % 2, ("a", "b", "c"), dict.fromkeys(SPLITS, split))
    network = partial(gcn, (3, 4), 2, vocabulary=6, hidden=5, adapter=2)
    options = {"federation": grouped(data, "one", "one", "two"), "steps": 3}
    graph = shared(run(community(column="group"), 3, model=network, **options))
    dense = shared(run(community(column="group"), 3, model=lambda: Perceptron(network()), **options))
    assert graph.keys() == dense.keys()
    gap = max(float((graph[path] - dense[path]).abs().max()) for path in graph)
    assert gap > 1e-3 if edges else gap < 1e-12
    assert len(graph["body.first.adapter.up.weight"].unique(dim=0)) == 2


def test_communities_are_learned_without_metadata():
    """Clients find those whose optimum lies on the same side by their first gradients; so do newcomers."""
    model = lambda: with_roles(Sum(), adapter="adapter", head="head")  # noqa: E731
    optima = (-3.0, -2.5, 2.0, 3.0)
    data = quadratic((1.0,) * 4, optima, (10,) * 4)
    done = run(community(2), 6, federation=data, model=model, lr=0.05)
    (membership,) = done.membership.values()
    assert membership.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    guest = onboard(done, quadratic((1.0,) * 2, (-2.8, 2.8), (5, 5), names=("x", "y")), visits=0)
    assert next(iter(guest.membership.values())).tolist() == [membership[0], membership[3]]


# Mixtures of experts --------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """A gate that ignores its input."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def mixture(experts: list[nn.Module], *logits: float):
    return lambda: mixture_of_experts(experts, Constant(*logits))


def test_experts_of_a_run():
    assert [len(experts_of(trained(method, 1))) for method in (fedavg(), local(), ifca(2))] == [1, 7, 2]
    done = trained(ifca(2), 2)
    x, (membership,) = done.federation.inputs[:20], done.membership.values()
    modules = experts_of(done)
    first = [membership.tolist().index(c) for c in dict.fromkeys(membership.tolist())]
    alone = torch.stack([m.eval()(x) for m in modules])
    torch.testing.assert_close(alone, outputs(done)[first], atol=1e-12, rtol=0)
    assert all(p.requires_grad for p in modules[0].parameters())
    with pytest.raises(PluresError, match="more than one model"):
        experts_of(trained(fedrod(), 0))


@pytest.mark.oracle("ME0")
@pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
def test_one_expert_is_that_expert(cohort):
    done = trained(fedavg(), 2)
    mixed = trained(personal_moe(frozen=True), 2, model=mixture(experts_of(done), 0.7), participation=cohort)
    torch.testing.assert_close(outputs(mixed), outputs(done), atol=1e-12, rtol=0)
    learned = shared(trained(personal_moe(1), participation=cohort))
    plain = shared(trained(fedavg(), participation=cohort))
    assert same({path: learned[f"experts.0.{path}"] for path in plain}, plain)


@pytest.mark.oracle("ME1")
def test_a_zero_gate_is_the_mean_of_the_experts():
    done = trained(local(), 2)
    modules = experts_of(done)
    mixed = trained(personal_moe(frozen=True), 0, model=mixture(modules, *[0.0] * 7))
    torch.testing.assert_close(outputs(mixed)[0], outputs(done).mean(0), atol=1e-14, rtol=0)
    start = experts_of(trained(personal_moe(3), 0))[0]
    x = done.federation.inputs[:20]
    ensemble = torch.stack([expert(x) for expert in start.experts])
    torch.testing.assert_close(start(x), ensemble.mean(0), atol=1e-14, rtol=0)
    assert not torch.allclose(ensemble[0], ensemble[1])


@pytest.mark.oracle("ME2")
def test_an_infinite_gate_is_the_choice_of_a_cluster():
    done = trained(ifca(2), 3)
    (membership,) = done.membership.values()
    modules = experts_of(done)
    first = list(dict.fromkeys(membership.tolist()))
    mixed = trained(personal_moe(frozen=True), 0, model=mixture(modules, 0.0, 0.0))
    logits = torch.tensor([[1e9 * (first[k] == own) for k in range(2)] for own in membership.tolist()])
    mixed.commit(list(range(7)), {("model", "gate.logits"): logits.double()})
    torch.testing.assert_close(outputs(mixed), outputs(done), atol=1e-12, rtol=0)


@pytest.mark.oracle("ME3")
def test_a_constant_gate_interpolates_outputs():
    """Experts 2 and 5 for optima -1, 3 and 4: the best weight of the second is (b - 2) / 3, cut to [0, 1]."""
    together, alone = (scalar(value)().double() for value in (2.0, 5.0))
    for lam in (0.2, 0.5):
        logits = (0.0, float(torch.logit(torch.tensor(lam, dtype=torch.float64))))
        fixed = run(personal_moe(frozen=True), 0, model=mixture([together, alone], *logits))
        x = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1)
        expected = lam * alone(x) + (1 - lam) * together(x)
        torch.testing.assert_close(outputs(fixed, x)[0], expected.detach(), atol=1e-12, rtol=0)
    data = quadratic((2.0,) * 3, (-1.0, 3.0, 4.0), (4,) * 3)
    model = mixture([together, alone], 0.0, 0.0)
    tuned = run(personal_moe(frozen=True), 1, federation=data, model=model, lr=1.0, steps=200)
    weights = shared(tuned)["gate.logits"].softmax(-1)[:, 1]
    assert weights[1:].tolist() == pytest.approx([1 / 3, 2 / 3], abs=1e-6)
    assert weights[0] < 1e-2


def test_gates_are_personal_and_experts_shared_or_frozen():
    for frozen in (False, True):
        before, after = (shared(trained(personal_moe(2, frozen), rounds)) for rounds in (0, 2))
        assert len(after["gate.1.weight"].unique(dim=0)) == 7
        assert len(after["experts.1.0.weight"].unique(dim=0)) == 1
        assert torch.equal(before["experts.1.0.weight"], after["experts.1.0.weight"]) == frozen
    assert traffic(trained(personal_moe(frozen=True), 0).bound) == (0, 0)
    with pytest.raises(PluresError, match="at least 1"):
        personal_moe(0)


# FedRoD ---------------------------------------------------------------------------------------------------------


def balanced() -> Federation:
    """Three clients with four examples of each class."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(36, 5, generator=generator, dtype=torch.float64)
    split = Split.of(list(torch.arange(36).split(12)))
    task = Classification(("x", "y", "z"))
    return Federation("balanced", task, x, torch.arange(36) % 3, ("a", "b", "c"), dict.fromkeys(SPLITS, split))


@pytest.mark.oracle("RO0")
def test_fedrod_on_balanced_classes_has_fedavgs_model():
    generic, plain = (shared(trained(m, federation=balanced())) for m in (fedrod(), fedavg()))
    for path in plain:
        torch.testing.assert_close(generic[path], plain[path], atol=1e-12, rtol=0)
    unbalanced = (shared(trained(m)) for m in (fedrod(), fedavg()))
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(*(d.values() for d in unbalanced), strict=True))


@pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
def test_fedrod_without_balance_has_fedavgs_model(cohort):
    generic, plain = (trained(m, participation=cohort) for m in (fedrod(0.0), fedavg()))
    assert same(shared(generic), shared(plain))
    assert not torch.allclose(outputs(generic), outputs(plain), atol=1e-3)


@pytest.mark.oracle("RO0")
def test_a_zero_personal_head_predicts_as_the_generic_model():
    assert torch.equal(outputs(trained(fedrod(), 0)), outputs(trained(fedavg(), 0)))
    done = trained(fedrod(), 2)
    everyone = list(range(7))
    for leaf in done.stored_leaves():
        done.store.put(leaf, everyone, torch.zeros_like(done.store.get(leaf, everyone)))
    x = done.federation.inputs[:20]
    generic = done.bound.network({path: t[0] for path, t in shared(done).items()}, x, train=False)[0]
    torch.testing.assert_close(outputs(done), generic.expand(7, -1, -1), atol=1e-14, rtol=0)


@pytest.mark.oracle("RO0")
def test_two_rounds_of_fedrod_by_plain_pytorch():
    data, rate = ragged().subset(["1", "2", "5"]), 0.1
    done = run(fedrod(0.7), 2, federation=data, model=mlp)
    sizes = data.splits["train"].sizes.double()
    start = done.bound.network.leaves()
    server, heads = mlp().double(), [nn.Linear(6, 3).double() for _ in range(3)]
    server.load_state_dict(start)
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    for _ in range(2):
        returned = []
        for rows, head in zip(data.splits["train"], heads, strict=True):
            model, x, y = copy.deepcopy(server), data.inputs[rows], data.targets[rows]
            counts = torch.bincount(y, minlength=3).double()
            for _ in range(2):
                z = model[1](model[0](x))
                logits = model[2](z)
                generic = F.cross_entropy(logits + 0.7 * counts.log(), y)
                own = F.cross_entropy(head(z.detach()) + logits.detach(), y)
                leaves = [*model.parameters(), *head.parameters()]
                slopes = torch.autograd.grad(generic + own, leaves)
                with torch.no_grad():
                    for leaf, slope in zip(leaves, slopes, strict=True):
                        leaf -= rate * slope
            returned.append(model.state_dict())
        server.load_state_dict(
            {k: sum(n * s[k] for n, s in zip(sizes, returned, strict=True)) / sizes.sum() for k in returned[0]}
        )
    for path, value in server.state_dict().items():
        torch.testing.assert_close(shared(done)[path][0], value, atol=1e-12, rtol=0)
    kept = done.states([0, 1, 2])["personal"]
    torch.testing.assert_close(kept["2.weight"], torch.stack([h.weight for h in heads]).detach(), atol=1e-12, rtol=0)


def test_a_class_that_a_client_lacks_does_no_harm():
    """Client a has one class and b two: no infinity enters the model, even without balancing."""
    x = torch.randn(14, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([2] * 4 + [0, 1] * 5)
    split = Split.of([torch.arange(4) + 0, torch.arange(4, 14)])
    task = Classification(("x", "y", "z"))
    data = Federation("lacking", task, x, y, ("a", "b"), dict.fromkeys(SPLITS, split))
    options = {"federation": data, "batch_size": 4, "steps": 3}
    stacked, alone = (
        trained(fedrod(), 2, **options, execution=Execution(backend, 2, False, "float64"))
        for backend in ("vmap", "loop")
    )
    for path, value in shared(stacked).items():
        assert value.isfinite().all()
        torch.testing.assert_close(value, shared(alone)[path], atol=1e-12, rtol=0)
    assert same(shared(trained(fedrod(0.0), 2, **options)), shared(trained(fedavg(), 2, **options)))


def test_fedrod_needs_classes_and_one_head():
    with pytest.raises(PluresError, match="fedrod needs classes, but the task is regression"):
        run(fedrod(), 0, model=lambda: with_roles(nn.Sequential(scalar()()), head="0"))
    with pytest.raises(PluresError, match="exactly one part marked 'head'"):
        trained(fedrod(), 0, model=partial(logistic, (5,), 3))
    with pytest.raises(PluresError, match="gamma=-1"):
        fedrod(-1.0)


# All of them ----------------------------------------------------------------------------------------------------

METHODS = {
    "lora": lambda: lora(rank=2),
    "lora personal": lambda: lora("personal"),
    "community": lambda: community(2),
    "personal_moe": lambda: personal_moe(2),
    "fedrod": lambda: fedrod(),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_absent_clients_keep_what_is_theirs_and_newcomers_train_only_that(make):
    cohorts = Fixed([["0", "1", "2"], ["2", "3"]])
    first, done = (trained(make(), rounds, participation=cohorts) for rounds in (0, 2))
    for leaf in done.stored_leaves():
        before, after = (r.store.get(leaf, [4, 5, 6]) for r in (first, done))
        assert torch.equal(before, after), leaf
        assert not torch.equal(first.store.get(leaf, [2]), done.store.get(leaf, [2])), leaf
    assert not torch.allclose(outputs(done), outputs(trained(fedavg(), 2, participation=cohorts)), atol=1e-3)
    newcomers = replace(ragged().subset(["4", "6"]), clients=("x", "y"))
    started, guest = (onboard(done, newcomers, visits) for visits in (0, 2))
    own = set(done.stored_leaves())
    for slot, leaves in guest.states([0, 1]).items():
        for path, value in leaves.items():
            assert torch.equal(value, started.states([0, 1])[slot][path]) == ((slot, path) not in own), path


def test_gates_of_absent_clients_and_of_newcomers():
    done = gated(personal_se(), participation=Fixed([["a", "b"], ["b"]]))
    first = gated(personal_se(), 0)
    for leaf in done.stored_leaves():
        assert torch.equal(done.store.get(leaf, [2]), first.store.get(leaf, [2]))
        assert not torch.equal(done.store.get(leaf, [1]), first.store.get(leaf, [1]))
    newcomers = replace(pictures().subset(["c"]), clients=("x",))
    started, guest = (onboard(done, newcomers, visits) for visits in (0, 1))
    own = {path for _, path in done.stored_leaves()}
    for path, value in guest.states([0])["model"].items():
        assert torch.equal(value, started.states([0])["model"][path]) == (path not in own), path
