"""Partitions: their definitions hold, and they terminate."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from plures.errors import PluresError, PluresWarning
from plures.federation import (
    dirichlet_per_class,
    dirichlet_per_client,
    from_arrays,
    iid,
    load,
    partition,
    pathological,
    quantity_skew,
)
from plures.federation.datasets.folder import data_folder
from plures.federation.partition import READS, How, _refilled

LABELS = np.arange(6000) % 10


def table(owner: np.ndarray, labels: np.ndarray, clients: int) -> np.ndarray:
    counts = np.zeros((clients, labels.max() + 1), dtype=int)
    used = owner >= 0
    np.add.at(counts, (owner[used], labels[used]), 1)
    return counts


def test_iid_sizes_differ_by_at_most_one():
    sizes = np.bincount(iid(1003, 10))
    assert sizes.sum() == 1003
    assert sizes.max() - sizes.min() == 1
    assert np.ptp(table(iid(6000, 3), LABELS, 3)) < 100


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_dirichlet_per_client_gives_equal_sizes(alpha: float):
    owner = dirichlet_per_client(LABELS[:5999], 40, alpha=alpha)
    assert (np.bincount(owner[owner >= 0]) == 149).all()
    assert (owner == -1).sum() == 5999 - 40 * 149


def test_dirichlet_per_client_follows_its_prior():
    counts = table(dirichlet_per_client(LABELS, 6, alpha=1e7), LABELS, 6)
    assert abs(counts - 100).max() < 45  # multinomial: 4.7 standard deviations
    prior = np.linspace(1, 2, 10) / 15
    labels = np.arange(200_000) % 10
    drawn = table(dirichlet_per_client(labels, 100, alpha=1e7, prior=prior)[:20_000], labels[:20_000], 100)
    assert drawn.sum() == 20_000
    few = table(dirichlet_per_client(labels, 2000, alpha=1e7, prior=prior), labels, 2000)[:500].sum(0) / 50_000
    assert abs(few - prior).max() < 0.01


def test_dirichlet_per_client_has_the_variance_of_a_dirichlet():
    alpha, labels = 0.5, np.arange(400_000) % 4
    share = table(dirichlet_per_client(labels, 1000, alpha=alpha), labels, 1000)[:400] / 400
    expected = 0.25 * 0.75 / (alpha + 1)  # Var of Dir(alpha/4, ...), plus multinomial noise below 0.0005
    assert share.var(0).mean() == pytest.approx(expected, rel=0.15)


def test_dirichlet_per_class_uses_every_row_and_respects_min_size():
    owner = dirichlet_per_class(LABELS, 20, alpha=0.5, min_size=10)
    counts = table(owner, LABELS, 20)
    assert (counts.sum(0) == 600).all()
    assert counts.sum(1).min() >= 10
    assert np.ptp(counts.sum(1)) > 50
    assert abs(table(dirichlet_per_class(LABELS, 6, alpha=1e7), LABELS, 6) - 100).max() <= 1


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_pathological_gives_exactly_k_classes(k: int):
    counts = table(pathological(LABELS, 50, classes_per_client=k), LABELS, 50)
    assert ((counts > 0).sum(1) == k).all()
    assert counts.sum() == 6000
    holders = (counts > 0).sum(0)
    assert np.ptp(holders) <= 1


def test_quantity_skew_keeps_labels_alike():
    owner = quantity_skew(6000, 10, alpha=0.5, min_size=20)
    sizes = np.bincount(owner, minlength=10)
    assert sizes.sum() == 6000
    assert sizes.min() >= 20
    assert sizes.max() > 3 * sizes.min()
    largest = table(owner, LABELS, 10)[sizes.argmax()] / sizes.max()
    assert abs(largest - 0.1).max() < 0.05


def test_a_thousand_clients_and_small_alpha_end():
    labels = np.arange(60_000) % 10
    start = time.process_time()
    for how in ("iid", "dirichlet", "dirichlet_per_class", "pathological", "quantity"):
        given = {"alpha": 0.01, "min_size": 10, "classes_per_client": 2}
        owner = partition(labels, how, 1000, **{option: given[option] for option in READS[how]})
        sizes = np.bincount(owner[owner >= 0], minlength=1000)
        assert sizes.min() >= 10, how
    assert time.process_time() - start < 10


def test_partitions_are_pure_functions_of_the_seed():
    for how in ("iid", "dirichlet", "dirichlet_per_class", "pathological", "quantity"):
        alpha = {"alpha": 0.5} if "alpha" in READS[how] else {}
        first, again, other = (partition(torch.from_numpy(LABELS), how, 10, seed=s, **alpha) for s in (1, 1, 2))
        assert (first == again).all()
        assert (first != other).any()


def test_the_impossible_is_refused_at_once():
    with pytest.raises(
        PluresError, match="1000 clients with at least 10 rows each need 10000 rows, but there are 6000"
    ):
        dirichlet_per_class(LABELS, 1000, alpha=0.1)
    with pytest.raises(PluresError, match="classes_per_client=11: give 1 to 10"):
        pathological(LABELS, 5, classes_per_client=11)
    with pytest.raises(PluresError, match="class 7 has 1 rows for 6 clients"):
        pathological([3] * 10 + [7], 6, classes_per_client=2)
    with pytest.raises(PluresError, match="alpha=-1"):
        dirichlet_per_client(LABELS, 5, alpha=-1)
    with pytest.raises(PluresError, match="clients=0"):
        iid(10, 0)
    with pytest.raises(PluresError, match="min_size=0"):
        quantity_skew(10, 2, alpha=1.0, min_size=0)
    with pytest.raises(PluresError, match="partition 'fair' is unknown"):
        partition(LABELS, "fair")  # type: ignore[arg-type]
    with pytest.raises(PluresError, match="prior: give one positive weight for each of the 10"):
        dirichlet_per_client(LABELS, 5, alpha=1.0, prior=[1.0])


@pytest.mark.parametrize("how", READS)
def test_an_option_that_a_partition_does_not_read_is_refused(how: How):
    given = {"alpha": 0.1, "min_size": 10, "classes_per_client": 2}  # the defaults: giving them is no exception
    for option in given.keys() - READS[how]:
        with pytest.raises(PluresError, match=f"{option} has no effect on partition='{how}', which reads clients"):
            partition(LABELS, how, 5, **{option: given[option]})


def test_rows_of_a_class_that_nobody_holds_are_counted():
    with pytest.warns(PluresWarning, match="3600 of 6000 rows are not used: 2 clients of 2 classes hold 4 of 10"):
        owner = pathological(LABELS, 2, classes_per_client=2)
    assert (owner < 0).sum() == 3600


def test_rows_without_a_client_are_left_out():
    owner = dirichlet_per_client(LABELS[:103], 10, alpha=100.0)
    federation = from_arrays(np.zeros((103, 2)), LABELS[:103], owner)
    assert len(federation) == 10
    assert len(federation.inputs) == 100


@pytest.mark.parametrize("how", ["dirichlet", "dirichlet_per_class"])
@pytest.mark.parametrize("clients", [20, 1000])
def test_clients_are_of_fewer_classes_the_smaller_alpha_is(how: str, clients: int):
    labels = np.arange(20_000) % 10
    alphas = (0.001, 0.01, 0.1, 1.0, 10.0)
    owners = [partition(labels, how, clients, alpha=alpha) for alpha in alphas]  # type: ignore[arg-type]
    classes = [(table(owner, labels, clients) > 0).sum(1).mean() for owner in owners]
    assert classes == sorted(classes)
    assert classes[0] < 1.25
    assert classes[1] < 1.6
    assert min(np.bincount(owner, minlength=clients).min() for owner in owners) >= 10


def test_a_client_that_is_short_gets_rows_of_the_classes_it_was_drawn_for():
    shares = np.array([[30, 0, 0, 3], [0, 30, 0, 0]])
    expected = np.array([[30.0, 0.0, 0.4, 3.0], [0.0, 30.0, 0.0, 0.0]])
    refilled = _refilled(shares, expected, 5, np.random.default_rng(0))
    assert refilled.tolist() == [[23, 0, 5, 5], [0, 30, 0, 0]]
    enough = np.array([[5, 6], [7, 5]])
    assert _refilled(enough, enough.astype(float), 5, np.random.default_rng(0)).tolist() == enough.tolist()


@pytest.mark.skipif(not (data_folder() / "usps" / "usps.npz").is_file(), reason="data set usps is not there")
def test_options_that_a_partition_does_not_read_are_refused():
    with pytest.raises(PluresError, match="alpha has no effect on partition='iid', which reads clients; leave"):
        load("usps", partition="iid", alpha=0.1)
    with pytest.raises(
        PluresError, match="min_size has no effect on partition='dirichlet', which reads clients, alpha"
    ):
        load("usps", min_size=50)
