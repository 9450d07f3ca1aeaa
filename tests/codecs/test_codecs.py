"""Clipping of whole uploads, and sparse quantized changes with error feedback (Qsparse-local-SGD)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from encoded import sending, through
from torch import nn

from plures.codecs import Clip, Feedback, Quantize, Sign, TopK, qsparse
from plures.errors import PluresError
from plures.federation import SPLITS, Federation, Split
from plures.method import SGD, Method, Shared, lay
from plures.methods import METHODS, fedavg, scaffold
from plures.run import Run, Training, Uniform
from plures.run.checkpoint import resume, save
from plures.run.cost import stored_bytes, traffic
from plures.tasks import Regression
from problems import EXACT, close, personal, quadratic, run, scalar, weight


@pytest.mark.oracle("QS0")
def test_qs0_all_entries_unquantized_are_fedavg():
    done, plain = (run(method, 5) for method in (replace(fedavg("uniform"), wire=(qsparse(1),)), fedavg("uniform")))
    assert weight(done) == weight(plain)
    assert personal(done, "wire", "0:error:model/weight") == [0.0, 0.0, 0.0]


@pytest.mark.oracle("QS1")
def test_qs1_what_was_sent_and_the_memory_sum_up_to_all_changes():
    sent, memory = through(qsparse(2), [(3, -1, 0.5, 2), (0, -1.5, 0.1, 0.2)])
    assert sent == [[3, 0, 0, 2], [0, -2.5, 0.6, 0]]
    assert memory == {"0:error:x": [0, 0, 0, 0.2]}
    sent, memory = through(qsparse(2), [(4, -3, 1, 0.5), (1, 2.5, 1, 0.5)])
    assert sent == [[4, -3, 0, 0], [0, 2.5, 2, 0]]
    assert memory == {"0:error:x": [1, 0, 0, 1]}


def vectors(method: Method, rounds: int, *optima: tuple[float, float, float]) -> Run:
    """Rounds of one step of 0.1; three clients with the losses ``|w - b|^2 / 2`` and these optima ``b``.

    Which of equally large entries is sent depends on how steps are rounded, so they are not recorded.
    """
    split = Split.of([torch.tensor([client]) for client in range(3)])
    inputs = torch.full((3, 1), 0.5**0.5, dtype=torch.float64)
    targets = inputs * torch.tensor(optima, dtype=torch.float64)
    splits = dict.fromkeys(SPLITS, split)
    federation = Federation("vectors", Regression(3), inputs, targets, ("a", "b", "c"), splits)

    def zeros() -> nn.Module:
        layer = nn.Linear(1, 3, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    return run(method, rounds, federation=federation, model=zeros, steps=1, execution=EXACT)


def reached(done: Run) -> list[float]:
    return done.states([0])["model"]["weight"].flatten().tolist()


@pytest.mark.oracle("QS1")
def test_qs1_two_rounds_of_the_method_by_hand():
    """First changes (.21, .2, .2), (.1, 0, .25), (0, .3, .1); each client sends one entry and remembers the others.

    With those, those of the second are (.203, .39, .3916667), (.193, -.01, .2416667), (-.007, .29, .1916667).
    """
    optima = (2.1, 2, 2), (1, 0, 2.5), (0, 3, 1)
    one, two = (vectors(METHODS["qsparse"](keep=1), rounds, *optima) for rounds in (1, 2))
    assert reached(one) == close([0.21 / 3, 0.3 / 3, 0.25 / 3])
    assert one.states([0, 1, 2])["wire"]["0:error:model/weight"].flatten().tolist() == close(
        [0, 0.2, 0.2, 0.1, 0, 0, 0, 0, 0.1]
    )
    third = 0.1 * (2 - 0.25 / 3) + 0.2 + 0.1 * (2.5 - 0.25 / 3)
    assert reached(two) == close([0.07, 0.1 + 0.29 / 3, 0.25 / 3 + third / 3])


@pytest.mark.oracle("QS2")
def test_qs2_feedback_reaches_the_mean_where_sparse_changes_alone_do_not():
    """The optimum is (1, 5/3, 5/3). Without feedback, entries become equal, and rounding decides which one is sent."""
    optima = (2, 2, 2), (1, 0, 2), (0, 3, 1)
    fed_back = vectors(METHODS["qsparse"](keep=1), 600, *optima)
    assert reached(fed_back) == pytest.approx([1.024, 1.663, 1.594], abs=5e-4)
    assert reached(vectors(Method(wire=(TopK(1),)), 600, *optima)) == pytest.approx([1.484, 1.498, 1.518], abs=0.03)


@pytest.mark.oracle("QS3")
def test_qs3_the_stochastic_quantizer_is_unbiased():
    """``v = (3, 4)``, ``|v| = 5``: with one level the variance is 10, with two 2.5, with four 0.625, with five 0."""
    clients = 20_000
    for levels, variance in ((1, 10.0), (2, 2.5), (4, 0.625), (5, 0.0)):
        line = lay((Quantize(levels),), {"x": torch.zeros(1, 2, dtype=torch.float64)})
        change = torch.tensor([[3.0, 4.0]], dtype=torch.float64).expand(clients, 2)
        payload, _ = line.encode({"x": change}, {}, sending(clients))
        found = line.decode(payload)["x"]
        assert payload["levels"].dtype == torch.uint8
        assert found.mean(0).tolist() == pytest.approx([3, 4], abs=4 * (variance / clients) ** 0.5 + 1e-9)
        assert float((found - change).square().sum(1).mean()) == pytest.approx(variance, rel=0.03, abs=1e-9)


@pytest.mark.oracle("CO4")
def test_places_or_bits_are_sent_whichever_is_shorter():
    change = {"x": torch.zeros(1, 1_000_000)}
    sizes = {keep: sum(t.nbytes for t in lay((TopK(keep),), change).payload.values()) for keep in (0.01, 0.1)}
    assert sizes == {0.01: 80_000, 0.1: 525_000}
    assert sum(t.nbytes for t in lay((Quantize(127),), change).payload.values()) == 1_000_004
    torch.manual_seed(0)
    some = {"x": torch.randn(3, 7, 5), "y": torch.randn(3, 101)}
    for keep in (2, 60):
        line = lay((TopK(keep),), {k: t[:1] * 0 for k, t in some.items()})
        found = line.decode(line.encode(some, {}, sending(3))[0])
        flat, kept = (torch.cat([t.flatten(1) for t in leaves.values()], 1) for leaves in (some, found))
        assert (kept != 0).sum(1).tolist() == [keep] * 3
        assert torch.equal(kept[kept != 0], flat[kept != 0])
        for row, sent in zip(flat, kept, strict=True):
            assert row[sent == 0].abs().max() <= sent[sent != 0].abs().min()


@pytest.mark.parametrize(
    ("stage", "spoil"),
    [
        (TopK(1), {"places": torch.tensor([[200]], dtype=torch.int32)}),
        (TopK(1), {"places": torch.tensor([[-1]], dtype=torch.int32)}),
        (TopK(2), {"places": torch.tensor([[3, 3]], dtype=torch.int32)}),
        (TopK(60), {"bits": torch.full((1, 13), 255, dtype=torch.uint8)}),
        (Quantize(4), {"levels": torch.full((1, 50), 9, dtype=torch.uint8)}),
        (Quantize(100), {"levels": torch.full((1, 100), 101, dtype=torch.int8)}),
        (Sign(), {"sizes": torch.tensor([[-1.0]])}),
        (Quantize(4), {"norm": torch.tensor([-1.0])}),
    ],
)
def test_payloads_that_no_client_can_have_sent_are_refused(stage, spoil):
    line = lay((stage,), {"x": torch.zeros(1, 100)})
    assert spoil.keys() <= line.payload.keys()
    with pytest.raises(PluresError, match="change"):
        line.decode({**line.payload, **spoil})


def norms(method: Method) -> list[float]:
    """Joint norm of what each client sends in the first round, of the change that it stands for."""
    done = Run(quadratic(), scalar(), method, Training(2, None, steps=2, optimizer=SGD(0.1)), execution=EXACT)
    (answer,) = done.clients.work(done, [0, 1, 2], done.choose([0, 1, 2])).answers
    sent = answer[0].sent["update"]
    return torch.stack([t.flatten(1) for t in sent.values()]).square().sum((0, 2)).sqrt().tolist()


def test_scaffold_clipped_to_1_leaves_with_a_joint_norm_of_1():
    """Model and control clipped each by itself would leave with 1.414."""
    free = norms(replace(scaffold(), wire=()))
    clipped = norms(replace(scaffold(), wire=(Clip(1.0),)))
    assert max(free) > 1.414
    assert max(clipped) == pytest.approx(1.0)
    assert all(norm <= 1.0 for norm in clipped)
    assert clipped == pytest.approx([min(1.0, norm) for norm in free])


def test_a_clipped_change_is_as_long_as_it_may_be_and_no_longer():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        change = {"a": torch.randn(1000, 3, 4, dtype=dtype) * 100, "b": torch.randn(1000, 2, dtype=dtype)}
        line = lay((Clip(0.3),), {k: t[:1] for k, t in change.items()})
        for found in (line.encode(change, {}, sending(1000))[0], line.decode(change)):
            flat = torch.cat([t.flatten(1) for t in found.values()], 1).double().norm(dim=1)
            assert float(flat.max()) <= 0.3 < float(flat.min()) + 1e-5
    short = {"a": torch.full((1, 3, 4), 1e-3), "b": torch.zeros(1, 2)}
    line = lay((Clip(0.3),), short)
    assert torch.equal(line.encode(short, {}, sending(1))[0]["a"], short["a"])


def test_tensors_that_would_leave_unclipped_are_refused_by_name():
    with pytest.raises(PluresError, match=r"wire stage Clip refuses channel 'weights' .*passes=\('weights',\)"):
        Run(quadratic(), scalar(), replace(METHODS["qffl"](), wire=(Clip(1.0),)), execution=EXACT)
    Run(quadratic(), scalar(), replace(METHODS["qffl"](), wire=(Clip(1.0, ("weights",)),)), execution=EXACT)


def test_clip_stands_before_what_makes_something_else_of_a_change():
    with pytest.raises(PluresError, match=r"Clip: 'places' of the stage before holds whole numbers; put Clip before"):
        lay((TopK(1), Clip(1.0)), {"x": torch.zeros(1, 1000)})
    with pytest.raises(PluresError, match="'levels' of the stage before holds whole numbers"):
        lay((Quantize(4), Clip(1.0)), {"x": torch.zeros(1, 10)})


def test_what_a_memory_holds_never_comes_on_top_of_a_bound():
    """``|(3, 4)| = 5``: within feedback, what is cut off stays in the memory."""
    with pytest.raises(PluresError, match="Feedback adds what it remembers to a change that Clip has bounded"):
        lay((Clip(1.0), qsparse(1)), {"x": torch.zeros(1, 10)})
    sent, memory = through(qsparse(2, first=(Clip(1.0),)), [(3, 4), (0, 0), (-3, -4)])
    assert [pytest.approx(s, abs=1e-12) for s in sent] == [[0.6, 0.8], [0.6, 0.8], [-0.6, -0.8]]
    assert memory["0:error:x"] == pytest.approx([-0.6, -0.8], abs=1e-12)  # 0 = all changes = all sent + memory


def test_a_memory_stays_with_the_client_and_a_checkpoint_restores_it(tmp_path):
    method = replace(scaffold(), wire=(Feedback((Clip(1.0), TopK(1), Quantize(4))),))
    training = Training(4, None, steps=2, optimizer=SGD(0.1))
    one, two = (Run(quadratic(), scalar(), method, training, execution=EXACT) for _ in range(2))
    for _ in range(2):
        one.step()
    memory = personal(one, "wire", "0:error:model/weight")
    assert any(memory)
    save(one, "x", tmp_path / "x.safetensors")
    resume(two, "x", tmp_path / "x.safetensors")
    assert personal(two, "wire", "0:error:model/weight") == memory
    assert [one.step().loss, one.step().loss] == [two.step().loss, two.step().loss]
    for slot, leaves in one.states([0, 1, 2]).items():
        for path, value in leaves.items():
            assert torch.equal(value, two.states([0, 1, 2])[slot][path]), (slot, path)
    plain = replace(scaffold(), wire=())
    assert (
        stored_bytes(one.bound) - stored_bytes(Run(quadratic(), scalar(), plain, training, execution=EXACT).bound)
        == 2 * 8
    )
    assert traffic(one.bound)[0] == 1 + 1 + 8  # a level, a byte of marks, the norm


def test_a_slot_of_the_method_must_not_have_the_name_of_the_memorys():
    method = Method({"model": Shared(), "wire": Shared()}, wire=(qsparse(1),))
    with pytest.raises(PluresError, match=r"the slot .wire. holds .*: give the method's own another name"):
        Run(quadratic(), scalar(), method, execution=EXACT)


def test_a_memory_waits_for_a_client_that_is_not_drawn():
    """What the client did not send is in its memory until its next visit; in a pool of processes, the same bits."""
    pytest.importorskip("cloudpickle")
    method, training = replace(scaffold(), wire=(qsparse(1),)), Training(5, None, steps=2, optimizer=SGD(0.1))
    here, there = (
        Run(quadratic(), scalar(), method, training, participation=Uniform(0.67), seed=2, execution=each)
        for each in (replace(EXACT, chunk=1), replace(EXACT, chunk=1, processes=2))
    )

    def held(done):
        return [*zip(*(personal(done, "wire", f"0:error:{slot}/weight") for slot in ("model", "control")), strict=True)]

    before, waited = held(here), 0
    for _ in range(5):
        drawn = here.cohort(here.round)
        here.step(), there.step()
        after = held(here)
        for client in {0, 1, 2} - {*drawn}:
            assert after[client] == before[client]
            waited += any(after[client])
        before = after
    assert waited
    assert before == held(there)
