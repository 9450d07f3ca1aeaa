"""The page that says what is protected against whom is what the layouts say."""

from __future__ import annotations

from tools import protection

from plures.methods import METHODS


def test_the_page_is_made_from_the_layouts() -> None:
    assert protection.FILE.read_text(encoding="utf-8") == protection.page(), "run python -m tools.protection"


def test_rows_say_what_is_noised_what_stays_and_what_would_leak() -> None:
    """What papers say of these methods: FedPer's head stays, SCAFFOLD sends two things, IFCA's choice would leak."""
    rows = {name: protection.row(name) for name in ("fedper", "scaffold", "ifca", "local", "lora")}
    assert (rows["fedper"].noised, rows["fedper"].home, rows["fedper"].clients) == ("model", "head", "")
    assert (rows["scaffold"].noised, rows["scaffold"].home) == ("model, control", "own_control")
    assert rows["ifca"].clients.startswith("choices: a client's choice of a model tells of its data")
    assert rows["ifca"].examples == "choices without noise"
    assert (rows["local"].clients, rows["local"].examples) == ("nothing is sent", "")
    assert (rows["lora"].noised, rows["lora"].summed) == ("lora", True)
    assert set(rows) < set(METHODS)
