"""Explain in one sentence why a file does not fit a pydantic model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from plures.errors import PluresError, closest
from plures.files import unsealed
from plures.signature import shown
from plures.version import __version__

MESSAGES = {"missing": "is missing", "extra_forbidden": "is unknown here", "union_tag_not_found": "kind is missing"}
"""Pydantic's error type -> plainer words."""
M = TypeVar("M", bound=BaseModel)


def explain(error: ValidationError, declared: Mapping[str, object], known: Iterable[str] = ()) -> str:
    """The first of pydantic's errors in one line; a column is named, not numbered.

    Args:
        error: the errors.
        declared: the data that was validated; entries of its lists are referred to by their ``name``, if they have one.
        known: names of its fields, to suggest one for a misspelled name.
    """
    first = error.errors()[0]
    where: list[str] = []
    inside: object = declared
    for part in first["loc"]:
        if isinstance(part, int) and isinstance(inside, list | tuple):
            inside = inside[part]
            name = inside.get("name") if isinstance(inside, Mapping) else None
            where[-1] = f"{where[-1].removesuffix('s')} {repr(name) if name else f'number {part + 1}'}"
        elif isinstance(inside, Mapping) and part not in inside and inside.get("kind") == part:
            continue  # the tag that chose the type of an entry
        else:
            inside = inside.get(part) if isinstance(inside, Mapping) else None
            where.append(str(part))
    message = MESSAGES.get(first["type"], first["msg"]).removeprefix("Value error, ")
    plain = isinstance(first["input"], str | int | float)
    if plain and first["type"] not in (*MESSAGES, "value_error", "json_invalid"):
        message += f", not {shown(first['input'])}"
    if first["type"] == "extra_forbidden" and len(where) == 1:
        near = closest(where[0], known)
        message += f"; did you mean {near!r}?" if near else ""
    return f"{', '.join(where)}: {message}" if where else message


def text_of(file: Path, what: str) -> str:
    """The text of a file.

    Args:
        file: the file.
        what: what it should be, for the message.

    Raises:
        PluresError: if it cannot be read or is not UTF-8 text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PluresError(f"{file} is not {what}: it is not UTF-8 text; name the right file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PluresError(f"{file} is not {what}: it cannot be read ({reason}); name the right file") from error


def read_json(kind: type[M], file: Path, what: str, remedy: str) -> M:
    """Read a model from a JSON file.

    Args:
        kind: the model.
        file: the file.
        what: what it should be, for the message.
        remedy: what to do if it is not.

    Raises:
        PluresError: if the file cannot be read or does not fit the model; one sentence names it.
    """
    text = text_of(file, what)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        text = json.dumps(unsealed(document, file, remedy, earlier=True))
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise unreadable(error, file, what, remedy) from error


def unreadable(error: ValidationError, file: Path, what: str, remedy: str) -> PluresError:
    """The error for a file that is damaged or was written by another version."""
    return PluresError(
        f"{file} is not {what} that plures {__version__} can read ({explain(error, {})}): it is damaged, or of "
        f"another version; {remedy}"
    )
