"""Robust combinations: numbers worked out by hand, properties that hold for all uploads, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plures.entropy import normal_of
from plures.errors import PluresError, PluresWarning
from plures.method import Arrived, Reducer
from plures.robust import (
    Bucketing,
    Bulyan,
    CentredClip,
    Clipped,
    DivideAndConquer,
    Flame,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    Neighbours,
    NormBound,
    SmallestDiameter,
    TrimmedMean,
)
from plures.robust.foolsgold import learning
from plures.robust.krum import distances, scores
from plures.robust.robust import JUDGED
from plures.robust.subsets import outlying

P5 = [(0, 0), (1, 0), (0, 2), (1, 1), (10, 10)]
U = [(1, 0), (1.1, 0), (0.9, 0.1), (1, 0.1), (1.05, -0.1), (0.95, 0.05), (10, -10)]
CORNER = [(0, 0), (1, 0), (0, 1)]
QUADRILATERAL = [(0, 0), (3, 0), (2, 2), (0, 1)]
OBTUSE = [(0, 0), (1, 0), (-1, 0.5)]


def table(rows: Any) -> torch.Tensor:
    found = torch.as_tensor(rows, dtype=torch.float64)
    return found[:, None] if found.dim() == 1 else found


def arrived(rows: torch.Tensor, reducer: Reducer, old: torch.Tensor | None = None, **more: Any) -> Arrived:
    """Uploads of one block as they come from a run: all clients, equal weights, a population of the same size."""
    n, d = rows.shape
    old = torch.zeros(d, dtype=torch.float64) if old is None else old
    names = tuple(f"c{i}" for i in range(n))
    order = torch.arange(n, dtype=torch.float64) / n
    cohort: Any = SimpleNamespace(
        round=0,
        setting=SimpleNamespace(clients=names),
        key=lambda name: 7,
        draw=lambda name, count: order[:count],
        normal=lambda name, *shape: normal_of(7, *shape),
    )
    memory = {k: t[0] for k, t in reducer.start(old[None], n).items()}
    known = Arrived(old, torch.ones(n, dtype=torch.float64), torch.arange(n), rows - old, memory, None, cohort)
    return replace(known, **more)


def combined(reducer: Reducer, rows: Any, **more: Any) -> torch.Tensor:
    rows = table(rows)
    return reducer.reduce(rows, arrived(rows, reducer, **more))[0]


def proving(oracle: str, *cases: tuple[Reducer, Any, tuple[float, ...]]) -> list[Any]:
    """Cases of a test that prove an oracle together."""
    return [pytest.param(*case, marks=pytest.mark.oracle(oracle)) for case in cases]


@pytest.mark.parametrize(
    ("reducer", "rows", "expected"),
    [
        *proving(
            "CM0",
            (Median(), P5, (1, 1)),
            (Median(), [1, 2, 10, 11], (6,)),
            (Median(), U, (1, 0)),
            (TrimmedMean(1), P5, (2 / 3, 1)),
            (TrimmedMean(1), U, (1.02, 0.01)),
        ),
        *proving(
            "CM1",
            (TrimmedMean(0), U, (16 / 7, -9.85 / 7)),
            (TrimmedMean(2), P5, (1, 1)),
            (TrimmedMean(3), U, (1, 0)),
        ),
        *proving(
            "KR1",
            (Krum(1), P5, (1, 0)),
            (Krum(1), [0, 1, 2, 4, 5], (1,)),
            (Krum(1), [0, 1, 5, 8, 11], (1,)),
            (Krum(1), U, (1, 0)),
            (MultiKrum(1, 2), P5, (0.5, 0)),
            (MultiKrum(1, 3), P5, (2 / 3, 1 / 3)),
            (MultiKrum(1, 4), P5, (0.5, 0.75)),
            (MultiKrum(1), P5, (0.5, 0.75)),
            (MultiKrum(1, 4), U, (1.0125, 0.0375)),
            (MultiKrum(1, 6), U, (1, 0.025)),
        ),
        *proving("BY0", (Bulyan(1), U, (0.98333333333333, 0.05))),
        *proving(
            "GM0",
            (GeometricMedian(3), P5, (0.9128161887, 0.9795553820)),
            (GeometricMedian(0), P5, (2.4, 2.6)),
            (GeometricMedian(1), CORNER, (0.2792407799,) * 2),
            (GeometricMedian(2), CORNER, (0.2526956616,) * 2),
            (GeometricMedian(3), CORNER, (0.2376728388,) * 2),
            (GeometricMedian(4), CORNER, (0.2285352659,) * 2),
            (GeometricMedian(5), CORNER, (0.2227415653,) * 2),
            (GeometricMedian(200), CORNER, ((3 - 3**0.5) / 6,) * 2),
            (GeometricMedian(500), QUADRILATERAL, (0.75, 0.75)),
            (GeometricMedian(3000, 1e-9), OBTUSE, (0, 0)),
        ),
        *proving("NB0", (NormBound(1.0), U, (0.93537706, -0.07891602))),
        *proving(
            "CC0",
            (CentredClip(1.5, 1), [0, 1, 2, 4, 100], (1.1,)),
            (CentredClip(1.5, 2), [0, 1, 2, 4, 100], (1.64,)),
            (CentredClip(1.5, 3), [0, 1, 2, 4, 100], (1.884,)),
            (CentredClip(1.5, 4), [0, 1, 2, 4, 100], (2.0304,)),
            (CentredClip(1.5, 5), [0, 1, 2, 4, 100], (2.11824,)),
            (CentredClip(1.5, 400), [0, 1, 2, 4, 100], (2.25,)),
            (CentredClip(1e9, 1), [0, 1, 2, 4, 100], (21.4,)),
            (CentredClip(1e-3, 20_000), [0, 1, 2, 4, 100], (2,)),
            (CentredClip(1.0, 1), P5, (0.4828427125,) * 2),
            (CentredClip(1.0, 2), P5, (0.6739050656, 0.7251395736)),
            (CentredClip(1.0, 3), P5, (0.7179054612, 0.8079032270)),
            (CentredClip(1.0, 300), P5, (0.7524885431, 0.8846367065)),
        ),
        *proving(
            "BU0",
            (Bucketing(2), P5, ((0.5 + 0.5 + 10) / 3, (0 + 1.5 + 10) / 3)),
            (Bucketing(2, then=Median()), P5, (0.5, 1.5)),
        ),
        *proving(
            "RB0",
            (SmallestDiameter(1), P5, (0.5, 0.75)),
            (SmallestDiameter(2), P5, (2 / 3, 1 / 3)),
            (DivideAndConquer(1), P5, (0.5, 0.75)),
            (Neighbours(1), P5, (1, 1.25)),
            (Neighbours(1, then=TrimmedMean(1)), P5, (0.5, 0.75)),
            (Neighbours(1, then=Krum(1)), P5, (0.5, 0.75)),
            (Clipped(1), P5, ((2 + 2**0.5) / 5, (3 + 2**0.5) / 5)),
            (Clipped(1, then=Median()), P5, (1, 1)),
            (Flame(0.0), [(1, 0), (1, 0.2), (2, 0.1), (0.9, -0.1), (-3, 3)], (0.9796328833, 0.0377316442)),
        ),
        *proving(
            "TR0",
            (FLTrust("c0"), [(1, 0), *U], (0.96651964, -0.04979414)),
        ),
    ],
)
def test_numbers_by_hand(reducer: Reducer, rows: Any, expected: tuple[float, ...]) -> None:
    atol = 3e-3 if reducer == CentredClip(1e-3, 20_000) else 1e-8
    torch.testing.assert_close(combined(reducer, rows), table([expected])[0], atol=atol, rtol=0)


@pytest.mark.oracle("KR0")
def test_scores_of_krum_by_hand() -> None:
    assert scores(distances(table(P5)), 1).tolist() == [3, 2, 6, 3, 326]
    assert scores(distances(table([0, 1, 2, 4, 5])), 1).tolist() == [5, 2, 5, 5, 10]
    found = scores(distances(table(U)), 1)
    assert found.tolist() == pytest.approx([0.0375, 0.0675, 0.085, 0.045, 0.1, 0.04, 721.2275])


@pytest.mark.oracle("TR1")
def test_uploads_as_long_as_the_trusted_and_as_like_it_are_averaged() -> None:
    """Their cosines with the root (2, 0, 0) are all .6, and all lengths are 2, so that all count the same."""
    others = 2 * table([(0.6, 0.8, 0), (0.6, -0.8, 0), (0.6, 0, 0.8), (0.6, 0.48, 0.64)])
    found = combined(FLTrust("c0"), torch.cat([table([(2, 0, 0)]), others]))
    torch.testing.assert_close(found, others.mean(0), atol=1e-12, rtol=0)
    same = table([(2, 0, 0)]).expand(5, 3)
    torch.testing.assert_close(combined(FLTrust("c0"), same), same.mean(0), atol=1e-12, rtol=0)


@pytest.mark.oracle("RB0")
def test_scores_of_divide_and_conquer_by_hand() -> None:
    assert outlying(table(P5)).tolist() == pytest.approx([12.4922, 7.9652, 4.5385, 4.4955, 112.5157], abs=5e-5)


@pytest.mark.parametrize(
    ("reducer", "left_out"),
    [
        (Krum(1), [0, 2, 3, 4]),
        (MultiKrum(1), [4]),
        (MultiKrum(1, 3), [2, 4]),
        (SmallestDiameter(1), [4]),
        (DivideAndConquer(1), [4]),
        (Clipped(1, then=MultiKrum(1)), [2]),
        (Bucketing(1, then=MultiKrum(1)), [4]),
        (FLTrust("c1"), [0, 2]),
        (FoolsGold(), [3, 4]),
    ],
    ids=repr,
)
def test_who_is_left_out_is_counted(reducer: Reducer, left_out: list[int]) -> None:
    """Twice the same uploads: everybody is judged twice; who is left out is left out twice.

    (0, 2) is left out after (10, 10) was shortened to (1.41, 1.41), and is at right angles to the trusted (1, 0), as
    (0, 0) is to everything. (1, 1) and (10, 10) have one direction.
    """
    rows = table(P5)
    memory = reducer.reduce(rows, arrived(rows, reducer))[1]
    memory = reducer.reduce(rows, arrived(rows, reducer, memory=memory))[1]
    assert memory[JUDGED].tolist() == [[2] * 5, [2 * (i in left_out) for i in range(5)]]


def test_all_of_a_bucket_are_left_out_with_it() -> None:
    reducer, rows = Bucketing(2, then=SmallestDiameter(1)), table([*P5[:4], (10, 10), (9, 9)])
    memory = reducer.reduce(rows, arrived(rows, reducer))[1]
    assert memory[JUDGED][1].tolist() == [0, 0, 0, 0, 1, 1]


def test_combinations_that_choose_nobody_count_nothing() -> None:
    for reducer in (Median(), Bucketing(2, then=Median()), Neighbours(1, then=Krum(1)), NormBound(1.0)):
        assert JUDGED not in reducer.start(torch.zeros(1, 2), 5)


@pytest.mark.parametrize(
    ("reducer", "uploads", "stands"),
    [
        (Median(), 10, 4),
        (TrimmedMean(2), 10, 2),
        (Krum(2), 7, 2),
        (Krum(2), 6, 0),
        (GeometricMedian(), 5, 2),
        (FLTrust("c0"), 5, 4),
        (NormBound(), 5, None),
        (Bucketing(2, then=Median()), 10, 2),
        (Neighbours(3, then=Median()), 10, 3),
        (Neighbours(1), 10, 0),
        (Clipped(2, then=NormBound()), 10, None),
    ],
    ids=repr,
)
def test_how_many_hostile_uploads_are_stood(reducer: Any, uploads: int, stands: int | None) -> None:
    assert reducer.stands(uploads) == stands


@pytest.mark.oracle("RB1")
@pytest.mark.parametrize(
    ("hostile", "mean", "geometric", "krum", "attacker"),
    [(0, 0.05, 0.05, 36, None), (3, 0.0435, 0.016934, 33, 16), (4, 0.0417, 0.005512, 32, 15), (5, 0.04, 0, 31, 14)],
)
def test_clients_that_all_differ_are_harmed_by_robustness_itself(hostile, mean, geometric, krum, attacker) -> None:
    """Twenty honest clients with orthonormal changes, the others at zero: the median is zero without any attacker."""
    rows = torch.cat([torch.eye(20, dtype=torch.float64), torch.zeros(hostile, 20, dtype=torch.float64)])
    assert combined(Median(), rows).abs().max() == 0
    assert hostile == 0 or combined(TrimmedMean(hostile), rows).abs().max() == 0
    assert combined(CentredClip(1.0, 1), rows).tolist() == pytest.approx([mean] * 20, abs=5e-5)
    assert combined(GeometricMedian(2000), rows).tolist() == pytest.approx([geometric] * 20, abs=2e-5)
    found = scores(distances(rows), hostile)
    assert found[0] == pytest.approx(krum)
    if attacker is not None:
        assert found[-1] == pytest.approx(attacker)
        assert combined(Krum(hostile), rows).tolist() == [0.0] * 20


@pytest.mark.oracle("GM0")
def test_a_weight_of_two_is_two_uploads() -> None:
    twice = combined(GeometricMedian(50), [CORNER[0], *CORNER])
    weights = torch.tensor([2.0, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(combined(GeometricMedian(50), CORNER, weights=weights), twice, atol=1e-12, rtol=0)


@pytest.mark.oracle("FG0")
def test_colluders_learn_nothing() -> None:
    """Two clients that always move alike get weight 0; the other two move the model by their mean."""
    history = table([(1, 0), (0, 1), (-1, -1), (-1, -1)])
    assert learning(history, 1.0).tolist() == [1, 1, 0, 0]
    reducer = FoolsGold()
    value, memory = reducer.reduce(history, arrived(history, reducer))
    assert value.tolist() == [0.5, 0.5]
    assert memory["sum"].tolist() == history.tolist()
    again = arrived(history, reducer, memory=memory)
    assert reducer.reduce(history, again)[1]["sum"].tolist() == (2 * history).tolist()


def test_noise_of_flame_is_of_the_median_length() -> None:
    rows = torch.ones(5, 20_000, dtype=torch.float64) / 20_000**0.5
    noise = combined(Flame(0.5), rows) - rows[0]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(noise.mean())) < 0.02


ALL = (
    *(Median(), TrimmedMean(2), Krum(2), MultiKrum(2), MultiKrum(2, 3), Bulyan(2), GeometricMedian(), NormBound(2.0)),
    *(CentredClip(2.0), FLTrust("c0"), Flame(0.0), Bucketing(2), Bucketing(2, then=GeometricMedian()), FoolsGold()),
    *(SmallestDiameter(2), DivideAndConquer(2), DivideAndConquer(1, 1.5, 3), Neighbours(2), Clipped(2)),
    *(Neighbours(2, then=Krum(2)), Clipped(2, then=TrimmedMean(2)), Clipped(2, then=Neighbours(2, then=Median()))),
)
ORDERED = (FLTrust, Bucketing, Bulyan)
"""Their result depends on who the clients are, or on the order in which they are drawn."""
WITH_ORIGIN = (NormBound, CentredClip, FLTrust, Flame, FoolsGold, Clipped)
"""They measure changes from the value that was sent out, so that moving the uploads alone changes more."""


def name(reducer: Reducer) -> str:
    return repr(reducer)


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(11, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.oracle("RB2")
@pytest.mark.parametrize("reducer", [r for r in ALL if not isinstance(r, ORDERED)], ids=name)
def test_the_order_of_clients_does_not_matter(reducer: Reducer, rows: torch.Tensor) -> None:
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(combined(reducer, rows[order]), combined(reducer, rows), atol=1e-12, rtol=0)


@pytest.mark.oracle("RB2")
@pytest.mark.parametrize("reducer", [r for r in ALL if not isinstance(r, FoolsGold)], ids=name)
def test_uploads_that_agree_are_the_result(reducer: Reducer) -> None:
    rows = torch.tensor([[0.5, -1.0, 0.25]], dtype=torch.float64).expand(11, 3)
    torch.testing.assert_close(combined(reducer, rows), rows[0], atol=1e-12, rtol=0)


@pytest.mark.oracle("RB2")
@pytest.mark.parametrize("reducer", ALL, ids=name)
def test_moving_everything_moves_the_result(reducer: Reducer, rows: torch.Tensor) -> None:
    shift = torch.arange(6, dtype=torch.float64)
    here, there = combined(reducer, rows), combined(reducer, rows + shift, old=shift)
    torch.testing.assert_close(there, here + shift, atol=1e-9, rtol=0)
    if not isinstance(reducer, WITH_ORIGIN):
        torch.testing.assert_close(combined(reducer, rows + shift), here + shift, atol=1e-9, rtol=0)


@pytest.mark.oracle("NB3")
@pytest.mark.parametrize("reducer", [NormBound(2.0), CentredClip(2.0)], ids=name)
def test_clipping_has_an_origin(reducer: Reducer, rows: torch.Tensor) -> None:
    assert float((combined(reducer, rows + 10) - combined(reducer, rows) - 10).abs().max()) > 1


@pytest.mark.oracle("RB2")
@pytest.mark.parametrize("reducer", [r for r in ALL if not isinstance(r, NormBound | CentredClip)], ids=name)
def test_the_result_scales_with_the_uploads(reducer: Reducer, rows: torch.Tensor) -> None:
    torch.testing.assert_close(combined(reducer, 8 * rows), 8 * combined(reducer, rows), atol=1e-9, rtol=1e-6)


@pytest.mark.oracle("RB3")
@pytest.mark.parametrize(
    "reducer",
    [r for r in ALL if not isinstance(r, FLTrust | Flame | FoolsGold | Bucketing) and r != Neighbours(2)],
    ids=name,
)
def test_two_of_eleven_cannot_carry_the_result_away(reducer: Reducer, rows: torch.Tensor) -> None:
    """The honest uploads lie within 5 of zero; two go to 1e6, where the mean would be at 1.8e5."""
    rows[[2, 7]] = 1e6
    reducer = GeometricMedian(200) if isinstance(reducer, GeometricMedian) else reducer  # three steps only begin to
    assert float(combined(reducer, rows).norm()) < 20
    assert float(rows.mean(0).norm()) > 1e5


@pytest.mark.oracle("NB1", "CM1")
@pytest.mark.parametrize(
    "reducer", [TrimmedMean(0), GeometricMedian(0), NormBound(float("inf")), MultiKrum(0), Bucketing(1)], ids=name
)
def test_without_a_bound_it_is_the_mean(reducer: Reducer, rows: torch.Tensor) -> None:
    torch.testing.assert_close(combined(reducer, rows), rows.mean(0), atol=1e-12, rtol=0)


@pytest.mark.oracle("RB4")
@pytest.mark.parametrize("reducer", ALL, ids=name)
def test_what_is_no_number_is_left_out_by_name(reducer: Reducer, rows: torch.Tensor) -> None:
    whole = torch.cat([rows, torch.full((1, 6), torch.nan, dtype=torch.float64)])
    with pytest.warns(PluresWarning, match=r"round 1 goes on without 'c11', whose upload has infinite or undefined"):
        found = combined(reducer, whole)
    assert found.isfinite().all()
    if not isinstance(reducer, Bucketing):
        torch.testing.assert_close(found, combined(reducer, rows), atol=1e-12, rtol=0)


@pytest.mark.oracle("RB5")
@pytest.mark.parametrize(
    ("reducer", "least"),
    [
        (TrimmedMean(2), 5),
        (Krum(2), 7),
        (MultiKrum(1), 5),
        (Bulyan(1), 7),
        (Bucketing(2, then=Krum(1)), 9),
        (SmallestDiameter(2), 5),
        (DivideAndConquer(1, 1.5, 2), 5),
        (Neighbours(2), 5),
        (Clipped(1, then=Krum(1)), 5),
    ],
    ids=name,
)
def test_too_few_uploads_are_refused_with_the_number(reducer: Any, least: int, rows: torch.Tensor) -> None:
    combined(reducer, rows[:least])
    with pytest.raises(PluresError, match=rf"at least {least} uploads to a model, and round 1 brought {least - 1}"):
        combined(reducer, rows[: least - 1])
    with pytest.raises(PluresError, match=rf"of at least {least} clients, and the federation has {least - 1}: lower f"):
        reducer.check(least - 1)


def test_too_many_subsets_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(PluresError, match="mda: 44 uploads without f=5 have 1086008 subsets, too many to try"):
        combined(SmallestDiameter(5), rows.repeat(4, 1), old=rows[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrimmedMean(-1), "trimmed_mean: f=-1; give the number of uploads that may be hostile, 0 or more"),
        (lambda: MultiKrum(1, 0), "multi_krum: keep=0; give the number of uploads that count"),
        (lambda: GeometricMedian(-1), "geometric_median: steps=-1"),
        (lambda: GeometricMedian(nu=0), "geometric_median: nu=0"),
        (lambda: NormBound(0), "norm_bound: norm=0; give a positive number"),
        (lambda: CentredClip(0), "centred_clip: tau=0"),
        (lambda: CentredClip(steps=0), "centred_clip: steps=0"),
        (lambda: FLTrust(), "fltrust: name the client that is trusted"),
        (lambda: Flame(-1), "flame: noise=-1"),
        (lambda: Flame(cosine=2), "flame: cosine=2; give a number from -1 to 1"),
        (lambda: Bucketing(0), "bucketing: size=0"),
        (lambda: SmallestDiameter(-1), "mda: f=-1"),
        (lambda: DivideAndConquer(c=0), "dnc: c=0"),
        (lambda: DivideAndConquer(repeat=0), "dnc: repeat=0"),
        (lambda: Neighbours(True), "nnm: f=True"),
        (lambda: Clipped(-1), "arc: f=-1"),
        (lambda: Neighbours(1, then=FLTrust("a")), "fltrust must see the upload of each client: leave nnm out"),
        (lambda: Bucketing(2, then=FoolsGold()), "foolsgold must see the upload of each client: leave bucketing out"),
    ],
)
def test_impossible_parameters_are_one_sentence(make: Any, said: str) -> None:
    with pytest.raises(PluresError, match=said.replace("(", r"\(")):
        make()
