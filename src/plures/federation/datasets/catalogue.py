"""The data sets that load by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from plures.errors import PluresError, suggestion
from plures.federation.datasets import air, domains, folder, graphs, images, natural, ratings, tabular, text
from plures.federation.datasets.folder import PACKAGED, VARIABLE, data_folder
from plures.federation.datasets.har import har
from plures.federation.datasets.heart import heart
from plures.federation.federation import Federation
from plures.federation.options import checked
from plures.signature import Kinds, kinds


@dataclass(frozen=True)
class DatasetCard:
    """What is known about a data set before it is loaded.

    Attributes:
        name: what `load` takes.
        task: ``classification`` or ``regression``, and of what.
        clients: who they are and how many.
        examples: number of examples.
        megabytes: size of the files.
        licence: as its publishers give it.
        source: where it was first published.
        citation: the paper to cite.
        files: names of its files, in the package or in the folder of data sets.
        packaged: whether it ships with plures.
        how_to_get: what to do when it is not there.
        loader: makes the federation; its keyword arguments are the options of `load`.
        system: files of a fuller set in the folder of Debian's data packages; preferred when they are all there.
    """

    name: str
    task: str
    clients: str
    examples: int
    megabytes: float
    licence: str
    source: str
    citation: str
    files: tuple[str, ...]
    packaged: bool
    how_to_get: str
    loader: Callable[..., Federation]
    system: tuple[str, ...] = ()


_CARDS = (
    DatasetCard(
        name="har",
        task="classification: 6 activities from 9 inertial channels of 128 samples",
        clients="30 subjects",
        examples=10299,
        megabytes=4.5,
        licence="CC BY 4.0 at UCI; the original archive says no commercial use",
        source="https://doi.org/10.24432/C54S4K",
        citation="Anguita, Ghio, Oneto, Parra, Reyes-Ortiz: A Public Domain Dataset for Human Activity Recognition "
        "Using Smartphones, ESANN 2013",
        files=("har.npz",),
        packaged=True,
        how_to_get="ships with plures",
        loader=har,
    ),
    DatasetCard(
        name="heart",
        task="classification: heart disease or not from 13 clinical columns with missing values",
        clients="4 hospitals",
        examples=920,
        megabytes=0.05,
        licence="CC BY 4.0",
        source="https://doi.org/10.24432/C52P4X",
        citation="Janosi, Steinbrunn, Pfisterer, Detrano: Heart Disease, UCI Machine Learning Repository 1988",
        files=("heart.csv",),
        packaged=True,
        how_to_get="ships with plures",
        loader=heart,
    ),
    DatasetCard(
        name="fashion_mnist",
        task="classification: 10 garments, 28 x 28",
        clients="by partition (default 20)",
        examples=70000,
        megabytes=30.9,
        licence="MIT",
        source="https://github.com/zalandoresearch/fashion-mnist",
        citation="Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017",
        files=("fashion_mnist/train.npz", "fashion_mnist/test.npz"),
        packaged=False,
        how_to_get="install the Debian package dataset-fashion-mnist, or save x uint8 (n, 28, 28) and y uint8 (n,) of "
        "each part, or of a subset, as .npz",
        loader=images.fashion_mnist,
        system=images.FASHION_IDX,
    ),
    DatasetCard(
        name="mnist",
        task="classification: 10 digits, 28 x 28",
        clients="by partition (default 20)",
        examples=70000,
        megabytes=11.5,
        licence="CC BY-SA 3.0",
        source="http://yann.lecun.com/exdb/mnist/",
        citation="LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, "
        "Proceedings of the IEEE 1998",
        files=("mnist/train.npz", "mnist/test.npz"),
        packaged=False,
        how_to_get="save x uint8 (n, 28, 28) and y uint8 (n,) of each part as .npz",
        loader=images.mnist,
    ),
    DatasetCard(
        name="cifar10",
        task="classification: 10 kinds of object, 3 x 32 x 32",
        clients="by partition (default 20)",
        examples=40000,
        megabytes=67.9,
        licence="none stated; research use",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
        files=tuple(f"cifar10/{shard}_{part}" for shard in images.SHARDS for part in ("x.npy.xz", "y.npz")),
        packaged=False,
        how_to_get="pack shards of 10000 pictures as plures.federation.datasets.images reads them",
        loader=images.cifar10,
    ),
    DatasetCard(
        name="usps",
        task="classification: 10 digits, 16 x 16",
        clients="by partition (default 20)",
        examples=9298,
        megabytes=1.1,
        licence="research data without an explicit licence",
        source="https://hastie.su.domains/ElemStatLearn/",
        citation="Le Cun et al.: Handwritten Digit Recognition with a Back-Propagation Network, NeurIPS 1989",
        files=("usps/usps.npz",),
        packaged=False,
        how_to_get="save x_train, y_train, x_test, y_test (uint8, pictures (n, 16, 16)) as one .npz",
        loader=images.usps,
    ),
    DatasetCard(
        name="omniglot_small",
        task="classification: 242 handwritten characters, 28 x 28",
        clients="160 drawers of 8 alphabets (or the 8 alphabets)",
        examples=4840,
        megabytes=1.1,
        licence="MIT",
        source="https://github.com/brendenlake/omniglot",
        citation="Lake, Salakhutdinov, Tenenbaum: Human-level Concept Learning through Probabilistic Program "
        "Induction, Science 2015",
        files=("omniglot_small/omniglot_small.npz",),
        packaged=False,
        how_to_get="save x28 uint8 (n, 28, 28), y, alphabet, drawer, alphabet_names and class_names as one .npz",
        loader=natural.omniglot_small,
    ),
    DatasetCard(
        name="spoken_digits",
        task="classification: 10 spoken digits, log-mel pictures 32 x 32",
        clients="6 speakers",
        examples=3000,
        megabytes=1.5,
        licence="CC BY-SA 4.0",
        source="https://github.com/Jakobovski/free-spoken-digit-dataset",
        citation="Jackson et al.: Free Spoken Digit Dataset, 2018",
        files=("spoken_digits/spoken_digits.npz",),
        packaged=False,
        how_to_get="save logmel uint8 (n, 32, 32), y, client and client_names as one .npz",
        loader=natural.spoken_digits,
    ),
    DatasetCard(
        name="parkinsons",
        task="regression: motor or total UPDRS score from 19 columns of voice measures",
        clients="42 patients",
        examples=5875,
        megabytes=0.3,
        licence="CC BY 4.0",
        source="https://doi.org/10.24432/C5ZS3N",
        citation="Tsanas, Little, McSharry, Ramig: Accurate Telemonitoring of Parkinson's Disease Progression by "
        "Noninvasive Speech Tests, IEEE Transactions on Biomedical Engineering 2010",
        files=("parkinsons/parkinsons.npz",),
        packaged=False,
        how_to_get="save x float32 (n, 19), y float32 (n, 2), client and feature_names as one .npz",
        loader=natural.parkinsons,
    ),
    DatasetCard(
        name="school",
        task="regression: examination score from 28 columns",
        clients="139 schools",
        examples=15362,
        megabytes=0.04,
        licence="research data without an explicit licence",
        source="https://github.com/jiayuzhou/MALSAR",
        citation="Goldstein: Multilevel Modelling of Survey Data, The Statistician 1991",
        files=("school/school.npz",),
        packaged=False,
        how_to_get="save x uint8 (n, 28), y uint8 (n,) and client as one .npz",
        loader=natural.school,
    ),
    DatasetCard(
        name="landmine",
        task="classification: mine or clutter from 9 radar features",
        clients="29 mine fields of 2 terrains",
        examples=14820,
        megabytes=0.5,
        licence="research data without an explicit licence",
        source="https://github.com/daizhongxiang/Federated_Bayesian_Optimization",
        citation="Xue, Liao, Carin, Krishnapuram: Multi-Task Learning for Classification with Dirichlet Process "
        "Priors, JMLR 2007",
        files=("landmine/landmine.npz",),
        packaged=False,
        how_to_get="save x float32 (n, 9), y uint8 (n,) and client as one .npz",
        loader=natural.landmine,
    ),
    DatasetCard(
        name="digits",
        task="classification: 10 digits of several origins, 3 x 28 x 28",
        clients="3 domains: MNIST, USPS, MNIST blended with CIFAR-10 patches",
        examples=3717,
        megabytes=29.6,
        licence="CC BY-SA 3.0 (MNIST); research data without an explicit licence (USPS, CIFAR-10)",
        source="https://github.com/med-air/FedBN",
        citation="Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch "
        "Normalization, ICLR 2021; Ganin et al.: Domain-Adversarial Training of Neural Networks, JMLR 2016",
        files=(
            *("mnist/train.npz", "mnist/test.npz", "usps/usps.npz"),
            *("cifar10/test_x.npy.xz", "cifar10/test_y.npz"),
        ),
        packaged=False,
        how_to_get="see the data sets mnist, usps and cifar10",
        loader=domains.digits,
    ),
    DatasetCard(
        name="rotated_mnist",
        task="classification: 10 digits turned by the angle of the client, 28 x 28",
        clients="100 in 4 groups of one angle each",
        examples=20000,
        megabytes=11.5,
        licence="CC BY-SA 3.0",
        source="http://yann.lecun.com/exdb/mnist/",
        citation="Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning, "
        "NeurIPS 2020",
        files=("mnist/train.npz", "mnist/test.npz"),
        packaged=False,
        how_to_get="see the data set mnist",
        loader=domains.rotated_mnist,
    ),
    DatasetCard(
        name="shakespeare",
        task="classification: the next of 76 characters after 80",
        clients="447 roles with 2000 characters (default 100 of them)",
        examples=40268,
        megabytes=1.9,
        licence="public domain",
        source="https://github.com/TheMITTech/shakespeare",
        citation="McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks "
        "from Decentralized Data, AISTATS 2017; Caldas et al.: LEAF, arXiv:1812.01097, 2018",
        files=("shakespeare/speeches.jsonl.gz", "shakespeare/plays.json"),
        packaged=False,
        how_to_get="save one JSON object a line with play, role and text, in the order of the plays, and the titles "
        "as a JSON object",
        loader=text.shakespeare,
    ),
    DatasetCard(
        name="movielens",
        task="regression: rating of a movie, by its number",
        clients="610 users",
        examples=100836,
        megabytes=0.7,
        licence="GroupLens: research use, redistribution under the same terms, no commercial use",
        source="https://grouplens.org/datasets/movielens/latest/",
        citation="Harper, Konstan: The MovieLens Datasets: History and Context, ACM TiiS 2015",
        files=("movielens_small/movielens_small.npz",),
        packaged=False,
        how_to_get="save user, item (from 0), rating, timestamp and item_titles of ml-latest-small as one .npz",
        loader=ratings.movielens,
    ),
    DatasetCard(
        name="cora",
        task="classification: topic of a paper, 7, from its two-hop citation neighbourhood",
        clients="communities of the graph (default 10)",
        examples=2708,
        megabytes=0.09,
        licence="MIT",
        source="https://github.com/kimiyoung/planetoid",
        citation="Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016",
        files=("planetoid/cora.npz",),
        packaged=False,
        how_to_get="save edges (m, 2), y and the features as x_indptr and x_indices as one .npz",
        loader=graphs.cora,
    ),
    DatasetCard(
        name="citeseer",
        task="classification: topic of a paper, 6, from its two-hop citation neighbourhood",
        clients="communities of the graph (default 10)",
        examples=3312,
        megabytes=0.17,
        licence="MIT",
        source="https://github.com/kimiyoung/planetoid",
        citation="Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016",
        files=("planetoid/citeseer.npz",),
        packaged=False,
        how_to_get="save edges (m, 2), y and the features as x_indptr and x_indices as one .npz",
        loader=graphs.citeseer,
    ),
    DatasetCard(
        name="twitch",
        task="classification: explicit language or not, from a streamer's two-hop neighbourhood",
        clients="7 languages (or parts of their graphs)",
        examples=36890,
        megabytes=2.2,
        licence="GPL-3.0 repository; published by SNAP for research",
        source="https://github.com/benedekrozemberczki/MUSAE",
        citation="Rozemberczki, Allen, Sarkar: Multi-Scale Attributed Node Embedding, Journal of Complex Networks 2021",
        files=("twitch/twitch.npz",),
        packaged=False,
        how_to_get="save C_edges (m, 2), C_y, C_x_indptr and C_x_indices of each language C as one .npz",
        loader=graphs.twitch,
    ),
    DatasetCard(
        name="beijing_air",
        task="regression: PM2.5 from other pollutants, weather, month and hour, with missing values",
        clients="12 stations",
        examples=68614,
        megabytes=5.3,
        licence="CC BY 4.0",
        source="https://doi.org/10.24432/C5RK5G",
        citation="Zhang et al.: Cautionary Tales on Air-Quality Improvement in Beijing, Proceedings of the Royal "
        "Society A 2017",
        files=("beijing_air/beijing_air.npz",),
        packaged=False,
        how_to_get="save x float32 (stations, columns, hours) with NaN, wind_dir, columns, wind_names and client_names "
        "as one .npz",
        loader=air.beijing_air,
    ),
    DatasetCard(
        name="adult",
        task="classification: income above 50 000 dollars or not from 14 columns with missing values",
        clients="15 occupations (or another categorical column)",
        examples=48842,
        megabytes=0.4,
        licence="CC BY 4.0",
        source="https://doi.org/10.24432/C5XW20",
        citation="Becker, Kohavi: Adult, UCI Machine Learning Repository 1996",
        files=("adult/adult.npz",),
        packaged=False,
        how_to_get="save xnum, xcat (codes), y of train and test, their column names and the names of the codes as "
        "one .npz",
        loader=tabular.adult,
    ),
    DatasetCard(
        name="tcga_brca",
        task="classification: death within three years of breast cancer or not from 39 columns",
        clients="6 regions",
        examples=505,
        megabytes=0.01,
        licence="TCGA open access (GDC policy: do not try to identify anybody)",
        source="https://github.com/owkin/FLamby",
        citation="Liu et al.: An Integrated TCGA Pan-Cancer Clinical Data Resource, Cell 2018; du Terrail et al.: "
        "FLamby, NeurIPS 2022",
        files=("tcga_brca/tcga_brca.npz",),
        packaged=False,
        how_to_get="save x float32 (n, 39), event, time_days, client, client_names and feature_names as one .npz",
        loader=tabular.tcga_brca,
    ),
    DatasetCard(
        name="nsl_kdd",
        task="classification: a connection is normal or one of 4 kinds of attack, 41 columns",
        clients="55 services with 100 connections (or 3 protocols)",
        examples=125483,
        megabytes=2.5,
        licence="research use with citation",
        source="https://www.unb.ca/cic/datasets/nsl.html",
        citation="Tavallaee, Bagheri, Lu, Ghorbani: A Detailed Analysis of the KDD CUP 99 Data Set, IEEE CISDA 2009",
        files=("nsl_kdd/nsl_kdd.npz",),
        packaged=False,
        how_to_get="save xnum_train, xcat_train (codes), y_train, num_columns, cat_columns, class_names and the names "
        "of the codes as one .npz",
        loader=tabular.nsl_kdd,
    ),
    DatasetCard(
        name="ai4i2020",
        task="classification: a milling machine fails or not from 5 columns",
        clients="3 product qualities",
        examples=10000,
        megabytes=0.13,
        licence="CC BY 4.0",
        source="https://doi.org/10.24432/C5HS5C",
        citation="Matzka: Explainable Artificial Intelligence for Predictive Maintenance Applications, AI4I 2020",
        files=("ai4i2020/ai4i2020.csv.gz",),
        packaged=False,
        how_to_get="compress the original table with gzip",
        loader=tabular.ai4i2020,
    ),
    DatasetCard(
        name="cmapss",
        task="regression: cycles until a turbofan fails from 24 channels",
        clients="200 engines of 2 populations",
        examples=37227,
        megabytes=1.9,
        licence="public domain (NASA)",
        source="https://data.nasa.gov/dataset/cmapss-jet-engine-simulated-data",
        citation="Saxena, Goebel, Simon, Eklund: Damage Propagation Modeling for Aircraft Engine Run-to-Failure "
        "Simulation, PHM 2008",
        files=("cmapss/cmapss.npz",),
        packaged=False,
        how_to_get="save P_x float32 (rows, 24), P_unit, P_cycle of train_fd001, test_fd001 and test_fd003, P_rul of "
        "the test parts, and columns as one .npz",
        loader=tabular.cmapss,
    ),
)

TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".feather", ".json", ".npz")
"""Endings of files that are no data sets."""

CATALOGUE: Mapping[str, DatasetCard] = MappingProxyType({card.name: card for card in _CARDS})


def load(name: str, *, seed: int = 0, **options: object) -> Federation:
    """A federation by the name of its data set.

    Args:
        name: one of `CATALOGUE`.
        seed: of splits and partition.
        options: keyword arguments of the data set's loader, e.g. ``partition="dirichlet"``, ``clients=100``.

    Raises:
        PluresError: for an unknown name or option, or when the data are not there, saying how to get them.

    Examples:
        >>> heart = plures.load("heart")
        >>> heart.clients
        ('cleveland', 'hungarian', 'switzerland', 'va')
        >>> heart.splits["train"].sizes.tolist()
        [182, 176, 74, 120]
    """
    card = _card(name)
    read = checked({"seed": seed, **options}, _declared(card.loader), f"data set {name!r}")
    locate(name)
    return card.loader(**read)


def locate(name: str) -> Path:
    """The folder that holds a data set's files, after checking that they are all there.

    Raises:
        PluresError: if a file is missing, naming the places looked in, the files and the source.
    """
    card = _card(name)
    if card.system and all((folder.SYSTEM / file).is_file() for file in card.system):
        return (folder.SYSTEM / card.system[0]).parent
    place = PACKAGED if card.packaged else data_folder()
    missing = [file for file in card.files if not (place / file).is_file()]
    if missing:
        raise PluresError(
            f"data set {name!r}: no {', '.join(missing)} in {place} (environment variable {VARIABLE}, else "
            f"../shared/data); to get it: {card.how_to_get}; source: {card.source}"
        )
    return (place / card.files[0]).parent


def _card(name: str) -> DatasetCard:
    if name not in CATALOGUE:
        file = Path(str(name))
        if file.is_file() or file.suffix.lower() in TABLES:
            raise PluresError(
                f"no data set {str(name)!r}: a table is no data set by itself; read it in Python and give "
                "plures.from_frame(frame, target=..., client=...), or make a folder of .npz files, one for each client"
            )
        if len(file.parts) > 1:
            raise PluresError(f"no data set {str(name)!r}: there is no folder of this name; check the path")
        raise PluresError(f"no data set {str(name)!r}: {suggestion(name, CATALOGUE)} (or name a folder of .npz files)")
    return CATALOGUE[name]


def loader_kinds(name: str) -> Kinds:
    """Options of `load` for a data set, with their types."""
    return kinds(_card(name).loader)


def loader_options(loader: Callable[..., Federation]) -> tuple[str, ...]:
    """Names of a loader's keyword arguments, with those it shares with other loaders."""
    return tuple(name for name in _declared(loader) if name != "seed")


def _declared(loader: Callable[..., Federation]) -> dict[str, Any]:
    """Type of each keyword argument of a loader, the seed last."""
    hints: dict[str, Any] = get_type_hints(loader)
    declared: dict[str, Any] = {}
    for parameter in inspect.signature(loader).parameters.values():
        shared = parameter.kind is parameter.VAR_KEYWORD
        declared |= get_type_hints(images.Dealt) if shared else {parameter.name: hints[parameter.name]}
    return {name: hint for name, hint in declared.items() if name != "seed"} | {"seed": int}
