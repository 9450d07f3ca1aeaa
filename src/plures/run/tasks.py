"""Tasks for other processes: what they are given once, what is kept there between them, and the order of results."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from plures.errors import PluresError, PluresWarning
from plures.run.packed import Packed

AHEAD = 2
"""Number of tasks per process that may be done ahead of their turn and wait in memory."""
Given = Mapping[str, Packed]
"""What tasks are given, by keys that stand for the content: what a process has already is not sent again."""


class GoneError(Exception):
    """Processes that do tasks have ended, or cannot be reached."""


class Done(NamedTuple):
    """A task's result.

    Attributes:
        answer: what it returned, or the error that it ended with.
        told: the warnings of plures on the way.
    """

    answer: Any
    told: list[str]


class Place:
    """What a process that does tasks keeps between them, all of which can be sent again."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self._made: tuple[str, Any] = ("", None)

    def lacks(self, key: str) -> bool:
        return key not in self.held

    def take(self, given: Given, keys: Sequence[str]) -> None:
        """Keep what the next task needs, and nothing else."""
        self.held = {key: self.held[key] if key in self.held else given[key].unpacked() for key in keys}

    def made(self, key: str, make: Callable[[], Any]) -> Any:
        """What was made for the last key, made anew for another."""
        if self._made[0] != key:
            self._made = key, make()
        return self._made[1]


Task = Callable[[Place, Sequence[str], Any], Any]
"""``task(place, keys, item)``: work on an item, with what the place holds by these keys. It is sent by name."""


def do(task: Task, place: Place, keys: Sequence[str], item: Any) -> Done:
    """Do a task; errors and warnings become part of its result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PluresWarning)
        try:
            answer = task(place, keys, item)
        except PluresError as error:
            answer = PluresError(str(error))  # a subclass of the user's may not be picklable
        except Exception as error:
            answer = RuntimeError("".join(traceback.format_exception(error)))
    return Done(answer, [str(one.message) for one in caught if issubclass(one.category, PluresWarning)])


class Executor(Protocol):
    """Processes that do tasks, on this machine or on several.

    Attributes:
        count: number of tasks that are done at once.
        free: number of tasks that can begin now.
    """

    @property
    def count(self) -> int: ...

    @property
    def free(self) -> int: ...

    def pack(self, what: object, called: str, *, apart: bool = True) -> Packed:
        """Pack something for the processes; large tensors lie apart, in memory that processes share, or they do not."""

    def begin(self, number: int, task: Task, given: Given, item: Packed) -> None:
        """Begin a task."""

    def done(self) -> list[tuple[int, Done]]:
        """Wait until some tasks are done; their numbers and results.

        Raises:
            GoneError: if a task cannot be done because its process has ended.
        """

    def end(self) -> list[int | None]:
        """End the processes at once; the exit codes of those that had ended before."""


def in_turn(executor: Executor, task: Task, given: Given, items: Callable[[int], Packed], count: int) -> Iterator[Any]:
    """The results of tasks in their order, whichever is done first.

    Args:
        executor: does them.
        task: what is done with each item.
        given: what all tasks need.
        items: the item of each task, by number.
        count: number of tasks.
    """
    found: dict[int, Any] = {}
    begun = 0
    for turn in range(count):
        while turn not in found:
            most = min(count, turn + AHEAD * executor.count)
            while executor.free and begun < most:
                executor.begin(begun, task, given, items(begun))
                begun += 1
            for number, (answer, told) in executor.done():
                for text in told:
                    warnings.warn(text, PluresWarning, stacklevel=2)
                if isinstance(answer, Exception):
                    raise answer
                found[number] = answer
        yield found.pop(turn)
