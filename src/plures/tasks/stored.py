"""Tasks as data: what files and messages say of one, and the task made of it. A name of code in a file is not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from plures.errors import PluresError
from plures.tasks.choose import KINDS
from plures.tasks.task import Task

Told = dict[str, Any]
"""``kind``, and the options that differ from their defaults, as JSON has them."""


@dataclass(frozen=True)
class Named:
    """A function of somebody's own that a file names. It is known by name alone, and not run.

    Attributes:
        name: ``module:function``.
    """

    name: str

    def __call__(self, *args: Tensor) -> Tensor:
        raise PluresError(f"the loss {self.name} is code, which files only name: give the task again to train with it")


def name_of(value: object) -> str:
    """How files name a function or a class: ``module:function``."""
    if isinstance(value, Named):
        return value.name
    named = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def told(task: Task) -> Told:
    """A task as data.

    Raises:
        PluresError: if an option of a task of somebody's own is no plain value.
    """
    kind = task.kind if KINDS.get(task.kind) is type(task) else name_of(type(task))
    found: Told = {"kind": kind}
    for option in fields(task):
        value = getattr(task, option.name)
        if option.compare and value != option.default:
            found[option.name] = _plain(value, f"{kind}: {option.name}")
    return found


def restored(told: Mapping[str, Any], code: Callable[[str], Any] | None = None) -> Task:
    """The task of its data.

    Args:
        told: what :func:`told` gave.
        code: gives the class of a task of somebody's own by ``module:Class``, if the reader consents to run it.

    Raises:
        PluresError: if it says something else than a task, or names code and there is no consent.
    """
    options = {name: _value(value) for name, value in told.items() if name != "kind"}
    kind = told.get("kind")
    build = KINDS.get(str(kind))
    if build is None and ":" in str(kind):
        if code is None:
            raise PluresError(f"the task {kind} is code, which a file only names: give the task itself")
        build = code(str(kind))
    if build is None or not (isinstance(build, type) and issubclass(build, Task)):
        raise PluresError(f"{kind!r} is no task; tasks are {', '.join(KINDS)}")
    unknown = [name for name in options if name not in {option.name for option in fields(build)}]
    if unknown:
        raise PluresError(f"a {kind} has no {unknown[0]!r}")
    made: Task = build(**options)
    return made


def _plain(value: Any, what: str) -> Any:
    if callable(value):
        return {"code": name_of(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one, what) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one, what) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise PluresError(f"{what}: a {type(value).__name__} cannot be written to a file; make it of numbers and texts")


def _value(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"code"}:
        return Named(str(value["code"]))
    return tuple(map(_value, value)) if isinstance(value, list | tuple) else value
