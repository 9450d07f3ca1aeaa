"""The options that every builder takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, get_type_hints

import torch

from plures.federation.metadata import Metadata
from plures.federation.splits import SplitRule
from plures.tasks import Task


class Options(TypedDict, total=False):
    """Options of every builder; see `from_arrays`."""

    name: str
    task: Task | str | None
    classes: Sequence[object] | None
    metadata: Metadata | None
    split: SplitRule | None
    seed: int
    missing: Literal["error", "impute"]
    standardize: bool
    standardize_targets: bool
    dtype: torch.dtype
    copies: Literal["warn", "allow"]
    source: str


HINTS = get_type_hints(Options)
ARRAYS = ("groups", "time", "key", "weights", "columns", "subgroups")
