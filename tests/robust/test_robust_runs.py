"""Robust combinations inside runs: rounds by hand, every method and share, resume, and what is refused in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.federation import SPLITS, Federation, Split
from plures.method import SGD, Combine, Method
from plures.methods import ditto, fedavg, fedrep, metadata_clusters, qffl, scaffold
from plures.robust import (
    REDUCERS,
    Bucketing,
    CentredClip,
    Clipped,
    FoolsGold,
    GeometricMedian,
    Krum,
    Median,
    Neighbours,
    NormBound,
)
from plures.run import Execution, Run, Training, Uniform
from plures.run.checkpoint import restore, snapshot
from plures.tasks import Classification
from problems import at_rest, begun, close, near, personal, quadratic, run, scalar, weight

FIRST = (-0.19, 0.18, 1.92)
"""What the clients of Q3 send after two steps from 0."""


def with_reducer(method: Method, reducer: object) -> Method:
    return method + Method(combine=Combine(reduce=reducer))


def test_the_median_of_three_uploads() -> None:
    """Round 1: the second client's 0.18. From there, x_i = b_i + (1 - 0.1 a_i)^2 (w - b_i): the second again."""
    done = run(find_method("fedavg+median")(), 1)
    assert weight(done) == close(0.18)
    assert weight(run(find_method("fedavg+median")(), 2)) == close(0.5 + 0.64 * (0.18 - 0.5))


def test_sizes_count_in_the_geometric_median_alone() -> None:
    """On a line, the weights 10, 20, 30 make every point between the second and the third upload a median."""
    found = weight(run(with_reducer(fedavg(), GeometricMedian(500)), 1))
    assert 0.18 - 1e-3 <= found <= 1.92 + 1e-3
    assert weight(run(with_reducer(fedavg(), Median()), 1)) == close(0.18)


def test_a_reducer_combines_all_blocks_of_a_method() -> None:
    """Controls after one round: (w - x_i) / (2 lr) = 0.95, -0.9, -9.6; their median is the second's."""
    done = run(scaffold() + Method(combine=Combine(reduce=Median())), 1)
    assert weight(done) == close(0.18)
    assert weight(done, "control") == close(-0.9)


def test_personal_models_follow_the_robust_model() -> None:
    """Ditto with lam = 1 pulls every personal model towards what was sent: in round 2, towards 0.18."""
    done = run(with_reducer(ditto(lam=1.0), Median()), 2)
    assert weight(done) == close(0.5 + 0.64 * (0.18 - 0.5))
    expected = []
    for a, b in ((1, -1), (2, 0.5), (4, 3)):
        v = 0.0
        for sent in (0.0, 0.18):
            for _ in range(2):
                v -= 0.1 * (a * (v - b) + (v - sent))
        expected.append(v)
    assert personal(done, "personal") == close(expected)


@pytest.mark.oracle("NB1")
@pytest.mark.parametrize("reducer", [NormBound(float("inf")), GeometricMedian(0), Bucketing(1)], ids=repr)
def test_without_a_bound_a_run_is_the_plain_run(reducer) -> None:
    """Bit for bit, with several leaves; buckets of one come in another order, and their sum may round otherwise."""
    random = torch.Generator().manual_seed(4)
    sizes = (8, 8, 8) if reducer == Bucketing(1) else (4, 8, 12)
    split = Split.of(list(torch.arange(sum(sizes)).split(list(sizes))))
    x, y = torch.randn(sum(sizes), 20, generator=random), torch.randint(3, (sum(sizes),), generator=random)
    federation = Federation("rows", Classification(tuple("abc")), x, y, tuple("def"), dict.fromkeys(SPLITS, split))

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 13), nn.ReLU(), nn.Linear(13, 3))

    runs = [
        Run(federation, network, method, Training(3, 4, optimizer=SGD(0.1)), execution=Execution("vmap", 16, False))
        for method in (fedavg(), with_reducer(fedavg(), reducer))
    ]
    for one in runs:
        for _ in one.rounds():
            pass
    plain, bound = (one.states([0])["model"] for one in runs)
    if reducer == Bucketing(1):
        for path, t in plain.items():
            torch.testing.assert_close(bound[path], t, atol=1e-6, rtol=0)
    else:
        assert all(torch.equal(t, bound[path]) for path, t in plain.items())


@pytest.mark.oracle("NB2")
def test_a_small_bound_leads_to_a_weighted_median() -> None:
    """Bound .05, from 0: the first client's change is -.05 and the third's .05, the second's .36 (.5 - w).

    With weights 1/6, 1/3 and 1/2 their sum is 0 at w = .5 + (.025 - .05 / 6) / (.36 / 3). Farther up the second's is
    -.05 as well, and nothing moves either: the first two weigh as much as the third.
    """
    method = with_reducer(fedavg(), NormBound(0.05))
    limit = 0.5 + (0.025 - 0.05 / 6) / (0.36 / 3)
    assert limit == pytest.approx(0.638888889, abs=5e-10)
    assert weight(at_rest(method, 300)) == close(limit)
    assert weight(run(method, 20, model=scalar(2.0))) == close(2.0)


def test_one_step_is_worked_out_from_uploads_far_away() -> None:
    """Client c claims 100: the mean goes along, the median does not notice."""
    far = quadratic(optima=(-1.0, 0.5, 100.0))
    assert weight(run(fedavg(), 1, federation=far)) > 30
    assert weight(run(with_reducer(fedavg(), Median()), 1, federation=far)) == close(0.18)


@pytest.mark.parametrize("reducer", [CentredClip(0.5), FoolsGold()], ids=repr)
def test_what_a_reducer_remembers_is_resumed(reducer) -> None:
    whole = run(with_reducer(fedavg(), reducer), 4, participation=Uniform(2 / 3))
    half = begun(with_reducer(fedavg(), reducer), 4, participation=Uniform(2 / 3))
    rounds = half.rounds()
    next(rounds)
    next(rounds)
    again = begun(with_reducer(fedavg(), reducer), 4, participation=Uniform(2 / 3))
    restore(again, snapshot(half))
    for _ in again.rounds():
        pass
    assert all(torch.equal(t, snapshot(whole)[k]) for k, t in snapshot(again).items())


def test_every_cluster_is_combined_by_itself() -> None:
    """Of the two clusters one has two members, whose median is their mean, and one has one."""
    sizes = replace(quadratic(sizes=(20, 20, 20)), metadata={"group": ("x", "x", "y")})
    grouped = metadata_clusters()
    robust, plain = (run(m, 3, federation=sizes) for m in (with_reducer(grouped, Median()), grouped))
    assert near(robust.states([0, 1, 2])["model"], plain.states([0, 1, 2])["model"])
    shared = run(with_reducer(fedavg(), Median()), 3, federation=sizes)
    assert not near(robust.states([0, 1, 2])["model"], shared.states([0, 1, 2])["model"])


def test_what_does_not_fit_is_refused_before_training() -> None:
    with pytest.raises(PluresError, match="krum: it needs the uploads of at least 5 clients, and the federation has 3"):
        begun(with_reducer(fedavg(), Krum(1)), 1)
    with pytest.raises(PluresError, match="both change how 'model' is combined: reduce"):
        with_reducer(with_reducer(fedavg(), Median()), Krum(1))
    with pytest.raises(PluresError, match="no method 'medan'; did you mean 'median'"):
        find_method("fedavg+medan")


def test_parts_by_name_are_the_objects() -> None:
    built = find_method("fedrep+bucketing(size=2)+krum(f=1)")()
    assert built.combine == Combine(reduce=Bucketing(2, then=Krum(1)))
    assert built == fedrep() + Method(combine=Combine(reduce=Bucketing(2))) + Method(combine=Combine(reduce=Krum(1)))
    four = find_method("fedavg+arc(f=2)+nnm(f=2)+bucketing+median")().rules["model"].reduce
    assert four == Clipped(2, then=Neighbours(2, then=Bucketing(2, then=Median())))
    for name in REDUCERS.keys() - {"fltrust"}:
        find_method(f"qffl+{name}")
    assert isinstance(qffl(), Method)
