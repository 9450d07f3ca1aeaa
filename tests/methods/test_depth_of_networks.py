"""Clients that hold the first blocks of one network, with early exits: by hand, by plain loops, on smaller networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from plures import RunSpec, load
from plures.errors import PluresError
from plures.evaluate import RunFolder, finish, fit
from plures.federation import Federation
from plures.hardware import FleetTable
from plures.method import Method, Personal, role
from plures.methods import depthfl, ditto, fedavg, fedper, heterofl, ifca
from plures.models import har_cnn, mlp, resnet, with_exits, with_roles
from plures.models.exits import stages_of
from plures.models.footprint import footprint
from plures.models.widths import narrowed
from plures.run import Buffered, Execution, Fixed, Full, Run, onboard
from plures.run.cost import alone, traffics
from plures.serving import PersonalModel
from plures.serving.device import memory, sizes
from points import pictures, two_points
from problems import EXACT, begun, close, run, same
from shifted import ragged

LOOP = Execution("loop", 2, False, "float64")
RECORDED = Execution("vmap", 16, False, "float64", capture=True)
degenerate = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
small = partial(mlp, (5,), 3, hidden=(6, 4))


def shared(done: Run) -> dict[str, Tensor]:
    """What is shared, and not frozen."""
    found = {leaf: t[0] for kept in done.server.values() for leaf, t in kept.values.items()}
    return {leaf: t for leaf, t in found.items() if not leaf.startswith("model/here.")}


def with_rates(federation: Federation, *rates: float) -> Federation:
    count = len(federation)
    return replace(federation, metadata={"rate": tuple(rates[n % len(rates)] for n in range(count))})


# --- the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "features", "exits"),
    [
        (partial(mlp, (13,), 4, hidden=(6, 4, 5)), (13,), [6, 4]),
        (partial(har_cnn, (2, 40), 4), (2, 40), [32, 32]),
        (partial(har_cnn, (2, 40), 4, norm="batch"), (2, 40), [32, 32]),
        (partial(resnet, (1, 8, 8), 4, width=8), (1, 8, 8), [8, 16]),
    ],
)
def test_the_whole_network_gives_what_it_gave_and_its_first_blocks_are_a_network(model, features, exits):
    module = model().eval()
    made = with_exits(module, (1.0, 0.3, 0.6), torch.zeros(0, *features)).eval()
    assert [one.in_features for one in made.exits] == exits
    x = torch.randn(3, *features)
    assert torch.equal(made(x), module(x))
    stages = stages_of(made)
    hidden: list[Tensor] = []
    made.exits[0].register_forward_hook(lambda part, args, given: hidden.append(given))
    made(x)
    few = narrowed(made, stages, stages.at(0.3)).eval()
    assert torch.equal(few(x), hidden[0])
    kept = dict(few.named_parameters())
    assert "here.0" in kept
    assert not {"here.1", "head.weight", "exits.1.weight"} & kept.keys()
    assert all(torch.equal(t, dict(made.named_parameters())[path]) for path, t in kept.items())


def test_shares_are_rounded_up_to_blocks_and_equal_ones_have_one_exit():
    made = with_exits(mlp((5,), 3, hidden=(6, 4, 7)), (1.0, 0.2, 0.33, 0.34), torch.zeros(0, 5))
    assert made.ends == (3, 5)
    assert made.rates == (0.2, 0.34, 1.0)
    plain = mlp((5,), 3, hidden=(6, 4))
    assert type(with_exits(plain, (1.0,), torch.zeros(0, 5))) is type(plain)


class Bent(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), "an nn.Sequential whose last part is marked as its head"),
        (with_roles(Bent(nn.Linear(5, 4), nn.Linear(4, 3)), head="1"), "an nn.Sequential whose last part"),
        (mlp((5,), 3, hidden=(6,)), "has 1 block of layers, so a share of 0.5 is all of it"),
        (with_roles(nn.Sequential(nn.ReLU(), nn.Linear(5, 3)), head="1"), "no layer with parameters before its head"),
        (
            with_roles(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6), nn.Unflatten(1, (2, 3))), head="2"),
            "but the network's are",
        ),
    ],
)  # fmt: skip
def test_a_network_without_blocks_is_refused(module, said):
    with pytest.raises(PluresError, match=said):
        begun(depthfl(), 1, federation=ragged(), model=module)


# --- rounds by hand ---------------------------------------------------------------------------------------------


def chain() -> nn.Module:
    """``h v u x`` with an exit ``e u x + c``: u = 1, v = 2, h = -1, e = 2, c = 0."""
    parts = [nn.Linear(1, 1, bias=False) for _ in range(3)]
    layers = with_exits(with_roles(nn.Sequential(*parts), head="2"), (0.5, 1.0), torch.zeros(0, 1))
    with torch.no_grad():
        for path, value in {"0": 1.0, "1": 2.0, "2": -1.0, "exits.0": 2.0}.items():
            layers.get_parameter(f"{path}.weight").fill_(value)
        layers.exits[0].bias.zero_()
    return layers


@pytest.mark.oracle("DL1")
@pytest.mark.parametrize("execution", [EXACT, LOOP])
def test_dl1_a_round_of_two_depths_by_hand(execution):
    """a gives 2 at the exit and -2: u 16, e 4, c 4, v 4, h -8. b has the exit alone, 2 for 1: u 4, e 2, c 2."""
    done = run(depthfl(), 1, federation=two_points(), model=chain, steps=1, execution=execution)
    found = {leaf: float(t) for leaf, t in shared(done).items()}
    assert found["model/0.weight"] == close(1 - 0.1 * (16 + 4) / 2)
    assert found["model/exits.0.weight"] == close(2 - 0.1 * (4 + 2) / 2)
    assert found["model/exits.0.bias"] == close(-0.1 * (4 + 2) / 2)
    assert (found["model/1.weight"], found["model/2.weight"]) == (close(1.6), close(-0.2))
    assert float(done.predict("b", torch.ones(1, 1))[0]) == close(1.7 * 0.0 - 0.3)
    assert float(done.predict("a", torch.full((1, 1), 2.0))[0]) == close(-0.2 * 1.6 * 0.0 * 2)


@pytest.mark.oracle("DL2")
@pytest.mark.parametrize("execution", [EXACT, LOOP])
def test_dl2_exits_teach_each_other_by_a_plain_loop(execution):
    """Three depths; every client trains a network of its own exits, with c = 0.7 between them."""
    federation, rates = ragged(), (1.0, 0.3, 0.6)
    model = partial(mlp, (5,), 3, hidden=(6, 4, 5))
    done = run(depthfl(rates, consistency=0.7), 1, federation=federation, model=model, steps=3, execution=execution)
    start = begun(depthfl(rates), 1, federation=federation, model=model).bound.network.trainable()
    stages = stages_of(start)
    wanted: dict[str, Tensor] = {}
    mass: dict[str, float] = {}
    for client, own in enumerate(federation.splits["train"]):
        module = narrowed(start, stages, stages.at(rates[client % 3]))
        heads = [*module.exits, *([] if module.last is None else [module.head])]
        given: list[Tensor] = []
        for one in heads:
            one.register_forward_hook(lambda part, args, made, given=given: given.append(made))
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
        for _ in range(3):
            given.clear()
            module(federation.inputs[own])
            loss = sum(functional.cross_entropy(made, federation.targets[own]) for made in given)
            for i, pupil in enumerate(given):
                for j, teacher in enumerate(given):
                    if i != j:
                        kl = functional.kl_div(pupil.log_softmax(1), teacher.detach().softmax(1), reduction="batchmean")
                        loss = loss + 0.7 * kl / (len(given) - 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for path, p in module.named_parameters():
            if p.requires_grad:
                wanted[path] = wanted.get(path, 0) + len(own) * p.detach()
                mass[path] = mass.get(path, 0) + len(own)
    found = shared(done)
    assert found.keys() == {f"model/{path}" for path in wanted}
    for path, total in wanted.items():
        assert torch.allclose(found[f"model/{path}"], total / mass[path], atol=1e-12), path


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.oracle("DL0")
@degenerate
@pytest.mark.parametrize("execution", [EXACT, LOOP, RECORDED])
def test_dl0_equal_devices_are_fedavg(execution):
    given = {"federation": ragged(), "model": small, "steps": 4, "batch_size": 8, "execution": execution}
    assert same(*(shared(run(one, 3, **given)) for one in (depthfl(rates=(1.0,)), fedavg())))


@pytest.mark.oracle("DL0")
@pytest.mark.parametrize("execution", [EXACT, LOOP, RECORDED])
def test_dl0_if_all_hold_all_exits_it_is_fedavg_with_the_same_loss(execution):
    given = {"model": small, "steps": 4, "batch_size": 8, "execution": execution}
    method = depthfl(column="rate")
    cut = run(method, 3, federation=with_rates(ragged(), 1.0), **given)
    assert same(shared(cut), shared(run(replace(method, sizes=None), 3, federation=ragged(), **given)))


@pytest.mark.oracle("DL3")
@pytest.mark.parametrize("execution", [EXACT, LOOP, RECORDED])
@pytest.mark.parametrize(
    ("model", "features"),
    [
        (small, (5,)),
        (partial(har_cnn, (2, 40), 3, norm="batch"), (2, 40)),
        (partial(har_cnn, (2, 40), 3), (2, 40)),
        (partial(resnet, (1, 8, 8), 3, width=8, norm="batch"), (1, 8, 8)),
    ],
)
def test_dl3_first_blocks_train_as_a_network_that_is_really_shallower(model, features, execution):
    """All of rate 1/2: every leaf is that of FedAvg with the first blocks, and the rest is zero."""
    federation = pictures(features)
    method = depthfl((1.0, 0.5, 0.3), column="rate")
    given = {"steps": 3, "batch_size": 6, "execution": execution, "lr": 0.05}
    cut = run(method, 2, model=model, federation=with_rates(federation, 0.5), **given)
    whole = cut.bound.network.trainable()
    stages = stages_of(whole)
    few = narrowed(whole, stages, stages.at(0.5))
    shallow = run(replace(method, sizes=None), 2, model=few, federation=federation, **given)
    held, wanted = cut.states([0])["model"], shallow.states([0])["model"]
    for path, t in held.items():
        assert torch.allclose(t, wanted[path], atol=1e-10) if path in wanted else not bool(t.any()), path
    assert wanted.keys() < held.keys()
    assert torch.allclose(cut.predict("p")[0], shallow.predict("p")[0], atol=1e-10)
    untouched = cut.bound.initial["model"]["head.weight"]
    assert torch.equal(shared(cut)["model/head.weight"], untouched)


def test_what_a_client_does_not_hold_stays_zero_in_every_slot_and_is_not_learned():
    done = run(depthfl() + ditto(lam=0.5), 2, federation=ragged(), model=small, steps=3, batch_size=8)
    state = done.states([0, 1])
    for slot in ("model", "personal"):
        assert not bool(state[slot]["head.weight"][1].any())
        assert bool(state[slot]["head.weight"][0].any())
        assert bool(state[slot]["exits.0.weight"][1].any())
    assert not torch.equal(state["personal"]["exits.0.weight"][1], state["model"]["exits.0.weight"][1])


def test_personal_heads_are_exits_too_and_clusters_have_parts():
    given = {"federation": ragged(), "model": small, "steps": 3, "batch_size": 8}
    done = run(depthfl() + fedper(), 2, **given)
    exits = done.predictors([1, 3])["exits.0.weight"]
    assert not torch.equal(exits[0], exits[1])
    assert not any(leaf.startswith(("model/exits", "model/head")) for leaf in shared(done))
    body = done.predictors([1, 3])["body.1.weight"]
    assert torch.equal(body[0], body[1])
    done = run(depthfl() + ifca(2), 2, **given)
    assert not bool(done.predictors([1])["head.weight"].any())


def test_exits_may_be_personal_where_the_head_is_shared():
    method = depthfl() + Method(layout={role("exits"): Personal()})
    done = run(method, 2, federation=ragged(), model=small, steps=3, batch_size=8)
    exits = done.predictors([1, 3])["exits.0.weight"]
    assert not torch.equal(exits[0], exits[1])
    assert "model/head.weight" in shared(done)


SECONDS = {"gflops": 1.0, "up_mbit": 8e-6, "down_mbit": 8e-6}
"""A byte takes a second, and the work next to nothing."""


def waiting() -> Buffered:
    """a sends first, and b before a sends again: its change is a step old."""
    b = {name: 0.4 * rate for name, rate in SECONDS.items()}
    return Buffered(Full(), FleetTable({"a": SECONDS, "b": b}), size=1)


@pytest.mark.oracle("DL5")
def test_dl5_buffered_changes_of_two_depths_by_hand():
    """The change of b counts 2 ** -0.5 times, for what b holds."""
    done = begun(depthfl(), 2, federation=two_points(), model=chain, steps=1, participation=waiting())
    records = list(done.rounds())
    assert [record.cohort for record in records] == [("a",), ("b",)]
    assert [3600 * record.hours for record in records] == pytest.approx([80, 120 - 80], abs=1e-3)
    found, old = {leaf: float(t) for leaf, t in shared(done).items()}, 2**-0.5
    assert found["model/0.weight"] == close(1 - 1.6 - 0.4 * old)
    assert found["model/exits.0.weight"] == close(2 - 0.4 - 0.2 * old)
    assert (found["model/1.weight"], found["model/2.weight"]) == (close(1.6), close(-0.2))


@pytest.mark.oracle("HF8")
def test_hf8_buffered_changes_of_two_widths_by_hand():
    """``o = w2 . relu(w1 x)`` as in the first oracle of HeteroFL: a moves all, then b the first unit."""
    layers = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        layers[2].weight.copy_(torch.tensor([[3.0, -1.0]]))
    method = heterofl(scaler=False, masked=False)
    done = begun(method, 2, federation=two_points(), model=layers, steps=1, participation=waiting())
    assert [record.cohort for record in done.rounds()] == [("a",), ("b",)]
    found, old = shared(done), 2**-0.5
    assert found["model/0.weight"].flatten().tolist() == close([0.4 - 1.2 * old, 2.2])
    assert found["model/2.weight"].flatten().tolist() == close([2.8 - 0.4 * old, -1.4])


# --- costs and budgets ------------------------------------------------------------------------------------------


WHOLE, HALF = 5 * 6 + 6 + 6 * 4 + 4 + 4 * 3 + 3 + 6 * 3 + 3, 5 * 6 + 6 + 6 * 3 + 3


@pytest.mark.oracle("DL4")
def test_bytes_and_operations_are_those_of_the_blocks():
    done = run(depthfl(), 1, federation=ragged(), model=small, steps=1)
    assert traffics(done.bound, done.held, [0, 1]) == [(8 * WHOLE, 8 * WHOLE), (8 * HALF, 8 * HALF)]
    record = next(begun(depthfl(), 1, federation=ragged(), model=small).rounds())
    assert (record.bytes_up, record.bytes_down) == (8 * (4 * WHOLE + 3 * HALF),) * 2
    few = alone(done.bound, done.held, 1).initial["model"]
    assert [*few] == ["body.1.weight", "body.1.bias", "exits.0.weight", "exits.0.bias", "here.0"]
    found = done.load()
    assert found.up.tolist() == [8 * WHOLE, 8 * HALF] * 3 + [8 * WHOLE]
    rows = done.federation.splits["train"].sizes.numpy()
    half = 2 * (2 * 5 * 6) + 3 * (2 * 6 * 3)
    assert found.flops[1::2].tolist() == pytest.approx((rows[1::2] * half).tolist())


@pytest.mark.oracle("DL4")
def test_the_memory_of_a_device_is_that_of_its_blocks():
    done = begun(depthfl(), 1, federation=ragged(), model=small)
    found = {rate: memory(done, 8, client) for rate, client in sizes(done).items()}
    assert (found[1.0].up, found[0.5].up) == (8 * WHOLE, 8 * HALF)
    assert (found[1.0].peak.trained, found[0.5].peak.trained) == (8 * WHOLE, 8 * HALF)
    assert found[0.5].peak.activations < found[1.0].peak.activations


@pytest.mark.oracle("DL4")
@pytest.mark.parametrize(
    ("budget", "limits", "rates"),
    [
        ("parameters", (WHOLE, WHOLE - 1, HALF, 10_000), (1.0, 0.5, 0.5, 1.0)),
        ("flops", (10_000, 2 * 5 * 6 * 2 + 3 * 2 * 6 * 3, 228, 300), (1.0, 0.5, 0.5, 0.5)),
    ],
)
def test_a_budget_chooses_the_deepest_part_that_fits(budget, limits, rates):
    federation = replace(ragged().take([0, 1, 2, 3]), metadata={"device": limits})
    found = begun(depthfl(column="device", budget=budget), 1, federation=federation, model=small).held
    assert found is not None
    assert tuple(found.rates.tolist()) == rates


def test_a_budget_of_memory_counts_a_batch_and_the_exits():
    federation = ragged()
    whole = begun(depthfl(), 1, federation=federation, model=small).bound.network.trainable()
    stages = stages_of(whole)
    need = footprint(narrowed(whole, stages, stages.at(0.5)), federation.inputs).memory(16)
    assert need < footprint(whole, federation.inputs).memory(16)
    method = depthfl(budget="memory", limit=need, batch=16)
    found = begun(method, 1, federation=federation, model=small).held
    assert found is not None
    assert set(found.rates.tolist()) == {0.5}
    with pytest.raises(PluresError, match=f"client '0' has {need - 1} memory.*needs"):
        begun(depthfl(budget="memory", limit=need - 1, batch=16), 1, federation=federation, model=small)


@pytest.mark.parametrize(
    ("given", "rate", "said"),
    [
        ({"rates": (0.5, 0.3)}, 1, "the largest is 1, the whole network"),
        ({"column": "rate"}, 0.4, "column 'rate' of client '0' is 0.4, but the smallest of rates"),
        ({"column": "rate"}, 2, "column 'rate' of client '0' is 2"),
        ({"consistency": -1.0}, 1, "must not be negative"),
    ],
)
def test_depths_that_cannot_be_are_refused(given, rate, said):
    with pytest.raises(PluresError, match=said):
        begun(depthfl(**given), 1, federation=with_rates(ragged(), rate), model=small)


def test_widths_and_depths_are_two_ways():
    with pytest.raises(PluresError, match="these methods do not compose: both change"):
        heterofl() + depthfl()


def test_a_share_between_two_depths_gets_the_smaller():
    found = begun(depthfl(column="rate"), 1, federation=with_rates(ragged(), 0.9, 1.0), model=small).held
    assert found is not None
    assert found.rates.tolist()[:2] == [0.5, 1.0]


# --- after training ---------------------------------------------------------------------------------------------


def test_newcomers_have_their_own_depth():
    federation = replace(ragged(), metadata={"rate": (1.0, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5)})
    seen, later = federation.hold_out(["4"])
    done = run(depthfl(column="rate"), 2, federation=seen, model=small, participation=Fixed([["0", "3"]] * 2))
    assert not bool(done.predictors([1])["head.weight"].any())
    guest = onboard(done, later)
    assert not bool(guest.predictors([0])["head.weight"].any())
    assert bool(guest.predictors([0])["exits.0.weight"].any())


@pytest.mark.parametrize("method", ["depthfl", "heterofl", "depthfl+fedper", "depthfl+ditto", "depthfl+ifca"])
def test_the_published_model_is_the_smaller_network_with_the_same_outputs(method, tmp_path):
    federation = load("heart")
    spec = RunSpec(data="heart", model="mlp", model_options={"hidden": [6, 4]}, method=method, rounds=2, lr=0.05)
    done = spec.run(federation)
    RunFolder(tmp_path / "run").write(done, spec, finish(fit(done, method), 0))
    clients = federation.clients[:2]
    rows = {client: federation.inputs[federation.splits["test"][federation.index(client)]] for client in clients}
    wanted = {client: done.predict(client, rows[client])[0] for client in clients}
    published = {client: PersonalModel.of(done, client, spec) for client in clients}
    count = [sum(t.numel() for t in published[client].tensors().values()) for client in clients]
    assert count[1] < count[0]
    for client in clients:
        kept = RunFolder(tmp_path / "run")
        assert torch.allclose(kept.predict(client, rows[client])[0], wanted[client], atol=1e-6)
        published[client].save(tmp_path / client)
        again = PersonalModel.load(tmp_path / client)
        for model in (again, PersonalModel.stored(kept, client)):
            assert torch.allclose(model.predict(rows[client])[0], wanted[client], atol=1e-6)
