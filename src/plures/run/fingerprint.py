"""What determines a run's result, as facts that can be stored and compared, with their first difference in words."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation import SPLITS, Federation, Mapped, Split
from plures.federation.inputs import kind_of, parts
from plures.method import Method
from plures.models import Network
from plures.run.coordinator import Coordinator
from plures.run.facts import Facts, digest, facts, raw, short, tensor_text
from plures.run.participation import Participation
from plures.run.training import Training
from plures.tasks import KINDS, Task
from plures.version import __version__

Fingerprint = dict[str, Facts]
"""The facts of each part of a run. What changes only rounding, speed or notifications is left out."""

KEY = "question"
"""The key under which files store a fingerprint."""

HEADS = (
    "name",
    "task",
    "classes",
    "labels",
    "outputs",
    "shape of an example",
    "type of the inputs",
    "type of the targets",
    "weights",
)
"""Facts of the data that are compared before the rows: where these differ, so do the rows."""

TASK_CODE = "task's class"
CLIENT_DIGITS = 12
MOST_DIGESTS = 4096
"""Largest number of digests in a split. With more clients, neighbours share one, so that a checkpoint stays small."""
BLOCK = 1 << 26
"""Bytes of examples that are gathered at once."""

VERSIONS, DATA, UNSEEN, METHOD, TRAINING, PARTICIPATION, MODEL, SETTINGS = (
    "versions", "data", "unseen clients", "method", "training", "participation", "model", "settings",
)  # fmt: skip


def of_data(federation: Federation) -> Facts:
    """Facts about clients and their examples, with one digest for every client and split."""
    found = {
        "name": federation.name,
        **of_task(federation.task),
        "shape of an example": str(federation.features),
        "type of the inputs": str(kind_of(federation.inputs)),
        "type of the targets": str(federation.targets.dtype).removeprefix("torch."),
        "columns": short(", ".join(federation.columns)),
        "clients": json.dumps(group_names(federation.clients)),
    }
    found |= {} if federation.weights is None else {"weights": "of examples"}
    found |= {} if federation.augment is None else facts(federation.augment, "augmentation")
    found |= facts(federation.scaling, "scaling") | facts(federation.preparation, "preparation")
    for column in sorted(federation.metadata):
        found[f"metadata column {column!r}"] = short(repr(federation.metadata[column]))
    for column, groups in federation.subgroups.items():
        found[f"subgroups by {column!r}"] = f"{', '.join(groups.names)} {tensor_text(groups.codes)}"
    given = (*parts(federation.inputs), federation.targets, federation.weights)
    rows = [t.identity() if isinstance(t, Mapped) else t.detach().cpu() for t in given if t is not None]
    for split in SPLITS:
        found[split] = " ".join(client_digests(rows, federation.splits[split]))
    public = federation.public.cpu()
    found["public rows"] = " ".join(client_digests(rows, Split.of([public]))) if len(public) else "none"
    return found


def of_task(task: Task) -> Facts:
    """Facts of a task: what it predicts, its options and, for a user-defined task, its code."""
    found = {"task": task.kind, task.called: short(", ".join(task.names))}
    found |= {} if type(task) in KINDS.values() else facts(type(task), TASK_CODE)
    for option in fields(task):
        found |= facts(getattr(task, option.name), f"task's {option.name}") if option.compare else {}
    return found


def code_of(found: Facts) -> Facts:
    """The facts that describe the code of a user-defined task."""
    own = {key: text for key, text in found.items() if re.match(rf"{TASK_CODE}([.(\[]|$)", key)}
    return _inner(own, "task's", " ")


def groups(clients: int) -> list[int]:
    """Starts of the groups of neighbouring clients that share a digest, and the end of the last group.

    Up to 4,096 clients have a digest each, so that a client whose rows differ can be named; with more clients, a group
    is named.
    """
    size = -(-clients // MOST_DIGESTS)
    return [*range(0, clients, max(size, 1)), clients]


def group_names(names: Sequence[str]) -> list[str | tuple[str, str, str]]:
    """For each group, the name of its only client; or its first and last name and a digest of all its names."""
    own = [names[begin:end] for begin, end in pairwise(groups(len(names)))]
    return [one[0] if len(one) == 1 else (one[0], one[-1], digest(json.dumps(one).encode())) for one in own]


def _who(group: str | Sequence[str]) -> str:
    return f"client {group!r}" if isinstance(group, str) else f"one of the clients {group[0]!r} to {group[1]!r}"


def client_digests(tensors: Sequence[Tensor], split: Split) -> list[str]:
    """A digest of the rows of every group of clients in a split, in order.

    Args:
        tensors: inputs, targets and, if examples have them, weights of all rows.
        split: the rows of each client.
    """
    places = groups(len(split))
    rows, every = split.rows.cpu(), split.offsets.numpy()
    offsets = every[places].tolist()
    count = len(places) - 1
    wide = max(1, sum(t[:1].nbytes for t in tensors))
    found: list[str] = []
    first = 0
    while first < count:
        last = first + 1
        while last < count and (offsets[last + 1] - offsets[first]) * wide <= BLOCK:
            last += 1
        own = rows[offsets[first] : offsets[last]]
        parts = [(raw(t), t[:1].nbytes) for t in (own, *(tensor[own] for tensor in tensors))]
        for group in range(first, last):
            begin, end = offsets[group] - offsets[first], offsets[group + 1] - offsets[first]
            own_parts = [view[begin * size : end * size] for view, size in parts]
            if places[group + 1] - places[group] > 1:
                own_parts.append(np.diff(every[places[group] : places[group + 1] + 1]).data.cast("B"))
            found.append(digest(*own_parts, size=CLIENT_DIGITS // 2))
        first = last
    return found


def of_network(network: Network) -> Facts:
    """Facts of a model: classes, settings and code of its modules, and its initial leaves."""
    found = facts(network.module, "network", tensors=False)
    still = {path: " frozen" if path in network.frozen else "" for path in network.info}
    return found | {f"leaf {path}": tensor_text(leaf) + still[path] for path, leaf in network.leaves().items()}


def of_method(method: Method, name: str, parameters: Mapping[str, Any] | None = None) -> Facts:
    """Facts of a method: its name, its parameters as given, and everything that it consists of, including code."""
    found = {"name": name}
    for key, value in (parameters or {}).items():
        found |= facts(value, f"parameter {key}")
    return found | {k.removeprefix("method."): v for k, v in facts(method, "method").items() if k != "method"}


def of_metric(federation: Federation) -> Facts:
    """Facts of the metric by which rounds and settings are chosen, unless it is the default for its kind of task.

    With them, those of the metrics that are reported beside it.
    """
    metric, known_ones = federation.metrics[0], type(federation.task).measures
    found: dict[str, Any] = {}
    if metric not in known_ones[:1]:
        found = {"metric": metric.name} | ({} if metric in known_ones else facts(metric, "own metric"))
    if federation.beside:
        found["metrics beside it"] = ", ".join(one.name for one in federation.beside)
    for one in federation.beside:
        found |= {} if one in known_ones else facts(one, f"own metric {one.name}")
    return found


def versions() -> Facts:
    """Versions of the software that computes; only the version of plures must be equal."""
    return {"plures": __version__, "torch": torch.__version__, "python": platform.python_version()}


def question(
    data: Facts,
    network: Network,
    method: Facts,
    training: Training,
    participation: Participation,
    seed: int,
    **settings: Any,
) -> Fingerprint:
    """The fingerprint of a run.

    Args:
        data: facts of its data (:func:`of_data`).
        network: the model, with its initial values.
        method: facts of the method (:func:`of_method`).
        training: local work.
        participation: who takes part.
        seed: of the run.
        settings: what else the result depends on.
    """
    if training.epochs is None and training.steps is None:
        training = replace(training, epochs=1.0)
    return {
        VERSIONS: versions(),
        DATA: data,
        METHOD: method,
        TRAINING: _inner(facts(training, "training"), "training"),
        PARTICIPATION: _inner(facts(participation, "rule"), "rule"),
        MODEL: of_network(network),
        SETTINGS: {"seed": str(seed)} | {name: str(value) for name, value in settings.items()},
    }


def of_run(
    run: Coordinator[Any], name: str, parameters: Mapping[str, Any] | None = None, **settings: Any
) -> Fingerprint:
    """The fingerprint of a run that was set up.

    Args:
        run: the run.
        name: what it is called.
        parameters: of its method, listed by name.
        settings: what else the result depends on.
    """
    precision = "float32" if run.execution.precision == "auto" else run.execution.precision
    method = of_method(run.origin.method, name, parameters)
    if run.threat is not None:
        settings["threat"] = run.threat
    return question(
        of_data(run.given),
        run.bound.network,
        method,
        run.training,
        run.participation,
        run.seed,
        precision=precision,
        **of_metric(run.federation),
        **settings,
    )


def _inner(found: Facts, name: str, mark: str = ".") -> Facts:
    return {key.removeprefix(f"{name}{mark}"): text for key, text in found.items()}


def difference(
    there: Mapping[str, Facts], here: Mapping[str, Facts], parts: Iterable[str] = (), *, values: bool = True
) -> str | None:
    """The first difference between two fingerprints in words; ``None`` if there is none.

    Args:
        there: the stored fingerprint.
        here: the current fingerprint.
        parts: the parts that must be equal; default: all.
        values: whether the values of tensors must be equal too, or only their types and shapes.
    """
    for part in parts or {**here, **there}:
        old, new = there.get(part, {}), here.get(part, {})
        if part == VERSIONS:
            old, new = ({"plures": kept.get("plures", "unknown")} for kept in (old, new))
        found = _data_differ(old, new) if part in (DATA, UNSEEN) else None
        found = found or _facts_differ(part, old, new, values)
        if found is not None:
            return f"of the clients held out, {found}" if part == UNSEEN else found + _made_with(part, there, here)
    return None


def insist(what: str, there: Mapping[str, Facts] | None, here: Mapping[str, Facts]) -> None:
    """Refuse a result with another fingerprint.

    Args:
        what: what it is, as the beginning of a sentence.
        there: its fingerprint; ``None`` if it has none.
        here: the current fingerprint.

    Raises:
        PluresError: if they differ; the message names the first difference.
    """
    if there is None:
        raise PluresError(
            f"{what} that an earlier version of plures wrote, without saying for which data and which code: choose "
            "another folder or delete it"
        )
    found = difference(there, here)
    if found is not None:
        raise PluresError(f"{what}: {found}; choose another folder or delete it")


def _data_differ(old: Facts, new: Facts) -> str | None:
    """Which client has other rows, or is missing."""
    if not old or not new:
        return None if old == new else f"there are none {'here' if old else 'there'}"
    clients, now = (
        [group if isinstance(group, str) else tuple(group) for group in json.loads(found["clients"])]
        for found in (old, new)
    )
    for names, others, where in ((clients, set(now), "there"), (now, set(clients), "here")):
        for name in names:
            if name not in others:
                return f"the data differ: {_who(name)} is only {where}"
    if any(old.get(key) != new.get(key) for key in HEADS):
        return None
    for split in SPLITS:
        changed = [c for c, a, b in zip(clients, old[split].split(), new[split].split(), strict=True) if a != b]
        if changed:
            more = f" (and {len(changed) - 1} more clients)" if len(changed) > 1 else ""
            kind = {"train": "training"}.get(split, split)
            return f"the data differ: {_who(changed[0])}{more} has other {kind} rows"
    return None


def _facts_differ(part: str, old: Facts, new: Facts, values: bool) -> str | None:
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        alike = a is not None and b is not None and _is_tensor(a) and _plain(a) == _plain(b)
        if a == b or (alike and not values):
            continue
        what = {SETTINGS: key, VERSIONS: f"the version of {key}"}.get(part, f"the {part}'s {key}")
        what = f"the {key}" if part == DATA and key.startswith("task's ") else what
        if a is None or b is None:
            here, gone = ("here", "there") if a is None else ("there", "here")
            return f"{what} is {_plain(a or b or '')} {here} and nothing {gone}"
        if _plain(a) != _plain(b):
            return f"{what} is {_plain(a)} there and {_plain(b)} here"
        if a.startswith("function"):
            return f"the code of {what} ({_plain(a)}) differs"
        return f"the {'values' if _is_tensor(a) else 'contents'} of {what} ({_plain(a)}) differ"
    return None


def _plain(text: str) -> str:
    """A fact, stripped of its digest."""
    return re.sub(r" #[0-9a-f]+", "", text) or "nothing"


def _is_tensor(text: str) -> bool:
    return re.match(r"\w+ \([\d, ]*\) #", text) is not None


def _made_with(part: str, there: Mapping[str, Facts], here: Mapping[str, Facts]) -> str:
    """Version changes that may by themselves explain a difference in compiled code or in a library's layers."""
    old, new = there.get(VERSIONS, {}), here.get(VERSIONS, {})
    found = [f"{name} {old.get(name)} there, {new.get(name)} here" for name in ("python", "torch")]
    changed = [one for one, name in zip(found, ("python", "torch"), strict=True) if old.get(name) != new.get(name)]
    return f" ({'; '.join(changed)})" if changed and part not in (VERSIONS, DATA, UNSEEN) else ""
