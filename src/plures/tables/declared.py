"""Declarations: exact types, no unknown fields, read from TOML with one clear message and written to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


def _named(name: str) -> str:
    if not name or name != name.strip() or not name.isprintable():
        raise ValueError("a name needs at least one letter, no blanks around it and no control characters")
    return name


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


MESSAGES = {"missing": "is missing", "extra_forbidden": "is unknown here", "union_tag_not_found": "kind is missing"}
"""Pydantic's type of error -> plainer words."""

Name = Annotated[str, AfterValidator(_named)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Finite = Annotated[float, AfterValidator(_finite)]
Share = Annotated[float, Field(ge=0, le=1)]


class Declared(BaseModel):
    """Immutable, of exact types, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def told(self) -> dict[str, Any]:
        """Fields that are not as they are by default."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in self if value != defaults[name]}


def explain(error: ValidationError, declared: Mapping[str, object]) -> str:
    """The first of pydantic's complaints in one line; a column is named, not numbered.

    Args:
        error: the complaints.
        declared: what was validated; the entries of its lists are called by their ``name``, if they have one.
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
    return f"{', '.join(where)}: {message}" if where else message


def toml(value: object) -> str:
    """A text, number, truth value or list of those as TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
