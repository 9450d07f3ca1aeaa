"""The simulated processor of ``--other-processor`` rounds by shape, and by nothing else."""

from __future__ import annotations

import torch

from otherwise import OtherProcessor


def test_equal_shapes_give_equal_bits_and_a_batched_product_others():
    rows, weights = torch.rand(5, 7, dtype=torch.float64), torch.rand(7, 4, dtype=torch.float64)
    with OtherProcessor():
        one, again = rows @ weights, rows @ weights
        batched = torch.bmm(rows.expand(2, -1, -1), weights.expand(2, -1, -1))[0]
        alone = rows[:1] @ weights
    assert torch.equal(one, again)
    for other in (batched, rows @ weights, torch.cat([alone, one[1:]])):
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_what_every_processor_gives_exactly_stays():
    values = torch.rand(5, 7, dtype=torch.float64)
    with OtherProcessor():
        kept = (torch.eye(5, dtype=torch.float64) @ values, torch.tensor([0.5, 0.25, 8.0]).sum())
    assert torch.equal(kept[0], values)
    assert kept[1] == 8.75
