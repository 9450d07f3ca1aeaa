"""Frames of every library, with columns of every type and name, become a federation by a schema like files do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import plures
from plures.errors import PluresError
from plures.tables import schema_of
from plures.tasks import Regression, Task

ROWS = 60
X = np.random.default_rng(0).normal(50, 9, (ROWS, 2)).round(2)
TABLE: dict[str, Any] = {
    "ward": np.repeat(["a", "b", "c"], ROWS // 3),
    "ill": np.array(["no", "yes", "no"] * (ROWS // 3)),
    "age": X[:, 0],
    "dose": X[:, 1],
}


def built(table: Any, **options: Any) -> plures.Federation:
    return plures.from_table(table, client="ward", copies="allow", **{"target": "ill", **options})


@pytest.mark.parametrize("library", ["pandas", "polars", "numpy"])
def test_a_frame_carries_the_schema_by_which_new_rows_are_read(library: str):
    cells = {
        **TABLE,
        "dose": np.where(np.arange(ROWS) == 5, np.nan, X[:, 1]),
        "sex": np.array(["f", "m", None] * 20, dtype=object),
        "day": np.arange(ROWS),
    }
    frame = cells if library == "numpy" else pytest.importorskip(library).DataFrame(cells)
    federation = built(frame, time="day")
    assert federation.columns == (
        *("age", "dose", "dose is missing", "sex=f", "sex=m", "sex is another value", "sex is missing"),
    )
    assert federation.inputs[:3, 3:].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert federation.inputs[:, 2].nonzero().flatten().tolist() == [5]
    train = federation.splits["train"].rows.numpy()
    assert federation.splits["train"][1].tolist() == list(range(20, 32))
    assert federation.inputs[:, 0].numpy() == pytest.approx(
        (X[:, 0] - X[train, 0].mean()) / X[train, 0].std(), abs=1e-5
    )
    assert torch.equal(federation.scaled(frame), federation.inputs)
    new = {"sex": ["x"], "dose": [None], "age": [float(X[train, 0].mean())]}
    torch.testing.assert_close(federation.scaled(new), torch.tensor([[0.0, 0, 1, 0, 0, 1, 0]]), rtol=0, atol=1e-6)


def test_types_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(TABLE).assign(n=pandas.array([1, None, 3] * 20, dtype="Int64"))
    frame["note"] = np.array(["s", pandas.NA, "t"] * 20, dtype=object)
    frame["kind"] = pandas.Categorical([3, 1, 2] * 20)
    frame["text"] = pandas.array(["u", None, "v"] * 20, dtype="string")
    frame["stamp"] = pandas.date_range("2020-01-01", periods=ROWS)
    assert built(frame).columns[2:] == (
        *("n", "n is missing", "note=s", "note=t", "note is another value", "note is missing"),
        *("kind=1", "kind=2", "kind=3", "kind is another value"),
        *("text=u", "text=v", "text is another value", "text is missing", "stamp"),
    )


def test_columns_named_by_numbers_and_columns_that_occur_twice():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X)
    frame[3], frame[4] = TABLE["ill"], TABLE["ward"]
    federation = plures.from_table(frame, target=3, client=4, drop=[1], copies="allow")  # type: ignore[arg-type, list-item]
    assert federation.columns == ("0",)
    twice = pandas.DataFrame(np.column_stack([X, X]), columns=["a", "b", "b", "c"]).assign(**TABLE)
    with pytest.raises(PluresError, match="column 'b' occurs twice in the table; rename or remove one"):
        built(twice)


@pytest.mark.parametrize("words", [(False, True), (0, 1), (0.0, 1.0), ("false", "TRUE"), ("no", "yes")])
def test_labels_in_several_columns_are_of_any_type(words: tuple[Any, Any]):
    fever, cough = np.arange(ROWS) % 2, np.arange(ROWS) // 2 % 2
    table = {name: cells for name, cells in TABLE.items() if name != "ill"}
    cells = {"fever": [words[one] for one in fever], "cough": [words[one] for one in cough]}
    federation = built({**table, **cells}, target=["fever", "cough"])
    assert federation.task.kind == "multilabel"
    assert federation.targets.tolist() == np.stack([fever, cough], 1).tolist()
    cells["cough"][3] = "maybe"
    with pytest.raises(
        PluresError, match=r"column 'cough', row 4: .*'maybe', which is not one of the values of a label"
    ):
        built({**table, **cells}, target=["fever", "cough"], task="multilabel")


@pytest.mark.parametrize("library", ["pandas", "polars", "numpy"])
def test_the_split_of_a_table_stays_when_a_key_names_the_rows(library: str):
    make = dict if library == "numpy" else pytest.importorskip(library).DataFrame
    keyed = {**TABLE, "case": np.random.default_rng(1).permutation(ROWS)}
    whole = built(make(keyed), key="case").splits["test"].rows
    less = built(make({name: cells for name, cells in keyed.items() if name != "dose"}), key="case")
    assert torch.equal(less.splits["test"].rows, whole)


@dataclass(frozen=True)
class Halved(Regression):
    """A regression with a loss of its own."""

    kind: ClassVar[str] = "halved"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets) / 2


@dataclass(frozen=True)
class Alone(Task):
    """A task that derives from none of the catalogue."""

    kind: ClassVar[str] = "alone"
    outputs = 1

    def read(self, values: Any, where: Any) -> Any:
        raise NotImplementedError

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError


def test_a_task_of_ones_own_reads_what_its_class_reads():
    own = built(TABLE, target="dose", task=Halved())
    plain = built(TABLE, target="dose")
    assert own.task == Halved(outputs=1)
    assert torch.equal(own.targets, plain.targets)
    schema = schema_of(own)
    assert schema is not None
    assert schema.task == "regression"
    with pytest.raises(PluresError, match=r"task 'alone' of your own: .* derive it from one of Classification, .*"):
        built(TABLE, target="dose", task=Alone())
