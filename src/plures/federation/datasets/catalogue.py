"""The data sets that load by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from plures.errors import PluresError
from plures.federation.datasets import folder, images, natural
from plures.federation.datasets.folder import PACKAGED, VARIABLE, data_folder
from plures.federation.datasets.har import har
from plures.federation.datasets.heart import heart
from plures.federation.federation import Federation


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
)

CATALOGUE: Mapping[str, DatasetCard] = MappingProxyType({card.name: card for card in _CARDS})


def load(name: str, *, seed: int = 0, **options: object) -> Federation:
    """A federation by the name of its data set.

    Args:
        name: one of `CATALOGUE`.
        seed: of splits and partition.
        options: keyword arguments of the data set's loader, e.g. ``partition="dirichlet"``, ``clients=100``.

    Raises:
        PluresError: for an unknown name or option, or when the data are not there, saying how to get them.
    """
    card = _card(name)
    known = _options(card.loader)
    for option in options:
        if option not in known:
            raise PluresError(f"data set {name!r} has no option {option!r}; its options are {', '.join(known)}")
    locate(name)
    return card.loader(seed=seed, **options)


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
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PluresError(f"no data set {name!r}: {hint}there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def _options(loader: Callable[..., Federation]) -> tuple[str, ...]:
    """Names of a loader's keyword arguments, with those it shares with other loaders."""
    names: list[str] = []
    for parameter in inspect.signature(loader).parameters.values():
        names += images.Dealt.__annotations__ if parameter.kind is parameter.VAR_KEYWORD else [parameter.name]
    return tuple(name for name in names if name != "seed")
