"""Repack the two data sets that ship with plures, and check what comes back.

Usage: python tools/pack_data.py FOLDER, where FOLDER holds ``ucihar/ucihar.npz`` (float16 windows with their
segments) and ``heart_disease/processed.*.data`` (the UCI text files).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from plures.federation.datasets.har import BODY, STEP, TOTAL, WINDOW, read_windows
from plures.federation.datasets.heart import COLUMNS, HOSPITALS

PACKAGED = Path(__file__).parents[1] / "src" / "plures" / "federation" / "data"


def pack_har(source: Path, target: Path) -> None:
    """Store each segment's sample stream once (windows overlap by half), in the coding `read_windows` undoes."""
    with np.load(source, allow_pickle=False) as archive:
        raw = {key: archive[key] for key in ("x", "y", "subject", "segment", "channel_names", "label_names")}
    inputs = raw["x"].astype(np.float32)
    first = np.flatnonzero(np.diff(raw["segment"].astype(np.int64), prepend=-1))
    windows = np.diff(first, append=len(inputs))
    streams = []
    for start, count in zip(first, windows, strict=True):
        segment = inputs[start : start + count]
        streams += [*segment[:, :, : WINDOW // 2], segment[-1, :, WINDOW // 2 :]]
    steps = np.round(np.concatenate(streams, axis=1) / STEP).astype(np.int32)
    steps[TOTAL] -= steps[BODY]
    delta = np.diff(steps, axis=1, prepend=0)
    code = delta << 1 ^ delta >> 31
    assert code.max() < 1 << 16
    np.savez_compressed(
        target,
        code=np.stack([code & 255, code >> 8]).astype(np.uint8),
        windows=windows.astype(np.uint8),
        activity=raw["y"][first],
        subject=raw["subject"][first],
        channels=raw["channel_names"],
        activities=raw["label_names"],
    )
    rebuilt = read_windows(target)
    error = np.abs(rebuilt.inputs - inputs).max()
    assert error <= STEP / 2
    assert np.array_equal(rebuilt.activity, raw["y"])
    assert np.array_equal(rebuilt.subject, raw["subject"])
    assert np.array_equal(rebuilt.segment, raw["segment"])
    size = target.stat().st_size / 1e6
    print(f"{target.name}: {len(inputs)} windows rebuilt from {size:.2f} MB, largest error {error:.6f}")


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
