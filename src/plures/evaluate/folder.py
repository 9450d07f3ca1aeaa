"""A finished run on disk, as JSON and safetensors without pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from plures import tasks
from plures.cells import place
from plures.errors import PluresError, suggestion
from plures.evaluate.code import NOTHING, Code
from plures.evaluate.results import ClientScores, SeedResult
from plures.evaluate.scores import score
from plures.evaluate.spec import RunSpec
from plures.faults import M, text_of, unreadable
from plures.federation import SPLITS, Federation, Split
from plures.federation.encode import Frame
from plures.federation.inputs import Inputs, as_inputs, joined, kind_of, told_apart, zeros
from plures.federation.preparation import numbers, restored
from plures.files import DamagedError, describe, inside, read, understood, unsealed, write, write_json
from plures.method import Bound, Method, Setting
from plures.method.leaf import by_leaf, by_slot, of_short_name, short_names
from plures.models import Leaves, ModelFactory
from plures.names import name_of
from plures.run import Execution, Run, Training
from plures.run.checkpoint import restore, snapshot
from plures.run.engine import Engine, Stack
from plures.run.facts import digest
from plures.run.fingerprint import (
    DATA,
    KEY,
    METHOD,
    MODEL,
    UNSEEN,
    Fingerprint,
    code_of,
    difference,
    of_data,
    of_method,
    of_network,
    of_run,
    of_task,
)
from plures.run.origin import builder
from plures.run.predict import predicted
from plures.signature import checked
from plures.tables.schema import Schema
from plures.tables.source import schema_of
from plures.tables.table import absent, columns, lines_of, text

RERUN = "run again, into another folder"
ONBOARD = "delete it, and make the new client's model again with `plures onboard`"
DESCRIPTION, STATE, MODELS, NEWCOMERS = "run.json", "state.safetensors", "models.safetensors", "newcomers"
OWN, FITTED, COUNTS, PARTS = "own", "fitted", "examples", ("inputs", "targets", "weight")
UNTOLD = "untold"


def personal_models(run: Run, clients: Sequence[int] | None = None) -> Iterator[tuple[str, Leaves]]:
    """Clients' names and the leaves of their predictors: personal models, or ``slot:path`` for composed predictors.

    Args:
        run: the run.
        clients: positions of the clients; default: all.
    """
    chosen = list(range(len(run.federation)) if clients is None else clients)
    run.serve(chosen)
    for chunk in run.chunks(chosen):
        leaves = by_leaf(run.deployed(chunk))
        names = short_names(leaves)
        for row, client in enumerate(chunk):
            yield (
                run.federation.clients[client],
                {
                    names[leaf]: held.clone()
                    for leaf, t in leaves.items()
                    if (held := run.held_by(leaf, t[row], client)) is not None
                },
            )


def own_examples(run: Run, place: int) -> dict[str, Tensor]:
    """A client's examples that its predictor reads at prediction time, by split and part, ``(1, n, ...)``."""
    found: dict[str, Tensor] = {}
    for split in run.bound.method.predictor.reads:
        size = max(1, int(run.federation.splits[split].sizes[place]))
        named = told_examples(f"{OWN}:{split}:", run.engine.whole([place], split))
        found |= {name: t[:, :size] for name, t in named.items()}
    return found


def fitted_to(federation: Federation, task: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that was fitted to a federation's data: tensors by name, and the rest as JSON. No example is included.

    Args:
        federation: the clients.
        task: ``module:name`` of the task, if it was found by that name.
    """
    made = federation.preparation
    metadata = json.loads(json.dumps({k: list(v) for k, v in federation.metadata.items()}, default=str))
    return {f"{FITTED}:{name}": value for name, value in numbers(federation.scaling, made).items()}, {
        "name": federation.name,
        "source": federation.source,
        "task": _said(federation.task, task),
        "features": federation.features,
        "dtype": kind_of(federation.inputs),
        "columns": federation.columns,
        "metadata": metadata,
        "preparation": None if made is None else made.to_dict(),
        "schema": None if (declared := schema_of(federation)) is None else declared.model_dump(mode="json"),
    }


def _said(task: tasks.Task, name: str | None) -> dict[str, Any]:
    """A task as JSON; if it cannot be stored by name, the reason and the facts that the data completed it with."""
    try:
        return tasks.to_dict(task, name)
    except PluresError as error:
        return {UNTOLD: str(error), **tasks.completion(task)}


Counts = dict[str, dict[str, int]]
"""A client's numbers of ``rows`` in each split, and of training examples of each class or label, ``labels``."""


def counts(federation: Federation, place: int) -> Counts:
    """Count a client's examples."""
    task, train = federation.task, federation.splits["train"][place]
    found = task.counts(federation.targets[train])
    rows: dict[str, int] = {split: int(federation.splits[split].sizes[place]) for split in SPLITS}
    return {"rows": rows, "labels": {} if found is None else dict(zip(task.names, found.tolist(), strict=True))}


def told_examples(start: str, examples: tuple[Tensor | Inputs, Tensor, Tensor]) -> dict[str, Tensor]:
    """Inputs, targets and weights under names with a common start; see :func:`stored_example`."""
    named = [told_apart(f"{start}{part}", values) for part, values in zip(PARTS, examples, strict=True)]
    return {name: t for one in named for name, t in one.items()}


def stored_example(start: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor | Inputs, Tensor, Tensor]:
    """Inputs, targets and weights that were stored under names with a common start."""
    inputs = joined(f"{start}{PARTS[0]}", tensors)
    assert inputs is not None
    return as_inputs(inputs), tensors[f"{start}{PARTS[1]}"], tensors[f"{start}{PARTS[2]}"]


@checked
@dataclass(frozen=True)
class RunFolder:
    """A folder that holds a finished run.

    Attributes:
        path: the folder. ``run.json`` holds the run's settings, its scores and all changes of cluster,
            ``state.safetensors`` the state at the chosen round, ``models.safetensors`` every client's personal model as
            ``client/path``.
        code: user code that the description may name as method, network or data when the run is rebuilt from it.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> spec = plures.RunSpec(data="heart", method="fedper", rounds=2)
        >>> run = spec.run(spec.federation())
        >>> result = plures.evaluate.finish(plures.fit(run, "fedper"), seed=0)
        >>> folder = plures.RunFolder(Path(tempfile.mkdtemp()))
        >>> folder.write(run, spec, result)
        >>> outputs, classes = folder.predict("va", run.federation.inputs[:5])
        >>> tuple(outputs.shape), folder.result() == result
        ((5, 2), True)
    """

    path: Path
    code: Code = NOTHING

    @property
    def finished(self) -> bool:
        """Whether the folder holds a finished run; its description is written last."""
        return (self.path / DESCRIPTION).exists()

    def write(
        self,
        run: Run,
        spec: RunSpec | None,
        result: SeedResult,
        question: Fingerprint | None = None,
        clients: Sequence[int] | None = None,
    ) -> None:
        """Write a run in its current state, with its description.

        Args:
            run: the run.
            spec: its settings in names and numbers; ``None`` for a run made from Python objects.
            result: its scores.
            question: fingerprint of everything that it depends on; default: :func:`~plures.run.fingerprint.of_run`.
            clients: positions of the clients whose models are stored, such as those that were scored; default: all. The
                state always covers all clients.

        Raises:
            PluresError: if a file cannot be written.
        """
        write(self.path / STATE, snapshot(run), {})
        models = {
            f"{client}/{path}": t for client, leaves in personal_models(run, clients) for path, t in leaves.items()
        }
        kept = run.federation if clients is None else run.federation.take(clients)
        for client in kept.clients:
            own = own_examples(run, run.federation.index(client))
            models |= {f"{key}:{client}": t for key, t in own.items()}
        fitted = fitted_to(kept, None if spec is None else spec.task)
        counted = {client: counts(kept, place) for place, client in enumerate(kept.clients)}
        about = {"clients": list(kept.clients), COUNTS: counted, FITTED: fitted[1]}
        write(self.path / MODELS, models | fitted[0], about)
        described = {
            "spec": None if spec is None else spec.model_dump(),
            KEY: of_run(run, "run" if spec is None else spec.title()) if question is None else question,
            "execution": {
                k: v for k, v in vars(run.execution.alone()).items() if k not in ("clients_on_disk", "device", "ray")
            },
            "result": result.model_dump(mode="json"),
            "moves": [
                {"round": round, "block": block, "client": client, "cluster": cluster}
                for round, block, client, cluster in run.history()
            ],
        }
        write_json(self.path / DESCRIPTION, described)

    def add(self, guest: Run) -> None:
        """Store the personal models of newcomers, with the examples that their predictors read.

        Raises:
            PluresError: if a newcomer has the name of a client that took part.
        """
        present = describe(self.path / MODELS, RERUN)["clients"]
        for client in guest.federation.clients:
            if client in present:
                raise PluresError(
                    f"client {client!r} took part in the run in {self.path} and has its model: rename the new client, "
                    "or choose others with --client"
                )
        measured = ClientScores.of(score(guest, "validation"))
        for client, leaves in personal_models(guest):
            place = guest.federation.index(client)
            models = {f"{client}/{path}": t for path, t in leaves.items()}
            models |= own_examples(guest, place)
            stored = {"clients": [client], COUNTS: {client: counts(guest.federation, place)}, KEY: self._belongs()}
            write(self._newcomer(client), models, stored | {"validation": _scores(measured, place)})

    def _description(self) -> dict[str, Any]:
        file = self.path / DESCRIPTION
        if not file.exists():
            raise PluresError(f"{self.path} is not a finished run: it has no {DESCRIPTION}; make one with `plures run`")
        text = text_of(file, "the description of a run")
        try:
            described = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{file} is damaged ({error})", RERUN) from error
        plain = unsealed(described, file, RERUN, earlier=True) if isinstance(described, dict) else {}
        expected = {"spec", "execution", "result"}
        if not expected <= plain.keys() <= {*expected, KEY, "moves"}:
            raise DamagedError(f"{file} is not the description of a run", "name the folder that `plures run` wrote")
        return plain

    @property
    def reading(self) -> Code:
        """The user code that names in the run's description may refer to."""
        return self.code.reading(self.path / DESCRIPTION)

    def question(self) -> Fingerprint | None:
        """Fingerprint of the run; ``None`` if an earlier version of plures wrote it without one."""
        stored: Fingerprint | None = self._description().get(KEY)
        return stored

    def whole(self) -> SeedResult:
        """The run's scores, after checking all its files.

        Raises:
            DamagedError: if one of them is damaged.
        """
        for file in (self.path / STATE, self.path / MODELS):
            if file.exists():
                read(file, RERUN)
        return self.result()

    def result(self) -> SeedResult:
        """The run's scores."""
        return self._read(SeedResult, "result")

    def spec(self) -> RunSpec:
        """The run's settings.

        Raises:
            PluresError: if it was made from Python objects.
        """
        spec = self._description()["spec"]
        if spec is None:
            raise PluresError(
                f"{self.path} was made from Python objects: give model= and method=, or use them to rebuild the run"
            )
        return self._read(RunSpec, "spec")

    def _read(self, kind: type[M], key: str) -> M:
        """A part of the description."""
        try:
            return kind.model_validate(self._description()[key])
        except ValidationError as error:
            raise unreadable(error, self.path / DESCRIPTION, "a run", RERUN) from error

    def run(self, device: str = "cpu") -> Run:
        """The run in its saved state, on the clients with which it was trained.

        Raises:
            PluresError: among others if the data have changed.
        """
        with understood(self.path, RERUN):
            spec, execution = self.spec(), self.execution(device)
            whole = self.data(execution)
            rebuilt = spec.run(whole.hold_out(spec.unseen)[0] if spec.unseen else whole, execution, self.reading)
            restore(rebuilt, read(self.path / STATE, RERUN)[0])
            return rebuilt

    def data(self, execution: Execution | None = None) -> Federation:
        """The run's data, including clients held out.

        Args:
            execution: how they will be used; default: as in the run.

        Raises:
            PluresError: if they differ from the data of the run; the message names the difference.
        """
        spec, there = self.spec(), self._asked()
        whole = spec.federation(self.reading)
        dtype = (execution or self.execution()).dtype
        parts = dict(zip((DATA, UNSEEN), whole.hold_out(spec.unseen) if spec.unseen else (whole,), strict=False))
        here = {part: of_data(federation.to("cpu", dtype)) for part, federation in parts.items() if part in there}
        found = difference({part: fact for part, fact in there.items() if part in here}, here)
        if found is not None:
            raise PluresError(
                f"the data of the run in {self.path} are not those that it was made on: {found}; restore them, or run "
                "again into another folder; predictions for new rows need no data"
            )
        return whole

    def _asked(self) -> Fingerprint:
        there = self.question()
        if there is None:
            raise PluresError(
                f"{self.path / DESCRIPTION} is of an earlier version of plures, which did not record its data and "
                "code: run again, into another folder"
            )
        return there

    def fitted(self, task: tasks.Task | None = None) -> Federation:
        """The run's federation without any rows: task, columns, and everything that was fitted to its data.

        Args:
            task: the task, if the run's task cannot be named in a file.

        Raises:
            PluresError: among others if it is not the run's task.
        """
        self._description()
        tensors, about = read(self.path / MODELS, RERUN)
        if "preparation" not in about.get(FITTED, {}):
            self._asked()
            raise PluresError(f"{self.path / MODELS} does not say what was fitted to the data: run again")
        stored, clients = about[FITTED], about["clients"]
        inputs = zeros(2, stored["features"], stored["dtype"])
        if inputs is None:
            raise PluresError(f"{self.path / MODELS} is damaged: {stored['dtype']!r} is not a numeric type; run again")
        task = self._task(stored["task"], task)
        found = {k.removeprefix(f"{FITTED}:"): t for k, t in tensors.items() if k.startswith(f"{FITTED}:")}
        schema = None if stored.get("schema") is None else Schema.model_validate_json(json.dumps(stored["schema"]))
        scaling, preparation = restored(stored["preparation"], found, schema)
        return Federation(
            name=stored["name"],
            source=stored["source"],
            task=task,
            inputs=inputs,
            targets=task.blank(2),
            clients=tuple(clients),
            splits=dict.fromkeys(SPLITS, Split.of([torch.empty(0)] * len(clients))),
            metadata={column: tuple(values) for column, values in stored["metadata"].items()},
            columns=tuple(stored["columns"]),
            scaling=scaling,
            preparation=preparation,
        )

    def _task(self, stored: Mapping[str, Any], given: tasks.Task | None) -> tasks.Task:
        """The run's task, as given or as its folder describes it.

        Raises:
            PluresError: among others if it is another task, or a user-defined one whose code has changed.
        """
        if given is not None:
            found = tasks.completed(given, stored)
        elif UNTOLD in stored:
            raise PluresError(f"{self.path}: {stored[UNTOLD]}; in Python, RunFolder.predict takes it as task=")
        else:
            found = tasks.from_dict(stored, lambda name: self.code.reading(self.path / MODELS).load(name, "task"))
        differs = difference({"task": code_of(self._asked()[DATA])}, {"task": code_of(of_task(found))})
        if differs is not None:
            raise PluresError(f"this is not the task of the run in {self.path}: {differs}")
        return found

    def execution(self, device: str = "cpu") -> Execution:
        """The run's execution, on a device."""
        described = self._description()["execution"]
        try:
            return Execution.from_dict(described, device=device)
        except (PluresError, TypeError) as error:
            raise PluresError(f"{self.path / DESCRIPTION} is damaged ({error}): run again") from error

    def predict(
        self,
        client: str | None,
        inputs: Tensor | Inputs | Mapping[str, Any] | Frame | None = None,
        *,
        model: nn.Module | ModelFactory | None = None,
        method: Method | None = None,
        task: tasks.Task | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict with one client's predictor, or with that of each row's client.

        New rows are encoded, imputed and scaled with the values fitted to the run's data. The data themselves are not
        read for this, and may have changed or be gone. Predicted numbers are in the target's own units.

        Args:
            client: the client's name; ``None`` for a table with a column of clients, by whose models its rows are
                predicted.
            inputs: raw examples ``(n, *features)``, or a table with the columns of the data, in any order
                (:meth:`~plures.federation.Federation.scaled`); default: the client's test examples in the run's data.
                If missing values were imputed, pass the original columns, with NaN for missing values.
            model: the model or its factory, for a run made from Python objects.
            method: the method, for such a run.
            task: the task, if it cannot be named in a file, such as one defined in a notebook.

        Returns:
            Outputs ``(n, outputs)`` and decisions ``(n, ...)``, ``None`` where there is nothing to decide.

        Raises:
            PluresError: among others if the client's model diverged, if data that are needed have changed, or if model
                or method are not the run's.
        """
        with understood(self.path, RERUN):
            execution = self.execution()
            federation = self.fitted(task).to("cpu", execution.dtype)
            owners = None if client is not None else _owners(federation, inputs)
            stacks = {
                name: self.stack(name) for name in ([client] if client is not None else dict.fromkeys(owners or ()))
            }
            engine = self._engine(federation, execution, model, method)
            stacks = {name: padded(stack, engine.bound) for name, stack in stacks.items()}
            own = {name: self.own(name, engine.bound) for name in stacks}
        if inputs is not None:
            rows = federation.scaled(inputs)
        if owners is not None and inputs is not None:
            places = {name: [row for row, owner in enumerate(owners) if owner == name] for name in stacks}
            with understood(self.path, RERUN):
                parts = [
                    predicted(engine, name, stacks[name], own[name], rows[torch.tensor(own_rows)])
                    for name, own_rows in places.items()
                ]
            order = torch.tensor([row for own_rows in places.values() for row in own_rows]).argsort()
            outputs, decided = zip(*parts, strict=True)
            decisions = [decision for decision in decided if decision is not None]
            return torch.cat(outputs)[order], torch.cat(decisions)[order] if decisions else None
        assert client is not None
        if inputs is None:
            data = self.data(execution).to("cpu", execution.dtype)
            if client not in data.clients:
                raise PluresError(f"the examples of the new client {client!r} are not in the run's data: give --inputs")
            rows = data.inputs[data.splits["test"][data.index(client)]]
        with understood(self.path, RERUN):
            return predicted(engine, client, stacks[client], own[client], rows)

    def _engine(
        self,
        federation: Federation,
        execution: Execution,
        model: nn.Module | ModelFactory | None,
        method: Method | None,
    ) -> Engine:
        """An engine that predicts with the run's models, without its data."""
        there, seed = self._asked(), self.result().seed
        if model is None or method is None:
            spec = self.spec()
            model = spec.network(federation, self.reading) if model is None else model
            method = spec.built(self.reading) if method is None else method
        setting = Setting.of(federation)
        network = builder(method, model, setting, federation, execution.dtype)(seed)
        code = {key: text for key, text in of_method(method, "").items() if key != "name"}
        kept = {key: text for key, text in there[METHOD].items() if key != "name" and not key.startswith("parameter ")}
        leaves = [
            {k: t for k, t in about.items() if k.startswith("leaf ")} for about in (there[MODEL], of_network(network))
        ]
        found = difference({METHOD: kept, MODEL: leaves[0]}, {METHOD: code, MODEL: leaves[1]}, values=False)
        if found is not None:
            raise PluresError(f"this is not the model and the method of the run in {self.path}: {found}")
        anyhow = method if method.sizes is None else replace(method, sizes=method.sizes.untimed())
        return Engine(anyhow.bind(network, setting), federation, Training(), execution, seed)

    def bound(self) -> Bound:
        """The run's method, bound to its network, without its data."""
        execution = self.execution()
        return self._engine(self.fitted().to("cpu", execution.dtype), execution, None, None).bound

    def own(self, client: str, bound: Bound) -> dict[str, tuple[Tensor | Inputs, Tensor, Tensor]]:
        """A client's stored examples that its predictor reads, ``(1, n, ...)``, by split: inputs, targets, weights."""
        file = self._file(client)
        end = f":{client}" if file == self.path / MODELS else ""
        stored = _whole(file)[0] if bound.method.predictor.reads else {}
        kept = {key.removesuffix(end): t for key, t in stored.items() if key.endswith(end)}
        return {split: stored_example(f"{OWN}:{split}:", kept) for split in bound.method.predictor.reads}

    def counted(self, client: str) -> Counts:
        """A client's numbers of examples."""
        stored = describe(self._file(client), RERUN).get(COUNTS)
        if stored is None:
            raise PluresError(f"{self.path / MODELS} is of an earlier version of plures: run again")
        found: Counts = stored[client]
        return found

    def validation(self, client: str) -> dict[str, float | None]:
        """Metrics on a client's own validation examples; empty if it has none."""
        file = self._file(client)
        if file != self.path / MODELS:
            stored = describe(file, ONBOARD)["validation"]
            return {name: None if value is None else float(value) for name, value in stored.items()}
        scores = self.result().validation
        return _scores(scores, scores.clients.index(client))

    def stack(self, client: str) -> Stack:
        """The leaves of one client's predictor by slot, ``(1, ...)`` each."""
        return by_slot({of_short_name(name): value.unsqueeze(0) for name, value in self.model(client).items()})

    def _newcomer(self, client: str) -> Path:
        return inside(self.path / NEWCOMERS, client, suffix=".safetensors")

    def _belongs(self) -> str:
        """Digest of the run's fingerprint, which marks a newcomer's file as belonging to this run."""
        return digest(json.dumps(self.question(), sort_keys=True).encode())

    def _file(self, client: str) -> Path:
        """The file that holds a client's model: a newcomer's own file, unless it belongs to another run."""
        newcomer = self._newcomer(client)
        mine = newcomer.exists() and describe(newcomer, ONBOARD).get(KEY) == self._belongs()
        return newcomer if mine else self.path / MODELS

    def model(self, client: str) -> Leaves:
        """The leaves of one client's predictor: its personal model, or ``slot:path`` for a composed predictor.

        Raises:
            PluresError: if there is no such client, or its file belongs to another run.
        """
        tensors, about = _whole(self._file(client))
        if client not in about["clients"]:
            if self._newcomer(client).exists():
                raise PluresError(
                    f"{self._newcomer(client)} was made for another run than the one in {self.path}: make the new "
                    "client's model again with `plures onboard`"
                )
            near = suggestion(client, about["clients"], "clients are")
            raise PluresError(f"no client {client!r} in {self.path}; {near}")
        others = tuple(f"{other}/" for other in about["clients"] if other.startswith(f"{client}/"))
        mine = {key: t for key, t in tensors.items() if key.startswith(f"{client}/") and not key.startswith(others)}
        return {key.removeprefix(f"{client}/"): t for key, t in mine.items()}


def padded(stack: Stack, bound: Bound) -> Stack:
    """Leaves of clients that hold a part of the network, ``(clients, ...)``, with zeros for what they do not hold."""
    if bound.held is None:
        return stack
    network, found = bound.initial["model"], Stack()
    for slot, leaves in stack.items():
        found[slot] = {}
        for path, t in leaves.items():
            whole = network.get(path)
            if whole is not None and t.dim() == whole.dim() + 1 and t.shape[1:] != whole.shape:
                made = t.new_zeros(len(t), *whole.shape)
                made[tuple(slice(size) for size in t.shape)] = t
                t = made
            found[slot][path] = t
        for path in bound.initial.get(slot, {}):
            if path not in leaves and path in bound.held.widths.leaves:
                count = len(next(iter(leaves.values())))
                found[slot][path] = network[path].new_zeros(count, *network[path].shape)
    return found


def _owners(federation: Federation, table: Any) -> list[str]:
    """The client of each row of a table."""
    declared = schema_of(federation)
    if declared is None or declared.client is None or table is None or isinstance(table, Tensor):
        raise PluresError("client: name the client whose model predicts")
    cells = columns(table)
    if declared.client not in cells:
        raise PluresError(
            f"client: name the client whose model predicts, or give the rows a column {declared.client!r} with the "
            "client of each"
        )
    for row, cell in enumerate(cells[declared.client]):
        if absent(cell):
            where = place(row, lines_of(table))
            raise PluresError(f"column {declared.client!r}, {where}: no client; give every row a client")
    return [name_of(text(cell)) for cell in cells[declared.client]]


def _whole(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Contents of a file of models."""
    return read(file, ONBOARD if file.parent.name == NEWCOMERS else RERUN)


def _scores(scores: ClientScores, place: int) -> dict[str, float | None]:
    """The metrics of one client; empty if it has no example."""
    return {name: values[place] for name, values in scores.metrics.items()} if scores.sizes[place] else {}
