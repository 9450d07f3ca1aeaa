"""A coordinator's folder: its agreed plan, its SuperLink and its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from plures.deploy.conduct import RESULT
from plures.deploy.fleet.control import Control, Submitted
from plures.deploy.journal import LOG
from plures.deploy.plan import CONNECTION, Plan, read_toml
from plures.deploy.project import PLAN
from plures.errors import PluresError

RESULTS = "results"


@dataclass(frozen=True)
class Place:
    """The folder that ``plures deploy init`` wrote at the coordinator."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder.resolve() / PLAN

    @property
    def plan(self) -> Plan:
        return Plan.load(self.file)

    @property
    def control(self) -> Control:
        """The SuperLink that ``flower/config.toml`` names."""
        file = self.folder / CONNECTION
        connections: Any = read_toml(file).get("superlink", {})
        try:
            own = connections[connections["default"]]
            authority = None if own.get("insecure", False) else self.folder / own["root-certificates"]
            return Control(str(own["address"]), authority)
        except (KeyError, TypeError, AttributeError) as error:
            raise PluresError(
                f"{file} does not say where the SuperLink is: {error}; `plures deploy init` writes it"
            ) from error

    def out(self, run: Submitted) -> Path:
        """The folder of a run that was submitted from here."""
        return self.folder.resolve() / str(run.config.get("out", RESULTS))

    def newest(self) -> Path:
        """The folder of the run that wrote to its log last, or where the first will be."""
        results = self.folder.resolve() / RESULTS
        logs = [file for file in (results / LOG, *results.glob(f"*/{LOG}")) if file.is_file()]
        return max(logs, key=lambda file: file.stat().st_mtime).parent if logs else results


def works(out: Path) -> bool:
    """Whether a server is working in the folder of a run."""
    lock = out / "lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError as error:
        raise PluresError(f"{lock} cannot be opened: {error.strerror}; run as the user who owns {out}") from error


def finished(out: Path) -> bool:
    return (out / RESULT).exists()
