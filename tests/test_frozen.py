"""Given values are kept: frozen parameters, the values of a module, and layout entries that match something."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from plures import compare
from plures.errors import PluresError, PluresWarning
from plures.federation import Federation, from_arrays
from plures.method import (
    SGD,
    Assign,
    Clustered,
    Combine,
    Frozen,
    Method,
    Mixed,
    Personal,
    Phase,
    Predict,
    Setting,
    Shared,
    View,
    body,
    everything,
    head,
)
from plures.methods import METHODS, fedavg, fedper, fedrep, ifca, local, lora, personal_moe
from plures.models import Network, build, merged, mlp, redrawn, resnet, with_lora, with_roles
from plures.models.residual import SqueezeExcitation
from plures.run import Execution, Run, Training, onboard
from plures.run.cost import traffic
from plures.run.experts import experts_of

quiet = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
STACKED, ALONE = Execution("vmap", 3, False, "float64"), Execution("loop", 3, False, "float64")
STILL = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
"""Leaves of the frozen part of :func:`half_frozen`: 4 x 4 and 4 numbers, then 4 + 4 + 4 + 4 and a count."""


def clients(names="abc") -> Federation:
    generator = torch.Generator().manual_seed(2)
    owner = [name for name in names for _ in range(12)]
    x = 3 + torch.randn(len(owner), 4, generator=generator, dtype=torch.float64)
    facts = {name: {"group": "one", "completeness": 1.0, "reliability": 0.9} for name in names}
    y = (x[:, 0] > 3).long()
    return from_arrays(x, y, owner, metadata=facts, seed=0, dtype=torch.float64, name="few").donate(0.1)


def half_frozen() -> nn.Module:
    """A pretrained, frozen layer with batch normalisation; then a trainable body and head."""
    first, norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
    norm.running_mean.fill_(1.5)
    norm.running_var.fill_(2.5)
    norm.num_batches_tracked.fill_(7)
    for layer in (first, norm):
        layer.requires_grad_(False)
    body = first, norm, nn.Linear(4, 4), nn.ReLU(), nn.Unflatten(1, (-1, 1, 1)), SqueezeExcitation(4), nn.Flatten()
    return with_roles(nn.Sequential(*body, nn.Linear(4, 2)), head="7", se="5")


def train(method, model, *, rounds=1, seed=0, execution=STACKED, lr=0.05, federation=None) -> Run:
    training = Training(rounds=rounds, steps=2, batch_size=6, optimizer=SGD(lr, weight_decay=0.1))
    done = Run(federation or clients(), model, method, training, seed=seed, execution=execution)
    for _ in done.rounds():
        pass
    return done


# Frozen parameters ----------------------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("name", [name for name in METHODS if name != "mocha"])
def test_frozen_leaves_stay_and_never_travel_whatever_the_method(name):
    """Leaf by leaf, in every slot, for clients and newcomers; the run trains something else."""
    done = train(METHODS[name](), half_frozen)
    assert done.bound.network.frozen >= {path for path in done.bound.network.info if path.replace("base.", "") in STILL}
    frozen = {(s, p) for s, leaves in done.bound.info.items() for p, info in leaves.items() if info.frozen}
    assert {p for s, p in frozen if s == "model"}
    sent = {leaf for block in done.bound.blocks for leaf in done.bound.travelling(block)}
    assert not frozen & (sent | set(done.stored_leaves()) | done.bound.written)
    guest = onboard(done, clients("z"), visits=1)
    for run in (done, guest):
        everybody = list(range(len(run.federation)))
        for slot, path in frozen:
            value, start = run.states(everybody)[slot][path], run.bound.initial[slot][path]
            wanted = start.expand_as(value)
            wanted = wanted if run.held is None else run.held.masked(path, wanted, everybody)
            assert torch.equal(value, wanted), (slot, path)
        for slot, leaves in run.deployed(everybody).items():
            for path, value in leaves.items():
                whole = run.held is None  # what a client holds of a network may be scaled before it predicts
                if whole and path in done.bound.network.frozen and (slot, path) in frozen:
                    assert all(torch.equal(row, run.bound.initial[slot][path]) for row in value), (slot, path)


def test_traffic_counts_what_is_not_frozen():
    """In single precision: the second layer 20, gates of two layers, and the head 10 numbers of four bytes."""
    module = half_frozen()
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad) * 4
    bound = fedavg().bind(Network(module), Setting.of(clients()))
    assert traffic(bound) == (trained, trained)
    scaffold = METHODS["scaffold"]().bind(Network(module), Setting.of(clients()))
    assert traffic(scaffold) == (2 * trained, 2 * trained)


@pytest.mark.parametrize("execution", [STACKED, ALONE], ids=["vmap", "loop"])
def test_a_frozen_backbone_normalises_by_what_it_came_with(execution):
    """Training on a frozen backbone is training of the rest on its outputs in evaluation mode."""
    module = half_frozen()
    rest = with_roles(nn.Sequential(*copy.deepcopy(list(module)[2:])), head="5", se="3")
    federation = clients()
    with torch.no_grad():
        inputs = copy.deepcopy(module)[:2].double().eval()(federation.inputs)
    ahead = replace(federation, inputs=inputs)
    left, right = (
        train(fedavg(), model, rounds=2, execution=execution, federation=data).states([0])["model"]
        for model, data in ((module, federation), (rest, ahead))
    )
    for path, value in right.items():
        number, _, name = path.partition(".")
        torch.testing.assert_close(left[f"{int(number) + 2}.{name}"], value, atol=1e-12, rtol=0)


def test_one_trainable_parameter_keeps_a_norm_layer_alive():
    """Only a layer all of whose parameters are frozen is frozen with its statistics."""
    module = half_frozen()
    module[1].bias.requires_grad_(True)
    frozen = Network(module).frozen
    assert frozen == {"0.weight", "0.bias", "1.weight"}
    done = train(fedavg(), module)
    assert int(done.states([0])["model"]["1.num_batches_tracked"][0]) == 9
    bare = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    assert not Network(bare).frozen
    inside = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)), nn.Linear(4, 2))
    inside[0].requires_grad_(False)
    assert {"0.1.running_mean", "0.0.weight"} <= Network(inside).frozen


@quiet
@pytest.mark.parametrize("method", [fedavg(), fedper(), local(), METHODS["ditto"](), METHODS["fedbabu"]()])
def test_nothing_to_train_is_refused_by_name(method):
    with pytest.raises(PluresError, match=r"every parameter of the model is frozen \(requires_grad=False\)"):
        train(method, mlp((4,), 2).requires_grad_(False))


@quiet
def test_what_a_method_adds_to_a_frozen_model_is_trained():
    """LoRA on a frozen base: the factors learn, everything else is the base's."""
    module = mlp((4,), 2).requires_grad_(False)
    with pytest.warns(PluresWarning, match=r"all that 'head' chooses is frozen"):
        done = train(lora(), module)
    given, made = module.state_dict(), merged(experts_of(done)[0])
    learned = [path for path, value in done.predictors([0]).items() if "lora_b" in path and bool(value.any())]
    assert learned
    assert torch.equal(made.state_dict()["head.weight"], given["head.weight"].double())
    assert not any(p.requires_grad for p in made.parameters())
    assert all(p.requires_grad == ("lora" in path) for path, p in experts_of(done)[0].named_parameters())


@quiet
@pytest.mark.parametrize("method", [fedper(), fedrep()])
def test_a_part_that_is_frozen_and_was_to_be_personal_is_named(method):
    module = half_frozen()
    module[7].requires_grad_(False)
    with pytest.warns(PluresWarning, match=r"layout: all that 'head' chooses is frozen"):
        done = train(method, module)
    assert not done.stored_leaves()


@quiet
def test_a_phase_on_frozen_leaves_does_nothing():
    """FedRep's second phase trains the body; with a frozen body it is a personal head on given features."""
    module = mlp((4,), 2)
    for path, parameter in module.named_parameters():
        parameter.requires_grad_(path.startswith("head"))
    with pytest.warns(PluresWarning, match="phase: all that 'body' chooses is frozen"):
        done = train(fedrep(head_steps=2, body_steps=5), module)
    assert traffic(done.bound) == (0, 0)
    own = replace(local(), schedule=(Phase(head, steps=2, stream="head"),))
    left, right = (run.predictors([0, 1, 2]) for run in (done, train(own, module)))
    for path, value in left.items():
        torch.testing.assert_close(value, right[path], atol=1e-12, rtol=0)
    assert not torch.equal(left["head.weight"][0], module.head.weight.double())


# Given values ---------------------------------------------------------------------------------------------------------


def test_a_module_starts_every_seed_with_its_values():
    given = mlp((4,), 2)
    before = copy.deepcopy(given.state_dict())
    for seed in (0, 1, 2):
        start = Run(clients(), given, fedavg(), Training(rounds=1), seed=seed, execution=STACKED)
        for path, value in start.bound.initial["model"].items():
            assert torch.equal(value, before[path].double()), (seed, path)
        start.step()
    assert all(torch.equal(value, before[path]) for path, value in given.state_dict().items())


def test_a_factory_starts_every_seed_anew():
    starts = [Run(clients(), partial(mlp, (4,), 2), fedavg(), seed=s, execution=STACKED).bound.initial for s in (0, 1)]
    assert not torch.equal(starts[0]["model"]["head.weight"], starts[1]["model"]["head.weight"])


def test_a_given_module_needs_no_reset():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((4,), 2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    module = nn.Sequential(Scale(), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    module[1].running_mean.fill_(3.0)
    start = build(module, 5).state_dict()
    assert start["0.scale"].tolist() == [2.0] * 4
    assert start["1.running_mean"].tolist() == [3.0] * 4
    with pytest.raises(PluresError, match=r"Scale has parameters but no reset_parameters\(\)"):
        redrawn(module, 5)
    frozen = copy.deepcopy(module)
    frozen[0].requires_grad_(False)
    again = redrawn(frozen, 5).state_dict()
    assert again["0.scale"].tolist() == [2.0] * 4
    assert not torch.equal(again["2.weight"], module.state_dict()["2.weight"])


def test_at_a_tiny_rate_every_seed_of_a_comparison_scores_alike():
    """A pretrained module in a comparison: three seeds with one start have one accuracy, that of the module."""
    few = clients()
    few = replace(few, inputs=few.inputs.float())
    given = mlp((4,), 2)
    done = compare(few, ["fedavg"], model=given, rounds=1, learning_rates=(1e-9,), seeds=3)
    with torch.no_grad():
        right = [(given(few.inputs[rows]).argmax(1) == few.targets[rows]).float().mean() for rows in few.splits["test"]]
    for seed in done.method("fedavg").seeds:
        assert seed.test.values("accuracy").tolist() == pytest.approx([float(value) for value in right], abs=1e-6)


def test_parts_that_a_method_adds_follow_the_seed():
    given = mlp((4,), 2)
    one, two = (lora().prepare(given, Setting.of(clients()), seed) for seed in (0, 1))
    first, second = one.state_dict(), two.state_dict()
    (factor,) = [path for path in first if "lora_a" in path]
    assert not torch.equal(first[factor], second[factor])
    assert torch.equal(first["head.weight"], second["head.weight"])
    assert torch.equal(first["head.weight"], given.state_dict()["head.weight"])


@pytest.mark.parametrize("method", [ifca(2), METHODS["fedem"](2), METHODS["hypcluster"](2)])
def test_several_models_with_different_values_need_a_factory(method):
    with pytest.raises(PluresError, match=r"start them all: give a function that returns a new module"):
        Run(clients(), mlp((4,), 2), method, execution=STACKED)
    Run(clients(), partial(mlp, (4,), 2), method, execution=STACKED)


@quiet
def test_one_model_or_one_start_needs_none():
    given = mlp((4,), 2)
    for method in (ifca(1), Method(layout={"model": Clustered(2, same_start=True)})):
        run = Run(clients(), given, method, execution=STACKED)
        for path, value in given.state_dict().items():
            for row in run.server["model"].values[f"model/{path}"]:
                assert torch.equal(row, value)


def test_experts_of_a_given_module_begin_with_its_values():
    given = mlp((4,), 2)
    module = personal_moe(3).prepare(given, Setting.of(clients()), 1)
    values = [expert.state_dict() for expert in module.experts]
    assert all(torch.equal(value, values[0][path]) for path, value in given.state_dict().items())
    assert not any(torch.equal(values[0]["head.weight"], other["head.weight"]) for other in values[1:])


# Entries without a leaf -----------------------------------------------------------------------------------------------


def bound(method: Method):
    return method.bind(Network(mlp((4,), 2)), Setting.of(clients()))


@pytest.mark.parametrize(
    ("layout", "entry", "owner"),
    [
        ({"model": Shared(), head: Personal()}, "head", "model"),
        ({everything: Shared(), head: Personal()}, "head", "everything"),
        ({head: Personal(), body: Shared(), head | body: Frozen()}, "head|body", "head', 'body"),
    ],
)
def test_an_entry_whose_leaves_are_all_taken_is_refused(layout, entry, owner):
    with pytest.raises(PluresError, match="nothing is left for the entry") as error:
        bound(Method(layout=layout))
    assert repr(entry) in str(error.value)
    assert f"'{owner}' before it" in str(error.value)
    assert "put the more specific entry first" in str(error.value)


def test_a_slot_name_is_what_others_leave():
    """FedPer with everything personal is a degenerate setting, not a mistake: nothing is left for the model."""
    resolved = bound(fedper(everything)).blocks
    assert [(block.name, len(block.leaves)) for block in resolved] == [("everything", 4)]


def test_the_special_entry_first_is_what_was_meant():
    resolved = bound(Method(layout={head: Personal(), "model": Shared()})).blocks
    assert [(block.name, len(block.leaves)) for block in resolved] == [("head", 2), ("model", 2)]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method(combine={"modle": Combine("uniform")}), r"combine: no slot 'modle'; did you mean 'model'\?"),
        (Method(schedule=(Phase("modle"),)), r"phase: no slot 'modle'; did you mean 'model'\?"),
        (Method(schedule=(Phase(keeps=("own",)),)), r"phase: keeps: no slot 'own'"),
        (
            Method(schedule=(Phase(), Assign(("modle",), lambda x, received, visit: {}))),
            r"assignment: writes: no slot 'modle'; did you mean 'model'\?",
        ),
        (Method(predict=Predict("personel")), r"predict: no slot 'personel'"),
        (
            Method(layout={"model": Shared(), "personal": Personal(unseen="modle")}),
            r"'personal': unseen: no slot 'modle'; did you mean 'model'\?",
        ),
        (Method(layout={"model": Mixed(), "others": View("modle", lambda look: look.own)}), r"no slot 'modle'"),
        (
            Method(layout={replace(head, slot="modle"): Shared(), "model": Shared()}),
            r"slot 'modle', which does not exist",
        ),
    ],
)
def test_names_of_slots_that_there_are_not(method, message):
    with pytest.raises(PluresError, match=message):
        bound(method)


def test_lora_keeps_what_is_frozen():
    module = resnet((3, 8, 8), 2)
    module.requires_grad_(False)
    adapted = with_lora(module)
    trained = [path for path, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in path for path in trained)
