"""Hierarchical Bayes: posteriors and empirical Bayes in closed form, and uncertainty that is calibrated on new data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plures import PluresError
from plures.evaluate import score
from plures.federation import SPLITS, Federation, Split, from_arrays
from plures.method import SGD, Batch, Problem, State
from plures.method.curvature import fisher, output_covariance
from plures.methods import ditto, fedavg, local
from plures.methods.hierarchical_bayes import averaged, doubt, hierarchical_bayes, latin, mean, predictive, variance
from plures.methods.temperature import temperature
from plures.models import Network
from plures.run import Execution, Fixed, Run, Training, Uniform, onboard
from plures.run.cost import traffic
from plures.tasks import Classification, Regression
from problems import at_rest, close, personal, predictors, quadratic, run, scalar, weight
from shifted import mlp, ragged

single = lambda value: pytest.approx(value, abs=2e-8)  # noqa: E731 - the prior 0.2 comes from a float32 module
SIZES, MEANS = np.array([2, 10, 50]), np.array([3.0, 1.0, -1.0])
EXAMPLE = {"federation": quadratic((2.0,) * 3, tuple(MEANS), tuple(SIZES.tolist())), "lr": 0.4}
"""``f_i(theta) = (theta - mean_i)^2``, the mean squared error up to a constant: Gaussian data with these means."""
MINI = {"federation": ragged(), "model": mlp, "steps": 4, "batch_size": 8}


def states(done: Run) -> list[State]:
    """The state of every client."""
    everybody = done.states(list(range(len(done.federation))))
    return [
        State({slot: {path: t[i] for path, t in leaves.items()} for slot, leaves in everybody.items()})
        for i in range(len(done.federation))
    ]


def posterior(done: Run) -> tuple[list[float], list[float]]:
    """Mean and variance of every client's scalar."""
    found = states(done)
    return [float(mean(x)["weight"]) for x in found], [float(variance(x)["weight"]) for x in found]


def examples(x: torch.Tensor, y: torch.Tensor, model: nn.Module, kind: str = "regression") -> tuple[Batch, dict]:
    task = Regression(y.shape[1]) if kind == "regression" else Classification(("a", "b", "c"))
    network = Network(model.double())
    return Batch(x, y, None, Problem(network, task), train=False), network.leaves()


# Curvature ------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("EW2")
def test_ew2_the_fisher_information_of_a_linear_model():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 4, generator=generator, dtype=torch.float64)
    batch, leaves = examples(x, torch.randn(150, 2, generator=generator).double(), nn.Linear(4, 2))
    found = fisher(leaves, batch)  # of noise with variance 1/2, whose negative log-likelihood is the squared error
    torch.testing.assert_close(found["weight"], (2 * (x.T @ x).diagonal() / 150).expand(2, -1))
    torch.testing.assert_close(found["bias"], torch.full((2,), 2.0, dtype=torch.float64))


def test_the_fisher_information_of_logistic_regression_is_its_hessian():
    """For a model linear in its weights the expected information is the Hessian of the mean cross-entropy."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(70, 4, generator=generator).double(), torch.randint(3, (70,), generator=generator)
    batch, leaves = examples(x, y, nn.Linear(4, 3), "classification")
    hessian = torch.func.hessian(lambda w: batch.loss({**leaves, "weight": w}))(leaves["weight"])
    diagonal = hessian.reshape(12, 12).diagonal().reshape(3, 4)
    torch.testing.assert_close(fisher(leaves, batch)["weight"], diagonal)


def test_padding_and_buffers_do_not_count():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(9, 4, generator=generator).double(), torch.randn(9, 1, generator=generator).double()
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    short, leaves = examples(x[:5], y[:5], net)
    padded, _ = examples(x, y, net)
    padded.weight = torch.tensor([1.0] * 5 + [0.0] * 4, dtype=torch.float64)
    one, two = fisher(leaves, short), fisher(leaves, padded)
    assert one.keys() == two.keys() == {k for k in leaves if "running" not in k and "num" not in k}
    for k in one:
        torch.testing.assert_close(one[k], two[k])


def test_the_variance_of_the_outputs_of_a_linear_model():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(80, 4, generator=generator).double()
    batch, leaves = examples(x, torch.zeros(80, 2).double(), nn.Linear(4, 2))
    spread = {k: torch.rand(t.shape, generator=generator).double() for k, t in leaves.items()}
    expected = torch.diag_embed(x.square() @ spread["weight"].T + spread["bias"])
    torch.testing.assert_close(output_covariance(leaves, spread, batch), expected)


def test_the_covariance_of_the_outputs_of_a_deep_model():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 4, generator=generator).double()
    batch, leaves = examples(x, torch.zeros(6, 3).double(), nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    spread = {k: torch.rand(t.shape, generator=generator).double() for k, t in leaves.items()}
    slopes = torch.func.jacrev(batch.outputs)(leaves)
    expected = sum(torch.einsum("ei...,ej...->eij", slopes[k] * spread[k], slopes[k]) for k in leaves)
    torch.testing.assert_close(output_covariance(leaves, spread, batch), expected)


# Posterior and empirical Bayes ----------------------------------------------------------------------------------


@pytest.mark.oracle("HB0")
def test_hb0_the_posterior_mean_is_the_proximal_solution():
    """lam_i = sigma^2 / (n_i tau^2) with half the mean squared error, so twice that with the squared error."""
    method = hierarchical_bayes(tau2=0.5, noise=4.0, learn=False)
    means, _ = posterior(run(method, 1, model=scalar(0.2), steps=150, **EXAMPLE))
    for client, size in enumerate(SIZES):
        alone = {**EXAMPLE, "federation": EXAMPLE["federation"].subset(["abc"[client]])}
        lam = 2 * 4.0 / (size * 0.5)
        near = run(ditto(lam), 1, model=scalar(0.2), steps=150, **{**alone, "lr": 1 / (2 + lam)})
        assert means[client] == pytest.approx(personal(near, "personal")[0], abs=1e-12)


@pytest.mark.oracle("HB0")
def test_hb0_on_real_batches_with_equal_sizes_the_objective_is_dittos():
    """Three full-batch steps: the gradient is Ditto's, divided by 1 + lam."""
    equal = replace(ragged(), splits=dict.fromkeys(SPLITS, Split.of(list(torch.arange(7 * 20).split(20)))))
    options = {"federation": equal, "model": mlp, "batch_size": None, "steps": 3}
    lam = 1 / (20 * 0.5)
    bayes = run(hierarchical_bayes(0.5, learn=False), 1, lr=0.1 * (1 + lam), **options)
    near = run(ditto(lam), 1, lr=0.1, **options)
    left, right = (done.states(list(range(7)))["personal"] for done in (bayes, near))
    for path in left:
        torch.testing.assert_close(left[path], right[path], atol=1e-14, rtol=0)


@pytest.mark.oracle("HB1")
def test_hb1_the_example():
    done = run(hierarchical_bayes(tau2=0.5, noise=4.0, learn=False), 1, model=scalar(0.2), steps=150, **EXAMPLE)
    means, variances = posterior(done)
    assert means == single([0.76, 29 / 45, -0.8344827586206897])
    assert variances == close([0.4, 2 / 9, 2 / 29])
    known = personal(done, "information")
    assert [v * k for v, k in zip(variances, known, strict=True)] == close([0.2, 5 / 9, 25 / 29])


@pytest.mark.oracle("HB1")
def test_hb1_the_empirical_bayes_mean_is_weighted_by_precision():
    done = run(hierarchical_bayes(tau2=0.5, noise=4.0, learn=False), 60, model=scalar(0.0), steps=25, **EXAMPLE)
    share = 1 / (0.5 + 4.0 / SIZES)
    assert weight(done) == close((share * MEANS).sum() / share.sum())
    assert weight(done) == pytest.approx(0.1814306016, abs=1e-9)


@pytest.mark.oracle("HB2")
def test_hb2_a_small_spread_pools_and_a_large_one_leaves_alone():
    pooled = (SIZES * MEANS).sum() / SIZES.sum()
    assert pooled == close(-0.5483870967741935)
    tight = run(hierarchical_bayes(tau2=1e-6, noise=4.0, learn=False), 3, model=scalar(pooled), steps=25, **EXAMPLE)
    assert weight(tight) == single(pooled)
    assert posterior(tight)[0] == pytest.approx([pooled] * 3, abs=1e-4)
    loose = run(hierarchical_bayes(tau2=1e9, noise=4.0, learn=False), 2, model=scalar(0.2), steps=25, **EXAMPLE)
    assert posterior(loose)[0] == pytest.approx(MEANS.tolist(), abs=1e-7)
    assert weight(loose) == pytest.approx(1.0, abs=1e-7)


def test_em_increases_the_likelihood_and_ends_where_its_equations_hold():
    """Six clients: mu and tau^2 of the marginal likelihood N(mean_i; mu, tau^2 + sigma^2 / n_i)."""
    sizes, means, noise = np.array([5, 8, 20, 40, 4, 30]), np.array([3.0, 1.0, -1.0, 2.0, -3.0, 0.5]), 2.0
    data = quadratic((2.0,) * 6, tuple(means), tuple(sizes.tolist()))

    def fitted(rounds: int, start: float) -> tuple[float, float]:
        options = {"federation": data, "lr": 0.4, "steps": 8, "execution": Execution("vmap", 6, False, "float64")}
        done = run(fixed_noise(start, noise), rounds, **options)
        return weight(done), weight(done, "prior")

    def likelihood(mu: float, tau2: float) -> float:
        total = tau2 + noise / sizes
        return float(-0.5 * (np.log(total) + (means - mu) ** 2 / total).sum())

    path = [likelihood(*fitted(rounds, 0.3)) for rounds in (1, 2, 4)]
    assert path == sorted(path)
    mu, tau2 = fitted(60, 0.3)
    total = tau2 + noise / sizes
    assert mu == pytest.approx((means / total).sum() / (1 / total).sum(), abs=1e-6)
    assert ((means - mu) ** 2 / total**2).sum() == pytest.approx((1 / total).sum(), rel=1e-5)
    assert fitted(60, 9.0) == pytest.approx((mu, tau2), abs=1e-5)


def fixed_noise(tau2: float, noise: float):
    """EM for only the prior."""
    method = hierarchical_bayes(tau2, noise)
    phase, assign = method.schedule
    return replace(method, schedule=(phase, replace(assign, writes=("information", "model", "prior"))))


def regression(clients: int, size: int, spread: float, noise: float, seed: int = 0) -> Federation:
    """Linear truths ``theta_i ~ N((1, -1, 0.5), spread)`` with Gaussian noise; half of the rows train."""
    generator = np.random.default_rng(seed)
    theta = np.array([1.0, -1.0, 0.5]) + spread**0.5 * generator.normal(size=(clients, 3))
    x = generator.normal(size=(clients, 2 * size, 3))
    y = (x * theta[:, None]).sum(-1) + noise**0.5 * generator.normal(size=(clients, 2 * size))
    rows = torch.arange(clients * 2 * size).view(clients, 2, size)
    train, test = Split.of(list(rows[:, 0])), Split.of(list(rows[:, 1]))
    return Federation(
        "truths",
        Regression(1),
        torch.from_numpy(x).view(-1, 3),
        torch.from_numpy(y).view(-1, 1),
        tuple(f"{i:03d}" for i in range(clients)),
        {"train": train, "validation": test, "test": test},
    )


def test_the_prior_and_the_noise_are_learned_and_the_uncertainty_is_honest():
    """On new examples the squared error is what the predictive variance says; borrowing beats both extremes."""
    data = regression(60, 8, 0.3, 0.5)
    options = {"federation": data, "model": lambda: nn.Linear(3, 1, bias=False), "lr": 0.1}
    options["execution"] = Execution("vmap", 60, False, "float64")
    done = run(hierarchical_bayes(1.0, 2.0), 40, steps=8, **options)
    assert weight(done, "prior") == pytest.approx(0.3, rel=0.3)
    assert weight(done, "noise", "variance") == pytest.approx(0.5, rel=0.2)
    errors, variances = [], []
    for x, rows in zip(states(done), data.splits["test"], strict=True):
        batch = Batch(data.inputs[rows], data.targets[rows], None, done.engine.problem, train=False)
        center, spread = predictive(x, batch)
        assert torch.equal(center, done.bound.method.predictor.predicted(x, batch))
        errors.append((batch.targets - center).square())
        variances.append(spread)
    error, spread = torch.cat(errors), torch.cat(variances)
    assert float((error / spread).mean()) == pytest.approx(1.0, abs=0.15)
    assert float((error < 1.6449**2 * spread).double().mean()) == pytest.approx(0.9, abs=0.03)
    rest = [run(method, 40, steps=8, **options) for method in (local(), fedavg())]
    mine, alone, together = (float(np.mean(score(r, "test").values["loss"])) for r in (done, *rest))
    assert mine < 0.9 * alone
    assert mine < 0.7 * together


# Clients --------------------------------------------------------------------------------------------------------


def test_what_travels():
    """Uploads are a model and one number for each leaf and the noise; nothing of the personal posterior."""
    assert traffic(run(hierarchical_bayes(), 0, **EXAMPLE).bound) == (8 + 16, 8 + 16)
    assert traffic(run(hierarchical_bayes(learn=False), 0, **EXAMPLE).bound) == (8, 8)
    assert not run(hierarchical_bayes(), 0, **MINI).bound.secure_aggregation  # its noise is averaged uniformly


def test_absent_clients_keep_their_posterior_and_those_never_seen_have_the_prior():
    method = hierarchical_bayes(tau2=0.5, noise=4.0, learn=False)
    done = run(method, 4, model=scalar(0.2), steps=25, participation=Fixed([["a", "b"], ["b"]]), **EXAMPLE)
    one = run(method, 3, model=scalar(0.2), steps=25, participation=Fixed([["a", "b"], ["b"]]), **EXAMPLE)
    means, variances = posterior(done)
    assert means[0] == posterior(one)[0][0]
    assert means[1] != posterior(one)[0][1]
    assert (means[2], variances[2]) == (weight(done), 0.5)
    inputs = torch.ones(3, 1, 1, dtype=torch.float64)
    outputs = done.engine.forward(done.deployed([0, 1, 2]), inputs).flatten().tolist()
    assert outputs[:2] == close(means[:2])
    later = onboard(done, done.federation.subset(done.federation.clients[2:]))
    assert outputs[2] == close(later.engine.forward(later.deployed([0]), inputs[:1]).item())


def test_an_unseen_client_starts_from_the_prior_and_finds_its_posterior():
    method = hierarchical_bayes(tau2=0.5, noise=4.0, learn=False, visits=6)
    done = run(method, 5, model=scalar(0.2), steps=25, **EXAMPLE)
    newcomer = quadratic((2.0,), (5.0,), (8,), names=("z",))
    mu = weight(done)
    means, variances = posterior(onboard(done, newcomer, visits=0))
    assert (means, variances) == ([mu], [0.5])
    means, variances = posterior(onboard(done, newcomer))
    assert means == close([(mu / 0.5 + 5.0 * 8 / 4) / (1 / 0.5 + 8 / 4)])
    assert variances == close([1 / (1 / 0.5 + 8 / 4)])
    assert weight(done) == mu


def test_class_probabilities_are_averaged_over_the_posterior():
    """Compared with the integral: with two classes, the difference of the scores is normal with a known variance."""
    generator = np.random.default_rng(2)
    x = generator.normal(size=(60, 2))
    y = (x[:, 0] + 0.3 * generator.normal(size=60) > 0).astype(np.int64)
    data = from_arrays(x, y, np.repeat(["a", "b", "c"], 20), seed=0, dtype=torch.float64)
    done = run(hierarchical_bayes(4.0, learn=False), 5, federation=data, model=lambda: nn.Linear(2, 2), steps=20)
    x, rows = states(done)[1], data.splits["test"][1]
    batch = Batch(data.inputs[rows], data.targets[rows], None, done.engine.problem, train=False)
    scores, covariance = batch.outputs(mean(x)), output_covariance(mean(x), variance(x), batch)
    gap, spread = scores[:, 1] - scores[:, 0], covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1]
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2) / (-grid.square() / 2).exp().sum()
    exact = (torch.sigmoid(gap[:, None] + spread.sqrt()[:, None] * grid) * density).sum(1)
    found = averaged(x, batch, 512).exp()
    assert float(spread.min()) > 0.5
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)).double())
    torch.testing.assert_close(found[:, 1], exact, atol=0.01, rtol=0)
    torch.testing.assert_close(averaged(x, batch, 16).exp()[:, 1], exact, atol=0.07, rtol=0)
    torch.testing.assert_close(averaged(x, batch, 1), scores.log_softmax(-1))
    deployed = done.deployed([1])
    outputs = done.engine.forward(deployed, batch.inputs.unsqueeze(0))[0]
    torch.testing.assert_close(outputs, averaged(x, batch, 16))


def test_the_body_of_a_deep_model_stays_at_its_mean():
    """With a marked head only its weights are uncertain; without one all are, which is more."""

    def unmarked() -> nn.Module:
        return nn.Sequential(*mlp())

    found = []
    for model in (mlp, unmarked):
        done = run(hierarchical_bayes(0.5, learn=False), 2, **{**MINI, "model": model})
        x, rows = states(done)[3], done.federation.splits["test"][3]
        inputs, targets = done.federation.inputs[rows], done.federation.targets[rows]
        batch = Batch(inputs, targets, None, done.engine.problem, train=False)
        found.append((doubt(x, batch), mean(x), variance(x), batch))
    (head, center, spread, batch), (whole, *_) = found
    features = torch.relu(batch.inputs @ center["0.weight"].T + center["0.bias"])
    expected = torch.diag_embed(features.square() @ spread["2.weight"].T + spread["2.bias"])
    torch.testing.assert_close(head, expected)
    assert bool((whole.diagonal(dim1=1, dim2=2) > head.diagonal(dim1=1, dim2=2)).all())


def test_draws_are_standard_normal_in_every_coordinate():
    drawn = latin(16, 200)
    torch.testing.assert_close(drawn.mean(0), torch.zeros(200).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(drawn.square().mean(0), torch.ones(200).double())
    assert float((torch.corrcoef(drawn.T) - torch.eye(200)).mean().abs()) < 0.01
    assert latin(1, 3).tolist() == [[0.0, 0.0, 0.0]]


def test_a_temperature_sharpens_what_is_too_cautious():
    both = hierarchical_bayes(1.0) + temperature()
    plain, calibrated = (run(method, 4, **MINI) for method in (hierarchical_bayes(1.0), both))
    losses = [float(np.mean(score(done, "validation").values["loss"])) for done in (plain, calibrated)]
    assert losses[1] < losses[0]
    accuracies = [score(done, "test").values["accuracy"].tolist() for done in (plain, calibrated)]
    assert accuracies[0] == accuracies[1]


def test_both_backends_agree_on_real_batches_with_normalisation():
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    options = {**MINI, "model": normed, "participation": Uniform(0.5)}
    left, right = (
        run(hierarchical_bayes(), 3, **options, execution=Execution(backend, 3, False, "float64"))
        for backend in ("vmap", "loop")
    )
    for slot, leaves in left.states(list(range(7))).items():
        for path, value in leaves.items():
            torch.testing.assert_close(value, right.states(list(range(7)))[slot][path], atol=1e-10, rtol=1e-9)
    one, two = (score(done, "test").values["loss"] for done in (left, right))
    np.testing.assert_allclose(one, two, atol=1e-10)
    assert set(left.states([0])["prior"]) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}


def test_small_prior_variances_do_not_make_the_steps_unstable():
    """Plain gradient steps would need lr / (n tau^2) below 2; here it is over 10^6."""
    done = run(hierarchical_bayes(1e-9, learn=False), 3, **MINI, lr=0.5)
    for rows in done.states(list(range(7)))["personal"].values():
        assert float((rows - rows.mean(0)).abs().max()) < 1e-6


def test_its_predictors_differ_from_the_baselines():
    mine = run(hierarchical_bayes(), 3, **MINI).states(list(range(7)))["personal"]
    for base in (local(), fedavg(), ditto()):
        other = predictors(run(base, 3, **MINI))
        assert not all(torch.equal(mine[path], other[path]) for path in mine)


@pytest.mark.parametrize("parameters", [{"tau2": 0.0}, {"noise": -1.0}, {"draws": 0}])
def test_impossible_parameters_are_refused(parameters):
    with pytest.raises(PluresError, match="hierarchical_bayes: "):
        hierarchical_bayes(**parameters)


# Modes that local steps have not reached ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 10, 50])
@pytest.mark.parametrize("steps", [1, 2])
def test_identical_clients_reach_their_optimum_however_few_steps_they_take(steps, size):
    """The variance between clients does not collapse while their modes are still on the way to 2."""
    same = quadratic((2.0,) * 3, (2.0,) * 3, (size,) * 3)
    done = at_rest(hierarchical_bayes(), 200, federation=same, steps=steps, lr=0.1)
    assert weight(done) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("tau2", [0.01, 0.5])
def test_weight_decay_is_a_penalty_beside_the_prior(tau2):
    """The minimum of ``(t - b)^2 + pull/2 (t - mu)^2 + d/2 t^2`` is at ``(2b + pull mu) / (2 + pull + d)``."""
    training = Training(1, None, steps=400, optimizer=SGD(0.2, weight_decay=0.3))
    done = Run(
        EXAMPLE["federation"],
        scalar(0.2),
        hierarchical_bayes(tau2=tau2, noise=4.0, learn=False),
        training,
        execution=Execution("vmap", 3, False, "float64"),
    )
    done.step()
    for found, size, b in zip(posterior(done)[0], SIZES, MEANS, strict=True):
        pull = 2 * 4.0 / (size * tau2)
        assert found == pytest.approx((2 * b + pull * 0.2) / (2 + pull + 0.3), abs=1e-6)
