"""Models of every client at the server: mixing, selection, views of others; memories next to a global model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plures import PluresError
from plures.evaluate import score
from plures.federation import Federation, Split
from plures.method import SGD, By, Clustered, Look, Method, Mixed, Setting, View, everything
from plures.methods import fedavg, fedper, local
from plures.methods.apple import apple
from plures.methods.fedala import fedala
from plures.methods.fedamp import fedamp
from plures.methods.fedfomo import fedfomo
from plures.methods.knnper import knnper
from plures.models import with_roles
from plures.run import Execution, Fixed, Run, Training, Uniform, onboard
from plures.run.checkpoint import resume, save
from plures.run.cost import traffic
from plures.run.states import working
from plures.tasks import Classification, Regression
from problems import CURVATURES as A
from problems import (
    EXACT,
    BodyHead,
    at_rest,
    close,
    personal,
    predictions,
    predictors,
    quadratic,
    run,
    scalar,
    shared,
    weight,
)
from problems import OPTIMA as B
from problems import SIZES as N
from shifted import mlp, ragged

exact = lambda value: pytest.approx(value, abs=1e-14)  # noqa: E731
partial = pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
MINI = {"steps": 4, "batch_size": 8, "model": mlp}
LOOP = Execution("loop", 2, False, "float64")
P = [n / sum(N) for n in N]


def alike(left, right, tolerance=0.0):
    assert left.keys() == right.keys()
    for path in left:
        if tolerance:
            torch.testing.assert_close(left[path], right[path], atol=tolerance, rtol=0)
        else:
            assert torch.equal(left[path], right[path]), path


def differ(left, right):
    return any(not torch.allclose(left[path], right[path], atol=1e-6) for path in left)


def grouped(data, groups=("x", "x", "y")):
    return replace(data, metadata={"group": tuple(groups[i % len(groups)] for i in range(len(data)))})


def step(w, a, b, lr=0.1, pull=0.0, anchor=0.0):
    return w - lr * (a * (w - b) + pull * (w - anchor))


def newcomer(curvature=2.0, optimum=9.0, name="z"):
    return quadratic((curvature,), (optimum,), (5,), names=(name,))


# Mixed ----------------------------------------------------------------------------------------------------------


def identity(models, cohort):
    return torch.eye(len(models))


def equal_rows(models, cohort):
    sizes = cohort.setting.fact("examples").to(models)
    return (sizes / sizes.sum()).expand(len(models), -1)


def in_blocks(models, cohort):
    groups, _ = cohort.setting.groups("group")
    same = (groups[:, None] == groups) * cohort.setting.fact("examples").to(models)
    return same / same.sum(1, keepdim=True)


def mixed(matrix=None):
    return Method(layout={"model": Mixed(matrix)})


@pytest.mark.oracle("edge:mixed(I)=local")
@pytest.mark.parametrize("matrix", [None, identity])
@partial
def test_the_identity_mixes_nothing(cohort, matrix):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    alike(shared(run(mixed(matrix), 5, **options)), shared(run(local(), 5, **options)))


@pytest.mark.oracle("edge:mixed(1p)=fedavg")
def test_equal_rows_are_fedavg():
    for rounds in (1, 2, 3):
        assert predictions(run(mixed(equal_rows), rounds)) == exact([weight(run(fedavg(), rounds))] * 3)
    options = {"federation": ragged(), **MINI}
    alike(shared(run(mixed(equal_rows), 5, **options)), shared(run(fedavg(), 5, **options)), 1e-14)


@pytest.mark.oracle("edge:mixed(blocks)=clusters")
def test_blocks_are_clusters():
    clusters = Method(layout={"model": Clustered(grouping=By("group"), same_start=True)})
    for rounds in (1, 3):
        left, right = (
            predictions(run(m, rounds, federation=grouped(quadratic()))) for m in (mixed(in_blocks), clusters)
        )
        assert left == exact(right)
    options = {"federation": grouped(ragged()), **MINI}
    alike(shared(run(mixed(in_blocks), 5, **options)), shared(run(clusters, 5, **options)), 1e-14)


def test_a_matrix_that_changes_with_time_is_a_hierarchy():
    def edges_then_cloud(models, cohort):
        return (equal_rows if cohort.round % 2 else in_blocks)(models, cohort)

    done = [predictions(run(mixed(edges_then_cloud), r, federation=grouped(quadratic()))) for r in (1, 2, 4)]
    assert done[0] == exact([(-0.19 + 2 * 0.18) / 3] * 2 + [1.92])
    assert done[1] == close([1.3536722222] * 3)
    assert done[2] == close([1.7698888285] * 3)


def test_those_absent_keep_their_model_and_it_counts():
    done = run(mixed(equal_rows), 2, participation=Fixed([["a", "b"], ["b", "c"]]))
    first = P[0] * -0.19 + P[1] * 0.18 + P[2] * 0.0
    b, c = step(step(first, 2.0, 0.5), 2.0, 0.5), 1.92
    second = P[0] * first + P[1] * b + P[2] * c
    assert predictions(done) == exact([first, second, second])


def test_an_unseen_client_starts_from_the_mean_of_those_that_took_part():
    done = run(mixed(), 2, participation=Fixed([["a", "b"]]))
    a, b, _ = predictions(done)
    assert predictions(onboard(done, newcomer(), visits=0)) == exact([(a + b) / 2])
    assert predictions(onboard(done, newcomer(), visits=1)) == exact([step(step((a + b) / 2, 2.0, 9.0), 2.0, 9.0)])
    assert predictions(onboard(run(mixed(), 0, model=scalar(0.7)), newcomer(), visits=0)) == [
        personal(run(local(), 0, model=scalar(0.7)), "model")[0]
    ]


def test_without_mixing_nothing_comes_down():
    assert traffic(run(mixed(), 1).bound) == (8, 0)
    assert traffic(run(mixed(equal_rows), 1).bound) == (8, 8)


# Views ----------------------------------------------------------------------------------------------------------


def test_a_view_shows_combinations_of_the_others_models_and_whose_they_are():
    def choose(look):
        others = torch.arange(len(look.population)).roll(-1)[look.clients]
        mean = torch.full((len(look.clients), 3), 1 / 3, dtype=torch.float64)
        return torch.stack([nn.functional.one_hot(others, 3).to(mean), mean], 1)

    method = Method(layout={"model": Mixed(), "seen": View("model", choose, 2), "whose": View(None, choose, 2)})
    done = run(method, 1)
    own = predictions(done)
    states = done.states([0, 1, 2])
    assert states["seen"]["weight"][:, 0].flatten().tolist() == exact([own[1], own[2], own[0]])
    assert states["seen"]["weight"][:, 1].flatten().tolist() == exact([sum(own) / 3] * 3)
    assert states["whose"]["weights"].shape == (3, 2, 3)
    assert traffic(done.bound) == (8, 8 * 2 + 8 * 2 * 3)


def test_a_view_of_a_model_in_parts_shows_what_leaves_the_clients_beside_what_is_the_clients_own():
    def next_one(look):
        return nn.functional.one_hot((look.clients + 1) % 3, 3)[:, None]

    split = {"model": Mixed(), "seen": View("model", next_one, 1)}
    done = run(replace(fedper(), layout={**fedper().layout, **split}), 1, model=BodyHead, lr=0.05)
    states = done.states([0, 1, 2])
    u, h = (states["model"][path].flatten() for path in ("u.weight", "h.weight"))
    assert torch.equal(states["seen"]["u.weight"].flatten(), u.roll(-1))
    assert torch.equal(states["seen"]["h.weight"].flatten(), h)
    assert len(set(u.tolist())) == len(set(h.tolist())) == 3


# FedFomo --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("FF0")
@degenerate
@pytest.mark.parametrize("steps", [1, 2, 5])
@partial
def test_ff0_with_itself_as_the_only_candidate_fedfomo_is_local_training(cohort, steps):
    options = {"participation": cohort, "steps": steps}
    alike(predictors(run(fedfomo(0), 6, **options)), predictors(run(local(), 6, **options)), 1e-12)


@pytest.mark.oracle("FF0")
@degenerate
def test_ff0_a_visit_that_raises_the_validation_loss_is_taken_back():
    """With a learning rate of 0.6, |1 - 0.6 a| is 0.4, 0.2 and 1.4: the third client moves away from its optimum."""
    done = run(fedfomo(0), 3, lr=0.6, steps=1)
    alone = predictions(run(local(), 3, lr=0.6, steps=1))
    assert predictions(done) == exact([alone[0], alone[1], 0.0])


@pytest.mark.oracle("FF1")
def test_ff1_the_first_round_by_hand():
    done = run(fedfomo(), 1)
    assert personal(done, "model") == exact([-0.19, 0.18, 1.92])
    assert predictions(done) == close([-0.19, 0.18, 0.8970909091])
    clients, adapt = [2, 1, 0], done.method.predictor.adapt
    received = done.states(clients)
    x = working(received, done.bound.written_by(adapt))
    done.engine.visit(x, received, clients, 1, adapt)
    rows = x["affinity"]["affinity"][[2, 1, 0]]
    assert rows.clamp(min=0).tolist() == [close([0, 0, 0]), close([0, 0, 0]), close([0, 11.64, 0])]
    assert rows[2, 0] == close((18 - 2 * 3.19**2) / 0.19)
    own = [(a / 2 * b**2 - a / 2 * (w - b) ** 2) / abs(w) for a, b, w in zip(A, B, (-0.19, 0.18, 1.92), strict=True)]
    assert own == close([0.905, 0.82, 8.16])
    assert predictions(done)[2] == close((11.64 * 0.18 + own[2] * 1.92) / (11.64 + own[2]))


def test_fedfomo_trains_from_the_combination():
    two = run(fedfomo(), 2)
    c = (11.64 * 0.18 + 8.16 * 1.92) / 19.8
    trained = [step(step(w, a, b), a, b) for w, a, b in zip((-0.19, 0.18, c), A, B, strict=True)]
    assert personal(two, "model") == close(trained)
    assert personal(two, "previous") == close([-0.19, 0.18, c])


def crossed():
    """Q3 in which client a is validated on the examples of c."""
    data = quadratic()
    rows = list(data.splits["validation"])
    return replace(data, splits={**data.splits, "validation": Split.of([rows[2], rows[1], rows[2]])})


@pytest.mark.oracle("FF2")
def test_ff2_candidates_are_judged_on_the_fixed_validation_split():
    done = run(fedfomo(), 1, federation=crossed())
    gains = [(18 - 2 * (w - 3) ** 2) / w for w in (0.18, 1.92)]
    expected = (gains[0] * 0.18 + gains[1] * 1.92) / sum(gains)
    assert predictions(done)[0] == close(expected)
    assert predictions(done) == predictions(done)
    mini = run(fedfomo(), 2, federation=ragged(), **MINI)
    alike(predictors(mini), predictors(mini))


def test_fedfomo_without_validation_examples_keeps_its_own_model():
    data = quadratic()
    blind = replace(data, splits={**data.splits, "validation": Split.of([torch.empty(0, dtype=torch.int64)] * 3)})
    assert predictions(run(fedfomo(), 3, federation=blind)) == close(predictions(run(local(), 3, federation=blind)))


def test_a_client_whose_training_diverged_does_no_harm_to_the_others():
    done = run(fedfomo(), 3, federation=quadratic((1.0, 2.0, 1e155)), steps=5)
    assert not math.isfinite(personal(done, "model")[2])
    assert predictions(done)[:2] == close(
        predictions(run(fedfomo(), 3, federation=quadratic().subset(["a", "b"]), steps=5))
    )


def choices(models, epsilon, affinity, order, explore=1.0, clients=(0,), round=0):
    """The models that clients are sent, given the affinities and the uniform numbers."""
    view = fedfomo(models, epsilon).layout["whose"]
    setting = Setting.of(quadratic((1.0,) * 5, (0.0,) * 5, (2,) * 5))
    draws = {"order": torch.tensor([order] * len(clients)), "explore": torch.full((len(clients), 5), explore)}
    states = {"affinity": {"affinity": torch.tensor([affinity] * len(clients))}}
    look = Look(torch.tensor(clients), {}, states, setting, round, draws.__getitem__)
    return view.weights(look).argmax(-1).tolist()


def test_fedfomo_is_sent_the_models_with_the_largest_affinity_and_explores():
    affinity, order = [9.0, -1.0, 0.0, 3.0, 0.0], [0.0, 0.1, 0.4, 0.3, 0.2]
    assert choices(2, 0.0, affinity, order) == [[3, 4]]
    assert choices(4, 0.0, affinity, order) == [[3, 4, 2, 1]]
    assert choices(2, 0.3, affinity, order, explore=0.2) == [[1, 4]]
    assert choices(2, 0.3, affinity, order, explore=0.2, round=2) == [[3, 4]]
    assert choices(2, 0.0, affinity, order, clients=(3, -1)) == [[0, 4], [0, 3]]
    assert choices(9, 1.0, affinity, order, explore=0.0, clients=(4,)) == [[0, 1, 3, 2]]


@degenerate
def test_fedfomo_partial_participation_newcomers_and_bad_input():
    options = {"federation": ragged(), "participation": Uniform(0.5), **MINI}
    done = run(fedfomo(2), 4, **options)
    assert differ(predictors(done), predictors(run(fedfomo(0), 4, **options)))
    alike(predictors(done), predictors(run(fedfomo(2), 4, **options, execution=LOOP)), 1e-12)
    model, affinity = 8, 3 * 8
    assert traffic(run(fedfomo(2), 1).bound) == (model + affinity, 2 * model + 2 * 3 * 8)
    q3 = run(fedfomo(), 3)
    guest, models, mean = onboard(q3, newcomer(), visits=0), personal(q3, "model"), sum(personal(q3, "model")) / 3
    sent = guest.states([0])["others"]["weight"].flatten().tolist()
    assert len(set(sent) & set(models)) == 2
    gains = {w: max(0.0, (9.0 - mean) ** 2 - (9.0 - w) ** 2) / abs(w - mean) for w in sent}
    expected = sum(g * w for w, g in gains.items()) / sum(gains.values())
    assert predictions(guest) == close([expected])
    for bad in ({"models": -1}, {"epsilon": 1.5}, {"decay": -0.1}):
        with pytest.raises(PluresError, match="fedfomo"):
            fedfomo(**bad)


def test_fedfomo_carries_running_statistics():
    def normed():
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    for method in (fedfomo(2), fedamp(), apple()):
        done = run(method, 2, federation=ragged(), steps=3, batch_size=8, model=normed)
        model = done.predictors([0, 1, 2])
        assert bool((model["1.running_var"] > 0).all())
        assert model["1.num_batches_tracked"].dtype == torch.int64


@degenerate
@pytest.mark.parametrize(
    "make", [lambda: fedfomo(2), fedamp, fedala, apple, knnper], ids=["fedfomo", "fedamp", "fedala", "apple", "knnper"]
)
def test_a_checkpoint_goes_on_where_it_was(make, tmp_path):
    """The method is built again, as in another process, so its functions are other objects."""
    training = Training(rounds=4, batch_size=8, steps=3, optimizer=SGD(0.1))
    whole, first, second = (
        Run(ragged(), mlp, make(), training, participation=Uniform(0.5), execution=EXACT) for _ in range(3)
    )
    for _ in range(2):
        first.step()
    save(first, "mine", tmp_path / "checkpoint")
    resume(second, "mine", tmp_path / "checkpoint")
    for done in (whole, second):
        for _ in done.rounds():
            pass
    left, right = (done.deployed(list(range(7))) for done in (whole, second))
    for slot in left:
        alike(left[slot], right[slot])


# FedAMP ---------------------------------------------------------------------------------------------------------


def attentive(lam, alpha, sigma, rounds, lr=0.1, steps=2):
    """FedAMP on Q3, written out."""
    w = [0.0, 0.0, 0.0]
    for _ in range(rounds):
        clouds = []
        for i in range(3):
            pull = [alpha / sigma * math.exp(-((w[i] - w[j]) ** 2) / sigma) if j != i else 0.0 for j in range(3)]
            pull = [x / max(1.0, sum(pull)) for x in pull]
            clouds.append((1 - sum(pull)) * w[i] + sum(x * v for x, v in zip(pull, w, strict=True)))
        for i in range(3):
            for _ in range(steps):
                w[i] = step(w[i], A[i], B[i], lr, lam / alpha, clouds[i])
    return w


@pytest.mark.oracle("AM0")
@pytest.mark.parametrize("setting", [(1.0, 1.0, 4.0), (0.5, 1.0, 1.0), (1.0, 5.0, 2.0)])
def test_am0_fedamp_by_hand(setting):
    assert predictions(run(fedamp(), 1)) == exact([-0.18, 0.17, 1.8])
    for rounds in (1, 2, 4):
        assert predictions(run(fedamp(*setting), rounds)) == exact(attentive(*setting, rounds))


@pytest.mark.oracle("AM0")
def test_am0_with_attention_to_all_alike_fedamp_reaches_the_optimum_of_mean_regularisation():
    """``a_ij = alpha / sigma = 1/6``, so ``lam/alpha (w - u)`` is the Laplacian of the complete graph with lam=1."""
    done = at_rest(fedamp(lam=2e9 / 6, alpha=1e9 / 6, sigma=1e9), 300)
    assert predictions(done) == pytest.approx([0.067796610, 0.711864407, 2.627118644], abs=1e-7)


def test_the_cosine_variant_of_fedamp_by_hand():
    done = run(fedamp(attention="cosine", sigma=0.5, self_weight=0.25), 1)
    w = predictions(done)
    cloud = done.states([0, 1, 2])["cloud"]["weight"].flatten().tolist()
    near, far = math.exp(0.5), math.exp(-0.5)
    assert cloud[0] == exact(0.25 * w[0] + 0.75 * (w[1] + w[2]) / 2)
    assert cloud[1] == exact(0.25 * w[1] + 0.75 * (far * w[0] + near * w[2]) / (near + far))
    assert cloud[2] == exact(0.25 * w[2] + 0.75 * (far * w[0] + near * w[1]) / (near + far))


@degenerate
@partial
def test_fedamp_without_attraction_is_local_training(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    base = predictors(run(local(), 5, **options))
    alike(predictors(run(fedamp(lam=0.0), 5, **options)), base, 1e-12)
    for attention in ("distance", "cosine"):
        one, two = (
            predictors(run(fedamp(attention=attention), 5, **options, execution=execution))
            for execution in (EXACT, LOOP)
        )
        assert differ(one, base)
        alike(one, two, 1e-12)


def test_an_unseen_client_of_fedamp_stays_near_the_models_like_its_own():
    done, newcomers = run(fedamp(sigma=2.0), 3), newcomer()
    w = predictions(done)
    mean = sum(w) / 3
    near = [math.exp(-((v - mean) ** 2) / 2.0) for v in w]
    cloud = sum(x * v for x, v in zip(near, w, strict=True)) / sum(near)
    x = mean
    for _ in range(2):
        x = step(x, 2.0, 9.0, pull=1.0, anchor=cloud)
    assert predictions(onboard(done, newcomers, visits=1)) == exact([x])
    alone = [predictions(run(fedamp(attention=kind), 2, federation=newcomers)) for kind in ("distance", "cosine")]
    assert alone[0] == alone[1]
    for bad in ({"lam": -1.0}, {"sigma": 0.0}, {"alpha": 0.0}, {"attention": "dot"}, {"self_weight": 2.0}):
        with pytest.raises(PluresError, match="fedamp"):
            fedamp(**bad)


# FedALA ---------------------------------------------------------------------------------------------------------


def aggregated(rounds, weight_lr, lr=0.1, steps=2, passes=1):
    """FedALA on Q3, written out: the global model, and what every client predicts with."""
    w, last, weights = 0.0, [0.0] * 3, [1.0] * 3
    for _ in range(rounds):
        for i in range(3):
            for _ in range(passes):
                theta = weights[i] * w + (1 - weights[i]) * last[i]
                weights[i] = min(1.0, max(0.0, weights[i] - weight_lr * (w - last[i]) * A[i] * (theta - B[i])))
            theta = weights[i] * w + (1 - weights[i]) * last[i]
            for _ in range(steps):
                theta = step(theta, A[i], B[i], lr)
            last[i] = theta
        w = sum(p * x for p, x in zip(P, last, strict=True))
    return w, [u * w + (1 - u) * x for u, x in zip(weights, last, strict=True)]


@pytest.mark.parametrize("weight_lr", [0.1, 1.0])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_fedala_by_hand(weight_lr, rounds):
    done = run(fedala(everything, weight_lr), rounds)
    w, own = aggregated(rounds, weight_lr)
    assert weight(done) == exact(w)
    assert predictions(done) == exact(own)


def test_fedala_learns_the_weights_of_the_best_mixture():
    """The best ``v + (w - v) W`` is the optimum ``b``, as far as it lies between the two."""
    done = run(fedala(everything, 0.2, epochs=400), 2)
    v, w = (-0.19, 0.18, 1.92), 0.9883333333
    best = [min(1.0, max(0.0, (b - x) / (w - x))) for x, b in zip(v, B, strict=True)]
    assert personal(done, "weight") == pytest.approx(best, abs=1e-8)
    assert best[0] == 0.0
    assert 0.0 < best[1] < 1.0
    assert best[2] == 0.0


@pytest.mark.oracle("AL0")
@degenerate
@partial
def test_al0_fedala_with_weights_of_one_is_fedavg(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    frozen, base = run(fedala(weight_lr=0.0), 5, **options), run(fedavg(), 5, **options)
    alike(shared(frozen), shared(base))
    alike(predictors(frozen), predictors(base))
    alike(shared(run(fedala(), 1, **options)), shared(run(fedavg(), 1, **options)))
    one, two = (run(fedala(weight_lr=10.0), 5, **options, execution=e) for e in (EXACT, LOOP))
    assert differ(predictors(one), predictors(base))
    alike(predictors(one), predictors(two), 1e-12)
    weights = one.states(list(range(7)))["weight"]
    assert set(weights) == {"2.weight", "2.bias"}
    assert all(bool(((w >= 0) & (w <= 1)).all()) for w in weights.values())
    assert any(bool((w < 1).any()) for w in weights.values())


def test_an_unseen_client_and_one_that_was_never_visited_have_fedalas_global_model():
    done = run(fedala(everything), 2, participation=Fixed([["a", "b"]]))
    assert predictions(done)[2] == predictions(onboard(done, newcomer()))[0] == weight(done)
    assert traffic(done.bound) == (8, 8)
    for bad in ({"weight_lr": -1.0}, {"epochs": 0.0}):
        with pytest.raises(PluresError, match="fedala"):
            fedala(**bad)


# APPLE ----------------------------------------------------------------------------------------------------------


def directed(rounds, mu, rate, horizon, start, lr=0.1, steps=1):
    """APPLE on Q3, written out."""
    cores, p = [start] * 3, [list(P) for _ in range(3)]
    for r in range(rounds):
        pull = mu * (1 + math.cos(math.pi * min(r / horizon, 1.0))) / 2
        new = list(cores)
        for i in range(3):
            own = cores[i]
            for _ in range(steps):
                seen = [own if j == i else cores[j] for j in range(3)]
                g = A[i] * (sum(x * w for x, w in zip(p[i], seen, strict=True)) - B[i])
                own, p[i] = (
                    own - lr * p[i][i] * g,
                    [x - lr * rate * (g * w + pull * (x - q)) for x, w, q in zip(p[i], seen, P, strict=True)],
                )
            new[i] = own
        cores = new
    return [sum(x * w for x, w in zip(row, cores, strict=True)) for row in p]


@pytest.mark.oracle("AE0")
@pytest.mark.parametrize(("mu", "rate", "horizon"), [(0.0, 1.0, 40), (0.5, 0.25, 3), (2.0, 1.0, 2), (1.0, 0.0, 40)])
def test_ae0_apple_by_hand(mu, rate, horizon):
    for rounds in (1, 2, 5):
        done = run(apple(mu, rate, horizon), rounds, model=scalar(0.5))
        assert predictions(done) == exact(directed(rounds, mu, rate, horizon, 0.5, steps=2))


def test_apple_receives_the_models_with_the_largest_weights():
    done = run(apple(models=1), 2, model=scalar(0.5))
    for run_of, expected in ((run(apple(models=1), 0, model=scalar(0.5)), [2, 2, 1]), (done, None)):
        states = run_of.states([0, 1, 2])
        weights = (states["prior"]["others"] + states["lean"]["others"]).abs().fill_diagonal_(-1.0)
        whose = states["whose"]["weights"][:, 0].argmax(-1).tolist()
        assert whose == weights.argmax(1).tolist() == (expected or whose)
    core, weights = 8, (1 + 3) * 8
    assert traffic(done.bound) == (core + weights, core + 8 * 3)
    everything_else = run(apple(models=9), 2, model=scalar(0.5))
    assert predictions(everything_else) == predictions(run(apple(), 2, model=scalar(0.5)))
    assert predictions(done) != predictions(everything_else)


@partial
def test_apple_partial_participation_newcomers_and_bad_input(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    one, two = (predictors(run(apple(), 4, **options, execution=e)) for e in (EXACT, LOOP))
    alike(one, two, 1e-12)
    assert differ(one, predictors(run(local(), 4, **options)))
    done = run(apple(rate=0.0), 2, model=scalar(0.5))
    cores = personal(done, "model")
    mean, share = sum(cores) / 3, 5 / (5 + N[1] + N[2])
    others, after = (N[1] * cores[1] + N[2] * cores[2]) / (5 + N[1] + N[2]), mean
    for _ in range(2):
        after -= 0.1 * share * 2.0 * (share * after + others - 9.0)
    assert predictions(onboard(done, newcomer(), visits=1))[0] == exact(share * after + others)
    for bad in ({"mu": -1.0}, {"rate": -1.0}, {"horizon": 0}, {"models": -1}):
        with pytest.raises(PluresError, match="apple"):
            apple(**bad)


# kNN-Per --------------------------------------------------------------------------------------------------------


def memories(train, labels, queries, answers=None, kind="classification"):
    """One client with given training examples; validation and test examples are the queries."""
    inputs = torch.tensor([*train, *queries], dtype=torch.float64)
    rows = torch.arange(len(inputs))
    first, rest = rows[: len(train)], rows[len(train) :]
    given = [*labels, *(answers or [labels[0]] * len(queries))]
    targets = torch.tensor(given) if kind == "classification" else torch.tensor(given, dtype=torch.float64)[:, None]
    task = Classification(("no", "yes")) if kind == "classification" else Regression(1)
    splits = {"train": Split.of([first]), "validation": Split.of([rest]), "test": Split.of([rest])}
    return Federation("memories", task, inputs, targets, ("a",), splits)


def linear(outputs):
    """Features are the inputs; the head gives the same scores to everything."""

    def model():
        net = nn.Sequential(nn.Identity(), nn.Linear(2, outputs))
        nn.init.zeros_(net[1].weight)
        nn.init.zeros_(net[1].bias)
        return with_roles(net, head="1")

    return model


def chances(method, data, outputs=2):
    """What the client predicts for its test examples: probabilities, or numbers."""
    done = run(method, 0, federation=data, model=linear(outputs))
    given = data.inputs[data.splits["test"][0]][None]
    own = {split: done.engine.whole([0], split) for split in done.method.predictor.reads}
    made = done.engine.forward(done.deployed([0]), given, own)[0]
    return made.softmax(-1) if data.task.kind == "classification" else made


POINTS = [(0.0, 0.0), (1.0, 0.0), (0.0, 3.0), (5.0, 5.0)]


@pytest.mark.oracle("KN0")
@degenerate
@partial
def test_kn0_without_neighbours_knnper_is_fedavg(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    plain, base = run(knnper(lam=0.0), 5, **options), run(fedavg(), 5, **options)
    alike(shared(plain), shared(base))
    for split in ("validation", "test"):
        left, right = score(plain, split).values, score(base, split).values
        assert np.array_equal(left["accuracy"], right["accuracy"])
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-14)
    tuned = run(knnper(), 5, **options)
    alike(shared(tuned), shared(base))
    worse = score(tuned, "validation").values["loss"] - score(base, "validation").values["loss"]
    assert worse.max() <= 1e-14
    assert worse.min() < -0.01
    looped = run(knnper(), 5, **options, execution=LOOP)
    assert score(looped, "test").values["loss"] == pytest.approx(score(tuned, "test").values["loss"], abs=1e-10)


@pytest.mark.oracle("KN0")
def test_kn0_one_neighbour_by_hand():
    data = memories(POINTS, [0, 1, 1, 0], [(0.4, 0.0), (0.6, 0.0), (0.0, 1.6), (9.0, 9.0)])
    assert chances(knnper(k=1, lam=1.0), data).argmax(-1).tolist() == [0, 1, 1, 0]
    assert chances(knnper(k=1, lam=1.0), data).max(-1).values.tolist() == exact([1.0] * 4)
    assert chances(knnper(k=1, lam=0.5), data)[:, 1].tolist() == exact([0.25, 0.75, 0.75, 0.25])


def test_neighbours_vote_by_their_distance():
    data = memories(POINTS, [0, 1, 1, 0], [(0.25, 0.0)])
    votes = [math.exp(-0.25 / 2), math.exp(-0.75 / 2), math.exp(-math.hypot(0.25, 3) / 2)]
    for k, yes in ((2, votes[1] / sum(votes[:2])), (3, (votes[1] + votes[2]) / sum(votes))):
        assert chances(knnper(k=k, lam=1.0, scale=2.0), data)[0, 1].item() == exact(yes)
    last = math.exp(-math.hypot(4.75, 5) / 2)
    everybody = (votes[1] + votes[2]) / (sum(votes) + last)
    assert chances(knnper(k=50, lam=1.0, scale=2.0), data)[0, 1].item() == exact(everybody)
    numbers = memories(POINTS, [2.0, 6.0, 4.0, 0.0], [(0.25, 0.0)], kind="regression")
    mean = (2 * votes[0] + 6 * votes[1]) / (votes[0] + votes[1])
    assert chances(knnper(k=2, lam=0.25, scale=2.0), numbers, 1).item() == exact(0.25 * mean)


@pytest.mark.parametrize(("answers", "lam"), [([0, 1, 1], 1.0), ([1, 0, 0], 0.0), ([0, 1, 0], 0.3)])
def test_the_weight_of_the_neighbours_is_chosen_on_validation(answers, lam):
    """The model is uninformative; with two of three neighbours right the likelihood is largest at 1/3."""
    data = memories(POINTS, [0, 1, 1, 0], [(0.1, 0.0), (0.9, 0.0), (0.0, 2.9)], answers)
    done = run(knnper(k=1), 0, federation=data, model=linear(2))
    assert done.deployed([0])["mix"]["lam"].item() == exact(lam)


def test_knnper_chooses_the_least_squared_error():
    data = memories(POINTS, [2.0, 6.0, 4.0, 0.0], [(0.1, 0.0), (0.9, 0.0)], [1.5, 4.0], "regression")
    done = run(knnper(k=1), 0, federation=data, model=linear(1))
    least = min((i / 10 for i in range(11)), key=lambda g: (2 * g - 1.5) ** 2 + (6 * g - 4) ** 2)
    assert done.deployed([0])["mix"]["lam"].item() == pytest.approx(least, abs=1e-15)
    for bad in ({"k": 0}, {"lam": 1.5}, {"scale": 0.0}):
        with pytest.raises(PluresError, match="knnper"):
            knnper(**bad)


def test_an_unseen_client_of_knnper_brings_its_own_memory():
    data = ragged()
    seen, unseen = data.hold_out(["0", "4"])
    done = run(knnper(lam=0.7), 3, federation=seen, **MINI)
    guest = onboard(done, unseen)
    alike(shared(guest), {k: t[:2] for k, t in shared(done).items()})
    assert (
        score(guest, "test").values["loss"].max()
        != score(onboard(run(fedavg(), 3, federation=seen, **MINI), unseen), "test").values["loss"].max()
    )


def test_knnper_joins_methods_that_train_the_model_otherwise():
    """The personal head predicts together with the memory of the shared body's features."""
    options = {"federation": ragged(), **MINI}
    done = run(fedper() + knnper(lam=0.0001), 3, **options)
    base = run(fedper(), 3, **options)
    alike(shared(done), shared(base))
    assert score(done, "test").values["loss"] == pytest.approx(score(base, "test").values["loss"], abs=1e-3)
    mixture = run(fedper() + fedfomo(2), 3, **options)
    heads = shared(mixture)["2.weight"]
    assert not torch.equal(heads[0], heads[1])
