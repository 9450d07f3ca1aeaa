"""Contrast, distillation, prototypes, codes and input maps: against given numbers and plain loops."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plures.errors import PluresError, PluresWarning
from plures.federation import SPLITS, Federation, Split
from plures.method import Batch, Method, Problem
from plures.method.representation import contrast, cosine, distillation, nt_xent
from plures.methods import fedavg, fedavg_ft, local
from plures.methods.fedhome import between, fedhome
from plures.methods.fedot import FLOOR, barycentre_maps, fedot
from plures.methods.fedproto import fedproto
from plures.methods.fedsimclr import crops, fedsimclr, noise, suited
from plures.methods.moon import moon
from plures.methods.self_distillation import self_distillation
from plures.models import Network, build, with_roles
from plures.models.autoencoder import autoencoder_classifier
from plures.models.beside import beside
from plures.run import Execution, Fixed, Run, Uniform, onboard
from plures.run.cost import traffic
from plures.tasks import Classification, Regression
from problems import EXACT, BodyHead, predictors, quadratic, run, scalar, shared
from shifted import mlp, ragged

agree = partial(torch.testing.assert_close, atol=1e-12, rtol=0)
printed = lambda value: pytest.approx(value, abs=6e-11)  # noqa: E731
MINI = {"steps": 4, "batch_size": 8, "model": mlp}
EVERYBODY_ONCE = Fixed([["0", "3"], ["1", "5", "6"], ["2", "4"]])
LOOP = Execution("loop", 2, False, "float64")
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


def tensor(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def labelled(inputs: Tensor, labels: Tensor, *sizes: int, classes: int | None = None) -> Federation:
    """Clients ``a``, ``b``, ... that own the first rows, the next ones, ..., in all three splits."""
    count = classes or int(labels.max()) + 1
    task = Classification(tuple(f"class {i}" for i in range(count)))
    split = Split.of(list(torch.arange(sum(sizes)).split(list(sizes))))
    return Federation("small", task, inputs, labels, tuple("abcdefgh"[: len(sizes)]), dict.fromkeys(SPLITS, split))


def own(federation: Federation, client: int) -> tuple[Tensor, Tensor]:
    rows = federation.splits["train"][client]
    return federation.inputs[rows], federation.targets[rows]


def alike(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    """Compares the leaves of ``right``, wherever a method that adds a part keeps them; tolerance 0 is bit for bit."""
    plain = {path.removeprefix("base."): t for path, t in left.items()}
    pairs = ((plain[path.removeprefix("base.")], t) for path, t in right.items())
    return all(torch.allclose(one, other, rtol=0, atol=tolerance) for one, other in pairs)


def several() -> Federation:
    """The ragged clients in double precision, as their runs see them."""
    return ragged().to("cpu", torch.float64)


def descended(module: nn.Module, loss: Callable[[nn.Module], Tensor], lr: float, steps: int) -> nn.Module:
    """A copy after plain gradient steps."""
    trained = copy.deepcopy(module).requires_grad_(True)
    optimizer = torch.optim.SGD(trained.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(trained).backward()
        optimizer.step()
    return trained.requires_grad_(False)


def started(factory: Callable[[], nn.Module]) -> nn.Module:
    """The model from which runs start."""
    return build(factory, 0).double().requires_grad_(False)


def averaged(modules: list[nn.Module], sizes: list[int]) -> nn.Module:
    mean = copy.deepcopy(modules[0])
    for path, value in mean.named_parameters():
        parts = [dict(m.named_parameters())[path].data * n for m, n in zip(modules, sizes, strict=True)]
        value.data = torch.stack(parts).sum(0) / sum(sizes)
    return mean


def leaves(module: nn.Module) -> dict[str, Tensor]:
    return {path: t.detach() for path, t in module.named_parameters()}


# Loss terms -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("MN2")
def test_mn2_contrast_of_given_similarities():
    at = lambda cosine: tensor([cosine, math.sqrt(1 - cosine**2)])  # noqa: E731
    assert contrast(at(1.0), at(1.0), at(0.0), 0.5).item() == printed(0.1269280110)
    assert contrast(at(1.0), at(0.9), at(0.7), 0.5).item() == printed(0.5130152524)
    assert contrast(7 * at(1.0), 2 * at(0.9), 0.1 * at(0.7), 0.5).item() == printed(0.5130152524)
    assert cosine(tensor([0.0, 0.0]), at(0.3)).item() == 0


@pytest.mark.oracle("MN1")
def test_mn1_equal_models_give_log_2_and_no_gradient():
    own, other = (torch.randn(9, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    own.requires_grad_(True)
    term = contrast(own, other, other.clone(), 0.5)
    assert term.tolist() == printed([math.log(2)] * 9)
    assert torch.autograd.grad(term.sum(), own)[0].abs().max() < 1e-15


@pytest.mark.oracle("KD1", "KD2")
def test_kd1_kd2_divergence_of_given_scores():
    teacher, student = tensor([2.0, 0.0, -1.0]), tensor([1.0, 0.5, 0.0])
    assert distillation(teacher, student, 2.0).item() == printed(0.3652279756601323)
    same = (teacher + 3).requires_grad_(True)
    equal = distillation(teacher, same, 2.0)
    assert equal.item() == pytest.approx(0, abs=1e-15)
    assert torch.autograd.grad(equal.sum(), same)[0].abs().max() < 1e-15


@pytest.mark.oracle("NT0")
def test_nt0_cross_entropy_of_two_views():
    z = tensor([1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8])
    assert nt_xent(z[::2], z[1::2], 0.5).item() == printed(0.4301902771)
    assert nt_xent(z[:1], z[:1], 0.5).item() == 0
    padded = torch.cat([z, tensor([9.0, 9.0], [-1.0, 5.0])])
    assert nt_xent(padded[::2], padded[1::2], 0.5, tensor(1.0, 1.0, 0.0)).item() == printed(0.4301902771)


# The lattice ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edge:
    """``left`` is ``right``, bit for bit."""

    left: Callable[[], Method]
    right: Callable[[], Method]
    view: Callable[[Run], dict[str, Tensor]] = shared
    model: Callable[[], nn.Module] = mlp


def coder() -> nn.Module:
    return autoencoder_classifier((5,), 3, 4, 6)


def stateful() -> nn.Module:
    """Running statistics and random masks."""
    layers = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 3)
    return with_roles(nn.Sequential(*layers), head="4")


def decoded() -> nn.Module:
    return beside(stateful(), "decoder", nn.Linear(6, 5))


def oracle(name: str, *parts) -> object:
    return pytest.param(Edge(*parts), marks=pytest.mark.oracle(name), id=name)


EDGES = [
    oracle("MN0", lambda: moon(0.0), fedavg),
    oracle("KD0", lambda: self_distillation(0.0), fedavg),
    oracle("PR0", lambda: fedproto(0.0), local, predictors),
    oracle("FH0", lambda: fedhome(0.0, 0), fedavg),
    pytest.param(Edge(lambda: fedhome(0.0, 0), fedavg, predictors, coder), id="fedhome with its decoder"),
    oracle("OT0", lambda: fedot(map_lr=0.0), fedavg),
    pytest.param(Edge(lambda: fedot(lam=math.inf, potential_lr=0.0), fedavg), id="fedot, no gain from transport"),
    pytest.param(Edge(lambda: moon(0.0), fedavg, shared, stateful), id="moon with statistics and masks"),
    pytest.param(Edge(lambda: self_distillation(0.0), fedavg, shared, stateful), id="distillation, the same"),
    pytest.param(Edge(lambda: fedhome(0.0, 0), fedavg, shared, decoded), id="fedhome, the same"),
    pytest.param(Edge(lambda: fedot(map_lr=0.0), fedavg, shared, stateful), id="fedot, the same"),
]


@degenerate
@pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
@pytest.mark.parametrize("edge", EDGES)
def test_edge(edge, cohort):
    options = {**MINI, "federation": ragged(), "model": edge.model, "participation": cohort}
    left, right = (edge.view(run(make(), 5, **options)) for make in (edge.left, edge.right))
    assert alike(left, right)


@pytest.mark.parametrize("method", [moon, self_distillation, fedhome, fedot])
def test_every_edge_can_fail(method):
    options = {**MINI, "federation": ragged()}
    assert not alike(shared(run(method(), 3, **options)), shared(run(fedavg(), 3, **options)))


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: moon(0.0), "moon with mu=0 is fedavg"),
        (lambda: self_distillation(0.0), "evaluated before averaging"),
        (lambda: fedproto(0.0), "lam=0 is local"),
        (lambda: fedhome(0.0, 0), "fedhome with lam=0"),
        (lambda: fedot(map_lr=0.0), "fedot with map_lr=0 is fedavg"),
    ],
)
def test_degenerate_parameters_are_remarked(build, what):
    with pytest.warns(PluresWarning, match=what):
        build()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: moon(-1.0), "moon: mu=-1.0"),
        (lambda: moon(temperature=0.0), "moon: mu=1.0 must not be negative and temperature=0.0 positive"),
        (lambda: self_distillation(-0.1), "self_distillation: lam=-0.1 must be >= 0"),
        (lambda: fedsimclr(temperature=0.0), "fedsimclr: temperature=0.0"),
        (lambda: fedsimclr(head_epochs=-1), "fedsimclr: head_epochs=-1"),
        (lambda: fedproto(-1.0), "fedproto: lam=-1.0"),
        (lambda: fedproto(by="vote"), "method 'fedproto': by='vote'; give 'head' or 'prototype'"),
        (lambda: fedhome(-1.0), "fedhome: lam=-1.0"),
        (lambda: fedhome(per_class=0), "fedhome: per_class=0"),
        (lambda: fedot(0.0), "fedot: lam=0.0 must be positive"),
        (lambda: fedot(map_lr=-1.0), "fedot: map_lr=-1.0"),
    ],
)
def test_impossible_parameters_are_refused(build, words):
    with pytest.raises(PluresError, match=re.escape(words)):
        build()


@pytest.mark.parametrize("method", [moon, self_distillation, fedsimclr, fedproto, fedhome, fedot])
def test_one_by_one_and_stacked_agree(method):
    options = {**MINI, "federation": ragged(), "participation": Uniform(0.5)}
    stacked, single = (run(method(), 3, execution=e, **options) for e in (Execution("vmap", 4, False, "float64"), LOOP))
    left, right = (done.deployed(list(range(7))) for done in (stacked, single))
    for slot, found in left.items():
        for path, value in found.items():
            torch.testing.assert_close(value, right[slot][path], atol=1e-12, rtol=0)


# MOON -----------------------------------------------------------------------------------------------------------------


def moon_by_loops(federation: Federation, cohorts: list[list[int]], mu: float, lr: float, steps: int) -> nn.Module:
    """MOON as its authors write it: a cross-entropy over two cosines in which the first is the right class."""
    model = started(mlp)
    previous: dict[int, nn.Module] = {}
    for cohort in cohorts:
        trained = {}
        for client in cohort:
            x, y = own(federation, client)
            near, far = model[:2](x), previous.get(client, model)[:2](x)

            def loss(net, x=x, y=y, near=near, far=far):
                z = net[:2](x)
                scores = torch.stack([F.cosine_similarity(z, near), F.cosine_similarity(z, far)], 1) / 0.5
                return F.cross_entropy(net(x), y) + mu * F.cross_entropy(scores, torch.zeros_like(y))

            trained[client] = descended(model, loss, lr, steps)
        model = averaged(list(trained.values()), [len(own(federation, c)[1]) for c in trained])
        previous |= trained
    return model


def test_moon_follows_its_authors_loop_also_for_a_late_first_visit():
    federation, cohorts = several(), [[0, 1], [1, 2], [0, 2], [0, 1, 2]]
    done = run(
        moon(5.0),
        4,
        federation=federation,
        model=mlp,
        steps=3,
        lr=0.5,
        participation=Fixed([[str(i) for i in cohort] for cohort in cohorts]),
    )
    expected = leaves(moon_by_loops(federation, cohorts, 5.0, 0.5, 3))
    for path, value in shared(done).items():
        agree(value[0], expected[path])


@pytest.mark.oracle("MN1", "KD0")
@pytest.mark.parametrize("method", [lambda: moon(5.0), lambda: self_distillation(2.0)], ids=["moon", "distillation"])
def test_mn1_kd0_first_visits_are_fedavg_in_whatever_round(method):
    options = {**MINI, "federation": ragged(), "participation": EVERYBODY_ONCE}
    assert alike(shared(run(method(), 3, **options)), shared(run(fedavg(), 3, **options)), 1e-12)
    assert not alike(shared(run(method(), 4, **options)), shared(run(fedavg(), 4, **options)), 1e-12)
    whole = {**MINI, "federation": ragged()}
    assert alike(shared(run(method(), 1, **whole)), shared(run(fedavg(), 1, **whole)), 1e-12)


def test_moon_sends_one_model_and_gives_an_unseen_client_the_global_one():
    done = run(moon(), 3, federation=several().subset(["0", "1", "2"]), **MINI)
    assert traffic(done.bound) == traffic(run(fedavg(), 0, federation=several(), **MINI).bound)
    guest = onboard(done, several().subset(["6"]), visits=2)
    assert alike(predictors(guest), {path: t[:1] for path, t in shared(done).items()})


# Self-knowledge distillation ------------------------------------------------------------------------------------------


def taught_by_loops(
    federation: Federation, cohorts: list[list[int]], lam: float, t: float, lr: float, steps: int
) -> tuple[nn.Module, dict[int, nn.Module]]:
    model = started(mlp)
    mine: dict[int, nn.Module] = {}
    for cohort in cohorts:
        trained = {}
        for client in cohort:
            x, y = own(federation, client)
            teacher = mine[client](x) if client in mine else None

            def loss(net, x=x, y=y, teacher=teacher):
                plain = F.cross_entropy(net(x), y)
                if teacher is None:
                    return plain
                target, given = F.softmax(teacher / t, 1), F.log_softmax(net(x) / t, 1)
                return plain + lam * t**2 * F.kl_div(given, target, reduction="batchmean")

            trained[client] = descended(model, loss, lr, steps)
        model = averaged(list(trained.values()), [len(own(federation, c)[1]) for c in trained])
        mine |= trained
    return model, mine


def test_a_client_is_taught_by_the_model_of_its_last_visit_and_predicts_with_its_own():
    federation, cohorts = several(), [[0, 1], [1, 2], [0, 2], [0, 1]]
    named = Fixed([[str(i) for i in cohort] for cohort in cohorts])
    done = run(self_distillation(1.5, 3.0), 4, federation=federation, model=mlp, steps=3, lr=0.5, participation=named)
    model, mine = taught_by_loops(federation, cohorts, 1.5, 3.0, 0.5, 3)
    for path, value in leaves(model).items():
        agree(shared(done)[path][0], value)
        predicted = predictors(done)[path]
        for client, own_model in mine.items():
            agree(predicted[client], leaves(own_model)[path])


@pytest.mark.oracle("KD0")
def test_kd0_after_one_visit_a_client_predicts_with_what_it_trained():
    options = {**MINI, "federation": ragged()}
    assert alike(predictors(run(self_distillation(), 1, **options)), predictors(run(local(), 1, **options)))


def test_an_unseen_client_of_self_distillation_trains_from_the_global_model_each_time():
    federation = several()
    done = run(self_distillation(1.0, 2.0), 2, federation=federation.subset(["0", "1"]), model=mlp, steps=3)
    newcomer, model = federation.subset(["4"]), started(mlp)
    model.load_state_dict({path: t[0] for path, t in shared(done).items()})
    assert alike(predictors(onboard(done, newcomer, visits=0)), {p: t[None] for p, t in leaves(model).items()})
    x, y = own(federation, 4)
    first = descended(model, lambda net: F.cross_entropy(net(x), y), 0.1, 3)

    def second(net):
        lesson = distillation(first(x), net(x), 2.0).mean()
        return F.cross_entropy(net(x), y) + lesson

    for visits, expected in ((1, first), (2, descended(model, second, 0.1, 3))):
        for path, value in leaves(expected).items():
            agree(predictors(onboard(done, newcomer, visits=visits))[path][0], value)


# Federated SimCLR -----------------------------------------------------------------------------------------------------


def scaled(batch: Batch, number: int) -> Tensor:
    """Two deterministic views."""
    return batch.inputs * (1 + number) + number


def pairs_by_loops(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent view by view, as in equation 1; rows i and i + n are two views of one example."""
    count, total = len(z) // 2, torch.zeros((), dtype=z.dtype)
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        similar = torch.stack([F.cosine_similarity(z[i], z[k], 0) / temperature for k in range(2 * count)])
        others = torch.cat([similar[:i], similar[i + 1 :]])
        total = total - torch.log(similar[j].exp() / others.exp().sum())
    return total / (2 * count)


@pytest.mark.parametrize("projection", [0, 3])
def test_a_round_of_simclr_by_loops(projection):
    federation = several().subset(["0", "1"])
    method = fedsimclr(0.5, projection, head_epochs=0, views=scaled)
    begin, done = (run(method, r, federation=federation, model=mlp, steps=2, lr=0.5) for r in (0, 1))
    model = method.prepare(mlp, done.setting, 0).double()
    body = (model.base if projection else model)[:2]

    def loss(net, x):
        inside = net.base if projection else net
        z = torch.cat([inside[:2](x), inside[:2](2 * x + 1)])
        return pairs_by_loops(net.part(z) if projection else z, 0.5)

    parts = [descended(model, partial(loss, x=own(federation, c)[0]), 0.5, 2) for c in (0, 1)]
    expected = leaves(averaged(parts, [len(own(federation, c)[0]) for c in (0, 1)]))
    assert len(list(body.parameters())) == 2
    for path, value in shared(done).items():
        agree(value[0], expected[path])
        still = path in ("2.weight", "2.bias", "base.2.weight", "base.2.bias")
        assert torch.equal(value, shared(begin)[path]) == still


def test_the_body_reads_no_label_and_the_head_is_trained_on_the_aggregated_body():
    federation, options = several(), {**MINI, "participation": Uniform(0.5)}
    flipped = replace(federation, targets=(federation.targets + 1) % 3)
    one, two = (run(fedsimclr(head_epochs=3), 3, federation=f, **options) for f in (federation, flipped))
    assert alike(shared(one), shared(two))
    found, other = predictors(one), predictors(two)
    for path in ("base.0.weight", "part.0.weight"):
        assert torch.equal(found[path], shared(one)[path])
    assert not torch.equal(found["base.2.weight"], other["base.2.weight"])
    whole = run(fedsimclr(head_epochs=3), 2, federation=federation, model=mlp)
    model, (x, y) = started(mlp), own(federation, 6)
    model.load_state_dict({p.removeprefix("base."): t[6] for p, t in shared(whole).items() if p.startswith("base.")})
    codes = model[:2](x)
    head = descended(model[2], lambda net: F.cross_entropy(net(codes), y), 0.1, 3)
    agree(predictors(whole)["base.2.weight"][6], head.weight)


def test_an_unseen_client_of_simclr_trains_a_head_on_the_shared_body():
    federation = several()
    done = run(fedsimclr(), 2, federation=federation.subset(["0", "1", "2"]), **MINI)
    guest = onboard(done, federation.subset(["5"]))
    assert torch.equal(predictors(guest)["base.0.weight"][0], shared(done)["base.0.weight"][0])
    assert not torch.equal(predictors(guest)["base.2.weight"][0], shared(done)["base.2.weight"][0])


def batch_of(inputs: Tensor, key: int = 3) -> Batch:
    problem = Problem(Network(scalar()()), Regression(1))
    return Batch(inputs, torch.zeros(len(inputs)), None, problem, key=torch.tensor(key))


def test_views_are_random_functions_of_key_and_number():
    pictures = torch.rand(6, 2, 9, 9)
    for view, inputs in ((crops, pictures), (crops, pictures[:, 0]), (noise, pictures), (noise, pictures[:, 0, 0])):
        one = view(batch_of(inputs), 0)
        assert one.shape == inputs.shape
        assert torch.equal(one, view(batch_of(inputs), 0))
        assert not torch.equal(one, view(batch_of(inputs), 1))
        assert not torch.equal(one, view(batch_of(inputs, key=4), 0))
        torch.testing.assert_close(view(batch_of(inputs[:4]), 0), one[:4])
    assert torch.equal(suited(batch_of(pictures), 1), crops(batch_of(pictures), 1))
    assert torch.equal(suited(batch_of(pictures[:, :, 0]), 1), noise(batch_of(pictures[:, :, 0]), 1))


def test_views_of_pictures_are_mapped_over_clients():
    generator = torch.Generator().manual_seed(7)
    pictures = torch.rand(30, 1, 8, 8, generator=generator, dtype=torch.float64)
    federation = labelled(pictures, torch.arange(30) % 2, 6, 10, 14)

    def model() -> nn.Module:
        return with_roles(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)), head="3")

    options = {"federation": federation, "model": model, "batch_size": 4}
    stacked, single = (shared(run(fedsimclr(), 2, execution=e, **options)) for e in (EXACT, LOOP))
    begin = shared(run(fedsimclr(), 0, **options))
    for path, value in stacked.items():
        agree(value, single[path])
    assert (stacked["base.1.weight"] - begin["base.1.weight"]).abs().max() > 1e-3


def test_a_full_crop_is_the_picture_or_its_mirror_and_no_noise_is_the_input():
    pictures = torch.rand(40, 3, 8, 8)
    whole = crops(batch_of(pictures), 0, smallest=1.0, contrast=0.0)
    mirrored = torch.tensor([torch.allclose(w, p.flip(-1), atol=1e-6) for w, p in zip(whole, pictures, strict=True)])
    kept = torch.tensor([torch.allclose(w, p, atol=1e-6) for w, p in zip(whole, pictures, strict=True)])
    assert (mirrored ^ kept).all()
    assert 8 < mirrored.sum() < 32
    assert torch.equal(noise(batch_of(pictures), 0, scale=0.0, noise=0.0, masked=0.0), pictures)
    masked = noise(batch_of(torch.ones(500, 10)), 0, scale=0.0, noise=0.0, masked=0.3)
    assert (masked == 0).double().mean().item() == pytest.approx(0.3, abs=0.03)
    noisy = noise(batch_of(torch.zeros(500, 10)), 0, scale=0.0, noise=0.5, masked=0.0)
    assert noisy.std().item() == pytest.approx(0.5, abs=0.02)


# FedProto -------------------------------------------------------------------------------------------------------------


class Scalar(nn.Module):
    """``h = u x`` under a linear head that starts as zero."""

    roles = {"head": ("h",), "body": ("u",)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.u, self.h = nn.Linear(1, 1, bias=False), nn.Linear(1, 3, bias=False)
        nn.init.ones_(self.u.weight)
        nn.init.zeros_(self.h.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.u(x))


def three_clients() -> Federation:
    """Class 0: 1 and 3 with ``a``, 5 with ``b``, 7 with ``c``; class 1: 2 with ``a``, -1 with ``b``; class 2: none."""
    x = tensor([1.0], [3.0], [2.0], [5.0], [-1.0], [7.0])
    return labelled(x, torch.tensor([0, 0, 1, 0, 1, 0]), 3, 2, 1, classes=3)


def prototypes(done: Run) -> tuple[list[float], list[float]]:
    found = done.states([0])["prototypes"]
    return found["mean"][0].flatten().tolist(), found["known"][0].tolist()


@pytest.mark.oracle("PR0")
def test_pr0_two_rounds_by_hand():
    """The head's zeros stop the first gradient of u, so the first prototypes are the class means of x."""
    options = {"federation": three_clients(), "model": Scalar, "lr": 0.1, "steps": 1}
    first, second = (run(fedproto(0.5), r, participation=Fixed([["a", "b"]]), **options) for r in (1, 2))
    assert prototypes(first) == ([pytest.approx((1 + 3 + 5) / 3), 0.5, 0.0], [1.0, 1.0, 0.0])
    goal, one = tensor(3.0, 0.5), torch.eye(3, dtype=torch.float64)
    for client in (0, 1):
        x, y = own(three_clients(), client)
        h = 0.1 * ((one[y] - 1 / 3) * x).mean(0)
        assert first.states([client])["model"]["h.weight"].flatten().tolist() == pytest.approx(h.tolist())
        error = torch.softmax(x * h, 1) - one[y]
        slope = ((error * h).sum(1, keepdim=True) * x).mean() + 0.5 * (2 * (x - goal[y].unsqueeze(1)) * x).mean()
        assert second.states([client])["model"]["u.weight"].item() == pytest.approx(1 - 0.1 * slope.item(), abs=1e-12)
    assert first.states([0])["model"]["h.weight"].flatten().tolist() == pytest.approx([0.2 / 3, 0.0, -0.2 / 3])


def test_a_class_nobody_of_the_cohort_has_keeps_its_prototype():
    options = {"federation": three_clients(), "model": Scalar, "lr": 0.0, "steps": 1}
    done = run(fedproto(), 2, participation=Fixed([["a", "b"], ["c"]]), **options)
    assert prototypes(done) == ([7.0, 0.5, 0.0], [1.0, 1.0, 0.0])
    means, known = 3 * 8, 3 * 8
    examples_of_each_class = 2 * 3 * 8
    assert traffic(done.bound) == (means + known + examples_of_each_class, means + known)


def test_prediction_by_the_nearest_prototype():
    done = run(fedproto(by="prototype"), 1, federation=three_clients(), model=Scalar, lr=0.0)
    goal = tensor(4.0, 0.5)
    assert prototypes(done)[0] == pytest.approx([4.0, 0.5, 0.0])
    x = tensor([2.2], [2.3], [-40.0], [0.0])
    outputs = done.engine.forward(done.deployed([0]), x[None])[0]
    assert outputs.argmax(1).tolist() == [1, 0, 1, 1]
    distance = (x - goal).square()
    agree(outputs[:, 0] - outputs[:, 1], distance[:, 1] - distance[:, 0])
    blank = run(fedproto(by="prototype"), 0, federation=three_clients(), model=Scalar)
    assert (blank.engine.forward(blank.deployed([0]), x[None])[0].diff() == 0).all()


def test_an_unseen_client_of_fedproto_trains_its_own_model_towards_the_prototypes():
    options = {"federation": three_clients().subset(["a", "b"]), "model": Scalar, "lr": 0.1, "steps": 1}
    done, newcomer = run(fedproto(1.0), 2, **options), three_clients().subset(["c"])
    guest = onboard(done, newcomer, visits=1)
    goal = prototypes(done)[0][0]
    assert guest.states([0])["model"]["u.weight"].item() == pytest.approx(1 - 0.1 * 2 * (7 - goal) * 7)
    assert prototypes(guest) == prototypes(done)


def test_fedproto_differs_from_local_training():
    left, right = (predictors(run(m, 3, federation=ragged(), **MINI)) for m in (fedproto(), local()))
    assert not alike(left, right)


@pytest.mark.parametrize("method", [fedproto, fedhome, self_distillation])
def test_methods_of_classes_refuse_regression(method):
    with pytest.raises(PluresError, match="classes"):
        run(method(), 1, federation=quadratic(), model=BodyHead)


def test_a_head_that_the_model_never_calls_is_named():
    model = beside(nn.Linear(5, 3), "head", nn.Linear(5, 3))
    with pytest.raises(PluresError, match="never calls its head 'part'"):
        run(moon(), 1, federation=ragged(), model=model)


# FedHome --------------------------------------------------------------------------------------------------------------


def codes_of(counts: list[int], d: int = 3) -> tuple[Tensor, Tensor]:
    """Random codes in a random order, and their classes one-hot; the last row is padding."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    generator = torch.Generator().manual_seed(1)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    member = F.one_hot(labels, len(counts)).double()
    codes = torch.randn(len(labels) + 1, d, generator=generator, dtype=torch.float64)
    return codes, torch.cat([member, torch.zeros(1, len(counts), dtype=torch.float64)])


def distance_to_segments(code: Tensor, mine: Tensor) -> float:
    """Distance from a code to the nearest segment between two of some codes."""
    a, b = mine[:, None], mine[None]
    along = ((code - a) * (b - a)).sum(2) / (b - a).square().sum(2).clamp(min=1e-30)
    return (a + along.clamp(0, 1).unsqueeze(2) * (b - a) - code).norm(dim=2).min().item()


@pytest.mark.oracle("FH1")
def test_fh1_the_set_is_balanced_and_each_code_lies_between_two_of_its_class():
    codes, member = codes_of([7, 3, 0, 1])
    made, weight = between(codes, member, 9, torch.tensor(5))
    assert weight.sum(1).tolist() == [7, 7, 0, 7]
    for c, count in ((0, 7), (1, 3), (3, 1)):
        mine = codes[member[:, c] == 1]
        assert torch.equal(made[c, :count], mine)
        assert max(distance_to_segments(code, mine) for code in made[c, :7]) < 1e-12
    fresh = made[1, 3:7]
    assert min((fresh[i] - codes).norm(dim=1).min() for i in range(4)) > 1e-3
    assert torch.equal(made[3, :7], codes[member[:, 3] == 1].expand(7, -1))
    assert not torch.equal(fresh, between(codes, member, 9, torch.tensor(6))[0][1, 3:7])


def test_the_balanced_set_is_capped():
    codes, member = codes_of([7, 3])
    made, weight = between(codes, member, 5, torch.tensor(5))
    assert weight.tolist() == [[1.0] * 5] * 2
    assert torch.equal(made[0], codes[member[:, 0] == 1][:5])


@pytest.mark.oracle("FH2")
def test_fh2_a_balanced_client_is_refined_on_its_own_codes():
    codes, member = codes_of([4, 4, 4])
    made, weight = between(codes, member, 4, torch.tensor(5))
    assert all(torch.equal(made[c], codes[member[:, c] == 1]) for c in range(3))
    assert (weight == 1).all()
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    even = labelled(x, torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 0, 0, 1, 1]), 6, 6)
    refined, tuned = (
        predictors(run(m, 2, federation=even, model=mlp)) for m in (fedhome(0.0, 7), fedavg_ft(steps=7, head_only=True))
    )
    for path, value in tuned.items():
        agree(refined[f"base.{path}"], value)


def test_an_unbalanced_client_is_refined_on_balanced_codes():
    federation = several()
    done = run(fedhome(1.0, 5, per_class=1000), 2, federation=federation, model=coder)
    plain = run(fedhome(1.0, 0), 2, federation=federation, model=coder)
    assert alike(shared(done), shared(plain))
    model = started(coder)
    model.load_state_dict({path: t[0] for path, t in shared(done).items()})
    for client in (0, 3):
        x, y = own(federation, client)
        found = {path: t[client] for path, t in predictors(done).items()}
        assert torch.equal(found["encoder.1.weight"], shared(done)["encoder.1.weight"][0])
        codes = model.encoder(x)
        scarce = int(torch.bincount(y, minlength=3).argmin())
        before, after = (F.linear(codes, w, b).softmax(1)[:, scarce].mean() for w, b in (
            (model.head.weight, model.head.bias), (found["head.weight"], found["head.bias"])))  # fmt: skip
        tuned = descended(model.head, lambda net, codes=codes, y=y: F.cross_entropy(net(codes), y), 0.1, 5)
        assert after > tuned(codes).softmax(1)[:, scarce].mean()
        assert after != before


def test_a_round_of_fedhome_by_loops_and_the_linear_decoder():
    federation = several().subset(["0", "1"])
    for factory in (coder, mlp):
        method = fedhome(0.7, 0)
        done = run(method, 1, federation=federation, model=factory, steps=3, lr=0.3)
        model = method.prepare(factory, done.setting, 0).double()

        def loss(net, x, y, mixed=factory is mlp):
            codes = net.base[:2](x) if mixed else net.encoder(x)
            back = net.part(codes) if mixed else net.decoder(codes)
            return F.cross_entropy(net(x), y) + 0.7 * F.mse_loss(back, x)

        data = [own(federation, client) for client in (0, 1)]
        parts = [descended(model, partial(loss, x=x, y=y), 0.3, 3) for x, y in data]
        expected = leaves(averaged(parts, [len(y) for _, y in data]))
        for path, value in shared(done).items():
            agree(value[0], expected[path])


def test_an_unseen_client_of_fedhome_refines_the_global_head():
    federation = several()
    done = run(fedhome(), 2, federation=federation.subset(["0", "1", "2"]), **MINI)
    guest = onboard(done, federation.subset(["6"]))
    assert torch.equal(predictors(guest)["base.0.weight"][0], shared(done)["base.0.weight"][0])
    assert not torch.equal(predictors(guest)["base.2.weight"][0], shared(done)["base.2.weight"][0])


# FedOT ----------------------------------------------------------------------------------------------------------------

MEANS, DEVIATIONS = tensor([-1.0], [0.5], [3.0]), tensor([0.5], [1.0], [1.5])


def normals(means: Tensor, deviations: Tensor, names: str = "abc") -> Federation:
    """Two points per client, which have exactly these means and deviations; the targets are 0."""
    x = torch.cat([m + s * tensor([-1.0], [1.0]) for m, s in zip(means, deviations, strict=True)])
    split = Split.of(list(torch.arange(len(x)).split(2)))
    return Federation("normals", Regression(1), x, 0 * x, tuple(names), dict.fromkeys(SPLITS, split))


@pytest.mark.oracle("OT1")
def test_ot1_barycentre_of_three_normal_laws():
    scale, shift = barycentre_maps(MEANS, DEVIATIONS)
    assert scale.flatten().tolist() == pytest.approx([2.0, 1.0, 2 / 3])
    assert shift.flatten().tolist() == pytest.approx([2.83333333, 0.33333333, -1.16666667])
    agree(scale * MEANS + shift, torch.full((3, 1), 5 / 6, dtype=torch.float64))
    agree(scale * DEVIATIONS, torch.ones(3, 1, dtype=torch.float64))

    def cost(mean: float, deviation: float) -> float:
        """Sum of squared Wasserstein distances of the three laws to a normal law."""
        return float((MEANS - mean).square().sum() + (DEVIATIONS - deviation).square().sum())

    best = cost(5 / 6, 1.0)
    assert all(cost(5 / 6 + a, 1 + b) > best for a, b in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)))
    with pytest.raises(PluresError, match="deviation"):
        barycentre_maps(MEANS, 0 * DEVIATIONS)


def affine(done: Run) -> tuple[Tensor, Tensor]:
    """Every client's map as ``x -> slope x + offset``, ``(clients, features)`` each."""
    states = done.states(list(range(len(done.federation))))
    own, scale = states["own"], states["map"]["scale"] / states["own"]["deviation"]
    return 1 + scale, states["map"]["shift"] - scale * own["mean"]


@pytest.mark.oracle("OT1")
def test_ot1_descent_and_ascent_find_the_barycentre_and_carry_a_newcomer_to_it():
    """The loss does not depend on the inputs here, so only transport matters."""
    options = {"model": scalar(0.0), "lr": 0.0, "steps": 4}
    done = run(fedot(1.0, 0.1, 0.3), 60, federation=normals(MEANS, DEVIATIONS), **options)
    for found, expected in zip(affine(done), barycentre_maps(MEANS, DEVIATIONS), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    newcomer = normals(tensor([-2.0]), tensor([0.8]), names="d")
    still, moved = (onboard(done, newcomer, visits=visits) for visits in (0, 60))
    assert [t.item() for t in affine(still)] == [1.0, 0.0]
    slope, offset = (t.item() for t in affine(moved))
    assert (slope * -2 + offset, slope * 0.8) == (pytest.approx(5 / 6, abs=1e-4), pytest.approx(1.0, abs=1e-4))


def test_the_potentials_sum_to_zero_under_partial_participation():
    done = run(fedot(), 5, federation=ragged(), participation=Uniform(0.5), **MINI)
    states = done.states(list(range(7)))
    assert states["potential"]["linear"].abs().max() > 1e-4
    for name, values in states["potential"].items():
        agree(values.mean(0), states["common"][name][0])


def known_maps(rounds: int) -> tuple[Run, Federation]:
    """Clients whose inputs are known affine maps of common ones, with the inverse maps given and fixed."""
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    y = z @ tensor([1.5], [-0.7]) + 0.3 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    split = Split.of(list(torch.arange(30).split([5, 10, 15])))
    common = Federation("common", Regression(1), z, y, ("a", "b", "c"), dict.fromkeys(SPLITS, split))
    scale, shift = tensor([2.0, 0.5], [-1.0, 3.0], [0.25, 1.0]), tensor([1.0, -2.0], [0.0, 5.0], [-3.0, 0.5])
    owner = torch.arange(3).repeat_interleave(torch.tensor([5, 10, 15]))
    seen = replace(common, inputs=(z - shift[owner]) / scale[owner])
    with pytest.warns(PluresWarning):
        method = fedot(map_lr=0.0, potential_lr=0.0)
    done = run(method, 0, federation=seen, model=lambda: nn.Linear(2, 1, bias=False), lr=0.3, steps=1)
    done.training = replace(done.training, rounds=rounds)
    for leaf in done.stored_leaves():
        done.store.put(leaf, [0, 1, 2], done.states([0, 1, 2])[leaf[0]][leaf[1]])
    own = [seen.inputs[rows] for rows in split]
    mean, deviation = torch.stack([x.mean(0) for x in own]), torch.stack([x.std(0, correction=0) for x in own])
    done.store.put(("map", "scale"), [0, 1, 2], (scale - 1) * deviation)
    done.store.put(("map", "shift"), [0, 1, 2], shift + (scale - 1) * mean)
    done.store.mark([0, 1, 2])
    for _ in done.rounds():
        pass
    return done, common


@pytest.mark.oracle("OT2")
def test_ot2_known_maps_recover_the_pooled_solution():
    done, common = known_maps(60)
    pooled = torch.linalg.lstsq(common.inputs, common.targets).solution
    torch.testing.assert_close(shared(done)["weight"][0].T, pooled, atol=1e-9, rtol=0)
    rows = done.federation.splits["test"][1]
    outputs = done.engine.forward(done.deployed([1]), done.federation.inputs[rows][None])[0]
    torch.testing.assert_close(outputs, common.inputs[rows] @ pooled, atol=1e-9, rtol=0)


def test_a_feature_that_hardly_varies_is_not_blown_up():
    flat = normals(tensor([0.0], [1.0]), tensor([1e-4], [1.0]), names="ab")
    done = run(fedot(), 3, federation=flat, model=scalar(0.0))
    assert done.states([0])["own"]["deviation"].item() == pytest.approx(FLOOR, abs=1e-15)
    assert affine(done)[0][0].item() == pytest.approx(1, abs=0.05)


@pytest.mark.oracle("OT2")
def test_ot2_barycentre_maps_undo_affine_maps_up_to_a_common_one():
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(3, 50, 4, generator=generator, dtype=torch.float64)
    z = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
    stretch, move = torch.rand(3, 1, 4, generator=generator, dtype=torch.float64) + 0.5, torch.randn(3, 1, 4)
    x = stretch * z + move
    scale, shift = barycentre_maps(x.mean(1), x.std(1, correction=0))
    agree(scale[:, None] * x + shift[:, None], stretch.mean(0) * z + move.double().mean(0))


def test_fedot_trains_maps_of_participants_only():
    done = run(fedot(), 2, federation=several(), participation=Fixed([["0", "4"]]), **MINI)
    slope, offset = affine(done)
    assert [bool((row != 1).any()) for row in slope] == [i in (0, 4) for i in range(7)]
    assert torch.equal(offset[1], torch.zeros(5, dtype=torch.float64))


# Inputs that are integers ---------------------------------------------------------------------------------------------


TOKENS = labelled(torch.arange(40).reshape(10, 4) % 7, torch.arange(10) % 2, 5, 5)


def reader() -> nn.Module:
    return with_roles(nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 2)), head="2")


@pytest.mark.parametrize("method", [fedsimclr, fedhome, fedot])
def test_integer_inputs_are_refused(method):
    with pytest.raises(PluresError, match="integer"):
        run(method(), 1, federation=TOKENS, model=reader)


@pytest.mark.parametrize("method", [moon, self_distillation, fedproto])
def test_other_methods_read_tokens(method):
    begin, done = (predictors(run(method(), r, federation=TOKENS, model=reader)) for r in (0, 2))
    assert not torch.equal(begin["0.weight"], done["0.weight"])
