"""Pictures without natural clients: MNIST, Fashion-MNIST, CIFAR-10, USPS, dealt to clients by a partition."""

from __future__ import annotations

import io
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.federation.build import from_arrays
from plures.federation.datasets import folder
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read, read_idx
from plures.federation.federation import Federation
from plures.federation.partition import How, partition
from plures.federation.seeding import generator
from plures.federation.splits import SplitRule

DIGITS = tuple("0123456789")
GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHARDS = ("train_0", "train_1", "train_2", "test")
FASHION_IDX = tuple(
    f"fashion-mnist/{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
"""The complete set in Debian's folder: pictures and labels of the train part, then of the test part."""


class Dealt(TypedDict, total=False):
    """Options of every loader here.

    ``how``, ``clients``, ``alpha``, ``classes_per_client`` and ``min_size`` are those of
    `plures.federation.partition.partition`; ``examples`` takes that many pictures at random instead of all;
    ``standardize`` (default true) brings each channel to mean 0 and standard deviation 1 over all train pictures,
    otherwise pixels are in [0, 1]; ``split`` and ``seed`` are those of the splits, ``seed`` also of the partition.
    """

    seed: int
    partition: How
    clients: int
    alpha: float
    classes_per_client: int
    min_size: int
    examples: int | None
    standardize: bool
    split: SplitRule | None


@dataset(
    task="classification: 10 digits, 28 x 28",
    clients="by partition (default 20)",
    examples=70000,
    megabytes=11.5,
    licence="CC BY-SA 3.0",
    source="http://yann.lecun.com/exdb/mnist/",
    citation="LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, "
    "Proceedings of the IEEE 1998",
    files=("mnist/train.npz", "mnist/test.npz"),
    how_to_get="save x uint8 (n, 28, 28) and y uint8 (n,) of each part as .npz",
)
def mnist(**options: Unpack[Dealt]) -> Federation:
    """MNIST (LeCun, Cortes): 70000 digits ``(1, 28, 28)``, the official test part pooled in; see `Dealt`."""
    return _deal("mnist", *_train_and_test(data_folder() / "mnist"), DIGITS, "MNIST, CC BY-SA 3.0", options)


@dataset(
    task="classification: 10 garments, 28 x 28",
    clients="by partition (default 20)",
    examples=70000,
    megabytes=30.9,
    licence="MIT",
    source="https://github.com/zalandoresearch/fashion-mnist",
    citation="Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017",
    files=("fashion_mnist/train.npz", "fashion_mnist/test.npz"),
    how_to_get="install the Debian package dataset-fashion-mnist, or save x uint8 (n, 28, 28) and y uint8 (n,) of "
    "each part, or of a subset, as .npz",
    system=FASHION_IDX,
)
def fashion_mnist(**options: Unpack[Dealt]) -> Federation:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 70000 garments ``(1, 28, 28)``, both parts pooled; see `Dealt`.

    The complete set is taken where Debian's package ``dataset-fashion-mnist`` puts it; without the package, a balanced
    subset of 25000 from the folder of data sets. The federation's ``source`` says which it was.
    """
    idx = [folder.SYSTEM / file for file in FASHION_IDX]
    if all(file.is_file() for file in idx):
        train, train_labels, test, test_labels = map(read_idx, idx)
        pictures, labels = np.concatenate([train, test])[:, None], np.concatenate([train_labels, test_labels])
        return _deal("fashion_mnist", pictures, labels, GARMENTS, "Fashion-MNIST, MIT", options)
    pictures, labels = _train_and_test(data_folder() / "fashion_mnist")
    return _deal("fashion_mnist", pictures, labels, GARMENTS, "Fashion-MNIST (subset), MIT", options)


@dataset(
    task="classification: 10 digits, 16 x 16",
    clients="by partition (default 20)",
    examples=9298,
    megabytes=1.1,
    licence="research data without an explicit licence",
    source="https://hastie.su.domains/ElemStatLearn/",
    citation="Le Cun et al.: Handwritten Digit Recognition with a Back-Propagation Network, NeurIPS 1989",
    files=("usps/usps.npz",),
    how_to_get="save x_train, y_train, x_test, y_test (uint8, pictures (n, 16, 16)) as one .npz",
)
def usps(*, size: int = 16, **options: Unpack[Dealt]) -> Federation:
    """USPS (Le Cun et al. 1990): 9298 digits ``(1, size, size)``, bilinear if not 16; see `Dealt`."""
    raw = read(data_folder() / "usps" / "usps.npz")
    pictures = np.concatenate([raw["x_train"], raw["x_test"]])[:, None]
    labels = np.concatenate([raw["y_train"], raw["y_test"]])
    if size != 16:
        values = torch.from_numpy(pictures).float()
        grown = torch.nn.functional.interpolate(values, (size, size), mode="bilinear", antialias=True)
        pictures = grown.round().to(torch.uint8).numpy()
    return _deal("usps", pictures, labels, DIGITS, "USPS, research data without an explicit licence", options)


@dataset(
    task="classification: 10 kinds of object, 3 x 32 x 32",
    clients="by partition (default 20)",
    examples=40000,
    megabytes=67.9,
    licence="none stated; research use",
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
    citation="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
    files=tuple(f"cifar10/{shard}_{part}" for shard in SHARDS for part in ("x.npy.xz", "y.npz")),
    how_to_get="pack shards of 10000 pictures as plures.federation.datasets.images reads them",
)
def cifar10(*, shards: Sequence[str] = SHARDS, **options: Unpack[Dealt]) -> Federation:
    """CIFAR-10 (Krizhevsky 2009): up to 40000 pictures ``(3, 32, 32)`` in shards of 10000; see `Dealt`."""
    for shard in shards:
        if shard not in SHARDS:
            raise PluresError(f"cifar10: no shard {shard!r}; shards are {', '.join(SHARDS)}")
    folder = data_folder() / "cifar10"
    pictures = np.concatenate([_cifar_pictures(folder / f"{shard}_x.npy.xz") for shard in shards])
    labels = np.concatenate([read(folder / f"{shard}_y.npz")["y"] for shard in shards])
    return _deal("cifar10", pictures, labels, THINGS, "CIFAR-10 (subset), no explicit licence, research use", options)


def _train_and_test(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    parts = [read(folder / f"{part}.npz") for part in ("train", "test")]
    return np.concatenate([part["x"] for part in parts])[:, None], np.concatenate([part["y"] for part in parts])


def _cifar_pictures(file: Path) -> NDArray[np.uint8]:
    """Undo the packing: differences along both axes, planes green, red - green, blue - green (modulo 256)."""
    with lzma.open(file) as packed:
        residuals: NDArray[np.uint8] = np.load(io.BytesIO(packed.read()), allow_pickle=False)
    rows = np.cumsum(residuals, axis=2, dtype=np.uint8)
    green, red, blue = np.cumsum(rows, axis=3, dtype=np.uint8)
    return np.stack([red + green, green, blue + green], axis=1)


def _deal(
    name: str, pictures: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], source: str, options: Dealt
) -> Federation:
    seed, clients = options.get("seed", 0), options.get("clients", 20)
    examples = options.get("examples")
    if examples is not None:
        if not 1 <= examples <= len(labels):
            raise PluresError(f"{name}: examples={examples}, but there are {len(labels)}; give 1 to {len(labels)}")
        chosen = np.sort(generator(seed, "examples", name).choice(len(labels), examples, replace=False))
        pictures, labels = pictures[chosen], labels[chosen]
    owner = partition(
        labels,
        options.get("partition", "dirichlet"),
        clients,
        alpha=options.get("alpha"),
        classes_per_client=options.get("classes_per_client"),
        min_size=options.get("min_size"),
        seed=seed,
    )
    used = owner >= 0
    numbers = np.char.zfill(owner[used].astype(str), len(str(clients - 1)))
    return from_arrays(
        pictures[used].astype(np.float32) / np.float32(255),
        labels[used],
        np.char.add("client ", numbers),
        name=name,
        classes=classes,
        split=options.get("split"),
        seed=seed,
        standardize=options.get("standardize", True),
        source=source,
    )
