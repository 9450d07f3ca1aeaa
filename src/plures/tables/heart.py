"""Four hospitals ready to be deployed: the schema of the packaged heart data, and each hospital's table."""

from __future__ import annotations

import csv

from plures.federation.datasets.heart import CATEGORIES, COLUMNS, FILE, HOSPITALS, ZERO_IS_MISSING
from plures.tables.column import Category, Number
from plures.tables.schema import Schema

WORDS = {
    **CATEGORIES,
    "sex": {0: "female", 1: "male"},
    "fbs": {0: "no", 1: "yes"},
    "exang": {0: "no", 1: "yes"},
}
DIAGNOSIS = ("healthy", "disease")


def heart_schema() -> Schema:
    """What a hospital's table must look like: 13 columns and the diagnosis.

    Centers and scales are round numbers typical of adults with chest pain; ranges are what is medically possible; the
    shares of missing values allow all four hospitals to join.
    """
    return Schema(
        task="classification",
        target=("diagnosis",),
        classes=DIAGNOSIS,
        columns=(
            _number("age", "years", 18, 110, center=55, scale=10),
            _category("sex"),
            _category("cp"),
            _number("trestbps", "mm Hg", 50, 260, center=130, scale=20, missing=0.4),
            _number("chol", "mg/dl", 50, 700, center=245, scale=60, missing=1.0),
            _category("fbs", missing=0.7),
            _category("restecg", missing=0.1),
            _number("thalach", "beats per minute", 30, 250, center=140, scale=25, missing=0.4),
            _category("exang", missing=0.4),
            _number("oldpeak", "mm", -5, 10, center=1, scale=1, missing=0.4),
            _category("slope", missing=0.8),
            _number("ca", "vessels", 0, 3, center=0.5, scale=1, missing=1.0),
            _category("thal", missing=1.0),
        ),
    )


def heart_tables() -> dict[str, dict[str, list[str | float | None]]]:
    """Hospital -> column -> values of its patients, as declared by :func:`heart_schema`; None is missing."""
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tables: dict[str, dict[str, list[str | float | None]]] = {}
    for hospital in HOSPITALS:
        own = [row for row in rows if row["hospital"] == hospital]
        tables[hospital] = {column: [_cell(column, row[column]) for row in own] for column in COLUMNS}
        tables[hospital]["diagnosis"] = [DIAGNOSIS[int(row["num"]) > 0] for row in own]
    return tables


def heart_metadata() -> dict[str, dict[str, object]]:
    """Hospital -> its metadata."""
    return {hospital: {"country": country} for hospital, country in HOSPITALS.items()}


def _cell(column: str, cell: str) -> str | float | None:
    if cell == "?":
        return None
    return WORDS[column][int(float(cell))] if column in WORDS else float(cell)


def _category(name: str, missing: float = 0.0) -> Category:
    return Category(name=name, levels=tuple(WORDS[name].values()), missing=missing)


def _number(
    name: str, unit: str, low: float, high: float, *, center: float, scale: float, missing: float = 0.0
) -> Number:
    return Number(
        name=name,
        unit=unit,
        low=low,
        high=high,
        zero_is_missing=name in ZERO_IS_MISSING,
        center=center,
        scale=scale,
        missing=missing,
    )
