"""Where data sets are: in the package, in the folder of data sets that are not shipped, or where Debian puts them."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError

PACKAGED = Path(__file__).parents[1] / "data"
VARIABLE = "PLURES_DATA"
SYSTEM = Path("/usr/share/datasets")
"""Where Debian's packages of data sets install them."""


def data_folder() -> Path:
    """The folder of data sets: environment variable ``PLURES_DATA``, else ``../shared/data``."""
    return Path(os.environ.get(VARIABLE) or Path("..", "shared", "data"))


def read(file: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` file."""
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes, the format of MNIST (LeCun, Cortes, Burges).

    Two zero bytes, the kind of number (8: unsigned byte), the number of dimensions, each size as a big-endian 32-bit
    integer, then the values with the last dimension running fastest.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PluresError(f"{file} is not a complete gzip file ({error}): fetch it again") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise PluresError(f"{file} is not an IDX file of unsigned bytes: fetch it again")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if len(values) != math.prod(shape):
        raise PluresError(f"{file}: {len(values)} values for the shape {tuple(shape)} that it states: fetch it again")
    return values.reshape(shape)
