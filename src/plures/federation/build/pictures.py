"""A federation from pictures in folders, or in a list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.extras import needed
from plures.federation.build.files import FileOptions, from_files, listed
from plures.federation.build.listing import has
from plures.federation.federation import Federation

Array = NDArray[Any]
SUFFIXES = (".png", ".jpg", ".jpeg")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of Pillow with more than 8 bits for a colour."""
GREY = ("1", "L", "LA")
"""Modes of Pillow without colours."""
LEVELS = 255.0


def from_pictures(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    **options: Unpack[FileOptions],
) -> Federation:
    """A federation from pictures, which need not fit into memory: ``client/class/*.png``, or a list in a CSV file.

    All pictures are decoded once, into a file beside them from which batches are read, as whole numbers of 8 bits. It
    is used again until a picture is added, removed or changed. Inputs are ``(channels, height, width)``, from 0 to 1
    unless they are standardised. Needs ``plures[pictures]``.

    Args:
        path: a folder with a folder for each client, which has one for each class; or a CSV file with a row for each
            picture.
        size: ``(height, width)`` that all are resized to; needed if they differ.
        channels: 1 for grey, 3 for colours; default: as the first picture.
        options: ``client``, ``target`` and ``file``, the columns of the CSV file (default ``client``, ``class`` and
            ``file``, relative to it); ``cache``, the folder for the decoded pictures (default ``.plures`` beside them);
            ``progress``, called with the number of decoded pictures and of all. The others are those of `from_arrays`;
            the name is that of the folder or file if not given.

    Raises:
        PluresError: among others for a file that is no picture, or of another size; names it.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for place in range(48):
        ...     file = folder / ("ada", "bo")[place % 2] / ("cat", "dog")[place // 24] / f"{place}.png"
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     Image.fromarray(np.full((4, 4), 5 * place, dtype=np.uint8)).save(file)
        >>> pets = plures.from_pictures(folder)
        >>> pets.clients, pets.task.classes, pets.features
        (('ada', 'bo'), ('cat', 'dog'), (1, 4, 4))
    """
    if channels not in (None, 1, 3):
        raise PluresError(f"channels={channels}: give 1 for grey or 3 for colours")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise PluresError(f"size={size}: give (height, width) in pixels")
    found, given = listed(path, options, SUFFIXES, "pictures", "from_pictures", ("size", "channels"))
    files = found.files
    read, how = _reader(files[0], size, channels)
    shape = read(files[0]).shape

    def alike(file: Path) -> Array:
        pixels = read(file)
        if pixels.shape != shape:
            raise PluresError(
                f"{file}: of shape {pixels.shape}, but {files[0]} has {shape}; give size= to bring all to one"
            )
        return pixels

    return from_files(found, given, alike, how, "pictures", "from_pictures", LEVELS)


def pixels_of(picture: Any) -> Array:
    """``(channels, height, width)`` of a picture of Pillow, 8 bits each; what is not grey is red, green, blue."""
    pixels = np.asarray(picture.convert("L" if picture.mode in GREY else "RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def has_pictures(folder: Path) -> bool:
    """Whether a folder has pictures as ``client/class/*.png``."""
    return has(folder, SUFFIXES)


def _reader(first: Path, size: tuple[int, int] | None, channels: int | None) -> tuple[Callable[[Path], Array], str]:
    """How pictures are decoded, and that as text."""
    image, ops = needed("PIL.Image", "reading pictures", "pictures"), needed("PIL.ImageOps", "pictures", "pictures")

    def opened(file: Path) -> Any:
        try:
            with image.open(file) as picture:
                upright = ops.exif_transpose(picture)
                upright.load()
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
            raise PluresError(f"{file}: cannot be read as a picture ({error}); replace or remove it") from error
        if upright.mode in DEEP:
            raise PluresError(f"{file}: has more than 8 bits for a colour; convert it to 8 bits")
        return upright

    wanted = channels or (1 if opened(first).mode in GREY else 3)

    def read(file: Path) -> Array:
        picture = opened(file)
        if channels is None and (picture.mode in GREY) != (wanted == 1):
            raise PluresError(
                f"{file}: {first} is {'grey' if wanted == 1 else 'in colours'}, but it is not; say channels="
            )
        picture = picture.convert("L" if wanted == 1 else "RGB")
        if size is not None and picture.size != size[::-1]:
            picture = picture.resize(size[::-1], image.Resampling.BILINEAR)
        return pixels_of(picture)

    return read, f"pictures {size} {wanted}"
