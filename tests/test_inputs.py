"""Networks with several inputs: the same numbers as one network on the concatenated inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import plures
from plures import Execution, PluresError, RunFolder, Training
from plures.diagnose import diagnose
from plures.methods import METHODS, ditto, fedper

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 7)).astype(np.float32)
Y, CLIENT, KEY = (X[:, 0] + X[:, 5] > 0).astype(int), np.repeat(["a", "b", "c", "c"], 30), np.arange(120)


class Parts(nn.Module):
    """A linear layer for each of two inputs, and a head on the sum; of one input, its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
        plures.with_roles(self, head="head")

    def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
        one, two = (left[:, :3], left[:, 3:]) if right is None else (left, right)
        return self.head(torch.tanh(self.left(one) + self.right(two)))


def federation(inputs: Any) -> plures.Federation:
    return plures.from_arrays(inputs, Y, CLIENT, key=KEY)


def trained(inputs: Any, method: plures.Method, backend: Any) -> plures.Run:
    training = Training(rounds=2, batch_size=16, optimizer=plures.SGD(lr=0.1))
    run = plures.Run(federation(inputs), Parts, method, training, execution=Execution(backend))
    for _ in run.rounds():
        pass
    return run


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("made", [ditto, fedper])
def test_two_inputs_train_as_their_columns_do(backend: str, made: Any) -> None:
    """By name and by position, with batches of different sizes, every leaf is that of the concatenated input."""
    alone = trained(X, made(), backend)
    for inputs in ({"left": X[:, :3], "right": X[:, 3:]}, (X[:, :3], X[:, 3:])):
        run = trained(inputs, made(), backend)
        for slot, leaves in run.deployed([0, 1, 2]).items():
            for path, values in leaves.items():
                torch.testing.assert_close(values, alone.deployed([0, 1, 2])[slot][path], rtol=0, atol=1e-6)
        torch.testing.assert_close(run.predict("c")[0], alone.predict("c")[0], rtol=0, atol=1e-5)


def test_what_reads_one_tensor_says_so() -> None:
    """Methods, builders' options and diagnosis that read the input itself refuse several, before anything trains."""
    several = federation({"left": X[:, :3], "right": X[:, 3:]})
    with pytest.raises(PluresError, match="the method reads one input tensor, but examples have several: left, right"):
        plures.Run(several, Parts, METHODS["fedot"](), Training(rounds=1))
    with pytest.raises(PluresError, match="diagnose reads one input tensor"):
        diagnose(several)
    with pytest.raises(PluresError, match="standardize reads one input tensor"):
        plures.from_arrays({"left": X}, Y, CLIENT, standardize=True)
    with pytest.raises(PluresError, match="no default model: give one whose forward takes left, right"):
        plures.default_model(several)


def test_a_run_folder_predicts_several_inputs(tmp_path: Path) -> None:
    """The folder keeps names, shapes and types, also of the examples that a predictor reads; new rows are a mapping."""
    inputs = {"left": X[:, :3], "right": X[:, 3:]}
    plures.compare(federation(inputs), ["knnper"], model=Parts, rounds=1, seeds=1, tune_rounds=0, out=tmp_path)
    kept = RunFolder(tmp_path / "runs" / "knnper-seed0")
    fitted = federation(inputs)
    for rows in ({k: v[:9] for k, v in inputs.items()}, fitted.inputs[:9]):
        outputs, _ = kept.predict("b", rows, model=Parts, method=METHODS["knnper"]())  # type: ignore[arg-type]
        assert outputs.shape == (9, 2)
    assert kept.fitted().features == {"left": (3,), "right": (4,)}
    with pytest.raises(PluresError, match="has the inputs left, right: give a mapping with these names"):
        kept.predict("b", torch.zeros(1, 7), model=Parts, method=METHODS["knnper"]())
