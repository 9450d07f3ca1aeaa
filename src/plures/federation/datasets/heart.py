"""Heart disease in four hospitals: 920 patients, 13 columns, many missing values."""

from __future__ import annotations

import csv

import numpy as np
import torch
from numpy.typing import NDArray

from plures.federation.build import by_content
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import PACKAGED
from plures.federation.federation import Federation
from plures.federation.splits import Split, SplitRule
from plures.tasks import Classification

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
COMPLETE = COLUMNS[:10]
DUMMIES = (("cp", 2), ("cp", 3), ("cp", 4), ("restecg", 1), ("restecg", 2))
TEST = {
    "cleveland": "040480a020b3c59dc48a03b505c0481087c001ac9430180a847015a598491260f8e2001cebe4",
    "hungarian": "1100847cb841d42c88700d510093869198d144134848122f693a0411802910ba30",
    "switzerland": "07863a8c80c0",
    "va": "464800245b65020eb85b04886003a74580",
}
"""FLamby's test rows among each hospital's complete rows, a bit each, drawn by scikit-learn's ``train_test_split``."""


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


@dataset(
    task="classification: heart disease or not, with FLamby's 13 inputs and its train and test rows",
    clients="4 hospitals",
    examples=740,
    megabytes=0.05,
    licence="CC BY 4.0",
    source="https://doi.org/10.24432/C52P4X",
    citation="du Terrail et al.: FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in Realistic "
    "Healthcare Settings, NeurIPS 2022",
    files=("heart.csv",),
    packaged=True,
)
def fed_heart_disease(*, seed: int = 0) -> Federation:
    """Fed-Heart-Disease as FLamby prepares it (du Terrail et al. 2022): 740 patients with complete first ten columns.

    Each hospital's inputs have mean 0 and standard deviation 1 over its own train patients. Train and test rows are
    those of FLamby. There is no validation split, so nothing can be tuned, and the last round is tested.

    Args:
        seed: not used, because the split is given.
    """
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if "?" not in [row[column] for column in COMPLETE]]
    inputs, targets, train, test, begun = [], [], [], [], 0
    for hospital in HOSPITALS:
        own = [row for row in rows if row["hospital"] == hospital]
        columns = {column: np.array([float(row[column]) for row in own]) for column in COMPLETE}
        x = np.column_stack(
            [
                *(values for column, values in columns.items() if column not in ("cp", "restecg")),
                *(columns[column] == level for column, level in DUMMIES),
            ]
        )
        tested = np.unpackbits(np.frombuffer(bytes.fromhex(TEST[hospital]), np.uint8), count=len(own)).astype(bool)
        std = x[~tested].std(0, ddof=1)
        inputs.append((x - x[~tested].mean(0)) / np.where(std > 0, std, 1))
        targets.append([int(row["num"]) > 0 for row in own])
        train.append(torch.from_numpy(np.flatnonzero(~tested) + begun))
        test.append(torch.from_numpy(np.flatnonzero(tested) + begun))
        begun += len(own)
    empty = torch.empty(0, dtype=torch.int64)
    return Federation(
        name="fed_heart_disease",
        task=Classification(("healthy", "disease")),
        inputs=torch.from_numpy(np.vstack(inputs)).float(),
        targets=torch.from_numpy(np.concatenate(targets)).long(),
        clients=tuple(HOSPITALS),
        splits={"train": Split.of(train), "validation": Split.of([empty] * len(HOSPITALS)), "test": Split.of(test)},
        metadata={"country": tuple(HOSPITALS.values())},
        columns=(
            *(column for column in COMPLETE if column not in ("cp", "restecg")),
            *(f"{column} {CATEGORIES[column][level]}" for column, level in DUMMIES),
        ),
        source="UCI Heart Disease, doi:10.24432/C52P4X, CC BY 4.0, as in FLamby",
    )


def _column(column: str, cells: list[str]) -> NDArray[np.float64] | NDArray[np.object_]:
    numbers = np.array([np.nan if cell == "?" else float(cell) for cell in cells])
    if column in ZERO_IS_MISSING:
        numbers[numbers == 0] = np.nan
    if column in CATEGORIES:
        levels = CATEGORIES[column]
        return np.array([None if np.isnan(number) else levels[int(number)] for number in numbers], dtype=object)
    return numbers
