"""Tasks as data, for files and messages, and back again. Code that a file names is never run without consent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from plures.errors import PluresError
from plures.tasks.choose import KINDS
from plures.tasks.task import Task

TaskDict = dict[str, Any]
"""``kind``, and the options that differ from their defaults, as JSON has them."""


@dataclass(frozen=True)
class Named:
    """A user's function that a file names. It is known by name only, and is not run.

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


def to_dict(task: Task, name: str | None = None) -> TaskDict:
    """A task as data.

    Args:
        task: the task.
        name: ``module:name`` by which it was found, if it was; otherwise a task of your own is named by its class.

    Raises:
        PluresError: if a file cannot name the task, or an option of a task of your own is not a plain value.
    """
    if KINDS.get(task.kind) is type(task):
        return {"kind": task.kind, **_options(task)}
    if name is None:
        return {"kind": _importable(type(task)), **_options(task)}
    return {"kind": name, **_values(task)}


def from_dict(stored: Mapping[str, Any], code: Callable[[str], Any] | None = None) -> Task:
    """The task that its data describe.

    Args:
        stored: the result of :func:`to_dict`.
        code: returns what ``module:name`` stands for, if the reader consents to run it: a task, or a class or function
            that returns one.

    Raises:
        PluresError: if it does not describe a task, or names code and there is no consent.
    """
    options = {name: _value(value) for name, value in stored.items() if name != "kind"}
    kind = str(stored.get("kind"))
    found: Any = KINDS.get(kind)
    if found is None and ":" in kind:
        if code is None:
            raise PluresError(f"the task {kind} is code, which a file only names: give the task itself")
        found = code(kind)
    if callable(found) and not (isinstance(found, type) and issubclass(found, Task)):
        found = found()
    known = fields(found) if isinstance(found, Task) or (isinstance(found, type) and issubclass(found, Task)) else ()
    if not known:
        raise PluresError(f"{kind!r} is not a task; tasks are {', '.join(KINDS)}")
    unknown = [name for name in options if name not in {option.name for option in known}]
    if unknown:
        raise PluresError(f"a {kind} has no {unknown[0]!r}")
    made: Task = found(**options) if isinstance(found, type) else replace(found, **options)
    return made


def completed(task: Task, stored: Mapping[str, Any]) -> Task:
    """The task completed by the options that were taken from data (:func:`completion`)."""
    return replace(task, **{name: _value(stored[name]) for name in task.by_data if name in stored})


def completion(task: Task) -> TaskDict:
    """The options that a task took from data (:attr:`Task.by_data`), if they are plain values."""
    return {name: value for name, value in _values(task).items() if name in task.by_data}


def _importable(kind: type) -> str:
    if kind.__module__ == "__main__" or "<" in kind.__qualname__:
        raise PluresError(
            f"the task {kind.__name__} is defined in a notebook, a script or a function, where no file can name it: "
            f'put it into a module and give task="module:{kind.__name__}"'
        )
    return name_of(kind)


def _options(task: Task) -> TaskDict:
    """Options that are not at their defaults."""
    found: TaskDict = {}
    for option in fields(task):
        value = getattr(task, option.name)
        if option.compare and value is not option.default:
            said = _plain(value, f"task {type(task).__name__}: {option.name}")
            if not _is_plain(option.default) or said != _plain(option.default, ""):
                found[option.name] = said
    return found


def _values(task: Task) -> TaskDict:
    """Options that are plain values; all others are in the code that the task was named by."""
    values = {option.name: getattr(task, option.name) for option in fields(task) if option.compare}
    return {name: _plain(value, "") for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, tuple | list) else _is_cell(value)


def _is_cell(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _plain(value: Any, what: str) -> Any:
    if callable(value):
        return {"code": name_of(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one, what) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one, what) for one in value]
    if _is_cell(value):
        return value
    raise PluresError(
        f"{what}: a {type(value).__name__} cannot be written to a file: use numbers and text, or put the task into "
        'a module and give task="module:name"'
    )


def _value(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"code"}:
        return Named(str(value["code"]))
    return tuple(map(_value, value)) if isinstance(value, list | tuple) else value
