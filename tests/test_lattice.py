"""The degeneration lattice: a method with a degenerate setting is another method, leaf by leaf, after five rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from plures.federation import Split, from_arrays
from plures.method import Method, everything, nothing
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
    local,
    perfedavg,
    pfedme,
    qsparse,
    scaffold,
)
from plures.run import Run, Uniform
from problems import EXACT, BodyHead, predictors, quadratic, run, scalar, shared
from shifted import mlp, ragged

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


def identical():
    """The same clients, each with the rows of the first."""
    data = ragged()
    return replace(data, splits={name: Split.of([split[0]] * 7) for name, split in data.splits.items()})


@dataclass(frozen=True)
class Edge:
    """``left`` with a degenerate setting equals ``right``; tolerance 0 means bit for bit."""

    name: str
    left: Callable[[], Method]
    right: Callable[[], Method]
    view: Callable[[Run], dict[str, torch.Tensor]] = shared
    tolerance: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    rounds: int = 5

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """The oracle that a name such as ``FP0: ...`` begins with."""
        oracle, colon, _ = self.name.partition(": ")
        return [pytest.mark.oracle(oracle)] if colon else []


ONE_STEP = {"steps": 1}
THREE = {"steps": 3}
FULL = {"batch_size": None}
EDGES = [
    Edge("FP0: fedprox(mu=0) = fedavg", lambda: fedprox(0.0), fedavg),
    Edge("FP1: fedprox, one step = fedavg", lambda: fedprox(3.0), fedavg, options=ONE_STEP),
    Edge("DI0: ditto's model = fedavg", lambda: ditto(0.7), fedavg),
    Edge("DI1: ditto(lam=0) = local", lambda: ditto(0.0), local, predictors),
    Edge("SC0: scaffold II, first round", scaffold, lambda: fedavg("uniform"), tolerance=1e-15, rounds=1),
    Edge("SC0: scaffold I, first round", lambda: scaffold("I"), lambda: fedavg("uniform"), tolerance=1e-15, rounds=1),
    *(
        Edge(
            f"PF3: perfedavg({variant}, alpha=0) = uniform fedavg",
            lambda variant=variant: perfedavg(0.0, variant),
            lambda: fedavg("uniform"),
            tolerance=1e-14,
            options=FULL,
        )
        for variant in ("exact", "FO", "HF")
    ),
    Edge("AP0: apfl(alpha=1) = local", lambda: apfl(1.0), local, predictors),
    Edge("AP1: apfl(alpha=0) = fedavg", lambda: apfl(0.0), fedavg, predictors),
    Edge("apfl's model = fedavg", lambda: apfl(0.4), fedavg),
    Edge("FPe0: fedper(no head) = fedavg", lambda: fedper(nothing), fedavg),
    Edge("FPe1: fedper(all head) = local", lambda: fedper(everything), local),
    Edge("FR2: fedrep(no head step) = fedbabu", lambda: fedrep(head_steps=0, body_steps=3), fedbabu, options=THREE),
    Edge("BN0: fedbn without norm layers = uniform fedavg", fedbn, lambda: fedavg("uniform")),
    Edge("fedbn(average) = uniform fedavg", lambda: fedbn("average"), lambda: fedavg("uniform")),
    Edge("IF0: ifca(1) = uniform fedavg", lambda: ifca(1), lambda: fedavg("uniform")),
    Edge("FT0: fedavg_ft(0 steps) = fedavg", lambda: fedavg_ft(steps=0), fedavg, predictors),
    Edge("FT3: fedavg_ft's model = fedavg", fedavg_ft, fedavg),
    Edge("QS0: qsparse(all entries) = fedavg", lambda: qsparse(keep=None), fedavg),
    Edge("qsparse, all entries by number = fedavg", lambda: qsparse(keep=10**6), fedavg, tolerance=1e-12),
    Edge("PM4: pfedme(beta=0) = nothing learned", lambda: pfedme(beta=0.0), lambda: fedavg(server_lr=0.0)),
]  # fmt: skip


@pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
@pytest.mark.parametrize("edge", [pytest.param(e, id=e.name, marks=e.marks) for e in EDGES])
def test_edge(edge, cohort):
    if cohort is not None and "first round" in edge.name:
        cohort = None
    options = {"steps": 4, "batch_size": 8, "federation": ragged(), "model": mlp, **edge.options}
    left, right = (
        edge.view(run(make(), edge.rounds, participation=cohort, execution=EXACT, **options))
        for make in (edge.left, edge.right)
    )
    assert left.keys() == right.keys()
    for path in left:
        if edge.tolerance:
            torch.testing.assert_close(left[path], right[path], atol=edge.tolerance, rtol=0)
        else:
            assert torch.equal(left[path], right[path]), path


def test_every_edge_can_fail():
    """Without the degenerate setting the two methods differ, so equality above is not vacuous."""
    options = {"steps": 4, "batch_size": 8, "federation": ragged(), "model": mlp}
    base = predictors(run(fedavg(), 3, **options))
    for method in (
        fedprox(3.0),
        ditto(0.7),
        scaffold(),
        perfedavg(0.1),
        apfl(0.5),
        fedper(),
        fedrep(),
        fedbabu(),
        local(),
    ):
        other = predictors(run(method, 3, **options))
        assert not all(torch.equal(base[path], other[path]) for path in base)


@pytest.mark.oracle("SC4")
def test_scaffold_on_identical_clients_is_fedavg():
    options = {"steps": 3, "batch_size": None, "federation": identical(), "model": mlp}
    left, right = (shared(run(m, 5, **options)) for m in (scaffold(), fedavg("uniform")))
    for path in left:
        torch.testing.assert_close(left[path], right[path], atol=1e-12, rtol=0)


@pytest.mark.oracle("PF0")
def test_hessian_free_is_exact_on_quadratics():
    exact, free = (shared(run(perfedavg(0.1, v), 5)) for v in ("exact", "HF"))
    torch.testing.assert_close(exact["weight"], free["weight"], atol=1e-9, rtol=0)


@pytest.mark.oracle("FT1")
def test_fine_tuning_an_untrained_model_is_local_training():
    tuned = run(fedavg_ft(steps=5), 0, federation=quadratic(), model=scalar())
    alone = run(local(), 1, steps=5)
    assert torch.equal(predictors(tuned)["weight"], predictors(alone)["weight"])


@pytest.mark.oracle("FA5")
def test_fa5_one_client_is_centralised_sgd():
    data = ragged().subset(["3"])
    options = {"steps": 4, "batch_size": 8, "federation": data, "model": mlp}
    together, alone = predictors(run(fedavg(), 5, **options)), predictors(run(local(), 5, **options))
    assert all(torch.equal(together[path], alone[path]) for path in together)


@pytest.mark.oracle("FA6")
def test_fa6_the_order_in_which_clients_are_listed_does_not_matter():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(90, 5)), generator.integers(0, 3, 90)
    client = np.repeat(["b", "a", "c"], [20, 30, 40])
    order = np.concatenate([np.flatnonzero(client == name) for name in ("c", "b", "a")])
    one, two = (from_arrays(x[i], y[i], client[i], seed=0, dtype=torch.float64) for i in (np.arange(90), order))
    first, second = (shared(run(fedavg(), 4, federation=f, model=mlp, batch_size=None)) for f in (one, two))
    for path in first:
        torch.testing.assert_close(first[path], second[path], atol=1e-14, rtol=0)


def test_body_and_head_are_split_exactly():
    """Under FedPer no head leaf is shared and every body leaf is."""
    done = run(fedper(), 2, model=BodyHead, lr=0.05)
    state = shared(done)
    assert len(set(state["h.weight"].flatten().tolist())) == 3
    assert len(set(state["u.weight"].flatten().tolist())) == 1
