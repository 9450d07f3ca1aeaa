"""Numbers that a correct implementation must reproduce: closed forms and rounds computed by hand (float64)."""

from __future__ import annotations

import pytest

from plures.methods import (
    apfl,
    ditto,
    fedavg,
    fedavg_ft,
    fedbabu,
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
from plures.run import Fixed
from plures.run.cost import traffic
from problems import BodyHead, personal, predictions, quadratic, run, scalar, weight

close = lambda value: pytest.approx(value, abs=1e-9)  # noqa: E731
printed = lambda value: pytest.approx(value, abs=6e-10)  # noqa: E731
A, B = (1.0, 2.0, 4.0), (-1.0, 0.5, 3.0)


def trajectory(method, rounds=3, **options):
    return [weight(run(method, r + 1, **options)) for r in range(rounds)]


# FedAvg ---------------------------------------------------------------------------------------------------------


def test_fa1_one_step_is_gradient_descent_on_the_weighted_objective():
    assert weight(run(fedavg(), 1, steps=1)) == close(37 / 60)
    assert weight(run(fedavg(), 400, steps=1)) == printed(2.1764705882)


def test_fa2_two_steps_drift_away_from_the_optimum():
    assert trajectory(fedavg()) == [printed(x) for x in (0.9883333333, 1.5105027778, 1.7863823009)]
    assert weight(run(fedavg(), 300)) == printed(2.0954063604)


def test_fa3_uniform_weights():
    assert trajectory(fedavg("uniform")) == [printed(x) for x in (0.6366666667, 1.0207888889, 1.2525426296)]
    assert weight(run(fedavg("uniform"), 300)) == printed(1.6050420168)


def test_fa4_partial_participation():
    cohorts = Fixed([["a", "b"], ["b", "c"], ["c", "a"]])
    expected = (0.0566666667, 1.2507466667, 1.9834778)
    assert trajectory(fedavg(), participation=cohorts) == [printed(x) for x in expected]


# Local and fine-tuning ------------------------------------------------------------------------------------------


def test_lo1_closed_form_of_local_training():
    expected = [b - (1 - 0.1 * a) ** 6 * b for a, b in zip(A, B, strict=True)]
    assert predictions(run(local(), 3)) == close(expected)


def test_lo2_local_training_sends_nothing():
    assert traffic(run(local(), 1).bound) == (0, 0)


def test_ft_oracles():
    assert predictions(run(fedavg_ft(steps=3), 0)) == close([-0.271, 0.244, 2.352])
    tuned = run(fedavg_ft(steps=3), 3)
    assert predictions(tuned) == printed([1.031272697, 1.158627738, 2.737858577])
    assert weight(tuned) == weight(run(fedavg(), 3))


# FedProx --------------------------------------------------------------------------------------------------------


def test_fp2_proximal_rounds_and_limit():
    assert trajectory(fedprox(1.0)) == [printed(x) for x in (0.9266666667, 1.4425111111, 1.7296645185)]
    assert weight(run(fedprox(1.0), 300)) == printed(2.0902255639)


def test_fp3_a_strong_pull_freezes_the_model():
    frozen = run(fedprox(1e7), 1, lr=1e-7)
    assert abs(weight(frozen)) < 1e-5


# Ditto ----------------------------------------------------------------------------------------------------------


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
def test_di3_di4_limit(lam, expected):
    done = run(ditto(lam), 600)
    v, w = personal(done, "personal"), weight(done)
    assert v == pytest.approx(list(expected), abs=1e-8)
    assert [abs(x - w) for x in v] == close([a / (a + lam) * abs(b - w) for a, b in zip(A, B, strict=True)])


def test_di6_point_estimation():
    means, sizes = (0.3, -0.2, 1.1, 0.4), (30, 30, 30, 30)
    lam = 2.0
    done = run(ditto(lam), 400, federation=quadratic((1.0,) * 4, means, sizes), lr=0.2)
    pooled = sum(means) / 4
    assert personal(done, "personal") == close([lam / (1 + lam) * pooled + m / (1 + lam) for m in means])


# pFedMe ---------------------------------------------------------------------------------------------------------


def test_pm0_the_inner_loop_by_hand():
    problem = quadratic((1.0,), (5.0,), (4,))
    by_hand = {1: 2.3, 2: 2.48}
    for inner, expected in by_hand.items():
        done = run(pfedme(3.0, inner, 0.1, lr=0.0), 1, federation=problem, model=scalar(2.0), steps=1)
        assert predictions(done) == close([expected])
    exact = run(pfedme(3.0, 200, 0.1, lr=0.0), 1, federation=problem, model=scalar(2.0), steps=1)
    assert predictions(exact) == pytest.approx([2.75], abs=1e-8)


def test_pm2_the_optimum_of_the_envelopes_is_not_the_model_that_predicts():
    done = run(pfedme(1.0, 20, 0.1, lr=0.1), 400, steps=1)
    assert weight(done) == printed(1.1355932203)
    assert predictions(done) == printed([0.067796610, 0.711864407, 2.627118644])


def test_pm3_two_outer_steps():
    rounds = trajectory(pfedme(1.0, 200, 0.1, lr=0.05), steps=2)
    assert rounds == [printed(x) for x in (0.0728675926, 0.1410393411, 0.2048178623)]


@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
def test_pm4_beta_zero_freezes_the_global_model():
    assert trajectory(pfedme(1.0, 5, 0.1, lr=0.05, beta=0.0)) == [0.0, 0.0, 0.0]


def test_pm6_a_strong_pull_gives_the_uniform_optimum():
    lam = 50.0
    pull = [lam * a / (lam + a) for a in A]
    done = run(pfedme(lam, 5, 0.9 / lam, lr=1 / lam), 800, steps=1)
    assert weight(done) == pytest.approx(sum(s * b for s, b in zip(pull, B, strict=True)) / sum(pull), abs=1e-8)
    assert weight(done) == pytest.approx(12 / 7, abs=0.05)


# SCAFFOLD -------------------------------------------------------------------------------------------------------


def test_sc1_both_options():
    second = trajectory(scaffold("II"))
    first = trajectory(scaffold("I"))
    assert second == [printed(x) for x in (0.6366666667, 1.0773444444, 1.3441648519)]
    assert first == [printed(x) for x in (0.6366666667, 1.0907888889, 1.3548722593)]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("option", ["I", "II"])
def test_sc2_no_drift(steps, option):
    assert weight(run(scaffold(option), 400, steps=steps)) == close(12 / 7)


@pytest.mark.parametrize("option", ["I", "II"])
def test_sc3_the_server_control_is_the_mean_of_all_client_controls(option):
    cohorts = Fixed([["a"], ["b", "c"], ["c"], ["a", "b", "c"], ["b"]])
    for rounds in range(1, 8):
        done = run(scaffold(option), rounds, participation=cohorts)
        assert weight(done, "control") == close(sum(personal(done, "own_control")) / 3)


def test_sc4_identical_clients_follow_fedavg():
    same = quadratic((2.0,) * 3, (1.5,) * 3, (20, 20, 20))
    done = run(scaffold(), 4, federation=same)
    assert weight(done) == close(weight(run(fedavg("uniform"), 4, federation=same)))
    assert personal(done, "own_control") == close([weight(done, "control")] * 3)


# APFL -----------------------------------------------------------------------------------------------------------


def test_ap2_a_mixture_with_the_received_model_reaches_every_optimum():
    done = run(apfl(0.5, mix_with="received"), 2000)
    w = weight(done)
    assert personal(done, "personal") == pytest.approx([(b - 0.5 * w) / 0.5 for b in B], abs=1e-8)
    assert predictions(done) == pytest.approx(list(B), abs=1e-8)


def test_ap3_a_mixture_with_the_local_model_misses_by_the_drift():
    """The v-step reads the working copy; with v trained to its own optimum for the last copy, the gap is exact."""
    done = run(apfl(0.5), 3000)
    w = weight(done)
    for a, b, v in zip(A, B, personal(done, "personal"), strict=True):
        copies = [b + (1 - 0.1 * a) ** k * (w - b) for k in range(2)]
        r = 1 - 0.1 * a * 0.25
        fixed = sum(0.05 * a * (b - 0.5 * c) * r ** (1 - k) for k, c in enumerate(copies)) / (1 - r**2)
        assert v == pytest.approx(fixed, abs=1e-8)


def test_ap4_interleaved_steps_by_hand():
    done = run(apfl(0.5), 1)
    assert personal(done, "personal") == close([-0.09625, 0.0925, 1.02])
    assert weight(done) == close(-0.19 / 6 + 0.18 / 3 + 1.92 / 2)


def test_ap4_adaptive_mixture_by_hand():
    done = run(apfl(0.5, adaptive_lr=0.1), 1)
    assert personal(done, "alpha", "alpha") == printed([0.4919667969, 0.493634375, 0.0])


# Per-FedAvg -----------------------------------------------------------------------------------------------------


def test_pf1_rounds():
    exact = trajectory(perfedavg(0.1, "exact"))
    first_order = trajectory(perfedavg(0.1, "FO"))
    assert exact == [printed(x) for x in (0.255387, 0.4543914458, 0.6094610832)]
    assert first_order == [printed(x) for x in (0.4141666667, 0.7056433611, 0.9107749428)]


@pytest.mark.parametrize(
    ("variant", "steps", "limit"),
    [("exact", 2, 1.156785476), ("FO", 2, 1.398109598), ("exact", 1, 1.175637394), ("FO", 1, 1.448979592)],
)
def test_pf2_limits(variant, steps, limit):
    assert weight(run(perfedavg(0.1, variant), 500, steps=steps)) == printed(limit)


def test_perfedavg_predicts_after_one_step_on_training_data():
    done = run(perfedavg(0.1, "FO"), 2)
    w = weight(done)
    assert predictions(done) == close([w - 0.1 * a * (w - b) for a, b in zip(A, B, strict=True)])


# Split models ---------------------------------------------------------------------------------------------------


def split_run(method, rounds, **options):
    return run(method, rounds, model=BodyHead, lr=0.05, **options)


def test_fpe2_fedper_rounds():
    first, second = split_run(fedper(), 1), split_run(fedper(), 2)
    assert weight(first, path="u.weight") == printed(1.2887595703)
    assert personal(first, "model", "h.weight") == printed([0.3571888672, 0.5, 1.4375])
    assert weight(second, path="u.weight") == printed(1.4758608671)
    assert personal(second, "model", "h.weight") == printed([0.1789813417, 0.4664085603, 1.7962112885])


def test_fpe3_a_client_that_was_never_sampled_keeps_its_initial_head():
    done = split_run(fedper(), 5, participation=Fixed([["a", "b"]]))
    assert personal(done, "model", "h.weight")[2] == 0.5


def test_fr1_fedrep_rounds():
    first, second = (split_run(fedrep(head_steps=2, body_steps=1), r) for r in (1, 2))
    assert weight(first, path="u.weight") == printed(1.2200092578)
    assert personal(first, "model", "h.weight") == close([0.35375, 0.5, 1.4])
    assert weight(second, path="u.weight") == printed(1.3402668538)
    assert personal(second, "model", "h.weight") == printed([0.1855950944, 0.4751562292, 1.9366502399])


def test_ba1_ba2_fedbabu_rounds_and_travel():
    rounds = [weight(split_run(fedbabu(), r), path="u.weight") for r in (1, 2, 3)]
    assert rounds == [printed(x) for x in (1.231328125, 1.4466138855, 1.6469698028)]
    assert traffic(split_run(fedbabu(), 1).bound) == (8, 8)
    assert traffic(split_run(fedavg(), 1).bound) == (16, 16)


def test_lgfedavg_round():
    done = split_run(lgfedavg(), 1)
    assert weight(done, path="h.weight") == printed(0.9449481445)
    assert personal(done, "model", "u.weight") == printed([0.9325574219, 1.0, 1.6])


# IFCA -----------------------------------------------------------------------------------------------------------


def starts(*values):
    """A factory whose first module starts at the first value, the second at the second, and so on."""
    from torch import nn

    remaining = list(values)

    def model() -> nn.Module:
        return scalar(remaining.pop(0))()

    return model


def by_examples(clusters):
    from plures.method import Clustered, Method

    return Method(layout={"model": Clustered(clusters)})


def models(done):
    return done.server["model"]["model", "weight"].flatten().tolist()


def test_if1_assignment_and_models():
    done = run(by_examples(2), 3, model=starts(-1.0, 2.0))
    assert done.membership["model"].tolist() == [0, 0, 1]
    assert models(done) == pytest.approx([-0.214476, 2.953344], abs=1e-6)


def test_if2_renaming_the_models_permutes_the_result():
    one, two = (run(by_examples(2), 5, model=starts(*s)) for s in ((-1.2, 2.0), (2.0, -1.2)))
    assert models(one) == models(two)[::-1]


def test_if3_identical_starts_all_choose_the_first():
    done = run(by_examples(3), 1, model=starts(0.0, 0.0, 0.0))
    assert done.membership["model"].tolist() == [0, 0, 0]
    assert models(done) == [weight(run(fedavg(), 1)), 0.0, 0.0]


def test_if4_an_empty_cluster_keeps_its_model():
    done = run(ifca(2), 3, model=starts(0.0, 100.0))
    assert models(done)[1] == 100.0


def test_ifca_sends_one_model_and_receives_all():
    assert traffic(run(ifca(3), 1).bound) == (8, 24)
