"""Tables whose clients are the values of a column: census, intrusions, machines, regions, engines."""

from __future__ import annotations

import csv
import gzip
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError, check_choice
from plures.federation.build import by_content, from_arrays
from plures.federation.build.assemble import assemble
from plures.federation.build.examples import Examples
from plures.federation.build.options import Options
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read
from plures.federation.federation import Federation
from plures.federation.seeding import generator
from plures.federation.splits import SPLITS, SplitRule

PEOPLE = ("occupation", "education", "workclass", "marital-status", "relationship", "race", "sex", "native-country")
ENGINES = ("train_fd001", "test_fd001", "test_fd003")
BLOCK = 10
YEAR = 365.25
Endpoint = Literal["survival", "death"]
Connections = Literal["service", "protocol_type"]
Attacks = Literal["kinds", "one"]


@dataset(
    task="classification: income above 50 000 dollars or not from 14 columns with missing values",
    clients="15 occupations (or another categorical column)",
    examples=48842,
    megabytes=0.4,
    licence="CC BY 4.0",
    source="https://doi.org/10.24432/C5XW20",
    citation="Becker, Kohavi: Adult, UCI Machine Learning Repository 1996",
    files=("adult/adult.npz",),
    how_to_get="save xnum, xcat (codes), y of train and test, their column names and the names of the codes as "
    "one .npz",
)
def adult(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    clients: str = "occupation",
    minimum: int = 1,
    standardize: bool = True,
) -> Federation:
    """UCI Adult (Becker, Kohavi 1996): 48842 people, income above 50 000 dollars or not; both official parts pooled.

    The clients' column is not an input (with ``education``, neither is the number of years). A missing value is a
    level of its own, and as a client it is called ``unknown``.

    Args:
        seed: of the splits.
        split: their shares.
        clients: a categorical column: occupation (15 values), education (16; Mohri et al. 2019 take doctorate against
            the rest), workclass, marital-status, relationship, race, sex or native-country.
        minimum: leave out clients with fewer people.
        standardize: numeric columns to mean 0 and standard deviation 1 over all train people.
    """
    check_choice("adult: clients", clients, PEOPLE)
    raw = read(data_folder() / "adult" / "adult.npz")
    numbers = np.concatenate([raw["xnum_train"], raw["xnum_test"]])
    codes = np.concatenate([raw["xcat_train"], raw["xcat_test"]])
    frame: dict[str, NDArray[Any]] = dict(zip(raw["num_columns"].tolist(), numbers.T, strict=True))
    for number, column in enumerate(raw["cat_columns"].tolist()):
        names = raw[f"names_{column.replace('-', '_')}"].astype(object)
        names[names == "?"] = None
        frame[column] = names[codes[:, number]]
    frame["income"] = np.concatenate([raw["y_train"], raw["y_test"]])
    frame["client"] = np.array(["unknown" if value is None else value for value in frame[clients].tolist()])
    hidden = {"income", "client", clients} | ({"education-num"} if clients == "education" else set())
    return by_content(
        _with_enough(frame, minimum),
        target="income",
        client="client",
        features=[column for column in frame if column not in hidden],
        categories=[column for column in PEOPLE if column not in hidden],
        name="adult",
        copies="allow",
        classes=("<=50K", ">50K"),
        split=split,
        seed=seed,
        missing="impute",
        standardize=standardize,
        source="UCI Adult, doi:10.24432/C5XW20, CC BY 4.0",
    )


@dataset(
    task="survival: days until death with breast cancer from 39 columns",
    clients="6 regions",
    examples=1088,
    megabytes=0.01,
    licence="TCGA open access (GDC policy: do not try to identify anybody)",
    source="https://github.com/owkin/FLamby",
    citation="Liu et al.: An Integrated TCGA Pan-Cancer Clinical Data Resource, Cell 2018; du Terrail et al.: "
    "FLamby, NeurIPS 2022",
    files=("tcga_brca/tcga_brca.npz",),
    how_to_get="save x float32 (n, 39), event, time_days, client, is_test, client_names and feature_names as one .npz",
)
def tcga_brca(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    endpoint: Endpoint = "survival",
    official: bool = True,
    years: float | None = None,
    standardize: bool = True,
) -> Federation:
    """TCGA breast cancer by region (Liu et al. 2018), FLamby's Fed-TCGA-BRCA (du Terrail et al. 2022): survival.

    1088 patients, 151 of whom died; the other times are censored. FLamby's test patients are kept. Few of them died:
    14, 4, 8, 3, 2 and 1 by region, so Canada's C-index depends on one patient.

    With ``endpoint="death"`` a patient counts if it is known whether they were alive ``years`` after diagnosis: those
    who were censored before are left out, so deaths are a larger share than in the population. Three years leave 505
    patients, 69 of whom died; Canada has 4.

    Args:
        seed: of the splits.
        split: their shares. With FLamby's test patients only ``validation`` has an effect: the share of each region's
            other patients that is for validation, 0 for FLamby's own protocol.
        endpoint: ``survival``: days, and whether the death was observed; ``death``: within some years, or not.
        official: FLamby's test patients; otherwise all patients are divided by ``split``.
        years: the horizon of ``death``, of 365.25 days (default 3).
        standardize: each column to mean 0 and standard deviation 1 over all train patients; otherwise years of age
            and 0 or 1, as in FLamby.
    """
    check_choice("tcga_brca: endpoint", endpoint, get_args(Endpoint))
    if years is not None and endpoint == "survival":
        raise PluresError(f"tcga_brca: years={years:g} is for endpoint='death'; survival has no horizon")
    if years is not None and not years > 0:
        raise PluresError(f"tcga_brca: years={years}; give a horizon above 0")
    raw = read(data_folder() / "tcga_brca" / "tcga_brca.npz")
    days, died = raw["time_days"], raw["event"] == 1
    if endpoint == "survival":
        used, targets = np.ones(len(days), bool), np.stack([days, died], 1)
    else:
        alive = days >= (3 if years is None else years) * YEAR
        used, targets = alive | died, (~alive & died).astype(np.int64)
    found = Examples(
        inputs=raw["x"][used],
        targets=targets[used],
        client=raw["client_names"][raw["client"][used]],
        columns=tuple(raw["feature_names"].tolist()),
        given=np.where(raw["is_test"][used] == 1, SPLITS.index("test"), SPLITS.index("train")) if official else None,
    )
    options: Options = {
        **({"task": "survival"} if endpoint == "survival" else {"classes": ("alive", "dead")}),
        "name": "tcga_brca",
        "copies": "allow",
        "split": split,
        "seed": seed,
        "standardize": standardize,
        "source": "TCGA-BRCA via FLamby, open access (GDC policy)",
    }
    return assemble(found, options, "tcga_brca")


@dataset(
    task="classification: a connection is normal or one of 4 kinds of attack, 41 columns",
    clients="55 services with 100 connections (or 3 protocols)",
    examples=125483,
    megabytes=2.5,
    licence="research use with citation",
    source="https://www.unb.ca/cic/datasets/nsl.html",
    citation="Tavallaee, Bagheri, Lu, Ghorbani: A Detailed Analysis of the KDD CUP 99 Data Set, IEEE CISDA 2009",
    files=("nsl_kdd/nsl_kdd.npz",),
    how_to_get="save xnum_P, xcat_P (codes), y_P of train and test, num_columns, cat_columns, class_names and the "
    "names of the codes as one .npz",
)
def nsl_kdd(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    clients: Connections = "service",
    minimum: int = 100,
    attacks: Attacks = "kinds",
    both: int = 0,
    most: int | None = None,
    official: bool = False,
    standardize: bool = True,
) -> Federation:
    """NSL-KDD (Tavallaee, Bagheri, Lu, Ghorbani 2009): 125973 connections, normal or one of 4 kinds of attack.

    The train part; the official test part has other attacks and is used if ``official``. Seconds and bytes enter as
    log(1 + x).

    Args:
        seed: of the splits.
        split: their shares; with ``official``, only ``validation`` has an effect, the share of the train part.
        clients: ``service`` or ``protocol_type`` of the connection, which is then not an input.
        minimum: leave out clients with fewer connections in the train part.
        attacks: classes: the four ``kinds`` beside normal; or ``one`` for all of them.
        both: leave out clients with fewer normal connections or fewer attacks in the train part.
        most: keep at most this many connections of a client's train part, drawn at random.
        official: test on the official test part, whose connections and kinds of attack are other ones.
        standardize: numeric columns to mean 0 and standard deviation 1 over all train connections.
    """
    raw = read(data_folder() / "nsl_kdd" / "nsl_kdd.npz")
    check_choice("nsl_kdd: clients", clients, get_args(Connections))
    check_choice("nsl_kdd: attacks", attacks, get_args(Attacks))
    parts = ("train", "test") if official else ("train",)
    numbers, codes, kind = (np.concatenate([raw[f"{name}_{part}"] for part in parts]) for name in ("xnum", "xcat", "y"))
    frame: dict[str, NDArray[Any]] = dict(zip(raw["num_columns"].tolist(), numbers.T, strict=True))
    for column in ("duration", "src_bytes", "dst_bytes"):
        frame[column] = np.log1p(frame[column])
    for number, column in enumerate(raw["cat_columns"].tolist()):
        frame[column] = raw[f"names_{column}"][codes[:, number]]
    frame["kind"] = kind if attacks == "kinds" else np.minimum(kind, 1)
    frame["client"] = frame.pop(clients)
    tested = np.arange(len(kind)) >= len(raw["y_train"])
    known = _enough(frame["client"], ~tested, minimum)
    if both > 0:
        known &= _enough(frame["client"], ~tested & (kind == 0), both) & _enough(
            frame["client"], ~tested & (kind > 0), both
        )
    if most is not None:
        order = generator(seed, "nsl_kdd").permutation(len(known))
        order = order[known[order] & ~tested[order]]
        _, first, sizes = np.unique(np.sort(frame["client"][order]), return_index=True, return_counts=True)
        place = np.arange(len(order)) - first.repeat(sizes)
        known[order[np.argsort(frame["client"][order], kind="stable")][place >= most]] = False
    frame = {column: values[known] for column, values in frame.items()}
    features = [column for column in frame if column not in ("kind", "client")]
    return by_content(
        frame,
        target="kind",
        client="client",
        features=features,
        categories=[column for column in raw["cat_columns"].tolist() if column in features],
        name="nsl_kdd",
        given=np.where(tested[known], SPLITS.index("test"), SPLITS.index("train")) if official else None,
        copies="allow",
        classes=raw["class_names"].tolist() if attacks == "kinds" else ("normal", "attack"),
        split=split,
        seed=seed,
        standardize=standardize,
        source=f"NSL-KDD ({' and '.join(parts)} part), research use with citation",
    )


@dataset(
    task="classification: a milling machine fails or not from 5 columns",
    clients="3 product qualities",
    examples=10000,
    megabytes=0.13,
    licence="CC BY 4.0",
    source="https://doi.org/10.24432/C5HS5C",
    citation="Matzka: Explainable Artificial Intelligence for Predictive Maintenance Applications, AI4I 2020",
    files=("ai4i2020/ai4i2020.csv.gz",),
    how_to_get="compress the original table with gzip",
)
def ai4i2020(*, seed: int = 0, split: SplitRule | None = None, standardize: bool = True) -> Federation:
    """AI4I 2020 Predictive Maintenance (Matzka 2020): 10000 milling jobs, machine failure (339) or not; synthetic.

    Clients are the product qualities high, low and medium. The five failure modes are not inputs.

    Args:
        seed: of the splits.
        split: their shares.
        standardize: each column to mean 0 and standard deviation 1 over all train jobs.
    """
    with gzip.open(data_folder() / "ai4i2020" / "ai4i2020.csv.gz", "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    features = [column for column in rows[0] if column.endswith("]")]  # those with a unit
    quality = {"H": "high", "M": "medium", "L": "low"}
    frame = {column: np.array([float(row[column]) for row in rows]) for column in features}
    frame["quality"] = np.array([quality[row["Type"]] for row in rows])
    frame["failure"] = np.array([int(row["Machine failure"]) for row in rows])
    return by_content(
        frame,
        target="failure",
        client="quality",
        features=features,
        name="ai4i2020",
        classes=("works", "fails"),
        split=split,
        seed=seed,
        standardize=standardize,
        source="AI4I 2020, doi:10.24432/C5HS5C, CC BY 4.0",
    )


TURBOFANS: dict[str, Any] = {
    "licence": "public domain (NASA)",
    "source": "https://data.nasa.gov/dataset/cmapss-jet-engine-simulated-data",
    "citation": "Saxena, Goebel, Simon, Eklund: Damage Propagation Modeling for Aircraft Engine Run-to-Failure "
    "Simulation, PHM 2008",
    "files": ("cmapss/cmapss.npz",),
    "how_to_get": "save P_x float32 (rows, 24), P_unit, P_cycle of train_fd001, test_fd001 and test_fd003, P_rul of "
    "the test parts, and columns as one .npz",
}
"""The file of the engines, of which there are two data sets."""


@dataset(
    task="regression: cycles until a turbofan fails from 24 channels",
    clients="200 engines of 2 populations",
    examples=37227,
    megabytes=1.9,
    **TURBOFANS,
)
def cmapss(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    parts: tuple[str, ...] = ("train_fd001", "test_fd003"),
    cap: int = 125,
    standardize: bool = True,
) -> Federation:
    """C-MAPSS turbofans (Saxena, Goebel, Simon, Eklund 2008): cycles to failure from 24 channels of one flight cycle.

    Clients are engines, of two populations (metadata ``population``: FD001 with one kind of fault, FD003 with two).
    Neighbouring cycles are alike: blocks of ten go to one split.

    Args:
        seed: of the splits.
        split: their shares.
        parts: among ``train_fd001`` (engines up to their failure), ``test_fd001`` and ``test_fd003`` (cut off before).
        cap: larger targets are reduced to this many cycles (piecewise linear target, after Heimes 2008).
        standardize: inputs and targets to mean 0 and standard deviation 1 over all train cycles.
    """
    if not parts or not set(parts) <= set(ENGINES):
        raise PluresError(f"cmapss: parts {', '.join(parts)}; give some of {', '.join(ENGINES)}")
    raw = read(data_folder() / "cmapss" / "cmapss.npz")
    inputs, targets, client, block = [], [], [], []
    facts: dict[str, dict[str, object]] = {}
    for part in parts:
        unit, cycle = raw[f"{part}_unit"].astype(np.int64), raw[f"{part}_cycle"].astype(np.int64)
        last = np.zeros(unit.max() + 1, dtype=np.int64)
        np.maximum.at(last, unit, cycle)
        after = raw.get(f"{part}_rul")
        left = np.zeros_like(last) if after is None else np.concatenate([[0], after.astype(np.int64)])
        names = np.char.add(f"{part} ", np.char.zfill(unit.astype(str), 3))
        inputs.append(raw[f"{part}_x"])
        targets.append(np.minimum((last + left)[unit] - cycle, cap))
        client.append(names)
        block.append((cycle - 1) // BLOCK)
        facts |= {name: {"population": part.split("_")[1].upper()} for name in np.unique(names).tolist()}
    return from_arrays(
        np.concatenate(inputs),
        np.concatenate(targets).astype(np.float32),
        np.concatenate(client),
        groups=np.concatenate(block),
        name="cmapss",
        task="regression",
        columns=raw["columns"].tolist(),
        metadata=facts,
        split=split,
        seed=seed,
        standardize=standardize,
        standardize_targets=standardize,
        source="NASA C-MAPSS, public domain",
    )


def _with_enough(frame: dict[str, NDArray[Any]], minimum: int) -> dict[str, NDArray[Any]]:
    """The rows of clients that have ``minimum`` rows."""
    used = _enough(frame["client"], np.ones(len(frame["client"]), dtype=bool), minimum)
    return {column: values[used] for column, values in frame.items()}


def _enough(client: NDArray[Any], counted: NDArray[np.bool_], minimum: int) -> NDArray[np.bool_]:
    """The rows of clients with at least ``minimum`` rows that are counted."""
    _, inverse = np.unique(client, return_inverse=True)
    counts = np.bincount(inverse, weights=counted)
    used: NDArray[np.bool_] = counts[inverse] >= minimum
    if not used.any():
        raise PluresError(f"minimum={minimum}: no client has that many rows; the largest has {counts.max():.0f}")
    return used
