"""Declarations: exact types, no unknown fields, read from TOML and written to it."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from plures.names import fault


def named(name: str) -> str:
    """The name, if it is valid."""
    if wrong := fault(name):
        raise ValueError(wrong)
    return name


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Name = Annotated[str, AfterValidator(named)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Finite = Annotated[float, AfterValidator(_finite)]
Share = Annotated[float, Field(ge=0, le=1)]


class Declared(BaseModel):
    """An immutable model with exact types and no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """Fields that differ from their defaults."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in self if value != defaults[name]}


def toml(value: object) -> str:
    """A string, number, boolean or list of those as TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, str):  # TOML requires escaping one control character that JSON does not
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
