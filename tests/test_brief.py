"""No data in a traceback: objects that hold rows of clients are printed as shapes and counts."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re

import numpy as np
import pytest
import torch

import plures
from plures.brief import _line, described
from plures.federation import Federation, Split, Stream, by_label, load
from plures.method import Batch, Setting
from plures.tables.heart import heart_schema, heart_tables

HOLDS = re.compile(r"\b(Tensor|NDArray|Array|ArrayLike|Leaves|Cells|Read|Dates|Federation)\b")
SECRET = 987654321


def dataclasses_of_plures() -> list[type]:
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(plures.__path__, "plures."):
        if module.name.endswith(("__main__", ".app", ".proxy")):
            continue
        try:
            members = vars(importlib.import_module(module.name))
        except ImportError:
            continue
        for kind in members.values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__.startswith("plures."):
                found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return list(found.values())


def holds_data(kind: type) -> bool:
    told = [str(field.type) for field in dataclasses.fields(kind)]
    return any(HOLDS.search(text) and "Callable" not in text for text in told)


def test_every_dataclass_that_holds_arrays_is_printed_without_them():
    loud = [
        kind
        for kind in dataclasses_of_plures()
        if holds_data(kind) and kind.__repr__ not in (_line, Federation.__repr__)
    ]
    assert [f"{kind.__module__}.{kind.__name__}" for kind in loud] == []


def test_a_federation_is_one_line():
    heart = load("heart")
    assert repr(heart) == (
        "<Federation 'heart': 4 clients, train 552, validation 137, test 231; classification, 2 classes; inputs 32>"
    )


@pytest.fixture
def secret() -> Federation:
    inputs = torch.full((12, 2), float(SECRET))
    split = Split.of([torch.arange(6), torch.arange(6, 12)])
    task = plures.tasks.Classification(("a", "b"))
    targets = torch.arange(12) % 2
    return Federation("f", task, inputs, targets, ("x", "y"), dict.fromkeys(("train", "validation", "test"), split))


def test_what_is_made_of_it_shows_no_value(secret: Federation):
    batch = Batch(
        secret.inputs, secret.targets, None, None, own={"train": Batch(secret.inputs, secret.targets, None, None)}
    )
    stream = by_label(secret, [(0,), (1,)])
    for held in (secret, secret.splits["train"], Setting.of(secret), batch, stream):
        line = repr(held)
        assert str(SECRET) not in line
        assert "\n" not in line
        assert "tensor(" not in line
        assert "array(" not in line
    assert repr(secret.splits["train"]) == "Split(rows=int64 (12,), offsets=int64 (3,))"
    assert isinstance(stream, Stream)


def test_a_table_that_was_read_shows_no_value():
    reading = heart_schema().read(heart_tables()["va"])
    assert "float64 (200,)" in repr(reading.targets)
    assert "\n" not in repr(reading)
    assert "array(" not in repr(reading)


def test_short_collections_are_described_and_long_ones_counted():
    assert described({"a": np.zeros((2, 3)), "b": (1, "x")}) == "{'a': float64 (2, 3), 'b': (1, 'x')}"
    assert described(tuple(range(100))) == "100 entries"
    assert described(None) == "None"
