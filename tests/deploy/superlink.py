"""A fake SuperLink in this process, for an operator's commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from plures.deploy.fleet.control import Node, Submitted


@dataclass
class SuperLink:
    """Nodes and runs, and the recorded requests.

    Attributes:
        known: the nodes.
        submitted: the runs, the newest first.
        said: every requested change, with its subject.
    """

    known: list[Node] = field(default_factory=list)
    submitted: list[Submitted] = field(default_factory=list)
    said: list[tuple[str, object]] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        return list(self.known)

    def runs(self, most: int = 100) -> list[Submitted]:
        return self.submitted

    def register(self, key: Path, name: str) -> int:
        self.said.append(("register", name))
        self.known.append(Node(100 + len(self.known), name, "registered"))
        return self.known[-1].id

    def unregister(self, node: int) -> None:
        self.said.append(("unregister", node))
        self.known = [replace(n, status="unregistered") if n.id == node else n for n in self.known]

    def start(self, app: Path, config: Mapping[str, object]) -> int:
        self.said.append(("start", config["out"]))
        self.submitted.insert(0, Submitted(len(self.submitted) + 1, "running", dict(config)))  # type: ignore[arg-type]
        return self.submitted[0].id

    def status(self, run: int) -> str:
        return next(one.status for one in self.submitted if one.id == run)

    def stop(self, run: int) -> None:
        self.said.append(("stop", run))
        self.submitted = [replace(r, status="finished:stopped") if r.id == run else r for r in self.submitted]
