"""Where data sets lie: in the package, or in the folder of data sets that are not shipped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGED = Path(__file__).parents[1] / "data"
VARIABLE = "PLURES_DATA"


def data_folder() -> Path:
    """The folder of data sets: environment variable ``PLURES_DATA``, else ``../shared/data``."""
    return Path(os.environ.get(VARIABLE) or Path("..", "shared", "data"))


def read(file: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` file."""
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)
