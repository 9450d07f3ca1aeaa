"""Read a ``study.toml``; every fault is reported with its key and line."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plures.composed import called
from plures.errors import PluresError, closest, suggestion
from plures.evaluate.code import NOTHING, Code
from plures.evaluate.own import METRIC, TASK, Named, find_loader, is_own, network_kinds
from plures.evaluate.results import BASELINES
from plures.evaluate.spec import RunSpec, find_method
from plures.evaluate.tuning import tuned, untuned
from plures.federation import DATASETS
from plures.methods.entry import Entry
from plures.study.document import CLOCKED, DEALING, DataPart, Document, MethodPart, PartitionPart, Range, TuningPart
from plures.study.lines import KeyPath, key_lines, line_of
from plures.tables import is_table

Fault = tuple[Sequence[str | int], str]
"""A key and what is wrong with it."""


KEYS = [*Document.model_fields, *DataPart.model_fields, *MethodPart.model_fields, *PartitionPart.model_fields]
"""Names of keys, for suggestions."""


@dataclass(frozen=True)
class Source:
    """A document and the lines of its keys.

    Attributes:
        file: its name in messages.
        text: the file's text.
        folder: base of relative data folders.
        document: the parsed text.
        lines: line of every key.
        code: user code that data, networks and methods may name.
    """

    file: str
    text: str
    folder: Path
    document: Document
    lines: dict[KeyPath, int]
    code: Code = NOTHING

    def error(self, path: Sequence[str | int], message: str) -> PluresError:
        """An error about a key."""
        return refusal(self.file, self.lines, [(path, message)])

    def data_path(self, part: DataPart) -> Path | None:
        """The folder of data that come neither from the catalogue nor from a user's function."""
        return None if part.name in DATASETS or is_own(part.name) else self.folder / part.name


def read_study(file: Path, code: Code = NOTHING) -> Source:
    """Read and check a file.

    Args:
        file: the file.
        code: user code that its data, networks and methods may name.

    Raises:
        PluresError: one line for each fault, with the file, the line and the key.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PluresError(f"{file} cannot be read ({reason}): name the TOML file of a study") from error
    return parse_study(text, file.name, file.parent, code=code)


def parse_study(text: str, file: str, folder: Path, *, checked: bool = True, code: Code = NOTHING) -> Source:
    """Check the text of a study; ``checked=False`` skips machine-dependent checks, to read old results."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise PluresError(f"{file} is not TOML: {error}") from error
    lines = key_lines(text.replace("\r\n", "\n"))
    try:
        document = Document.model_validate(raw)
    except ValidationError as error:
        raise refusal(file, lines, [(_meant(fault, lines), _words(fault)) for fault in error.errors()]) from None
    source = Source(file, text, folder, document, lines, code)
    faults = list(_faults(source)) if checked else []
    if faults:
        raise refusal(file, lines, faults)
    return source


def refusal(file: str, lines: dict[KeyPath, int], faults: Iterable[Fault]) -> PluresError:
    """The faults as one error, in the order of their lines."""
    found = sorted((line_of(lines, path), _key(path), message) for path, message in faults)
    return PluresError("\n".join(f"{file}, line {line}: {key}: {message}" for line, key, message in found))


def _key(path: Sequence[str | int]) -> str:
    """``data[0].options.seed``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _meant(fault: Any, lines: dict[KeyPath, int]) -> KeyPath:
    """The key of a validator's error, without the types of value that it tried."""
    *path, last = fault["loc"]
    known: KeyPath = ()
    for part in path:
        if (*known, part) in lines:
            known = (*known, part)
    return (*known, last) if fault["type"] == "missing" or not known or (*known, last) in lines else known


def _words(fault: Any) -> str:
    match fault["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            near = closest(fault["loc"][-1], KEYS)
            return f"is not a key here; {f'did you mean {near!r}?' if near else 'take it out or correct its name'}"
    text = fault["msg"]
    return f"{text[:1].lower()}{text[1:]}, not {fault['input']!r}"


def _faults(source: Source) -> Iterator[Fault]:
    document = source.document
    yield from _twice("seeds", [str(seed) for seed in document.seeds], ())
    yield from _twice("data", [part.label or part.name for part in document.data], ("label",))
    yield from _twice("partitions", [title(part) for part in document.partitions], ("label",))
    yield from _twice("methods", [part.title for part in document.methods], ("label",))
    yield from _twice("budgets", [part.label or f"{part.rounds} rounds" for part in document.budgets], ("label",))
    labels = [title(part) for part in document.partitions]
    for number, data in enumerate(document.data):
        yield from _data_faults(source, data, ("data", number), labels)
    for number, partition in enumerate(document.partitions):
        yield from _partition_faults(partition, ("partitions", number))
    names = [part.label or part.name for part in document.data]
    for number, method in enumerate(document.methods):
        yield from _method_faults(source, method, ("methods", number))
        if method.title in BASELINES and method.name != method.title:
            yield ("methods", number, "label"), f"{method.title!r} is the baseline of every study; choose another label"
        for place, name in enumerate(method.data or []):
            if name not in names:
                yield ("methods", number, "data", place), f"no data set {name!r} here; {suggestion(name, names)}"
            elif method.title in BASELINES:
                yield ("methods", number, "data", place), f"{method.title} is a baseline: it takes part everywhere"
    for number, budget in enumerate(document.budgets):
        if budget.steps is not None and "epochs" in budget.model_fields_set:
            yield ("budgets", number, "steps"), "give epochs or steps, not both"
        here = ("budgets", number)
        if (name := called(budget.optimizer)[0]) != "sgd" and budget.momentum:
            yield (*here, "momentum"), f"is not used by {name}, which has its own; take it out"
        elif budget.participation == "full" and budget.fraction < 1:
            yield (*here, "fraction"), "is not used with participation = 'full'; take one of the two out"
        elif budget.participation != "poisson" and budget.at_most is not None:
            yield (*here, "at_most"), "is used with participation = 'poisson' alone; take it out"
        else:
            if budget.dp is not None:
                yield from _refused(lambda dp=budget.dp: RunSpec(data="", dp=dp), (*here, "dp"))  # type: ignore[misc]
            of_steps = {"momentum": budget.momentum, "weight_decay": budget.weight_decay}
            yield from _refused(
                lambda given=of_steps, name=budget.optimizer: RunSpec(data="", optimizer=name, **given),  # type: ignore[misc]
                (*here, "optimizer"),
            )
            yield from _refused(lambda name=budget.schedule: RunSpec(data="", schedule=name), (*here, "schedule"))  # type: ignore[misc]
        hostile = {"attack", "attackers", "attack_from", "attack_knows"}
        threat = budget.model_dump(include=hostile)
        yield from _refused(
            lambda given=threat: RunSpec(data="", **given),  # type: ignore[misc]
            (*here, "attack" if budget.attack else min(hostile & budget.model_fields_set, default="attack")),
        )
        yield from _refused(lambda name=budget.combine: RunSpec(data="", combine=name), (*here, "combine"))  # type: ignore[misc]
        drawn = {"fraction": budget.fraction, "participation": budget.participation, "drop_out": budget.drop_out}
        devices = budget.model_dump(include={*CLOCKED})
        if said := {*CLOCKED} & budget.model_fields_set:
            yield from _refused(
                lambda given=drawn | devices: RunSpec(data="", **given),  # type: ignore[misc]
                (*here, "fleet" if budget.fleet else min(said)),
            )
    yield from _unused_tuning(document.tuning)
    yield from _space_faults(document.tuning.lr, ("tuning", "lr"), positive=True)


def _unused_tuning(part: TuningPart) -> Iterator[Fault]:
    """Tuning keys that the chosen search does not use."""
    given = part.model_fields_set
    if not part.trials:
        for key in sorted(given & {"rounds", "search", "pruning", "every"}):
            yield ("tuning", key), "is not used, because trials = 0 tunes nothing; take it out"
        if "lr" in given and not (isinstance(part.lr, list) and len(part.lr) == 1):
            yield ("tuning", "lr"), "is not searched, because trials = 0 tunes nothing; give a single learning rate"
    elif part.search == "grid" and "pruning" in given and part.pruning != "none":
        yield ("tuning", "pruning"), f"{part.pruning!r} is not used by the grid, which never stops a trial; take it out"


def _twice(key: str, names: list[str], under: tuple[str, ...]) -> Iterator[Fault]:
    """Names that are used twice."""
    for name, count in Counter(names).items():
        if count > 1:
            last = max(place for place, other in enumerate(names) if other == name)
            yield (key, last, *under), f"{name!r} occurs twice; give each a different label"


def _data_faults(source: Source, data: DataPart, path: KeyPath, labels: list[str]) -> Iterator[Fault]:
    folder = source.data_path(data)
    where = data.name if folder is None else str(folder)
    if folder is not None and not (folder.is_dir() or (folder.is_file() and is_table(where))):
        near = suggestion(data.name, DATASETS)
        yield (*path, "name"), f"{data.name!r} is neither a data set, nor a table, nor a folder; {near}"
        return
    try:
        known = {*find_loader(where, source.code)[1]}
    except PluresError as error:
        yield (*path, "name"), str(error)
        return
    known = (known | {"seed", "donate"}) - {"split", "path"}
    for option in data.options.keys() - known:
        yield (
            (*path, "options", option),
            f"is not an option of {data.name!r}; {suggestion(option, sorted(known), 'they are')}",
        )
    donate = data.options.get("donate")
    if donate is not None and not (isinstance(donate, float) and 0 < donate < 1):
        yield (*path, "options", "donate"), f"give a share between 0 and 1, not {donate!r}"
    if data.model is None and data.model_options:
        yield (*path, "model_options"), "name the model that these options are for"
    if data.model is not None:
        try:
            parameters = [*network_kinds(data.model, source.code)]
        except PluresError as error:
            yield (*path, "model"), str(error)
            return
        for option in data.model_options.keys() - set(parameters):
            near = suggestion(option, parameters, "they are")
            yield (*path, "model_options", option), f"is not an option of {data.model}; {near}"
    named: list[tuple[str, Named[Any], str | None]] = [("task", TASK, data.task)]
    for key, kind, name in (*named, *(("metric", METRIC, name) for name in data.measured)):
        if name is not None and (kind is TASK or ":" in name):  # the metrics of plures depend on the task
            try:
                kind.find(name, source.code)
            except PluresError as error:
                yield (*path, key), str(error)
    for number, label in enumerate(data.partitions or []):
        if label not in labels:
            yield (*path, "partitions", number), f"no partition {label!r}; {suggestion(label, labels)}"
    if data.split is not None and data.split.validation + data.split.test >= 1:
        yield (*path, "split"), "validation and test together must leave something to train on"


def title(part: PartitionPart) -> str:
    """Name of a partition in results."""
    parts = [part.how, *(f"{key}={value}" for key, value in part.dealing.items())]
    for poorer in (part.shift, part.quality):
        if poorer is not None:
            parts += [f"{key}={value}" for key, value in poorer.model_dump(exclude_defaults=True).items()]
    return part.label or " ".join(parts)


def _partition_faults(part: PartitionPart, path: KeyPath) -> Iterator[Fault]:
    reads = DEALING[part.how]
    for key in part.dealing.keys() - reads:
        yield (*path, key), f"is not read by how = {part.how!r}; it reads {', '.join(sorted(reads)) or 'none of these'}"
    if reads and part.clients is None:
        yield (*path, "clients"), f"is missing: say how many clients how = {part.how!r} deals to"


def _method_faults(source: Source, part: MethodPart, path: KeyPath) -> Iterator[Fault]:
    try:
        entry = find_method(part.name, source.code)
    except PluresError as error:
        yield (*path, "name"), str(error)
        return
    for key in part.parameters.keys() - entry.defaults.keys():
        yield (
            (*path, "parameters", key),
            f"is not a parameter of {part.name}; {suggestion(key, entry.defaults, 'they are')}",
        )
        return
    yield from _parameter_faults(entry, part.parameters, (*path, "parameters"))
    if not tuned(entry):
        for key in {"lr", "space"} & part.model_fields_set:
            yield (*path, key), f"is not used: {untuned(entry, part.name)}; take it out"
        return
    if part.lr is not None and "lr" in (part.space or {}):
        yield (*path, "space", "lr"), "is fixed as lr; take one of the two out"
    for key, choices in (part.space or {}).items():
        here = (*path, "space", key)
        if key in part.parameters:
            yield here, "is fixed in parameters; take one of the two out"
        elif key != "lr" and key not in entry.defaults:
            near = suggestion(key, ["lr", *entry.defaults], "they are")
            yield here, f"is neither lr nor a parameter of {part.name}; {near}"
        elif faults := list(_space_faults(choices, here, positive=key == "lr")):
            yield from faults
        elif key != "lr":
            listed = [choices.low, choices.high] if isinstance(choices, Range) else choices
            for value in listed:
                fixed = {**part.parameters, key: value}
                yield from _refused(lambda fixed=fixed: entry(**fixed), here)  # type: ignore[misc]


def _parameter_faults(entry: Entry, parameters: Mapping[str, object], path: KeyPath) -> Iterator[Fault]:
    """A method's objections to its parameters together, at those that are wrong alone and beside each other one."""

    def refused(*keys: str) -> list[Fault]:
        return list(_refused(lambda: entry(**{key: parameters[key] for key in keys}), (*path, keys[0])))

    together = list(_refused(lambda: entry(**parameters), path))
    if not together:
        return
    each = {key: refused(key) for key in parameters}
    alone = {key: faults for key, faults in each.items() if faults and all(refused(key, other) for other in parameters)}
    yield from [fault for faults in alone.values() for fault in faults] or together


def _refused(build: Callable[[], object], path: KeyPath) -> Iterator[Fault]:
    """A method's objection to its parameters."""
    try:
        build()
    except PluresError as error:
        yield path, str(error)


def _space_faults(choices: list[Any] | Range, path: KeyPath, *, positive: bool) -> Iterator[Fault]:
    if isinstance(choices, Range):
        if choices.low >= choices.high:
            yield (*path, "high"), f"must be above low = {choices.low}, not {choices.high}"
        if (choices.log or positive) and choices.low <= 0:
            yield (*path, "low"), f"must be above 0, not {choices.low}"
        return
    for number, value in enumerate(choices):
        if positive and not (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
            yield (*path, number), f"give a learning rate above 0, not {value!r}"
