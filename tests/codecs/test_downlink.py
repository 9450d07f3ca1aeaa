"""Compressed downloads: rounds by hand, nothing lost for good, bytes of who was away, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from plures.codecs import Cast, Clip, Downlink, Feedback, RandomK, SecureSum, TopK, qsparse
from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.federation import SPLITS, Federation, Split
from plures.method import SGD, Method
from plures.methods import ditto, fedavg, ifca, local, scaffold
from plures.run import Execution, Poisson, Run, Training, Uniform
from plures.run.checkpoint import resume, save
from plures.run.cost import traffic
from plures.tasks import Regression

EXACT = Execution("loop", 1, False, "float64")
TARGETS = ((6.0, -3.0, 0.0), (2.0, -1.0, 2.0))
"""What two clients want; in the middle lies (4, -2, 1). A step goes half of the way."""


def begun(method: Method, rounds: int = 4, targets=TARGETS, **given) -> Run:
    size = len(targets)
    split = Split.of([torch.tensor([i]) for i in range(size)])
    wanted = torch.tensor(targets, dtype=torch.float64)
    names = tuple("abcdefgh"[:size])
    ones = torch.ones(size, 1, dtype=torch.float64)
    federation = Federation("vectors", Regression(3), ones, wanted, names, dict.fromkeys(SPLITS, split))

    def network() -> nn.Module:
        layer = nn.Linear(1, 3, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    training = Training(rounds, None, steps=1, optimizer=SGD(0.25))
    return Run(federation, network, method, training, execution=EXACT, **given)


def model(run: Run) -> list[float]:
    return run.states([0])["model"]["weight"][0].flatten().tolist()


def test_four_rounds_by_hand():
    """The largest of three entries is sent; what is left waits, and the clients train from what they have."""
    run = begun(Method(wire=(Downlink((TopK(1),)),)) + fedavg("uniform"))
    seen, owed = [], []
    for _ in run.rounds():
        seen.append(model(run))
        owed.append(run.memory["downlink"]["0:error:model/weight"].flatten().tolist())
    assert seen == [[2, 0, 0], [2, -2, 0], [4, -2, 0], [4, -2, 2]]
    assert owed == [[0, -1, 0.5], [1, 0, 1], [0, 0, 1.5], [0, 0, 0]]


def test_bytes_of_a_round_are_the_model_at_first_then_changes():
    """Three numbers are 24 bytes, a number and a byte that marks its place 9."""
    run = begun(Method(wire=(Downlink((TopK(1),)),)) + fedavg("uniform"))
    assert [record.bytes_down for record in run.rounds()] == [48, 18, 18, 18]
    assert traffic(run.bound) == (24, 9)


def test_who_was_away_gets_what_was_sent_meanwhile_or_the_model_if_that_is_shorter():
    run = begun(Method(wire=(Downlink((TopK(1),)),)) + fedavg("uniform"), 12, participation=Uniform(0.5), seed=3)
    last: dict[str, int] = {}
    for place, record in enumerate(run.rounds()):
        expected = 0
        for name in record.cohort:
            expected += min(24, 9 * (place - last[name])) if name in last else 24
            last[name] = place
        assert record.bytes_down == expected


@pytest.mark.oracle("CO6")
@pytest.mark.parametrize("build", [fedavg, scaffold, ditto], ids=["fedavg", "scaffold", "ditto"])
@pytest.mark.parametrize("stages", [(TopK(10**6),), (RandomK(10**6, unbiased=False),)], ids=["topk", "randomk"])
def test_stages_that_leave_nothing_out_are_the_plain_run_bit_for_bit(build, stages):
    targets = tuple((0.1 + i, 1 / (3 + i), -0.7 * i) for i in range(3))
    runs = [begun(m, 5, targets) for m in (build(), replace(build(), wire=(Downlink(stages),)))]
    for one, two in zip(*(list(run.rounds()) for run in runs), strict=True):
        assert (one.loss, one.bytes_down, one.bytes_up) == (two.loss, two.bytes_down, two.bytes_up)
    first, second = (run.states([0, 1, 2]) for run in runs)
    for slot, leaves in first.items():
        for path, value in leaves.items():
            assert torch.equal(value, second[slot][path])


@pytest.mark.parametrize("stage", [TopK(1), RandomK(1, unbiased=False), Cast("bfloat16")])
def test_all_that_was_sent_and_the_memory_sum_up_to_all_changes(stage):
    """With targets that nobody reaches exactly: clients' model + memory = the model before + every change."""
    targets = ((0.3, -1.1, 0.7), (2.9, 0.4, -0.2))
    run = begun(Method(wire=(Downlink((stage,)),)) + fedavg("uniform"), 8, targets)
    middle, had, owed = torch.tensor(targets).double().mean(0), torch.zeros(3).double(), torch.zeros(3).double()
    for _ in run.rounds():
        change = (had + middle) / 2 - had
        now = torch.tensor(model(run), dtype=torch.float64)
        left = run.memory["downlink"]["0:error:model/weight"].flatten()
        torch.testing.assert_close(now + left, had + owed + change, rtol=0, atol=1e-6)
        had, owed = now, left


def test_the_optimum_is_reached_with_one_entry_a_round():
    """With steps of half the way single rounds go past it and back; their mean is there."""
    run = begun(find_method("fedavg+topk(1)+downlink+topk(1)+feedback")(), 120)
    seen = torch.tensor([model(run) for _ in run.rounds()])
    assert seen[60:].mean(0).tolist() == pytest.approx([4, -2, 1], abs=0.1)
    assert traffic(run.bound) == (9, 9)


def test_noise_of_differential_privacy_is_added_before_the_download_is_encoded():
    run = begun(find_method("fedavg+topk(1)+downlink+dp(clip=1,noise=1,delta=0.01)")(), 3, participation=Poisson(1.0))
    plain = begun(find_method("fedavg+dp(clip=1,noise=1,delta=0.01)")(), 3, participation=Poisson(1.0))
    run.step()
    plain.step()
    first = torch.tensor(model(plain), dtype=torch.float64)
    left = run.memory["downlink"]["0:error:model/weight"].flatten()
    torch.testing.assert_close(torch.tensor(model(run), dtype=torch.float64) + left, first)
    assert sum(value != 0 for value in model(run)) == 1
    assert run.spent() == plain.spent()


def test_by_name_it_stands_behind_its_stages_and_before_those_of_uploads():
    assert find_method("fedavg+topk(1)+downlink")().wire == (Downlink((TopK(1),)),)
    both = find_method("fedavg+topk(0.1)+downlink+topk(0.01)+feedback")().wire
    assert both == (Downlink((TopK(0.1),)), qsparse(0.01))
    assert find_method("fedavg+topk(0.5)+downlink+clip")().wire == (Downlink((TopK(0.5),)), Clip(1.0))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: begun(Method(wire=(Downlink(),)) + fedavg()), "has no stages: put it behind those that leave out"),
        (lambda: Downlink((Feedback((TopK(1),)),)), "Downlink: its stages remember what they leave out already"),
        (lambda: Downlink((RandomK(1),)), "Downlink: .* give RandomK unbiased=False"),
        (lambda: Downlink((Clip(1.0), TopK(1))), "Clip is for what clients send: write downlink before it"),
        (lambda: Downlink((SecureSum(),)), "Downlink: nobody can decode a single payload of SecureSum"),
        (lambda: find_method("fedavg+topk(1)+downlink+topk(1)+downlink")(), "leave one downlink out"),
        (lambda: begun(replace(ifca(2), wire=(Downlink((TopK(1),)),))), "clients do not all have the same model"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(made, told):
    with pytest.raises(PluresError, match=told):
        made()


def test_a_method_that_sends_nothing_has_no_downloads():
    assert traffic(begun(replace(local(), wire=(Downlink((TopK(1),)),))).bound) == (0, 0)


def test_a_checkpoint_keeps_what_the_server_owes(tmp_path):
    method = find_method("scaffold+topk(1)+downlink+topk(1)+feedback")()
    one, two = (begun(method, 6) for _ in range(2))
    for _ in range(3):
        one.step()
    save(one, "x", tmp_path / "x.safetensors")
    resume(two, "x", tmp_path / "x.safetensors")
    assert [r.loss for r in one.rounds()] == [r.loss for r in two.rounds()]
    assert model(one) == model(two)
