"""Inputs that stay on disk: the numbers of tensors in memory, bit for bit, and never all of them at once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import plures
from plures import Execution, Federation, PluresError, Run, Training
from plures.evaluate.spec import find_method
from plures.federation import Mapped
from plures.federation.mapped import FileRows
from plures.methods import ditto
from plures.run import engine
from plures.run.engine import Engine
from plures.run.fingerprint import of_data

CLIENTS = np.repeat(["a", "b", "c"], [20, 30, 40])
TARGETS = np.arange(90) % 3


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    inputs = np.random.default_rng(0).integers(0, 255, size=(90, 2, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "x.npy", inputs)
    return tmp_path / "x.npy"


def both(file: Path, **options: object) -> tuple[Federation, Federation]:
    """The same federation with its inputs in memory and on disk."""
    mapped = np.load(file, mmap_mode="r")
    return tuple(plures.from_arrays(x, TARGETS, CLIENTS, **options) for x in (np.array(mapped), mapped))  # type: ignore[return-value,arg-type]


def trained(federation: Federation, execution: Execution, classes: int = 3) -> tuple[Tensor, list[float]]:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(32, classes))

    run = Run(federation, network, ditto(lam=0.1), Training(rounds=2, batch_size=8), execution=execution)
    for _ in run.rounds():
        pass
    leaves = torch.cat([t.flatten(1) for t in run.predictors([0, 1, 2]).values()], 1)
    return leaves, list(plures.score(run, "test").values["loss"])


@pytest.mark.parametrize("options", [{}, {"standardize": True}, {"dtype": torch.float64}])
def test_rows_splits_and_scaling_are_those_of_tensors_in_memory(stored: Path, options: dict[str, object]):
    held, mapped = both(stored, **options)
    assert isinstance(mapped.inputs, Mapped)
    assert mapped.inputs.dtype == held.inputs.dtype
    places = torch.tensor([[3, 80], [3, -1]])
    for read in (lambda x: x[places], lambda x: x[4:9], lambda x: x[7], lambda x: x.index_select(0, places[0])):
        assert torch.equal(read(held.inputs), read(mapped.inputs))
    assert all(torch.equal(held.splits[split].rows, mapped.splits[split].rows) for split in held.splits)
    raw = torch.from_numpy(np.load(stored))
    assert torch.equal(held.scaled(raw), mapped.scaled(raw))
    for again in (pickle.loads(pickle.dumps(mapped)), copy.deepcopy(mapped), mapped.to("cpu", torch.float64)):
        assert torch.equal(again.inputs[:5].double(), held.inputs[:5].double())


@pytest.mark.parametrize("augment", [None, "flip+crop(1)"])
@pytest.mark.parametrize("execution", [Execution("loop", 1, False), Execution("vmap", 2, False)], ids=["loop", "vmap"])
def test_training_and_scores_have_the_same_bits(stored: Path, execution: Execution, augment: str | None):
    (one, losses), (two, others) = (trained(data.augmented(augment), execution) for data in both(stored))
    assert torch.equal(one, two)
    assert losses == others


def test_nothing_ever_reads_more_than_a_part_of_the_rows_at_once(stored: Path, monkeypatch: pytest.MonkeyPatch):
    """What builds, describes, diagnoses, compares and scores reads a batch, or the rows of one client."""
    taken: list[int] = []
    read: Callable[..., np.ndarray] = FileRows.take

    def watched(rows: FileRows, places: np.ndarray) -> np.ndarray:
        taken.append(len(places))
        return read(rows, places)

    monkeypatch.setattr(FileRows, "take", watched)
    monkeypatch.setattr("plures.federation.mapped.BLOCK", 10 * 32)
    monkeypatch.setattr("plures.run.engine.EVALUATION_BYTES", 10 * 128)
    monkeypatch.setattr("plures.run.steps.BLOCK", 10 * 128)
    _, mapped = both(stored, standardize=True, copies="allow")
    assert max(taken) <= 10, "building reads block after block"
    of_data(mapped)
    assert max(taken) <= 10, "a fingerprint needs the rows' digests alone"
    mapped.describe()
    alone = Execution("loop", 1, False)
    result = plures.compare(mapped, ["ditto"], rounds=1, seeds=1, tune_rounds=0, batch_size=8, execution=alone)
    assert max(taken) <= 40, "no batch and no client has all rows; the constant baseline reads a client's at once"
    assert result.methods


def test_the_fingerprint_follows_the_rows(stored: Path):
    before = of_data(both(stored)[1])
    assert of_data(both(stored)[1]) == before
    changed = np.load(stored)
    changed[0] += 1
    np.save(stored, changed)
    assert of_data(both(stored)[1]) != before


def test_what_needs_all_rows_is_refused_in_a_sentence(stored: Path, tmp_path: Path):
    _, mapped = both(stored)
    for whole in (lambda x: x.clone(), lambda x: x * 2, lambda x: x[:, 0], lambda x: torch.isfinite(x)):
        with pytest.raises(PluresError, match="cannot be changed or read as a whole"):
            whole(mapped.inputs)
    broken = np.ones((90, 2), dtype=np.float32)
    broken[41, 1] = np.nan
    np.save(tmp_path / "bad.npy", broken)
    with pytest.raises(PluresError, match=r"client 'b', row 41: a NaN or an infinite value"):
        plures.from_arrays(np.load(tmp_path / "bad.npy", mmap_mode="r"), TARGETS, CLIENTS)
    gone = pickle.loads(pickle.dumps(mapped))
    stored.unlink()
    with pytest.raises(PluresError, match=r"x\.npy: the inputs cannot be read from it"):
        gone.inputs[0]


def test_rows_may_be_left_out_and_come_from_the_middle_of_a_file(tmp_path: Path):
    values = np.arange(200.0, dtype=np.float32).reshape(100, 2)
    np.save(tmp_path / "x.npy", values)
    part = np.load(tmp_path / "x.npy", mmap_mode="r")[10:]
    client = np.where(np.arange(90) % 9 == 0, -1, np.arange(90) % 2)
    federation = plures.from_arrays(part, TARGETS, client)
    assert isinstance(federation.inputs, Mapped)
    assert torch.equal(federation.inputs[:], torch.from_numpy(values[10:][client >= 0]))


@pytest.mark.parametrize("positioned", [True, False])
def test_rows_are_read_in_any_order_and_a_shorter_file_is_named(
    tmp_path: Path, positioned: bool, monkeypatch: pytest.MonkeyPatch
):
    if not positioned:
        monkeypatch.delattr("os.preadv", raising=False)
    values = np.arange(60, dtype=np.int32).reshape(20, 3)
    file = tmp_path / "x.bin"
    file.write_bytes(b"head" + values.tobytes())
    rows = FileRows(file, "<i4", (20, 3), 4)
    for places in ([7, 8, 9, 2, 3, 3, 19, 0], [5], [], list(range(20))):
        chosen = np.array(places, dtype=np.int64)
        assert np.array_equal(rows.take(chosen), values[chosen])
    with pytest.raises(IndexError, match="outside the 20 rows"):
        rows.take(np.array([20]))
    file.write_bytes(file.read_bytes()[:-1])
    assert np.array_equal(rows.take(np.array([18])), values[18:19])
    with pytest.raises(PluresError, match=r"x\.bin: the file has become shorter"):
        rows.take(np.array([18, 19]))


def test_several_inputs_stay_on_disk_and_give_the_same_bits(tmp_path: Path):
    rng = np.random.default_rng(0)
    held = {"tokens": rng.integers(0, 9, size=(90, 5)), "mask": rng.random((90, 5)).astype(np.float32)}
    for name, part in held.items():
        np.save(tmp_path / f"{name}.npy", part)
    stored = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in held}

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            return self.out((self.embed(tokens) * mask[..., None]).mean(-2))

    client = np.where(np.arange(90) % 10 == 9, -1, np.arange(90) // 10 % 3)  # some rows are left out
    found = []
    for inputs in (held, stored):
        federation = plures.from_arrays(inputs, TARGETS, client)
        assert all(isinstance(part, Mapped) == (inputs is stored) for part in federation.inputs.parts.values())  # type: ignore[union-attr]
        execution = Execution("vmap", 2, capture=False)  # steps that read files are not recorded
        run = Run(federation, Network, ditto(lam=0.1), Training(rounds=2, batch_size=8), execution=execution)
        for _ in run.rounds():
            pass
        found.append(run.predictors([0, 1, 2]))
        assert (
            federation.splits["test"].rows.tolist() == found[0].setdefault("", federation.splits["test"].rows).tolist()
        )
    found[0].pop("")
    assert all(torch.equal(leaf, found[1][name]) for name, leaf in found[0].items())


@pytest.mark.parametrize(("name", "most"), [("constant", 0), ("intercept", 12), ("fedavg+threshold", 12)])
@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_what_is_fitted_to_whole_splits_reads_inputs_in_blocks_or_not_at_all(
    stored: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int, backend: str
) -> None:
    """A constant reads none; a calibration gets outputs, four examples of three clients at a time; numbers stay."""
    held, mapped = both(stored)
    if "threshold" in name:
        held, mapped = (plures.from_arrays(x.inputs, TARGETS % 2, CLIENTS) for x in (held, mapped))
    made = find_method(name)
    training, execution = Training(rounds=1, batch_size=4), Execution(backend)
    runs = []
    for federation in (held, mapped):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(32, federation.task.outputs))
        runs.append(Run(federation, network, made(), training, execution=execution))
    monkeypatch.setattr(engine, "EVALUATION_BATCH", 4)
    monkeypatch.setattr(Engine.walk, "__defaults__", (4,))
    blocks = list[int]()
    take = FileRows.take
    monkeypatch.setattr(FileRows, "take", lambda rows, places: blocks.append(len(places)) or take(rows, places))
    for run in runs:
        run.step()
    if most:
        blocks.clear()  # of training
    one, other = (run.deployed([0, 1, 2]) for run in runs)
    assert max(blocks, default=0) <= most
    assert bool(blocks) == bool(most)
    for slot, leaves in one.items():
        for path, values in leaves.items():
            torch.testing.assert_close(other[slot][path], values, rtol=0, atol=1e-6)
