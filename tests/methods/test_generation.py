"""Models made for clients: generators, inheritance from metadata, and held-out clients with few labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plures import PluresError
from plures.evaluate import score
from plures.evaluate.cold import cold_start_curve, with_labels
from plures.federation import SPLITS, Federation, Split
from plures.method import SGD, Adam, Generated, Method, Mixed, Nearest, Personal, Predict, Regressed, Setting, body
from plures.methods import ditto, fedavg, fedavg_ft, fedper, ifca, local
from plures.methods.cold_start import cold_start
from plures.methods.fedfomo import fedfomo
from plures.methods.knnper import knnper
from plures.methods.pfedhn import pfedhn
from plures.models import with_roles
from plures.run import Execution, Fixed, Run, Training, Uniform, onboard
from plures.run.checkpoint import restore, snapshot
from plures.tasks import Regression
from problems import EXACT, BodyHead, close, personal, predictions, predictors, quadratic, run, shared, starts, weight
from shifted import mlp, ragged

exact = lambda value: pytest.approx(value, abs=1e-14)  # noqa: E731
partial = pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
MINI = {"steps": 4, "batch_size": 8, "model": mlp}
E = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.2, 1.0]], dtype=torch.float64)


def alike(left, right, tolerance=0.0):
    assert left.keys() == right.keys()
    for path in left:
        torch.testing.assert_close(left[path], right[path], atol=tolerance, rtol=0)


def generated(**options):
    """A linear generator without limit on its gradient."""
    chosen = {"hidden": (), "clip": None, **options}
    return Method(layout={"model": Generated(**chosen)})


def described(data, **columns):
    return replace(data, metadata={name: tuple(values) for name, values in columns.items()})


def newcomer(curvature=2.0, optimum=9.0, name="z", **columns):
    return described(quadratic((curvature,), (optimum,), (5,), names=(name,)), **columns)


def step(w, a, b, lr=0.1):
    return w - lr * a * (w - b)


# Generated ------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("HN0")
@partial
def test_hn0_one_hot_embeddings_are_local_training(cohort):
    def one_hot(n):
        return generated(embeddings=torch.eye(n), learn_embeddings=False, optimizer=SGD(1.0))

    for rounds in (1, 3):
        one, two = (run(m, rounds, participation=cohort) for m in (one_hot(3), local()))
        drawn = two.participated.tolist()
        left, right = ([p for p, took in zip(predictions(r), drawn, strict=True) if took] for r in (one, two))
        assert left == exact(right)
    options = {"federation": ragged(), "participation": cohort, **MINI}
    alike(shared(run(one_hot(7), 5, **options)), shared(run(local(), 5, **options)), 1e-14)


@pytest.mark.oracle("HN1")
def test_hn1_one_constant_embedding_is_uniform_fedavg():
    def constant(n):
        return generated(embeddings=torch.ones(n, 1), learn_embeddings=False, optimizer=SGD(1 / n))

    for rounds in (1, 2, 3):
        assert predictions(run(constant(3), rounds)) == exact([weight(run(fedavg("uniform"), rounds))] * 3)
    options = {"federation": ragged(), **MINI}
    alike(shared(run(constant(7), 5, **options)), shared(run(fedavg("uniform"), 5, **options)), 1e-14)


@pytest.mark.oracle("HN2")
def test_hn2_a_linear_generator_mixes_by_the_gram_matrix():
    method = generated(embeddings=E, learn_embeddings=False, optimizer=SGD(0.3))
    assert predictions(run(method, 1)) == exact([0.37245, -0.14805, 0.54294])
    w = torch.tensor(predictions(run(method, 1)), dtype=torch.float64)
    moved = torch.tensor([step(step(float(x), a, b), a, b) for x, a, b in zip(w, (1, 2, 4), (-1, 0.5, 3), strict=True)])
    assert predictions(run(method, 2)) == pytest.approx((w + 0.3 * E @ E.T @ (moved - w)).tolist(), abs=1e-6)


@pytest.mark.oracle("HN3")
def test_hn3_a_new_client_with_an_old_embedding_gets_its_model():
    facts = {"age": (20.0, 45.0, 61.0), "place": ("north", "south", "south")}
    done = run(pfedhn(columns=("age", "place"), hidden=(4,)), 5, federation=described(quadratic(), **facts))
    own = predictions(done)
    assert len(set(own)) == 3
    twins = described(
        quadratic((9.0, 9.0), (5.0, 5.0), (4, 4), names=("x", "y")), age=(61.0, 20.0), place=("south", "north")
    )
    assert predictions(onboard(done, twins)) == exact([own[2], own[0]])


def test_embeddings_follow_their_jacobian_and_a_newcomer_fits_its_own():
    """A linear generator with output ``V``: ``V += lr sum e_i Delta_i`` and ``e_i += lr V Delta_i``."""
    method, lr = generated(embeddings=E, optimizer=SGD(0.3)), 0.3
    e, v = E.clone(), torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        w = (e @ v).tolist()
        moved = [step(step(x, a, b), a, b) - x for x, a, b in zip(w, (1.0, 2.0, 4.0), (-1.0, 0.5, 3.0), strict=True)]
        delta = torch.tensor(moved, dtype=torch.float64)
        e, v = e + lr * delta[:, None] * v, v + lr * e.T @ delta
    done = run(method, 3)
    assert predictions(done) == exact((e @ v).tolist())
    assert predictions(onboard(done, newcomer(), visits=0)) == exact([float(e.mean(0) @ v)])
    mine = e.mean(0)
    for _ in range(2):
        w = float(mine @ v)
        mine = mine + lr * (step(step(w, 2.0, 9.0), 2.0, 9.0) - w) * v
    assert predictions(onboard(done, newcomer(), visits=2)) == exact([float(mine @ v)])


@pytest.mark.parametrize("optimizer", [SGD(0.05, momentum=0.9, weight_decay=1e-2), Adam(0.05)], ids=["SGD", "Adam"])
def test_what_newcomers_fit_does_not_depend_on_the_chunk(optimizer):
    newcomers = quadratic((1.0, 2.0, 4.0, 3.0), (1.0, 2.0, 3.0, -4.0), (4, 9, 2, 5), names=("p", "q", "r", "s"))
    made = []
    for chunk in (1, 3, 4):
        done = run(generated(size=2, optimizer=optimizer), 4, execution=Execution("vmap", chunk, False, "float64"))
        made.append(predictions(onboard(done, newcomers, visits=4)))
    assert made[0] == pytest.approx(made[1], abs=1e-12)
    assert made[0] == pytest.approx(made[2], abs=1e-12)
    assert len(set(made[0])) == 4


def test_adam_steps_of_a_generator_are_those_of_a_torch_loop():
    done = run(generated(hidden=(3,), size=2, optimizer=Adam(0.05), clip=0.5), 0)
    leaves = {k: torch.nn.Parameter(t.clone()) for k, t in done.server["model"].extra.items() if t.is_floating_point()}
    trained = [leaves[k] for k in ("weight0", "bias0", "output", "embedding")]
    torch_adam = torch.optim.Adam(trained, lr=0.05)
    for _ in range(4):
        w = torch.relu(leaves["embedding"] @ leaves["weight0"] + leaves["bias0"]) @ leaves["output"]
        now = w.detach().flatten().tolist()
        moved = [step(step(x, a, b), a, b) - x for x, a, b in zip(now, (1.0, 2.0, 4.0), (-1.0, 0.5, 3.0), strict=True)]
        torch_adam.zero_grad()
        (-(w.flatten() * torch.tensor(moved, dtype=torch.float64)).sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        torch_adam.step()
        done.step()
    final = torch.relu(leaves["embedding"] @ leaves["weight0"] + leaves["bias0"]) @ leaves["output"]
    assert predictions(done) == exact(final.flatten().tolist())


def test_the_generators_gradient_is_limited():
    """One client with embedding 1: the output moves by at most lr times the limit."""
    data = quadratic((1.0,), (1000.0,), (4,))
    for clip, expected in ((None, 190.0), (50.0, 50.0 * 190.0 / (190.0 + 1e-6)), (1e4, 190.0)):
        method = generated(embeddings=torch.ones(1, 1), learn_embeddings=False, optimizer=SGD(1.0), clip=clip)
        assert predictions(run(method, 1, federation=data)) == close([expected])


# pFedHN ---------------------------------------------------------------------------------------------------------


@partial
def test_pfedhn_learns_different_models_and_resumes(cohort):
    options = {"federation": ragged(), "participation": cohort, **MINI}
    done = run(pfedhn(hidden=(8,)), 4, **options)
    models = predictors(done)["0.weight"]
    assert not torch.allclose(models[0], models[1])
    alike(
        predictors(done),
        predictors(run(pfedhn(hidden=(8,)), 4, **options, execution=Execution("loop", 2, False, "float64"))),
        1e-12,
    )
    start = run(pfedhn(hidden=(8,)), 0, **options)
    assert torch.equal(predictors(start)["0.weight"], predictors(run(fedavg(), 0, **options))["0.weight"])
    again = Run(
        ragged(), mlp, pfedhn(hidden=(8,)), Training(rounds=4, batch_size=8, steps=4, optimizer=SGD(0.1)),
        participation=cohort, execution=EXACT,
    )  # fmt: skip
    again.step()
    saved = snapshot(again)
    for _ in range(3):
        again.step()
    restore(again, saved)
    for _ in again.rounds():
        pass
    alike(predictors(again), predictors(done))


def test_pfedhn_reduces_the_loss_of_every_client():
    options = {"federation": ragged(), "steps": 10, "batch_size": 16, "model": mlp}
    start, done = (score(run(pfedhn(hidden=(16,)), rounds, **options), "train").values["loss"] for rounds in (0, 40))
    assert (done < 0.8 * start).all()


def test_pfedhn_generates_only_the_part_that_is_asked_for():
    options = {"federation": ragged(), **MINI}
    for part, own, common in (("head", "2.weight", "0.weight"), (body, "0.weight", "2.weight")):
        leaves = shared(run(pfedhn(part, hidden=(8,)), 3, **options))
        assert not torch.allclose(leaves[own][0], leaves[own][1])
        assert all(torch.equal(leaves[common][0], row) for row in leaves[common])
    frozen = run(pfedhn("head", hidden=(), lr=1e-300), 3, model=BodyHead, lr=0.05)
    assert personal(frozen, "model", "h.weight") == [0.5] * 3


def test_running_statistics_are_not_generated():
    def normed():
        return with_roles(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), head="3")

    whole, part = (
        run(pfedhn(p, hidden=(8,)), 3, federation=ragged(), steps=3, batch_size=8, model=normed)
        for p in ("model", "head")
    )
    for done, owned in ((whole, True), (part, False)):
        variance = shared(done)["1.running_var"]
        assert bool((variance > 0).all())
        assert torch.equal(variance[0], variance[1]) != owned
        guest = onboard(done, ragged().subset(["2"]), visits=0)
        torch.testing.assert_close(shared(guest)["1.running_var"][0], variance.mean(0), atol=1e-12, rtol=0)


def test_pfedhn_of_metadata_reads_no_label_of_a_newcomer_and_refuses_metadata_that_are_missing():
    data = described(quadratic(), age=(1.0, 2.0, 3.0))
    done = run(pfedhn(columns=("age",)), 3, federation=data)
    one, other = (predictions(onboard(done, newcomer(optimum=b, age=(2.5,)))) for b in (9.0, -9.0))
    assert one == other
    with pytest.raises(PluresError, match=r"column 'age' of client 'b' is not a finite number"):
        run(pfedhn(columns=("age",)), 0, federation=described(quadratic(), age=(1.0, float("nan"), 3.0)))
    with pytest.raises(PluresError, match="nothing is known about 'height'"):
        run(pfedhn(columns=("height",)), 0, federation=data)
    with pytest.raises(PluresError, match="pfedhn: lr=0"):
        pfedhn(lr=0.0)


# Inheritance by metadata ----------------------------------------------------------------------------------------


def settings(seen, new):
    data = [
        described(
            quadratic(
                (1.0,) * len(c["x"]), (0.0,) * len(c["x"]), (2,) * len(c["x"]), names=tuple("abcdefgh"[: len(c["x"])])
            ),
            **c,
        )
        for c in (seen, new)
    ]
    known = Setting.of(data[0])
    return known, Setting.of(data[1], known)


def planar(optima, names, **columns):
    """``f_i(theta) = ||theta - b_i||^2`` for vectors: squared error of a constant input."""
    count, wide = len(optima), len(optima[0])
    targets = torch.tensor(optima, dtype=torch.float64).repeat_interleave(4, 0)
    split = Split.of(list(torch.arange(4 * count).split(4)))
    inputs = torch.ones(4 * count, 1, dtype=torch.float64)
    task = Regression(wide)
    return described(Federation("planar", task, inputs, targets, tuple(names), dict.fromkeys(SPLITS, split)), **columns)


def flat(outputs):
    def model():
        layer = nn.Linear(1, outputs, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    return model


@pytest.mark.oracle("CS0")
@pytest.mark.parametrize("share", [Personal, Mixed])
def test_cs0_a_linear_truth_is_recovered(share):
    """theta = meta @ A with meta = (1, x) for x = 0, 1, 2, 3 and A = [[1, -1], [.5, 2]]; the newcomer has x = 4."""
    truth = [(1.0, -1.0), (1.5, 1.0), (2.0, 3.0), (2.5, 5.0)]
    data = planar(truth, "abcd", one=(1.0,) * 4, x=(0.0, 1.0, 2.0, 3.0))
    base = Method(layout={"model": share()})
    done = run(cold_start(base, columns=("one", "x"), ridge=0.0), 60, federation=data, model=flat(2))
    unseen = planar([(0.0, 0.0)], "z", one=(1.0,), x=(4.0,))
    assert onboard(done, unseen).predictors([0])["weight"].flatten().tolist() == close([3.0, 7.0])
    early = run(cold_start(base, columns=("x",), ridge=0.0), 1, federation=data, model=flat(2))
    made = onboard(early, unseen).predictors([0])["weight"].flatten().tolist()
    assert made == close([3.0 * (1 - 0.8**2), 7.0 * (1 - 0.8**2)])


@pytest.mark.oracle("CS1")
@pytest.mark.parametrize("columns", [{}, {"x": (0.1, 0.1, 0.1)}, {"place": ("here",) * 3}])
@pytest.mark.parametrize("by", ["regression", "nearest"])
@pytest.mark.parametrize("share", [Personal, Mixed])
def test_cs1_without_metadata_that_differ_it_is_the_mean_model(columns, by, share):
    done = run(cold_start(Method(layout={"model": share()}), by), 2, federation=described(quadratic(), **columns))
    unseen = newcomer(**{name: values[:1] for name, values in columns.items()})
    assert predictions(onboard(done, unseen)) == exact([sum(predictions(done)) / 3])
    odd = newcomer(**{name: (7.0,) if name == "x" else ("elsewhere",) for name in columns})
    assert predictions(onboard(done, odd)) == exact([sum(predictions(done)) / 3])


def meta(data):
    return described(
        data, x=[float(i) for i in range(len(data))], place=["here" if i % 2 else "there" for i in range(len(data))]
    )


def poisoned(data):
    """The same clients with other labels everywhere but in the test split."""
    targets = data.targets.clone()
    for name in ("train", "validation"):
        rows = data.splits[name].rows
        targets[rows] = (data.targets[rows] + 1) % data.task.outputs
    return replace(data, targets=targets)


@pytest.mark.oracle("CS2")
@pytest.mark.parametrize("by", ["regression", "nearest"])
def test_cs2_without_adaptation_no_local_label_is_read(by):
    seen, unseen = meta(ragged()).hold_out(["1", "4"])
    done = run(cold_start(by=by), 3, federation=seen, **MINI)
    clean, other = (predictors(onboard(done, data)) for data in (unseen, poisoned(unseen)))
    alike(clean, other)
    assert not torch.equal(clean["0.weight"][0], clean["0.weight"][1])
    clean, other = (predictors(onboard(done, data, visits=1)) for data in (unseen, poisoned(unseen)))
    assert not torch.allclose(clean["0.weight"], other["0.weight"])


def test_ridge_regression_is_its_closed_form():
    x = [0.0, 1.0, 3.0, 8.0]
    seen, new = settings({"x": x}, {"x": [5.0, 1.0]})
    z, q = ((np.array(v) - np.mean(x)) / np.std(x) for v in (x, [5.0, 1.0]))
    for ridge in (0.0, 0.5, 100.0):
        expected = 1 / 4 + np.outer(q, z) / (z @ z + ridge)
        assert Regressed(("x",), ridge)(seen, new).numpy() == exact(expected)
    both, more = settings({"x": x, "y": [1.0, 2.0, 0.0, 5.0]}, {"x": [5.0], "y": [4.0]})
    design = np.stack([(np.array(v) - np.mean(v)) / np.std(v) for v in (x, [1.0, 2.0, 0.0, 5.0])], 1)
    point = np.array([(5.0 - np.mean(x)) / np.std(x), 2.0 / np.std([1.0, 2.0, 0.0, 5.0])])
    expected = 1 / 4 + point @ np.linalg.solve(design.T @ design + 0.7 * np.eye(2), design.T)
    assert Regressed(ridge=0.7)(both, more).numpy()[0] == pytest.approx(expected, abs=1e-12)


def test_the_nearest_clients_and_the_community():
    seen, new = settings(
        {"x": [0.0, 1.0, 3.0, 3.0], "place": ["n", "n", "s", "s"]}, {"x": [0.9, 2.4, 50.0], "place": ["s", "n", "west"]}
    )
    third, half = [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]
    assert Nearest(("x",))(seen, new).tolist() == [third, half, half]
    assert Nearest(("x",), 2)(seen, new)[0].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert Nearest(("x",), 3)(seen, new)[1].tolist() == exact([0.0, 1 / 3, 1 / 3, 1 / 3])
    assert Nearest(("x",), 99)(seen, new)[2].tolist() == [0.25] * 4
    assert Nearest(("place",))(seen, new).tolist() == [half, [0.5, 0.5, 0.0, 0.0], [0.25] * 4]


def test_only_clients_that_took_part_are_inherited_from():
    for share in (Personal, Mixed):
        base = Method(layout={"model": share()})
        data = described(quadratic(), place=("n", "s", "s"))
        done = run(cold_start(base, "nearest"), 2, federation=data, participation=Fixed([["a", "b"]]))
        a, b, _ = predictions(done)
        assert all(not t.any() for t in done.states([2])["model"].values())
        assert predictions(onboard(done, newcomer(place=("s",)))) == [b]
        assert predictions(onboard(done, newcomer(place=("west",)))) == exact([(a + b) / 2])
        untrained = run(cold_start(base, "nearest"), 0, federation=data)
        assert predictions(onboard(untrained, newcomer(place=("s",)))) == [0.0]


def test_cold_start_starts_the_personal_model_of_any_method():
    data = meta(quadratic())
    for base, slot in ((None, "personal"), (ditto(0.3), "personal"), (local(), "model")):
        done = run(cold_start(base), 3, federation=data)
        plain = run(ditto(1.0 if base is None else 0.3) if slot == "personal" else local(), 3, federation=data)
        assert predictions(done) == predictions(plain)
        rows = personal(done, slot)
        x, here = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0])
        design = np.stack([(v - v.mean()) / v.std() for v in (x, here, 1 - here)], 1)
        point = np.array([(4.0 - 1.0) / x.std(), design[1, 1], design[1, 2]])
        slopes = np.linalg.solve(design.T @ design + np.eye(3), design.T @ np.array(rows))
        unseen = newcomer(x=(4.0,), place=("here",))
        assert predictions(onboard(done, unseen)) == pytest.approx([np.mean(rows) + point @ slopes], abs=1e-12)
    split = run(cold_start(fedper(), "nearest", ("place",)), 3, federation=data, model=BodyHead, lr=0.05)
    heads = personal(split, "model", "h.weight")
    guest = onboard(split, newcomer(x=(0.0,), place=("there",)))
    assert personal(guest, "model", "h.weight") == exact([(heads[0] + heads[2]) / 2])
    assert personal(guest, "model", "u.weight") == [weight(split, path="u.weight")]


def test_cold_start_leaves_running_statistics_at_their_mean_and_refuses_what_it_cannot_do():
    def normed():
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    seen, unseen = meta(ragged()).hold_out(["6"])
    for base in (None, Method(layout={"model": Mixed()}, predict=Predict(visits=5))):
        done = run(cold_start(base, ridge=1e-9), 3, federation=seen, steps=3, batch_size=8, model=normed)
        guest, rows = onboard(done, unseen).predictors([0]), done.predictors(list(range(6)))
        torch.testing.assert_close(guest["1.running_var"][0], rows["1.running_var"].mean(0), atol=1e-12, rtol=0)
        assert not torch.allclose(guest["0.weight"][0], rows["0.weight"].mean(0), atol=1e-3)
    for bad, message in (
        (lambda: cold_start(fedavg()), "has no personal model"),
        (lambda: cold_start(by="guess"), "by='guess'"),
        (lambda: cold_start(columns=("labels",)), "local labels"),
        (lambda: cold_start(ridge=-1.0), "ridge=-1"),
        (lambda: cold_start(by="nearest", neighbours=0), "neighbours=0"),
    ):
        with pytest.raises(PluresError, match=message):
            bad()


# Held-out clients with few labels ---------------------------------------------------------------------------------


def held_out():
    return meta(ragged()).hold_out(["0", "2", "5"])


METHODS = {
    "fedavg": fedavg, "fine-tuned": fedavg_ft, "ditto": ditto, "local": local, "ifca": lambda: ifca(2),
    "fedfomo": lambda: fedfomo(2), "knnper": lambda: knnper(k=3), "pfedhn": lambda: pfedhn(hidden=(8,)),
    "pfedhn of metadata": lambda: pfedhn(columns=("x",), hidden=(8,)), "cold start": lambda: cold_start(visits=2),
}  # fmt: skip


@degenerate
@pytest.mark.parametrize("name", METHODS)
def test_a_cold_start_reads_no_more_labels_than_its_budget(name):
    seen, unseen = held_out()
    done = run(METHODS[name](), 3, federation=seen, **MINI)
    before = predictors(done)
    clean = cold_start_curve(done, unseen, (0, 5, "all"))
    other = cold_start_curve(done, poisoned(unseen), (0, 5, "all"))
    for metric in ("accuracy", "loss"):
        assert np.array_equal(clean.values(metric)[0], other.values(metric)[0])
        expected = score(onboard(done, unseen), "test").values[metric]
        assert np.array_equal(clean.values(metric)["all"], expected)
    fits = name not in ("fedavg", "pfedhn of metadata")
    assert np.array_equal(clean.values("loss")["all"], other.values("loss")["all"]) != fits
    alike(before, predictors(done))


def test_without_a_label_a_newcomer_of_clusters_joins_the_one_that_most_clients_use():

    done = run(ifca(2), 20, model=starts(-1.2, 2.0), federation=quadratic((1.0,) * 3, (2.0, 2.1, -1.0), (4, 4, 4)))
    assert done.membership["model"].tolist() == [1, 1, 0]
    newcomers = quadratic((1.0, 1.0), (-1.0, -1.0), (5, 5), names=("y", "z"))
    unlabelled = replace(
        newcomers,
        splits={
            **newcomers.splits,
            "train": Split.of([newcomers.splits["train"][0], torch.empty(0, dtype=torch.int64)]),
        },
    )
    assert onboard(done, unlabelled).membership["model"].tolist() == [0, 1]


def test_budgets_are_divided_as_the_clients_examples_are_and_grow_by_inclusion():
    data = ragged()
    totals = (data.splits["train"].sizes + data.splits["validation"].sizes).tolist()
    earlier: list[set[int]] = [set() for _ in range(7)]
    for budget in (0, 1, 2, 5, 20, 40, 10_000):
        cut = with_labels(data, budget, seed=3)
        assert torch.equal(cut.splits["test"].rows, data.splits["test"].rows)
        for i, total in enumerate(totals):
            chosen = [cut.splits[split][i] for split in ("train", "validation")]
            assert sum(map(len, chosen)) == min(budget, total)
            assert len(chosen[1]) == min(budget, total) * len(data.splits["validation"][i]) // total
            now = set(torch.cat(chosen).tolist())
            assert earlier[i] <= now
            earlier[i] = now
    assert all(torch.equal(cut.splits[name].rows, data.splits[name].rows) for name in SPLITS)
    assert with_labels(data, "all") is data
    one, two = (with_labels(data, 5, seed).splits["train"].rows for seed in (0, 1))
    assert not torch.equal(one, two)
    alone = with_labels(data.subset(["4"]), 5).splits["train"].rows
    assert torch.equal(alone, with_labels(data, 5).splits["train"][4])
    with pytest.raises(PluresError, match="labels=-1"):
        with_labels(data, -1)


def test_labels_help_and_are_summarised():
    seen, unseen = held_out()
    done = run(local(visits=20), 3, federation=seen, **MINI)
    curve = cold_start_curve(done, unseen)
    assert list(curve.scores) == [0, 1, 5, 20]
    means = [summary.mean for summary in curve.summaries().values()]
    assert means == exact([float(v.mean()) for v in curve.values("accuracy").values()])
    assert means[0] < means[3]
    worst = curve.summaries("loss")[20].worst
    assert worst == exact(float(curve.values("loss")[20].max()))
    assert curve.scores[0].clients == ("0", "2", "5")
    with pytest.raises(PluresError, match="no metric 'rmse'"):
        curve.values("rmse")


def test_those_who_train_need_examples():
    none = with_labels(ragged(), 0)
    with pytest.raises(PluresError, match="client '0' has no training example"):
        run(fedavg(), 1, federation=none, **MINI)
