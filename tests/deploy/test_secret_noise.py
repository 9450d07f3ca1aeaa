"""Noise and cohorts over sites: those of the simulation if both are given the same secret, and nobody else's."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from hospitals import written
from sites import Loopback, conductor, far
from torch import nn

from newcomers import clients
from plures.deploy.app import opened
from plures.deploy.conduct import SECRET
from plures.deploy.journal import Journal
from plures.deploy.plan import Plan
from plures.entropy import Secret, kept, normal, uniform
from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.method import SGD, Assign, Method, Shared, parted
from plures.models import with_roles
from plures.privacy import Private, gaussian
from plures.remote.clients import ONE_CLIENT
from plures.remote.message import Reply, unpack
from plures.run import Fixed, Poisson, Run, Training, Uniform
from plures.run.coordinator import BrokenError
from plures.tables.heart import heart_tables
from resting import as_it_is

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
ONE, TWO = Secret(b"1" * 32), Secret(b"2" * 32)
WORK = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))
PRIVATE_STEPS = Training(rounds=2, batch_size=None, steps=2, optimizer=SGD(0.5))


def model() -> nn.Module:
    return with_roles(nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 2)), head="2")


def both(name: str, folder, secret=ONE, training=WORK, **options):
    """The same method in a simulation and over sites, with one secret."""
    federation, _ = clients()
    method = find_method(name)()
    here = Run(federation, model, method, training, seed=1, execution=ONE_CLIENT, **options)
    here.origin = replace(here.origin, secret=secret)
    there, carrier = far(federation, model, method, training, folder, seed=1, secret=secret, **options)
    return here, there, carrier


def values(run) -> dict[str, torch.Tensor]:
    return {f"{block}:{k}": t for block, kept in run.server.items() for k, t in kept.values.items()}


def assert_same(here, there) -> None:
    assert here.server.keys() == there.server.keys()
    for name, value in values(here).items():
        torch.testing.assert_close(values(there)[name], value, atol=2e-6, rtol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize(
    "combination",
    [
        "median",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "geometric_median",
        "norm_bound(norm=0.05)",
        "centred_clip(tau=0.05)",
        "fltrust(root=a)",
        "foolsgold",
        "flame(noise=0.1)",
        "mda",
        "dnc",
        "bucketing+median",
        "nnm+trimmed_mean",
        "arc+median",
    ],
)
def test_robust_combinations_are_those_of_the_simulation(combination, tmp_path):
    here, there, _ = both(f"ditto+{combination}", tmp_path)
    for _ in range(WORK.rounds):
        here.step()
        assert not there.step().left_out
    assert_same(here, there)


@pytest.mark.parametrize("combination", ["flame(noise=0.1)", "bucketing+median", "dnc(coordinates=1)"])
def test_what_a_combination_draws_is_a_secret_of_the_server(combination, tmp_path):
    """Buckets, coordinates and noise that members could foresee would tell an attacker where to aim."""
    first, second = (both(f"fedavg+{combination}", tmp_path / str(n), key)[1] for n, key in enumerate((ONE, TWO)))
    for _ in range(WORK.rounds):
        first.step()
        second.step()
    assert any(not torch.equal(value, values(second)[name]) for name, value in values(first).items())


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("fedavg+dp(clip=0.1,noise=1)", None),
        ("fedper+dp(clip=0.1,noise=1,correlated=true)", Fixed([["a", "b", "c"], ["d", "e"]])),
        ("ditto+dp(clip=0.1,noise=1,quantile=0.5,votes=3)", Poisson(0.6)),
        ("fedavg+dp(clip=0.1,noise=1)", Poisson(0.3)),
        ("scaffold+dp(clip=0.1,noise=1,neighbours=replace_one,accountant=rdp)", Uniform(0.6)),
        ("fedavg+dp(clip=0.1,noise=1)+quantize(levels=7)", None),
    ],
)
def test_central_noise_and_cohorts_are_those_of_a_simulation_with_the_same_secret(name, who, tmp_path):
    here, there, _ = both(name, tmp_path, participation=who, training=replace(WORK, rounds=6))
    for _ in range(6):
        one, two = here.step(), there.step()
        assert two.cohort == one.cohort
        assert math.isnan(two.loss)
    assert_same(here, there)
    assert there.spent() == here.spent()


def test_noise_and_cohorts_do_not_follow_from_the_seed(tmp_path):
    name, who, many = "fedavg+dp(clip=0.1,noise=1)", Poisson(0.5), replace(WORK, rounds=30)
    here, first, _ = both(name, tmp_path / "1", participation=who, training=many)
    second = both(name, tmp_path / "2", TWO, participation=who, training=many)[1]
    here.origin = replace(here.origin, secret=None)
    drawn = [[run.cohort(round) for round in range(30)] for run in (here, first, second)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert first.key("noise") != second.key("noise") != here.key("noise")
    assert both(name, tmp_path / "3", participation=who, training=many)[1].cohort(7) == first.cohort(7)


def test_central_noise_has_the_stated_spread(tmp_path):
    """Clients stand still, so what moves is noise: of standard deviation 2 * 0.5 / 5 in each of 300 rounds."""
    federation, _ = clients()
    still = Method(layout={"model": Shared()}, schedule=(Assign(("model",), as_it_is),))
    method = still + Method(wire=(Private(clip=0.5, noise=2.0),))
    remote, _ = far(federation, model, method, replace(WORK, rounds=20), tmp_path, secret=ONE)
    before, moved = {k: t.clone() for k, t in values(remote).items()}, []
    for _ in range(20):
        remote.step()
        moved += [(t - before[k]).flatten() for k, t in values(remote).items()]
        before = {k: t.clone() for k, t in values(remote).items()}
    noise = torch.cat(moved)
    assert float(noise.std()) == pytest.approx(0.2, abs=4 * 0.2 / math.sqrt(2 * len(noise)))
    assert abs(float(noise.mean())) < 4 * 0.2 / math.sqrt(len(noise))


def test_the_server_needs_a_secret_for_its_noise(tmp_path):
    with pytest.raises(PluresError, match="must not follow from the seed, which every member knows: give a secret"):
        both("fedavg+dp(clip=0.1,noise=1)", tmp_path, None)
    both("fedavg+dp(clip=0.1,noise=1,trust=nobody)", tmp_path, None)


def uploads(carrier: Loopback) -> list[torch.Tensor]:
    found = []
    for _, answer in carrier.answers:
        reply, tensors = unpack(answer, Reply)
        if reply.loss is None and tensors:
            found.append(torch.cat([t.flatten() for _, t in sorted(tensors.items())]))
    return found


def given(source: str):
    return lambda client: Secret(b"s" * 32).of(source, client)


def test_each_site_adds_noise_that_only_it_knows(tmp_path):
    """Upload = the plain one, clipped, + 0.1 * 3 * numbers from the site's own entropy, which the test gives it."""
    federation, _ = clients()
    sent = {}
    for noise, source in ((0, "none"), (3, "given"), (3, "other")):
        method = find_method(f"fedavg+dp(clip=0.1,noise={noise},trust=nobody)")()
        folder, own = tmp_path / f"{noise}{source}", given(source)
        remote, carrier = far(federation, model, method, WORK, folder, seed=1, entropy=own)
        remote.step()
        sent[noise, source] = uploads(carrier)
    for place, client in enumerate(federation.clients):
        plain, noisy, other = (found[place] for found in sent.values())
        drawn = parted(normal(given("given")(client), 1, len(plain)), remote.bound.line.payload)
        drawn = torch.cat([drawn[name].flatten() for name in sorted(drawn)])
        torch.testing.assert_close(noisy - plain, (0.3 * drawn).float(), atol=1e-6, rtol=1e-5)
        assert abs(float(torch.corrcoef(torch.stack([noisy - plain, other - plain]))[0, 1])) < 0.4
        assert float(plain.norm()) <= 0.1 + 1e-6


def test_without_a_given_source_the_noise_differs_each_time(tmp_path):
    """The same seed, the same data, the same order of everything: only the noise differs, as much as is stated."""
    federation, _ = clients()
    method = find_method("fedavg+dp(clip=0.1,noise=3,trust=nobody)")()
    found = []
    for number in range(2):
        remote, carrier = far(federation, model, method, WORK, tmp_path / str(number), seed=1)
        remote.step()
        found.append(torch.cat(uploads(carrier)))
    apart = found[0] - found[1]
    assert float(apart.std()) == pytest.approx(0.3 * math.sqrt(2), abs=4 * 0.3 / math.sqrt(len(apart)))


def test_private_steps_draw_examples_and_noise_from_the_sites_entropy(tmp_path):
    """A site is what a run of one client with the same entropy is, and differs from one with another."""
    federation, _ = clients()
    method = find_method("fedper+dp_sgd(clip=0.5,noise=1,rate=0.4)")()
    own = given("steps")
    remote, carrier = far(federation, model, method, PRIVATE_STEPS, tmp_path / "1", seed=1, entropy=own)
    remote.step()
    again, other = far(federation, model, method, PRIVATE_STEPS, tmp_path / "2", seed=1)
    again.step()
    for place, client in enumerate(federation.clients):
        alone = Run(
            federation.subset([client]), model, method, PRIVATE_STEPS, seed=1, execution=ONE_CLIENT, entropy=own(client)
        )
        alone.step()
        trained = torch.cat([t.flatten() for _, t in sorted(values(alone).items())])
        torch.testing.assert_close(uploads(carrier)[place], trained, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(uploads(other)[place], trained, atol=1e-3)
    spent = remote.spent()
    assert spent is not None
    assert (spent.unit, spent.trust, spent.rounds) == ("example", "nobody", 1)
    assert all(unpack(answer, Reply)[0].loss is None for _, answer in carrier.answers)
    assert not remote.clients.scores.get("validation")


@pytest.mark.parametrize("name", ["fedavg+dp_sgd(clip=0.5,noise=1,rate=0.4)", "fedavg+dp(noise=1,trust=nobody)"])
def test_numbers_without_noise_stay_at_home_where_nobody_is_trusted(name, tmp_path):
    federation, _ = clients()
    remote, carrier = far(federation, model, find_method(name)(), PRIVATE_STEPS, tmp_path, seed=1)
    remote.clients.evaluate = ("validation",)
    remote.step()
    for _, answer in carrier.answers:
        reply = unpack(answer, Reply)[0]
        assert reply.loss is None
        assert reply.objective is None
        assert not reply.metrics
        assert not any(scored.metrics for scored in reply.scores.values())


def test_a_repeated_order_gets_the_stored_answer_and_no_new_noise(tmp_path):
    federation, _ = clients()
    method = find_method("fedavg+dp(clip=0.1,noise=3,trust=nobody)")()
    remote, carrier = far(federation, model, method, WORK, tmp_path, seed=1)
    remote.step()
    address, order = carrier.log[-1]
    first, second = (unpack(carrier.sites[address].answer(order), Reply)[1] for _ in range(2))
    known = unpack(dict(carrier.answers)[address], Reply)[1]
    for name, value in known.items():
        assert torch.equal(first[name], value)
        assert torch.equal(second[name], value)


def test_the_secret_is_private_survives_a_stop_and_ends_with_the_run(tmp_path):
    """Correlated noise needs that of earlier rounds: a stopped run goes on as if it had not been stopped."""
    ends = []
    for folder, stop in ((tmp_path / "1", False), (tmp_path / "2", True)):
        file = written(folder, method="fedavg", dp="clip=0.1,noise=1,correlated=true", rounds=3)
        sites = Loopback([opened(file.parent / name / "site.toml") for name in heart_tables()])
        job = conductor(file, sites)
        (folder / "out").mkdir(exist_ok=True)
        secret = kept(folder / "out" / SECRET, "", new=True, entropy=lambda count: b"k" * count)
        assert secret == Secret(b"k" * 32)
        assert (folder / "out" / SECRET).stat().st_mode & 0o777 == 0o600
        if stop:
            step, count = job.round, iter(range(9))

            def stopping(*given, step=step, count=count):
                if next(count) == 1:
                    raise KeyboardInterrupt
                step(*given)

            job.round = stopping
            with pytest.raises(KeyboardInterrupt):
                job.run()
            job = conductor(file, sites)
        result = job.run()
        ends.append(result.test)
        assert not (folder / "out" / SECRET).exists()
    assert ends[0] == ends[1]


def test_a_run_does_not_go_on_without_its_secret(tmp_path):
    with pytest.raises(PluresError, match="is missing: start anew"):
        kept(tmp_path / "secret", "start anew", new=False)
    made = kept(tmp_path / "secret", "", new=True)
    assert kept(tmp_path / "secret", "", new=False) == made != kept(tmp_path / "other", "", new=True)
    assert made.key.hex() not in repr(made)
    os.chmod(tmp_path / "secret", 0o644)
    with pytest.raises(PluresError, match="is not private"):
        kept(tmp_path / "secret", "", new=False)
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(PluresError, match="has 5 bytes and not 32: start anew"):
        kept(tmp_path / "secret", "start anew", new=False)


def test_numbers_from_entropy_have_the_stated_distribution():
    numbers, coins = normal(os.urandom, 100_000), uniform(os.urandom, 100_000)
    assert abs(float(numbers.mean())) < 4 / math.sqrt(100_000)
    assert float(numbers.std()) == pytest.approx(1, abs=4 / math.sqrt(200_000))
    assert float((numbers.abs() < 1.96).double().mean()) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 1e5))
    assert float(coins.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 100_000))
    assert 0 <= float(coins.min()) < float(coins.max()) < 1
    assert normal(os.urandom, 0).shape == (0,)
    assert normal(os.urandom, 3, 5).shape == (3, 5)


def federation_of(folder, **run):
    file = written(folder, **run)
    return file, Loopback([opened(file.parent / name / "site.toml") for name in heart_tables()])


def test_a_round_to_which_nobody_comes_is_a_round(tmp_path):
    """Poisson cohorts, one of which is empty: the run goes to its end, and no more must come than were drawn."""
    file, sites = federation_of(
        tmp_path, method="fedavg", dp="clip=0.1,noise=1", participation="poisson", fraction=0.3, rounds=5
    )
    keys = (bytes([number]) * 32 for number in range(256))

    def sizes(key):
        return [len(Poisson(0.3).cohort(data, Secret(key).number("cohort", number), number)) for number in range(5)]

    data = Plan.load(file).table.empty("heart", tuple(heart_tables()))
    key = next(key for key in keys if (found := sizes(key))[2] == 0 and sum(found) > 3)
    (tmp_path / "out").mkdir()
    kept(tmp_path / "out" / SECRET, "", new=True, entropy=lambda count: key)
    result = conductor(file, sites).run()
    assert len(result.curve) == 5
    asked = [event["clients"] for event in Journal(tmp_path / "out").rounds()]
    assert [len(one) for one in asked] == sizes(key)


def test_what_sites_have_received_is_not_taken_back(tmp_path):
    file, sites = federation_of(tmp_path, method="fedavg", dp="clip=0.1,noise=1", rounds=3)
    job = conductor(file, sites)
    step = job.attempt

    def broken(remote):
        if remote.round == 2:
            raise BrokenError(remote.round, "va", "most sites cannot work on it")
        return step(remote)

    job.attempt = broken
    with pytest.raises(PluresError, match="which differential privacy counts and cannot take back"):
        job.run()


def test_an_agreed_plan_names_the_noise_itself(tmp_path):
    file = written(tmp_path, method="fedavg", dp="clip=0.1,epsilon=8", rounds=3)
    with pytest.raises(PluresError) as error:
        Plan.load(file)
    text = str(error.value)
    assert "all members need the same noise, as a number: write dp = 'clip=0.1,noise=" in text
    spends = gaussian(float(text.rsplit("noise=", 1)[1].strip("'")) / math.sqrt(3), 1e-5)
    assert spends == pytest.approx(8, rel=0.01)
    assert spends <= 8


@pytest.mark.parametrize(("coin", "changes"), [(0.0, False), (0.999, True)])
def test_a_site_tells_its_choice_by_its_own_coin(coin, changes, tmp_path):
    """A coin below the chance of the true answer tells it, a larger one another model; the seed decides nothing."""
    federation, _ = clients()
    bits = int(coin * 2**53).to_bytes(8, "little")
    true, told = (
        far(
            federation,
            model,
            find_method(name)(),
            WORK,
            tmp_path / name,
            seed=1,
            entropy=lambda client: lambda n: bits * (n // 8),
        )[0]
        for name in ("ifca(clusters=3)", "ifca(clusters=3,epsilon=1)")
    )
    true.step()
    told.step()
    alike = true.membership["model"] == told.membership["model"]
    assert bool((~alike).all()) if changes else bool(alike.all())


def test_bits_of_an_upload_come_from_the_site(tmp_path):
    """The same seed and other entropy: the same entries are told, with other signs."""
    federation, _ = clients()
    method = find_method("fedavg+dp(clip=0.01,noise=0.05,delta=1e-3,trust=nobody,mechanism=duchi)")()
    uploads = []
    for secret in (ONE, TWO):
        folder, drawn = tmp_path / secret.key.decode(), partial(secret.of)
        run, carrier = far(federation, model, method, WORK, folder, seed=1, entropy=drawn)
        run.step()
        uploads.append([unpack(answer, Reply)[1] for _, answer in carrier.answers[-len(federation) :]])
    one, two = uploads
    assert all(torch.equal(a["update:seed"], b["update:seed"]) for a, b in zip(one, two, strict=True))
    assert any(not torch.equal(a["update:bits"], b["update:bits"]) for a, b in zip(one, two, strict=True))
    assert one[0].keys() == {"update:seed", "update:bits"}
