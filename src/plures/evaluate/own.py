"""Finds data, networks, methods, tasks and metrics by name: in a catalogue, or your own as ``module:name``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from plures.codecs import CODECS
from plures.errors import PluresError, suggestion
from plures.evaluate.code import NOTHING, Code
from plures.federation import DATASETS, Federation, from_folder, from_pictures, from_sounds, load
from plures.federation.build.pictures import has_pictures
from plures.federation.build.sounds import has_sounds
from plures.federation.datasets.catalogue import loader_kinds
from plures.methods import METHODS, Entry
from plures.metrics import Metric
from plures.models import NETWORKS, ModelFactory, default_model
from plures.privacy import Private, dp_sgd
from plures.robust import REDUCERS
from plures.signature import Kinds, arguments, kinds, shown
from plures.tables.source import from_table, is_table
from plures.tasks import KINDS, NextToken, Task

T = TypeVar("T")
SIZES = ("features", "outputs", "every_position")
"""Parameters of a network's function that are given by the federation."""
OF_LISTS = ("client", "target", "file", "progress")
"""Parameters of `from_pictures` that a folder does not use."""


@dataclass(frozen=True)
class Named(Generic[T]):
    """A kind of object that is named on a command line, in a file or in Python.

    Attributes:
        kind: name of the kind in messages.
        catalogue: the objects that come with plures, by name.
        listed: the command that lists them, if there is one.
    """

    kind: str
    catalogue: Mapping[str, T]
    listed: str = ""

    def find(self, name: str, code: Code = NOTHING) -> T | Any:
        """The entry of the catalogue with a name, or the object that ``module:name`` refers to, unchanged.

        Args:
            name: a name of the catalogue, or ``package.module:name``.
            code: user code that is allowed: ``Code.typed(name)`` if the user typed the name.

        Raises:
            PluresError: if it is neither, or user code that is not allowed.
        """
        if name in self.catalogue:
            return self.catalogue[name]
        if ":" in name:
            return code.load(name, self.kind)
        several = [one.strip() for one in name.split(",")]
        if len(several) > 1 and all(one in self.catalogue for one in several):
            raise PluresError(f"{self.kind} {name!r}: give each on its own, by repeating the option or in a list")
        listed = f"`{self.listed}` lists all; " if self.listed else ""
        raise PluresError(
            f"no {self.kind} {name!r}; {suggestion(name, self.catalogue)} ({listed}your own is named module:function)"
        )


STAGES = {name: Entry(name, name, "wire", f"plures.codecs.{codec.__name__}", codec) for name, codec in CODECS.items()}
"""Stages of the wire as parts of methods: ``ditto+topk``."""
ROBUST = {name: Entry(name, name, "robust", f"plures.robust.{made.__name__}", made) for name, made in REDUCERS.items()}
"""Robust combinations as parts of methods: ``ditto+krum``."""
DP = Entry("dp", "dp", "privacy", "McMahan, Ramage, Talwar, Zhang 2018, ICLR; plures.privacy.Private", Private)
"""Differential privacy as a part of methods: ``ditto+dp(clip=0.5,noise=1)``."""
DP_SGD = Entry("dp_sgd", "dp_sgd", "privacy", "Abadi et al. 2016, CCS, Algorithm 1; plures.privacy.dp_sgd", dp_sgd)
"""Differential privacy of examples inside each client: ``fedper+dp_sgd(noise=2)``."""
METHOD = Named("method", {**METHODS, **STAGES, **ROBUST, DP.name: DP, DP_SGD.name: DP_SGD}, "plures methods")
NETWORK = Named("network", NETWORKS)
DATA = Named("data set", DATASETS, "plures datasets")
TASK = Named("task", KINDS)
METRIC: Named[Metric] = Named("metric", {})
"""User-defined metrics; those that come with plures belong to a task."""


def find_loader(data: str, code: Code = NOTHING) -> tuple[Callable[..., Federation], Kinds]:
    """The function that builds a federation, and its options with their types.

    Args:
        data: a data set of the catalogue, a CSV or Parquet file, a folder of such files or of ``.npz`` files, or
            ``package.module:function``.
        code: user code that is allowed.

    Raises:
        PluresError: if there is no such data set, or it is not a function or a federation.
    """
    if data not in DATASETS and is_table(data):
        return partial(from_table, data), {k: kind for k, kind in kinds(from_table).items() if k != "data"}
    for has, build in ((has_pictures, from_pictures), (has_sounds, from_sounds)):
        if data not in DATASETS and Path(data).is_dir() and has(Path(data)):
            known = {k: kind for k, kind in kinds(build).items() if k not in ("path", *OF_LISTS)}
            return partial(build, Path(data)), known
    if data not in DATASETS and Path(data).is_dir():
        return partial(from_folder, Path(data)), {k: kind for k, kind in kinds(from_folder).items() if k != "path"}
    if not is_own(data):
        return partial(load, data), loader_kinds(data)
    found = DATA.find(data, code)
    if isinstance(found, Federation):
        return partial(_loaded, data, lambda: found), {}
    if not callable(found):
        raise PluresError(f"data set {data!r}: {shown(found)} is not a function that returns a Federation")
    return partial(_loaded, data, found), kinds(found)


def is_own(data: str) -> bool:
    """Whether data are named as ``module:function`` rather than by a path."""
    return ":" in data and not Path(data).is_absolute() and not is_table(data)


def _loaded(data: str, build: Callable[..., Any], **options: Any) -> Federation:
    given = arguments(f"data set {data!r}", build, **options)
    federation = build(*given.args, **given.kwargs)
    if not isinstance(federation, Federation):
        raise PluresError(f"data set {data!r}: its function returns {shown(federation)}; let it return a Federation")
    return federation


def find_network(
    model: str | None, federation: Federation, options: Mapping[str, Any], code: Code = NOTHING
) -> nn.Module | ModelFactory:
    """A model for a federation.

    Args:
        model: a network of the catalogue; ``package.module:name`` of a module or of a function that returns one, which
            gets the shape of an input as ``features``, the number of ``outputs`` and whether the task has a label at
            ``every_position`` of a sequence, if it has these parameters;
            ``None`` for a network that fits the data.
        federation: the clients.
        options: further arguments of the function.
        code: user code that is allowed.

    Raises:
        PluresError: if there is no such network, or its options do not fit.
    """
    if model is None:
        return default_model(federation)
    build = NETWORK.find(model, code)
    if isinstance(build, nn.Module):
        if options:
            raise PluresError(f"network {model!r} is a module, which has no options: leave out {', '.join(options)}")
        return build
    if not callable(build):
        raise PluresError(f"network {model!r}: {shown(build)} is neither a module nor a function that returns one")
    task, features = federation.task, federation.features
    sizes = dict(zip(SIZES, (features, task.outputs, isinstance(task, NextToken)), strict=True))
    wanted = {name: size for name, size in sizes.items() if name in kinds(build)}
    given = arguments(f"network {model!r}", build, **wanted, **options)
    return lambda: build(*given.args, **given.kwargs)


def network_kinds(model: str, code: Code = NOTHING) -> Kinds:
    """Options of a network, with their types."""
    build = NETWORK.find(model, code)
    return {} if isinstance(build, nn.Module) else {n: kind for n, kind in kinds(build).items() if n not in SIZES}


def find_metric(metric: str, federation: Federation, code: Code = NOTHING) -> Metric:
    """A metric for a federation.

    Args:
        metric: name of one of its metrics or of the further metrics of its task, or ``package.module:name`` of a metric
            or of a function that returns one.
        federation: the clients.
        code: user code that is allowed.

    Raises:
        PluresError: if there is no such metric.
    """
    more = federation.task.further
    catalogue = {known.name: known for known in (*more.named, *federation.metrics)}
    found = federation.metric_of(metric) or replace(METRIC, catalogue=catalogue).find(metric, code)
    return _made(f"metric {metric!r}", found, Metric)


def find_task(task: str, code: Code = NOTHING) -> Task:
    """A task, which is still to be completed from data.

    Args:
        task: name of a kind, or ``package.module:name`` of a task or of a class or function that returns one.
        code: user code that is allowed.

    Raises:
        PluresError: if there is no such task.
    """
    return _made(f"task {task!r}", TASK.find(task, code), Task)


def _made(what: str, found: object, kind: type[T]) -> T:
    """The object found, or its return value if it is a function or a class."""
    if callable(found):
        given = arguments(what, found)
        found = found(*given.args, **given.kwargs)
    if not isinstance(found, kind):
        raise PluresError(f"{what}: {shown(found)} is neither a plures.{kind.__name__} nor a function that returns one")
    return found
