"""Networks with several inputs: the same numbers as one network on the concatenated inputs."""

from __future__ import annotations

import copy
import importlib
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import plures
from plures import Execution, PluresError, RunFolder, Training
from plures.augment import Noise, augment_of
from plures.augment.augment import Within
from plures.cli.models import read_examples
from plures.diagnose import diagnose
from plures.diagnose.sample import sample
from plures.evaluate.spec import find_method
from plures.federation import Inputs
from plures.methods import METHODS, ditto, fedper
from plures.models import featured, merged, with_lora
from plures.run.onboard import rescaled
from plures.serving.export import export
from plures.serving.personal import PersonalModel, opened
from plures.serving.serve import app
from plures.study.cells import dealt_anew
from plures.study.document import PartitionPart
from plures.tables.heart import heart_schema, heart_tables
from plures.tables.schema import Schema

LOOP = Execution("loop", 1, False, "float32")
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


def test_the_default_network_reads_the_numbers_of_all_inputs() -> None:
    """It is that of the concatenated columns, with its body and head."""
    runs = []
    for inputs in (X, {"left": X[:, :3], "right": X[:, 3:]}, (X[:, :3], X[:, 3:])):
        data = federation(inputs)
        runs.append(plures.Run(data, plures.default_model(data), fedper(), Training(rounds=1, batch_size=16)))
        for _ in runs[-1].rounds():
            pass
    for run in runs[1:]:
        torch.testing.assert_close(run.predict("b")[0], runs[0].predict("b")[0], rtol=0, atol=1e-5)


def test_what_reads_one_tensor_says_so() -> None:
    """Methods and builders' options that need one table or one tensor refuse several, before anything trains."""
    several = federation({"left": X[:, :3], "right": X[:, 3:]})
    with pytest.raises(PluresError, match="the method reads one input tensor, but examples have several: left, right"):
        plures.Run(several, Parts, METHODS["fedot"](), Training(rounds=1))
    with pytest.raises(PluresError, match="the inputs left are whole numbers; leave it out"):
        plures.from_arrays({"left": X.astype(int)}, Y, CLIENT, standardize=True)
    with pytest.raises(PluresError, match='missing="impute": it completes one table, but there are left, right'):
        plures.from_arrays({"left": X, "right": X}, Y, CLIENT, missing="impute")
    with pytest.raises(PluresError, match="donate reads one input tensor"):
        several.donate()
    with pytest.raises(PluresError, match="no default model: give one whose forward takes left, word"):
        plures.default_model(federation({"left": X[:, :3], "word": X[:, 3:].astype(int)}))


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


WIDE = X * np.float32([1, 5, 9, 2, 1, 3, 1]) + 2
BOTH = {"left": WIDE[:, :3], "right": WIDE[:, 3:]}


def scaled(inputs: Any, **options: Any) -> plures.Federation:
    return plures.from_arrays(inputs, Y, CLIENT, key=KEY, standardize=True, name="both", **options)


def test_standardized_inputs_are_their_standardized_columns() -> None:
    """With the same moments; whole numbers stay; new rows are scaled, and scaled back, as the data were."""
    whole, both = scaled(WIDE), scaled({**BOTH, "word": X[:, :1].astype(int)})
    assert isinstance(both.scaling, dict)
    assert set(both.scaling) == {"left", "right"}
    for place in (0, 1):
        joined = torch.cat([both.scaling["left"][place], both.scaling["right"][place]])
        assert torch.equal(joined, whole.scaling[place])  # type: ignore[index]
    assert torch.equal(torch.cat([both.inputs["left"], both.inputs["right"]], 1), whole.inputs)
    assert torch.equal(both.inputs["word"], torch.from_numpy(X[:, :1].astype(int)))
    raw = {**BOTH, "word": X[:, :1].astype(int)}
    torch.testing.assert_close(both.scaled(raw)["left"], both.inputs["left"], rtol=0, atol=1e-6)
    torch.testing.assert_close(both.unscaled(both.inputs)["right"], torch.from_numpy(BOTH["right"]), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each client with the inputs ``left`` and ``right``, and its rows in the order of :data:`WIDE`."""
    home = tmp_path_factory.mktemp("both")
    for client in "abc":
        own = client == CLIENT
        np.savez(home / f"{client}.npz", **{f"x.{k}": v[own] for k, v in BOTH.items()}, y=Y[own], key=KEY[own])
    return home


def kept(folder: Path, home: Path, method: str, **options: Any) -> RunFolder:
    """A finished run on the files of a folder, with the network above."""
    spec = plures.RunSpec(data=str(folder), data_options={"standardize": True}, method=method, rounds=1, **options)
    code = plures.evaluate.Code.typed(f"{__name__}:Parts")
    spec = spec.model_copy(update={"model": f"{__name__}:Parts"})
    federation = spec.federation(code)
    run = spec.run(federation.hold_out(spec.unseen)[0] if spec.unseen else federation, LOOP, code)
    made = RunFolder(home / "run", code)
    made.write(run, spec, plures.evaluate.finish(plures.fit(run, method), 0))
    return made


@pytest.mark.parametrize("method", ["ditto+threshold", "knnper"])
def test_a_published_model_reads_several_inputs(folder: Path, tmp_path: Path, method: str) -> None:
    """From files of a folder, back from the disk and over HTTP: the numbers of the run's own model, for raw rows."""
    run = kept(folder, tmp_path, method)
    model = opened(run.path, "b", run.code)
    model.save(tmp_path / "published")
    again = PersonalModel.load(tmp_path / "published", run.code)
    rows = {name: values[30:37] for name, values in BOTH.items()}
    outputs, decided = again.predict(rows)
    wanted, classes = run.predict("b", rows)
    assert torch.equal(outputs, wanted)
    assert decided is not None
    assert classes is not None
    assert torch.equal(decided, classes)
    assert torch.equal(again.predict(Inputs({k: torch.from_numpy(v) for k, v in rows.items()}))[0], outputs)
    assert again.card.features == {"left": (3,), "right": (4,)}
    assert "- reads: left 3 float32; right 4 float32" in again.card.text()
    assert bool(model.own) == (method == "knnper")
    with TestClient(app(again, hosts=("*",))) as client:
        said = client.post("/predict", json={"inputs": {k: v.tolist() for k, v in rows.items()}})
        torch.testing.assert_close(torch.tensor(said.json()["outputs"]), outputs, rtol=0, atol=1e-6)
        for asked, answer in (
            ({"rows": [[1.0] * 7]}, "several inputs: give inputs, a list for each of left, right"),
            ({"inputs": {"left": [[1, 2, 3]]}}, "input 'right' is missing"),
            ({"inputs": {"left": [[1, 2, 3]], "right": [[1, 2, "x", 4]]}}, "input 'right', row 1, place 3: a text"),
            (
                {"inputs": {"left": [[1, 2, 3]] * 2, "right": [[1, 2, 3, 4]]}},
                "input 'right' has 1 values, input 'left' 2",
            ),
        ):
            refused = client.post("/predict", json=asked)
            assert refused.status_code == 422
            assert answer in refused.json()["detail"]
    for odd, why in (
        ({"left": rows["left"]}, "has the inputs left, right: give a mapping with these names"),
        ({**rows, "left": rows["left"] * np.float32(np.inf)}, r"a NaN or an infinite value \(row 1\)"),
        ({**rows, "left": rows["left"][:0], "right": rows["right"][:0]}, "give at least one row"),
    ):
        with pytest.raises(PluresError, match=why):
            again.predict(odd)


def test_a_graph_has_an_input_for_each(folder: Path, tmp_path: Path) -> None:
    """ONNX names them; scaling, the client's own examples and its decisions are in the graph."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    run = kept(folder, tmp_path, "knnper")
    model = opened(run.path, "c", run.code)
    rows = {name: values[60:80] for name, values in BOTH.items()}
    found = export(model, tmp_path / "out", rows, int8=True)
    assert [one.format for one in found] == ["PyTorch", "ONNX", "ONNX int8"]
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert {one.name for one in session.get_inputs()} == {"left", "right"}
    outputs, _, decided = session.run(None, {k: v[:5] for k, v in rows.items()})
    wanted, classes = model.predict({k: v[:5] for k, v in rows.items()})
    np.testing.assert_allclose(outputs, wanted.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(decided, classes.numpy())  # type: ignore[union-attr]


@pytest.mark.extra("mobile")
def test_a_mobile_graph_takes_inputs_in_order(folder: Path, tmp_path: Path) -> None:
    run = kept(folder, tmp_path, "fedavg")
    rows = {name: values[60:66] for name, values in BOTH.items()}
    found = export(opened(run.path, "c", run.code), tmp_path / "out", rows, to=("executorch",))
    assert found[1].largest < 1e-5


def test_a_file_of_several_inputs_is_predicted(folder: Path, tmp_path: Path, says: Any) -> None:
    """``plures predict`` reads ``x.NAME``, and names the file that lacks one."""
    run = kept(folder, tmp_path, "fedper")
    np.savez(tmp_path / "new.npz", **{f"x.{name}": values[:3] for name, values in BOTH.items()})
    at = [str(run.path), "--client", "a", "--allow-code", f"{__name__}:Parts"]
    assert says("predict", *at, "--inputs", tmp_path / "new.npz", "--out", tmp_path / "new.csv") == (0, "")
    shown = (tmp_path / "new.csv").read_text().splitlines()
    chances = run.predict("a", {k: v[:3] for k, v in BOTH.items()})[0].softmax(-1)
    assert [float(line.split(",")[1]) for line in shown[1:]] == pytest.approx(chances[:, 0].tolist(), abs=1e-5)
    np.savez(tmp_path / "odd.npz", x=WIDE, **{"x.left": WIDE})
    with pytest.raises(PluresError, match=r"odd\.npz: it holds x and x\.left; give one input as x, or several"):
        read_examples(tmp_path / "odd.npz")


def test_newcomers_with_several_inputs(folder: Path, tmp_path: Path) -> None:
    """A newcomer's raw rows get the run's scale, and then the same model as one whose data the run had scaled."""
    data = plures.from_folder(folder, standardize=True)
    seen, later = data.hold_out(["c"])
    run = plures.Run(seen, Parts, fedper(), Training(rounds=1, batch_size=16), execution=LOOP)
    for _ in run.rounds():
        pass
    raw = plures.from_folder(folder).subset(["c"])
    with pytest.raises(PluresError, match="inputs are not on the scale of the run's"):
        plures.onboard(run, raw)
    guests = [plures.onboard(run, newcomers) for newcomers in (later, rescaled(run, raw))]
    one, other = (guest.predict("c")[0] for guest in guests)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_diagnosis_weighs_inputs_alike() -> None:
    """Of one input it is that of the tensor; an input that is the first one again, wider, changes no distance."""
    wide = np.repeat(WIDE, 3, 1)
    data = [plures.from_arrays(x, Y, CLIENT, key=KEY) for x in (WIDE, {"x": WIDE}, {"x": WIDE, "wide": wide}, BOTH)]
    apart = [torch.cdist(*[torch.from_numpy(sample(one, rows=90).points)] * 2) for one in data]
    for other in apart[1:3]:
        torch.testing.assert_close(other, apart[0], rtol=0, atol=1e-4)
    one, alone = (diagnose(federation, rows=90) for federation in data[:2])
    assert (alone.features.p, alone.concept, alone.learning) == (one.features.p, one.concept, one.learning)
    assert diagnose(data[3], rows=90, model=Parts).clusters.model == "Parts"


def test_a_schema_says_which_columns_an_argument_reads(tmp_path: Path) -> None:
    """The inputs are the columns of the whole table, scaled alike; raw rows are a table or its inputs."""
    told, tables = {"person": ("sex", "age"), "rest": ()}, heart_tables()
    told["rest"] = tuple(name for name in heart_schema().names if name not in told["person"])
    whole, schema = heart_schema(), Schema.parse({**heart_schema().model_dump(), "arguments": told})
    assert Schema.parse(tomllib.loads(schema.to_toml())["schema"]) == schema
    one, both = (kind.federation("heart", tables) for kind in (whole, schema))
    of = {column.name: column.inputs for column in whole.columns}
    places = [whole.inputs.index(name) for name in (*of["sex"], *of["age"])]
    assert torch.equal(both.inputs["person"], one.inputs[:, places])
    assert schema.empty("heart", list(tables)).features == both.features
    assert both.scaling["person"][0].tolist() == one.scaling[0][places].tolist()  # type: ignore[index, call-overload]
    run = plures.Run(both, plures.default_model(both), fedper(), Training(rounds=1), execution=LOOP)
    PersonalModel.of(run, "va", plures.RunSpec(data="heart", method="fedper", rounds=1)).save(tmp_path)
    model = PersonalModel.load(tmp_path)
    rows = {name: cells[:4] for name, cells in tables["va"].items() if name in schema.names}
    outputs = model.predict(rows)[0]
    assert torch.equal(model.predict(schema.encode(rows, scaled=False))[0], outputs)
    with TestClient(app(model, hosts=("*",))) as client:
        said = client.post("/predict", json={"columns": rows})
        torch.testing.assert_close(torch.tensor(said.json()["outputs"]), outputs, rtol=0, atol=1e-6)
    for wrong, why in (
        ({"person": ["age"]}, "column 'sex' is read 0 times"),
        ({**told, "again": ["age"]}, "column 'age' is read 2 times"),
        ({**told, "again": ["agee"]}, "there is no column 'agee'; did you mean 'age'"),
        ({"a b": list(schema.names)}, "'a b' cannot be an argument of a network"),
    ):
        with pytest.raises(PluresError, match=why):
            Schema.parse({**whole.model_dump(), "arguments": wrong})


def shifted(key: Any, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
    """Both inputs get the same number."""
    number = key.uniform(1)
    return inputs.map(lambda t: t + number), targets


def test_augmentation_of_several_inputs() -> None:
    """By name, it is that of the columns alone; the others stay; a function gets all; and backends agree."""
    data = federation({"left": X[:, :3], "word": X[:, 3:].astype(int)})
    (part,) = data.augmented("noise(0.5)").augment.parts  # type: ignore[union-attr]
    assert part == Within("left", Noise(0.5))
    keys, counts = torch.arange(8).view(2, 4), torch.tensor([4, 3])
    batch = data.inputs.map(lambda t: t[:8].view(2, 4, *t.shape[1:]))
    targets = data.targets[:8].view(2, 4)
    alone, _ = augment_of("noise(0.5)")(keys, counts, batch["left"], targets)
    for named in ("noise(0.5)", {"left": "noise(0.5)"}):
        made, _ = data.augmented(named).augment(keys, counts, batch, targets)  # type: ignore[union-attr, misc]
        assert torch.equal(made["left"], alone)
        assert torch.equal(made["word"], batch["word"])
    both = federation({"left": X[:, :3], "right": X[:, 3:]})
    with pytest.raises(PluresError, match=r"noise: it could change left and right; say which input, as in augmented\("):
        both.augmented("noise(0.5)")
    with pytest.raises(PluresError, match="augmentation of input 'middle': federation 'data' has left, right"):
        both.augmented({"middle": "noise(0.5)"})
    mixed = both.augmented({"left": "mixup"}).augment
    with pytest.raises(PluresError, match="mixup: it mixes examples, but input 'left' is one of several"):
        mixed(keys, counts, both.inputs.map(lambda t: t[:8].view(2, 4, -1)), targets)  # type: ignore[misc]
    runs, training = [], Training(rounds=1, batch_size=16)
    for backend in ("loop", "vmap"):
        for augment in (shifted, {"right": "noise(0.5)"}):
            run = plures.Run(both.augmented(augment), Parts, ditto(), training, execution=Execution(backend))
            for _ in run.rounds():
                pass
            runs.append(run)
    for one, other in (runs[::2], runs[1::2]):
        torch.testing.assert_close(one.predict("c")[0], other.predict("c")[0], rtol=0, atol=1e-5)
    assert not torch.equal(runs[0].predict("c")[0], runs[1].predict("c")[0])


def test_a_study_deals_several_inputs_anew() -> None:
    """They are standardised again over the new train rows."""
    dealt = dealt_anew(scaled(BOTH), PartitionPart(how="iid", clients=4, seed=1), None)
    for name, raw in BOTH.items():
        train = dealt.inputs[name][dealt.splits["train"].rows].double()
        torch.testing.assert_close(train.mean(0), torch.zeros(len(train[0]), dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(train.std(0, correction=0), torch.ones_like(train[0]), rtol=0, atol=1e-6)
        back = dealt.unscaled(dealt.inputs)[name]
        torch.testing.assert_close(back, torch.from_numpy(raw), rtol=0, atol=1e-4)


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


class Wrapped(nn.Module):
    """A frozen first part, and a skip connection around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(7, 7).requires_grad_(False), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.first(x))


def frozen(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Tanh())
    body(torch.randn(64, 7))
    parts = (body.requires_grad_(False), *middle, nn.Linear(5, 2))
    return plures.with_roles(nn.Sequential(*parts), body="0", head=str(len(parts) - 1))


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("name", ["fedper", "ditto+threshold", "fedproto"])
def test_a_run_computes_frozen_features_once(backend: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """On its own, with the numbers of every step's own pass; the models keep all leaves, and predict raw rows."""
    data, training = federation(X), Training(rounds=3, batch_size=16, optimizer=plures.SGD(lr=0.5))
    runs = []
    for features in ("auto", False):
        caplog.clear()
        with caplog.at_level("INFO", "plures"):
            execution = Execution(backend, features=features)  # type: ignore[arg-type]
            run = plures.Run(data, frozen(), find_method(name)(), training, execution=execution)
        assert ("0 is frozen: its features of 120 examples were computed once" in caplog.text) == bool(features)
        for _ in run.rounds():
            pass
        runs.append(run)
    assert [run.execution.features for run in runs] == [True, False], "so that a checkpoint is resumed alike"
    assert runs[0].engine.federation.features == {"frozen features": (5,)}
    one, other = (run.deployed([0, 1, 2]) for run in runs)
    for slot, leaves in other.items():
        for path, values in leaves.items():
            torch.testing.assert_close(one[slot][path], values, rtol=0, atol=1e-5)
    rows = data.inputs[:9]
    torch.testing.assert_close(runs[0].predict("b", rows)[0], runs[1].predict("b", rows)[0], rtol=0, atol=1e-5)
    wanted, found = (plures.score(run, "test").values for run in runs)
    np.testing.assert_allclose(found["loss"], wanted["loss"], atol=1e-5)


def test_when_features_are_not_kept() -> None:
    """Randomness, a part that trains, a skip connection, augmentation, own examples: as before, or one sentence."""
    data, training = federation(X), Training(rounds=3, batch_size=16)
    trained = frozen()
    trained[0][0].requires_grad_(True)  # type: ignore[index]
    cases = [
        (data, nn.Sequential(nn.Dropout(0.1), *frozen()), "fedavg", "no frozen first part"),
        (data, trained, "fedavg", "no frozen first part"),
        (data, Wrapped(), "fedavg", "no frozen first part"),
        (data.augmented("noise(0.1)"), frozen(), "fedavg", "examples are augmented"),
        (federation({"input": X}), frozen(), "fedavg", "the network has several inputs"),
        (data, frozen(), "knnper", "the method predicts with the clients' own examples"),
        (data, frozen(), "fedot", "the method needs the inputs themselves"),
    ]
    for given, network, name, why in cases:
        settled = Execution("loop", 1, False, "float32")
        run = plures.Run(given, network, find_method(name)(), training, execution=settled)
        assert run.engine.federation is run.federation
        with pytest.raises(PluresError, match=f"features=True: .*{why}"):
            plures.Run(given, network, find_method(name)(), training, execution=replace(settled, features=True))
    once = plures.Run(data, frozen(), METHODS["fedavg"](), Training(rounds=1, batch_size=16), execution=LOOP)
    assert once.engine.federation is once.federation  # one pass over the data gains nothing


def test_a_dropout_behind_the_frozen_part_stays() -> None:
    """Its masks are those of a run that computes features in every step."""
    training, found = Training(rounds=3, batch_size=16), []
    for features in ("auto", False):
        execution = Execution("loop", features=features)  # type: ignore[arg-type]
        run = plures.Run(federation(X), frozen(nn.Dropout(0.5)), fedper(), training, execution=execution)
        for _ in run.rounds():
            pass
        found.append(run.predict("a")[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.extra("hf")
def test_transformers_as_they_are() -> None:
    """BERT gets its mask, is stacked or not with the same numbers, and learns by our LoRA and by PEFT's."""
    transformers, peft = importlib.import_module("transformers"), importlib.import_module("peft")
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


@pytest.mark.extra("hf")
def test_lora_adapts_the_transposed_layers_of_gpt2() -> None:
    """In stacks as in the loop; the merged weights give the trained model's outputs; the base stays as it was."""
    transformers = importlib.import_module("transformers")
    ids, length = RNG.integers(1, 20, size=(120, 6)), RNG.integers(2, 7, size=(120, 1))
    data = federation({"input_ids": ids, "attention_mask": (np.arange(6) < length).astype(int)})

    def gpt() -> nn.Module:
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 20, "num_labels": 2}
        known = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
        config = transformers.GPT2Config(**sizes, **known, attn_pdrop=0.0, attn_implementation="eager")
        return plures.with_roles(transformers.GPT2ForSequenceClassification(config), head="score")

    runs = []
    for backend in ("loop", "vmap"):
        training = Training(rounds=2, batch_size=16, optimizer=plures.SGD(lr=0.5))
        run = plures.Run(data, gpt, METHODS["lora"](rank=2), training, execution=Execution(backend))  # type: ignore[arg-type]
        assert run.execution.backend == backend
        for _ in run.rounds():
            pass
        runs.append(run)
    leaves, others = (run.predictors([0, 1, 2]) for run in runs)
    for path, values in leaves.items():
        torch.testing.assert_close(values, others[path], rtol=0, atol=1e-6)
    adapted = {path.removesuffix(".lora_b.weight") for path in leaves if path.endswith(".lora_b.weight")}
    assert adapted == {f"transformer.h.0.{layer}" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    trained = with_lora(gpt(), 2)
    trained.load_state_dict({path: values[1] for path, values in leaves.items()}, strict=False)
    plain = merged(trained).eval()
    assert plain.state_dict().keys() == gpt().state_dict().keys()
    wanted, _ = runs[0].predict("b", data.inputs[:20])
    with torch.no_grad():
        found = plain(**data.inputs[:20].parts).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (
        float((plain.transformer.h[0].mlp.c_fc.weight - trained.transformer.h[0].mlp.c_fc.base.weight).abs().max())
        > 1e-4
    )  # type: ignore[union-attr, index, operator]


class Basic(nn.Module):
    """The basic block of torchvision's ResNets: batch normalisation, ReLU in place, a shortcut of half the size."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            self.downsample = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        same = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += same
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """The names, layers and in-place operations of torchvision's ``ResNet``, with two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = nn.Sequential(Basic(4, 4, 1)), nn.Sequential(Basic(4, 8, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))  # type: ignore[no-any-return]


def test_torchvisions_resnets_train_alike_and_are_cut_before_their_head() -> None:
    """With batch normalisation of the clients' own; frozen but for the head, its features are kept."""
    pictures = federation(RNG.normal(size=(120, 1, 8, 8)).astype(np.float32) + Y[:, None, None, None])
    training = Training(rounds=2, batch_size=16, optimizer=plures.SGD(lr=0.1))

    def made() -> nn.Module:
        return plures.with_roles(ResNet(), head="fc")

    found = []
    for backend in ("loop", "vmap"):
        run = plures.Run(pictures, made, METHODS["fedbn"](), training, execution=Execution(backend))  # type: ignore[arg-type]
        assert run.execution.backend == backend
        for _ in run.rounds():
            pass
        found.append(run.predictors([0, 1, 2]))
    for path, values in found[0].items():
        if values.is_floating_point():
            torch.testing.assert_close(found[1][path], values, rtol=1e-3, atol=1e-4, msg=path)
    assert torch.equal(found[0]["bn1.num_batches_tracked"], found[1]["bn1.num_batches_tracked"])
    net = made()
    net.requires_grad_(False).fc.requires_grad_(True)  # type: ignore[union-attr]
    keeping = replace(LOOP, features=True)
    run = plures.Run(pictures, net, METHODS["fedavg"](), training, execution=keeping)
    assert run.engine.federation.features == {"frozen features": (8, 1, 1)}


class Masked(nn.Module):
    """A recurrent network on padded sequences, which reads the state at each sequence's own end."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(2 + 4, 4), nn.Linear(4, 2)

    def forward(self, series: Tensor, length: Tensor) -> Tensor:
        state, steps = series.new_zeros(len(series), 4), series.shape[1]
        for place in range(steps):
            after = torch.tanh(self.step(torch.cat([series[:, place], state], 1)))
            state = torch.where(length > place, after, state)
        return self.head(state)


def test_masked_sequences_are_stacked() -> None:
    """Unlike packed ones; what lies behind the ends changes nothing, in either backend."""
    length = RNG.integers(1, 6, size=(120, 1))
    series = RNG.normal(size=(120, 5, 2)).astype(np.float32)
    beyond = np.arange(5)[None, :, None] >= length[..., None]
    found = []
    for backend, padding in (("vmap", 0.0), ("vmap", 7.5), ("loop", 0.0)):
        data = federation({"series": np.where(beyond, np.float32(padding), series), "length": length})
        training, execution = Training(rounds=2, batch_size=16), Execution(backend)  # type: ignore[arg-type]
        run = plures.Run(data, Masked, ditto(), training, execution=execution)
        assert run.execution.backend == backend
        for _ in run.rounds():
            pass
        found.append(run.predict("a")[0])
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-6)
