"""Valid-looking TOML that makes the parser fail: refused in one sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plures import from_table
from plures.deploy.agreement import readable
from plures.deploy.plan import read_toml
from plures.errors import PluresError
from plures.study import read_study

TEXTS = ("x = " + "9" * 5000, "x = " + "[" * 5000 + "]" * 5000, "x = {a = " * 2000)


@pytest.mark.parametrize("text", TEXTS, ids=["digits", "lists", "tables"])
def test_numbers_without_end_and_lists_without_ground_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "federation.toml"
    file.write_text(text)
    assert readable(text) is None
    for read in (read_toml, read_study):
        with pytest.raises(PluresError, match=r"federation\.toml is not (valid )?TOML: ") as error:
            read(file)
        assert len(str(error.value).splitlines()) == 1


def test_a_number_beyond_all_floats_is_no_finite_number() -> None:
    ages = {"age": [40 + i % 10 for i in range(20)], "y": ["a", "b"] * 10, "site": ["p"] * 10 + ["q"] * 10}
    made = from_table(ages, client="site", target="y")
    with pytest.raises(PluresError, match=r"column 'age', row 1: .* is not a number"):
        made.encoded({"age": [10**400]})
    assert torch.equal(made.encoded({"age": [50]}), torch.tensor([[50.0]], dtype=made.inputs.dtype))
