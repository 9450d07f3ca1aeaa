"""Methods that behave differently in other processes."""

from __future__ import annotations

import multiprocessing

from plures import PluresError


def refuses(x, received, batch):
    """An objective that works in this process and raises an error in any other."""
    if multiprocessing.parent_process() is not None:
        raise PluresError("data of another kind")
    return batch.loss(x.model)
