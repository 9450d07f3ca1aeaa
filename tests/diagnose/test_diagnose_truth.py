"""Federations whose truth is known: the right measure fires, the others do not, and the advice follows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import FIRES, WORLDS, world

import plures
from plures.diagnose import diagnose, fires
from plures.diagnose.chance import positive
from plures.diagnose.concept import concept_shift
from plures.diagnose.diagnosis import Diagnosis
from plures.diagnose.features import feature_shift
from plures.diagnose.labels import label_skew
from plures.diagnose.result import LEVEL
from plures.diagnose.sample import chosen_rows, sample
from plures.errors import PluresError
from plures.federation import Federation, Split, degrade
from plures.federation.seeding import generator


@pytest.fixture(scope="module")
def found() -> dict[str, Diagnosis]:
    return {name: diagnose(make(1), seed=1, rows_each=80) for name, make in WORLDS.items()}


@pytest.mark.parametrize("name", WORLDS)
def test_exactly_the_right_measures_fire(found, name):
    there = {kind for kind, yes in fires(found[name]).items() if yes}
    assert there == FIRES[name]


@pytest.mark.parametrize(
    ("name", "best"), [("none", "global"), ("features", "norm"), ("clusters", "clustered"), ("concept", "regularised")]
)
def test_advice_follows_the_truth(found, name, best):
    advice = found[name].advice
    assert advice.ranking[0].family == best
    assert advice.ranking[0].why
    assert advice.nothing_beats_fedavg == (name in ("none", "concept"))


def test_groups_are_found_and_named_by_the_metadata(found):
    groups = found["clusters"].clusters
    assert groups.count == 3
    assert groups.matches[0].column == "site"
    assert groups.matches[0].rand == pytest.approx(1)
    assert groups.matches[0].p <= LEVEL
    assert [family.family for family in found["clusters"].advice.besides] == ["coldstart"]


def test_learning_alone_against_together(found):
    """Alike clients: training together is better and corrections do not help. Different targets: the reverse."""
    same, different = found["none"].learning, found["concept"].learning
    assert same.pooling > 0.03
    assert same.personalising_p > 0.05
    assert different.pooling < -0.5
    assert different.personalising > 0.3
    assert different.personalising_p < 0.01
    for learning in (same, different):
        assert [point.part for point in learning.local] == [0.25, 0.5, 1.0]
        assert learning.local[0].error > learning.local[2].error


def test_false_alarms_of_labels_features_and_concepts_stay_rare():
    """Twelve federations of equal clients: at a level of 1 %, a test gives two alarms in one of 160 cases."""
    alarms = Counter[str]()
    for seed in range(12):
        federation = world(seed, clients=8, sizes=lambda client: 60)
        some = sample(federation, seed)
        concept = concept_shift(some, seed)
        alarms["labels"] += label_skew(federation, seed).p <= LEVEL
        alarms["features"] += feature_shift(some, seed).p <= LEVEL
        alarms["concept"] += concept.p <= LEVEL and concept.gain >= 0.01
    assert max(alarms.values()) <= 1, alarms


def test_power_over_seeds():
    """Each difference is found in at least nine of ten federations, and is not mistaken for another."""
    right, wrong = Counter[str](), Counter[str]()
    for seed in range(10):
        labels, features = WORLDS["labels"](seed), WORLDS["features"](seed)
        right["labels"] += label_skew(labels, seed).p <= LEVEL
        right["features"] += feature_shift(sample(features, seed), seed).p <= LEVEL
        wrong["labels taken for features"] += feature_shift(sample(labels, seed), seed).p <= LEVEL
        wrong["features taken for labels"] += label_skew(features, seed).p <= LEVEL
    assert min(right["labels"], right["features"]) >= 9, right
    assert max(wrong.values()) <= 1, wrong


def test_small_clients_look_skewed_by_chance_only():
    """With five rows per client the distance is large, but purely random."""
    federation = world(0, clients=40, sizes=lambda client: 9)
    dealt = torch.from_numpy(generator("labels").integers(0, 2, len(federation.targets)))
    found = label_skew(replace(federation, targets=dealt))
    assert found.distance > 0.1
    assert found.excess < 0.05
    assert found.p > LEVEL


def test_test_rows_are_never_read_and_validation_only_for_learning():
    """Destroying the test rows changes nothing at all; destroying validation rows changes only the learning curve."""
    federation = world(2, clients=4, sizes=lambda client: 40)

    def spoilt(split):
        inputs = federation.inputs.clone()
        rows = federation.splits[split].rows
        inputs[rows] = torch.from_numpy(generator(split).normal(size=(len(rows), inputs.shape[1])) * 50).float()
        targets = federation.targets.clone()
        targets[rows] = 1 - targets[rows]
        return diagnose(replace(federation, inputs=inputs, targets=targets)).model_dump(exclude={"seconds", "advice"})

    clean = diagnose(federation).model_dump(exclude={"seconds", "advice"})
    assert spoilt("test") == clean
    changed = spoilt("validation")
    assert changed.pop("learning") != clean.pop("learning")
    assert changed == clean


def test_a_function_of_the_seed_and_not_of_the_order_of_data():
    federation = world(3, clients=5, sizes=lambda client: 30)
    one, two = (diagnose(federation, seed=5).model_dump(exclude={"seconds"}) for _ in range(2))
    assert one == two
    assert diagnose(federation, seed=6).features.p != one["features"]["p"]


def test_quality_knows_who_is_poor():
    """Missing values from indicators; noise in series; reliability reported in metadata."""
    rng = generator("series")
    waves = np.sin(np.linspace(0, 6, 40)) * rng.normal(size=(360, 2, 1)) + 0.05 * rng.normal(size=(360, 2, 40))
    owner = np.array([f"c{i % 6}" for i in range(360)])
    clean = plures.from_arrays(waves.astype(np.float32), rng.integers(0, 2, 360), owner)
    before, after = (
        diagnose(f).quality for f in (clean, degrade(clean, noise={c: 1.0 if c < "c3" else 0.0 for c in clean.clients}))
    )
    assert before.noise_spread < 0.05
    assert after.noise_spread > 0.3
    assert after.noise_p <= LEVEL
    assert after.noise[0] == pytest.approx(0.5, abs=0.1)
    assert after.reliability_spread == pytest.approx(0.5)
    table = rng.normal(size=(300, 4))
    client = np.repeat(["a", "b", "c"], 100)
    table[:100, 1][rng.random(100) < 0.5] = np.nan
    gaps = diagnose(plures.from_arrays(table, rng.integers(0, 2, 300), client, missing="impute")).quality
    assert gaps.missing_from == "indicators"
    assert gaps.missing[0] == pytest.approx(0.5, abs=0.15)
    assert gaps.missing[1:] == [0, 0]
    assert gaps.missing_p <= LEVEL


def test_regression_and_tokens():
    """In regression, targets that differ by clients' own slopes are found; tokens have no network and no scaling."""
    rng = generator("regression")
    x = rng.normal(size=(800, 4))
    owner = np.arange(800) % 8
    slopes = np.where(owner % 2, 1.0, -1.0)
    y = slopes * x[:, 0] + 0.3 * rng.normal(size=800)
    names = np.array([f"c{i}" for i in owner])
    found = diagnose(plures.from_arrays(x.astype(np.float32), y.astype(np.float32), names))
    assert fires(found)["concept"]
    assert not fires(found)["features"]
    assert not fires(found)["labels"]
    same = diagnose(plures.from_arrays(x.astype(np.float32), (y * slopes).astype(np.float32), names))
    assert not any(fires(same).values())
    tokens = torch.from_numpy(rng.integers(0, 20, (800, 12)))
    tokens[np.flatnonzero(owner < 4), :6] = 3
    read = diagnose(replace(same_labels(x, names, rng), inputs=tokens))
    assert fires(read)["features"]
    assert read.features.removed is None
    assert read.clusters.model == "linear probe"


def same_labels(x: np.ndarray, names: np.ndarray, rng: np.random.Generator) -> Federation:
    """Labels that nothing explains."""
    return plures.from_arrays(x.astype(np.float32), rng.integers(0, 2, len(x)), names)


def test_caps_are_kept_and_told():
    federation = world(0, clients=9, sizes=lambda client: 100)
    found = diagnose(federation, clients=4, rows=120, rows_each=30)
    assert len(found.looked.clients) == 4
    assert found.looked.train_rows == 120
    assert found.looked.of_clients == 9
    assert len(found.labels.clients) == 9
    assert any("4 of 9 clients" in limit for limit in found.advice.cannot_know)
    rows, owner = chosen_rows(federation, "train", 0, 120, 30)
    assert len(rows) == len(set(rows.tolist()))
    assert all(row in federation.splits["train"][o] for row, o in zip(rows.tolist(), owner.tolist(), strict=True))


def test_clear_errors():
    federation = world(0, clients=3, sizes=lambda client: 30)
    with pytest.raises(PluresError, match="needs at least two"):
        diagnose(federation.subset(["c00"]))
    with pytest.raises(PluresError, match="rows_each=1; give at least 2"):
        diagnose(federation, rows_each=1)
    empty = Split.of([torch.empty(0, dtype=torch.int64)] * 3)
    with pytest.raises(PluresError, match="no validation rows"):
        diagnose(replace(federation, splits={**federation.splits, "validation": empty}))


def test_sign_test_of_gains_holds_its_level():
    rng = np.random.default_rng(0)
    assert sum(positive(rng.normal(size=60), rng, 199) <= 0.05 for _ in range(200)) <= 18
