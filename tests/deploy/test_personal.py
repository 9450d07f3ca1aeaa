"""A personal model is the client's whole predictor: the same bits from the disk, and nothing when it is damaged."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from plures.cli import app
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, finish, fit, score
from plures.federation import Federation, from_arrays
from plures.method import Predict
from plures.run import Execution, Run, onboard
from plures.serving.card import Card
from plures.serving.describe import digest, threshold
from plures.serving.personal import PersonalModel, opened
from plures.tables.heart import heart_schema, heart_tables
from plures.tasks import Classification, Regression

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
LOOP = Execution("loop", 1, False, "float32")
METHODS = (
    "fedavg",
    "fedavg_ft",
    "ditto",
    "ditto+threshold",
    "fedrep+threshold+temperature",
    "knnper",
    "knnper+temperature",
    "apfl",
    "apfl+prior_shift",
    "fedem",
    "fedrod",
    "lora",
    "mapper",
    "hierarchical_bayes",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of raw examples: ``tabular`` and ``pictures`` with classes, ``numbers`` to predict."""
    home, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number, (client, size) in enumerate({"a": 60, "b": 45, "c": 50}.items()):
        x = 50 + 20 * generator.normal(size=(size, 3)).astype(np.float32)
        pictures = generator.normal(size=(size, 1, 8, 8)).astype(np.float32)
        cases = {
            "tabular": (x, (x[:, 0] > 45 + 5 * number).astype(np.int64)),
            "numbers": (x, (x[:, :2] @ [[1, 0], [0.5, -2]] / 20 + number).astype(np.float32)),
            "pictures": (pictures, (pictures[:, 0, 0, 0] > 0).astype(np.int64) + (pictures[:, 0, 4, 4] > 1)),
        }
        for name, (inputs, targets) in cases.items():
            (home / name).mkdir(exist_ok=True)
            np.savez(home / name / f"{client}.npz", x=inputs, y=targets)
    return home


def kept(home: Path, spec: RunSpec, execution: Execution = LOOP) -> RunFolder:
    """A finished run on disk."""
    federation = spec.federation()
    seen = federation.hold_out(spec.unseen)[0] if spec.unseen else federation
    run = spec.run(seen, execution)
    folder = RunFolder(home / "run")
    folder.write(run, spec, finish(fit(run, "test"), spec.seed))
    return folder


def raw(federation: Federation, client: str, split: str = "test") -> torch.Tensor:
    """A client's examples before scaling."""
    found = federation.inputs[federation.splits[split][federation.index(client)]]
    if federation.scaling is None:
        return found
    mean, scale = (t.to(found) for t in federation.scaling)
    return found * scale + mean


def same(folder: RunFolder, home: Path, client: str, inputs: torch.Tensor) -> PersonalModel:
    """The client's model after a round trip over the disk, once it has given the bits of the run's folder."""
    opened(folder.path, client).save(home / "published")
    model = PersonalModel.load(home / "published")
    outputs, decided = model.predict(inputs)
    wanted, classes = folder.predict(client, inputs)
    assert torch.equal(outputs, wanted)
    assert (decided is None and classes is None) or torch.equal(decided, classes)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_gives_the_bits_of_the_run(tmp_path, method):
    folder = kept(tmp_path, RunSpec(data="heart", method=method, rounds=2))
    federation = folder.spec().federation()
    for client in federation.clients:
        model = same(folder, tmp_path, client, raw(federation, client))
        stored, _ = folder.predict(client)
        scaled = federation.inputs[federation.splits["test"][federation.index(client)]]
        assert torch.equal(model.outputs(scaled), stored)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tabular", {"method": "ditto+threshold", "data_options": {"standardize": True}}),
        ("numbers", {"method": "fedem", "data_options": {"standardize": True}}),
        ("numbers", {"method": "knnper"}),
        ("pictures", {"method": "fedbn", "model": "resnet", "model_options": {"norm": "batch", "width": 4}}),
    ],
    ids=["scaled", "regression", "neighbours", "batch norm"],
)
def test_gives_the_bits_of_the_run_for_all_kinds_of_data(tmp_path, data, name, settings):
    folder = kept(tmp_path, RunSpec(data=str(data / name), rounds=2, **settings))
    federation = folder.spec().federation()
    for client in federation.clients:
        model = same(folder, tmp_path, client, raw(federation, client))
        assert model.card.spec.data == federation.name  # no path of the machine that trained it
        assert str(data) not in model.card.model_dump_json()


def words() -> tuple[Run, RunSpec]:
    """A recurrent network on whole numbers."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 5, size=(120, 6))
    federation = from_arrays(tokens, tokens[:, -1] % 3, np.repeat(["a", "b"], 60), name="words", dtype=torch.int64)
    options = {"vocabulary": 5, "hidden": 8}
    spec = RunSpec(data="words", method="fedrep", model="char_lstm", model_options=options, rounds=2)
    run = spec.run(federation, LOOP)
    for _ in run.rounds():
        pass
    return run, spec


def test_whole_numbers_and_recurrent_layers(tmp_path):
    run, spec = words()
    PersonalModel.of(run, "b", spec).save(tmp_path)
    model, inputs = PersonalModel.load(tmp_path), run.federation.inputs[run.federation.splits["test"][1]]
    assert model.card.dtype == "int64"
    assert torch.equal(model.predict(inputs)[0], run.engine.forward(run.deployed([1]), inputs[None])[0])
    assert torch.equal(model.predict(inputs.float())[0], model.predict(inputs)[0])
    with pytest.raises(PluresError, match="reads integers"):
        model.predict(inputs + 0.5)
    with pytest.raises(PluresError, match="cannot read one of the numbers"):
        model.predict(inputs + 99)


@pytest.mark.parametrize("method", ["ditto", "fedrep+threshold+temperature", "fedem", "knnper"])
def test_of_a_run_that_maps_its_clients_within_rounding(tmp_path, method):
    folder = kept(tmp_path, RunSpec(data="heart", method=method, rounds=2), Execution("vmap", 4, False, "float32"))
    inputs = raw(folder.spec().federation(), "va")
    outputs, decided = opened(folder.path, "va").predict(inputs)
    wanted, classes = folder.predict("va", inputs)
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=2e-6)
    assert torch.equal(decided, classes)


@pytest.mark.parametrize("method", ["ditto+threshold", "knnper"])
def test_a_newcomer_has_a_model_too(tmp_path, method):
    folder = kept(tmp_path, RunSpec(data="heart", method=method, rounds=2, unseen=["va"]))
    federation = folder.spec().federation()
    folder.add(onboard(folder.run(), federation.subset(["va"])))
    model = same(folder, tmp_path, "va", raw(federation, "va"))
    assert model.card.rows["test"] == int(federation.splits["test"].sizes[federation.index("va")])


@cache
def trained(method: str = "ditto+threshold", rounds: int = 3) -> tuple[Run, RunSpec]:
    spec = RunSpec(data="heart", method=method, rounds=rounds)
    run = spec.run(spec.federation(), LOOP)
    for _ in run.rounds():
        pass
    return run, spec


def published(client: str = "cleveland", method: str = "ditto+threshold") -> PersonalModel:
    run, spec = trained(method)
    return PersonalModel.of(run, client, spec)


def test_keeps_what_the_predictor_reads_and_no_more():
    """Ditto predicts with the personal model, so the shared one is left out. APFL mixes both and keeps both."""
    assert set(published().leaves) == {"personal", "threshold"}
    assert set(published(method="apfl+threshold").leaves) == {"alpha", "model", "personal", "threshold"}
    assert set(published(method="ditto").leaves) == {"model"}


def test_the_card_tells_what_is_true(tmp_path):
    run, _ = trained()
    model, federation = published(), run.federation
    card = model.card
    place = federation.index("cleveland")
    measured = score(run, "validation")
    for name, values in measured.values.items():
        assert card.metrics[name] == pytest.approx(float(values[place]), abs=1e-6), name
    assert card.rows == {split: int(federation.splits[split].sizes[place]) for split in ("train", "validation", "test")}
    own = federation.targets[federation.splits["train"][place]]
    assert card.labels == {"healthy": int((own == 0).sum()), "disease": int((own == 1).sum())}
    assert (card.client, card.federation, card.round) == ("cleveland", "heart", 3)
    assert card.version == f"3-{card.digest[:12]}"
    assert card.fitted_to == ("validation",)
    assert [(part.name, part.share, part.numbers, part.travels) for part in card.parts] == [
        ("model", "shared", 2242, 2242),
        ("personal", "personal", 2242, 0),
        ("threshold", "personal", 1, 0),
    ]
    text = card.text()
    assert "# The model of cleveland in heart" in text
    assert f"- accuracy: {card.metrics['accuracy']:.4f}" in text
    assert "fitted to these same examples" in text
    assert f"decides for disease where its probability is above {card.threshold:.4f}" in text
    model.save(tmp_path)
    assert json.loads((tmp_path / "card.json").read_text())["version"] == card.version
    assert (tmp_path / "card.md").read_text() == card.text()


def test_the_card_says_that_examples_are_in_the_model():
    carried = published(method="knnper").card
    assert carried.carries == {"train": carried.rows["train"]}
    assert "so its file contains them" in carried.text()
    assert "so its file contains" not in published().card.text()


@pytest.mark.parametrize("value", [0.7, -3.25, 0.0])
def test_the_threshold_is_a_probability(value):
    """The rule decides for the positive class above log-odds t, so above probability 1 / (1 + exp(-t))."""
    predict = trained()[0].bound.method.predictor
    found = threshold(predict, {"threshold": {"threshold": torch.tensor(value)}}, Classification(("n", "y")))
    assert found == pytest.approx(1 / (1 + math.exp(-value)), abs=1e-6)


def test_the_threshold_agrees_with_the_decisions():
    model = published()
    chances = model.probabilities(torch.tensor([[0.0, 0.0]]))
    assert chances.tolist() == [[0.5, 0.5]]
    odds = math.log(model.card.threshold / (1 - model.card.threshold))
    outputs = torch.tensor([[0.0, odds - 1e-4], [0.0, odds + 1e-4]])
    assert model.decided(outputs).tolist() == [0, 1]
    assert odds == pytest.approx(float(model.leaves["threshold"]["threshold"]), abs=1e-6)


def test_rules_that_are_no_threshold():
    two, three = Classification(("n", "y")), Classification(("a", "b", "c"))
    between = Predict(decide=lambda x, o: ((o[..., 1] - o[..., 0]).abs() < 1).long())
    assert threshold(Predict(), {}, two) == 0.5
    assert threshold(Predict(), {}, three) is None
    assert threshold(Predict(), {}, Regression(2)) is None
    assert threshold(between, {}, two) is None
    assert threshold(Predict(decide=lambda x, o: o[..., 0].long() * 0 + 1), {}, two) == 0.0
    assert threshold(Predict(decide=lambda x, o: o[..., 0].long() * 0), {}, two) == 1.0


def test_an_infinite_threshold_survives_the_disk(tmp_path):
    """A client whose best rule is always the same decision keeps an infinite threshold."""
    model = published()
    tensors = model.tensors() | {"threshold/threshold": torch.tensor(-torch.inf)}
    fitted = {"threshold": {"threshold": -math.inf}}
    card = model.card.model_copy(update={"calibration": fitted, "threshold": 0.0, "digest": digest(tensors)})
    odd = PersonalModel(card, model.federation, model.network, model.predictor, {}, {}).holding(tensors)
    odd.save(tmp_path)
    assert "Infinity" not in (tmp_path / "card.json").read_text().replace('"-Infinity"', "")
    again = PersonalModel.load(tmp_path)
    assert again.card == card
    assert again.predict(torch.zeros(3, 32))[1].tolist() == [1, 1, 1]


def test_rows_of_a_table_give_the_bits_of_the_training(tmp_path):
    """With a schema, raw rows go in as the site has them and become exactly the inputs of training."""
    tables = heart_tables()
    federation = heart_schema().federation("hospitals", tables)
    spec = RunSpec(data="hospitals", method="fedrep+threshold", rounds=2)
    run = spec.run(federation, LOOP)
    for _ in run.rounds():
        pass
    sheet = {"rows": 200, "span": ["1988-01-01", "1988-12-31"], "missing": {"age": 0.0, "chol": 0.245}}
    PersonalModel.of(run, "va", spec, schema=heart_schema(), sheet=sheet).save(tmp_path)
    model = PersonalModel.load(tmp_path)
    first = sum(len(tables[name]["age"]) for name in sorted(tables) if name < "va")
    rows = federation.splits["test"][federation.index("va")]
    table = {column: [cells[i] for i in (rows - first).tolist()] for column, cells in tables["va"].items()}
    outputs, decided = model.predict({column: cells for column, cells in table.items() if column != "diagnosis"})
    assert torch.equal(outputs, model.outputs(federation.inputs[rows]))
    assert torch.equal(decided, model.decided(outputs))
    torch.testing.assert_close(model.predict(model.encode(table, scaled=False))[0], outputs, rtol=0, atol=1e-5)
    assert model.card.sheet == sheet
    assert "- span: 1988-01-01 to 1988-12-31\n- missing: age 0, chol 0.245" in model.card.text()
    with pytest.raises(PluresError, match=r"'sex'.*'femal'.*did you mean 'female'"):
        model.predict(table | {"sex": ["femal"] * len(rows)})


def test_loading_trains_nothing_and_draws_nothing(tmp_path, monkeypatch):
    published(method="fedavg_ft").save(tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("an engine was built")

    monkeypatch.setattr("plures.run.engine.Engine.__init__", never)
    state = torch.get_rng_state()
    PersonalModel.load(tmp_path).predict(torch.zeros(1, 32))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failed_write_leaves_the_model_before(tmp_path, monkeypatch):
    published().save(tmp_path)
    before = PersonalModel.load(tmp_path).card

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plures.files.save_file", full)
    with pytest.raises(PluresError, match=r"model\.safetensors.*No space left"):
        published("va").save(tmp_path)
    assert PersonalModel.load(tmp_path).card == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["card.json", "card.md", "model.safetensors"]


def test_damage_is_named(tmp_path):
    def fresh() -> Path:
        published().save(tmp_path)
        return tmp_path / "model.safetensors"

    content = bytearray(fresh().read_bytes())
    content[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(PluresError, match=r"model\.safetensors is damaged: its values are not those"):
        PersonalModel.load(tmp_path)
    file = fresh()
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(PluresError, match=r"model\.safetensors is not a file that plures wrote, or it is damaged"):
        PersonalModel.load(tmp_path)
    save_file({"x": torch.zeros(1)}, fresh(), {"plures": json.dumps({"clients": ["a"]})})
    with pytest.raises(PluresError, match="another kind of plures file, not a personal model"):
        PersonalModel.load(tmp_path)
    with pytest.raises(PluresError, match=r"nowhere.*is not a finished run, nor a folder with a personal model"):
        opened(tmp_path / "nowhere")
    fresh()
    with pytest.raises(PluresError, match="the model of 'cleveland', not of 'va'"):
        opened(tmp_path, "va")


def changed(folder: Path, **fields: object) -> None:
    """A model's file with another card."""
    file = folder / "model.safetensors"
    card = json.loads(published().card.model_dump_json()) | fields
    save_file(load_file(file), file, {"plures": json.dumps({"card": card})})


def test_what_does_not_fit_is_named(tmp_path):
    published(method="ditto").save(tmp_path)
    changed(tmp_path, format=3, versions={"plures": "9.1"})
    with pytest.raises(PluresError, match=r"format 3.*reads format 2: install the plures that wrote it, 9\.1"):
        PersonalModel.load(tmp_path)
    published(method="ditto").save(tmp_path)
    wide = published(method="ditto").card
    spec = wide.spec.model_copy(update={"model": "mlp", "model_options": {"hidden": [7]}})
    changed(tmp_path, **json.loads(wide.model_copy(update={"spec": spec}).model_dump_json()))
    with pytest.raises(PluresError, match=r"'cleveland' does not fit the network.*body\.1\.bias has shape \(64,\)"):
        PersonalModel.load(tmp_path)
    changed(tmp_path, rows="many")
    with pytest.raises(PluresError, match="the card is damaged"):
        PersonalModel.load(tmp_path)


def test_inputs_that_cannot_be_right_are_refused():
    model = published()
    broken = torch.zeros(4, 32)
    broken[2, 5] = torch.nan
    for inputs, message in (
        (broken, r"'cleveland' hold a NaN or an infinite value \(row 3\)"),
        (torch.full((1, 32), 1e39, dtype=torch.float64), r"infinite value \(row 1\)"),
        (torch.zeros(2, 31), r"shape \(31,\), but 'heart' has \(32,\)"),
        (torch.zeros(0, 32), "no example to predict"),
    ):
        with pytest.raises(PluresError, match=message):
            model.predict(inputs)
    with pytest.raises(PluresError, match="column 'sex' is missing: the model reads age, sex, cp, "):
        model.predict({"age": [50]})


def test_diverged_models_say_so():
    model = published(method="ditto")
    broken = {name: t * torch.nan for name, t in model.tensors().items() if name.startswith("model/")}
    with pytest.raises(PluresError, match="model of client 'cleveland' diverged"):
        model.holding(model.tensors() | broken).predict(torch.zeros(1, 32))


def test_a_spec_of_another_network_is_refused():
    run, spec = trained()
    with pytest.raises(PluresError, match="does not fit the network"):
        PersonalModel.of(run, "va", spec.model_copy(update={"method": "ditto", "model": "logistic"}))


def test_the_command_line_predicts_from_a_model_folder(tmp_path):
    folder = kept(tmp_path, RunSpec(data="heart", method="ditto+threshold", rounds=2))
    opened(folder.path, "va").save(tmp_path / "m")
    inputs = raw(folder.spec().federation(), "va")
    np.savez(tmp_path / "rows.npz", x=inputs.numpy())

    def told(*words: str) -> str:
        done = CliRunner().invoke(app, ["predict", *words])
        assert done.exception is None, done.exception
        return done.stdout

    given = ("--inputs", str(tmp_path / "rows.npz"))
    assert told(str(tmp_path / "m"), *given) == told(str(folder.path), "--client", "va", *given)
    assert told(str(tmp_path / "m"), *given).splitlines()[0] == "class,healthy,disease"
    card = told(str(tmp_path / "m"), "--card")
    assert card.startswith("# The model of va in heart")
    assert isinstance(CliRunner().invoke(app, ["predict", str(tmp_path / "m")]).exception, PluresError)
    assert Card.model_validate_json((tmp_path / "m" / "card.json").read_text()).text().strip() == card.strip()
