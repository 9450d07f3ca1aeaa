"""A user-defined task in files: named by ``module:name``, run only with consent, its code part of the fingerprint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import plures
from newcomers import clients, linear
from plures import Classification, Code, PluresError, RunFolder, RunSpec
from plures.evaluate import finish, fit
from plures.federation import from_arrays
from plures.methods import fedavg
from plures.run import Execution, Run, Training
from plures.run.facts import facts
from plures.run.fingerprint import difference, of_run
from plures.serving.export import export
from plures.serving.personal import PersonalModel, opened

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
LOOP = Execution("loop", 1, False, "float32")
COUNTS = """
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
import plures
from plures.metrics import Metric

def miss(predictions):
    return (predictions.outputs.exp() - predictions.targets).abs().squeeze(-1)

@dataclass(frozen=True)
class Counts(plures.Task):
    kind = "counts"
    outputs = 1
    measures = (Metric("miss", "mean absolute error", miss),)
    floor: float = 0.0

    def read(self, values, where):
        return self, torch.from_numpy(values.astype(np.float32)).view(-1, 1)

    def losses(self, outputs, targets):
        return (outputs.exp() - targets * outputs).squeeze(-1)

def poisson():
    return Counts()

counts = Counts(floor=0.5)
heavy = plures.Classification(class_weights={"disease": 3})

def falls(task=None):
    x = np.linspace(-1, 1, 80, dtype=np.float32)[:, None]
    rng = np.random.default_rng(0)
    found, ward = rng.poisson(np.exp(1 + x[:, 0])), np.repeat(["east", "west"], 40)
    return plures.from_arrays(x, found, ward, task=task or Counts(), name="falls")

def net():
    return nn.Linear(1, 1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with the module ``tally``."""
    (tmp_path / "tally.py").write_text(COUNTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("tally", None)


def code(*names: str) -> Code:
    return Code.of("tally:falls", "tally:net", *names)


def kept(home: Path, task: str | None, consent: Code) -> tuple[RunFolder, RunSpec, Run]:
    spec = RunSpec(data="tally:falls", model="tally:net", method="ditto", task=task, rounds=2)
    run = spec.run(spec.federation(consent), LOOP, consent)
    folder = RunFolder(home / "run", consent)
    folder.write(run, spec, finish(fit(run, "test"), 0))
    return folder, spec, run


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("tally:counts", "tally:counts"),
        ("tally:poisson", "tally:poisson"),
        ("tally:Counts", "tally:Counts"),
        (None, "tally:Counts"),
    ],
)
def test_a_model_of_ones_own_task_is_published_and_read_with_consent(own: Path, task: str | None, name: str):
    """Whether it was given as an object, a function or a class, or came with the data."""
    folder, spec, run = kept(own, task, code(name))
    rows = torch.tensor([[-0.5], [0.75]])
    wanted, decided = run.predict("west", rows)
    assert decided is None
    model = opened(folder.path, "west", code(name))
    PersonalModel.of(run, "west", spec, code=code()).save(own / "of a run")  # who has the object needs no consent to it
    model.save(own / "published")
    for place in ("published", "of a run"):
        again = PersonalModel.load(own / place, code(name))
        assert torch.equal(again.predict(rows)[0], wanted)
        assert (again.card.kind, again.federation.task.kind) == (name, "counts")
        assert getattr(again.federation.task, "floor", None) == (0.5 if name == "tally:counts" else 0.0)
        assert f"predicts: a number (task {name})" in again.card.text()
        with pytest.raises(PluresError, match=rf"task '{name}' is code, not a task of the catalogue, .* your consent"):
            PersonalModel.load(own / place, code())
    assert torch.equal(folder.predict("west", rows)[0], wanted)
    with pytest.raises(PluresError, match=rf"task '{name}' is code, .*code=plures.Code.of\(\"{name}\"\)"):
        RunFolder(folder.path, code()).predict("west", rows)
    exported = export(again, own / "graphs", rows, to=("folder",), code=code(name))
    assert [one.format for one in exported] == ["PyTorch", "folder"]


def test_class_weights_go_round_the_disk(own: Path):
    """A named task of a known kind is plain data: its model is read without consent."""
    for task in ("tally:heavy", None):
        spec = RunSpec(data="heart", method="fedper", task=task, rounds=1)
        run = spec.run(spec.federation(Code.of("tally:heavy")), LOOP, Code.of("tally:heavy"))
        PersonalModel.of(run, "va", spec).save(own / "published")
        again = PersonalModel.load(own / "published")
        assert again.federation.task == run.federation.task
        assert again.federation.task.class_weights == ((1.0, 3.0) if task else None)
        assert again.card.kind == "classification"


def test_a_run_of_a_task_whose_code_changed_predicts_no_more(own: Path):
    folder, _, _ = kept(own, "tally:counts", code("tally:counts"))
    rows = torch.zeros(1, 1)
    assert folder.predict("east", rows)[0].isfinite().all()
    sys.modules["tally"].Counts.expected = lambda self, outputs: outputs.exp()
    with pytest.raises(PluresError, match=r"this is not the task of the run in .*: the task's class.expected is"):
        folder.predict("east", rows)


@dataclass(frozen=True)
class Doubled(Classification):
    """A user-defined task that a file can name, with an option that a file cannot store."""

    scale: Tensor | None = None

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().losses(outputs, targets)


def test_a_task_that_no_file_can_name_is_refused_where_a_file_is_needed(tmp_path: Path):
    """A run of it ends and is stored; its models are read if the task is given again."""

    @dataclass(frozen=True)
    class Local(Classification):
        pass

    seen, _ = clients()
    spec = RunSpec(data="seven", model="linear", rounds=1)
    for task, message in (
        (Local(), 'the task Local is defined in a notebook, a script or a function, .* give task="module:Local"'),
        (
            Doubled(scale=torch.ones(2)),
            "task Doubled: scale: a Tensor cannot be written to a file: use numbers",
        ),
    ):
        run = Run(seen.with_task(task), linear, fedavg(), Training(rounds=1))
        folder = RunFolder(tmp_path / type(task).__name__)
        folder.write(run, None, finish(fit(run, "fedavg"), 0))
        with pytest.raises(PluresError, match=message):
            PersonalModel.of(run, "c", spec)
        rows = seen.inputs[:3]
        with pytest.raises(PluresError, match=f"{message}.*RunFolder.predict takes it as task="):
            folder.predict("c", rows, model=linear, method=fedavg())
        again = folder.predict("c", rows, model=linear, method=fedavg(), task=task)
        assert torch.equal(again[0], run.predict("c", rows)[0])
        with pytest.raises(PluresError, match=r"this is not the task of the run in .*: the task's class is"):
            folder.predict("c", rows, model=linear, method=fedavg(), task=Classification())


# --- code of a task -----------------------------------------------------------------------------------------------


def made(text: str) -> type[plures.Task]:
    """The task of a module with this text, imported afresh."""
    module: dict[str, object] = {"__name__": "tally"}
    exec(compile(text, "tally.py", "exec", dont_inherit=True), module)
    found = module["Counts"]
    assert isinstance(found, type)
    return found


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("outputs.exp() - targets * outputs", "outputs.exp() - 2 * targets * outputs", "task's class.losses"),
        ("outputs.exp() - predictions", "outputs.exp() * 2 - predictions", "task's class.measures.*miss"),
        ("floor: float = 0.0", "floor: float = 1.0", "task's"),
    ],
    ids=["loss", "metric", "option"],
)
def test_a_changed_task_does_not_go_on_from_an_old_checkpoint(tmp_path: Path, old: str, new: str, words: str):
    x = np.linspace(-1, 1, 80, dtype=np.float32)[:, None]

    def begun(text: str) -> Run:
        data = from_arrays(x, np.arange(80) // 20, np.repeat(["east", "west"], 40), task=made(text)())
        return Run(data, lambda: nn.Linear(1, 1), fedavg(), Training(rounds=3, steps=1), execution=LOOP)

    def stop(point):
        if point.round == 2:
            raise KeyError("killed")

    assert old in COUNTS
    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyError, match="killed"):
        fit(begun(COUNTS), "fedavg", checkpoint=file, checkpoint_every=1, progress=stop)
    with pytest.raises(PluresError, match=f"is a checkpoint of another run: .*{words}.*; choose another"):
        fit(begun(COUNTS.replace(old, new)), "fedavg", checkpoint=file)
    assert fit(begun(COUNTS), "fedavg", checkpoint=file).run.round == 3


def test_code_of_a_task_is_told_alike_after_another_import():
    assert facts(made(COUNTS), "task") == facts(made(COUNTS), "task")


def test_the_first_metric_of_a_task_is_part_of_the_question():
    seen, _ = clients()
    accuracy, loss = seen.task.metrics[:2]

    def asked(*metrics: plures.Metric) -> object:
        task = Classification(seen.task.classes, metrics=metrics)
        return of_run(Run(seen.with_task(task), linear, fedavg(), Training(rounds=1)), "fedavg")

    def wrong(predictions):
        return 1 - (predictions.outputs.argmax(-1) == predictions.targets).float()

    def other(predictions):
        return 2 - (predictions.outputs.argmax(-1) == predictions.targets).float()

    usual = asked(accuracy, loss)
    assert difference(usual, asked(accuracy)) is None
    assert difference(usual, asked(loss, accuracy)) == "metric is loss here and nothing there"
    one, two = (asked(plures.Metric("wrong", "wrong", metric)) for metric in (wrong, other))
    assert "own metric" in str(difference(one, two))
