"""Secure sums: payloads of whole numbers to which clients add masks, so that only their sum is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plures.codecs import Clip, Feedback, SecureSum, TopK
from plures.errors import PluresError
from plures.method import SGD, Combine, Method, Reducer, Sending, Summed, lay
from plures.methods import METHODS, fedavg, ifca, qffl, scaffold
from plures.run import DropOut, Execution, Fixed, Full, Run, Training, Uniform
from problems import EXACT, quadratic, scalar, weight

STEP = 8 / 2**30
"""A step of a mean's number; each client rounds its part to a whole one."""


def words(line, change, weights, mass):
    known = Summed(torch.tensor(weights, dtype=torch.float64), mass)
    values = {"x": torch.tensor(change, dtype=torch.float64).unsqueeze(1)}
    keys = torch.zeros(len(change), dtype=torch.int64)
    return line.encode(values, {}, Sending(keys, {}, known))[0]["words"]


@pytest.mark.oracle("SA4")
def test_parts_of_the_mean_are_rounded_to_whole_steps_by_hand():
    """Changes -.19, .18, 1.92 with weights 10, 20, 30 of 60: parts -.0316667, .06, .96."""
    line = lay((SecureSum(),), {"x": torch.zeros(1, 1, dtype=torch.float64)})
    found = words(line, (-0.19, 0.18, 1.92), (10, 20, 30), 60.0)
    assert found.dtype == torch.int32
    assert found.flatten().tolist() == [round(x / STEP) for x in (-0.19 / 6, 0.06, 0.96)]
    total = line.total({"words": found.sum(0, keepdim=True, dtype=torch.int32)}, 60.0)["x"].item()
    assert total == pytest.approx(-1.9 + 3.6 + 57.6, abs=60 * 1.5 * STEP)


def test_a_mean_never_overflows_however_many_clients_there_are():
    line = lay((SecureSum(bound=1.0),), {"x": torch.zeros(1, 1, dtype=torch.float64)})
    found = words(line, [1.0] * 5000, [1.0] * 5000, 5000.0)
    total = line.total({"words": found.sum(0, keepdim=True, dtype=torch.int32)}, 5000.0)["x"].item()
    assert total == pytest.approx(5000, rel=5000 * 2**-31)
    with pytest.raises(PluresError, match=r"SecureSum: a change of 1\.5 is beyond 1; give a larger bound, or clip"):
        words(line, [1.5], [1.0], 1.0)


def sent(done: Run) -> torch.Tensor:
    """What each client sends in the next round, by position."""
    cohort = done.cohort(done.round)
    found = {}
    for answer, _ in done.clients.work(done, cohort, done.choose(cohort)).answers:
        found |= dict(zip(answer.clients, answer.sent["update"]["words"], strict=True))
    return torch.stack([found[client] for client in cohort])


@pytest.mark.oracle("SA4")
@pytest.mark.parametrize(
    "method", [fedavg(), fedavg("uniform"), scaffold(), Method(combine=Combine(denominator=100.0))]
)
def test_the_sum_is_right_and_a_single_upload_tells_nothing(method):
    masked = replace(method, wire=(SecureSum(16.0),))
    for chunk in (1, 3):
        execution, training = replace(EXACT, chunk=chunk), Training(4, None, steps=2, optimizer=SGD(0.1))
        done, plain = (Run(quadratic(), scalar(), m, training, execution=execution) for m in (masked, method))
        uploads = sent(done)
        for _ in range(4):
            done.step(), plain.step()
        assert weight(done) == pytest.approx(weight(plain), abs=4 * 3 * 2 * STEP)
        assert weight(done) != weight(plain)  # the steps show
        assert not torch.equal(uploads, sent(done))
    assert done.bound.secure_aggregation


def test_only_the_cohort_counts_and_each_round_has_masks_of_its_own():
    method, training = fedavg("uniform"), Training(5, None, steps=2, optimizer=SGD(0.1))
    one, two = (
        Run(quadratic(), scalar(), m, training, participation=Uniform(0.67), seed=2, execution=EXACT)
        for m in (replace(method, wire=(Clip(1.0), SecureSum())), replace(method, wire=(Clip(1.0),)))
    )
    for _ in range(5):
        assert len(one.step().cohort) == 2
        two.step()
    assert weight(one) == pytest.approx(weight(two), abs=5 * 3 * STEP)


NAMES = quadratic().clients
TWO = Fixed([[name for name in NAMES if name != gone] for gone in NAMES])
"""In each round another one of the three is missing."""


class Dropping(DropOut):
    def cohort(self, setting, seed, round):
        return TWO.cohort(setting, seed, round)


@pytest.mark.parametrize("method", [fedavg(), scaffold()])
def test_masks_that_missing_clients_left_are_taken_out_of_the_sum_of_the_others(method):
    """The missing one has dealt its shares; two are more than half."""
    training = Training(3, None, steps=2, optimizer=SGD(0.1))
    secure, plain = (
        Run(quadratic(), scalar(), made, training, participation=rule, execution=EXACT)
        for made, rule in ((replace(method, wire=(SecureSum(16.0),)), Dropping(Full(), 0.5)), (method, TWO))
    )
    for _ in range(3):
        assert len(secure.step().cohort) == 2
        plain.step()
    assert weight(secure) == pytest.approx(weight(plain), abs=3 * 3 * 2 * STEP)


class Alone(DropOut):
    def cohort(self, setting, seed, round):
        return [0] if round == 1 else [0, 1, 2]


@pytest.mark.oracle("SA5")
def test_too_few_survivors_are_no_sum_and_change_nothing():
    training, method = Training(3, None, steps=2, optimizer=SGD(0.1)), replace(scaffold(), wire=(SecureSum(16.0),))
    done = Run(quadratic(), scalar(), method, training, participation=Alone(Full(), 0.5), execution=EXACT)
    done.step()
    before = weight(done)
    record = done.step()
    assert record.cohort == ()
    assert record.left_out == {NAMES[0]: "1 clients stayed to the end, and 2 must for a secure sum"}
    assert (weight(done), done.round, done.last.tolist()) == (before, 2, [1, 1, 1])
    assert len(done.step().cohort) == 3
    assert weight(done) != before


@pytest.mark.oracle("SA5")
def test_the_sum_of_a_single_client_is_refused_before_the_first_round():
    with pytest.raises(PluresError, match="a secure sum of one client hides nothing: let two or more take part"):
        Run(quadratic(), scalar(), replace(fedavg(), wire=(SecureSum(),)), participation=Uniform(0.3), execution=EXACT)


class First(Reducer):
    def reduce(self, uploads, arrived):
        return uploads[0], {}


@pytest.mark.oracle("SP1")
@pytest.mark.parametrize(
    ("method", "told"),
    [
        (ifca(2), "block 'model': its clients do not all have the same model"),
        (Method(combine=Combine(reduce=First())), "block 'model': its reducer must see individual uploads"),
        (qffl(), "block 'model': its weights are computed by the clients"),
        (replace(fedavg(), wire=(TopK(1),)), "wire stage TopK: its payloads cannot be added up, which SecureSum does"),
        (METHODS["qsparse"](), "wire stage Feedback: its payloads cannot be added up, which SecureSum does"),
    ],
)
def test_what_a_sum_alone_cannot_give_is_refused(method, told):
    with pytest.raises(PluresError, match=told):
        Run(quadratic(), scalar(), replace(method, wire=(*method.wire, SecureSum())), execution=EXACT)


def test_a_stage_that_sums_is_the_last_and_tells_no_client_what_it_sent():
    zeros = {"x": torch.zeros(1, 10)}
    with pytest.raises(PluresError, match="wire stage SecureSum gives the server a sum alone: put Clip before it"):
        lay((SecureSum(), Clip(1.0)), zeros)
    with pytest.raises(PluresError, match="Feedback: nobody can decode a single payload of SecureSum"):
        Feedback((SecureSum(),))


def test_channels_beside_the_sum_are_the_stages_to_refuse():
    def normed():
        return torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))

    with pytest.raises(
        PluresError, match=r"wire stage SecureSum refuses channel 'buffers' .*: it would leave without a mask"
    ):
        Run(quadratic(), normed, replace(fedavg(), wire=(SecureSum(),)), execution=EXACT)


@pytest.mark.oracle("SP1")
def test_the_catalogue_says_which_wires_a_secure_sum_can_carry():
    """Sparse uploads have other entries for every client; a clipped change is a change."""
    for wire, secure in (((), True), ((Clip(1.0),), True), ((TopK(1),), False), (METHODS["qsparse"]().wire, False)):
        bound = Run(quadratic(), scalar(), replace(fedavg(), wire=wire), execution=Execution("loop")).bound
        assert bound.secure_aggregation is secure
