"""Local differential privacy: probabilities, unbiasedness and variances of single answers."""

from __future__ import annotations

import math

import pytest
import torch

from plures.errors import PluresError
from plures.privacy import Response, duchi, response

COUNT = 200_000
EVENLY = (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
"""Numbers in [0, 1) at equal distances: frequencies are probabilities to 1 / COUNT."""


@pytest.mark.oracle("LD0")
@pytest.mark.parametrize(
    ("epsilon", "size", "variance"), [(1.0, 2.1639534137, 4.5226943768), (3.0, 1.1047913930, 1.0605640220)]
)
def test_one_bit_for_a_bounded_number(epsilon, size, variance):
    said = duchi(torch.full((COUNT,), 0.4, dtype=torch.float64), epsilon, EVENLY)
    assert float(said.max()) == pytest.approx(size, abs=1e-10)
    assert float(said.min()) == pytest.approx(-size, abs=1e-10)
    assert float((said > 0).double().mean()) == pytest.approx(0.5 + 0.4 / (2 * size), abs=1e-5)
    assert float(said.mean()) == pytest.approx(0.4, abs=1e-4)
    assert float(said.var()) == pytest.approx(variance, abs=1e-3)
    most = duchi(torch.ones(COUNT, dtype=torch.float64), epsilon, EVENLY)
    least = duchi(-torch.ones(COUNT, dtype=torch.float64), epsilon, EVENLY)
    assert float((most > 0).double().mean() / (least > 0).double().mean()) == pytest.approx(math.exp(epsilon), rel=1e-3)


@pytest.mark.oracle("LD0")
@pytest.mark.parametrize(
    ("epsilon", "answers", "keep", "variance"),
    [
        (1.0, 2, 0.7310585786, 0.0011306736),
        (1.0, 10, 0.2319693167, 0.0052369928),
        (2.0, 10, 0.4508530604, 0.0009626399),
    ],
)
def test_randomised_responses(epsilon, answers, keep, variance):
    way = Response(epsilon, answers)
    assert way.keep == pytest.approx(keep, abs=1e-10)
    assert way.variance(0.3, 1000) == pytest.approx(variance, abs=1e-10)
    assert way.keep / way.other == pytest.approx(math.exp(epsilon))
    said = response(torch.full((COUNT,), answers - 1), way, EVENLY)
    seen = torch.bincount(said, minlength=answers).double() / COUNT
    assert float(seen[-1]) == pytest.approx(keep, abs=1e-4)
    assert seen[:-1].tolist() == pytest.approx([way.other] * (answers - 1), abs=1e-4)
    torch.testing.assert_close(way.shares(said), torch.eye(answers, dtype=torch.float64)[-1], atol=1e-3, rtol=0)


def test_what_is_not_private_is_refused():
    with pytest.raises(PluresError, match=r"outside \[-1, 1\]"):
        duchi(torch.tensor([1.5]), 1.0, torch.tensor([0.5]))
    with pytest.raises(PluresError, match="whole numbers from 0 to 2"):
        response(torch.tensor([3]), Response(1.0, 3), torch.tensor([0.5]))
    with pytest.raises(PluresError, match="epsilon=0"):
        Response(0.0, 3)
    with pytest.raises(PluresError, match="answers=1"):
        Response(1.0, 1)
