"""What a method may know about a federation: its task, its clients, numbers about each, and public data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError
from plures.federation import Federation
from plures.federation.federation import position
from plures.federation.inputs import Inputs, lead, one_tensor, parts
from plures.tasks import Task

AGE = "rounds missed"
"""Rounds that a client has missed since it last took part; kept by the run, 0 before its first round."""
LATER = "comes later"
"""Whether a client is served as a newcomer, 1 or 0; kept by the run."""
TRAVEL, WORK = "seconds of a byte", "seconds of an operation"
"""How long each client's device takes to receive and send a byte of the network, and to do an operation for each
example of all steps of a visit; kept by a run on simulated devices."""
KEPT = ("examples", "labels", AGE, LATER, TRAVEL, WORK)
"""Facts that do not come from metadata; a column with such a name is not a fact."""


@brief
@by_content
@dataclass(frozen=True)
class Setting:
    """Facts about a federation.

    Attributes:
        task: what is predicted.
        clients: names.
        facts: ``(clients, ...)`` each: ``examples`` (training examples), ``labels`` (those of each class or label),
            and every column of the metadata: numbers as they are (booleans as 0 and 1, a missing one as NaN) and
            categories one-hot. A column that has the name of another fact can only group clients.
        metadata: the columns as given, arrays of one element as that element.
        levels: the values of every categorical column, in the order of its one-hot code.
        example: inputs of no example, with the shape and the types of all.
        joins: for newcomers, the setting of the clients that they join.
        private: facts known only to each client; here they are 0.
        public: inputs ``(n, *features)``, targets and, where examples have some, weights of the examples that the
            server holds, possibly none.
    """

    task: Task
    clients: tuple[str, ...]
    facts: Mapping[str, Tensor]
    metadata: Mapping[str, tuple[object, ...]]
    levels: Mapping[str, tuple[str, ...]]
    example: Tensor | Inputs
    joins: Setting | None = None
    private: frozenset[str] = frozenset()
    public: tuple[Tensor, ...] = field(default_factory=lambda: (torch.empty(0), torch.empty(0)))

    @classmethod
    def of(cls, federation: Federation, like: Setting | None = None) -> Setting:
        """The setting of a federation, on its device and in its floating-point type.

        Args:
            federation: the clients.
            like: the setting that defines columns and categories, for newcomers; an unknown category
                is coded as zeros, text in a column of numbers as NaN, and other columns are ignored.
        """
        split = federation.splits["train"]
        kinds = (*parts(federation.inputs), federation.targets)
        dtype = next((t.dtype for t in kinds if t.is_floating_point()), torch.float32)
        device = federation.inputs.device
        facts = {"examples": split.sizes.to(device, dtype)}
        for kept in (AGE, LATER):
            facts[kept] = torch.zeros(len(federation), device=device)
        counts = federation.task.counts_of(federation.targets[split.rows], split.owners, len(federation))
        if counts is not None:
            facts["labels"] = counts.to(dtype)
        levels: dict[str, tuple[str, ...]] = {}
        metadata = {
            column: tuple(_plain(value) for value in values)
            for column, values in federation.metadata.items()
            if like is None or column in like.metadata
        }
        for column, values in metadata.items():
            if column in KEPT:
                continue
            numeric = all(v is None or isinstance(v, Real) for v in values) if like is None else column in like.facts
            if numeric and (like is None or column not in like.levels):
                numbers = [float(v) if isinstance(v, Real) else torch.nan for v in values]
                facts[column] = torch.tensor(numbers, dtype=dtype, device=device)
                continue
            texts = [str(v) for v in values]
            levels[column] = like.levels[column] if like is not None else tuple(sorted(set(texts)))
            place = {level: number for number, level in enumerate(levels[column])}
            codes = torch.tensor([place.get(text, len(place)) for text in texts])
            facts[column] = torch.eye(len(place) + 1)[codes, :-1].to(device, dtype)
        if len(federation.public):
            given = (federation.one_input("public examples"), federation.targets, federation.weights)
            public = tuple(t[federation.public] for t in given if t is not None)
        else:
            public = (torch.empty(0), torch.empty(0))
        example = federation.inputs[:0]
        return cls(federation.task, federation.clients, facts, metadata, levels, example, like, public=public)

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of one example's input; several inputs are refused."""
        return tuple(one_tensor(self.example, "the method").shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the inputs, an integer type for tokens; of several, that of the first."""
        return lead(self.example).dtype

    def index(self, client: str | int) -> int:
        """Position of a client by its name; an integer stands for the name with the same digits."""
        return position(client, self.clients)

    def take(self, clients: list[int]) -> Setting:
        """The facts about some clients."""
        return replace(
            self,
            clients=tuple(self.clients[i] for i in clients),
            facts={name: values[clients] for name, values in self.facts.items()},
            metadata={name: tuple(column[i] for i in clients) for name, column in self.metadata.items()},
        )

    def fact(self, name: str) -> Tensor:
        """A fact of every client, ``(clients, ...)``."""
        if name in self.private:
            raise PluresError(
                f"the method needs {name!r} of every client, but {self._who()} did not share it: add {name!r} to what "
                "the federation tells"
            )
        values = self._values(name)
        odd = (~torch.isfinite(values)).reshape(len(self), -1).any(1).nonzero().flatten().tolist()
        if odd:
            raise PluresError(
                f"column {name!r} of client {self.clients[odd[0]]!r} is not a finite number but "
                f"{self.metadata[name][odd[0]]!r}: fill it in, or leave the column out"
            )
        return values

    def column(self, name: str) -> Tensor:
        """A fact of every client, possibly from metadata; refused if its name is ambiguous."""
        self._clear(name)
        return self.fact(name)

    def kind(self, name: str) -> Tensor:
        """A placeholder with the shape and type of one client's fact, whether or not it is known here."""
        self._clear(name)
        return self._values(name)[0] if name in self.private else self.fact(name)[0]

    def _values(self, name: str) -> Tensor:
        if name not in self.facts:
            raise PluresError(
                f"nothing is known about {name!r} for {self._who()}; known are {', '.join(self.facts)}: add it to the "
                "federation's metadata"
            )
        return self.facts[name]

    def _clear(self, name: str) -> None:
        """Refuse an ambiguous name."""
        if name in KEPT and name in self.metadata:
            raise PluresError(
                f"the method asks for {name!r}, which is both a fact that every run keeps and a metadata column: "
                f"give the column another name, such as 'client {name}'"
            )

    def _who(self) -> str:
        """The clients, for messages."""
        return f"client {self.clients[0]!r}" + (f" and {len(self) - 1} more" if len(self) > 1 else "")

    def numbers(self, columns: Sequence[str]) -> Tensor:
        """Some columns of every client, side by side, ``(clients, numbers)``."""
        found = [self.column(column).reshape(len(self), -1) for column in columns]
        return torch.cat(found, 1) if found else torch.zeros(len(self), 0, device=self.facts["examples"].device)

    def groups(self, column: str) -> tuple[Tensor, tuple[str, ...]]:
        """The group of every client by a metadata column, ``(clients,)`` int64, and the groups' names."""
        if column not in self.metadata:
            raise PluresError(
                f"no metadata column {column!r} to group clients by; columns are {', '.join(self.metadata) or 'none'}: "
                f"add it for {self._who()}"
            )
        texts = [str(value) for value in self.metadata[column]]
        of = self.metadata if self.joins is None else self.joins.metadata
        names = self.levels.get(column) or tuple(sorted({str(value) for value in of[column]}))
        place = {name: number for number, name in enumerate(names)}
        return torch.tensor([place.get(text, -1) for text in texts]), names

    def __len__(self) -> int:
        return len(self.clients)


def _plain(value: object) -> object:
    """A metadata value as a Python object: a NumPy or PyTorch scalar, or array of one element, becomes that element."""
    one = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1)
    return value.item() if one or (isinstance(value, Tensor) and value.numel() == 1) else value  # type: ignore[attr-defined]
