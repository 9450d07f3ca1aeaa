"""Threads of this process that each do the work of whole chunks of clients.

Operations on large tensors use all threads of PyTorch well, small ones do not. Clients do not depend on each other, and
so several chunks can be worked on side by side, with a part of PyTorch's threads for each.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

import torch

from plures.run.engine import Engine

T = TypeVar("T")
R = TypeVar("R")


class Member(NamedTuple):
    """A thread, and the engine that only it uses."""

    thread: ThreadPoolExecutor
    engine: Engine


class Crew:
    """Does work on chunks with an engine: in the calling thread, or in as many as ``execution.threads`` says.

    A chunk's thread depends on its place alone, so that the same chunks have the same results in every run.

    Args:
        engine: the engine of the calling thread; each thread of the crew has a copy.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._members: list[Member] = []
        self._process = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Crew:
        return Crew(copy.deepcopy(self.engine, memo))

    def each(self, work: Callable[[Engine, T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of some work on items, in their order.

        The items are taken in the calling thread, some ahead of the results. If one fails, no other is begun.

        Args:
            work: ``(engine, item) -> result``; it must not change what other items read.
            items: what to work on.
        """
        if self.engine.execution.threads in (1, "auto"):
            yield from (work(self.engine, item) for item in items)
            return
        members, begun = self._started(), deque[Future[R]]()
        try:
            for number, item in enumerate(items):
                if len(begun) > len(members):
                    yield begun.popleft().result()
                member = members[number % len(members)]
                begun.append(member.thread.submit(work, member.engine, item))
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
            wait(begun)

    def _started(self) -> list[Member]:
        """The threads, started if they are not running in this process, which may be a fork of the one they ran in."""
        if self._process != os.getpid():
            self._process, count, whole = os.getpid(), self.engine.execution.threads, torch.get_num_threads()
            assert isinstance(count, int)
            self._members = [Member(ThreadPoolExecutor(1), self.engine.twin(n + 1)) for n in range(count)]
            for thread, _ in self._members:
                thread.submit(torch.set_num_threads, max(1, whole // count)).result()
            torch.set_num_threads(whole)  # the default of threads that PyTorch meets later is the last one that was set
        return self._members


def dealt(clients: list[int], amounts: Mapping[int, int], parts: int) -> list[list[int]]:
    """Clients in parts of about as much work and nearly as many clients, each in the given order.

    Args:
        clients: by decreasing amount of work.
        amounts: work of each client.
        parts: number of parts.
    """
    most = -(-len(clients) // parts)
    found: list[list[int]] = [[] for _ in range(parts)]
    work = [0] * parts
    for client in clients:
        place = min((n for n in range(parts) if len(found[n]) < most), key=work.__getitem__)
        found[place].append(client)
        work[place] += amounts[client]
    return found
