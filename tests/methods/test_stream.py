"""Sequences of experiences: elastic weight consolidation, what is carried over, and what is forgotten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plures import PluresError, PluresWarning
from plures.evaluate import score
from plures.evaluate.stream import StreamScores, follow
from plures.federation import SPLITS, Federation, Split, Stream, permuted
from plures.method import SGD, Assign, Batch, Method, Phase, Predict, State, squared_distance
from plures.methods import apfl, ditto, fedavg, fedavg_ft, fedper, fedprox, ifca, local, scaffold
from plures.methods.ewc import ewc
from plures.metrics import CLASSIFICATION, REGRESSION
from plures.run import Cosine, Execution, Fixed, Run, Training, Uniform, onboard
from plures.run.cost import traffic
from plures.run.stream import conclude, learn, on_experience
from plures.tasks import Regression
from problems import EXACT, close, personal, predictions, quadratic, run, scalar, shared, weight
from shifted import mlp, ragged

partial = pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
MINI = {"federation": ragged(), "model": mlp, "steps": 4, "batch_size": 8}
FULL = {"batch_size": None, "optimizer": SGD(0.1)}


def stream_of(*experiences: Federation) -> Stream:
    return Stream("experiences", tuple(f"experience {n}" for n in range(len(experiences))), experiences)


def points(optima, curvatures=None) -> Federation:
    """``f_i(w) = sum_j a_ij/2 (w_j - b_ij)^2`` in two dimensions: one client a row of optima."""
    optima = torch.tensor(optima, dtype=torch.float64)
    scale = torch.ones_like(optima) if curvatures is None else torch.tensor(curvatures, dtype=torch.float64)
    scale = scale.sqrt()
    clients, d = optima.shape
    split = Split.of(list(torch.arange(clients * d).view(clients, d)))
    x = (d / 2) ** 0.5 * torch.cat([torch.diag(row) for row in scale])
    y = (d / 2) ** 0.5 * (scale * optima).reshape(-1, 1)
    return Federation("points", Regression(1), x, y, tuple("abc"[:clients]), dict.fromkeys(SPLITS, split))


def plane() -> nn.Module:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def learned(stream: Stream, method: Method, rounds: int, model=plane, **options) -> list[Run]:
    training = Training(rounds=rounds, **{"steps": 1, **FULL, **options.pop("training", {})})
    return list(learn(stream, model, method, training, execution=EXACT, **options))


def vector(done: Run) -> np.ndarray:
    return done.states([0])["model"]["weight"].numpy().ravel()


# EWC ------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("EW0")
@degenerate
@partial
def test_ew0_without_memory_it_is_fedprox_and_fedavg(cohort):
    for left, right in ((ewc(0.0, 0.7), fedprox(0.7)), (ewc(5.0, 0.7), fedprox(0.7)), (ewc(0.0, 0.0), fedavg())):
        one, two = (shared(run(method, 5, participation=cohort, **MINI)) for method in (left, right))
        for path in one:
            assert torch.equal(one[path], two[path]), path


@pytest.mark.oracle("EW0")
@degenerate
@partial
def test_ew0_over_a_whole_stream(cohort):
    stream = permuted(ragged(), 3, seed=2)
    options = {"model": mlp, "training": {"batch_size": 8, "steps": 3}, "participation": cohort}
    for mu, base in ((0.7, fedprox(0.7)), (0.0, fedavg())):
        one, two = (shared(learned(stream, method, 2, **options)[-1]) for method in (ewc(0.0, mu), base))
        for path in one:
            assert torch.equal(one[path], two[path]), path
    held = shared(learned(stream, ewc(50.0, 0.0), 2, **options)[-1])
    assert not torch.equal(held["0.weight"], two["0.weight"])


@pytest.mark.oracle("EW1")
def test_ew1_the_optimum_of_three_quadratics():
    """(a b + lam F x_old + mu w) / (a + lam F + mu) = (6 - 3 + 0.5) / 6."""
    method = ewc(2.0, 1.0)
    slots = {"fisher": lambda s: {"weight": torch.full((1, 1), 1.5, dtype=torch.float64)}}
    slots["anchor"] = lambda s: {"weight": torch.full((1, 1), -1.0, dtype=torch.float64)}
    done = run(replace(method, slots=slots), 1, federation=quadratic((2.0,), (3.0,), (4,)), model=scalar(0.5), steps=60)
    assert weight(done) == close(7 / 12)


@pytest.mark.oracle("EW3")
def test_ew3_the_order_of_the_terms_does_not_matter():
    method = ewc(3.0, 0.7)

    def turned(x: State, received: State, batch: Batch) -> Tensor:
        gaps = [(f * (x.model[k] - x.anchor[k]).square()).sum() for k, f in reversed(x.fisher.items())]
        return 0.35 * squared_distance(x.model, received.model) + 1.5 * torch.stack(gaps).sum() + batch.loss(x.model)

    stream = permuted(ragged(), 2, seed=1)
    options = {"model": mlp, "training": {"batch_size": 8, "steps": 3}}
    one, again, other = (
        shared(learned(stream, m, 2, **options)[-1])
        for m in (method, ewc(3.0, 0.7), replace(method, schedule=(Phase(objective=turned),)))
    )
    for path in one:
        assert torch.equal(one[path], again[path])
        torch.testing.assert_close(one[path], other[path], atol=1e-13, rtol=0)


def test_what_a_client_remembers_between_experiences():
    """Q3 has Fisher information a_i, the curvature; anchors are the global model; information adds up or decays."""
    stream = stream_of(quadratic(), quadratic(optima=(1.0, 2.0, -1.0)), quadratic())
    for decay in (1.0, 0.5, 0.0):
        first, second, third = learned(stream, ewc(0.3, 0.0, decay), 4, scalar())
        assert personal(first, "fisher") == close([1.0, 2.0, 4.0])
        assert personal(first, "anchor") == close([weight(first)] * 3)
        assert personal(second, "fisher") == close([a + decay * a for a in (1.0, 2.0, 4.0)])
        assert personal(third, "fisher") == personal(second, "fisher")
        assert personal(third, "anchor") == close([weight(second)] * 3)
    assert traffic(first.bound) == (8, 8)
    assert first.bound.secure_aggregation


def test_the_second_experience_ends_at_the_closed_form():
    """One client, one dimension per curvature: (H2 b2 + lam F x1) / (H2 + lam F), coordinate by coordinate."""
    h1, h2, b1, b2 = np.array([4.0, 1.0]), np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([-1.0, 3.0])
    stream = stream_of(points([b1.tolist()], [h1.tolist()]), points([b2.tolist()], [h2.tolist()]))
    for lam in (0.0, 1.0, 3.0):
        method = ewc(lam, 0.0) if lam else fedavg()
        first, second = learned(stream, method, 170, training={"optimizer": SGD(0.12)})
        assert vector(first) == pytest.approx(b1, abs=1e-8)
        expected = (h2 * b2 + lam * h1 * b1) / (h2 + lam * h1)
        assert vector(second) == pytest.approx(expected, abs=1e-8)


def test_ewc_forgets_less_than_fedavg_by_exactly_computed_numbers():
    """Scores are mean squared errors: f(w) of both experiences, so the whole matrix is known."""
    h1, h2, b1, b2 = np.array([4.0, 1.0]), np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([-1.0, 3.0])
    stream = stream_of(points([b1.tolist()], [h1.tolist()]), points([b2.tolist()], [h2.tolist()]))
    training = Training(rounds=100, steps=1, batch_size=None, optimizer=SGD(0.2))
    found = {}
    for lam, method in ((0.0, fedavg()), (1.0, ewc(1.0, 0.0))):
        scores = follow(stream, plane, method, training, execution=EXACT)
        assert scores.metric.name == "rmse"
        end = (h2 * b2 + lam * h1 * b1) / (h2 + lam * h1)
        losses = [[(h / 2 * (w - b) ** 2).sum() for h, b in ((h1, b1), (h2, b2))] for w in (b1, end)]
        assert scores.matrix == pytest.approx(np.sqrt(losses), abs=1e-6)
        found[lam] = scores
    kept, new = 2 * 0.4**2 + 0.5 * (4 / 3) ** 2, 0.5 * 1.6**2 + (2 / 3) ** 2
    assert found[0.0].forgetting == pytest.approx([np.sqrt(10)], abs=1e-6)
    assert found[1.0].forgetting == pytest.approx([np.sqrt(kept)], abs=1e-6)
    assert found[1.0].backward_transfer == pytest.approx([-np.sqrt(kept)], abs=1e-6)
    assert found[0.0].adaptation == pytest.approx([0.0], abs=1e-6)
    assert found[1.0].adaptation == pytest.approx([np.sqrt(new) / 2], abs=1e-6)


def test_ewc_forgets_less_than_fedavg_on_permuted_inputs():
    """Less of the old experience is forgotten, and less of the new one learned."""
    stream = permuted(ragged(), 2, seed=0)
    training = Training(rounds=15, steps=4, batch_size=16, optimizer=SGD(0.1))
    options = {"execution": Execution("vmap", 7, False, "float64")}
    plain, held = (follow(stream, mlp, m, training, **options) for m in (fedavg(), ewc(10.0, 0.0)))
    assert plain.metric.name == "accuracy"
    assert float(held.forgetting.mean()) < 0.4 * float(plain.forgetting.mean())
    assert float(held.adaptation.mean()) < float(plain.adaptation.mean())


def test_an_absent_client_remembers_from_when_it_was_there():
    """A client that never took part has nothing to remember; one that did consolidates after every experience."""
    stream = stream_of(quadratic(), quadratic(optima=(1.0, 2.0, -1.0)), quadratic())
    runs = learned(stream, ewc(1.0), 2, scalar(), participation=Fixed([["a"], ["a"], ["b"], ["b"], ["a"], ["a"]]))
    assert personal(runs[0], "fisher") == close([1.0, 0.0, 0.0])
    assert personal(runs[1], "fisher") == close([2.0, 2.0, 0.0])
    assert runs[2].last.tolist() == [6, 4, 0]


def test_an_unseen_client_gets_the_global_model():
    done = learned(stream_of(quadratic(), quadratic()), ewc(), 2, scalar())[-1]
    newcomer = quadratic((2.0,), (9.0,), (5,), names=("z",))
    assert predictions(onboard(done, newcomer)) == [weight(done)]


@pytest.mark.parametrize("parameters", [{"lam": -1.0}, {"mu": -0.1}, {"decay": 1.5}])
def test_impossible_parameters_are_refused(parameters):
    with pytest.raises(PluresError, match="ewc: "):
        ewc(**parameters)


def test_a_degenerate_parameter_is_named():
    with pytest.warns(PluresWarning, match="is fedprox"):
        ewc(0.0)


# The stream -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [fedavg(), ditto(0.5), scaffold(), apfl(0.5), fedper(), local(), ifca(2)],
    ids=["fedavg", "ditto", "scaffold", "apfl", "fedper", "local", "ifca"],
)
@partial
def test_the_same_experience_twice_is_one_long_run(method, cohort):
    """Server values, personal leaves, memory and the count of rounds are carried over, bit for bit."""
    data = ragged()
    options = {"model": mlp, "training": {"batch_size": 8, "steps": 3}, "participation": cohort}
    halves = learned(stream_of(data, data), method, 2, **options)[-1]
    whole = run(method, 4, federation=data, model=mlp, batch_size=8, steps=3, participation=cohort)
    left, right = (done.states(list(range(7))) for done in (halves, whole))
    for slot in left:
        for path in left[slot]:
            assert torch.equal(left[slot][path], right[slot][path]), (slot, path)
    assert halves.round == whole.round == 4
    assert halves.last.tolist() == whole.last.tolist()


def test_the_schedule_of_the_learning_rate_begins_anew():
    stream = stream_of(quadratic(), quadratic())
    runs = learned(stream, fedavg(), 3, scalar(), training={"schedule": Cosine(0.1)})
    factors = [runs[1].engine.rate(Phase(), r) for r in range(6)]
    assert factors[:3] == factors[3:]
    assert factors[0] == 0.1
    assert factors == sorted(factors[:3], reverse=True) * 2


def test_runs_of_earlier_experiences_stay_as_they_ended():
    first, second = learned(stream_of(quadratic(), quadratic(optima=(5.0, 5.0, 5.0))), fedavg(), 2, scalar())
    assert weight(first) == weight(run(fedavg(), 2, steps=1))
    assert weight(second) != weight(first)


def test_between_experiences_nothing_travels():
    bad = Method(between=(Assign(("model",), lambda x, received, visit: {"model": x.model}),))
    done = run(bad, 1)
    with pytest.raises(PluresError, match=r"between experiences nothing travels, so model/weight cannot change"):
        conclude(done)


def test_composition_keeps_the_work_between_experiences():
    """EWC on the shared body, personal heads: the head is not held back by others."""
    both = fedper() + ewc(3.0, 0.0)
    assert len(both.between) == 1
    runs = learned(permuted(ragged(), 2), both, 2, mlp, training={"batch_size": 8, "steps": 2})
    heads = runs[-1].states(list(range(7)))["model"]["2.weight"]
    assert float((heads - heads.mean(0)).abs().max()) > 1e-3
    assert float(runs[0].states([0])["fisher"]["0.weight"].max()) > 0


# Scores ---------------------------------------------------------------------------------------------------------


def test_measures_by_hand():
    """Three experiences, two clients; the second client has no example of the second experience."""
    values = np.array(
        [
            [[0.9, 0.8], [0.3, np.nan], [0.1, 0.2]],
            [[0.95, 0.5], [0.8, np.nan], [0.2, 0.2]],
            [[0.6, 0.7], [0.7, np.nan], [0.9, 0.6]],
        ]
    )
    accuracy, rmse = CLASSIFICATION[0], REGRESSION[0]
    scores = StreamScores(accuracy, ("x", "y", "z"), ("a", "b"), values)
    assert scores.matrix == pytest.approx(np.array([[0.85, 0.3, 0.15], [0.725, 0.8, 0.2], [0.65, 0.7, 0.75]]))
    assert scores.final == pytest.approx([2.2 / 3, 0.65])
    assert scores.adaptation == pytest.approx([2.6 / 3, 0.7])
    assert scores.forgetting == pytest.approx([(0.35 + 0.1) / 2, 0.1])
    assert scores.backward_transfer == pytest.approx([(-0.3 - 0.1) / 2, -0.1])
    errors = StreamScores(rmse, ("x", "y", "z"), ("a", "b"), -values)
    assert errors.forgetting == pytest.approx(scores.forgetting)
    assert errors.backward_transfer == pytest.approx(scores.backward_transfer)


def test_scores_are_those_of_each_experience_alone():
    stream = permuted(ragged(), 2, seed=4)
    training = Training(rounds=2, steps=3, batch_size=8, optimizer=SGD(0.1))
    for split in ("validation", "test"):
        scores = follow(stream, mlp, fedavg(), training, split=split, execution=EXACT)
        runs = list(learn(stream, mlp, fedavg(), training, execution=EXACT))
        for row, done in enumerate(runs):
            assert scores.values[row, row].tolist() == score(done, split).values["accuracy"].tolist()
            for column, experience in enumerate(stream):
                here = score(on_experience(done, experience), split).values["accuracy"]
                assert scores.values[row, column].tolist() == here.tolist()
    assert scores.experiences == stream.names
    assert scores.clients == stream.clients


def test_a_client_adapts_to_the_experience_it_has_just_learned():
    """Fine-tuning before predicting may not use data of earlier experiences, which are gone."""
    stream = stream_of(points([[0.0, 0.0]]), points([[2.0, 2.0]]))
    training = Training(rounds=1, steps=1, batch_size=None, optimizer=SGD(0.1))
    scores = follow(stream, plane, fedavg_ft(steps=200, lr=0.1), training, execution=EXACT)
    assert scores.matrix == pytest.approx(np.array([[0.0, 2.0], [2.0, 0.0]]), abs=1e-6)


def test_what_cannot_be_scored_is_refused():
    training = Training(rounds=1)
    with pytest.raises(PluresError, match="has one experience"):
        follow(stream_of(quadratic()), scalar(), fedavg(), training)
    reader = Method(predict=Predict(outputs=lambda x, batch: batch.outputs(x.model), reads=("train",)))
    with pytest.raises(PluresError, match="reads the client's own examples"):
        follow(stream_of(quadratic(), quadratic()), scalar(), reader, training)
