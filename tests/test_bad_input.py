"""Each case gives one clear message that names the problem and the remedy; degenerate but legal settings only warn."""

from __future__ import annotations

import pytest
from torch import nn

from plures import PluresError, PluresWarning, Run, Training
from plures.method import SGD, Clustered, Method, Personal, Phase, Setting, Shared, head, norm_layers, paths
from plures.methods import apfl, ditto, fedbn, fedper, fedprox, ifca, perfedavg, pfedme
from plures.models import Network, with_roles
from plures.run import BySize, Execution, Fixed, Uniform, onboard
from problems import EXACT, quadratic, run, scalar


def test_a_head_that_is_not_marked():
    with pytest.raises(PluresError, match=r"selector 'head' matches no leaf .*with_roles\(model, head="):
        run(fedper(), 1)


def test_a_role_of_a_part_that_does_not_exist():
    with pytest.raises(PluresError, match="role 'head': the model has no part 'classifier'"):
        with_roles(nn.Sequential(nn.Linear(1, 1)), head="classifier")


def test_a_selector_that_matches_nothing():
    with pytest.raises(PluresError, match=r"layout: selector .*nowhere.* matches no leaf of slot 'model'"):
        run(Method(layout={paths("nowhere"): Personal(), "model": Shared()}), 1)


def test_a_layout_that_forgets_a_leaf():
    model = with_roles(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), head="1")
    with pytest.raises(PluresError, match=r"no entry says with whom model/0\.weight is shared; add one for 'model'"):
        run(Method(layout={head: Personal()}), 1, model=model)


def test_a_slot_that_does_not_exist():
    with pytest.raises(PluresError, match="phase: no slot 'personel'; slots are model"):
        run(Method(schedule=(Phase(train="personel"),)), 1)


def test_a_schedule_that_trains_nothing():
    with pytest.raises(PluresError, match="the schedule trains nothing"):
        run(Method(schedule=()), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ditto(-1.0), "ditto: lam=-1.0 must not be negative"),
        (lambda: fedprox(-0.1), "fedprox: mu=-0.1 must not be negative"),
        (lambda: apfl(1.5), r"apfl: alpha=1.5 must lie in \[0, 1\]"),
        (lambda: pfedme(-1.0), "pfedme: lam=-1.0"),
        (lambda: perfedavg(variant="second"), "'perfedavg': variant='second'; give 'FO', 'HF' or 'exact'"),
        (lambda: fedbn("none"), "'fedbn': policy='none'; give 'fedbn', 'silobn' or 'average'"),
        (lambda: Clustered(0), "clusters=0: give at least 1"),
        (lambda: ditto(strength=1), "its parameters are lam=1.0"),
        (lambda: Phase(epochs=1, steps=1), "epochs or steps, not both"),
        (lambda: SGD(-1.0), "SGD: lr=-1.0 must be a number >= 0"),
        (lambda: SGD(float("nan")), "SGD: lr=nan; give a number"),
        (lambda: Training(batch_size=0), "batch_size=0: give at least 1, or None for full batches"),
        (lambda: Training(clip=0.0), "clip=0.0: give a positive norm"),
        (lambda: Training(rounds=-1), "rounds=-1"),
        (lambda: Uniform(0.0), r"participation fraction 0.0: give a number in \(0, 1\]"),
        (lambda: BySize(1.5), "participation fraction 1.5"),
        (lambda: Fixed([]), "give at least one cohort"),
        (lambda: Execution(chunk=0), "chunk=0: give at least 1"),
    ],
)
def test_impossible_parameters(make, message):
    with pytest.raises(PluresError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedprox(0.0), "fedprox with mu=0 is fedavg"),
        (lambda: ditto(0.0), "ditto with lam=0 predicts with local-only models"),
        (lambda: ifca(1), "ifca with clusters=1 is fedavg with uniform weights"),
        (lambda: pfedme(beta=0.0), "beta=0 never changes the global model"),
        (lambda: perfedavg(0.0), "alpha=0 is fedavg with uniform weights"),
    ],
)
def test_degenerate_settings_run_with_a_warning(make, message):
    with pytest.warns(PluresWarning, match=message):
        method = make()
    assert isinstance(method, Method)


def test_fedbn_on_a_model_without_norm_layers_says_what_it_is():
    with pytest.warns(PluresWarning, match="'norm_layers' matches no leaf .*FedBN becomes FedAvg"):
        Method(layout={norm_layers: Personal(), "model": Shared()}).bind(Network(scalar()()), Setting.of(quadratic()))


def test_a_model_that_cannot_read_the_examples():
    with pytest.raises(PluresError, match=r"the model cannot read examples of shape \(1,\)"):
        run(Method(), 1, model=nn.Linear(7, 1))


def test_a_model_with_the_wrong_number_of_outputs():
    with pytest.raises(
        PluresError, match=r"outputs of shape \(3,\), but regression on 'Q3' needs \(1,\).*outputs to 1"
    ):
        run(Method(), 1, model=nn.Linear(1, 3))


def test_a_model_without_parameters():
    with pytest.raises(PluresError, match="Flatten has no parameter, so there is nothing to train"):
        run(Method(), 1, model=nn.Flatten())


def test_a_cohort_with_an_unknown_client():
    with pytest.raises(PluresError, match="no client 'z'; clients are a, b, c"):
        run(Method(), 1, participation=Fixed([["z"]]))


def test_newcomers_with_other_features():
    done = Run(quadratic(), scalar(), Method(), Training(rounds=0), execution=EXACT)
    wide = quadratic()
    wide = type(wide)(**{**vars(wide), "inputs": wide.inputs.repeat(1, 2)})
    with pytest.raises(PluresError, match=r"new clients' examples have shape \(2,\)"):
        onboard(done, wide)
