"""Monitoring of a run: a log of JSON lines, and metrics in a file for Prometheus."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from plures.errors import PluresError
from plures.files import strict, write_text

LOG, METRICS = "log.jsonl", "metrics.prom"
PREFIX = "plures"
BROKEN = "broken round"
"""Event of a round that broke the model: entries of that round and of later ones, if logged before it, are void."""

HELP = {
    "round": "Rounds finished.",
    "rounds": "Rounds planned.",
    "round_seconds": "Wall time of the last round.",
    "train_loss": "Mean task loss in training in the last round.",
    "train_objective": "Mean of what the clients minimised in the last round.",
    "validation": "Mean over clients of the primary metric on validation data, last measured.",
    "client_validation": "The same for each client.",
    "clients": "Clients whose work counted in the last round.",
    "left_out_total": "How often a client was asked and its work did not count.",
    "bytes_down_total": "Bytes of tensors sent to sites.",
    "bytes_up_total": "Bytes of tensors received from sites.",
    "bytes_wired_total": "Bytes of messages both ways, headers included.",
    "epsilon": "Differential privacy: epsilon of the rounds up to epsilon_round.",
    "epsilon_round": "The round for which epsilon was last computed.",
    "epsilon_plan": "Epsilon of all planned rounds.",
    "delta": "The delta of both.",
    "failed_rounds_total": "Rounds that did not count because too few clients did their work.",
}


class Journal:
    """Writes to a folder; nothing leaves the machine.

    Args:
        folder: ``log.jsonl`` there gets one line for each event; ``metrics.prom`` is rewritten after each round.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def event(self, what: str, **details: object) -> None:
        """Append a line: the time in seconds since 1970, the event, and its details."""
        line = json.dumps(
            strict({"time": round(time.time(), 3), "event": what, **details}), ensure_ascii=False, allow_nan=False
        )
        try:
            with (self.folder / LOG).open("ab+") as file:
                start = b"" if whole(file) else b"\n"
                file.write(start + line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise PluresError(f"{self.folder / LOG} cannot be written: {error.strerror}") from error

    def events(self, what: str | None = None) -> list[dict[str, Any]]:
        """All events so far, or those of one kind; a line truncated by a full disk is skipped."""
        return [event for event in read_log(self.folder) if what is None or event["event"] == what]

    def rounds(self) -> list[dict[str, Any]]:
        """The events of the rounds that count; a round that broke the model counts once it has been repeated."""
        found: dict[int, dict[str, Any]] = {}
        for event in self.events():
            if event["event"] == BROKEN:
                found = {number: one for number, one in found.items() if number < event["round"]}
            elif event["event"] == "round":
                found[event["round"]] = event
        return list(found.values())

    def metrics(self, values: Mapping[str, float | Mapping[str, float]]) -> None:
        """Write the current values in Prometheus' text format; values of clients get a label."""
        lines = []
        for name, value in values.items():
            full = f"{PREFIX}_{name}"
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {full} {HELP[name]}", f"# TYPE {full} {kind}"]
            if isinstance(value, Mapping):
                lines += [f'{full}{{client="{escaped(client)}"}} {number!r}' for client, number in value.items()]
            else:
                lines.append(f"{full} {value!r}")
        write_text(self.folder / METRICS, "\n".join(lines) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All events of a folder, including rotated files (``log.jsonl.1`` is the newest)."""
    aside = [file for file in folder.glob(f"{LOG}.*") if file.suffix[1:].isdecimal()]
    found = []
    for file in (*sorted(aside, key=lambda file: -int(file.suffix[1:])), folder / LOG):
        with suppress(FileNotFoundError):
            for line in file.read_bytes().split(b"\n"):
                with suppress(ValueError):
                    found.append(json.loads(line))
    return [event for event in found if isinstance(event, dict) and "event" in event]


def whole(file: BinaryIO) -> bool:
    """Whether the last line of a file, which is open at its end, is complete."""
    if not file.tell():
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def escaped(label: str) -> str:
    """A label value, escaped for the format."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
