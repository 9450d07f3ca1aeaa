"""Networks with several inputs: the same numbers as one network on the concatenated inputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import plures
from plures import Execution, PluresError, RunFolder, Training
from plures.diagnose import diagnose
from plures.methods import METHODS, ditto, fedper
from plures.models import featured

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


# Networks as people bring them ----------------------------------------------------------------------------------------


class Sequences(nn.Module):
    """A recurrent network on packed sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, series: Tensor, length: Tensor) -> Tensor:
        packed = pack_padded_sequence(series, length.flatten(), batch_first=True, enforce_sorted=False)
        return self.head(self.cell(packed)[1][0])


def test_padding_of_packed_sequences_changes_nothing() -> None:
    """Other numbers behind the end of each sequence give the same bits, after training one client at a time."""
    length = RNG.integers(1, 6, size=(120, 1))
    series = RNG.normal(size=(120, 5, 2)).astype(np.float32)
    beyond = np.arange(5)[None, :, None] >= length[..., None]
    found = []
    for padding in (0.0, 7.5):
        data = federation({"series": np.where(beyond, np.float32(padding), series), "length": length})
        run = plures.Run(data, Sequences, ditto(), Training(rounds=2, batch_size=16), execution=Execution("vmap"))
        assert run.execution.backend == "loop"
        for _ in run.rounds():
            pass
        found.append(run.predict("a")[0])
    assert torch.equal(*found)


class Residual(nn.Module):
    """The names and the structure of torchvision's ResNets, with one block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.avgpool(torch.relu(x + self.layer1(x))).flatten(1))


def pretrained() -> Residual:
    """A network whose batch normalisation has seen data, frozen except for its last layer."""
    torch.manual_seed(0)
    net = Residual()
    net(torch.randn(64, 1, 6, 6) * 2 + 1)
    net.requires_grad_(False).fc.requires_grad_(True)
    return plures.with_roles(net, head="fc")  # type: ignore[return-value]


def test_features_of_a_frozen_backbone_are_computed_once() -> None:
    """Batch normalisation keeps its statistics, and the head learns the same from stored features."""
    pictures = RNG.normal(size=(120, 1, 6, 6)).astype(np.float32) + Y[:, None, None, None]
    whole, net = federation(pictures), pretrained()
    head, backbone = copy.deepcopy(net.fc), copy.deepcopy(net)
    backbone.fc = nn.Identity()  # type: ignore[assignment]
    runs = [
        plures.Run(data, model, METHODS["fedavg"](), Training(rounds=3, batch_size=16, optimizer=plures.SGD(lr=0.5)))
        for data, model in ((whole, net), (featured(whole, backbone), head))
    ]
    for run in runs:
        for _ in run.rounds():
            pass
    ((one,), (other,)) = (run.deployed([0]).values() for run in runs)
    for path in ("weight", "bias"):
        torch.testing.assert_close(one[f"fc.{path}"], other[path], rtol=0, atol=1e-6)
        assert not torch.equal(other[path][0], head.get_parameter(path))
    for path, before in net.named_buffers():
        assert torch.equal(one[path][0], before)
    with pytest.raises(PluresError, match="the backbone's weight can be trained"):
        featured(whole, head)


def test_transformers_as_they_are() -> None:
    """BERT gets its mask, is stacked or not with the same numbers, and learns by our LoRA and by PEFT's."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    ids, length = RNG.integers(1, 20, size=(120, 6)), RNG.integers(2, 7, size=(120, 1))
    mask = (np.arange(6) < length).astype(int)
    given = {"input_ids": ids * mask, "attention_mask": mask}

    def bert() -> nn.Module:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=2, **sizes)
        return plures.with_roles(transformers.BertForSequenceClassification(config), head="classifier")

    def adapted() -> nn.Module:
        return peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query"]))  # type: ignore[no-any-return]

    for model, method in ((bert, METHODS["lora"](rank=2)), (adapted, METHODS["fedavg"]())):
        run = plures.Run(federation(given), model, method, Training(rounds=1, batch_size=16))
        before = run.deployed([0])
        for _ in run.rounds():
            pass
        ((old,), (new,)) = (stack.values() for stack in (before, run.deployed([0])))
        moved = {path for path in old if not torch.equal(old[path], new[path])}
        assert moved
        assert moved <= {path for path in old if "lora" in path or path.endswith((".a.weight", ".b.weight"))} | {
            path for path in old if "classifier" in path
        }
        other = federation({**given, "input_ids": np.where(mask > 0, ids, 19)})
        for client in ("a", "b"):
            rows = other.splits["test"][other.index(client)]
            assert torch.equal(run.predict(client, other.inputs[rows])[0], run.predict(client)[0])
