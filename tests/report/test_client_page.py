"""Everything about one client in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from comparisons import comparison, scored
from rich.console import Console
from typer.testing import CliRunner

import plures.cli.client
from plures.cli.common import app
from plures.errors import PluresError
from plures.evaluate import Comparison, RunFolder, RunSpec, finish, fit
from plures.report.client import client_page, features, label_peers
from plures.run import Execution

FAST = Execution("vmap", 8, False, "float32")
SPEC = RunSpec(data="heart", method="fedper", rounds=2, lr=0.05)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run = SPEC.run(SPEC.federation(), FAST)
    RunFolder(folder).write(run, SPEC, finish(fit(run, SPEC.title()), 0))
    return folder


def told(page: object, width: int = 140) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(page)
    return console.export_text()


def written(c: Comparison, folder: Path) -> Path:
    (folder / "results.json").write_text(c.to_json(), encoding="utf-8")
    return folder


def test_a_comparison_tells_a_client(tmp_path: Path) -> None:
    c = comparison(details=True, clients=12, seeds=2, rounds=10)
    text = told(client_page(written(c, tmp_path), "person 05"))
    card = c.federation
    assert f"train examples       {card.sizes['train'][4]}" in text
    assert "ward                 B" in text
    for row in c.rows():
        values = c.method(row.name).per_client("accuracy")
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{row.title}  "))
        cells = line.split()
        assert f"{100 * values[4]:.1f}" in cells
        rank = 1 + int((values[~np.isnan(values)] > values[4]).sum())
        assert f"{rank} of {int((~np.isnan(values)).sum())}" in line
        if row.name != "local":
            gain = 100 * (values[4] - c.method("local").per_client("accuracy")[4])
            assert f"{'+' if gain > 0 else ''}{gain:.1f}" in cells
    best = max(c.methods, key=lambda m: m.per_client("accuracy")[4])
    details = best.seeds[0].details
    assert f"What is personal with {best.title}" in text
    assert details is not None
    layer = details.personal.layers[1] if details.personal else None
    assert layer is None or f"{layer.distance[4]:.3g}" in text
    assert "walking" in text
    assert "by mix of labels" in text


def test_a_client_without_a_score_is_told_why(tmp_path: Path) -> None:
    c = scored({name: [[0.5, 0.6, 0.7, None]] for name in ("local", "fedavg", "fedavg_ft")})
    c = c.model_copy(update={"metric": c.metric.model_copy(update={"undefined": "where no two can be compared"})})
    sentence = "The accuracy is not defined for this client (where no two can be compared); means leave it out."
    assert sentence in told(client_page(written(c, tmp_path), "client 3"))
    assert "not defined" not in told(client_page(written(c, tmp_path), "client 2"))


def test_another_method_can_be_looked_into(tmp_path: Path) -> None:
    c = comparison(details=True, clients=6, seeds=1, rounds=4)
    text = told(client_page(written(c, tmp_path), "person 02", method="fedavg"))
    assert "nothing: all clients predict with the same numbers" in text
    with pytest.raises(PluresError, match="no method 'fedex'"):
        client_page(tmp_path, "person 02", method="fedex")


def test_older_results_say_what_they_lack(tmp_path: Path) -> None:
    text = told(client_page(written(comparison(clients=6, seeds=1, rounds=4), tmp_path), "person 02"))
    assert "made by an older plures" in text
    assert "With each method" in text


def test_a_run_tells_a_client_with_the_columns_of_its_worst_examples(run_folder: Path) -> None:
    federation = SPEC.federation()
    text = told(client_page(run_folder, "va", federation), 200)
    result = RunFolder(run_folder).result()
    assert f"{100 * result.test.values('accuracy')[3]:.1f}" in text
    assert result.details is not None
    worst = result.details.mistakes[3][0]
    assert f"row {worst.row}: {features(federation, 3, worst)}" in " ".join(text.split())
    raw = federation.inputs[worst.row, 0] * federation.scaling[1][0] + federation.scaling[0][0]  # type: ignore[index]
    names = dict(part.rsplit(" ", 1) for part in features(federation, 3, worst).split(", "))
    assert "age" not in names or float(names["age"]) == pytest.approx(float(raw), rel=1e-3)
    assert "distance" in text
    assert "by personal parts" in text


def test_the_command(run_folder: Path) -> None:
    assert plures.cli.client.client_command is not None
    done = CliRunner().invoke(app, ["client", str(run_folder), "cleveland"])
    assert done.exit_code == 0, done.output
    assert "cleveland, a client of heart" in done.output
    assert "row " in done.output
    without = CliRunner().invoke(app, ["client", str(run_folder), "cleveland", "--no-examples"])
    assert "worst examples" in " ".join(without.output.split())


def test_what_is_wrong_is_named(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PluresError, match=r"no client 'bern' in .*; clients are cleveland, hungarian"):
        client_page(run_folder, "bern")
    with pytest.raises(PluresError, match="neither a finished comparison nor a finished run"):
        client_page(tmp_path, "va")


def test_peers_by_labels_are_the_nearest_mixes() -> None:
    labels = [[10, 0], [9, 1], [1, 9], [50, 50], [0, 0]]
    assert label_peers(labels, 0) == [1, 3, 4, 2]
