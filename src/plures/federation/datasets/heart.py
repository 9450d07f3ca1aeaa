"""Heart disease in four hospitals: 920 patients, 13 columns, many missing values."""

from __future__ import annotations

import csv

import numpy as np
from numpy.typing import NDArray

from plures.federation.build import by_content
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import PACKAGED
from plures.federation.federation import Federation
from plures.federation.splits import SplitRule

FILE = PACKAGED / "heart.csv"
COLUMNS = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
)
HOSPITALS = {"cleveland": "USA", "hungarian": "Hungary", "switzerland": "Switzerland", "va": "USA"}
CATEGORIES = {
    "cp": {1: "typical angina", 2: "atypical angina", 3: "non-anginal pain", 4: "asymptomatic"},
    "restecg": {0: "normal", 1: "ST-T abnormality", 2: "ventricular hypertrophy"},
    "slope": {1: "up", 2: "flat", 3: "down"},
    "thal": {3: "normal", 6: "fixed defect", 7: "reversible defect"},
}
ZERO_IS_MISSING = ("trestbps", "chol")


@dataset(
    task="classification: heart disease or not from 13 clinical columns with missing values",
    clients="4 hospitals",
    examples=920,
    megabytes=0.05,
    licence="CC BY 4.0",
    source="https://doi.org/10.24432/C52P4X",
    citation="Janosi, Steinbrunn, Pfisterer, Detrano: Heart Disease, UCI Machine Learning Repository 1988",
    files=("heart.csv",),
    packaged=True,
)
def heart(*, seed: int = 0, split: SplitRule | None = None, standardize: bool = True) -> Federation:
    """UCI heart disease (Janosi, Steinbrunn, Pfisterer, Detrano 1988): 4 hospitals, 920 patients, diseased or not.

    The target is ``num > 0`` (any vessel narrowed by more than half). A blood pressure (mm Hg) or cholesterol (mg/dl)
    of zero is a missing value. Chest pain, electrocardiogram, slope and thallium scan are one-hot, with a level of
    their own for missing; a missing number becomes the mean over all train patients, and an indicator column says so.

    Args:
        seed: of the splits.
        split: their shares.
        standardize: numeric columns to mean 0 and standard deviation 1 over all train patients.
    """
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    frame = {column: _column(column, [row[column] for row in rows]) for column in COLUMNS}
    frame["hospital"] = np.array([row["hospital"] for row in rows])
    frame["diagnosis"] = np.array(["disease" if int(row["num"]) > 0 else "healthy" for row in rows])
    return by_content(
        frame,
        target="diagnosis",
        client="hospital",
        features=COLUMNS,
        name="heart",
        copies="allow",
        classes=("healthy", "disease"),
        metadata={"country": HOSPITALS},
        split=split,
        seed=seed,
        missing="impute",
        standardize=standardize,
        source="UCI Heart Disease, doi:10.24432/C52P4X, CC BY 4.0",
    )


def _column(column: str, cells: list[str]) -> NDArray[np.float64] | NDArray[np.object_]:
    numbers = np.array([np.nan if cell == "?" else float(cell) for cell in cells])
    if column in ZERO_IS_MISSING:
        numbers[numbers == 0] = np.nan
    if column in CATEGORIES:
        levels = CATEGORIES[column]
        return np.array([None if np.isnan(number) else levels[int(number)] for number in numbers], dtype=object)
    return numbers
