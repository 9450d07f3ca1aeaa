"""A federation from WAV files in folders, or in a list."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.federation.build.files import FileOptions, from_files, listed
from plures.federation.build.listing import has
from plures.federation.federation import Federation

Array = NDArray[Any]
SUFFIXES = (".wav",)
WIDTHS = (1, 2, 3, 4)
"""Bytes of a number."""


def from_sounds(
    path: str | Path,
    *,
    samples: int | None = None,
    rate: int | None = None,
    **options: Unpack[FileOptions],
) -> Federation:
    """A federation from WAV files, which need not fit into memory: ``client/class/*.wav``, or a list in a CSV file.

    Files have uncompressed numbers of 8, 16, 24 or 32 bits. All are decoded once, into a file beside them from which
    batches are read; it is used again until one is added, removed or changed. Inputs are ``(1, samples)`` from -1 to 1
    unless they are standardised, the mean of several channels.

    Args:
        path: a folder with a folder for each client, which has one for each class; or a CSV file with a row for each
            sound.
        samples: numbers that all are brought to, by cutting off their ends or appending silence; needed if they differ.
        rate: samples per second that all must have; default: as the first. Other rates are refused: resample before.
        options: see :func:`~plures.from_pictures`.

    Raises:
        PluresError: among others for a file that is no such sound, or of another rate or length; names it.

    Examples:
        >>> import tempfile, wave
        >>> from pathlib import Path
        >>> import numpy as np
        >>> folder = Path(tempfile.mkdtemp())
        >>> for place in range(48):
        ...     file = folder / ("ada", "bo")[place % 2] / ("low", "high")[place // 24] / f"{place}.wav"
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     with wave.open(str(file), "wb") as out:
        ...         out.setparams((1, 2, 8000, 0, "NONE", ""))
        ...         out.writeframes(np.arange(64, dtype="<i2") * (place + 1))
        >>> tones = plures.from_sounds(folder)
        >>> tones.clients, tones.task.classes, tones.features
        (('ada', 'bo'), ('high', 'low'), (1, 64))
    """
    for name, value in (("samples", samples), ("rate", rate)):
        if value is not None and value < 1:
            raise PluresError(f"{name}={value}: give 1 or more")
    found, given = listed(path, options, SUFFIXES, "sounds", "from_sounds", ("samples", "rate"))
    first, known = read(found.files[0])
    wanted, length = rate or known, samples or first.shape[1]

    def alike(file: Path) -> Array:
        sound, per_second = read(file)
        if per_second != wanted:
            raise PluresError(
                f"{file}: {per_second} samples per second, but "
                + (f"rate={rate}" if rate else f"{found.files[0]} has {known}")
                + "; resample it, or leave it out"
            )
        if samples is None and sound.shape[1] != length:
            raise PluresError(
                f"{file}: {sound.shape[1]} samples, but {found.files[0]} has {length}; give samples= to bring all to "
                "one length"
            )
        return np.pad(sound[:, :length], ((0, 0), (0, max(0, length - sound.shape[1]))))

    return from_files(found, given, alike, f"sounds {length} {wanted} {samples is None}", "sounds", "from_sounds")


def has_sounds(folder: Path) -> bool:
    """Whether a folder has sounds as ``client/class/*.wav``."""
    return has(folder, SUFFIXES)


def read(file: Path) -> tuple[NDArray[np.float32], int]:
    """A sound ``(1, samples)`` from -1 to 1, the mean of its channels, and its samples per second."""
    try:
        with wave.open(str(file), "rb") as sound:
            width, channels, rate = sound.getsampwidth(), sound.getnchannels(), sound.getframerate()
            content = sound.readframes(sound.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise PluresError(
            f"{file}: cannot be read as an uncompressed WAV file ({error or 'it ends early'}); convert or remove it"
        ) from error
    if width not in WIDTHS or not content or len(content) % (width * channels):
        what = f"{8 * width} bits per number" if width not in WIDTHS else "no or incomplete samples"
        raise PluresError(f"{file}: {what}; convert it to a WAV file of 8, 16, 24 or 32 bits, or remove it")
    numbers = whole(content, width).reshape(-1, channels).mean(1)
    return (numbers / 2.0 ** (8 * width - 1))[None].astype(np.float32), rate


def whole(content: bytes, width: int) -> NDArray[np.float64]:
    """Signed numbers of some bytes each; those of one byte are stored without sign."""
    if width == 1:
        return np.frombuffer(content, np.uint8).astype(np.float64) - 128
    if width == 3:
        parts = np.frombuffer(content, np.uint8).reshape(-1, 3)
        wide = np.concatenate([np.zeros((len(parts), 1), np.uint8), parts], 1)  # times 256
        return wide.reshape(-1).view("<i4").astype(np.float64) / 256
    return np.frombuffer(content, f"<i{width}").astype(np.float64)
