"""The demo of deployment: what it prints is what the sites hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plures.deploy.demo import ALONE, demo
from plures.deploy.fleet.process import marked
from plures.errors import PluresError
from plures.evaluate.results import SeedResult


def test_four_hospitals_get_their_models(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, str]] = []
    lone, shared = demo(tmp_path, ["fedrep+threshold"], 2, lambda *where: told.append(where))
    result = json.loads((tmp_path / "fedrep+threshold" / "result.json").read_text())
    scores = SeedResult.model_validate(result["result"]).test
    assert (lone.method, shared.method) == (ALONE, "fedrep+threshold")
    assert [hospital.client for hospital in shared.hospitals] == ["cleveland", "hungarian", "switzerland", "va"]
    assert [hospital.rows[2] for hospital in shared.hospitals] == [76, 74, 31, 50]
    assert scores.sizes == [0, 0, 0, 0]  # which no hospital reports
    rounded = scores.metrics["accuracy"]  # with three digits
    assert [hospital.accuracy for hospital in shared.hospitals] == pytest.approx(rounded, abs=5e-4)
    assert all(0 <= hospital.balanced <= 1 and hospital.threshold is not None for hospital in shared.hospitals)
    assert all(hospital.sent > 20_000 and hospital.received > 20_000 for hospital in shared.hospitals)
    assert all(hospital.sent == 0 for hospital in lone.hospitals)
    assert shared.round == result["result"]["chosen_round"]
    assert told[0][0] == "starting a SuperLink and four SuperNodes"
    assert ("fedrep+threshold", 2, 2) in {where[:3] for where in told}
    assert not any(marked(str(file)) for file in (tmp_path / "fleet" / "logs").iterdir())

    told.clear()
    assert demo(tmp_path, ["fedrep+threshold"], 2, lambda *where: told.append(where)) == [lone, shared]
    assert told == [("every hospital", 1, 1, "alone, simulated")]
    with pytest.raises(PluresError, match="holds a run with other settings: choose another folder"):
        demo(tmp_path, ["fedrep+threshold"], 3, lambda *_: None)
