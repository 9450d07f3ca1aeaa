"""Cells of raw tables."""

from __future__ import annotations

import numpy as np
import pytest

from plures.tables import table

ODD = ["oops", "1_000", "inf", "1e400", "", " 4 ", "\u0663", "0x1", "nan", "-0.0", "7.0", None, 3, True]


@pytest.mark.parametrize("odd", ODD)
def test_a_whole_column_reads_as_its_cells_do_one_by_one(odd):
    for cells in (["1.5", None, "2", "2", odd], [1.5, None, "2", 2, odd]):
        values, wrong = table.numbers(cells)
        alone = [table.number(cell) for cell in cells]
        assert wrong.tolist() == [value is None for value in alone]
        np.testing.assert_array_equal(values, [np.nan if value is None else value for value in alone])
        assert table.gaps_of(cells).tolist() == [table.absent(cell) for cell in cells]
        assert table.texts(cells) == ["" if table.absent(cell) else table.text(cell) for cell in cells]
        assert table.distinct(cells) == {table.text(cell) for cell in cells if not table.absent(cell)}
