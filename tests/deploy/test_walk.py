"""The guide for three organisations, followed literally: each has its own folder, and files travel by hand."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from fleet import LATE

from plures.deploy.fleet.loopback import free_port
from plures.deploy.fleet.process import Process, quiet_environment, until

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "three.md"
BLOCK = re.compile(r'^```sh title="([^"]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
PLACES = "/usr/sbin:/usr/bin:/bin"

pytestmark = pytest.mark.skipif(not shutil.which("nginx", path=PLACES), reason="nginx is not there")


class Organisation:
    """One of the three: its machine is a folder, its terminals are shells.

    Args:
        home: the folder in which its terminals start.
        changes: replacements in the guide's commands, because all three share a machine.
    """

    def __init__(self, home: Path, changes: dict[str, str]) -> None:
        self.home, self.changes = home, changes
        home.mkdir()
        programs = f"{Path(sys.executable).parent}:{PLACES}"
        self.environment = {**quiet_environment(), "PATH": programs, "HOME": str(home)}
        self.environment.pop("FLWR_HOME", None)
        self.terminals: dict[str, Process] = {}
        self.place = home

    def types(self, title: str, text: str, lasting: bool = False) -> str:
        """Type a block into a terminal, answering ``y`` to questions; returns the output."""
        for old, new in self.changes.items():
            text = text.replace(old, new)
        begin = self.home if lasting else self.place
        script = self.home / f"{title} {len(self.terminals)}.sh"
        script.write_text(f"set -e\ncd '{begin}'\n{text}\npwd > '{script}.pwd'\n")
        log = self.home / f"{script.name}.log"
        words = f"exec bash '{script}'" if lasting else f"yes | exec bash '{script}'"
        shell = Process(title, ["/bin/bash", "-c", words], self.environment, log)
        self.terminals[script.name] = shell
        shell.start()
        if not lasting:
            until(lambda: not shell.alive, LATE, lambda: f"{title}: {text}\n{shell.tail(40)}", poll=0.1)
            assert Path(f"{script}.pwd").exists(), f"{title}: {text}\n{shell.tail(40)}"
            self.place = Path(Path(f"{script}.pwd").read_text().strip())
        return shell.output()

    def ends(self) -> None:
        for shell in reversed(self.terminals.values()):
            shell.stop()


def rows(seed: int) -> str:
    ages = [(i * 7 + seed) % 60 for i in range(80)]
    words = ("no", "yes")
    lines = [f"{25 + age},{90 + i * 13 % 90},{words[i % 3 > 0]},{words[age > 30]}" for i, age in enumerate(ages)]
    return "\n".join(["age,pressure,smoker,outcome", *lines, ""])


def test_the_guide_for_three_organisations_to_the_letter(tmp_path: Path) -> None:
    superlink, door, north, south = (str(free_port()) for _ in range(4))
    host = {"coordinator.example.org": "localhost"}
    three = {
        "coordinator": Organisation(
            tmp_path / "coordinator", {**host, "superlink\n": f"superlink --port {superlink}\n"}
        ),
        "north": Organisation(tmp_path / "north", {"node site.toml": f"node site.toml --port {north}"}),
        "south": Organisation(tmp_path / "south", {"node site.toml": f"node site.toml --port {south}"}),
    }
    coordinator = tmp_path / "coordinator" / "heart"
    blocks = BLOCK.findall(GUIDE.read_text())
    said: list[str] = []
    try:
        for number, (title, text) in enumerate(blocks):
            who, _, terminal = title.partition(", ")
            said.append(three[who].types(title, text, lasting=bool(terminal)))
            if number == 0:
                for file in coordinator.rglob("*"):  # only this machine's ports, and fewer rounds
                    if file.suffix in (".conf", ".toml"):
                        changed = file.read_text().replace("8000", superlink).replace("8443", door)
                        file.write_text(changed.replace("rounds = 30", "rounds = 2"))
            if "add" in text:
                for member in ("north", "south"):
                    for file in (coordinator / "federation.toml", coordinator / "keys" / "ca.crt"):
                        shutil.copy(file, tmp_path / member / "heart")
                    (tmp_path / member / "heart" / "rows.csv").write_text(rows(len(member)))
            if "keys --client" in text:
                shutil.copy(tmp_path / who / "heart" / "keys" / "nodes" / f"{who}.pub", coordinator)
            if "superlink" in text:
                told = three["coordinator"].terminals
                until(
                    lambda told=told: any("Uvicorn running" in one.output() for one in told.values()),
                    LATE,
                    "no SuperLink",
                )
    finally:
        for one in three.values():
            one.ends()
    whole = "\n".join(said)
    assert "south is registered at the SuperLink" in whole
    assert "every member has a key" in whole
    fingerprints = re.findall(r"(?:[0-9a-f]{4} ){15}[0-9a-f]{4}", whole)
    assert fingerprints
    result = json.loads((coordinator / "results" / "result.json").read_text())
    assert result["unpublished"] == {}
    assert said[-1].count("\n") > 5
    assert os.path.exists(tmp_path / "north" / "heart" / "state" / "heart" / "ditto+threshold" / "published")
