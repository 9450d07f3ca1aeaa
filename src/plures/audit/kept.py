"""Audits that were kept beside the runs of a comparison."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from plures.audit.report import Audit
from plures.evaluate.folder import DESCRIPTION
from plures.evaluate.results import Comparison, MethodResult
from plures.faults import text_of, unreadable
from plures.files import filed

AUDIT = "audit.json"
"""The file in a run's folder."""
AGAIN = "delete it, and audit the run again"


def read(folder: Path) -> Audit | None:
    """The audit of a run; ``None`` if there is none.

    Raises:
        PluresError: if its file is damaged.
    """
    file = folder / AUDIT
    if not file.exists():
        return None
    try:
        return Audit.model_validate_json(text_of(file, "an audit"))
    except ValidationError as error:
        raise unreadable(error, file, "an audit", AGAIN) from error


def runs(folder: Path, method: MethodResult) -> list[Path]:
    """The folders of a method's finished runs in the folder of a comparison, one for each seed."""
    found = [folder / "runs" / f"{filed(method.name)}-seed{seed.seed}" for seed in method.seeds]
    return [path for path in found if (path / DESCRIPTION).exists()]


def audits(folder: Path, comparison: Comparison) -> dict[str, Audit]:
    """The audits of a comparison's methods, by name: of each, that of the first seed whose run was audited.

    Args:
        folder: of the comparison.
        comparison: its results.
    """
    found = {}
    for method in comparison.methods:
        kept = next((one for path in runs(folder, method) if (one := read(path)) is not None), None)
        if kept is not None:
            found[method.name] = kept
    return found
