"""Tables and the headline against numbers computed by hand."""

from __future__ import annotations

import io

import pytest
from comparisons import LIFT, RMSE, TITLES, comparison, scored
from rich.console import Console

from plures.evaluate.results import Comparison
from plures.report import console_table, headline, markdown_table
from plures.report.columns import Number

LOCAL = [[0.50, 0.60, 0.70, 0.80], [0.52, 0.62, 0.72, 0.82]]
FEDAVG = [[0.60, 0.60, 0.60, 0.60]] * 2
TUNED = [[0.60, 0.64, 0.70, None]] * 2
DITTO = [[0.70, 0.68, 0.60, None], [0.72, 0.70, 0.62, None]]
FOUR = {"local": LOCAL, "fedavg": FEDAVG, "fedavg_ft": TUNED, "ditto": DITTO}
EIGHT = tuple(range(10, 18))
BASE = {"local": [[0.5] * 8], "fedavg": [[0.6] * 8], "fedavg_ft": [[0.7] * 8]}


def told(c: Comparison, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(c))
    return console.export_text()


def cells(c: Comparison) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in markdown_table(c).splitlines()[2:]]
    return {line[0].strip("| "): [cell.strip(" |") for cell in line[1:]] for line in lines}


def eight(ditto: list[float], seeds: int = 1) -> Comparison:
    return scored({**{k: v * seeds for k, v in BASE.items()}, "ditto": [ditto] * seeds}, sizes=EIGHT)


def test_markdown_equals_numbers_by_hand() -> None:
    found = cells(scored(FOUR))
    # Of the 4^4 draws of local's clients (51, 61, 71, 81), 5 have a mean below 56, 15 one of at most 56; Ditto has 3^3.
    # Seed means 0.65 and 0.67; half width 12.706 * 0.01414 / sqrt(2) = 0.12706; weights 0.1, 0.2, 0.3, 0.4.
    # Calibration errors are 0.3 (1 - accuracy) + 0.01: 11.2 for a mean accuracy of 0.66.
    assert found["Local only"] == [
        "66.0 ± 12.7", "56.0 to 76.0", "71.0", "11.2", "51.0", "51.0", "\N{EN DASH}", "25 %", "11.2", "1.20",
    ]  # fmt: skip
    assert found["FedAvg"] == [
        "60.0 ± 0.0", "60.0 to 60.0", "60.0", "0.0", "60.0", "60.0", "75 %", "\N{EN DASH}", "13.0", "1.20",
    ]  # fmt: skip
    # The client without test examples counts neither in the mean nor in the share of clients harmed.
    assert found["Ditto"] == [
        "**67.0 ± 12.7**", "61.0 to 71.0", "65.3", "4.3", "61.0", "61.0", "33 %", "0 %", "10.9", "1.20",
    ]  # fmt: skip


def test_console_shows_the_same_numbers_as_markdown() -> None:
    c = comparison(unseen=4)
    text, rows = told(c, 120), cells(c)
    for title, values in rows.items():
        line = next(line for line in text.splitlines() if line.startswith(title.split(" + ")[0] + " "))
        if "+" in title:
            line = next(line for line in text.splitlines() if line.startswith("FedAvg +"))
        assert all(value.strip("*") in line for value in values), (line, values)


@pytest.mark.parametrize("options", [{}, {"unseen": 4}, {"kind": "regression", "unseen": 3}, {"seeds": 1}])
def test_console_fits_in_100_columns(options: dict[str, object]) -> None:
    text = told(comparison(**options))  # type: ignore[arg-type]
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize("width", [30, 60, 80, 90])
def test_narrow_terminals_leave_columns_out_and_cut_no_number(width: int) -> None:
    c = comparison(unseen=4)
    text = told(c, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "87.8 ± " in text or "88.1 ± " in text
    assert "LG-FedAvg" in text
    assert ("chosen" in text) == (width >= 100)
    assert "harmed" in text


def test_baselines_come_first_then_the_best() -> None:
    titles = list(cells(comparison()))
    assert titles[:4] == ["Local only", "FedAvg", "FedAvg + fine-tuning", "Ditto"]


def test_huge_numbers_have_an_exponent() -> None:
    """A NASA score after a prediction that is 500 cycles late has twenty digits."""
    number = Number.among(RMSE, [158.0, 1.73e19])
    assert (number(158.0), number(9_999_999.0), number(1.728235e19)) == ("158", "9999999", "1.73e+19")


def test_regression_shows_three_significant_digits_and_no_calibration() -> None:
    values = {"local": [[12.346, 2.0]], "fedavg": [[8.0, 9.0]], "fedavg_ft": [[7.0, 7.0]], "ditto": [[6.0, 6.5]]}
    c = scored(values, metric=RMSE, sizes=(5, 5))
    found = cells(c)
    assert found["Local only"][:3] == ["7.17", "2.00 to 12.35", "7.17"]
    assert found["Ditto"][0] == "**6.25**"
    assert found["Local only"][4] == "12.35"
    assert "calib" not in markdown_table(c)


def test_names_are_not_markup() -> None:
    titles = {**TITLES, "ditto": "[red]a|b</b>"}
    c = scored(FOUR, titles=titles)
    assert "[red]a|b</b>" in told(c)
    assert "[red]a\\|b&lt;/b>" in markdown_table(c)


def test_a_narrow_interval_is_not_rounded_to_nothing() -> None:
    values = {**FOUR, "ditto": [[0.7] * 4, [0.70001] * 4]}
    assert cells(scored(values))["Ditto"][0] == "**70.0 ± <0.1**"


def test_headline_of_a_win() -> None:
    gains = [0.10, 0.11, 0.12, 0.09, 0.10, 0.11, 0.08, 0.10]
    said = headline(eight([0.7 + g for g in gains], seeds=3))
    # The sum of eight gains of one sign is reached by 2 of 256 sign patterns: p = 0.0078.
    assert said == (
        "Ditto serves the clients best on average (accuracy 80.1 ± 0.0 %), 10.1 points better than the strongest "
        "baseline, FedAvg + fine-tuning (p = 0.008, paired over 8 clients). "
        "Ditto harms 0 of 8 clients against local-only training and 0 of 8 clients against FedAvg."
    )


def test_headline_of_a_difference_that_chance_explains() -> None:
    said = headline(eight([0.8, 0.62, 0.8, 0.62, 0.8, 0.62, 0.8, 0.55], seeds=3))
    assert said.startswith("No method clearly beats the best baseline: Ditto")
    assert "leads FedAvg + fine-tuning by 0.1 points" in said
    assert "chance can explain" in said
    assert "Ditto harms 0 of 8 clients against local-only training and 1 of 8 clients against FedAvg." in said


def test_headline_of_a_tie() -> None:
    said = headline(eight([0.7] * 8))
    assert "Ditto equals FedAvg + fine-tuning on average" in said


def test_headline_of_a_loss() -> None:
    said = headline(eight([0.65] * 8, seeds=2))
    assert said == (
        "No method beats the best baseline: FedAvg + fine-tuning serves the clients best on average "
        "(accuracy 70.0 ± 0.0 %); Ditto comes closest, 5.0 points behind (p = 0.008, paired over 8 clients). "
        "FedAvg + fine-tuning harms 0 of 8 clients against local-only training and 0 of 8 clients against FedAvg."
    )


def test_headline_tells_that_intervals_overlap() -> None:
    values = {**BASE, "fedavg_ft": [[0.6] * 8, [0.8] * 8], "ditto": [[0.65] * 8, [0.85] * 8]}
    values = {name: (seeds * 2)[:2] for name, seeds in values.items()}
    said = headline(scored(values, sizes=EIGHT))
    assert "5.0 points better" in said
    assert "Their 95 % intervals over seeds overlap." in said


def test_headline_with_one_seed_has_no_interval() -> None:
    said = headline(eight([0.8] * 8))
    assert "±" not in said
    assert "With one seed there is no interval" in said


def test_headline_of_a_lower_metric_compares_with_the_best_baseline() -> None:
    values = {"local": [[1.0] * 8], "fedavg": [[1.5] * 8], "fedavg_ft": [[1.2] * 8], "ditto": [[0.9] * 7 + [1.1]]}
    said = headline(scored(values, metric=RMSE, sizes=EIGHT))
    assert "Ditto (root mean squared error 0.925) leads Local only by 0.075" in said
    assert "Ditto harms 1 of 8 clients against local-only training and 0 of 8 clients against FedAvg." in said


def test_headline_of_baselines_alone() -> None:
    said = headline(scored(BASE, sizes=EIGHT))
    assert said.startswith("Only baselines were compared; FedAvg + fine-tuning serves the clients best on average")


def test_headline_when_all_other_methods_diverged() -> None:
    said = headline(scored({**BASE, "ditto": [[float("nan")] * 8] * len(BASE["local"])}, sizes=EIGHT))
    assert said.startswith(
        "No other method has a finite score; FedAvg + fine-tuning serves the clients best on average"
    )


def test_headline_when_the_strongest_baseline_is_local() -> None:
    c = comparison(lift={**LIFT, "local": 0.2})
    assert "Local only harms" in headline(c)
    assert "against local-only training" not in headline(c)
