"""The data sets that load by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from plures.discover import entries
from plures.errors import PluresError, suggestion
from plures.federation.datasets import folder
from plures.federation.datasets.card import DatasetCard
from plures.federation.datasets.folder import PACKAGED, VARIABLE, data_folder
from plures.federation.federation import Federation
from plures.federation.options import checked
from plures.signature import Kinds, kinds

TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".feather", ".json", ".npz")
"""Endings of files that are not data sets."""

DATASETS: Mapping[str, DatasetCard] = MappingProxyType(
    {
        card.name: card
        for card in sorted(
            entries("plures.federation.datasets", DatasetCard).values(), key=lambda card: (not card.packaged, card.name)
        )
    }
)
"""The data sets by name, those of the package first; collected from the modules of this package."""


def load(name: str, *, seed: int = 0, **options: object) -> Federation:
    """A federation by the name of its data set.

    Args:
        name: one of `DATASETS`.
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
    read = checked({"seed": seed, **options}, loader_kinds(name), f"data set {name!r}")
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
    if name not in DATASETS:
        file = Path(str(name))
        if file.is_file() or file.suffix.lower() in TABLES:
            raise PluresError(
                f"no data set {str(name)!r}: a table is not a data set by itself; read it in Python and use "
                "plures.from_table(frame, target=..., client=...), or make a folder of .npz files, one for each client"
            )
        if len(file.parts) > 1:
            raise PluresError(f"no data set {str(name)!r}: there is no folder of this name; check the path")
        raise PluresError(f"no data set {str(name)!r}: {suggestion(name, DATASETS)} (or name a folder of .npz files)")
    return DATASETS[name]


def loader_kinds(name: str) -> Kinds:
    """Options of `load` for a data set, with their types."""
    declared = kinds(_card(name).loader)
    return {option: kind for option, kind in declared.items() if option != "seed"} | {"seed": int}
