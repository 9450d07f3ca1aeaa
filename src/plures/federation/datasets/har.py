"""Human activity recognition with smartphones: thirty subjects, six activities, raw inertial signals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plures.brief import brief
from plures.federation.build import from_arrays
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import PACKAGED
from plures.federation.federation import Federation
from plures.federation.splits import SplitRule

WINDOW, STRIDE = 128, 64
STEP = 2.0**-10
BODY, TOTAL = slice(0, 3), slice(6, 9)
FILE = PACKAGED / "har.npz"


@brief
@dataclass(frozen=True)
class Windows:
    """The windows of all subjects, in recording order inside a segment.

    Attributes:
        inputs: ``(windows, 9, 128)`` float32, multiples of 2^-10, at 50 Hz: body acceleration x, y, z (g), body
            angular velocity x, y, z (rad/s), total acceleration x, y, z (g).
        activity: ``(windows,)`` class number.
        subject: ``(windows,)`` 1 to 30.
        segment: ``(windows,)`` number of the uninterrupted recording; neighbours in it share 64 samples.
        channels: names of the nine channels.
        activities: class names.
    """

    inputs: NDArray[np.float32]
    activity: NDArray[np.uint8]
    subject: NDArray[np.uint8]
    segment: NDArray[np.int64]
    channels: tuple[str, ...]
    activities: tuple[str, ...]


def read_windows(file: Path = FILE) -> Windows:
    """Rebuild the half-overlapping windows from each segment's stream of samples.

    A segment of ``w`` windows is a stream of ``64 * (w + 1)`` samples in steps of 2^-10. Total acceleration is stored
    without body acceleration (what is left is gravity, nearly constant); each channel as differences from sample to
    sample, their sign in the lowest bit; the low and the high bytes of these apart.
    """
    with np.load(file, allow_pickle=False) as archive:
        raw: dict[str, NDArray[Any]] = dict(archive)
    low, high = raw["code"].astype(np.int32)
    code = low | high << 8
    steps = np.cumsum(code >> 1 ^ -(code & 1), axis=1, dtype=np.int32)
    steps[TOTAL] += steps[BODY]
    stream = steps.astype(np.float32) * np.float32(STEP)
    segment = np.repeat(np.arange(len(raw["windows"])), raw["windows"])
    begin = STRIDE * (np.arange(len(segment)) + segment)  # each earlier segment has one half window more than windows
    samples = begin[:, None] + np.arange(WINDOW)
    return Windows(
        inputs=np.ascontiguousarray(stream[:, samples].transpose(1, 0, 2)),
        activity=raw["activity"][segment],
        subject=raw["subject"][segment],
        segment=segment,
        channels=tuple(raw["channels"].tolist()),
        activities=tuple(raw["activities"].tolist()),
    )


@dataset(
    task="classification: 6 activities from 9 inertial channels of 128 samples",
    clients="30 subjects",
    examples=10299,
    megabytes=4.5,
    licence="CC BY 4.0 at UCI; the original archive says no commercial use",
    source="https://doi.org/10.24432/C54S4K",
    citation="Anguita, Ghio, Oneto, Parra, Reyes-Ortiz: A Public Domain Dataset for Human Activity Recognition "
    "Using Smartphones, ESANN 2013",
    files=("har.npz",),
    packaged=True,
)
def har(*, seed: int = 0, split: SplitRule | None = None, standardize: bool = True) -> Federation:
    """UCI HAR (Anguita, Ghio, Oneto, Parra, Reyes-Ortiz 2013): 30 subjects, 10299 windows, 6 activities.

    Inputs are ``(10299, 9, 128)``: nine channels of 2.56 s at 50 Hz. Neighbouring windows of a recording share half
    of their samples, so whole recordings go to one split. Samples are in steps of 2^-10 g or rad/s: that moved none by
    more than 0.0005, where the float16 windows they were packed from are already off by up to 0.002.

    Args:
        seed: of the splits.
        split: their shares.
        standardize: each channel to mean 0 and standard deviation 1 over all train windows; otherwise g and rad/s.
    """
    windows = read_windows()
    return from_arrays(
        windows.inputs,
        windows.activity,
        np.char.add("subject ", np.char.zfill(windows.subject.astype(str), 2)),
        name="har",
        classes=windows.activities,
        groups=windows.segment,
        columns=windows.channels,
        split=split,
        seed=seed,
        standardize=standardize,
        source="UCI HAR, doi:10.24432/C54S4K, CC BY 4.0 at UCI (original archive: no commercial use)",
    )
