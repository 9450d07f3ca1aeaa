"""Stages that send less than they get: random entries, signs, small levels, low rank, halves; with error feedback."""

from __future__ import annotations

import pytest
import torch
from encoded import sending, through

from plures.codecs import CODECS, Cast, Clip, Feedback, LowRank, Quantize, RandomK, Sign, TopK
from plures.codecs.packing import packed, unpacked
from plures.errors import PluresError
from plures.method import Method, lay
from plures.methods import fedavg
from problems import run, weight

V = (4.0, -3.0, 1.0, 0.5)
"""The vector of the hand-computed values; its squared norm is 26.25."""


def many(stage, vector, clients=20_000):
    """What a stage makes of the same vector in many draws, ``(clients, d)``, and its line."""
    line = lay((stage,), {"x": torch.zeros(1, len(vector), dtype=torch.float64)})
    change = torch.tensor(vector, dtype=torch.float64).expand(clients, -1)
    payload, _ = line.encode({"x": change}, {}, sending(clients))
    return line.decode(payload)["x"], line


def bytes_of(stage, entries=1_000_000):
    return sum(t.nbytes for t in lay((stage,), {"x": torch.zeros(1, entries)}).payload.values())


@pytest.mark.oracle("CO0")
def test_random_entries_are_unbiased_with_the_variance_by_hand():
    """Two of four, doubled: ``(d / k - 1) |v|^2 = 26.25``. Every pair is as likely as any other."""
    found, _ = many(RandomK(2), V)
    assert found.mean(0).tolist() == pytest.approx(V, abs=0.12)
    error = (found - torch.tensor(V, dtype=torch.float64)).square().sum(1)
    assert float(error.mean()) == pytest.approx(26.25, rel=0.02)
    pairs = (found != 0).to(torch.int64) @ torch.tensor([1, 2, 4, 8])
    counts = pairs.bincount(minlength=16)
    assert counts.nonzero().flatten().tolist() == [3, 5, 6, 9, 10, 12]
    assert counts[counts > 0].tolist() == pytest.approx([20_000 / 6] * 6, rel=0.06)


def test_random_entries_for_feedback_are_those_of_the_change():
    found, _ = many(RandomK(2, unbiased=False), V, clients=50)
    for row in found:
        assert sorted(row[row != 0].tolist()) == sorted(x for x, sent in zip(V, row, strict=True) if sent)
    assert bytes_of(RandomK(0.01)) == 40_008
    assert "seed" not in lay((RandomK(4),), {"x": torch.zeros(1, 4)}).payload


@pytest.mark.oracle("CO1")
def test_the_two_largest_entries_leave_little():
    """What is not sent is 1.25 / 26.25 of the squared norm, less than the half that is promised for two of four."""
    (sent,), _ = through(TopK(2), [V])
    assert sent == [4, -3, 0, 0]
    assert sum((a - b) ** 2 for a, b in zip(V, sent, strict=True)) / 26.25 == pytest.approx(0.047619, abs=5e-7)


@pytest.mark.oracle("CO2", "CO4")
def test_scaled_signs_by_hand():
    """Mean size 2.125; the error's share of the squared norm is .3119047619."""
    (sent,), _ = through(Sign(), [V])
    assert sent == [2.125, -2.125, 2.125, 2.125]
    assert sum((a - b) ** 2 for a, b in zip(V, sent, strict=True)) / 26.25 == pytest.approx(0.3119047619)
    assert bytes_of(Sign()) == 125_004
    line = lay((Sign(),), {"a": torch.zeros(1, 2), "b": torch.zeros(1, 3, 1)})
    change = {"a": torch.tensor([[1.0, -3.0]]), "b": torch.tensor([[[8.0], [-10.0], [0.0]]])}
    found = line.decode(line.encode(change, {}, sending(1))[0])
    assert found["a"].tolist() == [[2, -2]]
    assert found["b"].tolist() == [[[6], [-6], [6]]]


@pytest.mark.oracle("CO4")
def test_small_levels_share_bytes():
    """Two bits for each of three levels, four for up to fifteen, and the norm."""
    assert {levels: bytes_of(Quantize(levels)) for levels in (1, 2, 7, 8, 127, 128)} == {
        1: 250_004,
        2: 500_004,
        7: 500_004,
        8: 1_000_004,
        127: 1_000_004,
        128: 2_000_004,
    }
    torch.manual_seed(0)
    for bits in (1, 2, 4, 8):
        numbers = torch.randint(2**bits, (3, 13), dtype=torch.uint8)
        assert torch.equal(unpacked(packed(numbers, bits), 13, bits), numbers)


def low(matrix, start, rank=1, visits=1):
    """A matrix after some visits of a client, from a ``Q`` before its first."""
    matrix = torch.tensor(matrix, dtype=torch.float64)
    line = lay((LowRank(rank),), {"x": torch.zeros(1, *matrix.shape, dtype=torch.float64)})
    memory = {"0:right:x": torch.tensor(start, dtype=torch.float64)[None]}
    for _ in range(visits):
        payload, memory = line.encode({"x": matrix[None]}, memory, sending(1))
    return line.decode(payload)["x"][0].tolist()


@pytest.mark.oracle("CO3")
def test_low_rank_by_hand():
    """``M = diag(3, 1, 0)``, ``Q = (1, 1, 0)``: ``P = (3, 1, 0) / sqrt 10``, ``M^T P = (9, 1, 0) / sqrt 10``.

    In the next visit ``P = (27, 1, 0) / sqrt 730`` and ``M^T P = (81, 1, 0) / sqrt 730``.
    """
    matrix = [[3.0, 0, 0], [0, 1, 0], [0, 0, 0]]
    first = low(matrix, [[1.0], [1], [0]])
    assert [x for row in first for x in row] == pytest.approx([2.7, 0.3, 0, 0.9, 0.1, 0, 0, 0, 0])
    second = low(matrix, [[1.0], [1], [0]], visits=2)
    assert [x for row in second for x in row] == pytest.approx([x / 730 for x in (2187, 27, 0, 81, 1, 0, 0, 0, 0)])


def test_low_rank_sends_a_matrix_of_that_rank_as_it_is_and_small_tensors_whole():
    torch.manual_seed(1)
    product = torch.randn(2, 12, 2, dtype=torch.float64) @ torch.randn(2, 2, 15, dtype=torch.float64)
    change = {"m": product.view(2, 12, 3, 5), "b": torch.randn(2, 12, dtype=torch.float64)}
    line = lay((LowRank(2),), {k: torch.zeros_like(t[:1]) for k, t in change.items()})
    memory = {k: t.expand(2, *t.shape[1:]) for k, t in line.memory.items()}
    payload, _ = line.encode(change, memory, sending(2))
    found = line.decode(payload)
    torch.testing.assert_close(found["m"], change["m"])
    assert torch.equal(found["b"], change["b"])
    assert {k: tuple(t.shape[1:]) for k, t in payload.items()} == {
        "left:m": (12, 2),
        "right:m": (15, 2),
        "whole:b": (12,),
    }
    after = line.encode({k: torch.zeros_like(t) for k, t in change.items()}, memory, sending(2))[1]
    for _ in range(2):  # a change of zeros leaves no direction, and the next two visits find them again
        payload, after = line.encode(change, after, sending(2))
    torch.testing.assert_close(line.decode(payload)["m"], change["m"])


def test_halves_are_rounded_to_the_nearest_and_stay_finite():
    (sent,), _ = through(Cast("bfloat16"), [(1.0, 1.00390625, -3e-3, 0.0)])
    assert sent == [1.0, 1.0, -0.0030059814453125, 0.0]
    (sent,), _ = through(Cast("float16"), [(1e6, -1e6, 1.0)])
    assert sent == [65504, -65504, 1]
    assert bytes_of(Cast()) == 2_000_000


@pytest.mark.oracle("CO5")
@pytest.mark.parametrize("stage", [TopK(1), RandomK(1, unbiased=False), Sign(), Quantize(4), Cast()], ids=str)
def test_with_feedback_all_that_was_sent_and_the_memory_sum_up_to_all_changes(stage):
    changes = [V, (1.0, 2.5, 1.0, 0.5), (-1.0, 0.1, 0.2, 0.3)]
    sent, memory = through(Feedback((stage,)), changes)
    total = [sum(column) for column in zip(*sent, memory["0:error:x"], strict=True)]
    assert total == pytest.approx([sum(column) for column in zip(*changes, strict=True)])


def test_feedback_by_name_stands_behind_its_stages():
    sparse = Method(wire=(TopK(1),)) + Method(wire=(Quantize(4),)) + Method(wire=(Feedback(),))
    assert sparse.wire == (Feedback((TopK(1), Quantize(4))),)
    assert (sparse + Method(wire=(Clip(1.0),))).wire == (Feedback((TopK(1), Quantize(4))), Clip(1.0))
    assert (Method(wire=(Clip(1.0),)) + Method(wire=(Feedback((Sign(),)),))).wire == (Clip(1.0), Feedback((Sign(),)))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: lay((Feedback(),), {"x": torch.zeros(1, 3)}), "put it behind those that leave out"),
        (lambda: Feedback((Feedback((TopK(1),)),)), "leave one feedback out"),
        (lambda: Feedback((RandomK(1),)), "give RandomK unbiased=False"),
        (lambda: Feedback(("topk",)), "'topk' is not a stage"),
        (lambda: RandomK(1.5), "give a number of entries, or a share"),
        (lambda: LowRank(0), "give a positive whole number"),
        (lambda: Cast("float32"), "no type 'float32'"),
        (lambda: lay((Clip(1.0), Feedback((Sign(),))), {"x": torch.zeros(1, 3)}), "put Clip among the stages"),
        (lambda: lay((Sign(), Clip(1.0)), {"x": torch.zeros(1, 3)}), "put Clip before that stage"),
    ],
)
def test_orders_that_are_wrong_are_refused(made, told):
    with pytest.raises(PluresError, match=told):
        made()


def test_every_stage_gives_each_client_what_it_gives_it_alone():
    torch.manual_seed(2)
    change = {"m": torch.randn(3, 12, 9), "b": torch.randn(3, 12)}
    like = {k: torch.zeros_like(t[:1]) for k, t in change.items()}
    for name, codec in CODECS.items():
        if codec.sums:  # no server reads one by one
            continue
        line = lay((codec((Sign(),)) if issubclass(codec, Feedback) else codec(),), like)
        memory = {k: t.expand(3, *t.shape[1:]) for k, t in line.memory.items()}
        together = line.decode(line.encode(change, memory, sending(3))[0])
        for client in range(3):
            own = {k: t[client : client + 1] for k, t in change.items()}
            keys = sending(3).keys[client : client + 1]
            alone = line.decode(line.encode(own, line.memory, type(sending(1))(keys, {}))[0])
            for k, t in alone.items():
                torch.testing.assert_close(together[k][client], t[0], msg=f"{name}: {k}")


@pytest.mark.oracle("CO6")
@pytest.mark.parametrize(
    "wire", [(RandomK(1),), (Feedback((TopK(10**6),)),), (LowRank(1),)], ids=["randomk", "topk", "lowrank"]
)
def test_a_stage_that_leaves_nothing_out_is_the_plain_run(wire):
    """The problem has one weight: one entry of one, or a matrix that is not thinner."""
    done, plain = run(Method(wire=wire) + fedavg("uniform"), 5), run(fedavg("uniform"), 5)
    assert weight(done) == weight(plain)
