"""What a finished run reports about its clients beyond scores, compared with numbers from their models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import plures
from plures.evaluate import Comparison, compare, finish, fit
from plures.evaluate import personal as personal_module
from plures.evaluate.cold import cold_start_curve
from plures.evaluate.details import details
from plures.evaluate.personal import components, nearest, personal
from plures.federation import Federation, from_arrays
from plures.methods import fedavg, fedper, ifca, local
from plures.run import Execution, Run, Training

FAST = Execution("vmap", 8, False, "float32")


def people(clients: int = 6) -> Federation:
    """Clients of two kinds with opposite labels; the even ones are of the first kind."""
    generator = np.random.default_rng(1)
    client = np.repeat(np.arange(clients), 40)
    x = generator.normal(size=(len(client), 4)).astype(np.float32)
    y = ((x[:, 0] * (-1.0) ** client) > 0).astype(np.int64)
    return from_arrays(x, y, [f"p{c}" for c in client], name="people", seed=0)


def numbers() -> Federation:
    generator = np.random.default_rng(2)
    client = np.repeat(np.arange(4), 30)
    x = generator.normal(size=(len(client), 3)).astype(np.float32)
    return from_arrays(x, x[:, :1] * (1 + client[:, None]), [f"n{c}" for c in client], name="numbers", seed=0)


def net() -> nn.Module:
    return plures.with_roles(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), head="2")


def trained(method, federation=None, rounds: int = 6, model=net) -> Run:
    run = Run(federation or people(), model, method, Training(rounds=rounds, batch_size=10), execution=FAST)
    for _ in range(rounds):
        run.step()
    return run


def test_calibration_and_confusion_give_the_metrics() -> None:
    run = trained(fedper())
    result = finish(fit(run, "fedper"), 0)
    found = result.details
    assert found is not None
    assert found.calibration is not None
    sums = {part: np.array(getattr(found.calibration, part)) for part in ("examples", "confidence", "correct")}
    np.testing.assert_array_equal(sums["examples"].sum(1), result.test.sizes)
    ece = np.abs(sums["confidence"] - sums["correct"]).sum(1) / sums["examples"].sum(1)
    np.testing.assert_allclose(ece, result.test.values("ece"), atol=1e-5)
    accuracy = [np.trace(np.array(own)) / np.sum(own) for own in found.confusion]
    np.testing.assert_allclose(accuracy, result.test.values("accuracy"))
    truth = [np.bincount(run.federation.targets[rows], minlength=2) for rows in run.federation.splits["test"]]
    np.testing.assert_array_equal([np.sum(own, 1) for own in found.confusion], truth)


def test_mistakes_are_the_examples_with_the_highest_loss() -> None:
    run = trained(local())
    found = details(run).mistakes
    for place, own in enumerate(found):
        rows = run.federation.splits["test"][place]
        leaves = {path: t[0] for path, t in run.predictors([place]).items()}
        with torch.no_grad():
            outputs = torch.func.functional_call(net(), leaves, (run.federation.inputs[rows],))
        loss = torch.nn.functional.cross_entropy(outputs, run.federation.targets[rows], reduction="none")
        worst = loss.argsort(descending=True)[:3]
        assert [m.row for m in own] == rows[worst].tolist()
        assert [m.loss for m in own] == pytest.approx(loss[worst].tolist(), rel=1e-4)
        for mistake, i in zip(own, worst.tolist(), strict=True):
            assert mistake.truth == str(int(run.federation.targets[rows[i]]))
            assert mistake.confidence == pytest.approx(float(outputs[i].softmax(-1).max()), rel=1e-4)


def test_nothing_is_personal_with_one_global_model() -> None:
    assert personal(trained(fedavg())) is None


def test_only_the_head_is_personal_with_fedper() -> None:
    run = trained(fedper())
    found = personal(run)
    assert found is not None
    assert [(layer.name, layer.size) for layer in found.layers] == [("2", 14)]
    assert found.same == 4 * 6 + 6
    heads = torch.cat([run.predictors(list(range(6)))[path].flatten(1) for path in ("2.weight", "2.bias")], 1).double()
    mean = heads.mean(0)
    (layer,) = found.layers
    assert layer.norm == pytest.approx(heads.norm(dim=1).tolist(), rel=1e-4)
    assert layer.distance == pytest.approx((heads - mean).norm(dim=1).tolist(), rel=1e-4)
    cosine = (heads @ mean) / heads.norm(dim=1) / mean.norm()
    assert layer.cosine == pytest.approx(cosine.tolist(), rel=1e-4)


@pytest.mark.parametrize("held", [2**26, 0])
def test_the_map_separates_two_kinds_of_clients(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(personal_module, "HELD", held)
    run = trained(fedper(), rounds=20)
    found = personal(run)
    assert found is not None
    first = np.array(found.places)[:, 0]
    assert (np.sign(first[::2]) == -np.sign(first[1::2])).all()
    assert found.explained[0] > 0.5
    heads = torch.cat([run.predictors(list(range(6)))[path].flatten(1) for path in ("2.weight", "2.bias")], 1).double()
    far = torch.cdist(heads, heads)
    assert found.peers == [[j for j in row if j != i] for i, row in enumerate(far.argsort(1).tolist())]


@pytest.mark.parametrize("shape", [(3, 50), (50, 3)])
def test_components_are_those_of_the_singular_values(shape: tuple[int, int]) -> None:
    vectors = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors -= vectors.mean(0)
    places, explained = components(vectors)
    u, s, _ = torch.linalg.svd(vectors, full_matrices=False)
    torch.testing.assert_close(places.abs(), (u[:, :2] * s[:2]).abs())
    torch.testing.assert_close(explained, s[:2] ** 2 / (s**2).sum())
    assert (places.gather(0, places.abs().argmax(0, keepdim=True)) > 0).all()


def test_two_clients_have_one_peer_and_a_map() -> None:
    vectors = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    places, explained = components(vectors)
    assert places.abs().tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert explained.tolist() == [1.0, 0.0]
    assert nearest(vectors) == [[1], [0]]


def test_clusters_and_moves_are_those_of_the_run() -> None:
    run = trained(ifca(clusters=2), rounds=8)
    found = details(run)
    assert found.clusters == {block: rows.tolist() for block, rows in run.membership.items()}
    assert [(m.round, m.block, m.client, m.cluster) for m in found.moves] == run.history()
    assert details(trained(local())).clusters == {}


def test_cold_start_by_labels_equals_the_curve() -> None:
    seen, unseen = people().hold_out(["p1", "p4"])
    run = trained(fedper(), seen)
    result = finish(fit(run, "fedper"), 0, unseen)
    assert result.details is not None
    assert result.unseen is not None
    assert list(result.details.cold) == ["0", "1", "5", "20", "all"]
    curve = cold_start_curve(run, unseen, (0, 5)).values("accuracy")
    for budget in (0, 5):
        assert result.details.cold[str(budget)].metrics["accuracy"] == curve[budget].tolist()
    assert result.details.cold["all"].metrics == result.unseen.metrics


def test_a_point_holds_every_client_and_their_mean() -> None:
    run = Run(people(), net, fedper(), Training(rounds=4, batch_size=10), execution=FAST)
    told = []
    fitted = fit(run, "fedper", every=2, progress=told.append)
    assert [len(point.clients) for point in told] == [0, 6, 0, 6]
    for point in fitted.curve:
        assert np.mean(np.array(point.clients, dtype=float)) == pytest.approx(point.validation)


def test_regression_has_errors_and_no_calibration() -> None:
    run = trained(local(), numbers(), model=lambda: nn.Linear(3, 1))
    found = details(run)
    assert found.calibration is None
    assert found.confusion == []
    rows = run.federation.splits["test"][0]
    leaves = {path: t[0] for path, t in run.predictors([0]).items()}
    outputs = torch.nn.functional.linear(run.federation.inputs[rows], leaves["weight"], leaves["bias"])
    square = (outputs - run.federation.targets[rows]).square().sum(-1)
    assert found.mistakes[0][0].loss == pytest.approx(float(square.max()), rel=1e-4)
    assert found.mistakes[0][0].row == int(rows[int(square.argmax())])


def test_a_comparison_among_some_clients_has_their_numbers() -> None:
    whole = compare(
        people(), ["fedper"], model=net, rounds=2, seeds=2, learning_rates=[0.1], tune_rounds=0, execution=FAST
    )
    part = whole.among(["p0", "p3"])
    for method, own in zip(whole.methods, part.methods, strict=True):
        assert own.per_client("accuracy").tolist() == method.per_client("accuracy")[[0, 3]].tolist()
    assert part.row("fedper").worst == min(whole.method("fedper").per_client("accuracy")[[0, 3]])
    assert Comparison.model_validate_json(whole.to_json()) == whole
    with pytest.raises(plures.PluresError, match="no client 'p9'"):
        whole.among(["p9"])
