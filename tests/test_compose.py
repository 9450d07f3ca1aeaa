"""Methods composed of methods: equal, bit for bit, to the same method written by hand, and refused where they clash."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from torch import nn

import plures
from plures.errors import PluresError
from plures.evaluate.folder import RunFolder
from plures.evaluate.spec import find_method
from plures.method import (
    SGD,
    Clustered,
    Codec,
    Combine,
    Frozen,
    Generated,
    Known,
    Method,
    Personal,
    Phase,
    Predict,
    Relax,
    ServerOptimizer,
    Shared,
    body,
    everything,
    head,
    norm_layers,
    role,
    squared_distance,
    task_loss,
)
from plures.methods import (
    METHODS,
    apfl,
    ditto,
    fedavg,
    fedavg_ft,
    fedbabu,
    fedbn,
    fedper,
    fedprox,
    fedrep,
    ifca,
    lgfedavg,
    local,
    pfedme,
    scaffold,
)
from plures.methods.community import community
from plures.methods.fedrod import fedrod
from plures.methods.lora import lora
from plures.methods.pfedhn import pfedhn
from plures.methods.temperature import temperature
from plures.models import with_lora, with_roles
from plures.run import Execution, Run, Uniform, onboard
from plures.run.states import states
from problems import EXACT, run, shared
from shifted import mlp, ragged

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
momentum = Method(combine=Combine(server=ServerOptimizer(SGD(1.0, momentum=0.9))))


def normed() -> nn.Module:
    layers = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    return with_roles(layers, head="3")


def trained(method: Method, cohort=None, model=mlp, rounds: int = 3) -> Run:
    options = {"federation": ragged(), "model": model, "steps": 4, "batch_size": 8}
    return run(method, rounds, participation=cohort, execution=EXACT, **options)


def contents(done: Run) -> dict[str, torch.Tensor]:
    """All leaves of all clients, what the server keeps, and what the clients predict."""
    clients = list(range(7))
    state = {f"{slot}/{path}": t for slot, leaves in done.states(clients).items() for path, t in leaves.items()}
    server = {f"{block}:{k}": t for block, kept in done.server.items() for k, t in (kept.values | kept.extra).items()}
    inputs = done.federation.inputs[:10].expand(7, -1, -1)
    return state | server | {"outputs": done.engine.forward(done.deployed(clients), inputs)}


def same(left: Run, right: Run) -> bool:
    one, two = contents(left), contents(right)
    assert one.keys() == two.keys()
    return all(torch.equal(one[key], two[key]) for key in one)


def proximal(mu: float):
    def near(x, received, batch):
        return task_loss(x.model, batch) + mu / 2 * squared_distance(x.model, received.model)

    return near


def ditto_with_own_norms() -> Method:
    def near(x, received, batch):
        return task_loss(x.personal, batch) + 0.5 / 2 * squared_distance(x.personal, received.model)

    own = Personal(unseen="mean")
    return Method(
        layout={norm_layers: own, "model": Shared(), "personal": Personal(unseen="model")},
        schedule=(Phase(train="personal", objective=near), Phase(train="model")),
        combine=Combine("uniform"),
        predict=Predict("personal", visits=5),
    )


PERSONAL_HEAD = (Phase(head, epochs=3, stream="head"), Phase(body, epochs=1))
TUNE = (Phase("model", epochs=3, stream="adapt"),)
PAIRS = {
    "ifca + fedrep": (
        [ifca(2), fedrep()],
        Method({head: Personal(), "model": Clustered(2)}, PERSONAL_HEAD, combine=Combine("uniform")),
        mlp,
    ),
    "ditto + fedbn": ([ditto(0.5), fedbn()], ditto_with_own_norms(), normed),
    "fedprox + fedrep": (
        [fedprox(0.3), fedrep()],
        Method(
            {head: Personal(), "model": Shared()},
            tuple(replace(phase, objective=proximal(0.3)) for phase in PERSONAL_HEAD),
        ),
        mlp,
    ),
    "lora + pfedhn": (
        [lora(), pfedhn("lora", hidden=(5,))],
        Method(
            {role("lora"): Generated(hidden=(5,)), head: Personal(), "model": Frozen()},
            (Phase((role("lora"), head)),),
        ),
        lambda: with_lora(mlp(), 2),
    ),
    "fedper + server momentum": (
        [fedper(), momentum],
        Method({head: Personal(), "model": Shared()}, combine=momentum.combine),
        mlp,
    ),
    "fedbabu + temperature": (
        [fedbabu(), temperature()],
        Method(
            {head: Frozen(), "model": Shared(), "temperature": Personal()},
            (Phase(body),),
            slots=temperature().slots,
            predict=Predict(adapt=TUNE, calibrate=temperature().predictor.calibrate),
        ),
        mlp,
    ),
    "ifca + ditto + fedavg's server step": (
        [ifca(2), ditto(0.5), fedavg("uniform", 0.5)],
        Method(
            {"model": Clustered(2), "personal": Personal(unseen="model")},
            ditto(0.5).schedule,
            combine=Combine("uniform", Relax(0.5)),
            predict="personal",
        ),
        mlp,
    ),
}  # fmt: skip


@pytest.mark.parametrize("cohort", [None, Uniform(0.5)], ids=["full", "partial"])
@pytest.mark.parametrize(("parts", "by_hand", "model"), PAIRS.values(), ids=PAIRS)
def test_a_composition_is_the_method_written_by_hand(parts, by_hand, model, cohort):
    together = trained(reduce(add, parts), cohort, model)
    assert same(together, trained(by_hand, cohort, model))
    for part in parts:
        alone = trained(part, cohort, model)
        assert not torch.equal(contents(alone)["outputs"], contents(together)["outputs"])


@pytest.mark.parametrize(("parts", "by_hand", "model"), PAIRS.values(), ids=PAIRS)
def test_the_order_of_methods_that_change_different_parts_does_not_matter(parts, by_hand, model):
    first = reduce(add, parts)
    assert reduce(add, reversed(parts)) == first
    assert parts[0] + (reduce(add, parts[1:])) == first


@pytest.mark.parametrize("entry", METHODS.values(), ids=METHODS)
def test_plain_fedavg_adds_nothing(entry):
    method = entry()
    plain = replace(method, predict=method.predictor)
    for both in (Method() + method, method + Method()):
        assert replace(both, combine=plain.combine) == plain
        slots = {"model", *(key for key in method.layout if isinstance(key, str))}
        rules = both.combine if not isinstance(both.combine, Combine) else dict.fromkeys(slots, both.combine)
        expected = dict.fromkeys(slots, plain.combine) if isinstance(plain.combine, Combine) else plain.combine
        for slot in slots:
            assert rules.get(slot, Combine()) == expected.get(slot, Combine())


def test_calibration_follows_whatever_predicts():
    """Temperatures on FedBABU and on Ditto divide what each would have predicted without."""
    for method in (fedbabu(), ditto(0.5)):
        plain, scaled = (trained(m) for m in (method, method + temperature()))
        t = scaled.deployed(list(range(7)))["temperature"]["temperature"]
        raw, divided = (contents(done)["outputs"] for done in (plain, scaled))
        torch.testing.assert_close(divided, raw / t.view(-1, 1, 1), atol=1e-14, rtol=0)
        assert len(t.unique()) == 7


def test_what_clients_know_of_themselves_may_bear_one_name():
    one, two = (
        Method({"model": Shared(), "about": Known(*facts)}) for facts in (("examples",), ("labels", "examples"))
    )
    assert (one + two).layout["about"] == Known("examples", "labels")


def test_stages_of_the_wire_come_in_order():
    clip, noise = Codec(), Codec()
    assert (Method(wire=(clip,)) + Method(wire=(noise,))).wire == (clip, noise)


def test_rules_of_combination_stay_with_the_slots_they_were_made_for():
    rules = (ifca(2) + scaffold()).combine
    assert rules["model"] == Combine("uniform", Relax(1.0))
    assert rules["control"] == Combine("uniform", Relax("participation"))
    extra = Method({"model": Shared(), "extra": Shared()}, (Phase(), Phase("extra")))
    assert (ifca(2) + extra).combine == {"model": Combine("uniform"), "extra": Combine()}


CLASHES = {
    "the share of 'head'": (fedper, fedbabu),
    "the share of 'model'": (ifca, local),
    "the slot 'personal'": (ditto, pfedme),
    "the slot 'personal' again": (apfl, ditto),
    "the schedule": (fedprox, lambda: fedprox(0.5)),
    "the schedule again": (fedprox, apfl),
    "what predicts": (ditto, fedavg_ft),
    "what predicts again": (ditto, lambda: Method(predict=Predict(outputs=lambda x, batch: batch.outputs(x.model)))),
    "predict: outputs": (fedrod, lambda: Method(predict=Predict(outputs=lambda x, batch: batch.outputs(x.model)))),
    "how 'model' is adapted before predicting": (fedavg_ft, lambda: fedbabu(1)),
    "how 'model' is combined: server": (scaffold, lambda: momentum),
    "how 'model' is combined: weights": (fedbn, lambda: Method(combine=Combine(lambda x: torch.ones(())))),
    "the slot 'temperature'": (temperature, lambda: temperature(bias=True)),
    "the part added as 'lora'": (lora, lambda: Method(adds={"lora": lambda module, setting: module})),
}  # fmt: skip


@pytest.mark.parametrize(("what", "pair"), CLASHES.items(), ids=CLASHES)
def test_methods_that_change_the_same_thing_do_not_compose(what, pair):
    one, two = (make() for make in pair)
    for first, second in ((one, two), (two, one)):
        with pytest.raises(PluresError, match=f"both change {what.removesuffix(' again')}"):
            first + second


def test_two_personal_halves_are_local_training():
    assert same(trained(fedper() + lgfedavg()), trained(Method({head: Personal(), "model": Personal()})))
    assert torch.equal(shared(trained(fedper() + lgfedavg()))["0.weight"], shared(trained(local()))["0.weight"])


def test_two_kinds_of_clusters_are_chosen_each_for_itself():
    """Three bodies by loss and adapters by given groups: a client tries the bodies with the adapters of its group."""
    data = replace(ragged(), metadata={"group": tuple("ababbaa")})
    method = ifca(3) + community(column="group", width=2)
    options = {"federation": data, "model": mlp, "steps": 4, "batch_size": 8}
    before, done = (run(method, rounds, **options) for rounds in (2, 3))
    clients = list(range(7))
    assert done.membership["adapter"].tolist() == [0, 1, 0, 1, 1, 0, 0]
    losses = []
    for k in range(3):
        tried = states(before, clients, rows={"model": torch.full((7,), k)})
        deployed = before.readout(tried, clients)
        for i, rows in enumerate(data.splits["train"]):
            outputs = before.engine.forward(
                {"model": {p: t[i : i + 1] for p, t in deployed["model"].items()}}, data.inputs[rows].unsqueeze(0)
            )[0]
            losses.append(torch.nn.functional.cross_entropy(outputs, data.targets[rows]))
    assert done.membership["model"].tolist() == torch.stack(losses).view(3, 7).argmin(0).tolist()
    guest = onboard(done, replace(data.subset(["1", "2"]), clients=("x", "y")), visits=0)
    assert guest.membership["adapter"].tolist() == [1, 0]


def test_a_control_variate_of_what_is_personal_is_personal():
    """SCAFFOLD pulls personal leaves to the others', unless their control variates stay too."""
    own = {replace(everything, slot="control"): Personal(), "model": Shared()}
    pulled, left, alone = (
        shared(trained(m))
        for m in (scaffold() + fedper(everything), scaffold() + fedper(everything) + Method(own), local())
    )
    for path, value in alone.items():
        torch.testing.assert_close(left[path], value, atol=1e-13, rtol=0)
        assert (pulled[path] - value).abs().max() > 1e-3


# Entries of the catalogue ---------------------------------------------------------------------------------------


def test_names_joined_by_plus_are_entries_of_both():
    both = find_method("ifca+fedrep")
    assert (both.name, both.title, both.family) == ("ifca+fedrep", "IFCA + FedRep", "clustered + split model")
    assert both.space == {"clusters": (2, 3, 4), "head_epochs": (1, 3, 5)}
    assert both.defaults.items() >= {"clusters": 3, "head_epochs": 3, "visits": 5}.items()
    assert "Ghosh" in both.citation
    assert "Collins" in both.citation
    assert both(clusters=2, head_epochs=1) == ifca(2) + fedrep(1)
    assert find_method("fedper+fedrep").family == "split model"


def test_a_parameter_of_both_is_set_in_python():
    both = find_method("ditto+fedbn+fedprox")
    assert both.defaults["visits"] == "as in each"
    assert "visits" not in both.space
    assert both(lam=0.5).predictor.visits == 5
    with pytest.raises(PluresError, match=r"'visits' is a parameter of ditto and of fedbn: set it in Python, ditto\("):
        both(visits=3)
    with pytest.raises(PluresError, match=r"'ditto\+fedbn\+fedprox': .*its parameters are lam=1.0"):
        both(clusters=3)
    with pytest.raises(PluresError, match="no method 'fedrap'"):
        find_method("ifca+fedrap")
    with pytest.raises(PluresError, match="do not compose: both change the share of 'model'"):
        find_method("ifca+local")()


def test_a_comparison_takes_composed_names(tmp_path):
    generator = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    for client in "abcd":
        x = generator.normal(size=(40, 4)).astype(np.float32)
        np.savez(data / f"{client}.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    fixed = Execution("vmap", 4, False)
    out = tmp_path / "out"
    options = {"rounds": 2, "seeds": 1, "learning_rates": (0.1,), "tune_rounds": 1, "execution": fixed}
    result = plures.compare(str(data), ["ifca+fedrep", ifca + fedbabu], out=out, **options)
    rows = {row.name: row for row in result.methods}
    assert list(rows)[-2:] == ["ifca+fedrep", "ifca+fedbabu"]
    assert rows["ifca+fedrep"].parameters.keys() == {"clusters", "head_epochs"}
    kept = RunFolder(out / "runs" / "ifca+fedrep-seed0")
    assert all(t.equal(kept.run().predictors([0])[k][0]) for k, t in kept.model("a").items())
