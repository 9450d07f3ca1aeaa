"""What is known about a data set before it is loaded."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsIndex

from plures.federation.federation import Federation


@dataclass(frozen=True)
class DatasetCard:
    """A data set in the catalogue: called with its options, it gives the federation.

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
        loader: makes the federation; its keyword arguments are the options of `load`.
        how_to_get: how to get it if it is missing.
        packaged: whether it ships with plures.
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
    loader: Callable[..., Federation]
    how_to_get: str = "ships with plures"
    packaged: bool = False
    system: tuple[str, ...] = ()

    def __call__(self, **options: Any) -> Federation:
        return self.loader(**options)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle a card by its name in a module, in the place of the loader, whose name there it has taken."""
        module, name = self.loader.__module__, self.loader.__name__
        if getattr(sys.modules.get(module), name, None) is self:
            return pkgutil.resolve_name, (f"{module}:{name}",)
        return super().__reduce_ex__(protocol)


def dataset(
    *,
    task: str,
    clients: str,
    examples: int,
    megabytes: float,
    licence: str,
    source: str,
    citation: str,
    files: tuple[str, ...],
    how_to_get: str = "ships with plures",
    packaged: bool = False,
    system: tuple[str, ...] = (),
) -> Callable[[Callable[..., Federation]], DatasetCard]:
    """Describe a data set where it is loaded; see :class:`DatasetCard`."""

    def describe(loader: Callable[..., Federation]) -> DatasetCard:
        return DatasetCard(
            *(loader.__name__, task, clients, examples, megabytes, licence, source, citation, files),
            loader=loader,
            how_to_get=how_to_get,
            packaged=packaged,
            system=system,
        )

    return describe
