"""The interface for secure sums: payloads that are added modulo 2**32 and never read one by one.

``Masked`` is the arithmetic of Bonawitz et al. 2017 without self masks: pairs of clients add and subtract the same
random numbers. It is a toy: a client that drops out leaves its masks behind, so the round is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from plures.codecs import Clip, Feedback, TopK
from plures.errors import PluresError
from plures.method import SGD, Channel, Codec, Combine, Leaves, Method, Reducer, Sending, Summed, joined, lay, parted
from plures.methods import METHODS, fedavg, ifca, qffl, scaffold
from plures.remote.clients import insist_on_single
from plures.run import Execution, Run, Training, Uniform
from plures.run.coordinator import Work
from plures.run.local import Local
from problems import EXACT, close, quadratic, run, scalar, weight

SCALE = 2**20


class Masked(Codec):
    """Weighted changes in steps of ``1 / SCALE``, each pair of clients with masks that cancel in the sum."""

    sums: ClassVar[bool] = True

    def encode(self, change: Leaves, memory: Leaves, sending: Sending) -> tuple[Leaves, Leaves]:
        known = sending.summed
        assert known is not None
        whole = (joined(change).double() * known.weights[:, None] * SCALE).round().long()
        for row, client in enumerate(known.clients.tolist()):
            for other, key in zip(known.cohort.tolist(), known.pairs[row].tolist(), strict=True):
                numbers = torch.randint(2**32, whole[row].shape, generator=torch.Generator().manual_seed(key))
                whole[row] += numbers * ((other > client) - (other < client))
        return {"masked": ((whole + 2**31) % 2**32 - 2**31).to(torch.int32)}, memory

    def total(self, payload: Leaves, like: Leaves, asked: torch.Tensor, came: torch.Tensor) -> Leaves:
        if asked.tolist() != came.tolist():
            missing = sorted({*asked.tolist()} - {*came.tolist()})
            raise PluresError(f"Masked: the masks of clients {missing} remain in the sum")
        return parted(payload["masked"].double() / SCALE, like)

    def refusal(self, channel: Channel) -> str | None:
        return "it would leave without a mask" if channel.tensors else None


def test_three_masked_numbers_by_hand():
    """Modulo 16, x = (3, 5, 6), masks 4, 7, 9 of the pairs: 14, 10 and 6 are sent, and their sum is 14 = 3 + 5 + 6."""
    assert [(3 + 4 + 7) % 16, (5 - 4 + 9) % 16, (6 - 7 - 9) % 16] == [14, 10, 6]
    line = lay((Masked(),), {"x": torch.zeros(1, 1, dtype=torch.float64)})
    pairs = torch.tensor([[0, 4, 7], [4, 0, 9], [7, 9, 0]])
    known = Summed(torch.arange(3), torch.arange(3), pairs, torch.ones(3, dtype=torch.float64))
    change = torch.tensor([[3.0], [5.0], [6.0]], dtype=torch.float64) / SCALE
    sent = line.encode({"x": change}, {}, Sending(torch.zeros(3, dtype=torch.int64), {}, known))[0]["masked"]
    mask = {s: int(torch.randint(2**32, (1,), generator=torch.Generator().manual_seed(s))) for s in (4, 7, 9)}
    wanted = [(3 + mask[4] + mask[7]) % 2**32, (5 - mask[4] + mask[9]) % 2**32, (6 - mask[7] - mask[9]) % 2**32]
    assert [n % 2**32 for n in sent.flatten().tolist()] == wanted
    assert sent.sum(0, dtype=torch.int32).tolist() == [14]


def sent(done: Run) -> torch.Tensor:
    """What each client sends in the next round, by position."""
    cohort = done.cohort(done.round)
    found = {}
    for answer, _ in done.clients.work(done, cohort, done.choose(cohort)).answers:
        found |= dict(zip(answer.clients, answer.sent["update"]["masked"], strict=True))
    return torch.stack([found[client] for client in cohort])


@pytest.mark.parametrize(
    "method", [fedavg(), fedavg("uniform"), scaffold(), Method(combine=Combine(denominator=100.0))]
)
def test_the_sum_is_right_and_a_single_upload_tells_nothing(method):
    masked = replace(method, wire=(Masked(),))
    for chunk in (1, 3):
        execution, training = replace(EXACT, chunk=chunk), Training(4, None, steps=2, optimizer=SGD(0.1))
        done, plain = (Run(quadratic(), scalar(), m, training, execution=execution) for m in (masked, method))
        uploads = sent(done)
        for _ in range(4):
            done.step(), plain.step()
        assert weight(done) == pytest.approx(weight(plain), abs=4 * 3 / SCALE)
        assert weight(done) != weight(plain)  # the steps of 1 / SCALE show
        assert (uploads.long().abs() > 2**21).all()  # each change, times its weight, is below 2
        assert not torch.equal(uploads, sent(done))
    assert done.bound.secure_aggregation


def test_weighted_changes_are_summed_as_whole_numbers():
    """First changes -.19, .18, 1.92 with 10, 20 and 30 examples: each is rounded by itself, and the rest is exact."""
    done = run(replace(fedavg(), wire=(Masked(),)), 0)
    wanted = [round(change * n * SCALE) for change, n in ((-0.19, 10), (0.18, 20), (1.92, 30))]
    uploads = sent(done)
    assert uploads.sum(0, dtype=torch.int32).tolist() == [sum(wanted)]
    assert [int(n) for n in uploads.flatten()] != wanted
    done = run(replace(fedavg(), wire=(Masked(),)), 1)
    assert weight(done) == close(sum(wanted) / SCALE / 60)


def test_only_the_cohort_counts_and_each_round_has_masks_of_its_own():
    method, training = fedavg("uniform"), Training(5, None, steps=2, optimizer=SGD(0.1))
    one, two = (
        Run(quadratic(), scalar(), m, training, participation=Uniform(0.67), seed=2, execution=EXACT)
        for m in (replace(method, wire=(Clip(1.0), Masked())), replace(method, wire=(Clip(1.0),)))
    )
    for _ in range(5):
        assert len(one.step().cohort) == 2
        two.step()
    assert weight(one) == pytest.approx(weight(two), abs=5 * 3 / SCALE)


class Flaky(Local):
    """The first client never answers."""

    def work(self, run, clients, server):
        there = [client for client in clients if client != 0]
        return Work(there, super().work(run, there, server).answers, server, {run.setting.clients[0]: "is away"})


def test_a_client_that_drops_out_is_refused_and_the_round_does_not_count():
    done = run(replace(fedavg(), wire=(Masked(),)), 0)
    done.clients = Flaky(done.engine)
    done.training = replace(done.training, rounds=1)
    with pytest.raises(PluresError, match=r"the masks of clients \[0\] remain in the sum"):
        done.step()
    assert (done.round, weight(done)) == (0, 0.0)


class First(Reducer):
    def reduce(self, uploads, arrived):
        return uploads[0], {}


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (ifca(2), "block 'model': its clients do not all have the same model"),
        (Method(combine=Combine(reduce=First())), "block 'model': its reducer must see individual uploads"),
        (qffl(), "block 'model': its weights are computed by the clients"),
        (replace(fedavg(), wire=(TopK(1),)), "wire stage TopK: its payloads cannot be added up, which Masked does"),
        (METHODS["qsparse"](), "wire stage Feedback: its payloads cannot be added up, which Masked does"),
    ],
)
def test_what_a_sum_alone_cannot_give_is_refused(method, told):
    with pytest.raises(PluresError, match=told):
        Run(quadratic(), scalar(), replace(method, wire=(*method.wire, Masked())), execution=EXACT)


def test_a_stage_that_sums_is_the_last_and_tells_no_client_what_it_sent():
    zeros = {"x": torch.zeros(1, 10)}
    with pytest.raises(PluresError, match="wire stage Masked gives the server a sum alone: put Clip before it"):
        lay((Masked(), Clip(1.0)), zeros)
    with pytest.raises(PluresError, match="Feedback: nobody can decode a single payload of Masked"):
        Feedback((Masked(),))


def test_channels_beside_the_sum_are_the_stages_to_refuse():
    def normed():
        return torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))

    with pytest.raises(
        PluresError, match=r"wire stage Masked refuses channel 'buffers' .*: it would leave without a mask"
    ):
        Run(quadratic(), normed, replace(fedavg(), wire=(Masked(),)), execution=EXACT)


def test_sites_refuse_it_for_they_have_no_keys_in_common():
    bound = run(replace(fedavg(), wire=(Masked(),)), 0).bound
    with pytest.raises(PluresError, match="wire stage Masked adds uploads up under keys that clients have in common"):
        insist_on_single(bound)


def test_the_catalogue_says_which_wires_a_secure_sum_can_carry():
    """Sparse uploads have other entries for every client; a clipped change is a change."""
    for wire, secure in (((), True), ((Clip(1.0),), True), ((TopK(1),), False), (METHODS["qsparse"]().wire, False)):
        bound = Run(quadratic(), scalar(), replace(fedavg(), wire=wire), execution=Execution("loop")).bound
        assert bound.secure_aggregation is secure
