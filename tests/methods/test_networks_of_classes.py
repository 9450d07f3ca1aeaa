"""A network for each class of clients: methods within them, and what passes between them."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from plures.codecs import TopK
from plures.errors import PluresError
from plures.evaluate import score
from plures.federation import SPLITS, Federation, Split
from plures.method import Method, Mixed
from plures.methods import depthfl, fedavg, fedhome, fedmd, fedper, fedproto, heterofl, local
from plures.models import har_cnn, mlp, one_of, with_roles
from plures.remote.clients import insist_on_one_size
from plures.run import Execution, Run, onboard
from plures.run.cost import alone, traffics
from plures.serving.device import memory, sizes
from plures.tasks import Regression
from problems import EXACT, begun, close, near, run, same
from shifted import ragged

LOOP = Execution("loop", 2, False, "float64")
RECORDED = Execution("vmap", 16, False, "float64", capture=True)
KINDS = ("small", "large")
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


def small() -> nn.Module:
    return mlp((5,), 3, hidden=(4,))


def large() -> nn.Module:
    """The representation has as many numbers as that of the small one."""
    layers = nn.Sequential(nn.Linear(5, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))
    return with_roles(layers, head="5")


def both(column: str | None = "device", **given) -> nn.Module:
    return one_of({"small": small(), "large": large()}, column, **given)


def classes(federation: Federation, *kinds: str) -> Federation:
    kinds = kinds or KINDS
    return replace(federation, metadata={"device": tuple(kinds[n % len(kinds)] for n in range(len(federation)))})


def shared(done: Run, network: str = "") -> dict[str, Tensor]:
    """What is shared of a network, by its own names."""
    found = {leaf: t[0] for kept in done.server.values() for leaf, t in kept.values.items()}
    inside = f"model/networks.{network}." if network else "model/"
    return {leaf.removeprefix(inside): t for leaf, t in found.items() if leaf.startswith(inside)}


@pytest.mark.oracle("ON0")
@pytest.mark.parametrize("execution", [EXACT, LOOP, RECORDED])
@pytest.mark.parametrize("method", [fedavg(), fedper()], ids=["fedavg", "fedper"])
def test_on0_if_all_hold_one_network_it_is_that_network_bit_for_bit(method, execution):
    given = {"steps": 4, "batch_size": 8, "execution": execution}
    for kind in KINDS:
        module = both()
        several = run(method, 3, federation=classes(ragged(), kind), model=module, **given)
        plain = run(method, 3, federation=ragged(), model=module.networks[kind], **given)
        assert same(shared(several, kind), shared(plain))
        clients = list(range(7))
        ours, theirs = several.predictors(clients), plain.predictors(clients)
        assert all(torch.equal(ours[f"networks.{kind}.{path}"], t) for path, t in theirs.items())


@pytest.mark.oracle("ON1")
@pytest.mark.parametrize("execution", [EXACT, LOOP])
def test_on1_classes_are_federations_of_their_own(execution):
    federation, module = ragged(), both()
    given = {"steps": 3, "batch_size": 8, "execution": execution}
    several = run(fedavg(), 2, federation=classes(federation), model=module, **given)
    for number, kind in enumerate(KINDS):
        own = federation.take(list(range(number, 7, 2)))
        assert near(
            shared(several, kind), shared(run(fedavg(), 2, federation=own, model=module.networks[kind], **given))
        )
    state = several.states([0, 1])["model"]
    for client, (mine, other) in enumerate((KINDS, KINDS[::-1])):
        held = {path: t[client] for path, t in state.items()}
        assert all(not bool(t.any()) for path, t in held.items() if path.startswith(f"networks.{other}."))
        assert (float(held[f"here.{mine}"]), float(held[f"here.{other}"])) == (1.0, 0.0)


# --- scores of public examples ----------------------------------------------------------------------------------


def points() -> Federation:
    """Client a: x = 1, y = 1; client b: x = 1, y = 0; the public example is x = 2."""
    split = Split.of([torch.tensor([0]), torch.tensor([1])])
    inputs = torch.tensor([[1.0], [1.0], [2.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0], [0.0], [9.0]], dtype=torch.float64)
    two = Federation(
        "two", Regression(1), inputs, targets, ("a", "b"), dict.fromkeys(SPLITS, split), public=torch.tensor([2])
    )
    return classes(two)


def line(*values: float) -> nn.Module:
    parts = [nn.Linear(1, 1, bias=False) for _ in values]
    with torch.no_grad():
        for part, value in zip(parts, values, strict=True):
            part.weight.fill_(value)
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


@pytest.mark.oracle("MD1")
@pytest.mark.parametrize("execution", [EXACT, LOOP])
def test_md1_two_rounds_of_two_networks_by_hand(execution):
    """a has w x with w = 0, b has v u x with u = 1, v = 2.

    Round 1. a: w = 0 + .1 2 1 = .2, score of 2 is .4. b: gives 2 for 0, so u = 1 - .1 4 2 = .2, v = 2 - .1 4 1 = 1.6,
    and the score is .64. The consensus is .52. Round 2. a is below it: w = .2 + .1 2 = .4, then .4 + .1 2 .6 = .52. b
    is above it: u = .2 - .1 2 1.6 = -.12, v = 1.6 - .1 2 .2 = 1.56, then it gives -.1872 for 0.
    """
    model = one_of({"small": line(0.0), "large": line(1.0, 2.0)}, "device")
    done = begun(fedmd(digest=1), 2, federation=points(), model=model, steps=1, execution=execution)
    done.step()
    assert float(done.server["scores"].values["scores/mean"]) == close(0.52)
    done.step()
    state = done.states([0, 1])["model"]
    assert float(state["networks.small.weight"][0]) == close(0.52)
    error = 2 * 1.56 * -0.12
    assert float(state["networks.large.0.weight"][1]) == close(-0.12 - 0.1 * error * 1.56)
    assert float(state["networks.large.1.weight"][1]) == close(1.56 - 0.1 * error * -0.12)
    scores = 2 * 0.52, 2 * (-0.12 - 0.1 * error * 1.56) * (1.56 + 0.1 * error * 0.12)
    assert float(done.server["scores"].values["scores/mean"]) == close(sum(scores) / 2)


@pytest.mark.oracle("MD0")
@degenerate
def test_md0_without_digesting_it_is_local_training():
    federation = classes(ragged().donate(0.2))
    given = {"federation": federation, "model": both(), "steps": 4, "batch_size": 8}
    one, other = (run(method, 3, **given).predictors(list(range(7))) for method in (fedmd(digest=0), local()))
    assert same(one, other)


@pytest.mark.oracle("MD2")
@pytest.mark.parametrize("execution", [EXACT, LOOP])
def test_md2_a_plain_loop_over_the_networks(execution):
    federation, module = classes(ragged().donate(0.2)), both()
    method = fedmd(digest=2, digest_lr=0.05)
    done = run(method, 3, federation=federation, model=module, steps=3, execution=execution)
    nets = [copy.deepcopy(module.networks[KINDS[n % 2]]).double() for n in range(7)]
    seen = federation.inputs[federation.public]
    goal: Tensor | None = None
    for _ in range(3):
        for net, own in zip(nets, federation.splits["train"], strict=True):
            for lr, count, private in ((0.05, 2 * (goal is not None), False), (0.1, 3, True)):
                for _step in range(count):
                    net.zero_grad()
                    if private:
                        loss = functional.cross_entropy(net(federation.inputs[own]), federation.targets[own])
                    else:
                        loss = (net(seen) - goal).abs().mean()
                    loss.backward()
                    with torch.no_grad():
                        for p in net.parameters():
                            p -= lr * p.grad
        goal = torch.stack([net(seen).detach() for net in nets]).mean(0)
    state = done.states(list(range(7)))["model"]
    for client, net in enumerate(nets):
        for path, p in net.named_parameters():
            assert torch.allclose(state[f"networks.{KINDS[client % 2]}.{path}"][client], p, atol=1e-10)
    assert torch.allclose(done.server["scores"].values["scores/mean"][0], goal, atol=1e-10)


def test_scores_are_all_that_a_client_sends():
    federation = classes(ragged().donate(0.2))
    done = begun(fedmd(), 1, federation=federation, model=both())
    count = 8 * (3 * len(federation.public) + 1)
    assert traffics(done.bound, done.held, [0, 1]) == [(count, count)] * 2
    drawn = run(fedmd(public_batch=4), 3, federation=federation, model=both(), steps=2)
    assert not bool(torch.isnan(drawn.predictors([0])["networks.small.head.weight"]).any())
    with pytest.raises(PluresError, match="this federation has none"):
        begun(fedmd(), 1, federation=ragged(), model=small)


# --- prototypes of different networks ---------------------------------------------------------------------------


@pytest.mark.oracle("ON2")
@pytest.mark.parametrize("execution", [EXACT, LOOP])
def test_on2_prototypes_of_two_networks_by_a_plain_loop(execution):
    federation, module = classes(ragged()), both()
    done = run(fedproto(lam=0.5), 2, federation=federation, model=module, steps=2, execution=execution)
    copied = copy.deepcopy
    nets = [copied(module.networks[KINDS[n % 2]]).double() for n in range(7)]
    codes_of = [lambda x, net=net: (net.body if hasattr(net, "body") else net[:-1])(x) for net in nets]
    goal, known = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for _ in range(2):
        sums, counts = torch.zeros_like(goal), torch.zeros_like(known)
        for net, codes, own in zip(nets, codes_of, federation.splits["train"], strict=True):
            x, y = federation.inputs[own], federation.targets[own]
            for _step in range(2):
                net.zero_grad()
                pull = (known[y] * (codes(x) - goal[y]).square().mean(1)).mean()
                (functional.cross_entropy(net(x), y) + 0.5 * pull).backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.1 * p.grad
            member = functional.one_hot(y, 3).double()
            sums, counts = sums + member.T @ codes(x).detach(), counts + member.sum(0)
        goal, known = sums / counts.unsqueeze(1), (counts > 0).double()
    assert torch.allclose(done.server["prototypes"].values["prototypes/mean"][0], goal, atol=1e-10)
    state = done.states(list(range(7)))["model"]
    for client, net in enumerate(nets):
        for path, p in net.named_parameters():
            assert torch.allclose(state[f"networks.{KINDS[client % 2]}.{path}"][client], p, atol=1e-10)


def test_representations_of_different_sizes_are_refused():
    unequal = one_of({"small": small(), "large": mlp((5,), 3, hidden=(6,))})
    with pytest.raises(PluresError, match=r"different shapes \(small \(4,\), large \(6,\)\)"):
        begun(fedproto(), 1, federation=ragged(), model=unequal)
    headless = one_of({"small": small(), "large": nn.Linear(5, 3)})
    with pytest.raises(PluresError, match="network 'large' needs exactly one part marked 'head'"):
        begun(fedproto(), 1, federation=ragged(), model=headless)


# --- costs, budgets, newcomers ----------------------------------------------------------------------------------

SMALL, LARGE = 5 * 4 + 4 + 4 * 3 + 3, 5 * 8 + 8 + 16 + 8 * 4 + 4 + 4 * 3 + 3


@pytest.mark.oracle("ON3")
def test_costs_are_those_of_a_client_s_own_network():
    done = begun(fedavg(), 1, federation=classes(ragged()), model=both(), steps=1)
    assert traffics(done.bound, done.held, [0, 1]) == [(8 * SMALL,) * 2, (8 * LARGE,) * 2]
    few = alone(done.bound, done.held, 0)
    assert [path for path in few.initial["model"] if "here" not in path] == [
        f"networks.small.{path}" for path in ("body.1.weight", "body.1.bias", "head.weight", "head.bias")
    ]
    found = {done.held.title(rate): memory(done, 8, client) for rate, client in sizes(done).items()}
    assert (found["network small"].up, found["network large"].up) == (8 * SMALL, 8 * LARGE)
    rows = done.federation.splits["train"].sizes.numpy()
    wanted = rows[::2] * (2 * (2 * 5 * 4) + 3 * (2 * 4 * 3))
    assert done.load().flops[::2].tolist() == pytest.approx(wanted.tolist())


@pytest.mark.oracle("ON3")
def test_a_budget_chooses_the_network_that_needs_the_most_of_those_that_fit():
    federation = replace(ragged().take([0, 1, 2]), metadata={"device": (SMALL, LARGE, LARGE - 1)})
    model = one_of({"large": large(), "small": small()}, "device", budget="parameters")
    found = begun(fedavg(), 1, federation=federation, model=model).held
    assert [found.title(rate) for rate in found.rates.tolist()] == ["network small", "network large", "network small"]
    poor = replace(federation, metadata={"device": (SMALL - 1, 10_000, 10_000)})
    with pytest.raises(PluresError, match=f"the network small needs {SMALL}: add a smaller network"):
        begun(fedavg(), 1, federation=poor, model=model)


def test_newcomers_have_the_network_of_their_class():
    seen, later = classes(ragged()).hold_out(["3", "4"])
    done = run(fedavg(), 2, federation=seen, model=both(), steps=2)
    guest = onboard(done, later)
    found = guest.predictors([0, 1])
    assert not bool(found["networks.small.head.weight"][0].any())
    assert bool(found["networks.small.head.weight"][1].any())
    assert torch.equal(found["networks.large.5.weight"][0], shared(done, "large")["5.weight"])
    assert score(guest, "test").values["accuracy"].shape == (2,)


@pytest.mark.parametrize(
    ("method", "model", "said"),
    [
        (heterofl(), both, "the method cuts parts of one network, but the model is several"),
        (depthfl(), both, "early exits need a network that is"),
        (fedhome(), both, "exactly one part marked 'head'|adds a part beside"),
        (Method(wire=(TopK(0.5),)), both, "TopK needs uploads of one size"),
        (Method(layout={"model": Mixed(lambda kept, cohort: torch.eye(7))}), both, "compares or mixes whole models"),
        (fedavg(), partial(both, "ward"), "no metadata column 'ward'"),
        (fedavg(), lambda: one_of({"small": small(), "wide": large()}, "device"), "of client '1' is large, but"),
        (fedavg(), lambda: one_of({"small": small(), "two": mlp((5,), 2)}), r"small \(3,\), two \(2,\)"),
        (fedavg(), lambda: one_of({"small": small()}), "give two or more"),
        (fedavg(), lambda: one_of({"a b": small(), "c": small()}), "letters, digits and _"),
        (fedavg(), lambda: one_of({"a": small(), "c": nn.ReLU()}), "has no parameter"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(method, model, said):
    with pytest.raises(PluresError, match=said):
        begun(method, 1, federation=classes(ragged()), model=model)


def test_sites_and_secure_sums_refuse_several_networks():
    bound = begun(fedavg(), 1, federation=classes(ragged()), model=both).bound
    assert not bound.secure_aggregation
    with pytest.raises(PluresError, match="sites exchange uploads of one size"):
        insist_on_one_size(bound)


def test_chunks_and_convolutions_agree():
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(40, 2, 40, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    split = Split.of([torch.arange(n, n + 10) for n in range(0, 40, 10)])
    kind = ragged().task
    federation = Federation("four", kind, inputs, targets, tuple("abcd"), dict.fromkeys(SPLITS, split))
    model = one_of({"conv": har_cnn((2, 40), 3, norm="batch"), "flat": mlp((2, 40), 3)})
    runs = [
        run(
            fedavg(),
            2,
            federation=federation,
            model=model,
            steps=2,
            execution=Execution(backend, size, False, "float64"),
        )
        for backend, size in (("vmap", 4), ("vmap", 1), ("loop", 2))
    ]
    assert near(shared(runs[0]), shared(runs[1]))
    assert near(shared(runs[0]), shared(runs[2]))
