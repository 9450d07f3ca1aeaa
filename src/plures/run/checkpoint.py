"""Write a run's state atomically, and resume from it exactly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plures.errors import PluresError, PluresWarning
from plures.files import describe, discard, read, salvaged, write
from plures.method import BlockState, Leaf
from plures.run.coordinator import Coordinator
from plures.run.fingerprint import KEY, VERSIONS, Fingerprint, insist, of_run

BEST, PAST, PACE = "best:", "past:", "pace:"
RUN_AGAIN = "the run starts over"
REMEDY = "delete it, and the run starts over"
Snapshot = dict[str, Tensor]
"""Everything that changes in a run, as flat named tensors."""


def _held(leaf: Leaf) -> str:
    """Name of a client's stored leaf in a snapshot."""
    return f"clients:{leaf.slot}:{leaf.path}"


def snapshot(run: Coordinator[Any]) -> Snapshot:
    """The current state of a run. Nothing in it aliases what the run changes later."""
    run.insist_whole()
    tensors = {_held(leaf): t for leaf, t in run.store.snapshot().items()}
    for block, kept in run.server.items():
        tensors |= {f"server:{block}:{k}": t for k, t in kept.values.items()}
        tensors |= {f"share:{block}:{k}": t for k, t in kept.extra.items()}
    for block, memory in run.memory.items():
        tensors |= {f"memory:{block}:{k}": t for k, t in memory.items()}
    for version, kept_then in run.past.items():
        for block, kept in kept_then.items():
            tensors |= {f"{PAST}{version}:{block}:{k}": t for k, t in kept.values.items()}
    tensors |= {f"{PACE}{name}": t for name, t in (run.pace or {}).items()}
    tensors["visited"] = run.store.visited.clone()
    tensors["last"] = run.last.clone()
    tensors["moves"] = run.moves
    tensors["round"] = torch.tensor(run.round)
    return tensors


def restore(run: Coordinator[Any], saved: Snapshot) -> None:
    """Restore a saved state of a run."""
    run.torn = False
    odd = sorted(name for name in snapshot(run).keys() ^ saved.keys() if not name.startswith(("share:", PAST)))
    if odd:
        raise PluresError(f"the saved state is of another method or model: it differs in {', '.join(odd[:3])}")

    def taken(kind: str, block: str, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: saved[f"{kind}:{block}:{k}"].to(t.device) for k, t in names.items()}

    def extra(block: str, kept: BlockState) -> dict[str, Tensor]:
        """Further tensors that a share keeps, which may appear or disappear from round to round."""
        prefix = f"share:{block}:"
        found = {name.removeprefix(prefix): t for name, t in saved.items() if name.startswith(prefix)}
        leaf = next(iter(kept.values.values()))
        return {k: t.to(kept.extra.get(k, leaf).device) for k, t in found.items()}

    run.torn = True
    run.server = {
        block: replace(kept, values=taken("server", block, kept.values), extra=extra(block, kept), copied=())
        for block, kept in run.server.items()
    }
    run.memory = {block: taken("memory", block, memory) for block, memory in run.memory.items()}
    versions = sorted({int(name.split(":")[1]) for name in saved if name.startswith(PAST)})
    run.past = {
        version: {
            block: replace(kept, values=taken(f"{PAST}{version}", block, kept.values), copied=())
            for block, kept in run.server.items()
        }
        for version in versions
    }
    run.pace = run.pace if run.pace is None else {name: saved[f"{PACE}{name}"].clone() for name in run.pace}
    run.store.restore(saved["visited"], {leaf: saved[_held(leaf)] for leaf in run.store.snapshot()})
    run.last, run.moves = saved["last"].clone(), saved["moves"].clone()
    run.round, run.torn = int(saved["round"]), False


def save(
    run: Coordinator[Any],
    name: str,
    file: Path,
    best: Snapshot | None = None,
    *,
    question: Fingerprint | None = None,
    **extra: Any,
) -> None:
    """Write a checkpoint of a run.

    Args:
        run: the run.
        name: what it is called; the checkpoint belongs to runs of this name.
        file: where to write.
        best: an earlier state worth keeping alongside the current one.
        question: the run's fingerprint; default: that of :func:`~plures.run.fingerprint.of_run`.
        extra: JSON values that :func:`resume` returns.
    """
    asked = of_run(run, name) if question is None else question
    device = str(run.execution.torch_device)
    about = {KEY: asked, "execution": asdict(run.execution) | {"clients_on_disk": None, "ray": None, "device": device}}
    kept = {f"{BEST}{key}": tensor for key, tensor in (best or {}).items()}
    write(file, snapshot(run) | kept, about | extra)


def discard_damaged(file: Path) -> None:
    """Delete a damaged checkpoint, with a warning that names it, so that its run starts over."""
    if file.exists() and salvaged(lambda: read(file), RUN_AGAIN) is None:
        discard(file)


def resume(
    run: Coordinator[Any], name: str, file: Path, question: Fingerprint | None = None
) -> tuple[dict[str, Any], Snapshot | None]:
    """Restore a run from a checkpoint; refuse a checkpoint of another run.

    Args:
        run: the run.
        name: what it is called.
        file: the checkpoint.
        question: the run's fingerprint, as it was given to :func:`save`.

    Returns:
        The values and the earlier state that were given to :func:`save`.

    Raises:
        PluresError: if data, model, method, training or anything else that the result depends on differs, or if the
            file does not record it; the message names the difference.
    """
    about = describe(file, REMEDY)
    asked = of_run(run, name) if question is None else question
    insist(f"{file} is a checkpoint of another run", about.get(KEY), asked)
    old, new = about[KEY][VERSIONS]["torch"], asked[VERSIONS]["torch"]
    if old != new:
        warnings.warn(
            f"{file} was written with torch {old}, and this is torch {new}: the rounds to come may differ by rounding",
            PluresWarning,
            stacklevel=2,
        )
    tensors, about = read(file, REMEDY)
    restore(run, {key: t for key, t in tensors.items() if not key.startswith(BEST)})
    return about, {key.removeprefix(BEST): t for key, t in tensors.items() if key.startswith(BEST)} or None
