"""What leaves a client is what the ledger counts, and nothing leaves outside a declared channel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sites import far

from catalogued import WHOLE
from newcomers import clients, linear
from plures.codecs import Clip, Quantize, TopK, qsparse
from plures.errors import PluresError
from plures.method import (
    SGD,
    Arrived,
    Channel,
    Codec,
    Combine,
    Leaves,
    Method,
    Personal,
    Phase,
    Reducer,
    Shared,
    joined,
)
from plures.methods import METHODS, fedavg, scaffold
from plures.methods.entry import Entry
from plures.remote.flower import opened, sealed
from plures.remote.message import ClientFacts, Reply, Scored, unpack
from plures.report.catalogue import model
from plures.run import Execution, Run, Training, Uniform
from plures.run.cost import traffic
from problems import EXACT, quadratic, run, scalar, weight

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
ALL = ("buffers", "weights", "views", "gradients")
WIRES = {
    "none": (),
    "clip": (Clip(0.5, ALL),),
    "clip, top-k, quantize, with feedback": (qsparse(0.05, 7, (Clip(0.5, ALL),)),),
    "quantize, top-k": (Quantize(7), TopK(3)),
}
FIELDS = {
    "loss": "loss",
    "objective": "objective",
    "rows": "choices",
    "scores": "scores",
    "examples": "examples",
    "labels": "labels",
    "metadata": "metadata",
    "metrics": "scores",
    "seconds": "seconds",
    "keys": "keys",
    "shares": "shares",
    "revealed": "revealed",
}
"""Field of a message -> the channel that it belongs to; the others are about the message itself."""
ENVELOPE = {"protocol", "client", "order", "run", "round", "status", "reason", "facts"}


def test_every_field_of_an_answer_is_a_channel_or_about_the_message():
    for kind in (Reply, ClientFacts, Scored):
        assert kind.model_fields.keys() <= FIELDS.keys() | ENVELOPE, kind


def prepared(entry: Entry, wire: tuple[Codec, ...]) -> tuple[object, Method, Training]:
    module = linear if entry.name == "mocha" else model
    return module, replace(entry(), wire=wire), Training(rounds=2, batch_size=8, steps=1, optimizer=SGD(0.05))


@pytest.mark.parametrize("wire", [name for name in WIRES if name != "none"])
@pytest.mark.parametrize("name", WHOLE)
def test_the_ledger_is_what_is_sent_in_simulation(name, wire):
    """Every tensor of every answer is counted, and has the size stated on the method's page."""
    module, method, training = prepared(METHODS[name], WIRES[wire])
    done = Run(clients()[0], module, method, training, execution=Execution("loop", 2, False, "float32", "cpu"))
    known = {channel.name: channel for channel in done.bound.channels}
    cohort = done.cohort(0)
    sent = 0
    for answer, _ in done.clients.work(done, cohort, done.choose(cohort)).answers:
        if answer.sent["update"] and "clip" in wire:
            change = joined(done.bound.line.decode(answer.sent["update"]))
            assert float(change.double().norm(dim=1).max()) <= 0.5
        for channel, leaves in answer.sent.items():
            size = sum(t.nbytes for t in leaves.values()) // len(answer.clients)
            if channel not in ("loss", "objective"):
                assert size == (known[channel].size if channel in known else 0), channel
                sent += size * len(answer.clients)
    assert sent == traffic(done.bound)[0] * len(cohort)
    asked = sum(c.size or 0 for c in known.values() if c.when == "gradients") * len(done.setting)
    assert done.step().bytes_up == sent + asked


FEEDBACK = "clip, top-k, quantize, with feedback"
PAIRS = [(name, FEEDBACK) for name in WHOLE] + [
    ("fedbn", "quantize, top-k"), ("gradient_clusters", "clip"), ("apple", "clip"), ("hypcluster", "none"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wire"), PAIRS)
def test_the_ledger_is_what_is_sent_to_sites_and_every_message_is_searched(name, wire, tmp_path):
    """The same values and bytes as in the simulation, and no tensor or field outside a declared channel."""
    module, method, training = prepared(METHODS[name], WIRES[wire])
    federation, who = clients()[0], Uniform(0.6)
    here = Run(
        federation, module, method, training, participation=who, seed=1,
        execution=Execution("loop", 1, False, "float32", "cpu"),
    )  # fmt: skip
    there, carrier = far(federation, module, method, training, tmp_path, seed=1, participation=who)
    known = {channel.name: channel for channel in here.bound.channels}
    true, found = carrier.exchange, []

    def exchange(messages, deadline):
        answers = true({address: opened(sealed(message)) for address, message in messages.items()}, deadline)
        answers = {address: opened(sealed(answer)) for address, answer in answers.items()}
        found.extend(answers.values())
        return answers

    carrier.exchange = exchange
    for _ in range(2):
        before = there.clients.sent, there.clients.received
        one, other = here.step(), there.step()
        assert not other.left_out
        assert (other.bytes_down, other.bytes_up) == (one.bytes_down, one.bytes_up)
        gone = there.clients.sent - before[0], there.clients.received - before[1]
        assert gone == (one.bytes_down, one.bytes_up)
    for block, kept in here.server.items():
        for leaf, value in kept.values.items():
            torch.testing.assert_close(there.server[block].values[leaf], value, atol=2e-6, rtol=1e-4)
    assert found
    for message in found:
        reply, tensors = unpack(message, Reply)
        given = {name for name, value in reply.model_dump(exclude_defaults=True).items() if value not in (None, {}, ())}
        assert {FIELDS[field] for field in given - ENVELOPE} <= known.keys()
        prefixes = {label.partition(":")[0] if ":" in label else "gradients" for label in tensors}
        assert prefixes <= {channel.name for channel in known.values() if channel.tensors}
        for channel in prefixes:
            inside = [t for label, t in tensors.items() if label.startswith(f"{channel}:") or ":" not in label]
            assert sum(t.nbytes for t in inside) == known[channel].size


@pytest.mark.parametrize("name", WHOLE)
def test_clipping_bounds_all_tensors_that_leave_or_is_refused(name):
    """Running statistics and integer leaves, computed weights, what views read, gradients."""
    module, method, training = prepared(METHODS[name], (Clip(0.5),))
    free = Run(clients()[0], module, replace(method, wire=()), training, execution=EXACT).bound
    beside = [c.name for c in free.channels if c.tensors and c.name != "update"]
    if beside and free.travels:
        with pytest.raises(PluresError, match=f"wire stage Clip refuses channel '{beside[0]}'"):
            Run(clients()[0], module, method, training, execution=EXACT)
    else:
        Run(clients()[0], module, method, training, execution=EXACT)


def test_a_channel_says_what_it_carries():
    told = {c.name: c.what for c in Run(quadratic(), scalar(), scaffold(), execution=EXACT).bound.channels}
    assert told["update"] == "parameters of model, control"
    sparse = replace(scaffold(), wire=(qsparse(1),))
    told = {c.name: str(c) for c in Run(quadratic(), scalar(), sparse, execution=EXACT).bound.channels}
    assert told["update"] == "update (train, 9 bytes, tensors): parameters of model, control, after the wire"
    assert told["loss"] == "loss (train, 8 bytes, in the header): mean task loss of the visit"


class Quiet(Codec):
    """Reports no losses."""

    def encode(self, change, memory, sending):
        return change, memory

    def beside(self, channel: Channel, values: Leaves, sending) -> Leaves:
        return {k: torch.zeros_like(t) for k, t in values.items()} if channel.name == "loss" else values


def test_a_stage_changes_what_leaves_on_another_channel_by_its_name():
    assert run(replace(fedavg(), wire=(Quiet(),)), 0).step().loss == 0 < run(fedavg(), 0).step().loss


# The server ---------------------------------------------------------------------------------------------------------


class Farthest(Reducer):
    """Leaves out the client whose whole upload moved farthest, and counts the rounds."""

    def start(self, value, population):
        return {"rounds": torch.zeros(len(value))}

    def reduce(self, uploads, arrived: Arrived):
        assert arrived.joint.shape == (3, 2)
        stays = torch.arange(3) != arrived.joint.norm(dim=1).argmax()
        return uploads[stays].mean(0), {"rounds": arrived.memory["rounds"] + 1}


def test_a_reducer_judges_all_blocks_of_an_upload_together():
    """In SCAFFOLD's first round the third client moves farthest in the model, and is left out of the controls too."""
    done = run(replace(scaffold(), combine=Combine("uniform", reduce=Farthest())), 1)
    controls = done.states([0, 1, 2])["own_control"]["weight"].flatten().tolist()
    assert weight(done) == pytest.approx((0.19 * -1 + 0.36 * 0.5) / 2)
    assert weight(done, "control") == pytest.approx(sum(controls[:2]) / 2)
    assert done.memory["model"]["reducer:rounds"].tolist() == [1.0]


def test_a_fixed_denominator_divides_the_sum_of_changes():
    """``(10 (-0.19) + 20 (0.18) + 30 (1.92)) / 100``; with weights 1, ``(-0.19 + 0.18 + 1.92) / 3``."""
    assert weight(run(Method(combine=Combine(denominator=100.0)), 1)) == pytest.approx(59.3 / 100)
    assert weight(run(Method(combine=Combine("uniform", denominator=3.0)), 1)) == pytest.approx(1.91 / 3)
    with pytest.raises(PluresError, match=r"denominator=0\.0: give a positive number"):
        Combine(denominator=0.0)
    with pytest.raises(PluresError, match="leave out reduce, or the denominator"):
        Combine(denominator=1.0, reduce=Farthest())


class Noisy(Codec):
    """Adds a known number to the sum of all changes."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def encode(self, change, memory, sending):
        return change, memory

    def release(self, change, total, cohort):
        assert (len(cohort.clients), len(cohort.setting)) == (3, 3)
        self.seen.append(cohort.key("noise"))
        return {k: d + 6.0 / total[k] for k, d in change.items()}


def test_the_wires_part_at_the_server_works_on_the_sum_with_a_key_of_its_own():
    noisy = Noisy()
    done = run(replace(fedavg("uniform"), wire=(noisy,)), 1)
    assert weight(done) == pytest.approx(1.91 / 3 + 2)
    fixed = Method(combine=Combine("uniform", denominator=12.0), wire=(noisy,))
    assert weight(run(fixed, 1)) == pytest.approx(1.91 / 12 + 0.5)
    run(replace(scaffold(), wire=(noisy,)), 2)
    assert len(noisy.seen) == 1 + 1 + 2 * 2
    assert len(set(noisy.seen)) == 4  # by round and block; the first block of the first round is the same in all


def test_what_never_travels_has_no_channel():
    quiet = Method({"model": Personal()}, (Phase(),), wire=(Clip(1.0),))
    names = {c.name for c in Run(quadratic(), scalar(), quiet, execution=EXACT).bound.channels if c.tensors}
    assert not names
    names = {c.name for c in Run(quadratic(), scalar(), Method({"model": Shared()}), execution=EXACT).bound.channels}
    assert names == {"update", "loss", "objective", "examples", "labels", "metadata", "scores", "seconds"}
