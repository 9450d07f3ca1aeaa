"""Repack the two data sets that ship with plures, and check that nothing changed.

Usage: python tools/pack_data.py FOLDER, where FOLDER holds ``ucihar/ucihar.npz`` (float16 windows with their
segments) and ``heart_disease/processed.*.data`` (the UCI text files).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from plures.federation.datasets.har import read_windows
from plures.federation.datasets.heart import COLUMNS, HOSPITALS

PACKAGED = Path(__file__).parents[1] / "src" / "plures" / "federation" / "data"


def pack_har(source: Path, target: Path) -> None:
    """Store each segment's sample stream once (windows overlap by half), its two bytes in separate planes."""
    with np.load(source, allow_pickle=False) as archive:
        raw = {key: archive[key] for key in ("x", "y", "subject", "segment", "channel_names", "label_names")}
    bits = raw["x"].view(np.uint16)
    first = np.flatnonzero(np.diff(raw["segment"].astype(np.int64), prepend=-1))
    windows = np.diff(first, append=len(bits))
    streams = []
    for start, count in zip(first, windows, strict=True):
        segment = bits[start : start + count]
        halves = [*segment[:, :, :64], segment[-1, :, 64:]]
        streams.append(np.concatenate(halves, axis=1))
    stream = np.concatenate(streams, axis=1)
    np.savez_compressed(
        target,
        stream=np.stack([stream & 255, stream >> 8]).astype(np.uint8),
        windows=windows.astype(np.uint8),
        activity=raw["y"][first],
        subject=raw["subject"][first],
        channels=raw["channel_names"],
        activities=raw["label_names"],
    )
    rebuilt = read_windows(target)
    segment_of_row = np.repeat(np.arange(len(windows)), windows)
    assert np.array_equal(rebuilt.inputs.view(np.uint16), bits)
    assert np.array_equal(rebuilt.activity, raw["y"])
    assert np.array_equal(rebuilt.subject, raw["subject"])
    assert np.array_equal(rebuilt.segment, segment_of_row)
    assert np.array_equal(rebuilt.segment, raw["segment"])
    print(f"{target.name}: {len(bits)} windows rebuilt bit for bit from {target.stat().st_size / 1e6:.2f} MB")


def pack_heart(source: Path, target: Path) -> None:
    """One table with a header and the hospital in the first column; missing values stay ``?``."""
    rows = []
    for hospital in HOSPITALS:
        lines = (source / f"processed.{hospital}.data").read_text().splitlines()
        rows += [[hospital, *(cell.strip() for cell in line.split(","))] for line in lines if line.strip()]
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["hospital", *COLUMNS, "num"])
        writer.writerows(rows)
    print(f"{target.name}: {len(rows)} patients, {target.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    PACKAGED.mkdir(exist_ok=True)
    pack_har(folder / "ucihar" / "ucihar.npz", PACKAGED / "har.npz")
    pack_heart(folder / "heart_disease", PACKAGED / "heart.csv")


if __name__ == "__main__":
    main()
