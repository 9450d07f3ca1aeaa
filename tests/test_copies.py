"""Public objects are themselves after pickling and after a deep copy: every public class has an instance here."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import plures
from plures import METHODS, privacy
from plures.audit import Audit, Canaries, Inverted, Membership
from plures.augment import Augment, Crop, Each, Key, Mask, Mixture
from plures.cases import CASES, Course, Learned
from plures.codecs import Feedback, TopK
from plures.content import alike
from plures.deploy import Plan, SiteFile
from plures.diagnose import Family, Rule, diagnose
from plures.diagnose.rules import RULES
from plures.evaluate import ColdStart, ComparisonProgress, RunFolder, Scores, StreamScores, Summary
from plures.evaluate.spec import find_method
from plures.federation import DATASETS, Completeness, Mapped, Stream
from plures.federation.build import of_arrays
from plures.hardware import FleetTable, Phones
from plures.method import Assign, Association, By, Calibration, EnergyAware, Known, Seen, Timed, View
from plures.metrics import Metric, mean
from plures.models import Marked
from plures.privacy import Geometric, Response, Spent
from plures.robust import FLTrust
from plures.run import (
    Buffered,
    Clocked,
    DropOut,
    Fixed,
    Full,
    Joint,
    Milestones,
    Oort,
    Poisson,
    PowerOfChoice,
    RoundRecord,
)
from plures.secure import Public, Revealed
from plures.serving import Exported, Memory, Need
from plures.serving.personal import opened
from plures.study import Ahead, Event, plan_of, read_study
from plures.tables import Number, check, schema_of
from plures.threat import Backdoor, Column, Patch, SignFlip, Threat

ALONE = plures.Execution("loop", 1, False, "float32")
ABSTRACT = {
    *("Task", "augment.Part", "federation.build.Options", "method.Codec", "method.Grouping"),
    *("method.Optimizer", "method.Reducer", "method.Server", "method.Share", "run.Participation", "tables.Draft"),
    *("track.Tracker", "robust.Robust", "hardware.FleetRule", "run.Threatening", "threat.Attack", "threat.Poison"),
    "threat.Trigger",
}
"""Classes without instances: what one derives from, protocols, and types of options."""
LIVE = {
    *("Run", "evaluate.Fit", "run.engine.Engine", "method.Bound", "models.Network"),  # a training process
    *("deploy.Conductor", "deploy.Site", "study.Store", "study.Study"),  # connections, a database
    *("track.MLflow", "track.TensorBoard", "track.WandB"),  # open files
    *("method.Arrived", "method.Batch", "method.Cohort", "method.Look", "method.Mean", "method.Probe"),
    *(
        "method.Problem",
        "method.Sending",
        "method.Start",
        "method.State",
        "method.Summed",
        "method.Visit",
        "secure.Member",  # secrets
        "secure.Members",
        "threat.Round",
    ),
}
"""Classes that exist while something runs; the last ones are arguments of a method's functions."""


def public() -> dict[str, type]:
    """Public classes of all public modules, by the first module that names them."""
    found: dict[type, str] = {}
    modules = [m.name for m in pkgutil.walk_packages(plures.__path__, "plures.") if not m.name.startswith("plures.cli")]
    for name in ["plures", *modules]:
        module = importlib.import_module(name)
        for word in getattr(module, "__all__", ()):
            kind = getattr(module, word)
            if inspect.isclass(kind) and kind.__module__.startswith("plures"):
                found.setdefault(kind, f"{name}.{word}".removeprefix("plures."))
    return {name: kind for kind, name in found.items()}


def of_half(*given: Any) -> Any:
    """A user's function, in a module."""
    return given[0]


def made(folder: Path) -> list[Any]:
    """Objects that hold, somewhere in them, one of each public class with arguments."""
    rows = np.arange(24.0, dtype=np.float32).reshape(12, 2)
    seen = Membership(members=1, others=1, auc=0.5, advantage=0, found=0)
    np.save(folder / "rows.npy", rows)
    stored = np.load(folder / "rows.npy", mmap_mode="r")
    table = {
        "ward": ["a", "b"] * 15,
        "age": [*range(20, 50)],
        "seen": ["2024-01-02", "2024-02-03", "2024-03-04"] * 10,
        "pain": ["low", "medium", "high"] * 10,
        "type": ["A", "B", "C", "A", "B"] * 6,
        "smokes": ["no", "yes", "no"] * 10,
        "ill": ["no", "no", "yes"] * 10,
    }
    wards = plures.from_table(table, client="ward", target="ill")
    schema = schema_of(wards)
    assert schema is not None
    out = folder / "compared"
    compared = plures.compare(
        "heart", ["fedavg"], rounds=1, seeds=1, tune_rounds=0, model="logistic", execution=ALONE, out=out
    )
    kept = RunFolder(next(iter(sorted((out / "runs").glob("fedavg*")))))
    (folder / "study.toml").write_text(
        'name = "s"\n[[data]]\nname = "heart"\n[[methods]]\nname = "ditto"\n[[budgets]]\nrounds = 1\n'
    )
    model = opened(kept.path, "va")
    mapped = plures.from_arrays(stored, np.arange(12) // 2 % 2, client=["a", "b"] * 6)
    tokens = plures.from_arrays({"left": rows, "right": rows}, np.arange(12) // 2 % 2, client=["a", "b"] * 6)
    predicted = plures.Predictions(*(torch.arange(2.0) for _ in range(6)))
    metric = Metric("half", "half", of_half, mean)
    run = plures.Run(wards, plures.default_model(wards), METHODS["ditto"](), plures.Training(1), execution=ALONE)
    return [
        wards,
        wards.describe(),
        mapped,
        tokens,
        schema.read(table),
        check(schema, table, "a"),
        of_arrays(rows, rows, ["a"] * 12, None, None, None, None, ()),
        compared,
        compared.rows(),
        kept,
        kept.spec(),
        model,
        diagnose(wards, clients=2, rows=20),
        plan_of(read_study(folder / "study.toml"), "grid"),
        Plan(name="p", clients=("a", "b"), schema=schema),
        SiteFile(client="a"),
        predicted,
        metric,
        *CASES.values(),
        *RULES,
        Rule("r", (("n", "<", 1.0),), {"local": 1.0}, "says", "source"),
        Family("title", ("ditto",)),
        *(METHODS[name]() for name in ("ditto", "ifca", "fedrep", "fedbn", "pfedhn", "fedala", "fedamp")),
        find_method("ditto+topk(0.2)")(),
        Augment((Crop(2), Mask(0.1, 3), Each(of_half))),
        Key(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)),
        Mixture(rows, rows, rows, torch.ones(1)),
        Association(torch.ones(2, 2), 0.5, 0.25),
        Assign(("model",), of_half),
        Calibration("bias", of_half, of_half),
        run,
        Feedback((TopK(0.5),)),
        Column("age"),
        Public(b"seal", b"mask"),
        seen,
        Audit(title="ditto", membership={"a": {"shared": seen}}),
        Canaries(planted=2, others=2, found=0.5, false=0, bound=0.1, claimed=1, delta=0),
        Inverted(attack="ratio", seen="server", error=0, control=1),
        Revealed({1: 2}, {3: 4}),
        By("country"),
        Known("examples"),
        EnergyAware("energy"),
        Seen("model"),
        Timed(of_half),
        View("model", of_half),
        Marked({"w": torch.ones(2)}, frozenset({"w"})),
        Fixed([["a"], ["b"]]),
        Joint(Full()),
        DropOut(Poisson(0.5), 0.5),
        Clocked(plures.Uniform(0.5), Phones(), PowerOfChoice(2), deadline=9.0),
        Buffered(Full(), FleetTable(), 2, select=Oort()),
        Phones().fleet(["ann"], {}),
        Course("c", "title", "heart", of_half, {"ditto": ({"lam": 0.5},)}, {}),
        Learned("title", (StreamScores(metric, ("one",), ("a",), np.ones((1, 1))),)),
        FLTrust("a"),
        privacy.Plan(privacy.Private(noise=0.0), privacy.Draws("schedule", 2, 2.0, of_half)),
        Spent(1.0, 1e-5, 1, "client", "add_or_remove", "pld", 1.0, 1.0, "all", "server"),
        Geometric(0.5),
        privacy.ExamplesPlan(privacy.PerExample(1.0, 1.0, 0.5), 1, of_half),
        Response(1.0, 2),
        Threat(0.5, SignFlip(), Backdoor(Patch(((0,),), 1.0))),
        Milestones((1, 2)),
        RoundRecord(1, ("a",), 0.5, 1, 1, 0.1),
        Scores(("a",), np.array([3]), {"accuracy": np.array([np.nan])}),
        StreamScores(metric, ("one",), ("a",), np.ones((1, 1))),
        ColdStart((metric,), {}),
        Summary(0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 1.0, 1),
        ComparisonProgress("ditto", "tuning", None, 1, 0, 1),
        Stream("s", ("one",), (wards,)),
        Completeness(("a",), ("age",), torch.ones(1, 1)),
        DATASETS["heart"],
        Exported("onnx", None, 1, 0.5, None, 0.0, 0.0, None, 3),
        Memory((Need("train", 1, 1, 1, 1, 1, 1, 1, 1, 1),), 1, 1, 1),
        Ahead(1, 1, 1, 1, 0, 0, 1.0, 1, 1, {"c": (1, 1, 1.0)}),
        Event("done"),
        Number(name="age"),
    ]


def held(value: Any) -> Iterable[Any]:
    """What is in a value."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, tuple | list | set | frozenset):
        return value
    return () if isinstance(value, type | types.FunctionType | Tensor) else getattr(value, "__dict__", {}).values()


def one_of_each(roots: Iterable[Any], kinds: Mapping[str, type]) -> dict[type, Any]:
    """The first object of each class that is found in some objects."""
    found, seen, todo, known = dict[type, Any](), set[int](), list(roots), {*kinds.values()}
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) in known:
            found.setdefault(type(value), value)
        todo += held(value)
    return found


def same(one: Any, other: Any, where: str = "") -> str:
    """Where two values differ; nothing if they have the same content."""
    if one is other:
        return ""
    if type(one) is not type(other):
        return f"{where}: {type(one).__name__}, {type(other).__name__}"
    if isinstance(one, Mapping | tuple | list):
        pairs = [*one.items()] if isinstance(one, Mapping) else [*enumerate(one)]
        others = [*other.items()] if isinstance(one, Mapping) else [*enumerate(other)]
        if [key for key, _ in pairs] != [key for key, _ in others]:
            return f"{where}: other entries"
        both = zip(pairs, others, strict=True)
        return next((text for (key, a), (_, b) in both if (text := same(a, b, f"{where}[{key!r}]"))), "")
    if getattr(one, "__dict__", None) and not isinstance(one, Tensor | types.FunctionType):
        return same(vars(one), vars(other), f"{where}.{type(one).__name__}")
    return "" if alike(one, other) or one != one else f"{where}: {one!r}, {other!r}"


def test_every_public_object_is_itself_after_pickling_and_after_a_deep_copy(tmp_path: Path):
    kinds = {name: kind for name, kind in public().items() if not issubclass(kind, BaseException)}
    apart = {*ABSTRACT, *LIVE}
    assert {name for name in apart if name not in kinds} == set()
    found = one_of_each(made(tmp_path), kinds)
    for name, kind in kinds.items():
        if (
            kind not in found
            and name not in apart
            and all(p.default is not p.empty for p in inspect.signature(kind).parameters.values())
        ):
            with suppress(plures.PluresError):  # an instance of it is made above
                found[kind] = kind()
    assert sorted({name for name, kind in kinds.items() if kind not in found} - apart) == []
    wrong = []
    for name, kind in kinds.items():
        if name in apart:
            continue
        for how, again in (("pickle", lambda x: pickle.loads(pickle.dumps(x))), ("copy", copy.deepcopy)):
            one = found[kind]
            try:
                other = again(one)
            except Exception as error:
                wrong.append(f"{name}, {how}: {type(error).__name__} {error}")
                continue
            by_content = kind.__eq__ is object.__eq__ or kind in (Marked, Mapped)
            equal = not same(one, other, name) if by_content else one == other
            if not equal:
                wrong.append(f"{name}, {how}: {same(one, other)}")
    assert not wrong, "\n".join(wrong)


def test_objects_with_tensors_are_equal_by_content():
    heart, again = plures.load("heart"), plures.load("heart")
    assert heart == again
    assert heart != plures.load("heart", seed=1)
    assert heart.splits["test"] != again.splits["train"]
    assert METHODS["ditto"](lam=0.5) == METHODS["ditto"](lam=0.5) != METHODS["ditto"](lam=0.25)
    assert plures.method.head | plures.method.body == plures.method.head | plures.method.body
    assert Scores(("a",), np.array([1]), {"x": np.array([np.nan])}) == Scores(
        ("a",), np.array([1]), {"x": np.array([np.nan])}
    )


def test_a_run_is_copied_and_says_why_it_is_not_pickled():
    wards = plures.from_arrays(np.arange(24.0).reshape(12, 2), np.arange(12) // 2 % 2, client=["a", "b"] * 6)
    run = plures.Run(wards, plures.default_model(wards), METHODS["ditto"](), plures.Training(2), execution=ALONE)
    other = copy.deepcopy(run)
    mine = [record.loss for record in run.rounds()]
    assert [record.loss for record in other.rounds()] == mine  # from the beginning, whatever the first one did
    with pytest.raises(plures.PluresError, match="cannot be pickled; keep it in a file"):
        pickle.dumps(run)


def test_every_method_of_the_catalogue_is_itself_after_a_round_trip():
    composed = [find_method(name) for name in ("ditto(lam=0.5)", "ifca+fedrep", "ditto+topk(0.2)")]
    for entry in (*METHODS.values(), *composed):
        for again in (pickle.loads(pickle.dumps(entry)), copy.deepcopy(entry)):
            assert (again.name, again.fixed, again.origin) == (entry.name, entry.fixed, entry.origin)
            assert again.same(entry), entry.name


def test_an_error_keeps_its_words():
    for error in (plures.PluresError("give more"), plures.PluresWarning("give more")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), "give more")
