"""What a device needs, compared with numbers counted by hand: d inputs, k classes, h hidden units, batches of B."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from plures.cli import app
from plures.cli.common import console
from plures.errors import PluresError
from plures.federation import Federation, from_arrays
from plures.method import SGD, Adam, Codec, Method
from plures.methods import METHODS
from plures.models import with_roles
from plures.run import Execution, Run, Training
from plures.run.checkpoint import snapshot
from plures.serving.device import Memory, Need, memory

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")

F, D, K, H, G = 4, 7, 3, 5, 6
"""Bytes of a number; inputs, classes, hidden units, units of a second hidden layer."""
B = 16
TOTAL = 4
"""Bytes of the sum of weights, which the loss keeps."""
EXAMPLES = B * D * F + B * 8
"""Inputs, and class numbers of eight bytes."""
LOGISTIC = F * (D * K + K)
BODY, HEAD = F * (D * H + H), F * (H * K + K)
LOSS = B * K * F + TOTAL
"""What cross-entropy keeps: the logarithms of the probabilities."""


def federation() -> Federation:
    generator = np.random.default_rng(0)
    client = np.repeat(["a", "b"], [20, 60])
    x = generator.normal(size=(80, D)).astype(np.float32)
    return from_arrays(x, x[:, :K].argmax(1), client, name="small", metadata={"group": ("x", "y")})


def logistic() -> nn.Module:
    return nn.Linear(D, K)


def mlp() -> nn.Module:
    return with_roles(nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, K)), head="2")


def deep() -> nn.Module:
    layers = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, G), nn.ReLU(), nn.Linear(G, K))
    return with_roles(layers, head="4")


def needed(method: Method, model=logistic, optimizer=None, batch: int = B, client: str | None = None) -> Memory:
    training = Training(optimizer=optimizer or SGD(0.1), batch_size=8)
    run = Run(federation(), model, method, training, execution=Execution("loop", 1, False, "float32"))
    return memory(run, batch, client)


def by_name(name: str, **parameters: object) -> Method:
    return METHODS[name](**parameters)


def numbers(need: Need) -> dict[str, int]:
    """What is counted, without what can only be measured."""
    return {name: value for name, value in vars(need).items() if name not in ("what", "alive")}


def test_logistic_regression():
    found = needed(by_name("fedavg"))
    (need,) = found.needs
    assert need.what == "train model"
    assert numbers(need) == {
        "trained": LOGISTIC,
        "state": LOGISTIC,
        "received": 0,
        "gradients": LOGISTIC,
        "optimizer": 0,
        "activations": LOSS,
        "work": 0,
        "examples": EXAMPLES,
    }
    assert need.total == 2 * LOGISTIC + LOSS + EXAMPLES
    assert (found.kept, found.up, found.down) == (0, LOGISTIC, LOGISTIC)
    assert found.peak is need


def test_a_hidden_layer_is_kept_once():
    """The rectified values, which two layers need, share one storage."""
    (need,) = needed(by_name("fedavg"), mlp).needs
    assert need.activations == B * H * F + LOSS
    assert need.state == need.gradients == BODY + HEAD


@pytest.mark.parametrize(
    ("optimizer", "times"),
    [(SGD(0.1), 0), (SGD(0.1, momentum=0.9), 1), (Adam(0.01), 2)],
    ids=["sgd", "momentum", "adam"],
)
def test_what_the_optimizer_remembers(optimizer, times):
    (need,) = needed(by_name("fedavg"), mlp, optimizer).needs
    assert need.optimizer == times * (BODY + HEAD)


@pytest.mark.parametrize("batch", [1, 16, 200])
def test_batches_of_any_size(batch):
    """Also of more examples than the client has; then its own are repeated."""
    (need,) = needed(by_name("fedavg"), mlp, batch=batch).needs
    assert need.activations == batch * (H + K) * F + TOTAL
    assert need.examples == batch * D * F + batch * 8


def test_a_frozen_body_keeps_only_what_the_head_reads():
    """FedRep trains the head alone, then the body alone."""
    head, body = needed(by_name("fedrep"), deep).needs
    lower, upper = F * (D * H + H + H * G + G), F * (G * K + K)
    assert (head.what, head.gradients, head.activations) == ("train head", upper, B * G * F + LOSS)
    assert (body.what, body.gradients, body.activations) == ("train body", lower, B * (H + G) * F + LOSS)
    assert head.state == body.state == lower + upper
    found = needed(by_name("fedrep"), deep)
    assert (found.kept, found.up) == (upper, lower)
    assert found.peak.what == "train body"


def test_ditto_needs_no_second_copy_of_the_shared_model():
    """Its personal phase reads the received model before the second phase changes it."""
    personal, shared = needed(by_name("ditto")).needs
    assert (personal.state, shared.state) == (2 * LOGISTIC, 2 * LOGISTIC)
    assert (personal.received, shared.received) == (0, 0)
    assert personal.activations == LOSS + LOGISTIC  # the difference of the models, whose square is the pull
    assert shared.activations == LOSS


def test_fedprox_needs_the_received_model_beside_the_trained_one():
    (need,) = needed(by_name("fedprox")).needs
    assert (need.state, need.received) == (LOGISTIC, LOGISTIC)


def test_a_wire_that_sends_changes_needs_the_received_values():

    class Halved(Codec):
        def encode(self, change, memory, sending):
            return {k: t.half() for k, t in change.items()}, memory

        def decode(self, payload, like):
            return {k: t.float() for k, t in payload.items()}

    found = needed(replace(by_name("fedavg"), wire=(Halved(),)))
    assert found.needs[0].received == LOGISTIC
    assert found.up == LOGISTIC // 2


def test_low_rank_adaptation_trains_little():
    """Rank 1: the base stays, its gradient is not needed; factors and head are trained."""
    (need,) = needed(by_name("lora", rank=1), mlp).needs
    factors = F * (D + H)
    assert need.gradients == factors + HEAD
    assert need.state == BODY + HEAD + factors


def test_what_is_computed_before_a_step():
    """pFedMe finds the personal model by inner steps first: they need more than the step, which only reads it."""
    (need,) = needed(by_name("pfedme")).needs
    assert need.activations == 2 * LOGISTIC  # the personal model itself, and its difference to the shared one
    assert need.work > need.gradients + LOSS  # each inner step has a gradient and a backward pass of its own
    assert need.total == need.state + need.received + need.examples + need.work


def test_work_before_predicting_counts():
    """Fine-tuning and calibration happen on the device too; calibration keeps outputs and targets of these rows."""
    found = needed(by_name("fedavg_ft") + by_name("temperature"), client="b")
    assert [need.what for need in found.needs] == [
        "train model",
        "before predicting: train model",
        "before predicting: assign temperature",
    ]
    size = int(federation().splits["validation"].sizes[1])
    most = int(federation().splits["validation"].sizes.max())
    assert size == most
    assert found.needs[2].examples == size * (K * F + 8)  # one client has no padding, so no weights
    assert found.needs[2].gradients == found.needs[2].activations == 0
    assert found.needs[2].work >= size * K * F


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize(
    "name", ["fedavg", "ditto", "fedprox", "scaffold", "fedrep", "pfedme", "apfl", "fedem", "lora", "knnper"]
)
def test_the_sum_agrees_with_what_is_alive(name, batch):
    """Tracked storage by storage: all of one kind are alive at once, and temporaries at most double the sum."""
    for need in needed(by_name(name), deep, batch=batch).needs:
        lasting = need.state + need.received + need.optimizer + need.examples
        assert need.alive >= lasting + max(need.gradients, need.activations, need.work), need
        assert need.alive <= 2 * need.total + 500, need


def test_bad_requests_are_named():
    with pytest.raises(PluresError, match="batch_size=0"):
        needed(by_name("fedavg"), batch=0)
    with pytest.raises(PluresError, match="no client 'c'"):
        needed(by_name("fedavg"), client="c")


def test_measuring_changes_nothing():

    def fresh() -> Run:
        training, alone = Training(rounds=2, batch_size=8), Execution("loop", 1, False, "float32")
        return Run(federation(), mlp, by_name("ditto"), training, execution=alone)

    run, other = fresh(), fresh()
    run.step()
    before, state = snapshot(run), torch.get_rng_state()
    memory(run, 8)
    after = snapshot(run)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(torch.get_rng_state(), state)
    run.step()
    other.step()
    other.step()
    one, two = snapshot(run), snapshot(other)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_command_line_compares_methods_and_shows_phases(monkeypatch):
    monkeypatch.setattr(console, "width", 80)  # that of a small terminal, and of a pipe
    monkeypatch.setenv("COLUMNS", "80")
    several = CliRunner().invoke(
        app, ["device", "heart", "--method", "fedavg", "--method", "ditto", "--batch-size", "16"]
    )
    assert several.exception is None, several.exception
    rows = [line.strip("│┃").replace("┃", "│").split("│") for line in several.stdout.splitlines() if line[:1] in "┃│"]
    told = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 3}
    assert told[""] == ["fedavg", "ditto"]
    assert told["state"] == ["9.0", "17.9"]  # 2,242 numbers of four bytes, and twice as many
    assert "measured" in told
    assert "They do not count the program" in several.stdout
    one = CliRunner().invoke(app, ["device", "heart", "--method", "fedrep", "--momentum", "0.9", "--model", "mlp"])
    assert one.exception is None, one.exception
    assert "train head" in one.stdout
    assert "train body" in one.stdout
    wrong = CliRunner().invoke(app, ["device", "heart", "--method", "fedper", "--model", "logistic"]).exception
    assert isinstance(wrong, PluresError)
