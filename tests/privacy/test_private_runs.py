"""Private runs: rounds by hand, noise by statistics and by key, what stays at home, resuming, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.method import Assign, Combine, Method, Setting
from plures.method.channel import Channel
from plures.privacy import Private, gaussian, roots
from plures.run import BySize, DropOut, Execution, Fixed, Full, Poisson, Run, Training, Uniform
from plures.run.checkpoint import restore, snapshot
from problems import begun, close, quadratic, run, weight
from resting import as_it_is
from trajectories import LOOP, assert_same, everything_of, mlp, normed, ragged
from trajectories import run as finished

FIRST = (-0.19, 0.18, 1.92)
"""What the clients of Q3 change in two steps from 0."""
PLAIN = Private(noise=0.0)


def private(method: str = "fedavg", **options):
    return find_method(method)() + Method(wire=(Private(**options),))


@pytest.mark.oracle("DP0")
@pytest.mark.parametrize(
    "rule", [None, Uniform(0.5), Fixed([["c0", "c3"], ["c1", "c2"]])], ids=["full", "sample", "fixed"]
)
def test_without_noise_and_clip_it_is_the_plain_mean_bit_for_bit(rule):
    size = {None: 7.0, Uniform(0.5): 4.0}.get(rule, 2.0) if not isinstance(rule, Fixed) else 2.0
    plain = replace(find_method("ditto")(), combine=Combine("uniform", denominator=size))
    honest = {"neighbours": "replace_one", "accountant": "rdp"}
    silent = private("ditto", clip=math.inf, noise=0.0, losses=True, **honest)
    one, two = (finished(method, LOOP, participation=rule) for method in (plain, silent))
    for name, value in everything_of(one).items():
        assert torch.equal(value, everything_of(two)[name]), name


def test_with_everybody_the_fixed_denominator_is_the_uniform_mean_bit_for_bit():
    plain = replace(find_method("fedavg")(), combine=Combine("uniform"))
    one, two = (finished(method, LOOP) for method in (plain, private(clip=math.inf, noise=0.0)))
    for path, value in one.server["model"].values.items():
        assert torch.equal(value, two.server["model"].values[path])


@pytest.mark.oracle("DP1")
def test_a_whole_upload_is_clipped_and_clients_count_alike():
    """Clip 1 makes 1.92 a 1: (-0.19 + 0.18 + 1) / 3; by examples it would be 0.5283."""
    assert weight(run(private(noise=0.0), 1)) == close(0.99 / 3)
    change = {"model/u": torch.tensor([[3.0]]), "model/h": torch.tensor([[4.0]])}
    sent = Private(clip=2.5, noise=0.0).bound.clipped(change)
    assert sent["model/u"].item() == pytest.approx(1.5, rel=1e-5)
    assert sent["model/h"].item() == pytest.approx(2.0, rel=1e-5)


def test_an_absent_client_takes_its_own_part_away_and_no_more():
    """Of 2 expected clients only the third comes: 1 / 2, and not 1."""
    rule = Fixed([["c"], ["a", "b", "c"]])
    assert weight(run(private(noise=0.0), 1, participation=rule)) == close(0.5)


@pytest.mark.oracle("DP2")
def test_the_noise_of_a_release_has_the_stated_spread_and_its_own_key():
    """1,000 weights over 10 rounds of clients that stand still: what moves is noise, of z C / m = 2 * 0.5 / 4."""
    still = Method(layout={"model": find_method("fedavg")().layout["model"]}, schedule=(Assign(("model",), as_it_is),))
    stage = Private(clip=0.5, noise=2.0)

    def moved(seed=0, wire=(stage,)):
        federation = ragged((5, 5, 5, 5), features=(99,), classes=10)
        model = lambda: torch.nn.Linear(99, 10)  # noqa: E731
        made = Run(federation, model, replace(still, wire=wire), Training(10), seed=seed, execution=LOOP)
        before, found = {k: t.clone() for k, t in made.server["model"].values.items()}, []
        for _ in made.rounds():
            now = made.server["model"].values
            found.append(torch.cat([(now[k] - before[k]).flatten() for k in sorted(now)]))
            before = {k: t.clone() for k, t in now.items()}
        return torch.stack(found)

    noise = moved()
    assert noise.shape == (10, 1000)
    assert float(noise.std()) == pytest.approx(0.25, abs=4 * 0.25 / math.sqrt(2 * 10_000))
    assert abs(float(noise.mean())) < 4 * 0.25 / 100
    apart = torch.corrcoef(noise)[~torch.eye(10, dtype=torch.bool)]
    assert float(apart.abs().max()) < 4.5 / math.sqrt(1000)
    assert torch.equal(noise, moved())
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), moved(1).flatten()]))[0, 1])) < 0.05
    alone = moved(wire=(replace(stage, trust="nobody"),))
    assert float(alone.std()) == pytest.approx(2 * 0.5 / math.sqrt(4), abs=0.02)
    together = moved(wire=(replace(stage, correlated=True),))
    inverse = torch.tensor(
        np.array([[roots(10, -0.5)[r - c] if r >= c else 0.0 for c in range(10)] for r in range(10)])
    )
    torch.testing.assert_close(together, inverse @ noise, atol=1e-6, rtol=1e-5)
    sums = together.cumsum(0)
    assert float(sums[-1].std()) == pytest.approx(0.25 * np.linalg.norm(roots(10)), abs=0.03)
    assert float(noise.cumsum(0)[-1].std()) == pytest.approx(0.25 * math.sqrt(10), abs=0.1)


@pytest.mark.oracle("DP3")
def test_what_stays_at_home_is_neither_clipped_nor_noised():
    """FedPer's heads: given equal received bodies, the first round's are bit for bit those without privacy."""
    one, two = (finished(m, LOOP, rounds=1) for m in (find_method("fedper")(), private("fedper", clip=0.1, noise=5.0)))
    heads = [
        d.store.get(leaf, [*range(7)]) for d in (one, two) for leaf in d.stored_leaves() if leaf.path.startswith("2")
    ]
    assert len(heads) == 4
    assert torch.equal(heads[0], heads[2])
    assert torch.equal(heads[1], heads[3])
    alone = begun(private("local"), 3)
    assert alone.spent() is None
    assert run(private("local"), 3).spent() is None


def test_the_sum_moves_by_no_more_than_the_bound_if_a_client_is_missing():
    """Of all blocks together: SCAFFOLD's model and control, with wild learning rates."""
    rule = [Fixed([["a", "b", "c"]]), Fixed([["a", "b"], ["c"]])]
    stage = Private(clip=0.3, noise=0.0)
    ends = []
    for who in rule:
        method = replace(find_method("scaffold")(), wire=(stage,))
        done = begun(method, 1, participation=who, lr=5.0)
        done.origin = replace(done.origin, participation=who)
        before = {n: {k: t.clone() for k, t in kept.values.items()} for n, kept in done.server.items()}
        done.step()
        size = done.origin.plan.draws.expected
        sums = [(done.server[n].values[k] - t) * size for n, own in before.items() for k, t in own.items()]
        ends.append(torch.cat([t.flatten() for t in sums]))
    assert 0.29 < float((ends[0] - ends[1]).norm()) <= 0.3 + 1e-9


@pytest.mark.oracle("DP6")
def test_the_bound_follows_the_quantile_of_the_norms():
    """Shares .8, .6, .5, .3 within the bound: Andrew et al.'s sequence from 1."""
    from plures.method import Cohort
    from plures.privacy import Geometric

    server, bound, cohort = (
        Geometric(0.5),
        torch.tensor([1.0], dtype=torch.float64),
        Cohort(0, *[torch.zeros(0)] * 3, max),
    )
    found = []
    for share in (0.8, 0.6, 0.5, 0.3):
        made, _ = server.step({"b": bound}, {"b": bound + share - 0.5}, {}, cohort)
        bound = made["b"]
        found.append(float(bound))
    np.testing.assert_allclose(found, [0.9417645336, 0.9231163464, 0.9231163464, 0.9607894392], atol=1e-10)


def test_a_round_with_a_following_bound_by_hand():
    """Bound 0.5: two of three changes are within it, 1.92 becomes 0.5; the bound moves by exp(-0.2 (2/3 - 0.4))."""
    made = run(private(clip=0.5, noise=0.0, quantile=0.4, votes=0.0), 1)
    assert weight(made) == close((-0.19 + 0.18 + 0.5) / 3)
    bound = made.server["clipping"].values["clipping/norm"]
    assert float(bound) == pytest.approx(0.5 * math.exp(-0.2 * (2 / 3 - 0.4)), abs=1e-9)
    again = run(private(clip=0.5, noise=0.0, quantile=0.4, votes=0.0), 2)
    assert float(again.server["clipping"].values["clipping/norm"]) != float(bound)
    spends = run(private(clip=0.5, noise=1.0, quantile=0.4, votes=2.0), 2)
    assert spends.spent().epsilon == pytest.approx(gaussian(1 / math.sqrt(2), 1e-5))


def test_an_empty_cohort_releases_noise_and_costs_a_round():
    rule, data = Poisson(0.1), Setting.of(quadratic())
    seed = next(seed for seed in range(20) if not rule.cohort(data, seed, 0))
    made = begun(private(noise=1.0), 2, participation=rule, seed=seed)
    assert made.step().cohort == ()
    assert weight(made) != 0.0
    assert made.spent().rounds == 1
    assert made.spent().epsilon > 0


@pytest.mark.parametrize("options", [{}, {"correlated": True}, {"quantile": 0.5}, {"trust": "nobody"}], ids=str)
def test_a_resumed_run_has_the_bits_and_the_cost_of_one_that_went_on(options):
    method = private("ditto", noise=0.1, **options)
    work = Training(rounds=4, steps=2, batch_size=8)
    whole, halves = (Run(ragged(), mlp, method, work, execution=LOOP) for _ in range(2))
    for _ in whole.rounds():
        pass
    halves.step()
    halves.step()
    saved = snapshot(halves)
    halves = Run(ragged(), mlp, method, work, execution=LOOP)
    restore(halves, saved)
    for _ in halves.rounds():
        pass
    assert all(torch.equal(t, snapshot(halves)[k]) for k, t in snapshot(whole).items())
    assert whole.spent() == halves.spent()


def test_stacked_clients_give_what_each_gives_alone():
    wide = Execution("vmap", 128, False, "float64")
    for options in ({"noise": 0.2}, {"noise": 0.2, "trust": "nobody"}, {"noise": 0.2, "quantile": 0.5}):
        one, two = (finished(private("ditto", losses=True, **options), how) for how in (LOOP, wide))
        assert_same(everything_of(one), everything_of(two))


def test_losses_are_withheld_unless_they_are_wanted():
    assert math.isnan(finished(private(), LOOP).losses[0][0])
    assert finished(private(losses=True), LOOP).losses[0][0] > 0


@pytest.mark.oracle("LD1")
def test_where_nobody_is_trusted_any_two_uploads_are_neighbours():
    """Sensitivity 2 C, and no amplification: noise 4 in 4 rounds is one release of noise 1."""
    made = run(private(noise=4.0, trust="nobody"), 4)
    assert made.spent().epsilon == pytest.approx(gaussian(1.0, 1e-5))
    some = run(private(noise=4.0, trust="nobody"), 4, participation=Fixed([["a"], ["b"]]))
    assert some.spent().epsilon == pytest.approx(gaussian(math.sqrt(2), 1e-5))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (lambda: find_method("ifca(clusters=2)+dp"), "refuses channel 'choices'"),
        (lambda: find_method("fedavg+median+dp"), "its reducer has no known sensitivity"),
        (lambda: find_method("fedamp+dp"), "its clients do not all receive the same"),
        (lambda: find_method("fedavg+dp+dp"), "one stage of privacy"),
        (lambda: find_method("fedavg+topk(keep=2)+dp"), "holds whole numbers; put Clip before"),
    ],
)
def test_methods_that_do_not_fit_are_refused(method, said):
    with pytest.raises(PluresError, match=said):
        finished(method()(), LOOP)


def test_channels_and_cohorts_that_do_not_fit_are_refused():
    with pytest.raises(PluresError, match=r"refuses channel 'buffers'.*gets no noise"):
        finished(private(), LOOP, model=normed)
    with pytest.raises(PluresError, match=r"BySize draws by the clients' sizes"):
        finished(private(), LOOP, participation=BySize(0.5))
    with pytest.raises(PluresError, match="4 of 7 clients, without replacement"):
        finished(private(), LOOP, participation=Uniform(0.5))
    with pytest.raises(PluresError, match="divides by 3, and the plan by the expected cohort, 7"):
        finished(replace(private(), combine=Combine(denominator=3.0)), LOOP)
    assert PLAIN.refusal(Channel("choices", "train", "which", 8)) is not None
    with pytest.raises(PluresError, match="block 'control': its server moves by the share of clients that came"):
        finished(private("scaffold"), LOOP, participation=Poisson(0.5))
    half = DropOut(Poisson(0.5), 0.5)
    assert (
        finished(private(noise=2.0), LOOP, participation=half).spent().draws
        == "each of 7 clients with probability 0.25"
    )
    assert finished(private(noise=2.0), LOOP, participation=Full()).spent().rounds == 2
