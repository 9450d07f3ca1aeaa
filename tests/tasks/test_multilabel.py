"""Multi-label classification: one file in the room of tasks, and everything else finds it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import nn

import plures
from plures import Classification, MultiLabel, PluresError, Regression, from_table
from plures.cli import models
from plures.evaluate.predictions import said
from plures.federation import SPLITS, Federation, Split
from plures.method import Batch, Problem
from plures.method.curvature import fisher
from plures.methods import METHODS, fedavg, fedem, local
from plures.models import Network
from plures.report import html_report
from plures.serving import PersonalModel
from plures.tasks import from_dict, to_dict
from problems import at_rest, close, predictors, run

TASK = MultiLabel(("cough", "fever"))
OUTPUTS = torch.tensor([[0.3, -1.2], [2.0, 0.0], [-0.7, 0.9]], dtype=torch.float64)
TARGETS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


class Bias(nn.Module):
    """Outputs that do not depend on the inputs: one bias for each label."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), 2)


def prevalent(task: MultiLabel = TASK) -> Federation:
    """Client ``a`` has 4 examples, of which 3/4 and 1/4 have a label; ``b`` has 2, of which 1/2 and 1/2 have one."""
    targets = [[1, 0], [1, 0], [1, 1], [0, 0], [1, 0], [0, 1]]
    return Federation(
        name="prevalences",
        task=task,
        inputs=torch.zeros(6, 1, dtype=torch.float64),
        targets=torch.tensor(targets, dtype=torch.float64),
        clients=("a", "b"),
        splits=dict.fromkeys(SPLITS, Split.of([torch.arange(4), torch.arange(4, 6)])),
    )


def symptoms(task: MultiLabel = TASK) -> Federation:
    """Three clients with 60 rows each."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(180, 3)).astype(np.float32)
    there = inputs @ np.array([[1, 0], [0, 1], [1, -1]]) + draw.normal(size=(180, 2)) > 0
    groups = {"group": ["x", "y", "x"], "reliability": [0.9, 0.8, 1.0], "completeness": [1.0, 0.9, 0.8]}
    metadata = {name: {key: values[i] for key, values in groups.items()} for i, name in enumerate("abc")}
    return plures.from_arrays(inputs, there, np.repeat(["a", "b", "c"], 60), task=task, metadata=metadata)


# --- the loss ---------------------------------------------------------------------------------------------------


def test_the_loss_is_the_sigmoid_cross_entropy_averaged_over_labels():
    expected = [
        (-math.log(sigmoid(0.3)) - math.log(1 - sigmoid(-1.2))) / 2,
        (-math.log(1 - sigmoid(2.0)) - math.log(0.5)) / 2,
        (-math.log(sigmoid(-0.7)) - math.log(sigmoid(0.9))) / 2,
    ]
    assert TASK.losses(OUTPUTS, TARGETS).tolist() == close(expected)
    every = [oracle.log_loss(t, o.sigmoid(), labels=[0, 1]) for t, o in zip(TARGETS.T, OUTPUTS.T, strict=True)]
    assert float(TASK.mean_loss(OUTPUTS, TARGETS)) == close(np.mean(every))


def test_a_positive_weight_multiplies_the_loss_of_an_example_that_has_the_label():
    weighted = MultiLabel(("cough", "fever"), positive_weights={"fever": 3})
    assert weighted.positive_weights == (1, 3)
    expected = [
        (-math.log(sigmoid(0.3)) - math.log(1 - sigmoid(-1.2))) / 2,
        (-math.log(1 - sigmoid(2.0)) - 3 * math.log(0.5)) / 2,
        (-math.log(sigmoid(-0.7)) - 3 * math.log(sigmoid(0.9))) / 2,
    ]
    assert weighted.losses(OUTPUTS, TARGETS).tolist() == close(expected)


def test_a_loss_of_ones_own_replaces_it():
    task = MultiLabel(("cough", "fever"), loss=lambda outputs, targets: (outputs - targets).abs().sum(-1))
    assert task.losses(OUTPUTS, TARGETS).tolist() == close([0.7 + 1.2, 2.0 + 1.0, 1.7 + 0.1])
    assert not task.curved
    batch = Batch(torch.zeros(1, 2), TARGETS[:1], None, Problem(Network(nn.Linear(2, 2)), task), train=False)
    with pytest.raises(PluresError, match="multilabel: the curvature of this loss is not known"):
        fisher(batch.problem.network.leaves(), batch)


def test_the_gradient_is_the_probability_minus_the_truth_over_the_number_of_labels():
    outputs = OUTPUTS.clone().requires_grad_()
    TASK.losses(outputs, TARGETS).sum().backward()
    assert torch.allclose(outputs.grad, (OUTPUTS.sigmoid() - TARGETS) / 2, atol=1e-12)


@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_the_curvature_is_the_hessian_expected_over_the_labels_that_are_predicted(weights):
    task = MultiLabel(("cough", "fever"), positive_weights=weights)
    one = OUTPUTS[0]
    cases = [torch.tensor([a, b], dtype=torch.float64) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for case in cases:
        chance = torch.where(case > 0, one.sigmoid(), 1 - one.sigmoid()).prod()
        hessian = torch.autograd.functional.hessian(lambda f, y=case: task.losses(f[None], y[None])[0], one)
        expected += chance * hessian
    values, found = task.curvature(one)
    assert torch.equal(values, one)
    assert torch.allclose(torch.diag(found), expected, atol=1e-12)


# --- optima and rounds ------------------------------------------------------------------------------------------


def test_alone_biases_converge_to_the_log_odds_of_each_client_s_prevalences():
    done = run(local(), 1, federation=prevalent(), model=Bias, lr=4.0, steps=200)
    expected = [[log_odds(3 / 4), log_odds(1 / 4)], [0.0, 0.0]]
    assert predictors(done)["bias"].tolist() == [close(row) for row in expected]


def test_positive_weights_add_their_logarithm_to_the_log_odds():
    task = MultiLabel(("cough", "fever"), positive_weights=(2, 5))
    done = run(local(), 1, federation=prevalent(task), model=Bias, lr=2.0, steps=400)
    expected = [[log_odds(3 / 4) + math.log(2), log_odds(1 / 4) + math.log(5)], [math.log(2), math.log(5)]]
    assert predictors(done)["bias"].tolist() == [close(row) for row in expected]


def test_federated_averaging_of_single_steps_converges_to_the_log_odds_of_all_examples():
    done = at_rest(fedavg(), 300, federation=prevalent(), model=Bias, lr=4.0, steps=1)
    assert predictors(done)["bias"][0].tolist() == close([log_odds(4 / 6), log_odds(2 / 6)])


def test_two_rounds_of_federated_averaging_by_hand():
    """A step of ``lr = 1`` from ``w`` moves it by ``(prevalence - sigmoid(w)) / 2``; two steps, then 4/6 and 2/6."""

    def trained(w: float, prevalence: float) -> float:
        for _ in range(2):
            w += (prevalence - sigmoid(w)) / 2
        return w

    expected = []
    for prevalences in ((3 / 4, 1 / 2), (1 / 4, 1 / 2)):
        w = 0.0
        for _ in range(2):
            w = (4 * trained(w, prevalences[0]) + 2 * trained(w, prevalences[1])) / 6
        expected.append(w)
    done = run(fedavg(), 2, federation=prevalent(), model=Bias, lr=1.0, steps=2)
    assert predictors(done)["bias"].tolist() == [close(expected), close(expected)]


# --- what outputs mean -------------------------------------------------------------------------------------------


def test_probabilities_are_of_each_label_and_decisions_fall_at_a_half():
    assert TASK.probabilities(OUTPUTS)[0].tolist() == close([sigmoid(0.3), sigmoid(-1.2)])
    assert TASK.decide(OUTPUTS).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert [TASK.says(one) for one in torch.tensor([[1, 0], [1, 1], [0, 0]])] == ["cough", "cough, fever", "none"]


def test_predictors_mix_as_the_mean_of_their_probabilities():
    weights = torch.tensor([0.2, 0.8], dtype=torch.float64)
    mixed = TASK.mix([OUTPUTS, -2 * OUTPUTS], weights)
    assert torch.allclose(mixed.sigmoid(), 0.2 * OUTPUTS.sigmoid() + 0.8 * (-2 * OUTPUTS).sigmoid(), atol=1e-12)
    assert torch.allclose(TASK.scores(TASK.expected(OUTPUTS)), OUTPUTS, atol=1e-12)


def test_tiny_probabilities_survive_a_mixture():
    """``log(0.5 e^-1000 + 0.5 e^-1001)``, and the same mirrored: neither is infinite."""
    outputs = [torch.tensor([[-1000.0, 1000.0]], dtype=torch.float64), torch.tensor([[-1001.0, 1001.0]]).double()]
    expected = -1000 + math.log(0.5 + 0.5 * math.exp(-1))
    assert TASK.mix(outputs, torch.tensor([0.5, 0.5], dtype=torch.float64))[0].tolist() == close([expected, -expected])


def test_fedem_predicts_with_the_mean_of_its_models_probabilities():
    done = run(fedem(), 2, federation=prevalent(), model=Bias, steps=1)
    found = plures.predictions(done, "a", "test").probabilities[0]
    state = done.states([0])
    components = next(leaves["bias"][0] for leaves in state.values() if leaves and "bias" in leaves)
    share = state["pi"]["pi"][0]
    assert found.tolist() == close((share[:, None] * components.sigmoid()).sum(0).tolist())


def test_metrics_are_those_of_scikit_learn():
    draw = np.random.default_rng(3)
    targets = (draw.random((40, 2)) < [0.5, 0.2]).astype(float)
    outputs = np.round(draw.normal(size=(40, 2)) + targets, 1)  # with ties
    predicted = said(TASK, *(torch.from_numpy(part)[None] for part in (outputs, targets)), torch.ones(1, 40).double())
    decided = (outputs > 0).astype(float)
    expected = {
        "accuracy": 1 - oracle.hamming_loss(targets, decided),
        "loss": np.mean([oracle.log_loss(t, 1 / (1 + np.exp(-o))) for t, o in zip(targets.T, outputs.T, strict=True)]),
        "auroc": oracle.roc_auc_score(targets, outputs, average="macro"),
        "auprc": oracle.average_precision_score(targets, outputs, average="macro"),
        "f1": oracle.f1_score(targets, decided, average="macro"),
    }
    assert {metric.name: float(metric.stacked(predicted)[0]) for metric in TASK.metrics} == close(expected)


# --- what targets look like -------------------------------------------------------------------------------------


def test_targets_complete_the_task_and_are_counted_by_label():
    made, targets = MultiLabel().read(np.array([[1, 0, 1], [0, 0, 1]]), str)
    assert made.names == ("label 0", "label 1", "label 2")
    assert (targets.dtype, made.counts(targets).tolist()) == (torch.float32, [1, 0, 2])
    assert made.strata(torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 0, 1]])).tolist() == [1, 0, 1]
    assert made.miscounted([1, 0, 3], 2) == "2 examples and 3 of one label"
    assert made.miscounted([1, 0, 2], 2) is None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([[1, 0], [0, 2]]), r"row 1: a label that is neither 0 nor 1; correct it"),
        (np.array([[1.0, 0.0], [0.5, 0.0]]), "row 1: a label that is neither 0 nor 1; correct it"),
        (np.array([1, 0]), r"labels must be numbers 0 or 1, \(n, labels\), got int64 of shape \(2,\)"),
        (np.array([[1, 0, 1]]), "targets have 3 labels, but the task names 2"),
    ],
)
def test_what_is_no_label_is_refused_with_its_row(targets, message):
    with pytest.raises(PluresError, match=message):
        TASK.read(targets, lambda row: f"row {row}")


@pytest.mark.parametrize("weights", [{"cold": 2}, (1, 2, 3), (1, -1), (0, 0)])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(PluresError, match=r"^positive_weights: "):
        MultiLabel(("cough", "fever"), positive_weights=weights)


def test_it_is_told_as_data_and_made_of_it_again():
    task = MultiLabel(("cough", "fever"), positive_weights={"fever": 3})
    assert to_dict(task) == {"kind": "multilabel", "labels": ["cough", "fever"], "positive_weights": [1, 3]}
    assert from_dict(json.loads(json.dumps(to_dict(task)))) == task


def test_its_name_is_enough():
    data = plures.from_arrays(np.arange(12.0)[:, None], np.eye(2)[np.arange(12) % 2], ["a"] * 12, task="multilabel")
    assert data.task == MultiLabel(("label 0", "label 1"))


# --- from data to page ------------------------------------------------------------------------------------------


def test_it_is_compared_and_reported(tmp_path: Path):
    found = plures.compare(
        symptoms(), ["fedem"], rounds=3, seeds=1, tune_rounds=0, learning_rates=[0.5], metric="auroc", out=tmp_path
    )
    assert [metric.name for metric in found.metrics] == ["auroc", "accuracy", "loss", "auprc", "f1"]
    assert (found.metric.name, found.federation.kind) == ("auroc", "multilabel")
    kept = json.loads((tmp_path / "results.json").read_text())
    scores = kept["methods"][1]["seeds"][0]["test"]["metrics"]
    folder = plures.RunFolder(tmp_path / "runs" / "local-seed0")
    data = symptoms()
    for place, client in enumerate(data.clients):
        rows = data.splits["test"][place]
        outputs, decided = folder.predict(client, data.inputs[rows], model=plures.default_model(data), method=local())
        truth = data.targets[rows].numpy()
        assert scores["auroc"][place] == pytest.approx(oracle.roc_auc_score(truth, outputs.numpy()), abs=1e-6)
        assert scores["accuracy"][place] == pytest.approx(1 - oracle.hamming_loss(truth, decided.numpy()), abs=1e-6)
    page = html_report(found)
    assert all(metric.title in page for metric in found.metrics)
    assert "cough, fever" in page  # among the examples that were predicted worst


@pytest.mark.parametrize("method", ["fedavg", "fedem"])
def test_a_published_model_predicts_what_its_run_predicts(method, tmp_path: Path):
    data = symptoms(MultiLabel(("cough", "fever"), positive_weights={"fever": 2}))
    done = plures.Run(data, plures.default_model(data), METHODS[method](), plures.Training(rounds=2), seed=0)
    for _ in done.rounds():
        pass
    PersonalModel.of(done, "b", plures.RunSpec(data="symptoms", method=method, rounds=2)).save(tmp_path)
    model = PersonalModel.load(tmp_path)
    rows = data.inputs[:7]
    outputs, decided = model.predict(rows)
    assert torch.allclose(outputs, done.predict("b", rows)[0], atol=1e-6)
    assert torch.equal(decided, (outputs > 0).float())
    assert model.federation.task == data.task
    assert model.card.labels == dict(
        zip(("cough", "fever"), data.targets[data.splits["train"][1]].sum(0).int().tolist(), strict=True)
    )
    assert "predicts: cough, fever" in model.card.text()
    assert model.card.metrics["auroc"] == pytest.approx(plures.score(done, "validation").values["auroc"][1], abs=1e-6)


def test_predictions_are_written_as_labels_and_their_probabilities():
    outputs = torch.tensor([[0.0, -1.0], [2.0, 3.0]])
    assert models.predictions(outputs, TASK.decide(outputs), TASK).splitlines() == [
        "labels,cough,fever",
        "none,0.5,0.268941",
        '"cough, fever",0.880797,0.952574',
    ]


CLASSES = {"fedrod", "fedproto", "fedhome", "self_distillation", "prior_shift", "temperature", "threshold"}
"""Methods that need classes of which an example has exactly one."""
ELSEWHERE = {"dapper", "depthfl", "fedmd", "personal_se"}
"""Methods that need data or networks other than these."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ELSEWHERE])
def test_every_method_trains_on_labels_or_says_what_it_needs(name):
    data = symptoms()

    def model() -> nn.Module:
        if name == "mocha":
            return nn.Linear(3, 2)
        return plures.with_roles(
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), head="3"
        )

    training = plures.Training(rounds=1, batch_size=16, steps=1)

    def started() -> plures.Run:
        made = plures.Run(data, model, METHODS[name](), training)
        made.step()
        return made

    if name in CLASSES:
        with pytest.raises(PluresError, match=r"classes, but (the task|this) is multilabel"):
            started()
        return
    assert np.isfinite(plures.score(started(), "test").values["loss"]).all()


def test_labels_of_all_clients_are_counted_at_once():
    made = MultiLabel(("a", "b"))
    targets, owners = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), torch.tensor([2, 0, 2])
    assert made.counts_of(targets, owners, 3).tolist() == [[1, 1], [0, 0], [1, 1]]
    assert Classification(("a", "b", "c")).counts_of(torch.tensor([2, 0, 2]), owners, 3).tolist() == [
        [1, 0, 0],
        [0, 0, 0],
        [0, 0, 2],
    ]
    assert Regression().counts_of(targets, owners, 3) is None


def test_columns_of_a_table_name_the_labels():
    table = {
        "age": list(range(20, 40)) * 2,
        "fever": [0, 1] * 20,
        "cough": [1, 1, 0, 0] * 10,
        "ward": ["a"] * 20 + ["b"] * 20,
    }
    for task in ("multilabel", MultiLabel(), MultiLabel(("cough", "fever"))):
        federation = from_table(table, target=["cough", "fever"], client="ward", task=task)
        assert federation.task == MultiLabel(("cough", "fever"))
        assert federation.columns == ("age",)
        assert federation.targets[:3].tolist() == [[1, 0], [1, 1], [0, 0]]
    with pytest.raises(PluresError, match=r"labels: the task says \('fever', 'cough'\), but the data have"):
        from_table(table, target=["cough", "fever"], client="ward", task=MultiLabel(("fever", "cough")))
    assert from_table(table, target=["cough", "fever"], client="ward").task == MultiLabel(("cough", "fever"))
