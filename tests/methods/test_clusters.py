"""Clusters, mixtures of clusters, and what a public sample adds: closed forms, hand-computed values, identities."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plures import PluresError, PluresWarning
from plures.evaluate.scores import score
from plures.federation import SPLITS, Federation, Split, SplitRule, from_arrays
from plures.method import (
    SGD,
    BlockState,
    Clustered,
    Cohort,
    Combine,
    Grouping,
    InitialGradients,
    LowestLoss,
    Method,
    Personal,
    Phase,
    Probe,
    ServerOptimizer,
    Setting,
    Splitting,
    bipartition,
    body,
    head,
    spherical_means,
)
from plures.methods import fedavg, fedrep, local
from plures.methods.cfl import cfl
from plures.methods.dapper import dapper
from plures.methods.fedem import fedem
from plures.methods.gradient_clusters import gradient_clusters
from plures.methods.hypcluster import hypcluster
from plures.methods.ifca import ifca
from plures.methods.mapper import mapper
from plures.methods.metadata_clusters import metadata_clusters
from plures.run import Execution, Fixed, Run, Training, Uniform, onboard
from plures.run.checkpoint import restore, snapshot
from plures.run.cost import traffic
from plures.tasks import Regression
from problems import EXACT, close, predictions, predictors, quadratic, run, same, scalar, shared, starts, weight
from shifted import mlp, ragged

partial = pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
MINI = {"steps": 4, "batch_size": 8, "model": mlp}
LOOP = Execution("loop", 2, False, "float64")
EXAMPLE = torch.tensor([[1.0, 0.0], [0.8, 0.2], [-1.0, 0.0], [-0.9, -0.1]], dtype=torch.float64)
SIX = ((4, 0), (4, 0.1), (-4, 3), (-4, 3.1), (-4, -3), (-4, -3.2))


def points(optima, curvatures=None, sizes=None, values=None) -> Federation:
    """``f_i(w) = a_i/2 ||w - theta_i||^2`` for vectors: every client repeats one example, or has the given values."""
    thetas = [torch.tensor(theta, dtype=torch.float64).view(1, -1) for theta in optima]
    curvatures, sizes = curvatures or [1.0] * len(thetas), sizes or [4] * len(thetas)
    rows = [theta.expand(n, -1) for theta, n in zip(thetas, sizes, strict=True)] if values is None else values
    scale = [(a / 2) ** 0.5 for a in curvatures]
    split = Split.of(list(torch.arange(sum(len(r) for r in rows)).split([len(r) for r in rows])))
    return Federation(
        "points",
        Regression(rows[0].shape[1]),
        torch.cat([torch.full((len(r), 1), s, dtype=torch.float64) for r, s in zip(rows, scale, strict=True)]),
        torch.cat([s * r for r, s in zip(rows, scale, strict=True)]),
        tuple("abcdefgh"[: len(rows)]),
        dict.fromkeys(SPLITS, split),
    )


def origin(outputs=2, start=0.0):
    """A vector of weights that starts at zero."""

    def model() -> nn.Module:
        layer = nn.Linear(1, outputs, bias=False)
        nn.init.constant_(layer.weight, start)
        return layer

    return model


def models(done, path="weight"):
    """The models of a clustered run, one row each."""
    return done.server["model"].values[f"model/{path}"].flatten(1).squeeze(-1).tolist()


def linear(clients=4, seed=2) -> Federation:
    """Linear regression with a coefficient of its own for each client, and noise."""
    generator = np.random.default_rng(seed)
    client = np.repeat(np.arange(clients), np.arange(clients) * 10 + 40)
    x = generator.normal(size=(len(client), 3))
    truth = np.array([1.0, -1.0, 0.5]) + generator.normal(size=(clients, 3))
    y = (x * truth[client]).sum(1) + generator.normal(size=len(client))
    return from_arrays(x, y, client, seed=1, dtype=torch.float64)


def regressor() -> nn.Module:
    return nn.Linear(3, 1)


# CFL ------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("CF0")
def test_cosines_clusters_and_means_of_the_example():
    units = F.normalize(EXAMPLE, dim=1)
    cosines = units @ units.T
    pairs = [cosines[i, j].item() for i, j in ((0, 1), (2, 3), (0, 2), (0, 3), (1, 2), (1, 3))]
    assert pairs == pytest.approx([0.9701, 0.9939, -1.0, -0.9939, -0.9701, -0.9910], abs=5e-5)
    other, across = bipartition(EXAMPLE)
    assert other.tolist() == [False, False, True, True]
    assert across == close(cosines[1, 2].item())
    assert EXAMPLE.mean(0).tolist() == close([-0.025, 0.025])
    assert EXAMPLE[~other].mean(0).tolist() == close([0.9, 0.1])
    assert EXAMPLE[other].mean(0).tolist() == close([-0.95, -0.05])


def test_the_bipartition_has_the_smallest_largest_cosine_of_all():
    for seed in range(20):
        vectors = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        units = F.normalize(vectors, dim=1)
        cosines = units @ units.T

        def across(part, cosines=cosines):
            rest = [i for i in range(7) if i not in part]
            return float(cosines[list(part)][:, rest].max())

        best = min(across(part) for size in range(1, 4) for part in combinations(range(7), size))
        other, found = bipartition(vectors)
        assert found == close(best)
        assert across(other.nonzero().flatten().tolist()) == close(found)


@degenerate
@partial
@pytest.mark.oracle("CF1")
def test_without_splits_cfl_is_fedavg(cohort):
    left, right = (
        shared(run(m, 5, federation=ragged(), participation=cohort, **MINI))
        for m in (cfl(eps2=float("inf"), warmup=0), fedavg())
    )
    assert same(left, right)


@pytest.mark.oracle("CF2")
def test_a_nested_split_finds_the_three_pairs():
    done = run(cfl(0.05, 0.2), 120, federation=points(SIX), model=origin())
    assert done.membership["model"].tolist() == [0, 0, 1, 1, 2, 2]
    expected = [torch.tensor(SIX[i : i + 2]).mean(0).tolist() for i in (0, 2, 4)]
    torch.testing.assert_close(torch.tensor(models(done)), torch.tensor(expected), atol=1e-4, rtol=0)
    assert [(block, client, to) for _, block, client, to in done.history()] == [
        *(("model", name, 1) for name in "cdef"),
        *(("model", name, 2) for name in "ef"),
    ]


@pytest.mark.oracle("CF2")
def test_members_are_clients_and_not_places_in_the_cohort():
    """The nested split happens in a cohort of four clients, whose positions in it are not their numbers."""
    first = run(cfl(0.05, 0.2), 25, federation=points(SIX), model=origin())
    assert first.membership["model"].tolist() == [0, 0, 1, 1, 1, 1]
    cohorts = Fixed([list("abcdef")] * 25 + [list("cdef")] * 95)
    done = run(cfl(0.05, 0.2), 120, federation=points(SIX), model=origin(), participation=cohorts)
    assert done.membership["model"].tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(
        torch.tensor(models(done))[1:], torch.tensor([[-4.0, 3.05], [-4.0, -3.1]]), atol=1e-4, rtol=0
    )
    assert models(done)[0] == close(models(run(cfl(0.05, 0.2), 25, federation=points(SIX), model=origin()))[0])


@pytest.mark.oracle("CF3")
def test_identically_distributed_clients_never_split():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 5))
    y = (x @ generator.normal(size=(5, 3))).argmax(1)
    data = from_arrays(x, y, np.arange(600) % 6, seed=0, dtype=torch.float64)
    calm, cruel = (
        run(cfl(0.2, eps2, warmup=5), 15, federation=data, model=mlp, batch_size=None, steps=5) for eps2 in (0.3, 0.02)
    )
    assert calm.membership["model"].tolist() == [0] * 6
    assert len(models(cruel, "0.bias")) > 1


def test_a_split_waits_for_the_warm_up_and_for_all_members():
    early, waiting = (run(cfl(0.05, 0.2, warmup=w), 12, federation=points(SIX), model=origin()) for w in (0, 20))
    assert early.history()[0][0] < 12
    assert waiting.history() == []
    absent = run(
        cfl(10.0, 0.2, warmup=0), 12, federation=points(SIX), model=origin(), participation=Fixed([list("abcde")])
    )
    assert absent.history() == []


def test_gate_and_smallest_part_forbid_splits():
    changes = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, -0.05]], dtype=torch.float64)
    weights = torch.ones(3, dtype=torch.float64)
    _, across = bipartition(changes)
    gap = ((1 - across) / 2) ** 0.5
    split = lambda **options: Splitting(1.0, 0.5, **options).divided(changes, weights)  # noqa: E731
    assert split().tolist() == [False, False, True]
    assert split(gamma=gap - 1e-6) is not None
    assert split(gamma=gap + 1e-6) is None
    assert split(minimum=2) is None
    assert Splitting(0.29, 0.5).divided(changes, weights) is None
    assert Splitting(1.0, 1.01).divided(changes, weights) is None
    heavy = torch.tensor([1.0, 1.0, 1.9], dtype=torch.float64)
    assert Splitting(0.05, 0.5).divided(changes, heavy) is not None


def test_a_client_that_was_split_off_alone_trains_alone():
    data = points(((1.0, 0.0), (1.0, 0.1), (-3.0, 0.0)))
    done = run(cfl(5.0, 0.3, warmup=0), 2, federation=data, model=origin())
    assert done.membership["model"].tolist() == [0, 0, 1]
    common = 0.19 * torch.tensor([-1 / 3, 0.1 / 3])
    alone = common + 0.19 * (torch.tensor([-3.0, 0.0]) - common)
    assert models(done)[1] == pytest.approx(alone.tolist(), abs=1e-7)
    together = run(cfl(5.0, 0.3, warmup=0, minimum=2), 2, federation=data, model=origin())
    assert together.membership["model"].tolist() == [0, 0, 0]


def with_momentum():
    server = ServerOptimizer(SGD(1.0, momentum=0.5))
    return replace(cfl(0.05, 0.2, warmup=10), combine=Combine(server=server))


def test_what_the_server_remembers_follows_the_split_models():
    data = points(SIX)
    done = Run(data, origin(), with_momentum(), Training(60, None, steps=2, optimizer=SGD(0.1)), execution=EXACT)
    while len(models(done)) == 1:
        done.step()
    memory, values = done.memory["model"]["0:model/weight"], done.server["model"].values["model/weight"]
    assert memory.shape[0] == len(done.memory["model"]["step"]) == 2
    assert torch.equal(memory[0], memory[1])
    assert torch.equal(values[0], values[1])
    assert memory[0].abs().max() > 0
    done.step()
    for row, members in ((0, (0, 1)), (1, (2, 3, 4, 5))):
        mean = torch.tensor([SIX[i] for i in members], dtype=torch.float64).mean(0)
        step = 0.5 * memory[row].squeeze() - 0.19 * (mean - values[row].squeeze())
        assert models(done)[row] == close((values[row].squeeze() - step).tolist())
    for _ in done.rounds():
        pass
    assert len(models(done)) == len(done.memory["model"]["step"]) == 3


def test_a_run_with_split_models_goes_on_from_a_snapshot():
    def fresh():
        return Run(
            points(SIX), origin(), with_momentum(), Training(50, None, steps=2, optimizer=SGD(0.1)), execution=EXACT
        )

    whole, broken = fresh(), fresh()
    for _ in range(40):
        broken.step()
    assert len(models(broken)) == 3
    again = fresh()
    restore(again, snapshot(broken))
    for done in (whole, again):
        for _ in done.rounds():
            pass
    assert models(again) == models(whole)
    assert again.history() == whole.history()


class Watching(Grouping):
    """Records the changes that it sees."""

    individual = True

    def __init__(self):
        self.seen = []

    def settle(self, kept, cohort):
        self.seen.append(cohort.changes)
        return kept


def test_changes_leave_running_statistics_out_and_are_in_the_order_of_the_cohort():
    def normed():
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    watching = Watching()
    run(Method(layout={"model": Clustered(1, watching)}), 1, **{**MINI, "federation": ragged(), "model": normed})
    assert watching.seen[0].shape == (7, 5 * 6 + 6 + 6 + 6 + 6 * 3 + 3)
    watching = Watching()
    run(Method(layout={"model": Clustered(1, watching)}), 1)
    assert watching.seen[0].flatten().tolist() == close([-0.19, 0.18, 1.92])


def test_an_unseen_client_of_cfl_joins_the_model_that_fits():
    done = run(cfl(0.05, 0.2), 80, federation=points(SIX), model=origin())
    newcomers = points(((-3.5, -2.0), (3.0, 1.0), (-3.0, 2.0)))
    guest = onboard(done, newcomers)
    assert guest.membership["model"].tolist() == [2, 0, 1]
    assert guest.predictors([0])["weight"].flatten().tolist() == models(done)[2]


def test_cfl_composes_with_a_split_model():
    done = run(cfl(5.0, 0.01, warmup=1) + fedrep(1, 3), 3, **{**MINI, "federation": ragged(), "steps": 3})
    assert len(done.server["model"].values["model/0.weight"]) > 1
    assert "model/2.weight" not in done.server["model"].values
    assert len(set(shared(done)["2.bias"][:, 0].tolist())) == 7


# Clusters by initial gradients -------------------------------------------------------------------------------------


@degenerate
@partial
@pytest.mark.oracle("IG0")
def test_one_gradient_cluster_is_fedavg(cohort):
    left, right = (
        shared(run(m, 5, federation=ragged(), participation=cohort, **MINI)) for m in (gradient_clusters(1), fedavg())
    )
    assert same(left, right)
    other = shared(run(gradient_clusters(3), 5, federation=ragged(), participation=cohort, **MINI))
    assert not same(other, right)


@pytest.mark.oracle("IG1")
def test_cosines_of_gradients_from_zero_are_those_of_the_optima():
    thetas = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    done = run(gradient_clusters(2), 0, federation=points(thetas.tolist(), (1.0, 3.0, 0.5, 2.0, 9.0)), model=origin(3))
    slopes = F.normalize(done.gradients([4, 0, 2, 3, 1]), dim=1)
    units = F.normalize(thetas[[4, 0, 2, 3, 1]], dim=1)
    torch.testing.assert_close(slopes @ slopes.T, units @ units.T, atol=1e-12, rtol=0)


@pytest.mark.oracle("IG2")
def test_the_clusters_of_the_example():
    units = F.normalize(EXAMPLE, dim=1)
    for draws in torch.rand(50, 2, generator=torch.Generator().manual_seed(0)):
        member, centroids = spherical_means(units, draws)
        assert member.tolist() == [0, 0, 1, 1]
        assert centroids.norm(dim=1).tolist() == close([1.0, 1.0])
    done = run(gradient_clusters(2), 110, federation=points(EXAMPLE.tolist()), model=origin())
    assert done.membership["model"].tolist() == [0, 0, 1, 1]
    assert models(done) == [close([0.9, 0.1]), close([-0.95, -0.05])]


@pytest.mark.oracle("IG3")
def test_the_scale_of_a_loss_moves_nobody():
    thetas = torch.randn(8, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64).tolist()
    plain, scaled = (
        run(gradient_clusters(3), 1, federation=points(thetas, curvatures), model=origin(3), lr=0.01)
        for curvatures in ([1.0] * 8, [1.0, 7.0, 0.01, 30.0, 2.0, 0.5, 11.0, 3.0])
    )
    assert plain.membership["model"].tolist() == scaled.membership["model"].tolist()
    assert len(set(plain.membership["model"].tolist())) == 3


def test_every_client_is_grouped_once_before_the_first_round():
    data, rest = points(SIX), Fixed([["a"], ["c", "e"]])
    done = run(gradient_clusters(3), 2, federation=data, model=origin(), participation=rest)
    assert done.membership["model"].tolist() == [0, 0, 1, 1, 2, 2]
    assert {moved for moved, *_ in done.history()} == {0}
    assert models(done) == [close([0.76, 0.0]), close([-0.76, 0.57]), close([-0.76, -0.57])]


def test_the_gradients_are_counted_as_uploads_of_the_first_round():
    done = Run(
        points(SIX), origin(), gradient_clusters(3), Training(2, None, steps=1, optimizer=SGD(0.1)), execution=EXACT
    )
    assert [done.step().bytes_up, done.step().bytes_up] == [6 * 16 + 6 * 16, 6 * 16]
    assert traffic(done.bound) == (16, 16)


@pytest.mark.parametrize("personal", [True, False])
def test_the_gradient_of_a_leaf_that_does_not_travel_stays_with_the_client(personal):
    done = Run(ragged(), mlp, gradient_clusters(2) + fedrep() if personal else gradient_clusters(2))
    heads = {path for path in done.bound.initial["model"] if "head" in done.bound.network.info[path].roles}
    assert heads
    given = done.clients.slopes([0, 1]).keys()
    assert given == done.bound.initial["model"].keys() - (heads if personal else set())
    assert done.gradients([0, 1]).shape[1] == sum(done.bound.initial["model"][path].numel() for path in given)


def test_a_share_that_does_not_say_that_it_asks_for_gradients_gets_none():
    class Silent(InitialGradients):
        probes = False

    with pytest.raises(PluresError, match="asks for gradients at the initial model and does not say so"):
        Run(ragged(), mlp, Method(layout={"model": Clustered(2, Silent(), same_start=True)})).step()


def test_clusters_by_gradients_need_a_leaf_that_travels():
    layout = {body: Clustered(2, InitialGradients(), same_start=True), "model": Personal()}
    with pytest.raises(PluresError, match="gradients of the leaves that travel, but no leaf of the model does"):
        Run(ragged(), mlp, Method(layout=layout, schedule=(Phase(train=(head,)),)))


def test_a_newcomer_is_measured_at_the_initial_model():
    """At the trained model its gradient points the other way."""
    done = run(gradient_clusters(2), 60, federation=points(EXAMPLE.tolist()), model=origin())
    newcomers = points(((0.5, 0.0), (-0.2, 0.0)))
    assert onboard(done, newcomers).membership["model"].tolist() == [0, 1]
    assert done.gradients([0])[0].tolist() == close((-EXAMPLE[0]).tolist())
    untrained = run(gradient_clusters(2), 0, federation=points(EXAMPLE.tolist()), model=origin())
    assert onboard(untrained, newcomers).membership["model"].tolist() == [0, 0]


def test_gradient_clusters_go_on_from_a_snapshot():
    options = {"federation": points(EXAMPLE.tolist()), "model": origin()}
    done = run(gradient_clusters(2), 3, **options)
    again = run(gradient_clusters(2), 0, **options)
    restore(again, snapshot(done))
    assert torch.equal(again.server["model"].extra["centroids"], done.server["model"].extra["centroids"])
    assert onboard(again, points(((-0.2, 0.0),))).membership["model"].tolist() == [1]


# IFCA and HypCluster -----------------------------------------------------------------------------------------------


def moved_by(margin, losses, membership, visited):
    """The membership after a choice among models with given losses, ``(models, clients)``."""
    losses = torch.tensor(losses, dtype=torch.float64)
    clients = torch.arange(losses.shape[1])
    kept = BlockState({"model/w": torch.zeros(len(losses), 1)}, {"membership": torch.tensor(membership)})
    cohort = Cohort(1, clients, Setting.of(quadratic()), torch.tensor(visited), lambda name, count: torch.zeros(count))
    probe = Probe(lambda some, rows: losses, lambda some: torch.zeros(0))
    return LowestLoss(margin).choose(kept, cohort, probe).extra["membership"].tolist()


def test_a_client_moves_only_for_a_gain_above_the_margin():
    losses = [[10.0, 10.0, 10.0], [9.5, 8.5, 9.5]]
    assert moved_by(0.0, losses, [0, 0, 0], [True, True, True]) == [1, 1, 1]
    assert moved_by(0.1, losses, [0, 0, 0], [True, True, True]) == [0, 1, 0]
    assert moved_by(0.1, losses, [0, 0, 0], [True, True, False]) == [0, 1, 1]
    assert moved_by(0.1, losses, [1, 1, 1], [True, True, True]) == [1, 1, 1]


def test_hysteresis_keeps_a_client_in_a_run():
    """Under the paper's rule client b follows the better model; with a margin it stays where it started."""
    data = quadratic((1.0, 1.0, 1.0), (-1.0, 0.34, 1.0), (10, 10, 10))
    free, held = (run(ifca(2, margin), 30, federation=data, model=starts(-0.5, 1.2)) for margin in (0.0, 0.5))
    assert free.membership["model"].tolist() == [0, 1, 1]
    assert held.membership["model"].tolist() == [0, 0, 1]
    assert [moved[1:] for moved in free.history()] == [("model", "c", 1), ("model", "b", 1)]
    assert 0 == free.history()[0][0] < free.history()[1][0]
    assert held.history() == [(0, "model", "c", 1)]


@degenerate
@partial
@pytest.mark.oracle("IF0")
def test_one_model_is_uniform_fedavg_with_a_margin_too(cohort):
    left, right = (
        shared(run(m, 5, federation=ragged(), participation=cohort, **MINI)) for m in (ifca(1, 0.2), fedavg("uniform"))
    )
    assert same(left, right)


@degenerate
@partial
@pytest.mark.oracle("HY0")
def test_one_hypothesis_is_fedavg(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    base = shared(run(fedavg(), 5, **options))
    assert same(shared(run(hypcluster(1, None), 5, **options)), base)
    assert not same(shared(run(hypcluster(1, 5), 5, **options)), base)
    assert not same(shared(run(hypcluster(2, None), 5, **options)), base)


@degenerate
def test_a_long_phase_is_so_many_passes():
    long, plain = (run(m, 3, steps=s) for m, s in ((hypcluster(1, 5), 2), (fedavg(), 5)))
    assert weight(long) == weight(plain)


@pytest.mark.oracle("HY0")
def test_hypotheses_are_weighted_by_examples_and_a_new_client_chooses_on_its_own_labels():
    done = run(hypcluster(2, None), 3, model=starts(-1.0, 2.0))
    assert done.membership["model"].tolist() == [0, 0, 1]
    assert models(done) == pytest.approx([-0.214476, 2.953344], abs=1e-6)
    assert run(ifca(2), 3, model=starts(-1.0, 2.0)).membership["model"].tolist() == [0, 0, 1]
    assert models(run(ifca(2), 3, model=starts(-1.0, 2.0)))[0] != pytest.approx(-0.214476, abs=1e-3)
    guest = onboard(done, quadratic((1.0, 3.0), (2.2, -0.4), (5, 5), names=("x", "y")))
    assert guest.membership["model"].tolist() == [1, 0]
    assert predictions(guest) == models(done)[::-1]


# Clusters by metadata ----------------------------------------------------------------------------------------------


def grouped(*groups, data=None):
    return replace(data or points(SIX), metadata={"group": groups})


@partial
def test_every_group_is_a_federation_of_its_own(cohort):
    data = replace(ragged(), metadata={"group": ("x", "y", "x", "y", "x", "x", "y")})
    done = run(metadata_clusters(), 5, federation=data, participation=cohort, **MINI)
    if cohort is None:
        for members in (["0", "2", "4", "5"], ["1", "3", "6"]):
            alone = run(fedavg(), 5, federation=data.subset(members), **MINI)
            together = done.states([data.index(name) for name in members])["model"]
            for path, expected in shared(alone).items():
                torch.testing.assert_close(together[path], expected, atol=1e-12, rtol=0)
    one = run(
        metadata_clusters(), 5, federation=replace(data, metadata={"group": ("x",) * 7}), participation=cohort, **MINI
    )
    base = shared(run(fedavg(), 5, federation=data, participation=cohort, **MINI))
    assert same(shared(one), base)
    assert not same(shared(done), base)


def test_a_newcomer_joins_its_group_by_value_and_an_unknown_value_by_loss():
    for groups, new in ((("s", "s", "t", "t", "u", "u"), ("u", "t", "w")), ((9, 9, 10, 10, 11, 11), (11, 10, 8))):
        done = run(metadata_clusters(), 40, federation=grouped(*groups), model=origin())
        names = [str(v) for v in sorted(map(str, set(groups)))]
        newcomers = grouped(*new, data=points(((4.0, 0.0), (4.0, 0.0), (-4.0, -3.0))))
        guest = onboard(done, newcomers)
        expected = [names.index(str(new[0])), names.index(str(new[1])), names.index(str(groups[-1]))]
        assert guest.membership["model"].tolist() == expected


def test_an_unknown_column_is_named():
    with pytest.raises(PluresError, match="no metadata column 'site' to group clients by; columns are group"):
        run(metadata_clusters("site"), 1, federation=grouped(*"aabbcc"), model=origin())


# MAPPER ---------------------------------------------------------------------------------------------------------


def outputs(done, split="test"):
    """What every client's predictor gives for the same examples, classes as logarithms of probabilities."""
    federation, clients = done.federation, list(range(len(done.federation)))
    inputs = federation.inputs[federation.splits[split].rows[:30]]
    made = done.engine.forward(done.deployed(clients), inputs.expand(len(clients), *inputs.shape))
    return F.log_softmax(made, -1) if federation.task.kind == "classification" else made


@partial
@pytest.mark.parametrize("residual", [0.0, 0.5])
@pytest.mark.oracle("MA0")
def test_mapper_between_the_shared_and_the_local_model(cohort, residual):
    for data, model in ((ragged(), mlp), (linear(), regressor)):
        options = {"federation": data, "participation": cohort, **MINI, "model": model, "lr": 0.05}
        for lam, other in ((0.0, fedavg()), (1.0, local())):
            if lam == 0.0 and residual:
                continue
            left, right = outputs(run(mapper(lam, residual), 5, **options)), outputs(run(other, 5, **options))
            torch.testing.assert_close(left, right, atol=1e-12, rtol=0)
            between = outputs(run(mapper(0.5, residual), 5, **options))
            assert (between - right).abs().max() > 1e-3
    assert torch.equal(left, right)


@pytest.mark.oracle("MA0")
def test_mapper_with_clusters_mixes_with_the_model_of_the_cluster():
    data = replace(linear(), metadata={"group": ("x", "y", "x", "y")})
    options = {"federation": data, "model": regressor, "steps": 4, "batch_size": 8}
    left, right = (outputs(run(m, 4, **options)) for m in (mapper(0.0) + metadata_clusters(), metadata_clusters()))
    assert torch.equal(left, right)
    assert not torch.equal(right, outputs(run(fedavg(), 4, **options)))


@pytest.mark.oracle("MA1")
def test_the_weight_of_squared_loss_in_closed_form():
    done = run(mapper(), 12, federation=linear(), model=regressor, batch_size=8)
    state, data, expected = done.deployed(list(range(4))), done.federation, []
    for i, rows in enumerate(data.splits["validation"]):
        each = [
            data.inputs[rows] @ state[slot]["weight"][i].T + state[slot]["bias"][i] for slot in ("personal", "model")
        ]
        step, rest = each[0] - each[1], data.targets[rows] - each[1]
        expected.append(min(1.0, max(0.0, float((rest * step).sum() / (step * step).sum()))))
    assert state["lam"]["lam"].tolist() == close(expected)
    assert any(0.01 < lam < 0.99 for lam in expected)
    grid = [mapper(lam) for lam in (0.0, 0.25, 0.5, 0.75, 1.0)]
    own = validation_losses(done)
    for other in grid:
        assert (
            own <= validation_losses(run(other, 12, federation=linear(), model=regressor, batch_size=8)) + 1e-12
        ).all()


def validation_losses(done):
    """Squared error of every client's predictor on its validation data."""
    losses = []
    for i, rows in enumerate(done.federation.splits["validation"]):
        made = done.engine.forward(done.deployed([i]), done.federation.inputs[rows].unsqueeze(0))[0]
        losses.append((made - done.federation.targets[rows]).square().sum(1).mean())
    return torch.stack(losses)


@pytest.mark.oracle("MA1")
def test_the_weight_of_two_scalars_is_clipped():
    """With one example there is one number: ``(b - w) / (v - w)``, clipped."""
    done = run(mapper(), 3, steps=1)
    local_models, w = done.states([0, 1, 2])["personal"]["weight"].flatten().tolist(), weight(done)
    optima = (-1.0, 0.5, 3.0)
    expected = [min(1.0, max(0.0, (b - w) / (v - w))) for b, v in zip(optima, local_models, strict=True)]
    assert done.deployed([0, 1, 2])["lam"]["lam"].tolist() == close(expected)
    assert set(expected) == {1.0, expected[1]}
    assert 0 < expected[1] < 1


def test_the_weight_of_classes_is_the_best_of_the_grid():
    generator = np.random.default_rng(3)
    x = generator.normal(size=(7 * 30, 5))
    labels = (x @ generator.normal(size=(5, 3)) + 2 * generator.normal(size=(210, 3))).argmax(1)
    data = from_arrays(x, labels, np.arange(210) % 7, seed=1, dtype=torch.float64)
    done = run(mapper(), 15, federation=data, **MINI)
    state, data, chosen = done.deployed(list(range(7))), done.federation, []
    for i, rows in enumerate(data.splits["validation"]):
        each = [
            F.softmax(
                torch.func.functional_call(
                    mlp().double(), {k: t[i] for k, t in state[slot].items()}, data.inputs[rows]
                ),
                1,
            )
            for slot in ("personal", "model")
        ]
        truth = [p[torch.arange(len(rows)), data.targets[rows]] for p in each]
        losses = [-(k / 10 * truth[0] + (1 - k / 10) * truth[1]).log().mean() for k in range(11)]
        chosen.append(int(torch.stack(losses).argmin()) / 10)
    assert state["lam"]["lam"].tolist() == pytest.approx(chosen, abs=1e-6)
    assert len(set(chosen)) > 1


def test_the_residual_objective_by_hand():
    done = run(mapper(residual=0.5), 1, steps=1)
    a, b, n = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-1.0, 0.5, 3.0]), torch.tensor([1 / 6, 1 / 3, 1 / 2])
    v = 0.1 * a * b
    assert done.states([0, 1, 2])["personal"]["weight"].flatten().tolist() == pytest.approx(v.tolist(), abs=1e-7)
    assert weight(done) == pytest.approx(float((n * -0.1 * a * 0.5 * (0.5 * v - b)).sum()), abs=1e-7)


def test_without_validation_data_mapper_predicts_with_the_shared_model():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3))
    data = from_arrays(x, x[:, 0], np.arange(60) % 3, split=SplitRule(0.0, 0.25), dtype=torch.float64)
    done = run(mapper(), 3, federation=data, model=regressor, batch_size=8)
    assert done.deployed([0, 1, 2])["lam"]["lam"].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(score(done, "validation").values["rmse"]).all()
    plain = outputs(run(fedavg(), 3, federation=data, model=regressor, batch_size=8))
    torch.testing.assert_close(outputs(done), plain, atol=1e-12, rtol=0)


def test_an_unseen_client_of_mapper_trains_its_model_and_chooses_its_weight():
    done, newcomer = run(mapper(visits=2), 3), quadratic((2.0,), (9.0,), (5,), names=("z",))
    w = v = weight(done)
    start = onboard(done, newcomer, visits=0).deployed([0])
    assert (start["personal"]["weight"].item(), start["lam"]["lam"].item()) == (w, 0.0)
    for _ in range(4):
        v -= 0.1 * 2.0 * (v - 9.0)
    guest = onboard(done, newcomer)
    assert guest.deployed([0])["personal"]["weight"].item() == close(v)
    assert guest.deployed([0])["lam"]["lam"].item() == 1.0
    assert weight(guest) == w


# DAPPER and public data ---------------------------------------------------------------------------------------------


def test_a_donation_moves_training_rows_to_the_public():
    data = ragged()
    given = data.donate(0.25, seed=3)
    before, after = data.splits["train"], given.splits["train"]
    assert (before.sizes - after.sizes).tolist() == [round(0.25 * n) for n in before.sizes.tolist()]
    for i in range(len(data)):
        mine = set(before[i].tolist())
        assert set(after[i].tolist()) < mine
        assert mine - set(after[i].tolist()) == mine & set(given.public.tolist())
    assert len(given.public) == len(set(given.public.tolist())) == int((before.sizes - after.sizes).sum())
    assert all(torch.equal(given.splits[s].rows, data.splits[s].rows) for s in ("validation", "test"))
    assert torch.equal(given.public, data.donate(0.25, seed=3).public)
    assert not torch.equal(given.public, data.donate(0.25, seed=4).public)
    few = data.subset(["1", "4"]).donate(0.25, seed=3)
    assert set(few.public.tolist()) == {r for r in given.public.tolist() if r in set(few.public.tolist())}
    assert len(given.donate(0.25).public) > len(given.public)
    assert given.to("cpu", torch.float32).public.equal(given.public)
    assert len(data.public) == 0


def test_bad_donations():
    with pytest.raises(PluresError, match=r"share=1\.0: the share of training rows to donate must lie"):
        ragged().donate(1.0)
    with pytest.raises(PluresError, match="no client has enough training rows"):
        points(((1.0,), (2.0,)), sizes=[1, 1]).donate(0.5)
    broken = ragged()
    broken.inputs[5] = float("nan")
    with pytest.raises(PluresError, match=r"public row 5: a NaN"):
        replace(
            broken,
            splits={s: Split.of([t[t != 5] for t in split]) for s, split in broken.splits.items()},
            public=torch.tensor([2, 5]),
        )


def test_dapper_needs_public_data():
    with pytest.raises(PluresError, match=r"this federation has none: let clients give some with federation\.donate"):
        run(dapper(), 1)


@degenerate
@partial
@pytest.mark.parametrize("batch", [5, None])
@pytest.mark.oracle("DA0")
def test_dapper_with_own_data_alone_is_local_training(cohort, batch):
    options = {"federation": ragged().donate(0.2), "participation": cohort, **MINI}
    base = predictors(run(local(), 5, **options))
    assert same(predictors(run(dapper(1.0, batch), 5, **options)), base)
    assert not same(predictors(run(dapper(0.5, batch), 5, **options)), base)


@pytest.mark.oracle("DA0")
def test_dapper_with_public_data_alone_is_the_model_of_the_public_sample():
    data = ragged().donate(0.2)
    server = replace(data.subset(["0"]), splits=dict.fromkeys(SPLITS, Split.of([data.public])))
    done = predictors(run(dapper(0.0, None), 5, federation=data, **MINI))
    alone = predictors(run(local(), 5, federation=server, **{**MINI, "batch_size": None}))
    for path, expected in alone.items():
        torch.testing.assert_close(done[path], expected.expand_as(done[path]), atol=1e-12, rtol=0)


def means(lam):
    """DAPPER's limit, and the means of each client's and the public data."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(8, 1, generator=generator, dtype=torch.float64) + shift for shift in (-2.0, 0.0, 5.0)]
    data = points([(0.0,)] * 3, values=values).donate(0.25)
    done = run(dapper(lam, None), 110, federation=data, model=scalar())
    targets = data.targets * 2**0.5
    return (
        predictions(done),
        [float(targets[r].mean()) for r in data.splits["train"]],
        float(targets[data.public].mean()),
    )


@degenerate
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.oracle("DA1")
def test_mean_estimation_mixes_the_means(lam):
    found, own, public = means(lam)
    assert found == close([lam * mean + (1 - lam) * public for mean in own])


def test_public_batches_are_drawn_from_the_public_sample_alone():
    """With one step from zero, the model shows the sum of the inputs that were drawn."""
    values = [torch.full((6, 1), v, dtype=torch.float64) for v in (1.0, 1.0)]
    data = points([(0.0,)] * 2, values=values).donate(0.5)
    data.targets[data.public] = torch.arange(len(data.public), dtype=torch.float64).view(-1, 1) * 0.5**0.5
    steps = {
        round(10 * predictions(run(dapper(0.0, 1), 1, federation=data, steps=1, seed=seed))[0], 6) for seed in range(60)
    }
    assert steps == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}


def test_an_unseen_client_of_dapper_trains_on_the_public_sample_of_the_run():
    data = points(((1.0,), (3.0,)), sizes=[8, 8]).donate(0.25)
    done = run(dapper(0.5, None, visits=60), 5, federation=data)
    assert traffic(done.bound) == (0, 0)
    guest = onboard(done, points(((10.0,),)))
    assert predictions(guest) == pytest.approx([6.0], abs=1e-4)


# FedEM ----------------------------------------------------------------------------------------------------------


@degenerate
@partial
@pytest.mark.oracle("EM0")
def test_one_component_is_fedavg(cohort):
    for data, model in ((ragged(), mlp), (linear(), regressor)):
        options = {"federation": data, "participation": cohort, **MINI, "model": model}
        left, right = run(fedem(1), 5, **options), run(fedavg(), 5, **options)
        assert same(shared(left), shared(right))
        torch.testing.assert_close(outputs(left), outputs(right), atol=1e-12, rtol=0)
        assert not same(shared(run(fedem(2), 5, **options)), shared(right))


VALUES = ((-1.2, -0.8, 2.1), (1.9, 2.2, 2.0, -1.0))


def scattered():
    """Two clients with scalars; the loss of a component ``w`` is ``(y - w)^2``."""
    values = [torch.tensor(v, dtype=torch.float64).view(-1, 1) for v in VALUES]
    return points([(0.0,)] * 2, [2.0, 2.0], values=values)


def em(pis, models, values):
    """Responsibilities ``(n, M)``."""
    losses = (torch.tensor(values, dtype=torch.float64).view(-1, 1) - models) ** 2
    joint = pis * torch.exp(-losses)
    return joint / joint.sum(1, keepdim=True)


@pytest.mark.oracle("EM1")
def test_both_steps_by_hand():
    models = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    pis = [torch.tensor([0.5, 0.5], dtype=torch.float64)] * 2
    for rounds in (1, 2, 3):
        q = [em(pi, models, v) for pi, v in zip(pis, VALUES, strict=True)]
        slopes = [
            (qi * 2 * (models - torch.tensor(v, dtype=torch.float64).view(-1, 1))).mean(0)
            for qi, v in zip(q, VALUES, strict=True)
        ]
        pis = [qi.mean(0) for qi in q]
        models = models - 0.1 * (3 * slopes[0] + 4 * slopes[1]) / 7
        done = run(fedem(2), rounds, federation=scattered(), model=starts(-1.0, 2.0), steps=1)
        state = done.states([0, 1])
        assert [weight(done), weight(done, "component1")] == close(models.tolist())
        torch.testing.assert_close(state["pi"]["pi"], torch.stack(pis), atol=1e-12, rtol=0)
        assert outputs(done)[:, 0, 0].tolist() == close([float((pi * models).sum()) for pi in pis])


def test_several_local_steps_keep_the_responsibilities_of_the_received_components():
    models = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    made = []
    for values in VALUES:
        y, own = torch.tensor(values, dtype=torch.float64).view(-1, 1), models.clone()
        q = em(torch.tensor([0.5, 0.5], dtype=torch.float64), models, values)
        for _ in range(3):
            own = own - 0.1 * (q * 2 * (own - y)).mean(0)
        made.append(own)
    expected = (3 * made[0] + 4 * made[1]) / 7
    done = run(fedem(2), 1, federation=scattered(), model=starts(-1.0, 2.0), steps=3)
    assert [weight(done), weight(done, "component1")] == close(expected.tolist())


@pytest.mark.oracle("EM1")
def test_a_mixture_of_two_lines_is_recovered():
    generator = np.random.default_rng(1)
    shares = (0.1, 0.3, 0.5, 0.7, 0.9, 0.2)
    client = np.repeat(np.arange(6), 80)
    which = np.concatenate([generator.permutation(np.arange(80) < 80 * share) for share in shares])
    x = generator.uniform(2, 6, size=480) * generator.choice([-1, 1], size=480)
    y = np.where(which, 2.0, -1.0) * x + 0.5**0.5 * generator.normal(size=480)
    data = from_arrays(x[:, None], y, client, dtype=torch.float64)
    done = run(fedem(2), 40, federation=data, model=starts(0.5, 0.0), lr=0.02, steps=5)
    assert [weight(done), weight(done, "component1")] == pytest.approx([2.0, -1.0], abs=0.03)
    first = (data.targets - 2 * data.inputs).abs() < (data.targets + data.inputs).abs()
    fractions = [float(first[rows].double().mean()) for rows in data.splits["train"]]
    assert done.states(list(range(6)))["pi"]["pi"][:, 0].tolist() == pytest.approx(fractions, abs=1e-3)


def likelihood(done):
    """Mean over all training examples of minus the logarithm of the mixture's likelihood."""
    total, data = 0.0, done.federation
    for i, rows in enumerate(data.splits["train"]):
        made = done.engine.forward(done.deployed([i]), data.inputs[rows].unsqueeze(0))[0]
        total += float(F.nll_loss(made, data.targets[rows], reduction="sum"))
    return total / int(data.splits["train"].sizes.sum())


def test_the_likelihood_never_falls_with_full_batches():
    done = Run(ragged(), mlp, fedem(3), Training(25, None, steps=1, optimizer=SGD(0.2)), execution=EXACT)
    curve = [likelihood(done)]
    for _ in done.rounds():
        curve.append(likelihood(done))
    assert all(after < before for before, after in pairwise(curve))
    assert curve[-1] < curve[0] - 0.05


def test_predictions_are_the_mixture_of_probabilities():
    done = run(fedem(2), 3, federation=ragged(), **MINI)
    states, inputs = done.states([0, 3]), done.federation.inputs[done.federation.splits["test"].rows[:30]]
    for place, client in enumerate((0, 3)):
        each = [
            F.softmax(
                torch.func.functional_call(mlp().double(), {k: t[place] for k, t in states[slot].items()}, inputs), 1
            )
            for slot in ("model", "component1")
        ]
        pi = states["pi"]["pi"][place]
        expected = pi[0] * each[0] + pi[1] * each[1]
        torch.testing.assert_close(outputs(done)[client].exp(), expected, atol=1e-12, rtol=0)


def test_an_absent_client_keeps_even_weights_and_an_unseen_one_finds_its_own():
    done = run(fedem(2, visits=3), 5, federation=scattered(), model=starts(-1.0, 2.0), participation=Fixed([["a"]]))
    assert done.states([1])["pi"]["pi"][0].tolist() == [0.5, 0.5]
    components = torch.tensor([weight(done), weight(done, "component1")], dtype=torch.float64)
    newcomer, pi = (2.0, 1.8, -0.5), torch.tensor([0.5, 0.5], dtype=torch.float64)
    for _ in range(3):
        pi = em(pi, components, newcomer).mean(0)
    values = [torch.tensor(newcomer, dtype=torch.float64).view(-1, 1)]
    guest = onboard(done, points([(0.0,)], [2.0], values=values))
    assert guest.states([0])["pi"]["pi"][0].tolist() == close(pi.tolist())
    assert [weight(guest), weight(guest, "component1")] == components.tolist()


def test_every_component_has_running_statistics_of_its_own():
    def normed():
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    done = run(fedem(2), 2, federation=ragged(), **{**MINI, "model": normed})
    states = done.states([0])
    first, second = (states[slot]["1.running_mean"] for slot in ("model", "component1"))
    assert first.abs().min() > 0
    assert second.abs().min() > 0
    assert not torch.equal(first, second)
    assert states["component1"]["1.num_batches_tracked"].item() == 8


# All of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: cfl(5.0, 0.01, warmup=0),
        lambda: gradient_clusters(3),
        lambda: ifca(2, 0.05),
        lambda: hypcluster(2, 1),
        mapper,
        lambda: mapper(0.3, 0.5),
        dapper,
        fedem,
    ],
    ids=["cfl", "gradient_clusters", "ifca", "hypcluster", "mapper", "mapper residual", "dapper", "fedem"],
)
def test_one_client_at_a_time_gives_what_a_stack_gives(make):
    data = ragged().donate(0.2)
    stacked, alone = (
        outputs(run(make(), 3, federation=data, execution=e, participation=Uniform(0.7), **MINI)) for e in (EXACT, LOOP)
    )
    torch.testing.assert_close(stacked, alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cfl(eps1=-1.0), "splitting: eps1=-1.0"),
        (lambda: cfl(gamma=2.0), "gamma lies in"),
        (lambda: cfl(minimum=0), "minimum is at least 1"),
        (lambda: gradient_clusters(0), "clusters=0: give at least 1"),
        (lambda: hypcluster(epochs=0), "hypcluster: epochs=0 must be positive"),
        (lambda: mapper(1.5), r"mapper: lam=1.5 must lie in \[0, 1\]"),
        (lambda: mapper(residual=1.0), r"mapper: residual=1.0 must lie in \[0, 1\)"),
        (lambda: dapper(-0.5), r"dapper: lam=-0.5 must lie in \[0, 1\]"),
        (lambda: dapper(public_batch=0), "dapper: public_batch=0 must be positive"),
        (lambda: fedem(0), "fedem: components=0; give at least 1"),
    ],
)
def test_impossible_parameters(make, message):
    with pytest.raises(PluresError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cfl(eps2=float("inf")), "cfl with eps2=inf never splits: it is fedavg"),
        (lambda: gradient_clusters(1), "gradient_clusters with clusters=1 is fedavg"),
        (lambda: hypcluster(1), "hypcluster with clusters=1 is fedavg"),
        (lambda: dapper(1.0), "dapper with lam=1 is local training"),
        (lambda: fedem(1), "fedem with components=1 is fedavg"),
    ],
)
def test_degenerate_settings_say_what_they_amount_to(make, message):
    with pytest.warns(PluresWarning, match=message):
        make()
