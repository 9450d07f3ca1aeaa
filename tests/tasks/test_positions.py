"""A label at every position, from networks to predictions in a file, over HTTP and in ONNX; compiled steps of tasks."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools import kinds
from torch import nn

import plures
from plures import METHODS, Execution, PluresError, Run, RunSpec, Training
from plures.cli.models import predictions
from plures.evaluate.own import find_network, network_kinds
from plures.federation import Federation
from plures.method import Adam
from plures.methods import lora
from plures.models import char_lstm, char_transformer, unet
from plures.run.choose import uncompilable
from plures.tasks import KINDS, NextToken, Segmentation, from_dict, to_dict

LENGTH, TOKENS = 5, 7
LOOP = Execution("loop", 1, False, "float32")
SMALL = {"char_lstm": {"hidden": 4}, "char_transformer": {"width": 8, "heads": 2}}


def texts(vocabulary: int = TOKENS) -> Federation:
    """Two authors; each token is the one before plus 1, or plus 2 for the second author."""
    begin, step = np.arange(60) % TOKENS, np.repeat([1, 2], 30)
    text = (begin[:, None] + step[:, None] * np.arange(LENGTH + 1)) % TOKENS
    task, owner = NextToken(vocabulary=vocabulary), np.repeat(["a", "b"], 30)
    options = {"name": "texts", "dtype": torch.int64, "copies": "allow"}
    return plures.from_arrays(text[:, :-1], text[:, 1:], owner, task=task, **options)


@pytest.mark.parametrize("network", [char_lstm, char_transformer])
def test_an_output_depends_on_nothing_after_its_position(network) -> None:
    torch.manual_seed(0)
    module = network((LENGTH,), TOKENS, every_position=True, **SMALL[network.__name__]).eval()
    text = torch.arange(LENGTH).unsqueeze(0)
    found = module(text)
    assert tuple(found.shape) == (1, LENGTH, TOKENS)
    for place in range(LENGTH):
        changed = text.clone()
        changed[:, place:] = 6
        other = module(changed)
        torch.testing.assert_close(other[:, :place], found[:, :place])
        assert not torch.allclose(other[:, place], found[:, place])


def test_the_last_of_all_positions_is_that_of_the_network_with_one() -> None:
    torch.manual_seed(0)
    whole = char_lstm((LENGTH,), TOKENS, hidden=4, every_position=True)
    last = char_lstm((LENGTH,), TOKENS, hidden=4)
    last.load_state_dict(whole.state_dict())
    text = torch.arange(10).view(2, LENGTH) % TOKENS
    torch.testing.assert_close(whole(text)[:, -1], last(text), rtol=0, atol=1e-6)


def test_networks_by_name_follow_the_task() -> None:
    data = texts()
    for name, options in SMALL.items():
        module = find_network(name, data, options)()
        assert tuple(module(data.inputs[:2]).shape) == (2, LENGTH, TOKENS)
        assert "every_position" not in network_kinds(name)
    assert tuple(plures.default_model(data)()(data.inputs[:2]).shape) == (2, LENGTH, TOKENS)
    options = {"task": "next_token", "dtype": torch.int64, "copies": "allow"}
    more = plures.from_arrays([[7, 0]] * 30, [[0, 6]] * 30, ["a"] * 30, **options)
    with pytest.raises(PluresError, match=r"an input has token 7, but .* 7 tokens: give .*vocabulary=8"):
        plures.default_model(more)


def test_tokens_have_names() -> None:
    """Predictions show them; the number of tokens follows; the names of the data stay with a task of one's own."""
    names = [f"<{token}>" for token in range(TOKENS)]
    task = NextToken(tokens=names)  # type: ignore[arg-type]
    assert (task.vocabulary, task.names) == (TOKENS, tuple(names))
    assert from_dict(json.loads(json.dumps(to_dict(task)))) == task
    data = texts().with_task(task)
    assert data.with_task(NextToken(ignored=0)).task.names == tuple(names)
    outputs = torch.eye(TOKENS)[None, :LENGTH]
    told = list(csv.DictReader(io.StringIO(predictions(outputs, data.task.decide(outputs), data.task))))
    assert [line["token"] for line in told] == names[:LENGTH]
    with pytest.raises(PluresError, match="2 names of tokens, but vocabulary=3; name all or none"):
        NextToken(vocabulary=3, tokens=("a", "b"))
    with pytest.raises(PluresError, match="tokens: 'a' is given twice"):
        NextToken(tokens=("a", "a"))


def test_the_default_network_labels_pixels() -> None:
    """Of any size, in stacks as in the loop; it learns that bright pixels have label 1."""
    assert tuple(unet((5, 3), 4)(torch.zeros(2, 5, 3)).shape) == (2, 4, 5, 3)
    pictures = np.random.default_rng(0).normal(size=(60, 1, 6, 6)).astype(np.float32)
    labels, owner = (pictures[:, 0] > 0).astype(int), np.repeat(["a", "b"], 30)
    data = plures.from_arrays(pictures, labels, owner, task="segmentation")
    training = Training(rounds=8, batch_size=8, optimizer=Adam(0.02))
    runs = [
        Run(data, plures.default_model(data), METHODS["fedper"](), training, execution=Execution(backend, 2, False))
        for backend in ("loop", "vmap")
    ]
    for run in runs:
        run.step()
    torch.testing.assert_close(*(run.predict("a")[0] for run in runs), rtol=0, atol=1e-3)
    for _ in runs[0].rounds():
        pass
    assert plures.score(runs[0], "test").values["accuracy"].min() > 0.8
    narrow = find_network("unet", data, {"width": 4})
    assert tuple(narrow()(data.inputs[:3]).shape) == (3, 2, 6, 6)  # type: ignore[operator]
    small = plures.from_arrays(pictures, labels[:, :2, :2], owner, task="segmentation")
    with pytest.raises(PluresError, match="give pictures of the size of their labels, or a model"):
        plures.default_model(small)


def test_the_default_network_of_ratings_learns_users_and_items() -> None:
    users, items = np.repeat(np.arange(3), 40), np.tile(np.arange(40), 3)
    stars = (2 + users + (items % 2)).astype(np.float32)
    options: dict[str, Any] = {"task": "ratings", "dtype": torch.int64, "copies": "allow"}
    data = plures.from_arrays(items[:, None], stars, users, **options)
    training = Training(rounds=40, batch_size=8, optimizer=plures.SGD(0.1))
    run = Run(data, plures.default_model(data), METHODS["fedper"](), training, execution=LOOP)
    for _ in run.rounds():
        pass
    assert plures.score(run, "test").values["rmse"].max() < 0.7, "all ratings together have a deviation of 0.95"
    many = plures.from_arrays(items[:, None] + 9710, stars, users, **options)
    with pytest.raises(PluresError, match=r"has item 9749, .* give matrix_factorization with items=9750"):
        plures.default_model(many)


def test_the_default_network_learns_to_count() -> None:
    """A personal model knows its author's step; one for both does not know it at the first position."""
    data = texts()
    training = Training(rounds=15, batch_size=8, optimizer=plures.SGD(0.5))
    found = {}
    for name in ("local", "fedavg"):
        run = Run(data, plures.default_model(data), METHODS[name](), training)
        for _ in run.rounds():
            pass
        found[name] = plures.score(run, "test").values
    assert found["local"]["accuracy"].tolist() == [1, 1]
    assert found["local"]["perplexity"].max() < 1.1
    assert found["fedavg"]["accuracy"].mean() < 0.95


@pytest.fixture(scope="module")
def published():
    from plures.serving import PersonalModel

    spec = RunSpec(data="texts", method="fedper", model="char_transformer", model_options=SMALL["char_transformer"])
    run = spec.run(texts(), LOOP)
    run.step()
    return PersonalModel.of(run, "b", spec), texts().inputs[:4]


def test_predictions_have_a_line_for_every_position(published) -> None:
    model, rows = published
    outputs, decided = model.predict(rows)
    told = list(csv.DictReader(io.StringIO(predictions(outputs, decided, model.federation.task))))
    assert [(line["example"], line["position"]) for line in told[:6]] == [
        *(("0", str(p)) for p in range(5)),
        ("1", "0"),
    ]
    assert len(told) == 4 * LENGTH
    for line in told:
        place = int(line["example"]), int(line["position"])
        assert line["token"] == str(int(decided[place]))
        chances = [float(line[str(token)]) for token in range(TOKENS)]
        np.testing.assert_allclose(chances, outputs[place].softmax(-1).numpy(), atol=1e-5)


def test_pixels_have_two_positions_and_names() -> None:
    task = Segmentation(labels=("sky", "road"), size=(1, 2))
    outputs = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
    told = predictions(outputs, task.decide(outputs), task).splitlines()
    assert told[0] == "example,position 1,position 2,label,sky,road"
    assert told[1:] == ["0,0,0,road,0.268941,0.731059", "0,0,1,sky,0.731059,0.268941"]
    assert task.answer(task.decide(outputs)[0]) == [["road", "sky"]]


def test_the_endpoint_answers_with_a_label_for_every_position(published) -> None:
    pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    from plures.serving.serve import app

    model, rows = published
    outputs, decided = model.predict(rows)
    answer = testclient.TestClient(app(model), base_url="http://127.0.0.1").post(
        "/predict", json={"rows": rows.tolist()}
    )
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["decisions"] == [[str(int(token)) for token in row] for row in decided]
    np.testing.assert_allclose(told["probabilities"], outputs.softmax(-1).numpy(), atol=1e-6)


def test_onnx_predicts_every_position(published, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from plures.serving import export

    model, rows = published
    outputs, decided = model.predict(rows)
    exported = export(model, tmp_path, rows)
    assert exported[-1].changed == 0
    found = runtime.InferenceSession(tmp_path / "model.onnx").run(None, {"inputs": rows[:3].numpy()})
    np.testing.assert_allclose(found[0], outputs[:3].numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1], outputs[:3].softmax(-1).numpy(), atol=1e-5)
    assert np.array_equal(found[2], decided[:3].numpy())


def test_what_onnx_runtime_lacks_is_said_in_a_sentence(tmp_path: Path) -> None:
    """It has no error function of double precision, which the transformer's GELU needs."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from plures.serving import PersonalModel, export

    spec = RunSpec(data="texts", method="local", model="char_transformer", model_options=SMALL["char_transformer"])
    run = spec.run(texts(), Execution("loop", 1, False, "float64"))
    with pytest.raises(PluresError, match=r"ONNX Runtime cannot run this model.*train with precision"):
        export(PersonalModel.of(run, "b", spec), tmp_path, texts().inputs[:4])


@pytest.mark.extra("hf")
def test_a_small_gpt_learns_by_lora() -> None:
    """Of a GPT as Hugging Face gives it, only the pairs of matrices and the head move, and the perplexity falls."""
    transformers = importlib.import_module("transformers")
    data = texts()

    def gpt() -> nn.Module:
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.GPTNeoXConfig(vocab_size=TOKENS, max_position_embeddings=LENGTH, **sizes)
        return plures.with_roles(transformers.GPTNeoXForCausalLM(config), head="lm_head")

    training = Training(rounds=6, batch_size=8, optimizer=plures.SGD(0.5))
    run = Run(data, gpt, lora(rank=2), training, execution=LOOP)
    before, first = run.deployed([0])["model"], plures.score(run, "train").values["perplexity"]
    for _ in run.rounds():
        pass
    after = run.deployed([0])["model"]
    moved = {path for path in before if not torch.equal(before[path], after[path])}
    assert moved
    assert all(path.endswith((".lora_a.weight", ".lora_b.weight", "lm_head.weight")) for path in moved)
    assert (plures.score(run, "train").values["perplexity"] < first).all()


@pytest.mark.usefixtures("traced")
@pytest.mark.skipif(uncompilable() is not None, reason=uncompilable() or "")
@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("classification", "multilabel", "regression")])
def test_compiled_steps_equal_eager_ones(kind: str) -> None:
    data = kinds.federation(kind)
    shape = data.task.shape

    def model() -> nn.Module:
        return kinds.network(shape, True)

    states = []
    for compiling in (False, True):
        execution = Execution("vmap", 3, compiling, "float64")
        run = Run(data, model, METHODS["fedavg"](), Training(rounds=1, batch_size=8, steps=2), execution=execution)
        run.step()
        assert run.execution.compile is compiling
        states.append(run.deployed([0, 1, 2])["model"])
    for path, eager in states[0].items():
        torch.testing.assert_close(states[1][path], eager, rtol=0, atol=1e-12)
