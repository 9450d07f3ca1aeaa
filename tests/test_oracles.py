"""Numbers that a correct implementation must reproduce: closed forms and rounds computed by hand (float64)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from plures.federation import SPLITS, Federation, Split
from plures.method import SGD, Assign, Clustered, Codec, Combine, Method, Personal
from plures.methods import (
    apfl,
    ditto,
    fedavg,
    fedavg_ft,
    fedbabu,
    fedbn,
    fedper,
    fedprox,
    fedrep,
    ifca,
    lgfedavg,
    local,
    perfedavg,
    pfedme,
    scaffold,
)
from plures.models import with_roles
from plures.run import Fixed, Run, Training, onboard
from plures.run.cost import traffic
from plures.tasks import Classification, Regression
from problems import (
    EXACT,
    BodyHead,
    at_rest,
    begun,
    close,
    personal,
    predictions,
    quadratic,
    run,
    scalar,
    starts,
    weight,
)

printed = lambda value: pytest.approx(value, abs=6e-10)  # noqa: E731
A, B = (1.0, 2.0, 4.0), (-1.0, 0.5, 3.0)


def trajectory(method, rounds=3, **options):
    done = begun(method, rounds, **options)
    return [weight(done) for _ in done.rounds()]


# FedAvg ---------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("FA1")
def test_fa1_one_step_is_gradient_descent_on_the_weighted_objective():
    assert weight(run(fedavg(), 1, steps=1)) == close(37 / 60)
    assert weight(at_rest(fedavg(), 400, steps=1)) == printed(2.1764705882)


@pytest.mark.oracle("FA2")
def test_fa2_two_steps_drift_away_from_the_optimum():
    assert trajectory(fedavg()) == [printed(x) for x in (0.9883333333, 1.5105027778, 1.7863823009)]
    assert weight(at_rest(fedavg(), 300)) == printed(2.0954063604)


@pytest.mark.oracle("FA3")
def test_fa3_uniform_weights():
    assert trajectory(fedavg("uniform")) == [printed(x) for x in (0.6366666667, 1.0207888889, 1.2525426296)]
    assert weight(at_rest(fedavg("uniform"), 300)) == printed(1.6050420168)


@pytest.mark.oracle("FA4")
def test_fa4_partial_participation():
    cohorts = Fixed([["a", "b"], ["b", "c"], ["c", "a"]])
    expected = (0.0566666667, 1.2507466667, 1.9834778)
    assert trajectory(fedavg(), participation=cohorts) == [printed(x) for x in expected]


# Local and fine-tuning ------------------------------------------------------------------------------------------


@pytest.mark.oracle("LO1")
def test_lo1_closed_form_of_local_training():
    expected = [b - (1 - 0.1 * a) ** 6 * b for a, b in zip(A, B, strict=True)]
    assert predictions(run(local(), 3)) == close(expected)


@pytest.mark.oracle("LO2")
def test_lo2_local_training_sends_nothing():
    assert traffic(run(local(), 1).bound) == (0, 0)


@pytest.mark.oracle("FT1", "FT2", "FT3")
def test_ft_oracles():
    assert predictions(run(fedavg_ft(steps=3), 0)) == close([-0.271, 0.244, 2.352])
    tuned = run(fedavg_ft(steps=3), 3)
    assert predictions(tuned) == printed([1.031272697, 1.158627738, 2.737858577])
    assert weight(tuned) == weight(run(fedavg(), 3))


# FedProx --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("FP2")
def test_fp2_proximal_rounds_and_limit():
    assert trajectory(fedprox(1.0)) == [printed(x) for x in (0.9266666667, 1.4425111111, 1.7296645185)]
    assert weight(at_rest(fedprox(1.0), 300)) == printed(2.0902255639)


@pytest.mark.oracle("FP3")
def test_fp3_a_strong_pull_freezes_the_model():
    frozen = run(fedprox(1e7), 1, lr=1e-7)
    assert abs(weight(frozen)) < 1e-5


# Ditto ----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("DI2")
def test_di2_first_rounds():
    assert personal(run(ditto(1.0), 1), "personal") == close([-0.18, 0.17, 1.8])
    assert personal(run(ditto(1.0), 2), "personal") == printed([-0.1173, 0.4213166667, 2.39825])


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.1, (-0.718599422, 0.575971731, 2.97793674)),
        (1.0, (0.54770318, 1.03180212, 2.819081272)),
        (2.0, (1.06360424, 1.29770318, 2.698468787)),
    ],
)
@pytest.mark.oracle("DI3", "DI4")
def test_di3_di4_limit(lam, expected):
    done = at_rest(ditto(lam), 600)
    v, w = personal(done, "personal"), weight(done)
    assert v == pytest.approx(list(expected), abs=1e-8)
    assert [abs(x - w) for x in v] == close([a / (a + lam) * abs(b - w) for a, b in zip(A, B, strict=True)])


@pytest.mark.oracle("DI6")
def test_di6_point_estimation():
    means, sizes = (0.3, -0.2, 1.1, 0.4), (30, 30, 30, 30)
    lam = 2.0
    done = at_rest(ditto(lam), 400, federation=quadratic((1.0,) * 4, means, sizes), lr=0.2)
    pooled = sum(means) / 4
    assert personal(done, "personal") == close([lam / (1 + lam) * pooled + m / (1 + lam) for m in means])


# pFedMe ---------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("PM0", "PM1")
def test_pm0_the_inner_loop_by_hand():
    problem = quadratic((1.0,), (5.0,), (4,))
    by_hand = {1: 2.3, 2: 2.48}
    for inner, expected in by_hand.items():
        done = run(pfedme(3.0, inner, 0.1, lr=0.0), 1, federation=problem, model=scalar(2.0), steps=1)
        assert predictions(done) == close([expected])
    exact = run(pfedme(3.0, 60, 0.1, lr=0.0), 1, federation=problem, model=scalar(2.0), steps=1)
    assert predictions(exact) == pytest.approx([2.75], abs=1e-8)


@pytest.mark.oracle("PM2", "PM7")
def test_pm2_the_optimum_of_the_envelopes_is_not_the_model_that_predicts():
    done = at_rest(pfedme(1.0, 20, 0.1, lr=0.5), 400, steps=1)
    assert weight(done) == printed(1.1355932203)
    assert predictions(done) == printed([0.067796610, 0.711864407, 2.627118644])


@pytest.mark.oracle("PM3")
def test_pm3_two_outer_steps():
    rounds = trajectory(pfedme(1.0, 120, 0.1, lr=0.05), steps=2)
    assert rounds == [printed(x) for x in (0.0728675926, 0.1410393411, 0.2048178623)]


@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
@pytest.mark.oracle("PM4")
def test_pm4_beta_zero_freezes_the_global_model():
    assert trajectory(pfedme(1.0, 5, 0.1, lr=0.05, beta=0.0)) == [0.0, 0.0, 0.0]


@pytest.mark.oracle("PM6")
def test_pm6_a_strong_pull_gives_the_uniform_optimum():
    lam = 50.0
    pull = [lam * a / (lam + a) for a in A]
    done = at_rest(pfedme(lam, 5, 0.9 / lam, lr=5 / lam), 800, steps=1)
    assert weight(done) == pytest.approx(sum(s * b for s, b in zip(pull, B, strict=True)) / sum(pull), abs=1e-8)
    assert weight(done) == pytest.approx(12 / 7, abs=0.05)


# SCAFFOLD -------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("SC0", "SC1")
def test_sc1_both_options():
    second = trajectory(scaffold("II"))
    first = trajectory(scaffold("I"))
    assert second == [printed(x) for x in (0.6366666667, 1.0773444444, 1.3441648519)]
    assert first == [printed(x) for x in (0.6366666667, 1.0907888889, 1.3548722593)]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.oracle("SC2")
def test_sc2_no_drift(steps, option):
    assert weight(at_rest(scaffold(option), 400, steps=steps)) == close(12 / 7)


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.oracle("SC3")
def test_sc3_the_server_control_is_the_mean_of_all_client_controls(option):
    cohorts = Fixed([["a"], ["b", "c"], ["c"], ["a", "b", "c"], ["b"]])
    for rounds in range(1, 8):
        done = run(scaffold(option), rounds, participation=cohorts)
        assert weight(done, "control") == close(sum(personal(done, "own_control")) / 3)


@pytest.mark.oracle("SC4")
def test_sc4_identical_clients_follow_fedavg():
    same = quadratic((2.0,) * 3, (1.5,) * 3, (20, 20, 20))
    done = run(scaffold(), 4, federation=same)
    assert weight(done) == close(weight(run(fedavg("uniform"), 4, federation=same)))
    assert personal(done, "own_control") == close([weight(done, "control")] * 3)


# APFL -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("AP2")
def test_ap2_a_mixture_with_the_received_model_reaches_every_optimum():
    done = at_rest(apfl(0.5, mix_with="received"), 2000)
    w = weight(done)
    assert personal(done, "personal") == pytest.approx([(b - 0.5 * w) / 0.5 for b in B], abs=1e-8)
    assert predictions(done) == pytest.approx(list(B), abs=1e-8)


@pytest.mark.oracle("AP3")
def test_ap3_a_mixture_with_the_local_model_misses_by_the_drift():
    """The v-step reads the working copy; with v trained to its optimum for the last copy, the gap is exact."""
    done = at_rest(apfl(0.5), 3000)
    w = weight(done)
    for a, b, v in zip(A, B, personal(done, "personal"), strict=True):
        copies = [b + (1 - 0.1 * a) ** k * (w - b) for k in range(2)]
        r = 1 - 0.1 * a * 0.25
        fixed = sum(0.05 * a * (b - 0.5 * c) * r ** (1 - k) for k, c in enumerate(copies)) / (1 - r**2)
        assert v == pytest.approx(fixed, abs=1e-8)


@pytest.mark.oracle("AP4")
def test_ap4_interleaved_steps_by_hand():
    done = run(apfl(0.5), 1)
    assert personal(done, "personal") == close([-0.09625, 0.0925, 1.02])
    assert weight(done) == close(-0.19 / 6 + 0.18 / 3 + 1.92 / 2)


@pytest.mark.oracle("AP4")
def test_ap4_adaptive_mixture_by_hand():
    done = run(apfl(0.5, adaptive_lr=0.1), 1)
    assert personal(done, "alpha", "alpha") == printed([0.4919667969, 0.493634375, 0.0])


# Per-FedAvg -----------------------------------------------------------------------------------------------------


@pytest.mark.oracle("PF1")
def test_pf1_rounds():
    exact = trajectory(perfedavg(0.1, "exact"))
    first_order = trajectory(perfedavg(0.1, "FO"))
    assert exact == [printed(x) for x in (0.255387, 0.4543914458, 0.6094610832)]
    assert first_order == [printed(x) for x in (0.4141666667, 0.7056433611, 0.9107749428)]


@pytest.mark.parametrize(
    ("variant", "steps", "limit"),
    [("exact", 2, 1.156785476), ("FO", 2, 1.398109598), ("exact", 1, 1.175637394), ("FO", 1, 1.448979592)],
)
@pytest.mark.oracle("PF2")
def test_pf2_limits(variant, steps, limit):
    assert weight(at_rest(perfedavg(0.1, variant), 500, steps=steps)) == printed(limit)


def test_perfedavg_predicts_after_one_step_on_training_data():
    done = run(perfedavg(0.1, "FO"), 2)
    w = weight(done)
    assert predictions(done) == close([w - 0.1 * a * (w - b) for a, b in zip(A, B, strict=True)])


# Split models ---------------------------------------------------------------------------------------------------


def split_run(method, rounds, **options):
    return run(method, rounds, model=BodyHead, lr=0.05, **options)


@pytest.mark.oracle("FPe2")
def test_fpe2_fedper_rounds():
    first, second = split_run(fedper(), 1), split_run(fedper(), 2)
    assert weight(first, path="u.weight") == printed(1.2887595703)
    assert personal(first, "model", "h.weight") == printed([0.3571888672, 0.5, 1.4375])
    assert weight(second, path="u.weight") == printed(1.4758608671)
    assert personal(second, "model", "h.weight") == printed([0.1789813417, 0.4664085603, 1.7962112885])


@pytest.mark.oracle("FPe3")
def test_fpe3_a_client_that_was_never_sampled_keeps_its_initial_head():
    done = split_run(fedper(), 5, participation=Fixed([["a", "b"]]))
    assert personal(done, "model", "h.weight")[2] == 0.5


@pytest.mark.oracle("FR1")
def test_fr1_fedrep_rounds():
    first, second = (split_run(fedrep(head_steps=2, body_steps=1), r) for r in (1, 2))
    assert weight(first, path="u.weight") == printed(1.2200092578)
    assert personal(first, "model", "h.weight") == close([0.35375, 0.5, 1.4])
    assert weight(second, path="u.weight") == printed(1.3402668538)
    assert personal(second, "model", "h.weight") == printed([0.1855950944, 0.4751562292, 1.9366502399])


@pytest.mark.oracle("BA1", "BA2")
def test_ba1_ba2_fedbabu_rounds_and_travel():
    rounds = [weight(split_run(fedbabu(), r), path="u.weight") for r in (1, 2, 3)]
    assert rounds == [printed(x) for x in (1.231328125, 1.4466138855, 1.6469698028)]
    assert traffic(split_run(fedbabu(), 1).bound) == (8, 8)
    assert traffic(split_run(fedavg(), 1).bound) == (16, 16)


@pytest.mark.oracle("LGF1")
def test_lgfedavg_round():
    done = split_run(lgfedavg(), 1)
    assert weight(done, path="h.weight") == printed(0.9449481445)
    assert personal(done, "model", "u.weight") == printed([0.9325574219, 1.0, 1.6])


# IFCA -----------------------------------------------------------------------------------------------------------


def by_examples(clusters):
    return Method(layout={"model": Clustered(clusters)})


def models(done):
    return done.server["model"].values["model/weight"].flatten().tolist()


@pytest.mark.oracle("IF1")
def test_if1_assignment_and_models():
    done = run(by_examples(2), 3, model=starts(-1.0, 2.0))
    assert done.membership["model"].tolist() == [0, 0, 1]
    assert models(done) == pytest.approx([-0.214476, 2.953344], abs=1e-6)


@pytest.mark.oracle("IF2")
def test_if2_renaming_the_models_permutes_the_result():
    one, two = (run(by_examples(2), 5, model=starts(*s)) for s in ((-1.2, 2.0), (2.0, -1.2)))
    assert models(one) == models(two)[::-1]


@pytest.mark.oracle("IF3")
def test_if3_identical_starts_all_choose_the_first():
    done = run(by_examples(3), 1, model=starts(0.0, 0.0, 0.0))
    assert done.membership["model"].tolist() == [0, 0, 0]
    assert models(done) == [weight(run(fedavg(), 1)), 0.0, 0.0]


@pytest.mark.oracle("IF4")
def test_if4_an_empty_cluster_keeps_its_model():
    done = run(ifca(2), 3, model=starts(0.0, 100.0))
    assert models(done)[1] == 100.0


def test_ifca_sends_one_model_and_receives_all():
    assert traffic(run(ifca(3), 1).bound) == (8, 24)


def test_if5_an_unseen_client_joins_the_cluster_that_fits_its_training_data():
    done = run(by_examples(2), 20, model=starts(-1.2, 2.0))
    newcomers = quadratic((1.0, 3.0), (-0.5, 2.5), (5, 5), names=("x", "y"))
    guest = onboard(done, newcomers)
    assert guest.membership["model"].tolist() == [0, 1]
    assert predictions(guest) == models(done)


# Robustness of Ditto, and what else needs more than one file ------------------------------------------------------


def poisoned(lam):
    """Ditto in which each client multiplies its update by its own factor."""
    honest = replace(ditto(lam), combine=Combine("uniform"))

    def submit(x, received, visit):
        factor = x.factor["factor"]
        return {
            "factor": x.factor,
            "model": {k: received.model[k] + factor * (x.model[k] - received.model[k]) for k in x.model},
        }

    return replace(
        honest,
        layout={**honest.layout, "factor": Personal()},
        slots={"factor": lambda model: {"factor": torch.ones((), dtype=torch.float64)}},
        schedule=(*honest.schedule, Assign(("factor", "model"), submit)),
    )


@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
@pytest.mark.parametrize(("lam", "expected"), [(1.0, (28.89, 19.94, 14.17)), (0.0, B)])
@pytest.mark.oracle("DI7")
def test_di7_ditto_is_not_robust_by_itself(lam, expected):
    attacked = Run(
        quadratic(),
        scalar(),
        poisoned(lam),
        Training(rounds=200, batch_size=None, steps=2, optimizer=SGD(0.1)),
        execution=EXACT,
    )
    attacked.store.put(("factor", "factor"), [0, 1, 2], torch.tensor([-5.0, 1.0, 1.0], dtype=torch.float64))
    attacked.store.put(("personal", "weight"), [0, 1, 2], torch.zeros(3, 1, 1, dtype=torch.float64))
    attacked.store.mark([0, 1, 2])
    for _ in attacked.rounds():
        pass
    assert weight(attacked) == pytest.approx(58.884, abs=1e-3)
    assert personal(attacked, "personal") == pytest.approx(list(expected), abs=6e-3)


@pytest.mark.oracle("DI5")
def test_di5_the_order_of_the_phases_does_not_matter():
    method = ditto(1.0)
    swapped = replace(method, schedule=method.schedule[::-1])
    one, two = run(method, 5), run(swapped, 5)
    assert (weight(one), personal(one, "personal")) == (weight(two), personal(two, "personal"))


@pytest.mark.oracle("AP1")
def test_ap1_without_personal_weight_the_personal_model_never_moves():
    done = run(apfl(0.0), 5)
    assert personal(done, "personal") == [0.0, 0.0, 0.0]
    assert predictions(done) == [weight(done)] * 3


@pytest.mark.oracle("PM5")
def test_pm5_the_envelope_step_follows_the_gradient_through_the_exact_proximal_point():
    lam, eta, start = 3.0, 0.05, 0.75
    done = run(pfedme(lam, 60, 0.1, lr=eta), 1, model=scalar(start), steps=1)
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    steps = []
    for a, b in zip(A, B, strict=True):
        theta = (a * b + lam * w) / (a + lam)
        envelope = a / 2 * (theta - b) ** 2 + lam / 2 * (theta - w) ** 2
        steps.append(torch.autograd.grad(envelope, w)[0].item())
    assert weight(done) == pytest.approx(start - eta * sum(steps) / 3, abs=1e-8)


@pytest.mark.oracle("FR3")
def test_fr3_fedrep_recovers_the_common_representation():
    """``y = <h_i, B x>`` with B (2, 6): the learned body spans the rows of B (Collins et al. 2021, Theorem 1)."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64))[0].T
    x = torch.randn(12 * 40, 6, generator=generator, dtype=torch.float64)
    heads = torch.randn(12, 2, generator=generator, dtype=torch.float64).repeat_interleave(40, 0)
    y = ((x @ truth.T) * heads).sum(1, keepdim=True)
    rows = Split.of(list(torch.arange(480).split(40)))
    names = tuple(f"{i:02d}" for i in range(12))
    data = Federation("subspace", Regression(1), x, y, names, dict.fromkeys(SPLITS, rows))

    def model():
        net = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 1, bias=False))
        return with_roles(net, head="1")

    def distance(done):
        learned = torch.linalg.qr(done.states([0])["model"]["0.weight"][0].T)[0]
        return float(torch.linalg.matrix_norm(truth @ (torch.eye(6, dtype=torch.float64) - learned @ learned.T), 2))

    start, end = (
        distance(run(fedrep(head_steps=30, body_steps=1), r, federation=data, model=model, lr=0.1)) for r in (0, 150)
    )
    assert start > 0.3
    assert end < 1e-3


# FedBN ----------------------------------------------------------------------------------------------------------


def shifted():
    """Three clients whose features have different scale and offset."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, 4, generator=generator, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    x = (
        x * torch.tensor([0.5, 1.0, 3.0]).repeat_interleave(30)[:, None]
        + torch.tensor([-2.0, 0, 5]).repeat_interleave(30)[:, None]
    )
    rows = Split.of(list(torch.arange(90).split(30)))
    return Federation("shifted", Classification(("no", "yes")), x, y, ("a", "b", "c"), dict.fromkeys(SPLITS, rows))


def normed():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


AFFINE, STATISTICS = {"1.weight", "1.bias"}, {"1.running_mean", "1.running_var"}


@pytest.mark.parametrize(
    ("policy", "own"), [("fedbn", AFFINE | STATISTICS), ("silobn", STATISTICS), ("average", set())]
)
@pytest.mark.oracle("BN2", "BN3")
def test_bn2_bn3_three_layouts_of_normalisation(policy, own):
    done = run(fedbn(policy), 2, federation=shifted(), model=normed, batch_size=10, steps=3)
    states = done.states([0, 1, 2])["model"]
    for path, rows in states.items():
        if path == "1.num_batches_tracked":
            continue
        differs = not (torch.equal(rows[0], rows[1]) and torch.equal(rows[1], rows[2]))
        assert differs == (path in own), path


@pytest.mark.oracle("BN3")
def test_bn3_averaged_statistics_are_the_uniform_mean_of_the_clients():
    alone = run(local(), 1, federation=shifted(), model=normed, batch_size=10, steps=3)
    together = run(fedbn("average"), 1, federation=shifted(), model=normed, batch_size=10, steps=3)
    each, mean = alone.states([0, 1, 2])["model"], together.states([0])["model"]
    for path in STATISTICS | AFFINE:
        torch.testing.assert_close(mean[path][0], each[path].mean(0), atol=1e-12, rtol=0)


@pytest.mark.oracle("BN1")
def test_bn1_one_client_is_centralised_training():
    data = shifted().subset(["b"])
    options = {"federation": data, "model": normed, "batch_size": 10, "steps": 3}
    left, right = (run(m, 4, **options).predictors([0]) for m in (fedbn(), local()))
    assert all(torch.equal(left[path], right[path]) for path in left)


@pytest.mark.oracle("BN4")
def test_bn4_an_unseen_client_starts_from_the_mean_statistics_and_estimates_its_own():
    done = run(fedbn(), 5, federation=shifted().subset(["a", "b"]), model=normed, batch_size=10, steps=3)
    newcomer = shifted().subset(["c"])
    start, after = (onboard(done, newcomer, visits).predictors([0]) for visits in (0, 200))
    seen = done.states([0, 1])["model"]
    for path in STATISTICS | AFFINE:
        torch.testing.assert_close(start[path][0], seen[path].mean(0), atol=1e-12, rtol=0)
    features = (
        newcomer.inputs[newcomer.splits["train"][0]] @ done.states([0])["model"]["0.weight"][0].T
        + done.states([0])["model"]["0.bias"][0]
    )
    far, near = ((leaves["1.running_mean"][0] - features.mean(0)).norm() for leaves in (start, after))
    assert near < 0.1 * far
    assert torch.equal(after["0.weight"][0], done.states([0])["model"]["0.weight"][0])


# Unseen clients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [fedavg, fedprox, scaffold])
def test_an_unseen_client_of_a_global_method_gets_the_global_model(method):
    done = run(method(), 3)
    guest = onboard(done, quadratic((3.0,), (9.0,), (5,), names=("z",)))
    assert predictions(guest) == [weight(done)]


def test_an_unseen_client_of_ditto_starts_from_the_global_model_and_makes_its_visits():
    done, newcomer = run(ditto(1.0, visits=2), 3), quadratic((2.0,), (9.0,), (5,), names=("z",))
    w = v = weight(done)
    assert predictions(onboard(done, newcomer, visits=0)) == [w]
    for _ in range(4):
        v -= 0.1 * (2.0 * (v - 9.0) + (v - w))
    assert predictions(onboard(done, newcomer)) == close([v])
    assert weight(done) == w


def test_an_unseen_client_of_a_split_method_trains_its_head_on_the_shared_body():
    done, newcomer = split_run(fedper(), 3), quadratic((2.0,), (1.0,), (5,), names=("z",))
    guest = onboard(done, newcomer, visits=1)
    u, h = weight(done, path="u.weight"), 0.5
    for _ in range(2):
        h -= 0.05 * 2.0 * (u * h - 1.0) * u
    assert personal(guest, "model", "h.weight") == close([h])
    assert personal(guest, "model", "u.weight") == [u]


def test_an_unseen_client_of_pfedme_computes_its_proximal_point():
    done, newcomer = run(pfedme(1.0, 100, 0.1), 3), quadratic((2.0,), (9.0,), (5,), names=("z",))
    w = weight(done)
    assert predictions(onboard(done, newcomer, visits=1)) == pytest.approx([(2.0 * 9.0 + w) / 3.0], abs=1e-8)
    assert weight(onboard(done, newcomer, visits=1)) == w


def test_an_unseen_client_of_local_training_trains_alone():
    newcomer = quadratic((2.0,), (1.0,), (5,), names=("z",))
    assert predictions(onboard(run(local(visits=3), 2), newcomer)) == close([1 - 0.8**6])


# The wire -------------------------------------------------------------------------------------------------------


class Halve(Codec):
    """Sends half of each change in half the bytes, in single precision."""

    def encode(self, change, memory, sending):
        assert sending.keys.shape == (len(next(iter(change.values()))),)
        return {k: (d / 2).float() for k, d in change.items()}, memory

    def decode(self, payload, like):
        return {k: t.to(like[k].dtype) for k, t in payload.items()}


def test_the_wire_sees_changes_and_only_those_that_travel():
    done = run(replace(fedavg(), wire=(Halve(),)), 1)
    assert weight(done) == pytest.approx(0.9883333333 / 2, abs=1e-7)
    assert traffic(done.bound) == (4, 8)
    own = run(replace(ditto(1.0), wire=(Halve(),)), 1)
    assert personal(own, "personal") == close([-0.18, 0.17, 1.8])


@pytest.mark.oracle("BA0")
def test_ba0_the_head_never_moves_even_with_momentum_and_weight_decay():
    done = Run(
        quadratic(),
        BodyHead,
        fedbabu(),
        Training(rounds=4, batch_size=4, epochs=2, optimizer=SGD(0.05, momentum=0.9, weight_decay=0.1)),
        execution=EXACT,
    )
    for _ in done.rounds():
        pass
    assert personal(done, "model", "h.weight") == [0.5, 0.5, 0.5]
    assert weight(done, "model", "u.weight") != 1.0
