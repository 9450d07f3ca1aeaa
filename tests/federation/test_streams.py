"""Streams: every experience holds the rows it should, in the splits they had."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.federation import (
    SPLITS,
    SplitRule,
    Stream,
    by_column,
    by_label,
    by_time,
    from_arrays,
    permuted,
    rotate,
    rotated,
    seasons,
)

RNG = np.random.default_rng(0)
MONTH = np.arange(240) % 12 + 1
TABLE = np.column_stack([RNG.normal(size=240), MONTH, np.arange(240)])
CLIENT = np.repeat(["a", "b"], 120)
F = from_arrays(TABLE, np.arange(240) % 4, CLIENT, columns=("x", "month", "day"), standardize=True, name="air")
PICTURES = from_arrays(RNG.random((60, 2, 3, 3)), np.arange(60) % 3, np.repeat(["a", "b"], 30))


def test_seasons_have_their_months_and_their_splits():
    stream = seasons(F)
    assert stream.names == ("spring", "summer", "autumn", "winter")
    assert stream.clients == ("a", "b")
    for experience, months in zip(stream, ((3, 4, 5), (6, 7, 8), (9, 10, 11), (12, 1, 2)), strict=True):
        assert experience.inputs is F.inputs
        for split in SPLITS:
            for own, before in zip(experience.splits[split], F.splits[split], strict=True):
                expected = [row for row in before.tolist() if MONTH[row] in months]
                assert own.tolist() == expected
    assert stream[1].name == "air, summer"
    assert sum(int(experience.splits[s].sizes.sum()) for experience in stream for s in SPLITS) == 240


def test_by_time_cuts_into_equal_parts():
    owner = np.tile(["a", "b"], 120)
    alike = from_arrays(TABLE, np.arange(240) % 4, owner, columns=("x", "month", "day"), standardize=True)
    days = np.datetime64("2026-01-01") + TABLE[:, 2].astype(int)
    given = ("day", TABLE[:, 2], TABLE[:, 2].tolist(), tuple(TABLE[:, 2]), range(240), days, days.tolist())
    for time in given:
        for number, experience in enumerate(by_time(alike, time, 3)):
            owned = torch.cat([experience.splits[s].rows for s in SPLITS])
            assert sorted(owned.tolist()) == list(range(80 * number, 80 * number + 80))
    alternating = by_time(alike, np.arange(240) // 100, 2)  # equal times stay together
    assert [sum(int(experience.splits[s].sizes.sum()) for s in SPLITS) for experience in alternating] == [100, 140]


def test_a_federation_that_is_split_by_time_cannot_be_cut_by_time():
    late = from_arrays(TABLE, np.arange(240) % 4, CLIENT, time=TABLE[:, 2], split=SplitRule(by="time"))
    with pytest.raises(PluresError, match="experience 'time 1': no validation rows; split the federation at random"):
        by_time(late, np.tile(np.arange(120), 2), 2)
    with pytest.raises(PluresError, match=r"experience 'first': client 'a' has no training row.*split the federation"):
        by_column(late, np.tile(np.arange(120), 2), {"first": range(80, 100)})


def test_by_label_and_by_values():
    stream = by_label(F, [(0, 1), (3,)])
    assert stream.names == ("classes 0, 1", "classes 3")
    for experience, labels in zip(stream, ({0, 1}, {3}), strict=True):
        assert experience.task == F.task
        assert {int(label) for s in SPLITS for label in F.targets[experience.splits[s].rows]} == labels
    halves = by_column(F, MONTH, {"first": range(1, 7), "second": range(7, 13)})
    assert [int(experience.splits["train"].sizes.sum()) for experience in halves] == [
        int((MONTH[F.splits["train"].rows.numpy()] <= 6).sum()),
        int((MONTH[F.splits["train"].rows.numpy()] > 6).sum()),
    ]


def test_rotated_turns_all_clients_alike():
    stream = rotated(PICTURES, (0, 90))
    assert stream.names == ("0 degrees", "90 degrees")
    assert torch.equal(stream[0].inputs, PICTURES.inputs)
    assert torch.equal(stream[1].inputs, rotate(PICTURES, (90,)).inputs)
    assert stream[1].metadata["rotation"] == (90, 90)


def test_permuted_moves_positions_alike_in_all_channels():
    stream = permuted(PICTURES, 3, seed=5)
    assert torch.equal(stream[0].inputs, PICTURES.inputs)
    before, after = PICTURES.inputs.flatten(2), stream[2].inputs.flatten(2)
    order = [int((before[0, 0] == value).nonzero()) for value in after[0, 0]]
    assert sorted(order) == list(range(9))
    assert torch.equal(after, before[:, :, order])
    assert torch.equal(stream[2].inputs, permuted(PICTURES, 4, seed=5)[2].inputs)
    assert not torch.equal(stream[1].inputs, stream[2].inputs)


def test_permuted_columns_keep_their_names_and_scales():
    experience = permuted(F, 2, seed=1)[1]
    for number, column in enumerate(experience.columns):
        place = F.columns.index(column)
        assert torch.equal(experience.inputs[:, number], F.inputs[:, place])
        assert experience.scaling is not None
        assert F.scaling is not None
        assert experience.scaling[0][number] == F.scaling[0][place]


def test_bad_streams_are_named():
    with pytest.raises(PluresError, match="experience 'two': clients differ from those of experience 'one'"):
        Stream("s", ("one", "two"), (F, F.subset(["a"])))
    with pytest.raises(PluresError, match="experience 'two': features differ"):
        Stream("s", ("one", "two"), (F, replace(F, inputs=F.inputs[:, :2], columns=F.columns[:2])))
    with pytest.raises(PluresError, match="a different name for each"):
        Stream("s", ("one", "one"), (F, F))
    with pytest.raises(PluresError, match="no input column 'moon'; did you mean 'month'"):
        seasons(F, "moon")
    with pytest.raises(PluresError, match="each once at most"):
        by_label(F, [(0, 1), (1, 2)])
    with pytest.raises(PluresError, match=r"values of shape \(3,\) for 240 rows"):
        by_time(F, [1, 2, 3], 2)
    with pytest.raises(PluresError, match="values of type <U1; give numbers or dates"):
        by_time(F, ["a"] * 240, 2)
    for known, lacking in ((0.0, np.nan), (np.datetime64(0, "D"), np.datetime64("NaT"))):
        with pytest.raises(PluresError, match="row 239 has no value; give one for each"):
            by_time(F, np.array([known] * 239 + [lacking]), 2)


def test_experiences_are_not_called_tasks():
    for make, what in (
        (
            lambda: Stream(name="s", names=("one",), tasks=(F,)),
            "Stream: no parameter 'tasks'; .* name, names, experiences",
        ),
        (lambda: by_time(F, "day", tasks=3), "by_time: no parameter 'tasks'; .* federation, time, experiences"),
        (lambda: permuted(F, tasks=3), "permuted: no parameter 'tasks'; .* federation, experiences, seed=0"),
    ):
        with pytest.raises(PluresError, match=f"^{what}$"):
            make()
    with pytest.raises(PluresError, match="client 'a' has no training row"):
        by_column(F, CLIENT == "b", {"b": (1,)})
