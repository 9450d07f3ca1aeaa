"""A federation whose examples are files: listed, decoded once, and read as batches need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_type_hints

from numpy.typing import NDArray

from plures.federation.build.assemble import assemble
from plures.federation.build.decoded import Progress, decoded, source_of
from plures.federation.build.examples import Examples
from plures.federation.build.listing import Listing, listing
from plures.federation.build.options import HINTS, Options
from plures.federation.federation import Federation
from plures.federation.options import checked

Array = NDArray[Any]


class FileOptions(Options, total=False):
    """Options of every builder from files, beside those of `from_arrays`.

    Attributes:
        cache: folder for what is decoded; default: ``.plures`` in the folder of the files or of the CSV file.
        client: column of the CSV file with the client; default: ``client``.
        target: column of the CSV file with the class; default: ``class``.
        file: column of the CSV file with the file, relative to the CSV file; default: ``file``.
        progress: called with the number of decoded files and of all.
    """

    cache: str | Path | None
    client: str
    target: str
    file: str
    progress: Progress | None


FILE_HINTS = get_type_hints(FileOptions)
OWN = tuple(name for name in FILE_HINTS if name not in HINTS)
"""Options that builders from files have beside those of every builder."""


def listed(
    path: str | Path, given: FileOptions, suffixes: Sequence[str], called: str, builder: str, also: Sequence[str]
) -> tuple[Listing, FileOptions]:
    """The files, and the options after they were checked.

    Args:
        path: a folder with a folder for each client, which has one for each class; or a CSV file.
        given: the options.
        suffixes: of the files in a folder.
        called: what the files are, for messages.
        builder: name of the builder, for messages.
        also: names of its own arguments, for suggestions.
    """
    options = cast(FileOptions, checked({**given}, FILE_HINTS, builder, also))
    columns = (options.get("file", "file"), options.get("client", "client"), options.get("target", "class"))
    return listing(Path(path), suffixes, called, columns), options


def from_files(
    found: Listing,
    given: FileOptions,
    read: Callable[[Path], Array],
    how: str,
    called: str,
    builder: str,
    unit: float | None = None,
) -> Federation:
    """A federation of files that are decoded by ``read``, unless they were before.

    Args:
        found: the files.
        given: the options.
        read: decodes a file.
        how: all that the decoded numbers depend on beside the files, as text.
        called: what the files are; name of the folder of decoded ones in that of the files.
        builder: name of the builder, for messages.
        unit: what decoded numbers are divided by where inputs are not standardised.
    """
    kept = given.get("cache")
    store = Path(kept) if kept is not None else found.cache(called)

    def one(place: int) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        return {called: read(found.files[place])}, {}

    made = decoded(len(found.files), one, source_of(found.files, how), store, given.get("progress"))
    (inputs,) = made.inputs.values()
    rows = Examples(inputs, found.targets, found.clients, key=found.keys, unit=unit)
    options = cast(Options, {"name": found.name} | {name: value for name, value in given.items() if name not in OWN})
    return assemble(rows, options, builder)
