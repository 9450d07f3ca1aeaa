"""Clipping and weight decay act slot by slot; what assumes SGD is right with momentum or refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from plures.errors import PluresError
from plures.method import SGD, Adam, AdamW, Codec, Method, Personal, Phase, Shared
from plures.method.optimizer import reach
from plures.methods import apfl, apple, ditto, fedavg, fedem, local, scaffold
from plures.run import Execution, Run, Training
from plures.run.cost import traffic
from plures.tasks import from_dict
from problems import EXACT, quadratic, scalar, settled
from trajectories import LOOP, WIDE, mlp, ragged


def begun(method, federation=None, model=None, *, rounds=1, execution=EXACT, **training):
    options = {"batch_size": None, "steps": 2, "optimizer": SGD(0.1)} | training
    return Run(federation or quadratic(), model or scalar(), method, Training(rounds, **options), execution=execution)


def done(method, federation=None, model=None, **options):
    run = begun(method, federation, model, **options)
    for _ in run.rounds():
        pass
    return run


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9, weight_decay=0.01), AdamW(0.01)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("method", [ditto(0.3), apfl(0.4)], ids=["ditto", "apfl"])
def test_the_shared_model_is_that_of_fedavg_with_clipping(method, optimizer, execution):
    """The personal model, trained beside it, does not take part in its gradient's norm."""
    options = {"rounds": 2, "batch_size": 8, "steps": 4, "optimizer": optimizer, "clip": 0.3, "execution": execution}
    plain, beside = (done(m, ragged(), mlp, **options).states([0])["model"] for m in (fedavg(), method))
    for path, value in plain.items():
        torch.testing.assert_close(beside[path], value, atol=1e-12, rtol=0)


@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_each_slot_is_clipped_by_itself(execution):
    """Gradients 30 and 0.5 under a limit of 1: steps of 1 and of 0.5, by the rate of .1."""

    def steep(x, received, batch):
        return 30 * x.model["weight"].sum() + 0.5 * x.other["weight"].sum()

    method = Method(
        layout={"model": Shared(), "other": Personal()}, schedule=(Phase(("model", "other"), objective=steep),)
    )
    states = done(method, steps=1, clip=1.0, execution=execution).states([0])
    assert states["model"]["weight"].item() == pytest.approx(-0.1 * 30 / (30 + 1e-6), abs=1e-12)
    assert states["other"]["weight"].item() == pytest.approx(-0.05, abs=1e-12)


@pytest.mark.parametrize("optimizer", [SGD(0.1, weight_decay=0.5), SGD(0.1, 0.5, 0.5), AdamW(0.1, weight_decay=0.5)])
@pytest.mark.parametrize("execution", [LOOP, WIDE], ids=["loop", "vmap"])
def test_weight_decay_acts_on_models_alone(optimizer, execution):
    """Without any gradient a model shrinks by lr * decay in a step; a number outside any model stays."""

    def flat(x, received, batch):
        return 0 * (x.model["weight"].sum() + x.mix["alpha"] + x.personal["weight"].sum())

    method = Method(
        layout={"model": Shared(), "personal": Personal(), "mix": Personal()},
        slots={"mix": lambda start: {"alpha": torch.ones((), dtype=torch.float64)}},
        schedule=(Phase(("model", "mix", "personal"), objective=flat),),
    )
    states = done(method, model=scalar(2.0), steps=1, optimizer=optimizer, execution=execution).states([0])
    assert states["mix"]["alpha"].item() == 1.0
    for slot in ("model", "personal"):
        assert states[slot]["weight"].item() == pytest.approx(2 * (1 - 0.1 * 0.5), abs=1e-12)


def test_the_mixing_weights_of_apple_do_not_decay():
    """With a rate of 0 for all gradients, decay halves a core model and leaves the mixing weights."""
    method = apple(mu=0.0)
    lean = {"own": torch.ones((), dtype=torch.float64), "others": torch.ones(3, dtype=torch.float64)}

    def nothing(x, received, batch):
        return 0 * (x.model["weight"].sum() + x.lean["own"] + x.lean["others"].sum())

    idle = replace(
        method,
        slots={**method.slots, "lean": lambda start: lean},
        schedule=tuple(replace(i, objective=nothing) if isinstance(i, Phase) else i for i in method.schedule),
    )
    states = done(idle, model=scalar(2.0), steps=1, optimizer=SGD(0.5, weight_decay=1.0)).states([0, 1, 2])
    assert states["model"]["weight"].flatten().tolist() == [1.0] * 3
    assert states["lean"]["own"].tolist() == [1.0] * 3
    assert states["lean"]["others"].tolist() == [[1.0] * 3] * 3


class Rounded:
    """A user's SGD, whose decay cannot be removed."""

    lr, slots, weight_decay = 0.1, 0, 0.1

    def step(self, values, grads, state, lr, step):
        for value, grad in zip(values, grads, strict=True):
            value.sub_(lr * (grad + self.weight_decay * value))


def test_weight_decay_that_cannot_be_taken_out_is_refused_where_it_matters():
    with pytest.raises(PluresError, match=r"Rounded has weight decay.*set weight_decay=0"):
        done(apple(), optimizer=Rounded())
    done(fedem(2), optimizer=Rounded())


@pytest.mark.parametrize("optimizer", [SGD(0.02, 0.9), SGD(0.02, 0.9, nesterov=True), SGD(0.02, 0.5, 0.0)])
@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_with_momentum_finds_the_optimum(option, optimizer):
    """The uniform mean of a_i/2 (w - b_i)^2 has its optimum at sum a b / sum a = 12/7, whatever the local steps."""
    found = settled(begun(scaffold(option), rounds=300, steps=5, optimizer=optimizer))
    assert found.predictors([0])["weight"].item() == pytest.approx(12 / 7, abs=1e-8)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True), (1.0, False), (0.3, True)])
def test_the_control_of_option_ii_is_the_mean_gradient(momentum, nesterov):
    """With a constant gradient g every weighted mean is g: the change is lr times the reach times g."""
    value, state, sgd = [torch.zeros(1).double()], [[torch.zeros(1).double()]], SGD(0.1, momentum, 0.0, nesterov)
    for step in range(1, 8):
        sgd.step(value, [torch.full((1,), 3.0).double()], state[: sgd.slots], 0.1, step)
    assert value[0].item() == pytest.approx(-0.1 * 3 * float(reach(sgd, torch.tensor(7.0).double())), abs=1e-12)


@dataclass(frozen=True)
class Signs:
    lr: float = 0.1
    slots: int = 0

    def step(self, values, grads, state, lr, step):
        for value, grad in zip(values, grads, strict=True):
            value.sub_(lr * grad.sign())


@pytest.mark.parametrize("optimizer", [Adam(0.01), AdamW(0.01), Signs()])
def test_scaffold_ii_refuses_what_is_no_sum_of_gradients(optimizer):
    training = Training(2, None, steps=2, optimizer=optimizer)
    with pytest.raises(PluresError, match=rf"optimizer is {type(optimizer).__name__}: .*use option='I'"):
        Run(quadratic(), scalar(), scaffold("II"), training, execution=EXACT)
    Run(quadratic(), scalar(), scaffold("I"), training, execution=EXACT)
    phase = Method(
        schedule=(Phase(optimizer=SGD(0.1)), *scaffold().schedule[1:]),
        **{name: getattr(scaffold(), name) for name in ("layout", "slots", "combine")},
    )
    Run(quadratic(), scalar(), phase, training, execution=Execution("loop", 1, False, "float64"))


@pytest.mark.parametrize("kind", ["count", "Regression", "", None, "ranking"])
def test_an_unknown_kind_of_task_is_refused(kind):
    with pytest.raises(PluresError, match=r"is not a task; tasks are classification, binary, multilabel, .*|give"):
        from_dict({"kind": kind})


class Padded(Codec):
    """Sends the change as it is, and some extra bytes."""

    def __init__(self, size):
        self.size = size

    def encode(self, change, memory, sending):
        rows = len(next(iter(change.values())))
        return {**change, f"padding of {self.size}": torch.zeros(rows, self.size, dtype=torch.uint8)}, memory

    def decode(self, payload, like):
        return {k: payload[k] for k in like}


class Broken(Codec):
    def __init__(self, encoded, decoded=lambda payload: payload):
        self.encoded, self.decoded = encoded, decoded

    def encode(self, change, memory, sending):
        return self.encoded(change, memory)

    def decode(self, payload, like):
        return self.decoded(payload)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (object(), "give a list"),
        (Broken(lambda change, memory: change), "return a payload and a memory"),
        (Broken(lambda change, memory: ({}, memory)), "wire stage Broken sends nothing of 8 bytes"),
        (Broken(lambda change, memory: (change, {"m": torch.zeros(1)})), r"remembers \['m'\], not \[\]"),
        (Broken(lambda change, memory: ({"sum": torch.zeros(1)}, memory)), r"decodes \['sum'\], not"),
        (
            Broken(lambda c, m: (c, m), lambda p: {k: t.float() for k, t in p.items()}),
            r"decodes 'model/weight' as torch.float32 \(1, 1, 1\), not torch.float64 \(clients, 1, 1\)",
        ),
    ],
)
def test_a_stage_that_cannot_be_one_is_refused_before_training(broken, says):
    with pytest.raises(PluresError, match=says):
        Run(quadratic(), scalar(), replace(fedavg(), wire=(broken,)), execution=EXACT)


def test_a_payload_that_changes_its_size_is_refused():
    def grown(change, memory):
        return {
            "values": torch.zeros(len(next(iter(change.values()))), 1 + int(bool(change["model/weight"].any())))
        }, {}

    stage = Broken(grown, lambda payload: {"model/weight": payload["values"][:, :1, None].double()})
    run = Run(quadratic(), scalar(), replace(fedavg(), wire=(stage,)), execution=EXACT)
    with pytest.raises(PluresError, match="one size for every change"):
        run.step()


def test_the_bytes_of_a_wire_are_those_of_its_last_payload():
    run = Run(quadratic(), scalar(), replace(fedavg(), wire=(Padded(5), Padded(3))), execution=EXACT)
    assert run.step().bytes_up == 3 * (8 + 5 + 3) == 3 * traffic(run.bound)[0]
    assert run.bound.method.wire
    silent = Run(quadratic(), scalar(), replace(local(), wire=(Padded(1),)), execution=EXACT)
    assert silent.step().bytes_up == 0
