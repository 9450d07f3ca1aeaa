"""Feature shifts change what they claim and nothing else; descriptions count correctly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plures.errors import PluresError, PluresWarning
from plures.federation import SPLITS, brightness, from_arrays, noise, rotate

RNG = np.random.default_rng(0)
PICTURES = RNG.random((60, 2, 5, 5)).astype(np.float32)
F = from_arrays(PICTURES, np.arange(60) % 3, np.repeat(list("abcd"), 15))


def rows_of(client: int) -> torch.Tensor:
    return torch.cat([F.splits[s][client] for s in SPLITS])


def test_quarter_turns_are_exact():
    turned = rotate(F, (0, 90, 180, -90))
    for i, quarters in enumerate((0, 1, 2, -1)):
        expected = np.rot90(PICTURES[rows_of(i).numpy()], quarters, (2, 3))
        np.testing.assert_array_equal(turned.inputs[rows_of(i)].numpy(), expected)
    assert turned.metadata["rotation"] == (0, 90, 180, -90)
    assert torch.equal(F.inputs, torch.from_numpy(PICTURES))


def test_other_angles_turn_the_same_way():
    exact, near = rotate(F, (90,)), rotate(F, (89.999,))
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(near.inputs[inner], exact.inputs[inner], atol=1e-3, rtol=0)
    centre = rotate(F, (37,)).inputs[:, :, 2, 2]
    torch.testing.assert_close(centre, F.inputs[:, :, 2, 2])


def test_brightness():
    bright = brightness(F, (1, 2), offsets=(0, -0.5), assignment={"a": 1, "b": 0, "c": 0, "d": 0})
    torch.testing.assert_close(bright.inputs[rows_of(0)], 2 * F.inputs[rows_of(0)] - 0.5)
    for i in (1, 2, 3):
        assert torch.equal(bright.inputs[rows_of(i)], F.inputs[rows_of(i)])
    assert bright.metadata["brightness"] == ((2, -0.5), (1, 0), (1, 0), (1, 0))


def test_noise_is_a_function_of_seed_and_row():
    noisy = noise(F, (0.0, 0.5), seed=3)
    added = noisy.inputs - F.inputs
    assert bool((added[rows_of(0)] == 0).all())
    assert float(added[rows_of(1)].std()) == pytest.approx(0.5, rel=0.1)
    alone = noise(F.subset(["b"]), (0.5,), seed=3)
    assert torch.equal(alone.inputs[rows_of(1)], noisy.inputs[rows_of(1)])
    assert not torch.equal(noise(F, (0.0, 0.5), seed=4).inputs, noisy.inputs)


def test_bad_shifts_are_named():
    flat = from_arrays(PICTURES.reshape(60, -1), np.arange(60) % 3, ["a"] * 60)
    with pytest.raises(PluresError, match=r"rotate: needs square pictures .* got \(50,\)"):
        rotate(flat, (90,))
    with pytest.raises(PluresError, match="noise: standard deviation -1 is negative"):
        noise(F, (-1,))
    with pytest.raises(PluresError, match="no entry for client 'b'"):
        rotate(F, (0,), assignment={"a": 0})
    with pytest.raises(PluresError, match=r"client 'a' has group 1, outside 0\.\.0"):
        rotate(F, (0,), assignment={"a": 1})
    with pytest.raises(PluresError, match="1 offsets for 2 factors"):
        brightness(F, (1, 2), offsets=(0,))
    with pytest.raises(PluresError, match="has this metadata column already"):
        rotate(rotate(F, (90,)), (90,))
    with pytest.raises(PluresError, match="give at least one value"):
        noise(F, ())


def test_description_counts():
    labels = np.array([0] * 30 + [1] * 10 + [0] * 10)
    with pytest.warns(PluresWarning, match="only one class"):
        f = from_arrays(np.zeros((50, 3)), labels, ["a"] * 20 + ["b"] * 30, metadata={"town": ("Linz", "Graz")})
    d = f.describe()
    assert [row.labels for row in d.clients] == [(20, 0), (20, 10)]
    assert d.label_skew == pytest.approx((0.2 + 2 / 15) / 2)
    assert (d.examples, d.missing) == (50, 0)
    assert dict(d.clients[1].sizes) == {s: len(f.splits[s][1]) for s in SPLITS}
    text = str(d)
    assert "2 clients, 50 examples (train 30, validation 7, test 13)" in text
    assert "Linz" in text
    assert "20 10" in text


def test_description_of_regression_and_of_many_clients():
    y = RNG.normal(size=400)
    f = from_arrays(np.zeros((400, 1)), y, np.arange(400) % 40)
    d = f.describe()
    assert d.label_skew is None
    first = y[np.arange(400) % 40 == 0]
    assert d.clients[0].target_mean[0] == pytest.approx(first.mean(), abs=1e-6)
    assert d.clients[0].target_std[0] == pytest.approx(first.std(), abs=1e-6)
    lines = str(d).splitlines()
    assert len(lines) < 25
    assert any(line.startswith("(median)") for line in lines)
