"""Audits: numbers by hand; attacks that succeed where nothing protects and fail where something does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from plures import Poisson
from plures.audit import Audit, audited, canaries, guessing, inversion, likelihood_ratio, lower_bound, membership, ratio
from plures.audit.inversion import peak
from plures.audit.shadow import shadowed
from plures.codecs import SecureSum
from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.federation import SPLITS, Federation, Split
from plures.method import SGD, Method, Personal, Shared, paths
from plures.methods import fedavg, local
from plures.privacy import gaussian
from plures.run import Execution, Full, Run, Training
from plures.tasks import Classification

EXACT = Execution("loop", 1, False, "float64")


@pytest.mark.oracle("AU2")
def test_a_threshold_by_hand():
    """Losses (.1, .2, .3, .9) of members and (.25, .8, 1, 2) of others (Yeom et al.): advantage .5, AUC 13 / 16."""
    found = guessing(-np.array([0.1, 0.2, 0.3, 0.9]), -np.array([0.25, 0.8, 1.0, 2.0]))
    assert (found.advantage, found.auc, found.found) == (0.5, 0.8125, 0.5)
    same = np.array([1.0, 2.0, 3.0])
    assert (guessing(same, same).auc, guessing(same, same).advantage) == (0.5, 0.0)
    assert math.isnan(guessing(same, np.zeros(0)).auc)


@pytest.mark.oracle("AU1")
def test_the_likelihood_ratio_by_hand():
    """Scores 4, 6 inside and 1, 3 outside, all deviations 1: both variances are 2 with one degree of freedom each."""
    scores = np.array([[4.0], [6.0], [1.0], [3.0]])
    inside = np.array([[True], [True], [False], [False]])
    assert likelihood_ratio(np.array([5.0]), scores, inside) == pytest.approx([9 / 4])
    assert likelihood_ratio(np.array([3.5]), scores, inside) == pytest.approx([0.0])
    assert np.isnan(likelihood_ratio(np.array([5.0]), scores, np.ones_like(inside))).all()


@pytest.mark.oracle("AU1")
def test_the_likelihood_ratio_of_one_example():
    """Probabilities .99, .98, .97 inside, .9, .8, .7 outside and .96 seen, whose log odds are 3.1780538303."""
    odds = np.log(np.array([0.99, 0.98, 0.97, 0.9, 0.8, 0.7]) / np.array([0.01, 0.02, 0.03, 0.1, 0.2, 0.3]))
    inside = np.array([True] * 3 + [False] * 3)
    found = likelihood_ratio(np.array([3.1780538303]), odds[:, None], inside[:, None])
    assert found == pytest.approx([2.2926243134], abs=1e-9)


@pytest.mark.oracle("AU0")
@pytest.mark.parametrize(
    ("counts", "bound"),
    [
        ((450, 500, 50, 500), 1.9471),
        ((20, 500, 0, 500), 1.4956),
        ((500, 500, 0, 500), 5.1144),
        ((1000, 1000, 0, 1000), 5.8091),
    ],
)
def test_clopper_and_pearsons_bounds(counts, bound):
    """At delta 1e-5, which makes a difference in the fourth decimal where few are found."""
    assert lower_bound(*counts, delta=1e-5) == pytest.approx(bound, abs=6e-5)
    assert lower_bound(20, 500, 0, 500) == pytest.approx(1.49597, abs=5e-6)
    assert lower_bound(50, 500, 50, 500) == 0


@pytest.mark.oracle("AU3")
def test_a_linear_layer_bares_a_single_example():
    """x = (.5, -1, 2), W = ((.1, .2, -.1), (0, -.3, .2)), b = (.05, -.05), y = 1: db is +-.278884822."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 0.2, -0.1], [0.0, -0.3, 0.2]]))
        layer.bias.copy_(torch.tensor([0.05, -0.05]))
    x = torch.tensor([[0.5, -1.0, 2.0]])
    nn.functional.cross_entropy(layer(x), torch.tensor([1])).backward()
    assert layer.bias.grad.tolist() == pytest.approx([0.278884822, -0.278884822])
    torch.testing.assert_close(ratio(layer.weight.grad, layer.bias.grad), x.expand(2, 3))
    both = torch.tensor([[0.5, -1.0, 2.0], [3.0, 1.0, -1.0]])
    layer.zero_grad()
    nn.functional.cross_entropy(layer(both), torch.tensor([1, 0])).backward()
    mixed = ratio(layer.weight.grad, layer.bias.grad)
    assert torch.cdist(mixed, both).min() > 1  # two classes: no example


def rows(per_client: int, clients: int = 4) -> Federation:
    """Two classes in eight dimensions, with labels of noise, so that only memory fits them."""
    random = torch.Generator().manual_seed(3)
    size = per_client * clients
    inputs = torch.randn(size, 8, generator=random, dtype=torch.float64)
    targets = torch.randint(2, (size,), generator=random)
    own = list(torch.arange(size).view(clients, per_client))
    half = per_client // 2
    train, rest = Split.of([r[: max(half, 1)] for r in own]), Split.of([r[max(half, 1) :] for r in own])
    names = tuple("abcdefgh"[:clients])
    splits = {"train": train, "validation": rest, "test": rest}
    return Federation("rows", Classification(("no", "yes")), inputs, targets, names, splits)


def begun(method: Method, federation: Federation, steps: int = 1, rounds: int = 1, **given) -> Run:
    training = Training(rounds, None, steps=steps, optimizer=SGD(0.5))
    return Run(federation, lambda: nn.Linear(8, 2).double(), method, training, execution=EXACT, **given)


@pytest.mark.oracle("AU5")
def test_the_server_computes_an_example_and_everybody_else_does_not():
    run = begun(fedavg(), rows(2))
    found = {(one.seen, one.attack): one for one in inversion(run, "b", steps=100)}
    assert found["server", "ratio"].error < 1e-9
    assert found["server", "ratio"].control > 0.1
    assert found["everybody", "ratio"].error > 0.1
    assert found["server", "matching"].error < found["server", "matching"].control
    assert run.round == 0


@pytest.mark.oracle("AU4")
@pytest.mark.parametrize(("error", "decibels"), [(0.0046, 23.37), (0.0847, 10.72)])
def test_peak_signal_to_noise_by_hand(error, decibels):
    """Pictures of 0 and 1, and one of which every pixel is off by the root of the mean squared error."""
    pictures = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    own = Split.of([torch.tensor([0]), torch.tensor([1])])
    splits = dict.fromkeys(SPLITS, own)
    task = Classification(("no", "yes"))
    federation = Federation("pictures", task, pictures, torch.tensor([0, 1]), ("a", "b"), splits)

    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 2))

    run = Run(federation, network, fedavg(), Training(1, None, steps=1), execution=EXACT)
    made = pictures[:1] + error**0.5
    assert peak(run, 0, made) == pytest.approx(decibels, abs=5e-3)
    assert peak(run, 0, torch.cat([made, pictures[1:]])) == peak(run, 0, made), "the best of several"


def test_personal_leaves_are_seen_by_nobody():
    """Nobody divides the changes of a layer that stays at home."""
    assert inversion(begun(local(), rows(2)), "b", steps=1) == []

    def network() -> nn.Module:
        layers = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2)).double()
        return nn.Sequential(layers)

    training = Training(1, None, steps=1, optimizer=SGD(0.5))
    kept = Method(layout={paths("0.0.weight", "0.0.bias"): Personal(), "model": Shared()})
    run = Run(rows(2), network, kept, training, execution=EXACT)
    assert {one.attack for one in inversion(run, "b", steps=1)} == {"matching", "dlg"}


def test_matching_finds_the_example_without_a_layer_that_reads_inputs():
    run = begun(fedavg(), rows(2))
    own = run.federation.inputs[run.federation.splits["train"][1]]
    found = next(one for one in inversion(run, "b", steps=400) if (one.seen, one.attack) == ("server", "matching"))
    assert found.error < 0.5
    assert len(own) == 1


@pytest.mark.oracle("AU5")
@pytest.mark.parametrize("name", ["fedavg+dp(clip=0.1,noise=0.5)", "fedavg+sign"])
def test_noise_and_signs_spoil_what_everybody_and_the_server_compute(name):
    run = begun(find_method(name)(), rows(2), participation=Poisson(1.0))
    seen = {one.seen: one for one in inversion(run, "b", steps=1) if one.attack == "ratio"}
    plain = next(one for one in inversion(begun(fedavg(), rows(2)), "b", steps=1) if one.attack == "ratio")
    spoiled = seen["everybody" if "dp" in name else "server"]
    assert plain.error < 1e-9
    assert spoiled.error > 0.1


@pytest.mark.oracle("AU5")
def test_a_secure_sum_shows_the_server_no_upload():
    run = begun(replace(fedavg(), wire=(SecureSum(),)), rows(2))
    assert {one.seen for one in inversion(run, "b", steps=1)} == {"everybody"}


def test_models_that_memorise_are_noticed_and_the_shared_one_tells_less():
    run = begun(local(), rows(12), steps=300)
    for _ in run.rounds():
        pass
    found = membership(run, "a")
    assert (found["personal"].members, found["personal"].others) == (6, 12)
    assert found["personal"].auc > 0.9
    assert found["shared"].auc < 0.75


def test_shadow_models_find_members_of_models_that_memorise():
    def made(federation: Federation) -> Run:
        run = begun(local(), federation, steps=100)
        for _ in run.rounds():
            pass
        return run

    found = shadowed(rows(24), made, shadows=4)
    assert np.mean([one.auc for one in found.values()]) > 0.7
    with pytest.raises(PluresError, match="shadows=1: give at least 2"):
        shadowed(rows(24), made, shadows=1)


@pytest.mark.oracle("AU6")
@pytest.mark.parametrize(("noise", "rounds", "rate"), [(1.0, 1, 1.0), (2.0, 8, 0.5)])
def test_canaries_find_less_than_the_accountant_allows_and_not_nothing(noise, rounds, rate):
    found = canaries(find_method(f"fedavg+dp(clip=1,noise={noise},delta=0.00001)")(), Poisson(rate), rounds, 400)
    assert 0 < found.bound <= found.claimed
    assert found.found > found.false


def test_canaries_of_a_run_have_its_own_noise():
    """The plan of a run whose bound follows a quantile gives votes their share of the noise, once."""
    method = find_method("fedavg+dp(clip=1,noise=1,quantile=0.5,votes=3)")()
    run, fresh = (begun(method, rows(4)) for _ in range(2))
    run.step()
    found = audited(run, fresh, "FedAvg", clients=["a"], planted=20).canaries
    assert found is not None
    assert found.claimed == pytest.approx(gaussian(1.0, 1e-5))


@pytest.mark.oracle("AU6")
def test_canaries_find_a_mechanism_without_noise():
    """A thousand clients show at most 4.4 (250 of 250 canaries found, none of 250 others); here 100 are judged."""
    assert lower_bound(250, 250, 0, 250) == pytest.approx(4.4183, abs=1e-4)
    found = canaries(find_method("fedavg+dp(clip=1,noise=0)")(), Full(), 1, 400)
    assert (found.found, found.false, found.claimed) == (1.0, 0.0, math.inf)
    assert found.bound == pytest.approx(lower_bound(100, 100, 0, 100, found.delta))
    with pytest.raises(PluresError, match="needs a method with a stage of differential privacy"):
        canaries(fedavg(), Full(), 1, 40)


def test_an_audit_says_what_it_found():
    run, fresh = (begun(fedavg(), rows(4)) for _ in range(2))
    run.step()
    found = audited(run, fresh, "FedAvg", clients=["a", "b"])
    text = "\n".join(found.summary())
    assert "Membership, personal models" in text
    assert "the server computes an example of" in text
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_the_command_writes_what_it_found(says, tmp_path):
    out = tmp_path / "run"
    assert says("run", "heart", "ditto", "--rounds", 1, "--device", "cpu", "--out", out, "--quiet")[0] == 0
    status, told = says("audit", out, "--client", "va", "--quiet")
    assert status == 0
    assert "Inversion of the first round: the server computes an example of 1 of 1 clients" in told
    found = Audit.model_validate_json((out / "audit.json").read_text())
    assert (found.title, list(found.membership)) == ("ditto", ["va"])
    assert (out / "audit.html").read_text().count("<tr>") == 4
    status, told = says("audit", out, "--client", "v")
    assert (status, "error: --client: no client 'v'" in told) == (2, True)
    for given, why in (
        (("--canaries", 7), "--canaries 7: give a multiple of 4, and at least 20"),
        (("--canaries", 40), "no run here has differential privacy"),
        (("--method", "ditto"), "--method chooses among the methods of a comparison"),
    ):
        status, told = says("audit", out, *given)
        assert (status, why in told) == (2, True)


def test_the_report_of_a_comparison_shows_audits_that_were_made_later_and_keeps_them(says, tmp_path):
    out, dp = tmp_path / "compared", "fedavg+dp(clip=0.3,noise=2,delta=0.01)"
    work = ("--rounds", 2, "--seeds", 1, "--tune-rounds", 0, "--lr", 0.1, "--participation", "poisson")
    compared = ("compare", "heart", "--method", dp, *work, "--fraction", 0.9, "--device", "cpu", "--out", out)
    assert says(*compared, "--quiet")[0] == 0
    assert 'id="audit"' not in (out / "report.html").read_text()
    status, told = says("audit", out, "--method", dp, "--method", "local", "--canaries", 40, "--client", "va")
    assert (status, "the report shows it, too" in told) == (0, True)
    page = (out / "report.html").read_text()
    section = page[page.index('<section id="audit"') :]
    section = section[: section.index("</section>")]
    kept = Audit.model_validate_json((out / "runs" / "local-seed0" / "audit.json").read_text())
    assert f"{100 * kept.membership['va']['personal'].auc:.0f} %" in section
    assert section.count("<details") == 2
    for words in ("unprotected", "by the accountant", "Local only"):
        assert words in section
    assert says(*compared, "--quiet")[0] == 0  # rendered again by the comparison that finds all its runs done
    assert 'id="audit"' in (out / "report.html").read_text()
    (out / "runs" / "local-seed0" / "audit.json").write_text("{}")
    status, told = says(*compared, "--quiet")
    assert (status, "audit.json is not an audit" in " ".join(told.split())) == (2, True)


def test_a_picture_is_found_by_its_gradient_and_not_behind_a_stage():
    """DLG and the cosine with total variation on one picture; with one bit of every entry neither finds it."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    spots = [(3.0, 4.0), (8.0, 8.0), (5.0, 2.0), (9.0, 3.0)]
    pictures = torch.stack([torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 8) for a, b in spots])[:, None].double()
    train, rest = (Split.of([torch.tensor([i]) for i in side]) for side in ((0, 1), (2, 3)))
    splits = {"train": train, "validation": rest, "test": rest}
    federation = Federation(
        "spots", Classification(("no", "yes")), pictures, torch.tensor([0, 1, 0, 1]), ("a", "b"), splits
    )

    def network() -> nn.Module:
        body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(8 * 144, 2)).double()

    def best(name: str, attack: str) -> float:
        training = Training(1, None, steps=1, optimizer=SGD(0.1))
        run = Run(federation, network, find_method(name)(), training, execution=EXACT)
        found = {one.attack: one for one in inversion(run, "b", steps=200) if one.seen == "server"}
        psnr = found[attack].psnr
        assert psnr is not None
        return psnr

    assert best("fedavg", "dlg") > 40
    assert best("fedavg", "matching") > 20
    assert max(best("fedavg+sign", attack) for attack in ("dlg", "matching")) < 20


def test_of_an_attacked_run_only_honest_clients_are_audited_also_with_shadows(says, tmp_path):
    """The attacker has no examples to be judged by, and its own messages bare nobody."""
    out = tmp_path / "attacked"
    attack = ("--attack", "backdoor(target=1)+replacement", "--attackers", "va")
    assert says("run", "heart", "fedavg", *attack, "--rounds", 1, "--device", "cpu", "--out", out, "--quiet")[0] == 0
    status, told = says("audit", out, "--shadows", 2, "--quiet")
    assert (status, "an example of 0 of 3 clients" in told) == (0, True)
    found = Audit.model_validate_json((out / "audit.json").read_text())
    assert "va" not in {*found.membership, *found.shadowed, *found.inversion}
    assert len(found.shadowed) == 3
    status, told = says("audit", out, "--client", "va")
    assert (status, "error: client 'va' is an attacker of this simulation: audit honest clients" in told) == (2, True)


def test_a_client_without_other_examples_is_kept_as_one_of_whom_nothing_is_known():
    found = guessing(np.array([-0.1]), np.zeros(0))
    assert math.isnan(type(found).model_validate_json(found.model_dump_json()).auc)
