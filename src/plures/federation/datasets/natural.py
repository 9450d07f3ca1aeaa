"""Data with natural clients that are not shipped: drawers, speakers, patients, schools, mine fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError, check_choice, suggestion
from plures.federation.build import from_arrays
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read
from plures.federation.federation import Federation
from plures.federation.splits import SplitRule

Writers = Literal["drawer", "alphabet"]
TERRAIN = {"foliated": range(15), "bare earth": range(15, 29)}


@dataset(
    task="classification: 242 handwritten characters, 28 x 28",
    clients="160 drawers of 8 alphabets (or the 8 alphabets)",
    examples=4840,
    megabytes=1.1,
    licence="MIT",
    source="https://github.com/brendenlake/omniglot",
    citation="Lake, Salakhutdinov, Tenenbaum: Human-level Concept Learning through Probabilistic Program "
    "Induction, Science 2015",
    files=("omniglot_small/omniglot_small.npz",),
    how_to_get="save x28 uint8 (n, 28, 28), y, alphabet, drawer, alphabet_names and class_names as one .npz",
)
def omniglot_small(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    clients: Writers = "drawer",
    alphabets: Sequence[str] | None = None,
    standardize: bool = True,
) -> Federation:
    """Omniglot (Lake, Salakhutdinov, Tenenbaum 2015), small background sets: 242 characters, ``(1, 28, 28)``.

    Args:
        seed: of the splits.
        split: their shares.
        clients: ``drawer``: one client for each drawer of an alphabet (a drawer number means one person inside one
            alphabet only), with one drawing of each character; ``alphabet``: clients have disjoint classes.
        alphabets: only these; the classes are then their characters.
        standardize: pixels to mean 0 and standard deviation 1 over all train drawings; otherwise 0 to 1, 1 is ink.
    """
    raw = read(data_folder() / "omniglot_small" / "omniglot_small.npz")
    names = raw["alphabet_names"]
    for alphabet in alphabets or ():
        if alphabet not in names.tolist():
            near = suggestion(alphabet, names, "alphabets are")
            raise PluresError(f"omniglot_small: no alphabet {alphabet!r}; {near}")
    check_choice("omniglot_small: clients", clients, get_args(Writers))
    used = np.ones(len(raw["y"]), dtype=bool) if alphabets is None else np.isin(names[raw["alphabet"]], list(alphabets))
    alphabet_of_row = names[raw["alphabet"][used]]
    labels, targets = np.unique(raw["y"][used], return_inverse=True)
    client = alphabet_of_row
    if clients == "drawer":
        client = np.char.add(np.char.add(alphabet_of_row, " "), _padded(raw["drawer"][used]))
    return from_arrays(
        raw["x28"][used][:, None].astype(np.float32) / np.float32(255),
        targets,
        client,
        name="omniglot_small",
        classes=raw["class_names"][labels].tolist(),
        metadata={str(c): {"alphabet": str(a)} for c, a in zip(client, alphabet_of_row, strict=True)},
        split=split,
        seed=seed,
        standardize=standardize,
        source="Omniglot (small background sets), MIT",
    )


@dataset(
    task="classification: 10 spoken digits, log-mel pictures 32 x 32",
    clients="6 speakers",
    examples=3000,
    megabytes=1.5,
    licence="CC BY-SA 4.0",
    source="https://github.com/Jakobovski/free-spoken-digit-dataset",
    citation="Jackson et al.: Free Spoken Digit Dataset, 2018",
    files=("spoken_digits/spoken_digits.npz",),
    how_to_get="save logmel uint8 (n, 32, 32), y, client and client_names as one .npz",
)
def spoken_digits(*, seed: int = 0, split: SplitRule | None = None, standardize: bool = True) -> Federation:
    """Free Spoken Digit Dataset: 6 speakers, 3000 recordings as log-mel pictures ``(1, 32, 32)``, 10 digits.

    Args:
        seed: of the splits.
        split: their shares.
        standardize: to mean 0 and standard deviation 1 over all train recordings; otherwise 0 to 1.
    """
    raw = read(data_folder() / "spoken_digits" / "spoken_digits.npz")
    return from_arrays(
        raw["logmel"][:, None].astype(np.float32) / np.float32(255),
        raw["y"],
        raw["client_names"][raw["client"]],
        name="spoken_digits",
        classes=tuple("0123456789"),
        split=split,
        seed=seed,
        standardize=standardize,
        source="Free Spoken Digit Dataset, CC BY-SA 4.0",
    )


@dataset(
    task="regression: motor or total UPDRS score from 19 columns of voice measures",
    clients="42 patients",
    examples=5875,
    megabytes=0.3,
    licence="CC BY 4.0",
    source="https://doi.org/10.24432/C5ZS3N",
    citation="Tsanas, Little, McSharry, Ramig: Accurate Telemonitoring of Parkinson's Disease Progression by "
    "Noninvasive Speech Tests, IEEE Transactions on Biomedical Engineering 2010",
    files=("parkinsons/parkinsons.npz",),
    how_to_get="save x float32 (n, 19), y float32 (n, 2), client and feature_names as one .npz",
)
def parkinsons(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    target: Literal["motor", "total", "both"] = "total",
    standardize: bool = True,
) -> Federation:
    """Parkinson's telemonitoring (Tsanas, Little, McSharry, Ramig 2009): 42 patients, UPDRS score from voice.

    Scores were interpolated between visits, so neighbouring recordings are nearly equal: the default split is by time.

    Args:
        seed: of the splits, if they are random.
        split: their shares (default ``SplitRule(by="time")``).
        target: motor UPDRS, total UPDRS, or both as two outputs.
        standardize: inputs and targets to mean 0 and standard deviation 1 over all train recordings.
    """
    raw = read(data_folder() / "parkinsons" / "parkinsons.npz")
    outputs = {"motor": [0], "total": [1], "both": [0, 1]}
    check_choice("parkinsons: target", target, outputs)
    rule = split or SplitRule(by="time")
    columns = raw["feature_names"].tolist()
    client = np.char.add("patient ", _padded(raw["client"]))
    age, sex, time = (raw["x"][:, columns.index(column)] for column in ("age", "sex", "test_time"))
    return from_arrays(
        raw["x"],
        raw["y"][:, outputs[target]],
        client,
        name="parkinsons",
        task="regression",
        columns=columns,
        time=time if rule.by == "time" else None,
        metadata={
            name: {"age": int(a), "sex": "female" if s else "male"}
            for name, a, s in zip(client.tolist(), age.tolist(), sex.tolist(), strict=True)
        },
        split=rule,
        seed=0 if rule.by == "time" else seed,
        standardize=standardize,
        standardize_targets=standardize,
        source="Parkinson's Telemonitoring, doi:10.24432/C5ZS3N, CC BY 4.0",
    )


@dataset(
    task="regression: examination score from 28 columns",
    clients="139 schools",
    examples=15362,
    megabytes=0.04,
    licence="research data without an explicit licence",
    source="https://github.com/jiayuzhou/MALSAR",
    citation="Goldstein: Multilevel Modelling of Survey Data, The Statistician 1991",
    files=("school/school.npz",),
    how_to_get="save x uint8 (n, 28), y uint8 (n,) and client as one .npz",
)
def school(*, seed: int = 0, split: SplitRule | None = None, standardize: bool = True) -> Federation:
    """ILEA school data (Goldstein 1991): 139 schools, examination score of 15362 pupils from 28 columns.

    Args:
        seed: of the splits.
        split: their shares.
        standardize: inputs and targets to mean 0 and standard deviation 1 over all train pupils.
    """
    raw = read(data_folder() / "school" / "school.npz")
    return from_arrays(
        raw["x"],
        raw["y"].astype(np.float32),
        np.char.add("school ", _padded(raw["client"], 3)),
        name="school",
        copies="allow",
        task="regression",
        split=split,
        seed=seed,
        standardize=standardize,
        standardize_targets=standardize,
        source="ILEA school data via MALSAR, research data without an explicit licence",
    )


@dataset(
    task="classification: mine or clutter from 9 radar features",
    clients="29 mine fields of 2 terrains",
    examples=14820,
    megabytes=0.5,
    licence="research data without an explicit licence",
    source="https://github.com/daizhongxiang/Federated_Bayesian_Optimization",
    citation="Xue, Liao, Carin, Krishnapuram: Multi-Task Learning for Classification with Dirichlet Process "
    "Priors, JMLR 2007",
    files=("landmine/landmine.npz",),
    how_to_get="save x float32 (n, 9), y uint8 (n,) and client as one .npz",
)
def landmine(*, seed: int = 0, split: SplitRule | None = None, standardize: bool = True) -> Federation:
    """Landmine detection (Xue, Liao, Carin, Krishnapuram 2007): 29 fields, 14820 radar signatures, mine or clutter.

    Fields 0 to 14 are foliated, 15 to 28 bare earth (metadata ``terrain``): two natural clusters.

    Args:
        seed: of the splits.
        split: their shares.
        standardize: each column to mean 0 and standard deviation 1 over all train signatures.
    """
    raw = read(data_folder() / "landmine" / "landmine.npz")
    return from_arrays(
        raw["x"],
        raw["y"],
        np.char.add("field ", _padded(raw["client"])),
        name="landmine",
        classes=("clutter", "mine"),
        metadata={"terrain": {f"field {field:02}": terrain for terrain, fields in TERRAIN.items() for field in fields}},
        split=split,
        seed=seed,
        standardize=standardize,
        source="Landmine detection, research data without an explicit licence",
    )


def _padded(numbers: NDArray[Any], width: int = 2) -> NDArray[np.str_]:
    return np.char.zfill(numbers.astype(str), width)
